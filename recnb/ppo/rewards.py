"""Rewards of a list: Equations 1 to 5 and Algorithm 1, as the paper or the released code has them.

``fidelity="paper"`` computes the equations as printed. ``"released"`` computes what the authors'
code does: positions of Equation 3 count from 0, the sum of Equation 5 is divided by its value for
an ideal list, the list score of I0 looks at the target's place alone, the others use 1/(gap+1), and
line 17 of Algorithm 1 compares with k*m instead of k. Ranks count from 0 in both.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class ListScore:
    """Scores of one answer; arrays have one value an item of the answer."""

    preference: np.ndarray
    """Scores_i, Equation 1."""
    control: np.ndarray
    """Scores^ctl_i, Algorithm 1."""
    item: np.ndarray
    """R_item, Equation 2."""
    list: float
    """R_list, Equation 5 (without the factor 10)."""
    legal: np.ndarray
    """False where Equation 1 calls the item illegal."""


def legal_items(request, items):
    """Which items are legal: in the catalogue, no repeat, not in the history shown, in the first k.

    What the user has but the prompt does not show is legal: the model cannot know it
    (benchmarks/LOG.md says what happens if it is punished all the same).
    """
    before, legal = set(), np.zeros(len(items), dtype=bool)
    for i, item in enumerate(items):
        new = item not in before and item not in request.history
        legal[i] = item is not None and i < request.k and new
        before.add(item)
    return legal


def score_list(request, items, ranks, catalog, fidelity="paper"):
    """Score one answer.

    Args:
        request: ``Request``.
        items: item ids in order, None = no such item.
        ranks: 0-based teacher rank of each item (any number where the item is None).
        catalog: ``Catalog``.
        fidelity: "paper" or "released".

    Returns:
        ``ListScore``.
    """
    legal, control, k = legal_items(request, items), request.control, request.k
    preference, effect = np.full(len(items), -1.0), np.full(len(items), -1.0)
    for i in np.flatnonzero(legal):  # Equation 1
        preference[i] = 1.0 if items[i] == request.target else 1 / math.log2(ranks[i] + 3)
    good = [items[i] for i in np.flatnonzero(legal)]
    # Algorithm 1
    effect[legal] = control.item_scores(good, preference[legal], k, catalog, fidelity)
    starred = np.where(legal, preference / _discount(len(items), fidelity), -1.0)  # Equation 3
    total = float(starred.sum())
    if fidelity == "paper":
        aim = control.list_score(good, k, catalog, total)  # Equation 4
    else:
        total /= float((1 / _discount(k, fidelity) ** 2).sum())
        # Without a target, None must not be found among the titles that do not exist.
        found = request.target is not None and request.target in items
        place = items.index(request.target) if found else None
        aim = control.released_list_score(good, k, catalog, place)
    item = 0.5 * preference + 0.5 * effect  # Equation 2
    return ListScore(preference, effect, item, 0.5 * total + 0.5 * float(aim), legal)  # Equation 5


def _discount(length, fidelity):
    """log2(i + 2) of Equation 3: i counts from 1 in the paper, from 0 in the released code."""
    return np.log2(np.arange(length) + (3 if fidelity == "paper" else 2))


def batch_scores(requests, answers, teacher, catalog, fidelity="paper", hidden_seen="rank"):
    """``score_list`` for many answers; the teacher ranks all histories in one pass.

    Args:
        requests: B ``Request``.
        answers: B ``Response``.
        teacher: ``Teacher``.
        hidden_seen: "rank" gives an item that the user has, but the prompt does not show, the rank
            the teacher would give it; "last" the last one.

    Returns:
        B ``ListScore``.
    """
    known = [[i or 0 for i in a.items] for a in answers]
    ranks = teacher.ranks([r.seen for r in requests], known)
    if hidden_seen == "last":
        for request, items, rank in zip(requests, known, ranks, strict=True):
            rank[np.isin(items, request.seen)] = len(catalog) - len(set(request.seen)) - 1
    rows = zip(requests, answers, ranks, strict=True)
    return [score_list(r, a.items, rank, catalog, fidelity) for r, a, rank in rows]
