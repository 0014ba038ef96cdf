"""What ``recnb plan`` reckons is compared with what PyTorch, PEFT and the cache really take."""

import json
import math
import runpy
from contextlib import nullcontext

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from recnb import RecnbError
from recnb.cli import app, main
from recnb.engine.cache import RaggedCache, feed
from recnb.engine.losses import chosen_and_entropy, next_token_loss
from recnb.engine.packed import next_logits_held
from recnb.engine.shared import uncast_lora
from recnb.instructions.synthesis import table8
from recnb.plan import lines_of, plan
from recnb.plan.hardware import A100_TFLOPS, GIB, stated, this_machine
from recnb.plan.memory import (
    Numbers,
    Pass,
    block_bytes,
    cache_bytes,
    operations,
    saved_bytes,
    training_bytes,
)
from recnb.plan.shapes import SHAPES, Shape, shape_of
from recnb.plan.stages import SLACK, texts
from recnb.profile import load, root
from recnb.sft import lora

PUBLISHED = {
    # weights, as the models' pages and safetensors on the Hub have them
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
}
CONFIG = {
    "vocab_size": 300,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def shaped(config):
    heads, width = config["num_attention_heads"], config["hidden_size"]
    return Shape(
        config["num_hidden_layers"],
        width,
        heads,
        config["num_key_value_heads"],
        width // heads,
        config["intermediate_size"],
        config["vocab_size"],
        False,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_the_shapes_have_the_published_sizes(name):
    assert SHAPES[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", SHAPES)
def test_weights_and_adapters_are_those_of_transformers_and_peft(name):
    shape = SHAPES[name]
    kind = "qwen2" if shape.biases else "llama"
    config = AutoConfig.for_model(
        kind,
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        assert shape.parameters == sum(p.numel() for p in model.parameters())
        peft = get_peft_model(model, lora(16, 8))
    assert shape.adapter(16) == sum(p.numel() for p in peft.parameters() if p.requires_grad)


def test_the_papers_shares_of_trainable_parameters():
    """3.1.2: about 0.6 % in SL and, actor and critic together, 0.3 % in RL."""
    shape = SHAPES["meta-llama/Llama-2-7b-chat-hf"]
    assert round(100 * shape.adapter(16) / shape.parameters, 1) == 0.6
    assert round(100 * 2 * shape.adapter(4) / shape.parameters, 1) == 0.3
    own, optimizer = training_bytes(shape, 2, 16)
    assert (own, optimizer) == (4 * shape.adapter(16), 12 * shape.adapter(16))


def held_back(config, dtype, autocast, rank, checkpointing, samples, longest, answers):
    """Bytes of the tensors that a forward pass keeps, those of the model itself left out."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).to(dtype)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if rank:
        model = get_peft_model(model, lora(rank, 8))
    model.train()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    ids = torch.randint(3, config["vocab_size"], (samples, longest))
    real = torch.ones_like(ids, dtype=torch.bool)
    keep = torch.zeros_like(real)
    keep[:, -answers - 1 : -1] = True
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor, storage.nbytes()  # alive, so that no place is reused
        return tensor

    fast = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with (
        hooks,
        fast,
        uncast_lora(model, autocast),
        next_logits_held(model, ids, real, keep) as logits,
    ):
        next_token_loss(logits, ids, keep.nonzero() + torch.tensor([0, 1]))
    return sum(size for _, size in kept.values())


FORMATS = {
    "float32": (torch.float32, False, 4),
    "autocast": (torch.float32, True, 4),
    "bfloat16": (torch.bfloat16, True, 2),
}


@pytest.mark.parametrize("fused", [False, True], ids=["cpu", "fused"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("rank", [16, 0])
@pytest.mark.parametrize("name", FORMATS)
def test_saved_activations_within_a_tenth(name, rank, checkpointing, fused, monkeypatch):
    dtype, autocast, size = FORMATS[name]
    if fused:  # the kernel of GPUs; PyTorch's for a CPU keeps the same tensors
        monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    measured = held_back(CONFIG, dtype, autocast, rank, checkpointing, 2, 96, 24)
    numbers, work = Numbers(size, autocast, rank, fused), Pass(192, 48, 192, 96)
    assert saved_bytes(shaped(CONFIG), work, numbers, checkpointing) == pytest.approx(
        measured, rel=0.1
    )


@pytest.mark.parametrize("rank", [16, 0])
@pytest.mark.parametrize("name", FORMATS)
def test_a_block_more_keeps_what_a_block_keeps(name, rank):
    dtype, autocast, size = FORMATS[name]
    sizes = [
        held_back(CONFIG | {"num_hidden_layers": n}, dtype, autocast, rank, False, 2, 96, 24)
        for n in (3, 4)
    ]
    numbers, work = Numbers(size, autocast, rank, False), Pass(192, 48, 192, 96)
    found = block_bytes(shaped(CONFIG), work, numbers)
    assert found == pytest.approx(sizes[1] - sizes[0], rel=0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("checkpointing", [False, True])
def test_saved_activations_of_llama_2s_width(checkpointing):
    config = CONFIG | {"hidden_size": 4096, "intermediate_size": 11008}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32}
    measured = held_back(config, torch.bfloat16, True, 16, checkpointing, 1, 96, 48)
    numbers, work = Numbers(2, True, 16, False), Pass(96, 48, 96, 96)
    assert saved_bytes(shaped(config), work, numbers, checkpointing) == pytest.approx(
        measured, rel=0.1
    )


def test_the_entropy_keeps_probabilities_and_logits():
    logits, kept = torch.randn(7, 11, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        chosen_and_entropy(logits, torch.zeros(7, dtype=torch.long))
    assert sum(t.nbytes for t in kept if t.ndim == 2 and t.shape[1] == 11) == 2 * 4 * 7 * 11


def test_the_cache_is_as_large_as_reckoned():
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="eager"))
    cache = RaggedCache(CONFIG["num_hidden_layers"], "cpu")
    with torch.no_grad():
        feed(model, cache, [[1, 2, 3], [4]], [1, 1])
    taken = sum(states.nbytes for states in [*cache.keys, *cache.values])
    room = cache.keys[0].shape[2]
    assert taken == cache_bytes(shaped(CONFIG), 2, room, 4)


def test_the_papers_epoch_takes_seventy_minutes():
    """A.2: 4 GPUs, 70 minutes; the speed that plans assume is this one."""
    profile = load("paper-movie")
    counts, shape = table8(profile.instructions, 13218, 18744), shape_of(profile, 18744)
    length, samples = texts(profile, counts), sum(counts.values())
    tokens = samples * (length.prompt + length.answer)
    work = operations(shape, tokens, samples * length.answer, 16, False)
    assert work / (4 * A100_TFLOPS * 1e12) / 60 == pytest.approx(70, rel=0.03)


def fits(profile, memory, **knobs):
    changed = load(profile, {key.replace("__", "."): value for key, value in knobs.items()})
    return plan(changed, stated(changed, memory)).refusals


def test_a_refusal_names_stage_size_and_knob():
    one = {"sft__v1": False, "sft__palr": 0, "sft__instructrec": 0, "ppo__v3": False}
    enough = fits("paper-movie", 80, **one)
    assert not [line for line in enough if line.startswith(("04_sft", "05_ppo"))]
    refused = fits("paper-movie", 24, model__dtype="float32", **one)
    assert any("04_sft needs" in line and "model.dtype bfloat16" in line for line in refused)
    switches = {"compute__checkpointing": False, "compute__micro_tokens": 65536}
    switches["sft__batch_size"] = 512  # a pass is no larger than a process's share of the batch
    refused = fits("paper-movie", 80, **one, **switches)
    assert any("saved activations" in line and "compute.checkpointing" in line for line in refused)
    refused = fits("paper-movie", 80, **one, evaluation__batch_size=512, compute__cache_gib=0)
    assert any("06_evaluation" in line and "compute.cache_gib" in line for line in refused)
    refused = fits("paper-movie", 80, **one, sft__rank=0, model__dtype="float32")
    assert any("gradients and optimizer" in line and "sft.rank" in line for line in refused)


def test_more_needs_more():
    """Monotone: no knob that asks for more is reckoned to need less."""

    def gib(stage, **knobs):
        changed = load("paper-movie", {key.replace("__", "."): v for key, v in knobs.items()})
        rows = plan(changed, stated(changed, 80)).stages
        return next(row for row in rows if row.name == stage)

    base = gib("04_sft").gib
    assert gib("04_sft", compute__checkpointing=False).gib > base
    assert gib("04_sft", compute__micro_tokens=8192).gib > base
    assert gib("04_sft", model__dtype="float32").gib > base
    assert gib("04_sft", sft__v1=False, sft__palr=0, sft__instructrec=0).gib < base
    assert gib("04_sft", sft__epochs=60).hours > gib("04_sft").hours
    assert gib("04_sft", compute__checkpointing=False).hours < gib("04_sft").hours
    assert gib("06_evaluation", compute__cache_gib=12).gib > gib("06_evaluation").gib
    assert gib("05_ppo", ppo__steps=6000).hours == pytest.approx(2 * gib("05_ppo").hours)
    steps = gib("04_sft", sft__v1=False, sft__palr=0, sft__instructrec=0).steps
    assert steps == math.ceil(87597 / 64) * 30


def test_vllm_holds_the_base_once_more():
    def stages(**compute):
        changed = load("paper-movie", {f"compute.{key}": value for key, value in compute.items()})
        return {row.name: row for row in plan(changed, stated(changed, 80)).stages}

    own = stages(cache_gib=4)
    for name, row in stages(cache_gib=4, rollouts="vllm").items():
        beside = row.memory.get("vLLM", 0) / GIB
        assert row.gib == pytest.approx(own[name].gib + SLACK * beside)
        if name in ("05_ppo", "06_evaluation"):
            assert beside == pytest.approx(2 * 6_738_415_616 / GIB + 4)  # Llama-2-7b, 16 bits
        else:
            assert not beside
    assert stages(cache_gib=0, rollouts="vllm")["05_ppo"].memory["vLLM"] == 0.4 * 80 * GIB


def test_more_processes_share_the_time():
    one, two = (load("paper-movie", {"compute.processes": n}) for n in (1, 2))
    alone, both = (plan(profile, stated(profile, 80)).stages for profile in (one, two))
    assert both[3].hours == pytest.approx(alone[3].hours / 2)
    assert both[5].hours == pytest.approx(alone[5].hours / 2)
    assert both[6].hours == alone[6].hours, "case studies are made in one process"


def test_spread_weights_take_their_share_of_the_memory():
    """SL alone: what RL refuses is told before the run."""
    knobs = {"compute.processes": 4, "sft.v1": False, "sft.palr": 0, "sft.instructrec": 0}
    found = {}
    for strategy in ("ddp", "fsdp2"):
        profile = load("paper-movie", knobs | {"compute.strategy": strategy})
        found[strategy] = plan(profile, stated(profile, 24))
    shape = SHAPES["meta-llama/Llama-2-7b-chat-hf"]
    whole, share = (found[strategy].stages[3].memory for strategy in ("ddp", "fsdp2"))
    blocks = 2 * shape.layers * shape.matrices
    assert whole["weights"] - share["weights"] == pytest.approx(0.75 * blocks)
    assert share["blocks brought together"] == pytest.approx(blocks / 16)
    assert any("05_ppo refuses" in line for line in found["fsdp2"].refusals)
    assert not any("refuses" in line for line in found["ddp"].refusals)


def test_tallrec_in_pieces_needs_less():
    sizes = []
    for most in (0, 4096, 1024):
        profile = load("paper-movie", {"compute.micro_tokens": most})
        sizes.append(plan(profile, stated(profile, 80)).stages[7].gib)
    assert sizes[0] > 2 * sizes[1] > 2 * sizes[2]


def test_the_shape_comes_from_a_config_json(tmp_path):
    shape = SHAPES["Qwen/Qwen2.5-0.5B-Instruct"]
    config = CONFIG | {"model_type": "qwen2", "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = shape_of(load("gpu", {"model.name": str(tmp_path)}), 100)
    assert (found.width, found.head, found.tied, found.biases) == (512, 64, True, True)
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(RecnbError, match="not the settings of a Llama-like model.*num_attention"):
        shape_of(load("gpu", {"model.name": str(tmp_path)}), 100)
    with pytest.raises(RecnbError, match="no/such: its shape is not known.*config.json"):
        shape_of(load("gpu", {"model.name": "no/such"}), 100)
    tokens = {"model.name": "Qwen/Qwen2.5-0.5B-Instruct", "model.item_tokens": True}
    assert shape_of(load("gpu", tokens), 100).vocabulary == shape.vocabulary + 100


def test_sizes_of_a_catalogue_come_from_what_prepared_it(tmp_path):
    knobs = {"data.dataset": "tabular", "data.path": str(tmp_path)}
    profile = load("gpu", knobs)
    with pytest.raises(RecnbError, match="say --users and --items"):
        plan(profile, stated(profile, 40))
    asked = plan(profile, stated(profile, 40), 100, 50)
    (tmp_path / "manifest.json").write_text(json.dumps({"counts": {"users": 100, "items": 50}}))
    assert plan(profile, stated(profile, 40)).stages == asked.stages


def test_gated_models_are_told():
    profile = load("paper-movie")
    lines = plan(profile, stated(profile, 80)).downloads
    assert any("Llama-2-7b-chat-hf: 12.6 GiB" in line and "gated" in line for line in lines)
    open_one = load("paper-movie", {"model.name": "Qwen/Qwen2.5-7B-Instruct"})
    lines = plan(open_one, stated(open_one, 80)).downloads
    assert any("Qwen" in line and "not known to be gated" in line for line in lines)
    laptop = load("laptop")
    assert not any("Hub" in line for line in plan(laptop, stated(laptop, 80)).downloads)


def test_this_machine_is_measured():
    profile = load("smoke")
    hardware = this_machine(profile)
    text = "\n".join(lines_of(plan(profile, hardware), hardware))
    assert ("measured" in text) != torch.cuda.is_available()
    assert plan(profile, hardware).refusals == []


def test_the_command_fails_where_nothing_fits(capsys, monkeypatch):
    runner = CliRunner()
    good = runner.invoke(app, ["plan", "smoke", "--gpu-memory", "40"])
    assert good.exit_code == 0 and "| 04_sft |" in good.output
    tight = ["recnb", "plan", "paper-movie", "--gpu-memory", "12"]
    monkeypatch.setattr("sys.argv", tight)
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == 1 and "| 04_sft |" in printed.out
    assert "paper-movie does not fit" in printed.err and "what helps" in printed.err
    half = runner.invoke(app, ["plan", "smoke", "--tflops", "3"])
    assert isinstance(half.exception, RecnbError)


def test_the_page_is_what_the_code_says():
    """``python benchmarks/scale.py`` writes it anew."""
    script = runpy.run_path(str(root() / "benchmarks" / "scale.py"))
    page = (root() / "docs" / "scale.md").read_text(encoding="utf-8")
    assert script["renewed"](page) == page


def test_memory_is_the_sum_of_its_parts():
    profile = load("paper-movie")
    for row in plan(profile, stated(profile, 80)).stages:
        assert all(size >= 0 for size in row.memory.values())
        assert not row.memory or row.gib > sum(row.memory.values()) / GIB
