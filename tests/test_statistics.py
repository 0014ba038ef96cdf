import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recnb import RecnbError
from recnb.evaluation import statistics, stored
from recnb.evaluation.protocol import (
    DECODINGS,
    SYSTEMS,
    Ranker,
    answer_all,
    evaluate_stored,
    request_sets,
    score_texts,
    stored_requests,
)
from recnb.evaluation.tables import LAYOUT, layout, write_tables
from recnb.teacher.ranking import leave_one_out


def test_sign_flips_against_scipy(rng):
    differences = rng.normal(0.4, 1, size=(9, 3))

    def difference(a, b, axis):
        return np.mean(a - b, axis=axis)

    how = {"permutation_type": "samples", "vectorized": True, "n_resamples": np.inf}
    expected = []
    for column in differences.T:
        test = stats.permutation_test((column, np.zeros(9)), difference, **how)
        expected.append(test.pvalue)
    assert statistics.sign_flip_p(differences, 40_000, 0) == pytest.approx(expected, abs=0.01)


def test_sign_flips_do_not_depend_on_the_order_of_addition(rng):
    """Thirds and logarithms, whose float sums depend on the order; a mean near 0 has many ties."""
    values = rng.choice([1 / 3, -1 / 3, 1 / np.log2(3), -1 / np.log2(3), 0.0], size=(500, 40))
    values[-1] -= statistics.on_grid(values).sum(0)
    p = statistics.sign_flip_p(values, 3000, 0)
    assert (p == 1).all(), "a sum of exactly 0 is reached by every flip"
    signs = 2 * rng.integers(0, 2, (1000, 500)) - 1
    whole = signs @ np.rint(values * 2**30).astype(np.int64)
    assert (whole / 2**30 == signs.astype(float) @ statistics.on_grid(values)).all()


def test_sign_flips_find_nothing_in_noise_and_much_in_a_shift():
    rng = np.random.default_rng(3)
    noise = statistics.sign_flip_p(rng.normal(size=(200, 300)), 2000, 1)
    assert 0.02 < (noise < 0.05).mean() < 0.09
    assert (statistics.sign_flip_p(rng.normal(1, 1, size=(200, 5)), 2000, 1) < 0.001).all()
    assert (statistics.sign_flip_p(np.zeros((200, 1)), 2000, 1) == 1).all()
    most = max(len(kinds) for kinds in LAYOUT.values()) * len(SYSTEMS) * len(DECODINGS)
    # so many comparisons of one table, corrected, can still be significant
    assert most / (statistics.FLIPS + 1) < 0.05


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1, 1])


def test_the_detectable_difference_is_found_four_times_in_five(rng):
    found = []
    for _ in range(300):
        sample = rng.normal(size=100)
        shifted = sample - sample.mean() + rng.normal(0, 0.1) + statistics.detectable(sample)
        found.append(stats.ttest_1samp(shifted, 0).pvalue < 0.05)
    assert 0.7 < np.mean(found) < 0.9


@pytest.fixture
def answers(world, teacher, smoke, tmp_path):
    """A folder of two systems' stored answers and what they were asked."""
    catalog, histories = world
    requests = request_sets(histories, catalog, teacher, smoke.evaluation, smoke.data, 0)
    folder = tmp_path / "answers"
    folder.mkdir()
    for name, obey in (("sasrec", False), ("full", True)):
        answer_all({"free": Ranker(teacher, catalog, obey)}, requests, folder, name)
    return folder, requests


def test_stored_answers_give_back_the_requests(answers, world, smoke):
    folder, requests = answers
    stored_answers = pd.read_parquet(folder / "full-free.parquet")
    assert stored_requests(stored_answers, world[1], smoke.data) == requests


def test_knobs_are_chosen_on_validation_targets(world, teacher, smoke, tmp_path):
    catalog, histories = world
    knobs = smoke.evaluation.model_copy(update={"split": "validation"})
    requests = request_sets(histories, catalog, teacher, knobs, smoke.data, 0)
    for asked in requests.values():
        for request in asked:
            *seen, target, test = histories.items[request.user].tolist()
            assert request.target == target and request.seen == tuple(seen)
            assert test not in request.seen
    answer_all({"free": Ranker(teacher, catalog)}, requests, tmp_path, "sasrec")
    stored = pd.read_parquet(tmp_path / "sasrec-free.parquet")
    assert stored_requests(stored, histories, smoke.data, "validation") == requests
    metrics, _ = evaluate_stored(tmp_path, histories, catalog, smoke.data, knobs, 0)
    rows = metrics[metrics["task"].eq("I0") & metrics["metric"].eq("HR@10")]
    quality = leave_one_out(teacher.scores, histories, "validation", len(catalog))["HR@10"]
    users = [request.user for request in requests["I0"]]
    assert rows["value"].item() == pytest.approx(quality[users].mean(), abs=1e-6)


