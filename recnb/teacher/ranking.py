"""What the rest of the kit asks a recommender that scores items: scores, top-k lists and ranks."""

import numpy as np
import torch

SCORE_BYTES = 64 << 20
"""Of float32 scores that are in memory at once where many users are ranked."""


def blocks(count, items):
    """Slices that cut ``count`` users into blocks whose scores [B, N+1] fit ``SCORE_BYTES``."""
    rows = max(1, SCORE_BYTES // (4 * (items + 1)))
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def scored(scorer, histories, items):
    """Yield the scores [N+1] of each history; ``blocks`` of them are worked out together."""
    for block in blocks(len(histories), items):
        yield from scorer.scores(histories[block])


def pad_left(histories, length):
    """Histories as an int64 array [B, L], padded with 0 on the left.

    L is that of the longest history, at most ``length``: then the latest items are kept.
    """
    longest = max((len(h) for h in histories), default=1)
    width = max(1, min(length, longest))
    padded = np.zeros((len(histories), width), dtype=np.int64)
    for row, history in enumerate(histories):
        tail = np.asarray(history[-width:], dtype=np.int64)
        padded[row, width - len(tail) :] = tail
    return padded


SMOOTHING = 0.4
"""Share of a uniform guess beside the transitions, so that what never followed is not ruled out."""


class Teacher:
    """A trained SASRec that answers questions about histories.

    Args:
        model: ``SASRec``.
        transitions: ``Transitions``, or None for SASRec alone.
        weight: log p(item) = log p_SASRec + weight * log p_transitions, up to a constant.
    """

    def __init__(self, model, transitions=None, weight=0.0):
        self.model, self.transitions, self.weight = model.eval(), transitions, weight

    @torch.no_grad()
    def scores(self, histories, batch_size=64):
        """Score of every item as the next one, float32 [B, N+1]; column 0 (padding) is -inf.

        Histories of like length go together, so that little padding is computed.
        """
        order = np.argsort([len(h) for h in histories], kind="stable")
        device = self.model.item.weight.device
        states = torch.zeros(len(histories), self.model.item.embedding_dim, device=device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = torch.from_numpy(pad_left([histories[i] for i in rows], self.model.max_length))
            last = self.model.hidden(batch.to(device), last=1)[:, 0]
            states[torch.from_numpy(rows).to(device)] = last
        scores = self.model.logits(states)
        if self.transitions is None:
            return scores.cpu().numpy()
        return self._with_transitions(scores.log_softmax(1).cpu().numpy(), histories)

    def _with_transitions(self, alone, histories):
        """Log-probabilities [B, N+1] of SASRec alone, plus the weighted ones of the transitions.

        What never followed, most of the catalogue, has one and the same of the latter. Sums are
        float64, the result float32.
        """
        follows = self.transitions.entries(histories).tocoo()
        totals = np.maximum(follows.toarray().sum(1), 1e-9)
        guess = SMOOTHING / (alone.shape[1] - 1)
        never = self.weight * np.log(np.float64(guess))
        both = np.empty_like(alone)
        np.add(alone, never, out=both, dtype=np.float64, casting="same_kind")
        places = row, _ = follows.coords
        both[places] = alone[places] + self.weight * np.log(follows.data / totals[row] + guess)
        return both

    def top_k(self, histories, k, allowed):
        """The k best allowed items of each history, best first.

        Args:
            histories: B sequences of item ids.
            k: length of the lists.
            allowed: bool [B, N+1]; an item that is not allowed is never returned.

        Returns:
            B int arrays; shorter than k where fewer items are allowed.
        """
        return top_k(self.scores(histories), k, allowed)

    def ranks(self, histories, items):
        """0-based rank of items in the teacher's prediction list, the history itself left out.

        Args:
            histories: B sequences of item ids.
            items: B sequences of item ids.

        Returns:
            B int arrays: how many items outside the history score higher (Rank in Equation 1).
        """
        rows = zip(self.scores(histories), histories, items, strict=True)
        return [ranks(scores, history, wanted) for scores, history, wanted in rows]


def ranks(scores, history, items):
    """Rank of ``items`` by ``scores`` [N+1], items of ``history`` not counted."""
    scores = scores.copy()
    wanted = scores[np.asarray(items, dtype=np.int64)]
    scores[np.asarray(history, dtype=np.int64)] = -np.inf
    return (scores[None, :] > wanted[:, None]).sum(1)


def top_k(scores, k, allowed):
    """Like ``Teacher.top_k``, from scores [B, N+1]. Equal scores: the smaller id first."""
    masked = np.where(allowed, scores, -np.inf)
    masked[:, 0] = -np.inf
    best = [best_first(row)[:k] for row in masked]
    return [order[np.isfinite(row[order])] for row, order in zip(masked, best, strict=True)]


def best_first(scores):
    """Places of scores [N] by falling score; of equal ones the smaller place first.

    Scores of 32 bits are sorted as integers that hold score and place: the order of a stable
    argsort in a fraction of its time.
    """
    if scores.dtype != np.float32:
        return np.argsort(-scores, kind="stable")
    bits = (np.float32(0) - scores).view(np.int32)  # from 0, since -0 and 0 are equal
    rising = bits ^ (bits >> 31 & 0x7FFFFFFF)  # as integers these are in the order of the floats
    keys = rising.astype(np.int64) << 32 | np.arange(len(scores))
    keys.sort()
    return keys & 0xFFFFFFFF


def unseen(seen, items):
    """Bool [B, N+1]: True for every real item that is not in the row's ``seen``."""
    allowed = np.ones((len(seen), items + 1), dtype=bool)
    allowed[:, 0] = False
    for row, history in enumerate(seen):
        allowed[row, np.asarray(history, dtype=np.int64)] = False
    return allowed


def leave_one_out(score, histories, split, items, cutoffs=(5, 10)):
    """HR and NDCG by full ranking, seen items masked; of equal scores the smaller id is first.

    Args:
        score: function of a list of histories that gives [B, N+1]; it is asked for ``blocks``.
        histories: ``Histories``.
        split: "test" or "validation".
        items: their number, N.

    Returns:
        Dict ``{"HR@5": ..., "NDCG@5": ..., ...}`` of arrays with one value a user.
    """
    place = np.empty(len(histories), dtype=np.int64)
    for block in blocks(len(histories), items):
        users = range(len(histories))[block]
        seen = [histories.seen(user, split) for user in users]
        targets = [histories.target(user, split) for user in users]
        scores = np.where(unseen(seen, items), score(seen), -np.inf)
        wanted, ids = scores[np.arange(len(seen)), targets][:, None], np.arange(items + 1)
        tied = (scores == wanted) & (ids < np.array(targets)[:, None])
        place[block] = np.count_nonzero((scores > wanted) | tied, axis=1)
    result = {}
    for k in cutoffs:
        result[f"HR@{k}"] = (place < k).astype(float)
        result[f"NDCG@{k}"] = np.where(place < k, 1 / np.log2(place + 2), 0.0)
    return result


def teacher_beaten(table, name="SASRec"):
    """A sentence for each baseline that beats the teacher on HR@10 or NDCG@10.

    Args:
        table: DataFrame of means, a row a system, a column a metric.
        name: the teacher's row.
    """
    sentences = []
    for metric in ("HR@10", "NDCG@10"):
        teacher = table[metric][name]
        for other, value in table[metric].drop(name).items():
            if value > teacher:
                sentences.append(
                    f"the teacher ({metric} {teacher:.3f}) is beaten by {other} ({value:.3f}), "
                    "which needs no training: expect weak labels"
                )
    return sentences
