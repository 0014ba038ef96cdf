"""From a state to a figure: what the widgets draw, each computed by the kit's own functions.

Called without arguments, each function draws the state that its widget starts with.
"""

import base64
import copy
import io
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import torch

from recnb import RecnbError, plots, text_safety
from recnb.catalog import Catalog
from recnb.controls import About, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.instructions import labels
from recnb.lm.constrained import CatalogAutomaton
from recnb.ppo import ppo_math
from recnb.ppo import rewards as reward_rules
from recnb.requests import Request
from recnb.teacher import ranking

COMEDY, DRAMA = frozenset({"Comedy"}), frozenset({"Drama"})
FILMS = {
    "The Long Rain": DRAMA,
    "Cold Feet": COMEDY,
    "Night Ferry": DRAMA,
    "Two Left Shoes": COMEDY,
    "The Orchard": DRAMA,
    "Late Bloomers": COMEDY | DRAMA,
    "Harbour Lights": DRAMA,
    "Wrong Wedding": COMEDY,
    "Salt": DRAMA,
    "Cousin Max": COMEDY,
    "Far North": DRAMA,
    "Lost Keys": COMEDY,
    "Glass House": DRAMA,
    "Ninth Floor": DRAMA,
}
"""Invented films with their categories, in the order of an invented teacher's ranking."""
CATALOG = Catalog(list(FILMS), list(FILMS.values()))
SCORES = np.array([-np.inf, *range(len(FILMS), 0, -1)], dtype=float)
HAD = ("Cousin Max", "Far North")
"""What the user of the examples has watched, in the prompt's history."""
TARGET = "Night Ferry"
"""What the user watched next."""
WISHES = {
    "no wish": NoControl(),
    "only Comedy": Include("Comedy"),
    "no Comedy": Exclude("Comedy"),
    "at most 20 % Comedy": AtMost("Comedy", "1/5"),
    "about 30 % Comedy": About("Comedy", "3/10"),
    "at least 50 % Comedy": AtLeast("Comedy", "1/2"),
}
ANSWER = (
    "The Long Rain",
    "Cold Feet",
    "Night Ferry",
    "Two Left Shoes",
    "The Orchard",
    "Cold Feet",
    "Far North",
    "Moonwalkers",
    "Lost Keys",
    "Salt",
)
"""The list that the reward widget starts with: a repeat, a film of the history, an invented one."""
SHORT_ANSWER = ("1. ", "Cold", " Feet", "\n2. ", "Night", " Ferry", "\n3. ", "Salt", "<end>")
"""Tokens of the answer whose credit is drawn."""
TRIE_FILMS = {
    "Toy Story": COMEDY,
    "Toy Soldiers": DRAMA,
    "Heat": DRAMA,
    "Heat Wave": COMEDY,
    "Night Ferry": DRAMA,
    "Night Train": DRAMA,
    "Night Train Home": COMEDY,
    "Salt": DRAMA,
}
HATCHED = {"facecolor": "white", "edgecolor": plots.VERMILION, "hatch": "////"}
PALE = {"facecolor": "white", "edgecolor": "lightgray"}


def render(figure):
    """The figure as a notebook shows it, with its axes' labels as alt text; it is closed."""
    data = io.BytesIO()
    figure.savefig(data, dpi=110, bbox_inches="tight", metadata={"Software": None})
    alt = " ".join(text_safety.one_line(axis.get_label()) for axis in figure.axes)
    plain = repr(figure)
    plt.close(figure)
    return plots.Picture(data.getvalue(), alt, plain)


def as_html(picture):
    """The picture with its words as alt text and below it."""
    source = base64.b64encode(picture.png).decode()
    words = text_safety.html(picture.alt)
    return (
        f'<img src="data:image/png;base64,{source}" alt="{words}" style="max-width:100%">'
        f'<p aria-live="polite" style="max-width:44em;line-height:1.4">{words}</p>'
    )


def _kinds(item):
    return ", ".join(sorted(CATALOG.categories[item]))


def _wish(name):
    if name not in WISHES:
        raise RecnbError(f"no wish {name!r} in the examples; there are: {', '.join(WISHES)}")
    return WISHES[name]


