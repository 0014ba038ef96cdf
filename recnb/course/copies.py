"""A course's folder out of the kit's notebooks: the teacher's copies and the students'.

The layout is nbgrader's (source, release, submitted), and so are the cells' metadata: a teacher
with nbgrader can use the folder as it is. ``recnb grade`` needs nothing but the submissions.
"""

import ast
import inspect
import json
import re
import secrets
import shutil
import textwrap
from pathlib import Path

from recnb import RecnbError
from recnb.artifacts import atomic_path, write_json
from recnb.course import solutions
from recnb.course.tasks import TASKS
from recnb.profile import STAGES, root

ASSIGNMENT = "recnb"
OPEN = ("1.2", "1.3", "2.3", "3.3", "7.3", "8.2", "9.2")
"""Exercises whose own cell measures something and stays; the graded function comes behind it."""
HELPERS = """\
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import torch

# Functions that several of your answers use may stand here. The grader runs this cell, then the
# cell of one answer at a time, and no other."""
WORDS = "YOUR ANSWER HERE"
README = """\
# How to hand in

- Write your answers where a cell says `raise NotImplementedError`; leave the function's name.
- The cell below each answer tries it out. The grader asks with other inputs: a table of answers
  does not help.
- The grader runs the cell under *Exercises* that imports, then the cell of one answer at a time. It
  runs no other cell, and `recnb` cannot be imported there: your function must do the work itself.
- Hand in the notebooks (`.ipynb`), saved.
"""
CONFIG = """\
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "recnb"
c.ExecutePreprocessor.timeout = 1800  # a lesson trains models
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"
"""


