"""Figures of notebooks and report: one function a figure, each returns a matplotlib Figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from recnb import text_safety

sns.set_theme(style="whitegrid", context="notebook", palette="deep")


def save(figure, folder, name):
    """Save as PNG under ``folder/figures``; return the figure, so that a cell can end with this."""
    path = folder / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return figure


def dataset(histories, catalog):
    """Popularity of items, length of histories, size of categories."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.8))
    counts = np.bincount(np.concatenate(histories.items), minlength=len(catalog) + 1)[1:]
    counts = np.sort(counts)[::-1]
    axes[0].loglog(np.arange(1, len(counts) + 1), counts)
    axes[0].set(title="popularity", xlabel="item, most popular first", ylabel="interactions")
    sns.histplot([len(items) for items in histories.items], ax=axes[1], bins=30)
    axes[1].set(title="history length", xlabel="interactions of a user", ylabel="users")
    sizes = pd.Series({name: len(catalog.members(name)) for name in catalog.names}).sort_values()
    axes[2].barh(sizes.index.map(text_safety.figure), sizes.values)
    axes[2].set(title="categories", xlabel="items")
    axes[2].tick_params(axis="y", labelsize=8)
    figure.tight_layout()
    return figure


def teacher_training(rows):
    """Loss and validation NDCG@10 over epochs."""
    frame = pd.DataFrame(rows)
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.5))
    axes[0].plot(frame["epoch"], frame["loss"])
    axes[0].set(title="training loss", xlabel="epoch")
    axes[1].plot(frame["epoch"], frame["validation NDCG@10"])
    best = frame["validation NDCG@10"].idxmax()
    axes[1].axvline(frame["epoch"][best], ls="--", color="gray")
    axes[1].set(title="validation NDCG@10 (dashed: the epoch kept)", xlabel="epoch")
    figure.tight_layout()
    return figure


def compare(table, metric, title):
    """Bars with intervals: one row a system. ``table`` has columns system, value, low, high."""
    figure, axis = plt.subplots(figsize=(7, 0.5 * len(table) + 1.2))
    error = np.stack([table["value"] - table["low"], table["high"] - table["value"]])
    axis.barh(table["system"], table["value"], xerr=error, capsize=3, color=sns.color_palette()[0])
    axis.invert_yaxis()
    axis.set(title=title, xlabel=metric)
    figure.tight_layout()
    return figure


def loss_curve(rows, title="SL stage: loss on the answer's tokens"):
    """Training and validation loss over steps."""
    frame = pd.DataFrame(rows)
    figure, axis = plt.subplots(figsize=(8, 3.8))
    for column, label in (("loss", "training"), ("eval_loss", "validation")):
        if column in frame:
            part = frame.dropna(subset=[column])
            marker = "o" if column == "eval_loss" else None
            axis.plot(part["step"], part[column], label=label, marker=marker, ms=4)
    axis.set(title=title, xlabel="step", ylabel="loss")
    axis.legend()
    figure.tight_layout()
    return figure


PPO_PANELS = {
    "reward of an answer": ["reward"],
    "reward by component": ["item_reward", "list_reward", "preference", "control"],
    "KL to the SL model, per token": ["kl"],
    "entropy": ["entropy"],
    "format errors": ["repeats", "in_history"],
    "explained variance of the critic": ["explained_variance"],
}


def ppo_training(rows, smooth=9):
    """The panels of ``PPO_PANELS`` over PPO steps, smoothed."""
    frame = pd.DataFrame([row for row in rows if "reward" in row])
    steps = np.arange(1, len(frame) + 1)
    figure, axes = plt.subplots(2, 3, figsize=(14, 6.5))
    for axis, (title, columns) in zip(axes.flat, PPO_PANELS.items(), strict=True):
        for column in columns:
            (pale,) = axis.plot(steps, frame[column], alpha=0.2)
            line = frame[column].rolling(smooth, min_periods=1, center=True).mean()
            axis.plot(steps, line, color=pale.get_color(), label=column)
        axis.set(title=title, xlabel="PPO step")
        if len(columns) > 1:
            axis.legend(fontsize=8)
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
    (pale,) = axis.plot(means.index + 1, means, alpha=0.25)
    line = means.rolling(smooth, min_periods=1, center=True).mean()
    axis.plot(means.index + 1, line, color=pale.get_color())
    axis.axhline(0, color="0.6", linewidth=0.8)
    rise = f"rise {found.rise:+.2f} ± {found.error:.2f} (standard error)"
    axis.set(title=f"Training reward: {rise}", xlabel="PPO step", ylabel=column)
    figure.tight_layout()
    return figure


