"""Requests for the RL stage: I0, I1 and I2 in equal parts, drawn from training histories."""

import numpy as np

from recnb import RecnbError
from recnb.controls import About, AllOf, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.evaluation.metrics import strict
from recnb.instructions.labels import draw_control, ranked_items
from recnb.instructions.synthesis import ATTEMPTS, scored_places
from recnb.requests import Request

TASKS = ["I0", "I1+", "I1-", "I2<=", "I2>=", "I2~"]


def split_users(histories, heldout, rng):
    """Users whose prompts measure the reward, and those whose prompts the RL stage learns from.

    Args:
        heldout: how many to keep for measuring (``ppo.heldout_users``); at most half of those with
            a training part to draw from.
        rng: NumPy generator.

    Returns:
        ``(held, learn)``, two int arrays.
    """
    users = rng.permutation(histories.training_users())
    held = min(heldout, max(len(users) // 2, 1))
    if len(users) < 2:
        raise RecnbError(
            "one user has two training interactions, the RL stage needs two such users: one to "
            "learn from, one to measure on; bring more users or lower data.k_core"
        )
    return users[:held], users[held:]


def rl_requests(
    count,
    users,
    histories,
    catalog,
    teacher,
    data_knobs,
    k_min,
    k_max,
    rng,
    pair_kinds=(),
    odds=None,
):
    """Draw requests whose target lies in the training part.

    Args:
        count: number of requests.
        users: ids to draw from.
        data_knobs: the ``data`` section of a profile, for history_length and latest_share.
        k_min, k_max: k is uniform between them.
        rng: NumPy generator.
        pair_kinds: pairs of tasks beside the six.
        odds: ``{task: probability}`` to draw tasks by (``failing``); None = the tasks take turns.

    Returns:
        List of ``count`` ``Request``.

    Raises:
        RecnbError: a task cannot be posed: no target of these users has a category, or one that it
            lacks.
    """
    requests, failures, tasks = [], 0, [*TASKS, *pair_kinds]
    learnable = histories.training_users(users)
    places = scored_places(histories, learnable, teacher, rng, data_knobs.latest_share)
    for user, position, score in places:
        train = histories.train(user)
        seen, target = train[:position], int(train[position])
        ranked = ranked_items(score, seen, target)
        if not odds:
            task = tasks[len(requests) % len(tasks)]
        elif not failures:  # a task that could not be posed here is tried at the next place
            task = str(rng.choice(list(odds), p=list(odds.values())))
        control = draw_control(task, ranked, target, catalog, rng)
        if control is None:
            failures += 1
            if failures == ATTEMPTS:
                raise RecnbError(_no_control(task, len(learnable), catalog))
            continue
        failures = 0
        k = int(rng.integers(k_min, k_max + 1))
        seen = tuple(int(i) for i in seen)
        history = seen[-data_knobs.history_length :]
        requests.append(Request(user, history, seen, control, k, target))
        if len(requests) == count:
            return requests


FLOOR = 0.1
"""What a task that never fails counts for beside one that always does: it must not be unlearned."""


def failing(requests, answers, catalog):
    """Odds to draw each task by: how often its answers fail, so that RL works where work is left.

    An answer fails if it is not what was asked, to the item (``metrics.strict``).

    Args:
        requests: ``Request`` of all tasks.
        answers: a ``Response`` to each.

    Returns:
        ``{task: probability}``.
    """
    failures = {}
    for request, answer in zip(requests, answers, strict=True):
        given = request.k, request.history, request.control
        fails = 1 - strict(answer.items, *given, catalog)
        failures.setdefault(task_of(request.control), []).append(fails)
    weights = {task: FLOOR + float(np.mean(found)) for task, found in failures.items()}
    return {task: weight / sum(weights.values()) for task, weight in weights.items()}


def task_of(control):
    """The task that a control belongs to: "I2~", or "I1+&I1-" for a pair."""
    if isinstance(control, AllOf):
        return "&".join(task_of(part) for part in control.controls)
    kinds = [NoControl, Include, Exclude, AtMost, AtLeast, About]
    return TASKS[kinds.index(type(control))]


def _no_control(task, users, catalog):
    what = "a category"
    if task in ("I1-", "I2<="):
        what = "one of the catalogue's categories lacking"
    return (
        f"RL task {task} cannot be posed: in {ATTEMPTS} draws from {users} users no target had "
        f"{what} ({len(catalog.names)} categories, {len(catalog)} items): give more items "
        "categories, or finer ones"
    )