def _rows(count, title, xlabel=None):
    """A figure with a line for each of ``count`` things, read downwards."""
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 0.3 * count + 1.2))
    axis.set_title(title, loc="left", x=-0.5)
    axis.set_ylim(count - 0.4, -0.6)
    axis.grid(False)
    if xlabel:
        axis.set_xlabel(xlabel)
    else:
        axis.set_xticks([])
        axis.set_xlim(0, 1)
    return figure, axis


def _beside(axis, row, words, gray=False):
    color = plots.GRAY if gray else plots.BLACK
    axis.annotate(
        text_safety.figure(words), (1.02, row), xycoords=("axes fraction", "data"),
        va="center", fontsize=plots.SMALL, color=color, annotation_clip=False,
    )  # fmt: skip


def scored(titles, wish):
    """The example user's answer with its rewards.

    Args:
        titles: the lines of the answer, as many as were asked for; any text.
        wish: a key of ``WISHES``.

    Returns:
        ``(Request, ids, ListScore)``.
    """
    had, target = tuple(CATALOG.find(title) for title in HAD), CATALOG.find(TARGET)
    request = Request(0, had, had, _wish(wish), len(titles), target)
    items = [CATALOG.find(title) for title in titles]
    ranks = ranking.ranks(SCORES, had, [item or 0 for item in items])
    return request, items, reward_rules.score_list(request, items, ranks, CATALOG)


def rewards(titles=ANSWER, wish="about 30 % Comedy"):
    """What each title of a list and the whole list earn under a wish.

    Args:
        titles: the lines of the answer; what is no film of ``FILMS`` is an invented title.
        wish: a key of ``WISHES``.
    """
    request, items, score = scored(titles, wish)
    inside = sum("Comedy" in CATALOG.categories[i] for i in items if i)
    figure, axis = _rows(
        len(titles),
        f"{wish}: list reward {score.list:.2f}, {inside} of {len(titles)} are Comedy",
        "item reward, half preference and half control",
    )
    names, told = [], []
    for row, (title, item) in enumerate(zip(titles, items, strict=True)):
        if score.legal[row]:
            words = f"preference {score.preference[row]:.2f}, control {score.control[row]:.2f}"
            style = {"color": plots.BLUE}
            if item == request.target:
                words += ", the target"
        else:
            style = HATCHED
            words = "no such title"
            if item:
                words = "in the history" if item in request.history else "a repeat"
        axis.barh(row, score.item[row], 0.7, **style)
        _beside(axis, row, words)
        short = text_safety.one_line(title)[:24]
        names.append(f"{row + 1}. {short}" + (f" ({_kinds(item)})" if item else ""))
        told.append(f"{short} {score.item[row]:.2f} ({words})")
    axis.set_yticks(range(len(titles)), [text_safety.figure(name) for name in names])
    axis.set_xlim(-1.1, 1.1)
    axis.axvline(0, color=plots.GRAY, lw=0.8)
    axis.set_label(
        f"Bars of item rewards under the wish “{wish}”, in the answer's order: {'; '.join(told)}. "
        f"The whole list earns {score.list:.2f}, which counts ten times, at its last token."
    )
    return figure


def credited(lam, gamma):
    """Rewards of the short answer's tokens and their advantages, with a critic that says 0.

    Returns:
        ``(rewards, advantages)``, lists with a number for each of ``SHORT_ANSWER``.
    """
    pieces = [piece.encode() for piece in SHORT_ANSWER[:-1]] + [b""]
    lines = [line.split(". ", 1)[1] for line in "".join(SHORT_ANSWER[:-1]).split("\n")]
    _, _, score = scored(lines, "only Comedy")
    last = len(pieces) - 1
    row = ppo_math.place_rewards(
        len(pieces), ppo_math.title_ends(pieces), score.item, 10 * score.list, last
    )[None]
    nothing, all_real = torch.zeros_like(row), torch.ones_like(row)
    advantages, _ = ppo_math.gae(row, nothing, all_real, gamma, lam)
    return row[0].tolist(), advantages[0].tolist()


