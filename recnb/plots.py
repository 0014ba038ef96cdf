"""Figures of notebooks and report: one function a figure, each returns a matplotlib Figure.

Whoever cannot tell colours apart must be able to read them: colours come from ``COLORS``, and
beside the colour stands a marker, a dash, a hatch or a word (tests/test_report_readers.py measures
the colours). Whoever reads on a phone must be able to: each panel stands alone, at most ``WIDTH``
inches wide, with letters of at least ``SMALL`` points. Whoever does not see must be able to: the
label of each Axes is what it shows, in words, and ``save`` stores it as alt text.
"""

import base64
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from recnb import text_safety
from recnb.artifacts import write_json

COLORS = {
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "black": "#000000",
    "green": "#009e73",
    "purple": "#cc79a7",
}
"""Okabe and Ito's colours that stand out from white; their yellow, orange and sky blue do not."""
BLUE, VERMILION, BLACK = COLORS["blue"], COLORS["vermilion"], COLORS["black"]
GRAY = "#595959"
"""Lines to compare with, never data."""
MARKERS = "osD^vPX*<>"
WIDTH, SMALL = 4.8, 9

sns.set_theme(
    style="whitegrid",
    context="notebook",
    palette=list(COLORS.values()),
    rc={
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "legend.framealpha": 0.9,
        "hatch.linewidth": 0.8,
        "grid.linewidth": 0.6,
    },
)


def series(place):
    """Style of the series at a place: of ten, no two have the same color, marker and dash.

    Returns:
        Keywords of ``Axes.plot`` and ``Axes.errorbar``.
    """
    color = list(COLORS.values())[place % len(COLORS)]
    dash = "-" if place % (2 * len(COLORS)) < len(COLORS) else "--"
    return {"color": color, "marker": MARKERS[place % len(MARKERS)], "ls": dash, "ms": 5}


@dataclass
class Picture:
    """A saved figure as a notebook shows it, its alt text where nbconvert looks for one."""

    png: bytes
    alt: str
    plain: str

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.plain}
        return data, {"image/png": {"alt": self.alt}}


def save(figure, folder, name):
    """Save a figure, each of its panels, and what they show in words, under ``folder/figures``.

    ``NAME.png`` is the whole figure; where it has several panels, ``NAME-1.png``, ``NAME-2.png``
    ... hold one each, so that a page can put them below each other. ``NAME.json`` holds the alt
    texts: ``alt`` of the whole and ``panels``, a list.

    Returns:
        ``Picture``, so that a cell can end with this.
    """
    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    alts = [text_safety.one_line(axis.get_label()) for axis in figure.axes]
    if len(alts) > 1:
        inches = figure.dpi_scale_trans.inverted()
        for number, axis in enumerate(figure.axes, start=1):
            box = axis.get_tightbbox().transformed(inches).padded(0.06)
            panel = path.with_name(f"{name}-{number}.png")
            figure.savefig(panel, dpi=160, bbox_inches=box, metadata={"Software": None})
    alt = " ".join(alts)
    write_json(path.with_suffix(".json"), {"alt": alt, "panels": alts})
    plt.close(figure)
    return Picture(path.read_bytes(), alt, repr(figure))


def _panels(count, height=3.8):
    """A figure of so many panels side by side, and their Axes."""
    figure, axes = plt.subplots(1, count, figsize=(WIDTH * count, height), squeeze=False)
    return figure, axes[0]


def _legend_below(axis, columns):
    """A legend where it hides no data: below the label of the x axis."""
    inches = axis.get_position().height * axis.figure.get_figheight()
    style = {"ncols": columns, "columnspacing": 1, "handletextpad": 0.5}
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.56 / inches), **style)


def _course(name, values, digits=2):
    """In words: how a curve goes."""
    first, last = values.iloc[0], values.iloc[-1]
    return f"{name} from {first:.{digits}f} to {last:.{digits}f}"


