"""A model that was trained elsewhere, and a GPU, are looked at before a run computes anything."""

import errno
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import save_file

from recnb import RecnbError
from recnb.lm import hub
from recnb.plan import hardware
from recnb.plan.hardware import stated
from recnb.profile import load
from recnb.workflow import launch
from tests.test_templates import SMOLLM2, tokenizer_of

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "kind, said",
    [
        (GatedRepoError, "It is gated: accept its licence at https://huggingface.co/a/b, log in"),
        (RepositoryNotFoundError, "The Hub knows no such model, or it is private: check the id"),
        (ConnectionError, "On a machine with network run recnb fetch PROFILE"),
        (FULL, "Make room, or keep the cache on another disk .HF_HOME."),
    ],
)
def test_what_helps_where_a_model_cannot_be_had(kind, said, monkeypatch):
    answer = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co/a/b"))
    error = kind
    if kind is not FULL:
        error = kind("no") if kind is ConnectionError else kind("no", response=answer)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(RecnbError, match=f"model.name a/b: .* not to be had .*{said}"):
        hub.ready("a/b")


def test_a_model_without_safetensors_is_refused_as_it_comes(monkeypatch, tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(RecnbError, match="model.name a/b: it has no safetensors on the Hub"):
        hub.fetch_model("a/b")
    (tmp_path / "model.safetensors").touch()
    hub.fetch_model("a/b")


def test_what_a_folder_lacks_is_said_before_a_run(tmp_path):
    with pytest.raises(RecnbError, match="no .*safetensors there"):
        hub.ready(str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(RecnbError, match="its tokenizer cannot be loaded"):
        hub.ready(str(tmp_path))
    tokenizer = tokenizer_of("bytes", None)
    tokenizer.save_pretrained(tmp_path)
    template, pad = hub.ready(str(tmp_path))
    assert "no chat template" in template and "no pad token" in pad
    tokenizer.chat_template, tokenizer.pad_token = SMOLLM2, "<unk>"
    tokenizer.save_pretrained(tmp_path)
    assert hub.ready(str(tmp_path)) == hub.ready("mini") == []


def test_a_run_begins_with_it(monkeypatch, tmp_path, capsys):
    def refuse(name):
        raise RecnbError(f"no {name}")

    started = []
    monkeypatch.setattr(launch, "_look_before", lambda *_: None)
    monkeypatch.setattr(launch, "_snakemake", lambda *given: started.append(given))
    monkeypatch.setattr(launch, "ready", refuse)
    with pytest.raises(RecnbError, match="^no mini$"):
        launch.run_profile(load("smoke"), tmp_path / "run")
    assert not started
    monkeypatch.setattr(launch, "ready", lambda name: ["no chat template"])
    launch.run_profile(load("smoke"), tmp_path / "run")
    assert started and "warning: no chat template\n" in capsys.readouterr().out


def test_folders_named_in_the_terminal_are_found_by_notebooks(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "mini", "hub", "tables", "questions"):
        (tmp_path / name).mkdir()
    plain = {"model.name": "mine", "model.whole_titles": False, "base.teacher_embeddings": False}
    plain |= {"base.repeat_weight": 0, "sft.repeat_weight": 0}
    plain |= {"data.dataset": "tabular", "data.path": "tables"}
    found = launch._prepared(load("smoke", plain | {"general_ability.data": "questions"}), None)
    named = found.model.name, found.data.path, found.general_ability.data
    assert named == tuple(str(tmp_path / name) for name in ("mine", "tables", "questions"))
    found = launch._prepared(load("smoke", {"general_ability.data": "hub"}), None)
    assert (found.model.name, found.general_ability.data) == ("mini", "hub")


def test_a_folder_without_mmlu_is_refused_before_a_run(tmp_path):
    profile = load("smoke", {"general_ability.data": str(tmp_path)})
    with pytest.raises(RecnbError, match="general_ability.data must be MMLU's and GSM8K's folder"):
        launch._look_before([profile], None)


def test_nodes_without_network_are_thought_of(capsys):
    profile = load("smoke", {"general_ability.data": "hub"})
    launch._look_before([profile], SimpleNamespace(name="recnb", folder="a100"))
    assert "on nodes without network notebook 09 does not ask MMLU" in capsys.readouterr().out


def test_a_gpu_that_is_too_small_is_named_before_a_run(monkeypatch):
    assert launch._too_large(load("smoke")) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "this_machine", lambda profile: stated(profile, 12))
    sentences = launch._too_large(load("paper-movie"))
    assert any("paper-movie may not fit: 04_sft needs" in one for one in sentences)
    assert all("what helps" in one for one in sentences)
    assert launch._too_large(load("smoke")) == []
    [sentence] = launch._too_large(load("paper-movie", {"model.name": "no/such"}))
    assert "not known: model.name no/such" in sentence
