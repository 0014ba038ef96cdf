"""What a CUDA GPU makes of the kit: ``recnb gpu-check`` and its report.

It trains a little with the ``gpu`` profile, takes a random model of Llama-2-7b's shape through one
SL step, one RL step and one batch of answers, and compares a small model's answers with those of
the CPU (``recnb.gpu_lines``). A check that breaks off is a line that fails.
"""

import copy
import gc
import json
import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from recnb import RecnbError, datasets, machine
from recnb.artifacts import atomic_path, hardware, write_json
from recnb.gpu_lines import (
    ALONE,
    SHORT,
    Line,
    Trial,
    answers_lines,
    asked,
    fitting_config,
    large_checks,
    planned_bytes,
    rl_steps,
    same_answers,
    samples,
    sl_steps,
)
from recnb.lm.loading import load_base, smollm2_folder
from recnb.lm.recommender import request_prompt
from recnb.page import page
from recnb.plan.hardware import GIB
from recnb.profile import load
from recnb.teacher.ranking import Teacher
from recnb.teacher.training import untrained
from recnb.text_safety import html, one_line, visible

MINUTES = 10
"""How long all checks may take."""


def cuda_memory():
    """A ``Trial.meter`` of the GPU that PyTorch uses."""

    @contextmanager
    def metered():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, most = torch.cuda.memory_allocated(), []
        yield most
        most.append(torch.cuda.max_memory_allocated() - before)

    return metered()


def gpu_profile(memory, trial):
    """The ``gpu`` profile; where it does not fit so, with activations computed again."""
    given = trial.profile
    if planned_bytes(given, memory, trial)[1]:
        return given
    return load("gpu", ALONE | {"compute.checkpointing": True, "compute.micro_tokens": 1024})


def refuse_without_cuda():
    """Raise if PyTorch has no CUDA device."""
    if torch.cuda.is_available():
        return
    why = "no driver or no device was found"
    if torch.version.cuda is None:
        why = "this PyTorch was built without CUDA"
    raise RecnbError(
        f"gpu-check: PyTorch {torch.__version__} sees no CUDA device here ({why}), so nothing was "
        "checked"
    )


def tried(what, check):
    """The lines of a check; one that fails if the check breaks off."""
    try:
        return check()
    except Exception as error:  # whatever it is, the other checks are still worth their time
        text = f"{type(error).__name__}: {one_line(error)[:300]}"
        return [Line(what, False, text, "runs to its end", {"trace": traceback.format_exc()})]


def run_checks(checks, about, out, show=print):
    """Run checks one after the other; the report is written anew after each.

    Args:
        checks: pairs of a name and a function that gives ``Line``s.
        about: ``{what: value}``, the machine and what was tried.
        out: folder for gpu_check.html and gpu_check.json.
        show: called with a line of text for each finding.

    Returns:
        All lines.
    """
    lines = []
    for place, (name, check) in enumerate(checks):
        found = tried(name, check)
        lines += found
        for line in found:
            show(visible(f"{'ok  ' if line.passed else 'FAIL'} {line.what}: {line.found}"))
        write_report(lines, about, [name for name, _ in checks[place + 1 :]], out)
    return lines


def duration_line(began):
    """Whether all since a moment of ``time.perf_counter`` stayed within ``MINUTES``."""
    seconds = time.perf_counter() - began
    return Line(
        "duration",
        seconds <= 60 * MINUTES,
        f"{seconds / 60:.1f} minutes",
        f"{MINUTES} minutes at most",
        {"seconds": seconds},
    )


