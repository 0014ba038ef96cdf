import copy

import numpy as np
import pandas as pd
import pytest
import torch

from recnb.artifacts import Stage
from recnb.controls import Share
from recnb.engine.losses import title_mask
from recnb.lm.tokenizer import title_tokens
from recnb.ppo.prompts import TASKS, failing, rl_requests, task_of
from recnb.ppo.trainer import (
    both_trainable,
    merged,
    pad_batch,
    train_ppo,
    visiting_order,
    with_adapters,
)
from recnb.ppo.trend import read_ledger
from recnb.requests import Response
from recnb.sft import train_sft


@pytest.fixture
def setup(language_model, world, teacher, smoke):
    model, codec = language_model
    requests = rl_requests(
        24, range(50), world[1], world[0], teacher, smoke.data, 2, 4, np.random.default_rng(0)
    )
    few = {"prompts": 4, "samples": 2, "epochs": 2, "minibatches": 1, "checkpoints": 1}
    knobs = smoke.ppo.model_copy(update=few | {"steps": 2})
    return copy.deepcopy(model), codec, requests, knobs


def test_requests_take_turns(setup):
    kinds = [type(r.control).__name__ for r in setup[2][:6]]
    assert kinds == ["NoControl", "Include", "Exclude", "AtMost", "AtLeast", "About"]
    assert all(2 <= r.k <= 4 for r in setup[2])


def test_ppo_updates_actor_critic_and_head_but_not_the_reference(setup, world, teacher, tmp_path):
    model, codec, requests, knobs = setup
    frozen = {k: v.clone() for k, v in model.state_dict().items()}
    tuned, rows = train_ppo(
        model, codec, requests, teacher, world[0], knobs, 0, tmp_path, 30, autocast=False
    )
    first = next(row for row in rows if "kl" in row)
    assert abs(first["kl"]) < 1e-5, "policy and reference agree at the first step"
    state = tuned.state_dict()

    def plain(name):
        return name.replace("base_model.model.", "").replace(".base_layer", "")

    for name, weight in frozen.items():
        kept = [v for k, v in state.items() if plain(k) == name]
        assert kept and torch.equal(kept[0], weight), name
    for adapter in ("actor", "critic"):
        assert max(v.abs().max() for k, v in state.items() if f"lora_B.{adapter}" in k) > 0
    critic = {k: v for k, v in state.items() if "critic" in k}
    heads = [v for k, v in critic.items() if "v_head" in k and k.endswith("weight")]
    assert heads and heads[0].abs().max() > 0, "the value head learns"
    assert (tmp_path / "actor" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "checkpoints" / "run").exists()


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("distinct", [16, 6])
def test_a_resumed_training_ends_where_an_undisturbed_one_does(
    setup, world, teacher, tmp_path, distinct
):
    model, codec, requests, knobs = setup
    requests = requests[:distinct]  # fewer than the training visits: they return
    knobs = knobs.model_copy(update={"steps": 4, "checkpoints": 4})

    def train(folder, show=lambda row: None):
        given = copy.deepcopy(model), codec, requests, teacher, world[0], knobs, 0, folder, 30
        return train_ppo(*given, show, autocast=False)

    def cut(row):
        if row["step"] == 6:  # the third of four batches; the last checkpoint may be of step 4
            raise PowerCut

    calm, _ = train(tmp_path / "calm")
    with pytest.raises(PowerCut):
        train(tmp_path / "rough", cut)
    resumed, _ = train(tmp_path / "rough")
    expected, found = calm.state_dict(), resumed.state_dict()
    trained = [name for name in expected if "lora" in name or "v_head" in name]
    assert trained and all(torch.equal(expected[name], found[name]) for name in trained)


def test_sampling_uses_the_merged_adapter_and_gives_the_weights_back(setup):
    model, codec, _, _ = setup
    peft = with_adapters(copy.deepcopy(model), 4, 8).eval()
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            draws = torch.Generator().manual_seed(len(name))
            torch.nn.init.normal_(weight, std=0.1, generator=draws)
    before = {name: weight.clone() for name, weight in peft.state_dict().items()}
    prompt = torch.tensor([codec.prompt("hello")])
    with torch.no_grad():
        apart = peft(input_ids=prompt).logits
        with merged(peft, "actor"):
            together = peft(input_ids=prompt).logits
        assert torch.allclose(apart, together, atol=1e-4)
        with peft.disable_adapter():
            assert not torch.allclose(apart, peft(input_ids=prompt).logits, atol=1e-2)
        assert torch.equal(apart, peft(input_ids=prompt).logits)
    assert all(torch.equal(before[name], weight) for name, weight in peft.state_dict().items())


def test_joint_backward_gives_the_single_adapter_gradient(setup):
    model, codec, _, _ = setup
    peft = with_adapters(copy.deepcopy(model), 4, 4)
    for name, weight in peft.named_parameters():
        if "lora_B" in name or "v_head" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
    batch = pad_batch([codec.prompt("hello")], [codec.answer("1. x")], codec.pad, "cpu")

    def actor_loss():
        peft.set_adapter("actor")
        both_trainable(peft)
        return peft(input_ids=batch["ids"]).logits.logsumexp(-1).mean()

    def critic_loss():
        peft.set_adapter("critic")
        both_trainable(peft)
        inner = peft.get_base_model()
        return inner.v_head(inner.model(input_ids=batch["ids"]).last_hidden_state).mean()

    def gradients():
        found = {n: p.grad for n, p in peft.named_parameters() if ".actor" in n}
        return {n: grad.clone() for n, grad in found.items() if grad is not None}

    actor_loss().backward()
    alone = gradients()
    peft.zero_grad()
    (actor_loss() + critic_loss()).backward()
    joint = gradients()
    assert alone and max(g.abs().max() for g in alone.values()) > 0
    assert all(torch.allclose(alone[n], joint[n], atol=1e-7) for n in alone)


