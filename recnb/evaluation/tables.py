"""Tables 2 to 5 laid out as the paper's: our rows with intervals, the paper's reported rows beside them."""

from functools import lru_cache
from pathlib import Path

import pandas as pd
import yaml

PERCENT = {"TCP", "CPA", "CorrectCount", "RepeatItem", "NonExist", "InHistory", "Seen"}
LAYOUT = {
    "table2": [("I0", m) for m in ("HR@10", "NDCG@10", "HR@5", "NDCG@5")],
    "table3": [(t, m) for t in ("I1+", "I1-") for m in ("HR@10", "NDCG@10", "TCP")],
    "table4": [(t, m) for t in ("I2<=20", "I2~30", "I2>=30") for m in ("HR@10", "NDCG@10", "CPA")],
    "table5": [("format", m) for m in ("CorrectCount", "RepeatItem", "NonExist", "InHistory", "Seen")],
}
TITLES = {
    "table2": "Table 2: sequential recommendation (I0)",
    "table3": "Table 3: category control (I1); TCP in % (without control)",
    "table4": "Table 4: category proportion control (I2); CPA in % (without control)",
    "table5": "Table 5: formatting quality at k = 11 to 15, in %",
}


@lru_cache
def reported():
    """The paper's reported numbers, as ``paper.yaml`` holds them."""
    return yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))


def layout(metrics, table):
    """One table as text cells.

    Args:
        metrics: long form (``protocol.COLUMNS``).
        table: "table2" ... "table5".

    Returns:
        DataFrame with columns system, decoding, then one per task and metric. Our cells read "mean [low, high]", with
        the value without control in parentheses; the paper's rows follow, with their dataset in the decoding column.
    """
    rows = []
    index = metrics.set_index(["system", "decoding", "task", "metric"])
    for system, decoding in metrics[["system", "decoding"]].drop_duplicates().itertuples(index=False):
        row = {"system": system, "decoding": decoding}
        for task, metric in LAYOUT[table]:
            row[f"{task} {metric}"] = _cell(index, system, decoding, task, metric)
        rows.append(row)
    paper = reported()[table]
    for dataset in ("Movie", "Steam"):
        for system, numbers in paper[dataset].items():
            row = {"system": f"{system} (paper)", "decoding": dataset}
            values = dict(zip(paper["columns"], numbers, strict=True))
            for task, metric in LAYOUT[table]:
                row[f"{task} {metric}"] = _reported_cell(values.get(f"{task} {metric}"), metric)
            rows.append(row)
    return pd.DataFrame(rows)


def _cell(index, system, decoding, task, metric):
    key = (system, decoding, task, metric)
    if key not in index.index:
        return ""
    found, text = index.loc[key], ""
    without = (system, decoding, task, f"{metric} without control")
    if without in index.index:
        text = f" ({_number(index.loc[without].value, metric)})"
    low, high = _number(found.low, metric), _number(found.high, metric)
    return f"{_number(found.value, metric)}{text} [{low}, {high}]"


def _reported_cell(value, metric):
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{value[0]:.2f} ({value[1]:.2f})"
    return f"{value:.2f}" if metric in PERCENT else f"{value:.4f}"


def _number(value, metric):
    return f"{100 * value:.2f}" if metric in PERCENT else f"{value:.4f}"


def write_tables(metrics, folder):
    """Write ``metrics.csv`` and each table as CSV into a folder; returns ``{name: DataFrame}``."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics.to_csv(folder / "metrics.csv", index=False, float_format="%.6f")
    tables = {name: layout(metrics, name) for name in LAYOUT}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return tables


def table8(counts):
    """Counts of each instruction type beside the paper's Table 8."""
    paper = {
        "Movie": {"I0": 13218, "I1+": 6609, "I1-": 6609, "I2<=": 4406, "I2>=": 4406, "I2~": 4406, "I3": 18744, "I4": 29199},
        "Steam": {"I0": 12658, "I1+": 6329, "I1-": 6329, "I2<=": 4219, "I2>=": 4219, "I2~": 4220, "I3": 8572, "I4": 23273},
    }
    table = pd.DataFrame({"this run": counts, "paper, Movie": paper["Movie"], "paper, Steam": paper["Steam"]})
    table = table.reindex(list(paper["Movie"])).fillna(0).astype(int)
    table.loc["ALL"] = table.sum()
    return table
