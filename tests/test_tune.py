import subprocess
import sys

import pandas as pd
import pytest

from recnb import RecnbError
from recnb.artifacts import Stage, is_done, runs_folder
from recnb.profile import STAGES, load, root, save
from recnb.workflow import tune as tuning
from recnb.workflow.several import planned, share
from recnb.workflow.tune import overview, trials, tune


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path))
    return tmp_path


def test_every_combination_asks_about_validation_targets():
    made = trials("smoke", {"seed": 3}, {"ppo.steps": [1, 2], "sft.rank": [4, 8]})
    assert [tuple(knobs.values()) for knobs, _ in made] == [(1, 4), (1, 8), (2, 4), (2, 8)]
    for knobs, profile in made:
        assert profile.evaluation.split == "validation" and profile.seed == 3
        assert (profile.ppo.steps, profile.sft.rank) == tuple(knobs.values())


@pytest.mark.parametrize(
    "fixed, tried, said",
    [
        ({}, {"ppo.steps": 5}, "give a list"),
        ({}, {"ppo.steps": []}, "give a list"),
        ({"evaluation.split": "test"}, {}, "test targets are for"),
        ({}, {"evaluation.split": ["test", "validation"]}, "test targets are for"),
        ({}, {"ppo.stepz": [1]}, "unknown key"),
    ],
)
def test_what_cannot_be_tried(fixed, tried, said):
    with pytest.raises(RecnbError, match=said):
        trials("smoke", fixed, tried)


def finished(folder, profile, names):
    folder.mkdir(exist_ok=True)
    for name in names:
        stage = Stage(name, profile, folder)
        (stage.folder / "result.txt").write_text(name)
        stage.finish()
    save(profile, folder / "profile.yaml")


def test_stages_of_the_same_knobs_are_shared(runs):
    first = load("smoke")
    finished(runs / "smoke", first, ["01_data", "02_teacher", "03_instructions"])
    other = load("smoke", {"instructions.search": 100})
    share(other, runs / "other", "06_evaluation")
    assert is_done(other, "01_data", runs / "other") and is_done(
        other, "02_teacher", runs / "other"
    )
    assert not (runs / "other" / "03_instructions").exists()
    (runs / "smoke" / "02_teacher" / "result.txt").unlink()
    assert is_done(other, "02_teacher", runs / "other"), "it does not hang on the other run"
    theirs = load("smoke", {"data.k_core": 4})
    stage = Stage("01_data", theirs, runs / "other")
    with open(stage.folder / "result.txt", "w") as file:  # in place, as notebooks write
        file.write("other films")
    stage.finish()
    assert is_done(theirs, "01_data", runs / "other")
    assert is_done(first, "01_data", runs / "smoke"), "nor does the other run hang on it"


def test_tables_go_with_the_answers_that_they_are_made_from(runs):
    first = load("smoke")
    finished(runs / "smoke", first, STAGES[:6])
    (runs / "other" / "tables").mkdir(parents=True)
    (runs / "other" / "tables" / "metrics.csv").write_text("of other answers")
    share(first, runs / "other")
    assert is_done(first, "06_evaluation", runs / "other")
    assert not (runs / "other" / "tables").exists()


