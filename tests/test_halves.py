"""Two wishes followed one by one: what each half does alone and beside the other."""

import json

import pandas as pd
import pytest

from recnb.catalog import Catalog
from recnb.controls import About, AllOf, Exclude, Include, NoControl
from recnb.evaluation.halves import halves, readable, sentences
from recnb.instructions.templates import numbered

WORLD = Catalog(
    [f"title {n}" for n in range(1, 13)], [{"A"} if n <= 6 else {"B"} for n in range(1, 13)]
)
A, B = [1, 2, 3, 4], [7, 8, 9, 10]


def answers(rows):
    """Stored answers: (task, user, control, items)."""
    stored = [
        (task, user, 4, json.dumps(control.to_json()), numbered(items, WORLD))
        for task, user, control, items in rows
    ]
    return pd.DataFrame(stored, columns=["task", "user", "k", "control", "text"])


def pair(items, user=0):
    return ("I1+&I1-", user, AllOf((Include("A"), Exclude("B"))), items)


ALONE = [
    ("I0", 0, NoControl(), [1, 2, 7, 8]),
    ("I1+", 0, Include("A"), A),
    ("I1-", 0, Exclude("B"), A),
]


@pytest.mark.parametrize(
    "items, include, exclude",
    [(A, 1, 1), (B, -1, -1), ([1, 7, 2, 8], 0, 0), ([1, 2, 3, 7], 0.5, 0.5)],
)
def test_kept_is_one_as_alone_zero_unheard_and_negative_turned_round(items, include, exclude):
    found = halves(answers([*ALONE, pair(items)]), WORLD).set_index("half")
    assert found.loc["include", ["unsaid", "alone"]].tolist() == [0.5, 1.0]
    assert found.loc["exclude", ["unsaid", "alone"]].tolist() == [0.5, 0.0]
    assert found["kept"].to_dict() == {"include": include, "exclude": exclude}


def test_a_wish_about_another_category_is_not_the_same_wish_alone():
    rows = [ALONE[0], ("I1+", 0, Include("B"), B), pair(A)]
    found = halves(answers(rows), WORLD)
    assert found["alone"].isna().all() and found["kept"].isna().all()
    assert readable(found)["alone"].tolist() == ["", ""]


def test_titles_that_are_missing_are_of_no_category():
    found = halves(answers([*ALONE, pair([1])]), WORLD).set_index("half")
    assert found.loc["include", "both"] == 0.25


def test_a_wish_that_moves_nothing_alone_has_no_share_that_is_kept():
    half = About("A", "1/2")
    both = AllOf((half, Exclude("B")))
    rows = [*ALONE, ("I2~30", 0, half, [1, 7, 2, 8]), ("I2~30&I1-", 0, both, A)]
    found = halves(answers(rows), WORLD).set_index("half")
    assert found.index.tolist() == ["about 50 %", "exclude"]
    assert pd.isna(found.loc["about 50 %", "kept"]) and found.loc["exclude", "kept"] == 1


def test_two_wishes_of_one_kind_are_told_apart_and_the_words_fit_the_numbers():
    both = AllOf((Include("A"), Include("B")))
    rows = [*ALONE, ("I1+&I1+", 0, both, [1, 7, 8, 9]), pair(B)]
    found = halves(answers(rows), WORLD)
    alike = found[found["task"] == "I1+&I1+"]
    assert alike["half"].tolist() == ["include (1)", "include (2)"]
    assert alike["both"].tolist() == [0.25, 0.75]
    said = sentences(found.assign(system="full", decoding="free"))
    assert said == [
        "full, I1+&I1-, include: 50 % of the list unsaid, 100 % said alone, 0 % beside the other "
        "wish: turned round.",
        "full, I1+&I1-, exclude: 50 % of the list unsaid, 0 % said alone, 100 % beside the other "
        "wish: turned round.",
    ]


def test_what_is_kept_is_a_matter_of_those_who_were_asked_for_the_half_alone():
    others = [("I0", 1, NoControl(), A), pair(B, user=1)]  # nobody asked user 1 for one half
    found = halves(answers([*ALONE, pair(A), *others]), WORLD).set_index("half")
    assert found["n"].tolist() == [2, 2] and found.loc["include", "both"] == 0.5
    assert found["kept"].to_dict() == {"include": 1, "exclude": 1}
