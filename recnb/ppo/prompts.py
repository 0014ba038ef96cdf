"""Requests for the RL stage: I0, I1 and I2 in equal parts, drawn from training histories."""

from recnb import RecnbError
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
    count, users, histories, catalog, teacher, data_knobs, k_min, k_max, rng, pair_kinds=()
):
    """Draw requests whose target lies in the training part.

    Args:
        count: number of requests.
        users: ids to draw from.
        data_knobs: the ``data`` section of a profile, for history_length and latest_share.
        k_min, k_max: k is uniform between them.
        rng: NumPy generator.
        pair_kinds: pairs of tasks beside the six.

    Returns:
        List of ``count`` ``Request``; the tasks take turns.

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
        task = tasks[len(requests) % len(tasks)]
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


def _no_control(task, users, catalog):
    what = "a category"
    if task in ("I1-", "I2<="):
        what = "one of the catalogue's categories lacking"
    return (
        f"RL task {task} cannot be posed: in {ATTEMPTS} draws from {users} users no target had "
        f"{what} ({len(catalog.names)} categories, {len(catalog)} items): give more items "
        "categories, or finer ones"
    )
