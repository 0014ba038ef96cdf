"""Execute one notebook with papermill and believe only its manifest.

papermill calls a notebook with a dead kernel "completed" and only warns of a misspelt parameter, so
both are checked here: parameters against the notebook before, the manifest after.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import nbformat
import papermill
import zmq
from traitlets.config import Config

from recnb import RecnbError
from recnb.artifacts import atomic_path, is_done
from recnb.owner import end_with_owner
from recnb.profile import STAGES, load, root
from recnb.text_safety import visible
from recnb.workflow import gpus, job
from recnb.workflow.graph import FROZEN, take
from recnb.workflow.job import NodeError

FAILED, NODE_FAILED = ".failed", ".failed-node"
"""In a stage's folder: what went wrong, with the notebook or with the node it ran on."""

START_SECONDS = 600
"""A kernel may take so long to start: a busy machine, or a cluster's disk, reads Python slowly."""
OUTPUT_SECONDS = 600
"""And so long to hand over a cell's last output; four seconds, as it comes, end a busy machine's
run."""
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""Environment for a process that computes: glibc gives large blocks back to the system at once and
then pays for touching every page of the next one again; with these it keeps them, a fifth off an SL
step (benchmarks/LOG.md). Ignored elsewhere.
"""
SHORT_WAITS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""OpenMP's threads spin while they wait for each other. Beside one busy process small steps take
twice as long as they must, beside another training that spins six times as long; threads that go
to sleep after a thousand turns (GNU's OpenMP; others: at once) cost next to nothing on a free
machine (benchmarks/LOG.md).
"""
LESS_MEMORY = {
    "01_data": "raise data.k_core",
    "02_teacher": "lower teacher.batch_size or teacher.max_length",
    "03_instructions": "lower instructions.sequential, .category, .proportion or .search",
    "04_sft": "set compute.micro_tokens, or lower base.batch_size or model.width",
    "05_ppo": "set compute.micro_tokens, or lower ppo.prompts, ppo.samples or ppo.k_max",
    "06_evaluation": "lower evaluation.batch_size or compute.cache_gib",
    "07_case_studies": "lower cases.dial_users",
    "08_tallrec": "lower tallrec.batch_size or tallrec.held",
    "09_general_ability": "set compute.micro_tokens, or lower general_ability.batch_size",
}
"""The knobs behind each notebook's largest arrays."""
NO_MEMORY = (
    "can't allocate memory",  # torch
    "Cannot allocate memory",  # the system
    "Unable to allocate",  # NumPy
    "out of memory",  # CUDA
    "bad_alloc",  # C++
    "malloc of size",  # pyarrow
    "can't start new thread",
    "could not create a primitive",  # oneDNN, where it gets no room for the code that it writes
    "failed to map segment",  # the loader of shared libraries
)
"""What libraries write where memory is refused; only some of them raise a ``MemoryError``."""


def execute(stage, profile_path, run_folder):
    """Run one stage's notebook.

    Args:
        stage: a name of ``STAGES``.
        profile_path: YAML file of the run.
        run_folder: folder of the run; the executed notebook goes to ``notebooks/<stage>.ipynb``.

    Raises:
        RecnbError: a failed cell (named, with its error), memory that ran out, a dead kernel, a
            parameter that the notebook lacks.
    """
    run_folder, profile_path = Path(run_folder).resolve(), Path(profile_path).resolve()
    source = root() / "notebooks" / f"{stage}.ipynb"
    target = run_folder / "notebooks" / f"{stage}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"profile": str(profile_path), "run": run_folder.name, "overrides": {}}
    try:
        missing = set(parameters) - set(papermill.inspect_notebook(source))
    except Exception as error:  # nbformat and papermill raise many kinds on a damaged file
        raise RecnbError(
            f"{source}: not readable as a notebook ({error}): restore it, for example with git "
            "checkout"
        ) from error
    if missing:
        raise RecnbError(
            f"{source}: the cell tagged parameters lacks {', '.join(sorted(missing))}: restore "
            "it, for example with git checkout"
        )
    os.environ["RECNB_RUNS"] = str(run_folder.parent)  # where the kernel finds the run's name
    os.environ["RECNB_WIDGETS"] = "static"  # nobody moves a slider here
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name, value in (KEPT_MEMORY | SHORT_WAITS).items():  # heeded by the kernel, a new process
        os.environ.setdefault(name, value)
    # Code and outputs go encrypted between here and the kernel: every user of the machine could
    # read them from a plain TCP port, which the kernel warns of on the terminal.
    way = Config(
        {"KernelManager": {"transport_encryption": "auto" if zmq.has("curve") else "disabled"}}
    )
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            progress_bar=False,
            cwd=str(root()),
            kernel_name="python3",
            start_timeout=START_SECONDS,
            iopub_timeout=OUTPUT_SECONDS,
            config=way,
        )
    except papermill.PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
        if out_of_memory(error.ename, error.evalue):
            reason = f"the memory ran out ({reason}): {LESS_MEMORY[stage]}, or free memory"
        raise RecnbError(
            f"notebook {stage}, cell {error.cell_index}: {reason}\nexecuted notebook: {target}"
        ) from None
    except Exception as error:  # the kernel died: papermill and nbclient raise several kinds
        raise RecnbError(
            f"notebook {stage}: {type(error).__name__}: {error}. If the system ended it because "
            f"the memory ran out: {LESS_MEMORY[stage]}\nexecuted notebook: {target}"
        ) from error
    _shorten_paths(target, run_folder)
    if not is_done(load(profile_path), stage, run_folder):
        raise RecnbError(
            f"notebook {stage} ended without a valid manifest: its kernel died or its last cell "
            f"did not run\nexecuted notebook: {target}"
        )
    _nothing_from_the_future(run_folder)


