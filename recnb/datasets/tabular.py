"""Bring your own catalogue: two tables in a folder, as CSV or Parquet.

``items``: item, title, categories (separated by ``|``). ``interactions``: user, item, timestamp (a
rising number or an ISO date) and, if there are any, rating (a number; TALLRec alone reads it).
``recnb check-data FOLDER`` says what is wrong with them, and what is merely suspicious.
"""

import csv
import difflib
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recnb import RecnbError
from recnb.catalog import clean_title
from recnb.text_safety import visible

NEEDED = {"items": ["item", "title", "categories"], "interactions": ["user", "item", "timestamp"]}
OPTIONAL = {"items": [], "interactions": ["rating"]}
SEPARATORS = [",", ";", "\t"]
SHOWN = 60
"""Characters of a value that a message shows."""
MOST_ROWS, MOST_BYTES = 50_000_000, 4 << 30
"""Rows of a Parquet table, and bytes of its text, at most: a file of kilobytes can hold any number
of equal rows."""


@dataclass
class Tables:
    """What a folder holds, and all that is wrong with it; tables are None where unreadable."""

    items: pd.DataFrame | None = None
    log: pd.DataFrame | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(knobs):
    """Item table and log of a folder.

    Args:
        knobs: the ``data`` section of a profile.

    Raises:
        RecnbError: every problem found, one a line, each with its file and line.
    """
    tables = load(knobs)
    if tables.problems:
        raise RecnbError("\n".join(tables.problems))
    return tables.items, tables.log


