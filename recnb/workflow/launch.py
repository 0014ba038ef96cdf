"""Start a run: what is up to date stays, Snakemake orders the rest, a stop leaves all whole."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from recnb import RecnbError, profile, sources
from recnb.artifacts import is_done, keep_student
from recnb.datasets.check import before_run
from recnb.lm.hub import ready
from recnb.machine import cores, describe, estimate
from recnb.owner import end_tree, owning
from recnb.text_safety import visible
from recnb.workflow import cluster as slurm
from recnb.workflow import gpus
from recnb.workflow.graph import FROZEN, write_graph
from recnb.workflow.several import at_place, share

FULL = 64 << 20
"""Bytes left on a disk below which a failure is put down to it."""


class Stopped(BaseException):
    """SIGINT or SIGTERM came; carries its number."""


def run_profile(resolved, folder, until="", student=None):
    """Run the notebooks of a profile in a folder of its own: ``run_together`` with one run."""
    run_together([(resolved, folder)], until, student)


def run_together(runs, until="", student=None, cluster=None, at_once=1):
    """Run the notebooks of several runs as one graph; a stage that two have in common once.

    Args:
        runs: ``[(Profile, folder)]``; the folders lie side by side.
        until: last stage; empty = all, and the report.
        student: what ``recnb.check.in_place.student_functions`` found; None = the kit's own.
        cluster: ``recnb.workflow.cluster.Cluster`` to submit to; None = this machine computes.
        at_once: runs side by side on this machine, if it has no GPUs; each has its share of the
            cores.

    Raises:
        RecnbError: somebody else runs a folder; a notebook failed; Snakemake or SLURM failed.
        SystemExit: 128 + the signal's number after Ctrl-C or SIGTERM.
    """
    stages = profile.STAGES[: profile.STAGES.index(until) + 1] if until else profile.STAGES
    runs = [(_prepared(resolved, cluster), folder) for resolved, folder in runs]
    folders = [folder for _, folder in runs]
    if cluster:
        for sentence in slurm.uneven(cluster, [resolved for resolved, _ in runs], stages):
            print(f"warning: {sentence}")
        slurm.ask(cluster, stages)
    with contextlib.ExitStack() as stack:
        for folder in sorted(folders):
            stack.enter_context(owning(folder))
            slurm.refuse_leftovers(folder)
        stack.enter_context(_stoppable())
        try:
            to_do = {}  # folder: (Profile, stages to make)
            for resolved, folder in runs:
                profile.save(resolved, folder / "profile.yaml")
                profile.save(resolved, folder / FROZEN)
                keep_student(folder, student)
                if student:  # the stages that call none of the functions are those of any run
                    share(resolved, folder, stages[-1])
                done = [is_done(resolved, stage, folder) for stage in stages]
                if all(done) and (until or (folder / "report.html").is_file()):
                    print(f"{folder.name}: all {len(stages)} notebooks are up to date")
                    continue
                first = done.index(False) if False in done else len(stages)
                to_do[folder] = resolved, stages[first:]
            if not to_do:
                return
            _look_before([resolved for resolved, _ in to_do.values()], cluster)
            for folder, (resolved, left) in to_do.items():
                for source in sources.needed(resolved):
                    sources.fetch(source)
                for sentence in ready(resolved.model.name):
                    print(f"warning: {visible(sentence)}")
                _clear(folder, left)
            left = [(resolved, folder) for folder, (resolved, _) in to_do.items()]
            _snakemake(left, until, cluster, at_once)
        except OSError as error:
            where = error.filename or folders[0]
            raise RecnbError(f"cannot write {where}: {error.strerror or error}") from error
        except Stopped as stop:
            number = stop.args[0]
            print(
                f"\nrecnb: {signal.Signals(number).name}, stopped{under_way(*folders)}. The same "
                "command goes on from here: finished notebooks and the last checkpoint are kept",
                file=sys.stderr,
            )
            raise SystemExit(128 + number) from None
    if not until:
        for folder in to_do:
            print(f"report: {folder / 'report.html'}")


def _prepared(resolved, cluster):
    """A profile as notebooks in another working directory, on another machine, shall read it."""
    resolved = at_place(resolved)
    if cluster and not resolved.compute.checkpoint_minutes:
        more = {"checkpoint_minutes": slurm.CHECKPOINT_MINUTES}
        compute = resolved.compute.model_copy(update=more)
        resolved = resolved.model_copy(update={"compute": compute})
    return resolved


def _look_before(profiles, cluster):
    """Check the data, and say what computes and for how long; each only once for all runs."""
    seen = []
    for resolved in profiles:
        if resolved.data not in seen:
            seen.append(resolved.data)
            before_run(resolved)
        if resolved.general_ability.data not in ("", "hub"):
            from recnb.evaluation.general_ability import refuse_data  # it takes seconds to import

            refuse_data(resolved.general_ability.data)
    if cluster:
        print(f"SLURM: jobs {cluster.name}_*, workflow profile {visible(cluster.folder)}")
        if any(one.general_ability.data == "hub" for one in profiles):
            print(
                "warning: general_ability.data is hub: on nodes without network notebook 09 does "
                "not ask MMLU and GSM8K, and says so; a folder with their files avoids that"
            )
    else:
        print("\n".join(describe(profiles[0]) + estimate(profiles[0])), flush=True)
        for sentence in [one for resolved in profiles for one in _too_large(resolved)]:
            print(f"warning: {visible(sentence)}", flush=True)


def _too_large(resolved):
    """Sentences about what the GPU of this machine will not hold, as ``recnb plan`` reckons it."""
    import torch

    if not torch.cuda.is_available():
        return []
    from recnb.plan import hardware, plan

    try:
        found = plan(resolved, hardware.this_machine(resolved)).refusals
    except RecnbError as error:  # a model or a catalogue of a size that is not known yet
        return [f"whether the GPU is large enough is not known: {error} (recnb plan)"]
    return [f"{resolved.name} may not fit: {one}" for one in found]


@contextlib.contextmanager
def _stoppable():
    """Within it, Ctrl-C and SIGTERM raise ``Stopped``, once: what follows must not be cut short."""

    def stop(number, frame):
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    before = [(one, signal.signal(one, stop)) for one in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)


def _clear(folder, stages):
    """Remove what these stages declared, and Snakemake's memory of earlier starts.

    Which stages are done is decided by knobs and sha256 (``is_done``), not by Snakemake, whose
    folder may hold the lock of a start that was killed. The manifests that stay get the present
    time: Snakemake refuses what is older than its input, as after a clock was set back.
    """
    for stage in [one for one in profile.STAGES if one not in stages]:
        if (folder / stage / "manifest.json").is_file():
            os.utime(folder / stage / "manifest.json")
    (folder / "report.html").unlink(missing_ok=True)
    for stage in stages:
        for name in ("manifest.json", ".failed", ".failed-node", ".progress.json"):
            (folder / stage / name).unlink(missing_ok=True)
    if (folder / ".snakemake").is_dir():
        shutil.rmtree(folder / ".snakemake")


def together(runs, cluster=None, at_once=1):
    """Cut runs into groups, each for one start: all on a cluster, on several GPUs or if some shall
    compute side by side, else one by one, so that the first is finished before the second begins.

    Args:
        runs: ``[(folder, Profile)]``.
    """
    if cluster or side_by_side([(profile, folder) for folder, profile in runs], at_once)[0] > 1:
        return [runs]
    return [[one] for one in runs]


def side_by_side(runs, at_once=1):
    """How many notebooks compute at once on this machine: as many as its GPUs have room for.

    Args:
        runs: ``[(Profile, folder)]``.
        at_once: how many where there are no GPUs; a core each at least.

    Returns:
        ``(notebooks at once, ids of the GPUs)``.
    """
    ids = gpus.known()
    most = max(resolved.compute.processes for resolved, _ in runs)
    room = len(ids) // most if ids else min(at_once, cores())
    return max(1, min(room, len(runs))), ids


def _snakemake(runs, until, cluster=None, at_once=1):
    folders, environment = [folder for _, folder in runs], dict(os.environ)
    command = [sys.executable, "-m", "snakemake", "--directory", str(folders[0])]
    command += ["--snakefile", str(Path(__file__).parent / "Snakefile")]
    # Its errors are wanted, the rest of what it says is not: "--quiet all" would hide both.
    command += ["--quiet", "progress", "rules", "host", "reason", "--rerun-triggers", "mtime"]
    if cluster:
        graph = write_graph(runs, until, 1, "slurm")
        command += slurm.options(cluster)
        if not any(resolved.general_ability.data == "hub" for resolved, _ in runs):
            environment["HF_HUB_OFFLINE"] = "1"  # what jobs need lies in the cache by now
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.pop(name, None)  # of this machine; a job has its own
        for folder in folders:
            slurm.note_jobs(cluster, folder)
    else:
        at_once, ids = side_by_side(runs, at_once)
        threads = max(1, cores() // at_once)
        graph = write_graph(runs, until, threads, "local")
        command += ["--cores", str(threads * at_once), "--keep-going"]
        environment[gpus.VARIABLE] = ",".join(ids)
    quiet = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folders, quiet), daemon=True)
    watcher.start()
    with tempfile.TemporaryFile() as errors:
        try:
            # A session of its own: Ctrl-C in the terminal comes here alone, and ends all from here.
            started = [*command, "--configfile", str(graph)]
            process = subprocess.Popen(
                started, stderr=errors, start_new_session=True, env=environment
            )
            code = process.wait()
        finally:
            end_tree(psutil.Process(), but_not_itself=True)
            quiet.set()
            watcher.join()
            if cluster:
                slurm.cancel(cluster)
                for folder in folders:
                    (folder / slurm.JOBS).unlink(missing_ok=True)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if code:
        raise RecnbError(_why(folders, code, said))


def _why(folders, code, said):
    """What to say of a start that Snakemake ended with this exit code.

    Args:
        said: what it and its jobs wrote to stderr.
    """
    kept = "start the same command again: finished notebooks and checkpoints are kept"
    free = shutil.disk_usage(folders[0]).free
    if free < FULL:
        return f"the disk of {folders[0]} is full ({free >> 20} MiB free): make room, then {kept}"
    failed = []
    for folder in folders:
        for path in sorted(folder.glob("*/.failed*")):
            name = f"{folder.name}: " if len(folders) > 1 else ""
            failed.append(name + path.read_text(errors="replace"))
    ended = sorted(set(re.findall(r"SLURM status is: '(\w+)'", said)))
    failed += [f"SLURM ended a job {ENDED[state]}" for state in ended if state in ENDED]
    if failed:
        return "\n".join([*failed, f"Mend the cause and {kept}"])
    end = "\n".join(said.strip().splitlines()[-15:])
    return f"Snakemake ended with exit code {code}; the last it said:\n{end}\nThen {kept}"


ENDED = {
    "TIMEOUT": "at its time limit: raise runtime, or retries if it took more tries than these",
    "OUT_OF_MEMORY": "at its memory limit: raise mem_mb",
    "NODE_FAIL": "with its node, which failed",
    "CANCELLED": "because someone cancelled it",
}
"""States of SLURM's that say why, and knobs of the workflow profile that help."""


