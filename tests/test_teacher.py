import numpy as np
import pytest
import torch

from recnb.profile import Teacher as Knobs
from recnb.profile import load
from recnb.teacher import training
from recnb.teacher.popularity import ItemKNN, Popularity, Transitions
from recnb.teacher.ranking import Teacher, leave_one_out, ranks, top_k, unseen
from recnb.teacher.training import load_teacher, save_teacher, train_sasrec


def test_ranks_by_brute_force(rng):
    scores = rng.normal(size=12).astype(np.float32)
    scores[0] = -np.inf
    history, items = [3, 7], [1, 2, 11]
    order = [i for i in np.argsort(-scores) if i not in history and i]
    assert ranks(scores, history, items).tolist() == [order.index(i) for i in items]


def test_top_k_never_returns_a_disallowed_item(rng):
    scores = rng.normal(size=(5, 9))
    allowed = rng.random((5, 9)) < 0.3
    for row, found in enumerate(top_k(scores, 6, allowed)):
        assert all(allowed[row, i] and i > 0 for i in found)
        assert len(found) == min(6, allowed[row, 1:].sum())
        assert list(found) == sorted(found, key=lambda i: -scores[row, i])


def test_sasrec_is_causal_and_padding_free(teacher):
    model = teacher.model
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 9]])
    assert torch.allclose(model.hidden(a)[:, :3], model.hidden(b)[:, :3], atol=1e-6)
    short = teacher.scores([[5, 6]])
    padded = model.logits(model.hidden(torch.tensor([[0, 0, 5, 6]])))[0, -1].detach().numpy()
    assert np.allclose(short[0][1:], padded[1:], atol=1e-5)


def test_training_beats_popularity_and_round_trips(world, tmp_path):
    catalog, histories = world
    knobs = Knobs(
        width=32, max_length=12, max_epochs=25, learning_rate=0.003, dropout=0.2, batch_size=32
    )
    trained, rows = train_sasrec(histories, len(catalog), knobs, 0)
    assert rows[-1]["loss"] < rows[0]["loss"]
    popularity = Popularity(histories, len(catalog))
    ours = leave_one_out(trained.scores, histories, "test", len(catalog))["HR@10"]
    theirs = leave_one_out(popularity.scores, histories, "test", len(catalog))["HR@10"]
    assert ours.mean() > 1.2 * theirs.mean()
    save_teacher(trained, tmp_path / "t.safetensors")
    again = load_teacher(tmp_path / "t.safetensors", len(catalog), knobs)
    assert np.array_equal(again.scores([[1, 2]]), trained.scores([[1, 2]]))


@pytest.mark.parametrize("kind", [Popularity, ItemKNN, Transitions.count])
def test_baselines_have_the_teachers_shape(kind, world):
    catalog, histories = world
    assert kind(histories, len(catalog)).scores([[1, 2], [3]]).shape == (2, len(catalog) + 1)


def test_unseen():
    assert unseen([[1, 3]], 3).tolist() == [[False, False, True, False]]


class PowerCut(Exception):
    pass


def test_a_resumed_training_ends_where_an_undisturbed_one_does(world, tmp_path, monkeypatch):
    catalog, histories = world
    monkeypatch.setattr(training, "EVERY", -1)
    knobs = Knobs(width=16, max_length=12, max_epochs=6, patience=6, dropout=0.2)
    given, path = (histories, len(catalog), knobs, 0), tmp_path / "kept" / "a.safetensors"

    def cut(row):
        if row["epoch"] == 4:
            raise PowerCut

    calm, rows = train_sasrec(*given)
    with pytest.raises(PowerCut):
        train_sasrec(*given, cut, path)
    epochs = []
    resumed, again = train_sasrec(*given, lambda row: epochs.append(row["epoch"]), path)
    assert epochs == [4, 5, 6], "the epochs before the last checkpoint are not done again"
    assert [r["loss"] for r in again] == [r["loss"] for r in rows]
    weights = calm.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in resumed.model.state_dict().items())
    train_sasrec(*given, lambda row: pytest.fail("the training was over"), path)


def test_transitions_by_brute_force(world):
    catalog, histories = world
    table = Transitions.count(histories, len(catalog), window=3)
    counts = np.zeros((len(catalog) + 1, len(catalog) + 1))
    for user in range(len(histories)):
        sequence = histories.train(user).tolist()
        for i, item in enumerate(sequence):
            for gap, later in enumerate(sequence[i + 1 : i + 4], start=1):
                counts[item, later] += gap**-0.5
    rows = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    assert np.allclose(table.follows.toarray(), rows, atol=1e-6)
    history = [5, 9, 2, 7]
    expected = rows[7] + rows[2] / 2**0.5 + rows[9] / 3**0.5
    assert np.allclose(table.scores([[1], history])[1], expected, atol=1e-6)


def test_a_teacher_with_transitions_adds_their_logs(world, teacher, tmp_path):
    catalog, histories = world
    table = Transitions.count(histories, len(catalog))
    both = Teacher(teacher.model, table, 1.5)
    seen = [histories.train(u) for u in range(4)]
    alone, found = teacher.scores(seen), both.scores(seen)
    share = table.scores(seen)
    share = share / share.sum(1, keepdims=True)
    prior = 1.5 * np.log(share + 0.4 / len(catalog))
    for a, b, p in zip(alone, found, prior, strict=True):
        chances = np.exp(a[1:] - a[1:].max())
        expected = np.log(chances / chances.sum()) + p[1:]
        assert b[0] == -np.inf and np.allclose(b[1:], expected, atol=1e-4)
    save_teacher(both, tmp_path / "t.safetensors")
    knobs = load("smoke").teacher.model_copy(update={"transitions": 1.5})
    again = load_teacher(tmp_path / "t.safetensors", len(catalog), knobs)
    assert np.allclose(again.scores(seen), found, atol=1e-5)
