"""Instructions per second, once the teacher's scores are there and with the teacher.

Also peak memory for N and for 4 N instructions:

    recnb run laptop --until 02_teacher
    python benchmarks/synthesis.py laptop
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recnb.artifacts import runs_folder
from recnb.catalog import Catalog
from recnb.instructions import synthesis
from recnb.interactions import Histories
from recnb.profile import load
from recnb.teacher.training import load_teacher


class ScoresAreThere:
    """Gives the scores of one batch again and again: all but the teacher is left to measure."""

    def __init__(self, teacher, histories):
        self.kept = teacher.scores([histories.train(u % len(histories)) for u in range(512)])

    def scores(self, histories):
        """As many rows as asked for."""
        return self.kept[: len(histories)]


def measure(run, samples, ready):
    """Seconds and peak MiB of writing ``samples`` instructions (no conversations) to Parquet."""
    folder = runs_folder() / run
    profile = load(folder / "profile.yaml")
    catalog = Catalog.from_parquet(folder / "01_data" / "catalog.parquet")
    histories = Histories.from_parquet(folder / "01_data" / "histories.parquet")
    weights = folder / "02_teacher" / "teacher.safetensors"
    teacher = load_teacher(weights, len(catalog), profile.teacher)
    if ready:
        teacher = ScoresAreThere(teacher, histories)
    part = samples // 8
    sizes = {"sequential": 2 * part, "category": 3 * part, "proportion": 2 * part, "search": part}
    knobs = profile.instructions.model_copy(update=sizes | {"chat_share": 0.0})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        made = synthesis.synthesize(histories, catalog, teacher, knobs, profile.data, profile.seed)
        counts = synthesis.write(made, Path(out) / "train.parquet")
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"samples": sum(counts.values()), "seconds": seconds, "memory": memory}


def main():
    """Each measurement in a process of its own, so that peak memory is its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="name of a run whose stages 01 and 02 are done")
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--one", choices=["ready", "teacher"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.run, arguments.samples, arguments.one == "ready")))
        return
    n = arguments.samples
    for mode, samples in (("ready", n), ("ready", 4 * n), ("teacher", n)):
        options = ["--samples", str(samples), "--one", mode]
        command = [sys.executable, __file__, arguments.run, *options]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(ran.stdout.splitlines()[-1])
        name = "scores are there" if mode == "ready" else "with the teacher"
        rate = found["samples"] / found["seconds"]
        print(
            f"{name}: {found['samples']} instructions, {rate:.0f} a second, "
            f"peak memory {found['memory']:.0f} MiB"
        )


if __name__ == "__main__":
    main()
