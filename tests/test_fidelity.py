"""What is said of the paper's values is said once, and the pages agree."""

import re

import pytest

from recnb.fidelity import PAPER, deviations
from recnb.profile import Profile, load, root

SECTIONS = ("data", "teacher", "instructions", "model", "base", "sft", "ppo", "evaluation")


def knobs():
    for section in SECTIONS:
        for name, field in Profile.model_fields[section].annotation.model_fields.items():
            yield f"{section}.{name}", field


def test_sentences_of_the_knobs_name_the_same_value():
    named = {}
    for knob, field in knobs():
        match = re.search(r"\(paper: (?:about )?([\d.e-]+)\)", field.description)
        if match:
            named[knob] = float(match[1])
    assert len(named) > 20
    assert named == {knob: PAPER[knob] for knob in named}


def test_every_paper_value_is_of_a_knob():
    assert set(PAPER) <= {knob for knob, _ in knobs()}


@pytest.mark.parametrize("reading", ["value_clip_after", "critic_start", "baseline", "hidden_seen"])
def test_the_papers_reading_is_the_default(reading):
    assert PAPER[f"ppo.{reading}"] == Profile.model_fields["ppo"].default.model_dump()[reading]


def test_the_page_lists_what_the_laptop_profile_changes():
    page = (root() / "docs" / "fidelity.md").read_text(encoding="utf-8")
    table = page.split("## What the laptop profile changes")[1].split("\n## ")[0]
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    found = [tuple(cell.strip().strip("`") for cell in row) for row in rows]
    assert found == deviations(load("laptop"))
