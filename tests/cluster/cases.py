"""What recnb does on a real SLURM: one line passed or failed a case (started by slurm_test.sh).

    cases.py FOLDER [CASE ...]

Without names all cases run. RECNB_SLURM_FULL=1 runs the whole smoke profile where a case compares
tables; without it, a smaller one of the same nine notebooks.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import torch
import yaml

from recnb.artifacts import is_done, sha256
from recnb.datasets import build
from recnb.owner import end_tree
from recnb.profile import STAGES, load, root
from recnb.teacher.training import train_sasrec
from recnb.workflow.cluster import JOBS, ask, cluster, options, resources
from recnb.workflow.graph import write_graph

FOLDER = Path(sys.argv[1])
RUNS = FOLDER / "runs"
PATIENCE = 1800
"""Seconds until a case is given up."""
SMALLER = ["sft.v1=false", "sft.palr=0", "sft.instructrec=0", "ppo.v3=false", "tallrec.shots=[16]"]
SMALLER += ["tallrec.seeds=[0]", "tallrec.epochs=4", "general_ability.shares=[0.0]"]
SMALLER += ["evaluation.users=20", "evaluation.bootstrap=50", "evaluation.decoding=[free]"]
KNOBS = [] if os.environ.get("RECNB_SLURM_FULL") == "1" else SMALLER
TEACHER = "02_teacher"
LIMIT = 2
"""Minutes of a job that shall run into its time limit."""
PAPER = {"data.path": str(FOLDER)}
"""Any folder will do where nothing is run."""


def workflow_profile(name, stages=None, **defaults):
    """Write a workflow profile for the test's cluster; returns its folder.

    Args:
        stages: ``{stage: {resource: value}}``.
        defaults: resources of all stages.
    """
    settings = {"jobs": 4, "retries": 10, "keep-going": True, "rerun-incomplete": True}
    settings |= {"latency-wait": 20, "slurm-requeue": True}
    settings["slurm-init-seconds-before-status-checks"] = 2
    usual = {"slurm_partition": "main", "runtime": 120, "mem_mb": 1500, "cpus_per_task": 1}
    settings["default-resources"] = usual | {"nodes": 1} | defaults
    if stages:
        settings["set-resources"] = stages
    folder = FOLDER / "workflow-profiles" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def recnb(*arguments, knobs=(), **more):
    """Start a recnb command; its output goes to a pipe."""
    command = [sys.executable, "-m", "recnb.cli", *map(str, arguments)]
    for knob in knobs:
        command += ["--set", knob]
    return subprocess.Popen(
        command, cwd=root(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )


def submit(name, folder, *arguments, knobs=()):
    """``recnb run smoke`` as a run of this name on SLURM."""
    more = ["--executor", "slurm", "--workflow-profile", folder, *arguments]
    return recnb("run", "smoke", "--run", name, *more, knobs=knobs)


def ends_well(run):
    """The output of a command that ends with exit code 0."""
    said, _ = run.communicate(timeout=4 * PATIENCE)
    assert run.returncode == 0, f"exit code {run.returncode}:\n{said}"
    return said


def until(condition, run=None, seconds=PATIENCE):
    """What ``condition()`` returns, once it is true; the run must not end before."""
    deadline = time.time() + seconds
    while not (found := condition()):
        assert time.time() < deadline, "it did not come to that in time"
        if run is not None and run.poll() is not None:
            raise AssertionError(f"the run ended before: {run.communicate()[0]}")
        time.sleep(0.3)
    return found


def jobs(*states):
    """``{number: (state, comment, reason)}`` of jobs in these states, all without any."""
    command = ["squeue", "--noheader", "--format", "%i|%T|%k|%r"]
    command += ["--states", ",".join(states) or "all"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("|") for line in said.splitlines()]
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def since(before, *states):
    return {number: row for number, row in jobs(*states).items() if number not in before}


def slurm(*command):
    subprocess.run(command, check=True, capture_output=True, text=True)


def kernels():
    """``{SLURM job: environment}`` of the notebooks that run now."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ipykernel_launcher" in " ".join(process.cmdline()):
                environment = process.environ()
                if environment.get("RECNB_RUNS") == str(RUNS) and "SLURM_JOB_ID" in environment:
                    found[environment["SLURM_JOB_ID"]] = environment
    return found


