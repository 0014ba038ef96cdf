"""Does the training reward rise? The rewards of one prompt, seen early and late, tell.

How much a prompt can earn differs far more between prompts than RL changes it: a curve of mean
rewards shows which prompts were drawn. Where prompts return, each prompt's own mean is taken off.
"""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd


class Ledger:
    """The reward of every answer of a training, one JSON line each: step, prompt, reward.

    Args:
        path: the file; what an earlier start wrote at ``step`` or later is dropped.
        step: the PPO step the training starts, or goes on, with.
    """

    def __init__(self, path, step=0):
        self.path = path
        kept = [row for row in read_ledger(path) if row["step"] < step] if path.is_file() else []
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def add(self, step, prompts, rewards):
        """Note the answers of one step."""
        with open(self.path, "a", encoding="utf-8") as file:
            for prompt, reward in zip(prompts, rewards, strict=True):
                row = {"step": step, "prompt": prompt, "reward": round(reward, 4)}
                file.write(json.dumps(row) + "\n")


def read_ledger(path):
    """The rows of a ledger; a last line that a power cut left unfinished is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


@dataclass
class Trend:
    """Change of the reward over a whole training."""

    rise: float
    """Slope within prompts, times the number of steps."""
    error: float
    """Its standard error; a prompt's answers count as one cluster."""
    visits: float
    """Mean number of steps in which a prompt was used."""


def adjusted(rows):
    """DataFrame step, prompt, reward, and ``reward above its prompt's mean``."""
    frame = pd.DataFrame(rows)
    mean = frame.groupby("prompt")["reward"].transform("mean")
    return frame.assign(**{"reward above its prompt's mean": frame["reward"] - mean})


def trend(rows):
    """Least squares of reward on step with an intercept for every prompt.

    Args:
        rows: of a ``Ledger``.

    Returns:
        ``Trend``, or None if no prompt was used in two steps.
    """
    frame = adjusted(rows)
    y = frame["reward above its prompt's mean"]
    x = frame["step"] - frame.groupby("prompt")["step"].transform("mean")
    spread = float((x**2).sum())
    if not spread:
        return None
    slope = float((x * y).sum()) / spread
    scores = (x * (y - slope * x)).groupby(frame["prompt"]).sum()
    error = float(np.sqrt((scores**2).sum())) / spread
    steps = int(frame["step"].max()) - int(frame["step"].min()) + 1
    visits = frame.groupby("prompt")["step"].nunique().mean()
    return Trend(slope * steps, error * steps, float(visits))
