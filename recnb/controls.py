"""What a user may ask of a list: one class a control.

Each class holds, in one place, the words of its instruction (Listings 1 to 6), which lists obey it
(2.2.2), Algorithm 1's item score, Equation 4's list score, and its metric (Equations 7 and 8). A
new control is a new subclass; nothing else changes.

What a control asks of a list is a set of items and how many of the k must lie in it: ``Include``
all, ``Exclude`` none, ``AtMost`` up to k*m, and so on (``bounds``). Label lists and control-aware
decoding need no more than that.

Shares are exact fractions. k*m need not be an integer: labels, rewards and CPA compare counts with
the fraction itself ("at most 20 % of 7" allows 1 because 1 <= 7/5 < 2). ``About`` labels hold the
integer nearest to k*m (half up).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from recnb import RecnbError

LIKE = [
    "I like '{}' products",
    "Please recommend some '{}' items",
    "I'm interested in '{}'",
    "I would like to buy some '{}' products",
    "I would like to browse some '{}' products",
    "I prefer in '{}' item",
]
"""Listing 5: positive intentions."""
DISLIKE = [
    "I don't like '{}' products",
    "Please exclude any '{}' item",
    "I'm not interested in '{}'",
    "Don't recommend me any '{}' products",
    "I don't want to browse any '{}' product",
    "I hate '{}' items",
]
"""Listing 6: negative intentions."""


@dataclass(frozen=True)
class Control:
    """Base of all controls; itself it is never used.

    Attributes:
        template: which instruction it is asked with: "sequential", "category" or "proportion".
    """

    template = "category"

    def intention(self, rng):
        """The user's words, drawn with a NumPy generator; None if there is no intention."""
        raise NotImplementedError

    def inside(self, catalog):
        """bool [N+1]: the items the control is about."""
        return catalog.mask(self.category)

    def names(self):
        """The categories it names."""
        return [self.category]

    def bounds(self, k):
        """Least and greatest number of items inside that an obeying list of k holds."""
        raise NotImplementedError

    def needs(self, k, catalog):
        """All that is asked of a list of k, as tuples (bool [N+1], least, greatest)."""
        return [(self.inside(catalog), *self.bounds(k))]

    def select(self, ranked, k, catalog):
        """The best obeying list: at each place the first item after which it can still obey.

        Args:
            ranked: distinct item ids, best first; before them the ground truth, if there is one.
            k: length of the list.
            catalog: ``Catalog``.

        Returns:
            List of k ids in ranked order, or None if ``ranked`` cannot give one.
        """
        return first_list(np.asarray(ranked, dtype=np.int64), k, self.needs(k, catalog))

    def item_score(self, inside, count_in, count_out, k, preference, fidelity="paper"):
        """Scores^ctl of one legal item (Algorithm 1).

        Args:
            inside: the item belongs to the target category.
            count_in, count_out: legal items inside and outside so far, this one included.
            k: items asked for.
            preference: Scores_i of Equation 1.
            fidelity: "paper" or "released".
        """
        raise NotImplementedError

    def item_scores(self, items, preferences, k, catalog, fidelity="paper"):
        """``item_score`` of every legal item, in order.

        Args:
            items: the legal ids.
            preferences: their Scores_i.
        """
        members, count_in, scores = self.inside(catalog), 0, []
        for n, (item, preference) in enumerate(zip(items, preferences, strict=True), start=1):
            inside = bool(members[item])
            count_in += inside
            scores.append(self.item_score(inside, count_in, n - count_in, k, preference, fidelity))
        return scores

    def gap(self, count_in, count_out, k):
        """How many items a list is away from obeying; 0 = it obeys."""
        raise NotImplementedError

    def list_score(self, items, k, catalog, preference_sum):
        """Score_list^ctl (Equation 4): 1 / log2(gap + 2), at most 1.

        Args:
            items: the legal ids.
            preference_sum: sum(Scores*), the score of a list without a control.
        """
        count_in = self._count(items, catalog)
        return 1 / math.log2(self.gap(count_in, len(items) - count_in, k) + 2)

    def released_list_score(self, items, k, catalog, place):
        """What the authors' code has in place of Equation 4: 1 / (gap + 1).

        Args:
            items: the legal ids.
            place: 0-based place of the ground truth in the whole answer, or None.
        """
        count_in = self._count(items, catalog)
        return 1 / (float(self.gap(count_in, len(items) - count_in, k)) + 1)

    def met(self, items, k, catalog):
        """Does a list of k items do exactly what was asked, every part of it?

        Stricter than ``metrics``: ``Include`` wants all k inside, ``Exclude`` none, a share the
        count that k itself allows ("about" the nearest integer, half up: 3 of 10 at 30 %).

        Args:
            items: ids, None = no such item.
        """
        known = np.array([i for i in items if i is not None], dtype=np.int64)
        counts = [(int(inside[known].sum()), *bounds) for inside, *bounds in self.needs(k, catalog)]
        return all(least <= count <= greatest for count, least, greatest in counts)

    def metrics(self, items, k, catalog):
        """``{"TCP": ...}`` (Equation 7) or ``{"CPA": ...}`` (Equation 8) of one list.

        Args:
            items: ids in order, None = no such item; entries beyond k do not count.
        """
        raise NotImplementedError

    def to_json(self):
        """Plain data; ``from_json`` gives the control back."""
        fields = {name: _plain(value) for name, value in vars(self).items()}
        return {"kind": type(self).__name__} | fields

    def _count(self, items, catalog):
        known = [i for i in items if i is not None]
        return int(self.inside(catalog)[known].sum())