def credit(lam=0.95, gamma=0.99):
    """Which token of a short answer gets how much of the rewards.

    Args:
        lam, gamma: of ``ppo_math.gae``, each from 0 to 1.
    """
    paid, advantages = credited(lam, gamma)
    figure, axis = _rows(
        len(paid), f"λ = {lam:.2f}, γ = {gamma:.2f}", "reward at the token, and its advantage"
    )
    rows = np.arange(len(paid))
    axis.barh(rows - 0.2, paid, 0.36, label="reward", **HATCHED)
    axis.barh(rows + 0.2, advantages, 0.36, color=plots.BLUE, label="advantage")
    for row, advantage in enumerate(advantages):
        _beside(axis, row, f"{advantage:.2f}")
    axis.set_yticks(rows, [repr(piece)[1:-1] for piece in SHORT_ANSWER])
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)
    told = [
        f"{piece.strip()} {reward:.2f} and {advantage:.2f}"
        for piece, reward, advantage in zip(SHORT_ANSWER, paid, advantages, strict=True)
    ]
    axis.set_label(
        f"Bars for the tokens of an answer of three titles to “only Comedy”, lambda {lam:.2f}, "
        f"gamma {gamma:.2f}. Reward and advantage of each token: {'; '.join(told)}."
    )
    return figure


def filtered(wish, k):
    """The teacher's ranking of what the user may get, target first, and the label list from it.

    Returns:
        ``(ids, list of k ids or None)``.
    """
    seen, target = [CATALOG.find(title) for title in HAD], CATALOG.find(TARGET)
    ranked = labels.ranked_items(SCORES, seen, target)
    order = SimpleNamespace(share_order="rank")  # the list as the filter found it
    return ranked.tolist(), labels.label_list(_wish(wish), ranked, k, order, CATALOG)


def label_filter(wish="at most 20 % Comedy", k=5, step=6):
    """The label filter, after it has read ``step`` titles of the ranking.

    Args:
        wish: a key of ``WISHES``.
        k: titles that the list shall have.
        step: titles read; more than there are means all.
    """
    ranked, found = filtered(wish, k)
    read, taken, told = ranked[:step], [], []
    title = f"{wish}, a list of {k}: "
    if found is None:
        title += "this ranking has none"
    else:
        title += f"{len(set(read) & set(found))} of {k} taken"
    figure, axis = _rows(len(ranked), title)
    for row, item in enumerate(ranked):
        style, words = HATCHED, "passed over: the list could not be ended after it"
        if row >= len(read):
            style, words = PALE, "not read yet"
        elif found is None:
            words = "no list obeys"
        elif item in found:
            taken.append(item)
            style, words = {"color": plots.BLUE}, f"taken, {len(taken)} of {k}"
        elif len(taken) == k:
            style, words = PALE, "the list is full"
        axis.barh(row, 1, 0.7, **style)
        _beside(axis, row, words, gray=row >= len(read))
        if row < len(read):
            told.append(f"{CATALOG.titles[item]} ({_kinds(item)}): {words}")
    names = [f"{row}. {CATALOG.titles[i]} ({_kinds(i)})" for row, i in enumerate(ranked, start=1)]
    axis.set_yticks(range(len(ranked)), names)
    axis.set_label(
        f"The teacher's ranking, the target {TARGET} first, read downwards: {title}. "
        f"{'; '.join(told) or 'Nothing is read yet'}."
    )
    return figure


class Words:
    """A codec whose tokens are words: what ``CatalogAutomaton`` asks of one, no more."""

    def __init__(self, titles):
        self.pieces = ["<end>"]
        self.eos, self.ending, self.tokenizer = 0, [0], self
        self.name_or_path = "words"
        self([f"1. {title}" for title in titles])

    def __call__(self, texts, add_special_tokens=False):
        one = isinstance(texts, str)
        rows = [re.findall(r"\n?\d+\. | ?\S+", text) for text in ([texts] if one else texts)]
        for piece in (piece for row in rows for piece in row):
            if piece not in self.pieces:
                self.pieces.append(piece)
        ids = [[self.pieces.index(piece) for piece in row] for row in rows]
        return {"input_ids": ids[0] if one else ids}


TRIE_CATALOG = Catalog(list(TRIE_FILMS), list(TRIE_FILMS.values()))
AUTOMATON = CatalogAutomaton(Words(list(TRIE_FILMS)), TRIE_CATALOG)


