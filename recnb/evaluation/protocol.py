"""One fixed request set for all systems, answers stored as text, metrics from what is stored."""

import hashlib
import json
import shutil
import time
from itertools import product

import numpy as np
import pandas as pd

from recnb import RecnbError
from recnb.artifacts import atomic_path
from recnb.controls import About, AtLeast, AtMost, Exclude, Include, NoControl, from_json
from recnb.evaluation.metrics import (
    accuracy,
    bootstrap_interval,
    exactness,
    formatting,
    on_grid,
    strict,
)
from recnb.instructions.labels import ranked_items
from recnb.instructions.synthesis import heldout_requests, request_of
from recnb.instructions.templates import numbered
from recnb.lm.parsing import parse
from recnb.lm.recommender import recommend_together
from recnb.requests import Response
from recnb.teacher.ranking import scored


def at_most_20(category):
    """At most 20 % of a category."""
    return AtMost(category, "1/5")


def about_30(category):
    """About 30 % of a category."""
    return About(category, "3/10")


def at_least_30(category):
    """At least 30 % of a category."""
    return AtLeast(category, "3/10")


TASKS = {
    "I0": [],
    "I1+": [(Include, "target")],
    "I1-": [(Exclude, "other")],
    "I2<=20": [(at_most_20, "other")],
    "I2~30": [(about_30, "target")],
    "I2>=30": [(at_least_30, "target")],
    "format": [],
    "I2~30 by k": [(about_30, "target")],
    "I1+&I1-": [(Include, "target"), (Exclude, "other")],
    "I2<=20&I1-": [(at_most_20, "other"), (Exclude, "other")],
    "I1+&I1+": [(Include, "target"), (Include, "target")],
    "I2~30&I1-": [(about_30, "target"), (Exclude, "other")],
    "I2>=30&I2<=20": [(at_least_30, "target"), (at_most_20, "other")],
}
"""Task -> its controls and whose category each names (3.2, 3.5); the last three pairs and the wish
with several k are ours."""
TABLE_OF = {
    "I0": "table2",
    "I1+": "table3",
    "I1-": "table3",
    "I2<=20": "table4",
    "I2~30": "table4",
    "I2>=30": "table4",
    "format": "table5",
    "I2~30 by k": "exactness",
} | {task: "table7" for task in TASKS if "&" in task}
SYSTEMS = [
    "popularity",
    "sasrec",
    "sasrec_prompt",
    "sasrec_filter",
    "base",
    "endpoint",
    "instructrec",
    "palr",
    "tallrec",
    "v1",
    "v2",
    "v3",
    "full",
]
"""Every system of the comparison, in the order of the tables."""
REASONS = {
    "endpoint": "this profile names no endpoint (endpoint.url)",
    "instructrec": "not asked for (sft.instructrec)",
    "palr": "not asked for (sft.palr)",
    "tallrec": "answers yes or no to one title, it makes no lists: see notebook 08",
    "v1": "not asked for (sft.v1)",
    "v3": "not asked for (ppo.v3)",
}
"""Why a system has no answers in a run."""
DECODINGS = ["free", "constrained", "obey"]
COLUMNS = ["table", "system", "decoding", "task", "metric", "value", "low", "high", "n", "note"]


def request_sets(histories, catalog, teacher, knobs, data_knobs, seed):
    """The requests of every task, the same for every system: ``{task: [Request]}``.

    Users whose target has no category are left out of the tasks that need one. k is 10; in "format"
    it is drawn for each user from ``knobs.format_k``. In "I2~30 by k" the users are dealt evenly to
    the k of ``knobs.proportion_k``; with none there is no such task.
    """
    users = np.arange(len(histories))
    if knobs.users and knobs.users < len(users):
        rng = np.random.default_rng([seed, 109])
        users = np.sort(rng.choice(users, knobs.users, replace=False))
    low, high = knobs.format_k
    longer = np.random.default_rng([seed, 110]).integers(low, high + 1, size=len(users))
    dealt = np.resize(knobs.proportion_k or [10], len(users))
    dealt = np.random.default_rng([seed, 118]).permutation(dealt)
    sizes = {"format": longer, "I2~30 by k": dealt}
    requests = {}
    for task, parts in TASKS.items():
        if task == "I2~30 by k" and not knobs.proportion_k:
            continue
        k = sizes.get(task, 10)
        requests[task] = heldout_requests(
            parts, users, knobs.split, histories, catalog, teacher, data_knobs, seed, k=k
        )
    return requests


