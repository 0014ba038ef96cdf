import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from recnb.artifacts import Stage
from recnb.controls import Include
from recnb.evaluation.cases import case_rows, marks
from recnb.evaluation.metrics import accuracy, bootstrap_interval, formatting
from recnb.evaluation.protocol import (
    Ranker,
    answer_all,
    answers_folder,
    evaluate_stored,
    per_user,
    request_sets,
    summarise,
)
from recnb.evaluation.tables import LAYOUT, layout, reported, table6, write_frame
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.recommender import LanguageModelRecommender
from recnb.requests import Request, Response


def test_accuracy_against_scikit_learn(rng):
    for _ in range(50):
        items = [int(i) for i in rng.permutation(30)[:10]]
        target = int(rng.integers(30))
        others = [j for j in range(30) if j not in items]
        relevance = np.array([[float(i == target) for i in items + others]])
        if relevance[0, :10].sum():
            expected = ndcg_score(relevance, -np.arange(30, dtype=float)[None], k=10)
            assert accuracy(items, target)["NDCG@10"] == pytest.approx(expected)
        ranking = np.array([[-float(items.index(i)) if i in items else -99.0 for i in range(30)]])
        for k in (5, 10):
            hit = top_k_accuracy_score([target], ranking, k=k, labels=range(30))
            assert accuracy(items, target)[f"HR@{k}"] == (hit if target in items else 0)


@pytest.mark.parametrize(
    "items, expected",
    [
        ([1, 2, 3], (1, 0, 0, 0, 0)),
        ([1, 1, None], (1, 1 / 3, 1 / 3, 0, 0)),
        ([8, 9, 1, 2], (0, 0, 0, 1 / 4, 2 / 4)),
        ([], (0, 0, 0, 0, 0)),
    ],
)
def test_formatting_by_hand(items, expected):
    found = formatting(items, 3, history=(8,), seen=(8, 9))
    assert tuple(found.values()) == pytest.approx(expected)


def test_bootstrap_covers():
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(100):
        low, high = bootstrap_interval(rng.random(80) < 0.3, 400, seed)
        inside += low <= 0.3 <= high
    assert 85 <= inside <= 100


def test_stored_answers_give_the_metrics(world, teacher, smoke, tmp_path):
    catalog, histories = world
    requests = request_sets(histories, catalog, teacher, smoke.evaluation, smoke.data, 0)
    stored = answer_all({"free": Ranker(teacher, catalog)}, requests, tmp_path, "a")["free"]
    # stored: the system is not asked again
    again = answer_all({"free": None}, requests, tmp_path, "a")["free"]
    assert again.equals(stored)
    metrics = summarise(per_user(stored, requests, catalog), "sasrec", "free", 50, 0)
    value = metrics.set_index(["task", "metric"])["value"]
    assert value["format", "CorrectCount"] == 1 and value["format", "Seen"] == 0
    assert value["I1+", "TCP"] == value["I1+", "TCP without control"]
    table = layout(metrics, "table3")
    assert "full (paper)" in set(table["system"])
    assert len(table.columns) == 3 + len(LAYOUT["table3"])


def test_answers_of_another_model_are_not_reused(tmp_path, smoke):
    stage = Stage("06_evaluation", smoke, tmp_path)
    stage.inputs = {"05_ppo/actor": "a"}
    old = answers_folder(stage)
    (old / "full-free.parquet").write_text("answers")
    assert answers_folder(stage) == old and list(old.iterdir())
    stage.inputs = {"05_ppo/actor": "b"}
    assert not list(answers_folder(stage).iterdir()) and not old.exists()


