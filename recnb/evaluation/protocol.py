"""Who answers which requests: one fixed request set for all systems, answers stored as text, metrics from what is stored."""

import hashlib
import json
import shutil
import time

import numpy as np
import pandas as pd

from recnb.artifacts import atomic_path
from recnb.controls import About, AtLeast, AtMost, Exclude, Include
from recnb.evaluation.metrics import accuracy, bootstrap_interval, formatting
from recnb.instructions.labels import ranked_items
from recnb.instructions.synthesis import heldout_requests
from recnb.instructions.templates import numbered
from recnb.lm.parsing import parse
from recnb.requests import Response

TASKS = {
    "I0": "I0",
    "I1+": (Include, "target"),
    "I1-": (Exclude, "other"),
    "I2<=20": (lambda name: AtMost(name, "1/5"), "other"),
    "I2~30": (lambda name: About(name, "3/10"), "target"),
    "I2>=30": (lambda name: AtLeast(name, "3/10"), "target"),
    "format": "I0",
}
"""Task -> how its control is made and whose category it names (3.2)."""
TABLE_OF = {"I0": "table2", "I1+": "table3", "I1-": "table3", "I2<=20": "table4", "I2~30": "table4", "I2>=30": "table4",
            "format": "table5"}  # fmt: skip
COLUMNS = ["table", "system", "decoding", "task", "metric", "value", "low", "high", "n"]


def request_sets(histories, catalog, teacher, knobs, data_knobs, seed):
    """The requests of every task: ``{task: [Request]}``, the same users and categories for every system.

    Users whose target has no category are left out of the tasks that need one. k is 10; in "format" it is drawn for
    each user from ``knobs.format_k``.
    """
    users = np.arange(len(histories))
    if knobs.users and knobs.users < len(users):
        users = np.sort(np.random.default_rng([seed, 109]).choice(users, knobs.users, replace=False))
    low, high = knobs.format_k
    longer = np.random.default_rng([seed, 110]).integers(low, high + 1, size=len(users))
    return {
        task: heldout_requests(kind, users, "test", histories, catalog, teacher, data_knobs, seed,
                               k=longer if task == "format" else 10)
        for task, kind in TASKS.items()
    }  # fmt: skip


class Ranker:
    """A scoring recommender (teacher, popularity, ...) that answers requests with its best unseen items.

    Args:
        scorer: has ``scores(histories)``.
        obey: take the best list that meets the control (``Control.select``) instead of the best list; where the unseen
            items cannot meet it, the best list.
    """

    def __init__(self, scorer, catalog, obey=False):
        self.scorer, self.catalog, self.obey = scorer, catalog, obey

    def recommend(self, requests, progress=lambda done, total: None):
        """The k best unseen items; without ``obey`` controls are not looked at, as for SASRec in the paper."""
        scores = self.scorer.scores([r.seen for r in requests])
        answers = []
        for request, row in zip(requests, scores, strict=True):
            ranked = ranked_items(row, request.seen, None)
            items = request.control.select(ranked, request.k, self.catalog) if self.obey else None
            items = items or ranked[: request.k].tolist()
            answers.append(Response(numbered(items, self.catalog), [self.catalog.titles[i] for i in items], items))
        progress(len(requests), len(requests))
        return answers


def answers_folder(stage):
    """Folder for the answers of exactly these models and knobs; answers of others are deleted.

    Args:
        stage: the evaluation's ``Stage``, after every model was opened through ``stage.input``: the name holds the
            sha256 of all inputs, so a retrained model never inherits an old model's answers.
    """
    key = hashlib.sha256(json.dumps([stage.key, stage.inputs], sort_keys=True).encode()).hexdigest()[:12]
    folder = stage.folder / "answers" / key
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answer_all(system, requests, path, progress=lambda done, total: None):
    """Let a system answer every task and store the raw texts; a file that exists is kept, so a stopped run goes on.

    Args:
        system: anything with ``recommend``.
        requests: from ``request_sets``.
        path: Parquet file with columns task, user, k, control, text, tokens, seconds.
    """
    if not path.is_file():
        rows = []
        for task, asked in requests.items():
            started = time.perf_counter()
            answers = system.recommend(asked, progress)
            seconds = (time.perf_counter() - started) / max(len(asked), 1)
            for request, answer in zip(asked, answers, strict=True):
                rows.append((task, request.user, request.k, json.dumps(request.control.to_json()), answer.text,
                             answer.tokens, seconds))  # fmt: skip
        with atomic_path(path) as temporary:
            frame = pd.DataFrame(rows, columns=["task", "user", "k", "control", "text", "tokens", "seconds"])
            frame.to_parquet(temporary, index=False)
    return pd.read_parquet(path)


def per_user(stored, requests, catalog):
    """Metrics of every stored answer: DataFrame task, user, metric, value.

    Control metrics come twice: of the answer to the controlled request, and, as "... without control", of the same
    system's I0 answer for the same user and category (the values in parentheses in the paper's tables).
    """
    texts = {(row.task, row.user): row.text for row in stored.itertuples()}
    plain = {r.user: parse(texts["I0", r.user], catalog).items for r in requests["I0"]}
    rows = []
    for task, asked in requests.items():
        for request in asked:
            items = parse(texts[task, request.user], catalog).items
            values = accuracy(items, request.target) if task != "format" else formatting(
                items, request.k, request.history, request.seen)  # fmt: skip
            values |= request.control.metrics(items, request.k, catalog)
            without = request.control.metrics(plain[request.user], request.k, catalog)
            values |= {f"{name} without control": value for name, value in without.items()}
            rows += [(task, request.user, name, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["task", "user", "metric", "value"])


def summarise(values, system, decoding, resamples, seed):
    """Means with 95 % bootstrap intervals over users, in the long form of ``tables/metrics.csv``."""
    rows = []
    for (task, metric), group in values.groupby(["task", "metric"], sort=False):
        numbers = group["value"].to_numpy()
        low, high = bootstrap_interval(numbers, resamples, seed)
        rows.append((TABLE_OF[task], system, decoding, task, metric, numbers.mean(), low, high, len(numbers)))
    return pd.DataFrame(rows, columns=COLUMNS)


def paired_difference(a, b, resamples, seed):
    """Mean of a - b over the users both have, with its bootstrap interval.

    Args:
        a, b: DataFrames user, value of one task and metric.
    """
    joined = a.merge(b, on="user", suffixes=("_a", "_b"))
    difference = (joined["value_a"] - joined["value_b"]).to_numpy()
    return float(difference.mean()), *bootstrap_interval(difference, resamples, seed)
