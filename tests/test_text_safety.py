"""Hostile titles, categories, answers and notes through everything that writes them."""

import csv
import html.parser
import re
import sys
from itertools import product

import markdown_it
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recnb import RecnbError, cli, plots, text_safety
from recnb.catalog import Catalog
from recnb.controls import Include
from recnb.evaluation.cases import case_html, case_rows
from recnb.evaluation.protocol import COLUMNS
from recnb.evaluation.tables import LAYOUT, table6, write_frame, write_tables
from recnb.interactions import Histories
from recnb.requests import Request, Response
from tests.catalogues import GAMES, tables, write

NASTY = [
    "<script>alert(1)</script>",
    "</pre><img src=x onerror=alert(1)>",
    "&lt;b&gt; &#60;i&#62; & Co",
    "[click](javascript:alert(1)) ![x](http://x/y.png) [a][b] <http://x>",
    "a|b \\| c \\\\| d\\",
    "`code` **bold** __under__ *a* _b_ ~~gone~~ ~x~ a_b",
    "$x^2$ and \\(y\\) \\\\(z\\\\) \\[w\\] 50 % # & {} ^ ~",
    "\\input{/etc/passwd} \\write18{id} \\\\[99cm] \\end{tabular}",
    "[2cm] first * [1]",
    "{{ 7 * 7 }} {% raw %} {0} %s",
    '=HYPERLINK("http://x","y")',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+cmd|' /C calc'!A0",
    "one\ntwo\r\nthree\n\nfour",
    "nul \0 bell \a escape \x1b[31m \x1b]8;;http://x\x1b\\y\x1b]8;;\x1b\\ csi \x9b2J",
    "left \u202e right \u2066 alone \u2028 line \u2029",
]
any_nasty = pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))


def plain(text):
    """Blanks do not count, signs do."""
    return " ".join(text.split())


def harmless(text):
    """Nothing that gives orders to a terminal or to a reader's eyes is left."""
    text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", text)
    return text


class Cells(html.parser.HTMLParser):
    """The texts of a document's cells, and what tags and attributes it has."""

    def __init__(self, text, cell="td"):
        super().__init__(convert_charrefs=True)
        self.cell, self.cells, self.tags, self.attributes = cell, [], set(), set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == self.cell:
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


TABLE = {"table", "thead", "tbody", "tr", "th", "td", "b", "u", "p", "strong"}


def from_csv(text):
    return [cell for row in csv.reader(text.splitlines(keepends=True)) for cell in row]


def from_html(text):
    found = Cells(text)
    assert found.tags <= TABLE and found.attributes <= {"class", "style"}
    return found.cells


def from_markdown(text):
    """As a reader of GitHub's Markdown, with formulas as Jupyter finds them, would render it."""
    reader = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    assert not re.search(r"(?<!\\)\$|\\\\?[(\[]", text)
    return from_html(reader.render(text))


KNOWN = (
    r"\\(begin|end)\{(table|tabular)\}|\\caption|\\label|\\(top|mid|bottom)rule"
    r"|\\textbf|\\underline|\$\\(approx|leq|geq|neg|pm)\$"
)


def from_latex(text):
    """Cells of the body; each backslash begins something known, and braces are in pairs."""
    body = text[text.index("\\midrule") : text.index("\\bottomrule")].removeprefix("\\midrule\n")
    signs = {r"\textbackslash{}": "\\", r"\^{}": "^"} | {f"\\{c}": c for c in "%&#_${}"}
    bare = re.sub("|".join(map(re.escape, signs)), "", re.sub(KNOWN, "", text)).replace(
        " \\\\\n", ""
    )
    assert not re.search(r"[\\$%#^_~]", bare.replace("&", "")), bare
    assert all(bare[:i].count("{") >= bare[:i].count("}") for i in range(len(bare))) and bare.count(
        "{"
    ) == bare.count("}")
    cells = []
    for row in body.split(" \\\\\n")[:-1]:
        assert not row.startswith(("[", "*"))
        cells += re.split(r"(?<!\\) ?& ?", row)
    for sign, shown in signs.items():
        cells = [cell.replace(sign, shown) for cell in cells]
    return [re.sub(r"^\{([\[*])\}", r"\1", cell) for cell in cells]


READERS = {"csv": from_csv, "html": from_html, "md": from_markdown, "tex": from_latex}


def is_formula(cell):
    return cell.lstrip().startswith(tuple("=+-@")) and not re.match(r"[+-]?[\d.]+($| \[)", cell)


