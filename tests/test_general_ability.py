import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch

from recnb import RecnbError
from recnb.evaluation import general_ability
from recnb.evaluation.general_ability import heldout_chat, share_of_chat, shares_of
from recnb.profile import GeneralAbility, load

PAIRS = [
    ("How are you today?", "I am fine."),
    ("Two and two?", "Four, of course, as always."),
    ("Well?", "Yes."),
]


def test_chat_losses_against_transformers(language_model):
    model, codec = language_model
    losses, tokens = general_ability.chat_losses(model, codec, PAIRS, batch_size=2)
    for row, (prompt, answer) in enumerate(PAIRS):
        question, reply = codec.prompt(prompt), codec.answer(answer)
        ids = torch.tensor([question + reply])
        labels = torch.tensor([[-100] * len(question) + reply])
        with torch.no_grad():
            expected = model(input_ids=ids, labels=labels).loss.item()
        assert tokens[row] == len(reply)
        assert losses[row] / tokens[row] == pytest.approx(expected, rel=1e-5)
    most = len(codec.prompt(PAIRS[1][0])) + 2
    cut, left = general_ability.chat_losses(model, codec, PAIRS[1:2], max_tokens=most)
    assert left[0] == 2 and cut[0] < losses[1]


def test_perplexity_by_hand():
    losses, tokens = np.array([np.log(2) * 3, np.log(8)]), np.array([3.0, 1.0])
    value, low, high = general_ability.perplexity(losses, tokens, 500, 0)
    assert value == pytest.approx(2**1.5) and low == pytest.approx(2) and high == pytest.approx(8)


def test_unseen_conversations_are_unseen():
    known = ("What is 1 plus 1?", "1 plus 1 is 2.")
    train = pd.DataFrame([known], columns=["prompt", "completion"])
    pairs = heldout_chat(train, "synthetic", 100, 60, 0)
    assert len(set(pairs)) == len(pairs) > 20 and known not in pairs
    others = heldout_chat(train, "synthetic", 100, 10_000, 0)
    everything = pd.DataFrame([*others, known], columns=["prompt", "completion"])
    with pytest.raises(RecnbError, match="no conversation is left"):
        heldout_chat(everything, "synthetic", 100, 5, 0)


def test_unseen_conversations_where_training_used_every_short_one(monkeypatch):
    """As on the laptop: fewer conversations of I4's length than samples."""
    stored = [(f"question {n}", "word " * n) for n in range(1, 100)]

    def short_ones(dataset, words, limit, rng):
        return [p for p in stored if len(p[1].split()) <= words][:limit]

    monkeypatch.setattr(general_ability, "conversations", short_ones)
    train = pd.DataFrame(stored[:40] * 5, columns=["prompt", "completion"])
    assert heldout_chat(train, "movielens-100k", 40, 30, 0) == stored[40:70]


def test_share_of_chat():
    frame = pd.DataFrame({"task": ["I4"] * 5 + ["I0"] * 50, "prompt": range(55)})
    for share in (0, 0.1, 0.5):
        small = share_of_chat(frame, share, 40, 0)
        assert len(small) == 40 and (small["task"] == "I4").sum() == 40 * share
        lists = small[small["task"] == "I0"]["prompt"]
        assert lists.is_unique
    with pytest.raises(RecnbError, match="chat_share is 0"):
        share_of_chat(frame[5:], 0.5, 10, 0)
    with pytest.raises(RecnbError, match="asks for 90 lists, the instruction set has 50"):
        share_of_chat(frame, 0.1, 100, 0)


def test_without_conversations_only_the_share_0_is_trained():
    lists, mixed = pd.DataFrame({"task": ["I0"] * 9}), pd.DataFrame({"task": ["I0", "I4"]})
    assert shares_of(mixed, [0.0, 0.3]) == ([0.0, 0.3], "")
    assert shares_of(lists, [0.0]) == ([0.0], "") and shares_of(lists, []) == ([], "")
    left, sentence = shares_of(lists, [0.0, 0.3])
    assert left == [0.0] and "instructions.chat_share is 0" in sentence


