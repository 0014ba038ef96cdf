"""A run may be stopped anywhere, in any way: the same command goes on; nothing half done counts."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from recnb.artifacts import is_done, sha256
from recnb.cli import status
from recnb.owner import VARIABLE, owner, owning
from recnb.profile import STAGES, load, root, save
from recnb.workflow.execute import LESS_MEMORY

EPOCHS = "teacher.max_epochs=400"
SLOW = ["--until", "02_teacher", "--set", EPOCHS, "--set", "teacher.patience=400"]
"""A run whose second notebook takes long enough to be met in the middle of it."""


def start(folder, *arguments, **more):
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    environment |= {"RECNB_RUNS": str(folder), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "recnb.cli", "run", "smoke", *arguments]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def wait_for(condition, run, seconds=120):
    """Until ``condition()``; the run must not end before."""
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it did not come to that in time"
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)


def tree(pid):
    """A process and everything below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def gone(processes, seconds=15):
    _, left = psutil.wait_procs(processes, timeout=seconds)
    return [one for one in left if one.is_running() and one.status() != "zombie"]


def kill_tree(run):
    """SIGKILL for all at once, as a power cut is."""
    for one in tree(run.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    run.communicate(timeout=60)


def in_teacher(folder):
    return lambda: (folder / "smoke" / "02_teacher" / ".progress.json").is_file()


@pytest.fixture
def begun(tmp_path):
    """A run in the middle of notebook 02, and all its processes."""
    run = start(tmp_path, *SLOW)
    wait_for(in_teacher(tmp_path), run)
    processes = tree(run.pid)
    assert any("ipykernel_launcher" in " ".join(one.cmdline()) for one in processes)
    yield run, processes, tmp_path
    for one in tree(run.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def goes_on(folder):
    """The same command finishes, without running notebook 01 again."""
    run = start(folder, *SLOW[:2], "--set", "teacher.max_epochs=8")
    out, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert "[1/9]" not in out and "[2/9] 02_teacher done" in out


def test_ctrl_c_ends_everything_in_one_sentence(begun):
    run, processes, folder = begun
    second = start(folder, *SLOW[:2], "--set", "teacher.dropout=0.1")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1 and f"is being run by process {run.pid} on" in errors
    assert load(folder / "smoke" / "profile.yaml").teacher.dropout == 0.2
    assert owner(folder / "smoke")["pid"] == run.pid
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 130 and not gone(processes), errors
    said = [line for line in errors.splitlines() if "recnb: " in line]
    assert len(said) == 1 and "SIGINT, stopped in 02_teacher (teacher, epochs: " in said[0]
    assert "Traceback" not in errors and owner(folder / "smoke") is None
    goes_on(folder)


def test_sigterm_ends_everything(begun):
    run, processes, _ = begun
    run.terminate()
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 143 and not gone(processes) and "SIGTERM, stopped in 02" in errors


def test_a_killed_tree_goes_on(begun):
    run, processes, folder = begun
    kill_tree(run)
    assert not gone(processes)
    goes_on(folder)


def test_nothing_outlives_a_killed_owner(begun):
    run, processes, folder = begun
    run.kill()
    assert not gone(processes), "Snakemake, executor and kernel end by themselves"
    goes_on(folder)


def test_a_notebook_of_someone_else_is_refused(begun):
    run, _, folder = begun
    code = "from recnb.artifacts import open_stage; open_stage('01_data', 'smoke', 'smoke')"
    environment = os.environ | {"RECNB_RUNS": str(folder)}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root(), capture_output=True, text=True
    )
    assert other.returncode == 1 and f"is being run by process {run.pid}" in other.stderr
    assert (folder / "smoke" / "01_data" / "manifest.json").is_file()


def test_status_names_owner_and_stage(tmp_path, monkeypatch, capsys, smoke):
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path))
    stage = tmp_path / "smoke" / "04_sft"
    stage.mkdir(parents=True)
    save(smoke, stage.parent / "profile.yaml")
    (stage / ".clock.json").write_text("{}")
    (stage / ".progress.json").write_text('{"text": "SL stage, steps", "done": 3, "of": 9}')
    with owning(stage.parent):
        status("smoke")
    shown = capsys.readouterr().out
    assert f"is being run by process {os.getpid()} on" in shown
    assert "under way in 04_sft (SL stage, steps: 3 of 9)" in shown
    status("smoke")
    assert "under way" not in capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
