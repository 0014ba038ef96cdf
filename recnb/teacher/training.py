"""Training SASRec: full softmax at every position, early stopping on validation NDCG@10."""

import copy
import time

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from recnb.artifacts import atomic_path
from recnb.teacher.ranking import Teacher, leave_one_out, pad_left
from recnb.teacher.sasrec import SASRec


def train_sasrec(histories, items, knobs, seed, log=lambda row: None):
    """Train on the training parts of all histories.

    One step shows each of its users' last ``max_length`` items once; every position learns its next
    item, so an epoch costs one pass over the interactions.

    Args:
        histories: ``Histories``.
        items: N.
        knobs: the ``teacher`` section of a profile.
        seed: seeds weights, dropout and the order of users.
        log: called with a dict after every epoch.

    Returns:
        ``(Teacher, rows)``: the model of the best validation epoch and the logged rows.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng([seed, 102])
    model = untrained(items, knobs)
    optimizer = torch.optim.Adam(model.parameters(), lr=knobs.learning_rate)
    users = [u for u in range(len(histories)) if len(histories.train(u)) > 1]
    best, best_state, rows, started = -1.0, None, [], time.time()
    for epoch in range(1, knobs.max_epochs + 1):
        model.train()
        losses = []
        shuffled = order.permutation(users)
        for start in range(0, len(users), knobs.batch_size):
            batch = shuffled[start : start + knobs.batch_size]
            windows = [_window(histories.train(u), knobs.max_length, order) for u in batch]
            losses.append(_step(model, optimizer, windows))
        quality = leave_one_out(Teacher(model).scores, histories, "validation", items)
        ndcg = float(quality["NDCG@10"].mean())
        row = {
            "epoch": epoch,
            "loss": float(np.mean(losses)),
            "validation NDCG@10": ndcg,
            "validation HR@10": float(quality["HR@10"].mean()),
            "seconds": time.time() - started,
        }
        rows.append(row)
        log(row)
        if ndcg > best:
            best, best_epoch, best_state = ndcg, epoch, copy.deepcopy(model.state_dict())
        if epoch - best_epoch >= knobs.patience:
            break
    model.load_state_dict(best_state)
    return Teacher(model), rows


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


def untrained(items, knobs):
    """An untrained SASRec of the profile's shape."""
    return SASRec(items, knobs.width, knobs.layers, knobs.heads, knobs.dropout, knobs.max_length)


def save_teacher(teacher, path):
    """Write the weights as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file(teacher.model.state_dict(), temporary)


def load_teacher(path, items, knobs):
    """Read what ``save_teacher`` wrote, into a model of the profile's shape."""
    model = untrained(items, knobs)
    model.load_state_dict(load_file(path))
    return Teacher(model)
