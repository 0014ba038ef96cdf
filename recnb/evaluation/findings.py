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
