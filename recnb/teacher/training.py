"""Training SASRec: full softmax at every position, early stopping on validation NDCG@10."""

import copy
import json
import time

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch.nn import functional as F

from recnb.artifacts import atomic_path
from recnb.machine import device
from recnb.profile import Teacher as Knobs
from recnb.teacher.popularity import Transitions
from recnb.teacher.ranking import SCORE_BYTES, Teacher, blocks, leave_one_out, pad_left
from recnb.teacher.sasrec import SASRec

TABLE = "transitions."
EVERY = 20
"""Seconds between two checkpoints, at least; they are written at the end of an epoch."""


def train_sasrec(histories, items, knobs, seed, log=lambda row: None, checkpoint=None):
    """Train on the training parts of all histories.

    One step shows each of its users' last ``max_length`` items once; every position learns its next
    item, so an epoch costs one pass over the interactions.

    Args:
        histories: ``Histories``.
        items: their number, N.
        knobs: the ``teacher`` section of a profile.
        seed: seeds weights, dropout and the order of users.
        log: called with a dict after every epoch.
        checkpoint: file to go on from, and to write to; what an interrupted training did is not
            done again, and the result is the same, bit for bit.

    Returns:
        ``(Teacher, rows)``: SASRec of its best validation epoch, with the table of transitions if
        ``knobs.transitions`` gives it a weight, and the logged rows.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng([seed, 102])
    model = untrained(items, knobs).to(device())
    large = 4 * knobs.batch_size * knobs.max_length * items > SCORE_BYTES
    step = _large_step if large or device() == "cuda" else _step
    optimizer = torch.optim.Adam(model.parameters(), lr=knobs.learning_rate)
    users = [u for u in range(len(histories)) if len(histories.train(u)) > 1]
    rows, best_state = [], copy.deepcopy(model.state_dict())
    if checkpoint and checkpoint.is_file():
        rows, best_state = _resume(checkpoint, model, optimizer, order)
    started = time.time() - (rows[-1]["seconds"] if rows else 0)
    saved = time.time()
    while not _ended(rows, knobs):
        model.train()
        losses = []
        shuffled = order.permutation(users)
        for start in range(0, len(users), knobs.batch_size):
            batch = shuffled[start : start + knobs.batch_size]
            windows = [_window(histories.train(u), knobs.max_length, order) for u in batch]
            losses.append(step(model, optimizer, windows))
        quality = leave_one_out(Teacher(model).scores, histories, "validation", items)
        ndcg = float(quality["NDCG@10"].mean())
        row = {
            "epoch": len(rows) + 1,
            "loss": float(np.mean(losses)),
            "validation NDCG@10": ndcg,
            "validation HR@10": float(quality["HR@10"].mean()),
            "seconds": time.time() - started,
        }
        rows.append(row)
        log(row)
        if _best(rows) == row["epoch"]:
            best_state = copy.deepcopy(model.state_dict())
        if checkpoint and (time.time() - saved > EVERY or _ended(rows, knobs)):
            _keep(checkpoint, model, best_state, optimizer, order, rows)
            saved = time.time()
    model.load_state_dict(best_state)
    table = Transitions.count(histories, items) if knobs.transitions else None
    return Teacher(model, table, knobs.transitions), rows


def _best(rows):
    """The first epoch with the highest validation NDCG@10; 0 before the first."""
    return max(rows, key=lambda row: row["validation NDCG@10"])["epoch"] if rows else 0


def _ended(rows, knobs):
    epoch = len(rows)
    return epoch >= knobs.max_epochs or epoch - _best(rows) >= knobs.patience


def _keep(checkpoint, model, best_state, optimizer, order, rows):
    """Write everything the next epoch depends on into one safetensors file, atomically."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best_state.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    tensors["random"] = torch.get_rng_state()
    if device() == "cuda":
        tensors["random on the GPU"] = torch.cuda.get_rng_state()
    said = {"rows": json.dumps(rows), "order": json.dumps(order.bit_generator.state)}
    with atomic_path(checkpoint) as temporary:
        save_file(tensors, temporary, metadata=said)