def write_report(lines, about, to_do, out):
    """gpu_check.json, and gpu_check.html for people.

    Args:
        to_do: names of checks that have not been run yet.
    """
    failed = sum(not line.passed for line in lines)
    verdict = f"{failed} of {len(lines)} lines failed" if failed else f"all {len(lines)} lines pass"
    if to_do:
        verdict += f"; not run yet: {', '.join(to_do)}"
    write_json(
        out / "gpu_check.json",
        {"passed": not failed and not to_do, "to do": to_do, "about": about}
        | {"lines": [asdict(line) for line in lines]},
    )
    rows = [
        f"<tr><th>{html(line.what)}</th><td>{'pass' if line.passed else '<b>FAIL</b>'}</td>"
        f"<td>{html(line.found)}</td><td>{html(line.expected)}</td></tr>"
        for line in lines
    ]
    machine_rows = [f"<tr><th>{html(k)}</th><td>{html(v)}</td></tr>" for k, v in about.items()]
    traces = [
        f"<h2>{html(line.what)}</h2><pre>{html(line.numbers['trace'])}</pre>"
        for line in lines
        if "trace" in line.numbers
    ]
    head = "<tr><th>what</th><th></th><th>found</th><th>expected</th></tr>"
    body = [f"<h1>recnb gpu-check: {html(verdict)}</h1>", f"<table>{''.join(machine_rows)}</table>"]
    body += ["<h2>Lines</h2>", f"<table>{head}{''.join(rows)}</table>", *traces]
    with atomic_path(out / "gpu_check.html") as temporary:
        temporary.write_text(page("recnb gpu-check", "\n".join(body)), encoding="utf-8")


def gpu_checks(folder):
    """The checks of ``recnb gpu-check`` and what they are about: ``(pairs, about)``.

    Args:
        folder: for what they train.
    """
    profile = load("gpu", ALONE)
    catalog, histories = datasets.build(profile.data, profile.seed)
    torch.manual_seed(profile.seed)
    teacher = Teacher(untrained(len(catalog), profile.teacher).to(machine.device()))
    opening = partial(load_base, str(smollm2_folder()), profile.model.dtype)
    trial = Trial(profile, opening, catalog, histories, teacher, machine.device(), cuda_memory)
    memory = torch.cuda.mem_get_info()[0] / GIB
    trial = replace(trial, profile=gpu_profile(memory, trial))
    planned, _ = planned_bytes(trial.profile, memory, trial)
    rows, (_, codec) = trial.profile.evaluation.batch_size, opening()
    config = fitting_config(codec, memory, trial, folder / "shape")

    def small():
        model, _ = opening()
        texts = [request_prompt(r, catalog, profile.seed) for r in asked(trial, 8)]
        return same_answers(model, copy.deepcopy(model).to("cpu"), codec, codec.prompts(texts), 32)

    def sl():
        frame = samples(trial, 20 * trial.profile.sft.batch_size)
        return sl_steps(trial, frame, folder / "sl", planned["04_sft"])

    checks = [
        ("greedy answers", small),
        ("SL, 20 steps", sl),
        ("RL, 5 steps", lambda: rl_steps(trial, 5, SHORT, folder / "rl", planned["05_ppo"])),
        ("answers", lambda: answers_lines(trial, rows, planned=planned["06_evaluation"])),
        *large_checks(trial, codec, config, memory, folder / "large"),
    ]
    compute = trial.profile.compute
    again = f"checkpointing, {compute.micro_tokens} tokens a pass" if compute.checkpointing else "-"
    about = {
        "GPU": torch.cuda.get_device_name(),
        "memory free at the start": f"{memory:.1f} GiB",
        "PyTorch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "machine": json.dumps(hardware()),
        "number format": "bfloat16" if trial.autocast else "float32",
        "profile gpu, to save memory": again,
        "large model": f"random, bfloat16, {config.vocab_size:,} tokens, LoRA",
    }
    return checks, about


def gpu_check(out, show=print):
    """All checks on this machine's GPU; writes gpu_check.html and gpu_check.json.

    Args:
        out: folder for them.

    Raises:
        RecnbError: no CUDA device; or a line failed, with how many.
    """
    refuse_without_cuda()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="recnb-") as scratch:
        checks, about = gpu_checks(Path(scratch))
        checks.append(("duration", lambda: [duration_line(began)]))
        lines = run_checks(checks, about, Path(out), show)
    failed = [line.what for line in lines if not line.passed]
    report = Path(out) / "gpu_check.html"
    if failed:
        raise RecnbError(
            f"gpu-check: {len(failed)} of {len(lines)} lines failed ({'; '.join(failed)}); "
            f"{report} says what was found and what was expected"
        )
    show(f"all {len(lines)} lines pass: {report}")
