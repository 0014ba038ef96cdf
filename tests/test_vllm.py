"""Answers by vLLM: our side of it and the worker script, with an imitation in vLLM's place.

The last test asks a real vLLM, where one is installed.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model

from recnb import RecnbError
from recnb.controls import NoControl
from recnb.engine.decoding import decode
from recnb.instructions.synthesis import request_of
from recnb.lm import vllm_client
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.loading import load_adapted, load_base, mini_model
from recnb.lm.recommender import LanguageModelRecommender, recommend_together
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.lm.vllm_client import (
    Answering,
    Writer,
    live_adapter,
    read_adapter,
    save_adapter,
    served,
    stacked,
)
from recnb.ppo.prompts import rl_requests
from recnb.ppo.trainer import train_ppo, with_adapters
from recnb.profile import Compute, load
from recnb.sft import lora

IMITATION = """
import json, os, sys, time, zlib
from pathlib import Path

__version__ = "of this test"

def note(**row):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(row) + "\\n")

class SamplingParams:
    def __init__(self, **given):
        self.given = given

class Output:
    def __init__(self, ids):
        self.token_ids, self.outputs = tuple(ids), [self]

class LLM:
    def __init__(self, model, **given):
        print("vLLM says much, also on stdout", flush=True)
        note(model=model, rank=os.environ.get("RANK"), **given)

    def generate(self, prompts, wishes, lora_request=None, use_tqdm=True):
        does = os.environ.get("DOES")
        if does == "break off" and Path(os.environ["NOTES"]).read_text().count("prompts") == 2:
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        if does == "hang":
            time.sleep(60)
        if does == "refuse":
            raise ValueError("no such thing")
        crc, folder = 0, lora_request and lora_request.folder
        if folder:
            crc = zlib.crc32((Path(folder) / "adapter_model.safetensors").read_bytes())
        number = lora_request and lora_request.number
        asked = [wish.given for wish in wishes]
        note(prompts=len(prompts), crc=crc, number=number, seeds=[a["seed"] for a in asked])
        found = []
        for prompt, wish in zip(prompts, asked):
            ids, room = prompt["prompt_token_ids"], wish["max_tokens"]
            words = [ids[-1], 3 + crc % 200, 3 + sum(ids) % 200][: room - 1]
            found.append(Output(words + wish["stop_token_ids"]))
        if does == "lose one":
            found.pop()
        if does == "stop early":
            found[0] = Output(found[0].token_ids[:-1])
        return found
"""
REQUEST = """
class LoRARequest:
    def __init__(self, name, number, folder):
        self.number, self.folder = number, folder
"""


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Rows that the imitation of vLLM has written, and its place in the kit's environment."""
    package = tmp_path / "imitation" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(IMITATION)
    (package / "lora" / "__init__.py").touch()
    (package / "lora" / "request.py").write_text(REQUEST)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv(vllm_client.PYTHON, sys.executable)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return lambda: [json.loads(row) for row in (tmp_path / "notes").read_text().splitlines()]


@pytest.fixture(scope="module")
def folders(world, smoke, tmp_path_factory):
    """A base with titles in sub-words, and an SL adapter of its last layer."""
    place = tmp_path_factory.mktemp("models")
    codec = Codec(build_tokenizer(world[0], [("What is 2 plus 3?", "5.")] * 5, 400, False))
    model = mini_model(len(codec.tokenizer), smoke.model, codec, 0).eval()
    model.save_pretrained(place / "base")
    codec.tokenizer.save_pretrained(place / "base")
    peft = get_peft_model(load_base(place / "base")[0], lora(4, 2, layers=[1]))
    shaken(peft, "default")
    peft.save_pretrained(place / "sl")
    return place / "base", place / "sl"


def shaken(peft, adapter):
    draws = torch.Generator().manual_seed(1)
    for name, weight in peft.named_parameters():
        if f"lora_B.{adapter}" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=draws)


