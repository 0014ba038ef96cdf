"""Three baselines without training: popularity, item-kNN, next-item transitions.

Each gives scores [B, N+1].
"""

import numpy as np


class Popularity:
    """Items by their number of training interactions."""

    def __init__(self, histories, items):
        self.counts = np.zeros(items + 1, dtype=np.float32)
        for user in range(len(histories)):
            np.add.at(self.counts, histories.train(user), 1)
        self.counts[0] = -np.inf  # padding is no item

    def scores(self, histories):
        """Same scores for every history."""
        return np.tile(self.counts, (len(histories), 1))


class ItemKNN:
    """Sum of the cosine similarities between an item and the items of the history."""

    def __init__(self, histories, items):
        matrix = np.zeros((len(histories), items + 1), dtype=np.float32)
        for user in range(len(histories)):
            matrix[user, histories.train(user)] = 1
        norms = np.maximum(np.sqrt(matrix.sum(0)), 1e-9)
        self.similarity = (matrix.T @ matrix) / norms[:, None] / norms[None, :]
        np.fill_diagonal(self.similarity, 0)

    def scores(self, histories):
        """[B, N+1]."""
        return np.stack([self.similarity[np.asarray(h)].sum(0) for h in histories])


class Transitions:
    """How often an item came within ``window`` places after one of the last ``window`` items.

    Nearer ones count more.
    """

    def __init__(self, histories, items, window=5):
        self.window = window
        self.follows = np.zeros((items + 1, items + 1), dtype=np.float32)
        for user in range(len(histories)):
            sequence = histories.train(user)
            for gap in range(1, window + 1):
                np.add.at(self.follows, (sequence[:-gap], sequence[gap:]), 1 / gap)
        self.follows /= np.maximum(self.follows.sum(1, keepdims=True), 1)

    def scores(self, histories):
        """[B, N+1]."""
        rows = []
        for history in histories:
            latest = np.asarray(history[-self.window :])[::-1]
            weights = 1 / np.arange(1, len(latest) + 1)
            rows.append(weights @ self.follows[latest])
        return np.stack(rows)