def _plain(value):
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Control):
        return value.to_json()
    return str(value) if isinstance(value, Fraction) else value


def from_json(data):
    """The control that ``to_json`` described.

    Raises:
        RecnbError: unknown kind or fields that do not fit.
    """
    kinds = {cls.__name__: cls for cls in _subclasses(Control)}
    data = dict(data)
    kind = data.pop("kind", None)
    if kind not in kinds:
        raise RecnbError(f"unknown control {kind!r}; known: {', '.join(sorted(kinds))}")
    if "controls" in data:
        data["controls"] = tuple(from_json(part) for part in data["controls"])
    try:
        return kinds[kind](**data)
    except TypeError as error:
        raise RecnbError(f"control {kind}: {error}") from error


def _subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def first_list(ranked, k, needs):
    """The list of k with, at each place, the first item after which all needs can still be met.

    Items differ for this only by which needs they lie in, and of each such kind the list can hold
    only the first k.

    Args:
        ranked: int array of distinct ids.
        needs: tuples (bool [N+1], least, greatest).
    """
    kind = kinds_of(needs, ranked)
    firsts = [np.flatnonzero(kind == code)[:k] for code in range(1 << len(needs))]
    left = [len(places) for places in firsts]
    room = tuple((low, high) for _, low, high in needs)
    if not can_end(tuple(left), k, room):
        return None
    chosen = []
    for place in np.sort(np.concatenate(firsts)):
        code = int(kind[place])
        left[code] -= 1
        after = taken(room, code)
        if can_end(tuple(left), k - len(chosen) - 1, after):
            chosen.append(int(ranked[place]))
            room = after
            if len(chosen) == k:
                break
    return chosen


def kinds_of(needs, items):
    """Which needs each item lies in: int array, bit j is set for need j."""
    kind = np.zeros(len(items), dtype=np.int64)
    for bit, (members, _, _) in enumerate(needs):
        kind |= members[items].astype(np.int64) << bit
    return kind


@lru_cache(maxsize=1 << 16)
def can_end(left, n, room):
    """Can a list be ended with exactly n more items?

    Args:
        left: how many items there are of each kind; kind ``code`` lies in need j if bit j of
            ``code`` is set.
        n: places left.
        room: for each need how many more must (least) and may (greatest) lie in it.
    """
    if not left:
        return n == 0 and all(low <= 0 <= high for low, high in room)
    *others, available = left
    for take in range(min(available, n) + 1):
        after = taken(room, len(others), take)
        if can_end(tuple(others), n - take, after):
            return True
    return False