def test_a_run_takes_the_cores_it_may_have(tmp_path):
    """A batch system gives a job some of a node's cores; more threads than these crawl."""
    one = next(iter(os.sched_getaffinity(0)))
    run = start(tmp_path, *SLOW, preexec_fn=lambda: os.sched_setaffinity(0, {one}))
    try:
        wait_for(in_teacher(tmp_path), run)
        kernels = [p for p in tree(run.pid) if "ipykernel_launcher" in " ".join(p.cmdline())]
        assert [kernel.environ()["OMP_NUM_THREADS"] for kernel in kernels] == ["1"]
    finally:
        kill_tree(run)


def test_failing_snakemake_shows_why(tmp_path):
    """No notebook failed, so its own log must say what did."""
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "notebooks").write_text("a file where a folder must be")
    run = start(tmp_path, *SLOW)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and "start the same command" in errors
    assert "Not a directory" in errors and "notebooks" in errors, "Snakemake's own error"


def whole(folder):
    """What is called done is done: every manifest is JSON and names files that are as it says."""
    for stage in STAGES:
        path = folder / stage / "manifest.json"
        if path.is_file():
            outputs = json.loads(path.read_text())["outputs"].items()
            assert all(sha256(folder / stage / name) == digest for name, digest in outputs), stage


def tables(folder):
    return {p.name: p.read_bytes() for p in (folder / "smoke" / "tables").iterdir()}


@pytest.mark.nightly
def test_twenty_kills_and_the_tables_of_an_undisturbed_run(tmp_path):
    calm = start(tmp_path / "calm")
    began = time.time()
    _, errors = calm.communicate(timeout=1800)
    assert calm.returncode == 0, errors
    usual = time.time() - began
    draw, landed = random.Random(0), 0  # signals that met a run that was alive
    while landed < 24:
        run = start(tmp_path / "rough")
        try:
            run.wait(timeout=6 + draw.random() * usual / 8)
        except subprocess.TimeoutExpired:
            landed += 1
            if landed % 6:  # five of six
                kill_tree(run)
            else:
                os.killpg(run.pid, draw.choice([signal.SIGINT, signal.SIGTERM]))
                run.communicate(timeout=30)
            whole(tmp_path / "rough" / "smoke")
        else:  # it ended by itself: the signals that are left meet another run
            assert run.returncode == 0, run.communicate()
            shutil.rmtree(tmp_path / "rough" / "smoke")
    last = start(tmp_path / "rough")
    _, errors = last.communicate(timeout=1800)
    assert last.returncode == 0, errors
    assert tables(tmp_path / "rough") == tables(tmp_path / "calm")
    rows = json.loads((tmp_path / "rough" / "smoke" / "05_ppo" / "log.json").read_text())
    steps = [row["step"] for row in rows if "step" in row]
    assert steps == sorted(steps), "the log goes on where it stopped"


@pytest.mark.nightly
def test_two_runs_side_by_side(tmp_path):
    both = [start(tmp_path / name) for name in ("one", "two")]
    for run in both:
        _, errors = run.communicate(timeout=3600)
        assert run.returncode == 0, errors
    assert tables(tmp_path / "one") == tables(tmp_path / "two")


@pytest.mark.nightly
def test_changed_and_truncated_files_are_made_again(tmp_path):
    first = start(tmp_path, "--until", "03_instructions")
    assert first.communicate(timeout=600) and first.returncode == 0
    folder = tmp_path / "smoke"
    for stage, name in (("01_data", "catalog.parquet"), ("03_instructions", "train.parquet")):
        path = folder / stage / name
        path.write_bytes(path.read_bytes()[:-100])
        assert not is_done(load("smoke"), stage, folder)
        again = start(tmp_path, "--until", "03_instructions")
        out, errors = again.communicate(timeout=600)
        assert again.returncode == 0 and f"{stage} done" in out, errors
        assert is_done(load("smoke"), stage, folder)


