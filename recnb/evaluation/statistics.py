"""Which differences are real: paired tests over the same users, corrected; several seeds."""

import numpy as np
import pandas as pd

from recnb.evaluation.metrics import bootstrap_interval, on_grid
from recnb.evaluation.tables import LAYOUT

FLIPS = 50_000
COLUMNS = [
    "table",
    "a",
    "b",
    "task",
    "metric",
    "n",
    "difference",
    "low",
    "high",
    "p",
    "p corrected",
    "detectable",
]


def sign_flip_p(differences, flips, seed, chunk=1000):
    """Two-sided p-values: how often random signs move a mean difference as far from 0 as it is.

    Args:
        differences: float [n, m], one row a user, one column a comparison.
        flips: number of random sign vectors, the same for all columns.
        chunk: so many of them in memory at a time.

    Returns:
        float [m]; never below 1 / (flips + 1).
    """
    rng = np.random.default_rng([seed, 113])
    values = on_grid(differences)
    found, far = np.abs(values.sum(0)), np.zeros(values.shape[1], dtype=np.int64)
    for start in range(0, flips, chunk):
        size = (min(chunk, flips - start), len(values))
        signs = 2 * rng.integers(0, 2, size=size, dtype=np.int8) - 1
        far += (np.abs(signs.astype(float) @ values) >= found).sum(0)
    return (1 + far) / (flips + 1)


def holm(p):
    """Holm's correction: keeps the chance of any false find in the whole family at the level."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def detectable(differences):
    """The smallest mean difference that an uncorrected 5 % test shows four times out of five."""
    differences = np.asarray(differences, dtype=float)
    return (1.96 + 0.84) * differences.std(ddof=1) / np.sqrt(len(differences))


def pairs(users):
    """Full with every other system that decodes alike, and full's ways of decoding in pairs."""
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
        DataFrame with ``COLUMNS``. Holm's correction runs over the rows of each table in which any
        user differs: where both systems are alike by construction, nothing is tested. Only the
        users both systems answered count.
    """
    wide = {
        key: frame.pivot(index="user", columns=["task", "metric"], values="value")
        for key, frame in users.items()
    }
    found = []
    for table, kinds in LAYOUT.items():
        for task in dict.fromkeys(task for task, _ in kinds):
            metrics = [metric for t, metric in kinds if t == task]
            for a, b in pairs(users):
                columns = [(task, metric) for metric in metrics]
                if not all(column in wide[a] and column in wide[b] for column in columns):
                    continue
                difference = (wide[a][columns] - wide[b][columns]).dropna().to_numpy()
                for metric, column in zip(metrics, difference.T, strict=True):
                    found.append(((table, "-".join(a), "-".join(b), task, metric), column))
    return tested(found, resamples, seed)


def tested(found, resamples, seed):
    """Interval, p-value and correction of paired differences.

    Args:
        found: ``((table, a, b, task, metric), differences float [n])`` of each comparison.
        resamples: for the bootstrap intervals.

    Returns:
        As for ``comparisons``.
    """
    rows, columns_of = [], {}
    for which, column in found:
        low, high = bootstrap_interval(column, resamples, seed)
        columns_of.setdefault(len(column), []).append((len(rows), column))
        mean = on_grid(column).mean()
        rows.append((*which, len(column), mean, low, high, None, None, detectable(column)))
    p = np.empty(len(rows))
    for columns in columns_of.values():  # of as many users each: they share the random signs
        places, values = zip(*columns, strict=True)
        p[list(places)] = sign_flip_p(np.stack(values, 1), FLIPS, seed)
    frame = pd.DataFrame(rows, columns=COLUMNS).assign(p=p)
    alike = frame["detectable"].eq(0) & frame["difference"].eq(0)  # 0 for every user: no test
    corrected = frame[~alike].groupby("table")["p"].transform(holm)
    return frame.assign(**{"p corrected": corrected.reindex(frame.index, fill_value=1.0)})