def dataset(histories, catalog):
    """Popularity of items, length of histories, size of categories."""
    figure, axes = _panels(3)
    counts = np.bincount(np.concatenate(histories.items), minlength=len(catalog) + 1)[1:]
    counts = np.sort(counts)[::-1]
    axes[0].loglog(np.arange(1, len(counts) + 1), counts)
    axes[0].set(title="popularity", xlabel="item, most popular first", ylabel="interactions")
    axes[0].set_label(
        f"Curve of popularity: the most popular of {len(counts):,} items has {counts[0]:,} "
        f"interactions, the middle one {counts[len(counts) // 2]:,}, the last {counts[-1]:,}."
    )
    lengths = [len(items) for items in histories.items]
    axes[1].hist(lengths, bins=30, edgecolor="white")
    axes[1].set(title="history length", xlabel="interactions of a user", ylabel="users")
    axes[1].set_label(
        f"Histogram of history lengths: half of {len(lengths):,} users have at most "
        f"{np.median(lengths):.0f} interactions, the longest history has {max(lengths):,}."
    )
    sizes = pd.Series({name: len(catalog.members(name)) for name in catalog.names}).sort_values()
    drawn = sizes[-25:]
    axes[2].barh(drawn.index.map(text_safety.figure), drawn.values)
    title = "categories" if len(drawn) == len(sizes) else f"{len(drawn)} largest categories"
    axes[2].set(title=title, xlabel="items")
    largest = ", ".join(f"{name} {size:,}" for name, size in sizes[::-1][:5].items())
    axes[2].set_label(
        f"Bars of category sizes; {len(sizes)} categories, the largest with their numbers of "
        f"items: {largest}."
    )
    figure.tight_layout()
    return figure


def teacher_training(rows):
    """Loss and validation NDCG@10 over epochs."""
    frame = pd.DataFrame(rows)
    figure, axes = _panels(2, 3.4)
    axes[0].plot(frame["epoch"], frame["loss"])
    axes[0].set(title="training loss", xlabel="epoch", ylabel="loss")
    axes[0].set_label(f"Curve over {len(frame)} epochs: {_course('training loss', frame['loss'])}.")
    quality = frame["validation NDCG@10"]
    axes[1].plot(frame["epoch"], quality)
    best = quality.idxmax()
    axes[1].axvline(frame["epoch"][best], ls="--", color=GRAY, label="the epoch kept")
    axes[1].set(title="validation NDCG@10", xlabel="epoch", ylabel="NDCG@10")
    axes[1].legend()
    axes[1].set_label(
        f"Curve over {len(frame)} epochs: validation NDCG@10 is highest, {quality[best]:.4f}, at "
        f"epoch {frame['epoch'][best]}, which is kept."
    )
    figure.tight_layout()
    return figure


