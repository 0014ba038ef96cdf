"""The report's first sentences say what the tables say, and no more."""

import re

import pandas as pd

from recnb.evaluation.findings import in_plain_words
from recnb.profile import root

TABLES = root() / "papermill_runs" / "reference" / "laptop" / "tables"


def test_every_number_is_in_the_metrics():
    metrics = pd.read_csv(TABLES / "metrics.csv")
    known = {f"{100 * value:.3g}" for value in metrics["value"].dropna()}
    said = []
    for line in in_plain_words(metrics):
        said += re.findall(r"(?<![\w.])\d+(?:\.\d+)?", line.replace("of 100", "of all"))
    numbers = [n for n in said if n not in ("100", "20", "30")]
    assert len(numbers) > 15 and not [n for n in numbers if n not in known]


def test_two_wishes_are_called_what_they_are():
    metrics = pd.read_csv(TABLES / "metrics.csv")
    mine = metrics["system"].eq("full") & metrics["task"].eq("I1+&I1-")
    mine &= metrics["decoding"].eq("free") & metrics["metric"].eq("TC1¬2P")
    for value, words in ((0.9, ": more than when not asked"), (0.01, ": no more than when not")):
        changed = metrics.assign(value=metrics["value"].mask(mine, value))
        assert any(words in line for line in in_plain_words(changed))


def test_what_nobody_was_asked_is_left_out():
    metrics = pd.read_csv(TABLES / "metrics.csv")
    few = metrics[metrics["task"].isin(["I0", "format"])]
    lines = in_plain_words(few)
    assert len(lines) == 2 and not any("None" in line for line in lines)
