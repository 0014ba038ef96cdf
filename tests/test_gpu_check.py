"""The checks of ``recnb gpu-check`` on a CPU with tiny models, each also with something broken."""

import copy
import json
import math
import sys
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig

from recnb import RecnbError, cli, gpu_check, gpu_lines
from recnb.gpu_lines import (
    Line,
    Places,
    Trial,
    answers_lines,
    asked,
    fitting_config,
    large_checks,
    memory_line,
    places_line,
    rl_steps,
    same_answers,
    samples,
    sl_steps,
)
from recnb.lm.loading import mini_model
from recnb.lm.recommender import request_prompt
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.machine import device
from recnb.plan import hardware, stages
from recnb.profile import load


class Alive(TorchDispatchMode):
    """Within it, counts the bytes of all tensors that come to life, and the most at once."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and not tensor.is_mkldnn:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage):
        if storage._cdata in self.known:
            return
        size = self.known[storage._cdata] = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key):
        self.now -= self.known.pop(key)


@contextmanager
def alive():
    most = []
    with Alive() as tensors:
        yield most
    most.append(tensors.most)


@pytest.fixture(scope="module")
def trial(smoke, world, teacher):
    """The smoke profile's world with titles in sub-words, LoRA and few answers a step."""
    codec = Codec(build_tokenizer(world[0], [("What is 2 plus 3?", "5.")] * 5, 400, False))
    model = mini_model(len(codec.tokenizer), smoke.model, codec, 0).eval()
    few = {"prompts": 4, "samples": 2, "epochs": 1, "minibatches": 2}
    sft = smoke.sft.model_copy(update={"batch_size": 8, "max_tokens": 400})
    changed = {"ppo": smoke.ppo.model_copy(update=few), "sft": sft}
    profile = smoke.model_copy(update=changed)
    opening = lambda: (copy.deepcopy(model), codec)  # noqa: E731
    return Trial(profile, opening, *world, teacher, device(), alive)


def passed(lines):
    return [line.passed for line in lines]


def test_sl_steps(trial, tmp_path):
    frame = samples(trial, 5 * trial.profile.sft.batch_size)
    lines = sl_steps(trial, frame, tmp_path / "sl", planned=1)
    assert passed(lines) == [True, True, False], "a byte was planned"
    model, _ = trial.open_model()
    weights = sum(weight.nbytes for weight in model.parameters())
    assert weights < lines[2].numbers["measured"] < 2**26

    def broken():
        model, codec = trial.open_model()
        model.model.norm.weight.data.fill_(float("nan"))
        return model, codec

    lines = sl_steps(replace(trial, open_model=broken), frame[:16], tmp_path / "broken")
    assert passed(lines) == [False, True]


def test_rl_steps(trial, tmp_path):
    lines = rl_steps(trial, 2, 30, tmp_path / "rl", planned=2**26)
    assert passed(lines) == [True, True, True, True]
    still = {"learning_rate": 0.0, "critic_learning_rate": 0.0}
    profile = trial.profile.model_copy(update={"ppo": trial.profile.ppo.model_copy(update=still)})
    lines = rl_steps(replace(trial, profile=profile), 1, 10, tmp_path / "broken")
    assert passed(lines) == [True, False, True]


def one_step(dtype=torch.float32):
    layer = torch.nn.Linear(3, 2, dtype=dtype)
    optimizer = torch.optim.AdamW(layer.parameters())
    with Places() as places:
        layer(torch.ones(1, 3, dtype=dtype)).sum().backward()
        optimizer.step()
        places.model(layer)
    return places, layer


def test_a_tensor_elsewhere_fails():
    places, layer = one_step()
    assert places_line("x", places, "cpu").passed
    layer.register_buffer("table", torch.zeros(2, device="meta"))
    places.model(layer)
    line = places_line("x", places, "cpu")
    assert not line.passed and "1 weights on meta" in line.found
    assert not places_line("x", one_step()[0], "cuda").passed
    assert not places_line("x", one_step(torch.bfloat16)[0], "cpu").passed, "learns in 16 bits"
    with Places() as nothing:
        pass
    line = places_line("x", nothing, "cpu")
    assert not line.passed and "no gradients were seen" in line.found


@pytest.mark.parametrize(
    "measured, least, right",
    [(100, 0, True), (110, 0.5, True), (111, 0.5, False), (49, 0.5, False), (1, 0, True)],
)
def test_memory_against_the_plan(measured, least, right):
    assert memory_line("x", measured, 100, least).passed == right


def test_same_answers(trial, monkeypatch):
    model, codec = trial.open_model()
    prompts = codec.prompts([request_prompt(r, trial.catalog, 0) for r in asked(trial, 4)])
    given = prompts, 8
    assert passed(same_answers(model, copy.deepcopy(model), codec, *given)) == [True, True]
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.model.layers[1].mlp.down_proj.weight)
    assert passed(same_answers(model, other, codec, *given)) == [False, True]
    right = gpu_lines.decode

    def wrong(*arguments):
        answers = right(*arguments)
        return [[(token + 1) % 300 for token in answer] for answer in answers]

    monkeypatch.setattr(gpu_lines, "decode", wrong)
    assert passed(same_answers(model, copy.deepcopy(model), codec, *given)) == [False, False]


