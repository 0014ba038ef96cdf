"""The comparisons that count, fixed beforehand, and nothing else: docs/primary.md says why.

A run makes hundreds of comparisons, and some of them look real by chance. These few are the ones
that count. Their p-values are corrected over exactly this family, whatever else is computed; all
other differences (``differences.csv``) are exploratory: ideas for a next run, no findings.
"""

import numpy as np
import pandas as pd

from recnb.artifacts import write_csv
from recnb.evaluation.statistics import holm, tested
from recnb.evaluation.tables import percent, write_frame

RL = ("full-free", "v2-free")
WISHES = ("I1+", "I1-", "I2<=20", "I2~30", "I2>=30")
PRIMARY = [
    ("P1", "the supervised tasks teach wishes", "v2-free", "v1-free", WISHES, "Strict", "+"),
    ("P2", "RL gives more lists that are wholly right", *RL, WISHES, "Strict", "+"),
    (
        "P3",
        "so does the item reward, beside RL without",
        "full-free",
        "v3-free",
        WISHES,
        "Strict",
        "+",
    ),
    ("P4", "RL comes to the exact share more often", *RL, ("I2~30",), "Exact", "+"),
    ("P5", "RL repeats fewer titles", *RL, ("format",), "RepeatItem", "-"),
    ("P6", "RL names fewer titles of the prompt", *RL, ("format",), "InHistory", "-"),
    ("P7", "RL names fewer titles that the user has", *RL, ("format",), "Seen", "-"),
    ("P8", "RL costs accuracy", *RL, ("I0",), "HR@10", "-"),
    ("P9", "RL does so for two wishes at once", *RL, ("I1+&I1-",), "Strict", "+"),
    (
        "P10",
        "decoding in the catalogue hits more often",
        "full-constrained",
        "full-free",
        ("I0",),
        "HR@10",
        "+",
    ),
    (
        "P11",
        "the student hits less often than a teacher with the same information",
        "full-free",
        "sasrec_prompt-free",
        ("I0",),
        "HR@10",
        "-",
    ),
]
"""Name, claim, a, b, tasks (several: their mean for each user), metric, expected sign of a - b.

:meta hide-value:
"""
COLUMNS = [
    "name",
    "claim",
    "a",
    "b",
    "task",
    "metric",
    "expected",
    "n",
    "difference",
    "low",
    "high",
    "p",
    "p corrected",
    "verdict",
]


def task_text(tasks):
    """The tasks as the tables and docs/primary.md name them."""
    return tasks[0] if len(tasks) == 1 else f"mean of {', '.join(tasks)}"


def primary(users, resamples, seed):
    """The family, computed from per-user values.

    A comparison whose systems did not answer stays in the family with p = 1: leaving a system out
    makes no other comparison easier.

    Args:
        users: ``{(system, decoding): per_user DataFrame}``.
        resamples: for the bootstrap intervals.

    Returns:
        DataFrame with ``COLUMNS``, one row a comparison of ``PRIMARY``.
    """
    values = {"-".join(key): frame for key, frame in users.items()}
    found, reasons = [], {}
    for name, _, a, b, tasks, metric, _ in PRIMARY:
        lacking = [system for system in (a, b) if system not in values]
        if lacking:
            reasons[name] = f"not computed: no answers of {' and '.join(lacking)}"
            continue
        difference = _each_user(values[a], tasks, metric) - _each_user(values[b], tasks, metric)
        difference = difference.dropna().to_numpy()
        if len(difference) < 2:
            reasons[name] = "not computed: fewer than two users were asked"
            continue
        found.append((("primary", a, b, name, metric), difference))
    rows = tested(found, resamples, seed).set_index("task")  # the name stands in its place
    family = []
    for name, claim, a, b, tasks, metric, expected in PRIMARY:
        row = {
            "name": name,
            "claim": claim,
            "a": a,
            "b": b,
            "task": task_text(tasks),
            "metric": metric,
        }
        row |= {"expected": expected, "n": 0, "verdict": reasons.get(name, "")}
        if name in rows.index:
            row |= rows.loc[name, ["n", "difference", "low", "high", "p"]].to_dict()
        family.append(row)
    frame = pd.DataFrame(family).reindex(columns=COLUMNS)
    numbers = ["difference", "low", "high", "p"]
    frame[numbers] = frame[numbers].astype(float)
    frame["n"] = frame["n"].astype(int)
    frame["p corrected"] = np.where(frame["p"].notna(), holm(frame["p"].fillna(1.0)), np.nan)
    frame["verdict"] = [row.verdict or verdict(row) for row in _rows(frame)]
    return frame


