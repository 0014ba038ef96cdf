"""Put a student's functions in the place of the kit's own, in a notebook or for a whole run.

Between a plain function of the exercise and the kit's own stands one adapter each. A function that
fails its check is refused, and what was made with one is marked: the manifest names it among the
stage's knobs, so that the kit takes the stage for none of its own.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import torch

from recnb import RecnbError, artifacts, controls
from recnb.artifacts import STUDENT_FILE, sha256, student_of
from recnb.check import arithmetic, lists
from recnb.check.compare import Unfit, attempt, plain, raised
from recnb.check.exercise import examine
from recnb.profile import STAGES

EXERCISES = {
    exercise.name: exercise
    for exercise in (
        arithmetic.causal_mask,
        lists.label_filter,
        lists.item_reward,
        lists.list_reward,
        arithmetic.leave_one_out,
        arithmetic.gae,
        arithmetic.clipped_loss,
        lists.allowed,
        lists.ndcg,
        arithmetic.holm,
    )
}
"""All of them, in the order of the notebooks."""
MODULE = "student_functions"
"""The name under which a student's file runs."""
IMPORT_SECONDS = 60.0
"""Time limit for importing a student's file."""


def find(name):
    """An exercise by its name.

    Raises:
        RecnbError: there is none of that name.
    """
    if name not in EXERCISES:
        raise RecnbError(f"no exercise {name!r}; there are: {', '.join(EXERCISES)}")
    return EXERCISES[name]


@contextlib.contextmanager
def in_use(**functions):
    """Within it the kit calls the student's functions: ``with check.in_use(gae=my_gae): ...``.

    Names that a notebook imported before keep the kit's own function. What a stage of this process
    writes from now on is marked as made with them, also after the ``with``: what they computed
    cannot be told apart any more.

    Raises:
        RecnbError: an unknown name, or a function that fails its check; nothing is put in place.
    """
    for name, function in functions.items():
        refuse_wrong(name, function)
    artifacts.BORROWED.update({name: _digest(function) for name, function in functions.items()})
    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            _put(name, function, stack)
        yield


def refuse_wrong(name, function):
    """Raise the check's message, if the function is not right."""
    result = examine(find(name), function)
    if not result.right:
        raise RecnbError(result.message)


def _digest(function):
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # typed into a plain interpreter, or no function of Python's
        text = repr(function)
    return hashlib.sha256(text.encode()).hexdigest()


def student_functions(path):
    """A student's file for a run: its functions, each checked, with a line printed for each.

    A function that is still a stub is left out.

    Args:
        path: Python file that defines functions by the names of the exercises.

    Returns:
        ``(source bytes, record)`` for ``artifacts.keep_student``.

    Raises:
        RecnbError: the file cannot be read or run, or has none of the functions, or one is wrong.
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise RecnbError(f"{path}: cannot be read ({error.strerror or error})") from error
    stages, wrong, functions = {}, [], load(source, path)
    for name in [name for name in EXERCISES if callable(functions.get(name))]:
        function = functions[name]
        result = examine(EXERCISES[name], function)
        if result.stub:
            print(f"{name}: still the stub, the kit's own is used")
            continue
        if result.right:
            print(result.message)
            stages[name] = EXERCISES[name].stage
        else:
            wrong.append(f"{path}{_line(function)}: {result.message}")
    if wrong:
        raise RecnbError("\n".join([*wrong, "The run was not started"]))
    if not stages and any(callable(functions.get(name)) for name in EXERCISES):
        raise RecnbError(f"{path}: every function in it is still a stub, the run was not started")
    if not stages:
        raise RecnbError(
            f"{path}: defines none of the functions that a run can use: {', '.join(EXERCISES)}"
            f"{_others(functions)}"
        )
    digest = hashlib.sha256(source).hexdigest()
    return source, {"file": path.name, "sha256": digest, "functions": stages}


def refuse_released(profile, record):
    """Refuse a run that would not call the student's rewards: they are those of the paper.

    Args:
        record: what ``student_functions`` found.

    Raises:
        RecnbError: ``ppo.fidelity`` is another than "paper".
    """
    names = [name for name in ("item_reward", "list_reward") if name in record["functions"]]
    if names and profile.ppo.fidelity != "paper":
        raise RecnbError(
            f"ppo.fidelity is {profile.ppo.fidelity}, but {' and '.join(names)} of {record['file']}"
            " compute the equations as printed: set ppo.fidelity=paper. The run was not started"
        )


def _line(function):
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f", line {code.co_firstlineno}" if code else ""


def _others(names):
    """What a file without any exercise's function defines instead, for a message."""
    plain_functions = {n: f for n, f in names.items() if isinstance(f, types.FunctionType)}
    own = [f"{n}{_line(f)}" for n, f in plain_functions.items() if f.__module__ == MODULE]
    own = [name for name in own if name.split(",")[0] not in EXERCISES]
    return f". It defines {'; '.join(own[:5])}" if own else ""


