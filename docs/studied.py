"""Fills docs/study.md with what the study's variants showed: ``python docs/studied.py``.

All runs there are of seed 0 and share data and teacher with the reference run; every number is
read from a run's tables. A test compares.
"""

from pathlib import Path

import pandas as pd
import yaml
from found import REFERENCE, ROWS, filled

from recnb import evaluation
from recnb.artifacts import read_manifest
from recnb.evaluation.wordings import CHANGES
from recnb.profile import root

PAGE = "docs/study.md"
STUDY = REFERENCE.with_name("study")
PAIRS = REFERENCE.with_name("study-pairs")
PLAIN = REFERENCE.with_name("study-plain")
TRAINED = {
    "I1+&I1-": "include A, exclude B",
    "I2<=20&I1-": "at most 20 % of A, no B",
    "I1+&I1+": "include A, include B",
}
"""Pairs of wishes that the variant ``pairs`` trains."""
HELD_OUT = {
    "I2~30&I1-": "about 30 % of A, no B",
    "I2>=30&I2<=20": "at least 30 % of A, at most 20 % of B",
}
"""Those that no run trains."""
WISHES = {
    "I1+": "include",
    "I1-": "exclude",
    "I2<=20": "at most 20 %",
    "I2~30": "about 30 %",
    "I2>=30": "at least 30 %",
}
"""The single wishes of the paper's Tables 3 and 4."""
MEANINGS = {
    "TC1¬2P": "titles of A and not of B",
    "TC1P": "titles of A",
    "TC2P": "titles of B",
    "C1PA": "lists that keep A's wish",
    "C2PA": "lists that keep B's wish",
    "Strict": "lists that are wholly right",
}
"""Metrics of Table 7, in words."""
GAINS = {
    ("I1+", "TCP"): "include: share of the category",
    ("I1-", "TCP"): "exclude: share of the category",
    ("I2<=20", "CPA"): "at most 20 %: lists that keep it",
    ("I2~30", "CPA"): "about 30 %: lists within one title",
    ("I2>=30", "CPA"): "at least 30 %: lists that keep it",
    ("format", "RepeatItem"): "k = 11 to 15: entries that repeat",
    ("format", "InHistory"): "k = 11 to 15: entries shown in the prompt",
    ("I1+&I1-", "TC1¬2P"): "include A, exclude B: titles of A and not of B",
    ("I0", "HR@10"): "no wish: HR@10",
}
"""Rows of RL's gains; the paper has each of them too."""


def studied():
    """``{mark: Markdown}`` of the page."""
    sections = {"two": _two(), "single": _single(), "rl": _gains(), "family": _family()}
    sections |= {"strict": _strict(), "reward": _rewards()}
    sections |= {"heard": _heard(), "changed": _changed(), "lengths": _lengths()}
    return {mark: "\n".join(lines) + "\n" for mark, lines in sections.items()}


def values(run):
    """A run's metrics by system, decoding, task and metric."""
    frame = pd.read_csv(run / "tables" / "metrics.csv")
    return frame.set_index(["system", "decoding", "task", "metric"])


