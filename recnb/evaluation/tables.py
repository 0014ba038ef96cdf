"""The paper's tables in four formats: our rows with intervals, the reported rows beside them."""

import html
from functools import lru_cache
from pathlib import Path

import pandas as pd
import yaml

from recnb.artifacts import atomic_path

CONTROLLED = [
    ("I1+&I1-", ["TC1¬2P"]),
    ("I2<=20&I1-", ["C1PA", "TC2P"]),
    ("I1+&I1+", ["TC1P", "TC2P"]),
    ("I2~30&I1-", ["C1PA", "TC2P"]),
    ("I2>=30&I2<=20", ["C1PA", "C2PA"]),
]
LAYOUT = {
    "table2": [("I0", m) for m in ("HR@10", "NDCG@10", "HR@5", "NDCG@5")],
    "table3": [(t, m) for t in ("I1+", "I1-") for m in ("HR@10", "NDCG@10", "TCP")],
    "table4": [(t, m) for t in ("I2<=20", "I2~30", "I2>=30") for m in ("HR@10", "NDCG@10", "CPA")],
    "table5": [
        ("format", m)
        for m in ("CorrectCount", "RepeatItem", "NonExist", "InHistory", "Seen", "HR@K", "NDCG@K")
    ],
    "table7": [(t, m) for t, own in CONTROLLED for m in ("HR@10", *own)],
}
TITLES = {
    "table1": "Table 1: the data",
    "table2": "Table 2: sequential recommendation (I0)",
    "table3": "Table 3: category control (I1); TCP in % (without control)",
    "table4": "Table 4: category proportion control (I2); CPA in % (without control)",
    "table5": (
        "Table 5: formatting quality of longer lists; rates in %, HR and NDCG as fractions "
        "with K = k"
    ),
    "general": (
        "Table 5, continued: general ability; perplexity on unseen conversations, "
        "MMLU and GSM8K in %"
    ),
    "table6": "Table 6: single answers",
    "table7": (
        "Table 7: two controls at once, never met in training; in % (without control). "
        "The last three pairs are ours"
    ),
    "table8": "Table 8: instructions of each task",
    "tallrec": "TALLRec: AUC in % after K examples, mean ± standard deviation over draws",
}
LESS_IS_BETTER = {
    ("I1-", "TCP"),
    ("format", "RepeatItem"),
    ("format", "NonExist"),
    ("format", "InHistory"),
    ("format", "Seen"),
    ("I2<=20&I1-", "TC2P"),
    ("I2~30&I1-", "TC2P"),
}
MARKS = {
    "markdown": ("**{}**", "<u>{}</u>"),
    "html": ("<b>{}</b>", "<u>{}</u>"),
    "latex": ("\\textbf{{{}}}", "\\underline{{{}}}"),
}


def percent(metric):
    """Rates are shown in %, HR and NDCG as fractions, as in the paper."""
    return not metric.startswith(("HR@", "NDCG@"))


@lru_cache
def reported():
    """The paper's reported numbers, as ``paper.yaml`` holds them."""
    return yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))


def layout(metrics, table, marks=None):
    """One table as text cells.

    Args:
        metrics: long form (``protocol.COLUMNS``).
        table: a key of ``LAYOUT``.
        marks: None, or a key of ``MARKS``: best and runner-up of our systems in each column and way
            of decoding are marked in that language.

    Returns:
        DataFrame with columns system, decoding, one per task and metric, and note. Our cells read
        "mean [low, high]", with the value without control in parentheses; a system that was not run
        has its reason as note; the paper's rows follow, with their dataset in the decoding column.
    """
    rows = []
    notes = metrics.groupby(["system", "decoding"])["note"].first()
    index = metrics.set_index(["system", "decoding", "task", "metric"])
    places = _places(metrics) if marks else {}
    answered = metrics[["system", "decoding"]].drop_duplicates()
    for system, decoding in answered.itertuples(index=False):
        row = {"system": system, "decoding": decoding}
        for task, metric in LAYOUT[table]:
            text = _cell(index, system, decoding, task, metric)
            place = places.get((system, decoding, task, metric))
            row[f"{task} {metric}"] = MARKS[marks][place].format(text) if place in (0, 1) else text
        rows.append(row | {"note": notes[system, decoding]})
    paper = reported()[table]
    for dataset in ("Movie", "Steam"):
        for system, numbers in paper[dataset].items():
            row = {"system": f"{system} (paper)", "decoding": dataset}
            values = dict(zip(paper["columns"], numbers, strict=True))
            for task, metric in LAYOUT[table]:
                row[f"{task} {metric}"] = _reported_cell(values.get(f"{task} {metric}"), metric)
            empty = "; empty where the paper has no such column" if "" in row.values() else ""
            rows.append(row | {"note": f"reported{empty}"})
    return pd.DataFrame(rows)


