import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest

from recnb import RecnbError
from recnb.catalog import Catalog
from recnb.controls import About, AtLeast, AtMost, Include, from_json
from recnb.instructions import synthesis
from recnb.instructions.checks import check_labels, examples
from recnb.instructions.labels import draw_k, label_list
from recnb.instructions.templates import ASIDES, THINGS, draw_aside
from recnb.ppo.prompts import TASKS, rl_requests
from recnb.profile import Instructions


@pytest.fixture(scope="module")
def samples(world, teacher, smoke):
    return made(world, teacher, smoke)


def made(world, teacher, smoke):
    catalog, histories = world
    knobs = smoke.instructions
    rows = synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, smoke.seed)
    return pd.DataFrame(rows)


def test_every_label_list_is_legal(samples, world):
    assert check_labels(samples, world[0]) == (samples["task"] != "I4").sum() > 2500


@pytest.mark.parametrize(
    "users, items, column", [(13218, 18744, "paper, Movie"), (12658, 8572, "paper, Steam")]
)
def test_counts_of_table_8(users, items, column):
    from recnb.evaluation.tables import table8

    counts = synthesis.table8(Instructions(), users, items)
    table = table8(counts)
    assert (table["this run"] == table[column]).all()


def test_labels_as_the_released_code_makes_them(world, teacher, smoke):
    catalog, histories = world
    knobs = smoke.instructions.model_copy(update={"fidelity": "released", "k_max": 5})
    frame = pd.DataFrame(synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, 0))
    check_labels(frame, catalog)
    assert (frame["task"] == "I2~").sum() == 0
    assert (frame[frame["task"] == "I3"]["k"] == 1).all()
    shares = frame[frame["task"].isin(["I2<=", "I2>="])]
    assert (shares["k"] == 5).all()
    assert shares.apply(lambda row: row["target"] in row["labels"], axis=1).mean() < 0.5
    plain = frame[frame["task"] == "I0"]
    assert (plain["labels"].str[0] == plain["target"]).all()


def test_k_is_the_largest_of_some_draws():
    """P(k <= n) = (n / k_max)^draws."""
    rng = np.random.default_rng(0)
    for draws in (1, 3):
        drawn = np.array([draw_k(Instructions(k_max=4, k_draws=draws), rng) for _ in range(20_000)])
        for n in range(1, 5):
            assert abs((drawn <= n).mean() - (n / 4) ** draws) < 0.015


def test_the_check_can_fail(samples, world):
    good = samples[(samples["task"] == "I1+") & (samples["k"] > 1)].iloc[0].to_dict()
    first, *others = good["labels"]
    for labels, message in [
        ([10**6, *others], "does not exist"),
        ([first, first, *others[1:]], "twice"),
        ([first, *others[1:]], "instead of"),
    ]:
        with pytest.raises(RecnbError, match=message):
            check_labels(pd.DataFrame([good | {"labels": labels}]), world[0])


def test_counts_forms_and_k(samples, world, smoke):
    counts = synthesis.table8(smoke.instructions, 200, len(world[0]))
    assert samples["task"].value_counts().to_dict() == counts
    asked = samples[samples["task"] != "I4"]
    assert set(asked["k"]) == set(range(1, smoke.instructions.k_max + 1))
    assert asked["prompt"].str.contains("candidate items are").mean() > 0.05
    assert set(examples(samples)["task"]) == set(counts)
    searches = samples[samples["task"] == "I3"]
    assert {json.loads(c)["kind"] for c in searches["control"]} == {"Search", "Exclude"}


def test_target_leads_where_it_obeys(samples):
    first = samples[samples["task"].isin(["I0", "I1+", "I1-"])]
    assert (first["labels"].str[0] == first["target"]).all()


def test_a_shares_labels_can_stand_by_category(world):
    """The same items and first item, behind it the category's first or last."""
    catalog, rng = world[0], np.random.default_rng(0)
    for _ in range(300):
        kind = [AtMost, AtLeast, About][rng.integers(3)]
        control = kind(str(rng.choice(catalog.names)), f"{rng.integers(11)}/10")
        ranked, k = rng.permutation(len(catalog)) + 1, int(rng.integers(1, 13))
        by_teacher, found = (
            label_list(control, ranked, k, Instructions(share_order=order), catalog)
            for order in ("teacher", "category")
        )
        best = control.select(ranked, k, catalog)
        assert by_teacher == best
        if best is None:
            assert found is None
            continue
        assert sorted(found) == sorted(best) and found[0] == best[0]
        turns = np.diff(control.inside(catalog)[found[1:]].astype(int))
        assert (turns >= 0).all() if isinstance(control, AtMost) else (turns <= 0).all()


@pytest.mark.parametrize("make", [AtMost, AtLeast, About])
def test_algorithm_1_rewards_no_other_order_more(make):
    """Against every order of an obeying list's items inside (1) and outside (0) the category."""

    def score(control, order, k):
        inside = np.cumsum(order)
        return sum(
            control.item_score(bool(one), int(n), place - int(n), k, 1.0)
            for place, (one, n) in enumerate(zip(order, inside, strict=True), start=1)
        )

    gained = 0.0
    for k, tenths in itertools.product(range(1, 8), range(11)):
        control = make("x", f"{tenths}/10")
        low, high = control.bounds(k)
        for n in range(low, high + 1):
            order = [0] * (k - n) + [1] * n
            ours = score(control, order if make is AtMost else order[::-1], k)
            others = [
                score(control, [int(i in places) for i in range(k)], k)
                for places in itertools.combinations(range(k), n)
            ]
            assert ours == max(others)
            gained += ours - min(others)
    # of the other two Algorithm 1 rewards every order alike
    assert (gained > 0) == (make is About)


