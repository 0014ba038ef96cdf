import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch

from recnb import RecnbError
from recnb.baselines import tallrec
from recnb.evaluation.tables import reported
from recnb.profile import Tallrec

TITLES = ["", *[f"title {n}" for n in range(1, 13)]]


def test_movie_examples_by_hand():
    log = pd.DataFrame(
        {
            "user": [7, 7, 7, 7, 3],
            "item": [1, 2, 3, 4, 5],
            "rating": [5, 3, 4, 2, 5],
            "timestamp": [1, 2, 4, 3, 1],
        }
    )
    parts = tallrec.rating_examples(log, TITLES, "movie", history=2)
    first, second = [one for part in parts for one in part]
    # item 4 was rated before item 3
    assert (first.liked, first.target, first.label) == ((1,), 4, False)
    assert (second.liked, second.target, second.label) == ((), 3, True)
    assert first.input == (
        'User Preference: "title 1"\nUser Unpreference: "title 2"\n'
        'Whether the user will like the target movie "title 4"?'
    )
    assert first.prompt.endswith("### Response:\n") and "target movie by answering" in first.prompt


def test_movie_split_keeps_the_last_and_cuts_in_order():
    log = pd.DataFrame(
        {
            "user": np.repeat(range(30), 4),
            "item": np.tile([1, 2, 3, 4], 30),
            "rating": 4,
            "timestamp": 0,
        }
    )
    parts = tallrec.rating_examples(log, TITLES, "movie", history=2, last=50)
    assert [len(part) for part in parts] == [40, 5, 5]
    assert parts[2][-1].target == 4


def test_book_examples_by_the_rules():
    books = [("", ""), *[(f"title {n}", f"author {n}") for n in range(1, 6)]]
    ratings = pd.DataFrame(
        {
            "user": np.repeat(range(40), 5),
            "item": np.tile([1, 2, 3, 4, 5], 40),
            "rating": [9, 0, 5, 6, 10] * 40,
        }
    )
    few = pd.DataFrame({"user": 99, "item": [1, 2, 3], "rating": 9})
    parts = tallrec.book_examples(pd.concat([ratings, few]), books, seed=1)
    assert [len(part) for part in parts] == [32, 4, 4]
    made = [one for part in parts for one in part]
    assert all(2 not in (*one.liked, one.target) for one in made), "a rating of zero says nothing"
    assert all(one.label == (one.target in (1, 4, 5)) for one in made)
    assert {one.target for one in made} == {1, 3, 4, 5} and 'target book "title' in made[0].input
    assert '"title 1" written by author 1' in " ".join(one.input for one in made)
    again = tallrec.book_examples(pd.concat([ratings, few]), books, seed=1)
    assert again == parts


def test_own_files_are_read_and_errors_named(tmp_path):
    rows = [
        {"instruction": "i", "input": "a", "output": "Yes."},
        {"instruction": "i", "input": "b", "output": "No."},
    ]
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows))
    read = [(one.input, one.label) for one in tallrec.read_json(path)]
    assert read == [("a", True), ("b", False)]
    odd = json.dumps([*rows, {"instruction": "i", "input": "c", "output": "Maybe"}])
    for text, message in [
        ("{", "not readable as JSON"),
        ("{}", "a list of records"),
        (odd, "record 2: instruction"),
    ]:
        path.write_text(text)
        with pytest.raises(RecnbError, match=message):
            tallrec.read_json(path)


def test_book_crossing_files(tmp_path):
    with pytest.raises(RecnbError, match="BX-Book-Ratings.csv does not exist"):
        tallrec.read_book_crossing(tmp_path)
    (tmp_path / "BX-Book-Ratings.csv").write_text(
        '"User-ID";"ISBN";"Book-Rating"\n"1";"b";"8"\n"1";"c";"0"\n"2";"x";"5"\n'
    )
    (tmp_path / "BX-Books.csv").write_text(
        '"ISBN";"Book-Title";"Book-Author"\n"a";"A";"1"\n"b";"Caf\\"e";"2"\n"c";"C";"3"\n'
    )
    log, titles = tallrec.read_book_crossing(tmp_path)
    assert titles == [("", ""), ('Caf"e', "2"), ("C", "3")]
    assert log.to_numpy().tolist() == [["1", 1, 8], ["1", 2, 0]]
    (tmp_path / "BX-Books.csv").write_text('"ISBN";"Title"\n')
    with pytest.raises(RecnbError, match="no column 'Book-Title'"):
        tallrec.read_book_crossing(tmp_path)


def questions(n):
    """Examples whose answer the target alone decides: odd titles are liked."""
    rng = np.random.default_rng(n)
    return [
        tallrec.example("movie", [int(rng.integers(1, 13))], [], target, target % 2 == 1, TITLES)
        for target in rng.integers(1, 13, size=n).tolist()
    ]


def test_the_score_is_read_behind_the_prompt(language_model):
    """Titles that begin with Yes or No do not move it."""
    model, codec = language_model
    titles = ["", "No Escape", "Yes Man", "Nothing"]
    examples = [
        tallrec.example("movie", [1], [2, 3], 3, True, titles),
        tallrec.example("movie", [1, 2, 3], [], 2, False, titles),
    ]
    encoded = tallrec.encode(examples, codec)
    found = tallrec.scores(model, codec, encoded, batch_size=2)
    for one, (prompt, yes, no), score in zip(examples, encoded, found, strict=True):
        assert codec.decode(prompt + [yes]).endswith(("Response:\nY", "Response:\nYes"))
        assert codec.decode(prompt).endswith(one.prompt[-20:])
        logits = model(torch.tensor([prompt])).logits[0, -1]
        assert score == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)


