"""Many systems' answers to one run's requests, side by side: who leads, and who is tied.

A table of means invites people to read every difference as one. So each pair of systems is
tested, user by user, and two systems stay tied until a test, corrected for all pairs of its metric,
tells them apart.
"""

import hashlib
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd

from recnb import RecnbError, text_safety
from recnb.artifacts import atomic_path, write_csv
from recnb.evaluation.metrics import bootstrap_interval, on_grid
from recnb.evaluation.primary import WISHES
from recnb.evaluation.protocol import values_of_texts
from recnb.evaluation.statistics import FLIPS, tested
from recnb.evaluation.stored import read_answers, run_requests
from recnb.page import page

METRICS = {
    "wishes Strict": (WISHES, "Strict", 1),
    "I0 HR@10": (("I0",), "HR@10", 1),
    "I0 NDCG@10": (("I0",), "NDCG@10", 1),
    "I2~30 Exact": (("I2~30",), "Exact", 1),
    "format RepeatItem": (("format",), "RepeatItem", -1),
}
"""Tasks (several: their mean for each user), metric, and whether more (1) or less (-1) is better.
The first one ranks."""
LEVEL = 0.05
OTHERS = (".metrics.csv",)
"""Files beside the answers that are none: what ``recnb score`` writes."""


@dataclass
class Board:
    """What ``rank`` found.

    Attributes:
        systems: DataFrame with a row a system, the best first: system, then value, low, high and n
            of each metric, as columns ``(metric, part)``; NaN where its tasks were not answered.
        pairs: DataFrame of all tests: metric, a, b, n, difference (a - b), low, high, p,
            p corrected, better ("" = tied).
        problems: a sentence for each file that was left out, with its name and line.
        notes: sentences about files with the same answers, and about tests that cannot decide.
    """

    systems: pd.DataFrame
    pairs: pd.DataFrame
    problems: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def tied(self, system, metric):
        """The systems that no test tells apart from this one."""
        rows = self.pairs[(self.pairs["metric"] == metric) & (self.pairs["better"] == "")]
        others = [b if a == system else a for a, b in rows[["a", "b"]].values if system in (a, b)]
        return sorted(others)


def rank(folder, run_folder):
    """Score every CSV file of a folder and test all pairs.

    Args:
        folder: holds the answers, a file a system, named after it.
        run_folder: of the run whose requests were answered.

    Returns:
        ``Board``.

    Raises:
        RecnbError: no such folder, no file in it, or none that can be scored.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RecnbError(f"{folder}: no folder of answers")
    files = [path for path in sorted(folder.glob("*.csv")) if not path.name.endswith(OTHERS)]
    if not files:
        raise RecnbError(f"{folder}: no CSV file with the columns task, user, text")
    profile, catalog, requests = run_requests(run_folder)
    users, digests, problems = {}, {}, []
    for path in files:
        try:
            if path.is_symlink():
                raise RecnbError("a link is not followed: put the file itself here")
            table = read_answers(path)
            values = values_of_texts(table, requests, catalog)
        except RecnbError as error:
            said = str(error)
            problems.append(said if str(path) in said else f"{path.name}: {said}")
            continue
        users[path.stem] = _columns(values)
        digests.setdefault(_digest(table), []).append(path.name)
    if not users:
        raise RecnbError("\n".join([f"{folder}: no file can be scored", *problems]))
    notes = [f"{', '.join(names)} hold the same answers" for names in digests.values() if names[1:]]
    knobs, seed = profile.evaluation, profile.seed
    pairs = _pairs(users, knobs.bootstrap, seed)
    most = pairs["metric"].value_counts().max() if len(pairs) else 0
    if most / (FLIPS + 1) >= LEVEL:
        notes.append(
            f"{most:,} pairs a metric are too many for {FLIPS:,} sign flips: after correction no "
            "difference can be shown; rank fewer systems"
        )
    return Board(_systems(users, knobs.bootstrap, seed), pairs, problems, notes)


def _columns(values):
    """``{metric: numbers by user}`` of the board's metrics whose tasks were all answered."""
    wide = values.pivot(index="user", columns=["task", "metric"], values="value")
    found = {}
    for name, (tasks, metric, _) in METRICS.items():
        keys = [(task, metric) for task in tasks]
        if all(key in wide for key in keys):
            found[name] = wide[keys].dropna().mean(axis=1)
    return found


def _digest(table):
    """Of what was answered, in whatever order the rows stand."""
    rows = sorted(table[["task", "user", "text"]].astype(str).itertuples(index=False, name=None))
    return hashlib.sha256(repr(rows).encode("utf-8", "surrogatepass")).hexdigest()


def _systems(users, resamples, seed):
    rows = {}
    for system, columns in users.items():
        row = {}
        for name, column in columns.items():
            low, high = bootstrap_interval(column, resamples, seed)
            parts = {"value": on_grid(column).mean(), "low": low, "high": high, "n": len(column)}
            row |= {(name, part): value for part, value in parts.items()}
        rows[system] = row
    parts = [(name, part) for name in METRICS for part in ("value", "low", "high", "n")]
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame = frame.reindex(columns=pd.MultiIndex.from_tuples(parts))
    return frame.sort_values((next(iter(METRICS)), "value"), ascending=False, kind="stable")


