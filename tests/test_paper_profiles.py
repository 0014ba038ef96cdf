"""The paper's two profiles hold the paper's numbers, each with its place beside it."""

import pytest
import yaml

from recnb.fidelity import PAPER, deviations
from recnb.instructions.synthesis import table8
from recnb.profile import load, profiles_folder

NUMBERS = {
    # section or appendix of arXiv 2403.05063v2 -> knob: value
    "2.2.1": {"instructions.k_max": 10, "ppo.k_min": 1, "ppo.k_max": 10},
    "2.3.3": {
        "ppo.rank": 4,
        "ppo.alpha": 2,
        "ppo.samples": 2,
        "ppo.temperature": 0.7,
        "ppo.kl_weight": 0.3,
        "ppo.list_weight": 10,
        "ppo.gamma": 0.99,
        "ppo.gae_lambda": 0.95,
        "ppo.clip": 0.2,
        "ppo.value_weight": 0.5,
    },
    "3.1.1": {"instructions.validation_users": 320, "sft.epochs": 30},
    "3.1.2": {
        "model.name": "meta-llama/Llama-2-7b-chat-hf",
        "sft.max_tokens": 1024,
        "data.history_length": 10,
        "sft.learning_rate": 0.001,
        "sft.rank": 16,
        "sft.alpha": 8,
        "sft.batch_size": 64,
        "ppo.learning_rate": 5e-6,
        "ppo.critic_learning_rate": 5e-6,
        "ppo.entropy_weight": 0.01,
    },
    "3.1.4": {"sft.v1": True, "ppo.v3": True},
    "3.3": {"evaluation.format_k": (11, 15)},
    "A.2": {"ppo.steps": 3000},
}
TABLE1 = {"paper-movie": (13218, 18744), "paper-steam": (12658, 8572)}
"""Users and items."""
TABLE8 = {
    # I0, I1 (+, -), I2 (three kinds), I3, I4, all
    "paper-movie": (13218, [6609, 6609], [4406, 4406, 4406], 18744, 29199, 87597),
    "paper-steam": (12658, [6329, 6329], [4219, 4219, 4220], 8572, 23273, 69819),
}


@pytest.mark.parametrize("name", TABLE1)
def test_every_number_of_the_paper(name):
    profile = load(name)
    for place, knobs in NUMBERS.items():
        for knob, value in knobs.items():
            section, key = knob.split(".")
            assert getattr(getattr(profile, section), key) == value, (place, knob)
            assert PAPER.get(knob, value) == value, "recnb.fidelity says the same"
    assert deviations(profile) == []


@pytest.mark.parametrize("name", TABLE1)
def test_as_many_instructions_as_table_8(name):
    counts = table8(load(name).instructions, *TABLE1[name])
    sequential, category, shares, search, chat, whole = TABLE8[name]
    assert counts["I0"] == sequential and counts["I3"] == search and counts["I4"] == chat
    assert [counts["I1+"], counts["I1-"]] == category
    assert sorted(counts[task] for task in ("I2<=", "I2>=", "I2~")) == shares
    assert sum(counts.values()) == whole


@pytest.mark.parametrize("name", TABLE1)
def test_each_number_has_its_source_beside_it(name):
    lines = (profiles_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    section, places = "", {}
    for line in lines:
        knob, _, comment = line.partition("#")
        key, _, value = (part.strip() for part in knob.partition(":"))
        if knob and not knob.startswith(" "):
            section = key
        if any(letter.isdigit() for letter in value):
            assert comment, f"no source: {line}"
        places[f"{section}.{key}"] = comment
    for place, knobs in NUMBERS.items():
        for knob in knobs:
            assert place in places[knob], knob


def test_the_two_differ_in_their_data_alone():
    movie, steam = (
        yaml.safe_load((profiles_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in TABLE1
    )
    own = {"data": ("path", "item_noun"), "sft": ("palr", "instructrec")}
    for data in (movie, steam):
        del data["name"]
        for section, keys in own.items():
            for key in keys:
                del data[section][key]
    assert movie == steam
