"""The number format of training is what this machine does faster, and the same every time."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from recnb import machine
from recnb.artifacts import Stage
from recnb.evaluation.stored import evaluate_run
from recnb.profile import load, root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_CACHE", str(tmp_path / "cache"))
    machine.number_format.cache_clear()
    yield tmp_path / "cache" / "machine.json"
    machine.number_format.cache_clear()


@pytest.mark.parametrize("half, choice", [(50, "float32"), (105, "float32"), (150, "bfloat16")])
def test_the_faster_format_is_chosen_and_kept(cache, monkeypatch, half, choice):
    speeds = {"float32": 100.0, "bfloat16": float(half)}
    monkeypatch.setattr(machine, "measure", lambda width: speeds)
    assert machine.autocast(load("laptop").model) == (choice == "bfloat16")
    machine.number_format.cache_clear()  # a later start, in which noise would say something else
    monkeypatch.setattr(machine, "measure", lambda width: {"float32": 1.0, "bfloat16": 1.05})
    assert machine.recorded(load("laptop").model) == {"choice": choice} | speeds
    assert len(json.loads(cache.read_text())) == 1


def test_measuring_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    machine.measure(16, rounds=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_profile_may_insist(cache):
    assert machine.autocast(load("laptop", {"model.autocast": True}).model)
    assert not machine.autocast(load("laptop", {"model.autocast": False}).model)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECNB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(machine, "measure", lambda width: {"float32": 1.0, "bfloat16": 2.0})
    machine.number_format.cache_clear()
    assert machine.autocast(load("laptop").model)
    machine.number_format.cache_clear()
    assert "measured anew each time" in capsys.readouterr().out


def test_the_manifest_names_it(smoke, tmp_path):
    manifest = Stage("01_data", smoke, tmp_path).finish()
    assert manifest["number_format"] == {"choice": "float32"}, "the smoke profile says so"


def in_its_own_process(code, **switches):
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | switches, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="switches of x86")
def test_emulated_bfloat16_is_not_chosen(tmp_path):
    """A processor without bfloat16 instructions, by oneDNN's own switch."""
    code = (
        "from recnb import machine; from recnb.profile import load; "
        "print(machine.autocast(load('laptop').model))"
    )
    switches = {"ONEDNN_MAX_CPU_ISA": "AVX2", "RECNB_CACHE": str(tmp_path)}
    assert in_its_own_process(code, **switches) == "False"


KERNELS = [
    {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"},
    {"OPENBLAS_CORETYPE": "Zen", "NPY_DISABLE_CPU_FEATURES": "AVX512F"},
    {"OPENBLAS_CORETYPE": "SkylakeX", "OPENBLAS_NUM_THREADS": "2"},
    {"OPENBLAS_CORETYPE": "Prescott", "ATEN_CPU_CAPABILITY": "default"},
]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="switches of x86")
@pytest.mark.parametrize(
    "switches", [KERNELS[0], *(pytest.param(k, marks=pytest.mark.nightly) for k in KERNELS[1:])]
)
def test_tables_do_not_depend_on_the_processor(switches, tmp_path):
    """What is computed from stored answers is the same, byte for byte, under other kernels."""
    reference = root() / "papermill_runs" / "reference" / "laptop"
    code = f"from {evaluate_run.__module__} import evaluate_run; "
    code += f"evaluate_run({str(reference)!r}, {str(tmp_path)!r})"
    in_its_own_process(code, **switches)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in (reference / "tables").iterdir()}


def set_speed(monkeypatch, times):
    """A machine without a GPU, so many times as fast as the one of the reference run."""
    there = json.loads((root() / "papermill_runs" / "reference" / "speed.json").read_text())
    speeds = {name: there[name] * times for name in ("float32", "bfloat16")}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(machine, "cores", lambda: there["cores"])
    monkeypatch.setattr(machine, "measure", lambda width: speeds)
    monkeypatch.setattr(machine, "number_format", lambda width: {"choice": "bfloat16"} | speeds)


REFERENCE = root() / "papermill_runs" / "reference" / "laptop"


def as_it_ran(overrides=None):
    """The reference run's own profile, whatever the laptop profile has become since."""
    return load(REFERENCE / "profile.yaml", overrides)


def stored(name):
    """What every manifest of the reference run says."""
    return [json.loads(path.read_text())[name] for path in REFERENCE.glob("*/manifest.json")]


def minutes(lines):
    return [int(word) for word in lines[0].split(":")[1].split() if word.isdigit()]


def test_the_estimate_is_the_reference_run_scaled(monkeypatch):
    set_speed(monkeypatch, 1)
    low, high = minutes(machine.estimate(as_it_ran()))
    assert low < sum(stored("wall_seconds")) / 60 < high
    set_speed(monkeypatch, 0.5)
    slower = minutes(machine.estimate(as_it_ran()))
    assert slower[0] == low and slower[1] == pytest.approx(2 * high, abs=1)


def test_nothing_is_guessed_about_other_knobs(monkeypatch):
    set_speed(monkeypatch, 1)
    assert "no estimate" in machine.estimate(load("smoke"))[0]
    lines = machine.estimate(as_it_ran({"ppo.steps": 7}))
    assert "minutes for 01_data to 04_sft, from" in lines[0]
    assert lines[1] == "no estimate of 05_ppo to 09_general_ability: other knobs"


def test_too_little_memory_is_said_before(monkeypatch):
    set_speed(monkeypatch, 1)
    monkeypatch.setattr(machine, "memory", lambda: 4 << 30)
    assert f"{max(stored('peak_memory_mib')) / 1024:.1f} GiB" in machine.estimate(as_it_ran())[-1]


def test_too_little_disk_is_said_before(monkeypatch):
    set_speed(monkeypatch, 1)
    laptop = load("laptop")
    needed = machine.disk_needed(laptop)
    assert 200 << 20 < needed < 400 << 20, "121 MB were on the disk before the SL stage"
    monkeypatch.setattr(machine, "_free", lambda: needed - 1)
    warning = [line for line in machine.describe(laptop) if " MiB free, " in line]
    assert len(warning) == 1 and "RECNB_RUNS" in warning[0]
    assert f"a whole run of laptop takes about {needed / 2**20:,.0f} MiB" in warning[0]
    monkeypatch.setattr(machine, "_free", lambda: needed)
    assert not machine.disk_warnings(laptop)
