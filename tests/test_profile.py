import papermill
import pytest
import yaml

from recnb import RecnbError
from recnb.artifacts import fingerprint
from recnb.cli import overrides
from recnb.profile import STAGES, Profile, load, profiles_folder, root


@pytest.mark.parametrize("path", sorted(profiles_folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_is_valid(path):
    assert load(path.stem).name == path.stem


@pytest.mark.parametrize(
    "text, message",
    [
        ("sft: {rnk: 3}", "sft.rnk: unknown key, did you mean sft.rank"),
        ("evaluation: {format_k: [8, 6]}", "must hold the least and the greatest k"),
        ("sfft: {rank: 3}", "sfft: unknown key, did you mean sft"),
        ("sft: {rank: -1}", "sft.rank"),
        ("sft: {rank: many}", "sft.rank"),
        ("sft: {rank: 4, muon_learning_rate: 0.01}", "set sft.rank to 0"),
        ("teacher: {width: 10, heads: 4}", "must divide"),
        (
            'instructions: {fidelity: released, pairs: 9, pair_kinds: ["I1+&I1-"]}',
            "makes no sample of two wishes",
        ),
        ("tallrec: {seeds: [-1]}", "tallrec.seeds"),
        ("ppo: {k_min: 5, k_max: 3}", "larger than"),
        ("data: {dataset: tabular}", "data.path"),
        ("model: {name: other}\nsft: {repeat_weight: 1}", "whole_titles"),
        ("[1, 2]", "mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecnbError, match=message):
        load(path)


def test_unknown_profile_suggests_a_name():
    with pytest.raises(RecnbError, match="Did you mean laptop"):
        load("labtop")


def test_overrides():
    assert overrides(["sft.rank=32", "model.name=x"]) == {"sft.rank": 32, "model.name": "x"}
    assert load("smoke", {"sft.rank": 3}).sft.rank == 3
    with pytest.raises(RecnbError, match="key=value"):
        overrides(["sft.rank"])


def test_a_knob_changes_its_stage_and_later_ones_only():
    before, after = load("smoke"), load("smoke", {"ppo.steps": 7})
    same = [fingerprint(before, s) == fingerprint(after, s) for s in STAGES]
    assert same == [True] * 4 + [False] * (len(STAGES) - 4)


def test_every_section_belongs_to_a_stage():
    from recnb.profile import SECTIONS

    sections = set(Profile.model_fields) - {"name", "seed", "seeds", "variants", "compute"}
    assert sorted(sum(SECTIONS.values(), [])) == sorted(sections)


@pytest.mark.parametrize("stage", STAGES)
def test_notebook_shape(stage):
    import nbformat

    path = root() / "notebooks" / f"{stage}.ipynb"
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert set(papermill.inspect_notebook(path)) == {"profile", "run", "overrides"}
    assert sum("exercise" not in c.metadata.get("tags", []) for c in code) <= 20
    assert max(len(c.source.splitlines()) for c in code) <= 25
    assert not any("class " == line[:6] for c in code for line in c.source.splitlines())
    assert any(c.outputs for c in code), "nbval would compare nothing"


def test_pins_agree():
    import tomllib

    lines = (root() / "requirements.lock").read_text().splitlines()
    lock = dict(line.split("==") for line in lines if "==" in line)
    project = tomllib.loads((root() / "pyproject.toml").read_text())["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["test"]
    normal = {name.lower().replace("_", "-"): version for name, version in lock.items()}
    for pin in direct:
        name, version = pin.split("==")
        assert normal[name.lower().replace("_", "-")] == version, pin
    conda = yaml.safe_load((root() / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert dict(line.split("==") for line in conda if "==" in line) == lock


def test_a_profile_may_extend_another(tmp_path):
    (tmp_path / "big.yaml").write_text("seed: 3\nsft: {epochs: 2, rank: 8}\nppo: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text("extends: big\nsft: {rank: 4}\n")
    mine = load(tmp_path / "mine.yaml")
    assert (mine.name, mine.seed, mine.ppo.steps) == ("mine", 3, 7)
    assert (mine.sft.epochs, mine.sft.rank) == (2, 4)
    (tmp_path / "child.yaml").write_text("extends: mine\n")
    with pytest.raises(RecnbError, match="mine extends another profile itself"):
        load(tmp_path / "child.yaml")
    (tmp_path / "lost.yaml").write_text("extends: ../secret\n")
    with pytest.raises(RecnbError, match="no profile '../secret' beside it"):
        load(tmp_path / "lost.yaml")
