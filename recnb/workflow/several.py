"""One profile, several runs: its seeds and its variants, which share what they have in common."""

import os
import shutil
from itertools import chain
from pathlib import Path

from recnb import RecnbError
from recnb.artifacts import OWN_FILES, atomic_path, is_done, runs_folder
from recnb.lm.hub import OURS
from recnb.profile import STAGES, load


def planned(name, changed, run_name, only=()):
    """The runs that a profile asks for.

    Args:
        name: the profile.
        changed: ``{"section.key": value}`` of the command line.
        run_name: of the run of a profile without seeds and variants.
        only: names of the variants that are wanted, without the profile itself; empty = all.

    Returns:
        List of ``(run name, seed or None, variant or "", Profile)``: for each of ``seeds`` the
        profile itself and each of its ``variants``.

    Raises:
        RecnbError: a variant's knobs are not valid; the profile has no variant of a name.
    """
    whole, runs = load(name, changed), []
    wanted = {"": {}} | whole.variants
    for variant in only:
        if variant not in whole.variants:
            known = ", ".join(whole.variants) or "none"
            raise RecnbError(f"--variant {variant}: {whole.name} has no such variant ({known})")
    if only:
        wanted = {variant: whole.variants[variant] for variant in only}
    for seed in whole.seeds or [None]:
        for variant, knobs in wanted.items():
            own = {"seeds": [], "variants": {}} | ({} if seed is None else {"seed": seed})
            parts = [run_name, "" if seed is None else f"seed{seed}", variant]
            label = "-".join(part for part in parts if part)
            runs.append((label, seed, variant, at_place(load(name, changed | knobs | own))))
    return runs


def at_place(profile):
    """A profile with whole paths: notebooks run in another folder than the command, and a run's
    knobs are compared with those of earlier runs."""
    for section, key, _ in chain.from_iterable(OWN_FILES.values()):
        own = getattr(profile, section)
        named = getattr(own, key)
        if named and named not in (*OURS, "hub") and Path(named).is_dir():
            own = own.model_copy(update={key: str(Path(named).resolve())})
            profile = profile.model_copy(update={section: own})
    return profile


def share(profile, folder, until=STAGES[-1], others=None):
    """Take finished stages of the same knobs from other runs, as links where the disk can.

    Args:
        profile: of the run that takes.
        folder: of that run.
        until: the last stage to take.
        others: folders of runs to take from; None = all that are there.
    """
    named = others is not None
    if not named:
        others = [path.parent for path in sorted(runs_folder().glob("*/profile.yaml"))]
    others = [other for other in others if other != folder]
    for stage in STAGES[: STAGES.index(until) + 1]:
        if is_done(profile, stage, folder):
            continue
        found = [other for other in others if is_done(profile, stage, other, wanted_by=folder)]
        if not found:
            if named:
                print(f"{folder.name}: {stage} is made anew, as it is not there with these knobs")
            return
        print(f"{folder.name}: {stage} is taken from {found[0].name}, which has the same knobs")
        with atomic_path(folder / stage) as temporary:
            shutil.copytree(found[0] / stage, temporary, copy_function=_link)
        if stage == "06_evaluation":
            # Its tables lie beside it: those here are of other answers.
            shutil.rmtree(folder / "tables", ignore_errors=True)


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)
