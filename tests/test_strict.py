"""Strict and Exact against brute force, form in every task, "about" by k, intervals over users."""

import dataclasses
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recnb.catalog import Catalog
from recnb.controls import About, AllOf, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.evaluation import tables
from recnb.evaluation.metrics import (
    bootstrap_interval,
    clustered_interval,
    exactness,
    formatting,
    on_grid,
    strict,
)
from recnb.evaluation.protocol import (
    TASKS,
    Ranker,
    answer_all,
    per_user,
    proportion_by_k,
    request_sets,
    summarise,
)
from recnb.lm.parsing import parse
from recnb.requests import Request

WORLD = Catalog(
    [f"t{i}" for i in range(1, 13)],
    [
        {"A"} if i <= 4 else {"A", "B"} if i <= 6 else {"B"} if i <= 9 else set()
        for i in range(1, 13)
    ],
)
SHARES = [cls("A", Fraction(n, 10)) for cls in (AtMost, AtLeast, About) for n in (0, 2, 3, 5, 10)]
WISHES = st.sampled_from([NoControl(), Include("A"), Exclude("A"), *SHARES])
WISHES = st.one_of(WISHES, st.builds(lambda a, b: AllOf((a, b)), WISHES, WISHES))
LISTS = st.lists(st.one_of(st.none(), st.integers(1, 12)), max_size=6)


def obeys(control, items, k):
    """The wish in words, one by one."""
    if isinstance(control, AllOf):
        return all(obeys(part, items, k) for part in control.controls)
    if isinstance(control, NoControl):
        return True
    inside = sum(item in WORLD.members("A") for item in items)
    if isinstance(control, Include):
        return inside == k
    if isinstance(control, Exclude):
        return inside == 0
    wanted = k * control.share
    if isinstance(control, AtMost):
        return inside <= wanted
    if isinstance(control, AtLeast):
        return inside >= wanted
    return -Fraction(1, 2) <= inside - wanted <= Fraction(1, 2) and (
        inside - wanted != -Fraction(1, 2)  # half up
    )


@given(WISHES, LISTS, st.integers(1, 6), st.sets(st.integers(1, 12), max_size=2))
def test_strict_by_brute_force(control, items, k, history):
    legal = len(items) == k
    for place, item in enumerate(items):
        legal = legal and item is not None and item not in items[:place] and item not in history
    expected = float(legal and obeys(control, items, k))
    assert strict(items, k, tuple(history), control, WORLD) == expected


@pytest.mark.parametrize("control", [NoControl(), Exclude("A"), AtMost("A", "1/5")])
def test_an_empty_answer_is_never_strict(control):
    assert strict([], 3, (), control, WORLD) == 0.0
    assert strict([], 3, (), AllOf((control, Exclude("B"))), WORLD) == 0.0


def test_a_share_is_one_of_k_and_not_of_what_came():
    """One of three items instead of ten keeps "at most 20 %" for CPA; ten were asked for."""
    wish = AtMost("A", "1/5")
    assert wish.metrics([1, 7, 8], 10, WORLD) == {"CPA": 1.0}
    assert strict([1, 7, 8], 10, (), wish, WORLD) == 0.0


@pytest.mark.parametrize("k, wanted", [(3, 1), (4, 1), (5, 2), (10, 3), (12, 4), (15, 5)])
def test_about_is_rounded_half_up(k, wanted):
    wish = About("A", "3/10")
    inside, outside = [1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12, None, None, None, None]
    for count in range(min(k, 5) + 1):
        found = exactness(inside[:count] + outside[: k - count], k, wish, WORLD)
        assert found == {"Exact": float(count == wanted), "Bias": count - wanted}
    assert exactness([1, 2], 2, Include("A"), WORLD) == {}


def test_intervals_are_what_drawing_the_values_gives(rng):
    """Thirds and logarithms, whose sums round: the counts of a resample give its very mean."""
    values = rng.choice([1 / 3, 1 / np.log2(3), 0.0, -2.0], size=70)
    drawn = on_grid(values)[np.random.default_rng([4, 108]).integers(70, size=(300, 70))].mean(1)
    low, high = np.percentile(drawn, 2.5), np.percentile(drawn, 97.5)
    assert bootstrap_interval(values, 300, 4) == (low, high)


def test_requests_of_one_user_do_not_count_as_many_users(rng):
    """Each user's requests all alike: the interval is that of the users, not of the requests."""
    one_each = rng.normal(size=50)
    users = np.repeat(np.arange(50) + 7, 6)
    low, high = clustered_interval(np.repeat(one_each, 6), users, 500, 0)
    assert (low, high) == pytest.approx(bootstrap_interval(one_each, 500, 0), abs=1e-9)
    narrow = bootstrap_interval(np.repeat(one_each, 6), 500, 0)
    assert high - low > 1.8 * (narrow[1] - narrow[0])
    uneven = [0.0, 1.0, 1.0, 1.0]  # of users 0 and 1: resampling 0 twice, both, 1 twice
    found = clustered_interval(uneven, [0, 1, 1, 1], 500, 0)
    assert found == (0.0, 1.0)