def load(source, path):
    """What a Python file defines; the file is run as a program.

    Args:
        source: its bytes.
        path: its name, for messages.

    Returns:
        Dict from the file's names to their values.
    """
    module = types.ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up

    def run():
        exec(compile(source, str(path), "exec"), vars(module))

    run.__code__ = run.__code__.replace(co_filename=str(path))  # errors name the student's line
    found = attempt(run, {}, lambda value, arguments: None, IMPORT_SECONDS)
    if found.trouble:
        raise RecnbError(f"{path}: {found.trouble}")
    return vars(module)


def for_stage(stage, folder):
    """Put what a run's student built for this stage and those before in place; until undone.

    Args:
        stage: a name of ``STAGES``.
        folder: of the run.

    Returns:
        A sentence for the manifest.

    Raises:
        RecnbError: the file was changed since the run started, or a function fails its check.
    """
    student, path = student_of(folder), folder / STUDENT_FILE
    names = artifacts.knobs_of_student(student, stage)["functions"]
    if not path.is_file() or sha256(path) != student["sha256"]:
        raise RecnbError(
            f"{path} is missing or was changed: start the run again with --student "
            f"{student['file']}"
        )
    functions = load(path.read_bytes(), path)
    for name in names:
        refuse_wrong(name, functions.get(name))
    with contextlib.ExitStack() as stack:
        for name in names:
            _put(name, functions[name], stack)
        artifacts.UNDO.append(stack.pop_all().close)
    return (
        f"made with a student's {', '.join(names)} in place of the kit's own ({student['file']}, "
        f"sha256 {student['sha256'][:12]})"
    )


def _put(name, function, stack):
    """Wrap the kit's own functions for as long as ``stack`` is open."""
    adapter, places = ADAPTERS[name]
    for place in places:
        module, _, attribute = place.partition(":")
        owner = importlib.import_module(module)
        if "." in attribute:
            cls, attribute = attribute.split(".")
            owner = getattr(owner, cls)
        own = getattr(owner, attribute)
        stack.callback(setattr, owner, attribute, own)
        setattr(owner, attribute, adapter(function, own))


def _ask(name, function, *arguments):
    """Call the student's function; an error is told as one of the student's."""
    try:
        return function(*arguments)
    except Exception as error:
        raise RecnbError(f"the student's {name}: {raised(error, function)}") from error


def _numbers(name, value, shape, counts=True):
    """What the student's function returned, float64 of the shape that it must have.

    Args:
        counts: bools of that shape, False where anything may stand, which becomes 0.
    """
    try:
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().double()
        elif not isinstance(value, np.ndarray):  # a run's arrays may be larger than a check's
            value = plain(value)
        found = np.asarray(value, dtype=float)
    except (Unfit, TypeError, ValueError) as error:
        raise RecnbError(f"the student's {name} gave no numbers: {error}") from error
    found = np.where(counts, found, 0.0) if found.shape == shape else found
    if found.shape != shape or not np.isfinite(found).all():
        raise RecnbError(
            f"the student's {name} gave numbers of shape {list(found.shape)} or no finite ones, "
            f"{list(shape)} were expected"
        )
    return found


def _label_filter(student, own):
    def first_list(ranked, k, needs):
        if len(needs) > 1:  # several wishes at once are no part of the exercise
            return own(ranked, k, needs)
        members, least, most = needs[0] if needs else (np.zeros(0, dtype=bool), 0, k)
        inside = set(np.flatnonzero(members).tolist())
        labels = _ask("label_filter", student, ranked.tolist(), inside, k, least, most)
        return None if labels is None else [int(item) for item in labels]

    return first_list


def _rewards(name, student, own, place):
    """score_list with what the student computes in its place.

    Args:
        place: function of (ListScore, the student's answer) that gives the new ListScore.
    """
    wishes = {cls: wish for wish, cls in lists.WISHES.items()} | {controls.Search: "include"}

    def score_list(request, items, ranks, catalog, fidelity="paper"):
        score, control = own(request, items, ranks, catalog, fidelity), request.control
        # several wishes at once, and what the released code makes of the equations, are no part of
        # the exercise
        if type(control) not in wishes or fidelity != "paper":
            return score
        category = set().union(*(catalog.members(name) for name in control.names()))
        answer = _ask(
            name,
            student,
            list(items),
            [int(rank) for rank in ranks],
            list(request.history),
            request.target,
            request.k,
            wishes[type(control)],
            category,
            getattr(control, "share", None),
        )
        return place(score, answer)

    return score_list


def _item_reward(student, own):
    def place(score, answer):
        item = _numbers("item_reward", answer, score.item.shape)
        return dataclasses.replace(score, item=item)

    return _rewards("item_reward", student, own, place)


def _list_reward(student, own):
    def place(score, answer):
        return dataclasses.replace(score, list=float(_numbers("list_reward", answer, ())))

    return _rewards("list_reward", student, own, place)