def write_course(folder, seed=None):
    """Write the teacher's copies, the students' copies and an empty place for submissions.

    Args:
        folder: to make; it must not be there.
        seed: of the hidden inputs of nbgrader's tests; drawn if None. It stands in the teacher's
            copies alone.

    Returns:
        The number of graded exercises.

    Raises:
        RecnbError: the folder is there already, or a notebook is not as this module expects it.
    """
    folder = Path(folder)
    if folder.exists():
        raise RecnbError(
            f"{folder} is there already, and submissions may lie in it: name a new folder"
        )
    seed = secrets.randbits(32) if seed is None else seed
    written = []
    with atomic_path(folder) as temporary:
        for part in ("source", "release"):
            place = temporary / part / ASSIGNMENT
            shutil.copytree(root() / "notebooks" / "figures", place / "figures")
            (place / "README.md").write_text(README, encoding="utf-8")
            for stage in STAGES:
                notebook, tasks = course_notebook(stage, part == "source", seed)
                write_json(place / f"{stage}.ipynb", notebook)
                written += tasks if part == "release" else []
        (temporary / "submitted").mkdir()
        (temporary / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
        lost = [task.number for task in TASKS if task not in written]
        if lost:
            raise RecnbError(f"the notebooks have no exercise {', '.join(lost)}")
    return len(written)


def course_notebook(stage, teacher, seed):
    """One notebook as a dict, and the tasks in it.

    Args:
        stage: its name.
        teacher: whether solutions and hidden tests stand in it.
        seed: of the hidden tests.
    """
    path = root() / "notebooks" / f"{stage}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells, tasks, number, exercises = [], [], "", False
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            exercises = text.startswith("## Exercises") or exercises and text[:3] != "## "
            if exercises:
                for part in re.split(r"^(?=\*\*\d+\.\d+ )", text, flags=re.M):
                    if part.startswith("**"):
                        tasks += _graded(number, cells, teacher, seed)
                        number = part[2:].split(" ")[0]
                        cells += _asked(number, part, teacher)
                    elif part.strip():
                        cells += [_markdown("exercises", _links(part.strip())), _helpers()]
                continue
            if number:
                tasks += _graded(number, cells, teacher, seed)
                tasks += _extra(stage, cells, teacher, seed)
                number = ""
            cells.append(cell | {"source": _links(text)})
        elif exercises and number not in OPEN:
            continue  # the graded cells come in its place
        else:
            cells.append(_without_kit(cell, text))
    return notebook | {"cells": cells}, tasks


def _graded(number, cells, teacher, seed):
    """Add the cells of the exercise that has been told, and return its task as a list."""
    found = [task for task in TASKS if task.number == number]
    for task in found:
        cells += _answer_cells(task, teacher, seed)
    return found


def _extra(stage, cells, teacher, seed):
    """The exercises that the lesson does not have."""
    extra = [task for task in TASKS if task.notebook == stage and task.title]
    for task in extra:
        head = f"**{task.number} {task.title}** ({'★' * task.exercise.stars}, "
        text = f"{head}{task.exercise.minutes} minutes).\n\n{_hint(task.exercise.hint)}"
        cells.append(_markdown(f"text-{task.key}", text))
        cells += _answer_cells(task, teacher, seed)
    return extra


def _hint(text):
    return f"<details><summary>Hint</summary>{text}</details>"


def _asked(number, text, teacher):
    """The text of an exercise with its hints, and a place for an answer in words if it asks."""
    pattern = r"<details><summary>(.*?)</summary>(.*?)</details>\n?"
    details = re.findall(pattern, text, flags=re.S)
    kept = re.sub(pattern, lambda found: found[0] if found[1] == "Hint" else "", text, flags=re.S)
    key = number.replace(".", "-")
    cells = [_markdown(f"text-{key}", _links(kept.strip()))]
    answers = [(name, told) for name, told in details if name not in ("Hint", "Solution")]
    if answers:
        told = "\n\n".join(f"{name}: {words}" for name, words in answers)
        text = f"### BEGIN SOLUTION\n{told}\n### END SOLUTION" if teacher else WORDS
        cells.append(_markdown(f"words-{key}", text, points=0, solution=True, locked=False))
    return cells


def _answer_cells(task, teacher, seed):
    """What a student writes, and what tries it out."""
    contract = inspect.getsource(task.exercise.stub).replace(
        f"def {task.name}(", f"def {task.function}(", 1
    )
    answer = contract.rstrip()
    tried = (
        "from recnb.course.tasks import try_out\n\n"
        f'_ = try_out("{task.name}", {task.function})  # for {task.points} of all points'
    )
    if teacher:
        body = textwrap.indent(f"### BEGIN SOLUTION\n{solution(task)}\n### END SOLUTION", "    ")
        answer = answer.removesuffix("    raise NotImplementedError") + body
        tried += (
            "\n### BEGIN HIDDEN TESTS\nfrom recnb.course.tasks import expect_right\n\n"
            f'expect_right("{task.name}", {task.function}, {seed})\n### END HIDDEN TESTS'
        )
    return [
        _code(f"answer-{task.key}", answer, solution=True, locked=False),
        _code(f"tests-{task.key}", tried, points=task.points),
    ]


def solution(task):
    """The body of a task's solution, without indentation."""
    text = inspect.getsource(getattr(solutions, task.name))
    first = ast.parse(text).body[0].body[0]
    return textwrap.dedent("\n".join(text.splitlines()[first.lineno - 1 :]))


def _nbgrader(name, kind, points=None, solution=False, locked=True):
    marks = {
        "cell_type": kind,
        "grade": points is not None,
        "grade_id": name,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }
    return {"nbgrader": marks if points is None else marks | {"points": points}}


def _markdown(name, text, **marks):
    metadata = _nbgrader(name, "markdown", **marks)
    return {"cell_type": "markdown", "id": name, "metadata": metadata, "source": text}


def _code(name, text, **marks):
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": _nbgrader(name, "code", **marks),
        "outputs": [],
        "source": text,
    }


def _helpers():
    cell = _code("helpers", HELPERS)
    return cell | {"metadata": {"tags": ["helpers"]}}


def _links(text):
    """Links out of the notebooks' folder lead nowhere from a copy."""
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)]*)\)", r"\1 (`\2` of the kit)", text)


def _without_kit(cell, text):
    """A lesson's cell without the kit's own code for what is asked."""
    asked = {"strict": "6.3"}
    for task in TASKS:
        asked |= {part.__name__: task.number for part in task.exercise.kit}

    def instead(found):
        name = found[1].split(".")[0]
        return f'"{name}: exercise {asked[name]}"' if name in asked else found[0]

    changed = re.sub(r"\bsource\(([\w.]+)\)", instead, text)
    if changed == text:
        return cell
    return cell | {"source": changed, "outputs": [], "execution_count": None}
