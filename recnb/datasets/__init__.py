"""Datasets: a module for each source reads a raw item table and log; ``build`` does the rest."""

import numpy as np
import pandas as pd

from recnb import RecnbError
from recnb.catalog import Catalog, clean_title, shorten, unique_titles
from recnb.datasets import movielens, synthetic, tabular
from recnb.interactions import Histories, k_core, time_order


def build(knobs, seed):
    """The catalogue and the histories of a profile's dataset.

    Args:
        knobs: the ``data`` section of a profile.
        seed: used by the synthetic dataset alone.

    Returns:
        ``(Catalog, Histories)``; users and items are numbered as they first appear once sorted.
    """
    return assemble(*read(knobs, seed), knobs.k_core)


def read(knobs, seed):
    """Raw item table and log of a profile's dataset; arguments as for ``build``."""
    if knobs.dataset == "synthetic":
        items, log = synthetic.read(knobs.synthetic_users, knobs.synthetic_items, seed)
    elif knobs.dataset == "movielens-100k":
        items, log = movielens.read()
    else:
        items, log = tabular.read(knobs)
    return merged(items, log) if knobs.merge_titles else (items, log)


def merged(items, log):
    """Items of one title as one item: the first one's id, all categories, each user's first row.

    Args:
        items: DataFrame item, title, categories (a list each).
        log: DataFrame user, item, timestamp and perhaps more.
    """
    names = items["title"].map(lambda title: clean_title(title).casefold())
    first = items.groupby(names, sort=False)["item"].transform("first")
    own = dict(zip(items["item"], first, strict=True))
    categories = {}
    for item, names in zip(first, items["categories"], strict=True):
        known = categories.setdefault(item, [])
        known += [name for name in names if name not in known]
    items = items[items["item"] == first].reset_index(drop=True)
    items = items.assign(categories=items["item"].map(categories))
    log = log.assign(item=log["item"].map(lambda item: own.get(item, item)))
    earliest = log.sort_values("timestamp", kind="stable")
    return items, earliest.drop_duplicates(["user", "item"]).sort_index().reset_index(drop=True)


def assemble(items, log, k):
    """Filter, order and renumber.

    Args:
        items: DataFrame item, title, categories (a list each).
        log: DataFrame user, item, timestamp.
        k: for ``k_core``; a user needs three interactions at least, one each for training,
            validation and test.
    """
    items, log = kept(items, log, k)
    if log.empty:
        raise RecnbError(
            "no user has three interactions, the least for a training, a validation and a test item"
        )
    return numbered(items, log)


def numbered(items, log):
    """Catalogue and histories of what ``kept`` left: items in the table's order, users sorted."""
    titles = unique_titles([shorten(clean_title(t)) for t in items["title"]])
    catalog = Catalog(titles, list(items["categories"]))
    ids = log["item"].map(numbers(items)).to_numpy()
    users = pd.factorize(log["user"], sort=True)[0]
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(users[order])) + 1
    return catalog, Histories(np.split(ids[order], starts))


def kept(items, log, k):
    """What is left of item table and log after filtering, in the order of time."""
    items = items[items["item"].isin(set(log["item"]))]
    log = log[log["item"].isin(set(items["item"]))].drop_duplicates(["user", "item"])
    log = time_order(k_core(log, k))
    log = log[log.groupby("user")["item"].transform("size") >= 3]
    return items[items["item"].isin(set(log["item"]))].reset_index(drop=True), log


def numbers(items):
    """Catalogue id of each item of the table that ``kept`` left."""
    return {item: i for i, item in enumerate(items["item"], start=1)}
