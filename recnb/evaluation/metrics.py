"""Metrics of one answer (3.1.3, 3.3 and stricter ones), and bootstrap intervals over users."""

import math
from functools import lru_cache

import numpy as np

from recnb.controls import About

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


def strict(items, k, history, control, catalog):
    """Strict: 1 if a user gets all that was asked for, else 0.

    The answer has exactly k entries, every one is a title of the catalogue, none stands there
    twice, the prompt showed none as history, and the wish is met to the item (``Control.met``):
    "include" by every item, "exclude" by none, a share by the count that k itself allows and not
    the number delivered, several wishes all at once. Without a wish the first four count alone. An
    empty answer gets 0, for "exclude" and "at most" too, which TCP and CPA call met.

    Args:
        items: ids in order, None = no such item.
        history: the items that the prompt showed.
    """
    legal = len(items) == k and None not in items
    legal = legal and len(set(items)) == k and not set(items) & set(history)
    return float(legal and control.met(items, k, catalog))


def exactness(items, k, control, catalog):
    """How near "about m %" comes to m % of k; nothing for other wishes.

    Exact: 1 if the first k entries hold as many items of the category as asked for, else 0.
    Bias: how many items too many (below 0: too few) there are, so that its mean shows a leaning.
    Both from the integer nearest to k*m, half up (``About.error``); CPA forgives one item.
    """
    if not isinstance(control, About):
        return {}
    error = control.error(items, k, catalog)
    return {"Exact": float(error == 0), "Bias": float(error)}


@lru_cache(maxsize=1)
def _draws(n, resamples, seed):
    """How often each of n units stands in each resample: float64 [resamples, n]."""
    counts = np.empty((resamples, n))
    drawn = np.random.default_rng([seed, 108]).integers(n, size=(resamples, n))
    for row, units in zip(counts, drawn, strict=True):
        row[:] = np.bincount(units, minlength=n)
    return counts


def bootstrap_interval(values, resamples, seed, level=0.95):
    """Percentile interval of the mean over users.

    Args:
        values: one number a user.
        resamples: number of resamples.

    Returns:
        ``(low, high)``.
    """
    values = on_grid(values)
    # on the grid the product is exact: the same mean as over the drawn values, in any order
    return _middle(_draws(len(values), resamples, seed) @ values / len(values), level)


def clustered_interval(values, users, resamples, seed, level=0.95):
    """Percentile interval of the mean of values that come several a user: users are resampled.

    Requests of one user are alike; resampled one by one they would count as independent and make
    the interval too narrow.

    Args:
        values: one number a request.
        users: the user of each.
        resamples: number of resamples.

    Returns:
        ``(low, high)``.
    """
    _, who = np.unique(users, return_inverse=True)
    draws = _draws(who.max() + 1, resamples, seed)
    means = (draws @ np.bincount(who, on_grid(values))) / (draws @ np.bincount(who))
    return _middle(means, level)


def _middle(means, level):
    tail = 100 * (1 - level) / 2
    return float(np.percentile(means, tail)), float(np.percentile(means, 100 - tail))
