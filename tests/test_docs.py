"""Numbers that documents state are recomputed here."""

import re

import pandas as pd

from recnb.catalog import Catalog
from recnb.controls import About, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.evaluation.stored import evaluate_run
from recnb.evaluation.tables import TITLES
from recnb.ppo.rewards import score_list
from recnb.profile import Profile, root
from recnb.requests import Request


def test_fidelity_table_of_rewards():
    text = (root() / "docs" / "fidelity.md").read_text()
    toy = Catalog(["a1", "a2", "b1", "b2"], [{"A"}, {"A"}, {"B"}, {"B"}])
    shares = [cls("A", "1/3") for cls in (AtMost, AtLeast, About)]
    for control in [NoControl(), Include("A"), Exclude("A"), *shares]:
        asked = Request(0, (), (), control, 3, 3)
        readings = "paper", "released"
        paper, released = (score_list(asked, [1, 3, 2], [1, 0, 2], toy, f).list for f in readings)
        name = " ".join([type(control).__name__, *(str(v) for v in vars(control).values())])
        assert f"| {name} | {paper:.3f} | {released:.3f} |" in text


def test_fidelity_names_real_knobs():
    text = (root() / "docs" / "fidelity.md").read_text()
    for section, key in re.findall(r"`(instructions|ppo|sft|data)\.(\w+)", text):
        assert key in type(getattr(Profile(name="x"), section)).model_fields


def test_readme_table_is_the_reference_runs():
    text = (root() / "README.md").read_text()
    tables = root() / "papermill_runs" / "reference" / "laptop" / "tables"
    metrics = pd.read_csv(tables / "metrics.csv")
    values = metrics.set_index(["system", "decoding", "task", "metric"])["value"]
    free = [(system, "free") for system in ("sasrec", "popularity", "v2", "full")]
    systems = [*free, ("full", "constrained"), ("full", "obey")]
    rows = {
        "I0, HR@10": ("I0", "HR@10"),
        "include": ("I1+", "TCP"),
        "exclude": ("I1-", "TCP"),
        "at most 20": ("I2<=20", "CPA"),
        "about 30": ("I2~30", "CPA"),
        "at least 30": ("I2>=30", "CPA"),
        "repeats": ("format", "RepeatItem"),
        "films of the prompt": ("format", "InHistory"),
    }
    for start, key in rows.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        found = [values[(*system, *key)] for system in systems]
        if key[0] == "I0":
            expected = [f"{v:.3f}".lstrip("0") for v in found]
        else:
            digits = 2 if key[0] == "format" else 1
            expected = [f"{100 * v:.{digits}f} %" for v in found]
        assert cells == expected


def test_readme_says_what_two_wishes_come_to():
    text = (root() / "README.md").read_text()
    reference = root() / "papermill_runs" / "reference" / "laptop" / "tables"
    metrics = pd.read_csv(reference / "metrics.csv").query(
        "system == 'full' and decoding == 'free'"
    )
    values = metrics.set_index(["task", "metric"])["value"]
    told = [("I1+&I1-", "TC1¬2P"), ("I2~30&I1-", "C1PA"), ("I2>=30&I2<=20", "C1PA")]
    for task, metric in told:
        delivered, unasked = values[task, metric], values[task, f"{metric} without control"]
        assert f"{100 * delivered:.1f} %" in text and f"{100 * unasked:.1f} %" in text
        assert delivered < unasked
    first, second = values["I1+&I1+", "TC1P"], values["I1+&I1+", "TC2P"]
    assert f"the first gets {100 * first:.1f} %, the second {100 * second:.1f} %" in text
    differences = pd.read_csv(reference / "differences.csv").query(
        "a == 'full-free' and b == 'v2-free' and task == 'format'"
    )
    p = differences.set_index("metric")["p corrected"]
    repeats, shown = f"{p['RepeatItem']:.3f}"[1:], f"{p['InHistory']:.2f}"[1:]
    assert f"p is {repeats} and {shown})" in text


def test_the_reference_runs_tables_come_from_its_stored_answers(tmp_path):
    """Byte for byte, without a model."""
    reference = root() / "papermill_runs" / "reference" / "laptop"
    evaluate_run(reference, tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in (reference / "tables").iterdir()}
    assert {f"{name}.csv" for name in TITLES} <= set(made)
