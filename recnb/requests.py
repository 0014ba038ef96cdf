"""What is asked and what comes back: the two records that every recommender of the kit shares."""

from dataclasses import dataclass, field

from recnb.controls import Control


@dataclass(frozen=True)
class Request:
    """One question to a recommender."""

    user: int
    history: tuple[int, ...]
    """The items shown in the prompt, oldest first (at most ``history_length``)."""
    seen: tuple[int, ...]
    """Everything the user had before the target."""
    control: Control
    k: int
    target: int | None = None
    prompt: str | None = None
    """The request in words of its own; None = in those of ``instructions.templates``."""


@dataclass
class Response:
    """One answer: the raw text and what it was parsed into."""

    text: str
    titles: list[str] = field(default_factory=list)
    items: list[int | None] = field(default_factory=list)
    """Item ids in order; None = no such title in the catalogue."""
    tokens: int = 0
