import subprocess
import sys

import pytest

from recnb import RecnbError, cli
from recnb.artifacts import open_stage


@pytest.fixture
def runs(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    (folder / "games").mkdir(parents=True)
    (folder / "games" / "profile.yaml").write_text("name: games\n")
    monkeypatch.setenv("RECNB_RUNS", str(folder))
    return folder


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["recnb", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["../escape", "a/b", "/tmp/x", ".", "..", "profiles", "a\n", "é"])
def test_a_run_name_is_no_path(runs, monkeypatch, capsys, name):
    before = sorted(runs.parent.rglob("*"))
    for arguments in (
        ["run", "smoke", "--run", name],
        ["status", name],
        ["report", name],
        ["evaluate", name],
        ["compare", name, "games"],
        ["summarise", name],
        ["requests", "x.csv", "--run", name],
        ["score", "x.csv", "--run", name],
    ):
        assert "not a name for a run" in said(monkeypatch, capsys, *arguments)
    with pytest.raises(RecnbError, match="not a name for a run"):
        open_stage("01_data", "smoke", name)
    assert sorted(runs.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "gamse"],
        ["report", "gamse"],
        ["evaluate", "gamse"],
        ["compare", "games", "gamse"],
        ["summarise", "gamse"],
        ["requests", "x.csv", "--run", "gamse"],
        ["score", "x.csv", "--run", "gamse"],
    ],
)
def test_an_unknown_run_names_the_nearest(runs, monkeypatch, capsys, arguments):
    message = said(monkeypatch, capsys, *arguments)
    assert "run gamse: no such run" in message and "Did you mean games?" in message


def test_a_run_takes_what_an_earlier_one_has(runs, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(
        "recnb.workflow.launch.run_together", lambda runs, *rest: started.append(runs[0][1].name)
    )
    for stage in ("01_data", "02_teacher"):
        open_stage(stage, "smoke", "first").finish()
    capsys.readouterr()
    given = "recnb run smoke --run second --from first --set teacher.width=24"
    monkeypatch.setattr(sys, "argv", given.split())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines() == [
        "second: 01_data is taken from first, which has the same knobs",
        "second: 02_teacher is made anew, as it is not there with these knobs",
    ]
    assert (runs / "second" / "01_data" / "manifest.json").is_file() and started == ["second"]
    wrong = {
        ("--from", "frist"): "Did you mean first?",
        ("--from", "first", "--set", "seeds=[0, 1]"): "--from is for one run",
    }
    for more, message in wrong.items():
        assert message in said(monkeypatch, capsys, "run", "smoke", *more)
    assert started == ["second"]


def test_one_variant_is_run_without_the_others(runs, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(
        "recnb.workflow.launch.run_together", lambda runs, *rest: started.append(runs[0][1].name)
    )
    open_stage("01_data", "laptop", "laptop").finish()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", "recnb run study --variant pairs --variant plain".split())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code and started == ["study-pairs", "study-plain"]
    assert "study-pairs: 01_data is taken from laptop" in capsys.readouterr().out
    assert "study has no such variant" in said(
        monkeypatch, capsys, "run", "study", "--variant", "p"
    )


def test_a_folder_without_a_run(runs, monkeypatch, capsys):
    assert "no run there" in said(monkeypatch, capsys, "report", "--folder", str(runs))


def test_an_unknown_stage_names_the_nearest(runs, monkeypatch, capsys):
    message = said(monkeypatch, capsys, "run", "smoke", "--until", "05_pp")
    assert "Did you mean 05_ppo?" in message


@pytest.mark.parametrize(
    "pair, message",
    [
        ("evaluation.decoding=[constrained]", "with --set evaluation.decoding: "),
        ("kl_weight=0.3", "--set kl_weight: unknown key, did you mean ppo.kl_weight?"),
        ("sft.kl_weight=0.3", "did you mean ppo.kl_weight?"),
        ("tallrc.rank=1", "--set tallrc: unknown key, did you mean tallrec?"),
        ("sft.rnk=3", "--set sft.rnk: unknown key, did you mean sft.rank?"),
        ("sft.rank=[", "--set sft.rank=[: the value cannot be read"),
        ("sft.rank=many", "--set sft.rank: "),
        ("=3", "expected key=value"),
    ],
)
def test_a_wrong_set_is_named(runs, monkeypatch, capsys, pair, message):
    said_ = said(monkeypatch, capsys, "run", "smoke", "--set", pair)
    assert message in said_ and len(said_.splitlines()) == 1


def test_several_mistakes_are_a_line_each(runs, monkeypatch, capsys):
    pairs = ["--set", "sft.rank=-1", "--set", "ppo.steps=x"]
    assert len(said(monkeypatch, capsys, "run", "smoke", *pairs).splitlines()) == 2


def test_help_and_wrong_names_import_nothing_heavy():
    heavy = "{'torch', 'pandas', 'transformers'}"
    code = f"import sys, recnb.cli; sys.exit(bool({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
