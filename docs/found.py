"""Fills README and docs/second_catalogue.md with what was found: ``python docs/found.py``.

Every number there is read from the run's tables; with a summary over seeds (``recnb summarise``)
they are means, and a difference counts where the summary calls it real. A test compares.
"""

import json
from pathlib import Path

import pandas as pd

from recnb.artifacts import read_manifest
from recnb.evaluation import seeds
from recnb.evaluation.findings import in_plain_words
from recnb.evaluation.primary import readable
from recnb.profile import STAGES, load, root

REFERENCE = root() / "papermill_runs" / "reference" / "laptop"
PAGES = {"README.md": REFERENCE, "docs/second_catalogue.md": REFERENCE.with_name("tweets")}
"""Pages with marks, and the run that each of them quotes."""
SYSTEMS = {
    "teacher": ("sasrec", "free"),
    "teacher, 10 items": ("sasrec_prompt", "free"),
    "v2 free": ("v2", "free"),
    "full free": ("full", "free"),
    "full constrained": ("full", "constrained"),
    "full obey": ("full", "obey"),
}
"""Columns of the table."""
ROWS = {
    "no wish: HR@10": ("I0", "HR@10"),
    "include: share of the category": ("I1+", "TCP"),
    "exclude: share of the category": ("I1-", "TCP"),
    "at most 20 %: lists that keep it": ("I2<=20", "CPA"),
    "about 30 %: lists within one title": ("I2~30", "CPA"),
    "about 30 %: lists with exactly 3 of 10": ("I2~30", "Exact"),
    "at least 30 %: lists that keep it": ("I2>=30", "CPA"),
    "k = 11 to 15: entries that repeat": ("format", "RepeatItem"),
    "k = 11 to 15: entries shown in the prompt": ("format", "InHistory"),
    "k = 11 to 15: entries the user had before": ("format", "Seen"),
}
"""Its rows: all in %."""
TWO = {
    "include A, exclude B: titles of A and not of B": ("I1+&I1-", "TC1¬2P"),
    "about 30 % of A, no B: lists within one title of A's share": ("I2~30&I1-", "C1PA"),
    "at least 30 % of A, at most 20 % of B: lists that keep A's": ("I2>=30&I2<=20", "C1PA"),
}
"""Two wishes at once."""


def found(reference):
    """What stands between the marks of a page.

    Args:
        reference: folder of a finished run.

    Returns:
        ``{mark: Markdown}``: ``words`` for everybody, ``numbers`` for those who want them; of
        another run than the reference also ``beside``, both runs' numbers.
    """
    metrics = pd.read_csv(reference / "tables" / "metrics.csv")
    over = seeds.read_summary(reference)
    if over:
        metrics = over[1]
        names = ", ".join(map(str, over[0]))
        whose = f"Means of {len(over[0])} runs that differ in their seed alone ({names})"
        spread = ", ± their standard deviation"
    else:
        whose, spread = "One run (seed 0)", ""
    effects = over[2] if over else _primary(reference)
    words = [f"{whose}:", "", *(f"- {line}" for line in in_plain_words(metrics, effects))]
    own = reference == REFERENCE
    lines = [_cost(reference), ""] if own else []
    asked = load(reference / "profile.yaml").evaluation.users or "all"
    lines += [f"{whose}{spread}, {asked} test users, in %:", "", f"| | {' | '.join(SYSTEMS)} |"]
    lines.append("|---" * (len(SYSTEMS) + 1) + "|")
    values = metrics.set_index(["system", "decoding", "task", "metric"])
    for name, row in ROWS.items():
        cells = [_cell(values, (*system, *row)) for system in SYSTEMS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *_beside_teachers(values), "", *_learned(reference, bool(over))]
    lines += ["", "**Two wishes at once** never stood together in training (free decoding, in %):"]
    lines += ["", "| | base | v2 | full | full, when not asked |", "|---" * 5 + "|"]
    for name, (task, metric) in TWO.items():
        cells = [_cell(values, (s, "free", task, metric)) for s in ("base", "v2", "full")]
        cells.append(_cell(values, ("full", "free", task, f"{metric} without control")))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    page = "docs/primary.md"
    link = f"[{page}]({page if own else Path(page).name})"
    lines += ["", f"The comparisons that were fixed beforehand ({link})"]
    table = seeds.readable(effects) if over else readable(effects)
    if over:
        lines[-1] += ", over the seeds"
    lines[-1] += ". Strict is the share of lists that are wholly right:"
    lines += ["", *_family(table, "over the seeds" if over else "verdict")]
    sections = {"words": words, "numbers": lines}
    if not own:
        sections["beside"] = list(_beside(reference))
    return {mark: "\n".join(section) + "\n" for mark, section in sections.items()}


