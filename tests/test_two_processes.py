"""Two and three processes with one shared folder make the update of one, in SL and in PPO."""

import json
import os
import socket

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from recnb.datasets import build
from recnb.instructions.templates import numbered
from recnb.lm.loading import mini_model
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer, title_tokens
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


def both_stages(rank, world_size, port, folder):
    """A short SL stage and a short RL stage; their results lie in ``folder/<processes>``."""
    if world_size > 1:
        join(rank, world_size, port)
    profile = load("smoke")
    catalog, histories = build(profile.data, 0)
    codec = Codec(build_tokenizer(catalog, [("Hello", "Good day")] * 5, 400, True))
    out = os.path.join(folder, str(world_size))
    sl_steps(profile, catalog, codec, os.path.join(out, "sl"), rank)
    rl_steps(profile, catalog, histories, codec, os.path.join(out, "rl"), rank)


def sl_steps(profile, catalog, codec, out, rank):
    """Three steps on answers of 1 to 5 titles; the last batch of an epoch is cut short."""
    model = mini_model(len(codec.tokenizer), profile.model, codec, 0)
    lists = [list(range(n, n + 1 + n % 5)) for n in range(1, 33)]
    frame = pd.DataFrame(
        [{"prompt": "films " * (1 + n[0] % 3), "completion": numbered(n, catalog)} for n in lists]
    )
    frame["task"] = "I0"
    few = {"batch_size": 12, "rank": 4, "learning_rate": 0.01, "repeat_weight": 0.5}
    knobs = profile.sft.model_copy(update=few | {"epochs": 1, "evaluations": 1, "checkpoints": 3})
    titles = title_tokens(codec.tokenizer, catalog)
    given = model, codec, frame, frame[:4], titles, knobs, 0, out
    tuned, _ = train_sft(*given, autocast=False)
    keep(tuned, out, rank)


def rl_steps(profile, catalog, histories, codec, out, rank):
    """Two steps; with a budget for the cache one process draws like several."""
    torch.manual_seed(0)
    teacher = Teacher(untrained(len(catalog), profile.teacher))
    model = mini_model(len(codec.tokenizer), profile.model, codec, 0)
    requests = rl_requests(
        16, range(50), histories, catalog, teacher, profile.data, 2, 4, np.random.default_rng(0)
    )
    few = {"steps": 2, "prompts": 6, "samples": 2, "epochs": 2, "minibatches": 2, "checkpoints": 2}
    few |= {"learning_rate": 0.003, "critic_learning_rate": 0.01, "temperature": 0.7}
    knobs = profile.ppo.model_copy(update=few)
    given = model, codec, requests, teacher, catalog, knobs, 0, out, 25
    tuned, _ = train_ppo(*given, autocast=False, compute=Compute(cache_gib=1))
    keep(tuned, out, rank)


def keep(tuned, out, rank):
    """Each process's weights, beside what the stage wrote itself."""
    weights = {
        k: v.clone().contiguous()
        for k, v in tuned.state_dict().items()
        if "lora_B" in k or "v_head" in k
    }
    save_file(weights, f"{out}-weights-{rank}.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder in which one, two and three processes have worked."""
    folder = str(tmp_path_factory.mktemp("processes"))
    both_stages(0, 1, None, folder)
    mp.set_forkserver_preload([__name__, "recnb.ppo.trainer"])
    for world_size in (2, 3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = world_size, port, folder
        mp.start_processes(both_stages, given, nprocs=world_size, start_method="forkserver")
    return folder


def vector(path):
    weights = load_file(path)
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("stage", ["sl", "rl"])
def test_several_processes_make_the_updates_of_one(made, stage, world_size):
    one = vector(f"{made}/1/{stage}-weights-0.safetensors")
    first = vector(f"{made}/{world_size}/{stage}-weights-0.safetensors")
    assert one.norm() > 0, "the steps changed something"
    assert (first - one).norm() < 1e-3 * one.norm()
    for rank in range(1, world_size):
        other = vector(f"{made}/{world_size}/{stage}-weights-{rank}.safetensors")
        assert torch.equal(first, other), "all processes have the same model"


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
