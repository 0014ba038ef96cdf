"""The first lines of every notebook: which versions, which profile, which run."""

import os
import platform
import warnings
from importlib import metadata

from recnb.artifacts import PACKAGES


def show_versions():
    """Print the versions that decide results.

    From here on, progress bars and library warnings stay out of the notebook.
    """
    warnings.simplefilter("ignore")
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    os.environ.update(quiet, HF_HUB_DISABLE_TELEMETRY="1")
    packages = " · ".join(f"{p} {metadata.version(p)}" for p in PACKAGES)
    print("python", platform.python_version(), "·", packages)


def show_run(stage):
    """Print what a notebook is about to do."""
    p = stage.profile
    chosen = "bfloat16" if stage.autocast else "float32"
    print(
        f"profile {p.name}, seed {p.seed}: data {p.data.dataset}, model {p.model.name}, "
        f"trained in {chosen}"
    )
