"""Models are fetched and looked at before a run starts: notebooks may compute without a network."""

import errno
from pathlib import Path

from recnb import RecnbError

FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
"""What the kit reads of a model: weights without code, settings, tokenizer."""
OURS = ("mini", "smollm2")
"""Values of ``model.name`` that need no Hub."""


def ready(name):
    """Have a model on this machine, and look whether the stages can open it.

    Args:
        name: ``model.name`` of a profile.

    Returns:
        Sentences about what its tokenizer lacks, and what is done without it (``Codec.notes``).

    Raises:
        RecnbError: it cannot be had; it has no safetensors, or no tokenizer that can be read.
    """
    if name in OURS:
        return []
    fetch_model(name)
    from recnb.lm.loading import load_codec, refuse_code  # they take seconds to import

    refuse_code(name)
    return load_codec(name).notes


def fetch_model(name):
    """Have a model in the Hub's cache on this machine; nothing is downloaded twice.

    Args:
        name: ``model.name`` of a profile; only a Hub id is looked for.

    Raises:
        RecnbError: it is not in the cache, and the Hub cannot be reached or refuses it.
    """
    if name in OURS or Path(name).is_dir():
        return
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # a dozen kinds: no such id, gated, offline, no network, full disk
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise RecnbError(
            f"model.name {name}: not in the Hub's cache ({cache}) and not to be had "
            f"({type(error).__name__}: {reason}). {_what_helps(name, error)}"
        ) from error
    if not list(folder.glob("*.safetensors")):
        raise RecnbError(
            f"model.name {name}: it has no safetensors on the Hub; other weights (.bin, .pt) can "
            "carry code and are not read: choose another model, or convert them and give "
            "model.name the folder"
        )


def _what_helps(name, error):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    folder = "or give model.name a folder with the model"
    log_in = "log in (hf auth login, or a token in HF_TOKEN)"
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{name}"
        return f"It is gated: accept its licence at {page}, {log_in} and start again, {folder}"
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub knows no such model, or it is private: check the id, {log_in}, {folder}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "Make room, or keep the cache on another disk (HF_HOME): what has come is kept"
    return f"On a machine with network run recnb fetch PROFILE with the same HF_HOME, {folder}"