class Ranker:
    """A scoring recommender (teacher, popularity, ...) that answers with its best unseen items.

    Args:
        scorer: has ``scores(histories)``.
        obey: take the best list that meets the control (``Control.select``) instead of the best
            list; where the unseen items cannot meet it, the best list.
        prompt_only: know of the user what a language model's prompt shows and no more; items that
            the user has but the prompt does not show may then be named.
    """

    def __init__(self, scorer, catalog, obey=False, prompt_only=False):
        self.scorer, self.catalog = scorer, catalog
        self.obey, self.prompt_only = obey, prompt_only

    def recommend(self, requests, progress=lambda done, total: None):
        """The k best unseen items; without ``obey`` controls are not looked at, as in the paper."""
        known = [r.history if self.prompt_only else r.seen for r in requests]
        scores = scored(self.scorer, known, len(self.catalog))
        answers = []
        for request, user_has, row in zip(requests, known, scores, strict=True):
            ranked = ranked_items(row, user_has, None)
            items = request.control.select(ranked, request.k, self.catalog) if self.obey else None
            items = items or ranked[: request.k].tolist()
            titles = [self.catalog.titles[i] for i in items]
            answers.append(Response(numbered(items, self.catalog), titles, items))
        progress(len(requests), len(requests))
        return answers


def answers_folder(stage):
    """Folder for the answers of exactly these models and knobs; answers of others are deleted.

    Args:
        stage: the evaluation's ``Stage``, after every model was opened through ``stage.input``: the
            name holds the sha256 of all inputs, so a retrained model never inherits an old model's
            answers.
    """
    key = hashlib.sha256(
        json.dumps([stage.key, stage.inputs], sort_keys=True).encode()
    ).hexdigest()[:12]
    folder = stage.folder / "answers" / key
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answer_all(systems, requests, folder, name, progress=lambda done, total: None):
    """Let a system answer every task and store the raw texts.

    Each task is stored as it ends, so that a stopped run goes on with the next one.

    Args:
        systems: ``{decoding: system}``, anything with ``recommend``; several are one language model
            that decodes in several ways, which reads each prompt once for all of them.
        requests: from ``request_sets``.
        folder: receives a Parquet file ``<name>-<decoding>.parquet`` for each, with columns task,
            user, k, control, text, tokens, seconds (per answer, of the process that gave it; ways
            that decode together share them alike).
    """
    columns = ["task", "user", "k", "control", "text", "tokens", "seconds"]
    paths = {decoding: folder / f"{name}-{decoding}.parquet" for decoding in systems}
    stored, open_tasks, finished = {}, {}, 0
    for decoding, path in paths.items():
        stored[decoding] = pd.DataFrame(columns=columns)
        if path.is_file():
            stored[decoding] = pd.read_parquet(path)
    for task in requests:
        decodings = [d for d in systems if task not in set(stored[d]["task"])]
        if decodings:
            open_tasks[task] = decodings
    total = sum(len(requests[task]) for task in open_tasks)
    for task, decodings in open_tasks.items():
        asked, ways = requests[task], [systems[decoding] for decoding in decodings]

        def step(done, of, base=finished):
            progress(base + done, total)

        started = time.perf_counter()
        if len(ways) > 1:
            answered = recommend_together(ways, asked, step)
        else:
            answered = [ways[0].recommend(asked, step)]
        finished += len(asked)
        seconds = (time.perf_counter() - started) / max(len(asked) * len(ways), 1)
        for decoding, answers in zip(decodings, answered, strict=True):
            rows = []
            for r, answer in zip(asked, answers, strict=True):
                control = json.dumps(r.control.to_json())
                rows.append((task, r.user, r.k, control, answer.text, answer.tokens, seconds))
            frame = pd.DataFrame(rows, columns=columns)
            if len(stored[decoding]):
                frame = pd.concat([stored[decoding], frame], ignore_index=True)
            stored[decoding] = frame
            keep_answers(frame, paths[decoding])
    return stored