def test_title_mask(language_model, world):
    titles = title_tokens(language_model[1].tokenizer, world[0])
    mask = title_mask(titles, language_model[0].config.vocab_size)
    if titles is None:
        assert mask is None
    else:
        assert mask[titles[5]] and mask.sum() == len(world[0])


@pytest.mark.parametrize("rank", [0, 4])
def test_a_training_that_ended_is_read_back_until_its_stage_ends(setup, tmp_path, smoke, rank):
    """A stopped start finds v2, v1, ... trained; after the stage's end, a new one trains anew."""
    model, codec, _, _ = setup
    frame = pd.DataFrame({"prompt": ["hello"] * 4, "completion": ["1. x"] * 4})
    few = {"batch_size": 2, "evaluations": 1, "checkpoints": 1, "repeat_weight": 0.0}
    knobs = smoke.sft.model_copy(update=few | {"rank": rank})
    stage = Stage("04_sft", smoke, tmp_path)
    shown = []

    def train(key=stage.key):
        given = copy.deepcopy(model), codec, frame, frame, None, knobs, 0, stage.folder
        return train_sft(*given, shown.append, autocast=False, key=key)

    first, rows = train()
    count = len(shown)
    again, read = train()
    assert len(shown) == count > 0 and read == rows, "nothing was trained"
    prompt = torch.tensor([codec.prompt("hello")])
    with torch.no_grad():
        before, after = (one(input_ids=prompt).logits for one in (first, again))
    assert torch.allclose(before, after, atol=1e-5)
    train(key="other knobs")
    assert len(shown) == 2 * count
    stage.finish()
    assert not list(stage.folder.rglob(".finished.json"))
    train()
    assert len(shown) == 3 * count


def test_the_critic_starts_at_the_mean_return(setup, world, teacher, tmp_path):
    model, codec, requests, knobs = setup

    def first_step(**switches):
        few = knobs.model_copy(update={"steps": 1, "epochs": 1} | switches)
        given = copy.deepcopy(model), codec, requests, teacher, world[0], few, 0
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        tuned, rows = train_ppo(*given, folder, 30, autocast=False)
        return rows[0], tuned.state_dict()

    zero, _ = first_step()
    mean, state = first_step(critic_start="mean")
    assert zero["reward"] == mean["reward"], "the same answers"
    assert mean["value_loss"] < zero["value_loss"]
    bias = [v for k, v in state.items() if "v_head" in k and "critic" in k and k.endswith("bias")]
    assert len(bias) == 1 and abs(bias[0].item()) > 0.05


def test_answers_of_a_prompt_are_compared_with_each_other(setup, world, teacher, tmp_path):
    model, codec, requests, knobs = setup
    compared = knobs.model_copy(update={"baseline": "answers", "schedule": "constant"})
    plain = knobs.model_copy(update={"schedule": "constant"})
    logs = []
    for name, chosen in (("plain", plain), ("compared", compared)):
        given = copy.deepcopy(model), codec, requests, teacher, world[0], chosen, 0
        _, rows = train_ppo(*given, tmp_path / name, 30, autocast=False)
        logs.append([row for row in rows if "reward" in row])
    assert logs[0][0]["reward"] == logs[1][0]["reward"], "what is logged is the whole reward"
    assert logs[0][0]["value_loss"] != logs[1][0]["value_loss"]
    assert len({row["learning_rate"] for row in logs[1][1:]}) == 1
    rows = read_ledger(tmp_path / "plain" / "rewards.jsonl")
    assert len(rows) == knobs.steps * knobs.prompts * knobs.samples
    step = [row["reward"] for row in rows if row["step"] == 0]
    assert np.mean(step) == pytest.approx(logs[0][0]["reward"], abs=1e-3)
    assert not list((tmp_path / "plain" / "checkpoints").iterdir()), "nothing is left behind"


def test_tasks_that_fail_are_drawn_more_often(setup, world, teacher, smoke):
    catalog, requests = world[0], setup[2]
    answers = []
    for request in requests:  # every list obeys, but those about a share
        fresh = [i for i in range(1, len(catalog)) if i not in request.history]
        items = request.control.select(fresh, request.k, catalog) or fresh[: request.k]
        if isinstance(request.control, Share):
            items = items[:-1]
        answers.append(Response("", [], items))
    odds = failing(requests, answers, catalog)
    assert sum(odds.values()) == pytest.approx(1) and set(odds) == set(TASKS)
    assert odds["I2~"] == odds["I2<="] > 3 * odds["I1+"] > 0
    given = range(50), world[1], catalog, teacher, smoke.data, 2, 4
    drawn = rl_requests(400, *given, np.random.default_rng(0), (), odds)
    shares = sum(task_of(r.control).startswith("I2") for r in drawn)
    assert abs(shares / 400 - sum(v for k, v in odds.items() if "I2" in k)) < 0.08


def test_every_prompt_comes_as_often_as_the_others():
    order = visiting_order(6, 20, 0)
    assert len(order) == 20 and order[:6] == list(range(6))
    assert sorted(order[6:12]) == sorted(order[12:18]) == list(range(6))
    assert order[6:12] != order[12:18] and visiting_order(30, 20, 0) == list(range(20))