def test_tables_from_stored_answers(answers, world, smoke, tmp_path):
    folder, _ = answers
    not_run = {"endpoint": "no key & no <url>"}
    made = []
    for name in ("one", "two"):
        metrics, users, tables = stored.write_results(
            folder, world[1], world[0], smoke, not_run, tmp_path / name
        )
        made.append({p.name: p.read_bytes() for p in sorted((tmp_path / name).iterdir())})
    names = {"metrics.csv", "differences.csv", "table7.tex", "table7.md", "table7.html"}
    assert made[0] == made[1] and names <= set(made[0])
    row = tables["table7"].set_index("system").loc["endpoint"]
    assert row["note"] == "not run: no key & no <url>" and row["I1+&I1- HR@10"] == ""
    assert "&lt;url&gt;" in made[0]["table2.html"].decode()
    assert "\\& no" in made[0]["table2.tex"].decode()
    value = metrics.set_index(["system", "task", "metric"])["value"]
    assert value["full", "I1+", "TCP"] > value["sasrec", "I1+", "TCP"]
    assert "<b>" in made[0]["table3.html"].decode() and "**" in made[0]["table3.md"].decode()
    full = layout(metrics, "table3", "markdown").set_index("system").loc["full"]
    # more is better here, less there
    assert full["I1+ TCP"].startswith("**") and full["I1- TCP"].startswith("**")
    found = pd.read_csv(tmp_path / "one" / "differences.csv")
    tcp = found[(found["task"] == "I1+") & (found["metric"] == "TCP")].iloc[0]
    assert (tcp["a"], tcp["b"]) == ("full-free", "sasrec-free")
    assert tcp["difference"] > 0 and tcp["p corrected"] < 0.05
    assert (found["p corrected"] >= found["p"]).all()
    assert (found["low"] <= found["difference"]).all()


def test_comparisons_that_cannot_differ_are_not_tested(answers, world, smoke, tmp_path):
    """Two rankers never err in form: their differences of 0 must not make Holm's family larger."""
    folder, _ = answers
    stored.write_results(folder, world[1], world[0], smoke, {}, tmp_path)
    found = pd.read_csv(tmp_path / "differences.csv").query("table == 'table5'")
    alike = found["metric"].isin(["CorrectCount", "RepeatItem", "NonExist", "InHistory", "Seen"])
    assert (found[alike]["p corrected"] == 1).all() and 0 < (~alike).sum() < len(found)
    assert found[~alike]["p corrected"].to_numpy() == pytest.approx(
        statistics.holm(found[~alike]["p"]), abs=2e-6
    )


def test_other_requests_beside_are_refused(answers, world, smoke):
    folder, _ = answers
    table = pd.read_parquet(folder / "full-free.parquet")
    table.assign(k=table["k"] + 1).to_parquet(folder / "full-free.parquet", index=False)
    with pytest.raises(RecnbError, match="answers other requests"):
        evaluate_stored(folder, world[1], world[0], smoke.data, smoke.evaluation, 0)


def test_texts_of_someone_else(answers, world, smoke):
    folder, requests = answers
    table = pd.read_parquet(folder / "full-free.parquet")[["task", "user", "text"]]

    def score(frame):
        return score_texts(frame, requests, world[0], "mine", smoke.evaluation, 0)

    metrics, _ = evaluate_stored(folder, world[1], world[0], smoke.data, smoke.evaluation, 0)
    ours = metrics[metrics["system"] == "full"].reset_index(drop=True)
    assert score(table)["value"].equals(ours["value"])
    one_task = score(table[table["task"] == "I1+"])
    assert set(one_task["task"]) == {"I1+"} and not one_task["metric"].str.contains("without").any()
    last = 2 + sum(text.count("\n") + 1 for text in table["text"])
    for broken, message in [
        (table.drop(columns="text"), "no column 'text'"),
        (table.assign(task="I9"), "line 2: no task 'I9'; tasks: I0"),
        (table.assign(user=10**6), "line 2: task I0 has no request of user 1000000"),
        (pd.concat([table, table[:1]]), f"line {last}: task I0, user .* stands there twice"),
        (table[1:], "1 requests have no text, the first: task I0, user"),
    ]:
        with pytest.raises(RecnbError, match=message):
            score(broken)


def test_written_csv_has_the_promised_columns(answers, world, smoke, tmp_path):
    metrics, _ = evaluate_stored(answers[0], world[1], world[0], smoke.data, smoke.evaluation, 0)
    write_tables(metrics, tmp_path)
    columns = "table system decoding task metric value low high n note"
    assert list(pd.read_csv(tmp_path / "metrics.csv").columns) == columns.split()
