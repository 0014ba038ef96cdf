"""The comparisons that count: as documented, their numbers by hand, several seeds."""

import pandas as pd
import pytest

from recnb.evaluation import primary as family
from recnb.evaluation.metrics import bootstrap_interval
from recnb.evaluation.statistics import holm
from recnb.evaluation.stored import open_run
from recnb.profile import root

REFERENCE = root() / "papermill_runs" / "reference" / "laptop"


def test_the_documentation_names_exactly_the_family():
    text = (root() / "docs" / "primary.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| P")]
    named = []
    for line in rows:
        *cells, why = [cell.strip() for cell in line.strip("|").split("|")]
        assert why.endswith("."), "every comparison says why"
        named.append(tuple(cells))
    expected = []
    for name, claim, a, b, tasks, metric, sign in family.PRIMARY:
        expected.append((name, claim, f"{a} - {b}", family.task_text(tasks), metric, sign))
    assert named == expected and 8 <= len(named) <= 12


def values(rng, tasks, shift=0.0, users=60):
    """Per-user values of one system, some users without the last task."""
    rows = []
    for task, metric in tasks:
        for user in range(users - 5 * (task == "I2>=30")):
            rows.append((task, user, metric, float(rng.random() < 0.4 + shift)))
    return pd.DataFrame(rows, columns=["task", "user", "metric", "value"])


def test_the_family_by_hand(rng):
    tasks = [(task, "Strict") for task in (*family.WISHES, "I1+&I1-")]
    tasks += [("format", m) for m in ("RepeatItem", "InHistory", "Seen")]
    tasks += [("I2~30", "Exact"), ("I0", "HR@10")]
    users = {("full", "free"): values(rng, tasks, 0.4), ("v2", "free"): values(rng, tasks)}
    found = family.primary(users, 200, 0).set_index("name")
    assert list(found.index) == [row[0] for row in family.PRIMARY]
    difference = {}
    for key, frame in users.items():
        strict = frame[(frame["metric"] == "Strict") & frame["task"].isin(family.WISHES)]
        each = strict.groupby("user")["value"]
        difference[key] = each.mean()[each.size() == 5]
    by_hand = (difference["full", "free"] - difference["v2", "free"]).to_numpy()
    assert found.loc["P2", "n"] == len(by_hand) == 55
    assert found.loc["P2", "difference"] == pytest.approx(by_hand.mean(), abs=1e-9)
    assert found.loc["P2", ["low", "high"]].tolist() == list(bootstrap_interval(by_hand, 200, 0))
    # those without answers stay in the family, with p = 1
    absent = ["P1", "P3", "P10", "P11"]
    assert found.loc[absent, "p"].isna().all() and (found.loc[absent, "n"] == 0).all()
    assert found.loc["P11", "verdict"] == "not computed: no answers of sasrec_prompt-free"
    corrected = holm(found["p"].fillna(1.0))
    there = found["p"].notna().to_numpy()
    assert found["p corrected"].to_numpy()[there] == pytest.approx(corrected[there])
    assert found["p"].min() * len(family.PRIMARY) == pytest.approx(found["p corrected"].min())
    assert found.loc["P2", "verdict"] == "shown"
    # 40 points more repeats were not expected
    assert found.loc["P5", "verdict"] == "the opposite is shown"


def test_words_and_table_say_what_the_numbers_say(rng):
    users = {
        (s, "free"): values(rng, [("I0", "HR@10"), ("format", "Seen")]) for s in ("full", "v2")
    }
    frame = family.primary(users, 50, 0)
    lines = family.sentences(frame)
    assert len(lines) == len(family.PRIMARY)
    row = frame.set_index("name").loc["P7"]
    assert f"{100 * row['difference']:+.2f} points" in lines[6] and "not shown" in lines[6]
    assert f"{frame.set_index('name').loc['P8', 'difference']:+.4f} [" in lines[7]
    assert "points" not in lines[7]
    table = family.readable(frame).set_index("")
    assert table.loc["P1", "p"] == "" and table.loc["P1", "users"] == "0"
    assert family.p_text(2e-5) == "< 0.0001" and family.p_text(0.04) == "0.0400"


def test_every_other_difference_is_called_exploratory():
    found = pd.read_csv(REFERENCE / "tables" / "differences.csv")
    listed = found[found["family"] == "primary"]
    assert set(found["family"]) == {"primary", "exploratory"} and len(listed) == 7
    numbers = pd.read_csv(REFERENCE / "tables" / "primary.csv").set_index(
        ["a", "b", "task", "metric"]
    )
    for row in listed.itertuples():
        same = numbers.loc[(row.a, row.b, row.task, row.metric)]
        assert same["difference"] == row.difference and same["p"] == row.p
    assert not found["metric"].eq("Exact").any(), "P4 stands in the family alone"


def test_the_reference_runs_family_is_that_of_its_stored_answers():
    _, _, _, answers = open_run(REFERENCE)
    table = pd.read_csv(REFERENCE / "tables" / "primary.csv").set_index("name")
    answered = {path.stem for path in answers.glob("*.parquet")}
    for name, _, a, b, *_ in family.PRIMARY:
        assert (table.loc[name, "n"] > 0) == ({a, b} <= answered)
