"""Runs on a SLURM cluster: what a start asks SLURM before it submits anything, and what it leaves.

Snakemake submits (``snakemake-executor-plugin-slurm``), one job a notebook. Here are the checks
that come first, so that a wrong name is one message now and not a failed job tonight, and the two
ends that Snakemake leaves open: jobs of an earlier start, and jobs of a start that is stopped.
"""

import importlib.util
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from recnb import RecnbError
from recnb.artifacts import atomic_path
from recnb.profile import STAGES, read_yaml
from recnb.workflow import gpus

PROFILES = Path(__file__).parent / "profiles"
"""Workflow profiles that come with the kit, a folder each.

:meta hide-value:
"""
JOBS = ".slurm"
"""In a run's folder: the beginning of the names of its jobs in SLURM's queue."""
CHECKPOINT_MINUTES = 15.0
"""Between checkpoints where the run's profile asks for none: what a preemption may cost."""
FLAGS = {
    "slurm_partition": "--partition",
    "slurm_account": "--account",
    "runtime": "--time",
    "mem_mb": "--mem",
    "cpus_per_task": "--cpus-per-task",
    "nodes": "--nodes",
    "gres": "--gres",
    "gpu": "--gpus",
    "constraint": "--constraint",
    "qos": "--qos",
}
"""Resources of a workflow profile that SLURM is asked about, and sbatch's names for them."""
WHOLE = ["runtime", "mem_mb", "cpus_per_task", "nodes", "gpu"]
TURN = {
    "partition": ("slurm_partition", "%R"),
    "gres": ("gres", "%G"),
    "generic resource": ("gres", "%G"),
    "feature": ("constraint", "%f"),
    "node configuration": ("gres, mem_mb, cpus_per_task", "%R: %G, %m MiB, %c processors"),
}
"""Words of sbatch's refusals: which knob they are about, and what sinfo is asked for."""


@dataclass(frozen=True)
class Cluster:
    """How jobs are submitted.

    Attributes:
        folder: of the workflow profile.
        settings: what its config.yaml holds.
        name: beginning of the names of this start's jobs.
    """

    folder: Path
    settings: dict
    name: str = field(default_factory=lambda: f"recnb-{uuid.uuid4().hex[:8]}")


def cluster(workflow_profile):
    """Look for everything that a start on SLURM needs here, before it does anything.

    Args:
        workflow_profile: name of one of the kit's, or a folder with a config.yaml.

    Raises:
        RecnbError: no sbatch, no plugin, no such profile, a profile that cannot be read.
    """
    known = sorted(path.parent.name for path in PROFILES.glob("*/config.yaml"))
    if not workflow_profile:
        raise RecnbError(
            f"--executor slurm needs --workflow-profile: {', '.join(known)}, or a folder with a "
            "config.yaml of your own (docs/cluster.md)"
        )
    folder = PROFILES / workflow_profile if workflow_profile in known else Path(workflow_profile)
    if not (folder / "config.yaml").is_file():
        raise RecnbError(
            f"--workflow-profile {workflow_profile}: no config.yaml in {folder}. The kit has "
            f"{', '.join(known)}: copy its folder {PROFILES / known[0]} and change the copy"
        )
    try:
        settings = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (RecnbError, OSError, UnicodeDecodeError) as error:
        raise RecnbError(f"{folder / 'config.yaml'}: {error}") from error
    if not isinstance(settings, dict):
        raise RecnbError(f"{folder / 'config.yaml'}: expected settings, a line each: jobs: 50")
    lacking = [one for one in ("sbatch", "squeue", "scancel", "sinfo") if not shutil.which(one)]
    if lacking:
        raise RecnbError(
            f"--executor slurm: {', '.join(lacking)} not found: start recnb on a machine that "
            "submits to the cluster (a login node), or without --executor to run here"
        )
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        raise RecnbError(
            "--executor slurm: Snakemake's plugin for SLURM is not installed: "
            "pip install --no-deps -r docs/cluster/requirements.lock"
        )
    made = Cluster(folder.resolve(), settings)
    for stage in STAGES:
        resources(made, stage)
    return made


def resources(cluster, stage):
    """What a stage asks SLURM for, ``{resource: value}``; its own settings before the default ones.

    Raises:
        RecnbError: not a mapping, an unknown stage, a number that is none; with file and key.
    """
    path, found = cluster.folder / "config.yaml", {}
    for name in ("default-resources", "set-resources"):
        if name in cluster.settings and not cluster.settings[name]:
            raise RecnbError(f"{path}: {name}: nothing stands under it: leave the line out")
    of_stages = cluster.settings.get("set-resources") or {}
    parts = {"default-resources": cluster.settings.get("default-resources") or {}}
    if isinstance(of_stages, dict):
        parts[f"set-resources: {stage}"] = of_stages.get(stage) or {}
        strange = sorted(str(one) for one in of_stages if one not in STAGES)
        if strange:
            raise RecnbError(
                f"{path}: set-resources: no stage {strange[0]}; stages: {', '.join(STAGES)}"
            )
    else:
        parts["set-resources"] = of_stages
    for place, values in parts.items():
        if not isinstance(values, dict):
            raise RecnbError(f"{path}: {place}: expected lines of the form mem_mb: 32000")
        for name, value in values.items():
            if name in WHOLE and (type(value) is not int or value < 1):
                unit = {"runtime": " of minutes", "mem_mb": " of MiB"}.get(name, "")
                raise RecnbError(
                    f"{path}: {place}: {name}: {value!r} is no whole number{unit} above 0"
                )
        found |= values
    return found


