"""What a user may ask of a list: one class a control.

Each class holds, in one place, the words of its instruction (Listings 1 to 6), which ranked items may enter a label
list (2.2.2), Algorithm 1's item score, Equation 4's list score, and its metric (Equations 7 and 8). A new control is
a new subclass; nothing else changes.

Shares are exact fractions. k*m need not be an integer: labels, rewards and CPA compare counts with the fraction itself
("at most 20 % of 7" allows 1 because 1 <= 7/5 < 2). ``About`` labels hold the integer nearest to k*m (half up).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

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
    """Base of all controls; itself it is never used."""

    def intention(self, rng):
        """The user's words, drawn with a NumPy generator; None if there is no intention."""
        raise NotImplementedError

    def select(self, ranked, k, catalog):
        """The first k-item list of ``ranked`` that obeys, in ranked order.

        Args:
            ranked: distinct item ids, best first (the ground truth stands first where there is one).
            k: length of the list.
            catalog: ``Catalog``.

        Returns:
            List of k ids, or None if ``ranked`` cannot give one.
        """
        raise NotImplementedError

    def item_score(self, inside, count_in, count_out, k, preference):
        """Scores^ctl of one legal item (Algorithm 1).

        Args:
            inside: the item belongs to the target category.
            count_in, count_out: legal items inside and outside so far, this one included.
            k: items asked for.
            preference: Scores_i of Equation 1.
        """
        raise NotImplementedError

    def list_score(self, count_in, count_out, k, preference_sum):
        """Score_list^ctl (Equation 4) from the counts of legal items; ``preference_sum`` = sum(Scores*)."""
        raise NotImplementedError

    def metrics(self, items, k, catalog):
        """``{"TCP": ...}`` (Equation 7) or ``{"CPA": ...}`` (Equation 8) of one list.

        Args:
            items: ids in order, None = no such item; entries beyond k do not count.
        """
        raise NotImplementedError

    def to_json(self):
        """Plain data; ``from_json`` gives the control back."""
        data = {"kind": type(self).__name__}
        for name, value in vars(self).items():
            data[name] = str(value) if isinstance(value, Fraction) else value
        return data

    def _inside(self, item, catalog):
        return item in catalog.members(self.category)

    def _count(self, items, k, catalog):
        members = catalog.members(self.category)
        return sum(item in members for item in items[:k])


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
    try:
        return kinds[kind](**data)
    except TypeError as error:
        raise RecnbError(f"control {kind}: {error}") from error


def _subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


@dataclass(frozen=True)
class NoControl(Control):
    """I0: whatever the user will like."""

    category = None

    def intention(self, rng):
        return None

    def select(self, ranked, k, catalog):
        return list(ranked[:k]) if len(ranked) >= k else None

    def item_score(self, inside, count_in, count_out, k, preference):
        return preference

    def list_score(self, count_in, count_out, k, preference_sum):
        return preference_sum

    def metrics(self, items, k, catalog):
        return {}

    def _inside(self, item, catalog):
        return False


@dataclass(frozen=True)
class Include(Control):
    """I1+: items of a category."""

    category: str

    def intention(self, rng):
        return LIKE[rng.integers(len(LIKE))].format(self.category)

    def select(self, ranked, k, catalog):
        members = catalog.members(self.category)
        chosen = [item for item in ranked if item in members][:k]
        return chosen if len(chosen) == k else None

    def item_score(self, inside, count_in, count_out, k, preference):
        return 1.0 if inside else 0.0

    def list_score(self, count_in, count_out, k, preference_sum):
        return 1 / math.log2(max(k - count_in, 0) + 2)

    def metrics(self, items, k, catalog):
        return {"TCP": self._count(items, k, catalog) / k}


@dataclass(frozen=True)
class Search(Include):
    """I3: items of a category, whoever asks. (Its negative form is ``Exclude`` with an empty history.)"""


