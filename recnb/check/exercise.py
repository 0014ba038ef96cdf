"""What an exercise is, and how a student's function is checked against the kit's own."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from recnb.check.compare import (
    CHECK_SECONDS,
    Result,
    attempt,
    difference,
    limits_time,
    plain,
    same,
    shown,
)
from recnb.text_safety import visible


def named(arguments):
    """A case in words, argument by argument: "rewards = [1, 2], groups = [0, 0]"."""
    return ", ".join(f"{name} = {shown(plain(value))}" for name, value in arguments.items())


def as_it_is(value, arguments):
    """The whole answer counts."""
    return [plain(value)]


@dataclass(frozen=True)
class Exercise:
    """One function to build; called with a student's, it prints and returns what it finds.

    Attributes:
        stub: function of ``stubs`` with signature and contract; its name is the exercise's.
        stage: the first stage of a run that calls the function.
        stars: difficulty, 1 to 3.
        minutes: that most need.
        hint: a sentence or two.
        kit: the kit's own functions and classes that do it.
        reference: gives the kit's answer to the arguments, as ``read`` gives the student's.
        cases: gives dicts of arguments by the stub's names, enumerated small ones first.
        words: a case for people.
        read: what of an answer counts, as a list of plain values, one for each of ``labels``.
        labels: what the values are called.
    """

    stub: Callable
    stage: str
    stars: int
    minutes: int
    hint: str
    kit: tuple
    reference: Callable
    cases: Callable
    words: Callable = named
    read: Callable = as_it_is
    labels: tuple = ("",)

    @property
    def name(self):
        return self.stub.__name__

    def __call__(self, function):
        """Check a function, print what was found and return it.

        Args:
            function: takes the arguments of the stub, by place.

        Returns:
            ``Result``.
        """
        result = examine(self, function)
        print(result.message)
        return result

    def __repr__(self):
        return f"check.{self.name}{inspect.signature(self.stub)}"


def examine(exercise, function):
    """What ``exercise(function)`` returns, without printing it."""
    name = exercise.name
    if not callable(function):
        message = f"{name}: a function is expected, got {type(function).__name__}"
        return Result(name, False, message, 0)
    cases, seconds = exercise.cases(), 0.0
    for number, arguments in enumerate(cases, start=1):
        found = attempt(function, arguments, exercise.read)
        seconds += found.seconds
        trouble = found.trouble
        if not trouble:
            pairs = zip(exercise.labels, exercise.reference(**arguments), found.answer, strict=True)
            wrong = [pair for pair in pairs if not same(*pair[1:])]
            trouble = difference(*wrong[0]) if wrong else ""
        if not trouble and seconds > CHECK_SECONDS:
            trouble = f"right so far, but after {seconds:.0f} s: far too slow for a run"
        if found.stub:
            message = (
                f"{name}: not written yet. check.stub({name!r}) prints the contract, "
                f"check.hint({name!r}) a hint"
            )
            return Result(name, False, message, len(cases), True)
        if trouble:
            message = (
                f"{name}: not right yet. Case {number} of {len(cases)} is the first that differs, "
                f"small ones come first:\n    {exercise.words(arguments)}: {trouble}"
            )
            if found.printed:
                message += f"\n    it printed: {visible(found.printed.strip()[:400])}"
            return Result(name, False, message + _no_limit(), len(cases), found.stub)
    return Result(name, True, f"{name}: right, {len(cases)} cases{_no_limit()}", len(cases))


def _no_limit():
    if limits_time():
        return ""
    return (
        "\n    (no time limit could be set here, which takes Linux or macOS and the main thread: "
        "interrupt a call that never ends by hand)"
    )