def uneven(cluster, profiles, stages):
    """Compare the GPUs that stages ask for with those that they use.

    Returns:
        A sentence for each stage that would leave some idle. A stage that asks for none computes on
        processors.

    Raises:
        RecnbError: a stage would have fewer than it uses.
    """
    found = []
    for stage in stages:
        asked = gpus_of(resources(cluster, stage))
        most = max(gpus.wanted(stage, profile) for profile in profiles)
        where = f"{cluster.folder / 'config.yaml'}: set-resources: {stage}"
        if 0 < asked < most:
            raise RecnbError(
                f"{where}: {asked} GPUs, and compute.processes of the profile is {most}: ask for "
                f"{most} (gres), or lower compute.processes"
            )
        if asked > most:
            found.append(
                f"{where}: {asked} GPUs, and the notebook uses {most}: ask for fewer (gres), or "
                "raise compute.processes for SL, RL and evaluation"
            )
    return found


def gpus_of(own):
    """How many GPUs a stage's resources ask for: of ``gpu: 2``, ``gres: "gpu:a100:4"`` or none."""
    if own.get("gpu"):
        return own["gpu"]
    parts = str(own.get("gres") or "").split(":")
    if parts[0] != "gpu":
        return 0
    return int(parts[-1]) if parts[-1].isdigit() else 1


def ask(cluster, stages):
    """Ask SLURM whether it would take each stage's job, without submitting one.

    Raises:
        RecnbError: it would not, with the stage, the knob and what the cluster has.
    """
    asked = {}
    for stage in stages:
        own = resources(cluster, stage)
        flags = [f"{flag}={own[name]}" for name, flag in FLAGS.items() if own.get(name)]
        asked.setdefault(tuple(flags), []).append(stage)
    for flags, names in asked.items():
        said = _said(["sbatch", "--test-only", *flags, "--wrap", "true"])
        limit = "" if said else _over_the_limit(resources(cluster, names[0]))
        if said or limit:
            path = cluster.folder / "config.yaml"
            raise RecnbError(
                f"{path}: SLURM would not run {', '.join(names)} ({' '.join(flags)}): "
                f"{limit or _explained(said)}. Nothing was submitted and nothing changed"
            )


def _said(command):
    """What a command says when it fails, in one line; "" if it succeeds."""
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.returncode:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"{command[0]} ended with exit code {done.returncode}"


def _explained(said):
    for words, (knob, columns) in TURN.items():
        if words in said.lower():
            here = subprocess.run(["sinfo", "-h", "-o", columns], capture_output=True, text=True)
            found = sorted({line.strip() for line in here.stdout.splitlines() if line.strip()})
            return f"{said}. The knob is {knob}; the cluster has {'; '.join(found) or 'none'}"
    return said


def _over_the_limit(own):
    """A sentence if a job asks for more time than its partition gives: it would wait for ever."""
    if not own.get("runtime") or not own.get("slurm_partition"):
        return ""
    command = ["sinfo", "-h", "-p", str(own["slurm_partition"]), "-o", "%l"]
    here = subprocess.run(command, capture_output=True, text=True).stdout.split()
    minutes = [minutes_of(one) for one in here]
    if not minutes or None in minutes or own["runtime"] <= max(minutes):
        return ""
    return (
        f"runtime is {own['runtime']} minutes, the partition's limit {max(minutes):.0f}: lower it; "
        "SL and RL go on from checkpoints"
    )


def minutes_of(text):
    """SLURM's "[days-]hours:minutes:seconds" or "minutes:seconds" in minutes; None = no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(one or 0) for one in found.groups())
    return (24 * days + hours) * 60 + minutes + seconds / 60


def options(cluster):
    """Snakemake's options for submitting to SLURM."""
    chosen = ["--executor", "slurm", "--workflow-profile", str(cluster.folder)]
    chosen += ["--slurm-jobname-prefix", cluster.name]
    if _said(["sacct", "-n", "-X", "--starttime", "now"]):
        # A cluster without accounting: sacct would be asked for ever, and nobody has an account.
        chosen += ["--slurm-status-command", "squeue", "--slurm-no-account"]
    return chosen


def refuse_leftovers(folder):
    """Raise if jobs of an earlier start of a run are still queued or running.

    A start that was killed, or whose machine went down, leaves them; two would write one folder.
    """
    path = folder / JOBS
    if not path.is_file():
        return
    if not shutil.which("squeue"):
        raise RecnbError(
            f"{folder} was last run on SLURM, and squeue is not found here, which could say "
            f"whether jobs of it still run: start it where SLURM is, or, if none do, delete {path}"
        )
    left = jobs_of(path.read_text(encoding="utf-8").strip())
    if left:
        shown = ", ".join(f"{number} ({state.lower()})" for number, state in left.items())
        raise RecnbError(
            f"{folder}: jobs of an earlier start are in SLURM's queue: {shown}: wait for them, or "
            f"end them with scancel {' '.join(left)}; then the same command goes on"
        )


def note_jobs(cluster, folder):
    """Write down how the jobs of a run are called, for ``refuse_leftovers``."""
    with atomic_path(folder / JOBS) as temporary:
        temporary.write_text(cluster.name + "\n", encoding="utf-8")


def jobs_of(name):
    """``{number: state}`` of one's jobs in the queue whose names begin so.

    Raises:
        RecnbError: SLURM does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--format", "%i|%j|%T"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RecnbError(f"SLURM does not answer: {done.stderr.strip()}: ask squeue --me yourself")
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {number: state for number, job, state in rows if job.startswith(name + "_")}


def cancel(cluster):
    """End all jobs of this start; what they finished and their checkpoints are kept."""
    left = list(jobs_of(cluster.name))
    if left and (said := _said(["scancel", *left])):
        raise RecnbError(f"could not end the jobs {' '.join(left)}: {said}: end them with scancel")
