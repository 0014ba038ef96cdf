"""One owner a run folder: the process that runs it holds a lock that dies with it.

The lock is ``flock`` on ``<run>/.owner``: the system releases it when its process ends, however it
ends, so there are no stale ones. The file says who holds it, for whoever comes second.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import psutil

from recnb import RecnbError

VARIABLE = "RECNB_OWNER"
"""Environment of everything a run starts: "pid start-time" of the process that owns its folder."""


@contextlib.contextmanager
def owning(folder):
    """Own a run folder; everything started meanwhile inherits ``VARIABLE``.

    Raises:
        RecnbError: another process runs it, with that process; the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".owner", "a+", encoding="utf-8")
    except OSError as error:
        raise RecnbError(
            f"cannot write in {folder}: {error.strerror}; make it writable, or keep runs elsewhere "
            "(environment variable RECNB_RUNS)"
        ) from error
    with file:
        if not _locked(file):
            raise RecnbError(held_by(folder))
        me = psutil.Process()
        row = {
            "pid": me.pid,
            "started": me.create_time(),
            "host": socket.gethostname(),
            "command": " ".join(sys.argv),
        }
        file.truncate(0)
        file.write(json.dumps(row))
        file.flush()
        os.environ[VARIABLE] = f"{me.pid} {me.create_time()}"
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)
            file.truncate(0)


def _locked(file):
    """Try for half a second: ``owner`` of another process holds the lock for a moment, too."""
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1)
    return False


def owner(folder):
    """Who runs a folder now: a dict with pid, started, host and command; None = nobody."""
    path = Path(folder) / ".owner"
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails while somebody owns it
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        pass
    unknown = {"pid": "?", "started": path.stat().st_mtime, "host": "?", "command": "?"}
    try:
        return unknown | json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:  # it is being written
        return unknown


def held_by(folder):
    """One sentence about who runs a folder."""
    row = owner(folder) or {"pid": "?", "started": time.time(), "host": "?", "command": "?"}
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["started"]))
    return (
        f"{folder} is being run by process {row['pid']} on {row['host']} since {since} "
        f"({row['command']}): wait for it or stop it, or choose another name with --run"
    )


def refuse_others(folder):
    """For a notebook that opens a stage: its run may be run by its own starter, by no one else.

    Raises:
        RecnbError: the folder is owned by a process that did not start this one.
    """
    row = owner(folder)
    if row and os.environ.get(VARIABLE) != f"{row['pid']} {row['started']}":
        raise RecnbError(held_by(folder))


def alive(mark):
    """True while the process of ``"pid start-time"`` runs; a later one with its pid is another."""
    pid, started = mark.split()
    try:
        process = psutil.Process(int(pid))
        return process.create_time() == float(started) and process.status() != "zombie"
    except psutil.NoSuchProcess:
        return False


def end_with_owner():
    """End this process when the owner of its run is gone.

    Without it a killed ``recnb run`` would leave a notebook that goes on writing.
    """
    if os.environ.get(VARIABLE):
        end_with(os.environ[VARIABLE])


def end_with(mark):
    """Watch a process ("pid start-time") from a thread; when it is gone, end this one too."""

    def watch():
        while alive(mark):
            time.sleep(0.5)
        end_tree(psutil.Process(), but_not_itself=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_tree(process, but_not_itself=False):
    """Kill a process and all that it started, kernels in sessions of their own included.

    Nothing is asked to end in peace: whatever is written is written whole or not at all, since a
    power cut asks nobody either.
    """
    for _ in range(50):
        try:
            below = process.children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        if not but_not_itself:
            below = [process, *below]
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        _, left = psutil.wait_procs(below, timeout=1)
        if not left and not (but_not_itself and process.children(recursive=True)):
            return
