"""The first lines of every notebook: which versions, which profile, which run."""

import os
import platform
import warnings
from importlib import metadata

from recnb.artifacts import PACKAGES


def show_versions():
    """Print the versions that decide results; from here on, progress bars and library warnings stay out of the notebook."""
    warnings.simplefilter("ignore")
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ.update(quiet, HF_HUB_DISABLE_TELEMETRY="1")
    print("python", platform.python_version(), "·", " · ".join(f"{p} {metadata.version(p)}" for p in PACKAGES))


def show_run(stage):
    """Print what a notebook is about to do."""
    profile = stage.profile
    print(f"profile {profile.name}, seed {profile.seed}: data {profile.data.dataset}, model {profile.model.name}")
