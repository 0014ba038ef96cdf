"""Label augmentation (2.2.2): k legal items that obey the control, the target first if it fits."""

from fractions import Fraction

import numpy as np

from recnb.controls import (
    About,
    AllOf,
    AtLeast,
    AtMost,
    Exclude,
    Include,
    NoControl,
    Share,
    first_list,
)
from recnb.teacher.ranking import best_first


def ranked_items(scores, seen, target):
    """All unseen items by teacher score, the target first: int array.

    Args:
        scores: [N+1] of the teacher; column 0 is -inf.
        seen: ids that may not be recommended.
        target: id of the ground truth, or None.
    """
    masked = scores.copy()
    masked[np.asarray(seen, dtype=np.int64)] = -np.inf
    if target is not None:
        masked[target] = np.inf
    return best_first(masked)[: int((masked > -np.inf).sum())]


def frequent_other_category(items, target, catalog, rng, used=frozenset()):
    """The most frequent category in the teacher's list that the target lacks.

    The paper's choice for I1- and "at most". Ties are drawn by ``rng``; categories in ``used`` are
    passed over. None if no category is left.
    """
    counts = {}
    for item in items:
        for name in catalog.categories[item] - catalog.categories[target] - used:
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return None
    best = max(counts.values())
    ties = sorted(name for name, n in counts.items() if n == best)
    return str(rng.choice(ties))


def draw_control(kind, ranked, target, catalog, rng, used=frozenset()):
    """A control of a task for a sample whose ground truth is ``target``; None if it has none.

    Positive controls name a category of the target, so that the target itself obeys; negative ones
    name a category that the target lacks, mostly (80 %) the one most frequent in the teacher's
    list. Shares are multiples of 10 %. A pair ("I1+&I1-") is an ``AllOf`` of two categories.

    Args:
        kind: the task.
        ranked: ``ranked_items``.
        used: categories that are taken already.
    """
    if "&" in kind:
        parts = []
        for single in kind.split("&"):
            taken = {part.category for part in parts}
            part = draw_control(single, ranked, target, catalog, rng, taken)
            if part is None:
                return None
            parts.append(part)
        return AllOf(parts)
    own = sorted(catalog.categories[target] - used)
    others = sorted(set(catalog.names) - catalog.categories[target] - used)
    if kind == "I0":
        return NoControl()
    if kind in ("I1-", "I2<=") and rng.random() < 0.8:
        name = frequent_other_category(ranked[1:11], target, catalog, rng, used)
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
    share = {"I2<=": AtMost, "I2>=": AtLeast, "I2~": About}[kind]
    return share(name, f"{tenths}/10")


def label_list(control, ranked, k, knobs, catalog):
    """The best obeying list (``Control.select``) or None; a share's in ``knobs.share_order``."""
    labels = control.select(ranked, k, catalog)
    if labels and knobs.share_order == "category":
        late = np.zeros(len(catalog) + 1, dtype=int)
        for part in control.controls if isinstance(control, AllOf) else [control]:
            if isinstance(part, Share):
                late += part.inside(catalog) * (1 if isinstance(part, AtMost) else -1)
        labels[1:] = sorted(labels[1:], key=lambda item: late[item])
    return labels


def draw_k(knobs, rng):
    """How many items a sample asks for."""
    return int(rng.integers(1, knobs.k_max + 1, size=knobs.k_draws).max())


def released_sample(task, score, seen, target, knobs, catalog, rng):
    """Control, k and label list as the authors' code draws them; None if this sample has none.

    It differs from section 2.2 in four ways: the category of I1+ and I2 is any category; the ground
    truth is not put into the list (only moved to its front where the teacher ranked it there); a
    share's list is shuffled and always of ``k_max`` items; "less" and "more than t" lists hold t
    items or one fewer or more.
    """
    ranked = ranked_items(score, seen, None)
    k, k_max = draw_k(knobs, rng), knobs.k_max
    if task == "I0":
        control, ranked = NoControl(), ranked_items(score, seen, target)
        labels = control.select(ranked, k, catalog)
        return (control, k, labels) if labels else None
    if task == "I1-":
        name = frequent_other_category(ranked[:10], target, catalog, rng)
    else:
        name = str(rng.choice(catalog.names))
    if name is None:
        return None
    if task in ("I1+", "I1-"):
        control = Include(name) if task == "I1+" else Exclude(name)
        labels = control.select(ranked, k, catalog)
        if labels and target in labels:
            labels = [target, *(i for i in labels if i != target)]
    else:
        n = min(len(catalog.members(name)), k_max)
        more = int(task == "I2>=")
        stated = int(rng.integers(1 - more, n + 1 - more))
        actual = stated + (1 if more else -1) * int(rng.integers(2))
        share = AtLeast if more else AtMost
        k, control = k_max, share(name, Fraction(stated, k_max))
        labels = first_list(ranked, k, [(catalog.mask(name), actual, actual)])
        if labels:
            labels = rng.permutation(labels).tolist()
    return (control, k, labels) if labels else None
