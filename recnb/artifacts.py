"""Run folders, manifests and atomic writes: how one stage hands its results to the next.

A stage writes into ``<run>/<stage>/``; its last act is ``manifest.json`` with the parameters,
seeds, versions, wall time and the sha256 of every input and output. Only a stage whose manifest
matches its files counts as done.
"""

import contextlib
import difflib
import functools
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

from recnb import RecnbError
from recnb.lm.hub import OURS
from recnb.owner import refuse_others
from recnb.profile import SECTIONS, STAGES, Profile, load, profiles_folder, root, save

PACKAGES = "torch transformers trl peft datasets papermill snakemake numpy pandas".split()


def sha256(path):
    """Hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary name beside ``path``, renamed onto it on success, removed on failure.

    Works for a file or a folder: the caller creates either at the temporary name.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        if path.is_dir():
            _remove(path)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what failed first is the message
            _remove(temporary)
        raise RecnbError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        _remove(temporary)
        raise


def write_json(path, value):
    """Write JSON atomically, keys in the given order."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(frame, path, decimals=None):
    """Write a table atomically, without its index; ``decimals`` of its floats, None = all."""
    with atomic_path(path) as temporary:
        form = None if decimals is None else f"%.{decimals}f"
        frame.to_csv(temporary, index=False, float_format=form)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def runs_folder():
    """Where runs are kept: ``RECNB_RUNS`` or ``papermill_runs`` of the checkout."""
    given = os.environ.get("RECNB_RUNS")
    return Path(given) if given else root() / "papermill_runs"


STUDENT_FILE, STUDENT_RECORD = "student.py", "student.json"
"""What ``recnb run --student FILE`` leaves in a run's folder: a copy of the file, and its record
{"file", "sha256", "functions": {name: the first stage that calls it}}."""
BORROWED = {}
"""sha256 of each function that a student put in place of the kit's own in this process
(``recnb.check.in_use``). It only grows: what such a function computed may lie in any variable."""
UNDO = []
"""Functions that take the run's student out of this process again, for the next stage opened."""


def student_of(run_folder):
    """The record of a run's student, or None: the run uses the kit's own functions.

    Raises:
        RecnbError: the record is damaged.
    """
    path = Path(run_folder) / STUDENT_RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not set(record["functions"].values()) <= set(STAGES) or not record["sha256"]:
            raise ValueError("it names no stages")
        return record
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecnbError(
            f"{path} is damaged ({error}): start the run again, with --student FILE or without"
        ) from error


def keep_student(run_folder, student):
    """Write what a run's student built into its folder, or take away what an earlier one built.

    Args:
        student: ``(source bytes, record)`` of ``recnb.check.in_place.student_functions``, or None.
    """
    folder = Path(run_folder)
    if student is None:
        (folder / STUDENT_RECORD).unlink(missing_ok=True)
        (folder / STUDENT_FILE).unlink(missing_ok=True)
        return
    source, record = student
    with atomic_path(folder / STUDENT_FILE) as temporary:
        temporary.write_bytes(source)
    write_json(folder / STUDENT_RECORD, record)


def knobs_of_student(student, stage):
    """A student's part in a stage, as one more section of its knobs; empty if there is none.

    Args:
        student: ``student_of``.
    """
    known = student["functions"].items() if student else ()
    names = sorted(name for name, first in known if first in _upto(stage))
    return {"sha256": student["sha256"], "functions": names} if names else {}


def _knobs(profile, stage, student):
    """All that decides what a stage makes: its knobs, and the student's functions if any."""
    own = knobs_of_student(student, stage)
    return profile.stage_knobs(stage) | ({"student": own} if own else {})


def fingerprint(profile, stage):
    """Hash of every knob that a stage depends on: its own and those of the stages before it."""
    return _digest([profile.stage_knobs(name) for name in _upto(stage)])


def _upto(stage):
    return STAGES[: STAGES.index(stage) + 1]


def _digest(knobs):
    return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()


