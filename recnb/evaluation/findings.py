"""Sentences for the report, each from numbers: nothing inside the noise is called a win.

Levels first, without a verdict; then the primary comparisons, whose verdicts are corrected for
their number. No other difference is stated in words.
"""

from recnb.evaluation.primary import sentences

CONTROLS = [("I1+", "TCP"), ("I1-", "TCP"), ("I2<=20", "CPA"), ("I2~30", "CPA"), ("I2>=30", "CPA")]


def findings(metrics, effects):
    """What the run shows.

    Args:
        metrics: long form.
        effects: the primary comparisons, from ``primary.primary``.

    Returns:
        List of sentences.
    """

    def mean(system, decoding, task, metric):
        rows = metrics[
            (metrics["system"] == system)
            & (metrics["decoding"] == decoding)
            & (metrics["task"] == task)
            & (metrics["metric"] == metric)
        ]
        return rows["value"].item()

    decoded = set(metrics[metrics["system"] == "full"].dropna(subset="value")["decoding"])
    teacher, popularity, hits = (
        mean(system, "free", "I0", "HR@10") for system in ("sasrec", "popularity", "full")
    )
    also = ""
    if "constrained" in decoded:
        also = f" and {mean('full', 'constrained', 'I0', 'HR@10'):.3f} constrained"
    lines = [
        f"I0, HR@10: teacher {teacher:.3f}, popularity {popularity:.3f}, full {hits:.3f} free"
        f"{also} ({hits / max(teacher, 1e-9):.2f} of the teacher, free)."
    ]
    whole = ", ".join(f"{s} {100 * mean(s, 'free', 'I0', 'Strict'):.1f}" for s in ("v2", "full"))
    lines.append(f"I0, lists without an error of form (Strict) in % (free): {whole}.")
    asked = set(zip(metrics["task"], metrics["metric"], strict=True))
    for task, _ in [control for control in CONTROLS if control not in asked]:
        lines.append(f"{task}: no user could be asked, the targets' categories do not allow it.")
    controls = [control for control in CONTROLS if control in asked]
    for task, metric in controls:
        shares = ", ".join(
            f"{s} {100 * mean(s, 'free', task, metric):.1f}" for s in ("base", "v2", "full")
        )
        without = 100 * mean("full", "free", task, f"{metric} without control")
        whole = 100 * mean("full", "free", task, "Strict")
        lines.append(
            f"{task}, {metric} in % (free): {shares}; full without control {without:.1f}. Strict, "
            f"in % of full's lists: {whole:.1f}."
        )
    if "obey" in decoded:
        met = ", ".join(f"{t} {m} {100 * mean('full', 'obey', t, m):.1f}" for t, m in controls)
        lines.append(f"Control-aware decoding of full, in %: {met}.")
    return lines + sentences(effects)


def in_plain_words(metrics, effects, system="full"):
    """The run for a reader who knows none of the tables' words; free decoding unless it says so.

    Args:
        metrics: long form.
        effects: the primary comparisons with their verdicts, of the run or over seeds.
        system: the language model it is about.

    Returns:
        List of sentences; what no user could be asked is left out.
    """
    rows = metrics.dropna(subset="value")
    values = rows.set_index(["system", "decoding", "task", "metric"])["value"]

    def of_100(task, metric, who=system, decoding="free"):
        value = values.get((who, decoding, task, metric))
        return None if value is None else f"{100 * value:.3g}"

    def both(task, metric):
        return of_100(task, metric), of_100(task, f"{metric} without control")

    lines = []
    hits, teacher, popular = (of_100("I0", "HR@10", w) for w in (system, "sasrec", "popularity"))
    lines.append(
        f"Asked for ten titles and nothing else, the model names the one that the user took next "
        f"for {hits} of 100 users. The teacher, which knows more of the user's history than a "
        f"prompt shows, names it for {teacher}, the most popular titles for {popular}."
    )
    wanted, unasked = both("I1+", "TCP")
    if wanted:
        lines.append(
            f"Asked for one category, {wanted} of 100 titles are of it ({unasked} when not asked)."
        )
    unwanted, unasked = both("I1-", "TCP")
    if unwanted:
        lines.append(
            f"Asked for none of a category, {unwanted} of 100 titles are of it all the same "
            f"({unasked} when not asked)."
        )
    shares = [("I2<=20", "at most 20 %"), ("I2>=30", "at least 30 %")]
    kept = [(words, *both(task, "CPA")) for task, words in shares]
    lines += [
        f"Asked for {words} of a category, {value} of 100 lists keep it ({unasked} when not asked)."
        for words, value, unasked in kept
        if value
    ]
    near, unasked = both("I2~30", "CPA")
    if near:
        lines.append(
            f"Asked for about 30 % of a category, {near} of 100 lists come within one title of it "
            f"({unasked} when not asked), {of_100('I2~30', 'Exact')} meet it to the title."
        )
    two, unasked = both("I1+&I1-", "TC1¬2P")
    if two:
        verdict = "more" if float(two) > float(unasked) else "no more"
        lines.append(
            f"Asked for one category and for none of another, {two} of 100 titles are as wanted: "
            f"{verdict} than when not asked ({unasked})."
        )
    learning = effects.set_index("name").loc["P2"]
    if learning["verdict"] in ("shown", "the opposite is shown"):
        change = "more" if learning["difference"] > 0 else "fewer"
        lines.append(
            f"Reinforcement learning makes {100 * abs(learning['difference']):.3g} {change} of 100 "
            "lists with a wish wholly right: as many titles as were asked for, all of the "
            "catalogue, none twice, none that the prompt showed, and the wish met."
        )
    elif learning["verdict"] == "not shown":
        lines.append("That reinforcement learning makes more lists wholly right is not shown.")
    repeats, shown, had = (of_100("format", m) for m in ("RepeatItem", "InHistory", "Seen"))
    lines.append(
        f"Of 100 titles in long lists, {repeats} stand there twice, {shown} stood in the prompt, "
        f"and {had} are titles that the user had before, shown or not."
    )
    forced = of_100("I1+", "TCP", decoding="obey"), of_100("I2~30", "CPA", decoding="obey")
    if None not in forced:
        lines.append(
            f"Decoding that enforces the wish (obey) brings one category to {forced[0]} and about "
            f"30 % to {forced[1]} of 100."
        )
    return lines
