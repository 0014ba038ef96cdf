"""Raw files by download or out of a mirror: continued where they broke off, verified, recorded.

``downloads.yaml`` has the addresses. A mirror is a folder or an address with a folder for each
dataset, such as a copy of the cache's folder ``raw``; with a mirror folder no network is needed.
"""

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import httpx
import yaml

from recnb import RecnbError
from recnb.artifacts import sha256, write_json
from recnb.datasets.tabular import shown
from recnb.sources import cache_folder, extract, verify

TRIES, WAIT = 5, 1.0
"""Tries without a single new byte before a download is given up; seconds before the second one."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
TOLD = 100 << 20
"""A line of progress comes after so many bytes."""
RECORD = "sha256.json"


def known():
    """``{dataset: its title, licence, page and files}`` as ``downloads.yaml`` has them."""
    text = Path(__file__).with_name("downloads.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def fetch(name, mirror=""):
    """Folder with a dataset's raw files; what is there already is verified, not fetched again.

    Args:
        name: a key of ``known()``.
        mirror: folder or http address to take the files from; empty = their own addresses.

    Raises:
        RecnbError: no network, a full disk, a file that is not the one it was: one message. What
            was downloaded stays, and the next call goes on from there.
    """
    folder = cache_folder() / "raw" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, about in known()[name]["files"].items():
            _ensure(folder, file, about, _places(name, file, about, mirror))
            for member in about.get("members", []):
                _unpack(folder, file, member)
    except OSError as error:
        raise RecnbError(
            f"cannot fetch into {folder}: {error}. What is there stays: run the same command again "
            "to go on, or keep the cache elsewhere (environment variable RECNB_CACHE)"
        ) from error
    return folder


def _places(name, file, about, mirror):
    if not mirror:
        return about["urls"]
    if re.match("https?://", mirror):
        return [f"{mirror.rstrip('/')}/{name}/{file}"]
    path = Path(mirror) / name / file
    if not path.is_file():
        raise RecnbError(f"--mirror {mirror}: there is no {path}: a mirror has a folder a dataset")
    return [path]


def _ensure(folder, file, about, places):
    """Have a verified file in the folder, and its digest in the folder's record."""
    target, part = folder / file, folder / f"{file}.part"
    record = _record(folder)
    trusted = about.get("sha256") or record.get(file, {}).get("sha256")
    if target.exists():
        origin, digest = "found there", sha256(target)
        if trusted and digest != trusted:
            raise RecnbError(
                f"{target} is not the file that it was (sha256 {digest}, expected {trusted}): "
                "delete it and run again"
            )
    else:
        origin = _from_somewhere(places, part)
        try:
            digest = _verified(part, file, about, trusted)
        except RecnbError:
            _drop(part)
            raise
        os.replace(part, target)
        _drop(part)
    trust = "pinned in downloads.yaml" if about.get("sha256") else "first use"
    if file not in record:
        row = {"sha256": digest, "bytes": target.stat().st_size, "from": origin, "trust": trust}
        write_json(folder / RECORD, record | {file: row})
    if trusted:
        print(f"{target}: {target.stat().st_size:,} bytes, sha256 as expected")
    else:
        print(
            f"{target}: {target.stat().st_size:,} bytes, sha256 {digest}. Nobody publishes this "
            f"file's sha256: it was not verified. It is trusted from now on ({folder / RECORD})"
        )


def _record(folder):
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        assert all(isinstance(row["sha256"], str) for row in rows.values())
    except (ValueError, AssertionError, AttributeError, KeyError, TypeError) as error:
        raise RecnbError(
            f"{path} is damaged ({error}): delete it; files are trusted anew"
        ) from error
    return rows


