"""Start a run: what is up to date stays, Snakemake orders the rest, a stop leaves all whole."""

import contextlib
import json
import os
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
from recnb.machine import cores, describe, estimate
from recnb.owner import end_tree, owning
from recnb.text_safety import visible
from recnb.workflow.several import share

FROZEN = ".start.yaml"
"""The profile of this start: written once, under the lock, and read by every notebook."""
FULL = 64 << 20
"""Bytes left on a disk below which a failure is put down to it."""


class Stopped(BaseException):
    """SIGINT or SIGTERM came; carries its number."""


def run_profile(resolved, folder, until="", student=None):
    """Run the notebooks of a profile in a folder of its own.

    Args:
        resolved: ``Profile``.
        folder: the run's folder.
        until: last stage; empty = all, and the report.
        student: what ``recnb.check.in_place.student_functions`` found; None = the kit's own.

    Raises:
        RecnbError: somebody else runs the folder; a notebook failed; Snakemake failed.
        SystemExit: 128 + the signal's number after Ctrl-C or SIGTERM.
    """
    if resolved.data.path:  # notebooks run in another working directory than this process
        data = resolved.data.model_copy(update={"path": str(Path(resolved.data.path).resolve())})
        resolved = resolved.model_copy(update={"data": data})
    stages = profile.STAGES[: profile.STAGES.index(until) + 1] if until else profile.STAGES
    page = folder / "report.html"
    with owning(folder), _stoppable():
        try:
            profile.save(resolved, folder / "profile.yaml")
            profile.save(resolved, folder / FROZEN)
            keep_student(folder, student)
            if student:  # the stages that call none of the functions are those of any other run
                share(resolved, folder, stages[-1])
            done = [is_done(resolved, stage, folder) for stage in stages]
            if all(done) and (until or page.is_file()):
                print(f"{folder.name}: all {len(stages)} notebooks are up to date")
                return
            before_run(resolved)
            print("\n".join(describe(resolved) + estimate(resolved)), flush=True)
            _clear(folder, stages[done.index(False) if False in done else len(stages) :])
            for source in sources.needed(resolved):
                sources.fetch(source)
            _snakemake(folder, f"{until}/manifest.json" if until else "all")
        except OSError as error:
            where = error.filename or folder
            raise RecnbError(f"cannot write {where}: {error.strerror or error}") from error
        except Stopped as stop:
            number = stop.args[0]
            print(
                f"\nrecnb: {signal.Signals(number).name}, stopped{under_way(folder)}. The same "
                "command goes on from here: finished notebooks and the last checkpoint are kept",
                file=sys.stderr,
            )
            raise SystemExit(128 + number) from None
    if not until:
        print(f"report: {page}")


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
        (folder / stage / "manifest.json").unlink(missing_ok=True)
        (folder / stage / ".failed").unlink(missing_ok=True)
        (folder / stage / ".progress.json").unlink(missing_ok=True)
    if (folder / ".snakemake").is_dir():
        shutil.rmtree(folder / ".snakemake")


def _snakemake(folder, target):
    command = [sys.executable, "-m", "snakemake", "--directory", str(folder)]
    command += ["--snakefile", str(Path(__file__).parent / "Snakefile")]
    # Its errors are wanted, the rest of what it says is not: "--quiet all" would hide both.
    command += ["--cores", str(cores()), "--quiet", "progress", "rules", "host", "reason"]
    command += ["--rerun-triggers", "mtime", "--config"]
    command += [f"profile={(folder / FROZEN).resolve()}", f"python={sys.executable}"]
    quiet = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, quiet), daemon=True)
    watcher.start()
    with tempfile.TemporaryFile() as errors:
        try:
            # A session of its own: Ctrl-C in the terminal comes here alone, and ends all from here.
            started = [*command, "--", target]
            code = subprocess.Popen(started, stderr=errors, start_new_session=True).wait()
        finally:
            end_tree(psutil.Process(), but_not_itself=True)
            quiet.set()
            watcher.join()
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if code:
        raise RecnbError(_why(folder, code, said))


def _why(folder, code, said):
    """What to say of a run that Snakemake ended with this exit code.

    Args:
        said: what it and its jobs wrote to stderr.
    """
    kept = "start the same command again: finished notebooks and checkpoints are kept"
    free = shutil.disk_usage(folder).free
    if free < FULL:
        return f"the disk of {folder} is full ({free >> 20} MiB free): make room, then {kept}"
    failed = [path.read_text(errors="replace") for path in sorted(folder.glob("*/.failed"))]
    if failed:
        return "\n".join([*failed, f"Mend the cause and {kept}"])
    end = "\n".join(said.strip().splitlines()[-15:])
    return f"Snakemake ended with exit code {code}; the last it said:\n{end}\nThen {kept}"


def under_way(folder):
    """ " in 04_sft (SL stage, steps: 3 of 9)", or nothing before the first notebook."""
    found = []
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


def _watch(folder, quiet):
    """Print a line whenever a notebook reports its progress (``.progress.json`` of its stage)."""
    last = {}
    while not quiet.wait(2):
        for path in folder.glob("*/.progress.json"):
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
                print(f"      {what}: {row['done']} of {row['of']}{left}", flush=True)