def test_table8_is_the_papers_rule():
    counts = synthesis.table8(Instructions(), 13218, 18744)
    assert counts["I0"] == 13218 and counts["I1+"] == counts["I1-"] == 6609
    assert counts["I2<="] == counts["I2~"] == 4406 and counts["I3"] == 18744
    assert counts["I4"] == 29199 and sum(counts.values()) == 87597


def test_same_seed_same_samples(samples, world, teacher, smoke):
    pd.testing.assert_frame_equal(samples, made(world, teacher, smoke))


def test_k_beyond_the_catalogue(world, teacher, smoke):
    catalog, histories = world
    knobs = smoke.instructions.model_copy(update={"k_max": 1000})
    with pytest.raises(RecnbError, match="larger than the catalogue"):
        next(synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, 0))


def test_heldout_requests(world, teacher, smoke):
    catalog, histories = world
    requests = synthesis.heldout_requests(
        [(Include, "target")], np.arange(9), "test", histories, catalog, teacher, smoke.data, 0
    )
    for r in requests:
        assert r.target == histories.items[r.user][-1] and r.target not in r.seen
        assert r.control.category in catalog.categories[r.target]
        assert r.history == r.seen[-smoke.data.history_length :]


def test_pairs_name_two_categories_and_both_are_obeyed(world, teacher, smoke):
    catalog, histories = world
    kinds = ["I1+&I1-", "I2>=&I2<=", "I2~&I1-"]
    changed = {"pairs": 90, "pair_kinds": kinds, "share_order": "category"}
    knobs = smoke.instructions.model_copy(update=changed)
    rows = list(synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, 0))
    pairs = [row for row in rows if "&" in row["task"]]
    assert {kind: sum(r["task"] == kind for r in pairs) for kind in kinds} == dict.fromkeys(
        kinds, 30
    )
    for row in pairs:
        control = from_json(json.loads(row["control"]))
        first, second = control.controls
        assert first.category != second.category
        assert f"'{first.category}'" in row["prompt"] and f"'{second.category}'" in row["prompt"]
        for members, least, most in control.needs(row["k"], catalog):
            assert least <= members[row["labels"]].sum() <= most
        assert len(set(row["labels"])) == row["k"]
    plain = smoke.instructions
    assert set(synthesis.table8(plain, 200, 60)) == {*TASKS, "I3", "I4"}, "off by default"


def test_pairs_take_turns_with_the_single_tasks(world, teacher, smoke):
    rng = np.random.default_rng(0)
    drawn = rl_requests(
        14, range(50), world[1], world[0], teacher, smoke.data, 2, 4, rng, ["I1+&I1-"]
    )
    kinds = [type(request.control).__name__ for request in drawn]
    assert kinds[6] == kinds[13] == "AllOf" and kinds.count("AllOf") == 2


def test_asides_change_no_label_whatever_they_speak_of(world, teacher, smoke):
    catalog, histories = world
    knobs = smoke.instructions.model_copy(update={"asides": 0.5, "candidate_share": 0.0})
    rows = pd.DataFrame(synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, 0))
    starts = [aside.split("'")[0] for aside in ASIDES]
    wished = rows[rows["task"].str.startswith(("I1", "I2"))]

    def spoken_of(prompt):
        intention = prompt.split("user's intention: ")[1].split(". You need")[0]
        return set(re.findall("(?:^| )'([^']+)'", intention))

    remark = wished["prompt"].map(lambda prompt: any(start in prompt for start in starts))
    thing = wished["prompt"].map(lambda prompt: bool(spoken_of(prompt) & set(THINGS)))
    assert 0.2 < remark.mean() < 0.3 and 0.2 < thing.mean() < 0.3 and not (remark & thing).any()
    rest = rows[~rows.index.isin(wished.index) & rows["task"].ne("I4")]
    assert not rest["prompt"].map(lambda prompt: any(start in prompt for start in starts)).any()
    for row in wished.itertuples():
        control = from_json(json.loads(row.control))
        others = spoken_of(row.prompt) - {control.category}
        assert control.category in spoken_of(row.prompt) and others <= {*catalog.names, *THINGS}
        assert len(others) == (remark[row.Index] or thing[row.Index])
        assert row.labels and control.met(row.labels, row.k, catalog)
    first = wished["prompt"].str.contains("intention: (?:" + "|".join(starts) + ")")
    assert 0.3 < first[remark].mean() < 0.7, "before the wish as often as behind it"


def test_a_thing_that_is_a_category_here_is_no_aside():
    rng = np.random.default_rng(0)
    wood = Catalog(["a", "b"], [{name.title()} for name in ("wooden", "used")])
    asides = {draw_aside(Include("Wooden"), wood, rng) for _ in range(400)}
    assert not any("'wooden'" in aside or "'used'" in aside for aside in asides)
    assert any("'blue'" in aside for aside in asides) and any("'Used'" in aside for aside in asides)
    only = Catalog(["a"], [{"Wooden"}])
    asides = {draw_aside(Include("Wooden"), only, rng) for _ in range(50)}
    assert not any("'Wooden'" in aside for aside in asides), "no other category, so a thing"