def token_rewards(pieces, rewards, title="Which token receives which reward"):
    """Bars of each token's reward in one answer; the list's, on the last, in another colour."""
    figure, axis = plt.subplots(figsize=(max(7, 0.42 * len(pieces)), 3.6))
    colors = [sns.color_palette()[0]] * (len(pieces) - 1) + [sns.color_palette()[3]]
    axis.bar(range(len(pieces)), rewards, color=colors)
    names = [text_safety.figure(repr(piece)[1:-1][:18]) for piece in pieces]
    axis.set_xticks(range(len(pieces)), names, rotation=75, fontsize=7, ha="right")
    axis.set(title=title, ylabel="reward")
    figure.tight_layout()
    return figure


def control_overview(metrics):
    """The report's picture: how well each system obeys, beside the same system without control."""
    shown = [
        ("I1+", "TCP", "include: share of the category (more is better)"),
        ("I1-", "TCP", "exclude: share of the category (less is better)"),
        ("I2~30", "CPA", "about 30 %: lists within one item (more is better)"),
    ]
    metrics = metrics.dropna(subset="value")  # systems that were not run
    asked = set(zip(metrics["task"], metrics["metric"], strict=True))
    shown = [row for row in shown if row[:2] in asked]
    figure, axes = plt.subplots(1, len(shown), figsize=(14, 4), sharey=True, squeeze=False)
    axes = axes[0]
    free = metrics["decoding"] == "free"
    obeying = (metrics["system"] == "full") & (metrics["decoding"] == "obey")
    metrics = metrics[free | obeying]
    names = metrics["system"] + metrics["decoding"].map({"free": "", "obey": ", obey"})
    index = metrics.assign(system=names).set_index(["system", "task", "metric"])
    systems = list(dict.fromkeys(names))
    place = np.arange(len(systems))
    for axis, (task, metric, title) in zip(axes, shown, strict=True):
        without = f"{metric} without control"
        for offset, name, label in ((-0.2, metric, "with control"), (0.2, without, "without")):
            rows = index.loc[[(s, task, name) for s in systems]]
            values = rows["value"].to_numpy()
            error = np.stack([values - rows["low"], rows["high"] - values])
            style = {"xerr": 100 * error, "label": label, "error_kw": {"lw": 1}}
            axis.barh(place + offset, 100 * values, 0.38, **style)
        axis.set_yticks(place, systems)
        axis.set(title=title, xlabel="%")
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=9)
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
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    _exactness_panel(axes[0], free, varied, "Exact", 100, "exactly right, % of lists")
    _exactness_panel(axes[1], free, varied, "Bias", 1, "mean error, items")
    if len(varied):
        axes[0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def _exactness_panel(axis, free, varied, metric, scale, label):
    if len(varied):
        rows = varied[varied["metric"] == metric]
        for system, line in rows.groupby("system", sort=False):
            axis.plot(line["k"], scale * line["value"], marker="o", label=system)
        axis.set(xlabel="k", ylabel=label)
        return
    rows = free[free["metric"] == metric]
    error = scale * np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]])
    axis.barh(rows["system"], scale * rows["value"], xerr=error, capsize=3)
    axis.invert_yaxis()
    axis.set(xlabel=label)


def halves(frame, systems=("v2", "full")):
    """What becomes of each half of two wishes: unsaid, said alone, said beside the other.

    Args:
        frame: ``evaluation.halves.all_halves``.
        systems: the systems shown, free decoding.
    """
    figure, axes = plt.subplots(1, len(systems), figsize=(11, 4.6), sharey=True, squeeze=False)
    marks = {"unsaid": ("o", "gray"), "alone": ("|", "black"), "both": ("D", "tab:red")}
    for axis, system in zip(axes[0], systems, strict=True):
        rows = frame[(frame["system"] == system) & (frame["decoding"] == "free")]
        names = rows["task"] + ": " + rows["half"]
        axis.hlines(names, 100 * rows["unsaid"], 100 * rows["both"], color="lightgray", lw=2)
        for column, (mark, color) in marks.items():
            axis.scatter(
                100 * rows[column], names, marker=mark, color=color, s=60, label=column, zorder=2
            )
        axis.set(title=system, xlabel="of the half's category, % of the list", xlim=(-3, 103))
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    return figure


