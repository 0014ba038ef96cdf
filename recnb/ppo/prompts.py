"""Requests for the RL stage: I0, I1 and I2 in equal parts, drawn from training histories."""

from recnb.instructions.labels import draw_control, ranked_items
from recnb.instructions.synthesis import scored_places
from recnb.requests import Request

TASKS = ["I0", "I1+", "I1-", "I2<=", "I2>=", "I2~"]


def rl_requests(count, users, histories, catalog, teacher, data_knobs, k_min, k_max, rng):
    """Draw requests whose target lies in the training part.

    Args:
        count: number of requests.
        users: ids to draw from.
        data_knobs: the ``data`` section of a profile, for history_length and latest_share.
        k_min, k_max: k is uniform between them.
        rng: NumPy generator.

    Returns:
        List of ``count`` ``Request``; the six tasks take turns.
    """
    requests = []
    learnable = histories.training_users(users)
    places = scored_places(histories, learnable, teacher, rng, data_knobs.latest_share)
    for user, position, score in places:
        train = histories.train(user)
        seen, target = train[:position], int(train[position])
        ranked = ranked_items(score, seen, target)
        task = TASKS[len(requests) % len(TASKS)]
        control = draw_control(task, ranked, target, catalog, rng)
        if control is None:
            continue
        k = int(rng.integers(k_min, k_max + 1))
        seen = tuple(int(i) for i in seen)
        history = seen[-data_knobs.history_length :]
        requests.append(Request(user, history, seen, control, k, target))
        if len(requests) == count:
            return requests