def compare(table, metric, title):
    """Bars with intervals: one row a system. ``table`` has columns system, value, low, high."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.5 * len(table) + 1.2))
    error = np.stack([table["value"] - table["low"], table["high"] - table["value"]])
    axis.barh(table["system"], table["value"], xerr=error, capsize=3, color=BLUE)
    axis.invert_yaxis()
    axis.set(title=title, xlabel=metric)
    shown = [f"{r.system} {r.value:.3f} ({r.low:.3f} to {r.high:.3f})" for r in table.itertuples()]
    axis.set_label(f"Bars with 95 % intervals, {title}: {', '.join(shown)}.")
    figure.tight_layout()
    return figure


def loss_curve(rows, title="SL stage: loss on the answer's tokens"):
    """Training and validation loss over steps."""
    frame = pd.DataFrame(rows)
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    shown = []
    for column, label, style in (
        ("loss", "training", {"color": BLUE}),
        ("eval_loss", "validation", {"color": VERMILION, "marker": "s", "ls": "--", "ms": 5}),
    ):
        if column in frame:
            part = frame.dropna(subset=[column])
            axis.plot(part["step"], part[column], label=label, **style)
            shown.append(_course(label, part[column]))
    axis.set(title=title, xlabel="step", ylabel="loss")
    axis.set_label(f"Curves over {frame['step'].max():.0f} steps, {title}: {', '.join(shown)}.")
    axis.legend()
    figure.tight_layout()
    return figure


PPO_PANELS = {
    "reward of an answer": {"reward": "reward"},
    "parts of the reward, means": {
        "item_reward": "of an item",
        "list_reward": "of the list",
        "preference": "preference",
        "control": "wish",
    },
    "distance from the SL model, per token": {"kl": "KL divergence"},
    "entropy of the next token": {"entropy": "entropy"},
    "errors of form, share of the list": {
        "repeats": "repeats",
        "in_history": "titles of the prompt",
    },
    "explained variance of the critic": {"explained_variance": "explained variance"},
}
"""Title of each panel, and its columns with their names."""


def ppo_training(rows, smooth=9):
    """The panels of ``PPO_PANELS`` over PPO steps, smoothed."""
    frame = pd.DataFrame([row for row in rows if "reward" in row])
    steps = np.arange(1, len(frame) + 1)
    figure, axes = plt.subplots(2, 3, figsize=(3 * WIDTH, 6.8))
    for axis, (title, columns) in zip(axes.flat, PPO_PANELS.items(), strict=True):
        shown = []
        for place, (column, name) in enumerate(columns.items()):
            style = series(place)
            axis.plot(steps, frame[column], alpha=0.2, color=style["color"])
            line = frame[column].rolling(smooth, min_periods=1, center=True).mean()
            axis.plot(steps, line, label=name, markevery=0.2, **style)
            shown.append(_course(name, line))
        axis.set(title=title, xlabel="PPO step")
        axis.set_label(f"Curve over {len(frame)} PPO steps, {title}: {', '.join(shown)}.")
        if len(columns) > 1:
            axis.legend()
    figure.tight_layout()
    return figure


def reward_trend(frame, found, smooth=9):
    """Mean reward of each PPO step above what its prompts earn on average, with the trend.

    Args:
        frame: from ``ppo.trend.adjusted``.
        found: ``Trend``.
    """
    column = "reward above its prompt's mean"
    means = frame.groupby("step")[column].mean()
    figure, axis = plt.subplots(figsize=(7, 3.6))
    axis.plot(means.index + 1, means, alpha=0.25, color=BLUE)
    line = means.rolling(smooth, min_periods=1, center=True).mean()
    axis.plot(means.index + 1, line, color=BLUE)
    axis.axhline(0, color=GRAY, linewidth=0.8)
    rise = f"rise {found.rise:+.2f} ± {found.error:.2f} (standard error)"
    axis.set(title=f"Training reward: {rise}", xlabel="PPO step", ylabel=column)
    axis.set_label(f"Curve over {len(means)} PPO steps: {_course(column, line)}; {rise}.")
    figure.tight_layout()
    return figure


def token_rewards(pieces, rewards, title="Which token receives which reward"):
    """A bar for each token's reward in one answer; the last bar, hatched, holds the list's."""
    names = [text_safety.one_line(repr(piece)[1:-1][:24]) for piece in pieces]
    places = range(len(pieces))
    figure, axis = plt.subplots(figsize=(WIDTH, max(2.6, 0.2 * len(pieces) + 1)))
    axis.barh(places[:-1], rewards[:-1], color=BLUE, label="of the item")
    style = {"facecolor": "white", "edgecolor": VERMILION, "hatch": "////"}
    axis.barh(places[-1:], rewards[-1:], label="of the list, at the end", **style)
    axis.set_yticks(places, [name.replace("$", "\\$") for name in names])
    axis.set_ylim(len(pieces) - 0.4, -0.6)
    axis.set(title=title, xlabel="reward")
    axis.legend()
    paid = [f"{name} {r:.2f}" for name, r in zip(names[:-1], rewards[:-1], strict=True) if r]
    axis.set_label(
        f"Bars, one for each of {len(pieces)} tokens of an answer, read downwards. Rewarded are "
        f"{', '.join(paid) or 'none'}; and the last token, for the whole list, with "
        f"{rewards[-1]:.2f}."
    )
    figure.tight_layout()
    return figure


def control_overview(metrics):
    """The report's picture: how well each system obeys, beside the same system without control."""
    shown = [
        ("I1+", "TCP", "one category: its share of the list\n(more is better)"),
        ("I1-", "TCP", "none of a category: its share of the list\n(less is better)"),
        ("I2~30", "CPA", "about 30 %: lists within one item\n(more is better)"),
    ]
    metrics = metrics.dropna(subset="value")  # systems that were not run
    asked = set(zip(metrics["task"], metrics["metric"], strict=True))
    shown = [row for row in shown if row[:2] in asked]
    free = metrics["decoding"] == "free"
    obeying = (metrics["system"] == "full") & (metrics["decoding"] == "obey")
    metrics = metrics[free | obeying]
    names = metrics["system"] + metrics["decoding"].map({"free": "", "obey": ", obey"})
    index = metrics.assign(system=names).set_index(["system", "task", "metric"])
    systems = list(dict.fromkeys(names))
    place = np.arange(len(systems))
    figure, axes = _panels(len(shown), 0.34 * len(systems) + 1.4)
    hatched = {"facecolor": "white", "edgecolor": VERMILION, "hatch": "////"}
    for axis, (task, metric, title) in zip(axes, shown, strict=True):
        told = []
        for offset, name, label, style in (
            (-0.2, metric, "asked", {"color": BLUE}),
            (0.2, f"{metric} without control", "not asked", hatched),
        ):
            rows = index.loc[[(s, task, name) for s in systems]]
            values = rows["value"].to_numpy()
            error = 100 * np.stack([values - rows["low"], rows["high"] - values])
            style = style | {"xerr": error, "label": label, "error_kw": {"lw": 1}}
            axis.barh(place + offset, 100 * values, 0.38, **style)
            told.append(100 * values)
        axis.set_yticks(place, systems)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="%")
        _legend_below(axis, 2)
        pairs = [f"{s} {a:.0f} ({b:.0f})" for s, a, b in zip(systems, *told, strict=True)]
        title = title.replace("\n", " ")
        axis.set_label(
            f"Bars with 95 % intervals, {title}. In %, asked (not asked): {', '.join(pairs)}."
        )
    figure.tight_layout()
    return figure


