"""Runs on a cluster, as far as a machine without one can tell; make slurm-test starts one."""

import contextlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time

import psutil
import pytest
import typer
import yaml

from recnb import RecnbError, cli, machine
from recnb.artifacts import Stage
from recnb.engine.shared import EveryMinutes
from recnb.lm import hub
from recnb.profile import STAGES, load, root, save
from recnb.workflow import cluster as slurm
from recnb.workflow import execute, gpus, graph, job
from recnb.workflow.launch import ENDED, _why, together


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """``commands(name, script)`` puts a command of SLURM's into the path; all that are needed say
    nothing and succeed at first. Every call is noted in the folder's ``calls``."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: name)

    def command(name, script="exit 0"):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {folder}/calls\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    for name in ("sbatch", "squeue", "scancel", "sinfo", "sacct"):
        command(name)
    command.calls = folder / "calls"
    return command


def own(folder, text):
    (folder / "own").mkdir(exist_ok=True)
    (folder / "own" / "config.yaml").write_text(text)
    return str(folder / "own")


def test_the_kits_profile_gives_gpus_to_models_alone(commands):
    made = slurm.cluster("a100")
    asked = {stage: slurm.resources(made, stage) for stage in STAGES}
    with_gpus = [stage for stage in STAGES if "gres" in asked[stage]]
    assert with_gpus == [s for s in STAGES if s not in ("01_data", "03_instructions")]
    for stage, own_ in asked.items():
        assert {"slurm_partition", "runtime", "mem_mb", "cpus_per_task"} <= own_.keys()
        assert (own_["slurm_partition"] == "gpu") == (stage in with_gpus)
    movie = load("paper-movie")
    for stage in ("04_sft", "05_ppo", "06_evaluation"):
        assert asked[stage]["gres"] == f"gpu:a100:{gpus.wanted(stage, movie)}"
    assert made.settings["retries"] > 0 and made.settings["slurm-requeue"]
    text = (made.folder / "config.yaml").read_text()
    before = ""
    for line in text.splitlines():
        if re.match(r"[a-z]", line):  # every setting at the top says what it is for
            assert before.startswith("#"), line
        before = line


def test_gpus_asked_for_and_gpus_used(commands, tmp_path):
    a100, movie, laptop = slurm.cluster("a100"), load("paper-movie"), load("laptop")
    assert slurm.uneven(a100, [laptop, movie], STAGES) == []
    idle = slurm.uneven(a100, [laptop], STAGES)
    assert len(idle) == 3 and "04_sft: 4 GPUs, and the notebook uses 1" in idle[0]
    text = "set-resources: {05_ppo: {gres: gpu:a100}, 06_evaluation: {gpu: 1}}"
    few = slurm.cluster(own(tmp_path, text))
    assert slurm.uneven(few, [laptop], STAGES) == [], "none asked for: on processors"
    with pytest.raises(
        RecnbError, match="05_ppo: 1 GPUs, and compute.processes of the prof.* is 4"
    ):
        slurm.uneven(few, [movie], STAGES)


@pytest.mark.parametrize(
    "name, said",
    [
        ("", "--executor slurm needs --workflow-profile: a100"),
        ("a1000", "no config.yaml in a1000. The kit has a100"),
    ],
)
def test_a_workflow_profile_must_be_there(commands, name, said):
    with pytest.raises(RecnbError, match=re.escape(said)):
        slurm.cluster(name)


@pytest.mark.parametrize(
    "text, said",
    [
        ("- jobs", "expected settings, a line each"),
        ("jobs: [", "config.yaml: "),
        ("set-resources: {04_stf: {runtime: 3}}", "no stage 04_stf; stages: 01_data"),
        ("set-resources: ['04_sft:runtime=3']", "set-resources: expected lines of the form"),
        ("set-resources: {}", "set-resources: nothing stands under it: leave the line out"),
        ("default-resources: [runtime=3]", "default-resources: expected lines of the form"),
        ("set-resources: {04_sft: {runtime: 24h}}", "04_sft: runtime: '24h' is no whole"),
        (
            "default-resources: {mem_mb: 0}",
            "default-resources: mem_mb: 0 is no whole number of MiB",
        ),
    ],
)
def test_a_damaged_workflow_profile_names_file_and_key(commands, tmp_path, text, said):
    with pytest.raises(RecnbError, match=re.escape(said)) as caught:
        slurm.cluster(own(tmp_path, text))
    assert "config.yaml" in str(caught.value)


@pytest.mark.parametrize("lacking", ["sbatch", "squeue", "sinfo"])
def test_a_machine_without_slurm_is_told_so(commands, lacking):
    (commands.calls.parent / lacking).unlink()
    with pytest.raises(RecnbError, match=f"{lacking} not found: start recnb on a machine that"):
        slurm.cluster("a100")


def test_an_environment_without_the_plugin_is_told_so(commands, monkeypatch):
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecnbError, match="pip install --no-deps -r docs/cluster/requirements.lock"):
        slurm.cluster("a100")
    assert (root() / "docs" / "cluster" / "requirements.lock").is_file()


@pytest.mark.parametrize(
    "words, knob",
    [
        ("sbatch: error: invalid partition specified: gpu", "slurm_partition"),
        ("sbatch: error: Invalid generic resource (gres) specification", "gres"),
        ("allocation failure: Requested node configuration is not available", "gres, mem_mb, cpus"),
        ("allocation failure: Invalid feature specification", "constraint"),
    ],
)
def test_a_refusal_names_stage_knob_and_what_there_is(commands, words, knob):
    commands("sbatch", f'case "$*" in *partition=gpu*) echo "{words}" >&2; exit 1;; esac')
    commands("sinfo", 'case "$*" in *%l*) exit 0;; esac; echo what-there-is')
    made = slurm.cluster("a100")
    with pytest.raises(RecnbError) as caught:
        slurm.ask(made, STAGES)
    said = str(caught.value)
    assert words in said and f"The knob is {knob}" in said and "has what-there-is" in said
    assert "02_teacher" in said and "01_data" not in said and "Nothing was submitted" in said
    calls = commands.calls.read_text().splitlines()
    assert all("--test-only" in call for call in calls if call.startswith("sbatch"))


def test_a_refusal_leaves_a_run_as_it_was(commands, tmp_path, monkeypatch, capsys):
    commands("sbatch", "echo 'invalid partition specified' >&2; exit 1")
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path / "runs"))
    more = ["--executor", "slurm", "--workflow-profile", "a100"]
    monkeypatch.setattr(sys, "argv", ["recnb", "run", "smoke", *more])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1 and "slurm_partition" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_more_time_than_the_partition_gives(commands, tmp_path):
    commands("sinfo", "echo 1-00:00:00")
    text = "default-resources: {slurm_partition: main, runtime: %d}"
    slurm.ask(slurm.cluster(own(tmp_path, text % 1440)), STAGES[:1])
    with pytest.raises(RecnbError, match="runtime is 1441 minutes, the partition's limit 1440"):
        slurm.ask(slurm.cluster(own(tmp_path, text % 1441)), STAGES[:1])


@pytest.mark.parametrize(
    "text, minutes",
    [
        ("2-01:30:00", 2970),
        ("1:00:30", 60.5),
        ("5:30", 5.5),
        ("infinite", None),
        ("UNLIMITED", None),
    ],
)
def test_slurms_times_in_minutes(text, minutes):
    assert slurm.minutes_of(text) == minutes


def test_without_accounting_the_queue_is_asked(commands):
    made = slurm.cluster("a100")
    assert "--slurm-status-command" not in slurm.options(made)
    commands("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.options(made)[-3:] == ["--slurm-status-command", "squeue", "--slurm-no-account"]


def test_jobs_of_an_earlier_start_are_not_doubled(commands, tmp_path):
    made = slurm.cluster("a100")
    slurm.refuse_leftovers(tmp_path)  # never submitted
    slurm.note_jobs(made, tmp_path)
    commands("squeue", f"echo '7|{made.name}_x|RUNNING'; echo '8|other_x|RUNNING'")
    with pytest.raises(RecnbError, match=r"queue: 7 \(running\): .* scancel 7; then"):
        slurm.refuse_leftovers(tmp_path)
    slurm.cancel(made)
    assert "scancel 7\n" in commands.calls.read_text()
    commands("squeue", "echo '8|other_x|RUNNING'")
    slurm.refuse_leftovers(tmp_path)
    commands("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(RecnbError, match="SLURM does not answer: Unable to contact"):
        slurm.refuse_leftovers(tmp_path)


def test_a_job_has_its_allocations_threads(monkeypatch):
    eight = list(range(8))
    monkeypatch.setattr(machine.psutil.Process, "cpu_affinity", lambda _: eight, raising=False)
    monkeypatch.setattr(machine, "_cgroup", lambda name: "")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for said, threads in (("3", 3), ("64", 8), ("", 8)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", said)
        assert machine.cores() == threads
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "2")
    assert machine.cores() == 2
    monkeypatch.delenv("SLURM_JOB_ID")
    assert machine.cores() == 8, "what is left of an old job's environment does not count"


def test_a_job_sets_threads_and_the_time_of_a_last_checkpoint(commands, monkeypatch):
    commands("squeue", "echo 1:00:00")
    monkeypatch.setattr(job, "end_with", lambda mark: None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    for name in (*job.THREADS, job.CHECKPOINT_AT):
        monkeypatch.setenv(name, "64")
    job.adopt()
    assert {os.environ[name] for name in job.THREADS} == {"1"}
    assert 3290 < float(os.environ[job.CHECKPOINT_AT]) - time.time() <= 3300


def test_a_checkpoint_shortly_before_the_end(monkeypatch):
    class Control:
        should_save = False

    class State:
        global_step = 4

    monkeypatch.setenv(job.CHECKPOINT_AT, str(time.time() - 1))
    callback, asked = EveryMinutes(0, updates=4), []
    for step in (3, 4, 8):
        State.global_step, control = step, Control()
        callback.on_step_end(None, State, control)
        asked.append(control.should_save)
    assert asked == [False, True, False], "at the next place where one may be written, and once"
    monkeypatch.setenv(job.CHECKPOINT_AT, str(time.time() + 60))
    control = Control()
    EveryMinutes(0).on_step_end(None, State, control)
    assert not control.should_save


def test_a_full_disk_of_a_node_is_named(monkeypatch, tmp_path):
    run, scratch = tmp_path / "run", tmp_path / "scratch"
    run.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    with pytest.raises(job.NodeError, match="no folder .*scratch"):
        job.refuse_full_disks(run)
    scratch.mkdir()
    job.refuse_full_disks(run)
    free = {run: job.ROOM, scratch: job.ROOM - 1}
    monkeypatch.setattr(
        job.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, free[path])
    )
    with pytest.raises(job.NodeError, match="scratch is full .63 MiB free.: make room there, or"):
        job.refuse_full_disks(run)
    free[run] = 0
    with pytest.raises(job.NodeError, match="run is full .0 MiB free.: make room$"):
        job.refuse_full_disks(run)


def test_a_notebook_that_failed_is_not_run_again(monkeypatch, tmp_path, capsys):
    """Snakemake submits it again, as it must after a time limit; that try costs nothing."""
    adopted = []
    monkeypatch.setattr(job, "adopt", lambda: adopted.append(1))
    stage = tmp_path / "04_sft"
    stage.mkdir()
    (stage / execute.NODE_FAILED).write_text("a full disk")
    execute._as_job(stage)
    assert adopted == [1] and not (stage / execute.NODE_FAILED).exists(), "another node may do"
    (stage / execute.FAILED).write_text("[4/9] 04_sft FAILED\nits cell 3")
    with pytest.raises(SystemExit) as stop:
        execute._as_job(stage)
    assert stop.value.code == 1 and adopted == [1] and "its cell 3" in capsys.readouterr().err


def planned(folder, **variants):
    """Two runs of each seed, [(Profile, folder)]."""
    runs = []
    for seed in (0, 1):
        for name, knobs in ({"": {}} | variants).items():
            label = f"smoke-seed{seed}{name and '-'}{name}"
            runs.append((load("smoke", {"seed": seed} | knobs), folder / label))
            (folder / label).mkdir()
    return runs


def test_stages_of_the_same_knobs_are_made_once(tmp_path):
    runs = planned(tmp_path, rl={"ppo.steps": 9}, dull={"cases.dial_users": 3})
    found = graph.taken(runs)
    both = {"smoke-seed0-rl": "smoke-seed0", "smoke-seed0-dull": "smoke-seed0"}
    both |= {"smoke-seed1-rl": "smoke-seed1", "smoke-seed1-dull": "smoke-seed1"}
    dull = {name: maker for name, maker in both.items() if "dull" in name}
    assert found == dict.fromkeys(STAGES[:4], both) | dict.fromkeys(STAGES[4:6], dull) | (
        dict.fromkeys(STAGES[6:], {})
    )
    profile, folder = runs[1]
    stage = Stage("01_data", profile, folder)  # finished before this start
    stage.finish()
    assert "smoke-seed0-rl" not in graph.taken(runs)["01_data"]


def test_a_stage_is_taken_as_links(tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path))
    (one, first), (other, second) = planned(tmp_path, rl={"ppo.steps": 9})[:2]
    stage = Stage("01_data", one, first)
    (stage.folder / "result.txt").write_text("made")
    stage.finish()
    save(one, first / "profile.yaml")
    save(other, second / graph.FROZEN)
    graph.take("01_data", second)
    assert (second / "01_data" / "result.txt").samefile(first / "01_data" / "result.txt")
    (first / "01_data" / "result.txt").write_text("changed")
    shutil.rmtree(second / "01_data")
    with pytest.raises(RecnbError, match="no other run has 01_data with these knobs any more"):
        graph.take("01_data", second)


def test_what_is_said_of_jobs_that_failed(tmp_path):
    first, second = tmp_path / "a-seed0", tmp_path / "a-seed1"
    for folder in (first, second):
        (folder / "04_sft").mkdir(parents=True)
    said = (
        "SLURM-job '5' failed, SLURM status is: 'TIMEOUT'. More\nSLURM status is: 'OUT_OF_MEMORY'."
    )
    for name, text in ((execute.FAILED, "cell 3"), (execute.NODE_FAILED, "node9: disk full")):
        (first / "04_sft" / name).write_text(text)
    (second / "04_sft" / execute.FAILED).write_text("cell 4")
    lines = _why([first, second], 1, said).splitlines()
    assert lines[:3] == ["a-seed0: cell 3", "a-seed0: node9: disk full", "a-seed1: cell 4"]
    assert lines[3].startswith("SLURM ended a job at its memory limit: raise mem_mb")
    assert lines[4].startswith("SLURM ended a job at its time limit: raise runtime")
    assert "start the same command again" in lines[5]
    shutil.rmtree(first / "04_sft")
    shutil.rmtree(second / "04_sft")
    assert "the last it said:\nboom" in _why([first], 1, "boom\n")


def test_braces_in_a_path_are_refused(tmp_path):
    (tmp_path / "{x}" / "smoke").mkdir(parents=True)
    with pytest.raises(RecnbError, match="takes braces in a path for a pattern"):
        graph.write_graph([(load("smoke"), tmp_path / "{x}" / "smoke")], "", 1, "local")


def dry_run(path, *options):
    """``{rule: jobs}`` of what Snakemake would do."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--directory", str(path.parent)]
    command += ["--snakefile", str(root() / "recnb" / "workflow" / "Snakefile")]
    command += ["--configfile", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    table = done.stdout + done.stderr
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def test_snakemakes_graph_of_variants_and_seeds(tmp_path):
    runs = planned(tmp_path, rl={"ppo.steps": 9})
    found = dry_run(graph.write_graph(runs, "05_ppo", 1, "local"), "--cores", "1")
    made = dict.fromkeys(STAGES[:4], 2) | {f"{stage}_taken": 2 for stage in STAGES[:4]}
    assert found == made | {"05_ppo": 4, "all": 1, "total": 21}


def test_several_runs_compute_together_where_there_is_room(monkeypatch, tmp_path):
    runs = [(folder, profile) for profile, folder in planned(tmp_path)]
    for ids, count in (("", 2), ("0", 2), ("0,1", 1)):
        monkeypatch.setenv(gpus.VARIABLE, ids)
        assert len(together(runs)) == count
    monkeypatch.setenv(gpus.VARIABLE, "")
    assert len(together(runs, slurm.Cluster(tmp_path, {}))) == 1
    several = load("smoke", {"compute.processes": 2})
    monkeypatch.setenv(gpus.VARIABLE, "0,1,2")
    assert len(together([(tmp_path / "a", several), (tmp_path / "b", several)])) == 2


@pytest.fixture
def pool(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "pool_folder", lambda: tmp_path / "pool")


def test_every_gpu_is_held_by_one_at_a_time(pool):
    """Eight jobs of three sizes on fake ids."""
    ids, now, most, lock = ["0", "1", "GPU-a/1"], [], [], threading.Lock()

    def work(count):
        with gpus.held(count, ids) as held:
            assert len(held) == count
            with lock:
                assert not set(held) & set(now), "two jobs hold one GPU"
                now.extend(held)
                most.append(len(now))
            time.sleep(0.05)
            with lock:
                for one in held:
                    now.remove(one)

    errors = []

    def watched(count):
        try:
            work(count)
        except AssertionError as error:
            errors.append(error)

    jobs = [threading.Thread(target=watched, args=(count,)) for count in (1, 1, 2, 3, 1, 2, 1, 1)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join(timeout=60)
    assert not errors and not now and len(most) == 8 and max(most) == 3


def test_a_killed_job_frees_its_gpu(pool, tmp_path):
    code = (
        "import sys, time, pathlib; from recnb.workflow import gpus\n"
        "gpus.pool_folder = lambda: pathlib.Path(sys.argv[1])\n"
        "with gpus.held(1, ['0']):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pool")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert gpus._try(tmp_path / "pool", 1, ["0"]) is None
        waited = []
        timer = threading.Timer(0.2, other.kill)
        timer.start()
        with gpus.held(1, ["0"], lambda: waited.append(1)) as held:
            assert held == ["0"] and waited == [1]
    finally:
        other.kill()
        other.communicate()


def test_more_gpus_than_there_are(pool):
    with pytest.raises(RecnbError, match=r"3 GPUs are asked for .* and 1 may be used \(0\)"):
        with gpus.held(3, ["0"]):
            pass


def test_which_gpus_are_known(monkeypatch):
    monkeypatch.setenv(gpus.VARIABLE, " 1, 0 ")
    assert gpus.known() == ["1", "0"]
    monkeypatch.setenv(gpus.VARIABLE, "1,1")
    with pytest.raises(RecnbError, match="stands there twice"):
        gpus.known()
    monkeypatch.delenv(gpus.VARIABLE)
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for shown, ids in (("", ["0", "1"]), ("3,5", ["3", "5"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert gpus.known() == ids
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert gpus.pool_folder().name.endswith("-7"), "another job's 0 is another GPU"


@pytest.mark.parametrize(
    "stage, shown", [("01_data", None), ("06_evaluation", "0,1"), ("07_case_studies", "0")]
)
def test_a_notebook_sees_the_gpus_it_holds(pool, monkeypatch, tmp_path, stage, shown):
    monkeypatch.setenv(gpus.VARIABLE, "0,1,2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "untouched")
    save(load("smoke", {"compute.processes": 2}), tmp_path / graph.FROZEN)
    with execute._gpus(stage, tmp_path, "local"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == (shown or "untouched")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "slurm's")
    with execute._gpus(stage, tmp_path, "slurm"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "slurm's"


@pytest.mark.nightly
def test_two_runs_side_by_side_on_two_gpus(tmp_path):
    """From the command line to the kernels, on fake ids: each sees one, at the same time."""
    environment = os.environ | {"RECNB_RUNS": str(tmp_path), gpus.VARIABLE: "0,1"}
    command = [sys.executable, "-m", "recnb.cli", "run", "smoke", "--until", "02_teacher"]
    command += ["--set", "seeds=[0, 1]", "--set", "teacher.max_epochs=100"]
    run = subprocess.Popen([*command, "--set", "teacher.patience=100"], env=environment, cwd=root())
    seen = []
    try:
        while run.poll() is None:
            now = []
            with contextlib.suppress(psutil.Error):
                for one in psutil.Process(run.pid).children(recursive=True):
                    if "ipykernel_launcher" in " ".join(one.cmdline()):
                        now.append(one.environ().get("CUDA_VISIBLE_DEVICES"))
            seen.append(sorted(one for one in now if one in ("0", "1")))
            time.sleep(0.2)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0 and ["0", "1"] in seen
    assert ["0", "0"] not in seen and ["1", "1"] not in seen


def test_a_hub_model_is_looked_for_before_a_run(monkeypatch, tmp_path):
    """Without a network, or told not to use it, a name that is not in the cache is one message."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecnbError, match="model.name nobody/nothing: not in the Hub's cache") as no:
        hub.fetch_model("nobody/nothing")
    assert "recnb fetch PROFILE" in str(no.value)
    for name in ("mini", "smollm2", str(tmp_path)):
        hub.fetch_model(name)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run", "smoke", "gpu", "--run", "x"], "--run x names one profile's run, and these are 2"),
        (["run", "smoke", "smoke"], "smoke: two of these runs would have this name"),
        (
            ["run", "smoke", "--workflow-profile", "a100"],
            "--workflow-profile is for --executor slurm",
        ),
        (["run", "smoke", "--executor", "slurm"], "--executor slurm needs --workflow-profile"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(sys, "argv", ["recnb", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1 and said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


CLUSTER = root() / "docs" / "cluster"
PAGE = (root() / "docs" / "cluster.md").read_text(encoding="utf-8")


def commands_of(page):
    """Lines of its code blocks, without what stands behind them as a remark."""
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


def test_the_pages_commands_are_ones():
    """Each names a command with options that exist, files that exist, profiles that load."""
    app, seen = typer.main.get_command(cli.app), []
    for words in map(shlex.split, commands_of(PAGE)):
        seen.append(words[0])
        if words[0] == ".venv/bin/recnb":
            chosen = app.commands[words[1]].make_context(words[1], list(words[2:])).params
            for name in chosen.get("names") or [chosen["name"]]:
                load(name, cli.overrides(chosen.get("set_", [])))
            assert chosen.get("workflow_profile", "") in ("", "a100", "./my-cluster")
        elif words[0] == "make":
            rules = (root() / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{words[1]}:", rules, re.MULTILINE), words
        else:
            assert words[0] in ("sinfo", "cp", "sbatch", "kubectl", ".venv/bin/pip"), words
            for word in words[1:]:
                if "/" in word and word != "./my-cluster":
                    assert (root() / word).exists(), words
    assert {".venv/bin/recnb", "make", "sbatch", "kubectl"} <= set(seen)


def test_the_page_names_what_there_is():
    profile = yaml.safe_load((slurm.PROFILES / "a100" / "config.yaml").read_text())
    for name in [*profile, *profile["default-resources"], "gres", "slurm_account"]:
        assert f"`{name}`" in PAGE, name
    for state, said in ENDED.items():
        assert state in ("NODE_FAIL", "CANCELLED") or f" {said.split(':')[0]}`" in PAGE
    cases = (root() / "tests" / "cluster" / "cases.py").read_text(encoding="utf-8")
    for name in re.search(r'CASES="(.*?)"', PAGE)[1].split():
        assert f"\ndef {name}():" in cases


@pytest.mark.parametrize("script", ["docs/cluster/papermill.sbatch", "tests/cluster/slurm_test.sh"])
def test_scripts_are_sound(script):
    path = str(root() / script)
    assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "usage: sbatch docs/cluster/papermill.sbatch PROFILE RUN"),
        (["smoke"], "usage: sbatch docs/cluster/papermill.sbatch PROFILE RUN"),
        (["smokee", "x"], "profile smokee: no such file. Did you mean smoke?"),
    ],
)
def test_the_plain_script_says_what_is_wrong(tmp_path, arguments, said):
    done = plain(tmp_path, *arguments)
    assert done.returncode != 0 and said in done.stderr
    assert not list(tmp_path.iterdir())


def plain(runs, *arguments, cwd=None):
    script = str(CLUSTER / "papermill.sbatch")
    more = {"RECNB_RUNS": str(runs), "RECNB_PYTHON": sys.executable, "RECNB_STAGES": "01_data"}
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=cwd or root(),
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_plain_script_outside_a_checkout(tmp_path):
    done = plain(tmp_path, "smoke", "x", cwd=tmp_path)
    assert done.returncode == 1 and "is no checkout of recnb" in done.stderr


@pytest.mark.nightly
def test_the_plain_script_runs_a_notebook_once(tmp_path):
    first, second = plain(tmp_path, "smoke", "mine"), plain(tmp_path, "smoke", "mine")
    assert first.returncode == 0 and second.returncode == 0, first.stderr + second.stderr
    assert "01_data ..." in first.stdout and "01_data is up to date" in second.stdout


def test_the_kubernetes_job_fits_together():
    made = yaml.safe_load((CLUSTER / "kubernetes-job.yaml").read_text(encoding="utf-8"))
    assert (made["apiVersion"], made["kind"]) == ("batch/v1", "Job")
    assert made["spec"]["backoffLimit"] > 0, "a pod that was evicted is made again"
    pod = made["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert (root() / container["command"][1]).is_file()
    load(container["args"][0])
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    (data,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "data"]
    values = {one["name"]: one for one in container["env"]}
    for name in ("RECNB_RUNS", "RECNB_CACHE", "HF_HOME"):  # what must outlive a pod
        assert values[name]["value"].startswith(f"{data}/")
    assert values["RECNB_THREADS"]["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    asked = container["resources"]
    assert asked["requests"] == asked["limits"] and asked["limits"]["nvidia.com/gpu"] == 1
    assert "RECNB_THREADS" in (CLUSTER / "papermill.sbatch").read_text(encoding="utf-8")
