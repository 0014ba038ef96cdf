"""PPO on trl's GRPOTrainer: its sampler, buffering, checkpoints, logs; our rewards, critic, loss.

trl 1.16 has no PPO. Four places of GRPOTrainer are overridden: how a batch of answers is made and
scored (``_generate_and_score_completions``), the loss (``_compute_loss``), the optimizer's two
learning rates, and loading a checkpoint. Actor and critic are two LoRA adapters on one frozen base,
which is the SL model: with adapters off it is the reference of Equation 6.
"""

import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from trl import GRPOConfig, GRPOTrainer

from recnb.artifacts import FINISHED, write_json
from recnb.engine.decoding import decode
from recnb.engine.losses import chosen_and_entropy
from recnb.engine.packed import ending_at, pack_answers, packed_attention
from recnb.lm.loading import adapted
from recnb.lm.parsing import parse
from recnb.lm.recommender import drafting, request_prompt
from recnb.ppo import ppo_math
from recnb.ppo.rewards import batch_scores
from recnb.ppo.trend import Ledger
from recnb.sft import (
    AveragedGradients,
    History,
    _printer,
    checkpoint_folder,
    finished,
    latest_checkpoint,
    lora,
)

LEDGER = "rewards.jsonl"


def with_adapters(model, rank, alpha):
    """Actor and critic adapters on the SL model, and the critic's value head.

    The head starts at zero, so the first advantages are those of the rewards alone; it is trained
    and saved with the critic.
    """
    model.v_head = torch.nn.Linear(model.config.hidden_size, 1, bias=True)
    torch.nn.init.zeros_(model.v_head.weight)
    torch.nn.init.zeros_(model.v_head.bias)
    config = lora(rank, alpha)
    critic = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=config.target_modules,
        task_type="CAUSAL_LM",
        modules_to_save=["v_head"],
    )
    peft = get_peft_model(model, config, adapter_name="actor")
    peft.add_adapter("critic", critic)
    return both_trainable(peft)


def both_trainable(model):
    """Make both adapters trainable: a switch to one of them silently freezes the other."""
    model.set_requires_grad(["actor", "critic"], True)
    return model


@contextmanager
def merged(model, adapter):
    """An adapter as part of the weights, as fast as none; afterwards they are back, bit for bit."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    before = [weight.data for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        weight.data = weight.data + layer.get_delta_weight(adapter).to(weight.dtype)
    try:
        with model.disable_adapter():
            yield
    finally:
        for weight, kept in zip(weights, before, strict=True):
            weight.data = kept


def score_answers(requests, responses, teacher, catalog, knobs):
    """The rule-based reward in trl's place for reward functions."""
    return batch_scores(requests, responses, teacher, catalog, knobs.fidelity, knobs.hidden_seen)


