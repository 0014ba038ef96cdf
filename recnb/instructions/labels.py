"""Label augmentation (2.2.2): a list of exactly k legal items that obeys the control, target first where it fits."""

import numpy as np

from recnb.controls import About, AtLeast, AtMost, Exclude, Include, NoControl


def ranked_items(scores, seen, target):
    """All unseen items by teacher score, the target first.

    Args:
        scores: [N+1] of the teacher; column 0 is -inf.
        seen: ids that may not be recommended.
        target: id of the ground truth, or None.
    """
    masked = scores.copy()
    masked[np.asarray(seen, dtype=np.int64)] = -np.inf
    if target is not None:
        masked[target] = np.inf
    order = np.argsort(-masked, kind="stable")
    return order[: int((masked > -np.inf).sum())].tolist()


def frequent_other_category(items, target, catalog, rng):
    """The paper's category for I1- and "at most": the most frequent one in the teacher's list that the target lacks.

    Ties are drawn by ``rng``. None if every category of the list belongs to the target.
    """
    counts = {}
    for item in items:
        for name in catalog.categories[item] - catalog.categories[target]:
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return None
    best = max(counts.values())
    return str(rng.choice(sorted(name for name, n in counts.items() if n == best)))


def draw_control(kind, ranked, target, catalog, rng):
    """A control of a task for a sample whose ground truth is ``target``; None if this sample has none.

    Positive controls name a category of the target, so that the target itself obeys; negative ones name a category
    that the target lacks, mostly (80 %) the one most frequent in the teacher's list. Shares are multiples of 10 %.
    """
    own = sorted(catalog.categories[target])
    others = sorted(set(catalog.names) - set(own))
    if kind == "I0":
        return NoControl()
    if kind in ("I1-", "I2<=") and rng.random() < 0.8:
        name = frequent_other_category(ranked[1:11], target, catalog, rng)
    elif kind == "I1-":
        name = str(rng.choice(others)) if others else None
    else:
        name = str(rng.choice(own)) if own else None
    if name is None:
        return None
    tenths = int(rng.integers(11))
    if kind == "I1+":
        return Include(name)
    if kind == "I1-":
        return Exclude(name)
    return {"I2<=": AtMost, "I2>=": AtLeast, "I2~": About}[kind](name, f"{tenths}/10")
