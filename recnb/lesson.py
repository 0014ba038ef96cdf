"""What lessons show beside results: code as it stands in the kit, pictures of the arithmetic."""

import ast
import inspect
import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch

from recnb import plots, text_safety
from recnb.ppo.ppo_math import gae
from recnb.teacher.sasrec import causal_mask

LINES = 30
"""A lesson shows no function longer than this: what is longer is no lesson."""


@dataclass
class Code:
    """Code as a notebook shows it, with its name above."""

    name: str
    text: str

    def _repr_markdown_(self):
        return f"`{self.name}`\n\n```python\n{self.text}\n```"

    def __repr__(self):
        return f"# {self.name}\n{self.text}"


def source(function):
    """A function's code out of its module, without its docstring, as a notebook shows it.

    Raises:
        ValueError: longer than ``LINES``.
    """
    text = textwrap.dedent(inspect.getsource(function))
    (node,) = ast.parse(text).body
    lines = text.splitlines()
    if ast.get_docstring(node) is not None:
        said = node.body[0]
        del lines[said.lineno - 1 : said.end_lineno]
    if len(lines) > LINES:
        raise ValueError(f"{function.__qualname__} has {len(lines)} lines, more than {LINES}")
    return Code(f"{function.__module__}.{function.__qualname__}", "\n".join(lines))


def credit(rewards, gamma=0.99, lambdas=(0.0, 0.5, 0.95, 1.0)):
    """How far back a reward reaches: advantages of one answer's tokens for several lambdas.

    Args:
        rewards: one number a token; the critic is taken to say 0 everywhere.
        gamma: discount.

    Returns:
        ``(figure, {lambda: advantages})``.
    """
    row = torch.tensor([rewards], dtype=torch.float32)
    nothing, all_real = torch.zeros_like(row), torch.ones_like(row)
    found = {lam: gae(row, nothing, all_real, gamma, lam)[0][0].tolist() for lam in lambdas}
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.4))
    for place, (lam, advantages) in enumerate(found.items()):
        axis.plot(advantages, **plots.series(place), label=f"λ = {lam:g}")
    axis.set(title="Advantage of each token", xlabel="token", ylabel="advantage")
    axis.legend()
    ends = ", ".join(f"{lam:g}: {advantages[0]:.2f}" for lam, advantages in found.items())
    axis.set_label(
        f"Advantages of {len(rewards)} tokens, a line for each lambda. The first token's advantage "
        f"at each lambda is {ends}; the last token's is {found[lambdas[0]][-1]:.2f} at all."
    )
    figure.tight_layout()
    return figure, found


def clipping(clip=0.2):
    """PPO's objective for one token against the probability ratio, for a good and a bad advantage.

    Args:
        clip: eps.
    """
    ratio = np.linspace(0.5, 1.5, 201)
    kept = np.clip(ratio, 1 - clip, 1 + clip)
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.4))
    for place, (advantage, name) in enumerate(((1, "better than expected"), (-1, "worse"))):
        objective = np.minimum(advantage * ratio, advantage * kept)
        style = plots.series(place) | {"marker": None}
        axis.plot(ratio, objective, **style, label=f"A = {advantage:+d}: {name}")
    for edge in (1 - clip, 1 + clip):
        axis.axvline(edge, color=plots.GRAY, ls=":")
    axis.set(title="What PPO maximises", xlabel="ratio new / old", ylabel="objective of a token")
    axis.legend()
    axis.set_label(
        "Objective of one token against the ratio of its new to its old probability. With a good "
        f"advantage it rises with the ratio and stays flat above {1 + clip:g}; with a bad one it "
        f"falls with the ratio and stays flat below {1 - clip:g}."
    )
    figure.tight_layout()
    return figure


@torch.no_grad()
def attention_weights(model, items):
    """How much each place of a history looks at each other one.

    Args:
        model: ``SASRec`` in evaluation mode.
        items: L ids, oldest first, at most ``model.max_length``.

    Returns:
        float [layers, heads, L, L]; row i says where place i looks, and sums to 1.
    """
    device = model.item.weight.device
    sequence = torch.tensor([items], device=device)
    length = sequence.shape[1]
    places = torch.arange(model.max_length - length, model.max_length, device=device)
    x = model.item(sequence) + model.position(places)
    mask, found = causal_mask(sequence.ne(0))[:, None], []
    for block in model.blocks:
        parts = block.qkv(block.norm1(x)).view(1, length, 3, block.heads, -1)
        q, k, _ = parts.permute(2, 0, 3, 1, 4)  # [1, heads, L, width of a head] each
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        found.append(scores.masked_fill(~mask, -torch.inf).softmax(-1)[0])
        x = block(x, mask)
    return torch.stack(found).cpu()


def attention(model, items, titles):
    """Map of the teacher's attention over one history: mean over the heads of the last layer.

    Args:
        model: ``SASRec``.
        items: ids, oldest first.
        titles: title of each id.

    Returns:
        Figure; a square says in words what its shade says, in per cent.
    """
    weights = 100 * attention_weights(model, items)[-1].mean(0).numpy()
    names = [text_safety.figure(titles[item])[:24] for item in items]
    size = 0.36 * len(items) + 1.8
    figure, axis = plt.subplots(figsize=(size, size - 0.4))
    axis.imshow(weights, cmap="Blues", vmin=0, vmax=100)
    for row in range(len(items)):
        for column in range(row + 1):
            share = weights[row, column]
            color = "white" if share > 70 else plots.BLACK
            style = {"ha": "center", "va": "center", "fontsize": plots.SMALL, "color": color}
            axis.text(column, row, f"{share:.0f}", **style)
    axis.set_xticks(range(len(items)), names, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(items)), names)
    axis.grid(False)
    axis.set(title="Where each place looks, %", xlabel="at this title", ylabel="after this title")
    last = weights[-1]
    most = ", ".join(f"{names[i]} {last[i]:.0f} %" for i in np.argsort(-last, kind="stable")[:3])
    axis.set_label(
        f"Map of attention over {len(items)} titles, oldest first, a lower triangle: no place "
        f"looks at a later one. After the last title, {names[-1]}, it looks most at {most}."
    )
    figure.tight_layout()
    return figure
