"""Sentences for the report, each from numbers: nothing inside the noise is called a win.

A sentence states one paired interval; whether a difference stands among all comparisons, the
corrected p-values say.
"""

from recnb.evaluation.protocol import paired_difference

CONTROLS = [("I1+", "TCP"), ("I1-", "TCP"), ("I2<=20", "CPA"), ("I2~30", "CPA"), ("I2>=30", "CPA")]


def findings(metrics, users, resamples, seed):
    """What the run shows.

    Args:
        metrics: long form.
        users: ``{(system, decoding): per_user DataFrame}``.

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

    def values(system, decoding, task, metric):
        frame = users[system, decoding]
        return frame[(frame["task"] == task) & (frame["metric"] == metric)][["user", "value"]]

    def compare(a, b, task, metric, percent):
        x, low, high = paired_difference(
            values(*a, task, metric), values(*b, task, metric), resamples, seed
        )
        scale, unit = (100, " points") if percent else (1, "")
        verdict = "holds 0" if low <= 0 <= high else "leaves 0 out"
        ways = a[1] if a[1] == b[1] else f"{a[1]} - {b[1]}"
        return (
            f"{a[0]} - {b[0]} ({ways}), {task} {metric}: {scale * x:+.3g}{unit} "
            f"[{scale * low:.3g}, {scale * high:.3g}], its 95 % interval {verdict}."
        )

    teacher, popularity, hits = (
        mean(system, "free", "I0", "HR@10") for system in ("sasrec", "popularity", "full")
    )
    also = ""
    if ("full", "constrained") in users:
        also = f" and {mean('full', 'constrained', 'I0', 'HR@10'):.3f} constrained"
    lines = [
        f"I0, HR@10: teacher {teacher:.3f}, popularity {popularity:.3f}, full {hits:.3f} free"
        f"{also} ({hits / max(teacher, 1e-9):.2f} of the teacher, free)."
    ]
    for task, metric in CONTROLS:
        shares = ", ".join(
            f"{s} {100 * mean(s, 'free', task, metric):.1f}" for s in ("base", "v2", "full")
        )
        without = 100 * mean("full", "free", task, f"{metric} without control")
        lines.append(f"{task}, {metric} in % (free): {shares}; full without control {without:.1f}.")
    full, v2 = ("full", "free"), ("v2", "free")
    lines += [compare(full, v2, "format", m, True) for m in ("RepeatItem", "InHistory", "Seen")]
    lines.append(compare(full, v2, "I0", "HR@10", False))
    if ("full", "constrained") in users:
        lines.append(compare(("full", "constrained"), full, "I0", "HR@10", False))
    if ("full", "obey") in users:
        met = ", ".join(f"{t} {m} {100 * mean('full', 'obey', t, m):.1f}" for t, m in CONTROLS)
        lines.append(f"Control-aware decoding of full, in %: {met}.")
    return lines
