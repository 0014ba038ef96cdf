"""Write the generated parts of docs/scale.md anew: plans, costs, and what two benchmarks measured.

``python benchmarks/scale.py``; ``tests/test_plan.py`` fails where the page is behind the code.
"""

import csv
import math
import re

from recnb.artifacts import read_manifest
from recnb.machine import REFERENCE
from recnb.plan import lines_of, plan
from recnb.plan.hardware import stated
from recnb.profile import STAGES, load, root

MEMORY = 40
"""GiB of a GPU: the paper's A100 (A.2)."""
COMPUTED = ["gpu", "paper-movie", "paper-steam"]


def planned(name):
    """A profile's plan for GPUs of the paper's: ``(Plan, Hardware)``."""
    profile = load(name)
    hardware = stated(profile, MEMORY)
    return plan(profile, hardware), hardware


def plan_block(name):
    """What ``recnb plan NAME --gpu-memory 40`` prints, and what it refuses."""
    found, hardware = planned(name)
    lines = [f"`recnb plan {name} --gpu-memory {MEMORY}`:", "", *lines_of(found, hardware)]
    refused = [f"- refused: {line}" for line in found.refusals] or ["Everything fits."]
    return "\n".join([*lines, "", *refused])


def costs():
    """Stage by profile: measured in the reference run's manifests, computed for GPUs."""
    folder = root() / REFERENCE
    made = [read_manifest(folder / stage, stage) for stage in STAGES]
    plans = {name: planned(name) for name in COMPUTED}
    cores = made[0]["hardware"]["cores"]
    heads = [f"`laptop`, {cores} CPU cores, measured"]
    for name, (_, hardware) in plans.items():
        gpus = "one GPU" if hardware.processes == 1 else f"{hardware.processes} GPUs"
        heads.append(f"`{name}`, {gpus} of {MEMORY} GB, computed")
    lines = [f"| stage | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for number, stage in enumerate(STAGES):
        cells = [_cell(made[number]["wall_seconds"] / 3600, made[number]["peak_memory_mib"] / 1024)]
        for found, _ in plans.values():
            row = found.stages[number]
            cells.append(_cell(row.hours, row.gib) + (" (too much)" if row.gib > MEMORY else ""))
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    whole = [sum(one["wall_seconds"] for one in made) / 3600]
    whole += [sum(row.hours for row in f.stages) for f, _ in plans.values()]
    most = [max(one["peak_memory_mib"] for one in made) / 1024]
    most += [max(row.gib for row in f.stages) for f, _ in plans.values()]
    lines.append(f"| all | {' | '.join(map(_cell, whole, most))} |")
    return "\n".join(lines)


def _cell(hours, gib):
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    return ", ".join([time if hours else "", f"{gib:.1f} GiB" if gib else ""]).strip(", ")


def rehearsed():
    """The steps of ``paper_size.py``, as it measured them."""
    lines = ["| step | processor, s | on a clock, min | GiB |", "|---|---|---|---|"]
    rows = _rows("paper_size.csv")
    for row in rows:
        gib = int(row["peak_mib"]) / 1024
        minutes = float(row["wall_seconds"]) / 60
        seconds = f"{float(row['cpu_seconds']):,.0f}"
        lines.append(f"| {row['step']} | {seconds} | {minutes:.1f} | {gib:.1f} |")
    seconds, wall = (sum(float(row[c]) for row in rows) for c in ("cpu_seconds", "wall_seconds"))
    most = max(int(row["peak_mib"]) for row in rows) / 1024
    return "\n".join([*lines, f"| all | {seconds:,.0f} | {wall / 60:.1f} | {most:.1f} |"])


def growth():
    """The functions of ``growth.py``: seconds, MiB, and by which power seconds grow."""
    rows = _rows("growth.csv")
    users = sorted({int(row["users"]) for row in rows})
    heads = [f"{count:,} users" for count in users]
    lines = [
        f"| function | {' | '.join(heads)} | power | of the last step |",
        "|---" * (len(users) + 3) + "|",
    ]
    for name in dict.fromkeys(row["function"] for row in rows):
        own = [row for row in rows if row["function"] == name]
        cells = [f"{float(r['cpu_seconds']):.1f} s, {int(r['more_mib']):,} MiB" for r in own]
        powers = [_power(own[0], own[-1]), _power(own[-2], own[-1])]
        lines.append(f"| {name} | {' | '.join([*cells, *powers])} |")
    return "\n".join(lines)


def _power(first, last):
    """p of seconds that grow as interactions to the power of p."""
    seconds = float(last["cpu_seconds"]) / float(first["cpu_seconds"])
    interactions = int(last["interactions"]) / int(first["interactions"])
    return f"{math.log(seconds) / math.log(interactions):.2f}"


def _rows(name):
    with open(root() / "benchmarks" / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def renewed(page):
    """The page with its generated parts as the code has them now."""
    blocks = {f"plan {name}": lambda name=name: plan_block(name) for name in COMPUTED[1:]}
    blocks |= {"costs": costs, "rehearsed": rehearsed, "growth": growth}
    for name, write in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = f"{begin}\n{write()}\n{end}"
        page, found = pattern.subn(lambda _, text=text: text, page)
        assert found == 1, f"docs/scale.md: {begin} stands there {found} times"
    return page


if __name__ == "__main__":
    path = root() / "docs" / "scale.md"
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
