"""Ask a student's function within limits, and say where its answer differs.

Nothing a function does may end the check: it may raise, return anything, change its arguments,
print, or never come back.
"""

import contextlib
import copy
import inspect
import io
import itertools
import math
import numbers
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

from recnb.text_safety import visible

CALL_SECONDS = 5.0
"""A call that has not come back by then is ended; a right function needs a thousandth of it."""
CHECK_SECONDS = 30.0
"""All calls of one check together."""
LARGEST = 10_000
"""An answer with more entries is not looked at; the largest right one has a hundred."""
ANY = "any"
"""Stands in an expected answer where the value does not count, as in padding."""


@dataclass
class Result:
    """What a check found; it is printed when the check is called.

    Attributes:
        name: of the exercise.
        right: every case came out as the kit's own function has it.
        message: plain text: the smallest case that differs, or how many cases were right.
        cases: how many were asked.
        stub: the function still raises NotImplementedError, as the stub does.
    """

    name: str
    right: bool
    message: str = field(repr=False)
    cases: int
    stub: bool = False


class TooLong(BaseException):
    """The time limit. No ``Exception``: a student's ``except Exception`` must not keep it."""


class Unfit(Exception):
    """An answer of a kind that cannot be compared."""


@dataclass
class Attempt:
    """One call: either ``answer`` or ``trouble`` (a sentence), what was printed, seconds used."""

    answer: object = None
    trouble: str = ""
    printed: str = ""
    seconds: float = 0.0
    stub: bool = False


def attempt(function, arguments, read, seconds=CALL_SECONDS):
    """Call a function with copies of the arguments and read its answer.

    Args:
        function: the student's.
        arguments: dict from the names of the stub to values; passed by place.
        read: function of (returned value, arguments as passed) that gives plain data.
        seconds: time limit of call and reading together.
    """
    given, printed, found = copy.deepcopy(arguments), io.StringIO(), Attempt()
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(printed), time_limit(seconds):
            found.answer = read(function(*given.values()), given)
    except KeyboardInterrupt:
        raise
    except TooLong:
        found.trouble = f"no answer within {seconds:.1f} s: does a loop never end?"
    except Unfit as error:
        found.trouble = str(error)
    except BaseException as error:  # SystemExit too: a student's exit() must not end the kernel
        found.trouble = raised(error, function)
        found.stub = isinstance(error, NotImplementedError)
    found.seconds, found.printed = time.monotonic() - started, printed.getvalue()
    if not found.trouble:
        found.trouble = _changed(arguments, given)
    return found


def limits_time():
    """Can a call be ended here? By SIGALRM: on Linux and macOS, in the main thread."""
    main = threading.current_thread() is threading.main_thread()
    return main and hasattr(signal, "setitimer")


@contextlib.contextmanager
def time_limit(seconds):
    """Raise ``TooLong`` in the code called within after so many seconds, where that can be done.

    The alarm comes again and again, for code that catches all: from the second on the next line,
    which is that code's ``except``, raises as well. It is never raised in a line of this file, so
    that the clean-up below is not cut short.
    """
    if not limits_time():
        yield
        return
    ours, alarms, tracing = (__file__, contextlib.__file__), itertools.count(), sys.gettrace()

    def stop(frame, event, value):
        if frame.f_code.co_filename in ours:
            return None
        if event == "line":
            raise TooLong
        return stop

    def alarm(number, frame):
        if frame is None or frame.f_code.co_filename in ours:
            return
        if next(alarms):
            sys.settrace(stop)
            while frame is not None and frame.f_code.co_filename not in ours:
                frame.f_trace = stop
                frame = frame.f_back
        raise TooLong

    before = signal.signal(signal.SIGALRM, alarm)
    started = time.monotonic()
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.settrace(tracing)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm goes on
            passed = time.monotonic() - started
            signal.setitimer(signal.ITIMER_REAL, max(left - passed, 0.001), every)


