"""PPO on trl's GRPOTrainer: its sampler, buffering, checkpoints, logs; our rewards, critic, loss.

trl 1.16 has no PPO. Four places of GRPOTrainer are overridden: how a batch of answers is made and
scored (``_generate_and_score_completions``), the loss and its gradient (``training_step``), the
optimizer's two learning rates, and loading a checkpoint. Actor and critic are two LoRA adapters on
one frozen base, which is the SL model: with adapters off it is the reference of Equation 6.
"""

import math
import shutil
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from recnb import RecnbError, workers
from recnb.artifacts import FINISHED, write_json
from recnb.catalog import Catalog
from recnb.engine.decoding import decode
from recnb.engine.losses import chosen_and_entropy
from recnb.engine.packed import ending_at, pack_answers, packed_attention
from recnb.engine.shared import (
    EveryMinutes,
    SharedBatch,
    processes,
    recomputing,
    refuse_uneven,
    share,
    uncast_lora,
)
from recnb.lm.parsing import parse
from recnb.lm.recommender import drafting, request_prompt
from recnb.lm.vllm_client import rollouts
from recnb.ppo import ppo_math
from recnb.ppo.rewards import batch_scores
from recnb.ppo.trend import Ledger
from recnb.profile import Compute, Ppo
from recnb.profile import Teacher as TeacherKnobs
from recnb.requests import Request
from recnb.sft import History, checkpoint_folder, end, finished, latest_checkpoint, lora, read_back
from recnb.teacher.training import knobs_of, load_teacher, save_teacher

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
def using(model, adapter):
    """Within it, the model is the actor, the critic, or the reference (None)."""
    if adapter is None:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(adapter)
    both_trainable(model)
    try:
        yield
    finally:
        model.set_adapter("actor")
        both_trainable(model)


@contextmanager
def rolling_out(model, autocast):
    """Within it, the base model answers as the actor does in training, as fast as may be.

    Float32 weights take the actor in, and answer in float32 on a CPU, where that is faster than the
    training's autocast. Weights of 16 bits would round the actor's small updates away: there the
    adapter stays beside them.
    """
    exact, device = model.dtype == torch.float32, model.device.type
    fast = exact and device == "cpu"
    with merged(model, "actor") if exact else nullcontext():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast and not fast):
            yield


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


