"""Runs of several seeds: means, spreads, what counts as shown, and what is refused."""

import html
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from recnb import RecnbError, cli
from recnb.evaluation.seeds import (
    effects_over_seeds,
    over_seeds,
    read_summary,
    readable,
    verdict,
    write_summary,
)
from recnb.profile import load, root

REFERENCE = root() / "papermill_runs" / "reference" / "laptop"


def test_over_seeds():
    one = {"table": "table2", "system": "full", "decoding": "free", "task": "I0", "metric": "HR@10"}
    frames = [pd.DataFrame([one | {"value": v}]) for v in (0.1, 0.2, 0.3)]
    row = over_seeds(frames).iloc[0]
    assert (row["mean"], row["sd"], row["runs"]) == (pytest.approx(0.2), pytest.approx(0.1), 3)


@pytest.mark.parametrize(
    "effects, p, real",
    [
        ([0.03, 0.02, 0.04], [0.01, 0.02, 0.04], True),
        ([-0.03, -0.02, -0.04], [0.01, 0.02, 0.04], True),
        ([0.03, 0.02, 0.04], [0.01, 0.02, 0.06], False),  # one run does not show it
        ([0.05, 0.05, -0.01], [0.01, 0.01, 0.01], False),  # one run shows the opposite
        ([0.09, 0.001, 0.001], [0.01, 0.01, 0.01], False),  # the runs differ by more than it
        ([0.03], [0.001], False),  # one seed says nothing of seeds
        ([0.03, np.nan], [0.001, np.nan], False),
        ([np.nan, np.nan], [np.nan, np.nan], False),  # no run has the system
    ],
)
def test_effects_over_seeds(effects, p, real):
    one = {"name": "P2", "claim": "c", "a": "full-free", "b": "v2-free", "task": "t"}
    one |= {"metric": "Strict", "expected": "+"}
    frames = []
    for effect, corrected in zip(effects, p, strict=True):
        frames.append(pd.DataFrame([one | {"difference": effect, "p corrected": corrected}]))
    row = effects_over_seeds(frames).iloc[0]
    known = [effect for effect in effects if effect == effect]
    assert row["real"] == real and row["runs"] == len(known)
    if not known:
        assert verdict(row.rename({"mean": "difference"})) == "not computed"
        return
    assert row["mean"] == pytest.approx(np.mean(known))
    assert len(known) == 1 or row["sd"] == pytest.approx(np.std(known, ddof=1))
    said = verdict(row.rename({"mean": "difference"}))
    assert said == ("not shown" if not real else "shown" if effects[0] > 0 else said)
    assert (said == "the opposite is shown") == (real and effects[0] < 0)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs with the reference's tables, the second one's effects and values a little higher."""
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path))
    knobs = yaml.safe_load((REFERENCE / "profile.yaml").read_text(encoding="utf-8"))
    for seed in (0, 1):
        folder = tmp_path / f"run-seed{seed}"
        for stage in [path.name for path in REFERENCE.glob("0*")]:
            (folder / stage).mkdir(parents=True)
            shutil.copy(REFERENCE / stage / "manifest.json", folder / stage)
        (folder / "tables").mkdir()
        (folder / "profile.yaml").write_text(yaml.safe_dump(knobs | {"seed": seed}))
        for name, column in (("metrics", "value"), ("primary", "difference")):
            table = pd.read_csv(REFERENCE / "tables" / f"{name}.csv")
            table[column] += 0.002 * seed
            table.to_csv(folder / "tables" / f"{name}.csv", index=False)
        shutil.copy(REFERENCE / "tables" / "differences.csv", folder / "tables")
    return tmp_path


def test_a_summary_lies_in_the_first_run(runs):
    write_summary(["run-seed0", "run-seed1"])
    seeds, metrics, effects = read_summary(runs / "run-seed0")
    assert seeds == [0, 1] and read_summary(runs / "run-seed1") is None
    one = pd.read_csv(REFERENCE / "tables" / "metrics.csv").dropna(subset="value")
    assert np.allclose(metrics["value"], one["value"] + 0.001, atol=2e-6)
    primary = pd.read_csv(REFERENCE / "tables" / "primary.csv")
    assert effects["name"].tolist() == primary["name"].tolist()
    computed = primary["difference"].notna()
    assert (effects["runs"] == np.where(computed, 2, 0)).all()
    assert np.allclose(
        effects["difference"][computed], primary["difference"][computed] + 0.001, atol=2e-6
    )
    assert not effects["real"][primary["p corrected"].fillna(1) >= 0.05].any()
    others = pd.read_csv(runs / "run-seed0" / "seeds" / "differences.csv")
    assert len(others) == len(pd.read_csv(REFERENCE / "tables" / "differences.csv"))


def test_a_summary_older_than_the_evaluation_is_not_shown(runs):
    write_summary(["run-seed0", "run-seed1"])
    manifest = runs / "run-seed0" / "06_evaluation" / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"fingerprint": "0" * 64}
    manifest.write_text(json.dumps(changed))
    assert read_summary(runs / "run-seed0") is None


def test_runs_that_are_no_seeds_of_each_other_are_refused(runs):
    with pytest.raises(RecnbError, match="run-seed0 and run-seed0 have the same seed, 0"):
        write_summary(["run-seed0", "run-seed0"])
    other = runs / "run-seed1" / "profile.yaml"
    knobs = yaml.safe_load(other.read_text())
    knobs["ppo"]["steps"] += 1
    other.write_text(yaml.safe_dump(knobs))
    with pytest.raises(RecnbError, match="differ in more than their seed: ppo.steps$"):
        write_summary(["run-seed0", "run-seed1"])
    (runs / "run-seed1" / "tables" / "primary.csv").unlink()
    knobs["ppo"]["steps"] -= 1
    other.write_text(yaml.safe_dump(knobs))
    with pytest.raises(RecnbError, match="primary.csv does not exist.*recnb evaluate run-seed1"):
        write_summary(["run-seed0", "run-seed1"])
    assert not (runs / "run-seed0" / "seeds").exists()


def test_the_report_quotes_means_over_seeds(runs, capsys):
    first = runs / "run-seed0"
    shutil.copytree(REFERENCE, first, dirs_exist_ok=True)
    knobs = load(REFERENCE / "profile.yaml").model_dump(mode="json") | {"seed": 0}
    (first / "profile.yaml").write_text(yaml.safe_dump(knobs))
    cli._summarise(["run-seed0", "run-seed1"])
    page = (first / "report.html").read_text(encoding="utf-8")
    assert "means over 2 runs of the same settings" in page and "(seeds\n0, 1)" in page
    assert "The same comparisons over 2 seeds" in page and "± 0.14 points" in page
    said = capsys.readouterr().out
    assert "seeds/primary.csv" in said and "P2 RL gives more lists that are wholly right:" in said
    summary = page.partition("<h2>Summary</h2>")[2].partition("<h2>Data</h2>")[0]
    effects = readable(read_summary(first)[2])
    for found, rows in effects.groupby("over the seeds"):
        claims = "; ".join(rows[""] + " " + rows["claim"])
        assert f"comparisons fixed beforehand, over 2 seeds, {found}: {claims}." in html.unescape(
            summary
        )
    assert "corrected p" not in re.sub("<dl>.*?</dl>", "", summary, flags=re.DOTALL)
    only = (REFERENCE / "report.html").read_text(encoding="utf-8")
    assert "The same comparisons over" not in only or (REFERENCE / "seeds/runs.json").exists()
