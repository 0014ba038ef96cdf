"""The paper's tables in four formats: our rows with intervals, the reported rows beside them."""

from functools import lru_cache
from pathlib import Path

import pandas as pd
import yaml

from recnb import text_safety
from recnb.artifacts import atomic_path, write_csv

CONTROLLED = [  # each with Strict behind its own metrics
    ("I1+&I1-", ["TC1¬2P"]),
    ("I2<=20&I1-", ["C1PA", "TC2P"]),
    ("I1+&I1+", ["TC1P", "TC2P"]),
    ("I2~30&I1-", ["C1PA", "TC2P"]),
    ("I2>=30&I2<=20", ["C1PA", "C2PA"]),
]
LAYOUT = {
    "table2": [("I0", m) for m in ("HR@10", "NDCG@10", "HR@5", "NDCG@5")],
    "table3": [(t, m) for t in ("I1+", "I1-") for m in ("HR@10", "NDCG@10", "TCP", "Strict")],
    "table4": [
        (t, m) for t in ("I2<=20", "I2~30", "I2>=30") for m in ("HR@10", "NDCG@10", "CPA", "Strict")
    ],
    "table5": [
        ("format", m)
        for m in ("CorrectCount", "RepeatItem", "NonExist", "InHistory", "Seen", "HR@K", "NDCG@K")
    ],
    "table7": [(t, m) for t, own in CONTROLLED for m in ("HR@10", *own, "Strict")],
}
TITLES = {
    "table1": "Table 1: the data",
    "table2": "Table 2: sequential recommendation (I0)",
    "primary": "Primary comparisons, fixed in docs/primary.md",
    "table3": "Table 3: category control (I1); TCP and Strict in % (without control)",
    "table4": "Table 4: category proportion control (I2); CPA and Strict in % (without control)",
    "form": (
        "Form of the free lists of every task: lists with exactly k entries, and shares of their "
        "entries that are repeated, in no catalogue, shown by the prompt, seen by the user; "
        "Strict: what was asked for, whole; in %"
    ),
    "exactness": (
        "Exactness of about m %: lists within one item of it (CPA) and right to the item (Exact), "
        "in %; mean error in items (Bias, below 0: too few)"
    ),
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
    "halves": (
        "Each half of two wishes: share of the list that is of its category, in %, when nothing is "
        "said (unsaid), this wish alone (alone), both (both); kept: 1 = as if alone, 0 = not "
        "heard, below 0 = turned round"
    ),
    "table8": "Table 8: instructions of each task",
    "tallrec": "TALLRec: AUC in % after K examples, mean ± standard deviation over draws",
}
TITLE_OF_WORDING = (
    "The same wishes in other words; free decoding, in %, paraphrases as mean (range)"
)
"""The table ``wording``, which only ``evaluation.wordings`` makes."""
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
PLAIN = {
    "markdown": text_safety.markdown,
    "html": lambda text: text_safety.html(text_safety.one_line(text)),
    "latex": text_safety.latex,
}
"""What makes plain text of each language."""


def percent(metric):
    """Rates are shown in %, HR and NDCG as fractions, as in the paper; Bias is in items."""
    return not metric.startswith(("HR@", "NDCG@", "Bias"))


@lru_cache
def reported():
    """The paper's reported numbers, as ``paper.yaml`` holds them."""
    return yaml.safe_load((Path(__file__).parent / "paper.yaml").read_text(encoding="utf-8"))


def layout(metrics, table, marks=None):
    """One table as text cells.

    Args:
        metrics: long form (``protocol.COLUMNS``).
        table: a key of ``LAYOUT``.
        marks: None, or a key of ``MARKS``: cells are text of that language, and best and runner-up
            of our systems in each column and way of decoding are marked.

    Returns:
        DataFrame with columns system, decoding, one per task and metric, and note. Our cells read
        "mean [low, high]", with the value without control in parentheses; a system that was not run
        has its reason as note; the paper's rows follow, with their dataset in the decoding column.
    """
    rows, plain = [], PLAIN[marks] if marks else str
    notes = metrics.groupby(["system", "decoding"])["note"].first()
    index = metrics.set_index(["system", "decoding", "task", "metric"])
    places = _places(metrics) if marks else {}
    answered = metrics[["system", "decoding"]].drop_duplicates()
    for system, decoding in answered.itertuples(index=False):
        row = {"system": plain(system), "decoding": plain(decoding)}
        for task, metric in LAYOUT[table]:
            text = _cell(index, system, decoding, task, metric)
            place = places.get((system, decoding, task, metric))
            row[f"{task} {metric}"] = MARKS[marks][place].format(text) if place in (0, 1) else text
        rows.append(row | {"note": plain(notes[system, decoding])})
    paper = reported()[table]
    for dataset in ("Movie", "Steam"):
        for system, numbers in paper[dataset].items():
            row = {"system": plain(f"{system} (paper)"), "decoding": dataset}
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
    write_csv(metrics, folder / "metrics.csv", 6)
    tables = {name: layout(metrics, name) for name in LAYOUT}
    for name, table in tables.items():
        marked = {language: layout(metrics, name, language) for language in MARKS}
        texts = {language: _text(cells, name, language) for language, cells in marked.items()}
        _write(table, folder, name, texts)
    return tables


