"""Metrics of one answer (3.1.3 and 3.3), and bootstrap intervals over users."""

import math

import numpy as np

CUTOFFS = {"5": 5, "10": 10}


def on_grid(values):
    """The values rounded to multiples of 2^-30, float64: sums of up to four million are exact.

    Exact sums are the same on every processor, in whatever order it adds.
    """
    return np.rint(np.asarray(values, dtype=float) * 2.0**30) / 2.0**30


def accuracy(items, target, cutoffs=CUTOFFS):
    """HR@K and NDCG@K of one list with one target.

    Args:
        items: ids in order, None = no such item. A repeated or unknown entry takes its place all
            the same.
        target: the held-out item.
        cutoffs: K of each name.
    """
    place = items.index(target) if target in items else None
    values = {}
    for name, k in cutoffs.items():
        hit = place is not None and place < k
        values[f"HR@{name}"] = float(hit)
        values[f"NDCG@{name}"] = 1 / math.log2(place + 2) if hit else 0.0
    return values


def formatting(items, k, history, seen):
    """Table 5's formatting quality of one list; rates are shares of the list's entries.

    CorrectCount: the list has exactly k entries.
    RepeatItem: entries that stand earlier in the list.
    NonExist: entries that are in no catalogue.
    InHistory: entries that the prompt showed as history.
    Seen: entries that the user had before, shown or not (stricter than the paper's InHistory).
    """
    n = max(len(items), 1)
    known = [i for i in items if i is not None]
    return {
        "CorrectCount": float(len(items) == k),
        "RepeatItem": (len(known) - len(set(known))) / n,
        "NonExist": (len(items) - len(known)) / n,
        "InHistory": sum(i in history for i in known) / n,
        "Seen": sum(i in seen for i in known) / n,
    }


def bootstrap_interval(values, resamples, seed, level=0.95):
    """Percentile interval of the mean over users.

    Args:
        values: one number a user.
        resamples: number of resamples.

    Returns:
        ``(low, high)``.
    """
    values = on_grid(values)
    rng = np.random.default_rng([seed, 108])
    means = values[rng.integers(len(values), size=(resamples, len(values)))].mean(1)
    tail = 100 * (1 - level) / 2
    return float(np.percentile(means, tail)), float(np.percentile(means, 100 - tail))