def _pairs(users, resamples, seed):
    """All pairs of systems; Holm's correction runs over the pairs of each metric."""
    found = []
    for name in METRICS:
        for a, b in combinations([system for system in users if name in users[system]], 2):
            difference = (users[a][name] - users[b][name]).dropna().to_numpy()
            if len(difference) > 1:
                found.append(((name, a, b, "", ""), difference))
    frame = tested(found, resamples, seed).drop(columns=["task", "metric", "detectable"])
    frame = frame.rename(columns={"table": "metric"})
    better, columns = [], ["metric", "a", "b", "difference", "p corrected"]
    for metric, a, b, difference, p in frame[columns].itertuples(index=False, name=None):
        ahead = a if difference * METRICS[metric][2] > 0 else b
        better.append(ahead if p < LEVEL else "")
    return frame.assign(better=better)


def write_leaderboard(board, folder):
    """Write leaderboard.csv, pairs.csv, leaderboard.md and leaderboard.html; returns the last.

    Args:
        board: from ``rank``.
        folder: is made if it is not there.
    """
    folder = Path(folder)
    numbers = board.systems.copy()
    numbers.columns = [name if part == "value" else f"{name} {part}" for name, part in numbers]
    numbers = numbers.rename_axis("system").reset_index()
    for name, frame in (("leaderboard", numbers), ("pairs", board.pairs)):
        frame = frame.map(lambda cell: text_safety.spreadsheet(cell) if type(cell) is str else cell)
        write_csv(frame, folder / f"{name}.csv", 6)
    with atomic_path(folder / "leaderboard.md") as temporary:
        temporary.write_text(_markdown(board), encoding="utf-8")
    with atomic_path(folder / "leaderboard.html") as temporary:
        temporary.write_text(_page(board), encoding="utf-8")
    return folder / "leaderboard.html"


def _shown(board, safe):
    """The table for people: mean [interval], rank by the first metric, and who is tied in it."""
    first, rows = next(iter(METRICS)), []
    for place, (system, row) in enumerate(board.systems.iterrows(), start=1):
        shown = {"": place, "system": safe(system)}
        for name in METRICS:
            value, low, high = (row[name, part] for part in ("value", "low", "high"))
            absent = pd.isna(value)
            shown[name] = "not answered" if absent else f"{value:.3f} [{low:.3f}, {high:.3f}]"
        tied = board.tied(system, first)
        shown[f"tied with ({first})"] = safe(", ".join(tied)) if tied else "nobody"
        rows.append(shown)
    return pd.DataFrame(rows)


ABOUT = (
    "Means with 95 % intervals over users. *Wishes Strict* is the share of answers that are what "
    "was asked for, whole, over the five wishes of Tables 3 and 4; it ranks. Of *RepeatItem* less "
    "is better. Each pair of systems is tested user by user (sign flips, two-sided), and Holm's "
    "correction runs over all pairs of a metric. Tied means that no difference is shown, not that "
    "there is none."
)


def _told(board, safe):
    """For each metric, who is shown to be better than whom."""
    lines = []
    for name in METRICS:
        rows = board.pairs[board.pairs["metric"] == name]
        shown = rows[rows["better"] != ""]
        parts = []
        for winner in board.systems.index[board.systems.index.isin(shown["better"])]:
            group = shown[shown["better"] == winner]
            losers = [b if a == winner else a for a, b in group[["a", "b"]].values]
            parts.append(f"{safe(winner)} before {safe(', '.join(sorted(losers)))}")
        lines.append((name, f"{len(shown)} of {len(rows)} pairs differ. {'; '.join(parts)}"))
    return lines


def _markdown(board):
    safe = text_safety.markdown
    table = _shown(board, safe).to_markdown(index=False, disable_numparse=True)
    lines = [f"- {name}: {told}" for name, told in _told(board, safe)]
    parts = ["# Leaderboard", ABOUT, table, "\n".join(lines)]
    for head, sentences in (("Left out", board.problems), ("Notes", board.notes)):
        if sentences:
            parts += [f"## {head}", "\n".join(f"- {safe(sentence)}" for sentence in sentences)]
    return "\n\n".join(parts) + "\n"


def _page(board):
    safe = text_safety.html
    table = _shown(board, safe).rename(columns=safe)
    lines = "".join(f"<li>{safe(name)}: {told}</li>" for name, told in _told(board, safe))
    parts = [
        f"<h1>Leaderboard</h1><p>{safe(ABOUT).replace('*', '')}</p>",
        table.to_html(index=False, escape=False, border=0),
        f"<ul>{lines}</ul>",
    ]
    for head, sentences in (("Left out", board.problems), ("Notes", board.notes)):
        if sentences:
            items = "".join(f"<li>{safe(sentence)}</li>" for sentence in sentences)
            parts.append(f"<h2>{head}</h2><ul>{items}</ul>")
    return page("Leaderboard", "\n".join(parts))
