"""Locks, ``pyproject.toml``, docs/dependencies.md, imports and environment agree."""

import ast
import re
import sys
import tomllib
from importlib import metadata

import pytest

from recnb.profile import root

LOCKS = ["requirements.lock", "benchmarks/peers/requirements.lock", "benchmarks/peers/vllm.lock"]
OWN_ENVIRONMENT = {"recnb/lm/vllm_worker.py": {"vllm"}}
"""Files that another environment runs, and what it has beyond this one (docs/gpu.md)."""

PROJECT = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(name):
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock):
    """``{package: version}``; fails at a line that is neither a pin nor a comment."""
    versions = {}
    for line in (root() / lock).read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line)
        assert pin, f"{lock}: {line!r} is not pinned to one version"
        assert normal(pin[1]) not in versions, f"{lock}: {pin[1]} stands there twice"
        versions[normal(pin[1])] = pin[2]
    return versions


def test_what_a_cluster_needs_is_pinned_beside_the_lock():
    lock = locked("docs/cluster/requirements.lock")
    for pin in PROJECT["optional-dependencies"]["slurm"]:
        name, version = pin.split("==")
        assert lock[normal(name)] == version
    assert not lock.keys() & locked("requirements.lock").keys(), "the default set-up has no need"


def direct(*extras):
    """Names of the direct dependencies, those of extras included."""
    pins = PROJECT["dependencies"] + [
        pin for extra in extras for pin in PROJECT["optional-dependencies"][extra]
    ]
    return {normal(pin.split("==")[0]) for pin in pins}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_of_a_lock_is_pinned(lock):
    assert len(locked(lock)) > 40


@pytest.mark.parametrize("line", ["torch", "torch>=2", "torch==2.*", "-e .", "a @ http://x/a.whl"])
def test_a_loose_entry_is_found(line, tmp_path, monkeypatch):
    (tmp_path / "some.lock").write_text(f"numpy==2.4.6\n{line}\n")
    monkeypatch.setattr(sys.modules[__name__], "root", lambda: tmp_path)
    with pytest.raises(AssertionError, match="not pinned"):
        locked("some.lock")


def test_the_page_has_a_row_for_each_direct_dependency():
    page = (root() / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Za-z0-9._-]+) \|(.*)\|$", page, re.MULTILINE)
    named = [normal(name) for name, _ in rows if name not in ("Package", "---")]
    assert sorted(named) == sorted(direct("test", "slurm"))
    assert all(cell.strip() for _, cells in rows for cell in cells.split("|"))


@pytest.mark.parametrize("folder, extras", [("recnb", ()), ("tests", ("test",))])
def test_what_the_code_imports_is_a_direct_dependency(folder, extras):
    packages = metadata.packages_distributions()
    for path in sorted((root() / folder).rglob("*.py")):
        known = direct(*extras) | {"recnb"}
        known |= OWN_ENVIRONMENT.get(path.relative_to(root()).as_posix(), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - {"tests"}:
                owners = {normal(owner) for owner in packages.get(top, [top])}
                assert top in sys.stdlib_module_names or owners & known, (
                    f"{path}: {top} belongs to {owners}, none of which is a direct dependency"
                )


def test_the_environment_is_the_locks():
    different = {}
    for name, version in locked("requirements.lock").items():
        try:
            found = metadata.version(name).split("+")[0]  # torch 2.13.0+cpu is 2.13.0
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found != version:
            different[name] = (version, found)
    assert not different, f"(lock, here): {different}; make setup installs the lock's"
