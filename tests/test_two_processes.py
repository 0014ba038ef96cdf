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
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from recnb import RecnbError, workers
from recnb.artifacts import write_json
from recnb.datasets import build
from recnb.engine.losses import next_token_loss
from recnb.engine.packed import next_logits_held, side_by_side
from recnb.engine.spread import spread
from recnb.instructions.templates import numbered
from recnb.lm.loading import load_adapted, load_base, mini_model
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer, title_tokens
from recnb.owner import VARIABLE
from recnb.ppo.prompts import rl_requests
from recnb.ppo.trainer import train_ppo
from recnb.profile import Compute, load
from recnb.sft import lora, train_sft
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
    state = tuned.state_dict()
    weights = {n: v.clone().contiguous() for n, v in state.items() if not isinstance(v, DTensor)}
    save_file(weights, f"{out}-weights-{rank}.safetensors")


def spread_steps(rank, world_size, port, folder):
    """The SL stage, and one pass, by processes that each hold a part of the frozen weights."""
    join(rank, world_size, port)
    profile = load("smoke")
    catalog, _ = build(profile.data, 0)
    compute = Compute(strategy="fsdp2", checkpointing=True, micro_tokens=60)
    base, out = os.path.join(folder, "base"), os.path.join(folder, "spread", "sl")
    sl_steps(profile, catalog, base, out, rank, compute)
    one_pass(base, rank, world_size, f"{folder}/pass-{world_size}.safetensors")


def one_pass(base, rank, world_size, out):
    """Loss and gradients of five samples of unlike lengths, dealt out in turn; two have no loss."""
    model, codec = load_base(base)
    torch.manual_seed(0)
    peft = get_peft_model(model, lora(4, 8)).train()
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    rows = [list(range(5, 5 + n)) for n in (4, 9, 17, 6, 11)]
    ids, real = side_by_side(rows, codec.pad, "cpu")
    keep = real & ~real.roll(-3, 1)
    keep[4] = False
    own, count = slice(rank, None, world_size), int(keep.sum())
    whole = {name: w.numel() for name, w in peft.named_parameters() if not w.requires_grad}
    if world_size > 1:
        spread(peft)
    with next_logits_held(peft, ids[own], real[own], keep[own]) as logits:
        places = keep[own].nonzero() + torch.tensor([0, 1])
        loss = next_token_loss(logits, ids[own], places, counts=(count, 0))
        loss.backward()
    found = {name: w.grad for name, w in peft.named_parameters() if w.requires_grad}
    found["loss"] = loss.detach()
    if world_size > 1:
        for part in found.values():
            torch.distributed.all_reduce(part)
        blocks = {n: w for n, w in peft.named_parameters() if n in whole and ".layers." in n}
        held = sum(w.to_local().numel() for w in blocks.values() if isinstance(w, DTensor))
        found["held"] = torch.tensor(held / sum(whole[name] for name in blocks))
    if rank == 0:
        save_file(found, out)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder in which one process has worked."""
    folder = str(tmp_path_factory.mktemp("processes"))
    profile = load("smoke")
    catalog, _ = build(profile.data, 0)
    tokenizer = build_tokenizer(catalog, [("Hello", "Good day")] * 5, 400, True)
    model = mini_model(len(tokenizer), profile.model, Codec(tokenizer), 0)
    model.save_pretrained(f"{folder}/base")
    tokenizer.save_pretrained(f"{folder}/base")
    both_stages(0, 1, None, folder)
    return folder


@pytest.fixture(scope="module")
def made(alone):
    """The folder in which one, two and three processes have worked."""
    folder = alone
    # As a notebook does it: torchrun, job files, the result read back.
    both_stages(0, 2, None, folder, Compute(processes=2))
    in_processes(both_stages, 3, folder)
    return folder


@pytest.fixture(scope="module")
def spread_out(alone):
    """The same folder, after two processes that share the weights."""
    in_processes(spread_steps, 2, alone)
    return alone


def in_processes(work, count, folder):
    mp.set_forkserver_preload([__name__, "recnb.ppo.trainer"])
    given = count, free_port(), folder
    mp.start_processes(work, given, nprocs=count, start_method="forkserver")


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


def test_spread_weights_give_the_loss_and_the_gradients_of_one_process(spread_out):
    one_pass(f"{spread_out}/base", 0, 1, f"{spread_out}/pass-1.safetensors")
    one, several = (load_file(f"{spread_out}/pass-{count}.safetensors") for count in (1, 2))
    assert several.pop("held") == pytest.approx(0.5, abs=0.01), "each holds half of the blocks"
    assert several.keys() == one.keys() and one["loss"] > 0
    for name, found in several.items():
        assert (found - one[name]).norm() <= 1e-5 * one[name].norm(), name


def test_spread_weights_train_an_adapter_that_one_process_reads(spread_out):
    one, several = (adapters(f"{spread_out}/{kind}/sl") for kind in ("1", "spread"))
    assert (several - one).norm() < 1e-3 * one.norm()
    load_adapted(f"{spread_out}/base", [f"{spread_out}/spread/sl/adapter"])
    logs = [json.load(open(f"{spread_out}/{kind}/sl/log.json")) for kind in ("1", "spread")]
    for alone, together in zip(*logs, strict=True):
        for name in ("loss", "grad_norm", "eval_loss"):
            assert alone.get(name, 0) == pytest.approx(together.get(name, 0), abs=2e-3), name


def test_rl_refuses_spread_weights(tmp_path):
    with pytest.raises(RecnbError, match="compute.strategy=ddp"):
        given = None, None, [], None, None, None, 0, tmp_path, 9
        train_ppo(*given, compute=Compute(strategy="fsdp2", processes=2))
    for switches in ({"compute.processes": 1}, {"compute.processes": 2, "sft.rank": 0}):
        with pytest.raises(RecnbError, match="compute.strategy: fsdp2 spreads frozen weights"):
            load("smoke", {"compute.strategy": "fsdp2", "sft.rank": 4} | switches)


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


def test_a_worker_that_breaks_says_where_and_the_first_one_is_heard(tmp_path, monkeypatch):
    def breaks(place):
        raise AttributeError("no such thing")

    monkeypatch.setattr(workers, "main", breaks)
    with pytest.raises(AttributeError):
        workers.run(tmp_path)
    first = (tmp_path / "failed").read_text()
    assert "in breaks" in first and first.endswith("AttributeError: no such thing\n")
    monkeypatch.setattr(workers, "main", lambda place: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        workers.run(tmp_path)
    assert (tmp_path / "failed").read_text() == first


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
        workers.start(tmp_path, {}, Compute(processes=2), print)


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