def row_state(banned=("Heat",), wish="no wish", k=3, tokens=()):
    """Where the automaton stands in a list of ``k`` titles.

    Args:
        banned: titles that the user has.
        wish: a key of ``WISHES``, obeyed.
        k: titles asked for.
        tokens: the tokens chosen so far; those that must come (a list's numbers) are not chosen.

    Returns:
        ``(RowState, text so far)``.

    Raises:
        RecnbError: a title that the catalogue lacks, or a token that may not come.
    """
    ids = [TRIE_CATALOG.find(title) for title in banned]
    if None in ids:
        raise RecnbError(f"no film {banned[ids.index(None)]!r} in {', '.join(TRIE_FILMS)}")
    state = AUTOMATON.start(k, ids, _wish(wish).needs(k, TRIE_CATALOG))
    text = _write_forced(state)
    for token in tokens:
        allowed = may_come(state)
        if token not in allowed:
            shown = ", ".join(repr(piece) for piece in allowed)
            raise RecnbError(f"the token {token!r} may not come here; allowed: {shown}")
        state.advance(allowed[token])
        text += "" if token == "<end>" else token
        text += _write_forced(state)
    return state, text


def _write_forced(state):
    """Take the tokens of a list's number, which nobody chooses."""
    text = ""
    while state.queue:
        text += AUTOMATON.codec.pieces[state.queue[0]]
        state.advance(state.queue[0])
    return text


def may_come(state):
    """``{token: id}`` of what may come next; nothing once the list is ended."""
    if state.done:
        return {}
    return {AUTOMATON.codec.pieces[token]: int(token) for token in state.allowed()}


def _can_be_written(state, item):
    """Whether the title can be written from where a row stands, and whether it is under way."""
    path = AUTOMATON.paths[item].tolist()
    if state.done or state.node not in path:
        return False
    state = copy.deepcopy(state, {id(AUTOMATON): AUTOMATON})
    for token in AUTOMATON.titles[item - 1][path.index(state.node) :]:
        if token not in state.allowed():
            return False
        state.advance(token)
    return state._complete(state.node)


