"""A small world with known rules, for lessons and tests: nothing to download, all of it learnable.

Every item has one of six categories, a third of them a second one. Some items are known to many,
most to few, as films are. A user has a favourite category and a second one, mostly takes what is
known in them, and now and then goes on to an item's sequel or looks elsewhere.
"""

from itertools import product

import numpy as np
import pandas as pd

CATEGORIES = ["Action", "Comedy", "Drama", "Horror", "Romance", "Space"]
ADJECTIVES = "Silent Golden Lost Broken Hidden Crimson Distant Last Paper Winter".split()
NOUNS = "River Garden Engine Mirror Harbor Letter Planet Castle Window Shadow Valley Signal".split()
FAVOURITE, SECOND = 0.6, 0.25
"""How often a step stays in the user's favourite category, and how often in the second."""
SEQUEL = 0.2
"""How often a step goes on to the sequel of the item before."""
TOGETHER = 0.25
"""How often an item bears the time of the item before, as in a session of rating."""


def read(users, items, seed):
    """Item table and log of so many people and items; what suits a user is rated 5, the rest 2."""
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
    known = 1 / (1 + rng.permutation(items)) ** 0.7  # Zipf: the item of rank r is known to 1 / r^.7
    inside = [known * ((main == c) | (second == c)) for c in range(len(CATEGORIES))]
    sums = [weights.cumsum() for weights in (*inside, known)]
    chances = [row / row[-1] for row in sums]
    sequels = np.arange(items) + len(CATEGORIES)  # the next item of the same category
    sequels[-len(CATEGORIES) :] %= items
    kinds = [FAVOURITE, SECOND, 1 - FAVOURITE - SECOND]
    rows = []
    for user in range(users):
        favourite, other = rng.permutation(len(CATEGORIES))[:2]
        suits = {CATEGORIES[favourite], CATEGORIES[other]}
        seen, last, time = set(), None, 0
        for _ in range(rng.integers(9, 15)):
            where = rng.choice([favourite, other, -1], p=kinds)
            item = int(np.searchsorted(chances[where], rng.random()))
            if last is not None and rng.random() < SEQUEL:
                item = int(sequels[last])
            if item not in seen:
                rating = 5 if suits & set(categories[item]) else 2
                time += rng.random() >= TOGETHER
                rows.append((user, item + 1, rating, time))
                seen.add(item)
            last = item
    return table, pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
