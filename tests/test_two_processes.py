"""Two processes with half a batch each make the update of one with the whole, in SL and in PPO."""

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
from recnb.lm.tokenizer import build_tokenizer
from recnb.ppo import trainer
from recnb.ppo.prompts import rl_requests
from recnb.profile import load
from recnb.sft import train_sft
from recnb.teacher.ranking import Teacher
from recnb.teacher.training import untrained


def join(rank, world_size, port):
    """What torchrun sets for each process."""
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }


def four_sl_steps(rank, world_size, port, folder):
    """Four SL steps on answers of equal length.

    A process weights its tokens alike, whatever the other's number.
    """
    join(rank, world_size, port)
    profile = load("smoke")
    catalog, _ = build(profile.data, 0)
    codec = Codec(build_tokenizer(catalog, [("Hello", "Good day")] * 5, 400, True))
    model = mini_model(len(codec.tokenizer), profile.model, codec, 0)
    frame = pd.DataFrame(
        [
            {"prompt": f"{n} films", "completion": numbered([n, n + 1], catalog)}
            for n in range(1, 33)
        ]
    )
    knobs = profile.sft.model_copy(
        update={"batch_size": 8, "rank": 4, "learning_rate": 0.01, "repeat_weight": 0.0}
    )
    out = os.path.join(folder, f"sl-{world_size}-{rank}")
    tuned, _ = train_sft(model, codec, frame, frame[:4], None, knobs, 0, out, autocast=False)
    if rank == 0:
        weights = {k: v.clone().contiguous() for k, v in tuned.state_dict().items() if "lora_" in k}
        save_file(weights, os.path.join(folder, f"{world_size}.safetensors"))


def two_steps(rank, world_size, port, folder):
    """Two PPO steps; the first has learning rate 0.

    Sampling is greedy, so that both set-ups see the same answers.
    """
    join(rank, world_size, port)
    profile = load("smoke")
    catalog, histories = build(profile.data, 0)
    torch.manual_seed(0)
    teacher = Teacher(untrained(len(catalog), profile.teacher))
    codec = Codec(build_tokenizer(catalog, [("Hello", "Good day")] * 5, 400, True))
    model = mini_model(len(codec.tokenizer), profile.model, codec, 0)
    greedy = trainer.decode
    trainer.decode = lambda m, c, prompts, new, *_, **__: greedy(m, c, prompts, new)
    requests = rl_requests(
        16, range(50), histories, catalog, teacher, profile.data, 2, 4, np.random.default_rng(0)
    )
    prompts = 8 // world_size
    knobs = profile.ppo.model_copy(
        update={
            "steps": 2,
            "prompts": prompts,
            "samples": 2,
            "epochs": 1,
            "minibatches": 1,
            "checkpoints": 1,
            "learning_rate": 0.01,
            "critic_learning_rate": 0.01,
        }
    )
    out = os.path.join(folder, f"{world_size}-{rank}")
    tuned, _ = trainer.train_ppo(
        model, codec, requests, teacher, catalog, knobs, 0, out, 25, autocast=False
    )
    if rank == 0:
        weights = {
            k: v.clone() for k, v in tuned.state_dict().items() if "lora_" in k or "v_head" in k
        }
        save_file(weights, os.path.join(folder, f"{world_size}.safetensors"))


@pytest.mark.parametrize("work", [two_steps, four_sl_steps])
def test_two_processes_make_the_update_of_one(tmp_path, work):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for world_size in (1, 2):
        mp.spawn(work, (world_size, port, str(tmp_path)), nprocs=world_size)
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    assert set(one) == set(two)
    names = [k for k in sorted(one) if "lora_A" not in k]
    first, second = (torch.cat([weights[k].flatten() for k in names]) for weights in (one, two))
    assert first.norm() > 0, "the step changed something"
    assert (first - second).norm() < 1e-2 * first.norm()