def texts_of(folder, name):
    """``{suffix: (text, cells)}`` of a table that was written, none of it able to do anything."""
    found = {}
    for suffix, read in READERS.items():
        text = (folder / f"{name}.{suffix}").read_bytes().decode("utf-8")
        harmless(text)
        found[suffix] = [plain(cell) for cell in read(text)]
    assert not any(map(is_formula, from_csv((folder / f"{name}.csv").read_text())))
    return found


@any_nasty
def test_tables_of_text(nasty, tmp_path):
    write_frame(pd.DataFrame({"wish": [nasty], "answer": [f"1. {nasty}"]}), tmp_path, "table6")
    shown = plain(text_safety.visible(nasty))
    for suffix, cells in texts_of(tmp_path, "table6").items():
        if suffix == "tex":
            shown_there = shown.replace("~", "$\\approx$")
            assert cells == [shown_there, f"1. {shown_there}"]
        elif suffix == "csv":
            wish = plain(text_safety.spreadsheet(nasty))
            assert cells[2:] == [wish, f"1. {shown}"]
            assert wish.removeprefix("'").strip() == shown
        else:
            assert cells[-2:] == [shown, f"1. {shown}"], suffix


def test_tables_of_metrics(tmp_path):
    rows = []
    for table, kinds in LAYOUT.items():
        for (task, metric), nasty in product(kinds, NASTY):
            rows.append((table, nasty, "free", task, metric, 0.5, 0.2, 0.6, 9, nasty))
    write_tables(pd.DataFrame(rows, columns=COLUMNS), tmp_path)
    for name in LAYOUT:
        cells = texts_of(tmp_path, name)
        assert len(cells["html"]) == len(cells["md"]) == len(cells["tex"])
        for nasty in NASTY:
            shown = text_safety.one_line(nasty)
            assert cells["html"].count(shown) == cells["md"].count(shown) == 2


@any_nasty
def test_case_studies(nasty):
    catalog = Catalog([nasty, "b", "c"], [{nasty}, {nasty}, {"B"}])
    request = Request(0, (2, 3), (2, 3), Include(nasty), 2, 1)
    answers = {nasty: Response(nasty, [nasty, "x"], [1, None]), "silent": Response(nasty)}
    page = harmless(case_html(request, answers, catalog, 0))
    found = Cells(page, "li")
    assert found.tags == {"pre", "p", "span", "div", "b", "ol", "li"}
    assert found.attributes == {"style", "class"}
    rows = case_rows(1, request, answers, catalog)
    assert rows["title"].iloc[0] == nasty  # data stay exact
    assert nasty in table6(rows)["answer"].iloc[0]


def test_figures(tmp_path):
    formula = "$\\nothing{$"
    catalog = Catalog(["a", "b"], [{*NASTY, formula}, {formula}])
    plots.save(plots.dataset(Histories([[1, 2, 1]]), catalog), tmp_path, "dataset")
    frame = pd.DataFrame({"system": "v2", "category": [*NASTY, formula]})
    frame = frame.assign(requested=0.5, delivered=0.5)
    plots.save(plots.control_dial(frame), tmp_path, "dial")
    plots.save(plots.token_rewards([*NASTY, formula], [1] * 19), tmp_path, "tokens")


@any_nasty
def test_the_terminal(nasty, tmp_path, monkeypatch, capsys):
    items, log = tables(GAMES, users=20, items=80)
    items["title"] = [nasty, nasty, *items["title"][2:]]
    items["categories"] = nasty.replace("|", "/") + "|" + items["categories"]
    items.loc[5, "title"] = f"<b>{nasty}</b>"
    folder = write(tmp_path / "x\x1b[31m", items, log)
    monkeypatch.setattr(sys, "argv", ["recnb", "check-data", str(folder), "--profile", "smoke"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr()
    assert harmless(said.out + said.err).count("x\\x1b[31m")

    def fails():
        raise RecnbError(f"title {nasty}: is wrong\nnext line")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main()
    assert harmless(capsys.readouterr().err).endswith(": is wrong\nnext line\n")


def test_half_a_surrogate_pair_is_written_out():
    assert text_safety.visible("a \ud800 b") == "a \\ud800 b"


@given(st.text(max_size=60))
def test_any_text_survives_a_table_of_markdown_and_html(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("text")
    write_frame(pd.DataFrame({"wish": [text], "answer": ["x"]}), folder, "table6")
    shown = plain(text_safety.visible(text))
    cells = texts_of(folder, "table6")
    assert cells["html"][-2:] == [shown, "x"]
    assert cells["md"][-2:] == [shown, "x"]
    assert len(cells["tex"]) == 2


@pytest.mark.parametrize("number", ["-0.12", "-0.12 (0.30) [-0.20, 0.10]", "+1e-5"])
def test_numbers_are_no_formulas(number):
    assert text_safety.spreadsheet(number) == number