def keep_answers(frame, path):
    """Write answers of one system and decoding, whole or not at all."""
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd", compression_level=12)


def stored_requests(stored, histories, data_knobs, split="test"):
    """What ``request_sets`` made, out of stored answers and without the teacher that it needs.

    Args:
        split: whose targets were asked about (``evaluation.split``).
    """
    requests = {}
    for row in stored.itertuples():
        control = from_json(json.loads(row.control))
        request = request_of(histories, data_knobs, row.user, split, control, int(row.k))
        requests.setdefault(row.task, []).append(request)
    return requests


def per_user(stored, requests, catalog):
    """Metrics of every stored answer: DataFrame task, user, metric, value.

    Metrics of a wish come twice: of the answer to the controlled request, and, as "... without
    control", of the same system's I0 answer for the same user and category (the values in
    parentheses in the paper's tables), where that list is as long.
    """
    sizes = {r.user: r.k for r in requests.get("I0", [])}
    texts = {(row.task, row.user): row.text for row in stored.itertuples()}
    plain = {r.user: parse(texts["I0", r.user], catalog).items for r in requests.get("I0", [])}
    rows = []
    for task, asked in requests.items():
        for request in asked:
            items = parse(texts[task, request.user], catalog).items
            values = accuracy(items, request.target)
            form = formatting(items, request.k, set(request.history), set(request.seen))
            if task == "format":
                values = form | accuracy(items, request.target, {"K": request.k})
            wish = _wish(items, request, catalog)
            values |= request.control.metrics(items, request.k, catalog) | wish | form
            if sizes.get(request.user) == request.k and not isinstance(request.control, NoControl):
                unasked = plain[request.user]
                without = request.control.metrics(unasked, request.k, catalog)
                without |= _wish(unasked, request, catalog)
                values |= {f"{name} without control": value for name, value in without.items()}
            rows += [(task, request.user, name, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["task", "user", "metric", "value"])


def _wish(items, request, catalog):
    """How exactly one answer does what was asked: beside the paper's TCP and CPA."""
    k, control = request.k, request.control
    whole = {"Strict": strict(items, k, request.history, control, catalog)}
    return whole | exactness(items, k, control, catalog)


def proportion_by_k(stored, values, resamples, seed):
    """How exactly "about m %" is kept, for each length of list that was asked for.

    Args:
        stored: one system's answers, as ``answer_all`` stores them.
        values: their ``per_user``.
        resamples: for the bootstrap intervals.

    Returns:
        DataFrame task, k, metric (CPA, Exact, Bias), value, low, high, n; empty if nobody was asked
        for "about m %" alone.
    """
    asked = stored[["task", "user", "k"]]
    tasks = values[values["metric"] == "Exact"]["task"].unique()
    wanted = values["task"].isin(tasks) & values["metric"].isin(["CPA", "Exact", "Bias"])
    joined = values[wanted].merge(asked, on=["task", "user"])
    rows = []
    for key, group in joined.groupby(["task", "k", "metric"], sort=False):
        numbers = group["value"].to_numpy()
        low, high = bootstrap_interval(numbers, resamples, seed)
        rows.append((*key, on_grid(numbers).mean(), low, high, len(numbers)))
    columns = ["task", "k", "metric", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["task", "k"], kind="stable", ignore_index=True
    )


def summarise(values, system, decoding, resamples, seed):
    """Means with 95 % bootstrap intervals over users, in the form of ``tables/metrics.csv``."""
    rows = []
    for (task, metric), group in values.groupby(["task", "metric"], sort=False):
        numbers = group["value"].to_numpy()
        low, high = bootstrap_interval(numbers, resamples, seed)
        mean, n = on_grid(numbers).mean(), len(numbers)
        rows.append((TABLE_OF[task], system, decoding, task, metric, mean, low, high, n, ""))
    return pd.DataFrame(rows, columns=COLUMNS)


def evaluate_stored(
    folder, histories, catalog, data_knobs, knobs, seed, not_run=None, remarks=None
):
    """All metrics from the answers in a folder; nothing but what is stored there goes into them.

    Args:
        folder: holds ``<system>-<decoding>.parquet`` files of ``answer_all``.
        knobs: the ``evaluation`` section of a profile.
        not_run: ``{system: reason}`` of the systems that did not answer; they get rows without a
            value.
        remarks: ``{system: text}`` for the notes of systems that did.

    Returns:
        ``(metrics, users)``: the long form, and ``{(system, decoding): per_user DataFrame}``.

    Raises:
        RecnbError: no answers there, or two systems were asked different things.
    """
    users, parts, first = {}, [], None
    for system, decoding in product(SYSTEMS, DECODINGS):
        path = folder / f"{system}-{decoding}.parquet"
        if not path.is_file():
            continue
        stored = pd.read_parquet(path)
        if first is None:
            first = stored
            requests = stored_requests(stored, histories, data_knobs, knobs.split)
        asked = ["task", "user", "k", "control"]
        if not stored[asked].equals(first[asked]):
            raise RecnbError(
                f"{path} answers other requests than the files beside it: delete it and run "
                "notebook 06_evaluation again"
            )
        users[system, decoding] = per_user(stored, requests, catalog)
        means = summarise(users[system, decoding], system, decoding, knobs.bootstrap, seed)
        parts.append(means.assign(note=(remarks or {}).get(system, "")))
    if not parts:
        raise RecnbError(f"{folder} holds no answers: run notebook 06_evaluation first")
    metrics = pd.concat(parts, ignore_index=True)
    kinds = metrics[["table", "task", "metric"]].drop_duplicates()
    for system, reason in (not_run or {}).items():
        empty = kinds.assign(system=system, decoding="free", n=0, note=f"not run: {reason}")
        metrics = pd.concat([metrics, empty.reindex(columns=COLUMNS)], ignore_index=True)
    order = {name: place for place, name in enumerate(SYSTEMS)}
    metrics = metrics.sort_values(
        "system", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )
    return metrics, users


def score_texts(table, requests, catalog, name, knobs, seed):
    """Metrics of someone else's answers, ``values_of_texts`` as means with intervals.

    Args:
        name: the system's name in the result.
    """
    values = values_of_texts(table, requests, catalog)
    return summarise(values, name, "free", knobs.bootstrap, seed)


def values_of_texts(table, requests, catalog):
    """``per_user`` of someone else's answers.

    Args:
        table: DataFrame task, user, text: one row a request of the tasks it names.
        requests: from ``stored_requests``.

    Raises:
        RecnbError: a missing column, an unknown task or user, a request without a text or with two.
    """
    missing = [column for column in ("task", "user", "text") if column not in table.columns]
    if missing:
        raise RecnbError(
            f"no column {missing[0]!r}; the columns must be task, user, text; found "
            f"{', '.join(table.columns)}"
        )
    asked, seen = {}, set()
    for task, group in requests.items():
        asked |= {(task, request.user): request for request in group}
    for line, task, user in zip(_lines(table), table["task"], table["user"], strict=True):
        if task not in requests:
            raise RecnbError(f"line {line}: no task {task!r}; tasks: {', '.join(requests)}")
        if (task, user) not in asked:
            raise RecnbError(
                f"line {line}: task {task} has no request of user {user!r}: recnb requests writes "
                "all that the run asked"
            )
        if (task, user) in seen:
            raise RecnbError(
                f"line {line}: task {task}, user {user} stands there twice: keep one answer"
            )
        seen.add((task, user))
    tasks = [task for task in requests if task in set(table["task"])]
    lacking = [key for key in asked if key[0] in tasks and key not in seen]
    if lacking:
        task, user = lacking[0]
        raise RecnbError(
            f"{len(lacking)} requests have no text, the first: task {task}, user {user}; answer "
            "each request of a task, or leave the task out"
        )
    return per_user(table, {task: requests[task] for task in tasks}, catalog)


def _lines(table):
    """The line of a CSV file that each row begins on, as an editor counts: texts have several."""
    height = 1 + sum(table[column].astype(str).str.count("\n") for column in table)
    return 2 + height.cumsum() - height