def _two():
    ours, theirs = values(REFERENCE), values(PAIRS)
    head = ["free decoding, in %", "trained by `pairs`", "reference, when not asked"]
    head += ["reference, `full`", "`pairs`, `v2`", "`pairs`, `full`"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for task, words in (TRAINED | HELD_OUT).items():
        for metric, meaning in MEANINGS.items():
            if ("full", "free", task, metric) not in ours.index:
                continue
            cells = ["yes" if task in TRAINED else "no"]
            cells.append(_cell(ours, "full", task, f"{metric} without control"))
            cells.append(_cell(ours, "full", task, metric))
            cells += [_cell(theirs, system, task, metric) for system in ("v2", "full")]
            yield f"| {words}: {meaning} | {' | '.join(cells)} |"


def _single():
    ours, theirs = values(REFERENCE), values(PAIRS)
    yield "| `full`, free decoding, in % | reference | `pairs` |"
    yield "|---|---|---|"
    for words, (task, metric) in ROWS.items():
        cells = [_cell(frame, "full", task, metric) for frame in (ours, theirs)]
        yield f"| {words} | {' | '.join(cells)} |"


def _cell(frame, system, task, metric):
    row = frame.loc[(system, "free", task, metric)]
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _gains():
    yield "| `v2` → `full`, in % | reference | `plain` | paper, Movie | paper, Steam |"
    yield "|---" * 5 + "|"
    for (task, metric), words in GAINS.items():
        cells = [_step(run, task, metric) for run in (REFERENCE, PLAIN)]
        cells += [_papers(dataset, task, metric) for dataset in ("Movie", "Steam")]
        yield f"| {words} | {' | '.join(cells)} |"


def _step(run, task, metric):
    before, after = (values(run).loc[(s, "free", task, metric), "value"] for s in ("v2", "full"))
    row = difference(run, task, metric)
    change = f"{100 * row['difference']:+.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{100 * before:.1f} → {100 * after:.1f} ({change})"


def difference(run, task, metric):
    """The row of ``full`` - ``v2`` of a run, free decoding."""
    frame = pd.read_csv(run / "tables" / "differences.csv")
    chosen = (frame["a"] == "full-free") & (frame["b"] == "v2-free")
    [row] = frame[chosen & (frame["task"] == task) & (frame["metric"] == metric)].to_dict("records")
    return row


def _papers(dataset, task, metric):
    before, after = (papers(dataset, system, task, metric) for system in ("v2", "full"))
    return f"{before:.1f} → {after:.1f} ({after - before:+.1f})"


def papers(dataset, system, task, metric):
    """A number of the paper, in percent."""
    source = Path(evaluation.__file__).with_name("paper.yaml")
    for table in yaml.safe_load(source.read_text("utf-8")).values():
        if f"{task} {metric}" in table.get("columns", []):
            number = table[dataset][system][table["columns"].index(f"{task} {metric}")]
            number = number[0] if isinstance(number, list) else number
            return 100 * number if metric.startswith("HR") else number
    raise KeyError(f"{source.name}: {task} {metric}")


def _strict():
    columns = [(run, system) for run in (REFERENCE, PLAIN, PAIRS) for system in ("v2", "full")]
    head = ["reference, `v2`", "`full`", "`plain`, `v2`", "`full`", "`pairs`, `v2`", "`full`"]
    yield f"| Strict, free decoding, in % | {' | '.join(head)} |"
    yield "|---" * (len(head) + 1) + "|"
    frames = {run: values(run) for run, _ in columns}
    for task, words in WISHES.items():
        found = [frames[run].loc[(name, "free", task, "Strict"), "value"] for run, name in columns]
        yield f"| {words} | {' | '.join(f'{100 * value:.1f}' for value in found)} |"


def _family():
    runs = {"reference": REFERENCE, "`plain`": PLAIN, "`pairs`": PAIRS}
    tables = [
        pd.read_csv(run / "tables" / "primary.csv").set_index("name") for run in runs.values()
    ]
    yield f"| RL's part of the fixed family | {' | '.join(runs)} |"
    yield "|---" * (len(runs) + 1) + "|"
    for name, first in tables[0].iterrows():
        if (first["a"], first["b"]) == ("full-free", "v2-free"):
            cells = [_verdict(table.loc[name]) for table in tables]
            yield f"| {name}: {first['claim']} | {' | '.join(cells)} |"


def _verdict(row):
    difference, low, high = (f"{100 * row[name]:+.2f}" for name in ("difference", "low", "high"))
    return f"{difference} [{low}, {high}], {row['verdict']}"


def _rewards():
    yield "| held-out users | `v2` | `full` | teacher + filter, from the prompt | of the distance |"
    yield "|---" * 5 + "|"
    for name, run in {"reference": REFERENCE, "`plain`": PLAIN, "`pairs`": PAIRS}.items():
        one = read_manifest(run / "05_ppo", "05_ppo")["numbers"]
        gain, room = one["after"] - one["before"], one["filter, prompt only"] - one["before"]
        yield (
            f"| {name} | {one['before']:.2f} | {one['after']:.2f} | "
            f"{one['filter, prompt only']:.2f} | {100 * gain / room:.0f} % |"
        )


def wordings(system="full"):
    """Rows of a system, one a wish, by the paper's metric."""
    frame = pd.read_csv(STUDY / "tables" / "wording.csv").set_index("system").loc[system]
    return frame[frame["metric"] != "Strict"]


def _heard():
    columns = ["metric", "without a wish", "trained wording", "paraphrases"]
    columns += ["told from no wish", "taken for the opposite"]
    head = ["wish", "", "no wish", "trained words", "22 others", "heard", "taken for the opposite"]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in wordings().to_dict("records"):
        yield f"| {_wish(row)} | {' | '.join(str(row[name]) for name in columns)} |"


def _changed():
    yield f"| | no wish | trained words | {' | '.join(CHANGES)} |"
    yield "|---" * (len(CHANGES) + 3) + "|"
    for row in wordings().to_dict("records"):
        names = ["without a wish", "trained wording", *CHANGES]
        yield f"| {_wish(row)} ({row['metric']}) | {' | '.join(str(row[n]) for n in names)} |"


def _wish(row):
    return row["wish"].partition("(")[2].removesuffix(")")


def lengths():
    """``about 30 %`` of ``full`` by decoding and length of the list."""
    frame = pd.read_csv(STUDY / "tables" / "exactness.csv")
    frame = frame[(frame["system"] == "full") & (frame["task"] == "I2~30 by k")]
    return frame.set_index(["decoding", "k", "metric"])["value"]


def _lengths():
    values = lengths()
    ks = sorted(set(values.index.get_level_values("k")))
    yield f"| `full`, lists of | {' | '.join(map(str, ks))} |"
    yield "|---" * (len(ks) + 1) + "|"
    for metric, words in {"Exact": "exact", "CPA": "within one title"}.items():
        for decoding in ("free", "obey"):
            cells = [f"{100 * values[decoding, k, metric]:.0f}" for k in ks]
            yield f"| {words}, {decoding} | {' | '.join(cells)} |"


if __name__ == "__main__":
    page = root() / PAGE
    page.write_text(filled(page.read_text("utf-8"), studied()), "utf-8")
