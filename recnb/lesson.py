"""What lessons show beside results: code as it stands in the kit, pictures of the arithmetic."""

import ast
import inspect
import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch

from recnb import plots, text_safety
from recnb.controls import can_end
from recnb.ppo.ppo_math import gae
from recnb.teacher.sasrec import causal_mask

LINES = 30
"""A lesson shows no function longer than this: what is longer is no lesson."""


@dataclass
class Code:
    """Code as a notebook shows it, with its name above."""

    name: str
    text: str

    def _repr_markdown_(self):
        return f"`{self.name}`\n\n```python\n{self.text}\n```"

    def __repr__(self):
        return f"# {self.name}\n{self.text}"


def source(function):
    """A function's code out of its module, without its docstring, as a notebook shows it.

    Raises:
        ValueError: longer than ``LINES``.
    """
    text = textwrap.dedent(inspect.getsource(function))
    (node,) = ast.parse(text).body
    lines = text.splitlines()
    if ast.get_docstring(node) is not None:
        said = node.body[0]
        del lines[said.lineno - 1 : said.end_lineno]
    if len(lines) > LINES:
        raise ValueError(f"{function.__qualname__} has {len(lines)} lines, more than {LINES}")
    return Code(f"{function.__module__}.{function.__qualname__}", "\n".join(lines))


NOT_SEEN = "not in this run: "


def saw(holds, sentence):
    """Print what a lesson says was seen, and whether this run shows it.

    The committed notebooks show every sentence; on other data, or with other knobs, one may fail,
    and then the page says so instead of claiming it.
    """
    print(f"{'seen: ' if holds else NOT_SEEN}{sentence}")


def timeline(times, latest=24):
    """One user's interactions along time; those of one moment stand above each other.

    Args:
        times: of the interactions, in the order in which the history has them. The last is that of
            the test target, the one before that of the validation target.
        latest: so many are drawn.
    """
    times = np.asarray(times)[-latest:]
    moments, across = np.unique(times, return_inverse=True)
    above = np.array([int((times[:place] == time).sum()) for place, time in enumerate(times)])
    height = 1.5 + 0.22 * (above.max() + 1)
    figure, axis = plt.subplots(figsize=(plots.WIDTH, height))
    kinds = {
        "training": (slice(None, -2), "o", plots.BLUE),
        "validation target": (slice(-2, -1), "D", plots.VERMILION),
        "test target": (slice(-1, None), "*", plots.BLACK),
    }
    for name, (part, marker, color) in kinds.items():
        style = {"marker": marker, "color": color, "s": 110 if marker == "*" else 50, "zorder": 2}
        axis.scatter(across[part], above[part], label=name, **style)
    axis.set(xlabel="moments, earlier to later", ylim=(-0.6, above.max() + 0.6))
    axis.set_title("A history: what bears one time stands above each other", loc="left")
    axis.set(xticks=range(len(moments)), xticklabels=[], yticks=[])
    figure.legend(loc="lower center", ncols=3)
    tied = int((times[1:] == times[:-1]).sum())
    last = "the same time" if times[-1] == times[-2] else "different times"
    axis.set_label(
        f"Dots along time: one user's last {len(times)} interactions, at {len(moments)} moments; "
        f"{tied} bear the time of the one before. The validation and the test target bear {last}."
    )
    figure.tight_layout(rect=(0, 0.28 / height, 1, 1))
    return figure


def tokens_with_loss(pieces, first, most=70, across=72):
    """What a model reads in training, token by token: filled ones carry loss.

    Args:
        pieces: text of each token of question and answer, one behind the other.
        first: place of the answer's first token.
        most: of a longer sample so many tokens are drawn, the last ones.
        across: letters a line.
    """
    shown = [repr(text_safety.one_line(piece))[1:-1] for piece in pieces]
    shown = [text if len(text) <= 26 else f"{text[:25]}…" for text in shown]
    shown[-1] = shown[-1] or "(end)"
    lines, x = [[]], 0
    for place, text in list(enumerate(shown))[-most:]:
        if x and x + len(text) + 2 > across:
            lines.append([])
            x = 0
        lines[-1].append((x, text or " ", place >= first))
        x += len(text or " ") + 2
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 0.29 * len(lines) + 0.6))
    for row, line in enumerate(lines):
        for x, text, trained in line:
            face, edge, color = "white", "gray", plots.GRAY
            if trained:
                face, edge, color = plots.BLUE, plots.BLUE, "white"
            axis.text(
                x, row, text.replace("$", "\\$"), va="center", fontsize=7.5, color=color,
                family="monospace", bbox={"fc": face, "ec": edge, "pad": 1.5, "lw": 0.8},
            )  # fmt: skip
    axis.set(xlim=(0, across), ylim=(len(lines) - 0.4, -0.6))
    axis.axis("off")
    axis.set_title("Filled tokens carry loss, the others do not", loc="left")
    axis.set_label(
        f"The {len(pieces)} tokens of a sample in reading order. The first {first}, the question, "
        f"carry no loss; the {len(pieces) - first} of the answer do: {', '.join(shown[first:])}."
    )
    figure.tight_layout()
    return figure


