"""Copies hold no solution; solved ones earn all points, and nothing but right answers does."""

import inspect
import json
import math
import os
import re
import shutil
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from recnb import RecnbError, check, cli, controls
from recnb.catalog import Catalog
from recnb.check import lists
from recnb.course import copies, solutions, tasks
from recnb.course import grade as grading
from recnb.course import runner as runner_module
from recnb.course.grade import Runner, Submission, graded
from recnb.evaluation import metrics
from recnb.profile import STAGES, root
from tests.test_check import RIGHT, WRONG, pairs_of
from tests.test_text_safety import NASTY, harmless

NAMES = [task.name for task in tasks.TASKS]

# ---- the exercises


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right(name):
    for seed in (0, 1):
        tasks.expect_right(name, getattr(solutions, name), seed)


@pytest.mark.parametrize("name, function", pairs_of(RIGHT))
def test_right_functions_of_any_style_are_right(name, function):
    tasks.expect_right(name, function, 2)


OTHER_WRONG = {
    "core": [
        lambda pairs, k: pairs,
        lambda pairs, k: [p for p in pairs if sum(q[0] == p[0] for q in pairs) >= k],
        lambda pairs, k: [  # once is not enough
            p for p in pairs
            if min(sum(q[0] == p[0] for q in pairs), sum(q[1] == p[1] for q in pairs)) >= k
        ],
    ],
    "future_share": [
        lambda times, test: sum(t > times[test] for t in times) / len(times),
        lambda times, test: (len(times) - 1 - test) / (len(times) - 1),
    ],
    "last_chance": [
        lambda times, place: float(place == len(times) - 1),
        lambda times, place: 1 / times.count(times[place]),
        lambda times, place: 1 / len(times) if times[place] == times[-1] else 0.0,
    ],
    "arrival": [
        lambda s, v, part: next(x for x, y in zip(s, v, strict=True) if y >= part * v[-1]),
        lambda s, v, part: next(i for i, y in enumerate(v) if (y - v[0]) / (v[-1] - v[0]) >= part),
        lambda s, v, part: s[sum((y - v[0]) / (v[-1] - v[0]) < part for y in v)],
    ],
    "smoothed": [
        lambda c, q, w: [a / max(sum(c), 1) for a in c],
        lambda c, q, w: [(a + w * b) / (sum(c) + w) for a, b in zip(c, q, strict=True)],
    ],
    "miss": [
        lambda k, share: k * share - math.floor(k * share),
        lambda k, share: abs(share - Fraction(round(share * 10), 10)),
    ],
    "bounds": [
        lambda wish, share, k: (0, k),
        lambda wish, share, k: (  # Python rounds halves to even
            (round(k * share),) * 2 if wish == "about" else solutions.bounds(wish, share, k)
        ),
        lambda wish, share, k: (
            (math.floor(k * share), k) if wish == "at least" else solutions.bounds(wish, share, k)
        ),
    ],
    "loss_mask": [
        lambda question, answer: [True] * (len(question) + len(answer)),
        lambda question, answer: [False] * (len(question) + 1) + [True] * (len(answer) - 1),
    ],
    "slope": [lambda p, early: [-a * b for a, b in zip(p, early, strict=True)]],
    "title_loss": [
        lambda p, early, target, weight: -math.log(p[target]),
        lambda p, early, target, weight: solutions.title_loss(p, early, target, -weight),
    ],
    "strict": [
        lambda items, k, history, inside, least, most: float(
            least <= sum(i in inside for i in items) <= most
        ),
        lambda items, k, history, inside, least, most: solutions.strict(
            list(dict.fromkeys(items)), len(set(items)), history, inside, least, most
        ),
        lambda items, k, history, inside, least, most: solutions.strict(
            items, k, [], inside, least, most
        ),
    ],
    "most_share": [
        lambda size, seen, k: (size - seen) / k,
        lambda size, seen, k: min(size, k) / k,
    ],
    "failing": [
        lambda answers, categories, excluded: [
            solutions.failing(answers, categories, excluded)[1]
        ] * 2,
        lambda answers, categories, excluded: solutions.failing(
            [sorted(set(sum(answers, [])))], categories, excluded
        ),
    ],
    "two_wishes": [
        lambda items, a, b, share, k: (abs(sum(i in a for i in items) - k * share), 0),
        lambda items, a, b, share, k: (
            sum(i in a - b for i in items) - math.floor(k * share + Fraction(1, 2)),
            sum(i in b for i in items),
        ),
    ],
    "auc": [
        lambda labels, scores: sum(labels) / len(labels),
        lambda labels, scores: 1 - solutions.auc(labels, scores),
        lambda labels, scores: (  # ties count nothing
            sum(a > b for a, x in zip(scores, labels, strict=True) if x
                for b, y in zip(scores, labels, strict=True) if not y)
            / (sum(labels) * (len(labels) - sum(labels)))
        ),
    ],
    "two_errors": [
        lambda values, p, n: (np.std(values) / len(values) ** 0.5, ((1 / p + 1 / n) / 12) ** 0.5),
        lambda values, p, n: (np.std(values, ddof=1), ((1 / p + 1 / n) / 12) ** 0.5),
    ],
    "answer_share": [
        lambda prompts, answers, on: sum(answers) / (sum(answers) + sum(prompts)),
        lambda prompts, answers, on: np.mean(
            [a / (a + p * on) for a, p in zip(answers, prompts, strict=True)]
        ),
    ],
    "no_idea": [
        lambda n, bound: ([1 / n] * n, 0),
        lambda n, bound: ([0.0] + [1 / (n - 1)] * (n - 1), 0),
        lambda n, bound: ([0.001] + [1.0] * (n - 1), 0),
        lambda n, bound: ([float("nan")] * n, 0),
        lambda n, bound: ([1e-9] + [(1 - 1e-9) / (n - 1)] * (n - 1), n),
    ],
    "forgot": [
        lambda names, rows, base: solutions.forgot(names, rows, base)[::-1],
        lambda names, rows, base: [
            (name, math.log(ratio)) for name, ratio in solutions.forgot(names, rows, base)
        ],
    ],
    "guessing": [
        lambda right, n, choices: (right / n, right / n - 1 / choices),
        lambda right, n, choices: (
            right / n,
            (right / n - 1 / choices) / max(right * (n - right) / n**3, 1e-9) ** 0.5,
        ),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name, function", pairs_of(WRONG | OTHER_WRONG))
def test_typical_wrong_functions_are_wrong_whatever_is_drawn(name, function):
    for seed in (3, 4, 5):
        with pytest.raises(AssertionError, match="not right yet"):
            tasks.expect_right(name, function, seed)


def test_every_exercise_has_a_wrong_function_a_place_and_points():
    assert set(WRONG) | set(OTHER_WRONG) == set(NAMES) and len(NAMES) == len(set(NAMES)) >= 25
    assert {task.notebook for task in tasks.TASKS} == set(STAGES)
    assert all(task.points > 0 for task in tasks.TASKS)
    numbers = [tuple(map(int, task.number.split("."))) for task in tasks.TASKS]
    assert numbers == sorted(set(numbers))
    for task in tasks.TASKS:
        names = list(inspect.signature(task.exercise.stub).parameters)
        assert list(inspect.signature(getattr(solutions, task.name)).parameters) == names
        assert [list(case) for case in tasks.cases(task, 1)] == [names] * tasks.CASES


def test_inputs_come_from_the_seed():
    for task in tasks.TASKS:
        shown = [repr(tasks.cases(task, seed)) for seed in (7, 7, 8)]
        assert shown[0] == shown[1] != shown[2]


def test_the_page_lists_exercises_and_points():
    text = (root() / "docs" / "course.md").read_text(encoding="utf-8")
    points = sum(task.points for task in tasks.TASKS)
    assert f"{len(NAMES)} functions in nine notebooks, {points} points" in text
    rows = re.findall(r"\| (\d\.\d) \| (\w+) \| (\d+) \|", text)
    assert sorted(rows) == [(t.number, t.name, str(t.points)) for t in tasks.TASKS]
    assert f"on {tasks.CASES} inputs" in text and f"draws {tasks.CASES} inputs" in text
    assert f"up to {len(NAMES)} times the limit of {grading.SECONDS:g} seconds" in text
    clock = grading.SECONDS * runner_module.PATIENCE
    assert f"{grading.SECONDS:g} s of processor time for an exercise and {clock:g} s on" in text
    assert grading.MEMORY == 1 << 30 and "memory: 1 GiB beyond" in text


BY_HAND = [
    ("core", ([(1, "a"), (1, "b"), (2, "a"), (2, "b"), (3, "b"), (3, "c"), (4, "c")], 2),
     [(1, "a"), (1, "b"), (2, "a"), (2, "b")]),
    ("future_share", ([30, 10, 20, 40], 0), 1 / 3),
    ("last_chance", ([3, 4, 4, 4], 2), 1 / 3),
    ("last_chance", ([3, 4, 4, 4], 0), 0.0),
    ("arrival", ([0, 10, 20, 40], [8, 5, 6, 0], 0.5), 40),
    ("arrival", ([0, 10, 20, 40], [8, 4, 6, 0], 0.5), 10),
    ("smoothed", ([1, 0], [1, 3], 4.0), [2 / 5, 3 / 5]),
    ("miss", (5, Fraction(3, 10)), Fraction(1, 2)),
    ("loss_mask", ([5, 6], [7]), [False, False, True]),
    ("title_loss", ([0.5, 0.25, 0.25], [0, 1, 0], 0, 2.0), math.log(2) - 2 * math.log(0.75)),
    ("most_share", (7, 4, 10), 0.3),
    ("most_share", (70, 4, 10), 1.0),
    ("failing", ([[0, 0, 2], [1]], [{"A", "B"}, {"A"}, {"C"}], "A"), [5 / 3, 1.5]),
    ("failing", ([[2]], [{"A", "B"}, {"A"}, {"C"}], "A"), [None, 1.5]),
    ("two_wishes", ([1, 2, 3, 4, 5], {1, 2, 9}, {5}, Fraction(7, 10), 5), (-2, 1)),
    ("two_errors", ([0.4, 0.6], 3, 6), (0.1, math.sqrt(0.5 / 12))),
    ("answer_share", ([9, 9], [1, 1], True), 0.1),
    ("answer_share", ([9, 9], [1, 1], False), 1.0),
    ("forgot", (["a", "b", "c"], [[-1.0], [-2.0], [-4.0]], "b"),
     [("c", math.exp(2)), ("a", math.exp(-1))]),
    ("guessing", (40, 100, 4), (0.4, 0.15 / math.sqrt(0.1875 / 100))),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, expected", BY_HAND)
def test_solutions_by_hand(name, arguments, expected):
    found = getattr(solutions, name)(*arguments)
    assert check.compare.same(check.compare.plain(expected), check.compare.plain(found))


def test_solutions_agree_with_the_kit(rng):
    kinds = {"at most": controls.AtMost, "at least": controls.AtLeast, "about": controls.About}
    for wish, k, tenths in product(kinds, range(1, 16), range(11)):
        share = Fraction(tenths, 10)
        assert solutions.bounds(wish, share, k) == kinds[wish]("A", share).bounds(k)
        nearest = controls.About("A", share).bounds(k)[0]
        assert solutions.miss(k, share) == abs(nearest - k * share)
    assert solutions.bounds("include", None, 4) == controls.Include("A").bounds(4)
    assert solutions.bounds("exclude", None, 4) == controls.Exclude("A").bounds(4)
    for case in tasks.cases(tasks.find("auc"), 9):
        assert solutions.auc(**case) == pytest.approx(roc_auc_score(case["labels"], case["scores"]))
    for case in tasks.cases(tasks.find("slope"), 9):
        z = torch.tensor(case["p"]).log().requires_grad_()
        m = (z.softmax(0) * torch.tensor(case["early"])).sum()
        (slope,) = torch.autograd.grad(-torch.log1p(-m), z)
        assert solutions.slope(**case) == pytest.approx(slope.tolist(), abs=1e-5)
    outcomes = set()
    for case in tasks.cases(tasks.find("strict"), 9):
        names = [{"it"} if n in case["inside"] else {"other"} for n in range(1, 100)]
        catalog = Catalog([f"title {n}" for n in range(1, 100)], names)
        wish = _Between("it", case["least"], case["most"])
        kit = metrics.strict(case["items"], case["k"], case["history"], wish, catalog)
        assert solutions.strict(**case) == kit
        outcomes.add(kit)
    assert outcomes == {0.0, 1.0}


class _Between(controls.Control):
    def __init__(self, category, least, most):
        self.__dict__.update(category=category, least=least, most=most)

    def bounds(self, k):
        return self.least, self.most


# ---- the copies


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course") / "course"
    assert copies.write_course(folder, 5) == len(NAMES)
    return folder


def cells_of(path):
    return nbformat.read(path, as_version=4).cells


def test_both_copies_are_notebooks_with_nbgraders_marks(course):
    for part, stage in product(("source", "release"), STAGES):
        path = course / part / "recnb" / f"{stage}.ipynb"
        nbformat.validate(json.loads(path.read_text(encoding="utf-8")))
        cells = cells_of(path)
        marks = [cell.metadata["nbgrader"] for cell in cells if "nbgrader" in cell.metadata]
        assert len({mark["grade_id"] for mark in marks}) == len(marks)
        own = [task for task in tasks.TASKS if task.notebook == stage]
        graded_cells = {m["grade_id"]: m["points"] for m in marks if m["grade"] and m["locked"]}
        assert graded_cells == {f"tests-{task.key}": task.points for task in own}
        answers = [m["grade_id"] for m in marks if m["solution"] and m["cell_type"] == "code"]
        assert answers == [f"answer-{task.key}" for task in own]
        sources = [cell.source for cell in cells]
        assert len([cell for cell in cells if "helpers" in cell.metadata.get("tags", [])]) == 1
        for task in own:
            (answer,) = [text for text in sources if f"def {task.function}(" in text]
            compile(answer, path.name, "exec")
            assert ("BEGIN SOLUTION" in answer) == (part == "source")
    assert not list((course / "submitted").iterdir())


def test_every_exercise_of_the_lessons_is_told_in_the_copies(course):
    for stage in STAGES:
        lesson = "\n".join(c.source for c in cells_of(root() / "notebooks" / f"{stage}.ipynb"))
        copy = "\n".join(
            c.source for c in cells_of(course / "release" / "recnb" / f"{stage}.ipynb")
        )
        told = re.findall(r"^\*\*(\d+\.\d+) ", lesson, flags=re.M)
        assert told and set(told) <= {task.number for task in tasks.TASKS}
        own = [task.number for task in tasks.TASKS if task.notebook == stage]
        assert re.findall(r"^\*\*(\d+\.\d+) ", copy, flags=re.M) == own


def lines_of(code):
    """Lines long enough to be somebody's work."""
    lines = (re.sub(r"\s+", "", line) for line in code.splitlines())
    return {line for line in lines if len(line) > 25 and not line.startswith(("def", "@"))}


def test_students_copies_hold_no_solution(course):
    secret = {"BEGINSOLUTION", "BEGINHIDDENTESTS", "expect_right"}
    kit = {"strict": metrics.strict}
    for task in tasks.TASKS:
        secret |= lines_of(copies.solution(task))
        if task.name in check.EXERCISES:
            functions = [f for f in task.exercise.kit if inspect.isfunction(f)]
            kit |= {function.__name__: function for function in functions}
    for function in kit.values():
        body = inspect.getsource(function).replace(f'"""{function.__doc__}"""', "")
        secret |= lines_of(body)
    secret -= {re.sub(r"\s+", "", line) for line in copies.HELPERS.splitlines()}
    assert len(secret) > 100
    for stage in STAGES:
        text = (course / "release" / "recnb" / f"{stage}.ipynb").read_text(encoding="utf-8")
        for piece in strings_of(json.loads(text)):
            found = {re.sub(r"\s+", "", line) for line in piece.splitlines()}
            assert not found & secret, (stage, found & secret)
            assert "Solution</summary>" not in piece and "Answer</summary>" not in piece
        teacher = (course / "source" / "recnb" / f"{stage}.ipynb").read_text(encoding="utf-8")
        assert "BEGIN HIDDEN TESTS" in teacher and "BEGIN SOLUTION" in teacher


def strings_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        yield "".join(value)
    elif isinstance(value, list | dict):
        for entry in value if isinstance(value, list) else value.values():
            yield from strings_of(entry)


def test_a_course_is_never_written_over(course):
    before = sorted(path for path in course.rglob("*"))
    with pytest.raises(RecnbError, match="is there already"):
        copies.write_course(course)
    assert sorted(path for path in course.rglob("*")) == before


def test_in_nbgraders_way_a_student_can_patch_the_tests(course, monkeypatch):
    """Why docs/course.md prefers ``recnb grade``: these tests run in the student's kernel."""
    monkeypatch.setattr(tasks, "expect_right", tasks.expect_right)
    space = {}
    exec("from recnb.course import tasks\ntasks.expect_right = lambda *a: None", space)
    exec("def my_ndcg(items, target, k):\n    return 7", space)
    (cell,) = [
        cell.source
        for cell in cells_of(course / "source" / "recnb" / "02_teacher.ipynb")
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "tests-2-1"
    ]
    exec(cell, space)  # no AssertionError


# ---- grading


@pytest.fixture(scope="module")
def runner():
    with Runner() as helper:
        yield helper


@pytest.fixture(scope="module")
def held(runner):
    job = grading._job([("trial", "def f(x):\n    return x")], "f", [[1]], "", 5.0)
    return json.loads(runner.ask(job)["text"])["held"]


def message_of(runner, name, source, seconds=5.0, helpers=copies.HELPERS, seed=11):
    """What the grader says of one answer."""
    task = tasks.find(name)
    answer = grading._plain_python(source)
    cells = [(helpers, "", ["helpers"]), (answer, f"answer-{task.key}", [])]
    submission = Submission("somebody", {"a.ipynb": cells})
    return graded(submission, task, tasks.cases(task, seed), runner, seconds)


RIGHT_LOO = "def my_leave_one_out(rewards, groups):\n" + "\n".join(
    inspect.getsource(solutions.leave_one_out).splitlines()[1:]
)


def test_a_right_and_a_wrong_answer(runner):
    assert message_of(runner, "leave_one_out", RIGHT_LOO) == ""
    said = message_of(runner, "leave_one_out", RIGHT_LOO.replace(" and j != i", ""))
    assert re.search(r"rewards = \[.*\], groups = \[.*\]: expected \[.*\], got \[", said)
    head = "def my_leave_one_out(rewards, groups):\n"
    for body in ("    '''What it does.'''\n", "    x = 1\n    y = 2\n"):
        stub = f"{head}{body}    raise NotImplementedError"
        assert message_of(runner, "leave_one_out", stub) == "not written yet"


def test_answers_may_be_arrays_sets_fractions_and_generators(runner):
    mask = "def my_causal_mask(real):\n    return solve(real).numpy()"
    helpers = (
        copies.HELPERS
        + "\n"
        + inspect.getsource(solutions.causal_mask).replace("def causal_mask", "def solve")
    )
    assert message_of(runner, "causal_mask", mask, helpers=helpers) == ""
    share = (
        "def my_miss(k, share):\n    return abs(k * share - math.floor(k * share + Fraction(1, 2)))"
    )
    assert message_of(runner, "miss", share) == ""
    lines = "def my_loss_mask(question, answer):\n    yield from [False] * len(question)\n"
    assert message_of(runner, "loss_mask", lines + "    yield from [True] * len(answer)") == ""
    magic = "%time 1\n!ls\ndef my_most_share(size, seen, k):\n    return min(size - seen, k) / k"
    assert message_of(runner, "most_share", magic) == ""


def test_a_loss_without_a_gradient_is_wrong(runner):
    body = "\n".join(inspect.getsource(solutions.clipped_loss).splitlines()[1:])
    loss = f"def my_clipped_loss(log_probs, old, advantages, mask, clip):\n{body}"
    assert message_of(runner, "clipped_loss", loss) == ""
    said = message_of(runner, "clipped_loss", loss.replace("mask.sum()", "mask.sum().detach()"))
    assert said == ""
    said = message_of(runner, "clipped_loss", loss.replace("log_probs -", "log_probs.detach() -"))
    assert "gradient of log_probs" in said


def ask_holm(body, before=""):
    return f"{before}\ndef my_holm(p):\n    {body}"


BAD = {
    "an infinite loop": (ask_holm("while True: pass"), "no answer within 1 s"),
    "a loop that catches all": (
        "def my_holm(p):\n    while True:\n        try:\n            while True: pass\n"
        "        except BaseException: pass",
        "no answer within 1 s",
    ),
    "a loop that ignores signals": (
        ask_holm(
            "while True: pass",
            "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass",
        ),
        "no answer within 1 s",
    ),
    "a sleep": (ask_holm("import time; time.sleep(100)"), "no answer within 1 s"),
    "a loop outside": (ask_holm("return p", "while True: pass"), "no answer within 1 s"),
    "a memory bomb": (ask_holm("x = [0] * 10**10; return p"), "it raised MemoryError"),
    "a slow memory bomb": (
        ask_holm("x = []\n    while True: x.append(bytearray(1 << 26))"),
        "it raised MemoryError|no answer within 1 s",
    ),
    "sys.exit": (ask_holm("import sys; sys.exit(0)"), "it raised SystemExit: 0"),
    "sys.exit at once": (ask_holm("return p", "import sys; sys.exit()"), "it raised SystemExit"),
    "os._exit": (ask_holm("import os; os._exit(0)"), "ended without an answer"),
    "a crash": (ask_holm("import ctypes; ctypes.string_at(0)"), "ended by signal"),
    "Ctrl-C": (ask_holm("raise KeyboardInterrupt"), "it raised KeyboardInterrupt"),
    "a syntax error": ("def my_holm(p)\n    return p", "it raised SyntaxError"),
    "a null byte": ("def my_holm(p):\n    return p\0", "it raised SyntaxError"),
    "deep code": (ask_holm("return " + "(" * 5000 + ")" * 5000), "it raised"),
    "no function": ("my_holm = 3", "the cell defines no function my_holm"),
    "endless recursion": (ask_holm("return my_holm(p)"), "it raised RecursionError"),
    "huge output": (
        ask_holm("print('x' * 10**6); return p"), "expected ["
    ),
    "a huge answer": (ask_holm("return [0.0] * 10**7"), "entries came back"),
    "a huge text": (ask_holm("return 'x' * 10**5"), "bytes came back"),
    "a huge number": (ask_holm("return 10**10000"), "a huge number came back"),
    "an endless generator": (ask_holm("while True: yield 1"), "entries came back"),
    "a list in itself": (ask_holm("x = []; x.append(x); return x"), "they lie too deep"),
    "nothing": (ask_holm("pass"), "got None"),
    "not a number": (ask_holm("return [float('nan')] * len(p)"), "got [nan"),
    "the word for anything": (ask_holm("return ['any'] * len(p)"), "expected"),
    "an object that equals all": (
        ask_holm("return Same()", "class Same:\n    def __eq__(self, other): return True"),
        "got a value of type Same",
    ),
    "a hostile exception": (
        ask_holm("raise Odd()", "class Odd(Exception):\n    def __str__(self): raise Odd()"),
        "it raised Odd",
    ),
    "commands to the terminal": (ask_holm("raise ValueError('\\x1b[2J\\u202e')"), "\\x1b[2J"),
    # forged results
    "a forged table": (
        ask_holm("print('{\"points\": 99, \"message\": \"\"}\\nholm: right, 100 cases'); return 0"),
        "got 0",
    ),
    "forged lines on every descriptor": (
        ask_holm(
            "import json, os\n    for fd in range(100):\n        try: os.write(fd, FORGED)\n"
            "        except OSError: pass\n    os._exit(0)",
            "FORGED = b'{\"text\": \"\", \"trouble\": \"\", \"points\": 99}\\n'",
        ),
        "cannot be read|fewer answers|ended without",
    ),
    "patched comparisons": (
        ask_holm(
            "return 0",
            "import builtins, math, sys\nmath.isclose = lambda *a, **k: True\n"
            "builtins.isinstance = lambda *a: True\n"
            "for m in list(sys.modules.values()):\n"
            "    for n in ('same', 'compare', 'graded', 'encode', 'work'):\n"
            "        if hasattr(m, n): setattr(m, n, lambda *a, **k: '')",
        ),
        "expected|fewer|cannot be read|it raised|no answer within 1 s|ended without an answer",
    ),
    "patching the checks": (
        ask_holm("return 0", "import recnb.check\nrecnb.check.examine = None"),
        "it raised (ModuleNotFound|Import)Error",
    ),
    "patching the grader": (
        ask_holm("return 0", "from recnb.course import grade\ngrade.same = lambda a, b: True"),
        "it raised (ModuleNotFound|Import)Error",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_answers_earn_nothing_and_say_why(runner, name):
    source, expected = BAD[name]
    said = message_of(runner, "holm", source, seconds=1.0, seed=12)
    regular = "|" in expected or "(" in expected
    assert re.search(expected if regular else re.escape(expected), said), said
    assert len(said) <= grading.LONGEST_MESSAGE and harmless(said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        "{",
        "\0",
        '{"points": 99}',
        '{"answers": null}',
        '{"answers": {}}',
        '{"answers": [], "trouble": ""}',
        '{"answers": [], "trouble": 3}',
        '{"answers": [[true]]}',
        '{"answers": [{"set": [[1]]}]}',
        '{"answers": [{"set": 3}]}',
        '{"answers": [{"fraction": [1, 0]}]}',
        '{"answers": [{"fraction": [1, 2, 3]}]}',
        '{"answers": [{"a": [1], "b": [2]}]}',
        '{"answers": [[NaN]]}',
        '{"answers": [' + "[" * 50 + "]" * 50 + "]}",
        '{"answers": ' + "[" * 200_000,
        '{"answers": [' + "9" * 10_000 + "]}",
    ],
    ids=range(21),
)
def test_whatever_comes_back_is_no_point(text):
    for name in NAMES:
        task = tasks.find(name)
        drawn = tasks.cases(task, 1)[:3]
        assert grading.compare(task, drawn, {"text": text, "trouble": ""})


def test_a_number_beyond_all_floats_is_no_traceback():
    task = tasks.find("no_idea")
    drawn = tasks.cases(task, 1)[:1]
    tiny = {"fraction": [1, 10**400]}
    rest = [{"fraction": [1, drawn[0]["n"] - 1]}] * (drawn[0]["n"] - 1)
    for p in ([tiny, *rest], [{"fraction": [10**400, 1]}, *rest]):
        text = json.dumps({"answers": [{"tuple": [p, 0]}]})
        found = grading.compare(task, drawn, {"text": text, "trouble": ""})
        assert found.endswith("what it sent back cannot be read"), found


def test_one_answer_leaves_nothing_for_the_next(runner):
    patched = (
        "import torch, builtins\ntorch.zeros_like = None\nbuiltins.len = lambda x: 0\n"
        "def my_holm(p):\n    return 0"
    )
    assert message_of(runner, "holm", patched)
    body = "\n".join(inspect.getsource(solutions.gae).splitlines()[1:])
    assert (
        message_of(runner, "gae", f"def my_gae(rewards, values, mask, gamma, lam):\n{body}") == ""
    )


def test_a_table_of_the_cases_that_students_can_see_is_not_enough(runner):
    task = tasks.find("miss")
    known = {
        (case["k"], case["share"]): task.exercise.reference(**case)[0]
        for case in tasks.cases(task, 0)
    }
    table = {(k, *share.as_integer_ratio()): str(value) for (k, share), value in known.items()}
    source = (
        f"KNOWN = {table}\ndef my_miss(k, share):\n"
        "    return Fraction(KNOWN.get((k, share.numerator, share.denominator), 0))"
    )
    assert "right" in tasks._tried("miss", lambda k, share: known[k, share], 0).message
    assert "expected" in message_of(runner, "miss", source)


needs = {
    "files": [
        ("the kit's solutions", f"return open({str(Path(solutions.__file__))!r}).read()"),
        ("the kit's checks", f"return open({str(Path(lists.__file__))!r}).read()"),
        (
            "the grader's memory",
            "import os; return open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
        ),
        ("the command line", "import os; return open(f'/proc/{os.getppid()}/cmdline').read()"),
        ("a forged result", "return open('PLACE/grades.csv', 'w').write('me,99')"),
        ("a deleted file", "import os; os.remove('PLACE/mine'); return 0"),
        ("a shortened file", "import os; os.truncate('PLACE/mine', 0); return 0"),
        ("a listing", "import os; return os.listdir('PLACE')"),
    ],
    "network": [("a socket", "import socket; return socket.socket()")],
    "processes": [
        ("a fork", "import os; return os.fork()"),
        ("a program", "import subprocess; return subprocess.run(['ls'])"),
        ("a kill", "import os; return os.kill(os.getppid(), 9)"),
        ("rights of a file", "import os; os.chmod('PLACE/mine', 0); return 0"),
    ],
}


@pytest.mark.parametrize(
    "limit, body",
    [pytest.param(limit, body, id=name) for limit in needs for name, body in needs[limit]],
)
def test_limits_hold(runner, held, tmp_path, limit, body):
    if limit not in held:
        pytest.skip(f"this system cannot limit {limit}")
    (tmp_path / "mine").write_text("mine")
    said = message_of(runner, "holm", ask_holm(body.replace("PLACE", str(tmp_path))))
    assert "it raised PermissionError" in said, said
    assert (tmp_path / "mine").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    assert runner.process.poll() is None


def test_all_limits_are_in_force_on_linux(held):
    if sys.platform != "linux":
        pytest.skip("Landlock and seccomp are Linux's")
    assert {"time", "memory"} <= set(held)
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if release >= (5, 13) and Path("/sys/kernel/security").is_dir():
        assert held == list(grading.LIMITS) or "files" not in held


def test_a_helper_process_that_is_gone_is_started_again(runner):
    message_of(runner, "leave_one_out", RIGHT_LOO)
    runner.process.kill()
    assert "the helper process ended" in message_of(runner, "leave_one_out", RIGHT_LOO)
    assert message_of(runner, "leave_one_out", RIGHT_LOO) == ""


# ---- submissions


def write_notebook(path, cells, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5} | fields))


def code(source, **metadata):
    return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": []}


def test_broken_notebooks_are_told_and_stop_nobody(tmp_path):
    (tmp_path / "no_json").mkdir()
    (tmp_path / "no_json" / "05_ppo.ipynb").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.ipynb").write_text("[" * 200_000)
    write_notebook(tmp_path / "no_cells" / "a.ipynb", {"not": "a list"})
    write_notebook(tmp_path / "empty" / "a.ipynb", [])
    (tmp_path / "nothing").mkdir()
    odd = [None, 3, {}, code(3), code(["x", 4]), code("x", nbgrader=3), code("y", tags="helpers")]
    odd += [code("z", nbgrader={"grade_id": ["a"]}, tags=[3])]
    write_notebook(tmp_path / "odd.ipynb", odd)
    write_notebook(tmp_path / "linked" / "real.ipynb", [])
    (tmp_path / "linked" / "a.ipynb").symlink_to(tmp_path / "empty" / "a.ipynb")
    (tmp_path / "linked" / "folder").symlink_to(tmp_path / "empty")
    (tmp_path / "theirs").symlink_to(tmp_path / "empty")
    write_notebook(tmp_path / "empty" / ".ipynb_checkpoints" / "a.ipynb", [code("def my_gae(): 1")])
    (tmp_path / "notes.txt").write_text("no submission")
    found = {one.student: one for one in grading.collect(tmp_path)}
    expected = "deep empty linked no_cells no_json nothing odd theirs".split()
    assert sorted(found) == expected
    assert [len(cells) for cells in found["odd"].notebooks.values()] == [3]
    assert all("cannot be read as a notebook" in found[n].problems[0] for n in ("no_json", "deep"))
    assert "it has no list of cells" in found["no_cells"].problems[0]
    assert len(found["linked"].problems) == 2 and len(found["theirs"].problems) == 1
    assert all("a link is not followed" in sentence for sentence in found["linked"].problems)
    task = tasks.find("gae")
    for one in found.values():
        said = graded(one, task, [], None, 1.0)  # nothing is run
        assert said.startswith("no answer") and len(one.problems) == said.count(";")
    with pytest.raises(RecnbError, match="no folder of submissions"):
        grading.collect(tmp_path / "none")
    with pytest.raises(RecnbError, match="no submissions"):
        grading.collect(tmp_path / "nothing")


def test_a_cell_is_found_by_its_mark_or_by_its_function(runner, tmp_path):
    task, wrong = tasks.find("leave_one_out"), RIGHT_LOO.replace(" and j != i", "")
    drawn = tasks.cases(task, 1)
    mark = {"grade_id": "answer-5-3"}
    for cells, right in [
        ([code(RIGHT_LOO)], True),
        ([code(wrong), code(RIGHT_LOO)], True),
        ([code(RIGHT_LOO), code(wrong)], False),
        ([code(RIGHT_LOO, nbgrader=mark), code(wrong)], True),
    ]:
        write_notebook(tmp_path / "ann" / "a.ipynb", cells)
        (ann,) = grading.collect(tmp_path)
        assert (graded(ann, task, drawn, runner, 5.0) == "") == right
    write_notebook(tmp_path / "ann" / "b.ipynb", [code(RIGHT_LOO, nbgrader=mark)])
    write_notebook(tmp_path / "ann" / "c.ipynb", [code(RIGHT_LOO, nbgrader=mark)])
    (ann,) = grading.collect(tmp_path)
    said = graded(ann, task, drawn, runner, 5.0)
    names = "ann/a.ipynb, ann/b.ipynb, ann/c.ipynb"
    assert said == f"answered in several files, keep one: {names}"


def test_solved_copies_earn_all_points_and_new_ones_none(course, tmp_path, monkeypatch, capsys):
    """The short walk: copies, submissions, tables, through the command."""
    submitted = tmp_path / "submitted"
    shutil.copytree(course / "source" / "recnb", submitted / "ann")
    shutil.copytree(course / "release" / "recnb", submitted / "bob" / "recnb")
    write_notebook(submitted / "<b>eve.ipynb", [code(BAD["a forged table"][0])])
    out = tmp_path / "grades"
    run(monkeypatch, "grade", str(submitted), str(out), "--seed", "6")
    wide = pd.read_csv(out / "grades.csv").set_index("student")
    points = {f"{task.number} {task.name}": task.points for task in tasks.TASKS}
    assert wide.loc["ann"].drop("total").to_dict() == points
    assert wide.loc["ann", "total"] == sum(points.values())
    assert wide.loc["bob"].eq(0).all() and wide.loc["<b>eve"].eq(0).all()
    messages = pd.read_csv(out / "messages.csv", keep_default_na=False)
    said = messages.set_index(["student", "function"])["message"]
    assert (said["ann"] == "").all() and (said["bob"] == "not written yet").all()
    assert said["<b>eve", "gae"] == "no answer" and "got 0" in said["<b>eve", "holm"]
    page = (out / "grades.html").read_text()
    assert "&lt;b&gt;eve" in page and "<b>" not in page and "seed 6" in page
    assert "All right." in (out / "grades.md").read_text()
    assert f"{sum(points.values())}" in capsys.readouterr().out


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["recnb", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_tables_among_the_submissions_are_refused(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "grade", str(tmp_path), str(tmp_path / "out")) == 1
    assert "lies among the submissions" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_text_of_a_student_is_plain_text_in_the_tables(tmp_path):
    rows = [
        (student, task.number, task.name, 0, task.points, NASTY[place % len(NASTY)])
        for student in NASTY
        for place, task in enumerate(tasks.TASKS)
    ]
    columns = ["student", "exercise", "function", "points", "of", "message"]
    grading.write_grades(pd.DataFrame(rows, columns=columns), tmp_path, 1, ["time"])
    page = harmless((tmp_path / "grades.html").read_text())
    assert "<script>" not in page and "<img" not in page
    assert "not on this system: memory, files, network, processes" in page
    harmless((tmp_path / "grades.md").read_text())
    for name in ("grades", "messages"):
        frame = pd.read_csv(tmp_path / f"{name}.csv", dtype=str, keep_default_na=False)
        for cell in frame.to_numpy().ravel():
            assert not cell.lstrip().startswith(("=", "+", "-", "@"))


@pytest.mark.nightly
def test_the_whole_walk(tmp_path, monkeypatch):
    """In a new folder: copies, each filled by hand, a wrong one each, graded by the commands."""
    assert not run(monkeypatch, "course", str(tmp_path / "course"))
    release = tmp_path / "course" / "release" / "recnb"
    submitted = tmp_path / "course" / "submitted"
    for student in ("solved", *NAMES):
        shutil.copytree(release, submitted / student)
        for task in tasks.TASKS:
            path = submitted / student / f"{task.notebook}.ipynb"
            notebook = json.loads(path.read_text(encoding="utf-8"))
            (cell,) = [c for c in notebook["cells"] if c["id"] == f"answer-{task.key}"]
            body = "\n".join("    " + line for line in copies.solution(task).splitlines())
            if task.name == student:
                body = "    return 0"
            cell["source"] = cell["source"].replace("    raise NotImplementedError", body)
            path.write_text(json.dumps(notebook), encoding="utf-8")
    assert not run(monkeypatch, "grade", str(submitted), str(tmp_path / "grades"))
    wide = (
        pd.read_csv(tmp_path / "grades" / "grades.csv").set_index("student").drop(columns="total")
    )
    assert (wide.loc["solved"] > 0).all()
    for task in tasks.TASKS:
        row = wide.loc[task.name]
        assert list(row.index[row == 0]) == [f"{task.number} {task.name}"]


@pytest.mark.nightly
def test_the_cells_of_the_copies_run_and_nbgraders_hidden_tests_decide(course):
    """What nbgrader would do with the graded cells, in one plain process."""
    for part, stage in product(("source", "release"), STAGES):
        space = {}
        for cell in cells_of(course / part / "recnb" / f"{stage}.ipynb"):
            mark = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            helpers = "helpers" in cell.metadata.get("tags", [])
            if cell.cell_type == "code" and (helpers or mark.startswith(("answer-", "tests-"))):
                exec(compile(cell.source, mark, "exec"), space)
        for task in [task for task in tasks.TASKS if task.notebook == stage]:
            if part == "release":
                with pytest.raises(AssertionError, match="not written yet"):
                    tasks.expect_right(task.name, space[task.function], 5)