def _leave_one_out(student, own):
    def leave_one_out(rewards, groups):
        found = _ask("leave_one_out", student, rewards.tolist(), groups.tolist())
        return torch.tensor(_numbers("leave_one_out", found, tuple(rewards.shape))).to(rewards)

    return leave_one_out


def _gae(student, own):
    def gae(rewards, values, mask, gamma, lam):
        given = rewards.detach().cpu(), values.detach().cpu(), mask.detach().cpu()
        found = _ask("gae", student, *given, gamma, lam)
        found = _numbers("gae", found, tuple(rewards.shape), given[2].numpy() != 0)
        advantages = torch.tensor(found).to(rewards)
        return advantages, (advantages + values) * mask

    return gae


def _clipped_loss(student, own):
    def policy_loss(log_probs, old, advantages, mask, clip, count=None):
        with torch.no_grad():
            _, bound = own(log_probs, old, advantages, mask, clip, count)
        loss = _ask("clipped_loss", student, log_probs, old, advantages, mask, clip)
        return (loss if count is None else loss * mask.sum() / count), bound

    return policy_loss


def _allowed(student, own):
    spelled = weakref.WeakKeyDictionary()  # automaton -> tokens up to each node, each node's parent

    def allowed(state):
        if state.repeats or state.done or state.queue:  # a guess of free decoding, or no title
            return own(state)
        automaton = state.a
        if automaton not in spelled:
            spelled[automaton] = _spelled(automaton)
        tokens, parents = spelled[automaton]
        here = state.left.copy()  # titles that end at each node and may still come
        np.subtract.at(here, parents[1:], state.left[1:])
        ends = [path[-1] for path in automaton.paths[1:]]
        titles = [tokens[node] for node in ends if here[node] > 0]
        last = state.n + 1 == state.k
        end = automaton.ending[0] if last else automaton.numbers[state.n + 1][0]
        found = plain(_ask("allowed", student, list(tokens[state.node]), titles, end))
        if not found:
            raise RecnbError("the student's allowed gave no token, but an answer must go on")
        return np.array(sorted({int(token) for token in found}))

    return allowed


def _spelled(automaton):
    tokens, parents = [()] * len(automaton.children), np.zeros(len(automaton.children), dtype=int)
    for node, below in enumerate(automaton.children):  # a node's number is above its parent's
        for token, child in below.items():
            tokens[child], parents[child] = (*tokens[node], token), node
    return tokens, parents


def _ndcg(student, own):
    def accuracy(items, target, cutoffs=None):
        values = own(items, target) if cutoffs is None else own(items, target, cutoffs)
        for name in [name for name in values if name.startswith("NDCG@")]:
            k = (lists.metrics.CUTOFFS if cutoffs is None else cutoffs)[name[5:]]
            found = _ask("ndcg", student, list(items), target, k)
            values[name] = float(_numbers("ndcg", found, ()))
        return values

    return accuracy


def _holm(student, own):
    def holm(p):
        values = np.asarray(p, dtype=float)
        return _numbers("holm", _ask("holm", student, values.tolist()), values.shape)

    return holm


def _causal_mask(student, own):
    def causal_mask(real):
        found = _ask("causal_mask", student, real)
        if not isinstance(found, torch.Tensor):
            found = torch.as_tensor(np.asarray(found))
        shape = (*real.shape, real.shape[1])
        if found.shape != shape:
            raise RecnbError(
                f"the student's causal_mask gave {list(found.shape)}, {list(shape)} was expected"
            )
        return found.to(real.device, torch.bool)

    return causal_mask


ADAPTERS = {
    "causal_mask": (_causal_mask, ["recnb.teacher.sasrec:causal_mask"]),
    "label_filter": (
        _label_filter,
        ["recnb.controls:first_list", "recnb.instructions.labels:first_list"],
    ),
    "item_reward": (_item_reward, ["recnb.ppo.rewards:score_list"]),
    "list_reward": (_list_reward, ["recnb.ppo.rewards:score_list"]),
    "leave_one_out": (_leave_one_out, ["recnb.ppo.ppo_math:leave_one_out"]),
    "gae": (_gae, ["recnb.ppo.ppo_math:gae"]),
    "clipped_loss": (_clipped_loss, ["recnb.ppo.ppo_math:policy_loss"]),
    "allowed": (_allowed, ["recnb.lm.constrained:RowState.allowed"]),
    "ndcg": (_ndcg, ["recnb.evaluation.metrics:accuracy", "recnb.evaluation.protocol:accuracy"]),
    "holm": (_holm, ["recnb.evaluation.statistics:holm", "recnb.evaluation.primary:holm"]),
}
"""Each adapter, and the names under which the kit calls the function."""
assert list(ADAPTERS) == list(EXERCISES) and {e.stage for e in EXERCISES.values()} <= set(STAGES)
