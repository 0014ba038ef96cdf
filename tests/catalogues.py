"""Catalogues as people bring them: games with dates, books with semicolons and ratings to 10."""

import numpy as np
import pandas as pd

GAMES = ["Strategy", "Card", "Dice", "Family", "Party", "Economic", "Abstract", "War"]
BOOKS = ["Novel", "Poetry", "History", "Science", "Travel", "Biography", "Crime", "Essay"]
FIRST = ["Amber", "Iron", "Quiet", "Northern", "Seven", "Hollow", "Copper", "Blue", "Wandering"]
SECOND = ["Harvest", "Bridge", "Archive", "Meadow", "Lantern", "Compass", "Orchard", "Tower"]


def tables(categories, users=200, items=150, seed=0):
    """Item table and log; users keep to one category, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for item in range(items):
        name = f"{FIRST[item % 9]} {SECOND[item // 9 % 8]} {item // 72 + 1}"
        own = {categories[item % len(categories)], categories[rng.integers(len(categories))]}
        rows.append((f"i{item}", name, "|".join(sorted(own))))
    log, time = [], 1_600_000_000
    for user in range(users):
        liked = [i for i in range(items) if i % len(categories) == user % len(categories)]
        others = rng.choice(items, size=6, replace=False)
        for item in dict.fromkeys([*rng.permutation(liked)[:10], *others]):
            time += int(rng.integers(60, 7200))
            log.append((f"u{user}", f"i{item}", time, 9 if item in liked else 4))
    columns = ["user", "item", "timestamp", "rating"]
    return pd.DataFrame(rows, columns=["item", "title", "categories"]), pd.DataFrame(
        log, columns=columns
    )


def write(folder, items, log, separator=","):
    folder.mkdir(parents=True, exist_ok=True)
    items.to_csv(folder / "items.csv", sep=separator, index=False)
    log.to_csv(folder / "interactions.csv", sep=separator, index=False)
    return folder


def games(folder):
    items, log = tables(GAMES)
    dates = pd.to_datetime(log["timestamp"], unit="s").dt.strftime("%Y-%m-%d %H:%M:%S")
    return write(folder, items, log.assign(timestamp=dates).drop(columns="rating"))


def books(folder):
    return write(folder, *tables(BOOKS, seed=1), separator=";")
