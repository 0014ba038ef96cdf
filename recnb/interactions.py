"""Interaction logs: filtering, time order, leave-one-out split, and the numbers of Table 1."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recnb import RecnbError


def k_core(log, k):
    """Remove users and items with fewer than ``k`` interactions until none is left.

    Args:
        log: DataFrame with columns user, item (and others, kept).

    Raises:
        RecnbError: nothing is left.
    """
    while True:
        users, items = log["user"].value_counts(), log["item"].value_counts()
        keep = log["user"].map(users).ge(k) & log["item"].map(items).ge(k)
        if keep.all():
            break
        log = log[keep]
    if log.empty:
        raise RecnbError(
            f"no user has {k} interactions with items of {k} interactions: lower data.k_core"
        )
    return log


def k_core_rows(users, items, users_at_least, items_at_least):
    """``k_core`` on numbers for ids, with a minimum for each side.

    Args:
        users, items: [n] int arrays of small numbers, row by row an interaction.

    Returns:
        [m] int64, the rows that are left, rising.
    """
    rows = np.arange(len(users))
    while True:
        keep = np.bincount(users)[users] >= users_at_least
        keep &= np.bincount(items)[items] >= items_at_least
        if keep.all():
            return rows
        rows, users, items = rows[keep], users[keep], items[keep]


def time_order(log):
    """Sort by user, then time; interactions of the same second keep the order of the source file.

    MovieLens stamps whole seconds and many ratings of a user share one, so the tie-break decides
    which item is the test target. File order is arbitrary but unbiased: ordering ties by item id
    would make the target always the highest id, which in MovieLens is the rarest film, and halves
    the accuracy of the popularity baseline.
    """
    return log.sort_values(["user", "timestamp"], kind="stable")


@dataclass
class Histories:
    """Each user's items in time order.

    ``items[u]`` is an int array; the last item is the test target, the last but one the validation
    target, the rest the training part (leave-one-out).
    """

    items: list[np.ndarray]

    def __len__(self):
        return len(self.items)

    def train(self, user):
        """The training part: all but the last two items."""
        return self.items[user][:-2]

    def training_users(self, users=None):
        """Those of these users (default: all) whose training part has a next item to predict.

        Raises:
            RecnbError: there are none.
        """
        users = range(len(self)) if users is None else users
        found = [u for u in users if len(self.train(u)) >= 2]
        if not found:
            raise RecnbError(
                "no user has two training interactions: there is nothing to learn from"
            )
        return found

    def draw_target(self, user, latest_share, rng):
        """A position within the latest share of a user's training part, never the first one."""
        length = len(self.train(user))
        earliest = max(1, int(length * (1 - latest_share)))
        return int(rng.integers(earliest, length))

    def seen(self, user, split):
        """Items a request of this split may not be answered with: everything before its target."""
        return self.items[user][: -1 if split == "test" else -2]

    def target(self, user, split):
        """The held-out item of ``split`` ("test" or "validation")."""
        return int(self.items[user][-1 if split == "test" else -2])

    def to_parquet(self, path):
        """Write one row a user."""
        rows = [list(map(int, items)) for items in self.items]
        pd.DataFrame({"items": rows}).to_parquet(path)

    @classmethod
    def from_parquet(cls, path):
        """Read what ``to_parquet`` wrote."""
        return cls([np.asarray(items, dtype=np.int64) for items in pd.read_parquet(path)["items"]])


def statistics(histories, catalog):
    """Table 1: users, items, interactions, sparsity; and the shape of histories and categories."""
    lengths = np.array([len(items) for items in histories.items])
    users, items, total = len(histories), len(catalog), int(lengths.sum())
    return {
        "users": users,
        "items": items,
        "interactions": total,
        "sparsity": round(1 - total / (users * items), 4),
        "median history": int(np.median(lengths)),
        "longest history": int(lengths.max()),
        "categories": len(catalog.names),
        "categories per item": round(float(np.mean([len(c) for c in catalog.categories[1:]])), 2),
    }
