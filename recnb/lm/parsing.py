"""From an answer's text to titles and item ids."""

import re
import string

from recnb.requests import Response

LINE = re.compile(r"^\s*(\d+)\s*[.)](.*)$", re.ASCII)
"""ASCII blanks and digits alone: ``ppo_math.title_ends`` finds the same lines in the raw bytes."""


def titles_of(text):
    """Titles of the numbered lines, in order; other lines (talk around the list) are no items."""
    matches = [LINE.match(line) for line in text.split("\n")]
    # Stripped here: a pattern would try a long run of blanks from each of its places.
    titles = [match[2].strip(string.whitespace) for match in matches if match]
    return [title for title in titles if title]


def parse(text, catalog, tokens=0):
    """A ``Response`` from raw text; a title must be exact up to case and outer blanks."""
    titles = titles_of(text)
    return Response(text, titles, [catalog.find(title) for title in titles], tokens)
