"""What makes large models fit: 16-bit weights, recomputed activations, pieces of bounded size."""

import copy
import gc
import weakref
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model

from recnb import RecnbError
from recnb.baselines import tallrec
from recnb.controls import NoControl
from recnb.engine import shared
from recnb.engine.beside import Beside
from recnb.engine.cache import RaggedCache, feed
from recnb.engine.decoding import decode
from recnb.engine.losses import next_token_loss
from recnb.engine.packed import neighbours
from recnb.engine.shared import EveryMinutes, refuse_uneven, share, uncast_lora
from recnb.instructions.templates import numbered
from recnb.lm.loading import OneAtATime, adapted, mini_model
from recnb.lm.recommender import LanguageModelRecommender, drafting
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer, title_tokens
from recnb.ppo import trainer
from recnb.ppo.prompts import rl_requests
from recnb.ppo.trainer import ppo_arguments, rolling_out, sample_answers, train_ppo, with_adapters
from recnb.profile import Compute, load
from recnb.requests import Request
from recnb.sft import lora, train_sft


@pytest.fixture(scope="module")
def language_model(smoke, world):
    """A random mini model with whole titles: (model, codec)."""
    codec = Codec(
        build_tokenizer(world[0], [("What is 2 plus 3?", "2 plus 3 is 5.")] * 5, 400, True)
    )
    return mini_model(len(codec.tokenizer), smoke.model, codec, 0).eval(), codec


@pytest.fixture
def ppo(language_model, world, teacher, smoke):
    """``train(folder, compute, ...)``: a short RL stage, always from the same start."""
    model, codec = language_model
    requests = rl_requests(
        16, range(50), world[1], world[0], teacher, smoke.data, 2, 4, np.random.default_rng(0)
    )
    few = {"steps": 2, "prompts": 4, "samples": 2, "epochs": 1, "minibatches": 2, "checkpoints": 1}
    few |= {"learning_rate": 0.01, "critic_learning_rate": 0.01}

    def train(folder, compute=None, dtype=torch.float32, autocast=False, show=None, **switches):
        knobs = smoke.ppo.model_copy(update=few | switches)
        given = copy.deepcopy(model).to(dtype), codec, requests, teacher, world[0], knobs, 0
        show = show or (lambda row: None)
        return train_ppo(*given, folder, 30, show, autocast, compute=compute)

    return train


@pytest.fixture
def sft(language_model, world, smoke):
    """``train(folder, compute, ...)``: a short SL stage on answers of different lengths."""
    model, codec = language_model
    lists = [list(range(n, n + 1 + n % 5)) for n in range(1, 23)]
    frame = pd.DataFrame(
        [{"prompt": "films " * (1 + n[0] % 3), "completion": numbered(n, world[0])} for n in lists]
    )
    frame["task"] = "I0"
    titles = title_tokens(codec.tokenizer, world[0])
    few = {"batch_size": 8, "epochs": 1, "rank": 4, "learning_rate": 0.01, "checkpoints": 1}
    few |= {"evaluations": 1, "repeat_weight": 0.5}

    def train(folder, compute=None, dtype=torch.float32, autocast=False, **switches):
        knobs = smoke.sft.model_copy(update=few | switches)
        given = copy.deepcopy(model).to(dtype), codec, frame, frame[:6], titles, knobs, 0, folder
        return train_sft(*given, autocast=autocast, compute=compute)

    return train


def trained(model):
    """All that a training moved, as one vector."""
    state = model.state_dict()
    names = [n for n in sorted(state) if "lora_B" in n or "v_head.modules_to_save.critic" in n]
    return torch.cat([state[name].flatten() for name in names])


def close(found, expected):
    return (found - expected).norm() < 1e-3 * expected.norm() and expected.norm() > 0


def scored(model, prompt, answer):
    """Log-probabilities of an answer as decoding sees them: out of a cache."""
    cache = RaggedCache(model.config.num_hidden_layers, model.device)
    with torch.no_grad():
        first, _ = feed(model, cache, [prompt], [1])
        later, _ = feed(model, cache, [answer[:-1]], [len(answer) - 1])
    rows = torch.log_softmax(torch.cat([first, later]).float() / 0.7, -1)
    return rows[range(len(answer)), answer]


