"""The grader's helper process: runs one exercise of one student after another, each in a fork.

It reads jobs, a line of JSON each, and answers with a line of JSON each. It knows inputs and no
expected answers: what it sends back is what the student's function returned, and the grader
compares in its own process. It imports nothing of the kit but the limits.
"""

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from fractions import Fraction

from recnb.course import sandbox

MOST_BYTES = 2_000_000
"""Of one exercise's answers as JSON; the largest right ones have a hundredth."""
MOST_ENTRIES = 10_000
PATIENCE = 4
"""So many seconds may pass for each second of processor time: a busy machine is no wrong answer."""


def main():
    """Answer jobs until the input ends."""
    import torch  # once, for all the forks

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(apart(json.loads(line))), flush=True)


def apart(job):
    """Do a job in a process of its own and end that process, whatever it does.

    Returns:
        ``{"text": what it sent, "trouble": why it sent nothing}``.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _child(job, writing)
    os.close(writing)
    os.set_blocking(reading, False)
    parts, size, trouble = [], 0, ""
    too_long = f"no answer within {job['seconds']:g} s: does a loop never end?"
    deadline = time.monotonic() + PATIENCE * job["seconds"]
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            trouble = too_long
            break
        part = os.read(reading, 1 << 16)
        parts.append(part)
        size += len(part)
        if not part or size > MOST_BYTES:
            break
    if size > MOST_BYTES:
        trouble = f"more than {MOST_BYTES:,} bytes came back"
    os.close(reading)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    text = b"".join(parts).decode("utf-8", "replace")
    if not trouble and not text:
        trouble = "its process ended without an answer"
        if os.WIFSIGNALED(status):
            trouble = f"its process was ended by signal {os.WTERMSIG(status)}"
            if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
                trouble = too_long
    return {"text": "" if trouble else text, "trouble": trouble}


def _child(job, writing):
    """The student's process; it never returns."""
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for place in (0, 1, 2):
            os.dup2(nothing, place)
        os.closerange(3, writing)
        os.closerange(writing + 1, 4096)
        held = sandbox.enter(job["seconds"], job["memory"])
        for name in [name for name in sys.modules if name.split(".")[0] == "recnb"]:
            del sys.modules[name]
        sys.modules["recnb"] = None  # from now on an ImportError
        text = json.dumps({"held": held} | work(job))
    except BaseException as error:  # whatever is left to say
        text = json.dumps({"trouble": f"it raised {type(error).__name__}"})
    with os.fdopen(writing, "wb") as file:
        file.write(text.encode())
    os._exit(0)


def work(job):
    """Run the cells, call the function with each case.

    Args:
        job: dict of cells (pairs of name and source), function (its name), cases (lists of encoded
            arguments), read ("value", or "gradient" of the first argument beside it), seconds,
            memory.

    Returns:
        Dict: answers so far, and, if something stopped it, trouble (a sentence) and stub.
    """
    answers = []
    try:
        space = {"__name__": "__main__"}
        for name, source in job["cells"]:
            exec(compile(source, name, "exec"), space)
        function = space.get(job["function"])
        if not callable(function):
            return {"answers": [], "trouble": f"the cell defines no function {job['function']}"}
        for case in job["cases"]:
            arguments = [decode(value) for value in case]
            value = function(*arguments)
            answers.append(with_gradient(value, arguments) if job["read"] else encode(value))
    except BaseException as error:  # SystemExit and the like too
        stub = isinstance(error, NotImplementedError)
        names = {name for name, _ in job["cells"]}
        return {"answers": answers, "trouble": raised(error, names), "stub": stub}
    return {"answers": answers}


def raised(error, names):
    """ "it raised IndexError: ..., in line 4 of the cell: x = y[3]"."""
    if isinstance(error, Unfit):
        return str(error)
    text = f"it raised {type(error).__name__}"
    try:
        words = " ".join(str(error).split())[:200]
    except BaseException:  # an exception class of the student's that cannot say what it is
        words = ""
    text += f": {words}" if words else ""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename in names]
    return f"{text}, in line {inside[-1].lineno} of {inside[-1].filename}" if inside else text


class Unfit(Exception):
    """A value that is no plain data."""


def encode(value, room=None, depth=0):
    """JSON of numbers, text, lists, sets and fractions, out of whatever holds them."""
    room = [MOST_ENTRIES] if room is None else room
    room[0] -= 1
    if room[0] < 0 or depth > 6:
        raise Unfit(f"more than {MOST_ENTRIES:,} entries came back, or they lie too deep")
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        if abs(value) > 10**30:
            raise Unfit("a huge number came back")
        return value
    if isinstance(value, Fraction):
        return {"fraction": [encode(value.numerator), encode(value.denominator)]}
    if isinstance(value, set | frozenset):
        return {"set": [encode(entry, room, depth + 1) for entry in value]}
    if hasattr(value, "tolist"):  # arrays, tensors, series
        size = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
        if size > MOST_ENTRIES:
            raise Unfit(f"an array of {size:,} entries came back")
        return encode(value.tolist(), room, depth + 1)
    if hasattr(value, "__iter__") and not isinstance(value, dict | bytes):
        entries = []
        for entry in value:  # generators too: the room ends it
            entries.append(encode(entry, room, depth + 1))
        return entries
    if hasattr(value, "__float__"):
        return float(value)
    raise Unfit(f"got a value of type {type(value).__name__}: return numbers, or a list of them")


def with_gradient(value, arguments):
    """A loss and its gradient in the first argument; "none" if it does not reach there."""
    import torch

    gradient = "none"
    if isinstance(value, torch.Tensor) and value.requires_grad and not value.ndim:
        found = torch.autograd.grad(value, arguments[0], allow_unused=True)[0]
        gradient = "none" if found is None else encode(found)
    return [encode(value), gradient]


def decode(value):
    """An argument out of the grader's JSON (``recnb.course.grade.encoded``)."""
    if isinstance(value, list):
        return [decode(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    (kind, inside), *more = value.items()
    if kind == "set":
        return {decode(entry) for entry in inside}
    if kind == "tuple":
        return tuple(decode(entry) for entry in inside)
    if kind == "fraction":
        return Fraction(*inside)
    import torch

    tensor = torch.tensor(inside, dtype=getattr(torch, value["dtype"]))
    return tensor.requires_grad_() if value["grad"] else tensor


if __name__ == "__main__":
    main()
