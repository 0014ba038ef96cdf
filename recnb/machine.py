"""What this machine is, and in which number format it trains faster, which is measured.

bfloat16 halves the bytes of a matrix product. Processors with instructions for it gain from that;
others emulate it and lose, by a factor of two. Which kind this one is decides ``model.autocast``.
"""

import json
import os
import platform
import shutil
import time
from functools import lru_cache
from pathlib import Path

import psutil

from recnb import RecnbError
from recnb.artifacts import atomic_path, read_manifest, runs_folder, same_knobs
from recnb.profile import STAGES, load, root
from recnb.sources import cache_folder

TOKENS = 2048
"""Tokens in the pass that is timed: about a third of a laptop profile's SL step."""
GAIN = 1.1
"""bfloat16 is taken where it is faster by this factor: below it, noise would decide."""


def processor():
    """Model name of the processor, as the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device():
    """Where models live: the GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def cores():
    """Cores that this process may use: its affinity, a container's share of time, a SLURM job's
    processors for one task.
    """
    found = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    found = found or os.cpu_count() or 1
    quota = _cgroup("cpu.max")  # "max 100000", or microseconds of every 100,000
    if quota and quota.split()[0] != "max":
        granted, period = map(int, quota.split())
        found = min(found, max(1, granted // period))
    job = os.environ.get("SLURM_CPUS_PER_TASK", "") or os.environ.get("SLURM_CPUS_ON_NODE", "")
    if "SLURM_JOB_ID" in os.environ and job.isdigit():  # not every cluster pins its jobs
        found = min(found, int(job))
    return found


def memory():
    """Bytes of memory that this process may use: the system's, or a container's limit."""
    limit = _cgroup("memory.max")
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit and limit != "max" else total


def _cgroup(name):
    path = Path("/sys/fs/cgroup") / name
    try:
        return path.read_text().strip()
    except OSError:  # no cgroup of version 2 here
        return ""


@lru_cache
def number_format(width):
    """Which format trains faster, and how fast each is.

    The same machine must always choose alike, so the answer is kept in the cache folder under what
    it depends on: processor, instruction set, library, width.

    Args:
        width: of the model's hidden vectors.

    Returns:
        Dict: choice ("float32" or "bfloat16"), and GFLOP/s of both on one core (None on a GPU).
    """
    import torch

    if torch.cuda.is_available():
        choice = (
            "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        )
        return {"choice": choice, "float32": None, "bfloat16": None}
    key = " | ".join(
        [
            processor(),
            torch.backends.cpu.get_cpu_capability(),
            os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
            f"torch {torch.__version__}, one core, width {width}",
        ]
    )
    path = cache_folder() / "machine.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        kept = {}
    if key not in kept:
        speeds = measure(width)
        choice = "bfloat16" if speeds["bfloat16"] > GAIN * speeds["float32"] else "float32"
        kept[key] = {"choice": choice} | speeds
        try:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        except RecnbError as error:
            print(f"warning: this choice is measured anew each time: {error}")
    return kept[key]


def measure(width, rounds=6):
    """GFLOP/s of forward and backward passes through feed-forward layers, in both formats.

    On one core: beside other work, two threads wait for each other, and their ratio means nothing
    (bfloat16 / float32 on a busy AMD EPYC with two cores: 0.8 to 2.2 with two threads, 2.0 to 2.4
    with one).

    Args:
        width: size of the vectors; the layers between are four times as wide.
        rounds: passes in each format, in turns; the fastest counts, since other work on the machine
            can only slow a pass down.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):  # a cold cache must not change what follows
            best = _fastest(width, rounds)
    finally:
        torch.set_num_threads(threads)
    operations = 3 * 2 * 2 * TOKENS * width * 4 * width  # forward and twice backward, two layers
    return {name: round(operations / seconds / 1e9, 1) for name, seconds in best.items()}


def _fastest(width, rounds):
    import torch

    generator = torch.Generator().manual_seed(0)
    up, down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
    x = torch.randn(TOKENS, width, generator=generator, requires_grad=True)
    best = {"float32": float("inf"), "bfloat16": float("inf")}
    for turn in range(rounds):
        for name in best:
            if turn > 1 and best[name] > 3 * min(best.values()):
                continue  # emulated: its figure is settled, and each pass would take long
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bfloat16"):
                loss = down(torch.relu(up(x))).square().mean()
            loss.backward()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


HUB_WIDTH = 576
"""Width to measure with where a model is not ours: SmolLM2-135M's."""


def autocast(model_knobs):
    """True if base, SL and RL training shall run their matrix products in bfloat16.

    Args:
        model_knobs: the ``model`` section of a profile.
    """
    return recorded(model_knobs)["choice"] == "bfloat16"


def recorded(model_knobs):
    """For a manifest: the format chosen, and where it was measured, both speeds."""
    if model_knobs.autocast != "auto":
        return {"choice": "bfloat16" if model_knobs.autocast else "float32"}
    return number_format(model_knobs.width if model_knobs.name == "mini" else HUB_WIDTH)


def describe(profile):
    """The machine, the choices made on it and what it lacks, a list of lines."""
    import torch

    speed, asked = recorded(profile.model), profile.model.autocast != "auto"
    why = "model.autocast says so" if asked else "what the GPU is made for"
    if speed.get("float32"):
        why = (
            f"float32 {speed['float32']:.0f}, bfloat16 {speed['bfloat16']:.0f} GFLOP/s on one core"
        )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    busy = psutil.cpu_percent(0.2)
    lines = [
        f"processor: {processor()}, {torch.backends.cpu.get_cpu_capability()}; {cores()} cores",
        f"memory: {memory() / 2**30:.1f} GiB; GPUs: {', '.join(gpus) or 'none'}; "
        f"disk: {_free() / 2**30:.1f} GiB free in {runs_folder()}",
        f"training in {speed['choice']} ({why})",
    ]
    if busy > 50:
        lines.append(
            f"warning: the cores are busy already ({busy:.0f} %): the run will take longer"
        )
    return lines + disk_warnings(profile)


def _free():
    """Bytes free where runs are kept."""
    folder = runs_folder().resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


LIST_BYTES, MODEL_BYTES, OTHER_BYTES = 450, {"mini": 10 << 20}, 50 << 20
"""Measured on the laptop profile: 113 MB for 268,000 lists in the instruction set, 9.8 MB for a
model of 2.4 million parameters, 16 MB for all that the committed reference run keeps."""
LARGER_MODEL_BYTES = 520 << 20
"""SmolLM2-135M's weights in float32, as measured; stands for any model that is not ours."""


def disk_needed(profile):
    """Bytes that the folder of a run takes at most: instructions, models, checkpoints, the rest.

    While a model is trained, two checkpoints and a third in the making lie beside it, each with
    weights and two numbers a weight of the optimizer's. An adapter counts as a twentieth of its
    model.
    """
    lists, sft = profile.instructions, profile.sft
    count = lists.sequential + lists.category + lists.proportion + lists.search
    model = MODEL_BYTES.get(profile.model.name, LARGER_MODEL_BYTES)
    tuned = model if sft.rank == 0 else model // 20
    models = 1 + sft.v1 + bool(sft.palr) + bool(sft.instructrec)
    return OTHER_BYTES + LIST_BYTES * count + model + tuned * models + 9 * tuned


def disk_warnings(profile):
    """A line if the disk of the runs folder has less room than that; else none."""
    needed, free = disk_needed(profile), _free()
    if free >= needed:
        return []
    return [
        f"warning: {runs_folder()} has {free / 2**20:,.0f} MiB free, a whole run of {profile.name} "
        f"takes about {needed / 2**20:,.0f} MiB (reckoned from file sizes of the laptop profile): "
        "make room, or keep runs elsewhere (environment variable RECNB_RUNS)"
    ]


REFERENCE = "papermill_runs/reference/laptop"
TRAINED = ["04_sft", "05_ppo", "08_tallrec"]
"""Stages whose time is mostly training, in the format chosen."""
HOURS = 1.2
"""An allowance for other hours and other work on the machine; assumed, not measured."""


def estimate(profile):
    """How long the profile's stages take on this machine, and whether its memory will do.

    Based on the committed manifests of the reference run and on the speed of one core times the
    cores, here and on the machine that made it. Only stages with the reference's knobs (and such
    knobs before them) are estimated; nothing is guessed about others.

    Returns:
        A list of lines.
    """
    import torch

    folder = root() / REFERENCE
    made = load(folder / "profile.yaml")
    model = profile.model.model_copy(update={"autocast": made.model.autocast})
    data = profile.data.model_copy(update={"item_noun": made.data.item_noun})
    alike = profile.model_copy(update={"model": model, "data": data, "seed": made.seed})
    known = [stage for stage in STAGES if same_knobs(alike, stage, folder)]
    if torch.cuda.is_available() or not known:
        why = "it had no GPU" if torch.cuda.is_available() else "its data or teacher are others"
        return [f"no estimate: the only run it could come from is {REFERENCE}, and {why}"]
    manifests = {stage: read_manifest(folder / stage, stage) for stage in known}
    there = json.loads((folder.parent / "speed.json").read_text(encoding="utf-8"))
    kept, fresh = number_format(profile.model.width), measure(profile.model.width)
    # The figures kept with the choice may have been taken beside other work.
    here = {name: max(kept[name], fresh[name]) for name in fresh}
    chosen = recorded(profile.model)["choice"]
    low = high = 0.0
    for stage, manifest in manifests.items():
        ours, theirs = (chosen, "bfloat16") if stage in TRAINED else ("float32", "float32")
        slower = there[theirs] * there["cores"] / (here[ours] * cores())
        # Not all of a stage is matrix products: the truth lies between all and nothing scaled.
        low += manifest["wall_seconds"] * min(1, slower) / HOURS
        high += manifest["wall_seconds"] * max(1, slower) * HOURS
    lines = [
        f"estimate: {low / 60:.0f} to {high / 60:.0f} minutes for {_span(known)}, from {REFERENCE} "
        "and the speed of matrix products here and there"
    ]
    if len(known) < len(STAGES):
        lines.append(f"no estimate of {_span(STAGES[len(known) :])}: other knobs")
    needed = max(manifest["peak_memory_mib"] for manifest in manifests.values()) * 2**20
    if min(memory(), psutil.virtual_memory().available) < needed:
        lines.append(
            f"warning: the reference run needed {needed / 2**30:.1f} GiB of memory in one stage, "
            f"and only {min(memory(), psutil.virtual_memory().available) / 2**30:.1f} GiB are free"
        )
    return lines


def _span(stages):
    """Neighbouring stages in a few words."""
    if stages == STAGES:
        return "all notebooks"
    return stages[0] if len(stages) == 1 else f"{stages[0]} to {stages[-1]}"
