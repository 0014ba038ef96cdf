import itertools
import json
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recnb import RecnbError
from recnb.catalog import Catalog
from recnb.controls import (
    About,
    AllOf,
    AtLeast,
    AtMost,
    Exclude,
    Include,
    NoControl,
    Search,
    from_json,
)

SHARES = st.integers(0, 10).map(lambda n: Fraction(n, 10))
SHARE_CONTROLS = st.sampled_from([AtMost, AtLeast, About])
CONTROLS = st.one_of(
    st.just(NoControl()),
    st.sampled_from([Include("A"), Exclude("A"), Search("A")]),
    st.builds(lambda cls, s: cls("A", s), SHARE_CONTROLS, SHARES),
)
WORLD = Catalog(
    [f"t{i}" for i in range(1, 21)], [{"A", "B"} if i % 3 == 0 else {"B"} for i in range(1, 21)]
)


@given(CONTROLS)
def test_json_round_trip(control):
    assert from_json(json.loads(json.dumps(control.to_json()))) == control


def test_bad_json_is_named():
    with pytest.raises(RecnbError, match="unknown control 'Nothing'"):
        from_json({"kind": "Nothing"})
    with pytest.raises(RecnbError, match="Include"):
        from_json({"kind": "Include", "colour": "red"})
    with pytest.raises(RecnbError, match="between 0 and 1"):
        AtMost("A", "3/2")


@given(CONTROLS, st.permutations(range(1, 21)), st.integers(1, 10))
def test_select_obeys_and_finds_a_list_whenever_there_is_one(control, ranked, k):
    chosen = control.select(ranked, k, WORLD)
    inside, outside = 6, 14  # items 3, 6, ..., 18 are in A
    if isinstance(control, NoControl):
        possible = True
    elif isinstance(control, Include):
        possible = k <= inside
    elif isinstance(control, Exclude):
        possible = k <= outside
    else:
        low, high = control.bounds(k)
        possible = any(n <= inside and k - n <= outside for n in range(low, high + 1))
    assert (chosen is not None) == possible
    if chosen:
        assert len(set(chosen)) == k and chosen == [i for i in ranked if i in chosen]
        metrics = control.metrics(chosen, k, WORLD)
        assert metrics in ({}, {"CPA": 1.0}, {"TCP": 0.0 if isinstance(control, Exclude) else 1.0})


@given(
    CONTROLS, st.lists(st.one_of(st.none(), st.integers(1, 20)), max_size=14), st.integers(1, 10)
)
def test_metrics_by_brute_force(control, items, k):
    count = len([i for i in items[:k] if i is not None and i % 3 == 0 and i <= 18])
    found = control.metrics(items, k, WORLD)
    if isinstance(control, (Include, Exclude)):
        assert found == {"TCP": count / k}
    elif isinstance(control, NoControl):
        assert found == {}
    else:
        exact = k * control.share
        met = {AtMost: count <= exact, AtLeast: count >= exact, About: abs(count - exact) <= 1}
        assert found == {"CPA": float(met[type(control)])}


def test_shares_are_exact():
    assert AtLeast("A", "3/10").bounds(10) == (3, 10)
    assert AtMost("A", "7/10").bounds(10) == (0, 7)
    assert AtMost("A", "1/5").bounds(7) == (0, 1)
    assert About("A", "1/2").bounds(5) == (3, 3)


SMALL = Catalog(
    [f"s{i}" for i in range(1, 9)],
    [{"A"}, {"A", "B"}, {"B"}, {"C"}, {"A"}, {"C"}, {"B"}, {"A", "C"}],
)
NAMES = st.sampled_from("ABC")
SMALL_CONTROLS = st.one_of(
    st.builds(lambda cls, name: cls(name), st.sampled_from([Include, Exclude]), NAMES),
    st.builds(lambda cls, name, s: cls(name, s), SHARE_CONTROLS, NAMES, SHARES),
)


@given(
    st.lists(SMALL_CONTROLS, min_size=1, max_size=3),
    st.permutations(range(1, 9)),
    st.integers(1, 6),
)
def test_several_controls_select_the_first_obeying_list(parts, ranked, k):
    control = AllOf(parts)
    assert from_json(json.loads(json.dumps(control.to_json()))) == control

    def obeys(items):
        for part in parts:
            low, high = part.bounds(k)
            if not low <= sum(part.category in SMALL.categories[i] for i in items) <= high:
                return False
        return True

    expected = next(map(list, filter(obeys, itertools.combinations(ranked, k))), None)
    assert control.select(ranked, k, SMALL) == expected
    if expected:
        assert all(value in (0.0, 1.0) for value in control.metrics(expected, k, SMALL).values())


def test_metrics_of_table_7():
    both = AllOf((Include("A"), Exclude("B")))
    assert both.metrics([1, 2, 3, None], 4, SMALL) == {"TC1¬2P": 1 / 4}
    mixed = AllOf((AtMost("A", "1/2"), Exclude("B")))
    assert mixed.metrics([1, 2, 4, 6], 4, SMALL) == {"C1PA": 1.0, "TC2P": 1 / 4}
    words = mixed.intention(np.random.default_rng(0))
    assert "less than or equal to 50%" in words and " and " in words and "'B'" in words
    with pytest.raises(RecnbError, match="AllOf"):
        AllOf(())


@dataclass(frozen=True)
class Newest(AtLeast):
    """At least a share of the list comes from the newer half of the catalogue."""

    category: str = ""
    share: Fraction = Fraction(1, 2)

    def inside(self, catalog):
        return np.arange(len(catalog) + 1) > len(catalog) / 2

    def intention(self, rng):
        return f"At least {float(self.share):.0%} of the list should be new"


def test_a_control_added_here_works_from_wording_to_metric(rng):
    from recnb.instructions.templates import render
    from recnb.ppo.rewards import score_list
    from recnb.requests import Request

    control = from_json({"kind": "Newest", "share": "1/2"})
    assert "At least 50% of the list should be new" in render(control, [1], 2, WORLD, rng)
    assert control.select(range(1, 21), 4, WORLD) == [1, 2, 11, 12]
    assert control.metrics([1, 2, 11, 12], 4, WORLD) == {"CPA": 1.0}
    request = Request(0, (), (), control, 4, 1)
    obeying = score_list(request, [1, 2, 11, 12], [0, 1, 2, 3], WORLD)
    missing = score_list(request, [1, 2, 3, 4], [0, 1, 2, 3], WORLD)
    assert obeying.list > missing.list and obeying.control.tolist() == [0.5, 0, 1, 1]
    both = Request(0, (), (), AllOf((control, Exclude("A"))), 4, 1)
    score = score_list(both, [1, 2, 11, 12], [0, 1, 2, 3], WORLD)
    assert score.control.tolist() == [0.5, 0, 1, 0]