@pytest.mark.parametrize("autocast", [False, True])
def test_rollouts_in_bfloat16_come_from_the_policy_that_is_trained(
    ppo, tmp_path, monkeypatch, autocast
):
    rollouts, passes, weights = [], [], []
    plain_decode, plain_scores = trainer.decode, trainer.RecPPOTrainer._scored

    def watched(model, codec, prompts, *sampling, **more):
        answers = plain_decode(model, codec, prompts, *sampling, **more)
        rollouts.append([scored(model, *pair) for pair in zip(prompts, answers, strict=True)])
        layer = model.get_decoder().layers[0].mlp.up_proj
        weights.append(layer.get_base_layer().weight.clone())
        return answers

    def scores(self, model, batch):
        found = plain_scores(self, model, batch)
        passes.append([x.clone() for x in found] + [batch["completion_mask"].bool()])
        return found

    monkeypatch.setattr(trainer, "decode", watched)
    monkeypatch.setattr(trainer.RecPPOTrainer, "_scored", scores)
    tuned, _ = ppo(tmp_path, dtype=torch.bfloat16, autocast=autocast, steps=3, temperature=0.7)
    assert all(p.dtype == torch.float32 for n, p in tuned.named_parameters() if "lora_" in n)
    assert all(torch.equal(weights[0], later) for later in weights), "nothing was merged"
    found = torch.cat(rollouts[-1])
    log_probs, _, _, reference, mask = passes[-1]
    moved = (log_probs - reference)[mask].abs().mean()
    error = (found - log_probs[mask]).abs().mean()
    assert moved > 0.1 and error < 0.1 * moved, (moved, error)


def test_float32_rollouts_stay_merged_and_outside_autocast(language_model):
    peft = with_adapters(copy.deepcopy(language_model[0]), 4, 4)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_B.actor" in name:
                weight.fill_(0.1)
    weight = peft.get_base_model().get_decoder().layers[0].mlp.up_proj.get_base_layer().weight
    before = weight.clone()
    with rolling_out(peft, autocast=True):
        assert not torch.equal(weight, before) and not torch.is_autocast_enabled("cpu")
    assert torch.equal(weight, before)


def test_what_rl_changed_survives_reading_it_back_into_bfloat16(ppo, sft, tmp_path):
    """SL and RL adapters, one on the other, as evaluation reads them."""
    base, _ = sft(tmp_path / "sl", dtype=torch.bfloat16)
    supervised = adapted(base.unload(), tmp_path / "sl" / "adapter")
    layer = supervised.get_decoder().layers[0].mlp.up_proj
    assert isinstance(layer, Beside) and layer.weight.dtype == torch.bfloat16
    peft = with_adapters(supervised, 4, 2).eval()
    with torch.no_grad():  # as small as RL's updates are in its first steps
        for name, weight in peft.named_parameters():
            if "lora_B.actor" in name:
                torch.nn.init.normal_(weight, std=1e-4, generator=torch.Generator().manual_seed(1))
    peft.save_pretrained(tmp_path, selected_adapters=["actor"])
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        actor = peft(input_ids=ids).logits
        with peft.disable_adapter():
            reference = peft(input_ids=ids).logits
        peft.delete_adapter("critic")
        plain = adapted(peft.unload(), tmp_path / "actor")
        assert torch.equal(plain(input_ids=ids).logits, actor)
    assert not torch.equal(actor, reference)
    updates = [m for m in plain.modules() if isinstance(m, Beside) and m.up.abs().max() < 1e-3]
    assert len(updates) == 7 * plain.config.num_hidden_layers and all(u.up.any() for u in updates)


def test_bfloat16_weights_are_not_trained_themselves():
    fits = {"model.dtype": "bfloat16", "sft.rank": 4, "sft.muon_learning_rate": 0}
    load("smoke", fits)
    for wrong in ({"sft.rank": 0}, {"sft.train_embeddings": True}):
        with pytest.raises(RecnbError, match="model.dtype"):
            load("smoke", fits | wrong)


class Kept:
    """Counts the numbers that passes keep for their backward passes, at the highest point."""

    def __init__(self):
        self.now = self.most = 0

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept[0])
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        return self.hooks.__exit__(*error)

    def keep(self, tensor):
        own = self

        class Released:
            def __init__(self):
                own.now += tensor.numel()
                own.most = max(own.most, own.now)

            def __del__(self):
                own.now -= tensor.numel()

        return tensor.detach(), Released()


