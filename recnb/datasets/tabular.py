"""Bring your own catalogue: two CSV files in a folder.

``items.csv``: item, title, categories (separated by ``|``). ``interactions.csv``: user, item,
timestamp (a number) and, if there are any, rating (a number; TALLRec alone reads it).
"""

from pathlib import Path

import pandas as pd

from recnb import RecnbError


def read(folder):
    """Item table and log.

    Raises:
        RecnbError: a missing file or column, a bad timestamp, an unknown or doubled item, each with
            file and row.
    """
    items = _table(Path(folder) / "items.csv", ["item", "title", "categories"])
    log = _table(Path(folder) / "interactions.csv", ["user", "item", "timestamp"])
    twice = items["item"].duplicated()
    if twice.any():
        row = int(twice.to_numpy().argmax())
        raise RecnbError(
            f"{folder}/items.csv row {row + 2}: item {items['item'][row]!r} stands there twice"
        )
    stamps = pd.to_numeric(log["timestamp"], errors="coerce")
    if stamps.isna().any():
        row = int(stamps.isna().to_numpy().argmax())
        raise RecnbError(
            f"{folder}/interactions.csv row {row + 2}: timestamp {log['timestamp'][row]!r} is not "
            "a number; histories need an order in time (seconds since 1970, or any rising number)"
        )
    unknown = ~log["item"].isin(set(items["item"]))
    if unknown.any():
        row = int(unknown.to_numpy().argmax())
        raise RecnbError(
            f"{folder}/interactions.csv row {row + 2}: "
            f"item {log['item'][row]!r} is not in items.csv"
        )
    categories = []
    for text in items["categories"]:
        names = [name.strip() for name in text.split("|")]
        categories.append([name for name in names if name])
    items["categories"] = categories
    if not items["categories"].map(len).any():
        raise RecnbError(
            f"{folder}/items.csv: column categories is empty in every row; controls need categories"
        )
    if "rating" in log.columns:
        log["rating"] = pd.to_numeric(log["rating"], errors="coerce")
        if log["rating"].isna().any():
            row = int(log["rating"].isna().to_numpy().argmax())
            raise RecnbError(f"{folder}/interactions.csv row {row + 2}: the rating is not a number")
    return items, log.assign(timestamp=stamps)


def _table(path, columns):
    if not path.is_file():
        raise RecnbError(f"{path} does not exist; it needs the columns {', '.join(columns)}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise RecnbError(f"{path} is not a readable CSV file: {error}") from error
    for column in columns:
        if column not in table.columns:
            raise RecnbError(f"{path}: no column {column!r}; found {', '.join(table.columns)}")
    if "rating" in table.columns:
        columns = [*columns, "rating"]
    return table[columns]