def test_adapters_become_one_and_nothing_is_merged(folders, tmp_path):
    base, sl = folders
    model, codec = load_adapted(base, [sl])
    peft = with_adapters(model, 3, 5).eval()
    shaken(peft, "actor")
    both = stacked([read_adapter(sl), live_adapter(peft, "actor")])
    save_adapter(both, tmp_path / "both")
    other = PeftModel.from_pretrained(load_base(base)[0], tmp_path / "both").eval()
    assert other.peft_config["default"].r == 7
    ids = torch.tensor([codec.prompt("hello there")])
    with torch.no_grad():
        expected, found = peft(input_ids=ids).logits, other(input_ids=ids).logits
        with other.disable_adapter():
            assert not torch.allclose(expected, other(input_ids=ids).logits, atol=1e-2)
    assert torch.allclose(expected, found, atol=1e-5)


def test_answers_come_in_order_and_a_new_adapter_is_taken(folders, notes, monkeypatch):
    base, sl = folders
    monkeypatch.setenv("RANK", "1")  # of torchrun: it is nothing of vLLM's
    writer = Writer(str(base), "float32", 9, 20, 1 << 20)
    try:
        prompts, rooms = [[5, 6, 7], [8], [11, 12]], [9, 9, 2]
        assert writer.answers(prompts, rooms) == [[7, 3, 21, 9], [8, 3, 11, 9], [12, 9]]
        adapter = read_adapter(sl)
        writer.use([adapter])
        first, folder = writer.answers(prompts, rooms, 0.7, [1, 2, 3]), writer.adapter
        again = writer.answers(prompts, rooms)
        adapter["base_model.model.model.layers.1.mlp.up_proj"][1].add_(1.0)
        writer.use([adapter])
        assert first == again != writer.answers(prompts, rooms) and not Path(folder).exists()
    finally:
        writer.close()
    assert writer.worker.process.poll() is not None and not Path(writer.scratch.name).exists()
    opened, *asked = notes()
    assert opened["max_lora_rank"] == 32 and opened["kv_cache_memory_bytes"] == 1 << 20
    assert opened["model"] == str(base) and opened["rank"] is None
    assert [row["number"] for row in asked] == [None, 2, 2, 3]
    assert asked[1]["seeds"] == [1, 2, 3] and asked[2]["seeds"] == [None] * 3


@pytest.mark.parametrize(
    "does, message",
    [
        ("break off", "exit code 3.*last checkpoint.*the last words"),
        ("hang", "no answer in 1 seconds"),
        ("refuse", "vLLM: ValueError: no such thing.*compute.rollouts to hf"),
        ("lose one", "1 answers to 2 prompts"),
        ("stop early", "an answer of 3 tokens where the end token or the room asks for 8"),
    ],
)
def test_what_goes_wrong_is_said(folders, notes, monkeypatch, does, message):
    monkeypatch.setenv("DOES", does)
    writer = Writer(str(folders[0]), "float32", 9, 0, 0)
    monkeypatch.setattr(vllm_client, "ANSWER", 1.0)
    asked = [[5], [7]], [8, 8]
    try:
        with pytest.raises(RecnbError, match="(?s)" + message):
            for _ in range(3):
                writer.answers(*asked)
        assert (does in ("break off", "hang")) == (writer.worker.process.poll() is not None)
    finally:
        writer.close()
    assert "max_lora_rank" not in notes()[0] and notes()[0]["gpu_memory_utilization"] == 0.4


def test_what_cannot_be_is_refused_before(folders, tmp_path, notes, monkeypatch):
    base, _ = folders
    writer = Writer(str(base), "float32", 9, 0, 0)
    with pytest.raises(RecnbError, match="longer than the 1,024"):
        writer.answers([[1] * 1000], [30])
    writer.close()
    with pytest.raises(RecnbError, match="rank 512 at most.*add up to 600"):
        Writer(str(base), "float32", 9, 600, 0)
    with pytest.raises(RecnbError, match="linear layers alone.*trainable_tokens_delta"):
        vllm_client._scaled({"embed_tokens.trainable_tokens_delta": torch.ones(1)}, 1.0)
    record = {"model": "smollm2", "titles": 6, "first": 49152}
    (tmp_path / "pretrained.json").write_text(json.dumps(record))
    with pytest.raises(RecnbError, match="has 6 for titles: set model.item_tokens to false"):
        served(tmp_path, [], "float32")
    monkeypatch.setenv(vllm_client.PYTHON, str(tmp_path / "none"))
    with pytest.raises(RecnbError, match="(?s)none is not there.*variable RECNB_VLLM"):
        Writer(str(base), "float32", 9, 0, 0)
    with pytest.raises(RecnbError, match="compute.rollouts: vllm.*model.item_tokens"):
        load("smollm2", {"compute.rollouts": "vllm"})


