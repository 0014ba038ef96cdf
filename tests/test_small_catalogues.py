"""Small and odd catalogues: a limit is stated before anything starts, or the code copes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from recnb import RecnbError, plots
from recnb.catalog import Catalog
from recnb.evaluation import statistics
from recnb.evaluation.cases import case_rows, dial, two_cases
from recnb.evaluation.findings import findings
from recnb.evaluation.protocol import Ranker, answer_all, request_sets
from recnb.evaluation.stored import write_results
from recnb.instructions import synthesis
from recnb.instructions.checks import check_labels
from recnb.instructions.labels import released_sample
from recnb.interactions import Histories
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.parsing import parse
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.ppo.prompts import rl_requests, split_users
from recnb.teacher.popularity import Popularity
from tests.catalogues import GAMES, tables, write
from tests.test_check_data import found


def world(categories, users=40, length=9):
    """Catalogue with these category sets, and random histories of one length."""
    rng, items = np.random.default_rng(0), len(categories)
    catalog = Catalog([f"title {i}" for i in range(1, items + 1)], categories)
    histories = [rng.permutation(items)[:length] + 1 for _ in range(users)]
    return catalog, Histories(histories), Popularity(Histories(histories), items)


TWO = [{"AB"[i % 2]} for i in range(60)]
WORLDS = {
    "two categories, each item in one": (TWO,),
    "twelve items": (TWO[:12], 40, 6),
    "twelve users": ([{"ABC"[i % 3]} for i in range(60)], 12),
    "few items with a category": ([{"ABC"[i % 3]} if i % 10 == 0 else set() for i in range(60)],),
    "a category with one item": ([{"One"}, *TWO[1:]],),
    "one category within the other": ([{"A", "B"} if i % 2 else {"A"} for i in range(60)],),
    "every item in both categories": ([{"A", "B"}] * 60,),
}


@pytest.mark.parametrize(
    "name", ["two categories, each item in one", "twelve items", "every item in both categories"]
)
def test_the_evaluation_copes(name, smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "FLIPS", 200)
    catalog, histories, teacher = world(*WORLDS[name])
    knobs = smoke.evaluation.model_copy(update={"bootstrap": 20, "users": 0})
    smoke = smoke.model_copy(update={"evaluation": knobs})
    requests = request_sets(histories, catalog, teacher, smoke.evaluation, smoke.data, 0)
    for name in ("sasrec", "popularity", "base", "v2", "full"):
        system = {"free": Ranker(teacher, catalog, obey=name == "full")}
        answer_all(system, requests, tmp_path, name)
        answer_all(system, requests, tmp_path, name)  # a second start finds them
    metrics, _, made = write_results(
        tmp_path, histories, catalog, smoke, {"v1": "not asked for"}, tmp_path / "tables"
    )
    lines = findings(metrics, made["primary"])
    empty = [task for task in ("I1+", "I1-") if not requests[task]]
    assert all(f"{task}: no user could be asked" in "\n".join(lines) for task in empty)
    figure = plots.control_overview(metrics)
    assert len(figure.axes) == 3 - len(empty)
    plt.close(figure)


@pytest.mark.parametrize("name", WORLDS)
def test_case_studies_cope(name, smoke):
    catalog, histories, teacher = world(*WORLDS[name])
    cases = two_cases(histories, catalog, teacher, smoke.data, 0)
    possible = 1 + any(len(own) < len(catalog.names) for own in catalog.categories[1:])
    assert len(cases) == possible
    ranker = Ranker(teacher, catalog)
    for number, request in enumerate(cases):
        assert len(case_rows(number, request, {"x": ranker.recommend([request])[0]}, catalog))
    frame = dial({"x": ranker}, histories, catalog, teacher, smoke.data, smoke.cases, 0)
    assert frame["delivered"].between(0, 1).all()
    plt.close(plots.control_dial(frame))


def few_lists(smoke, **more):
    small = {"sequential": 40, "category": 40, "proportion": 60, "search": 20}
    return smoke.instructions.model_copy(update=small | more)


@pytest.mark.parametrize("name", [name for name in WORLDS if "both" not in name])
def test_instructions_are_made(name, smoke):
    catalog, histories, teacher = world(*WORLDS[name])
    knobs = few_lists(smoke)
    assert not synthesis.rehearse(histories, catalog, teacher, knobs, smoke.data, 0)
    frame = pd.DataFrame(synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, 0))
    assert check_labels(frame, catalog) == 160


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_a_task_nobody_can_be_set_is_found_before_and_ends(fidelity, smoke):
    catalog, histories, teacher = world([{"A", "B"}] * 60)
    knobs = few_lists(smoke, fidelity=fidelity)
    sentences = synthesis.rehearse(histories, catalog, teacher, knobs, smoke.data, 0)
    assert "task I1- had a legal label list in 0 of 200 draws" in sentences[0]
    assert "60 of the largest (B)" in sentences[0] and "instructions.k_max" in sentences[0]
    with pytest.raises(RecnbError, match="task I1- had a legal label list in 0 of 1000 draws"):
        list(synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, 0))


def test_released_labels_of_a_user_who_has_nearly_everything_are_drawn_again(smoke):
    catalog, histories, teacher = world(TWO[:12])
    scores = np.arange(13.0)
    seen = np.arange(1, 12)  # one title is left
    knobs = few_lists(smoke, fidelity="released", k_max=5, k_draws=9)
    rng = np.random.default_rng(0)
    found = [released_sample("I0", scores, seen, 12, knobs, catalog, rng) for _ in range(20)]
    assert None in found and all(one is None or one[2] for one in found)


def test_rl_requests_end_where_a_task_cannot_be_posed(smoke, rng):
    catalog, histories, teacher = world([{"A", "B"}] * 60)
    ask = (histories, catalog, teacher, smoke.data, 3, 5, rng)
    with pytest.raises(
        RecnbError, match="RL task I1- cannot be posed: in 1000 draws from 40 users"
    ):
        rl_requests(12, range(40), *ask)


def test_small_groups_of_users_are_split_in_halves(rng):
    histories = world(TWO, users=25)[1]
    held, learn = split_users(histories, 200, rng)
    assert len(held) == 12 and sorted([*held, *learn]) == list(range(25))
    assert len(split_users(histories, 5, rng)[0]) == 5
    with pytest.raises(RecnbError, match="needs two such users"):
        split_users(world(TWO, users=1)[1], 5, rng)


def test_a_user_with_nearly_the_whole_catalogue_gets_what_is_left():
    catalog = world(TWO[:12])[0]
    codec = Codec(build_tokenizer(catalog, [], 320, True))
    automaton, text = CatalogAutomaton(codec, catalog), ""
    state = automaton.start(10, range(1, 9), [(catalog.mask("A"), 10, 10)])
    while not state.done:
        token = int(state.allowed()[0])
        state.advance(token)
        text += codec.decode([token])
    assert sorted(line.split(". ")[1] for line in text.splitlines()) == sorted(catalog.titles[9:])
    with pytest.raises(RecnbError, match="the user has all 12 titles"):
        automaton.start(10, range(1, 13))


def test_lists_may_be_longer_than_their_numbers_are_known():
    catalog = world(TWO)[0]
    codec = Codec(build_tokenizer(catalog, [], 320, True))
    state, tokens = CatalogAutomaton(codec, catalog).start(25, []), []
    while not state.done:
        tokens.append(int(state.allowed()[-1]))
        state.advance(tokens[-1])
    assert parse(codec.decode(tokens), catalog).items == list(range(60, 35, -1))


def small(tmp_path, change=lambda items, log: (items, log), categories=GAMES, **few):
    return write(tmp_path, *change(*tables(categories, **few)))


def one_each(items, log):
    return items.assign(categories=items["categories"].str.split("|").str[0]), log


def in_all(items, log):
    return items.assign(categories="|".join(GAMES[:2])), log


def bare_targets(items, log):
    """Items that end a history have no category."""
    last = set(log.groupby("user")["item"].last())
    return items.assign(categories=items["categories"].mask(items["item"].isin(last), "")), log


def some_bare(items, log):
    return items.assign(categories=items["categories"].mask(items.index % 3 == 0, "")), log


def test_two_categories_with_one_each_pass(tmp_path):
    folder = small(tmp_path, one_each, GAMES[:2])
    problems, warnings = found(folder, tallrec__like_above=6)
    assert not problems and "no test item has two categories" in warnings


def test_twenty_five_users_pass(tmp_path):
    folder = small(tmp_path, users=25, items=60)
    problems, warnings = found(folder, tallrec__like_above=6, data__k_core=1)
    assert not problems
    assert "ppo.heldout_users (80) is more than half of the 25 users" in warnings


def test_twelve_items_are_refused_with_figure_and_knobs(tmp_path):
    folder = small(tmp_path, items=12, users=25)
    knobs = {"instructions__k_max": 2, "ppo__k_max": 3, "ppo__k_min": 2, "data__history_length": 3}
    problems, _ = found(folder, data__k_core=1, evaluation__format_k=[3, 4], **knobs)
    assert "12 items are left, at least 13 are needed: lists of up to 10" in problems


def test_histories_of_nearly_everything_are_refused(tmp_path):
    items, log = tables(GAMES, users=25, items=20)
    rows = [(f"u{u}", f"i{(i + u) % 20}", i, 5) for u in range(25) for i in range(18)]
    log = pd.DataFrame(rows, columns=log.columns)
    problems, warnings = found(write(tmp_path, items, log), data__k_core=1)
    assert "no user of the validation has 10 unseen items left" in problems
    assert "25 of 25 users have fewer than 10 unseen items left" in warnings


def test_categories_that_say_nothing_are_refused(tmp_path):
    problems, _ = found(small(tmp_path, in_all))
    assert "task I1- had a legal label list in 0 of 200 draws" in problems


def test_targets_without_categories_are_counted(tmp_path):
    problems, warnings = found(small(tmp_path, bare_targets, users=12), data__k_core=1)
    assert "no user's last item, the test target, has a category" in problems
    problems, warnings = found(small(tmp_path / "more", some_bare))
    assert not problems and "users have no category: tasks" in warnings
