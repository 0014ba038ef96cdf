"""What one start has to make: which runs, which stages, and who makes a stage that several need."""

import os
import sys

from recnb import RecnbError
from recnb.artifacts import fingerprint, is_done, write_json
from recnb.profile import STAGES, load
from recnb.workflow.several import share

GRAPH = ".graph.json"
"""Written into the first run's folder at each start: what the Snakefile reads."""
FROZEN = ".start.yaml"
"""The profile of this start: written once, under the lock, and read by every notebook."""


def taken(runs, until=STAGES[-1]):
    """Which stages a run takes from another one of the same start, which makes them for both.

    Args:
        runs: ``[(Profile, folder)]`` that are not finished.
        until: last stage.

    Returns:
        ``{stage: {run that takes it: run that makes it}}``, runs by the names of their folders. Of
        the runs whose knobs are the same up to a stage, the first makes it.
    """
    found = {}
    for stage in STAGES[: STAGES.index(until) + 1]:
        makers, found[stage] = {}, {}
        for profile, folder in runs:
            # A run that has the stage is as good a maker as one that will have it.
            maker = makers.setdefault(fingerprint(profile, stage), folder.name)
            if maker != folder.name and not is_done(profile, stage, folder):
                found[stage][folder.name] = maker
    return found


def write_graph(runs, until, threads, executor):
    """Write the graph of a start into the folder of its first run.

    Args:
        runs: ``[(Profile, folder)]``; all folders lie in one folder.
        until: last stage; empty = all, and the report.
        threads: of each notebook on this machine.
        executor: "local" or "slurm".

    Returns:
        Path of the file.

    Raises:
        RecnbError: a path that Snakemake would read as a pattern.
    """
    parent = runs[0][1].resolve().parent
    if "{" in str(parent) or "}" in str(parent):
        raise RecnbError(
            f"{parent}: Snakemake takes braces in a path for a pattern: keep runs elsewhere "
            "(environment variable RECNB_RUNS)"
        )
    names = [folder.name for _, folder in runs]
    last = f"{until}/manifest.json" if until else "report.html"
    graph = {
        "python": sys.executable,
        "folder": str(parent),
        "threads": threads,
        "executor": executor,
        "taken": taken(runs, until or STAGES[-1]),
        "targets": [f"{parent}/{name}/{last}" for name in names],
    }
    path = runs[0][1] / GRAPH
    write_json(path, graph)
    return path.resolve()


def take(stage, folder):
    """Take a stage that another run of the same start has made.

    Raises:
        RecnbError: no run has it any more.
    """
    profile = load(folder / FROZEN)
    share(profile, folder, stage)
    if not is_done(profile, stage, folder):
        raise RecnbError(
            f"{folder.name}: no other run has {stage} with these knobs any more: was it changed or "
            "removed?"
        )
    os.utime(folder / stage / "manifest.json")  # a link has the time of the first run's