def same_knobs(profile, stage, run_folder, wanted_by=None):
    """True if a finished stage was made with this profile's knobs, earlier stages' included.

    A student's functions count as knobs: those of ``run_folder``, or of the run ``wanted_by``.

    A knob that came into the kit after the stage was made counts as its default, which must keep
    what was before: old runs stay readable. That the stage was made with the knobs that the
    manifests beside it name is shown by its fingerprint.
    """
    manifests = [read_manifest(Path(run_folder) / name, name) for name in _upto(stage)]
    if manifests[-1]["fingerprint"] != _digest([manifest["knobs"] for manifest in manifests]):
        return False
    outputs = {manifest["stage"]: manifest["outputs"] for manifest in manifests}
    for read in (manifest["inputs"] for manifest in manifests):
        for name, content in read.items():
            earlier, _, file = name.partition("/")
            if outputs[earlier].get(file) != content:
                return False  # made from what an earlier stage had before it was run again
    defaults, student = Profile(name="defaults"), student_of(wanted_by or run_folder)
    for name, manifest in zip(_upto(stage), manifests, strict=True):
        knobs = defaults.stage_knobs(name)
        for section, made in manifest["knobs"].items():
            knobs[section] = knobs.get(section, {}) | made if isinstance(made, dict) else made
        if knobs != _knobs(profile, name, student):
            return False
    return True


def _other_than(profile, stage, run_folder):
    """In what a stage differs from what this profile makes in this run."""
    made = read_manifest(run_folder / stage, stage)["knobs"].get("student")
    if made == _knobs(profile, stage, student_of(run_folder)).get("student"):
        return "other knobs"
    return "a student's functions" if made else "the kit's own functions, not the student's"


FINISHED = ".finished.json"
"""Beside a model whose training ended while its stage goes on."""


class Reader:
    """Reads what earlier stages of a run made, each file checked against its stage's manifest.

    Attributes:
        inputs: ``{"stage/file": sha256}`` of all files asked for so far.
    """

    def __init__(self, profile, run_folder):
        self.profile, self.run_folder, self.inputs = profile, Path(run_folder), {}

    def input(self, stage, file):
        """Path of a file that an earlier stage made, checked against that stage's manifest."""
        folder = self.run_folder / stage
        manifest = read_manifest(folder, stage)
        if not same_knobs(self.profile, stage, self.run_folder):
            other = _other_than(self.profile, stage, self.run_folder)
            raise RecnbError(
                f"{folder} was made with {other}: run notebook {stage} again with this profile"
            )
        expected = manifest["outputs"].get(file)
        if expected is None:
            raise RecnbError(
                f"{folder}/manifest.json does not list {file}: run notebook {stage} again"
            )
        if not (folder / file).is_file() or sha256(folder / file) != expected:
            raise RecnbError(
                f"{folder / file} is missing or was changed: run notebook {stage} again"
            )
        self.inputs[f"{stage}/{file}"] = expected
        return folder / file

    def input_folder(self, stage, folder):
        """Like ``input`` for a folder (a model): every listed file under it is checked."""
        made = self.run_folder / stage
        files = read_manifest(made, stage)["outputs"]
        names = [name for name in files if name.startswith(folder + "/")]
        if not names:
            raise RecnbError(f"{made}/manifest.json lists no {folder}/: run notebook {stage} again")
        for name in names:
            self.input(stage, name)
        return made / folder


