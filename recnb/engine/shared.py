"""One batch, worked on by several processes and in several passes, with one process's update.

Every process reads the whole batch and works on its share of the rows, a piece at a time. The loss
of a piece is a sum over its tokens divided by the count of the whole batch, so that gradients of
all pieces add up to the gradient of the batch, whatever their lengths.
"""

import os
from contextlib import contextmanager
from time import monotonic, time

import torch
from accelerate.utils import broadcast_object_list
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback

from recnb import RecnbError
from recnb.engine.packed import neighbours


def processes():
    """How many processes train together: what torchrun says, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_uneven(name, total, *divisors):
    """Raise if a number of a profile cannot be dealt out evenly.

    Args:
        name: the knob, for the message.
        total: its value.
        divisors: pairs of what it is divided by: name, value.
    """
    product = 1
    for _, value in divisors:
        product *= value
    if total % product:
        by = " x ".join(f"{divisor} ({value})" for divisor, value in divisors)
        raise RecnbError(f"{name} ({total}) must be divisible by {by}: change one of them")


def share(costs, micro_tokens=0, pieces=1, rank=0, world=1):
    """A process's rows of a batch, cut into pieces for one pass each; rows of a piece are alike.

    Args:
        costs: tokens of each row.
        micro_tokens: most tokens of a piece; a longer row stands alone. 0 = ``pieces`` counts.
        pieces: into how many pieces the rows are cut.
        rank, world: which process this is, and of how many.

    Returns:
        Lists of row numbers, none of them empty; every row is in one process's share.
    """
    rows = sorted(range(len(costs)), key=lambda row: -costs[row])[rank::world]
    if micro_tokens:
        groups = neighbours([costs[row] for row in rows], micro_tokens)
        return [[rows[i] for i in group] for group in groups]
    size = -(-len(rows) // pieces)
    return [rows[start : start + size] for start in range(0, len(rows), size or 1)]


@contextmanager
def recomputing(model, wanted):
    """Within it, a model in training keeps its layers' inputs alone, and runs them again for the
    gradient; ``wanted`` False: as ever.
    """
    if wanted:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # For the other kind of checkpointing; it would also ask for gradients below the adapters.
        model.disable_input_require_grads()
    try:
        yield
    finally:
        if wanted:
            model.activation_checkpointing_disable()


@contextmanager
def uncast_lora(model, autocast):
    """Within it, LoRA takes its input as it comes, not in its own float32: autocast makes bfloat16
    of both. The numbers are the same bit for bit, without two copies of the input for each matrix.
    Without autocast, as ever.
    """
    layers = [layer for layer in model.modules() if autocast and isinstance(layer, LoraLayer)]
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
    try:
        yield
    finally:
        for layer, cast in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = cast


class SharedBatch:
    """For trainers whose every process gets the whole batch, as one process alone would.

    The loss runs on the bare model, past the wrapper that averages gradients.
    """

    def get_train_dataloader(self):
        """All batches whole, in the order of one process."""
        loader = super().get_train_dataloader()
        if self.accelerator.num_processes > 1:
            shard = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def everyones(self, total):
        """Sum of a tensor over all processes."""
        return self.accelerator.reduce(total, reduction="sum")

    def add_gradients(self):
        """Give every process the sum of all processes' gradients."""
        if self.accelerator.num_processes == 1:
            return
        alike = {}
        for weight in self.model.parameters():
            if weight.requires_grad:
                alike.setdefault(weight.dtype, []).append(weight)
        for weights in alike.values():
            own = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            total = self.everyones(torch.cat([gradient.flatten() for gradient in own]))
            parts = total.split([weight.numel() for weight in weights])
            for weight, part in zip(weights, parts, strict=True):
                weight.grad = part.view_as(weight)


class EveryMinutes(TrainerCallback):
    """Asks for a checkpoint when so many minutes have passed since the last one, and once shortly
    before a batch job's time limit (``recnb.workflow.job.CHECKPOINT_AT``).

    Args:
        minutes: 0 = never.
        updates: checkpoints are written after multiples of so many updates only.
    """

    def __init__(self, minutes, updates=1):
        self.minutes, self.updates, self.last = minutes, updates, monotonic()
        self.before_end = float(os.environ.get("RECNB_CHECKPOINT_AT", "inf"))

    def on_step_end(self, args, state, control, **kwargs):
        never = not self.minutes and self.before_end == float("inf")
        if never or state.global_step % self.updates:
            return
        # The first process's clock decides for all: they save together.
        by_clock = bool(self.minutes) and monotonic() - self.last >= 60 * self.minutes
        ending = time() >= self.before_end
        save, ending = broadcast_object_list([by_clock or ending, ending])
        control.should_save |= save
        if ending:
            self.before_end = float("inf")

    def on_save(self, args, state, control, **kwargs):
        self.last = monotonic()
