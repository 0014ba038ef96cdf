"""Two and three processes with one shared folder make the update of one, in SL and in PPO."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from recnb import RecnbError, workers
from recnb.artifacts import write_json
from recnb.datasets import build
from recnb.instructions.templates import numbered
from recnb.lm.loading import load_base, mini_model
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer, title_tokens
from recnb.owner import VARIABLE
from recnb.ppo.prompts import rl_requests
from recnb.ppo.trainer import train_ppo
from recnb.profile import Compute, load
from recnb.sft import train_sft
from recnb.teacher.ranking import Teacher
from recnb.teacher.training import untrained


def join(rank, world_size, port):
    """What torchrun sets for each process."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def both_stages(rank, world_size, port, folder, compute=None):
    """A short SL stage and a short RL stage; their results lie in ``folder/<processes>``."""
    if port:
        join(rank, world_size, port)
    profile = load("smoke")
    catalog, histories = build(profile.data, 0)
    out = os.path.join(folder, str(world_size))
    compute = compute or Compute(cache_gib=1)
    base = os.path.join(folder, "base")
    sl_steps(profile, catalog, base, os.path.join(out, "sl"), rank, compute)
    rl_steps(profile, catalog, histories, base, os.path.join(out, "rl"), rank, compute)


def sl_steps(profile, catalog, base, out, rank, compute):
    """Three steps on answers of 1 to 5 titles; the last batch of an epoch is cut short."""
    model, codec = load_base(base)
    lists = [list(range(n, n + 1 + n % 5)) for n in range(1, 33)]
    frame = pd.DataFrame(
        [{"prompt": "films " * (1 + n[0] % 3), "completion": numbered(n, catalog)} for n in lists]
    )
    frame["task"] = "I0"
    few = {"batch_size": 12, "rank": 4, "learning_rate": 0.01, "repeat_weight": 0.5}
    knobs = profile.sft.model_copy(
        update=few | {"epochs": 1, "evaluations": 1, "checkpoints": 3, "muon_learning_rate": 0}
    )
    titles = title_tokens(codec.tokenizer, catalog)
    given = model, codec, frame, frame[:4], titles, knobs, 0, out
    tuned, _ = train_sft(*given, shown(out, rank), autocast=False, compute=compute)
    keep(tuned, out, rank)


def rl_steps(profile, catalog, histories, base, out, rank, compute):
    """Two steps; with a budget for the cache one process draws like several."""
    torch.manual_seed(0)
    teacher = Teacher(untrained(len(catalog), profile.teacher))
    model, codec = load_base(base)
    requests = rl_requests(
        16, range(50), histories, catalog, teacher, profile.data, 2, 4, np.random.default_rng(0)
    )
    few = {"steps": 2, "prompts": 6, "samples": 2, "epochs": 2, "minibatches": 2, "checkpoints": 2}
    few |= {"learning_rate": 0.003, "critic_learning_rate": 0.01, "temperature": 0.7}
    knobs = profile.ppo.model_copy(update=few)
    given = model, codec, requests, teacher, catalog, knobs, 0, out, 25
    tuned, _ = train_ppo(*given, shown(out, rank), autocast=False, compute=compute)
    keep(tuned, out, rank)


def shown(out, rank):
    """Writes the rows that a notebook would show."""
    os.makedirs(os.path.dirname(out), exist_ok=True)

    def show(row):
        with open(f"{out}-shown-{rank}", "a") as file:
            file.write(f"{row['step']}\n")

    return show