def write_frame(frame, folder, name):
    """Write a table of plain text cells as CSV, Markdown, LaTeX and HTML."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = frame.fillna("").astype(str)
    texts = {language: _text(frame.map(PLAIN[language]), name, language) for language in PLAIN}
    _write(frame, folder, name, texts)


def _write(frame, folder, name, texts):
    write_csv(frame.map(text_safety.spreadsheet), folder / f"{name}.csv")
    for suffix, language in (("md", "markdown"), ("tex", "latex"), ("html", "html")):
        with atomic_path(folder / f"{name}.{suffix}") as temporary:
            temporary.write_text(texts[language], encoding="utf-8")


def title_of(name):
    """What stands above a table."""
    return TITLE_OF_WORDING if name == "wording" else TITLES[name]


def _text(frame, name, language):
    """A table as text; its cells are text of that language already, its column names are not."""
    if language == "latex":
        frame = frame.rename(columns=text_safety.latex)
        caption = text_safety.latex(title_of(name))
        return frame.to_latex(index=False, escape=False, caption=caption, label=f"tab:{name}")
    if language == "markdown":
        return f"{title_of(name)}\n\n{frame.to_markdown(index=False, disable_numparse=True)}\n"
    return frame.rename(columns=text_safety.html).to_html(index=False, border=0, escape=False)


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


def form(metrics):
    """Formatting of every task's free lists in %, as text cells; an automaton's lists have no
    error.

    Args:
        metrics: long form.
    """
    names = ["CorrectCount", "RepeatItem", "NonExist", "InHistory", "Seen", "Strict"]
    free = metrics[(metrics["decoding"] == "free") & metrics["metric"].isin(names)]
    free = free.dropna(subset="value")
    rows = []
    for (system, task), group in free.groupby(["system", "task"], sort=False):
        values = group.set_index("metric")["value"]
        rates = {name: f"{100 * values[name]:.2f}" for name in names}
        rows.append({"system": system, "task": task, "lists": group["n"].iloc[0]} | rates)
    return pd.DataFrame(rows, columns=["system", "task", "lists", *names])


def exactness(by_k, not_run):
    """How exactly "about m %" is kept, as text cells.

    Args:
        by_k: ``protocol.proportion_by_k`` of each system, with columns system and decoding.
        not_run: ``{system: reason}``.
    """
    rows = []
    for key, group in by_k.groupby(["system", "decoding", "task", "k"], sort=False):
        row = dict(zip(("system", "decoding", "task", "k"), key, strict=True))
        row["lists"] = group["n"].iloc[0]
        for r in group.itertuples():
            scale, form = (1, "{:+.2f}") if r.metric == "Bias" else (100, "{:.2f}")
            value, low, high = (form.format(scale * x) for x in (r.value, r.low, r.high))
            row[r.metric] = f"{value} [{low}, {high}]"
        rows.append(row)
    rows += [{"system": s, "note": f"not run: {reason}"} for s, reason in not_run.items()]
    columns = ["system", "decoding", "task", "k", "lists", "CPA", "Exact", "Bias", "note"]
    return pd.DataFrame(rows, dtype=object).reindex(columns=columns).fillna("")


TALLREC_NOT_RUN = {
    "DROS": (
        "a sequential recommender trained for shifts of the distribution over time, "
        "which this kit does not implement"
    ),
    "GRU-BERT": "needs a pretrained BERT for the titles, which this kit does not bring",
    "DROS-BERT": "needs DROS and a pretrained BERT, neither of which this kit brings",
}
"""Why rows that TALLRec reports have none of ours beside them."""


def tallrec_table(table):
    """Notebook 08's table with a row, and the reason in it, for each system that the kit lacks.

    Args:
        table: text cells, as the notebook stored them.
    """
    theirs = table["system"].str.endswith(" (paper)")
    rows = []
    for domain in table[theirs]["domain"].unique():
        for system, reason in TALLREC_NOT_RUN.items():
            rows.append({"system": system, "domain": domain, "note": f"not run: {reason}"})
    parts = [table[~theirs], pd.DataFrame(rows, columns=table.columns), table[theirs]]
    return pd.concat(parts, ignore_index=True).fillna("")


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
    pairs = [task for task in counts if "&" in task]  # the paper trains none
    table = pd.DataFrame(columns).reindex([*paper["columns"], *pairs]).fillna(0).astype(int)
    table.loc["ALL"] = table.sum()
    return table
