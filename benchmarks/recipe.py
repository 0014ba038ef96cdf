"""One line of benchmarks/LOG.md: train base and SL stage with changed knobs, measure the answers.

The run's data, teacher and instructions are reused, so that only what is compared differs:

    recnb run laptop --until 03_instructions
    python benchmarks/recipe.py laptop --samples 51200 --set sft.repeat_weight=0

Prints one row of a Markdown table; several calls with different ``--set`` make a comparison.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from recnb import profile
from recnb.artifacts import Reader, runs_folder
from recnb.catalog import Catalog
from recnb.cli import overrides
from recnb.evaluation.metrics import accuracy, formatting
from recnb.evaluation.protocol import TASKS
from recnb.instructions.synthesis import heldout_requests
from recnb.interactions import Histories
from recnb.lm.base import make_base
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.loading import load_base
from recnb.lm.recommender import LanguageModelRecommender
from recnb.lm.tokenizer import title_tokens
from recnb.machine import autocast
from recnb.sft import train_sft
from recnb.teacher.training import load_teacher


def measure(model, codec, catalog, automaton, requests):
    """Mean HR@10, control metric, RepeatItem, InHistory and Seen of one task."""
    answers = LanguageModelRecommender(model, codec, catalog, automaton).recommend(requests)
    rows = []
    for request, answer in zip(requests, answers, strict=True):
        hit = accuracy(answer.items, request.target)["HR@10"]
        control = [*request.control.metrics(answer.items, request.k, catalog).values(), np.nan]
        form = formatting(answer.items, request.k, request.history, request.seen)
        rows.append([hit, control[0], form["RepeatItem"], form["InHistory"], form["Seen"]])
    return np.mean(rows, axis=0)


def main():
    """Train, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="name of a run whose stages 01 to 03 are done")
    parser.add_argument(
        "--set", action="append", default=[], help="section.key=value (model, base and sft)"
    )
    parser.add_argument(
        "--samples", type=int, default=0, help="the first so many instructions; 0 = all"
    )
    parser.add_argument(
        "--users", type=int, default=400, help="users, asked about their validation targets"
    )
    arguments = parser.parse_args()
    run = runs_folder() / arguments.run
    changed = profile.load(run / "profile.yaml", overrides(arguments.set))
    stages = Reader(changed, run)
    catalog = Catalog.from_parquet(stages.input("01_data", "catalog.parquet"))
    histories = Histories.from_parquet(stages.input("01_data", "histories.parquet"))
    weights = stages.input("02_teacher", "teacher.safetensors")
    teacher = load_teacher(weights, len(catalog), changed.teacher)
    train = pd.read_parquet(stages.input("03_instructions", "train.parquet"))
    validation = pd.read_parquet(stages.input("03_instructions", "validation.parquet"))
    train = train[: arguments.samples] if arguments.samples else train
    chat = train[train["task"] == "I4"][["prompt", "completion"]]
    chat = list(chat.itertuples(index=False, name=None))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        where, _, _ = make_base(changed, Path(folder), histories, catalog, chat, teacher, {})
        base_seconds = time.perf_counter() - started
        model, codec = load_base(where, changed.model.dtype)
        titles = title_tokens(codec.tokenizer, catalog)
        tuned, rows = train_sft(
            model,
            codec,
            train,
            validation,
            titles,
            changed.sft,
            changed.seed,
            folder,
            autocast=autocast(changed.model),
        )
    seconds = time.perf_counter() - started - base_seconds
    loss = [row["eval_loss"] for row in rows if "eval_loss" in row][-1]
    tuned = tuned.merge_and_unload() if changed.sft.rank else tuned
    count = min(arguments.users, len(histories))
    users = np.sort(np.random.default_rng(1).choice(len(histories), count, replace=False))
    given = users, "validation", histories, catalog, teacher, changed.data, changed.seed
    shares = "I2<=20", "I2~30", "I2>=30"
    asked = {t: heldout_requests(TASKS[t], *given) for t in ("I0", "I1+", "I1-", *shares)}
    free = {t: measure(tuned, codec, catalog, None, requests) for t, requests in asked.items()}
    constrained = measure(tuned, codec, catalog, CatalogAutomaton(codec, catalog), asked["I0"])
    head = [
        "changed",
        "base s",
        "SL s",
        "validation loss",
        "HR@10 I0 free / constrained",
        "RepeatItem",
        "InHistory",
        "Seen",
        "TCP I1+",
        "TCP I1-",
        "CPA at most 20, about 30, at least 30 %",
    ]
    plain = free["I0"]
    cells = [
        " ".join(arguments.set) or "nothing",
        f"{base_seconds:.0f}",
        f"{seconds:.0f}",
        f"{loss:.3f}",
        f"{plain[0]:.3f} / {constrained[0]:.3f}",
        *(f"{value:.1%}" for value in plain[2:]),
        f"{free['I1+'][1]:.1%}",
        f"{free['I1-'][1]:.1%}",
        " / ".join(f"{free[t][1]:.1%}" for t in shares),
    ]
    print("|", " | ".join(head), "|")
    print("|" + "---|" * len(head))
    print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