def taken(room, code, items=1):
    """What is left to ask after some items of a kind."""
    after = []
    for bit, (low, high) in enumerate(room):
        inside = items * (code >> bit & 1)
        after.append((low - inside, high - inside))
    return tuple(after)


@dataclass(frozen=True)
class NoControl(Control):
    """I0: whatever the user will like."""

    template = "sequential"

    def intention(self, rng):
        return None

    def names(self):
        return []

    def needs(self, k, catalog):
        return []

    def item_scores(self, items, preferences, k, catalog, fidelity="paper"):
        return list(preferences)

    def list_score(self, items, k, catalog, preference_sum):
        return preference_sum

    def released_list_score(self, items, k, catalog, place):
        return 0.0 if place is None else 1 / math.log2(place + 2)

    def metrics(self, items, k, catalog):
        return {}


@dataclass(frozen=True)
class Include(Control):
    """I1+: items of a category."""

    category: str

    def intention(self, rng):
        return LIKE[rng.integers(len(LIKE))].format(self.category)

    def bounds(self, k):
        return k, k

    def item_score(self, inside, count_in, count_out, k, preference, fidelity="paper"):
        return 1.0 if inside else 0.0

    def gap(self, count_in, count_out, k):
        return max(k - count_in, 0)

    def released_list_score(self, items, k, catalog, place):
        reachable = min(k, int(self.inside(catalog).sum()))
        return 1 / (max(reachable - self._count(items, catalog), 0) + 1)

    def metrics(self, items, k, catalog):
        return {"TCP": self._count(items[:k], catalog) / k}


@dataclass(frozen=True)
class Search(Include):
    """I3: items of a category, whoever asks; the negative form is ``Exclude`` without a history."""


@dataclass(frozen=True)
class Exclude(Control):
    """I1-: no items of a category."""

    category: str

    def intention(self, rng):
        return DISLIKE[rng.integers(len(DISLIKE))].format(self.category)

    def bounds(self, k):
        return 0, 0

    def item_score(self, inside, count_in, count_out, k, preference, fidelity="paper"):
        return 0.0 if inside else 1.0

    def gap(self, count_in, count_out, k):
        return max(k - count_out, 0)

    def metrics(self, items, k, catalog):
        return {"TCP": self._count(items[:k], catalog) / k}


@dataclass(frozen=True)
class Share(Control):
    """Base of the three proportion controls (I2): a category and a share in percent steps."""

    category: str
    share: Fraction
    template = "proportion"

    def __post_init__(self):
        share = Fraction(self.share)
        if not 0 <= share <= 1:
            raise RecnbError(f"a share lies between 0 and 1, got {self.share}")
        object.__setattr__(self, "share", share)

    def intention(self, rng):
        percent = self.share * 100
        text = str(percent.numerator) if percent.denominator == 1 else f"{float(percent):g}"
        return (
            f"In the recommendation list, the proportion of '{self.category}' items "
            f"should be {self.words} {text}%"
        )

    def released_list_score(self, items, k, catalog, place):
        count_in = self._count(items, catalog)
        low, high = self.bounds(k)
        return 1.0 if low <= count_in <= high else 1 / (abs(count_in - float(k * self.share)) + 1)

    def metrics(self, items, k, catalog):
        count = self._count(items[:k], catalog)
        return {"CPA": float(self.gap(count, 0, k) <= self.slack)}


@dataclass(frozen=True)
class AtMost(Share):
    """I2: the share of a category is at most m."""

    words = "less than or equal to"
    slack = 0

    def bounds(self, k):
        return 0, math.floor(k * self.share)

    def item_score(self, inside, count_in, count_out, k, preference, fidelity="paper"):
        if count_out > k - k * self.share:
            return 0.5
        if not inside:
            return 1.0
        return 0.5 if count_in < k * self.share else 0.0

    def gap(self, count_in, count_out, k):
        return max(count_in - k * self.share, 0)