class Stage(Reader):
    """One stage of one run: its folder, its inputs, its manifest.

    Used by every notebook: ``stage = open_stage("02_teacher", profile, run)`` in the first cell and
    ``stage.finish(numbers)`` in the last.
    """

    def __init__(self, name, profile, run_folder):
        super().__init__(profile, run_folder)
        self.name = name
        self.folder = self.run_folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "manifest.json").unlink(missing_ok=True)
        _own(self.folder)
        self.student = student_of(self.run_folder)
        self.started, self.earlier = time.time(), self._earlier_seconds()
        self.warnings = []
        self.tick()

    def warn(self, sentence):
        """Print a warning that goes into the manifest, too, and from there into the report."""
        print(f"warning: {sentence}")
        self.warnings.append(sentence)

    def expect(self, condition, sentence):
        """What a lesson expects of its results; ``sentence`` says what it means that it fails.

        The synthetic world is made so that it holds: there a failure is an error. Real data may
        differ, and only get a warning.

        Raises:
            AssertionError: it does not hold on synthetic data.
        """
        if not condition:
            assert self.profile.data.dataset != "synthetic", sentence
            self.warn(sentence)

    @property
    def key(self):
        """Name of this stage's settings, a student's functions among them, for checkpoints."""
        knobs = [_knobs(self.profile, name, self.student) for name in _upto(self.name)[:-1]]
        return _digest([*knobs, self._knobs_now()])[:12]

    def _knobs_now(self):
        """This stage's knobs; what a student put in place in this notebook is one of them."""
        knobs = _knobs(self.profile, self.name, self.student)
        if BORROWED:
            knobs["student"] = knobs.get("student", {}) | {"notebook": dict(BORROWED)}
        return knobs

    @property
    def autocast(self):
        """True if this stage's training runs its matrix products in bfloat16 on this machine."""
        from recnb.machine import autocast  # it imports this module

        return autocast(self.profile.model)

    def _earlier_seconds(self):
        """Seconds spent by starts of this stage, with these knobs, that were stopped early."""
        try:
            kept = json.loads((self.folder / ".clock.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return 0.0
        return kept["seconds"] if kept["key"] == self.key else 0.0

    def seconds(self):
        """Wall time of this stage so far, that of stopped starts included."""
        return self.earlier + time.time() - self.started

    def tick(self):
        """Note the time spent, so that a start that is killed still counts up to here."""
        write_json(self.folder / ".clock.json", {"key": self.key, "seconds": self.seconds()})

    def _knobs_so_far(self):
        """Knobs of the stages up to this one, as their manifests have them.

        The manifest of an older kit lacks the knobs that came later; ``same_knobs`` compares with
        what it has.
        """
        knobs = []
        for name in _upto(self.name)[:-1]:
            with contextlib.suppress(RecnbError):  # this stage may not need that one
                if same_knobs(self.profile, name, self.run_folder):
                    knobs.append(read_manifest(self.run_folder / name, name)["knobs"])
                    continue
            knobs.append(_knobs(self.profile, name, self.student))
        return [*knobs, self._knobs_now()]

    def finish(self, numbers=None):
        """Write the manifest and return it; ``numbers`` are the stage's headline results."""
        for mark in self.folder.rglob(FINISHED):
            mark.unlink()
        if (self.folder / "checkpoints").is_dir():
            shutil.rmtree(self.folder / "checkpoints")
        outputs = {}
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if path.is_file() and not _scratch(relative):
                outputs[relative.as_posix()] = sha256(path)
        from recnb import machine  # it imports this module

        versions = {name: metadata.version(name) for name in PACKAGES}
        manifest = {
            "stage": self.name,
            "fingerprint": _digest(self._knobs_so_far()),
            "knobs": self._knobs_now(),
            "numbers": numbers or {},
            "warnings": self.warnings,
            "wall_seconds": round(self.seconds(), 1),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **gpu_memory(),
            "commit": git_commit(),
            "profile": frozen(self.profile),
            "versions": {"python": platform.python_version()} | versions,
            "hardware": hardware(),
            "number_format": machine.recorded(self.profile.model),
            "compute": self.profile.compute.model_dump(mode="json"),
            "inputs": self.inputs,
            "own files": own_files(self.profile, self.name),
            "outputs": outputs,
        }
        write_json(self.folder / "manifest.json", manifest)
        (self.folder / ".clock.json").unlink(missing_ok=True)
        return manifest


def _own(folder):
    """Turn what is shared with other runs (``several.share`` links files) into copies: a notebook
    writes its files in place, and theirs must stay."""
    for path in list(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
            with atomic_path(path) as temporary:
                shutil.copy2(path, temporary)


def _scratch(relative):
    hidden = relative.name.startswith(".")
    return hidden or relative.name == "manifest.json" or "checkpoints" in relative.parts


def run_folder(name):
    """Folder of a run by its name, which is never a path: nothing is written outside the runs."""
    reserved = (".", "..", "profiles", "reference")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name in reserved:
        raise RecnbError(
            f"run {name!r}: not a name for a run: use letters, digits, dot, dash and underscore, "
            f"and none of {', '.join(reserved)}"
        )
    return runs_folder() / name


def existing_run(name):
    """Folder of a run that was started before; an error names the nearest ones."""
    folder = run_folder(name)
    if not (folder / "profile.yaml").is_file():
        known = sorted(path.parent.name for path in runs_folder().glob("*/profile.yaml"))
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise RecnbError(
            f"run {name}: no such run in {runs_folder()}.{hint} "
            "Start one with recnb run PROFILE --run NAME"
        )
    return folder


def open_stage(name, profile, run, overrides=None):
    """Start a stage in a notebook: load the profile, open the run's folder, drop an old manifest.

    Args:
        name: a name of ``STAGES``.
        profile: name or path of a profile.
        run: name of the run, a folder under ``runs_folder()``.
        overrides: knobs to change, ``{"section.key": value}``.
    """
    resolved = load(profile, overrides)
    folder = run_folder(run)
    refuse_others(folder)
    built = _with_student(name, folder)
    stage = Stage(name, resolved, folder)
    save(resolved, folder / "profile.yaml")
    if built:
        stage.warn(built)
    return stage


def _with_student(name, folder):
    """Put what the run's student built in place; what an earlier stage's did is undone first.

    Returns:
        A sentence for the manifest, or "".
    """
    while UNDO:
        UNDO.pop()()
    if not knobs_of_student(student_of(folder), name):
        return ""
    from recnb.check.in_place import for_stage  # it imports this module

    return for_stage(name, folder)


def read_manifest(folder, stage):
    """The manifest of a finished stage; an error names what to run if there is none."""
    path = Path(folder) / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecnbError(f"{path} does not exist: run notebook {stage} first") from None
    except json.JSONDecodeError as error:
        raise RecnbError(f"{path} is damaged ({error}): run notebook {stage} again") from error


OWN_FILES = {
    "01_data": [("data", "path", ("items.*", "interactions.*"))],
    "04_sft": [("model", "name", ("**/*",))],
    "08_tallrec": [("tallrec", "json_folder", ("*.json",)), ("tallrec", "book", ("*",))],
    "09_general_ability": [("general_ability", "data", ("**/*",))],
}
"""Knobs that name a folder of the user's, by the stage that reads it, and which files it reads."""


def own_files(profile, stage):
    """Content of the user's own files that a stage reads: ``{"section.key/file": sha256}``."""
    found = {}
    for section, key, patterns in OWN_FILES.get(stage, []):
        named = getattr(getattr(profile, section), key)
        folder = Path(named or "")
        if named and named not in (*OURS, "hub") and folder.is_dir():
            paths = {path for pattern in patterns for path in folder.glob(pattern)}
            for path in sorted(paths):
                name = path.relative_to(folder)
                if path.is_file() and not any(part.startswith(".") for part in name.parts):
                    about = path.stat()
                    content = _content(path, about.st_size, about.st_mtime_ns)
                    found[f"{section}.{key}/{name.as_posix()}"] = content
    return found


@functools.cache
def _content(path, size, changed):
    return sha256(path)


def is_done(profile, stage, run_folder, wanted_by=None):
    """True if the stage was made with these knobs and every output is on disk, unchanged.

    So must be the user's own files that it was made from, unless their folder is gone.

    Args:
        wanted_by: folder of the run whose student's functions count, if it is another one.
    """
    folder = Path(run_folder) / stage
    try:
        manifest = read_manifest(folder, stage)
        outputs = manifest["outputs"].items()
        if not same_knobs(profile, stage, run_folder, wanted_by):
            return False
    except RecnbError:
        return False
    made, there = manifest.get("own files"), own_files(profile, stage)
    if made and there and made != there:
        return False
    return all((folder / n).is_file() and sha256(folder / n) == h for n, h in outputs)


def _git(*arguments):
    return subprocess.run(
        ["git", *arguments], cwd=root(), capture_output=True, text=True, check=True
    ).stdout.strip()


def git_commit():
    """Commit of the checkout, with ``-dirty`` when tracked files differ, or ``unknown``."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def frozen(profile):
    """The profile's file: a reader can see that its knobs were fixed before the run was made.

    Returns:
        Dict with the file's sha256, the commit in which it last changed ("unknown" without git) and
        the knobs in which this run differs from it; None if no such file comes with the checkout.
    """
    path = profiles_folder() / f"{profile.name}.yaml"
    if not path.is_file():
        return None
    try:
        commit = _git("log", "-1", "--format=%h", "--abbrev=12", "--", str(path)) or "unknown"
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    found = {"sha256": sha256(path), "frozen": commit}
    try:
        theirs = load(path)
    except RecnbError as error:  # edited while the run went on
        return found | {"changed": f"cannot be read: {error}"}
    changed = {} if theirs.seed == profile.seed else {"seed": profile.seed}
    for section in sorted({name for names in SECTIONS.values() for name in names}):
        own = getattr(theirs, section).model_dump(mode="json")
        for knob, value in getattr(profile, section).model_dump(mode="json").items():
            if value != own[knob]:
                changed[f"{section}.{knob}"] = value
    return found | {"changed": changed}


def gpu_memory():
    """For the manifest: MiB that this process held at most on each GPU; nothing without one.

    Processes that a stage started (``compute.processes``) count for themselves and are not in it.
    """
    import torch

    most = [torch.cuda.max_memory_allocated(i) >> 20 for i in range(torch.cuda.device_count())]
    return {"peak_gpu_memory_mib": most} if most else {}


def hardware():
    """Processor, cores, memory and accelerators, for the manifest."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = 0
    if sys.platform != "win32":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "gpus": gpus,
    }
