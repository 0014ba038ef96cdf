"""What a lesson expects never stops real data; what must hold of the program says what broke."""

import ast
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from recnb.catalog import Catalog
from recnb.instructions.synthesis import _no_list
from recnb.lesson import NOT_SEEN
from recnb.report import _warnings, glossary, jinja2
from recnb.teacher.ranking import teacher_beaten

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_assertion_of_a_notebook_has_a_message(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                assert not isinstance(node, ast.Assert) or node.msg, ast.unparse(node)


def cells_of(path, kind):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [("".join(cell["source"]), cell) for cell in cells if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_says_was_seen_its_committed_run_shows(path):
    sentences, printed = [], ""
    for source, cell in cells_of(path, "code"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "saw":
                sentences.append(node.args[1].value)
                assert "nbval-ignore-output" not in cell["metadata"].get("tags", []), "not compared"
        printed += "".join("".join(out.get("text", "")) for out in cell["outputs"])
    assert len(sentences) >= 3
    for sentence in sentences:
        assert f"seen: {sentence}\n" in printed
    assert NOT_SEEN not in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_is_a_whole_lesson(path):
    pages = [source for source, _ in cells_of(path, "markdown")]
    text = "\n\n".join(pages)
    for wanted in ("| You will |", "| You need |", "| Time |", "**Predict.**", "## What you saw"):
        assert wanted in text, wanted
    assert "$" in text and "## Exercises" in text
    code = cells_of(path, "code")
    assert "](figures/" in text or any("plots.save(" in source for source, _ in code)
    told = re.findall(
        r"^\*\*\d\.\d [^*]+\*\* \((★+), ([^)]+)\)(.*?)(?=^\*\*\d|\Z)", text, re.M | re.S
    )
    assert len(told) >= 3 and all("<details>" in rest for *_, rest in told)
    stars = {stars for stars, *_ in told}
    assert len(stars) > 1 and "★★★" in stars, "difficulty does not rise"
    assert len(re.findall(r"\]\(https?://", text.split("## To read")[1])) >= 2
    for source, cell in code:
        for out in cell["outputs"]:
            if "image/png" in out.get("data", {}):
                assert out["metadata"]["image/png"]["alt"].strip(), source


def test_the_lessons_have_twenty_five_exercises_to_fill_in():
    tags = [cell["metadata"].get("tags", []) for p in NOTEBOOKS for _, cell in cells_of(p, "code")]
    assert sum("exercise" in tag for tag in tags) >= 25


def test_the_teacher_is_compared_with_every_baseline_on_both_metrics():
    table = pd.DataFrame(
        {"HR@10": [0.081, 0.109, 0.05], "NDCG@10": [0.04, 0.03, 0.05]},
        ["SASRec", "Transitions", "ItemKNN"],
    )
    first, second = teacher_beaten(table)
    assert "HR@10 0.081" in first and "Transitions (0.109)" in first
    assert "NDCG@10 0.040" in second and "ItemKNN (0.050)" in second
    assert not teacher_beaten(table.drop(["Transitions", "ItemKNN"]))


def test_the_report_collects_the_warnings_of_all_stages():
    manifests = {"01_data": {}, "02_teacher": {"warnings": ["weak <labels>"]}}
    found = _warnings(manifests, ["04_sft"])
    assert found[0] == ("02_teacher", "weak <labels>") and found[1][0] == "04_sft"
    assert not _warnings({"01_data": {}}, [])
    page = jinja2.PackageLoader("recnb", "report").get_source(jinja2.Environment(), "page.html")[0]
    block = page[page.index("{% if warnings %}") : page.index("<h2>Summary")]
    template = jinja2.Environment(autoescape=True).from_string(block)

    def shown(warnings):
        return template.render(warnings=warnings, explain=glossary.explain, met=[])

    assert "02_teacher: weak &lt;labels&gt;" in shown(found)
    assert "Warnings" not in shown([])


def test_a_task_that_cannot_be_posed_names_the_category(smoke):
    one = Catalog(["a", "b"], [{"Solo"}, {"Solo"}])
    assert "one category (Solo)" in _no_list("I2<=", 0, 200, one, smoke.instructions)
    two = Catalog(["a", "b", "c"], [{"Solo"}, {"Party"}, {"Party"}])
    sentence = _no_list("I2~", 0, 200, two, smoke.instructions)
    assert "of 3 items 1 are of the smallest category (Solo), 2 of the largest (Party)" in sentence
    assert "instructions.k_max" in sentence