def looks_ahead(k=6, least=3, inside=8, outside=8):
    """Which lists ``obey`` can still end, by how much is written and how much of it is of kind A.

    Args:
        k: titles asked for.
        least: of them at least so many of kind A.
        inside, outside: unseen titles of kind A, and others.

    Returns:
        ``(figure, banned)``; banned: the moves that obey forbids, ``(titles written, of them A,
        kind of the next title)``.
    """

    def alive(written, of_a):
        left = (outside - (written - of_a), inside - of_a)
        room = ((least - of_a, k - of_a),)
        return min(left) >= 0 and can_end(left, k - written, room)

    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.8))
    banned = []
    for written in range(k):
        for of_a in range(written + 1):
            if not alive(written, of_a):
                continue
            for kind, more in (("A", 1), ("other", 0)):
                may = alive(written + 1, of_a + more)
                style = {"color": plots.BLUE} if may else {"color": plots.VERMILION, "ls": ":"}
                axis.plot([written, written + 1], [of_a, of_a + more], zorder=1, **style)
                if not may:
                    banned.append((written, of_a, kind))
                    axis.scatter(written + 1, of_a + more, marker="X", s=60, color=plots.VERMILION)
    states = [(n, c) for n in range(k + 1) for c in range(n + 1) if alive(n, c)]
    axis.scatter(*zip(*states, strict=True), s=45, color=plots.BLUE, zorder=2, label="can be ended")
    axis.scatter(
        [], [], marker="X", s=60, color=plots.VERMILION, label="cannot: the move is banned"
    )
    axis.set(xlabel="titles written", ylabel="of them of kind A", yticks=range(k + 1))
    axis.set_title(f"Ways to a list of {k} with at least {least} of kind A", loc="left")
    axis.legend(loc="upper left")
    moves = "; ".join(
        f"after {n} titles with {c} A one {'of A' if kind == 'A' else 'that is not A'}"
        for n, c, kind in banned
    )
    axis.set_label(
        f"Ways to write a list of {k} titles, at least {least} of kind A, title by title: up with "
        "a title of A, straight on with another. Banned, since the list could not be ended after "
        f"it: {moves}."
    )
    figure.tight_layout()
    return figure, banned


