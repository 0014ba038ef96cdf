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
from recnb.artifacts import atomic_path, runs_folder
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


def cores():
    """Cores that this process may use: its affinity, and a container's share of time."""
    found = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    found = found or os.cpu_count() or 1
    quota = _cgroup("cpu.max")  # "max 100000", or microseconds of every 100,000
    if quota and quota.split()[0] != "max":
        granted, period = map(int, quota.split())
        found = min(found, max(1, granted // period))
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
    it depends on: processor, instruction set, library, threads, width.

    Args:
        width: of the model's hidden vectors.

    Returns:
        Dict: choice ("float32" or "bfloat16"), and GFLOP/s of both on this machine (None on a GPU).
    """
    import torch

    if torch.cuda.is_available():
        choice = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        return {"choice": choice, "float32": None, "bfloat16": None}
    key = " | ".join(
        [
            processor(),
            torch.backends.cpu.get_cpu_capability(),
            os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, width {width}",
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

    Args:
        width: size of the vectors; the layers between are four times as wide.
        rounds: passes in each format, in turns; the fastest counts, since other work on the machine
            can only slow a pass down.
    """
    import torch

    torch.manual_seed(0)
    up, down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
    x = torch.randn(TOKENS, width, requires_grad=True)
    operations = 3 * 2 * 2 * TOKENS * width * 4 * width  # forward and twice backward, two layers
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
    return {name: round(operations / seconds / 1e9, 1) for name, seconds in best.items()}


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


def describe(model_knobs):
    """The machine and the choices made on it, a list of lines."""
    import torch

    speed = recorded(model_knobs)
    why = "model.autocast says so" if model_knobs.autocast != "auto" else "what the GPU is made for"
    if speed.get("float32"):
        why = f"float32 {speed['float32']:.0f}, bfloat16 {speed['bfloat16']:.0f} GFLOP/s"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    busy = psutil.cpu_percent(0.2)
    folder = runs_folder()
    while not folder.exists():
        folder = folder.parent
    lines = [
        f"processor: {processor()}, {torch.backends.cpu.get_cpu_capability()}; {cores()} cores",
        f"memory: {memory() / 2**30:.1f} GiB; GPUs: {', '.join(gpus) or 'none'}; "
        f"disk: {shutil.disk_usage(folder).free / 2**30:.0f} GiB free",
        f"training in {speed['choice']} ({why})",
    ]
    if busy > 50:
        lines.append(
            f"warning: the cores are busy already ({busy:.0f} %): the run will take longer"
        )
    return lines
