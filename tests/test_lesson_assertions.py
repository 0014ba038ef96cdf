"""What a lesson expects never stops real data; what must hold of the program says what broke."""

import ast
import json
from pathlib import Path

import pandas as pd
import pytest

from recnb.catalog import Catalog
from recnb.instructions.synthesis import _no_list
from recnb.report import _warnings, glossary, jinja2
from recnb.teacher.ranking import teacher_beaten

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_assertion_of_a_notebook_has_a_message(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                assert not isinstance(node, ast.Assert) or node.msg, ast.unparse(node)


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