def roc(labels, scores):
    """The ROC curve of Yes against No: likes found against dislikes taken for likes.

    Args:
        labels: bool [n].
        scores: float [n].

    Returns:
        ``(figure, area)``, the area under the curve, in [0, 1].
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores)
    found, wrong = [0.0], [0.0]
    for bar in np.unique(scores)[::-1]:  # a bar between any two scores: say Yes from there on
        found.append(float((scores[labels] >= bar).mean()))
        wrong.append(float((scores[~labels] >= bar).mean()))
    area = float(np.trapezoid(found, wrong))
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 4))
    axis.plot([0, 100], [0, 100], ls=":", color=plots.GRAY, label="chance")
    axis.plot(100 * np.array(wrong), 100 * np.array(found), color=plots.BLUE, label="the model")
    axis.fill_between(100 * np.array(wrong), 100 * np.array(found), color=plots.BLUE, alpha=0.12)
    axis.set(xlabel="of the dislikes, % taken for likes", ylabel="of the likes, % found")
    axis.set_title(f"Area under the curve: {100 * area:.1f} %", loc="left")
    axis.legend(loc="lower right")
    axis.set_label(
        f"ROC curve of {labels.sum()} likes and {(~labels).sum()} dislikes: share of the likes "
        f"found against share of the dislikes taken for likes. Area {100 * area:.1f} %; the "
        "diagonal, chance, has 50."
    )
    figure.tight_layout()
    return figure, area


def surprise(vocabulary):
    """What one token costs in perplexity against the probability that it was given.

    Args:
        vocabulary: number of tokens.
    """
    p = np.logspace(-5, 0, 101)
    even = 1 / vocabulary
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.4))
    axis.loglog(p, 1 / p, color=plots.BLUE, label="perplexity of one token")
    axis.axhline(vocabulary, ls="--", color=plots.VERMILION, label="no idea: all tokens alike")
    axis.plot(even, vocabulary, "D", color=plots.VERMILION)
    axis.set(xlabel="probability that the token was given", ylabel="perplexity")
    axis.set_title("A sure mistake costs more than no idea", loc="left")
    axis.legend()
    axis.set_label(
        f"Perplexity of one token against its probability, both on logarithmic scales: 1 where it "
        f"was certain, {vocabulary:,} at one in {vocabulary:,}, which is no idea, and more without "
        "bound as the probability falls."
    )
    figure.tight_layout()
    return figure


def credit(rewards, gamma=0.99, lambdas=(0.0, 0.5, 0.95, 1.0)):
    """How far back a reward reaches: advantages of one answer's tokens for several lambdas.

    Args:
        rewards: one number a token; the critic is taken to say 0 everywhere.
        gamma: discount.

    Returns:
        ``(figure, {lambda: advantages})``.
    """
    row = torch.tensor([rewards], dtype=torch.float32)
    nothing, all_real = torch.zeros_like(row), torch.ones_like(row)
    found = {lam: gae(row, nothing, all_real, gamma, lam)[0][0].tolist() for lam in lambdas}
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.4))
    for place, (lam, advantages) in enumerate(found.items()):
        axis.plot(advantages, **plots.series(place), label=f"λ = {lam:g}")
    axis.set(title="Advantage of each token", xlabel="token", ylabel="advantage")
    axis.legend()
    ends = ", ".join(f"{lam:g}: {advantages[0]:.2f}" for lam, advantages in found.items())
    axis.set_label(
        f"Advantages of {len(rewards)} tokens, a line for each lambda. The first token's advantage "
        f"at each lambda is {ends}; the last token's is {found[lambdas[0]][-1]:.2f} at all."
    )
    figure.tight_layout()
    return figure, found


def clipping(clip=0.2):
    """PPO's objective for one token against the probability ratio, for a good and a bad advantage.

    Args:
        clip: eps.
    """
    ratio = np.linspace(0.5, 1.5, 201)
    kept = np.clip(ratio, 1 - clip, 1 + clip)
    figure, axis = plt.subplots(figsize=(plots.WIDTH, 3.4))
    for place, (advantage, name) in enumerate(((1, "better than expected"), (-1, "worse"))):
        objective = np.minimum(advantage * ratio, advantage * kept)
        style = plots.series(place) | {"marker": None}
        axis.plot(ratio, objective, **style, label=f"A = {advantage:+d}: {name}")
    for edge in (1 - clip, 1 + clip):
        axis.axvline(edge, color=plots.GRAY, ls=":")
    axis.set(title="What PPO maximises", xlabel="ratio new / old", ylabel="objective of a token")
    axis.legend()
    axis.set_label(
        "Objective of one token against the ratio of its new to its old probability. With a good "
        f"advantage it rises with the ratio and stays flat above {1 + clip:g}; with a bad one it "
        f"falls with the ratio and stays flat below {1 - clip:g}."
    )
    figure.tight_layout()
    return figure


@torch.no_grad()
def attention_weights(model, items):
    """How much each place of a history looks at each other one.

    Args:
        model: ``SASRec`` in evaluation mode.
        items: L ids, oldest first, at most ``model.max_length``.

    Returns:
        float [layers, heads, L, L]; row i says where place i looks, and sums to 1.
    """
    device = model.item.weight.device
    sequence = torch.tensor([items], device=device)
    length = sequence.shape[1]
    places = torch.arange(model.max_length - length, model.max_length, device=device)
    x = model.item(sequence) + model.position(places)
    mask, found = causal_mask(sequence.ne(0))[:, None], []
    for block in model.blocks:
        parts = block.qkv(block.norm1(x)).view(1, length, 3, block.heads, -1)
        q, k, _ = parts.permute(2, 0, 3, 1, 4)  # [1, heads, L, width of a head] each
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        found.append(scores.masked_fill(~mask, -torch.inf).softmax(-1)[0])
        x = block(x, mask)
    return torch.stack(found).cpu()


def attention(model, items, titles):
    """Map of the teacher's attention over one history: mean over the heads of the last layer.

    Args:
        model: ``SASRec``.
        items: ids, oldest first.
        titles: title of each id.

    Returns:
        Figure; a square says in words what its shade says, in per cent.
    """
    weights = 100 * attention_weights(model, items)[-1].mean(0).numpy()
    names = [text_safety.figure(titles[item])[:24] for item in items]
    size = 0.36 * len(items) + 1.8
    figure, axis = plt.subplots(figsize=(size, size - 0.4))
    axis.imshow(weights, cmap="Blues", vmin=0, vmax=100)
    for row in range(len(items)):
        for column in range(row + 1):
            share = weights[row, column]
            color = "white" if share > 70 else plots.BLACK
            style = {"ha": "center", "va": "center", "fontsize": plots.SMALL, "color": color}
            axis.text(column, row, f"{share:.0f}", **style)
    axis.set_xticks(range(len(items)), names, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(items)), names)
    axis.grid(False)
    axis.set(title="Where each place looks, %", xlabel="at this title", ylabel="after this title")
    last = weights[-1]
    most = ", ".join(f"{names[i]} {last[i]:.0f} %" for i in np.argsort(-last, kind="stable")[:3])
    axis.set_label(
        f"Map of attention over {len(items)} titles, oldest first, a lower triangle: no place "
        f"looks at a later one. After the last title, {names[-1]}, it looks most at {most}."
    )
    figure.tight_layout()
    return figure
