"""Two runs side by side: the same numbers as inside one run, and only on the same requests."""

import json
import shutil

import pandas as pd
import pytest

from recnb import RecnbError
from recnb.artifacts import _digest, sha256
from recnb.evaluation.compare import compare_runs
from recnb.profile import STAGES, root

REFERENCE = root() / "papermill_runs" / "reference" / "laptop"


def changed(folder, change):
    """A copy of the reference run whose free answers of ``full`` went through ``change``."""
    shutil.copytree(REFERENCE, folder)
    answers = next((folder / "06_evaluation" / "answers").glob("*/"))
    change(answers)
    path = folder / "06_evaluation" / "manifest.json"
    manifest = json.loads(path.read_text())
    name = (answers / "full-free.parquet").relative_to(path.parent).as_posix()
    manifest["outputs"][name] = sha256(answers / "full-free.parquet")
    path.write_text(json.dumps(manifest))
    return folder


def test_a_run_beside_another_is_what_the_tables_say(tmp_path):
    def base_answers(folder):
        shutil.copy(folder / "base-free.parquet", folder / "full-free.parquet")

    base = changed(tmp_path / "base", base_answers)
    found, left_out = compare_runs(REFERENCE, base, ["full"], ["free", "constrained"])
    free = found[found["a"] == "full-free (laptop)"]
    expected = pd.read_csv(REFERENCE / "tables" / "differences.csv")
    expected = expected[(expected["a"] == "full-free") & (expected["b"] == "base-free")]
    columns = ["task", "metric", "n", "difference", "low", "high", "p", "detectable"]
    assert not left_out and len(free) == len(expected) > 30
    pd.testing.assert_frame_equal(
        free[columns].reset_index(drop=True), expected[columns].reset_index(drop=True), atol=1e-6
    )
    others = found[found["a"] != "full-free (laptop)"]
    assert len(others) and others["difference"].eq(0).all() and others["p corrected"].eq(1).all()


def test_other_requests_are_left_out(tmp_path):
    def other_category(folder):
        path = folder / "full-free.parquet"
        table = pd.read_parquet(path)
        row = table.index[table["task"] == "I1-"][0]
        name = json.loads(table.loc[row, "control"])["category"]
        other = "Western" if name != "Western" else "Drama"
        table.loc[row, "control"] = table.loc[row, "control"].replace(name, other)
        table.to_parquet(path, index=False)

    other = changed(tmp_path / "other", other_category)
    found, left_out = compare_runs(REFERENCE, other, ["full"])
    free = found[found["a"] == "full-free (laptop)"]
    assert left_out == ["I1-"] and "I1-" not in set(free["task"]) and "I1+" in set(free["task"])


def test_the_other_runs_numbers_are_made_with_its_own_settings(tmp_path):
    """Validation targets in one run and test targets in the other are other requests."""
    other = changed(tmp_path / "other", lambda folder: None)
    settings = other / "profile.yaml"
    text = settings.read_text()
    assert "split: test" in text
    settings.write_text(text.replace("split: test", "split: validation"))
    path = other / "06_evaluation" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["knobs"]["evaluation"]["split"] = "validation"
    made = [
        json.loads((other / stage / "manifest.json").read_text())["knobs"] for stage in STAGES[:5]
    ]
    manifest["fingerprint"] = _digest([*made, manifest["knobs"]])
    path.write_text(json.dumps(manifest))
    with pytest.raises(RecnbError, match="share no requests"):
        compare_runs(REFERENCE, other, ["full"])


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(RecnbError, match="share no requests that endpoint answered"):
        compare_runs(REFERENCE, REFERENCE, ["endpoint"])
