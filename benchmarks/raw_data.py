"""Lines a second of the raw readers and of ``recnb prepare``, and the memory that more lines take.

    python benchmarks/raw_data.py

Files are invented (``recnb rehearse``). Peak memory is that of a file, and of the same file with
three times as many lines behind it of people who come once: nothing of these is kept.
"""

import argparse
import gzip
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recnb.datasets import rehearsal
from recnb.datasets.prepare import DATASETS, prepare
from recnb.datasets.raw import Reading


def measure(name, source, whole):
    """Processor seconds and peak MiB of reading the log alone, or of all of ``prepare``."""
    started = time.process_time()
    if whole:
        prepare(name, source, Path(source).with_name("out"))
    else:
        dataset = DATASETS[name]
        for _ in dataset.interactions(Reading(Path(source) / dataset.log_files[0], "")):
            pass
    seconds = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "memory": memory}


def strangers(name, path, lines):
    """Append so many lines of people who come once; returns how many lines the file then has."""
    form = rehearsal.FORMS[name]()
    with gzip.open(path, "ab", 1) if path.suffix == ".gz" else open(path, "ab") as file:
        for user in range(lines):
            file.write(form.interaction(10**9 + user, user % 1000, rehearsal.START, 5) + b"\n")


def main():
    """Each measurement in a process of its own, so that peak memory is its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(DATASETS))
    parser.add_argument("--users", type=int, default=15_000)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, source, whole = arguments.one
        return print(json.dumps(measure(name, source, whole == "prepare")))
    print(
        "| data set | lines | bytes a line | work | lines/s | peak MiB |\n|---|---|---|---|---|---|"
    )
    for name in arguments.names:
        dataset = DATASETS[name]
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "raw"
            rehearsal.write(name, source, arguments.users, 4000)
            log = source / dataset.log_files[0]
            lines, size = _lines(log)
            for more in (0, 3 * lines):
                strangers(name, log, more)
                for work in ("read", "prepare"):
                    command = [sys.executable, __file__, "--one", name, str(source), work]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    row = json.loads(done.stdout.splitlines()[-1])
                    speed = (lines + more) / row["seconds"]
                    cells = f"{lines + more:,} | {size / lines:.0f} | {work} | {speed:,.0f}"
                    print(f"| {name} | {cells} | {row['memory']:.0f} |", flush=True)
                    shutil.rmtree(Path(folder) / "out", ignore_errors=True)


def _lines(path):
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        lengths = [len(line) for line in file]
    return len(lengths), sum(lengths)


if __name__ == "__main__":
    main()
