"""What is asked and what comes back: the two records that every recommender of the kit shares."""

from dataclasses import dataclass, field

from recnb.controls import Control, from_json


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

    def to_json(self):
        """The request as plain data."""
        row = {"user": int(self.user), "k": int(self.k), "prompt": self.prompt}
        row |= {"history": [int(i) for i in self.history], "seen": [int(i) for i in self.seen]}
        target = None if self.target is None else int(self.target)
        return row | {"control": self.control.to_json(), "target": target}

    @classmethod
    def from_json(cls, row):
        """What ``to_json`` described."""
        tuples = {"history": tuple(row["history"]), "seen": tuple(row["seen"])}
        return cls(**row | tuples | {"control": from_json(row["control"])})


@dataclass
class Response:
    """One answer: the raw text and what it was parsed into."""

    text: str
    titles: list[str] = field(default_factory=list)
    items: list[int | None] = field(default_factory=list)
    """Item ids in order; None = no such title in the catalogue."""
    tokens: int = 0