TIGHT = Compute(checkpointing=True, micro_tokens=60)


def test_sl_in_pieces_with_recomputed_activations_makes_the_same_update(sft, tmp_path):
    with Kept() as all_kept:
        whole, rows = sft(tmp_path / "whole")
    ends = trained(whole)
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    for name, compute, share_of_memory in (
        ("pieces", Compute(micro_tokens=60), 0.5),
        ("recomputed", Compute(checkpointing=True), 0.8),
        ("both", TIGHT, 0.4),
    ):
        with Kept() as kept:
            found, logged = sft(tmp_path / name, compute)
        assert close(trained(found), ends), name
        assert kept.most < share_of_memory * all_kept.most, name
        again = [row["eval_loss"] for row in logged if "eval_loss" in row]
        assert np.allclose(again, losses, rtol=1e-4)


def test_accumulation_weights_tokens_alike(sft, tmp_path):
    whole, pieces = sft(tmp_path / "whole")[0], sft(tmp_path / "pieces", accumulation=4)[0]
    assert close(trained(pieces), trained(whole))


@pytest.mark.parametrize("train_on_inputs", [True, False])
def test_tallrec_in_pieces_adds_up_to_the_same_gradient(language_model, world, train_on_inputs):
    """With a limit that nothing exceeds it is the same pass, to the bit."""
    model, codec = copy.deepcopy(language_model[0]).train(), language_model[1]
    examples = [
        tallrec.example("movie", range(1, 2 + n), [9], 8, n % 2, world[0].titles) for n in range(6)
    ]
    chosen = [
        (row, one.label) for row, one in zip(tallrec.encode(examples, codec), examples, strict=True)
    ]
    longest = max(len(row[0]) + 1 for row, _ in chosen)
    found = {}
    for most in (0, 7 * longest, 2 * longest, 1):
        model.zero_grad()
        with Kept() as kept:
            loss = tallrec.add_gradients(model, codec, chosen, train_on_inputs, False, most)
        weights = [w.grad.flatten() for w in model.parameters()]
        found[most] = loss, torch.cat(weights), kept.most
    whole = found[0]
    assert found[7 * longest][0] == whole[0] and torch.equal(found[7 * longest][1], whole[1])
    for most, share_of_memory in ((2 * longest, 0.6), (1, 0.3)):
        assert found[most][0] == pytest.approx(whole[0], rel=1e-5)
        assert (found[most][1] - whole[1]).norm() < 1e-5 * whole[1].norm()
        assert found[most][2] < share_of_memory * whole[2]


def test_rl_in_pieces_with_recomputed_activations_makes_the_same_update(ppo, tmp_path):
    with Kept() as all_kept:
        whole, rows = ppo(tmp_path / "whole")
    for name, compute, share_of_memory in (
        ("pieces", Compute(micro_tokens=150), 0.8),
        ("both", Compute(checkpointing=True, micro_tokens=150), 0.6),
    ):
        with Kept() as kept:
            found, logged = ppo(tmp_path / name, compute)
        assert close(trained(found), trained(whole)), name
        assert kept.most < share_of_memory * all_kept.most, name
        for one, other in zip(rows, logged, strict=True):
            for number in ("loss", "kl", "entropy", "clipped", "value_loss"):
                assert one.get(number, 0) == pytest.approx(other.get(number, 0), abs=1e-4), number


@given(
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    most=st.integers(0, 120),
    pieces=st.integers(1, 5),
    world=st.integers(1, 4),
)
def test_every_row_is_in_one_piece_and_no_piece_too_large(costs, most, pieces, world):
    shares = [share(costs, most, pieces, rank, world) for rank in range(world)]
    rows = [row for groups in shares for group in groups for row in group]
    assert sorted(rows) == list(range(len(costs)))
    for groups in shares:
        assert all(groups)
        for group in groups:
            assert not most or len(group) == 1 or sum(costs[row] for row in group) <= most
        assert most or len(groups) <= pieces
    counts = [sum(map(len, groups)) for groups in shares]
    assert max(counts) - min(counts) <= 1
    together = [row for group in neighbours(costs, most) for row in group]
    assert together == list(range(len(costs)))


