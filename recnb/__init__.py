"""recnb: a notebook-based research kit for controllable recommendation with language models."""

__version__ = "0.1.0"


class RecnbError(Exception):
    """A mistake in the user's input or environment, told in one message: what, where, and what to
    do.
    """