def outputs(name, stage):
    return json.loads((RUNS / name / stage / "manifest.json").read_text())["outputs"]


def models(name):
    """sha256 of what the teacher's notebook made, without what holds times."""
    return {file: digest for file, digest in outputs(name, TEACHER).items() if "safetens" in file}


def gpus_and_threads():
    """Two jobs at once: each its own GPU, and as many threads as its allocation has processors."""
    folder = workflow_profile("gpus", gres="gpu:a100:1", cpus_per_task=1)
    run = submit("gpu", folder, "--until", "01_data", knobs=["seeds=[0, 1]"])
    seen = {}

    def both():
        seen.update(kernels())
        return len(seen) == 2

    until(both, run)
    ends_well(run)
    ids = sorted(environment["CUDA_VISIBLE_DEVICES"] for environment in seen.values())
    assert ids == ["0", "1"], f"CUDA_VISIBLE_DEVICES of the two jobs: {ids}"
    assert {environment["OMP_NUM_THREADS"] for environment in seen.values()} == {"1"}


def threads():
    """OMP_NUM_THREADS is the allocation's: of one processor, and of two; the node has 64."""
    for count in (1, 2):
        folder = workflow_profile(f"threads{count}", cpus_per_task=count)
        run = submit(f"threads{count}", folder, "--until", "01_data")
        seen = until(kernels, run)
        ends_well(run)
        wanted = {str(min(count, len(os.sched_getaffinity(0))))}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            found = {environment[name] for environment in seen.values()}
            assert found == wanted, f"{name} with {count} processors: {found}"


@functools.cache
def longer():
    """Knobs with which the teacher trains for about three minutes here: longer than ``LIMIT``."""
    smoke = load("smoke")
    catalog, histories = build(smoke.data, smoke.seed)
    knobs = smoke.teacher.model_copy(update={"max_epochs": 20, "patience": 20})
    torch.set_num_threads(1)
    _, rows = train_sasrec(histories, len(catalog), knobs, 0)
    count = int(180 * len(rows) / rows[-1]["seconds"])
    return [f"teacher.max_epochs={count}", f"teacher.patience={count}"]


def progress(name):
    """Epochs that a run's teacher has done, 0 before the first."""
    try:
        return json.loads((RUNS / name / TEACHER / ".progress.json").read_text())["done"]
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def timeout():
    """A job that SLURM ends at its time limit is submitted again and goes on where it was."""
    before = jobs()
    folder = workflow_profile("timeout", {TEACHER: {"runtime": LIMIT}})
    ends_well(submit("timeout", folder, "--until", TEACHER, knobs=longer()))
    # The training takes three minutes and a try two: from the start each time, it would not end.
    states = [state for state, comment, _ in since(before).values() if TEACHER in comment]
    assert states.count("TIMEOUT") >= 1 and states.count("COMPLETED") == 1, states
    manifest = json.loads((RUNS / "timeout" / TEACHER / "manifest.json").read_text())
    assert manifest["wall_seconds"] > 60 * LIMIT, "the time of all tries is counted"


def preemption():
    """A job that makes room for a more urgent one is queued again, goes on and completes."""
    before = jobs()
    folder = workflow_profile("preemption")
    run = submit("preemption", folder, "--until", TEACHER, knobs=longer())
    checkpoints = RUNS / "preemption" / TEACHER / "checkpoints"
    until(lambda: checkpoints.is_dir() and list(checkpoints.rglob("*.safetensors")), run)
    (number,) = since(before, "RUNNING")
    reached = progress("preemption")
    urgent = ["--partition=urgent", "--cpus-per-task=64", "--mem=100", "--output=/dev/null"]
    slurm("sbatch", *urgent, "--wrap", "sleep 3")
    until(lambda: jobs().get(number, ("",))[0] == "PENDING", run)
    slurm("scontrol", "update", f"JobId={number}", "StartTime=now")  # else after two minutes
    ends_well(run)
    assert jobs()[number][0] == "COMPLETED", "the same job, under the same number"
    assert reached > 0
    if (RUNS / "timeout" / TEACHER / "manifest.json").is_file():
        assert models("preemption") == models("timeout"), "both as if undisturbed"