def test_losses_of_pieces_add_up(language_model, world, rng):
    titles = title_tokens(language_model[1].tokenizer, world[0])
    vocabulary = language_model[0].config.vocab_size
    is_title = torch.zeros(vocabulary, dtype=torch.bool)
    is_title[torch.tensor(titles[1:] if titles is not None else [7, 8, 9])] = True
    ids = torch.from_numpy(rng.integers(0, vocabulary, (4, 12)))
    ids[:, 3::4] = is_title.nonzero()[:, 0][:3].repeat(4, 1)
    keep = [(0, 3), (0, 7), (0, 8), (1, 11), (2, 2), (3, 3), (3, 7), (3, 11)]  # uneven
    places = torch.tensor(keep)
    logits = torch.randn(len(keep), vocabulary, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    whole = next_token_loss(logits, ids, places, is_title, 0.5)
    whole.backward()
    gradient, total = logits.grad.clone(), 0.0
    logits.grad = None
    targets = ids[places[:, 0], places[:, 1]]
    counts = len(keep), int(is_title[targets].sum())
    for part in (slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 8)):
        piece = next_token_loss(logits[part], ids, places[part], is_title, 0.5, counts)
        piece.backward()
        total += piece.item()
    assert total == pytest.approx(whole.item(), rel=1e-5)
    assert torch.allclose(logits.grad, gradient, atol=1e-7)


def test_a_small_cache_changes_no_answer(language_model, monkeypatch):
    model, codec = language_model
    prompts = [codec.prompt("films " * n) for n in (1, 4, 2, 2, 3)]
    largest, grown = [], RaggedCache._grown

    def watched(self, old, new):
        made = grown(self, old, new)
        largest.append(made.numel() * made.element_size() * 2 * model.config.num_hidden_layers)
        return made

    monkeypatch.setattr(RaggedCache, "_grown", watched)
    numbers = torch.rand(len(prompts), 12, generator=torch.Generator().manual_seed(0))
    together = (
        decode(model, codec, prompts, 12),
        decode(model, codec, prompts, 12, 0.7, numbers=numbers),
    )
    size = max(largest)
    largest.clear()
    room = {"cache_bytes": size // 2}
    apart = (
        decode(model, codec, prompts, 12, **room),
        decode(model, codec, prompts, 12, 0.7, numbers=numbers, **room),
    )
    assert apart == together and apart[0] != apart[1]
    assert max(largest) <= size // 2
    assert decode(model, codec, prompts, 12, cache_bytes=1) == together[0], "one at a time"


def test_guessing_ahead_samples_the_same_numbers(language_model, world):
    """The n-th token of an answer is drawn by the n-th number, guessed or not."""
    model, codec = language_model
    draft = drafting(codec, world[0])
    prompts, numbers = [codec.prompt("films")] * 4, torch.rand(4, 20)
    plain = decode(model, codec, prompts, 20, 0.5, numbers=numbers)
    drafts = [draft(3) for _ in prompts] if draft else None
    assert decode(model, codec, prompts, 20, 0.5, drafts=drafts, numbers=numbers) == plain


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("compute", [None, Compute(cache_gib=1e-3, micro_tokens=150)])
def test_a_checkpoint_by_the_clock_goes_on_as_if_nothing_happened(
    ppo, tmp_path, monkeypatch, compute
):
    """Four steps of two updates: the clock asks after the first update, it is heard at a step."""
    clock = iter(range(0, 10**6, 40))
    monkeypatch.setattr(shared, "monotonic", lambda: next(clock))
    calm, _ = ppo(tmp_path / "calm", compute, steps=4)

    def cut(row):
        if row["step"] == 6:
            raise PowerCut

    by_clock = (compute or Compute()).model_copy(update={"checkpoint_minutes": 1})
    with pytest.raises(PowerCut):
        ppo(tmp_path / "rough", by_clock, show=cut, steps=4)
    kept = {path.name for path in (tmp_path / "rough" / "checkpoints" / "run").glob("checkpoint-*")}
    assert kept == {"checkpoint-4"}
    resumed, _ = ppo(tmp_path / "rough", by_clock, steps=4)
    assert torch.equal(trained(calm), trained(resumed))


def test_the_clock_starts_anew_with_each_checkpoint(monkeypatch):
    now = [0]
    monkeypatch.setattr(shared, "monotonic", lambda: now[0])

    class Plain:
        global_step, should_save = 0, False

    asked, control, callback = [], Plain(), EveryMinutes(2, updates=3)
    for step in range(1, 20):
        now[0], control.global_step, control.should_save = 60 * step, step, False
        callback.on_step_end(None, control, control)
        if control.should_save:
            asked.append(step)
            callback.on_save(None, control, control)
    assert asked == [3, 6, 9, 12, 15, 18]
    never = EveryMinutes(0)
    control.should_save = False
    never.on_step_end(None, control, control)
    assert not control.should_save


def test_batches_that_do_not_come_out_even_are_refused(smoke, sft, tmp_path, monkeypatch):
    refuse_uneven("sft.batch_size", 64, ("sft.accumulation", 16), ("processes", 4))
    with pytest.raises(RecnbError, match=r"sft.batch_size \(64\) .* \(16\) x processes \(3\)"):
        refuse_uneven("sft.batch_size", 64, ("sft.accumulation", 16), ("processes", 3))
    with pytest.raises(RecnbError, match=r"sft.batch_size \(8\).*\(3\)"):
        sft(tmp_path, accumulation=3)
    knobs = smoke.ppo.model_copy(update={"prompts": 4, "samples": 2, "minibatches": 3})
    with pytest.raises(RecnbError, match=r"ppo.prompts x ppo.samples \(8\).*minibatches \(3\)"):
        ppo_arguments(knobs, 0, tmp_path, False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecnbError, match=r"ppo.prompts \(4\).*processes \(3\)"):
        ppo_arguments(knobs.model_copy(update={"minibatches": 1}), 0, tmp_path, False)
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_one_model_is_open_at_a_time(language_model, world, tmp_path):
    model, codec = language_model
    model.save_pretrained(tmp_path / "base")
    codec.tokenizer.save_pretrained(tmp_path / "base")
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.get_decoder().norm.weight)
    other.save_pretrained(tmp_path / "whole")
    opening, asked = OneAtATime(str(tmp_path / "base"), "float32"), []

    def opened(adapters):
        asked.append(adapters)
        return opening.open(adapters)

    systems = {
        name: LanguageModelRecommender(partial(opened, adapters), codec, world[0])
        for name, adapters in (("base", []), ("whole", [tmp_path / "whole"]))
    }
    assert not asked, "nothing is opened before it is asked"
    requests = [Request(0, (1, 2), (1, 2), NoControl(), k) for k in (1, 2)]
    answers = {name: system.recommend(requests) for name, system in systems.items()}
    assert answers["base"] == LanguageModelRecommender(model, codec, world[0]).recommend(requests)
    assert answers["whole"] != answers["base"]
    first = weakref.ref(opening.open([]))
    assert opening.open([]) is first()
    opening.open([tmp_path / "whole"])
    gc.collect()
    assert first() is None, "the one before is gone"


