"""PALR (Chen 2023) as the paper compares with it: answers are what the user really took next.

There is no teacher. Two kinds of instruction, with and without candidates to choose from, in the
words of I0. A list ends where the training history does.
"""

import numpy as np
import pandas as pd

from recnb.controls import NoControl
from recnb.instructions.labels import draw_k
from recnb.instructions.templates import numbered, render


def samples(histories, catalog, count, knobs, data_knobs, seed):
    """PALR's training set.

    Args:
        count: number of samples.
        knobs: the ``instructions`` section of a profile, for k_max, k_draws, candidates and
            candidate_share.

    Returns:
        DataFrame prompt, completion. A list is as long as the user's training history allows, at
        most k_max.

    Raises:
        RecnbError: no user has two training interactions.
    """
    rng = np.random.default_rng([seed, 114])
    rows = []
    for user in rng.choice(histories.training_users(), size=count):
        items = histories.train(user)
        place = histories.draw_target(user, data_knobs.latest_share, rng)
        labels = items[place : place + draw_k(knobs, rng)].tolist()
        shown = items[max(0, place - data_knobs.history_length) : place].tolist()
        candidates = None
        if rng.random() < knobs.candidate_share:
            others = np.setdiff1d(np.arange(1, len(catalog) + 1), items)
            room = min(len(others), max(knobs.candidates - len(labels), 0))
            fill = rng.choice(others, size=room, replace=False)
            candidates = rng.permutation([*labels, *fill]).astype(int).tolist()
        prompt = render(NoControl(), shown, len(labels), catalog, rng, candidates)
        rows.append((prompt, numbered(labels, catalog)))
    return pd.DataFrame(rows, columns=["prompt", "completion"])
