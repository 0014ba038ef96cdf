"""Seconds of an SL step by processes and threads, on samples and base model of a finished run.

    python benchmarks/processes.py papermill_runs/laptop

Each line is a training of its own: the same batches, shared out otherwise. The first steps, which
warm up, and the validation at the end do not count. Nothing heavy may run beside it.
"""

import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from recnb.artifacts import Reader
from recnb.catalog import Catalog
from recnb.lm.loading import load_base
from recnb.lm.tokenizer import title_tokens
from recnb.machine import autocast
from recnb.profile import Compute, load
from recnb.sft import train_sft

STEPS, WARM = 100, 20
"""Steps of a training; those at its start that do not count."""


def seconds(run, processes, threads):
    """Of one step, with ``threads`` threads in all."""
    profile = load(run / "profile.yaml")
    stages = Reader(profile, run)
    catalog = Catalog.from_parquet(stages.input("01_data", "catalog.parquet"))
    samples = pd.read_parquet(stages.input("03_instructions", "train.parquet"))
    held = pd.read_parquet(stages.input("03_instructions", "validation.parquet"))[:8]
    model, codec = load_base(str(stages.input_folder("04_sft", "base")), profile.model.dtype)
    knobs = profile.sft.model_copy(update={"evaluations": 1, "checkpoints": 1})
    torch.set_num_threads(threads)
    reached = {}

    def show(row):
        reached.setdefault(row["step"], time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        train_sft(
            model,
            codec,
            samples[: STEPS * knobs.batch_size],
            held,
            title_tokens(codec.tokenizer, catalog),
            knobs,
            profile.seed,
            folder,
            show,
            autocast=autocast(profile.model),
            compute=Compute(processes=processes),
        )
    return (reached[STEPS - 1] - reached[WARM]) / (STEPS - 1 - WARM)


def main():
    """One line a way to use the cores."""
    run, cores = Path(sys.argv[1]), torch.get_num_threads()
    for processes, threads in [(1, 1), (1, cores), (cores, cores)]:
        spent = seconds(run, processes, threads)
        print(f"{processes} processes, {threads} threads in all: {spent:.3f} s a step", flush=True)


if __name__ == "__main__":
    main()
