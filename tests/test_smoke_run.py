"""The whole run as a user starts it, from Snakemake to the report; then again, after damage too."""

import html
import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from recnb.evaluation.metrics import clustered_interval
from recnb.evaluation.protocol import SYSTEMS
from recnb.evaluation.tables import TITLES
from recnb.machine import cores
from recnb.profile import STAGES, root
from recnb.workflow import gpus
from recnb.workflow.graph import GRAPH


def recnb(folder, *arguments):
    environment = os.environ | {"RECNB_RUNS": str(folder)}
    command = [sys.executable, "-m", "recnb.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    done = recnb(folder, "run", "smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_everything_is_there(runs):
    run = runs / "smoke"
    numbers = {s: json.loads((run / s / "manifest.json").read_text())["numbers"] for s in STAGES}
    assert numbers["04_sft"]["legal after"] > numbers["04_sft"]["legal before"]
    assert numbers["05_ppo"]["low"] > 0, "PPO raises the reward beyond its noise"
    kept = pd.read_parquet(run / "05_ppo" / "heldout_rewards.parquet")
    gain = clustered_interval(kept["after"] - kept["before"], kept["user"], 2000, 0)
    assert gain == (numbers["05_ppo"]["low"], numbers["05_ppo"]["high"])
    assert 1 < kept["user"].nunique() < len(kept), "a user has several requests"
    cases = pd.read_csv(run / "07_case_studies" / "cases.csv")
    assert "instructrec" in set(cases["system"])
    metrics = pd.read_csv(run / "tables" / "metrics.csv")
    columns = "table system decoding task metric value low high n note"
    assert list(metrics.columns) == columns.split()
    not_run = metrics[metrics["value"].isna()]
    assert set(not_run["system"]) == {"endpoint", "tallrec"}
    assert not_run["note"].str.startswith("not run: ").all(), "an empty row says why"
    metrics = metrics.dropna(subset="value")
    assert set(metrics["system"]) == set(SYSTEMS) - {"endpoint", "tallrec"}
    assert (metrics["low"] <= metrics["value"] + 1e-9).all()
    assert (metrics["value"] <= metrics["high"] + 1e-9).all()
    index = metrics.set_index(["system", "decoding", "task", "metric"])["value"]
    assert index["full", "obey", "I1-", "TCP"] == 0 and index["full", "obey", "I2<=20", "CPA"] == 1
    assert index["full", "obey", "I1+", "TCP"] > index["full", "constrained", "I1+", "TCP"]
    report = (run / "report.html").read_text()
    for title in TITLES.values():
        assert html.escape(title) in report or title == TITLES["table6"], title
    files = {f"{name}.{suffix}" for name in TITLES for suffix in ("csv", "md", "tex", "html")}
    assert files <= set(os.listdir(run / "tables"))
    assert all(text in report for text in ("Table 6", "TALLRec", 'src="data:image/png'))
    assert str(runs) not in report


def test_second_run_is_up_to_date_and_damage_is_found(runs):
    again = recnb(runs, "run", "smoke")
    assert again.returncode == 0 and "up to date" in again.stdout
    with open(runs / "smoke" / "07_case_studies" / "dial.csv", "a") as file:
        file.write("tampered\n")
    status = recnb(runs, "status", "smoke")
    assert status.stdout.count("up to date") == len(STAGES) - 1
    assert "07_case_studies    to do" in status.stdout
    before = (runs / "smoke" / "report.html").stat().st_mtime_ns
    changed = recnb(runs, "run", "smoke", "--set", "cases.dial_users=10")
    assert changed.returncode == 0 and "[7/9] 07_case_studies done" in changed.stdout
    assert "[6/9]" not in changed.stdout, "only what depends on the knob runs again"
    assert (runs / "smoke" / "report.html").stat().st_mtime_ns > before


def test_failures_name_notebook_cell_and_error(tmp_path):
    done = recnb(
        tmp_path, "run", "smoke", "--until", "03_instructions", "--set", "instructions.k_max=1000"
    )
    assert done.returncode != 0
    assert "03_instructions, cell" in done.stderr and "larger than the catalogue" in done.stderr
    assert not (tmp_path / "smoke" / "03_instructions" / "manifest.json").exists()
    assert (tmp_path / "smoke" / "02_teacher" / "manifest.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("run", "nothing"), "no such file"),
        (("run", "smoke", "--set", "sft.rnk=1"), "unknown key"),
        (("run", "smoke", "--until", "09"), "no such stage"),
        (("status", "nothing"), "no such run"),
        (("report", "nothing"), "no such run"),
    ],
)
def test_mistakes_are_one_message(tmp_path, arguments, message):
    done = recnb(tmp_path, *arguments)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_seeds_are_runs_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv(gpus.VARIABLE, "")
    several = ["--set", "seeds=[0, 3]", "--at-once", "2"]
    done = recnb(tmp_path, "run", "smoke", "--until", "01_data", *several)
    assert done.returncode == 0, done.stdout + done.stderr
    graph = json.loads((tmp_path / "smoke-seed0" / GRAPH).read_text())
    at_once = min(2, cores())
    assert len(graph["targets"]) == at_once and graph["threads"] == cores() // at_once
    found = []
    for seed in (0, 3):
        folder = tmp_path / f"smoke-seed{seed}"
        found.append(json.loads((folder / "01_data" / "manifest.json").read_text()))
    assert [m["knobs"]["seed"] for m in found] == [0, 3]
    assert found[0]["outputs"] != found[1]["outputs"]
