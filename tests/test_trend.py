import json

import numpy as np
import pytest

from recnb.ppo.trend import Ledger, read_ledger, trend


def rows(slope, steps=40, prompts=60, seed=0):
    """Rewards of prompts of very different difficulty that each return every third step or so."""
    rng = np.random.default_rng(seed)
    level, made = rng.normal(0, 5, prompts), []
    for step in range(steps):
        for prompt in rng.choice(prompts, 8, replace=False).tolist():
            made += [
                {"step": step, "prompt": prompt, "reward": level[prompt] + slope * step + noise}
                for noise in rng.normal(0, 0.5, 4)
            ]
    return made


def test_a_rise_is_seen_through_the_prompts_difficulty():
    found = trend(rows(0.02))
    assert abs(found.rise - 0.8) < 3 * found.error and found.rise > 5 * found.error
    steps, rewards = zip(*((r["step"], r["reward"]) for r in rows(0.02)), strict=True)
    raw = np.polyfit(steps, rewards, 1, cov=True)
    assert raw[0][0] < 2 * raw[1][0, 0] ** 0.5, "the plain curve does not show it"


def test_the_error_covers_no_rise_as_often_as_it_says():
    inside = sum(abs((t := trend(rows(0, seed=s))).rise) < 2 * t.error for s in range(60))
    assert 51 <= inside <= 60


def test_equals_least_squares_with_dummies():
    made = rows(0.05, steps=12, prompts=12)
    design = np.zeros((len(made), 13))
    for i, row in enumerate(made):
        design[i, row["prompt"]], design[i, 12] = 1, row["step"]
    answer = np.linalg.lstsq(design, [row["reward"] for row in made], rcond=None)[0]
    assert trend(made).rise == pytest.approx(12 * answer[12])


def test_prompts_that_never_return_tell_nothing():
    assert trend([{"step": s, "prompt": s, "reward": 1.0} for s in range(5)]) is None


def test_a_ledger_goes_on_where_the_training_does(tmp_path):
    path = tmp_path / "rewards.jsonl"
    ledger = Ledger(path)
    for step in range(4):
        ledger.add(step, [1, 2], [0.5, float(step)])
    with open(path, "a") as file:
        file.write('{"step": 4, "pro')  # a power cut
    Ledger(path, 2).add(2, [7], [9.0])
    kept = read_ledger(path)
    assert [row["step"] for row in kept] == [0, 0, 1, 1, 2] and kept[-1]["reward"] == 9
    assert all(json.dumps(row) for row in kept)
    assert read_ledger(path) and not read_ledger(_empty(tmp_path))


def _empty(folder):
    path = folder / "empty.jsonl"
    Ledger(path)
    return path
