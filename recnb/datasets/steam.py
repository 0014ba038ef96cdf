"""Steam, as Kang and McAuley collected it: games and reviews as lines of Python literals.

A game's categories are its genres and its tags: the paper's example "Shooter" is a tag. A person is
known by ``username``; ``user_id`` stands in a third of the lines only. There are no ratings.

The literals are read as data, never run: reviews by a pattern of flat records, all else by
``ast.literal_eval`` up to a length at which its memory is harmless.
"""

import ast
import re
from datetime import date
from functools import lru_cache

from recnb.datasets.raw import Dataset, category, identifier, title

LONGEST_LITERAL = 1 << 20
"""Characters of a line that ``ast.literal_eval`` is given, which takes a hundred times as much."""

ESCAPE = r"\\(?:[\\'\"abfnrtv]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})"
SINGLE = rf"'[^'\\\0\r\n]*+(?:{ESCAPE}[^'\\\0\r\n]*+)*+'"
DOUBLE = rf"\"[^\"\\\0\r\n]*+(?:{ESCAPE}[^\"\\\0\r\n]*+)*+\""
VALUE = rf"(?:u?{SINGLE}|u?{DOUBLE}|True|False|None|0|[1-9][0-9]{{0,15}}+)"
WANTED = "username", "product_id", "date"
PLAIN = r"u'([^'\\\0\r\n]*+)'"
PAIRS = [rf"u?'{key}': (?:{PLAIN}|({VALUE}))" for key in WANTED] + [rf"u?'[a-z_]+': {VALUE}"]
FLAT = re.compile(rf"\{{(?:(?:{'|'.join(PAIRS)})(?:, (?=u?')|(?=\}})))*+\}}")
"""A record of texts and numbers. Groups: each of ``WANTED`` as a text that holds no escape, and as
any other literal."""
DAY = 86_400
EPOCH = date(1970, 1, 1).toordinal()


def items(reading):
    """Yield (line, id, title, categories) of each usable line of the games."""
    for first, lines in reading.blocks():
        for line, text in enumerate(lines, first):
            row = literal_row(reading, line, text)
            if row is None:
                continue
            item = identifier(row.get("id"))
            if item is None:
                reading.leave_out("no id", line, row.get("app_name"))
                continue
            lists = [row.get("genres"), row.get("tags")]
            names = [category(name) for own in lists if isinstance(own, list) for name in own]
            names = list(dict.fromkeys(name for name in names if name))
            if not names:
                reading.leave_out("no genres and no tags", line, item)
                continue
            name = row.get("title")
            if name is None and isinstance(row.get("app_name"), str):
                name = row["app_name"]
                reading.note("no title, app_name in its place", line, name)
            name = title(reading, line, name)
            if name is not None:
                yield line, item.strip(), name, names


def interactions(reading):
    """Yield (line, username, product_id, seconds, None) of each usable line of the reviews."""
    for first, lines in reading.blocks():
        for line, text in enumerate(lines, first):
            row = review(reading, line, text)
            if row is None:
                continue
            user, item, day = identifier(row[0]), identifier(row[1]), row[2]
            time = midnight(day) if isinstance(day, str) else None
            if user is None:
                reading.leave_out("no username", line, item)
            elif item is None:
                reading.leave_out("no product_id", line, user)
            elif time is None:
                reading.leave_out("no date", line, day)
            else:
                yield line, user, item.strip(), time, None


@lru_cache(10_000)
def midnight(day):
    """Seconds of an ISO date ("2017-12-17"), None if it is none."""
    try:
        return (date.fromisoformat(day).toordinal() - EPOCH) * DAY
    except ValueError:
        return None


def review(reading, line, text):
    """username, product_id and date of a line; None, counted, if it is unreadable."""
    try:
        flat = FLAT.fullmatch(text.decode())
    except UnicodeDecodeError:
        flat = None
    if flat:
        user, user_literal, item, item_literal, day, day_literal = flat.groups()
        if not (user_literal or item_literal or day_literal):
            return user, item, day
        plain, literals = (user, item, day), (user_literal, item_literal, day_literal)
        pairs = list(zip(plain, literals, strict=True))
        if not any(a is not None and b for a, b in pairs):  # a key that stands there twice
            return tuple(value_of(b) if b else a for a, b in pairs)
    row = literal_row(reading, line, text)
    return None if row is None else tuple(row.get(key) for key in WANTED)


def value_of(literal):
    """What a literal of the pattern ``VALUE`` stands for."""
    if literal.isascii() and literal[-1] in "'\"":  # a tenth of the time of literal_eval
        return literal.lstrip("u")[1:-1].encode().decode("unicode_escape")
    return ast.literal_eval(literal)


def literal_row(reading, line, text):
    """The record on a line, or None, counted."""
    if not text.strip():
        return reading.leave_out("an empty line", line, "")
    shown = text[:300].decode("utf-8", "replace")
    if len(text) > LONGEST_LITERAL:
        return reading.cannot_read(f"a record longer than {LONGEST_LITERAL >> 20} MiB", line, shown)
    try:
        row = ast.literal_eval(text.decode().strip())
    except UnicodeDecodeError:
        return reading.cannot_read("not UTF-8", line, shown)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return reading.cannot_read("not a Python record", line, shown)
    return row if isinstance(row, dict) else reading.cannot_read("not a record", line, shown)


STEAM = Dataset(
    "steam",
    ("steam_games.json.gz",),
    ("steam_reviews.json.gz",),
    "A line of it is a Python record with id, title, genres and tags: {u'id': u'761140', ...}.",
    "A line of it is a Python record with username, product_id and date: {u'username': ...}.",
    items,
    interactions,
    rated=False,
    table1="Steam",
)
