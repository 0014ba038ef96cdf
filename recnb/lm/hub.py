"""Models of the Hub are fetched before a run starts: notebooks may compute without a network."""

from pathlib import Path

from recnb import RecnbError

FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
"""What the kit reads of a model: weights without code, settings, tokenizer."""


def fetch_model(name):
    """Have a model in the Hub's cache on this machine; nothing is downloaded twice.

    Args:
        name: ``model.name`` of a profile; only a Hub id is looked for.

    Raises:
        RecnbError: it is not in the cache, and the Hub cannot be reached or refuses it.
    """
    if name in ("mini", "smollm2") or Path(name).is_dir():
        return
    import huggingface_hub

    try:
        huggingface_hub.snapshot_download(name, allow_patterns=FILES)
    except Exception as error:  # a dozen kinds: no such id, gated, offline, no network, full disk
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecnbError(
            f"model.name {name}: not in the Hub's cache ({huggingface_hub.constants.HF_HUB_CACHE}) "
            f"and not to be had ({type(error).__name__}: {reason}). On a machine with network run "
            "recnb fetch PROFILE with the same HF_HOME, or give model.name a folder with the model"
        ) from error
