"""Code and pictures that lessons show: short enough, out of the module, with words for each."""

import json
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from recnb import datasets, lesson, profile
from recnb.controls import About, AllOf, AtLeast, AtMost, Exclude, Include
from recnb.evaluation import cases
from recnb.interactions import Histories
from recnb.lesson import attention, attention_weights, clipping, credit, source
from recnb.ppo import ppo_math, trainer
from recnb.profile import STAGES, root
from recnb.requests import Request
from recnb.teacher import sasrec
from recnb.teacher.popularity import ItemKNN, Transitions
from recnb.teacher.ranking import leave_one_out


def test_code_is_shown_as_it_stands_without_its_docstring():
    shown = source(ppo_math.gae)
    assert shown.name == "recnb.ppo.ppo_math.gae" and '"""' not in shown.text
    assert shown.text.startswith("def gae(") and "delta = rewards" in shown.text
    space = {"torch": ppo_math.torch}
    exec(shown.text, space)  # it is whole
    rows = [ppo_math.torch.rand(2, 5) for _ in range(3)]
    assert space["gae"](*rows, 0.9, 0.5)[0].equal(ppo_math.gae(*rows, 0.9, 0.5)[0])
    assert source(AtMost.item_score).text.startswith("def item_score(self")
    assert "```python\ndef gae" in shown._repr_markdown_() and repr(shown).startswith("# recnb")


def test_what_is_too_long_for_a_lesson_is_refused():
    with pytest.raises(ValueError, match=r"train_ppo has \d+ lines, more than 30"):
        source(trainer.train_ppo)


def test_credit_fades_by_gamma_lambda_a_token():
    figure, found = credit([0.0] * 9 + [2.0], gamma=0.9, lambdas=(0.0, 0.5, 1.0))
    for lam, advantages in found.items():
        for place, advantage in enumerate(advantages):
            assert math.isclose(advantage, 2 * (0.9 * lam) ** (9 - place), rel_tol=1e-5)
    assert "A line for each lambda".lower() in figure.axes[0].get_label().lower()


def test_past_the_clip_nothing_is_gained():
    figure = clipping(0.2)
    good, bad = (line.get_ydata() for line in figure.axes[0].lines[:2])
    assert good.max() == pytest.approx(1.2) and good[-1] == good.max()
    assert bad.max() == pytest.approx(-0.8) and bad[0] == bad.max() and bad[-1] == -1.5


def test_the_attention_shown_is_the_one_that_predicts(teacher, monkeypatch):
    """The weights, applied to the values, give what the model's own attention gives."""
    seen, model = [], teacher.model

    def watched(q, k, v, attn_mask):
        seen.append((v, attend(q, k, v, attn_mask=attn_mask)))
        return seen[-1][1]

    attend = sasrec.F.scaled_dot_product_attention
    monkeypatch.setattr(sasrec.F, "scaled_dot_product_attention", watched)
    weights = attention_weights(model, [5, 9, 2, 7])
    assert weights.shape == (len(model.blocks), model.blocks[0].heads, 4, 4)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-6)
    assert weights.triu(1).eq(0).all()
    for layer, (values, mixed) in zip(weights, seen, strict=True):
        assert torch.allclose(layer @ values[0], mixed[0], atol=1e-5)


def test_a_map_of_attention_shows_each_share_in_figures(teacher, world):
    figure = attention(teacher.model, [5, 9, 2], world[0].titles)
    (axis,) = figure.axes
    assert len(axis.texts) == 6 and axis.texts[0].get_text() == "100"
    told = axis.get_label()
    assert world[0].titles[2][:24] in told and "3 titles, oldest first" in told
    plt.close(figure)


def label_of(figure):
    (axis,) = figure.axes
    plt.close(figure)
    return axis.get_label()


def test_a_history_shows_its_ties():
    told = label_of(lesson.timeline([0, 0, 1, 2, 2, 2, 3]))
    assert "last 7 interactions, at 4 moments; 3 bear the time of the one before" in told
    assert "target bear different times" in told
    assert "target bear the same time" in label_of(lesson.timeline([1, 2, 2]))
    assert "last 5 interactions" in label_of(lesson.timeline(range(9), latest=5))


