"""Several processes for one notebook, which starts them, one GPU each, and reads back.

The notebook writes a job (JSON, Parquet, safetensors) beside the checkpoints and starts torchrun
with this module. Each worker loads the model and calls the training that the notebook would have
run alone; the first one writes adapter, log and checkpoints. The notebook shows their progress and
reads the result as it reads one that an earlier start has finished. In an evaluation each worker
answers and writes its share (``recnb.evaluation.together``).
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import psutil
import torch

from recnb import RecnbError
from recnb.artifacts import UNDO, write_json
from recnb.engine.shared import processes
from recnb.owner import VARIABLE, end_tree, end_with_owner

ROW = "recnb-row:"
"""In front of each logged row on a worker's output."""


def wanted(compute):
    """True where a notebook shall start workers; a worker itself never does."""
    return compute.processes > 1 and processes() == 1


def job_folder(folder, key):
    """Where a training's job lies; it goes with its checkpoints."""
    made = Path(folder) / "checkpoints" / key / "job"
    made.mkdir(parents=True, exist_ok=True)
    return made


def work_together(work, model, folder, key, compute, show, settings):
    """Train in ``compute.processes`` workers and wait for their end.

    Args:
        work: "sft" or "ppo".
        model: what the notebook loaded (``load_base``, ``load_adapted``); the workers load the
            same, and meanwhile it leaves the GPU to them.
        folder, key: as of the training; files of the job lie in ``job_folder`` already.
        show: called with every logged row.
        settings: what else the training takes, as plain data.

    Raises:
        RecnbError: as ``start``.
    """
    job = {"work": work, "model": model.opened, "folder": str(folder), "key": key}
    device = model.device
    model.to("cpu")
    torch.cuda.empty_cache()
    try:
        start(job_folder(folder, key), job | {"settings": settings}, compute, show)
    finally:
        model.to(device)


def start(place, job, compute, show):
    """Start ``compute.processes`` workers and wait for their end.

    Args:
        place: folder of the job's files.
        job: what ``main`` reads, as plain data.
        show: called with every row that the first worker reports.

    Raises:
        RecnbError: a worker failed, with what it said; too few GPUs; a student's functions.
    """
    count, gpus = compute.processes, torch.cuda.device_count()
    if gpus and count > gpus:
        raise RecnbError(
            f"compute.processes ({count}): this machine has {gpus} GPUs, and each process takes one"
        )
    if UNDO:
        raise RecnbError(
            "compute.processes: a student's functions are in place in this notebook, and the "
            "processes that it starts would not have them: set compute.processes to 1"
        )
    write_json(place / "job.json", job | {"compute": compute.model_dump(mode="json")})
    (place / "failed").unlink(missing_ok=True)
    _torchrun(place, count, show)


def _torchrun(place, count, show):
    me = psutil.Process()
    # Workers end with this process, however it ends.
    environment = os.environ | {VARIABLE: f"{me.pid} {me.create_time()}"}
    environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", "recnb.workers", str(place)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            for line in started.stdout:
                if line.startswith(ROW):
                    show(json.loads(line.removeprefix(ROW)))
            code = started.wait()
        finally:
            if started.poll() is None:
                end_tree(psutil.Process(started.pid))
            started.stdout.close()
        errors.seek(0)
        said = errors.read().strip().splitlines()[-15:]
    if (place / "failed").is_file():
        raise RecnbError((place / "failed").read_text(encoding="utf-8"))
    if code:
        raise RecnbError(
            f"the {count} processes of compute.processes ended with exit code {code}; the last "
            "they said:\n" + "\n".join(said)
        )


def _show(row):
    if os.environ["RANK"] == "0":
        print(f"{ROW}{json.dumps(row)}", flush=True)


def main(place):
    """What one worker does."""
    end_with_owner()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    job = json.loads((place / "job.json").read_text(encoding="utf-8"))
    if job["work"] == "answers":
        _answer(place, job, _show)
    else:
        _train(place, job)


# What starts workers imports this module, so theirs are imported where they are needed.


def _answer(place, job, show):
    from recnb.evaluation.together import answer_job

    answer_job(place, job["settings"], show)


def _train(place, job):
    from recnb.lm.loading import load_adapted
    from recnb.ppo.trainer import train_ppo_job
    from recnb.profile import Compute
    from recnb.sft import train_sft_job

    model, codec = load_adapted(*job["model"])
    train = {"sft": train_sft_job, "ppo": train_ppo_job}[job["work"]]
    compute = Compute.model_validate(job["compute"])
    with_them = {"show": _show, "key": job["key"], "compute": compute}
    train(place, model, codec, job["folder"], job["settings"], with_them)


def run(place):
    """``main``; what a worker has to say about its failure is kept for the notebook."""
    try:
        main(place)
    except RecnbError as error:
        (place / "failed").write_text(str(error), encoding="utf-8")
        raise SystemExit(1) from error
    except Exception:
        # The first one that fails: the others then miss it, and say so at more length.
        with (
            contextlib.suppress(FileExistsError),
            open(place / "failed", "x", encoding="utf-8") as file,
        ):
            file.write(f"a process of compute.processes failed:\n{traceback.format_exc()}")
        raise


if __name__ == "__main__":
    run(Path(sys.argv[1]))
