"""Teacher and workers go to the GPU that is theirs; no GPU is needed to see it."""

import json

import pytest

from recnb import workers
from recnb.profile import Teacher as Knobs
from recnb.teacher import training
from recnb.teacher.training import load_teacher, save_teacher, train_sasrec


class Moved(Exception):
    """Where a model was sent."""


class Model:
    def to(self, where):
        raise Moved(where)


def test_the_teacher_is_trained_and_read_on_the_gpu(world, teacher, tmp_path, monkeypatch):
    catalog, histories = world
    save_teacher(teacher, tmp_path / "teacher.safetensors")
    monkeypatch.setattr(training, "untrained", lambda *_: Model())
    monkeypatch.setattr(training, "device", lambda: "cuda")
    with pytest.raises(Moved, match="cuda"):
        train_sasrec(histories, len(catalog), Knobs(), 0)
    with pytest.raises(Moved, match="cuda"):
        load_teacher(tmp_path / "teacher.safetensors", len(catalog), Knobs())


def test_each_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "job.json").write_text(json.dumps({"work": "sft"}))
    taken = []
    monkeypatch.setattr(workers, "end_with_owner", lambda: None)
    monkeypatch.setattr(workers, "_train", lambda *_: taken.append("trained"))
    monkeypatch.setattr(workers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(workers.torch.cuda, "set_device", taken.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    workers.main(tmp_path)
    assert taken == [3, "trained"], "before anything is loaded"
