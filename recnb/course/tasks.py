"""The graded exercises of a course: number, points, how inputs are drawn, what the answer is.

Inputs are drawn when somebody asks, small ones first: from a fixed seed while a student tries, from
a new one when the grader asks. Ten are the exercises of ``recnb.check``, whose reference is the
kit's own code; the others compare with ``recnb.course.solutions``.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

from recnb import check
from recnb.check.compare import Unfit, plain, shown
from recnb.check.exercise import Exercise, as_it_is, examine
from recnb.course import solutions, stubs
from recnb.profile import STAGES

CASES = 100
"""Drawn for each exercise."""
WISHES = ("none", "include", "exclude", "at most", "at least", "about")


@dataclasses.dataclass(frozen=True)
class Task:
    """One graded exercise.

    Attributes:
        number: as in the notebook, "5.2"; its first part says which.
        exercise: contract, reference and reading, as ``recnb.check`` has them.
        draw: function of (NumPy generator, size 0 to ``CASES`` - 1) that gives the arguments.
        points: for a right answer; a wrong one has none.
        title: of an exercise that the notebooks do not have.
        read: "gradient" where the gradient in the first argument counts as well.
    """

    number: str
    exercise: Exercise
    draw: Callable
    points: int
    title: str = ""
    read: str = ""

    @property
    def name(self):
        return self.exercise.name

    @property
    def function(self):
        """What students call theirs."""
        return f"my_{self.name}"

    @property
    def key(self):
        """The number as a part of a cell's name, "5-2"."""
        return self.number.replace(".", "-")

    @property
    def notebook(self):
        return STAGES[int(self.number.split(".")[0]) - 1]


def cases(task, seed):
    """``CASES`` dicts of arguments, drawn from a seed and the exercise's number."""
    part, place = map(int, task.number.split("."))
    rng = np.random.default_rng([seed, part, place])
    return [task.draw(rng, size) for size in range(CASES)]


def try_out(name, function):
    """Check a student's function in its notebook and print what was found.

    Args:
        name: of the exercise.
        function: the student's.

    Returns:
        ``recnb.check.Result``.
    """
    result = _tried(name, function, 0)
    print(result.message)
    return result


def expect_right(name, function, seed):
    """The hidden test of nbgrader's copies.

    Raises:
        AssertionError: the function is wrong; the message is the check's.
    """
    result = _tried(name, function, seed)
    assert result.right, result.message


def _tried(name, function, seed):
    task = find(name)
    drawn = dataclasses.replace(task.exercise, cases=lambda: cases(task, seed))
    result = examine(drawn, function)
    if result.stub:
        result.message = f"{name}: not written yet"
    return result


def find(name):
    """A task by the name of its function."""
    return next(task for task in TASKS if task.name == name)


# ---- inputs of the exercises of recnb.check


def _bits(rng, n, p=0.5):
    return (rng.random(n) < p).tolist()


def _some(rng, most, n):
    """A set of up to n of the ids 1 to ``most``."""
    return set((rng.choice(most, size=min(n, most), replace=False) + 1).tolist())