def drained_node():
    """A node that is drained in the middle finishes its job; the next one waits for it."""
    before = jobs()
    node = os.uname().nodename.split(".")[0]
    run = submit("drained", workflow_profile("drained"), "--until", "02_teacher")
    until(lambda: since(before, "RUNNING"), run)
    slurm("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    try:
        until(lambda: is_done(load("smoke"), "01_data", RUNS / "drained"), run)
        waiting = until(lambda: since(before, "PENDING"), run)
        time.sleep(5)
        assert since(before, "PENDING").keys() == waiting.keys() and run.poll() is None
    finally:
        slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
    ends_well(run)
    assert is_done(load("smoke"), TEACHER, RUNS / "drained")


def the_kits_profile():
    """SLURM takes the kit's profile for A100 nodes as it stands, and Snakemake reads it."""
    ask(cluster("a100"), STAGES)
    run = RUNS / "a100"
    run.mkdir()
    path = write_graph([(load("paper-movie", PAPER), run)], "", 1, "slurm")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--directory", str(run)]
    command += ["--snakefile", str(root() / "recnb" / "workflow" / "Snakefile")]
    command += ["--configfile", str(path), *options(cluster("a100"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    shutil.rmtree(run)
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        asked = (
            done.stdout.partition(f"rule {stage}:")[2].partition("resources:")[2].splitlines()[0]
        )
        for name, value in resources(cluster("a100"), stage).items():
            if name != "mem_mb":
                assert f"{name}={value}" in asked, f"{stage}: {name} is not {value}: {asked}"


def wrong_names():
    """A partition, GRES or memory that the cluster lacks is one message; nothing is submitted."""
    before = jobs()
    for knobs, said in (
        ({"slurm_partition": "gpuz"}, "slurm_partition; the cluster has cpu; gpu; main; urgent"),
        ({"gres": "gpu:h100:1"}, "gpu:a100:4"),
        ({"gres": "gpuu:1"}, "gpu:a100:4"),
        ({"mem_mb": 99_000_000}, "mem_mb"),
        ({"runtime": 5000}, "the partition's limit 1440"),
    ):
        run = submit("wrong", workflow_profile("wrong", **knobs), "--until", "01_data")
        found, _ = run.communicate(timeout=PATIENCE)
        assert run.returncode == 1 and said in found and "Traceback" not in found, found
        assert "Nothing was submitted" in found and not (RUNS / "wrong").exists(), found
    assert jobs().keys() == before.keys()


def stopped_and_killed():
    """Ctrl-C takes the jobs out of the queue; a killed start leaves them, and is not doubled."""
    before, folder = jobs(), workflow_profile("stopped")
    first = ["--until", TEACHER]
    run = submit("stopped", folder, *first, knobs=longer())
    until(lambda: progress("stopped"), run)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and "SIGINT, stopped in 02_teacher" in said, said
    until(lambda: not since(before, "RUNNING", "PENDING", "COMPLETING"), seconds=120)
    assert not (RUNS / "stopped" / JOBS).exists()
    run = submit("stopped", folder, *first, knobs=longer())
    (number,) = until(lambda: since(before, "RUNNING"), run)
    for one in [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]:
        with contextlib.suppress(psutil.Error):
            one.kill()
    run.communicate()
    again = submit("stopped", folder, *first, knobs=longer())
    said, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 1 and f"scancel {number}" in said, said
    slurm("scancel", number)
    until(lambda: not since(before, "RUNNING", "PENDING", "COMPLETING"), seconds=120)


def full_scratch_disk():
    """A node whose scratch disk is full says so before the notebook begins; with room it runs."""
    disk = FOLDER / "full"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    assert subprocess.run(mount, capture_output=True).returncode == 0, "needs to mount a tmpfs"
    try:
        folder = workflow_profile("full")
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"retries": 0}))
        arguments = ["run", "smoke", "--run", "full", "--until", "01_data"]
        arguments += ["--executor", "slurm", "--workflow-profile", folder]
        run = recnb(*arguments, env=os.environ | {"TMPDIR": str(disk)})
        said, _ = run.communicate(timeout=PATIENCE)
        assert run.returncode == 1 and f"the disk of {disk} is full" in said, said
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    ends_well(submit("full", folder, "--until", "01_data"))


def scripts():
    """SLURM takes the plain sbatch script with this cluster's names, and it runs a notebook."""
    script = root() / "docs" / "cluster" / "papermill.sbatch"
    names = ["--partition=main", "--gres=gpu:a100:1", "--cpus-per-task=1"]
    names += ["--mem=1500", "--time=60"]
    slurm("sbatch", "--test-only", *names, str(script), "smoke", "plain")
    environment = os.environ | {"RECNB_STAGES": "01_data", "RECNB_PYTHON": sys.executable}
    log = FOLDER / "plain.log"
    done = subprocess.run(
        ["sbatch", "--wait", *names, f"--output={log}", str(script), "smoke", "plain"],
        cwd=root(),
        env=environment,
    )
    assert done.returncode == 0, log.read_text()
    assert is_done(load("smoke"), "01_data", RUNS / "plain")


def tables():
    """Nine notebooks, two data sets, two seeds: tables as of a local run, byte for byte."""
    profiles = []
    for name, items in (("one", 60), ("two", 70)):
        path = FOLDER / f"{name}.yaml"
        own = yaml.safe_load((root() / "papermill_runs" / "profiles" / "smoke.yaml").read_text())
        own |= {"name": name, "seeds": [0, 1]}
        own["data"]["synthetic_items"] = items
        path.write_text(yaml.safe_dump(own))
        profiles.append(path)
    began = time.time()
    folder = workflow_profile("tables")
    more = ["--executor", "slurm", "--workflow-profile", folder]
    ends_well(recnb("run", *profiles, *more, knobs=KNOBS))
    middle = time.time()
    names = [f"{name}-seed{seed}" for name in ("one", "two") for seed in (0, 1)]
    on_slurm = {}
    for name in names:
        on_slurm[name] = {p.name: sha256(p) for p in (RUNS / name / "tables").iterdir()}
        assert all((RUNS / name / stage / "manifest.json").is_file() for stage in STAGES)
    shutil.rmtree(RUNS)
    one = [next(iter(os.sched_getaffinity(0)))]  # as many threads as the jobs had
    local = recnb("run", *profiles, knobs=KNOBS, preexec_fn=lambda: os.sched_setaffinity(0, one))
    ends_well(local)
    for name in names:
        here = {p.name: sha256(p) for p in (RUNS / name / "tables").iterdir()}
        assert len(here) > 10 and here == on_slurm[name], f"tables of {name} differ"
    print(f"      {middle - began:.0f} s on SLURM, {time.time() - middle:.0f} s here", flush=True)


CASES = [
    the_kits_profile,
    wrong_names,
    gpus_and_threads,
    threads,
    scripts,
    full_scratch_disk,
    drained_node,
    timeout,
    preemption,
    stopped_and_killed,
    tables,
]


def main():
    asked = sys.argv[2:]
    known = [case.__name__ for case in CASES]
    strange = [name for name in asked if name not in known]
    if strange:
        raise SystemExit(f"slurm-test: no case {strange[0]}; cases: {', '.join(known)}")
    RUNS.mkdir(exist_ok=True)
    failed = 0
    for case in CASES:
        if asked and case.__name__ not in asked:
            continue
        began = time.time()
        try:
            case()
            outcome = "passed"
        except Exception:
            outcome = "FAILED"
            failed += 1
            traceback.print_exc()
        took = f"{time.time() - began:.0f} s"
        print(f"{outcome}: {case.__name__} ({took}): {case.__doc__.splitlines()[0]}", flush=True)
        end_tree(psutil.Process(), but_not_itself=True)  # what a failed case left
        subprocess.run(["scancel", "--user", "root"], check=False)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    finally:
        end_tree(psutil.Process(), but_not_itself=True)
