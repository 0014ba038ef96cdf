"""Is every label list legal? The same check in the notebook, over the whole set, and in the tests."""

import json

import pandas as pd

from recnb import RecnbError
from recnb.controls import from_json
from recnb.instructions.templates import numbered


def check_labels(frame, catalog):
    """Raise on the first illegal label list.

    Legal: exactly k items that exist, all different, none of them seen, obeying the control (a share by its label
    bounds), and the answer's text names exactly these titles.

    Args:
        frame: DataFrame of ``synthesis.SCHEMA``.

    Returns:
        Number of lists checked.
    """
    checked = 0
    for row in frame[frame["task"] != "I4"].itertuples():
        items, control = list(row.labels), from_json(json.loads(row.control))
        problems = []
        if len(items) != row.k:
            problems.append(f"{len(items)} items instead of {row.k}")
        if len(set(items)) != len(items):
            problems.append("an item twice")
        if not all(1 <= i <= len(catalog) for i in items):
            problems.append("an item that does not exist")
        if set(items) & set(row.seen):
            problems.append("a seen item")
        for members, low, high in [] if problems else control.needs(row.k, catalog):
            if not low <= (inside := int(members[items].sum())) <= high:
                problems.append(f"does not obey {control}: {inside} of {row.k} inside, asked {low} to {high}")
        if not problems and row.completion != numbered(items, catalog):
            problems.append("text and items differ")
        if problems:
            raise RecnbError(f"instruction {row.Index} ({row.task}): {'; '.join(problems)}")
        checked += 1
    return checked


def examples(frame, chat=True):
    """One sample of each task, the first with few items: DataFrame task, prompt, answer.

    Args:
        chat: False leaves out general conversation: ShareGPT must not be redistributed, and notebooks are.
    """
    rows = []
    for task in ["I0", "I1+", "I1-", "I2<=", "I2>=", "I2~", "I3", *(["I4"] if chat else [])]:
        part = frame[(frame["task"] == task) & (frame["k"] <= 4)]
        if len(part):
            rows.append((task, part.iloc[0]["prompt"], part.iloc[0]["completion"]))
    return pd.DataFrame(rows, columns=["task", "prompt", "answer"])


def dataset_card(profile, counts, frame):
    """Text of ``README.md`` beside the instruction set: what it holds, how it was made, what may be done with it.

    Args:
        counts: samples of each task.
        frame: DataFrame of ``synthesis.SCHEMA``.
    """
    total = sum(counts.values())
    tasks = "\n".join(f"| {task} | {n} | {n / total:.1%} |" for task, n in counts.items())
    words = frame["prompt"].str.split().str.len(), frame["completion"].str.split().str.len()
    chat = "made-up small talk" if profile.data.dataset == "synthetic" else "ShareGPT, for use at run time only: do not pass it on"
    return (
        f"# Instructions of run {profile.name}\n\n"
        f"{total} samples made from {profile.data.dataset} with seed {profile.seed} by labels of the SASRec teacher "
        f"({profile.instructions.fidelity} reading, k from 1 to {profile.instructions.k_max}, the latest "
        f"{profile.data.history_length} titles in a prompt).\n\n| task | samples | share |\n|---|---|---|\n{tasks}\n\n"
        f"Longest prompt {words[0].max()} words, longest answer {words[1].max()} words.\n\n"
        "Columns: task, user, k, control (JSON), history (ids shown), seen (ids that may not be named), target, labels, prompt, "
        f"completion. I4 is {chat}; the rest has the licence of its data set.\n"
    )