def raised(error, function):
    """ "it raised IndexError: ..., in line 4: x = y[3]": the line is the student's own."""
    text = f"it raised {type(error).__name__}"
    try:
        words = visible(_short(str(error)))
    except Exception:  # an exception class of the student's that cannot say what it is
        words = ""
    if words:
        text += f": {words}"
    if isinstance(error, SyntaxError):  # it names its line itself; nothing of the file has run
        return text
    inside = []
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is not None:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if frame.filename == code.co_filename]
    if inside:
        return text + f", in line {inside[-1].lineno}: {_short(inside[-1].line or '')}"
    if isinstance(error, TypeError):  # it could not even be called
        text += " (does it take the arguments that the stub names?)"
    return text


def _changed(before, after):
    """The sentence about an argument that the function changed, or nothing."""
    for name, value in before.items():
        old = plain(value)
        try:
            new = plain(after[name])
        except Exception:  # it put in what is no number, or the list itself
            return f"it changed its argument {name}, which was {shown(old)}: work on a copy"
        if not same(old, new):
            return (
                f"it changed its argument {name} from {shown(old)} to {shown(new)}: work on a copy"
            )
    return ""


def plain(value):
    """Lists, sets and numbers out of whatever holds them: tuples, arrays, tensors, generators.

    Raises:
        Unfit: something else, or too much.
    """
    if value is None or isinstance(value, bool | int | float | str | Fraction):
        return value
    if isinstance(value, torch.Tensor | np.ndarray):
        size = value.numel() if isinstance(value, torch.Tensor) else value.size
        if size > LARGEST:
            raise Unfit(f"an array of {size:,} entries came back")
        value = value.detach() if isinstance(value, torch.Tensor) else value
        value = value.tolist()
        return plain(value) if isinstance(value, list) else value
    if isinstance(value, set | frozenset):
        return frozenset(plain(entry) for entry in value)
    if isinstance(value, list | tuple | range | Iterator):
        entries = list(itertools.islice(value, LARGEST + 1))
        if len(entries) > LARGEST:
            raise Unfit(f"more than {LARGEST:,} entries came back")
        return [plain(entry) for entry in entries]
    if isinstance(value, np.generic) or hasattr(value, "tolist"):  # pandas
        return plain(value.tolist())
    if isinstance(value, numbers.Real):
        return float(value)
    raise Unfit(f"got a value of type {type(value).__name__}: return numbers, or a list of them")


def same(expected, got):
    """Are two plain values alike? Numbers within a ten-thousandth, NaN like nothing."""
    if isinstance(expected, str) and expected == ANY:
        return True
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            return False
        return all(same(a, b) for a, b in zip(expected, got, strict=True))
    if isinstance(expected, int | float | Fraction):
        if not isinstance(got, int | float | Fraction):
            return False
        try:
            return math.isclose(expected, got, rel_tol=1e-4, abs_tol=1e-5)
        except OverflowError:  # an integer too large for a float
            return False
    return type(expected) is type(got) and expected == got


def difference(label, expected, got):
    """ "expected [7, 1], got [1, 7]"; with more digits where the usual ones look alike."""
    for digits in (4, 9):
        wanted, given = shown(expected, digits), shown(got, digits)
        if wanted != given:
            break
    text = f"expected {label}{wanted}, got {given}"
    if isinstance(expected, list) and isinstance(got, list) and len(expected) != len(got):
        text += f" ({len(expected)} entries expected, {len(got)} given)"
    return text


def shown(value, digits=4):
    """A plain value as a person would write it; long ones are cut."""
    return _short(_written(value, digits), 400)


def _written(value, digits):
    if isinstance(value, list):
        return f"[{', '.join(_written(entry, digits) for entry in value)}]"
    if isinstance(value, frozenset):
        entries = sorted(
            (_written(entry, digits) for entry in value), key=lambda text: (len(text), text)
        )
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, int | Fraction) and abs(value) > 10**20:
        return "a huge number"  # Python refuses to write out the largest
    if isinstance(value, Fraction) and value.denominator > 10**20:
        return f"{float(value):.{digits}g}"
    if isinstance(value, Fraction) or value == ANY:
        return str(value)
    return repr(value)


def _short(text, length=200):
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]} ..."