def under_way(*folders):
    """ " in 04_sft (SL stage, steps: 3 of 9)", or nothing before the first notebook."""
    found = []
    for folder in folders:
        for path in folder.glob("*/.clock.json"):
            if not (path.parent / "manifest.json").is_file():
                found.append(path.parent)
    if not found:
        return ""
    stage = max(found, key=lambda one: one.name)
    try:
        row = json.loads((stage / ".progress.json").read_text())
        return f" in {stage.name} ({row['text']}: {row['done']} of {row['of']})"
    except (FileNotFoundError, json.JSONDecodeError):
        return f" in {stage.name}"


def _watch(folders, quiet):
    """Print a line whenever a notebook reports its progress (``.progress.json`` of its stage)."""
    last = {}
    while not quiet.wait(2):
        for path in [path for folder in folders for path in folder.glob("*/.progress.json")]:
            try:
                row = json.loads(path.read_text())
            except (json.JSONDecodeError, FileNotFoundError):
                continue
            shown = (row["text"], row["done"] * 10 // max(row["of"], 1))
            if last.get(path) != shown and time.time() - path.stat().st_mtime < 60:
                last[path] = shown
                left = ""
                if row["left"] is not None:
                    left = f", about {row['left'] / 60:.1f} min left"
                what = visible(row["text"])
                if len(folders) > 1:
                    what = f"{path.parent.parent.name}, {what}"
                print(f"      {what}: {row['done']} of {row['of']}{left}", flush=True)