class RecPPOTrainer(AveragedGradients, GRPOTrainer):
    """PPO with item-level and list-level rewards.

    Args:
        model: from ``with_adapters``.
        args: ``GRPOConfig`` from ``ppo_arguments``.
        requests: list of ``Request``; the dataset's column ``index`` points into it.
        codec, teacher, catalog: to write prompts, rank and score.
        knobs: the ``ppo`` section of a profile.
        max_new: most tokens of an answer.
    """

    def __init__(
        self,
        model,
        args,
        dataset,
        requests,
        codec,
        teacher,
        catalog,
        knobs,
        max_new,
        seed,
        callbacks,
    ):
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[score_answers],
            train_dataset=dataset,
            processing_class=codec.tokenizer,
            callbacks=callbacks,
        )
        self.requests, self.codec, self.teacher, self.catalog = requests, codec, teacher, catalog
        self.knobs, self.max_new = knobs, max_new
        self.draft = drafting(codec, catalog)
        self.seed = seed + self.accelerator.process_index
        self.generator = torch.Generator(device=model.device)
        self.ledger = None

    def create_optimizer(self, model=None):
        """AdamW with one learning rate for the actor and one for the critic."""
        actor, critic = [], []
        for name, parameter in both_trainable(self.model).named_parameters():
            if parameter.requires_grad:
                (critic if ".critic" in name else actor).append(parameter)
        groups = [
            {"params": actor, "lr": self.knobs.learning_rate},
            {"params": critic, "lr": self.knobs.critic_learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        return self.optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        both_trainable(self.model)

    def _generate_and_score_completions(self, inputs):
        """Answers with all the loss needs: tokens, masks, old log-probs, values, advantages."""
        knobs = self.knobs
        requests = [self.requests[row["index"]] for row in inputs]
        prompts = [self.codec.prompt(row["prompt"]) for row in inputs]
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad():
            both_trainable(model).set_adapter("actor")
            model.eval()
            drafts = [self.draft(r.k) for r in requests] if self.draft else None
            # Each step has a seed of its own: a resumed training draws what it would have drawn.
            draw = np.random.default_rng([self.seed, 119, self.state.global_step])
            self.generator.manual_seed(int(draw.integers(2**62)))
            sampling = self.max_new, knobs.temperature, self.generator
            # The trainer's autocast sits around the outer model; prepacked float32 is faster.
            plain = model.get_base_model()
            with merged(model, "actor"):
                answers = decode(plain, self.codec, prompts, *sampling, drafts=drafts)
            model.train()
            batch = pad_batch(prompts, answers, self.codec.pad, model.device)
            batch["prompt"] = torch.tensor([row["index"] for row in inputs], device=model.device)
            # The loss's own precision: the first ratio is exactly 1.
            with self.compute_loss_context_manager():
                log_probs, entropy = self._log_probs(model, batch, "actor")
                values = self._values(model, batch)
                with model.disable_adapter():
                    reference, _ = self._log_probs(model, batch, None)
        both_trainable(model)
        responses = [parse(self.codec.decode(a), self.catalog, len(a)) for a in answers]
        score_all = self.reward_funcs[0]
        scores = score_all(requests, responses, self.teacher, self.catalog, knobs)
        mask = batch["completion_mask"].float()
        lists = knobs.list_weight * torch.tensor([score.list for score in scores]).to(mask)
        items = [s.item if knobs.item_reward else np.zeros(len(s.item)) for s in scores]
        compared, whole = items, lists
        if knobs.baseline == "answers":
            compared = ppo_math.title_by_title(items, batch["prompt"].cpu())
            whole = ppo_math.leave_one_out(lists, batch["prompt"])
        rewards = torch.zeros_like(mask)
        for row, answer in enumerate(answers):
            places = ppo_math.title_ends([self.codec.pieces[t] for t in answer])
            each, last = compared[row], len(answer) - 1
            rewards[row] = ppo_math.place_rewards(mask.shape[1], places, each, whole[row], last)
        kl = ppo_math.kl_penalty(log_probs, reference) * mask
        full = rewards - knobs.kl_weight * kl
        full = ppo_math.whiten(full, mask, shift_mean=False, add=self._add)
        if knobs.critic_start == "mean" and self.state.global_step == 0:
            values = self._start_critic(model, full, mask)
        known = values * mask
        advantages, returns = ppo_math.gae(full, known, mask, knobs.gamma, knobs.gae_lambda)
        earned = torch.tensor([score.sum() for score in items]).to(lists) + lists
        self._enter(batch["prompt"].tolist(), earned.tolist())
        self._note(requests, responses, scores, earned, kl, entropy, values, returns, mask)
        return batch | {
            "old_log_probs": log_probs,
            "old_values": values,
            "returns": returns,
            "advantages": ppo_math.whiten(advantages, mask, add=self._add),
        }

    def _start_critic(self, model, rewards, mask):
        """Let a critic that has learned nothing say the mean return of this batch everywhere."""
        knobs, nothing = self.knobs, torch.zeros_like(rewards)
        _, returns = ppo_math.gae(rewards, nothing, mask, knobs.gamma, knobs.gae_lambda)
        mean = self._add((returns * mask).sum()) / self._add(mask.sum())
        for name, parameter in model.named_parameters():
            if name.endswith("v_head.modules_to_save.critic.bias"):
                parameter.data.fill_(mean)
        return mean.expand_as(rewards)

    def _log_probs(self, model, batch, adapter):
        """Log-probs [B, T] and entropies [R] of the answers' tokens at the sampling temperature."""
        if adapter:
            model.set_adapter(adapter)
            both_trainable(model)
        packed, before = _packed(batch)
        with packed_attention(model), ending_at(model, before):
            logits = model(**packed, use_cache=False).logits[0].float() / self.knobs.temperature
        chosen = batch["completion_ids"][batch["completion_mask"].bool()]
        log_probs, entropy = chosen_and_entropy(logits, chosen)
        return _in_places(log_probs, batch["completion_mask"]), entropy

    def _values(self, model, batch):
        """Critic's value [B, T] of the state before each token of the answer."""
        model.set_adapter("critic")
        both_trainable(model)
        inner, (packed, before) = model.get_base_model(), _packed(batch)
        # The critic runs on a part of the model; the wrapper with autocast sits around the whole.
        device = batch["ids"].device.type
        autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=self.args.bf16)
        with autocast, packed_attention(inner), ending_at(inner, before):
            states = inner.model(**packed, use_cache=False).last_hidden_state[0]
        values = inner.v_head(states.float())[:, 0]
        model.set_adapter("actor")
        both_trainable(model)
        return _in_places(values, batch["completion_mask"])

    def _add(self, total):
        """Sum of a tensor over all processes."""
        return self.accelerator.reduce(total, reduction="sum")

    def _compute_loss(self, model, inputs):
        knobs, mask = self.knobs, inputs["completion_mask"].float()
        inner = self.accelerator.unwrap_model(model)
        log_probs, entropy = self._log_probs(inner, inputs, "actor")
        values = self._values(inner, inputs)
        count = self._add(mask.sum()) / self.accelerator.num_processes
        old, advantages = inputs["old_log_probs"], inputs["advantages"]
        policy, clipped = ppo_math.policy_loss(log_probs, old, advantages, mask, knobs.clip, count)
        old_values, returns = inputs["old_values"], inputs["returns"]
        updates = knobs.value_clip_after * knobs.epochs * knobs.minibatches
        near = knobs.clip if self.state.global_step >= updates else math.inf
        value = ppo_math.value_loss(values, old_values, returns, mask, near, count)
        spread = entropy.sum() / count
        notes = self._metrics["train"]
        notes["policy_loss"].append(policy.item())
        notes["value_loss"].append(value.item())
        notes["clipped"].append(clipped.item())
        return policy + knobs.value_weight * value - knobs.entropy_weight * spread

    def _enter(self, prompts, earned):
        """Note each answer's reward in the ledger, those of all processes."""
        pairs = gather_object(list(zip(prompts, earned, strict=True)))
        if self.accelerator.is_main_process:
            step = self.state.global_step // (self.knobs.epochs * self.knobs.minibatches)
            if self.ledger is None:
                self.ledger = Ledger(Path(self.args.output_dir).parent / LEDGER, step)
            self.ledger.add(step, *zip(*pairs, strict=True))

    def _note(self, requests, responses, scores, earned, kl, entropy, values, returns, mask):
        """Numbers of one batch of answers, for the plots.

        ``earned`` [B] is each answer's whole reward, nothing taken off.
        """
        pairs = list(zip(requests, responses, strict=True))
        item = [s.item.mean() if len(s.item) else -1.0 for s in scores]
        preference = [s.preference.mean() if len(s.item) else -1.0 for s in scores]
        control = [s.control.mean() if len(s.item) else -1.0 for s in scores]
        legal = [s.legal.mean() if len(s.legal) else 0.0 for s in scores]
        repeats = [1 - len(set(a.items)) / len(a.items) if a.items else 0.0 for a in responses]
        history = [np.mean([i in r.history for i in a.items] or [0]) for r, a in pairs]
        numbers = {
            "reward": earned.mean().item(),
            "item_reward": float(np.mean(item)),
            "list_reward": float(np.mean([s.list for s in scores])),
            "preference": float(np.mean(preference)),
            "control": float(np.mean(control)),
            "legal": float(np.mean(legal)),
            "repeats": float(np.mean(repeats)),
            "in_history": float(np.mean(history)),
            "correct_count": float(np.mean([len(a.items) == r.k for r, a in pairs])),
            "kl": ((kl * mask).sum() / mask.sum()).item(),
            "entropy": entropy.mean().item(),
            "explained_variance": ppo_math.explained_variance(values, returns, mask).item(),
        }
        for name, number in numbers.items():
            self._metrics["train"][name].append(number)


def _packed(batch):
    """``pack_answers`` of a batch."""
    real, answer = batch["attention"].bool(), batch["completion_mask"].bool()
    return pack_answers(batch["ids"], real, answer, batch["prompt"])


def _in_places(numbers, mask):
    """Numbers [R] of the places where ``mask`` is 1, in their places [B, T]; 0 elsewhere."""
    places = torch.zeros(mask.shape, dtype=numbers.dtype, device=numbers.device)
    return places.masked_scatter(mask.bool(), numbers)


def pad_batch(prompts, answers, pad, device):
    """Tensors of prompts (padded left) and answers (padded right).

    Returns:
        Dict: ids, attention [B, P+T]; completion_ids, completion_mask [B, T].
    """
    p, t = max(map(len, prompts)), max(map(len, answers))
    ids = torch.full((len(prompts), p + t), pad)
    attention = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, p - len(prompt) : p] = torch.tensor(prompt)
        ids[row, p : p + len(answer)] = torch.tensor(answer)
        attention[row, p - len(prompt) : p + len(answer)] = 1
    ids, attention = ids.to(device), attention.to(device)
    return {
        "ids": ids,
        "attention": attention,
        "completion_ids": ids[:, p:],
        "completion_mask": attention[:, p:],
    }