class RecPPOTrainer(SharedBatch, GRPOTrainer):
    """PPO with item-level and list-level rewards.

    Args:
        model: from ``with_adapters``.
        args: ``GRPOConfig`` from ``ppo_arguments``.
        requests: list of ``Request``; the dataset's column ``index`` points into it.
        codec, teacher, catalog: to write prompts, rank and score.
        knobs: the ``ppo`` section of a profile.
        max_new: most tokens of an answer.
        compute: the ``compute`` section of a profile.
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
        compute,
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
        self.knobs, self.max_new, self.compute = knobs, max_new, compute
        self.draft = drafting(codec, catalog)
        self.seed, self.generator = seed, torch.Generator(device=model.device)
        self.ledger = self.rollouts = None

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
        """Answers with all the loss needs: tokens, masks, old log-probs, values, advantages.

        Each process answers its share of the prompts; from then on all have all answers, and
        share the passes over them alone.
        """
        knobs = self.knobs
        requests = [self.requests[row["index"]] for row in inputs]
        prompts = [self.codec.prompt(row["prompt"]) for row in inputs]
        model = self.accelerator.unwrap_model(self.model)
        with torch.no_grad():
            answers = self._answers(model, requests, prompts)
            model.train()
            batch = pad_batch(prompts, answers, self.codec.pad, model.device)
            batch["prompt"] = torch.tensor([row["index"] for row in inputs], device=model.device)
            log_probs, entropy, values, reference = self._scored(model, batch)
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
        full = ppo_math.whiten(full, mask, shift_mean=False)
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
            "advantages": ppo_math.whiten(advantages, mask),
        }

    def _start_critic(self, model, rewards, mask):
        """Let a critic that has learned nothing say the mean return of this batch everywhere."""
        knobs, nothing = self.knobs, torch.zeros_like(rewards)
        _, returns = ppo_math.gae(rewards, nothing, mask, knobs.gamma, knobs.gae_lambda)
        mean = (returns * mask).sum() / mask.sum()
        for name, parameter in model.named_parameters():
            if name.endswith("v_head.modules_to_save.critic.bias"):
                parameter.data.fill_(mean)
        return mean.expand_as(rewards)

    def _answers(self, model, requests, prompts):
        """One sampled answer a prompt, token ids; each process samples its share of the prompts."""
        knobs, processes = self.knobs, self.accelerator.num_processes
        each = len(prompts) // processes
        own = slice(
            each * self.accelerator.process_index, each * (self.accelerator.process_index + 1)
        )
        drafts = [self.draft(r.k) for r in requests[own]] if self.draft else None
        # Each step has a seed of its own: a resumed training draws what it would have drawn.
        draw = np.random.default_rng([self.seed, 119, self.state.global_step])
        self.generator.manual_seed(int(draw.integers(2**62)))
        if self.rollouts:
            seeds = draw.integers(2**31, size=len(prompts))[own].tolist()
            asked = prompts[own], self.max_new, knobs.temperature, seeds
            answers = self.rollouts.answers(model, *asked)
            return gather_object(answers) if processes > 1 else answers
        cache_bytes = self.compute.cache_bytes
        numbers = None
        if processes > 1 or cache_bytes:
            # Drawn for all rows, so that an answer does not depend on what is sampled beside it.
            numbers = drawn(len(prompts), self.max_new, self.generator)[own]
        both_trainable(model).set_adapter("actor")
        model.eval()
        with rolling_out(model, self.args.bf16):
            answers = decode(
                model.get_base_model(),
                self.codec,
                prompts[own],
                self.max_new,
                knobs.temperature,
                self.generator,
                drafts=drafts,
                numbers=numbers,
                cache_bytes=cache_bytes,
            )
        return gather_object(answers) if processes > 1 else answers

    def _pieces(self, batch):
        """This process's rows of a batch, for one pass each; answers to a prompt stay together."""
        if self.accelerator.num_processes == 1 and not self.compute.micro_tokens:
            return [slice(None)]
        length, answer = (
            batch["attention"].sum(1).tolist(),
            batch["completion_mask"].sum(1).tolist(),
        )
        of_prompt, costs = {}, []
        for row, prompt in enumerate(batch["prompt"].tolist()):
            of_prompt.setdefault(prompt, []).append(row)
        groups = list(of_prompt.values())
        for rows in groups:
            costs.append(length[rows[0]] - answer[rows[0]] + sum(answer[row] for row in rows))
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        pieces = share(costs, self.compute.micro_tokens, 1, rank, processes)
        return [[row for group in piece for row in groups[group]] for piece in pieces]

    def _scored(self, model, batch):
        """Log-probs and values of all answers' tokens [B, T] before the update.

        Returns:
            ``(log_probs, entropy, values, reference)``; the entropy is the mean over all tokens.
        """
        mask = batch["completion_mask"]
        old = {
            name: torch.zeros(mask.shape, device=mask.device) for name in ("actor", "critic", None)
        }
        spread = torch.zeros((), device=mask.device)
        # The loss's own precision: the first ratio is exactly 1.
        with self.compute_loss_context_manager():
            for rows in self._pieces(batch):
                piece = {name: x[rows] for name, x in batch.items()}
                with self._policy(model, piece, "actor") as (log_probs, entropy):
                    old["actor"][rows] = log_probs
                    spread += entropy.sum()
                with self._values(model, piece) as values:
                    old["critic"][rows] = values
                with self._policy(model, piece, None) as (log_probs, _):
                    old[None][rows] = log_probs
        # The trainer shuffles the answers next: each process must cut the same minibatches.
        torch.set_rng_state(broadcast_object_list([torch.get_rng_state()])[0])
        log_probs, values, reference = (self.everyones(old[name]) for name in old)
        return log_probs, self.everyones(spread) / mask.sum(), values, reference

    @contextmanager
    def _policy(self, model, batch, adapter):
        """Log-probs [B, T] and entropies [R] of the answers' tokens at the sampling temperature.

        Checkpointed layers run again in the backward pass, which must happen within it.
        """
        packed, before = _packed(batch)
        with using(model, adapter), packed_attention(model), ending_at(model, before):
            logits = model(**packed, use_cache=False).logits[0].float() / self.knobs.temperature
            chosen = batch["completion_ids"][batch["completion_mask"].bool()]
            log_probs, entropy = chosen_and_entropy(logits, chosen)
            yield _in_places(log_probs, batch["completion_mask"]), entropy

    @contextmanager
    def _values(self, model, batch):
        """Critic's value [B, T] of the state before each token of the answer; see ``_policy``."""
        inner, (packed, before) = model.get_base_model(), _packed(batch)
        # The critic runs on a part of the model; the wrapper with autocast sits around the whole.
        device = batch["ids"].device.type
        autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=self.args.bf16)
        with using(model, "critic"), packed_attention(inner), ending_at(inner, before):
            with autocast:
                states = inner.model(**packed, use_cache=False).last_hidden_state[0]
            values = inner.v_head(states.float())[:, 0]
            yield _in_places(values, batch["completion_mask"])

    def training_step(self, model, inputs, num_items_in_batch=None):
        """The gradient of one minibatch; returns its loss.

        Actor and critic share no trained weight, so each has a pass and a backward pass of its own
        and only one of their graphs is held at a time.
        """
        began = time.perf_counter()
        model.train()
        inputs, inner = self._prepare_inputs(inputs), self.accelerator.unwrap_model(model)
        count = inputs["completion_mask"].float().sum()
        totals = torch.zeros(4, device=count.device)
        for rows in self._pieces(inputs):
            totals += self._learn(inner, {name: x[rows] for name, x in inputs.items()}, count)
        self.add_gradients()
        loss, policy, value, clipped = self.everyones(totals)
        notes = self._metrics["train"]
        notes["policy_loss"].append(policy.item())
        notes["value_loss"].append(value.item())
        notes["clipped"].append(clipped.item())
        notes["step_time"].append(time.perf_counter() - began)
        self._step += 1
        return loss

    def _learn(self, model, batch, count):
        """Add the gradient of some answers.

        Args:
            count: answer tokens of the minibatch that they are a piece of.

        Returns:
            [4], their part of the loss, the policy's loss, the critic's, the share of clipped
            tokens.
        """
        knobs, mask = self.knobs, batch["completion_mask"].float()
        old, advantages = batch["old_log_probs"], batch["advantages"]
        with self._policy(model, batch, "actor") as (log_probs, entropy):
            given = log_probs, old, advantages, mask, knobs.clip, count
            policy, clipped = ppo_math.policy_loss(*given)
            spread = entropy.sum() / count
            self.accelerator.backward(policy - knobs.entropy_weight * spread)
        updates = knobs.value_clip_after * knobs.epochs * knobs.minibatches
        near = knobs.clip if self.state.global_step >= updates else math.inf
        with self._values(model, batch) as values:
            old_values, returns = batch["old_values"], batch["returns"]
            value = ppo_math.value_loss(values, old_values, returns, mask, near, count)
            self.accelerator.backward(knobs.value_weight * value)
        loss = policy + knobs.value_weight * value - knobs.entropy_weight * spread
        return torch.stack([loss, policy, value, clipped * (mask.sum() / count)]).detach()

    def _enter(self, prompts, earned):
        """Note each answer's reward in the ledger."""
        if self.accelerator.is_main_process:
            step = self.state.global_step // (self.knobs.epochs * self.knobs.minibatches)
            if self.ledger is None:
                self.ledger = Ledger(Path(self.args.output_dir).parent / LEDGER, step)
            self.ledger.add(step, prompts, earned)

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
            "entropy": entropy.item(),
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
    cuts = [("ppo.minibatches", knobs.minibatches), ("the number of processes", processes())]
    refuse_uneven("ppo.prompts x ppo.samples", knobs.prompts * knobs.samples, cuts[0])
    refuse_uneven("ppo.prompts", knobs.prompts, cuts[1])
    batch = knobs.prompts * knobs.samples // knobs.minibatches
    updates = knobs.steps * knobs.epochs * knobs.minibatches
    arguments = GRPOConfig(
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
    # Several GPUs: one process each (torchrun), and each gets the whole batch.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    arguments.generation_batch_size = knobs.prompts * knobs.samples
    return arguments


def drawn(rows, tokens, generator):
    """The numbers that sample each token of each row, float [rows, tokens], on the CPU."""
    return torch.rand(rows, tokens, generator=generator, device=generator.device).cpu()


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
    compute=None,
):
    """Run the RL stage; continues from the last checkpoint under ``folder/checkpoints/<key>``.

    Args:
        model: the SL model, its adapter merged.
        requests: RL requests (``rl_requests``).
        folder: receives ``actor/``, ``critic/``, ``log.json`` and ``rewards.jsonl`` (``Ledger``).
        max_new: most tokens of an answer.
        show: called with every logged row.
        key: name of these settings, see ``recnb.sft.train_sft``.
        compute: the ``compute`` section of a profile; several processes share the batch.

    Returns:
        ``(model, rows)``: the model as the actor left it, and the logged rows. If this call trained
        it, a PEFT model with both adapters (actor active); else read back, without the critic.
    """
    folder, compute = Path(folder), compute or Compute()
    if finished(folder, key):
        return read_back(model, folder, "actor")
    if compute.strategy == "fsdp2":
        raise RecnbError(
            "compute.strategy (fsdp2): in RL each process answers with the whole model, which it "
            "then lacks: run on with --set compute.strategy=ddp; nothing is trained again"
        )
    if workers.wanted(compute):
        place = workers.job_folder(folder, key)
        catalog.to_parquet(place / "catalog.parquet")
        save_teacher(teacher, place / "teacher.safetensors")
        settings = {"requests": [request.to_json() for request in requests], "seed": seed}
        settings |= {"teacher": knobs_of(teacher).model_dump(mode="json"), "autocast": autocast}
        settings |= {"knobs": knobs.model_dump(mode="json"), "max_new": max_new}
        workers.work_together("ppo", model, folder, key, compute, show, settings)
        return read_back(model, folder, "actor")
    torch.manual_seed(seed)
    peft = with_adapters(model, knobs.rank, knobs.alpha)
    prompts = [request_prompt(r, catalog, seed) for r in requests]
    arguments = ppo_arguments(knobs, seed, folder / "checkpoints" / key, autocast)
    checkpoints = checkpoint_folder(folder, key)
    order = visiting_order(len(requests), knobs.steps * knobs.prompts, seed)
    dataset = Dataset.from_dict({"prompt": [prompts[i] for i in order], "index": order})
    minutes = EveryMinutes(compute.checkpoint_minutes, knobs.epochs * knobs.minibatches)
    trainer = RecPPOTrainer(
        peft,
        arguments,
        dataset,
        requests,
        codec,
        teacher,
        catalog,
        knobs,
        max_new,
        seed,
        [History(show), minutes],
        compute,
    )
    trainer.remove_callback(PrinterCallback)
    writing = rollouts(model, codec, knobs, compute)
    with (
        recomputing(model, compute.checkpointing),
        uncast_lora(peft, autocast),
        writing as trainer.rollouts,
    ):
        trainer.train(resume_from_checkpoint=latest_checkpoint(checkpoints))
    # Without the trainer's autocast.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model.set_adapter("actor")
    for config in model.peft_config.values():
        config.base_model_name_or_path = "the SL model of this run"  # not a path of this machine
    if trainer.is_world_process_zero():
        model.save_pretrained(folder, selected_adapters=["actor", "critic"])
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's own names a path of this machine
        write_json(folder / "log.json", trainer.state.log_history)
        shutil.copyfile(checkpoints.parent / LEDGER, folder / LEDGER)
        write_json(folder / FINISHED, {"key": key})
    end(checkpoints)
    if trainer.is_world_process_zero():
        (checkpoints.parent / LEDGER).unlink()
    return model.eval(), trainer.state.log_history


