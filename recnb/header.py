"""The first lines of every notebook: which versions, which profile, which run."""

import platform
from importlib import metadata

from recnb.artifacts import PACKAGES


def show_versions():
    """Print the versions that decide results."""
    print("python", platform.python_version(), "·", " · ".join(f"{p} {metadata.version(p)}" for p in PACKAGES))


def show_run(stage):
    """Print what a notebook is about to do."""
    profile = stage.profile
    print(f"profile {profile.name}, seed {profile.seed}: data {profile.data.dataset}, model {profile.model.name}")
