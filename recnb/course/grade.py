"""Grade a folder of submissions: run each answer in a limited process, compare in this one.

The helper process (``recnb.course.runner``) is told inputs and sends back what the student's
function returned. Expected answers are computed here, after the student's process is gone, so
nothing that a submission prints, writes or patches can become a point.
"""

import contextlib
import copy
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pandas as pd
import torch

from recnb import RecnbError, text_safety
from recnb.artifacts import atomic_path, write_csv
from recnb.check.compare import Unfit, difference, same
from recnb.course.runner import PATIENCE
from recnb.course.tasks import TASKS, cases
from recnb.page import page

SECONDS, MEMORY = 5.0, 1 << 30
"""Processor time, and memory beyond Python's own, for all cases of one exercise of one student."""
START_SECONDS = 120.0
"""For the helper process to import torch, on a busy machine."""
LARGEST_NOTEBOOK = 50 << 20
LONGEST_MESSAGE, LONGEST_REPLY = 700, 1 << 24
LIMITS = ("time", "memory", "files", "network", "processes")
"""What ``sandbox.enter`` can hold."""


@dataclass
class Submission:
    """What one student handed in.

    Attributes:
        student: name of the folder, or of the file.
        notebooks: ``{path relative to the submissions: list of code cells}``, a cell as ``(source,
            nbgrader's id or "", tags)``.
        problems: a sentence for each file that cannot be read.
    """

    student: str
    notebooks: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)


def grade(folder, seed=None, seconds=SECONDS, progress=lambda student: None):
    """Grade all submissions.

    Args:
        folder: holds a folder (or a single notebook) for each student.
        seed: of the inputs; drawn if None, so that nobody can know them. The same for all students.
        seconds: of processor time for one exercise of one student; ``PATIENCE`` times as many may
            pass.
        progress: called with each student's name.

    Returns:
        ``(grades, seed, held)``: DataFrame student, exercise, function, points, of, message; the
        seed; and which of ``LIMITS`` are in force on this system.

    Raises:
        RecnbError: no submissions there, or the helper process does not start.
    """
    submissions = collect(folder)
    seed = secrets.randbits(63) if seed is None else seed
    drawn = {task.number: cases(task, seed) for task in TASKS}
    with Runner() as runner:
        reply = runner.ask(_job([("trial", "def f(x):\n    return x")], "f", [[1]], "", seconds))
        held = json.loads(reply["text"] or "{}").get("held", [])
        if not held:
            raise RecnbError(f"the grader's helper process does not work: {reply['trouble']}")
    rows = []
    for submission in submissions:
        progress(submission.student)
        with Runner() as runner:  # a new one, so that nobody inherits what another one did
            for task in TASKS:
                message = graded(submission, task, drawn[task.number], runner, seconds)
                points = 0 if message else task.points
                rows.append(
                    (submission.student, task.number, task.name, points, task.points, message)
                )
    columns = ["student", "exercise", "function", "points", "of", "message"]
    return pd.DataFrame(rows, columns=columns), seed, held


def collect(folder):
    """All submissions of a folder, by name of the student.

    Raises:
        RecnbError: it is no folder, or empty.
    """
    folder, found = Path(folder), {}
    if not folder.is_dir():
        raise RecnbError(f"{folder}: no folder of submissions")
    for entry in sorted(folder.iterdir()):
        notebook = entry.suffix == ".ipynb"
        if entry.name.startswith(".") or not (notebook or entry.is_dir()):
            continue
        student = entry.stem if notebook else entry.name
        submission = found.setdefault(student, Submission(student))
        for path in [entry] if notebook or entry.is_symlink() else _notebooks(entry):
            name = str(path.relative_to(folder))
            try:
                submission.notebooks[name] = read_notebook(path)
            except RecnbError as error:
                submission.problems.append(f"{name}: {error}")
    if not found:
        raise RecnbError(f"{folder}: no submissions; each student has a folder with notebooks")
    return list(found.values())


def _notebooks(folder):
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(place, name).is_symlink()]
        folders[:] = [name for name in folders if name not in links]
        yield from (Path(place, name) for name in links)
        names = sorted(name for name in files if name.endswith(".ipynb"))
        yield from (Path(place, name) for name in names if not name.startswith("."))


def read_notebook(path):
    """The code cells of a notebook, as ``Submission`` holds them.

    Raises:
        RecnbError: a link (to somebody else's file, perhaps), too large, or no notebook.
    """
    if path.is_symlink():
        raise RecnbError("a link is not followed: hand in the file itself")
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_NOTEBOOK:
            raise RecnbError(f"no file of at most {LARGEST_NOTEBOOK >> 20} MiB")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RecnbError(f"cannot be read as a notebook ({type(error).__name__})") from None
    cells = data.get("cells") if isinstance(data, dict) else None
    if not isinstance(cells, list):
        raise RecnbError("cannot be read as a notebook (it has no list of cells)")
    return [_code_cell(cell) for cell in cells if _is_code(cell)]


