"""Notebooks 01 to 03 on invented raw files of the paper's size: time and memory of each step.

    python benchmarks/paper_size.py FOLDER

FOLDER receives the raw files, the tables and the run (about 300 MB). Each step is a command of its
own; those that FOLDER holds already are not made again. Writes ``benchmarks/paper_size.csv``, which
``python benchmarks/scale.py`` sets into docs/scale.md. Minutes on a clock are those of the machine
as it was, beside whatever else ran; processor seconds hardly depend on that.
"""

import csv
import json
import os
import sys
import time
from pathlib import Path

TABLE = Path(__file__).with_suffix(".csv")
REHEARSED = "--users 21800 --items 18752 --length 56".split()
"""Leaves as many users and items as the paper's Table 1 has, and nearly as many interactions."""
FILTER = "--user-core 25 --k-core 10 --users 13218".split()
KNOBS = {"model.name": "mini", "model.dtype": "float32"}
"""Nothing is gated: notebooks 01 to 03 read nothing of the model but its tokenizer's name."""


def measure(command):
    """Run a command of the kit: its processor seconds, seconds on a clock, MiB of a process."""
    started = time.perf_counter()
    program = [sys.executable, "-m", "recnb.cli", *command]
    child = os.posix_spawn(sys.executable, program, os.environ)
    _, status, used = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: recnb {' '.join(command)}")
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
    }


def main():
    """All steps, in order."""
    folder = Path(sys.argv[1]).resolve()
    raw, tables, runs = folder / "raw", folder / "tables", folder / "runs"
    os.environ["RECNB_RUNS"] = str(runs)
    run = ["run", "paper-movie", "--run", "rehearsal", "--set", f"data.path={tables}"]
    for knob, value in KNOBS.items():
        run += ["--set", f"{knob}={value}"]
    steps = {
        "recnb rehearse": (["rehearse", "amazon", str(raw), *REHEARSED], raw),
        "recnb prepare": (["prepare", "amazon", str(raw), str(tables), *FILTER], tables),
    }
    for stage in ("01_data", "02_teacher", "03_instructions"):
        steps[stage] = [*run, "--until", stage], runs / "rehearsal" / stage / "manifest.json"
    rows = {}
    if TABLE.is_file():
        with open(TABLE, encoding="utf-8", newline="") as file:
            rows = {row["step"]: row for row in csv.DictReader(file)}
    for step, (command, made) in steps.items():
        if not made.exists():
            rows[step] = {"step": step} | measure(command)
            print(rows[step], flush=True)
            _write([rows[name] for name in steps if name in rows])
    counts = json.loads((tables / "manifest.json").read_text(encoding="utf-8"))["counts"]
    print(counts)


def _write(rows):
    with open(TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
