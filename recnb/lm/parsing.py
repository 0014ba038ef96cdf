"""From an answer's text to titles and item ids."""

import re

from recnb.requests import Response

LINE = re.compile(r"^\s*(\d+)\s*[.)]\s*(.*?)\s*$", re.ASCII)
"""ASCII blanks and digits alone: ``ppo_math.title_ends`` finds the same lines in the raw bytes."""


def titles_of(text):
    """Titles of the numbered lines, in order; other lines (talk around the list) are no items."""
    matches = [LINE.match(line) for line in text.split("\n")]
    return [match[2] for match in matches if match and match[2]]


def parse(text, catalog, tokens=0):
    """A ``Response`` from raw text; a title must be exact up to case and outer blanks."""
    titles = titles_of(text)
    return Response(text, titles, [catalog.find(title) for title in titles], tokens)
