import hashlib
import json
import re
import shutil
import time

import pytest
import torch

from recnb import progress
from recnb.artifacts import Stage, is_done, same_knobs
from recnb.profile import STAGES, load, root


def test_wall_time_counts_starts_that_were_stopped(smoke, tmp_path):
    first = Stage("02_teacher", smoke, tmp_path)
    first.started -= 100
    first.tick()  # and then the kernel is killed
    again = Stage("02_teacher", smoke, tmp_path)
    time.sleep(0.01)
    assert 100 < again.finish()["wall_seconds"] + 0.1 < 110
    afresh = Stage("02_teacher", smoke, tmp_path)
    assert afresh.finish()["wall_seconds"] < 50, "a finished stage starts afresh"


def test_the_manifest_says_what_each_gpu_held(smoke, tmp_path, monkeypatch):
    assert "peak_gpu_memory_mib" not in Stage("02_teacher", smoke, tmp_path).finish()
    held = [3 << 30, 5 << 20]
    for name, value in (
        ("device_count", lambda: 2),
        ("max_memory_allocated", held.__getitem__),
        ("get_device_name", "GPU {}".format),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    manifest = Stage("02_teacher", smoke, tmp_path).finish()
    assert manifest["peak_gpu_memory_mib"] == [3072, 5]
    assert manifest["hardware"]["gpus"] == ["GPU 0", "GPU 1"]


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


def test_the_manifest_names_the_profile_file_and_what_the_run_changed(smoke, tmp_path):
    said = Stage("01_data", smoke, tmp_path).finish()["profile"]
    file = root() / "papermill_runs" / "profiles" / "smoke.yaml"
    assert said["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert said["changed"] == {} and re.fullmatch("[0-9a-f]{12}|unknown", said["frozen"])
    other = smoke.model_copy(
        update={"data": smoke.data.model_copy(update={"k_core": 4}), "seed": 3}
    )
    assert Stage("01_data", other, tmp_path).finish()["profile"]["changed"] == {
        "seed": 3,
        "data.k_core": 4,
    }
    mine = smoke.model_copy(update={"name": "mine"})
    assert Stage("01_data", mine, tmp_path).finish()["profile"] is None, "no such file here"


def test_a_stage_counts_only_with_what_it_read_of_the_stages_before(smoke, tmp_path):
    def made(name, text):
        stage = Stage(name, smoke, tmp_path)
        if name == "02_teacher":
            stage.input("01_data", "result")
        (stage.folder / "result").write_text(text)
        stage.finish()

    made("01_data", "films")
    made("02_teacher", "weights")
    assert is_done(smoke, "02_teacher", tmp_path)
    made("01_data", "films")
    assert is_done(smoke, "02_teacher", tmp_path), "made again, and the same"
    made("01_data", "other films")
    assert is_done(smoke, "01_data", tmp_path) and not same_knobs(smoke, "02_teacher", tmp_path)
    assert not is_done(smoke, "02_teacher", tmp_path)


def test_a_stage_counts_only_with_the_users_own_files_that_it_was_made_from(tmp_path):
    tables, run = tmp_path / "tables", tmp_path / "run"
    tables.mkdir()
    (tables / "items.csv").write_text("item,title,categories")
    (tables / "notes.txt").write_text("not read")
    profile = load("smoke", {"data.dataset": "tabular", "data.path": str(tables)})
    manifest = Stage("01_data", profile, run).finish()
    assert list(manifest["own files"]) == ["data.path/items.csv"]
    (tables / "notes.txt").write_text("not read either")
    assert is_done(profile, "01_data", run)
    (tables / "items.csv").write_text("item,title,categories,price")
    assert not is_done(profile, "01_data", run)
    shutil.rmtree(tables)
    assert is_done(profile, "01_data", run), "what was made stays readable without them"
