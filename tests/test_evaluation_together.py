"""An evaluation by several processes leaves the files of one, also after it was stopped."""

import json
import os
from dataclasses import replace

import pandas as pd
import pytest
import torch

from recnb import workers
from recnb.artifacts import Stage
from recnb.baselines.instructrec import InstructRec
from recnb.evaluation import together
from recnb.evaluation.protocol import answer_all, request_sets
from recnb.lm import recommender
from recnb.lm.loading import mini_model
from recnb.lm.recommender import LanguageModelRecommender
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.profile import load

TASKS = ("I0", "I1+")


@pytest.fixture(scope="module")
def asked(world, teacher, tmp_path_factory):
    """``(base, models, catalog, requests)``: five users a task, of which a block holds two."""
    catalog, histories = world
    profile, folder = evaluating(1), tmp_path_factory.mktemp("models")
    codec = Codec(build_tokenizer(catalog, [("Hello", "Good day")] * 5, 400, True))
    model = mini_model(len(codec.tokenizer), profile.model, codec, 0)
    model.save_pretrained(folder / "base")
    codec.tokenizer.save_pretrained(folder / "base")
    torch.nn.init.normal_(model.get_decoder().layers[0].mlp.up_proj.weight)
    model.save_pretrained(folder / "v2")
    given = histories, catalog, teacher, profile.evaluation, profile.data, 0
    sets = request_sets(*given)
    requests = {task: [replace(r, k=2) for r in sets[task]] for task in TASKS}
    assert {len(some) for some in requests.values()} == {5}
    return str(folder / "base"), {"v2": [folder / "v2"]}, catalog, requests


def evaluating(processes):
    switches = {"evaluation.users": 5, "evaluation.batch_size": 4, "compute.processes": processes}
    switches |= {"sft.batch_size": 12, "ppo.prompts": 12}  # for three processes
    return load("smoke", switches | {"evaluation.decoding": ["free", "obey"]})


@pytest.fixture(scope="module")
def alone(asked, tmp_path_factory):
    """One process's answers."""
    return found_in(evaluate(asked, tmp_path_factory.mktemp("alone"), 1))


def evaluate(asked, folder, processes):
    """As notebook 06 does it."""
    base, models, catalog, requests = asked
    stage = Stage("06_evaluation", evaluating(processes), folder)
    together.answer_together(stage, *asked, folder)
    systems = together.language_systems(base, models, catalog, stage.profile)
    for name, ways in systems.items():
        answer_all(ways, requests, folder, name)
    assert not (folder / together.PARTS).exists()
    return folder


def found_in(folder):
    paths = sorted(folder.glob("*.parquet"))
    return {path.name: pd.read_parquet(path).drop(columns="seconds") for path in paths}


def same(found, expected):
    assert found.keys() == expected.keys() and len(expected) == 2
    for name, answers in expected.items():
        pd.testing.assert_frame_equal(found[name], answers)


@pytest.mark.nightly
def test_two_workers_answer_as_one_process(asked, alone, tmp_path):
    same(found_in(evaluate(asked, tmp_path, 2)), alone)
    progress = json.loads((tmp_path / "06_evaluation" / ".progress.json").read_text())
    assert progress["text"] == "v2, free, obey, in 2 processes"
    assert progress["done"] == progress["of"] == 5, "half of ten"


class PowerCut(Exception):
    pass


@pytest.fixture
def one_by_one(monkeypatch):
    """Workers in this process, one after the other; ``cuts[rank]`` ends one after so many."""
    cuts, decoded, plain = {}, [], recommender.decode

    def reported(row):
        if row["step"] > cuts.get(int(os.environ["RANK"]), 99):
            cuts.clear()
            raise PowerCut

    def stand_in(place, count, show):
        with monkeypatch.context() as torchrun:
            torchrun.setenv("WORLD_SIZE", str(count))
            for rank in range(count):
                torchrun.setenv("RANK", str(rank))
                workers.main(place)

    def watched(model, codec, prompts, *more, **named):
        decoded.extend(map(tuple, prompts))
        return plain(model, codec, prompts, *more, **named)

    monkeypatch.setattr(workers, "end_with_owner", lambda: None)
    monkeypatch.setattr(workers, "_show", reported)
    monkeypatch.setattr(workers, "_torchrun", stand_in)
    monkeypatch.setattr(recommender, "decode", watched)
    return cuts, decoded


@pytest.mark.parametrize(
    "rank, step, then, left",
    [
        # Blocks of 2, 2, 1 requests of a task go to three workers. The second one is cut off in
        # its last task, the third one does not begin: 2 + 2 requests are left, in two ways each.
        (1, 2, 3, 8),
        # The third one is cut off in the last task: all five of it are left.
        (2, 1, 2, 10),
        (2, 1, 1, 10),
    ],
)
def test_workers_that_were_stopped_go_on(
    asked, alone, tmp_path, one_by_one, rank, step, then, left
):
    """With as many processes, or with fewer, which take over the tasks that all have finished."""
    cuts, decoded = one_by_one
    cuts[rank] = step
    with pytest.raises(PowerCut):
        evaluate(asked, tmp_path, 3)
    decoded.clear()
    same(found_in(evaluate(asked, tmp_path, then)), alone)
    assert len(decoded) == left
    decoded.clear()
    evaluate(asked, tmp_path, then)
    assert not decoded, "all is there"


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("kind", [LanguageModelRecommender, InstructRec])
def test_a_share_is_cut_into_the_same_blocks(asked, world, count, kind):
    """Also with lists of several lengths: no answer has other neighbours than in one process."""
    system = kind(None, together.load_codec(asked[0]), world[0], batch_size=7, seed=0)
    ways = {"free": system} if kind is InstructRec else {"free": system, "obey": system}
    own = asked[3]["I0"] + asked[3]["I1+"]
    requests = {"a": [replace(r, k=1 + n % 3) for n, r in enumerate(own)], "b": own[:1]}

    def blocks(asked):
        found = system.blocks(asked, system.prompts(asked), len(ways))
        return [[asked[row] for row in rows] for rows in found]

    whole = {task: blocks(some) for task, some in requests.items()}
    dealt = together.shares(ways, requests, count)
    again = [(task, block) for share in dealt for task in share for block in blocks(share[task])]
    assert len(dealt) == count and len(whole["a"]) > 2
    for task, expected in whole.items():
        found = [block for name, block in again if name == task]
        assert sorted(found, key=expected.index) == expected