def test_lists_a_second(trial, monkeypatch):
    lines = answers_lines(trial, 3, new=6, planned=2**26)
    assert passed(lines) == [True, True]
    assert lines[0].numbers["lists a second"] > 0
    right = gpu_lines.decode
    monkeypatch.setattr(gpu_lines, "decode", lambda *a, **b: [x[:-1] for x in right(*a, **b)])
    assert passed(answers_lines(trial, 3, new=6)) == [False]


@pytest.fixture
def in_float32(monkeypatch):
    """What a machine measures must not decide."""
    monkeypatch.setattr(gpu_lines.machine, "autocast", lambda knobs: False)


def test_one_step_of_the_large_shape(trial, tmp_path, monkeypatch, in_float32):
    """The path of the 7B-shaped model, with a shape for a CPU and shorter rows."""
    _, codec = trial.open_model()
    config = LlamaConfig(
        vocab_size=len(codec.tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    large_profile, stated = gpu_lines.large_profile, hardware.stated

    def shorter(*given):
        profile = large_profile(*given)
        few = {"sft": {"max_tokens": 128}, "compute": {"micro_tokens": 128}}
        few |= {"ppo": {"prompts": 2, "minibatches": 4}, "evaluation": {"batch_size": 4}}
        parts = {name: getattr(profile, name).model_copy(update=new) for name, new in few.items()}
        return profile.model_copy(update=parts)

    monkeypatch.setattr(gpu_lines, "large_profile", shorter)
    monkeypatch.setattr(gpu_lines, "NEW", 12)
    # what a CPU keeps: attention's probabilities; its texts are no tensors
    monkeypatch.setattr(hardware, "stated", lambda *given: replace(stated(*given), cuda=False))
    monkeypatch.setattr(stages, "TOKEN_BYTES", 0)
    for name, check in large_checks(trial, codec, config, 40.0, tmp_path):
        *lines, memory = check()
        assert all(passed(lines)), (name, lines)
        ratio = memory.numbers["measured"] / memory.numbers["planned"]
        # RL's answers are shorter than the profile's, which the plan reckons with; and in decoding
        # a CPU holds attention's scores, for which the plan has no part.
        least = gpu_lines.LESS if name.endswith("SL") else 0
        most = math.inf if name.endswith("answers") else gpu_lines.MORE
        assert least < ratio <= most, (name, ratio)


def test_the_largest_shape_that_fits_is_taken(trial, tmp_path, in_float32):
    _, codec = trial.open_model()
    layers = [fitting_config(codec, gib, trial, tmp_path).num_hidden_layers for gib in (40, 10)]
    assert layers[0] == 32 and layers[1] in (4, 8, 16)
    with pytest.raises(RecnbError, match="one layer of Llama-2-7b's width does not fit the 0.5"):
        fitting_config(codec, 0.5, trial, tmp_path)


def test_a_small_gpu_computes_activations_again(trial, in_float32):
    whole = replace(trial, profile=load("gpu", gpu_lines.ALONE))
    assert gpu_check.gpu_profile(40, whole) is whole.profile
    saving = gpu_check.gpu_profile(4, whole).compute
    assert saving.checkpointing and saving.micro_tokens


def test_the_report_says_what_failed(tmp_path):
    def breaks_off():
        raise MemoryError("CUDA out of memory. <b>")

    shown, seen = [], []
    checks = [
        ("first", lambda: [Line("good", True, "1", "1")]),
        ("second", breaks_off),
        ("third", lambda: seen.append(json.loads((tmp_path / "gpu_check.json").read_text())) or []),
    ]
    lines = gpu_check.run_checks(checks, {"GPU": "a <GPU>"}, tmp_path, shown.append)
    assert passed(lines) == [True, False]
    assert shown == ["ok   good: 1", "FAIL second: MemoryError: CUDA out of memory. <b>"]
    assert seen[0]["to do"] == ["third"] and not seen[0]["passed"]
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert not found["passed"] and found["lines"][1]["what"] == "second"
    page = (tmp_path / "gpu_check.html").read_text()
    assert "1 of 2 lines failed" in page and "a &lt;GPU&gt;" in page and "breaks_off" in page
    assert "<b>FAIL</b>" in page and "memory. <b>" not in page


def test_a_failed_line_is_exit_code_1(tmp_path, monkeypatch, capsys):
    checks = [("one", lambda: [Line("one", True, "", "")])]
    monkeypatch.setattr(gpu_check, "refuse_without_cuda", lambda: None)
    monkeypatch.setattr(gpu_check, "gpu_checks", lambda folder: (list(checks), {}))
    monkeypatch.setattr(sys, "argv", ["recnb", "gpu-check", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and "all 2 lines pass" in capsys.readouterr().out
    monkeypatch.setattr(gpu_check, "MINUTES", 0)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and "1 of 2 lines failed (duration)" in said


def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["recnb", "gpu-check", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and "sees no CUDA device here" in said
    assert len(said.splitlines()) == 1 and not (tmp_path / "out").exists()
