"""Is every label list legal? One check for the notebook, over the whole set, and for the tests."""

import json

import pandas as pd

from recnb import RecnbError
from recnb.controls import from_json
from recnb.instructions.templates import numbered


def check_labels(frame, catalog):
    """Raise on the first illegal label list.

    Legal: exactly k items that exist, all different, none of them seen, obeying the control (a
    share by its label bounds), and the answer's text names exactly these titles.

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
        needs = [] if problems else control.needs(row.k, catalog)
        for members, low, high in needs:
            inside = int(members[items].sum())
            if not low <= inside <= high:
                found = f"{inside} of {row.k} inside, asked {low} to {high}"
                problems.append(f"does not obey {control}: {found}")
        if not problems and row.completion != numbered(items, catalog):
            problems.append("text and items differ")
        if problems:
            raise RecnbError(
                f"instruction set, row {row.Index} (task {row.task}, user {row.user}): "
                f"{'; '.join(problems)}: run notebook 03_instructions again"
            )
        checked += 1
    return checked


def examples(frame, chat=True):
    """One sample of each task, the first with few items: DataFrame task, prompt, answer.

    Args:
        chat: False leaves out general conversation: ShareGPT must not be redistributed, and
            notebooks are.
    """
    tasks, rows = ["I0", "I1+", "I1-", "I2<=", "I2>=", "I2~", "I3"], []
    if chat:
        tasks.append("I4")
    for task in tasks:
        part = frame[(frame["task"] == task) & (frame["k"] <= 4)]
        if len(part):
            rows.append((task, part.iloc[0]["prompt"], part.iloc[0]["completion"]))
    return pd.DataFrame(rows, columns=["task", "prompt", "answer"])


def dataset_card(profile, counts, frame):
    """Text of ``README.md`` beside the instruction set: what is in it, how made, what is allowed.

    Args:
        counts: samples of each task.
        frame: DataFrame of ``synthesis.SCHEMA``.
    """
    data, knobs = profile.data, profile.instructions
    total = sum(counts.values())
    tasks = "\n".join(f"| {task} | {n} | {n / total:.1%} |" for task, n in counts.items())
    prompt = frame["prompt"].str.split().str.len().max()
    answer = frame["completion"].str.split().str.len().max()
    chat = "ShareGPT, for use at run time only: do not pass it on"
    if data.dataset == "synthetic":
        chat = "made-up small talk"
    return (
        f"# Instructions of run {profile.name}\n\n"
        f"{total} samples made from {data.dataset} with seed {profile.seed} by labels of the "
        f"SASRec teacher ({knobs.fidelity} reading, k from 1 to {knobs.k_max}, the latest "
        f"{data.history_length} titles in a prompt).\n\n"
        f"| task | samples | share |\n|---|---|---|\n{tasks}\n\n"
        f"Longest prompt {prompt} words, longest answer {answer} words.\n\n"
        "Columns: task, user, k, control (JSON), history (ids shown), seen (ids that may not be "
        f"named), target, labels, prompt, completion. I4 is {chat}; the rest has the licence of "
        "its data set.\n"
    )
