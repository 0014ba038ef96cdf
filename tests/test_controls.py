import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recnb import RecnbError
from recnb.catalog import Catalog
from recnb.controls import About, AtLeast, AtMost, Exclude, Include, NoControl, Search, from_json

SHARES = st.integers(0, 10).map(lambda n: Fraction(n, 10))
CONTROLS = st.one_of(
    st.just(NoControl()),
    st.sampled_from([Include("A"), Exclude("A"), Search("A")]),
    st.builds(lambda cls, s: cls("A", s), st.sampled_from([AtMost, AtLeast, About]), SHARES),
)
WORLD = Catalog([f"t{i}" for i in range(1, 21)], [{"A", "B"} if i % 3 == 0 else {"B"} for i in range(1, 21)])


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


@given(CONTROLS, st.lists(st.one_of(st.none(), st.integers(1, 20)), max_size=14), st.integers(1, 10))
def test_metrics_by_brute_force(control, items, k):
    count = len([i for i in items[:k] if i is not None and i % 3 == 0 and i <= 18])
    found = control.metrics(items, k, WORLD)
    if isinstance(control, (Include, Exclude)):
        assert found == {"TCP": count / k}
    elif isinstance(control, NoControl):
        assert found == {}
    else:
        exact = k * control.share
        expected = {AtMost: count <= exact, AtLeast: count >= exact, About: abs(count - exact) <= 1}[type(control)]
        assert found == {"CPA": float(expected)}


def test_shares_are_exact():
    assert AtLeast("A", "3/10").bounds(10) == (3, 10)
    assert AtMost("A", "7/10").bounds(10) == (0, 7)
    assert AtMost("A", "1/5").bounds(7) == (0, 1)
    assert About("A", "1/2").bounds(5) == (3, 3)


def test_a_control_added_here_works_everywhere(toy, rng):
    from dataclasses import dataclass

    from recnb.instructions.templates import render
    from recnb.ppo.rewards import score_list
    from recnb.requests import Request

    @dataclass(frozen=True)
    class OnlyOneKind(Exclude):
        def intention(self, rng):
            return f"Nothing that is '{self.category}' too"

    control = from_json({"kind": "OnlyOneKind", "category": "A"})
    assert "Nothing that is 'A' too" in render(control, [1], 2, toy, rng)
    assert score_list(Request(0, (), (), control, 2, 3), [3, 4], [0, 1], toy).list > 0