def train_ppo_job(place, model, codec, folder, settings, with_them):
    """One worker's part of ``train_ppo``, from the job that the notebook wrote."""
    catalog = Catalog.from_parquet(place / "catalog.parquet")
    shape = TeacherKnobs.model_validate(settings.pop("teacher"))
    train_ppo(
        model,
        codec,
        [Request.from_json(row) for row in settings.pop("requests")],
        load_teacher(place / "teacher.safetensors", len(catalog), shape),
        catalog,
        folder=folder,
        **settings | {"knobs": Ppo.model_validate(settings["knobs"])} | with_them,
    )


def sample_answers(
    model, codec, requests, catalog, knobs, seed, max_new, batch_size=128, compute=None
):
    """One sampled ``Response`` a request, at the training temperature.

    With a budget for the cache (``compute``) other answers are drawn, as with another seed.
    """
    cache_bytes = (compute or Compute()).cache_bytes
    generator = torch.Generator(device=model.device).manual_seed(seed)
    draft, responses = drafting(codec, catalog), []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        prompts = codec.prompts([request_prompt(r, catalog, seed) for r in batch])
        drafts = [draft(r.k) for r in batch] if draft else None
        numbers = drawn(len(batch), max_new, generator) if cache_bytes else None
        sampling = max_new, knobs.temperature, generator
        more = {"drafts": drafts, "numbers": numbers, "cache_bytes": cache_bytes}
        answers = decode(model, codec, prompts, *sampling, **more)
        responses += [parse(codec.decode(a), catalog, len(a)) for a in answers]
    return responses


def sample_rewards(model, codec, requests, teacher, catalog, knobs, seed, max_new, compute=None):
    """Total reward of one sampled answer a request, at the training temperature.

    Returns:
        float array, one value a request (items plus weighted list, no KL): the measure of "did RL
        help" on held-out users.
    """
    asked = model, codec, requests, catalog, knobs, seed, max_new
    responses = sample_answers(*asked, compute=compute)
    return total_rewards(requests, responses, teacher, catalog, knobs)


def total_rewards(requests, responses, teacher, catalog, knobs):
    """What each answer earns, items plus weighted list: float array."""
    rewards = []
    for score in score_answers(requests, responses, teacher, catalog, knobs):
        items = score.item.sum() if knobs.item_reward else 0.0
        rewards.append(items + knobs.list_weight * score.list)
    return np.array(rewards)
