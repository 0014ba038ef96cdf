"""Single answers to look at (Table 6), and the control dial."""

import html

import numpy as np
import pandas as pd

from recnb.controls import About, Exclude
from recnb.instructions.synthesis import heldout_requests
from recnb.lm.generation import request_prompt


def two_cases(histories, catalog, teacher, data_knobs, seed):
    """The first user with a target category, "about 50 %" at k = 5; another one, "exclude" at k = 5."""
    users = np.random.default_rng([seed, 112]).permutation(len(histories))
    half = [(lambda name: About(name, "1/2"), "target")]
    first = heldout_requests(half, users[:20], "test", histories, catalog, teacher, data_knobs, seed, k=5)
    second = heldout_requests([(Exclude, "other")], users[20:40], "test", histories, catalog, teacher, data_knobs, seed, k=5)
    return [*first[:1], *second[:1]]


STYLES = {"unknown": "text-decoration:line-through", "repeat": "background:#f8c9c9", "target": "background:#c8e6c9",
          "inside": "background:#fff3b0", "": ""}  # fmt: skip


def marks(request, answer, catalog):
    """What is remarkable about each entry of an answer: unknown, repeat (or seen), target, inside (the category), or ""."""
    members, before, found = catalog.members(request.control.category), set(), []
    for item in answer.items:
        known = item is not None
        found.append("unknown" if not known else "repeat" if item in before or item in request.seen
                     else "target" if item == request.target else "inside" if item in members else "")  # fmt: skip
        before.add(item)
    return found


def case_rows(number, request, answers, catalog):
    """A case as rows (case, wish, system, place, title, mark); an answer without a list is one row at place 0.

    Args:
        answers: ``{system: Response}``.
    """
    rows = []
    for system, answer in answers.items():
        listed = list(zip(answer.titles, marks(request, answer, catalog), strict=True)) or [(answer.text[:300], "no list")]
        first = 1 if answer.titles else 0
        rows += [(number, str(request.control), system, place, *entry) for place, entry in enumerate(listed, start=first)]
    return pd.DataFrame(rows, columns=["case", "wish", "system", "place", "title", "mark"])


def case_html(request, answers, catalog, seed):
    """One request and each system's list as HTML; all text escaped.

    Args:
        answers: ``{system: Response}``.
    """
    parts = [f"<pre style='white-space:pre-wrap'>{html.escape(request_prompt(request, catalog, seed))}</pre>"]
    target = catalog.titles[request.target]
    parts.append(f"<p>Target: <span class='target' style='{STYLES['target']}'>{html.escape(target)}</span></p>")
    for system, answer in answers.items():
        lines = [f"<li><span class='{mark}' style='{STYLES[mark]}'>{html.escape(title)}</span></li>"
                 for title, mark in zip(answer.titles, marks(request, answer, catalog), strict=True)]  # fmt: skip
        body = "".join(lines) or f"<li>{html.escape(answer.text[:300])}</li>"
        parts.append(f"<div class='answer'><b>{html.escape(system)}</b><ol>{body}</ol></div>")
    return "".join(parts)


def dial(systems, histories, catalog, teacher, data_knobs, knobs, seed, k=10):
    """Ask for 0, 10, ..., 100 % of the most frequent categories.

    Returns:
        DataFrame system, category, requested, delivered (shares), one row a request.
    """
    users = np.random.default_rng([seed, 113]).permutation(len(histories))[: knobs.dial_users]
    names = sorted(catalog.names, key=lambda name: (-len(catalog.members(name)), name))[: knobs.dial_categories]
    plain = heldout_requests([], users, "test", histories, catalog, teacher, data_knobs, seed, k=k)
    asked = [(name, tenth) for name in names for tenth in range(11)]
    rows = []
    for system, recommender in systems.items():
        requests = [
            type(r)(r.user, r.history, r.seen, About(name, f"{tenth}/10"), k, r.target) for name, tenth in asked for r in plain
        ]
        answers = recommender.recommend(requests)
        for request, answer in zip(requests, answers, strict=True):
            members = catalog.members(request.control.category)
            delivered = sum(i in members for i in answer.items[:k]) / k
            rows.append((system, request.control.category, float(request.control.share), delivered))
    return pd.DataFrame(rows, columns=["system", "category", "requested", "delivered"])