def test_reported_numbers():
    """Rows and bold marks a reader can verify in the paper."""
    paper = reported()
    tables = [t for t in paper if t not in ("table1", "table8", "tallrec")]
    for dataset in ("Movie", "Steam"):
        users, items, interactions, sparsity = paper["table1"][dataset]
        assert 1 - interactions / (users * items) == pytest.approx(sparsity, abs=5e-5)
        counts = dict(zip(paper["table8"]["columns"], paper["table8"][dataset], strict=True))
        assert counts["I0"] == users == counts["I1+"] + counts["I1-"]
        assert users == counts["I2<="] + counts["I2>="] + counts["I2~"]
        assert counts["I3"] == items
        assert counts["I4"] == pytest.approx(sum(counts.values()) / 3, abs=1)
        for table in tables:
            rows = paper[table][dataset].values()
            assert all(len(row) == len(paper[table]["columns"]) for row in rows)
        hits = {system: row[2][0] for system, row in paper["table3"][dataset].items()}
        assert max(hits, key=hits.get) == "full"
    lengths = {"table2": 9, "table3": 8, "table4": 8, "table5": 8, "table7": 8}
    assert {t: len(paper[t]["Movie"]) for t in tables} == lengths
    assert paper["table4"]["Steam"]["full"][2] == [70.58, 18.15]


def test_answers_go_on_where_they_stopped(language_model, world, teacher, smoke, tmp_path):
    """Three ways of decoding, one of which lacks its last task."""
    model, codec = language_model
    automaton = CatalogAutomaton(codec, world[0])
    ways = {
        "free": LanguageModelRecommender(model, codec, world[0]),
        "constrained": LanguageModelRecommender(model, codec, world[0], automaton),
        "obey": LanguageModelRecommender(model, codec, world[0], automaton, obey=True),
    }
    knobs = smoke.evaluation.model_copy(update={"users": 4})
    requests = request_sets(world[1], world[0], teacher, knobs, smoke.data, 0)
    requests = {task: requests[task] for task in ("I0", "I1+", "format")}
    whole = answer_all(ways, requests, tmp_path, "full")
    cut = whole["obey"][whole["obey"]["task"] != "format"]
    cut.to_parquet(tmp_path / "full-obey.parquet", index=False)
    again = answer_all(ways, requests, tmp_path, "full")
    for way, before in whole.items():
        before = before.drop(columns="seconds")
        assert again[way].drop(columns="seconds").equals(before), way
        kept = pd.read_parquet(tmp_path / f"full-{way}.parquet")
        assert kept.drop(columns="seconds").equals(before)
    metrics, _ = evaluate_stored(
        tmp_path, world[1], world[0], smoke.data, knobs, 0, remarks={"full": "a remark"}
    )
    assert set(metrics["decoding"]) == set(ways) and set(metrics["note"]) == {"a remark"}


def test_tables_of_text_in_four_formats(tmp_path):
    cell = "50 % & <b> | a_b ~ $1 {x}\\y"
    write_frame(pd.DataFrame({"wish": [cell], "answer": [None]}), tmp_path, "table6")
    assert pd.read_csv(tmp_path / "table6.csv", keep_default_na=False).loc[0].tolist() == [cell, ""]
    assert "&lt;b&gt;" in (tmp_path / "table6.html").read_text()
    assert "\\|" in (tmp_path / "table6.md").read_text()
    latex = "50 \\% \\& <b> | a\\_b $\\approx$ \\$1 \\{x\\}\\textbackslash{}y"
    assert latex in (tmp_path / "table6.tex").read_text()


def test_case_marks(toy):
    request = Request(0, (1,), (1, 2), Include("A"), 5, 3)
    answer = Response("", list("abcdef"), [1, 3, 3, None, 5, 4])
    assert marks(request, answer, toy) == ["repeat", "target", "repeat", "unknown", "inside", ""]
    rows = case_rows(1, request, {"ours": answer, "silent": Response("No idea.")}, toy)
    table = table6(rows)
    assert table["answer"].tolist() == [
        "1. a [repeat]; 2. b [target]; 3. c [repeat]; 4. d [unknown]; 5. e [inside]; 6. f",
        "0. No idea. [no list]",
    ]
    rows = case_rows(1, request, {"ours": answer}, toy, {"instructrec": "not asked for"})
    assert table6(rows)["answer"].tolist()[1] == "0. not asked for [not run]"
