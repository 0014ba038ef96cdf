"""The terms of ``glossary.yaml``: found in a page, explained where they first stand."""

import html
import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml
from markupsafe import Markup

NAME = r"\w&+<>=~¬@"
"""Signs of names: a term beside one of them is part of a longer name."""


@dataclass(frozen=True)
class Term:
    """A term, what it means in plain words, and the title of its group."""

    name: str
    meaning: str
    group: str
    pattern: re.Pattern


@lru_cache
def terms():
    """Every ``Term`` in the order of the file."""
    path = Path(__file__).with_name("glossary.yaml")
    found = []
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
        for entry in group["terms"]:
            name = entry["name"]
            shown = entry.get("pattern") or re.escape(name)
            pattern = re.compile(f"(?<![{NAME}])(?:{shown})(?![{NAME}])")
            found.append(Term(name, entry["meaning"], group["title"], pattern))
    return found


def readable_text(markup):
    """What a page says: its text and the alt texts of its pictures, without settings and code."""
    markup = re.sub(r"<(pre|code)\b.*?</\1>", " ", markup, flags=re.DOTALL)
    markup = re.sub(r'<img alt="([^"]*)"[^>]*>', r" \1 ", markup)
    return html.unescape(re.sub(r"<[^>]*>", " ", markup))


def define(met, name, shown=""):
    """A term inside a sentence that explains it itself.

    Args:
        met: names of the terms that the page has explained so far; this one joins them.
        shown: how the sentence writes it, if not like its name.
    """
    assert name in {term.name for term in terms()}, name
    met.append(name)
    return Markup("<dfn>{}</dfn>").format(shown or name)


def explain(met, caller):
    """A part of a page behind the explanations of all terms that it is the first to use.

    Args:
        met: names of the terms that the page has explained so far; the new ones join them.
        caller: makes the part, as ``{% call explain(met) %}`` gives it.
    """
    part = caller()
    new = [t for t in terms() if t.name not in met and t.pattern.search(readable_text(part))]
    for term in new:  # grows: what a meaning uses is explained before it
        before = [t for t in terms()[: terms().index(term)] if t.pattern.search(term.meaning)]
        new += [t for t in before if t not in new and t.name not in met]
    met += [term.name for term in new]
    if not new:
        return part
    count = "one word" if len(new) == 1 else f"{len(new)} words"
    box = '<details class="words" open><summary>New here: {}</summary>{}</details>{}'
    return Markup(box).format(count, definitions(sorted(new, key=terms().index)), part)


def groups():
    """``(title, list of definitions)`` of each group, for a glossary."""
    for title, members in itertools.groupby(terms(), lambda term: term.group):
        yield title, definitions(members)


def definitions(chosen):
    """Terms and their meanings as a list of definitions."""
    line = Markup("<div><dt><dfn>{}</dfn></dt><dd>{}</dd></div>")
    pairs = [line.format(term.name, term.meaning) for term in chosen]
    return Markup("<dl>{}</dl>").format(Markup("").join(pairs))