def _ndcg(rng, size):
    items = rng.integers(1, 4 + size // 4, size=1 + size // 8).tolist()
    items = [None if item == 1 else item for item in items]
    return {"items": items, "target": int(rng.integers(2, 4 + size // 4)), "k": 1 + size % 10}


def _causal_mask(rng, size):
    length = 1 + size // 12
    padding = torch.from_numpy(rng.integers(length + 1, size=1 + size % 3))
    return {"real": torch.arange(length)[None] >= padding[:, None]}


def _label_filter(rng, size):
    n = 1 + size // 4
    ranked = (rng.permutation(60)[:n] + 1).tolist()
    k = int(rng.integers(1, min(n, 10) + 2))
    least, most = sorted(rng.integers(0, k + 1, size=2).tolist())
    inside = {item for item, lies in zip(ranked, _bits(rng, n), strict=True) if lies}
    return {
        "ranked": ranked,
        "inside": inside | _some(rng, 60, 5) - set(ranked),
        "k": k,
        "least": least,
        "most": most,
    }


def _answer(rng, size):
    wish, k, ids = WISHES[size % 6], int(rng.integers(1, 11)), 6 + size // 7
    items = rng.integers(ids, size=int(rng.integers(1, k + 3))).tolist()
    share = Fraction(int(rng.integers(11)), 10) if size % 6 > 2 else None
    if share is not None and size % 4 == 0:
        share = Fraction(int(rng.integers(k + 1)), k)  # k m is whole: < and <= differ
    return {
        "items": [item or None for item in items],
        "ranks": rng.integers(19, size=len(items)).tolist(),
        "history": sorted(_some(rng, ids, 1 + size % 3)),
        "target": int(rng.integers(1, ids)),
        "k": k,
        "wish": wish,
        "category": set() if wish == "none" else _some(rng, ids, ids // 2),
        "share": share,
    }


def _leave_one_out(rng, size):
    n = 1 + size // 4
    rewards, groups = rng.normal(size=n).round(3), rng.integers(1 + n // 2, size=n)
    return {"rewards": rewards.tolist(), "groups": (7 * groups - 5).tolist()}


def _rows(rng, size, kinds):
    """Random rows [B, T] of floats, and a mask of ones on the left of each."""
    b, t = 1 + size % 3, 1 + size // 10
    rows = [torch.tensor(rng.normal(size=(b, t)).round(3), dtype=torch.float32) for _ in kinds]
    lengths = torch.from_numpy(rng.integers(1, t + 1, size=b))
    mask = (torch.arange(t)[None] < lengths[:, None]).float()
    return dict(zip(kinds, rows, strict=True)), mask


def _gae(rng, size):
    rows, mask = _rows(rng, size, ("rewards", "values"))
    gamma, lam = rng.choice([1.0, 0.99, 0.9, 0.5]), rng.choice([1.0, 0.95, 0.6, 0.0])
    return rows | {"mask": mask, "gamma": float(gamma), "lam": float(lam)}


def _clipped_loss(rng, size):
    rows, mask = _rows(rng, size, ("log_probs", "old", "advantages"))
    rows["log_probs"] = (rows["old"] + 0.4 * rows["log_probs"]).requires_grad_()
    return rows | {"mask": mask, "clip": float(rng.choice([0.1, 0.2, 0.3]))}


def _allowed(rng, size):
    drawn = [tuple(rng.integers(1, 5, size=rng.integers(1, 5)).tolist()) for _ in range(1 + size)]
    titles = sorted(set(drawn[: 1 + size // 3]))
    title = titles[rng.integers(len(titles))]
    return {"prefix": list(title[: rng.integers(len(title) + 1)]), "titles": titles, "end": 0}


def _holm(rng, size):
    return {"p": (rng.random(1 + size // 5) ** 3).round(2 + size % 2).tolist()}


# ---- inputs of the others


def _core(rng, size):
    users, items = 2 + size // 8, 2 + size // 10
    pairs = {(int(rng.integers(users)), int(rng.integers(items))) for _ in range(2 + size)}
    pairs = sorted(pairs)
    order = rng.permutation(len(pairs))
    return {"pairs": [pairs[place] for place in order], "k": 1 + int(rng.integers(3))}


def _sorted_pairs(value, arguments):
    value = plain(value)
    if not isinstance(value, list) or not all(isinstance(pair, list) for pair in value):
        raise Unfit(f"got {shown(value)}: return a list of pairs")
    return [sorted(value, key=repr)]


def _future_share(rng, size):
    n = 2 + size // 6
    return {"times": rng.permutation(5 * n)[:n].tolist(), "test": int(rng.integers(n))}


def _last_chance(rng, size):
    n = 1 + size // 6
    times = np.sort(rng.integers(2 + n // 2, size=n)).tolist()
    return {"times": times, "place": n - 1 - int(rng.integers(min(n, 4)))}


def _smoothed(rng, size):
    n = 1 + size // 8
    counts = (rng.integers(4, size=n) * (size % 5 > 0)).tolist()
    popularity = (rng.integers(9, size=n) + 1).tolist()
    popularity[1:2] = [0] * len(popularity[1:2])
    return {"counts": counts, "popularity": popularity, "weight": 0.5 + float(rng.integers(9))}


def _miss(rng, size):
    k = 1 + size // 5
    parts = int(rng.choice([10, 10, 3, 7]))
    return {"k": k, "share": Fraction(int(rng.integers(parts + 1)), parts)}


def _share(rng, k):
    """Tenths, and one time in three a share that asks for a number of items and a half."""
    if rng.integers(3):
        return Fraction(int(rng.integers(11)), 10)
    return Fraction(2 * int(rng.integers(k)) + 1, 2 * k)


def _bounds(rng, size):
    wish, k = WISHES[1 + size % 5], 1 + size // 6
    return {"wish": wish, "share": _share(rng, k) if size % 5 > 1 else None, "k": k}


def _loss_mask(rng, size):
    question, answer = (rng.integers(100, size=1 + rng.integers(size // 4 + 1)) for _ in range(2))
    return {"question": question.tolist(), "answer": answer.tolist()}


def _titles(rng, size):
    """Probabilities and earlier titles; title 0 is always a new one."""
    n = 2 + size // 10
    p = rng.random(n) + 0.05
    early = [0, *map(int, _bits(rng, n - 1))]
    return {"p": (p / p.sum()).tolist(), "early": early}


def _title_loss(rng, size):
    drawn = _titles(rng, size)
    new = [place for place, early in enumerate(drawn["early"]) if not early]
    return drawn | {"target": int(rng.choice(new)), "weight": float(rng.choice([0, 0.5, 1, 2]))}


def _arrival(rng, size):
    """Values and parts of which binary fractions are exact: no rounding decides a tie."""
    n = 2 + size // 8
    values = rng.integers(-8, 9, size=n).tolist()
    values[-1] += 20 * (values[-1] == values[0])
    steps = (10 * np.cumsum(rng.integers(1, 4, size=n))).tolist()
    return {"steps": steps, "values": values, "part": float(rng.choice([0.25, 0.5, 0.75, 1.0]))}


def _strict(rng, size):
    """Half of them are right but for one thing, or wholly."""
    k = 1 + size // 10
    items = (rng.permutation(30)[:k] + 1).tolist()
    inside = _some(rng, 30, 15)
    count = sum(item in inside for item in items)
    least, most = max(count - size % 2, 0), min(count + size % 3, k)
    history = sorted(set(range(1, 31)) - set(items))[: 1 + size % 5]
    broken = int(rng.integers(8))
    place = int(rng.integers(k))
    if broken == 1:
        items.append(99)
    elif broken == 2:
        items[place] = None
    elif broken == 3:
        items[place] = items[0]
    elif broken == 4:
        history.append(items[place])
    elif broken == 5:
        least, most = min(count + 1, k), k
    elif broken == 6:
        least, most = 0, max(count - 1, 0)
    elif broken == 7:
        items.pop()
        least = 0
    names = "items", "k", "history", "inside", "least", "most"
    return dict(zip(names, (items, k, history, inside, least, most), strict=True))


def _most_share(rng, size):
    members = int(rng.integers(16))
    return {"size": members, "seen": int(rng.integers(members + 1)), "k": 1 + size // 8}


def _failing(rng, size):
    names = ["A", "B", "C", "D"]
    n = 3 + size // 5
    categories = [{name for name in names if rng.random() < 0.4} or {"D"} for _ in range(n)]
    answers = [rng.integers(n, size=1 + size // 12).tolist() for _ in range(1 + size % 4)]
    return {"answers": answers, "categories": categories, "excluded": "A"}


def _two_wishes(rng, size):
    k = 1 + size // 8
    items = (rng.permutation(30)[:k] + 1).tolist()
    first, second = _some(rng, 30, 12), _some(rng, 30, 8)
    share = _share(rng, k)
    return {"items": items, "first": first, "second": second, "share": share, "k": k}


def _auc(rng, size):
    n = 2 + size // 5
    labels = [1, 0, *rng.integers(2, size=n - 2).tolist()]
    order = rng.permutation(n)
    return {
        "labels": [labels[place] for place in order],
        "scores": (rng.integers(1 + n, size=n) / 4).tolist(),
    }


def _two_errors(rng, size):
    values = rng.normal(0.55, 0.05, size=2 + size // 12).round(3).tolist()
    likes, dislikes = rng.integers(1, 200, size=2).tolist()
    return {"values": values, "positive": likes, "negative": dislikes}


def _answer_share(rng, size):
    n = 1 + size // 10
    prompts, answers = rng.integers(10, 90, size=n), rng.integers(1, 5, size=n)
    return {"prompts": prompts.tolist(), "answers": answers.tolist(), "on_inputs": bool(size % 2)}


def _no_idea(rng, size):
    n = 2 + size // 10
    return {"n": n, "bound": float(n + rng.integers(500) / 10)}


def _worse(value, arguments):
    """Whether an answer to ``no_idea`` is one: there are many."""
    value, n = plain(value), arguments["n"]
    pair = isinstance(value, list) and len(value) == 2
    if not pair or not isinstance(value[0], list) or not isinstance(value[1], int | float):
        raise Unfit(f"got {shown(value)}: return a pair, a list of probabilities and a place")
    p, token = value[0], value[1]
    numbers = all(isinstance(x, int | float | Fraction) and 0 < x <= 1 for x in p)
    if len(p) != n or not numbers or not math.isclose(sum(p), 1, abs_tol=1e-6):
        raise Unfit(f"got {shown(p)}: {n} probabilities above 0 that sum to 1 are wanted")
    if token not in range(n):
        raise Unfit(f"got token {shown(token)}: a place from 0 to {n - 1} is wanted")
    if not arguments["bound"] * p[int(token)] < 1:
        perplexity = float(1 / p[int(token)])
        raise Unfit(f"the perplexity is {perplexity:.2f}, not above {arguments['bound']}")
    return [True]


def _forgot(rng, size):
    names = [f"v{place}" for place in rng.permutation(9)[: 2 + size // 25].tolist()]
    tokens = 1 + size // 10
    rows = [(-3 * rng.random(tokens)).round(3).tolist() for _ in names]
    return {"names": names, "log_probs": rows, "base": names[int(rng.integers(len(names)))]}


def _guessing(rng, size):
    n = 4 + 5 * size
    return {"right": int(rng.integers(n + 1)), "n": n, "choices": int(rng.integers(2, 6))}


def _made(stub, solution, read=as_it_is, reference=None):
    """An exercise that ``recnb.check`` does not have."""
    kit = reference or (lambda **case: read(solution(**case), case))
    return Exercise(stub, "", 1, 0, "", (solution,), kit, lambda: [], read=read)


def _new(number, name, draw, points, **more):
    return Task(number, _made(getattr(stubs, name), getattr(solutions, name), **more), draw, points)


def _known(number, name, draw, points, title="", read=""):
    return Task(number, check.EXERCISES[name], draw, points, title, read)


TASKS = [
    _new("1.1", "core", _core, 2, read=_sorted_pairs),
    _new("1.2", "future_share", _future_share, 1),
    _new("1.3", "last_chance", _last_chance, 1),
    _known("2.1", "ndcg", _ndcg, 1),
    _known("2.2", "causal_mask", _causal_mask, 2),
    _new("2.3", "smoothed", _smoothed, 2),
    _known("3.1", "label_filter", _label_filter, 3),
    _new("3.2", "miss", _miss, 1),
    _new("3.3", "bounds", _bounds, 2),
    _new("4.1", "loss_mask", _loss_mask, 1),
    _new("4.2", "slope", _titles, 2),
    _new("4.3", "title_loss", _title_loss, 2),
    _new("4.4", "arrival", _arrival, 2),
    _known("5.1", "item_reward", _answer, 4),
    _known("5.2", "gae", _gae, 3),
    _known("5.3", "leave_one_out", _leave_one_out, 1),
    _known("5.4", "clipped_loss", _clipped_loss, 2, read="gradient"),
    _known("5.5", "list_reward", _answer, 3, "The list reward"),
    _known("6.1", "allowed", _allowed, 2),
    _known("6.2", "holm", _holm, 2),
    _new("6.3", "strict", _strict, 2),
    _new("7.1", "most_share", _most_share, 1),
    _new("7.2", "failing", _failing, 2),
    _new("7.3", "two_wishes", _two_wishes, 2),
    _new("8.1", "auc", _auc, 2),
    _new("8.2", "two_errors", _two_errors, 1),
    _new("8.3", "answer_share", _answer_share, 1),
    _new("9.1", "no_idea", _no_idea, 1, read=_worse, reference=lambda **case: [True]),
    _new("9.2", "forgot", _forgot, 2),
    _new("9.3", "guessing", _guessing, 2),
]
"""In the order of the notebooks."""