@pytest.mark.parametrize("train_on_inputs", [True, False])
def test_tuning_learns_what_the_examples_say(language_model, train_on_inputs):
    model, codec = language_model
    before = copy.deepcopy(model.state_dict())
    knobs = Tallrec(
        learning_rate=0.03,
        batch_size=8,
        epochs=40,
        patience=40,
        rank=16,
        alpha=32,
        dropout=0.0,
        train_on_inputs=train_on_inputs,
    )
    examples = questions(16)
    untuned = tallrec.auc(model, codec, examples)
    tuned, rows = tallrec.tune(model, codec, examples, examples, knobs, 0)
    best = max(row["validation AUC"] for row in rows)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and best > untuned
    assert tallrec.auc(tuned, codec, examples) == pytest.approx(best), "the best epoch is kept"
    same = [torch.equal(before[name], weight) for name, weight in model.state_dict().items()]
    assert all(same), "the start stays as it was"


@pytest.mark.parametrize("kind", ["gru4rec", "caser", "sasrec"])
def test_sequential_baselines_learn(kind):
    examples = questions(200)
    assert tallrec.sequential_auc(kind, examples, examples, questions(60), 12, 0) > 0.9
    model = tallrec.Sequential(kind, 12).eval()
    alone = model(torch.zeros(2, 10, dtype=torch.long), torch.tensor([1, 2]))
    assert torch.isfinite(alone).all(), "a user without a like yet"


def test_solved_examples_stand_in_front_of_the_question_with_their_answers(language_model):
    _, codec = language_model
    shown, asked = questions(2), questions(3)[2:]
    before = tallrec.solved(shown)
    answers = ["Yes." if one.label else "No." for one in shown]
    assert before.split("\n\n### Response:\n")[1].startswith(answers[0])
    (ids, yes, no), (alone, *_) = (tallrec.encode(asked, codec, text)[0] for text in (before, ""))
    text = codec.decode(ids)
    assert text.endswith(codec.decode(alone)) and len(ids) > 2 * len(alone)
    assert codec.decode([yes]).strip()[:1] == "Y" and codec.decode([no]).strip()[:1] == "N"


def test_popularity_by_hand():
    examples = [
        tallrec.example("movie", [1, 2], [], 3, True, TITLES),
        tallrec.example("movie", [1], [], 4, False, TITLES),
    ]
    test = [
        tallrec.example("movie", [], [], 1, True, TITLES),
        tallrec.example("movie", [], [], 4, False, TITLES),
        tallrec.example("movie", [], [], 3, True, TITLES),
    ]
    assert tallrec.popularity_auc(examples, test) == 1.0


def test_few_shot_counts_and_table(language_model):
    model, codec = language_model
    knobs = Tallrec(shots=[4, 8], seeds=[0, 1], epochs=1, held=30)
    parts = questions(40), questions(30), questions(31)
    results, _ = tallrec.few_shot(model, codec, parts, 12, knobs, 0)
    tuned = dict.fromkeys(("popularity", "gru4rec", "caser", "sasrec", "tallrec"), 4)
    once = {"untuned": 1, "in context": 2}  # a row a draw
    assert results.groupby("system").size().to_dict() == once | tuned
    table = tallrec.table({"game": results}, {tallrec.BOOKS: "why"}, reported()["tallrec"])
    assert table[table["domain"] == tallrec.BOOKS]["note"].iloc[0] == "not run: why"
    assert table["note"].ne("").all() and "TALLRec (paper)" in set(table["system"])
    own = table[table["domain"] == "game"].set_index("system")
    assert "±" in own.loc["tallrec", "8"]
    alone = tallrec.table({"game": results}, {}, reported()["tallrec"])
    assert set(alone["domain"]) == {"game", tallrec.MOVIES}  # no row about a second domain
    own_files, _ = tallrec.few_shot(model, codec, parts, 0, knobs, 0)
    assert set(own_files["system"]) == {"untuned", "in context", "tallrec"}
    without = knobs.model_copy(update={"in_context": 0})
    asked, _ = tallrec.few_shot(model, codec, parts, 0, without, 0)
    assert set(asked["system"]) == {"untuned", "tallrec"}
    many = knobs.model_copy(update={"shots": [99]})
    with pytest.raises(RecnbError, match="99 examples asked for"):
        tallrec.few_shot(model, codec, (questions(40),) * 3, 12, many, 0)
    alike = [one for one in questions(40) if one.label]
    with pytest.raises(RecnbError, match="test examples .* are all alike"):
        tallrec.few_shot(model, codec, (questions(40), questions(40), alike), 12, knobs, 0)


def test_a_dataset_without_likes_and_dislikes_says_why(smoke, world):
    parts, why = tallrec.rated_examples(smoke.data, smoke.tallrec, world[0], 0)
    assert why is None and {one.label for one in parts[0]} == {True, False}
    strict = smoke.tallrec.model_copy(update={"like_above": 9})
    parts, why = tallrec.rated_examples(smoke.data, strict, world[0], 0)
    assert parts is None and "too few examples" in why


def test_reported_tallrec_numbers():
    """TALLRec leads every column; each row has one number for each number of examples."""
    paper = reported()["tallrec"]
    for domain in (tallrec.MOVIES, tallrec.BOOKS):
        assert len(paper[domain]) == 7 and all(len(row) == 3 for row in paper[domain].values())
        for column in range(3):
            values = {system: row[column] for system, row in paper[domain].items()}
            assert max(values, key=values.get) == "TALLRec"
