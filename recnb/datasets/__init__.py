"""Datasets: each module turns one source into a raw item table and a raw log; ``build`` does the rest alike for all."""

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
        ``(Catalog, Histories)``; users and items are renumbered in order of first appearance after sorting.
    """
    if knobs.dataset == "synthetic":
        items, log = synthetic.read(knobs.synthetic_users, knobs.synthetic_items, seed)
    elif knobs.dataset == "movielens-100k":
        items, log = movielens.read()
    else:
        items, log = tabular.read(knobs.path)
    return assemble(items, log, knobs.k_core)


def assemble(items, log, k):
    """Filter, order and renumber.

    Args:
        items: DataFrame item, title, categories (a list each).
        log: DataFrame user, item, timestamp.
        k: for ``k_core``; a user needs three interactions at least, one each for training, validation and test.
    """
    items = items[items["item"].isin(set(log["item"]))]
    log = log[log["item"].isin(set(items["item"]))].drop_duplicates(["user", "item"])
    log = time_order(k_core(log, k))
    log = log[log.groupby("user")["item"].transform("size") >= 3]
    if log.empty:
        raise RecnbError("no user has three interactions, the least for a training, a validation and a test item")
    items = items[items["item"].isin(set(log["item"]))].reset_index(drop=True)
    catalog = Catalog(unique_titles([shorten(clean_title(t)) for t in items["title"]]), list(items["categories"]))
    number = {item: i for i, item in enumerate(items["item"], start=1)}
    groups = log.assign(number=log["item"].map(number)).groupby("user", sort=True)["number"]
    return catalog, Histories([group.to_numpy() for _, group in groups])
