"""A notebook as a SLURM job: processors and time are the allocation's, not the node's."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from recnb import RecnbError
from recnb.machine import cores
from recnb.owner import end_with
from recnb.workflow.cluster import minutes_of

THREADS = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"]
CHECKPOINT_AT = "RECNB_CHECKPOINT_AT"
"""Environment of SL and RL: the time (seconds since 1970) of a last checkpoint before the end."""
BEFORE_END = 300
"""Seconds before a job's end at which that is; a tenth of a short limit."""
ROOM = 64 << 20
"""Bytes without which a disk counts as full."""


class NodeError(RecnbError):
    """Something is wrong with a node: on another one the same notebook may run."""


def adopt():
    """Make this process and what it starts keep to the job's allocation."""
    me = psutil.Process()
    # SLURM ends the process that it started; what is below ends with it, even where the cluster
    # tracks no groups. The machine that submitted is another one: nothing can be seen of it here.
    end_with(f"{me.ppid()} {me.parent().create_time()}")
    for name in THREADS:
        os.environ[name] = str(cores())
    left = seconds_left()
    if left:
        os.environ[CHECKPOINT_AT] = str(time.time() + left - min(BEFORE_END, left / 10))


def seconds_left():
    """Seconds until the job's time limit; None without one, or where SLURM does not answer."""
    command = ["squeue", "--noheader", "--job", os.environ["SLURM_JOB_ID"], "--format", "%L"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):  # a node without SLURM's commands, a busy server
        return None
    minutes = minutes_of(said.strip())
    return None if minutes is None else 60 * minutes


def refuse_full_disks(run_folder):
    """Raise where the run's disk or the node's scratch disk has no room, before anything is made.

    Raises:
        NodeError: which disk of which node, and what to do.
    """
    scratch = os.environ.get("TMPDIR") or tempfile.gettempdir()
    for path, mend in (
        (Path(run_folder), "make room"),
        (Path(scratch), "make room there, or set TMPDIR to another folder before recnb run"),
    ):
        if not path.is_dir():
            raise NodeError(f"{socket.gethostname()}: no folder {path} (TMPDIR): {mend}")
        free = shutil.disk_usage(path).free
        if free < ROOM:
            raise NodeError(
                f"{socket.gethostname()}: the disk of {path} is full ({free >> 20} MiB free): "
                f"{mend}"
            )