def ppo_arguments(knobs, seed, folder, autocast):
    """``GRPOConfig`` of a profile's ``ppo`` section."""
    batch = knobs.prompts * knobs.samples // knobs.minibatches
    updates = knobs.steps * knobs.epochs * knobs.minibatches
    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        num_generations=knobs.samples,
        steps_per_generation=knobs.minibatches,
        num_iterations=knobs.epochs,
        gradient_accumulation_steps=1,
        max_steps=updates,
        shuffle_dataset=False,  # ``visiting_order`` holds the order of the whole training
        beta=0.0,
        temperature=knobs.temperature,
        learning_rate=knobs.learning_rate,
        lr_scheduler_type={"linear": "linear", "constant": "constant_with_warmup"}[knobs.schedule],
        warmup_steps=max(1, updates // 20),
        max_grad_norm=1.0,
        bf16=autocast,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        logging_steps=knobs.epochs * knobs.minibatches,
        save_strategy="steps",
        save_steps=max(1, knobs.steps // knobs.checkpoints) * knobs.epochs * knobs.minibatches,
        save_total_limit=2,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def visiting_order(prompts, visits, seed):
    """Which prompt each place of the training has: all of them, then all again, shuffled anew.

    Written out, because a trainer that goes on in the second pass over its data would begin with
    the first one's order again.
    """
    rng, order = np.random.default_rng([seed, 120]), list(range(prompts))
    while len(order) < visits:
        order += rng.permutation(prompts).tolist()
    return order[:visits]


def train_ppo(
    model,
    codec,
    requests,
    teacher,
    catalog,
    knobs,
    seed,
    folder,
    max_new,
    show=lambda row: None,
    autocast=True,
    key="run",
):
    """Run the RL stage; continues from the last checkpoint under ``folder/checkpoints/<key>``.

    Args:
        model: the SL model, its adapter merged.
        requests: RL requests (``rl_requests``).
        folder: receives ``actor/``, ``critic/``, ``log.json`` and ``rewards.jsonl`` (``Ledger``).
        max_new: most tokens of an answer.
        show: called with every logged row.
        key: name of these settings, see ``recnb.sft.train_sft``.

    Returns:
        ``(model, rows)``: the PEFT model with both adapters (actor active) and the logged rows.
    """
    folder = Path(folder)
    if finished(folder, key):
        return adapted(model, folder / "actor"), json.loads((folder / "log.json").read_text())
    torch.manual_seed(seed)
    peft = with_adapters(model, knobs.rank, knobs.alpha)
    prompts = [request_prompt(r, catalog, seed) for r in requests]
    checkpoints = checkpoint_folder(folder, key)
    arguments = ppo_arguments(knobs, seed, checkpoints, autocast)
    visits = knobs.steps * knobs.prompts * arguments.world_size  # a process takes its own prompts
    order = visiting_order(len(requests), visits, seed)
    dataset = Dataset.from_dict({"prompt": [prompts[i] for i in order], "index": order})
    arguments._n_gpu = min(arguments.n_gpu, 1)
    callbacks = [History(show)]
    trainer = RecPPOTrainer(
        peft, arguments, dataset, requests, codec, teacher, catalog, knobs, max_new, seed, callbacks
    )
    trainer.remove_callback(_printer())
    trainer.train(resume_from_checkpoint=latest_checkpoint(checkpoints))
    # Without the trainer's autocast.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model.set_adapter("actor")
    for config in model.peft_config.values():
        config.base_model_name_or_path = "the SL model of this run"  # not a path of this machine
    model.save_pretrained(folder, selected_adapters=["actor", "critic"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own card names a path of this machine
    write_json(folder / "log.json", trainer.state.log_history)
    if trainer.accelerator.is_main_process:  # the others wrote into its ledger
        shutil.copyfile(checkpoints.parent / LEDGER, folder / LEDGER)
    write_json(folder / FINISHED, {"key": key})
    shutil.rmtree(checkpoints)
    return model.eval(), trainer.state.log_history


def sample_answers(model, codec, requests, catalog, knobs, seed, max_new, batch_size=128):
    """One sampled ``Response`` a request, at the training temperature."""
    generator = torch.Generator(device=model.device).manual_seed(seed)
    draft, responses = drafting(codec, catalog), []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        prompts = codec.prompts([request_prompt(r, catalog, seed) for r in batch])
        drafts = [draft(r.k) for r in batch] if draft else None
        answers = decode(
            model, codec, prompts, max_new, knobs.temperature, generator, drafts=drafts
        )
        responses += [parse(codec.decode(a), catalog, len(a)) for a in answers]
    return responses


def sample_rewards(model, codec, requests, teacher, catalog, knobs, seed, max_new):
    """Total reward of one sampled answer a request, at the training temperature.

    Returns:
        float array, one value a request (items plus weighted list, no KL): the measure of "did RL
        help" on held-out users.
    """
    responses = sample_answers(model, codec, requests, catalog, knobs, seed, max_new)
    return total_rewards(requests, responses, teacher, catalog, knobs)


def total_rewards(requests, responses, teacher, catalog, knobs):
    """What each answer earns, items plus weighted list: float array."""
    rewards = []
    for score in score_answers(requests, responses, teacher, catalog, knobs):
        items = score.item.sum() if knobs.item_reward else 0.0
        rewards.append(items + knobs.list_weight * score.list)
    return np.array(rewards)
