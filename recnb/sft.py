"""The SL stage (2.2): LoRA on the instruction set with trl's SFTTrainer, loss on answers only."""

import contextlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from recnb import RecnbError, workers
from recnb.artifacts import FINISHED, atomic_path, write_json
from recnb.engine.losses import next_token_loss, title_mask
from recnb.engine.optimizer import MuonAndAdamW
from recnb.engine.packed import next_logits_held
from recnb.engine.shared import (
    EveryMinutes,
    SharedBatch,
    processes,
    recomputing,
    refuse_uneven,
    share,
    uncast_lora,
)
from recnb.engine.spread import spread
from recnb.instructions.checks import fitting
from recnb.lm.item_tokens import trained_rows
from recnb.lm.loading import adapted
from recnb.profile import Compute, Sft


def encode(frame, codec, max_tokens):
    """Tokenised samples: columns input_ids and completion_mask (1 on the answer and its end token).

    Returns:
        ``(Dataset, left_out)``, see ``recnb.instructions.checks.fitting``.

    Raises:
        RecnbError: too many samples are longer than ``max_tokens``.
    """
    pairs, left_out = fitting(frame, codec, max_tokens)
    masks = [[0] * len(question) + [1] * len(answer) for question, answer in pairs]
    for row, (question, answer) in enumerate(pairs):  # in place: the set is large
        pairs[row] = question + answer
    return Dataset.from_dict({"input_ids": pairs, "completion_mask": masks}), left_out


