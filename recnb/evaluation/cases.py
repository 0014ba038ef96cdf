"""Single answers to look at (Table 6), and the control dial."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from recnb.controls import About, Exclude
from recnb.instructions.synthesis import heldout_requests
from recnb.lm.recommender import request_prompt
from recnb.text_safety import html


def two_cases(histories, catalog, teacher, data_knobs, seed):
    """One user asks for "about 50 %" of the target's category, another to exclude one; k = 5."""
    users = np.random.default_rng([seed, 112]).permutation(len(histories))
    known = (histories, catalog, teacher, data_knobs, seed)
    half = [(lambda name: About(name, "1/2"), "target")]
    first = _first(half, users, known)
    return first + _first([(Exclude, "other")], np.roll(users, -20), known)


def _first(parts, users, known):
    """The request of the first user who gives the categories for it, in a list; empty if none."""
    for start in range(0, len(users), 20):
        found = heldout_requests(parts, users[start : start + 20], "test", *known, k=5)
        if found:
            return found[:1]
    return []


MARKS = {
    "target": ("★ target", "#cfe5fa", "the title that the user took next"),
    "inside": ("● in the category", "#e4e4e4", "of the category that the wish names"),
    "repeat": ("↻ repeat or seen", "#ffdcc2", "stands in the list already, or the user has it"),
    "unknown": ("✗ no such title", "#ffffff", "in no catalogue"),
}
"""What stands behind a marked title, the color behind it, and what it means. Sign and words say it;
the color only helps to find it, and is pale under dark letters in a dark page, too."""


def marks(request, answer, catalog):
    """What each entry is: a key of ``MARKS``, or ""."""
    members, before, found = catalog.members(request.control.category), set(), []
    for item in answer.items:
        if item is None:
            mark = "unknown"
        elif item in before or item in request.seen:
            mark = "repeat"
        elif item == request.target:
            mark = "target"
        else:
            mark = "inside" if item in members else ""
        found.append(mark)
        before.add(item)
    return found


def case_rows(number, request, answers, catalog, not_run=None):
    """A case as rows case, wish, system, place, title, mark; place 0 is an answer without a list.

    Args:
        answers: ``{system: Response}``.
        not_run: ``{system: reason}`` of systems that keep their row without an answer.
    """
    rows = []
    for system, answer in answers.items():
        listed, first = list(zip(answer.titles, marks(request, answer, catalog), strict=True)), 1
        if not listed:
            listed, first = [(answer.text[:300], "no list")], 0
        for place, (title, mark) in enumerate(listed, start=first):
            rows.append((number, str(request.control), system, place, title, mark))
    for system, reason in (not_run or {}).items():
        rows.append((number, str(request.control), system, 0, reason, "not run"))
    return pd.DataFrame(rows, columns=["case", "wish", "system", "place", "title", "mark"])


def _marked(mark):
    words, color, _ = MARKS[mark]
    style = f"background:{color};color:#1c1c1c;border:1px solid #6b6b6b"
    style += ";padding:0 .3em;white-space:nowrap"
    return f"<span class='mark' style='{style}'>{words}</span>"


def legend():
    """What the marks of ``case_html`` mean, as HTML."""
    lines = [f"<li>{_marked(mark)} {meaning}</li>" for mark, (_, _, meaning) in MARKS.items()]
    return f"<ul>{''.join(lines)}</ul>"


def case_html(request, answers, catalog, seed):
    """One request and each system's list as HTML; all text escaped.

    Args:
        answers: ``{system: Response}``.
    """
    prompt = html(request_prompt(request, catalog, seed))
    target = html(catalog.titles[request.target])
    parts = [
        f"<pre style='white-space:pre-wrap'>{prompt}</pre>",
        f"<p>{_marked('target')} {target}</p>",
    ]
    for system, answer in answers.items():
        lines = [
            f"<li>{html(title)} {_marked(mark) if mark else ''}</li>"
            for title, mark in zip(answer.titles, marks(request, answer, catalog), strict=True)
        ]
        body = "".join(lines) or f"<li>{html(answer.text[:300])}</li>"
        parts.append(f"<div class='answer'><b>{html(system)}</b><ol>{body}</ol></div>")
    return "".join(parts)


def dial(systems, histories, catalog, teacher, data_knobs, knobs, seed, k=10):
    """Ask for 0, 10, ..., 100 % of the most frequent categories.

    Returns:
        DataFrame system, category, requested, delivered (shares), one row a request.
    """
    users = np.random.default_rng([seed, 113]).permutation(len(histories))[: knobs.dial_users]
    names = sorted(catalog.names, key=lambda name: (-len(catalog.members(name)), name))
    plain = heldout_requests([], users, "test", histories, catalog, teacher, data_knobs, seed, k=k)
    wishes = {name: (name, partial(About, name)) for name in names[: knobs.dial_categories]}
    return pd.concat(
        [turned(name, system, plain, wishes, catalog) for name, system in systems.items()],
        ignore_index=True,
    )


def turned(name, system, requests, wishes, catalog):
    """The dial for any wishes: ask for 0, 10, ... 100 % of a category and count what comes.

    Args:
        name: of the system.
        system: ``Recommender``.
        requests: one for each user, without a wish.
        wishes: ``{label: (category, function from a share, "3/10", to a control)}``.
        catalog: ``Catalog``.

    Returns:
        DataFrame system, category (the label), requested, delivered (shares), one row a request.
    """
    asked, labels = [], []
    for label, (_, control) in wishes.items():
        for tenth in range(11):
            asked += [replace(one, control=control(f"{tenth}/10")) for one in requests]
            labels += [(label, tenth / 10)] * len(requests)
    rows = []
    for (label, share), request, answer in zip(labels, asked, system.recommend(asked), strict=True):
        members = catalog.members(wishes[label][0])
        delivered = sum(item in members for item in answer.items[: request.k]) / request.k
        rows.append((name, label, share, delivered))
    return pd.DataFrame(rows, columns=["system", "category", "requested", "delivered"])
