"""The catalogue: what can be recommended, under which unique title, in which categories."""

import difflib
import html
import re
import unicodedata
from collections import Counter

import numpy as np
import pandas as pd

from recnb import RecnbError

ARTICLES = "The A An Les Le La Il Der Das Die El L' Los Las O".split()


def clean_title(raw):
    """A title as people write it, on one line, safe to stand in a prompt between single quotes.

    HTML entities are decoded and tags dropped, control characters and newlines become spaces, a
    trailing article comes first ("Usual Suspects, The" -> "The Usual Suspects").
    """
    text = html.unescape(str(raw))
    text = re.sub(r"</?[a-zA-Z][^<>]*>", " ", text)
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    text = re.sub(r"\s+", " ", text).strip()
    match = re.fullmatch(rf"(.+), ({'|'.join(ARTICLES)})(?= \(|$)(.*)", text)
    if match:
        body, article, rest = match.groups()
        text = f"{article}{'' if article.endswith(chr(39)) else ' '}{body}{rest}"
    return text


LONGEST_TITLE = 64
"""Tokens of a title at most (3.1)."""


def shorten(title, longest=LONGEST_TITLE):
    """The title's first ``longest`` tokens, where four letters or one sign are a token.

    That count serves for any tokenizer: real ones need fewer for most Latin text. Titles that
    become alike are told apart by ``unique_titles``.
    """
    ends = [piece.end() for piece in re.finditer(r"\w{1,4}|[^\w\s]", title)]
    return title if len(ends) <= longest else title[: ends[longest - 1]]


def unique_titles(titles):
    """Titles made unique: later ones get " (2)", " (3)", ... appended; case does not count.

    Raises:
        RecnbError: an empty title, with its row.
    """
    taken, result = set(), []
    for row, title in enumerate(titles, start=1):
        if not title:
            raise RecnbError(
                f"item {row} of the table: the title is empty once markup and blanks are removed; "
                "give it one"
            )
        candidate, n = title, 2
        while candidate.casefold() in taken:
            candidate, n = f"{title} ({n})", n + 1
        taken.add(candidate.casefold())
        result.append(candidate)
    return result


class Catalog:
    """N items with ids 1..N (0 is padding).

    Attributes:
        titles: list of N+1 strings, ``titles[0] == ""``.
        categories: list of N+1 frozensets of category names, ``categories[0]`` empty.
        names: every category, sorted.
    """

    def __init__(self, titles, categories):
        if len(titles) != len(categories):
            raise RecnbError(
                f"{len(titles)} titles but {len(categories)} category sets: every item needs a "
                "set, an empty one if it has no category"
            )
        if not any(categories):
            raise RecnbError(
                f"none of {len(titles)} items has a category, and wishes name one: fill the column "
                "categories of the item table, for some items at least"
            )
        self.titles = ["", *titles]
        self.categories = [frozenset(), *(frozenset(c) for c in categories)]
        self.names = sorted(set().union(*self.categories))
        self._ids = {title.casefold(): i for i, title in enumerate(self.titles) if i}
        self._masks = {}
        self._members = {name: set() for name in self.names}
        for item, names in enumerate(self.categories):
            for name in names:
                self._members[name].add(item)
        if len(self._ids) != len(titles):
            twice = Counter(title.casefold() for title in titles).most_common(1)[0][0]
            raise RecnbError(
                f"the title {twice!r} stands there twice (upper and lower case are the same): pass "
                "titles through unique_titles"
            )

    def __len__(self):
        return len(self.titles) - 1

    def find(self, title):
        """Item id of an exact title (case and outer blanks do not count), or None."""
        return self._ids.get(title.strip().casefold())

    def members(self, category):
        """Set of the ids in a category.

        Raises:
            RecnbError: no such category, with the nearest names.
        """
        try:
            return self._members[category]
        except KeyError:
            close = difflib.get_close_matches(str(category), self.names, n=3, cutoff=0.4)
            nearest = ", ".join(close or self.names[:5])
            raise RecnbError(
                f"no category {category!r} in the catalogue; nearest: {nearest}"
            ) from None

    def mask(self, category):
        """bool [N+1]: True for the members of a category; read-only."""
        if category not in self._masks:
            mask = np.zeros(len(self) + 1, dtype=bool)
            mask[list(self.members(category))] = True
            mask.setflags(write=False)
            self._masks[category] = mask
        return self._masks[category]

    def to_parquet(self, path):
        """Write one row an item: item, title, categories."""
        rows = [(i, self.titles[i], sorted(self.categories[i])) for i in range(1, len(self) + 1)]
        pd.DataFrame(rows, columns=["item", "title", "categories"]).to_parquet(path, index=False)

    @classmethod
    def from_parquet(cls, path):
        """Read what ``to_parquet`` wrote."""
        frame = pd.read_parquet(path)
        return cls(list(frame["title"]), [set(c) for c in frame["categories"]])