def exactness(by_k):
    """Share of "about m %" lists that are right to the item, and the mean error in items.

    With one k each system's free lists as bars, with several both over k, a line a system.

    Args:
        by_k: ``protocol.proportion_by_k`` of each system, with columns system and decoding.
    """
    free = by_k[by_k["decoding"] == "free"]
    varied = free[free["task"].str.endswith(" by k")]
    figure, axes = _panels(2, 5 if len(varied) else 4)
    _exactness_panel(axes[0], free, varied, "Exact", 100, "exactly right, % of lists")
    _exactness_panel(axes[1], free, varied, "Bias", 1, "mean error, items")
    figure.tight_layout()
    return figure


def _exactness_panel(axis, free, varied, metric, scale, label):
    if len(varied):
        rows, told = varied[varied["metric"] == metric], []
        for place, (system, line) in enumerate(rows.groupby("system", sort=False)):
            axis.plot(line["k"], scale * line["value"], label=system, **series(place))
            told.append(_course(system, scale * line["value"], 1))
        axis.set(xlabel="titles asked for, k", ylabel=label)
        _legend_below(axis, 4)
        axis.set_label(f"Lines over the length of the list, {label}: {', '.join(told)}.")
        return
    rows = free[free["metric"] == metric]
    error = scale * np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]])
    axis.barh(rows["system"], scale * rows["value"], xerr=error, capsize=3)
    axis.invert_yaxis()
    axis.set(xlabel=label)
    told = [f"{r.system} {scale * r.value:.1f}" for r in rows.itertuples()]
    axis.set_label(f"Bars with 95 % intervals, {label}: {', '.join(told)}.")


def halves(frame, systems=("v2", "full")):
    """What becomes of each half of two wishes: unsaid, said alone, said beside the other.

    Args:
        frame: ``evaluation.halves.all_halves``.
        systems: the systems shown, free decoding.
    """
    free = frame[(frame["decoding"] == "free") & frame["system"].isin(systems)]
    figure, axes = _panels(len(systems), 0.38 * len(free) / len(systems) + 2)
    marks = {
        "unsaid": ("o", GRAY, "not said"),
        "alone": ("|", BLACK, "alone"),
        "both": ("D", VERMILION, "with the other"),
    }
    for axis, system in zip(axes, systems, strict=True):
        rows = free[free["system"] == system]
        names = rows["task"] + ": " + rows["half"]
        axis.hlines(names, 100 * rows["unsaid"], 100 * rows["both"], color="lightgray", lw=2)
        for column, (mark, color, label) in marks.items():
            axis.scatter(
                100 * rows[column], names, marker=mark, color=color, s=60, label=label, zorder=2
            )
        axis.set(title=system, xlabel="of the half's category, % of the list", xlim=(-3, 103))
        axis.invert_yaxis()
        _legend_below(axis, 3)
        told = [
            f"{name} {100 * r.unsaid:.0f}, {_or_none(r.alone)}, {100 * r.both:.0f}"
            for name, r in zip(names, rows.itertuples(), strict=True)
        ]
        axis.set_label(
            f"Dots for {system}: share of the list in %, not said, said alone, said beside the "
            f"other wish: {'; '.join(told)}."
        )
    figure.tight_layout()
    return figure


