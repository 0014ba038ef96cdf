"""Is every label list legal, and does every sample fit? Checks over the whole instruction set."""

import json
from collections import Counter

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


MOST_LEFT_OUT = 0.05
"""Of each task, at most this share of samples may be too long: what is left is no longer the task
as it was drawn, but its shorter half."""


def fitting(frame, codec, max_tokens):
    """The samples as tokens; those longer than ``max_tokens`` are left out and counted.

    Args:
        frame: DataFrame with columns prompt and completion; counted by its column task, if any.
        codec: ``Codec`` of the model that shall read them.
        max_tokens: most tokens of prompt and answer together (``sft.max_tokens``).

    Returns:
        ``(pairs, left_out)``: the token ids ``(question, answer)`` of each sample kept, in order;
        and ``{task: samples left out}``, without the tasks that lost none.

    Raises:
        RecnbError: a task would lose more than 5 % of its samples.
    """
    tasks = frame["task"] if "task" in frame else ["of its own"] * len(frame)
    pairs, too_long = [], {}
    rows = zip(tasks, frame["prompt"], frame["completion"], strict=True)
    for row, (task, prompt, completion) in enumerate(rows):
        pair = codec.prompt(prompt), codec.answer(completion)
        length = len(pair[0]) + len(pair[1])
        if length > max_tokens:
            too_long.setdefault(task, []).append((length, row))
        else:
            pairs.append(pair)
    asked = Counter(tasks)
    for task, found in too_long.items():
        if len(found) > MOST_LEFT_OUT * asked[task]:
            length, row = max(found)
            shorter = "data.history_length, instructions.candidates or instructions.k_max"
            if task == "I4":
                shorter = "instructions.chat_words"
            raise RecnbError(
                f"task {task}: {len(found):,} of {asked[task]:,} samples are longer than "
                f"sft.max_tokens ({max_tokens}), more than the {MOST_LEFT_OUT:.0%} that may be "
                f"left out; the longest, row {row}, has {length:,} tokens: raise sft.max_tokens, "
                f"or lower {shorter}"
            )
    return pairs, {task: len(found) for task, found in sorted(too_long.items())}


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


def dataset_card(profile, counts, frame, left_out=None):
    """Text of ``README.md`` beside the instruction set: what is in it, how made, what is allowed.

    Args:
        counts: samples of each task.
        frame: DataFrame of ``synthesis.SCHEMA``.
        left_out: ``{"training": {task: samples that are too long}, "validation": ...}``; None = not
            measured.
    """
    data, knobs = profile.data, profile.instructions
    total = sum(counts.values())
    tasks = "\n".join(f"| {task} | {n} | {n / total:.1%} |" for task, n in counts.items())
    prompt = frame["prompt"].str.split().str.len().max()
    answer = frame["completion"].str.split().str.len().max()
    chat = "ShareGPT, for use at run time only: do not pass it on"
    if data.dataset == "synthetic":
        chat = "made-up small talk"
    measured = ""
    if left_out is not None:
        measured = (
            f"Longer than sft.max_tokens ({profile.sft.max_tokens}) in the tokenizer of "
            f"{profile.model.name}, and left out"
        )
        for part, tasks_of in left_out.items():
            found = ", ".join(f"{n} of {task}" for task, n in tasks_of.items()) or "none"
            measured += f"; {part}: {found}"
        measured += ".\n\n"
    return (
        f"# Instructions of run {profile.name}\n\n"
        f"{total} samples made from {data.dataset} with seed {profile.seed} by labels of the "
        f"SASRec teacher ({knobs.fidelity} reading, k from 1 to {knobs.k_max}, the latest "
        f"{data.history_length} titles in a prompt).\n\n"
        f"| task | samples | share |\n|---|---|---|\n{tasks}\n\n"
        f"Longest prompt {prompt} words, longest answer {answer} words.\n\n{measured}"
        "Columns: task, user, k, control (JSON), history (ids shown), seen (ids that may not be "
        f"named), target, labels, prompt, completion. I4 is {chat}; the rest has the licence of "
        "its data set.\n"
    )
