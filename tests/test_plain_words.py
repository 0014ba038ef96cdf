"""The report's first sentences say what the tables say, and no more."""

import re

import pandas as pd

from recnb.evaluation.findings import in_plain_words
from recnb.profile import root

TABLES = root() / "papermill_runs" / "reference" / "laptop" / "tables"
EFFECTS = pd.read_csv(TABLES / "primary.csv")


def test_every_number_is_in_the_metrics():
    metrics = pd.read_csv(TABLES / "metrics.csv")
    known = {f"{100 * value:.3g}" for value in metrics["value"].dropna()}
    known.add(f"{100 * abs(EFFECTS['difference'].iloc[1]):.3g}")  # P2
    said = []
    for line in in_plain_words(metrics, EFFECTS):
        said += re.findall(r"(?<![\w.])\d+(?:\.\d+)?", line.replace("of 100", "of all"))
    numbers = [n for n in said if n not in ("100", "20", "30")]
    assert len(numbers) > 15 and not [n for n in numbers if n not in known]


def test_two_wishes_are_called_what_they_are():
    metrics = pd.read_csv(TABLES / "metrics.csv")
    mine = metrics["system"].eq("full") & metrics["task"].eq("I1+&I1-")
    mine &= metrics["decoding"].eq("free") & metrics["metric"].eq("TC1¬2P")
    for value, words in ((0.9, ": more than when not asked"), (0.01, ": no more than when not")):
        changed = metrics.assign(value=metrics["value"].mask(mine, value))
        assert any(words in line for line in in_plain_words(changed, EFFECTS))


def test_what_nobody_was_asked_is_left_out():
    metrics = pd.read_csv(TABLES / "metrics.csv")
    few = metrics[metrics["task"].isin(["I0", "format"])]
    lines = in_plain_words(few, EFFECTS.assign(verdict="not computed: no answers of v2-free"))
    assert len(lines) == 2 and not any("None" in line for line in lines)


def test_what_learning_by_reward_does_is_said_as_far_as_it_is_shown():
    metrics = pd.read_csv(TABLES / "metrics.csv")
    known = EFFECTS["name"].eq("P2")
    for difference, verdict, words in (
        (0.051, "shown", "makes 5.1 more of 100 lists"),
        (-0.051, "the opposite is shown", "makes 5.1 fewer of 100 lists"),
        (0.051, "not shown", "is not shown"),
    ):
        changed = EFFECTS.assign(
            difference=EFFECTS["difference"].mask(known, difference),
            verdict=EFFECTS["verdict"].mask(known, verdict),
        )
        said = [x for x in in_plain_words(metrics, changed) if x.find("einforcement") > 0]
        assert len(said) == 1 and words in said[0]