def test_folders_of_the_command_line_are_the_same_from_anywhere(runs, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    own = {"data.dataset": "tabular", "data.path": "mine", "tallrec.json_folder": "mine"}
    [(_, _, _, one)] = planned("smoke", own, "a")
    assert (one.data.path, one.tallrec.json_folder) == (str(tmp_path / "mine"),) * 2
    [(_, trial)] = trials("smoke", own, {"ppo.steps": [1]})
    assert trial.data.path == str(tmp_path / "mine")


def test_trials_are_run_compared_and_kept(runs, monkeypatch):
    started = []

    def run(profile, folder, until):
        """In place of the notebooks: a result that depends on the knobs."""
        started.append((profile.ppo.steps, until))
        (folder / "06_evaluation").mkdir(parents=True)
        row = {"system": "full", "decoding": "free", "task": "I0", "metric": "HR@10", "n": 9}
        frame = pd.DataFrame([row | {"value": profile.ppo.steps / 10}])
        frame.to_csv(folder / "06_evaluation" / "metrics.csv", index=False)

    monkeypatch.setattr(tuning, "run_profile", run)
    frame = tune("smoke", {}, {"ppo.steps": [1, 2]})
    assert started == [(1, "06_evaluation"), (2, "06_evaluation")]
    table = overview(frame)
    assert table["ppo.steps"].tolist() == ["1", "2"] and table["I0 HR@10"].tolist() == [0.1, 0.2]
    kept = pd.read_csv(runs_folder() / "smoke-tune.csv")
    assert kept["value"].tolist() == [0.1, 0.2] and kept["run"].nunique() == 2


def test_a_profile_may_be_named_by_its_path(runs, monkeypatch):
    path, started = runs / "mine" / "own.yaml", []
    path.parent.mkdir()
    smoke = root() / "papermill_runs" / "profiles" / "smoke.yaml"
    path.write_text(smoke.read_text().replace("name: smoke", "name: own"))

    def run(profile, folder, until):
        started.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "run_profile", run)
    with pytest.raises(KeyboardInterrupt):
        tune(str(path), {}, {"ppo.steps": [1]})
    assert started[0].parent == runs and started[0].name.startswith("own-tune-")


def test_seeds_and_variants_are_runs_of_their_own():
    variants = {"pairs": {"instructions.pairs": 60}, "plain": {"sft.repeat_weight": 0}}
    runs = planned("smoke", {"seeds": [0, 4], "variants": variants}, "mine")
    names = [f"mine-seed{seed}{end}" for seed in (0, 4) for end in ("", "-pairs", "-plain")]
    assert [label for label, _, _, _ in runs] == names
    assert [profile.seed for _, _, _, profile in runs] == [0, 0, 0, 4, 4, 4]
    assert [profile.instructions.pairs for _, _, _, profile in runs] == [0, 60, 0] * 2
    assert not any(profile.variants or profile.seeds for _, _, _, profile in runs)
    assert planned("smoke", {}, "mine") == [("mine", None, "", load("smoke"))]
    chosen = planned("smoke", {"seeds": [0, 4], "variants": variants}, "mine", ["plain"])
    assert [label for label, _, _, _ in chosen] == ["mine-seed0-plain", "mine-seed4-plain"]
    with pytest.raises(
        RecnbError, match="--variant plane: smoke has no such variant .pairs, plain"
    ):
        planned("smoke", {"variants": variants}, "mine", ["plane"])
    with pytest.raises(RecnbError, match="ppo.stepz: unknown key"):
        planned("smoke", {"variants": {"a": {"ppo.stepz": 1}}}, "mine")


@pytest.mark.nightly
def test_the_command_on_the_smoke_profile(runs):
    command = [sys.executable, "-m", "recnb.cli", "tune", "smoke", "--try", "ppo.steps=[2,3]"]
    command += ["--set", "evaluation.decoding=[free]", "--set", "sft.v1=false"]
    done = subprocess.run(command, cwd=root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = pd.read_csv(runs / "smoke-tune.csv")
    assert set(kept["ppo.steps"]) == {2, 3} and kept["value"].notna().all()
    assert done.stdout.count("04_sft done") == 1, "the SL stage is shared"


def test_the_study_is_the_laptop_profile_and_its_variants():
    runs = {variant: profile for _, _, variant, profile in planned("study", {}, "study")}
    assert list(runs) == ["", "pairs", "asides", "plain", "equal"]
    laptop, study = load("laptop"), runs[""]
    same = ["data", "teacher", "instructions", "model", "base", "sft", "ppo"]
    assert all(getattr(study, name) == getattr(laptop, name) for name in same), "v2 is shared"
    for variant, profile in runs.items():
        assert (profile.data, profile.teacher) == (laptop.data, laptop.teacher)
        shared = runs["equal"].instructions == laptop.instructions
        assert shared and (profile.instructions == laptop.instructions) == (
            variant in ("", "equal")
        )
    held_out = {"I2~&I1-", "I2>=&I2<="}
    pairs = runs["pairs"]
    assert not held_out & {*pairs.instructions.pair_kinds, *pairs.ppo.pair_kinds}
