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


def case_html(request, answers, catalog, seed):
    """One request and each system's list as HTML; all text escaped.

    Args:
        answers: ``{system: Response}``.
    """
    members = catalog.members(request.control.category)
    parts = [f"<pre style='white-space:pre-wrap'>{html.escape(request_prompt(request, catalog, seed))}</pre>"]
    target = catalog.titles[request.target]
    parts.append(f"<p>Target: <span class='target' style='background:#c8e6c9'>{html.escape(target)}</span></p>")
    for system, answer in answers.items():
        lines, before = [], set()
        for title, item in zip(answer.titles, answer.items, strict=True):
            marks = []
            if item is None:
                marks.append("unknown")
            elif item in before or item in request.seen:
                marks.append("repeat")
            elif item == request.target:
                marks.append("target")
            elif item in members:
                marks.append("inside")
            before.add(item)
            style = {"unknown": "text-decoration:line-through", "repeat": "background:#f8c9c9",
                     "target": "background:#c8e6c9", "inside": "background:#fff3b0"}  # fmt: skip
            css = ";".join(style[m] for m in marks)
            lines.append(f"<li><span class='{' '.join(marks)}' style='{css}'>{html.escape(title)}</span></li>")
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
