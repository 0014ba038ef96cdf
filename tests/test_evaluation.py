import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from recnb.artifacts import Stage
from recnb.evaluation.metrics import accuracy, bootstrap_interval, formatting
from recnb.evaluation.protocol import Ranker, answer_all, answers_folder, per_user, request_sets, summarise
from recnb.evaluation.tables import LAYOUT, layout, reported


def test_accuracy_against_scikit_learn(rng):
    for _ in range(50):
        items = [int(i) for i in rng.permutation(30)[:10]]
        target = int(rng.integers(30))
        relevance = np.array([[float(i == target) for i in [*items, *[j for j in range(30) if j not in items]]]])
        if relevance[0, :10].sum():
            expected = ndcg_score(relevance, -np.arange(30, dtype=float)[None], k=10)
            assert accuracy(items, target)["NDCG@10"] == pytest.approx(expected)
        assert accuracy(items, target)["HR@5"] == float(target in items[:5])


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
    stored = answer_all(Ranker(teacher, catalog), requests, tmp_path / "a.parquet")
    again = answer_all(None, requests, tmp_path / "a.parquet")  # stored: the system is not asked again
    assert again.equals(stored)
    metrics = summarise(per_user(stored, requests, catalog), "sasrec", "free", 50, 0)
    value = metrics.set_index(["task", "metric"])["value"]
    assert value["format", "CorrectCount"] == 1 and value["format", "Seen"] == 0
    assert value["I1+", "TCP"] == value["I1+", "TCP without control"]
    table = layout(metrics, "table3")
    assert "full (paper)" in set(table["system"]) and len(table.columns) == 3 + len(LAYOUT["table3"])


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
    tables = [t for t in paper if t != "tallrec"]
    assert {t: len(paper[t]["Movie"]) for t in tables} == {"table2": 9, "table3": 8, "table4": 8, "table5": 8, "table7": 8}
    assert all(len(row) == len(paper[t]["columns"]) for t in tables for d in ("Movie", "Steam") for row in paper[t][d].values())
    best = {d: max(paper["table3"][d], key=lambda s: paper["table3"][d][s][2][0]) for d in ("Movie", "Steam")}
    assert best == {"Movie": "full", "Steam": "full"}
    assert paper["table4"]["Steam"]["full"][2] == [70.58, 18.15]
