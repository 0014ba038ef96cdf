"""A sample that is too long is left out and counted; too many of them are an error."""

import copy
import json
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recnb import RecnbError
from recnb.catalog import Catalog
from recnb.instructions.checks import dataset_card, fitting
from recnb.lm.loading import known_codec
from recnb.profile import Model, Sft, load, root
from recnb.sft import encode, train_sft
from tests.test_templates import CATALOG, tokenizer_of


class Letters:
    """A codec of one token a letter, and one at the answer's end."""

    def prompt(self, text):
        return [ord(letter) for letter in text]

    def answer(self, text):
        return [*self.prompt(text), 0]


def samples(task, lengths):
    """Samples with so many tokens each, two of them the answer's."""
    rows = [(task, "x" * (length - 2), "y") for length in lengths]
    return pd.DataFrame(rows, columns=["task", "prompt", "completion"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(2, 12)), max_size=90))
def test_what_is_left_out_is_what_is_too_long(drawn):
    frame = pd.concat([samples(task, [length]) for task, length in drawn] or [samples("a", [])])
    lost = {}
    for task in sorted(set(frame["task"])):
        long = [length for name, length in drawn if name == task and length > 10]
        if long:
            lost[task] = len(long)
    total = {task: sum(name == task for name, _ in drawn) for task in lost}
    if any(count > total[task] / 20 for task, count in lost.items()):
        with pytest.raises(RecnbError, match="left out; the longest"):
            fitting(frame, Letters(), 10)
        return
    pairs, left_out = fitting(frame, Letters(), 10)
    kept = [length for _, length in drawn if length <= 10]
    assert [len(question) + len(answer) for question, answer in pairs] == kept
    assert left_out == lost


def test_five_in_a_hundred_go_and_six_are_an_error():
    frame = pd.concat([samples("I0", [9] * 95 + [11] * 5), samples("I4", [9] * 50)])
    data, left_out = encode(frame, Letters(), 10)
    assert left_out == {"I0": 5} and len(data) == 145
    assert set(map(tuple, data["completion_mask"])) == {(0,) * 7 + (1, 1)}
    more = pd.concat([frame, samples("I0", [30])])
    with pytest.raises(RecnbError) as error:
        fitting(more, Letters(), 10)
    for said in ("task I0: 6 of 101", "sft.max_tokens (10)", "row 150, has 30", "history_length"):
        assert said in str(error.value)


def test_the_error_names_the_knob_of_the_task():
    with pytest.raises(RecnbError, match="or lower instructions.chat_words$"):
        fitting(samples("I4", [11]), Letters(), 10)
    without_tasks = samples("", [11]).drop(columns="task")
    with pytest.raises(RecnbError, match="1 of 1 samples"):
        fitting(without_tasks, Letters(), 10)


@pytest.fixture
def pretrained(tmp_path):
    """Knobs of a model in a folder, of which there is a tokenizer."""
    tokenizer_of("bytes", None).save_pretrained(tmp_path / "model")
    return lambda **knobs: Model(name=str(tmp_path / "model"), **knobs)


def test_what_has_no_tokenizer_yet_is_measured_later():
    assert known_codec(load("smoke").model, CATALOG) is None


def test_titles_that_become_tokens_are_measured_as_such(pretrained):
    films = Catalog(["Heat Wave (1990)", "Babe (1995)"], [{"A"}, {"B"}])
    spelled, whole = (known_codec(pretrained(item_tokens=own), films) for own in (False, True))
    text = "1. Heat Wave (1990)\n2. Babe (1995)"
    assert whole.decode(whole.answer(text)) == spelled.decode(spelled.answer(text)) == text
    assert len(whole.answer(text)) < len(spelled.answer(text))
    with pytest.raises(RecnbError, match="'a' is a token of the model already"):
        known_codec(pretrained(item_tokens=True), Catalog(["a", "b (1990)"], [{"A"}, {"B"}]))


def test_notebook_03_measures_with_the_models_own_tokenizer(pretrained, tmp_path):
    book = json.loads((root() / "notebooks" / "03_instructions.ipynb").read_text(encoding="utf-8"))
    [cell] = [c["source"] for c in book["cells"] if "known_codec(" in "".join(c["source"])]
    frame = samples("I0", [9] * 99 + [300])
    frame.to_parquet(tmp_path / "validation.parquet")
    profile = SimpleNamespace(model=pretrained(), sft=Sft(max_tokens=200))
    stage = SimpleNamespace(profile=profile, folder=tmp_path)
    names = {"stage": stage, "frame": frame, "catalog": CATALOG, "pd": pd}
    exec("".join(cell), names)
    assert names["left_out"] == {"training": {"I0": 1}, "validation": {"I0": 1}}
    names["frame"] = frame[90:]
    with pytest.raises(RecnbError, match=r"task I0: 1 of 10 samples are longer than .*\(200\)"):
        exec("".join(cell), names)


def test_the_card_says_what_was_left_out():
    frame = samples("I0", [9, 9])
    profile = load("smoke")
    assert "left out" not in dataset_card(profile, {"I0": 2}, frame)
    found = {"training": {"I0": 2, "I4": 1}, "validation": {}}
    card = dataset_card(profile, {"I0": 2}, frame, found)
    assert "left out; training: 2 of I0, 1 of I4; validation: none." in card


def test_the_training_notes_what_it_left_out(language_model, tmp_path):
    model, codec = language_model
    short, long = ("Hello", "1. x"), ("Hello " * 200, "1. x")
    frame = pd.DataFrame([*[short] * 20, long], columns=["prompt", "completion"])
    frame["task"] = "I0"
    knobs = Sft(rank=0, batch_size=20, max_tokens=100, evaluations=1, checkpoints=1)
    _, rows = train_sft(
        copy.deepcopy(model), codec, frame, frame[:20], None, knobs, 0, tmp_path, autocast=False
    )
    noted = {"training": {"I0": 1}, "validation": {}}
    assert rows[0]["left out, too long"] == noted
    assert json.loads((tmp_path / "log.json").read_text())[0]["left out, too long"] == noted
    assert rows[0]["longest question, tokens"] < 100
