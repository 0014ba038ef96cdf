"""Which differences are real: paired tests over the same users, corrected for their number; and runs over several seeds."""

import numpy as np
import pandas as pd

from recnb.evaluation.metrics import bootstrap_interval
from recnb.evaluation.tables import LAYOUT

FLIPS = 10_000
COLUMNS = ["table", "a", "b", "task", "metric", "n", "difference", "low", "high", "p", "p corrected", "detectable"]


def sign_flip_p(differences, signs):
    """Two-sided p-values of paired differences: how often random signs move the mean as far from 0 as it is.

    Args:
        differences: float [n, m], one row a user, one column a comparison.
        signs: -1 or 1 [flips, n].

    Returns:
        float [m]; never below 1 / (flips + 1).
    """
    means = np.abs(signs.astype(np.float32) @ differences.astype(np.float32))
    found = np.abs(differences.sum(0)).astype(np.float32)
    return (1 + (means >= found * (1 - 1e-5)).sum(0)) / (len(signs) + 1)


def holm(p):
    """Holm's correction: p-values that keep the chance of any false find in the whole family at the level asked for."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def detectable(differences):
    """The smallest mean difference that this many users would show at the 5 % level in four of five repetitions."""
    differences = np.asarray(differences, dtype=float)
    return (1.96 + 0.84) * differences.std(ddof=1) / np.sqrt(len(differences))


def pairs(users):
    """What is compared: full with every other system that decodes alike, and full's ways of decoding with each other."""
    keys = list(users)
    full = [key for key in keys if key[0] == "full"]
    found = [(a, b) for a in full for b in keys if b[0] != "full" and b[1] == a[1]]
    return found + [(b, a) for i, a in enumerate(full) for b in full[i + 1 :]]


def comparisons(users, resamples, seed):
    """Paired differences of every metric of the tables.

    Args:
        users: ``{(system, decoding): per_user DataFrame}``.
        resamples: for the bootstrap intervals.

    Returns:
        DataFrame with ``COLUMNS``; Holm's correction runs over all its rows. Only the users both systems answered count.
    """
    wide = {key: frame.pivot(index="user", columns=["task", "metric"], values="value") for key, frame in users.items()}
    rows, p = [], []
    for table, kinds in LAYOUT.items():
        for task in dict.fromkeys(task for task, _ in kinds):
            metrics = [metric for t, metric in kinds if t == task]
            for a, b in pairs(users):
                if not all((task, metric) in wide[key] for key in (a, b) for metric in metrics):
                    continue
                columns = [(task, metric) for metric in metrics]
                difference = (wide[a][columns] - wide[b][columns]).dropna().to_numpy()
                signs = np.random.default_rng([seed, 113]).choice(np.array([-1, 1], np.int8), size=(FLIPS, len(difference)))
                p += sign_flip_p(difference, signs).tolist()
                for metric, column in zip(metrics, difference.T, strict=True):
                    low, high = bootstrap_interval(column, resamples, seed)
                    rows.append((table, "-".join(a), "-".join(b), task, metric, len(column), column.mean(), low, high, None,
                                 None, detectable(column)))  # fmt: skip
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.assign(**{"p": p, "p corrected": holm(p)})


def over_seeds(frames):
    """Mean and standard deviation over runs that differ in their seed alone.

    Args:
        frames: list of ``metrics.csv`` tables, one a run.

    Returns:
        DataFrame system, decoding, task, metric, mean, sd, runs; rows that some run lacks count the runs that have them.
    """
    keys = ["table", "system", "decoding", "task", "metric"]
    values = pd.concat(frames).dropna(subset="value").groupby(keys, sort=False)["value"]
    return values.agg(mean="mean", sd="std", runs="size").reset_index()