@dataclass(frozen=True)
class Exclude(Control):
    """I1-: no items of a category."""

    category: str

    def intention(self, rng):
        return DISLIKE[rng.integers(len(DISLIKE))].format(self.category)

    def select(self, ranked, k, catalog):
        members = catalog.members(self.category)
        chosen = [item for item in ranked if item not in members][:k]
        return chosen if len(chosen) == k else None

    def item_score(self, inside, count_in, count_out, k, preference):
        return 0.0 if inside else 1.0

    def list_score(self, count_in, count_out, k, preference_sum):
        return 1 / math.log2(max(k - count_out, 0) + 2)

    def metrics(self, items, k, catalog):
        return {"TCP": self._count(items, k, catalog) / k}


@dataclass(frozen=True)
class Share(Control):
    """Base of the three proportion controls (I2): a category and a share in percent steps."""

    category: str
    share: Fraction

    def __post_init__(self):
        share = Fraction(self.share)
        if not 0 <= share <= 1:
            raise RecnbError(f"a share lies between 0 and 1, got {self.share}")
        object.__setattr__(self, "share", share)

    def intention(self, rng):
        percent = self.share * 100
        text = str(percent.numerator) if percent.denominator == 1 else f"{float(percent):g}"
        return f"In the recommendation list, the proportion of '{self.category}' items should be {self.words} {text}%"

    def bounds(self, k):
        """Least and greatest number of in-category items that a label list of k holds."""
        raise NotImplementedError

    def select(self, ranked, k, catalog):
        low, high = self.bounds(k)
        members = catalog.members(self.category)
        chosen, inside = [], 0
        for item in ranked:
            if len(chosen) == k:
                break
            if item in members:
                if inside < high:
                    chosen.append(item)
                    inside += 1
            elif k - (len(chosen) - inside) > low:  # one more outside still leaves room for `low` inside
                chosen.append(item)
        return chosen if len(chosen) == k and inside >= low else None


@dataclass(frozen=True)
class AtMost(Share):
    """I2: the share of a category is at most m."""

    words = "less than or equal to"

    def bounds(self, k):
        return 0, math.floor(k * self.share)

    def item_score(self, inside, count_in, count_out, k, preference):
        if count_out > k - k * self.share:
            return 0.5
        if not inside:
            return 1.0
        return 0.5 if count_in < k * self.share else 0.0

    def list_score(self, count_in, count_out, k, preference_sum):
        return 1 / math.log2(max(count_in - k * self.share, 0) + 2)

    def metrics(self, items, k, catalog):
        return {"CPA": float(self._count(items, k, catalog) <= k * self.share)}


@dataclass(frozen=True)
class AtLeast(Share):
    """I2: the share of a category is at least m."""

    words = "more than or equal to"

    def bounds(self, k):
        return math.ceil(k * self.share), k

    def item_score(self, inside, count_in, count_out, k, preference):
        if count_in > k:
            return 0.5
        if inside:
            return 1.0
        return 0.5 if count_out < k - k * self.share else 0.0

    def list_score(self, count_in, count_out, k, preference_sum):
        return 1 / math.log2(max(k * self.share - count_in, 0) + 2)

    def metrics(self, items, k, catalog):
        return {"CPA": float(self._count(items, k, catalog) >= k * self.share)}


@dataclass(frozen=True)
class About(Share):
    """I2: the share of a category is about m."""

    words = "approximately"

    def bounds(self, k):
        nearest = math.floor(k * self.share + Fraction(1, 2))
        return nearest, nearest

    def item_score(self, inside, count_in, count_out, k, preference):
        if inside:
            return 1.0 if count_in <= k * self.share else 0.0
        if count_in >= k * self.share:
            return 1.0
        return 0.5 if count_out <= k - k * self.share else 0.0

    def list_score(self, count_in, count_out, k, preference_sum):
        return 1 / math.log2(abs(count_in - k * self.share) + 2)

    def metrics(self, items, k, catalog):
        return {"CPA": float(abs(self._count(items, k, catalog) - k * self.share) <= 1)}
