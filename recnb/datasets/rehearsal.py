"""Invented raw files of a data set, dirt included: to rehearse a run before real ones are there.

People have a favourite category and popular items are chosen more often, so that a model has
something to learn. Dirty lines come in addition to the sound ones, each kind about equally often.
"""

import gzip
import json
from collections import Counter
from datetime import date
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from recnb import RecnbError
from recnb.artifacts import atomic_path
from recnb.datasets.prepare import DATASETS
from recnb.datasets.steam import DAY, EPOCH
from recnb.datasets.synthetic import ADJECTIVES, NOUNS

GENRES = "Action Adventure Comedy Drama Horror Romance Strategy Western".split()
DIRT = 50
"""One line in so many is dirty."""
BLOCK = 1000
"""People whose interactions are mixed with each other; more of them never lie in memory."""
START = 1_300_000_000 // DAY * DAY


def write(name, out, users, items, seed=0, length=20):
    """Write the two raw files of a data set.

    Args:
        name: a key of ``prepare.DATASETS``.
        out: folder to make; it must not hold anything.
        users, items: how many people and usable items; a third of the people have one interaction.
        length: interactions of the others, in the mean; the fewest are two fifths of it.

    Returns:
        ``{reason: lines}``: what is wrong with how many lines, in the words of ``recnb prepare``.
    """
    if name not in DATASETS:
        raise RecnbError(f"data set {name}: known are {', '.join(DATASETS)}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecnbError(f"{out} is not empty: name another folder")
    form, rng = FORMS[name](), np.random.default_rng([seed, 223])
    made, dataset = Counter(), DATASETS[name]
    with atomic_path(out) as folder:
        folder.mkdir()
        lines = _dirty(map(form.item, range(items)), form.item_dirt, made)
        _write(folder / dataset.item_files[0], lines)
        log = (form.interaction(*row) for row in walks(users, items, rng, length))
        _write(folder / dataset.log_files[0], _dirty(log, form.log_dirt, made))
    return dict(made)


def walks(users, items, rng, length=20):
    """Yield (user, item, seconds, stars): what each of ``users`` people chose, day by day.

    Arguments as for ``write``.
    """
    least = 2 * length // 5
    for start in range(0, users, BLOCK):
        rows = []
        for user in range(start, min(start + BLOCK, users)):
            size = 1 if rng.random() < 1 / 3 else least + rng.geometric(1 / (length - least))
            own = rng.random(size) < 0.8
            kind = np.where(own, rng.integers(len(GENRES)), rng.integers(len(GENRES), size=size))
            popular = (rng.random(size) ** 2 * (items // len(GENRES))).astype(int)
            days = rng.integers(2000) + np.cumsum(rng.integers(0, 20, size=size))
            stars = np.where(own, 5, rng.integers(1, 6, size=size))
            chosen = popular * len(GENRES) + kind
            for item, day, star in zip(chosen, days, stars, strict=True):
                rows.append((user, int(item), int(START + day * DAY), int(star)))
        for place in rng.permutation(len(rows)):
            yield rows[place]


def _dirty(lines, dirt, made):
    """The lines, with a dirty one behind each ``DIRT`` of them; ``made`` counts those."""
    kinds = cycle(dirt)
    for place, line in enumerate(lines, start=1):
        yield line
        if place % DIRT == 0:
            reason, make = next(kinds)
            yield make(line)
            made[reason] += 1


def _write(path, lines):
    with open(path, "wb") as file:
        target = file
        if path.suffix == ".gz":
            target = gzip.GzipFile("", "wb", 1, file, mtime=0)  # the same bytes for the same seed
        while part := list(islice(lines, 1000)):
            target.write(b"\n".join(part) + b"\n")
        if target is not file:
            target.close()


def _title(item):
    name = f"{ADJECTIVES[item % 10]} {NOUNS[item // 10 % 12]} {item // 120 + 1}"
    return ["{}", "Friends &amp; {}", "<b>{}</b>", "{}, The"][item % 4].format(name)


def _texts(count):
    """Texts of reviews, about 400 characters each, with quotes and line feeds."""
    rng = np.random.default_rng(227)
    words = np.array([a.lower() + b.lower() for a in ADJECTIVES for b in NOUNS] + ['"so"', "\n"])
    return [" ".join(rng.choice(words, size=rng.integers(5, 60))) for _ in range(count)]


class _Json:
    def dump(self, row):
        return json.dumps(row).encode()

    def change(self, **values):
        """A line with other values; None takes the key away."""

        def make(line):
            row = json.loads(line) | values
            return self.dump({key: value for key, value in row.items() if value is not None})

        return make


class _Amazon(_Json):
    def __init__(self):
        self.texts = _texts(500)
        broken = [
            ("not JSON", lambda line: line[: len(line) // 2]),
            ("not a JSON object", lambda line: b'["a", 1]'),
            ("not UTF-8", lambda line: line.replace(b'"asin"', b'"asin\xff"')),
            ("an empty line", lambda line: b""),
            ("no asin", self.change(asin=None)),
        ]
        script = "var aPageStart = (new Date()).getTime();"
        self.item_dirt = [
            *broken,
            ("no title", self.change(title=None, asin="B999999991")),
            ("a script in the title's place", self.change(title=script, asin="B999999992")),
            ("no title once markup is removed", self.change(title="<br>", asin="B999999993")),
            ("no category", self.change(category=[], asin="B999999994")),
            ("an earlier line has this item", self.change(title="Another title")),
        ]
        self.log_dirt = [
            *broken,
            ("no reviewerID", self.change(reviewerID=None)),
            ("no unixReviewTime", self.change(unixReviewTime=None)),
            ("no overall", self.change(overall=None)),
            ("its item has no usable line", self.change(asin="B999999991")),
        ]

    def asin(self, item, as_number):
        """Every twentieth id is all digits, and a number in some lines."""
        if item % 20:
            return f"B{item:09d}"
        return item if as_number else f"{item:010d}"

    def item(self, item):
        genre = GENRES[item % len(GENRES)]
        path = ["Movies & TV", "Art House &amp; International", "By Original Language", genre]
        path = ["Movies & TV"] if item % 97 == 96 else path if item % 3 else [path[0], genre]
        row = {"category": path, "tech1": "", "description": ["", _title(item)], "fit": ""}
        row |= {"title": _title(item), "also_buy": [], "brand": "", "rank": [">#1 in Movies"]}
        row |= {"details": {"Language:": "English"}, "price": "$9.99"}
        return self.dump(row | {"asin": self.asin(item, item % 40 == 0)})

    def interaction(self, user, item, time, stars):
        row = {"overall": float(stars), "verified": True, "reviewTime": "09 4, 2016"}
        row |= {"reviewerID": f"A{user:013d}", "asin": self.asin(item, user % 2 == 0)}
        row |= {"style": {"Format:": " DVD"}, "reviewerName": f"person {user}"}
        row |= {"reviewText": self.texts[(user + item) % 500], "summary": "Fine"}
        if user % 5 == 0:
            row["vote"] = "1,204"
        return self.dump(row | {"unixReviewTime": time})


class _Steam:
    def __init__(self):
        self.texts = [f"u{ascii(text)}" for text in _texts(500)]
        broken = [
            ("not a Python record", lambda line: line[: len(line) // 2]),
            ("not a record", lambda line: b"[1, 2]"),
            ("not UTF-8", lambda line: line.replace(b": u'", b": u'\xff", 1)),
            ("an empty line", lambda line: b""),
        ]
        self.item_dirt = [
            *broken,
            ("no id", lambda line: line.replace(b"u'id'", b"u'no_id'")),
            ("no title", lambda line: b"{u'id': u'999999', u'genres': [u'Action']}"),
            ("no genres and no tags", lambda line: b"{u'id': u'999999', u'title': u'Demo'}"),
            ("an earlier line has this item", lambda line: line),
        ]
        self.log_dirt = [
            *broken,
            ("no username", lambda line: line.replace(b"u'username'", b"u'user_id'")),
            ("no product_id", lambda line: line.replace(b"u'product_id'", b"u'product'")),
            ("no date", lambda line: line.replace(b"u'date': u'", b"u'date': u'on ")),
            ("its item has no usable line", self.unknown),
        ]

    def unknown(self, line):
        head, _, tail = line.partition(b"u'product_id': u'")
        return head + b"u'product_id': u'999999'" + tail[tail.index(b"'") + 1 :]

    def item(self, item):
        genre = GENRES[item % len(GENRES)]
        title = "app_name" if item % 30 == 29 else "title"
        price = "u'Free To Play'" if item % 7 == 0 else 4.99
        tags = "" if item % 11 == 0 else f"u'tags': [u'{genre}', u'Shooter'], "
        text = f"{{u'publisher': u'Caf\\xe9', u'genres': [u'{genre}'], {tags}u'{title}': "
        return f"{text}u{ascii(_title(item))}, u'price': {price}, u'id': u'{item + 10}'}}".encode()

    def interaction(self, user, item, time, stars):
        person = f"u'user_id': u'7656{user}', " if user % 3 == 0 else ""
        day = date.fromordinal(EPOCH + time // DAY).isoformat()
        name = f"zo\\xeb {user}" if user % 4 == 0 else f"ann {user}"
        text = f"{{u'username': u'{name}', {person}u'hours': u'0.1', u'products': u'41', "
        text += f"u'product_id': u'{item + 10}', u'page_order': 0, u'date': u'{day}', u'text': "
        text += f"{self.texts[(user + item) % 500]}, u'early_access': False, u'page': 1}}"
        return text.encode()


class _Dat:
    def __init__(self, digits=0, encoding="latin-1"):
        self.digits, self.encoding = digits, encoding
        broken = [
            ("fewer than 4 fields separated by ::", lambda line: line.split(b"::")[0]),
            ("an empty line", lambda line: b""),
        ]
        short = ("fewer than 3 fields separated by ::", broken[0][1])
        self.item_dirt = [
            short,
            broken[1],
            ("no title", lambda line: b"99999999::::Drama"),
            ("no id", lambda line: b"::A film (1999)::Drama"),
            ("an earlier line has this item", lambda line: line.replace(b"::", b"::Again ", 1)),
        ]
        self.log_dirt = [
            *broken,
            ("more than four fields", lambda line: line + b"::1"),
            ("no rating", lambda line: b"1::1::good::1300000000"),
            ("no time", lambda line: b"1::1::5::"),
            ("no user", lambda line: b"::1::5::1300000000"),
            ("its item has no usable line", lambda line: b"1::99999999::5::1300000000"),
        ]

    def item(self, item):
        genres = "" if item % 60 == 59 else f"{GENRES[item % len(GENRES)]}|Caf\u00e9"
        text = f"{item + 1:0{self.digits or 1}d}::{_title(item)} ({1950 + item % 60})::{genres}"
        return text.encode(self.encoding)

    def interaction(self, user, item, time, stars):
        return f"{user + 1}::{item + 1:0{self.digits or 1}d}::{stars}::{time}".encode()


FORMS = {
    "amazon": _Amazon,
    "steam": _Steam,
    "movielens-1m": _Dat,
    "movietweetings": lambda: _Dat(7, "utf-8"),
}
