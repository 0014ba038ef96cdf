"""Choose knobs on validation targets: every combination a run of its own, one table at the end.

What the test targets say is looked at once, when nothing is left to choose. So a trial answers the
same requests as the evaluation, but about each user's validation target, which is left out of every
training as the test target is.
"""

from itertools import product

import pandas as pd

from recnb import RecnbError
from recnb.artifacts import fingerprint, run_folder, runs_folder, write_csv
from recnb.profile import load
from recnb.workflow.launch import run_profile
from recnb.workflow.several import at_place, share

SHOWN = [
    ("I0", "HR@10"),
    ("I0", "NDCG@10"),
    ("I1+", "TCP"),
    ("I1-", "TCP"),
    ("I2<=20", "CPA"),
    ("I2~30", "CPA"),
    ("I2>=30", "CPA"),
    ("I1+", "Strict"),
    ("I2~30", "Strict"),
    ("format", "RepeatItem"),
    ("format", "InHistory"),
    ("format", "Seen"),
    ("I1+&I1-", "TC1¬2P"),
]
"""The columns of the printed table; the CSV file has every metric."""


def trials(name, fixed, tried):
    """The profiles to try: all combinations.

    Args:
        name: a profile.
        fixed: ``{"section.key": value}`` for all of them.
        tried: ``{"section.key": [values]}``.

    Returns:
        List of ``({"section.key": value}, Profile)``; each is of one seed and evaluates on
        validation targets.

    Raises:
        RecnbError: a key without a list of values; the test targets asked for.
    """
    for key, values in tried.items():
        if not isinstance(values, list) or not values:
            raise RecnbError(f"--try {key}: give a list of values, as in '{key}=[1, 2]'")
    chosen = {"evaluation.split": "validation"} | fixed
    if chosen["evaluation.split"] != "validation" or "evaluation.split" in tried:
        raise RecnbError(
            "evaluation.split: knobs are chosen on validation targets; the test targets are for "
            "recnb run, once nothing is left to choose"
        )
    made = []
    for values in product(*tried.values()):
        one = dict(zip(tried, values, strict=True))
        made.append((one, at_place(load(name, chosen | {"seeds": [], "variants": {}} | one))))
    return made


def tune(name, fixed, tried, until="06_evaluation"):
    """Run all trials, one after the other, and write ``<profile>-tune.csv`` after each.

    Stages that a trial shares with another run (the same knobs up to there) are taken from it.

    Returns:
        DataFrame of all trials: the knobs tried, then system, decoding, task, metric, value, n.
    """
    planned, frames = trials(name, fixed, tried), []
    name = planned[0][1].name  # of a profile that was named by its path, too
    target = runs_folder() / f"{name}-tune.csv"
    for number, (knobs, profile) in enumerate(planned, start=1):
        run = f"{name}-tune-{fingerprint(profile, until)[:8]}"
        said = ", ".join(f"{key}={value}" for key, value in knobs.items()) or "as it stands"
        print(f"trial {number} of {len(planned)}: {said} ({run})", flush=True)
        share(profile, run_folder(run), until)
        run_profile(profile, run_folder(run), until)
        metrics = pd.read_csv(run_folder(run) / "06_evaluation" / "metrics.csv")
        numbers = metrics.dropna(subset="value")[
            ["system", "decoding", "task", "metric", "value", "n"]
        ]
        for place, (key, value) in enumerate(knobs.items()):
            numbers.insert(place, key, str(value))
        numbers.insert(0, "run", run)
        frames.append(numbers)
        write_csv(pd.concat(frames), target, 6)
    return pd.concat(frames)


def overview(frame, system="full"):
    """One row a trial: the metrics of ``SHOWN`` of one system, free decoding."""
    mine = frame[frame["system"].eq(system) & frame["decoding"].eq("free")]
    keys = [c for c in frame.columns if "." in c]
    rows = []
    for run, group in mine.groupby("run", sort=False):
        value = group.set_index(["task", "metric"])["value"]
        row = {"run": run} | {key: group[key].iloc[0] for key in keys}
        for task, metric in SHOWN:
            row[f"{task} {metric}"] = value.get((task, metric))
        rows.append(row)
    return pd.DataFrame(rows)