def test_answers_that_measure_the_reward_do_not_depend_on_the_budget(
    language_model, world, teacher, smoke
):
    requests = rl_requests(
        6, range(50), world[1], world[0], teacher, smoke.data, 2, 4, np.random.default_rng(0)
    )
    given = *language_model, requests, world[0], smoke.ppo, 0, 20, 4
    large, small = (sample_answers(*given, Compute(cache_gib=size)) for size in (1, 1e-6))
    assert large == small


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_lora_s_own_casts_the_gradients_are_the_same_bit_for_bit(language_model, dtype):
    model = copy.deepcopy(language_model[0]).to(dtype)
    torch.manual_seed(0)
    peft = get_peft_model(model, lora(4, 4, rows={"embed_tokens": [7, 8]})).train()
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(3, model.config.vocab_size, (4, 24))
    ids[:, :2] = torch.tensor([7, 8])

    def learned(uncast):
        peft.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), uncast_lora(peft, uncast):
            logits = peft(input_ids=ids).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return {n: p.grad.clone() for n, p in peft.named_parameters() if p.requires_grad}

    before, after = learned(False), learned(True)
    assert before and all(grad.abs().max() > 0 for grad in before.values())
    for name, grad in before.items():
        assert torch.equal(grad, after[name]), name
    # Elsewhere the input is cast again.
    assert all(
        layer.cast_input_dtype_enabled for layer in peft.modules() if hasattr(layer, "lora_A")
    )