def _places(metrics):
    """Rank of each value among the systems that decode alike: 0 is best, equal values share one."""
    ranks = {}
    groups = metrics.dropna(subset="value").groupby(["decoding", "task", "metric"])
    for (decoding, task, metric), group in groups:
        less = (task, metric) in LESS_IS_BETTER
        order = group["value"].round(6).rank(method="dense", ascending=less).astype(int) - 1
        for system, place in zip(group["system"], order, strict=True):
            ranks[system, decoding, task, metric] = place
    return ranks


def _cell(index, system, decoding, task, metric):
    key = (system, decoding, task, metric)
    if key not in index.index or pd.isna(index.loc[key].value):
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
    return f"{value:.2f}" if percent(metric) else f"{value:.4f}"


def _number(value, metric):
    return f"{100 * value:.2f}" if percent(metric) else f"{value:.4f}"


def write_tables(metrics, folder):
    """Write ``metrics.csv``, and each table of ``LAYOUT`` as CSV, Markdown, LaTeX and HTML.

    Returns:
        ``{name: DataFrame}``, the tables without marks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics.to_csv(folder / "metrics.csv", index=False, float_format="%.6f")
    tables = {name: layout(metrics, name) for name in LAYOUT}
    for name, table in tables.items():
        marked = {language: layout(metrics, name, language) for language in MARKS}
        marked["html"]["note"] = marked["html"]["note"].map(html.escape)
        texts = {language: _text(cells, name, language) for language, cells in marked.items()}
        _write(table, folder, name, texts)
    return tables


def write_frame(frame, folder, name):
    """Write a table of plain text cells as CSV, Markdown, LaTeX and HTML."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = frame.fillna("").astype(str)
    # marks use braces, plain cells must not
    braces = str.maketrans({"\\": "\\textbackslash ", "{": "\\{", "}": "\\}"})
    escaped = {
        "markdown": frame.map(lambda cell: cell.replace("|", "\\|").replace("\n", " ")),
        "latex": frame.map(lambda cell: cell.translate(braces)),
        "html": frame.map(html.escape),
    }
    texts = {language: _text(cells, name, language) for language, cells in escaped.items()}
    _write(frame, folder, name, texts)


def _write(frame, folder, name, texts):
    frame.to_csv(folder / f"{name}.csv", index=False)
    for suffix, language in (("md", "markdown"), ("tex", "latex"), ("html", "html")):
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(texts[language], encoding="utf-8")


def _text(frame, name, language):
    """A table as text; its cells are of that language, but for LaTeX's special characters."""
    if language == "latex":
        cells = frame.rename(columns=_latex).map(_latex)
        return cells.to_latex(
            index=False, escape=False, caption=_latex(TITLES[name]), label=f"tab:{name}"
        )
    if language == "markdown":
        return f"{TITLES[name]}\n\n{frame.to_markdown(index=False, disable_numparse=True)}\n"
    return frame.rename(columns=html.escape).to_html(index=False, border=0, escape=False)


def _latex(text):
    for sign in "%&#_$":
        text = text.replace(sign, "\\" + sign)
    signs = {
        "~": "$\\approx$",
        "<=": "$\\leq$",
        ">=": "$\\geq$",
        "¬": "$\\neg$",
        "±": "$\\pm$",
        "^": "\\^{}",
    }
    for sign, latex in signs.items():
        text = text.replace(sign, latex)
    return text


def table1(numbers):
    """Users, items, interactions and sparsity of this run's data beside the paper's two datasets.

    Args:
        numbers: from ``recnb.interactions.statistics``.
    """
    paper = reported()["table1"]
    rows = [("this run", *(numbers[column] for column in paper["columns"]))]
    rows += [(f"{dataset} (paper)", *paper[dataset]) for dataset in ("Movie", "Steam")]
    frame = pd.DataFrame(rows, columns=["dataset", *paper["columns"]])
    whole = ("users", "items", "interactions")
    counts = {column: frame[column].map("{:,}".format) for column in whole}
    return frame.assign(**counts, sparsity=frame["sparsity"].map("{:.2%}".format))


def table6(cases):
    """Each system's list in the case studies as text, marks in brackets.

    Args:
        cases: DataFrame case, wish, system, place, title, mark (``cases.case_rows``).
    """
    rows = []
    for (_, wish, system), group in cases.groupby(["case", "wish", "system"], sort=False):
        lines = []
        for r in group.itertuples():
            mark = f" [{r.mark}]" if r.mark else ""
            lines.append(f"{r.place}. {r.title}{mark}")
        rows.append((wish, system, "; ".join(lines)))
    return pd.DataFrame(rows, columns=["wish", "system", "answer"])


def table8(counts):
    """Counts of each instruction type beside the paper's Table 8."""
    paper = reported()["table8"]
    columns = {"this run": counts}
    for dataset in ("Movie", "Steam"):
        columns[f"paper, {dataset}"] = dict(zip(paper["columns"], paper[dataset], strict=True))
    table = pd.DataFrame(columns).reindex(paper["columns"]).fillna(0).astype(int)
    table.loc["ALL"] = table.sum()
    return table