def test_filled_tokens_are_the_answers():
    pieces = ["You need $2", "\n", "1. ", "Heat (1995)", ""]
    figure = lesson.tokens_with_loss(pieces, 2)
    filled = [
        text.get_text()
        for text in figure.axes[0].texts
        if text.get_bbox_patch().get_facecolor()[:3] != (1, 1, 1)
    ]
    assert [text.strip() for text in filled] == ["1.", "Heat (1995)", "(end)"]
    assert "The first 2, the question, carry no loss; the 3 of the answer do" in label_of(figure)


def test_obey_bans_what_no_list_can_mend():
    """Against all ways to go on, written out."""

    def can(n, c, k, least, inside, outside):
        if c > inside or n - c > outside:
            return False
        if n == k:
            return c >= least
        return any(can(n + 1, c + more, k, least, inside, outside) for more in (0, 1))

    for world in ((6, 3, 8, 8), (5, 2, 2, 9), (4, 4, 4, 1), (4, 0, 1, 3)):
        k, least, inside, outside = world
        figure, banned = lesson.looks_ahead(*world)
        states = [(n, c) for n in range(k) for c in range(n + 1) if can(n, c, *world)]
        moves = [(n, c, kind, more) for n, c in states for kind, more in (("A", 1), ("other", 0))]
        expected = [(n, c, kind) for n, c, kind, m in moves if not can(n + 1, c + m, *world)]
        assert banned == expected
        assert f"a list of {k} titles, at least {least}" in label_of(figure)
    drawn = label_of(lesson.looks_ahead()[0])
    assert drawn in markdown_cell("06_evaluation", "looks-ahead-text"), "the drawing shows another"


def test_the_area_under_the_curve_is_the_auc(rng):
    for _ in range(4):
        labels = [True, False, *(rng.random(9) < 0.5).tolist()]
        scores = rng.integers(5, size=11) / 4  # with ties
        figure, area = lesson.roc(labels, scores)
        assert area == pytest.approx(roc_auc_score(labels, scores))
        assert f"{sum(labels)} likes and {11 - sum(labels)} dislikes" in label_of(figure)


def test_perplexity_of_no_idea_is_the_vocabulary():
    figure = lesson.surprise(50)
    curve, level, mark = figure.axes[0].lines
    assert curve.get_ydata() == pytest.approx(1 / curve.get_xdata())
    assert set(level.get_ydata()) == {50}
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (1 / 50, 50)
    assert "50 at one in 50" in label_of(figure)


def test_a_dial_for_any_wish(world):
    catalog = world[0]
    first, second = catalog.names[:2]

    inside = sorted(catalog.members(first))[:2]
    asked = []

    class Deaf:
        def recommend(self, requests):
            asked.extend(request.control for request in requests)
            return [SimpleNamespace(items=[*inside, None]) for _ in requests]

    plain = [Request(user, (), (), Include(first), 4) for user in range(3)]
    wishes = {
        "one": (first, lambda share: About(first, share)),
        "two": (first, lambda share: AllOf((About(first, share), Exclude(second)))),
    }
    frame = cases.turned("deaf", Deaf(), plain, wishes, catalog)
    assert len(frame) == 2 * 11 * 3 and set(frame["delivered"]) == {0.5}
    assert frame["requested"].tolist() == 2 * [t / 10 for t in range(11) for _ in range(3)]
    assert asked[3] == About(first, "1/10") and asked[-1] == wishes["two"][1]("10/10")


def test_what_was_seen_is_not_claimed_where_it_was_not(capsys):
    lesson.saw(True, "it rose")
    lesson.saw(np.bool_(False), "it fell")
    assert capsys.readouterr().out == "seen: it rose\nnot in this run: it fell\n"


def markdown_cell(stage, name):
    cells = json.loads((root() / "notebooks" / f"{stage}.ipynb").read_text("utf-8"))["cells"]
    return next("".join(cell["source"]) for cell in cells if cell["id"] == name)


