"""A small world with known rules, for lessons and tests: no download, and everything in it can be learned.

Items have one of six categories and a second one for a third of them. Each category is a circle of items; a user
has a favourite category, walks along its circle, and now and then jumps into another one.
"""

import numpy as np
import pandas as pd

CATEGORIES = ["Action", "Comedy", "Drama", "Horror", "Romance", "Space"]
ADJECTIVES = ["Silent", "Golden", "Lost", "Broken", "Hidden", "Crimson", "Distant", "Last", "Paper", "Winter"]
NOUNS = ["River", "Garden", "Engine", "Mirror", "Harbor", "Letter", "Planet", "Castle", "Window", "Shadow",
         "Valley", "Signal"]  # fmt: skip


def read(users, items, seed):
    """Item table and log of ``users`` people and ``items`` items; what lies on a user's walk is rated 5, a jump 2."""
    rng = np.random.default_rng([seed, 101])
    names = [f"{a} {n}" for a in ADJECTIVES for n in NOUNS]
    rng.shuffle(names)
    titles = [f"{names[i % len(names)]} ({1980 + i // len(names) + i % 30})" for i in range(items)]
    main = np.arange(items) % len(CATEGORIES)
    second = np.where(rng.random(items) < 1 / 3, rng.integers(len(CATEGORIES), size=items), main)
    table = pd.DataFrame(
        {
            "item": np.arange(1, items + 1),
            "title": titles,
            "categories": [sorted({CATEGORIES[a], CATEGORIES[b]}) for a, b in zip(main, second, strict=True)],
        }
    )
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