class CompletionTrainer(SharedBatch, SFTTrainer):
    """SFTTrainer that scores only the places with loss, with the optional term against repeats.

    trl pads, and on a CPU scores every position of prompt and answer. Packed samples and
    ``logits_to_keep`` give the same loss from the real tokens and the answer's positions alone.

    Args:
        is_title: bool [V], the title tokens; None without whole titles.
        repeat_weight: weight of the term against repeats.
        accumulation: passes for a process's share of a batch, where micro_tokens says nothing.
        compute: the ``compute`` section of a profile.
    """

    def __init__(
        self, *args, is_title=None, repeat_weight=0.0, accumulation=1, compute=None, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.is_title, self.repeat_weight, self.accumulation = is_title, repeat_weight, accumulation
        self.compute = compute or Compute()

    def spread(self):
        """Leave each process a part of the frozen weights alone (``compute.strategy`` fsdp2)."""
        spread(self.model)
        # Without the wrapper that would average gradients: they are added up here.
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = partial(prepare, evaluation_mode=True)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """The gradient of one batch, a pass for each piece; returns the batch's loss."""
        model.train()
        inputs, processes = self._prepare_inputs(inputs), self.accelerator.num_processes
        rank = self.accelerator.process_index
        lengths = inputs["attention_mask"].sum(1).tolist()
        pieces = share(lengths, self.compute.micro_tokens, self.accumulation, rank, processes)
        total = torch.zeros((), device=inputs["input_ids"].device)
        if processes == 1 and len(pieces) == 1:
            total += self._learn(model, inputs, None)
        else:
            counts, idle = self._counts(inputs), self._idle_passes(pieces)
            for rows in pieces:
                piece = {name: x[rows] for name, x in inputs.items() if torch.is_tensor(x)}
                total += self._learn(model, piece, counts)
            for _ in range(idle):
                self._learn(model, _first(inputs), counts, idle=True)
        self.add_gradients()
        return self.everyones(total)

    def _learn(self, model, inputs, counts, idle=False):
        """Add the gradient of some samples, or nothing; returns their part of the loss."""
        with self._passed(model, inputs, counts) as (loss, _):
            self.accelerator.backward(0 * loss if idle else loss)
        return loss.detach()

    def _idle_passes(self, pieces):
        """How many more passes another process makes, which needs this one's weights; asked before
        the first of them."""
        if self.compute.strategy != "fsdp2":
            return 0
        return max(gather_object([len(pieces)])) - len(pieces)

    def _counts(self, inputs):
        """Tokens that carry loss in a batch, and titles among them."""
        labels = inputs["labels"][:, 1:]
        due = labels[labels != -100]
        return len(due), 0 if self.is_title is None else int(self.is_title[due].sum())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of a batch, as in validation."""
        pieces = [slice(None)]
        if self.compute.micro_tokens:
            lengths = inputs["attention_mask"].sum(1).tolist()
            pieces = share(lengths, self.compute.micro_tokens)
        counts = self._counts(inputs) if len(pieces) > 1 else None
        idle, total = self._idle_passes(pieces), 0.0
        for rows in pieces:
            piece = {name: x[rows] for name, x in inputs.items() if torch.is_tensor(x)}
            with self._passed(model, piece, counts) as (loss, logits):
                total = total + loss
        for _ in range(idle):
            with self._passed(model, _first(inputs), counts):
                pass
        return (total, {"logits": logits}) if return_outputs else total

    @contextlib.contextmanager
    def _passed(self, model, inputs, counts):
        """Loss and logits of some samples; checkpointed layers need it open until backward is done.

        Args:
            counts: of the batch that they are a piece of, or None, see ``next_token_loss``.
        """
        labels, real = inputs["labels"], inputs["attention_mask"].bool()
        keep = torch.zeros_like(real)
        keep[:, :-1] = labels[:, 1:].ne(-100)
        places = keep.nonzero() + torch.tensor([0, 1], device=keep.device)
        is_title = self.is_title if model.training else None
        bare = self.accelerator.unwrap_model(model)
        with next_logits_held(bare, inputs["input_ids"], real, keep) as logits:
            given = logits, inputs["input_ids"], places, is_title, self.repeat_weight, counts
            yield next_token_loss(*given), logits


def _first(inputs):
    """A batch's first sample."""
    return {name: x[:1] for name, x in inputs.items() if torch.is_tensor(x)}


class History(TrainerCallback):
    """Keeps every logged number and calls ``show(row)`` (a live plot, a progress line)."""

    def __init__(self, show):
        self.show = show

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.show({"step": state.global_step, "of": state.max_steps, **logs})


def train_sft(
    model,
    codec,
    train,
    validation,
    titles,
    knobs,
    seed,
    folder,
    show=lambda row: None,
    autocast=True,
    card="",
    key="run",
    compute=None,
):
    """Fine-tune and save a PEFT adapter (with rank 0: the whole model) with its model card.

    An interrupted training continues from its last checkpoint under ``folder/checkpoints/<key>``;
    the checkpoints of other keys, and after success all of them, are deleted. A training that
    ended, in a start that was stopped later, is read back (``finished``).

    Args:
        model: base model.
        train, validation: DataFrames with columns prompt and completion.
        titles: title token of each item (``title_tokens``) or None.
        knobs: the ``sft`` section of a profile.
        folder: receives ``adapter/`` and ``log.json``.
        show: called with every logged row.
        autocast: matrix products in bfloat16.
        card: text of the adapter's model card (``model_card``).
        key: name of these settings (a fingerprint); checkpoints of other settings are not used.
        compute: the ``compute`` section of a profile. Several processes (torchrun) share the
            folder: the first one writes.

    Returns:
        ``(model, rows)``: the tuned model; the longest question and answer in tokens, and how many
        samples were left out as too long, then the logged rows.
    """
    folder, compute = Path(folder), compute or Compute()
    if finished(folder, key):
        return read_back(model, folder, "adapter")
    if workers.wanted(compute):
        place = workers.job_folder(folder, key)
        train.to_parquet(place / "train.parquet")
        validation.to_parquet(place / "validation.parquet")
        settings = {"titles": titles, "knobs": knobs.model_dump(mode="json"), "seed": seed}
        settings |= {"autocast": autocast, "card": card}
        workers.work_together("sft", model, folder, key, compute, show, settings)
        return read_back(model, folder, "adapter")
    cuts = [("sft.accumulation", knobs.accumulation), ("the number of processes", processes())]
    refuse_uneven("sft.batch_size", knobs.batch_size, *cuts)
    torch.manual_seed(seed)
    data, left_out = encode(train, codec, knobs.max_tokens)
    held, held_left_out = encode(validation, codec, knobs.max_tokens)
    steps = max(1, int(np.ceil(len(data) / knobs.batch_size) * knobs.epochs))
    rank = knobs.rank
    peft = None
    if rank:
        rows, layers = trained_rows(model, knobs.layers_from), upper(model, knobs.layers_from)
        peft = lora(rank, knobs.alpha, knobs.train_embeddings, rows, layers)
    arguments = SFTConfig(
        output_dir=str(folder / "checkpoints" / key),
        per_device_train_batch_size=knobs.batch_size,  # the trainer cuts and shares it out
        gradient_accumulation_steps=1,
        per_device_eval_batch_size=64,
        max_steps=steps,
        learning_rate=knobs.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 40),
        max_length=None,
        gradient_checkpointing=False,
        bf16=autocast,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=max(1, steps // knobs.evaluations),
        logging_steps=max(1, steps // 100),
        save_strategy="steps",
        save_steps=max(1, steps // knobs.checkpoints),
        save_total_limit=2,
        seed=seed,
        optim="adamw_torch_fused",
        disable_tqdm=True,
        report_to="none",
        prediction_loss_only=True,
        dataloader_num_workers=0,
        weight_decay=0.0,
        completion_only_loss=True,
    )
    # Several GPUs: one process each (torchrun), never one process for all.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    checkpoints = checkpoint_folder(folder, key)
    optimizer = None  # the AdamW of the arguments
    if knobs.muon_learning_rate:
        optimizer = MuonAndAdamW(model, knobs.muon_learning_rate, knobs.learning_rate)
    trainer = CompletionTrainer(
        model=get_peft_model(model, peft) if peft else model,
        args=arguments,
        train_dataset=data,
        eval_dataset=held,
        processing_class=codec.tokenizer,
        callbacks=[History(show), EveryMinutes(compute.checkpoint_minutes)],
        is_title=title_mask(titles, model.config.vocab_size, model.device),
        repeat_weight=knobs.repeat_weight,
        accumulation=knobs.accumulation,
        compute=compute,
        optimizers=(optimizer, None),
    )
    trainer.remove_callback(PrinterCallback)
    if compute.strategy == "fsdp2":
        trainer.spread()
    with recomputing(model, compute.checkpointing), uncast_lora(trainer.model, autocast):
        trainer.train(resume_from_checkpoint=latest_checkpoint(checkpoints))
    answers = np.array([sum(mask) for mask in data["completion_mask"]])
    questions = np.array([len(ids) for ids in data["input_ids"]]) - answers
    longest = {
        "longest question, tokens": int(questions.max()),
        "longest answer, tokens": int(answers.max()),
    }
    if left_out or held_left_out:
        longest["left out, too long"] = {"training": left_out, "validation": held_left_out}
    rows = [longest, *trainer.state.log_history]
    if trainer.is_world_process_zero():
        with atomic_path(folder / "adapter") as temporary:
            trainer.model.save_pretrained(temporary)
            (temporary / "README.md").write_text(card, encoding="utf-8")
        write_json(folder / "log.json", rows)
        write_json(folder / FINISHED, {"key": key})
    end(checkpoints)
    # Without the trainer's autocast: the same model as one that is read back.
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval(), rows


def train_sft_job(place, model, codec, folder, settings, with_them):
    """One worker's part of ``train_sft``, from the job that the notebook wrote."""
    train_sft(
        model,
        codec,
        pd.read_parquet(place / "train.parquet"),
        pd.read_parquet(place / "validation.parquet"),
        folder=folder,
        **settings | {"knobs": Sft.model_validate(settings["knobs"])} | with_them,
    )


def read_back(model, folder, adapter):
    """``(model, rows)`` of a training that ended, its adapter put on the model it went out from."""
    return adapted(model, folder / adapter), json.loads((folder / "log.json").read_text())


def finished(folder, key):
    """True if a training with these settings ended here; the stage's end removes the mark."""
    try:
        return json.loads((Path(folder) / FINISHED).read_text())["key"] == key
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def lora(rank, alpha, embeddings=False, rows=None, layers=None):
    """LoRA on all linear layers of a Llama-like model, the LM head left out.

    Args:
        embeddings: also train the whole token embeddings.
        rows: token rows that train besides (``item_tokens.trained_rows``), or None.
        layers: numbers of the Transformer blocks that get LoRA; None = all.
    """
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=linear,
        modules_to_save=["embed_tokens"] if embeddings else None,
        ensure_weight_tying=embeddings,
        trainable_token_indices=rows,
        layers_to_transform=layers,
        layers_pattern=None if layers is None else "layers",
    )


def upper(model, layers_from):
    """Numbers of a model's blocks from one on; None for all of them.

    The blocks below get no gradient, so PyTorch keeps nothing of their passes.

    Raises:
        RecnbError: the model has no such block.
    """
    count = model.config.num_hidden_layers
    if layers_from >= count:
        raise RecnbError(
            f"sft.layers_from ({layers_from}): the model has layers 0 to {count - 1}: nothing "
            "would be trained; take a smaller number"
        )
    return list(range(layers_from, count)) if layers_from else None


def checkpoint_folder(folder, key):
    """``folder/checkpoints/<key>``, made if need be; folders of other keys are deleted.

    Processes that train together share it: the first one makes and deletes, the others wait.
    """
    kept = Path(folder) / "checkpoints" / key
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            for other in kept.parent.glob("*"):
                if other != kept and other.is_dir():
                    shutil.rmtree(other)
            kept.mkdir(parents=True, exist_ok=True)
    return kept


def end(checkpoints):
    """Delete them once every process is done with them.

    This comes last: a start that is killed before has one to go on from.
    """
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        shutil.rmtree(checkpoints)


def latest_checkpoint(folder):
    """Path of the newest whole checkpoint, or None; one that a kill cut off is passed over."""
    whole = []
    for path in Path(folder).glob("checkpoint-*"):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            json.loads((path / "trainer_state.json").read_text())  # what the trainer writes last
            whole.append(path)
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def model_card(profile, description, samples, name="v2", what="instructions (I0 to I4)"):
    """Text of ``README.md`` beside the adapter."""
    training = json.dumps(profile.sft.model_dump(mode="json"))
    return (
        f"---\nlibrary_name: peft\n---\n# {profile.name}: SL stage ({name})\n\n"
        f"Base: {description}\n\n"
        f"Data: {profile.data.dataset}, {samples} {what}, seed {profile.seed}.\n\n"
        f"Training: {training}\n\n"
        "Use: recommends titles of its own catalogue alone; no safety training. Made with recnb.\n"
    )
