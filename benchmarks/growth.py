"""Notebooks 01 to 03, function by function, as the users become 4 and 16 times as many.

    python benchmarks/growth.py

The catalogue is as large as that of the paper's Movie data, 18,744 items, and in the end so are the
users. Processor seconds and MiB more than before the function, each measured in a forked process,
so that peak memory is its own (Linux). Writes ``benchmarks/growth.csv`` and ``growth.png``; what
the table holds is not measured again: delete it, or some of its rows.
"""

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from recnb import plots
from recnb.controls import Exclude
from recnb.datasets import kept, numbered, rehearsal, tabular
from recnb.instructions.checks import check_labels
from recnb.instructions.synthesis import heldout_requests, synthesize, write
from recnb.profile import load
from recnb.teacher.popularity import ItemKNN, Popularity, Transitions
from recnb.teacher.ranking import Teacher, leave_one_out
from recnb.teacher.training import train_sasrec, untrained

ITEMS, USERS = 18_744, [826, 3_304, 13_218]
TABLE = Path(__file__).with_suffix(".csv")
LEAST = 25
"""Items of a user, at least: the paper's filter."""


def tables(folder, users):
    """Write items.csv and interactions.csv of so many invented people (``rehearsal.walks``)."""
    folder.mkdir()
    genres = [rehearsal.GENRES[item % len(rehearsal.GENRES)] for item in range(ITEMS)]
    titles = [f"Film {item}" for item in range(ITEMS)]
    items = pd.DataFrame({"item": range(ITEMS), "title": titles, "categories": genres})
    items.to_csv(folder / "items.csv", index=False)
    rows = rehearsal.walks(2 * users, ITEMS, np.random.default_rng(0), length=56)
    log = pd.DataFrame(rows, columns=["user", "item", "timestamp", "rating"])
    log = log.drop_duplicates(["user", "item"])
    log = log[log.groupby("user")["item"].transform("size") >= LEAST]
    log = log[log["user"].isin(np.sort(log["user"].unique())[:users])]
    log.to_csv(folder / "interactions.csv", index=False)


class World:
    """What the measured functions are given; made before the clock starts.

    Attributes:
        catalog, histories: of the whole catalogue, unfiltered.
        teacher: an untrained SASRec of the paper's profile.
    """

    def __init__(self, folder):
        self.folder = folder
        self.profile = load("paper-movie", {"data.path": str(folder)})
        self.items, self.log = tabular.read(self.profile.data)
        self.catalog, self.histories = numbered(self.items, self.log.sort_values("timestamp"))
        self.teacher = Teacher(untrained(len(self.catalog), self.profile.teacher))

    def read(self):
        tabular.read(self.profile.data)

    def filter(self):
        kept(self.items, self.log, 3)

    def train(self):
        knobs = self.profile.teacher.model_copy(update={"max_epochs": 1})
        train_sasrec(self.histories, len(self.catalog), knobs, 0)

    def rank(self, system):
        leave_one_out(system.scores, self.histories, "validation", len(self.catalog))

    def rank_teacher(self):
        self.rank(self.teacher)

    def popularity(self):
        self.rank(Popularity(self.histories, len(self.catalog)))

    def item_knn(self):
        self.rank(ItemKNN(self.histories, len(self.catalog)))

    def transitions(self):
        self.rank(Transitions.count(self.histories, len(self.catalog)))

    def instructions(self):
        """A quarter of Table 8's samples with a history, written and checked."""
        part = len(self.histories) // 4
        sizes = {"sequential": part, "category": part, "proportion": part, "search": 100}
        knobs = self.profile.instructions.model_copy(update=sizes | {"chat_share": 0.0})
        given = self.histories, self.catalog, self.teacher, knobs, self.profile.data, 0
        write(synthesize(*given), self.folder / "train.parquet")
        check_labels(pd.read_parquet(self.folder / "train.parquet"), self.catalog)

    def requests(self):
        users = range(len(self.histories))
        given = self.histories, self.catalog, self.teacher, self.profile.data, 0
        heldout_requests([(Exclude, "other")], users, "test", *given)


FUNCTIONS = {
    "read the tables": World.read,
    "filter (3-core)": World.filter,
    "teacher, an epoch": World.train,
    "rank by the teacher": World.rank_teacher,
    "popularity, and rank": World.popularity,
    "item-kNN, and rank": World.item_knn,
    "transitions, and rank": World.transitions,
    "instructions": World.instructions,
    "requests of a test task": World.requests,
}


def measure(function, world, found):
    """Put processor seconds and MiB of a function into the queue ``found``."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    function(world)
    seconds = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found.put({"cpu_seconds": round(seconds, 2), "more_mib": round(memory / 1024)})


def picture(frame):
    """Two panels over the interactions, both axes logarithmic; a dotted line grows as they do."""
    figure, axes = plots._panels(2, 4.2)
    told = {"cpu_seconds": ("time", "processor seconds"), "more_mib": ("memory", "MiB")}
    for axis, (column, (title, label)) in zip(axes, told.items(), strict=True):
        said = []
        for place, (name, rows) in enumerate(frame.groupby("function", sort=False)):
            values = rows[column].clip(lower=0.1)
            axis.loglog(rows["interactions"], values, label=name, **plots.series(place))
            said.append(f"{name} {', '.join(f'{value:g}' for value in rows[column])}")
        ends = np.array(axis.get_xlim())
        for start in np.array(axis.get_ylim())[0] * 10.0 ** np.arange(-1, 5):
            axis.loglog(ends, start * ends / ends[0], ":", color=plots.GRAY, lw=0.6, scaley=False)
        axis.set(title=title, xlabel="interactions", ylabel=label, xlim=ends)
        sizes = frame["interactions"].unique()
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.xaxis.set_minor_formatter("")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_label(f"{title} as interactions grow fourfold, twice: {'; '.join(said)}.")
    figure.tight_layout()
    axes[0].legend(loc="upper center", bbox_to_anchor=(1.1, -0.18), ncols=3)
    path, plain = TABLE.with_suffix(".png"), {"Software": None}
    figure.savefig(path, dpi=80, bbox_inches="tight", metadata=plain)


def main():
    """Each function in a process of its own, all sizes one after the other."""
    torch.set_num_threads(1)
    frame = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=["function", "users"])
    for users in USERS:
        known = set(frame["function"][frame["users"] == users])
        for row in measured(users, [name for name in FUNCTIONS if name not in known]):
            frame = pd.concat([frame, pd.DataFrame([row])], ignore_index=True)
            frame["place"] = frame["function"].map(list(FUNCTIONS).index)
            frame = frame.sort_values(["users", "place"]).drop(columns="place")
            frame.to_csv(TABLE, index=False)
    picture(frame)


def measured(users, chosen):
    """Yield the rows of the chosen functions for so many users."""
    if not chosen:
        return
    own = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "tables"
        tables(folder, users)
        world = World(folder)
        for name in chosen:
            found = own.SimpleQueue()
            child = own.Process(target=measure, args=(FUNCTIONS[name], world, found))
            child.start()
            child.join()
            if child.exitcode:
                raise SystemExit(f"{name}, {users} users: failed ({child.exitcode})")
            size = {"users": users, "interactions": len(world.log)}
            row = {"function": name} | size | found.get()
            print(row, flush=True)
            yield row


if __name__ == "__main__":
    main()