def _or_none(share):
    return f"{100 * share:.0f}" if np.isfinite(share) else "never asked alone"


def control_dial(frame):
    """Requested against delivered share; ``frame``: system, category, requested, delivered."""
    systems = list(dict.fromkeys(frame["system"]))
    figure, axes = _panels(len(systems), 4.2)
    for axis, system in zip(axes, systems, strict=True):
        axis.plot([0, 100], [0, 100], ls=":", color=GRAY, label="asked = delivered")
        told = []
        groups = frame[frame["system"] == system].groupby("category", sort=False)
        for place, (category, part) in enumerate(groups):
            means = 100 * part.groupby("requested")["delivered"].mean()
            name = text_safety.figure(category)
            axis.plot(100 * means.index, means.values, label=name, **series(place))
            told.append(_course(category, means, 0))
        axis.set(title=system, xlabel="share asked for, %", ylabel="share delivered, %")
        axis.set(xlim=(-3, 103), ylim=(-3, 103))
        axis.legend()
        low, high = 100 * frame["requested"].min(), 100 * frame["requested"].max()
        axis.set_label(
            f"Lines for {system}: as the share asked for goes from {low:.0f} to {high:.0f} %, the "
            f"share delivered goes, in %, for {', '.join(told)}."
        )
    figure.tight_layout()
    return figure


def wordings(each, names):
    """One dot a wording, a panel a wish; the trained words and no wish as lines.

    Args:
        each: DataFrame from ``evaluation.wordings.levels``.
        names: ``{task: name of its wish}``.
    """
    own = each[each["metric"] != "Strict"]
    systems = list(dict.fromkeys(own["system"]))
    figure, axes = _panels(len(names), 4)
    rng = np.random.default_rng(0)  # dots of one height stand side by side
    kinds = {
        "paraphrase": (-0.17, "o", BLUE, "other words"),
        "change": (0.2, "^", VERMILION, "trained words, changed"),
    }
    for axis, (task, name) in zip(axes, names.items(), strict=True):
        told = []
        for place, system in enumerate(systems):
            group = own[(own["system"] == system) & (own["task"] == task)]
            trained = group[group["kind"] == "trained"]
            levels = 100 * trained["value"], 100 * trained["without"]
            axis.hlines(levels[0], place - 0.4, place + 0.4, color=BLACK)
            axis.hlines(levels[1], place - 0.4, place + 0.4, color=GRAY, ls=":")
            for kind, (shift, marker, color, _) in kinds.items():
                values = 100 * group[group["kind"] == kind]["value"]
                across = place + shift + rng.uniform(-0.15, 0.15, len(values))
                axis.scatter(across, values, s=16, alpha=0.7, color=color, marker=marker)
            other = 100 * group[group["kind"] == "paraphrase"]["value"]
            told.append(
                f"{system} {levels[0].iloc[0]:.0f} in the trained words, {other.min():.0f} to "
                f"{other.max():.0f} in others, {levels[1].iloc[0]:.0f} without the wish"
            )
        metric = own[own["task"] == task]["metric"].iloc[0]
        axis.set_xticks(range(len(systems)), systems)
        axis.set(title=f"{name}: {metric}, %", xlabel="system", ylim=(-4, 104))
        for _, marker, color, label in kinds.values():
            axis.scatter([], [], s=16, color=color, marker=marker, label=label)
        axis.hlines([], 0, 0, color=BLACK, label="trained words")
        axis.hlines([], 0, 0, color=GRAY, ls=":", label="no wish")
        _legend_below(axis, 2)
        axis.set_label(f"Dots for the wish {name}, {metric} in %: {'; '.join(told)}.")
    figure.tight_layout()
    return figure