def _each_user(frame, tasks, metric):
    """Each user's value; over several tasks the mean, of users who were asked all of them."""
    chosen = frame[frame["task"].isin(tasks) & (frame["metric"] == metric)]
    wide = chosen.pivot(index="user", columns="task", values="value").reindex(columns=list(tasks))
    return wide.dropna().mean(axis=1)


def _rows(frame):
    return frame.rename(columns={"p corrected": "corrected"}).itertuples()


def verdict(row):
    """What may be said of one comparison at the 5 % level of the whole family."""
    if row.corrected >= 0.05:
        return "not shown"
    as_expected = (row.difference > 0) == (row.expected == "+")
    return "shown" if as_expected else "the opposite is shown"


def readable(frame):
    """The family as text cells: points for rates, fractions for HR and NDCG."""
    cells = []
    for row in _rows(frame):
        cell = {
            "": row.name,
            "claim": row.claim,
            "difference of": f"{row.a} - {row.b}",
            "in": row.task,
        }
        cell |= {"metric": row.metric, "expected": row.expected, "users": str(row.n)}
        if row.n:
            cell["difference [95 % interval]"] = effect_text(row)
            cell["p"], cell["p, corrected"] = p_text(row.p), p_text(row.corrected)
        cells.append(cell | {"verdict": row.verdict})
    columns = ["", "claim", "difference of", "in", "metric", "expected", "users"]
    columns += ["difference [95 % interval]", "p", "p, corrected", "verdict"]
    return pd.DataFrame(cells).reindex(columns=columns).fillna("")


def p_text(p):
    """Four digits; no p is shown as 0."""
    return f"{p:.4f}" if p >= 0.00005 else "< 0.0001"


def effect_text(row):
    """A difference with its interval: +1.20 points [0.31, 2.10], +0.0120 [...] for HR and NDCG."""
    if percent(row.metric):
        low, high = 100 * row.low, 100 * row.high
        return f"{100 * row.difference:+.2f} points [{low:.2f}, {high:.2f}]"
    return f"{row.difference:+.4f} [{row.low:.4f}, {row.high:.4f}]"


def sentences(frame):
    """The family in words, one sentence a comparison.

    Args:
        frame: from ``primary``, or ``primary.csv`` as it was read.
    """
    lines = []
    for row in _rows(frame):
        line = f"{row.name}, {row.claim}: {row.verdict}."
        if row.n:
            line += (
                f" {row.a} - {row.b}, {row.metric}, {row.task}: {effect_text(row)}, corrected p "
                f"{p_text(row.corrected)}."
            )
        lines.append(line)
    return lines


def verdicts(frame, column="verdict", whose=""):
    """The family in a few lines: what is shown, what is not.

    Args:
        frame: from ``readable`` here, or over seeds from ``recnb.evaluation.seeds.readable``.
        column: of ``frame``, with the verdicts.
        whose: they are, if not this run's: "over 3 seeds".
    """
    lines, fixed = [], f"comparisons fixed beforehand, {whose and f'{whose}, '}"
    for found, rows in frame.groupby(column, sort=False):
        claims = "; ".join(rows[""] + " " + rows["claim"])
        lines.append(f"Of the {len(frame)} {fixed}{found}: {claims}.")
    return lines


def write_primary(frame, folder):
    """Write the family as text in four formats; ``primary.csv`` holds the numbers themselves."""
    write_frame(readable(frame), folder, "primary")
    write_csv(frame, folder / "primary.csv", 6)


def in_family(differences):
    """For each row of ``differences.csv``: "primary" if the family has it too, or "exploratory"."""
    single = {(a, b, tasks[0], m) for _, _, a, b, tasks, m, _ in PRIMARY if len(tasks) == 1}
    keys = zip(*(differences[c] for c in ("a", "b", "task", "metric")), strict=True)
    return ["primary" if key in single else "exploratory" for key in keys]