def _beside(reference):
    """The reference run's numbers and this run's, of ``full`` in free decoding."""
    found = []
    for run in (REFERENCE, reference):
        over = seeds.read_summary(run)
        metrics = over[1] if over else pd.read_csv(run / "tables" / "metrics.csv")
        found.append(metrics.set_index(["system", "decoding", "task", "metric"]))
    yield "| `full`, free decoding, in % | MovieLens-100K, three seeds | here |"
    yield "|---|---|---|"
    for name, row in ROWS.items():
        cells = [_cell(values, ("full", "free", *row)) for values in found]
        yield f"| {name} | {' | '.join(cells)} |"
    for name, (task, metric) in TWO.items():
        cells = [_cell(values, ("full", "free", task, metric)) for values in found]
        yield f"| {name} | {' | '.join(cells)} |"


def _cost(reference):
    made = [read_manifest(reference / stage, stage) for stage in STAGES]
    speed = json.loads((reference.parent / "speed.json").read_text("utf-8"))
    cores = "one core" if speed["cores"] == 1 else f"{speed['cores']} cores"
    return (
        f"It took {sum(one['wall_seconds'] for one in made) / 60:.0f} minutes on {cores} "
        f"({speed['processor']}) and {max(one['peak_memory_mib'] for one in made) / 1024:.1f} GiB "
        "of memory."
    )


def _beside_teachers(values):
    hits = {name: values.loc[(*SYSTEMS[name], "I0", "HR@10"), "value"] for name in SYSTEMS}
    whole, same = (hits["full free"] / hits[name] for name in ("teacher", "teacher, 10 items"))
    yield (
        f"HR@10 of `full` is {whole:.2f} of the teacher's (our aim: .85) and {same:.2f} of that of "
        "the teacher that sees the same ten titles (our aim: 1)."
    )


def _learned(reference, over):
    runs = [reference]
    if over:
        about = json.loads((reference / seeds.FOLDER / seeds.ABOUT).read_text("utf-8"))
        runs = [reference.parent / name for name in about["runs"]]
    found = [read_manifest(run / "05_ppo", "05_ppo")["numbers"] for run in runs]
    gains = [f"{one['after'] - one['before']:.2f}" for one in found]
    shares = []
    for one in found:
        gain, room = one["after"] - one["before"], one["filter, prompt only"] - one["before"]
        shares.append(f"{100 * gain / room:.0f} %")
    best = found[0]["filter, prompt only"]
    yield (
        f"RL raises the mean reward of users kept out of training by {', '.join(gains)}"
        f"{' (a number a seed)' if over else ''}, from {found[0]['before']:.2f} in seed 0. A "
        f"teacher that sees the prompt and applies the wish by code earns {best:.2f} there: "
        f"{', '.join(shares)} of the distance (our aim: 50 %)."
    )


def _primary(reference):
    return pd.read_csv(reference / "tables" / "primary.csv")


def _cell(values, key):
    if key not in values.index:
        return ""
    row = values.loc[key]
    if "sd" in row and pd.notna(row["sd"]):
        return f"{100 * row['value']:.1f} ± {100 * row['sd']:.1f}"
    return f"{100 * row['value']:.1f}" if pd.notna(row["value"]) else ""


def _family(table, verdict):
    effect, p = (c for c in table if c.startswith(("difference [", "mean", "p, c", "largest")))
    columns = {"": "", "claim": "claim", verdict: "is it so?", effect: effect, p: p}
    columns |= {"difference of": "difference of", "metric": "metric", "in": "in"}
    shown = table[list(columns)].rename(columns=columns)
    return shown.to_markdown(index=False, disable_numparse=True).splitlines()


def filled(text, sections):
    """A page with what stands between its marks made anew; ``sections``: ``{mark: Markdown}``."""
    for mark, section in sections.items():
        begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + section + end + rest.partition(end)[2]
    return text


def main():
    """Fill the pages."""
    for name, reference in PAGES.items():
        page = Path(root() / name)
        page.write_text(filled(page.read_text("utf-8"), found(reference)), "utf-8")


if __name__ == "__main__":
    main()