@pytest.mark.nightly
def test_a_clock_that_jumps_back(tmp_path):
    """In the middle of a run, and between two: files then are from the future."""
    later = time.time() + 30 * 86400
    first = start(tmp_path, "--until", "02_teacher")
    wait_for(in_teacher(tmp_path), first)
    os.utime(tmp_path / "smoke" / "01_data" / "manifest.json", (later, later))
    _, errors = first.communicate(timeout=600)
    assert first.returncode == 0, errors
    for path in (tmp_path / "smoke").rglob("*"):
        os.utime(path, (later, later))
    again = start(tmp_path, "--until", "03_instructions")
    out, errors = again.communicate(timeout=600)
    assert again.returncode == 0 and "[1/9]" not in out and "[2/9]" not in out, errors
    assert "[3/9] 03_instructions done" in out


@pytest.fixture
def mounted(tmp_path):
    """``mounted(options)`` mounts a small tmpfs and returns its folder; needs root."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a file system needs root and mount")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        again = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this system lets nobody mount a tmpfs")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def fill(path):
    """Write into a file until the disk is full."""
    with open(path, "wb") as ballast:
        try:
            while True:
                ballast.write(bytes(1 << 20))
                ballast.flush()
        except OSError:
            pass


def done_in(out):
    """The notebooks that a terminal's text calls done, in order."""
    return re.findall(r"^\[\d/9\] (\w+) done", out, re.MULTILINE)


@pytest.mark.nightly
def test_a_disk_that_fills_in_every_stage(mounted):
    """Each stage in turn meets a full disk; with room again, the same command goes on."""
    disk = mounted("size=400m")
    folder, done = disk / "smoke", []
    for stage in STAGES:
        run = start(disk)
        wait_for(lambda stage=stage: (folder / stage / ".clock.json").is_file(), run, 1800)
        fill(disk / "ballast")
        out, errors = run.communicate(timeout=900)
        assert run.returncode == 1 and "is full" in errors and str(disk) in errors, errors
        whole(folder)
        done += done_in(out)
        assert done == STAGES[: STAGES.index(stage)], "a stage done before was run again"
        (disk / "ballast").unlink()
    last = start(disk)
    out, errors = last.communicate(timeout=1800)
    assert last.returncode == 0, errors
    assert done + done_in(out) == STAGES
    assert all(is_done(load("smoke"), stage, folder) for stage in STAGES)


@pytest.mark.nightly
@pytest.mark.skipif(
    not hasattr(psutil.Process, "rlimit"), reason="only Linux limits another process's memory"
)
@pytest.mark.parametrize("stage", ["02_teacher", "04_sft", "05_ppo"])
def test_memory_that_runs_out(stage, tmp_path):
    """The kernel may take no more than it has; without that limit, the same command goes on."""
    slow = ["--set", EPOCHS, "--set", "teacher.patience=400"] if stage == "02_teacher" else []
    run = start(tmp_path, "--until", stage, *slow)
    wait_for((tmp_path / "smoke" / stage / ".progress.json").is_file, run, 1800)
    for one in tree(run.pid):
        if "ipykernel_launcher" in " ".join(one.cmdline()):
            size = one.memory_info().vms
            one.rlimit(psutil.RLIMIT_AS, (size, size))
    out, errors = run.communicate(timeout=900)
    assert run.returncode == 1, out
    said = [line for line in errors.splitlines() if "memory ran out" in line]
    assert len(said) == 1 and LESS_MEMORY[stage] in said[0], errors
    whole(tmp_path / "smoke")
    again = start(tmp_path, "--until", stage)
    out, errors = again.communicate(timeout=1800)
    assert again.returncode == 0, errors
    assert is_done(load("smoke"), stage, tmp_path / "smoke")
    assert STAGES[0] not in done_in(out)


@pytest.mark.nightly
def test_a_read_only_runs_folder(mounted):
    disk = mounted("size=50m,ro")
    run = start(disk, *SLOW)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1 and "Read-only file system" in errors and "RECNB_RUNS" in errors
    assert "Traceback" not in errors