def _resume(checkpoint, model, optimizer, order):
    """Put back what ``_keep`` wrote; returns the rows and the best epoch's weights."""
    with safe_open(checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = file.metadata()

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    model.load_state_dict(part("model."))
    adam = {}
    for name, value in part("adam.").items():
        number, key = name.split(".")
        adam.setdefault(int(number), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": adam, "param_groups": groups})
    order.bit_generator.state = json.loads(said["order"])
    torch.set_rng_state(tensors["random"])
    if device() == "cuda" and "random on the GPU" in tensors:
        torch.cuda.set_rng_state(tensors["random on the GPU"])
    return json.loads(said["rows"]), part("best.")


def _window(sequence, length, rng):
    """``length + 1`` consecutive items; of a longer sequence a random stretch."""
    last_start = len(sequence) - (length + 1)
    start = rng.integers(last_start + 1) if last_start > 0 else 0
    return sequence[start : start + length + 1]


def _step(model, optimizer, sequences):
    batch = torch.from_numpy(pad_left(sequences, model.max_length + 1))
    inputs, targets = batch[:, :-1], batch[:, 1:]
    real = inputs.ne(0)
    # Without the padding item: it is never a target.
    scores = model.hidden(inputs)[real] @ model.item.weight[1:].T
    loss = F.cross_entropy(scores, targets[real] - 1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return loss.item()


def _large_step(model, optimizer, sequences):
    """``_step`` where its scores would be more than ``SCORE_BYTES``, or on a GPU: the same update.

    The scores are never there all at once.
    """
    batch = torch.from_numpy(pad_left(sequences, model.max_length + 1)).to(model.item.weight.device)
    inputs, targets = batch[:, :-1], batch[:, 1:]
    real = inputs.ne(0)
    states = model.hidden(inputs)[real]
    loss = _CrossEntropy.apply(states, model.item.weight[1:], targets[real] - 1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    return loss.item()


class _CrossEntropy(torch.autograd.Function):
    """Mean of -log softmax(states @ table.T)[target], block by block with its gradients.

    With p the softmax of one of R rows, its gradient is (p - [v = target]) / R. It takes the place
    of the scores, which spares passes over them.
    """

    @staticmethod
    def forward(ctx, states, table, targets):
        of_states, of_table, total = torch.empty_like(states), torch.zeros_like(table), 0.0
        for block in blocks(len(targets), len(table) - 1):
            here, wanted = states[block], targets[block]
            scores = here @ table.T  # [rows of the block, items]
            torch.log_softmax(scores, -1, out=scores)
            each = torch.arange(len(wanted), device=wanted.device)
            total -= scores[each, wanted].sum()
            slope = scores.exp_()
            slope[each, wanted] -= 1
            of_states[block] = slope @ table
            of_table.addmm_(slope.T, here)
        ctx.save_for_backward(of_states, of_table)
        ctx.rows = len(targets)
        return total / ctx.rows

    @staticmethod
    def backward(ctx, gradient):
        of_states, of_table = ctx.saved_tensors
        return gradient / ctx.rows * of_states, gradient / ctx.rows * of_table, None


def untrained(items, knobs):
    """An untrained SASRec of the profile's shape."""
    return SASRec(items, knobs.width, knobs.layers, knobs.heads, knobs.dropout, knobs.max_length)


def knobs_of(teacher):
    """The knobs of a profile that ``load_teacher`` needs to read this teacher back."""
    model = teacher.model
    return Knobs(
        width=model.item.embedding_dim,
        layers=len(model.blocks),
        heads=model.blocks[0].heads,
        dropout=model.dropout,
        max_length=model.max_length,
        transitions=teacher.weight,
    )


def save_teacher(teacher, path):
    """Write the weights, and the table of transitions, as safetensors, atomically."""
    tensors = dict(teacher.model.state_dict())
    if teacher.transitions:
        table = teacher.transitions.follows.tocoo()
        tensors[f"{TABLE}places"] = torch.from_numpy(np.stack(table.coords).astype(np.int64))
        tensors[f"{TABLE}values"] = torch.from_numpy(table.data)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_teacher(path, items, knobs):
    """Read what ``save_teacher`` wrote, into a model of the profile's shape, on the GPU if any."""
    model, tensors = untrained(items, knobs).to(device()), load_file(path)
    kept = {name: tensors.pop(name) for name in list(tensors) if name.startswith(TABLE)}
    model.load_state_dict(tensors)
    if not kept:
        return Teacher(model)
    places, values = kept[f"{TABLE}places"].numpy(), kept[f"{TABLE}values"].numpy()
    follows = sparse.csr_array((values, tuple(places)), shape=(items + 1, items + 1))
    return Teacher(model, Transitions(follows), knobs.transitions)