def _nothing_from_the_future(run_folder):
    """Snakemake refuses what is older than its input, which it is if the clock was set back."""
    for manifest in run_folder.glob("*/manifest.json"):
        if manifest.stat().st_mtime > time.time():
            os.utime(manifest)


def out_of_memory(name, text):
    """True if an error (its class's name and text) says that memory was refused."""
    return name.endswith("MemoryError") or any(words in text for words in NO_MEMORY)


def _shorten_paths(notebook_path, run_folder):
    """Executed notebooks are shared: absolute paths of this machine become relative ones."""
    try:
        text = notebook_path.read_text(encoding="utf-8")
        text = text.replace(str(run_folder), run_folder.name).replace(str(root()) + "/", "")
        if Path.home() != Path("/"):  # a container's; "image/png" and the like must stay
            text = text.replace(str(Path.home()), "~")
        nbformat.reads(text, as_version=4)
    except Exception as error:  # nbformat raises many kinds on a damaged file
        raise RecnbError(f"{notebook_path}: not readable as a notebook ({error})"[:500]) from error
    with atomic_path(notebook_path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main():
    stage, run_folder, executor = sys.argv[1:]
    folder, started = Path(run_folder).resolve(), time.time()
    shown = f"[{STAGES.index(stage) + 1}/{len(STAGES)}] {stage}"
    try:
        if executor == "taken":
            take(stage, folder)
            return
        if executor == "slurm":
            _as_job(folder / stage)
        else:
            end_with_owner()
        print(f"{shown} ...", flush=True)
        with _gpus(stage, folder, executor):
            execute(stage, folder / FROZEN, folder)
    except RecnbError as error:
        failed = f"{shown} FAILED\n{visible(error)}"
        print(failed, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # a full disk: the launcher sees that by itself
            (folder / stage).mkdir(exist_ok=True)
            name = NODE_FAILED if isinstance(error, NodeError) else FAILED
            (folder / stage / name).write_text(failed, encoding="utf-8")
        raise SystemExit(1) from None
    print(f"{shown} done in {time.time() - started:.0f} s", flush=True)


def _as_job(folder):
    """Keep to a SLURM job's allocation; nothing is run twice that failed by itself.

    Snakemake submits a failed job again, as it must after a time limit. After a time limit there is
    no ``.failed``; with one, the notebook would only fail as it did.
    """
    if (folder / FAILED).is_file():
        print((folder / FAILED).read_text(encoding="utf-8"), file=sys.stderr, flush=True)
        raise SystemExit(1)
    (folder / NODE_FAILED).unlink(missing_ok=True)  # another node may do
    job.adopt()
    job.refuse_full_disks(folder.parent)


@contextlib.contextmanager
def _gpus(stage, run_folder, executor):
    """On this machine, hold the GPUs that a notebook uses, and show it no others."""
    ids = gpus.known() if executor == "local" and gpus.VARIABLE in os.environ else []
    count = gpus.wanted(stage, load(run_folder / FROZEN)) if ids else 0
    if not count:
        yield
        return
    waits = f"[{STAGES.index(stage) + 1}/{len(STAGES)}] {stage} waits for a GPU of {','.join(ids)}"
    with gpus.held(count, ids, lambda: print(waits, flush=True)) as held:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        yield


if __name__ == "__main__":
    main()
