import hashlib
import json
import time

import pytest

from recnb import progress
from recnb.artifacts import Stage, is_done
from recnb.profile import STAGES


def test_wall_time_counts_starts_that_were_stopped(smoke, tmp_path):
    first = Stage("02_teacher", smoke, tmp_path)
    first.started -= 100
    first.tick()  # and then the kernel is killed
    again = Stage("02_teacher", smoke, tmp_path)
    time.sleep(0.01)
    assert 100 < again.finish()["wall_seconds"] + 0.1 < 110
    afresh = Stage("02_teacher", smoke, tmp_path)
    assert afresh.finish()["wall_seconds"] < 50, "a finished stage starts afresh"


def test_wall_time_of_other_knobs_does_not_count(smoke, tmp_path):
    first = Stage("02_teacher", smoke, tmp_path)
    first.started -= 100
    first.tick()
    other = smoke.model_copy(update={"teacher": smoke.teacher.model_copy(update={"dropout": 0.1})})
    assert Stage("02_teacher", other, tmp_path).seconds() < 50


def test_a_knob_that_came_later_counts_as_its_default(smoke, tmp_path):
    for name in STAGES[:2]:
        Stage(name, smoke, tmp_path).finish()
    older = []
    for name in STAGES[:2]:  # as a kit wrote them that did not know data.item_noun yet
        path = tmp_path / name / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["knobs"].get("data", {}).pop("item_noun", None)
        older.append(manifest["knobs"])
        known = hashlib.sha256(json.dumps(older, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(manifest | {"fingerprint": known}))
    games = smoke.model_copy(update={"data": smoke.data.model_copy(update={"item_noun": "game"})})
    assert is_done(smoke, "02_teacher", tmp_path) and not is_done(games, "02_teacher", tmp_path)
    Stage("03_instructions", smoke, tmp_path).finish()
    assert is_done(smoke, "03_instructions", tmp_path), "a new stage on top of older ones"
    Stage("01_data", games, tmp_path).finish()
    assert is_done(games, "01_data", tmp_path)
    assert not is_done(games, "02_teacher", tmp_path), "the fingerprint names the knobs it had"


def test_expectations_stop_synthetic_data_and_warn_on_others(smoke, tmp_path, capsys):
    with pytest.raises(AssertionError, match="labels are weak"):
        Stage("02_teacher", smoke, tmp_path).expect(False, "labels are weak")
    real = smoke.model_copy(update={"data": smoke.data.model_copy(update={"dataset": "tabular"})})
    stage = Stage("02_teacher", real, tmp_path)
    stage.expect(True, "not said")
    stage.expect(False, "labels are weak")
    assert stage.finish()["warnings"] == ["labels are weak"]
    assert capsys.readouterr().out == "warning: labels are weak\n"


def test_the_pace_is_that_of_this_start(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: clock[0])

    class Here:
        folder = tmp_path

        def tick(self):
            pass

    report, said = progress.Progress(Here(), "steps"), []
    for done in (850, 860):  # 850 steps are an earlier start's; ten steps take five seconds
        report(done, 1000)
        said.append(json.loads((tmp_path / ".progress.json").read_text())["left"])
        clock[0] += 5
    assert said == [None, 70.0]