@pytest.fixture
def local(tmp_path):
    """MMLU and GSM8K in their authors' formats, two subjects and three sums."""
    head = [["question", "choice0", "choice1", "choice2", "choice3", "answer"]]
    subjects = ("anatomy", [], "ABCDA"), ("world_religions", head, "01230")
    for split in ("dev", "test"):
        folder = tmp_path / "mmlu" / split
        folder.mkdir(parents=True)
        for subject, first, answers in subjects:
            rows = [[f"Question {n}, with a comma?", *"wxyz", a] for n, a in enumerate(answers)]
            with open(folder / f"{subject}_{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows(first + rows)
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"{n} and 1?", "answer": f"Add.\n#### {n + 1}"} for n in range(3)]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_the_harness_on_local_files(local, language_model):
    """Its share of right answers is that of the model's own logits after its own words."""
    model, codec = language_model
    knobs = GeneralAbility(data=str(local), batch_size=2)
    found, why = general_ability.mmlu_gsm8k(model, codec, knobs, 0)
    assert "lose their first examples" in why and found["questions"] == 13 and found["GSM8K"] == 0.0
    letters = [codec.tokenizer(f" {a}", add_special_tokens=False)["input_ids"] for a in "ABCD"]
    assert all(len(tokens) == len(letters[0]) for tokens in letters)
    form = "{question}\n" + "".join(f"{a}. {{choices[{i}]}}\n" for i, a in enumerate("ABCD"))
    form += "Answer:"
    right = 0
    for subject, splits in general_ability.read_mmlu(local / "mmlu").items():
        about = subject.replace("_", " ")
        lead = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        for row in splits["dev"]:
            lead += f"{form.format(**row)} {'ABCD'[row['answer']]}\n\n"
        for row in splits["test"]:
            scores = []
            for tokens in letters:
                ids = codec.tokenizer(lead + form.format(**row))["input_ids"] + tokens
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([ids])).logits[0]
                logs = torch.log_softmax(logits, -1)[-len(tokens) - 1 : -1]
                scores.append(sum(logs[n, t].item() for n, t in enumerate(tokens)))
            right += int(np.argmax(scores)) == row["answer"]
    assert found["MMLU"] == pytest.approx(right / 10)
    fewer, _ = general_ability.mmlu_gsm8k(model, codec, GeneralAbility(data=str(local), limit=1), 0)
    assert fewer["questions"] == 3
    subjects = general_ability.read_mmlu(local / "mmlu")
    for subject in ("anatomy", "world_religions"):
        assert subjects[subject]["test"]["answer"] == [0, 1, 2, 3, 0]


def test_no_data_says_so(language_model, monkeypatch):
    nothing = general_ability.mmlu_gsm8k(*language_model, GeneralAbility(), 0)
    assert nothing == ({}, "not run: no data named (general_ability.data)")

    def unreachable(*arguments, **settings):
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub")

    monkeypatch.setattr(general_ability.lm_eval, "simple_evaluate", unreachable)
    found, why = general_ability.mmlu_gsm8k(*language_model, GeneralAbility(data="hub"), 0)
    reason = "not run: the Hub is out of reach (ConnectionError: Couldn't reach"
    assert found == {} and why.startswith(reason)


@pytest.mark.parametrize(
    "file, text, message",
    [
        (
            "mmlu/test/anatomy_test.csv",
            "Only,three,cells\n",
            "anatomy_test.csv, line 1: expected a question",
        ),
        ("mmlu/dev/anatomy_dev.csv", "q,a,b,c,d,A\nq,a,b,c,d,E\n", "anatomy_dev.csv, line 2"),
        ("mmlu/dev/anatomy_dev.csv", '"two\nlines",a,b,c,d,A\nq,a\n', "anatomy_dev.csv, line 3"),
        (
            "gsm8k/test.jsonl",
            '{"question": "1?", "answer": "1"}\n{"question": 1\n',
            "test.jsonl, line 2",
        ),
    ],
)
def test_damaged_files_name_their_row(local, file, text, message):
    (local / file).write_text(text)
    with pytest.raises(RecnbError, match=message):
        general_ability.harness_tasks(str(local))


def test_missing_files_are_named(local, tmp_path):
    (local / "mmlu" / "dev" / "anatomy_dev.csv").unlink()
    with pytest.raises(RecnbError, match="anatomy_dev.csv cannot be read"):
        general_ability.harness_tasks(str(local))
    with pytest.raises(RecnbError, match="has no <subject>_test.csv"):
        general_ability.read_mmlu(tmp_path / "nowhere")


def test_table_has_the_papers_rows_and_a_reason_for_each_gap():
    numbers = {"perplexity": 9.0, "low": 8.0, "high": 10.0}
    base = {"system": "base", "note": "not run: no data"} | numbers
    full = {"system": "full", "note": "", "MMLU": 0.455} | numbers
    table = general_ability.table([base, full]).set_index("system")
    assert table.loc["base", "MMLU"] == "" and table.loc["base", "note"] == "not run: no data"
    assert table.loc["full", "MMLU"] == "45.50"
    assert table.loc["base", "chat perplexity"] == "9.00 [8.00, 10.00]"
    assert table.loc["full (paper)", "GSM8K"].tolist() == ["17.82", "21.23"]
    assert table.loc["InstructRec (paper)", "note"].str.startswith("the paper has none").all()


def test_shares_are_checked():
    with pytest.raises(RecnbError, match="general_ability.shares"):
        load("smoke", {"general_ability.shares": [0.5, 1.0]})
    with pytest.raises(RecnbError, match="must be different"):
        load("smoke", {"seeds": [1, 1]})