@dataclass(frozen=True)
class AtLeast(Share):
    """I2: the share of a category is at least m."""

    words = "more than or equal to"
    slack = 0

    def bounds(self, k):
        return math.ceil(k * self.share), k

    def item_score(self, inside, count_in, count_out, k, preference, fidelity="paper"):
        most = k if fidelity == "paper" else k * self.share  # line 17
        if count_in > most:
            return 0.5
        if inside:
            return 1.0
        return 0.5 if count_out < k - k * self.share else 0.0

    def gap(self, count_in, count_out, k):
        return max(k * self.share - count_in, 0)


@dataclass(frozen=True)
class About(Share):
    """I2: the share of a category is about m (Equation 8 allows one item more or less)."""

    words = "approximately"
    slack = 1

    def bounds(self, k):
        nearest = math.floor(k * self.share + Fraction(1, 2))
        return nearest, nearest

    def item_score(self, inside, count_in, count_out, k, preference, fidelity="paper"):
        if inside:
            return 1.0 if count_in <= k * self.share else 0.0
        if count_in >= k * self.share:
            return 1.0
        return 0.5 if count_out <= k - k * self.share else 0.0

    def gap(self, count_in, count_out, k):
        return abs(count_in - k * self.share)

    def error(self, items, k, catalog):
        """How many items of the category too many (too few: below 0) stand among the first k.

        Measured from the integer nearest to k*m, half up: from 3 of 10 at 30 %, from 2 of 5.
        """
        return self._count(items[:k], catalog) - self.bounds(k)[0]


@dataclass(frozen=True)
class AllOf(Control):
    """Several controls at once (Table 7): every one must be obeyed.

    The paper trains and rewards single controls only. Here an item, and a list, is worth what the
    control it serves least gives it.
    """

    controls: tuple

    def __post_init__(self):
        object.__setattr__(self, "controls", tuple(self.controls))
        if not self.controls or not all(isinstance(c, Control) for c in self.controls):
            raise RecnbError(f"AllOf takes one or more controls, got {self.controls!r}")

    @property
    def template(self):
        names = [c.template for c in self.controls]
        return next((name for name in ("proportion", "category") if name in names), "sequential")

    def names(self):
        return [name for c in self.controls for name in c.names()]

    def intention(self, rng):
        parts = [c.intention(rng) for c in self.controls]
        return " and ".join(words for words in parts if words)

    def needs(self, k, catalog):
        return [need for c in self.controls for need in c.needs(k, catalog)]

    def item_scores(self, items, preferences, k, catalog, fidelity="paper"):
        parts = [c.item_scores(items, preferences, k, catalog, fidelity) for c in self.controls]
        return [min(scores) for scores in zip(*parts, strict=True)]

    def list_score(self, items, k, catalog, preference_sum):
        return min(c.list_score(items, k, catalog, preference_sum) for c in self.controls)

    def released_list_score(self, items, k, catalog, place):
        return min(c.released_list_score(items, k, catalog, place) for c in self.controls)

    def metrics(self, items, k, catalog):
        """Each part's own metric, numbered: ``C1PA``, ``TC2P``.

        A wanted and an unwanted category have one together, ``TC1¬2P`` of Table 7.
        """
        if [type(c) for c in self.controls] == [Include, Exclude]:
            wanted, unwanted = (c.inside(catalog) for c in self.controls)
            known = [i for i in items[:k] if i is not None]
            return {"TC1¬2P": int((wanted & ~unwanted)[known].sum()) / k}
        result = {}
        for n, c in enumerate(self.controls, start=1):
            for name, value in c.metrics(items, k, catalog).items():
                numbered = f"C{n}PA" if name == "CPA" else f"{name[:-1]}{n}P"
                result[numbered] = value
        return result