def control_dial(frame):
    """Requested against delivered share; ``frame``: system, category, requested, delivered."""
    systems = list(dict.fromkeys(frame["system"]))
    figure, axes = plt.subplots(
        1, len(systems), figsize=(4.6 * len(systems), 4.2), sharey=True, squeeze=False
    )
    for axis, system in zip(axes[0], systems, strict=True):
        axis.plot([0, 100], [0, 100], ls="--", color="gray", label="asked = delivered")
        for category, part in frame[frame["system"] == system].groupby("category", sort=False):
            means = part.groupby("requested")["delivered"].mean()
            name = text_safety.figure(category)
            axis.plot(100 * means.index, 100 * means.values, marker="o", label=name)
        axis.set(title=system, xlabel="requested share, %")
    axes[0][0].set_ylabel("delivered share, %")
    axes[0][0].legend(fontsize=8)
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
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.6), sharey=True)
    rng = np.random.default_rng(0)  # dots of one height stand side by side
    colors = {"paraphrase": "C0", "change": "C1"}
    labels = {"paraphrase": "other words", "change": "trained words, changed"}
    for axis, (task, name) in zip(axes, names.items(), strict=True):
        for place, system in enumerate(systems):
            group = own[(own["system"] == system) & (own["task"] == task)]
            trained = group[group["kind"] == "trained"]
            axis.hlines(100 * trained["value"], place - 0.4, place + 0.4, color="black")
            style = {"color": "0.5", "ls": ":"}
            axis.hlines(100 * trained["without"], place - 0.4, place + 0.4, **style)
            for kind, shift in (("paraphrase", -0.17), ("change", 0.2)):
                values = 100 * group[group["kind"] == kind]["value"]
                across = place + shift + rng.uniform(-0.15, 0.15, len(values))
                axis.scatter(across, values, s=14, alpha=0.7, color=colors[kind])
        metric = own[own["task"] == task]["metric"].iloc[0]
        axis.set_xticks(range(len(systems)), systems)
        axis.set(title=f"{name}: {metric}, %", ylim=(-4, 104))
    for kind, color in colors.items():
        axes[0].scatter([], [], s=14, color=color, label=labels[kind])
    axes[0].plot([], [], color="black", label="trained words")
    axes[0].plot([], [], color="0.5", ls=":", label="no wish")
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, ncols=4, loc="lower center", fontsize=9)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return figure


def few_shot(results):
    """TALLRec's comparison: AUC over the number of examples, mean and spread over draws.

    Args:
        results: ``{domain: DataFrame system, shots, seed, AUC}``.
    """
    figure, axes = plt.subplots(1, len(results), figsize=(6 * len(results), 4), squeeze=False)
    for axis, (domain, frame) in zip(axes[0], results.items(), strict=True):
        for system, group in frame[frame["shots"] > 0].groupby("system", sort=False):
            values = 100 * group.groupby("shots")["AUC"].agg(["mean", "std"]).fillna(0)
            mean, spread = values["mean"], values["std"]
            style = {"marker": "o", "capsize": 3, "lw": 2.5 if system == "tallrec" else 1}
            axis.errorbar(values.index, mean, spread, label=system, **style)
        untuned = frame[frame["system"] == "untuned"]["AUC"]
        if len(untuned):
            axis.axhline(100 * untuned.iloc[0], ls="--", color="gray", label="before rec-tuning")
        axis.axhline(50, lw=0.8, color="black")
        axis.set_xscale("log", base=2)
        axis.set(title=domain, xlabel="examples", ylabel="test AUC, %")
        axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


def forgetting(rows):
    """Perplexity on unseen conversations and loss on lists against the instruction set's I4 share.

    Args:
        rows: dicts share, perplexity, low, high, loss; and MMLU, GSM8K where they were run.
    """
    frame = pd.DataFrame(rows)
    abilities = [name for name in ("MMLU", "GSM8K") if name in frame and frame[name].notna().any()]
    panels = 3 if abilities else 2
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 3.5))
    error = np.stack([frame["perplexity"] - frame["low"], frame["high"] - frame["perplexity"]])
    axes[0].errorbar(frame["share"], frame["perplexity"], yerr=error, marker="o", capsize=3)
    axes[0].set(title="unseen conversations", xlabel="share of I4", ylabel="perplexity")
    axes[1].plot(frame["share"], frame["loss"], marker="o")
    axes[1].set(title="lists of validation users", xlabel="share of I4", ylabel="loss")
    for name in abilities:
        axes[2].plot(frame["share"], 100 * frame[name], marker="o", label=name)
        axes[2].set(title="lm-evaluation-harness", xlabel="share of I4", ylabel="%")
        axes[2].legend()
    figure.tight_layout()
    return figure


def differences(frame, title):
    """Differences of two runs with their 95 % intervals; filled where the corrected p is below .05.

    Args:
        frame: DataFrame from ``evaluation.compare.compare_runs``.
    """
    labels = frame["a"].str.split(" ").str[0] + ", " + frame["task"] + " " + frame["metric"]
    figure, axis = plt.subplots(figsize=(8, 0.24 * len(frame) + 1.2))
    for place, row in enumerate(frame.itertuples()):
        real = frame["p corrected"].iloc[place] < 0.05
        axis.plot([row.low, row.high], [place, place], color="0.4", lw=1.5)
        axis.plot(row.difference, place, "o", mfc="C0" if real else "white", mec="C0", ms=6)
    axis.axvline(0, color="0.2", lw=1)
    axis.set_yticks(range(len(frame)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set(title=title, xlabel="difference (filled: p < .05 after Holm's correction)")
    figure.tight_layout()
    return figure