@pytest.fixture(scope="module")
def answered(world, teacher, smoke, tmp_path_factory):
    """Requests with several k, and the answers of a ranker that cannot read a wish."""
    catalog, histories = world
    knobs = smoke.evaluation.model_copy(update={"proportion_k": [3, 5, 10]})
    requests = request_sets(histories, catalog, teacher, knobs, smoke.data, 0)
    folder = tmp_path_factory.mktemp("answers")
    stored = answer_all({"free": Ranker(teacher, catalog)}, requests, folder, "sasrec")["free"]
    return requests, stored, per_user(stored, requests, catalog)


def test_form_and_strict_stand_in_every_task(answered, world):
    requests, stored, values = answered
    texts = stored.set_index(["task", "user"])["text"]
    found = values.set_index(["task", "user", "metric"])["value"]
    for task, asked in requests.items():
        request = asked[0]
        items = parse(texts[task, request.user], world[0]).items
        form = formatting(items, request.k, request.history, request.seen)
        for name, value in form.items():
            assert found[task, request.user, name] == value
        whole = strict(items, request.k, request.history, request.control, world[0])
        assert found[task, request.user, "Strict"] == whole
        plain = parse(texts["I0", request.user], world[0]).items
        key = (task, request.user, "Strict without control")
        assert (key in found) == (task not in ("I0", "format", "I2~30 by k"))
        if key in found:
            unasked = strict(plain, request.k, request.history, request.control, world[0])
            assert found[key] == unasked
    table = tables.form(summarise(values, "sasrec", "free", 50, 0))
    assert list(table["task"]) == list(requests) and set(table["CorrectCount"]) == {"100.00"}


def test_users_are_dealt_evenly_to_the_k_of_about(answered, world, teacher, smoke):
    requests, stored, values = answered
    sizes = pd.Series([r.k for r in requests["I2~30 by k"]]).value_counts()
    assert set(sizes.index) == {3, 5, 10} and sizes.max() - sizes.min() <= 1
    off = request_sets(world[1], world[0], teacher, smoke.evaluation, smoke.data, 0)
    assert set(off) == set(TASKS) - {"I2~30 by k"}
    assert all(off[task] == requests[task] for task in off), "the other tasks stay as they were"
    by_k = proportion_by_k(stored, values, 50, 0)
    assert set(by_k["task"]) == {"I2~30", "I2~30 by k"}
    texts = stored.set_index(["task", "user"])["text"]
    for k, part in by_k[by_k["task"] == "I2~30 by k"].groupby("k"):
        exact = []
        for request in requests["I2~30 by k"]:
            if request.k == k:
                items = parse(texts["I2~30 by k", request.user], world[0]).items
                exact.append(exactness(items, k, request.control, world[0])["Exact"])
        row = part.set_index("metric").loc["Exact"]
        assert row["value"] == pytest.approx(np.mean(exact)) and row["n"] == len(exact)
        assert row["low"] <= row["value"] <= row["high"]
    shown = tables.exactness(by_k.assign(system="sasrec", decoding="free"), {"palr": "not asked"})
    assert list(shown["k"]) == [10, 3, 5, 10, ""]
    assert shown["note"].iloc[-1] == "not run: not asked"


def test_a_teacher_with_the_prompts_information_knows_no_more(world, teacher):
    catalog, histories = world
    seen = tuple(int(i) for i in histories.seen(0, "test"))
    short = Request(0, seen[-3:], seen, NoControl(), 10, None)
    told = Ranker(teacher, catalog, prompt_only=True)
    answer = told.recommend([short])[0].items
    forgotten = dataclasses.replace(short, seen=seen[-3:])
    assert answer == Ranker(teacher, catalog).recommend([forgotten])[0].items
    assert not set(answer) & set(seen[-3:])


def test_systems_that_tallrec_reports_and_the_kit_lacks_keep_a_row():
    columns = ["system", "domain", "16", "note"]
    rows = [("sasrec", "movie", "50.00", ""), ("DROS (paper)", "movie", "50.76", "reported")]
    table = tables.tallrec_table(pd.DataFrame(rows, columns=columns))
    assert list(table["system"]) == ["sasrec", "DROS", "GRU-BERT", "DROS-BERT", "DROS (paper)"]
    lacking = table[table["system"].isin(tables.TALLREC_NOT_RUN)]
    assert lacking["note"].str.startswith("not run: ").all() and lacking["16"].eq("").all()
    paper = tables.reported()["tallrec"]["MovieLens-100K"]
    assert set(tables.TALLREC_NOT_RUN) < set(paper)