def trie(banned=("Heat",), wish="no wish", k=3, tokens=()):
    """The tree of the titles' tokens: what may come is solid, what is banned grey and dashed.

    Args:
        banned, wish, k, tokens: see ``row_state``.
    """
    state, text = row_state(banned, wish, k, tokens)
    pieces, order = AUTOMATON.codec.pieces, sorted(TRIE_FILMS)
    listed = [line.split(". ", 1)[1] for line in text.split("\n")][: state.n]
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 0.42 * len(order) + 1.2))
    axis.set(xlim=(-0.4, 3.4), ylim=(len(order) - 0.4, -0.6))
    axis.axis("off")
    so_far = " / ".join(text.split("\n"))
    axis.set_title(text_safety.figure(f"{wish}, {k} titles. Written: {so_far}"), loc="left")
    rows = {}  # node: rows of the titles below it
    for row, title in enumerate(order):
        for node in AUTOMATON.paths[TRIE_CATALOG.find(title)].tolist():
            rows.setdefault(node, []).append(row)
    told, open_titles, open_nodes = [], set(), set()
    for row, title in enumerate(order):
        item = TRIE_CATALOG.find(title)
        path = AUTOMATON.paths[item].tolist()
        if title in listed:
            words = "banned: listed already"
        elif title in banned:
            words = "banned: the user has it"
        elif state.done:
            words = "the list is ended"
        elif _can_be_written(state, item):
            words = "may come"
            open_titles.add(title)
            open_nodes |= set(path)
        elif state.node not in path:
            words = "not from here"
        else:
            words = "banned: the wish could not be met"
        (kind,) = TRIE_FILMS[title]
        _beside(axis, row, f"{title} ({kind}): {words}", gray=words != "may come")
        told.append(f"{title} ({kind}) {words}")
    solid, dashed = {"color": plots.BLUE, "lw": 2}, {"color": "darkgray", "ls": "--", "lw": 1.2}
    for row, title in enumerate(order):
        item = TRIE_CATALOG.find(title)
        path, depth, y = AUTOMATON.paths[item].tolist(), 0, float(np.mean(rows[0]))
        for token, node in zip(AUTOMATON.titles[item - 1], path[1:], strict=True):
            end, is_open = float(np.mean(rows[node])), node in open_nodes
            axis.plot([depth, depth + 1], [y, end], **(solid if is_open else dashed), zorder=1)
            axis.text(
                depth + 0.62, 0.38 * y + 0.62 * end, pieces[token].strip(), ha="center",
                va="center", fontsize=plots.SMALL, color=plots.BLACK if is_open else plots.GRAY,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            depth, y = depth + 1, end
        last = solid if title in open_titles else dashed  # from the last token to the title
        axis.plot([depth, depth + 0.25, 3.3], [y, row, row], **last, zorder=1)
        if state.node in path:
            place = path.index(state.node)
            axis.plot(place, np.mean(rows[state.node]), "o", color=plots.VERMILION, ms=9, zorder=3)
    allowed = ", ".join(piece.strip() for piece in may_come(state)) or "nothing, the list is ended"
    axis.annotate(
        text_safety.figure(f"round mark: here. May come next: {allowed}"), (0, 0),
        xycoords="axes fraction", fontsize=plots.SMALL, va="top", annotation_clip=False,
    )  # fmt: skip
    axis.set_label(
        f"A tree of the tokens of eight titles under “{wish}”. Written so far: {so_far}. May come "
        f"next: {allowed}. {'; '.join(told)}."
    )
    return figure


def dial(frame, system=None, category=None, share=30):
    """What the answers of one system to "about ``share`` %" delivered.

    Args:
        frame: DataFrame system, category, requested, delivered (``evaluation.cases.dial``).
        system, category: of the frame; left out: its last system, its first category.
        share: per cent, one that was asked for.

    Raises:
        RecnbError: nobody was asked this.
    """
    system = frame["system"].iloc[-1] if system is None else system
    category = frame["category"].iloc[0] if category is None else category
    own = frame[(frame["system"] == system) & (frame["category"] == category)]
    asked = own[np.isclose(100 * own["requested"], share)]["delivered"].to_numpy()
    if not len(asked):
        raise RecnbError(
            f"no answer of {system} to about {share} % {category} among {len(frame)}: systems "
            f"{', '.join(frame['system'].unique())}; categories "
            f"{', '.join(frame['category'].unique())}; shares in steps of 10"
        )
    figure, (left, right) = plt.subplots(1, 2, figsize=(2 * plots.WIDTH, 3.8))
    means = 100 * own.groupby("requested")["delivered"].mean()
    left.plot([0, 100], [0, 100], ls=":", color=plots.GRAY, label="asked = delivered")
    left.plot(100 * means.index, means.to_numpy(), **plots.series(0), label="mean of the answers")
    mean = 100 * asked.mean()
    left.plot(share, mean, "D", color=plots.VERMILION, ms=9, label=f"about {share} %")
    left.set(title=text_safety.figure(f"{system}: {category}"), xlim=(-3, 103), ylim=(-3, 103))
    left.set(xlabel="share asked for, %", ylabel="share delivered, %")
    left.legend()
    left.set_label(
        f"Line for {system}, {category}: the mean share delivered against the share asked for. At "
        f"{share} % it is {mean:.0f} %."
    )
    shares, counts = np.unique(np.round(100 * asked).astype(int), return_counts=True)
    near = np.abs(shares - share) <= 10
    right.bar(shares[near], counts[near], 7, color=plots.BLUE, label="within one title of ten")
    right.bar(shares[~near], counts[~near], 7, label="farther off", **HATCHED)
    right.axvline(share, color=plots.GRAY, ls=":", label="asked for")
    right.set(title=f"{len(asked)} answers to about {share} %", xlim=(-6, 106))
    right.set(xlabel="share delivered, %", ylabel="answers")
    right.legend()
    told = ", ".join(f"{s} % in {n}" for s, n in zip(shares, counts, strict=True))
    right.set_label(
        f"Bars: of {len(asked)} answers to about {share} % {category}, {counts[near].sum()} lie "
        f"within one title of ten. Delivered: {told}."
    )
    figure.tight_layout()
    return figure