def load(knobs):
    """``Tables`` of a folder; nothing is raised, everything is collected."""
    tables, folder = Tables(), Path(knobs.path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        tables.problems.append(f"{folder} {what}: data.path is the folder that holds the tables")
        return tables
    items = _Table(folder, "items", knobs, tables)
    log = _Table(folder, "interactions", knobs, tables)
    if items.frame is not None:
        tables.items = _items(items, knobs)
    if log.frame is not None:
        tables.log = _log(log, items.frame)
    return tables


class _Table:
    """One table as text cells, and how to name a row of it.

    Attributes:
        frame: DataFrame of strings with the kit's column names; None where it cannot be read.
    """

    def __init__(self, folder, stem, knobs, tables):
        self.tables, self.frame, self.encoding, self.separator = tables, None, "utf-8", ","
        found = [folder / f"{stem}{ending}" for ending in (".csv", ".parquet")]
        found = [path for path in found if path.exists()]
        self.path = found[0] if found else folder / f"{stem}.csv"
        if len(found) != 1:
            what = "both stand there: remove one" if found else "does not exist"
            names = " and ".join(path.name for path in found) or str(self.path)
            wanted = ", ".join(NEEDED[stem])
            return self.problem(None, f"{names} {what}; it needs the columns {wanted}")
        if not self.path.is_file():
            return self.problem(None, "is a folder, not a file")
        wanted = [_name(knobs, column) for column in [*NEEDED[stem], *OPTIONAL[stem]]]
        parquet = self.path.suffix == ".parquet"
        raw = self._parquet(wanted) if parquet else self._csv(stem, knobs)
        if raw is not None:
            self.frame = self._named(raw, stem, knobs)

    def problem(self, row, text):
        """Note a problem; ``row`` counts from 0 in the table, None = the whole file."""
        where = f"{self.path}" if row is None else f"{self.path}, line {self.line(row)}"
        self.tables.problems.append(f"{where}: {text}")

    def first(self, bad, column, text):
        """Note the first row where ``bad`` holds, and how many do; ``text`` gets its value."""
        count = int(bad.sum())
        if count:
            row = int(bad.to_numpy().argmax())
            more = f" ({count:,} rows like it)" if count > 1 else ""
            self.problem(row, text.format(shown(self.frame[column].iloc[row])) + more)

    def line(self, row):
        """The line of the file, as an editor counts it, that a row begins on."""
        if self.path.suffix == ".parquet":
            return row + 1
        begins = 1
        csv.field_size_limit(sys.maxsize)  # a long text was read, its line is to be named
        with open(self.path, encoding=self.encoding, newline="") as file:
            reader = csv.reader(file, delimiter=self.separator)
            left = row + 1  # the header comes before the first row
            for cells in reader:
                if left == 0:
                    return begins
                left -= bool(cells)  # empty lines are no rows
                begins = reader.line_num + 1
        return begins

    def _parquet(self, wanted):
        """The wanted columns, and the names alone of the others."""
        try:
            schema = pq.read_schema(self.path)
            read = [name for name in schema.names if name.strip() in wanted]
            for name in read:
                if not _one_value(schema.field(name).type):
                    what = "holds lists, records or bytes; a cell must be one text, number or date"
                    return self.problem(None, f"column {shown(name)!r} {what}")
            # As dictionaries, equal texts are in memory once, until it is known how many they are.
            file = pq.ParquetFile(self.path, read_dictionary=read)
            if file.metadata.num_rows > MOST_ROWS:
                rows = f"{file.metadata.num_rows:,} rows, more than {MOST_ROWS:,}"
                return self.problem(None, f"says it has {rows}: leave some out")
            parts, size = [], 0
            for batch in file.iter_batches(columns=read):
                size += sum(map(_text_bytes, batch.columns))
                if size > MOST_BYTES:
                    most = f"{MOST_BYTES >> 30} GiB"
                    return self.problem(
                        None, f"holds more than {most} of text: shorten or leave out"
                    )
                parts.append(batch)
            table = pa.Table.from_batches(parts) if parts else schema.empty_table().select(read)
            frame = table.to_pandas().astype(str).fillna("")
        except Exception as error:  # pyarrow raises many kinds on damaged files
            return self.problem(None, f"is not a readable Parquet file ({shown(error, 200)})")
        return frame.assign(**{name: "" for name in schema.names if name not in read})

    def _csv(self, stem, knobs):
        content = self.path.read_bytes()
        if not content.strip():
            return self.problem(None, f"is empty; it needs the columns {', '.join(NEEDED[stem])}")
        if b"\0" in content:
            return self.problem(None, "holds NUL bytes: it is no CSV, or UTF-16: save it as UTF-8")
        try:
            content.decode("utf-8-sig")
            self.encoding = "utf-8-sig"
        except UnicodeDecodeError:
            self.encoding = "cp1252" if _decodes(content, "cp1252") else "latin-1"
            self.tables.notes.append(
                f"{self.path} is not UTF-8; it was read as {self.encoding}: see whether its titles "
                "are right, or save it as UTF-8"
            )
        wanted = {_name(knobs, column).casefold() for column in NEEDED[stem]}
        header = content.split(b"\n", 1)[0].decode(self.encoding)
        cells = {s: {c.strip(' "\r').casefold() for c in header.split(s)} for s in SEPARATORS}
        self.separator = max(SEPARATORS, key=lambda s: (len(wanted & cells[s]), len(cells[s])))
        try:
            return read_csv(self.path, sep=self.separator, encoding=self.encoding)
        except (ValueError, OverflowError) as error:
            return self.problem(None, f"is not a readable CSV file ({shown(error, 200)})")

    def _named(self, raw, stem, knobs):
        """The columns the kit knows, under its names; None if one is missing."""
        raw.columns = [str(column).strip() for column in raw.columns]
        twice = raw.columns[raw.columns.duplicated()]
        if len(twice):
            return self.problem(None, f"column {shown(twice[0])!r} stands there twice: remove one")
        found, missing = {}, False
        for column in [*NEEDED[stem], *OPTIONAL[stem]]:
            name = _name(knobs, column)
            if name in raw.columns:
                found[column] = raw[name]
                continue
            asked = column in NEEDED[stem] or column in knobs.columns
            if asked:
                missing = True
                self.problem(None, self._no_column(name, column, list(raw.columns)))
        if missing:
            return None
        frame = pd.DataFrame(found)
        if frame.empty:
            self.problem(None, "has a header and no rows")
            return None
        return frame

    def _no_column(self, name, column, there):
        lowered = {one.casefold(): one for one in there}
        close = difflib.get_close_matches(name.casefold(), lowered, n=1, cutoff=0.6)
        hint = "rename one"
        if close:
            hint = f"did you mean {lowered[close[0]]!r}? Rename it"
        listed = ", ".join(shown(one, 30) for one in there[:12])
        return f"no column {name!r}; found {listed}: {hint}, or set data.columns={{{column}: NAME}}"


def read_csv(path, **how):
    """A CSV file as a table of strings; what a short row lacks is empty.

    Raises:
        ValueError: it is none, or a row has more cells than the header.
    """
    how |= {"dtype": str, "keep_default_na": False, "index_col": False, "compression": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(path, **how).fillna("")
        except pd.errors.ParserWarning:
            raise ValueError(
                "rows have more cells than the header: a text that holds the separator must stand "
                'in quotes ("...")'
            ) from None


def _one_value(kind):
    """True if cells of this Arrow type are single values that can be written as text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return not (pa.types.is_nested(kind) or binary or pa.types.is_fixed_size_binary(kind))


def _text_bytes(column):
    """Bytes of a column once each row holds its own text."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    return pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0


def _name(knobs, column):
    return knobs.columns.get(column, column)


def _decodes(content, encoding):
    try:
        content.decode(encoding)
        return True
    except UnicodeDecodeError:
        return False


def shown(value, most=SHOWN):
    """A value as a terminal may print it: on one line, no control characters, not too long."""
    text = visible(str(value)[: most + 1]).replace("\n", "\\n")
    return text if len(text) <= most else text[:most] + "…"


def _items(table, knobs):
    frame = table.frame.assign(item=table.frame["item"].str.strip())
    table.frame = frame
    table.first(frame["item"].duplicated(), "item", "item {!r} stands there twice")
    table.first(frame["item"].eq(""), "item", "the item has no id")
    empty = frame["title"].map(clean_title).eq("")
    table.first(empty, "title", "the title {!r} is empty once markup and blanks are removed")
    categories = []
    for text in frame["categories"]:
        names = [name.strip() for name in text.split(knobs.category_separator)]
        categories.append(list(dict.fromkeys(name for name in names if name)))
    if not any(categories):
        table.problem(None, "column categories is empty in every row; controls need categories")
    return frame.assign(categories=categories)


def _numbers(text):
    """Strings as floats, NaN where one is none; the quick way where all of them are."""
    try:
        numbers = pa.array(text).cast(pa.float64())  # a tenth of the time of astype(float)
    except pa.ArrowInvalid:
        return pd.to_numeric(text, errors="coerce")
    return pd.Series(np.asarray(numbers), index=text.index)


def _bare(ids):
    """Ids as they look once a program took them for numbers."""
    return ids.str.strip().str.lstrip("0")


def _log(table, items):
    frame = table.frame.assign(item=table.frame["item"].str.strip())
    table.frame = frame
    stamps = _numbers(frame["timestamp"])
    if stamps.isna().any():
        dates = pd.to_datetime(frame["timestamp"], errors="coerce", format="ISO8601", utc=True)
        if dates.notna().mean() > stamps.notna().mean():
            stamps = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    table.first(
        stamps.isna() | stamps.abs().eq(float("inf")),
        "timestamp",
        "timestamp {!r} is no number and no ISO date (2024-05-31 18:30); histories need an order",
    )
    table.first(frame["user"].str.strip().eq(""), "user", "the user has no id")
    if items is not None:
        known = set(items["item"].str.strip())
        unknown = ~frame["item"].isin(known)
        text = "item {!r} is not in the table of items"
        whole = frame["item"][unknown].str.removesuffix(".0")
        if unknown.any() and whole.isin(known).mean() > 0.5:
            text += "; without the .0 it is: a spreadsheet wrote ids as decimals, write them whole"
        elif unknown.any() and (whole + ".0").isin(known).mean() > 0.5:
            text += (
                "; with .0 it is: a spreadsheet wrote the ids there as decimals, write them whole"
            )
        elif unknown.any() and _bare(whole).isin(set(_bare(items["item"]))).mean() > 0.5:
            text += (
                "; without leading zeros it is: one of the tables was written with ids as numbers, "
                "write them as text in both"
            )
        table.first(unknown, "item", text)
    frame = frame.assign(timestamp=stamps)
    if "rating" in frame:
        ratings = _numbers(frame["rating"])
        comma = frame["rating"].str.contains(",", regex=False).any()
        hint = ": write decimals with a point" if comma else ""
        table.first(ratings.isna(), "rating", "rating {!r} is not a number" + hint)
        frame = frame.assign(rating=ratings)
    return frame