def test_a_whole_model_takes_the_place_of_all_before(folders):
    base, sl = folders
    assert served(base, [sl], "float32") == (str(base), [str(sl)], "float32")
    assert served("elsewhere", [sl, base, sl], "float32") == (str(base), [str(sl)], "float32")


def test_rl_learns_from_its_answers(folders, notes, world, teacher, smoke, tmp_path, monkeypatch):
    """Each step takes the adapter anew; after vLLM has died, the same command goes on."""
    base, sl = folders
    drawn = range(50), world[1], world[0], teacher, smoke.data, 2, 4, np.random.default_rng(0)
    requests = rl_requests(16, *drawn)
    few = {"prompts": 4, "samples": 2, "epochs": 1, "minibatches": 1, "checkpoints": 4, "steps": 4}
    knobs = smoke.ppo.model_copy(update=few)

    def train():
        model, codec = load_adapted(base, [sl])
        given = model, codec, requests, teacher, world[0], knobs, 0, tmp_path / "rl", 12
        return train_ppo(*given, autocast=False, compute=Compute(rollouts="vllm"))[1]

    monkeypatch.setenv("DOES", "break off")
    with pytest.raises(RecnbError, match="exit code 3"):
        train()
    monkeypatch.delenv("DOES")
    rows = [row for row in train() if "kl" in row]
    assert len(rows) == 4 and abs(rows[0]["kl"]) < 1e-5
    answered = [row for row in notes() if "prompts" in row]
    assert len(answered) == 4, "two steps before its end, and those that were left"
    changed = [row["crc"] for row in answered]
    assert len(set(changed)) >= 3, "a new adapter a step; the first update's step size is 0"
    seeds = [tuple(row["seeds"]) for row in answered]
    assert len(set(seeds)) == len(seeds) and len(set(seeds[0])) == 8


def test_the_evaluation_asks_it_in_free_decoding_alone(folders, notes, world, smoke):
    base, sl = folders
    (model, codec), catalog = load_adapted(base, [sl]), world[0]
    answering = Answering(base, "float32", codec, 4, Compute())
    automaton = CatalogAutomaton(codec, catalog)
    free = LanguageModelRecommender(
        model, codec, catalog, writer=lambda *asked: answering.answers([sl], *asked)
    )
    led = LanguageModelRecommender(model, codec, catalog, automaton)
    asked = world[1], smoke.data
    requests = [request_of(*asked, user, "test", NoControl(), 3) for user in range(5)]
    written, legal = recommend_together([free, led], requests)
    answering.close()
    rows = [row for row in notes() if "prompts" in row]
    assert [row["prompts"] for row in rows] == [len(requests)]
    prompts = free.prompts(requests)
    for request, prompt, answer, other in zip(requests, prompts, written, legal, strict=True):
        expected = [prompt[-1], 3 + rows[0]["crc"] % 200, 3 + sum(prompt) % 200, codec.eos]
        assert answer.text == codec.decode(expected) and answer.tokens == 4
        assert len(other.items) == request.k and None not in other.items


def test_greedy_answers_of_a_real_vllm_are_ours(folders):
    """Token by token, with an adapter."""
    try:
        path = vllm_client.python()
    except RecnbError as error:
        pytest.skip(str(error))
    tried = subprocess.run([path, "-c", "import vllm"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"{path} cannot import vllm: {tried.stderr.strip().splitlines()[-1:]}")
    base, sl = folders
    model, codec = load_adapted(base, [sl])
    prompts = codec.prompts(["a film please", "two films, no comedies", "ten"])
    answering = Answering(base, "float32", codec, 4, Compute())
    try:
        found = answering.answers([sl], prompts, [12] * 3)
    except RecnbError as error:
        if "exit code" in str(error):  # a build for another processor is killed by the system
            pytest.skip(str(error))
        raise
    finally:
        answering.close()
    assert found == decode(model, codec, prompts, 12)
