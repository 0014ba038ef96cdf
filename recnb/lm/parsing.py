"""From an answer's text to titles and item ids."""

import re

from recnb.requests import Response

LINE = re.compile(r"^\s*(\d+)\s*[.)]\s*(.*?)\s*$", re.ASCII)
"""ASCII blanks and digits alone, so that ``ppo_math.title_ends`` finds the same lines in the raw bytes."""


def titles_of(text):
    """Titles of the numbered lines, in order. Other lines (talk before or after the list) are no items."""
    return [match[2] for line in text.split("\n") if (match := LINE.match(line)) and match[2]]


def parse(text, catalog, tokens=0):
    """A ``Response`` from raw text; a title must be exact up to case and outer blanks."""
    titles = titles_of(text)
    return Response(text, titles, [catalog.find(title) for title in titles], tokens)