def _is_code(cell):
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return False
    source = cell.get("source")
    lines = source if isinstance(source, list) else [source]
    return all(isinstance(line, str) for line in lines)


def _code_cell(cell):
    metadata = cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    marks, tags = metadata.get("nbgrader"), metadata.get("tags")
    name = marks.get("grade_id") if isinstance(marks, dict) else ""
    return (
        _plain_python("".join(cell["source"])),
        name if isinstance(name, str) else "",
        [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else [],
    )


def _plain_python(source):
    """Jupyter's own lines (``%time``, ``!ls``) become empty ones, so that numbers stay right."""
    return re.sub(r"^[%!].*$", "", source, flags=re.M)


def _answers(submission, task):
    """``{file: cells to run}`` of every notebook that answers a task."""
    marked, named = {}, {}
    for name, cells in submission.notebooks.items():
        helpers = [
            ("the cell of helpers", source) for source, _, tags in cells if "helpers" in tags
        ]
        for source, mark, _ in cells:
            run = [*helpers, ("the answer's cell", source)]
            if mark == f"answer-{task.key}":
                marked[name] = run
            if re.search(rf"^(async )?def {task.function}\b", source, flags=re.M):
                named[name] = run
    return marked or named


def graded(submission, task, drawn, runner, seconds):
    """Why an answer earns no point, in a sentence; "" if it is right."""
    found = _answers(submission, task)
    if not found:
        return "; ".join(["no answer", *submission.problems])
    if len(found) > 1:
        return f"answered in several files, keep one: {', '.join(found)}"
    (run,) = found.values()
    inputs = [[encoded(value) for value in arguments.values()] for arguments in drawn]
    reply = runner.ask(_job(run, task.function, inputs, task.read, seconds))
    message = compare(task, drawn, reply)
    return text_safety.one_line(message)[:LONGEST_MESSAGE]


def _job(run, function, inputs, read, seconds):
    return {
        "cells": run,
        "function": function,
        "cases": inputs,
        "read": read,
        "seconds": seconds,
        "memory": MEMORY,
    }


def compare(task, drawn, reply):
    """What differs between the answers that came back and the kit's own; "" if nothing does."""
    if reply["trouble"]:
        return reply["trouble"]
    try:
        said = json.loads(reply["text"])
        answers, trouble = said.get("answers", []), said.get("trouble", "")
    except (ValueError, RecursionError, AttributeError):
        said, answers, trouble = {}, None, ""
    if not isinstance(answers, list) or not isinstance(trouble, str):
        return "what it sent back cannot be read"
    exercise = task.exercise
    for arguments, answer in zip(drawn, answers, strict=False):
        try:
            value = decoded(answer)
            got = value if task.read else exercise.read(value, copy.deepcopy(arguments))
        except Unfit as error:
            return f"{exercise.words(arguments)}: {error}"
        except (ArithmeticError, TypeError, ValueError, RecursionError):  # no student's function
            return f"{exercise.words(arguments)}: what it sent back cannot be read"
        expected = exercise.reference(**copy.deepcopy(arguments))
        if not isinstance(got, list) or len(got) != len(expected):
            return f"{exercise.words(arguments)}: what it sent back cannot be read"
        for label, one, other in zip(exercise.labels, expected, got, strict=True):
            if not same(one, other):
                return f"{exercise.words(arguments)}: {difference(label, one, other)}"
    if said.get("stub") is True:
        return "not written yet"
    if len(answers) < len(drawn):
        first = exercise.words(drawn[len(answers)]) + ": " if answers else ""
        return first + (trouble or "it sent back fewer answers than inputs")
    return trouble


def encoded(value):
    """An argument as JSON; ``recnb.course.runner.decode`` reads it."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": value.tolist(), "dtype": kind, "grad": value.requires_grad}
    if isinstance(value, Fraction):
        return {"fraction": [value.numerator, value.denominator]}
    if isinstance(value, set):
        return {"set": [encoded(entry) for entry in sorted(value)]}
    if isinstance(value, tuple):
        return {"tuple": [encoded(entry) for entry in value]}
    return [encoded(entry) for entry in value] if isinstance(value, list) else value


def decoded(value, depth=0):
    """Plain data out of a student's process, which may have sent anything that is JSON.

    Raises:
        Unfit: something else than numbers, texts, lists, sets, fractions, or too deep.
    """
    if depth > 8:
        raise Unfit("lists within lists, too deep to be an answer")
    if isinstance(value, list):
        return [decoded(entry, depth + 1) for entry in value]
    if not isinstance(value, dict):
        return value
    try:
        ((kind, inside),) = value.items()
        inside = [decoded(entry, depth + 1) for entry in inside]
        return {"set": frozenset, "fraction": lambda pair: Fraction(*pair)}[kind](inside)
    except (ValueError, TypeError, KeyError, ZeroDivisionError):
        raise Unfit("what it sent back cannot be read") from None


class Runner:
    """The helper process; it is started with the first job, and again if it is gone."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.process = None
        return self

    def __exit__(self, *error):
        self._end()
        self.folder.cleanup()

    def ask(self, job):
        """Send a job and wait for its answer, ``{"text", "trouble"}``."""
        if self.process is None:
            self._start()
        # It may have been stopped, or never end its line: then this ends it, and reading ends.
        watch = threading.Timer(START_SECONDS + 2 * PATIENCE * job["seconds"], self._kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
            reply = json.loads(self.process.stdout.readline(LONGEST_REPLY))
            return {"text": str(reply["text"]), "trouble": str(reply["trouble"])}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            said = self._said()
            self._end()
            return {"text": "", "trouble": f"the helper process ended{said}"}
        finally:
            watch.cancel()

    def _start(self):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.errors = open(Path(self.folder.name) / "errors", "w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "recnb.course.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=self.folder.name,
            env={"PATH": os.defpath, "HOME": self.folder.name} | threads,
            start_new_session=True,
        )

    def _said(self):
        self.errors.seek(0)
        last = self.errors.read()[-300:].decode("utf-8", "replace").strip()
        return f": {last}" if last else ""

    def _kill(self):
        with contextlib.suppress(ProcessLookupError):  # it is gone already
            os.killpg(self.process.pid, signal.SIGKILL)

    def _end(self):
        if self.process is None:
            return
        self._kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # what was not sent any more
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()
        self.process = None


# ---- tables


def write_grades(grades, folder, seed, held):
    """Write grades.csv (students by exercises), messages.csv, grades.md and grades.html.

    Args:
        grades, seed, held: from ``grade``.
        folder: is made if it is not there.
    """
    folder = Path(folder)
    wide = _wide(grades)
    long = grades[["student", "exercise", "function", "points", "of", "message"]]
    for name, frame in (("grades", wide), ("messages", long)):
        write_csv(frame.map(text_safety.spreadsheet), folder / f"{name}.csv")
    about = _about(grades, seed, held)
    safe = text_safety.markdown
    parts = ["# Grades", about, _table(wide, safe).to_markdown(index=False, disable_numparse=True)]
    for student, rows in _missed(grades):
        lines = [f"- {r.exercise} {r.function}: {safe(r.message)}" for r in rows.itertuples()]
        parts += [f"## {safe(student)}", "\n".join(lines) or "All right."]
    with atomic_path(folder / "grades.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    with atomic_path(folder / "grades.html") as temporary:
        temporary.write_text(_page(grades, wide, about), encoding="utf-8")


def _wide(grades):
    """Students by exercises, with the total; a right answer has its points, a wrong one 0."""
    names = [f"{task.number} {task.name}" for task in TASKS]
    labels = grades["exercise"] + " " + grades["function"]
    wide = grades.assign(label=labels).pivot(index="student", columns="label", values="points")
    wide = wide[names].assign(total=wide.sum(axis=1))
    return wide[["total", *names]].rename_axis(None, axis=1).reset_index()


def _table(wide, safe):
    return wide.assign(student=wide["student"].map(safe))


def _about(grades, seed, held):
    most = sum(task.points for task in TASKS)
    lacking = [name for name in LIMITS if name not in held]
    limits = f"Limits in force: {', '.join(held)}"
    limits += f"; not on this system: {', '.join(lacking)}" if lacking else ""
    return (
        f"{grades['student'].nunique()} students, {len(TASKS)} exercises, {most} points. "
        f"{limits}. The inputs came from seed {seed}: `recnb grade --seed {seed}` grades alike."
    )


def _missed(grades):
    for student, rows in grades.groupby("student", sort=False):
        yield student, rows[rows["message"] != ""]


def _page(grades, wide, about):
    safe = text_safety.html
    table = _table(wide, safe).rename(columns=safe)
    parts = [f"<h1>Grades</h1><p>{safe(about)}</p>", table.to_html(index=False, escape=False)]
    for student, rows in _missed(grades):
        lines = [
            f"<tr><td>{r.exercise} {r.function}</td><td>{safe(r.message)}</td></tr>"
            for r in rows.itertuples()
        ]
        body = f"<table>{''.join(lines)}</table>" if lines else "<p>All right.</p>"
        parts.append(f"<h2>{safe(student)}</h2>{body}")
    return page("Grades", "\n".join(parts))
