"""What a run takes before it is started: steps, tokens, memory, hours, disk, downloads.

No model is loaded and nothing is downloaded: the model's shape comes from a config.json, from a
small table or from the profile (``shapes``). Memory is that of one process (``memory``); what is
assumed has a constant of its own in ``stages``.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from recnb import RecnbError, machine, sources
from recnb.plan.hardware import GIB
from recnb.plan.shapes import shape_of
from recnb.plan.stages import stages_of

GATED = ("meta-llama/", "google/gemma", "mistralai/")
"""Beginnings of Hub ids whose licence must be accepted before a download."""
SIZES = {"movielens-100k": (943, 1664), "paper-movie": (13218, 18744), "paper-steam": (12658, 8572)}
"""Users and items: of MovieLens-100K with merged titles; of the paper's Table 1."""


@dataclass
class Plan:
    """What ``plan`` found.

    Attributes:
        stages: ``Stage``, in the order of the run.
        downloads: sentences.
        refusals: sentences: what does not fit, and which knob to turn.
    """

    stages: list
    downloads: list
    refusals: list


def plan(profile, hardware, users=0, items=0):
    """Reckon a profile through.

    Args:
        hardware: ``Hardware``.
        users, items: of the catalogue; 0 = what the data set is known to have.

    Returns:
        ``Plan``.

    Raises:
        RecnbError: the model's shape or the catalogue's size is not known.
    """
    users, items = _sizes(profile, users, items)
    shape = shape_of(profile, items)
    stages = stages_of(profile, hardware, shape, users, items)
    return Plan(stages, _downloads(profile, shape), _refusals(profile, hardware, stages))


