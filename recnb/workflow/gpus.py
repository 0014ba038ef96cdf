"""Which GPU a notebook may use: a pool of ids, each held by one notebook at a time.

A held id is a ``flock`` on a file of its own: the system releases it when the notebook's process
ends, however it ends, and it counts for every run of the user on this machine.
"""

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path

from recnb import RecnbError
from recnb.profile import STAGES

VARIABLE = "RECNB_GPUS"
"""Environment: the ids that runs may use, "0,1"; without it, all that PyTorch sees."""
FIRST = "02_teacher"
"""The first notebook with a model; the one before it has no use for a GPU."""
TOGETHER = ["04_sft", "05_ppo", "06_evaluation"]
"""Notebooks that use ``compute.processes`` GPUs."""


def known():
    """Ids of the GPUs that runs may use, as CUDA_VISIBLE_DEVICES has them; often none."""
    if VARIABLE in os.environ:
        return _split(os.environ[VARIABLE])
    import torch

    count = torch.cuda.device_count()
    shown = _split(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return shown[:count] if shown else [str(number) for number in range(count)]


def _split(text):
    ids = [one.strip() for one in text.split(",") if one.strip()]
    if len(set(ids)) < len(ids):
        raise RecnbError(f"GPU ids {text}: an id stands there twice")
    return ids


def wanted(stage, profile):
    """How many GPUs a notebook uses."""
    if STAGES.index(stage) < STAGES.index(FIRST):
        return 0
    return profile.compute.processes if stage in TOGETHER else 1


def pool_folder():
    """Where the locks lie. Inside a batch job the ids are the job's own: each counts from 0."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return Path(tempfile.gettempdir()) / f"recnb-gpus-{os.getuid()}{job and '-'}{job}"


@contextlib.contextmanager
def held(count, ids, waiting=lambda: None):
    """Hold ``count`` of the ids, and yield them; waits until so many are free.

    All or none are taken: two notebooks that want two of three never wait for each other.

    Args:
        count: how many; 0 holds none.
        ids: the pool.
        waiting: called once, if it has to wait.

    Raises:
        RecnbError: the pool is smaller than that, or its folder cannot be written.
    """
    if count > len(ids):
        raise RecnbError(
            f"{count} GPUs are asked for (compute.processes) and {len(ids)} may be used "
            f"({', '.join(ids) or 'none'}): lower compute.processes"
        )
    folder = pool_folder()
    with contextlib.ExitStack() as stack:
        files = _try(folder, count, ids)
        if files is None:
            waiting()
        while files is None:
            time.sleep(0.5)
            files = _try(folder, count, ids)
        for file in files.values():
            stack.enter_context(file)
        yield list(files)


def _try(folder, count, ids):
    """``{id: locked file}`` of ``count`` free ids, or None and nothing held."""
    files = {}
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for one in ids:
            if len(files) == count:
                break
            file = open(folder / one.replace("/", "_"), "a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files[one] = file
            except BlockingIOError:
                file.close()
    except OSError as error:
        raise RecnbError(
            f"cannot write {folder}, where it is kept who uses which GPU: "
            f"{error.strerror or error}; make room or set TMPDIR to another folder"
        ) from error
    if len(files) == count:
        return files
    for file in files.values():
        file.close()
    return None
