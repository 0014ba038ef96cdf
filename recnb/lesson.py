"""What lessons show beside results: code as it stands in the kit, pictures of the arithmetic."""

import ast
import inspect
import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch

from recnb import plots
from recnb.ppo.ppo_math import gae

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