def few_shot(results):
    """TALLRec's comparison: AUC over the number of examples, mean and spread over draws.

    Args:
        results: ``{domain: DataFrame system, shots, seed, AUC}``.
    """
    figure, axes = _panels(len(results), 4.8)
    for axis, (domain, frame) in zip(axes, results.items(), strict=True):
        told = []
        groups = frame[frame["shots"] > 0].groupby("system", sort=False)
        for place, (system, group) in enumerate(groups):
            values = 100 * group.groupby("shots")["AUC"].agg(["mean", "std"]).fillna(0)
            mean, spread = values["mean"], values["std"]
            style = series(place) | {"capsize": 3, "lw": 2.5 if system == "tallrec" else 1}
            axis.errorbar(values.index, mean, spread, label=system, **style)
            told.append(_course(system, mean, 1))
        untuned = frame[frame["system"] == "untuned"]["AUC"]
        if len(untuned):
            axis.axhline(100 * untuned.iloc[0], ls="--", color=GRAY, label="before rec-tuning")
            told.append(f"before rec-tuning {100 * untuned.iloc[0]:.1f}")
        axis.axhline(50, lw=0.8, ls=":", color=BLACK, label="chance")
        axis.set_xscale("log", base=2)
        axis.set(title=domain, xlabel="examples", ylabel="test AUC, %")
        _legend_below(axis, 3)
        axis.set_label(
            f"Lines for {domain}, test AUC in % from the fewest examples to the most: "
            f"{', '.join(told)}; chance is 50."
        )
    figure.tight_layout()
    return figure


def forgetting(rows):
    """Perplexity on unseen conversations and loss on lists against the instruction set's I4 share.

    Args:
        rows: dicts share, perplexity, low, high, loss; and MMLU, GSM8K where they were run.
    """
    frame = pd.DataFrame(rows)
    abilities = [name for name in ("MMLU", "GSM8K") if name in frame and frame[name].notna().any()]
    figure, axes = _panels(3 if abilities else 2, 3.5)
    xlabel = "share of conversations (I4)"
    shares = f"as the share of conversations goes from {frame['share'].iloc[0]:.0%} to "
    shares += f"{frame['share'].iloc[-1]:.0%}"
    error = np.stack([frame["perplexity"] - frame["low"], frame["high"] - frame["perplexity"]])
    axes[0].errorbar(frame["share"], frame["perplexity"], yerr=error, marker="o", capsize=3)
    axes[0].set(title="unseen conversations", xlabel=xlabel, ylabel="perplexity")
    axes[0].set_label(
        f"Line with 95 % intervals: {shares}, {_course('perplexity', frame['perplexity'], 0)}."
    )
    axes[1].plot(frame["share"], frame["loss"], marker="o")
    axes[1].set(title="lists of validation users", xlabel=xlabel, ylabel="loss")
    axes[1].set_label(f"Line: {shares}, {_course('loss on lists', frame['loss'])}.")
    told = []
    for place, name in enumerate(abilities):
        axes[2].plot(frame["share"], 100 * frame[name], label=name, **series(place))
        axes[2].set(title="lm-evaluation-harness", xlabel=xlabel, ylabel="%")
        axes[2].legend()
        told.append(_course(f"{name} in %", 100 * frame[name], 1))
        axes[2].set_label(f"Lines: {shares}, {', '.join(told)}.")
    figure.tight_layout()
    return figure


def differences(frame, title):
    """Differences of two runs with their 95 % intervals; filled where the corrected p is below .05.

    Args:
        frame: DataFrame from ``evaluation.compare.compare_runs``.
    """
    labels = frame["a"].str.split(" ").str[0] + ", " + frame["task"] + " " + frame["metric"]
    real = frame["p corrected"] < 0.05
    figure, axis = plt.subplots(figsize=(8, 0.24 * len(frame) + 1.2))
    for place, row in enumerate(frame.itertuples()):
        filled = BLUE if real.iloc[place] else "white"
        axis.plot([row.low, row.high], [place, place], color=GRAY, lw=1.5)
        axis.plot(row.difference, place, "o", mfc=filled, mec=BLUE, ms=6)
    axis.axvline(0, color=BLACK, lw=1)
    axis.set_yticks(range(len(frame)), labels)
    axis.invert_yaxis()
    axis.set(title=title, xlabel="difference (filled: p < .05 after Holm's correction)")
    told = [f"{n} {d:+.4f}" for n, d in zip(labels[real], frame["difference"][real], strict=True)]
    axis.set_label(
        f"Dots with 95 % intervals: {len(frame)} differences of {title}. Beyond chance after "
        f"Holm's correction: {', '.join(told) or 'none'}."
    )
    figure.tight_layout()
    return figure
