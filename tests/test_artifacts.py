import time

from recnb.artifacts import Stage


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
