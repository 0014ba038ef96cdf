"""A run whose kernel is killed (SIGKILL) in SL and in RL finishes when it is started again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from recnb.profile import STAGES, root


def start(folder):
    environment = os.environ | {"RECNB_RUNS": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "recnb.cli", "run", "smoke"],
        env=environment,
        cwd=root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kernels_below(pid):
    """Process ids of Jupyter kernels started, directly or not, by a process."""
    found, waiting = [], [pid]
    while waiting:
        command = ["pgrep", "-P", str(waiting.pop())]
        listed = subprocess.run(command, capture_output=True, text=True)
        for child in listed.stdout.split():
            waiting.append(child)
            command = open(f"/proc/{child}/cmdline").read()
            if "ipykernel_launcher" in command:
                found.append(int(child))
    return found


@pytest.mark.nightly
def test_killed_runs_go_on_from_their_checkpoint(tmp_path):
    for stage in ("04_sft", "05_ppo"):
        run = start(tmp_path)
        checkpoints = tmp_path / "smoke" / stage / "checkpoints"
        deadline = time.time() + 400
        while not list(checkpoints.glob("*/checkpoint-*/trainer_state.json")):
            assert time.time() < deadline and run.poll() is None, "no checkpoint was written"
            time.sleep(0.2)
        kernels = kernels_below(run.pid)
        assert len(kernels) == 1
        os.kill(kernels[0], signal.SIGKILL)
        _, errors = run.communicate(timeout=120)
        assert run.returncode != 0 and f"notebook {stage}" in errors
        assert not (tmp_path / "smoke" / stage / "manifest.json").exists()
        assert list(checkpoints.glob("*/checkpoint-*"))
    run = start(tmp_path)
    _, errors = run.communicate(timeout=600)
    assert run.returncode == 0, errors
    for stage in STAGES:
        assert (tmp_path / "smoke" / stage / "manifest.json").is_file()
    rows = json.loads((tmp_path / "smoke" / "05_ppo" / "log.json").read_text())
    steps = [row["step"] for row in rows if "step" in row]
    assert steps == sorted(steps), "the log goes on where it stopped"
