"""A small world with known rules, for lessons and tests: nothing to download, all of it learnable.

Every item has one of six categories, a third of them a second one. Each category is a circle of
items; a user has a favourite category, walks along its circle, and now and then jumps into
another one.
"""

from itertools import product

import numpy as np
import pandas as pd

CATEGORIES = ["Action", "Comedy", "Drama", "Horror", "Romance", "Space"]
ADJECTIVES = "Silent Golden Lost Broken Hidden Crimson Distant Last Paper Winter".split()
NOUNS = "River Garden Engine Mirror Harbor Letter Planet Castle Window Shadow Valley Signal".split()


def read(users, items, seed):
    """Item table and log of so many people and items; a step of a walk is rated 5, a jump 2."""
    rng = np.random.default_rng([seed, 101])
    names = [" ".join(pair) for pair in product(ADJECTIVES, NOUNS)]
    rng.shuffle(names)
    titles = [f"{names[i % len(names)]} ({1980 + i // len(names) + i % 30})" for i in range(items)]
    main = np.arange(items) % len(CATEGORIES)
    second = np.where(rng.random(items) < 1 / 3, rng.integers(len(CATEGORIES), size=items), main)
    pairs = zip(main, second, strict=True)
    categories = [sorted({CATEGORIES[a], CATEGORIES[b]}) for a, b in pairs]
    columns = {"item": np.arange(1, items + 1), "title": titles, "categories": categories}
    table = pd.DataFrame(columns)
    circles = [np.flatnonzero(main == c) + 1 for c in range(len(CATEGORIES))]
    rows = []
    for user in range(users):
        favourite, seen, time = rng.integers(len(CATEGORIES)), set(), 0
        place = rng.integers(len(circles[favourite]))
        for _ in range(rng.integers(9, 15)):
            stays = rng.random() < 0.85
            if stays:
                item, place = circles[favourite][place % len(circles[favourite])], place + 1
            else:
                item = rng.choice(circles[rng.integers(len(CATEGORIES))])
            if item not in seen:
                seen.add(item)
                rows.append((user, int(item), 5 if stays else 2, time))
                time += 1
    return table, pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