def _verified(part, file, about, trusted):
    """sha256 of what came; refused is what cannot be the file, such as a page that says sorry."""
    with open(part, "rb") as content:
        start = content.read(60)
    if file.endswith(".gz") and start[:2] != b"\x1f\x8b":
        text = shown(start.decode("utf-8", "replace"))
        raise RecnbError(f"{file}: what came is no gzip file, it begins with {text!r}")
    size = part.stat().st_size
    if about.get("bytes", size) != size:
        raise RecnbError(
            f"{file}: what came has {size:,} bytes, expected are {about['bytes']:,}: run again to "
            "download it anew"
        )
    if trusted:
        verify(part, trusted)
    return sha256(part)


def _from_somewhere(places, part):
    """Fill ``part`` from the first place that works; returns its name."""
    reasons = []
    for place in places:
        if isinstance(place, Path):
            shutil.copyfile(place, part)
            return "a mirror folder"
        try:
            _download(place, part)
            return place
        except _Unreachable as error:
            reasons.append(f"{place}: {error}")
    have = part.stat().st_size if part.exists() else 0
    kept = f"{have:,} bytes are kept; run again to go on. " if have else ""
    raise RecnbError(
        f"cannot download {part.name.removesuffix('.part')}: {'; '.join(reasons)}. {kept}Without "
        "network, take the files from a folder: --mirror FOLDER"
    )


class _Unreachable(Exception):
    """Why nothing more comes from an address."""


def _download(url, part):
    """Fill ``part`` from an address, with as many connections as it takes."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _one_connection(url, part)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise _Unreachable(f"no address ({error})") from error
        except httpx.HTTPError as error:
            grown = part.exists() and part.stat().st_size > before
            failures = 1 if grown else failures + 1
            if failures == TRIES:
                raise _Unreachable(shown(str(error) or type(error).__name__, 200)) from error
            time.sleep(WAIT * 2 ** (failures - 1))


def _one_connection(url, part):
    """One request for what is missing; returns once the file is whole.

    ``part`` goes on only where it broke off from the same address and the server says that the file
    is still the same one; else it begins anew.
    """
    notes = part.with_name(f"{part.name}.json")
    state = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    have = part.stat().st_size if part.exists() and state.get("url") == url else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if state["etag"]:
            headers["If-Range"] = state["etag"]
    with httpx.stream(
        "GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True
    ) as answer:
        if answer.status_code == 416:  # nothing is missing, or the file became shorter
            if answer.headers.get("Content-Range", "") == f"bytes */{have}":
                return
            _drop(part)
            raise httpx.ReadError("the file changed while it was downloaded")
        if answer.status_code == 429 or answer.status_code >= 500:
            raise httpx.ReadError(f"the server answers {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise _Unreachable(f"the server answers {answer.status_code}")
        size = _size(answer, have)
        if answer.status_code == 206 and size != state["size"]:
            _drop(part)
            raise httpx.ReadError("the file changed while it was downloaded")
        if answer.status_code == 200:
            have = 0
            etag = answer.headers.get("ETag", "")
            etag = "" if etag.startswith("W/") else etag  # a weak one does not mean equal bytes
            write_json(notes, {"url": url, "etag": etag, "size": size})
        free = shutil.disk_usage(part.parent).free
        if size and size - have > free:
            raise RecnbError(
                f"{part.name.removesuffix('.part')} needs {size - have:,} more bytes and "
                f"{part.parent} has {free:,} left: free some, or keep the cache elsewhere "
                "(environment variable RECNB_CACHE)"
            )
        with open(part, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecnbError(f"{part}: another process is downloading it") from None
            file.truncate(have)
            told = have + TOLD
            for piece in answer.iter_raw():
                file.write(piece)
                have += len(piece)
                if have >= told:
                    told += TOLD
                    of = f" of {size:,}" if size else ""
                    print(f"{part.name.removesuffix('.part')}: {have:,}{of} bytes")


def _size(answer, have):
    """Bytes of the whole file as an answer tells them, None if it does not."""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        return int(found[2]) if found and int(found[1]) == have else None
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _drop(part):
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _unpack(folder, file, member):
    """A member of a verified zip file, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        name = extract(folder / file, member, Path(scratch))
        os.replace(Path(scratch) / name, folder / name)