def test_algorithm_1_as_the_lesson_shows_it_is_the_kits():
    text = markdown_cell("05_ppo", "algorithm-1")
    rows = re.findall(
        r"^\| (include|exclude|at most|at least|about) \| (.+) \| (.+) \|$", text, re.M
    )
    assert len(rows) == 5
    words = {r"c_\mathrm{in}": "c_in", r"c_\mathrm{out}": "c_out", "k m": "k * m", "$": ""}
    words |= {r"\le": "<=", r"\ge": ">=", ";": ""}
    kinds = {"at most": AtMost, "at least": AtLeast, "about": About}
    for wish, *cells in rows:
        for old, new in words.items():
            cells = [cell.replace(old, new) for cell in cells]
        for tenths in range(11) if wish in kinds else [0]:
            control = (Include if wish == "include" else Exclude)("A")
            m = None
            if wish in kinds:
                control = kinds[wish]("A", f"{tenths}/10")
                m = control.share
            for k, c_in, c_out in np.ndindex(6, 6, 6):
                for inside, cell in ((True, cells[0]), (False, cells[1])):
                    if c_in + c_out > k or not (c_in if inside else c_out):
                        continue
                    said = eval(cell, {"c_in": c_in, "c_out": c_out, "k": k, "m": m})
                    assert said == control.item_score(inside, c_in, c_out, k, 0.5), (wish, cell)


def test_what_the_answers_of_notebook_01_say_is_so():
    """A random test item helps ItemKNN and harms Transitions; shuffled ties cost the latter."""
    knobs = profile.load("lesson").data
    catalog, histories = datasets.build(knobs, 0)
    _, log = datasets.kept(*datasets.read(knobs, 0), knobs.k_core)
    moments = [rows.to_numpy() for _, rows in log.groupby("user")["timestamp"]]
    assert [len(times) for times in moments] == [len(items) for items in histories.items]
    rng = np.random.default_rng(0)

    def hits(given, table):
        return leave_one_out(table.scores, given, "test", len(catalog))["HR@10"].mean()

    places = [rng.integers(len(items)) for items in histories.items]
    moved = zip(histories.items, places, strict=True)
    random = Histories([np.append(np.delete(items, at), items[at]) for items, at in moved])
    pairs = zip(histories.items, moments, strict=True)
    shuffled = Histories([i[np.lexsort((rng.random(len(t)), t))] for i, t in pairs])
    knn = [hits(h, ItemKNN(h, len(catalog))) for h in (histories, random)]
    table = [hits(h, Transitions.count(h, len(catalog))) for h in (histories, random, shuffled)]
    assert knn[1] > knn[0] + 0.05 and table[1] < table[0] - 0.02
    assert 0.005 < table[0] - table[2] < 0.035, "not one to three points"
    stated = re.search(r"(\d+)% of (\d+) users", json.dumps(outputs_of("01_data", "ties-code")))
    tied = np.mean([times[-1] == times[-2] for times in moments])
    assert stated[1] == f"{100 * tied:.0f}" and int(stated[2]) == len(moments)


def outputs_of(stage, name):
    cells = json.loads((root() / "notebooks" / f"{stage}.ipynb").read_text("utf-8"))["cells"]
    return next(cell["outputs"] for cell in cells if cell["id"] == name)


MINUTES = {
    "seconds": 0.2,
    "half a minute": 0.5,
    "two": 2,
    "three": 3,
    "four": 4,
    "a quarter of an hour": 15,
    "an hour": 60,
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_minutes_a_lesson_states_are_those_of_the_reference_run(stage):
    path = root() / "notebooks" / f"{stage}.ipynb"
    head = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    found = re.search(
        r"running takes (?:.* on `lesson`, )?(.+?)(?: minutes)?(?: on `laptop`)? \|", head
    )
    parts = re.search(r"predict, (.+) for the exercises(?:, and (.+))?; running", head)
    times = re.findall(r"\*\*\d\.\d [^*]*\*\* \(★+, ([^)]*)\)", path.read_text("utf-8"))
    short = [time for time in times if time.endswith("minutes")]
    assert re.findall(r"\d+", parts[1]) == [time.split()[0] for time in short]
    long = [time for time in times if time not in short]
    assert (parts[2] or "") == ("two runs" if long == ["a run"] * 2 else "".join(long))
    manifest = root() / "papermill_runs" / "reference" / "laptop" / stage / "manifest.json"
    took = json.loads(manifest.read_text())["wall_seconds"] / 60
    assert took / 2 < MINUTES[found[1]] < 2 * took or took + MINUTES[found[1]] < 0.5