def keep(tuned, out, rank):
    """Each process's weights, beside what the stage wrote itself."""
    weights = {name: v.clone().contiguous() for name, v in tuned.state_dict().items()}
    save_file(weights, f"{out}-weights-{rank}.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder in which one, two and three processes have worked."""
    folder = str(tmp_path_factory.mktemp("processes"))
    profile = load("smoke")
    catalog, _ = build(profile.data, 0)
    tokenizer = build_tokenizer(catalog, [("Hello", "Good day")] * 5, 400, True)
    model = mini_model(len(tokenizer), profile.model, Codec(tokenizer), 0)
    model.save_pretrained(f"{folder}/base")
    tokenizer.save_pretrained(f"{folder}/base")
    both_stages(0, 1, None, folder)
    # As a notebook does it: torchrun, job files, the result read back.
    both_stages(0, 2, None, folder, Compute(processes=2))
    mp.set_forkserver_preload([__name__, "recnb.ppo.trainer"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(both_stages, (3, port, folder), nprocs=3, start_method="forkserver")
    return folder


def adapters(folder):
    """All adapter weights that a stage wrote, as one vector."""
    found = []
    for path in sorted(Path(folder).glob("*/adapter_model.safetensors")):
        weights = load_file(path)
        found += [weights[name].flatten() for name in sorted(weights) if "lora_A" not in name]
    return torch.cat(found)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("stage", ["sl", "rl"])
def test_several_processes_make_the_updates_of_one(made, stage, world_size):
    one, several = (adapters(f"{made}/{count}/{stage}") for count in (1, world_size))
    assert one.norm() > 0, "the steps changed something"
    assert (several - one).norm() < 1e-3 * one.norm()


@pytest.mark.parametrize("stage", ["sl", "rl"])
def test_all_processes_end_with_the_same_model(made, stage):
    first, *others = (
        load_file(f"{made}/3/{stage}-weights-{rank}.safetensors") for rank in range(3)
    )
    for other in others:
        assert all(torch.equal(weight, other[name]) for name, weight in first.items())


def test_a_notebook_sees_the_progress_of_its_workers(made):
    for stage in ("sl", "rl"):
        alone, workers = (Path(f"{made}/{n}/{stage}-shown-0").read_text() for n in (1, 2))
        assert alone == workers != ""


def test_a_worker_that_fails_says_why(tmp_path):
    job = {"work": "sft", "model": (str(tmp_path / "gone"), [], "float32"), "folder": "", "key": ""}
    write_json(tmp_path / "job.json", job | {"compute": {}, "settings": {}})
    with pytest.raises(SystemExit):
        workers.run(tmp_path)
    assert str(tmp_path / "gone") in (tmp_path / "failed").read_text()


ENDS = """
import sys
print("loading ...")
print('recnb-row:{"step": 3, "of": 9}', flush=True)
print("CUDA out of memory", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def test_what_workers_say_reaches_the_notebook(tmp_path, monkeypatch):
    """Rows while they work; if they fail, their own sentence, or else the last they said."""
    started, code = subprocess.Popen, ["0"]

    def stand_in(command, **how):
        assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
        assert how["env"]["OMP_NUM_THREADS"] == "1" and str(os.getpid()) in how["env"][VARIABLE]
        return started([sys.executable, "-c", ENDS, *code], **how)

    monkeypatch.setattr(workers.subprocess, "Popen", stand_in)
    rows = []
    workers._torchrun(tmp_path, 512, rows.append)
    assert rows == [{"step": 3, "of": 9}]
    code[0] = "3"
    with pytest.raises(RecnbError, match="(?s)exit code 3.*out of memory"):
        workers._torchrun(tmp_path, 512, rows.append)
    (tmp_path / "failed").write_text("sft.max_tokens is too small")
    with pytest.raises(RecnbError, match="^sft.max_tokens is too small$"):
        workers._torchrun(tmp_path, 512, rows.append)


def test_a_students_functions_stay_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "UNDO", [print])
    with pytest.raises(RecnbError, match="compute.processes.*student"):
        workers.work_together("sft", None, tmp_path, "run", Compute(processes=2), print, {})


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("stage", ["sl", "rl"])
def test_one_process_writes_for_all(made, stage, world_size):
    def files(count):
        folder = os.path.join(made, str(count), stage)
        return sorted(
            os.path.relpath(os.path.join(where, name), folder)
            for where, _, names in os.walk(folder)
            for name in names
            if "checkpoints" not in where
        )

    assert files(world_size) == files(1)
    assert not os.path.isdir(f"{made}/{world_size}/{stage}/checkpoints/run")
    logs = [json.load(open(f"{made}/{count}/{stage}/log.json")) for count in (1, world_size)]
    assert len(logs[0]) == len(logs[1])
    for one, several in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "reward", "kl", "entropy", "clipped", "value_loss"):
            assert one.get(name, 0) == pytest.approx(several.get(name, 0), abs=2e-3), name