def _sizes(profile, users, items):
    known = SIZES.get(profile.data.dataset) or SIZES.get(profile.name) or (0, 0)
    if profile.data.dataset == "synthetic":
        known = profile.data.synthetic_users, profile.data.synthetic_items
    if profile.data.dataset == "tabular":
        record = Path(profile.data.path) / "manifest.json"  # recnb prepare's
        try:
            made = json.loads(record.read_text(encoding="utf-8"))["counts"]
            known = made["users"], made["items"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # tables of one's own have none
    users, items = users or known[0], items or known[1]
    if not users or not items:
        raise RecnbError(
            f"how many users and items {profile.data.path or profile.data.dataset} has is not "
            "known before the run: say --users and --items"
        )
    return users, items


def _downloads(profile, shape):
    lines = [f"{one.name}: {one.requirement} ({one.licence})" for one in sources.needed(profile)]
    name = profile.model.name
    if name not in ("mini", "smollm2") and not Path(name).is_dir():
        gated = "gated: accept its licence at the Hub and log in first (hf auth login)"
        note = gated if name.startswith(GATED) else "not known to be gated"
        lines.append(f"{name}: {2 * shape.parameters / GIB:.1f} GiB from the Hub; {note}")
    if profile.general_ability.data == "hub":
        lines.append("MMLU and GSM8K: from the Hub when notebook 09 runs, not beforehand")
    return lines


KNOBS = {
    "weights": "model.dtype bfloat16, or a smaller model (model.name)",
    ("04_sft", "weights"): "model.dtype bfloat16, compute.strategy fsdp2, or a smaller model",
    "adapters": "a smaller sft.rank",
    "gradients and optimizer": "LoRA (sft.rank above 0)",
    "saved activations": "compute.checkpointing true, and a smaller compute.micro_tokens",
    "a block computed again": "a smaller compute.micro_tokens",
    "logits": "a smaller compute.micro_tokens",
    "blocks brought together": "a smaller model (model.name)",
    "cache": "compute.cache_gib, or a smaller evaluation.batch_size",
    ("05_ppo", "cache"): "a smaller compute.cache_gib",
    ("08_tallrec", "saved activations"): "a smaller compute.micro_tokens",
    ("08_tallrec", "logits"): "a smaller compute.micro_tokens, or tallrec.train_on_inputs false",
    ("09_general_ability", "logits"): "a smaller general_ability.batch_size",
    ("09_general_ability", "reading prompts"): "a smaller general_ability.batch_size",
    "instructions as text": "fewer instructions",
    "samples as tokens": "fewer instructions",
    "other models in memory": "fewer of sft.v1, sft.palr, sft.instructrec and ppo.v3",
    "weights with the actor in them": "model.dtype bfloat16, where the adapter stays beside",
    "weights laid out for the processor": "model.dtype bfloat16",
    "reading prompts": "a smaller evaluation.batch_size",
    "scores of the catalogue": "a smaller teacher.batch_size",
    "pairs of items": "a larger data.k_core",
    "vLLM": "a small compute.cache_gib (0 is two fifths of a GPU), or compute.rollouts hf",
}
"""What to turn, for each part of the memory."""


def _refusals(profile, hardware, stages):
    found = []
    if profile.compute.strategy == "fsdp2":
        found.append(
            "05_ppo refuses compute.strategy fsdp2: run with it until 04_sft, and go on with "
            "--set compute.strategy=ddp"
        )
    for row in stages:
        if row.gib <= hardware.memory:
            continue
        parts = sorted(row.memory, key=row.memory.get, reverse=True)[:2]
        named = " and ".join(f"{row.memory[part] / GIB:.1f} GiB of {part}" for part in parts)
        turns = [KNOBS.get((row.name, part)) or KNOBS[part] for part in parts]
        turn = "; ".join(dict.fromkeys(turns))
        found.append(
            f"{row.name} needs {row.gib:.1f} GiB in a process that has {hardware.memory:.0f}, most "
            f"of it {named}; what helps: {turn}"
        )
    return found


def disk_refusals(found):
    """A sentence if the disk where runs are kept has less room than the run takes."""
    needed, free = sum(row.disk for row in found.stages) + machine.OTHER_BYTES, machine._free()
    if needed <= free:
        return []
    return [
        f"the run takes {needed / GIB:.1f} GiB of disk in {machine.runs_folder()}, where "
        f"{free / GIB:.1f} GiB are free: make room, or keep runs elsewhere (environment variable "
        "RECNB_RUNS)"
    ]


def lines_of(found, hardware, details=True):
    """A plan as Markdown: the stages, the parts of the memory, downloads."""
    lines = ["| stage | steps | tokens | GiB | hours | disk, MiB |", "|---|---|---|---|---|---|"]
    for row in found.stages:
        hours = f"{row.hours:.1f}" if row.hours >= 0.05 else f"{60 * row.hours:.1f} min"
        cells = [
            row.name,
            f"{row.steps:,}" if row.steps else "",
            _short(row.tokens),
            f"{row.gib:.1f}" if row.memory else "",
            f"{hours} ({row.kind})" if row.kind else "",
            f"{row.disk / 2**20:,.0f}" if row.disk else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    hours, disk = sum(s.hours for s in found.stages), sum(s.disk for s in found.stages)
    most = max(row.gib for row in found.stages)
    lines.append(f"| all | | | {most:.1f} | {hours:.1f} | {disk / 2**20:,.0f} |")
    if details:
        lines += ["", "GiB of a process at the fullest moment:", ""]
        for row in found.stages:
            parts = {part: size for part, size in row.memory.items() if size >= 0.05 * GIB}
            if parts:
                said = ", ".join(f"{part} {size / GIB:.1f}" for part, size in parts.items())
                lines.append(f"- {row.name}: {said}")
    speed = f"{hardware.tflops:.3g} TFLOP/s a process ({hardware.source})"
    tokens = f", {hardware.tokens:,.0f} answer tokens a second (stated)" if hardware.tokens else ""
    lines += ["", f"Hours: {hardware.processes} process(es) of {speed}{tokens}."]
    lines += [
        "",
        "To be downloaded:",
        "",
        *(f"- {line}" for line in found.downloads or ["nothing"]),
    ]
    return lines


def _short(tokens):
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {name}"
    return f"{tokens:.0f}" if tokens else ""
