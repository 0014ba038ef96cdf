import pandas as pd
import pytest

from recnb import RecnbError
from recnb.baselines import instructrec, palr
from recnb.controls import Include, NoControl
from recnb.engine.decoding import beam_search
from recnb.interactions import Histories
from recnb.lm.parsing import parse
from recnb.lm.recommender import request_prompt
from recnb.requests import Request


def labels(frame, catalog):
    return [parse(text, catalog).items for text in frame["completion"]]


def test_palr_lists_what_the_user_took_next(world, smoke):
    catalog, histories = world
    frame = palr.samples(histories, catalog, 200, smoke.instructions, smoke.data, 0)
    training = ["," + ",".join(map(str, histories.train(u))) + "," for u in range(len(histories))]
    for items in labels(frame, catalog):
        assert 1 <= len(items) <= smoke.instructions.k_max
        piece = "," + ",".join(map(str, items)) + ","
        assert any(piece in text for text in training), "a piece of somebody's training history"
    with_candidates = frame["prompt"].str.contains("The candidate items are")
    assert 0.1 < with_candidates.mean() < 0.35
    asked = frame[with_candidates]
    for prompt, items in zip(asked["prompt"], labels(asked, catalog), strict=True):
        listed = prompt.split("The candidate items are: ")[1]
        assert all(f"'{catalog.titles[i]}'" in listed for i in items)
    again = palr.samples(histories, catalog, 200, smoke.instructions, smoke.data, 0)
    assert again.equals(frame), "drawn from the seed"


def test_instructrec_has_three_kinds_of_instruction_for_one_title(world, smoke):
    catalog, histories = world
    frame = instructrec.samples(histories, catalog, 300, smoke.data, 0)
    assert all(len(items) == 1 and items[0] for items in labels(frame, catalog))
    preference = frame["prompt"].str.contains("The user prefers")
    intention = frame["prompt"].str.contains("user's intention: ")
    assert preference.sum() == 100 and 80 <= intention.sum() <= 100
    assert not (preference & intention).any()
    asked = frame[intention]
    for prompt, (item,) in zip(asked["prompt"], labels(asked, catalog), strict=True):
        names = catalog.categories[item]
        assert any(f"'{name}'" in prompt for name in names), "a category of the answer is named"


def test_frequent_categories(toy):
    assert instructrec.frequent_categories([1, 3, 4, 5], toy) == ["B", "A"]
    assert instructrec.frequent_categories([], toy) == []


def test_instructrec_lists_its_beams_in_order(language_model, world):
    model, codec = language_model
    requests = [
        Request(u, (1, 2), (1, 2), Include(world[0].names[0]) if u % 2 else NoControl(), 2 + u % 3)
        for u in range(7)
    ]
    answers = instructrec.InstructRec(model, codec, world[0], 2, 0).recommend(requests)
    lengths = [len(a.titles) for a in answers]
    assert lengths == [r.k for r in requests], "an untrained model's beams keep their places too"
    few = instructrec.InstructRec(model, codec, world[0], 64, 0, cache_bytes=1)
    assert few._fitting([0, 3, 6], 2, few.prompts(requests), model) == [[0], [3], [6]]
    assert few.recommend(requests) == answers, "one after another where the memory ends"
    one = Request(0, (1, 2), (1, 2), requests[0].control, 1)
    system = instructrec.InstructRec(model, codec, world[0], 2, 0)
    prompt = codec.prompt(request_prompt(one, world[0], 0))
    beams = beam_search(model, codec, [prompt], requests[0].k, system.room)[0]
    assert answers[0].tokens == sum(map(len, beams))


def test_a_beam_that_is_no_list_of_one_is_no_title(language_model, world):
    model, codec = language_model
    system = instructrec.InstructRec(model, codec, world[0], 2, 0)
    title = world[0].titles[1]
    cases = {f"1. {title}": title, title: f"({title})", "": "()", "no\nidea": "(no idea)"}
    for text, expected in cases.items():
        assert system._title(text) == expected
    odd = parse("1. ()\n2. (no idea)", world[0])
    assert odd.items == [None, None], "they keep their places and are unknown"


@pytest.mark.parametrize(
    "draw",
    [
        lambda h, c, p: palr.samples(h, c, 5, p.instructions, p.data, 0),
        lambda h, c, p: instructrec.samples(h, c, 5, p.data, 0),
    ],
)
def test_nothing_to_learn_from(draw, world, smoke):
    with pytest.raises(RecnbError, match="no user has two training interactions"):
        draw(Histories([world[1].items[0][:3]]), world[0], smoke)


def test_samples_are_what_the_sl_stage_reads(world, smoke):
    frame = instructrec.samples(world[1], world[0], 3, smoke.data, 0)
    assert isinstance(frame, pd.DataFrame) and list(frame.columns) == ["prompt", "completion"]
