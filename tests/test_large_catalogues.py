"""Tens of thousands of items: no table of all pairs, users ranked in blocks, the same results."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from recnb.controls import Exclude, Include
from recnb.evaluation.protocol import Ranker
from recnb.instructions.labels import ranked_items
from recnb.instructions.synthesis import _candidates, heldout_requests, validation_samples
from recnb.interactions import Histories
from recnb.profile import Teacher as Knobs
from recnb.teacher import popularity, ranking, training
from recnb.teacher.popularity import ItemKNN, Popularity, Transitions
from recnb.teacher.ranking import Teacher, best_first, blocks, leave_one_out, scored

BASELINES = {"popularity": Popularity, "item-kNN": ItemKNN, "transitions": Transitions.count}


@pytest.fixture
def narrow(monkeypatch, world):
    """Room for the scores of seven users at a time."""
    monkeypatch.setattr(ranking, "SCORE_BYTES", 7 * 4 * (len(world[0]) + 1))


@pytest.fixture
def systems(world, teacher):
    catalog, histories = world
    found = {name: make(histories, len(catalog)) for name, make in BASELINES.items()}
    both = Teacher(teacher.model, found["transitions"], 1.5)
    return found | {"SASRec": teacher, "SASRec + transitions": both}


def test_blocks_hold_what_fits_and_miss_nobody(narrow):
    assert [(part.start, part.stop) for part in blocks(16, 60)] == [(0, 7), (7, 14), (14, 16)]
    assert blocks(0, 60) == [] and len(blocks(3, 10**9)) == 3


def test_item_knn_by_brute_force(world):
    catalog, histories = world
    items = len(catalog)
    matrix = np.zeros((len(histories), items + 1), dtype=np.float32)
    for user in range(len(histories)):
        matrix[user, histories.train(user)] = 1
    norms = np.maximum(np.sqrt(matrix.sum(0)), np.float32(1e-9))
    similarity = matrix.T @ matrix / norms[:, None] / norms[None, :]
    np.fill_diagonal(similarity, 0)
    found, asked = ItemKNN(histories, items), [histories.train(0), [5, 9, 2], [], [3]]
    assert np.array_equal(found.similarity.toarray(), similarity)
    wanted = [similarity[np.asarray(history, dtype=int)].sum(0) for history in asked]
    assert np.array_equal(found.scores(asked), wanted), "the same sums in the same order"


def test_of_many_neighbours_the_nearest_count(world, monkeypatch, narrow):
    catalog, histories = world
    every = ItemKNN(histories, len(catalog)).similarity.toarray()
    monkeypatch.setattr(popularity, "NEIGHBOURS", 5)
    found, left_out = ItemKNN(histories, len(catalog)).similarity.toarray(), 0
    for row, kept in zip(every, found, strict=True):
        fifth = np.sort(row)[-5]
        assert np.array_equal(kept, np.where(row >= fifth, row, 0))
        left_out += (row > kept).sum()
    assert left_out > 100


@pytest.mark.parametrize("split", ["validation", "test"])
def test_users_ranked_in_blocks_have_the_places_of_a_whole_table(world, systems, split, narrow):
    catalog, histories = world
    seen = [histories.seen(user, split) for user in range(len(histories))]
    for name, system in systems.items():
        places = []
        for user, scores in enumerate(system.scores(seen)):
            target = histories.target(user, split)
            rivals = set(range(1, len(catalog) + 1)) - {target, *seen[user].tolist()}
            ahead = [(-scores[item], item) < (-scores[target], target) for item in rivals]
            places.append(sum(ahead))  # of equal scores the smaller id is first
        found = leave_one_out(system.scores, histories, split, len(catalog), cutoffs=(1, 10))
        assert found["HR@10"].tolist() == [place < 10 for place in places], name
        gains = [1 / np.log2(place + 2) * (place < 10) for place in places]
        assert np.allclose(found["NDCG@10"], gains), name
        assert found["HR@1"].mean() < 1, "somebody's target is not first"


def test_lists_and_requests_do_not_depend_on_the_blocks(world, systems, smoke, monkeypatch):
    catalog, histories = world
    wishes = [(Include, "target"), (Exclude, "other")]

    def made():
        given = histories, catalog, systems["SASRec + transitions"], smoke.data, 0
        asked = heldout_requests(wishes, range(30), "test", *given, k=range(1, 31))
        lists = {n: Ranker(system, catalog, True).recommend(asked) for n, system in systems.items()}
        given = histories, catalog, systems["SASRec"], smoke.instructions, smoke.data, 0
        return asked, lists, list(validation_samples(*given))

    whole = made()
    monkeypatch.setattr(ranking, "SCORE_BYTES", 7 * 4 * (len(catalog) + 1))
    assert len(list(blocks(30, len(catalog)))) == 5
    assert made() == whole and len(whole[0]) > 25


def test_no_scores_for_wishes_that_need_none(world, smoke):
    catalog, histories = world
    given = range(9), "test", histories, catalog, None, smoke.data, 0
    assert heldout_requests([(Include, "target")], *given), "the teacher is not asked"
    with pytest.raises(AttributeError):
        heldout_requests([(Exclude, "other")], *given)


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, np.inf, -np.inf])


@given(st.lists(NUMBERS | st.floats(width=32, allow_nan=False), max_size=30))
def test_best_first_is_a_stable_sort(numbers):
    for kind in (np.float32, np.float64):
        scores = np.array(numbers, dtype=kind)
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        assert best_first(scores).tolist() == order


def test_ranked_items_by_brute_force_with_ties(rng):
    scores = rng.integers(-2, 3, size=40).astype(np.float32)
    scores[0] = -np.inf
    left = [item for item in range(1, 40) if item not in (4, 9, 30)]
    left.sort(key=lambda item: (-scores[item], item))
    assert ranked_items(scores, [4, 9, 30], None).tolist() == left
    left.remove(17)
    assert ranked_items(scores, [4, 9, 30], 17).tolist() == [17, *left]


def test_candidates_are_the_labels_and_allowed_others(rng):
    allowed = np.zeros(30, dtype=bool)
    allowed[[3, 4, 5, 8, 20]] = True
    found = _candidates([5, 11], allowed, 6, rng)
    assert sorted(found) == [3, 4, 5, 8, 11, 20], "all that there are"
    found = _candidates([5, 11], allowed, 3, rng)
    assert {5, 11} < set(found) <= {3, 4, 5, 8, 11, 20} and len(found) == 3
    assert allowed[5], "the caller's mask stays as it is"


def test_what_follows_and_what_is_alike_takes_room_by_interactions(rng):
    """A table of all pairs of a million items would take 4 TB."""
    items = 1_000_000
    histories = Histories([rng.choice(items, 12, replace=False) + 1 for _ in range(50)])
    for name, make in BASELINES.items():
        tracemalloc.start()
        try:
            system = make(histories, items)
            rows = sum(np.isfinite(row).any() for row in scored(system, histories.items, items))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert rows == 50 and peak < 8 * ranking.SCORE_BYTES, (name, peak)


def test_cross_entropy_in_blocks_has_the_gradients_of_torch(monkeypatch):
    monkeypatch.setattr(ranking, "SCORE_BYTES", 7 * 4 * 50)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(40, 8, generator=draw, dtype=torch.float64).requires_grad_()
    table = torch.randn(51, 8, generator=draw, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 50, (40,), generator=draw)
    losses, gradients = [], []
    for loss_of in (
        lambda: F.cross_entropy(states @ table[1:].T, targets),
        lambda: training._CrossEntropy.apply(states, table[1:], targets),
    ):
        losses.append(loss_of())
        gradients.append(torch.autograd.grad(3 * losses[-1], (states, table)))
    assert torch.allclose(*losses)
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-12) and one.abs().max() > 0.01


def test_a_large_catalogue_trains_the_same_teacher_in_less_room(world, monkeypatch):
    catalog, histories = world
    knobs = Knobs(width=16, max_length=12, max_epochs=4, patience=4, dropout=0.0, batch_size=32)
    taken, plain = [], training._step

    def step(*given):
        taken.append(given)
        return plain(*given)

    monkeypatch.setattr(training, "_step", step)
    small, rows = training.train_sasrec(histories, len(catalog), knobs, 0)
    assert taken
    taken.clear()
    for module in (training, ranking):
        monkeypatch.setattr(module, "SCORE_BYTES", 7 * 4 * len(catalog))
    large, again = training.train_sasrec(histories, len(catalog), knobs, 0)
    assert not taken, "the scores of a step would not fit"
    assert np.allclose([r["loss"] for r in again], [r["loss"] for r in rows], atol=1e-5)
    asked = [histories.train(user) for user in range(20)]
    one, other = small.scores(asked)[:, 1:], large.scores(asked)[:, 1:]
    assert np.allclose(one, other, atol=1e-3) and one.std() > 0.1
