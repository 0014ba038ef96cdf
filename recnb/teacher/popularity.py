"""Three baselines without training: popularity, item-kNN, next-item transitions.

Each gives scores [B, N+1]. What they know of pairs of items is kept sparse: a table of all pairs
would not fit where there are many items.
"""

from itertools import pairwise

import numpy as np
from scipy import sparse

from recnb.teacher.ranking import blocks


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


NEIGHBOURS = 2048
"""Of an item, so many of its nearest others count (those as near as the last one, too): without a
bound, time and memory would grow faster than the interactions."""


class ItemKNN:
    """Sum of the cosine similarities between an item and the items of the history.

    Attributes:
        similarity: sparse float32 [N+1, N+1]; row i: the nearest others of item i.
    """

    def __init__(self, histories, items):
        matrix = _rows_of([histories.train(user) for user in range(len(histories))], items)
        norms = np.maximum(np.sqrt(matrix.sum(0)), np.float32(1e-9))
        users, parts = matrix.T.tocsr(), []
        for block in blocks(items + 1, items):
            part = users[block] @ matrix  # how many users have both
            rows = np.repeat(np.arange(block.start, block.stop), np.diff(part.indptr))
            part.data /= norms[rows]
            part.data /= norms[part.indices]
            part.data[rows == part.indices] = 0
            for start, end in pairwise(part.indptr):
                if end - start > NEIGHBOURS:
                    row = part.data[start:end]
                    row[row < np.partition(row, -NEIGHBOURS)[-NEIGHBOURS]] = 0
            part.eliminate_zeros()
            parts.append(part)
        self.similarity = sparse.vstack(parts, format="csr")

    def scores(self, histories):
        """[B, N+1]."""
        return _rows_of(histories, self.similarity.shape[0] - 1).dot(self.similarity).toarray()


def _rows_of(histories, items):
    """Sparse float32 [B, N+1], ones at the items of each history, in its order."""
    ends = np.cumsum([0, *map(len, histories)])
    columns = np.concatenate([np.zeros(0, dtype=np.int64), *map(_integers, histories)])
    ones = np.ones(len(columns), dtype=np.float32)
    return sparse.csr_array((ones, columns, ends), shape=(len(histories), items + 1))


def _integers(history):
    return np.asarray(history, dtype=np.int64)


class Transitions:
    """How often an item came within ``window`` places after one of the last ``window`` items.

    Nearer ones count more: by one over the root of the distance. Window and root were chosen on
    validation targets (benchmarks/LOG.md).

    Attributes:
        follows: sparse float32 [N+1, N+1]; row i: what came after item i, summing to 1 at most.
    """

    def __init__(self, follows, window=10):
        self.follows, self.window = follows, window

    @classmethod
    def count(cls, histories, items, window=10):
        """Count the training parts of all histories."""
        before, after, weights = [], [], []
        for user in range(len(histories)):
            sequence = histories.train(user)
            for gap in range(1, min(window, len(sequence) - 1) + 1):
                before.append(sequence[:-gap])
                after.append(sequence[gap:])
                weights.append(np.full(len(sequence) - gap, gap**-0.5))
        empty = [np.zeros(0, dtype=np.int64)]
        places = np.concatenate(empty + before), np.concatenate(empty + after)
        shape = (items + 1, items + 1)
        counts = sparse.csr_array((np.concatenate([np.zeros(0), *weights]), places), shape=shape)
        totals = np.maximum(counts.sum(1), 1)
        return cls(sparse.diags_array(1 / totals).dot(counts).astype(np.float32).tocsr(), window)

    def scores(self, histories):
        """[B, N+1]."""
        return self.entries(histories).toarray()

    def entries(self, histories):
        """``scores`` as a sparse array: what never followed has no entry."""
        rows, columns, weights = [], [], []
        for row, history in enumerate(histories):
            latest = np.asarray(history[-self.window :], dtype=np.int64)[::-1]
            rows.append(np.full(len(latest), row))
            columns.append(latest)
            weights.append(np.arange(1, len(latest) + 1) ** -0.5)
        places = np.concatenate(rows), np.concatenate(columns)
        shape = (len(histories), self.follows.shape[0])
        latest = sparse.csr_array((np.concatenate(weights), places), shape=shape)
        return latest.dot(self.follows)
