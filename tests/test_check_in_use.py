"""Right functions in the kit's place give what the kit gives; what else is borrowed comes back.

What is right and wrong, and what a function may do to its check, stands in ``test_check.py``.
"""

import inspect
import itertools
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recnb import RecnbError, artifacts, check, controls
from recnb.artifacts import STUDENT_FILE, STUDENT_RECORD, is_done, student_of
from recnb.catalog import Catalog
from recnb.check import in_place
from recnb.evaluation import statistics
from recnb.lm.constrained import CatalogAutomaton, RowState
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.ppo import ppo_math
from recnb.profile import root
from recnb.workflow import launch
from tests import test_check
from tests.test_check import (
    allowed_loop,
    filter_greedy,
    gae_buggy,
    gae_lists,
    gae_matrix,
    holm_loop,
    item_loop,
    list_loop,
    loss_with,
    mask_loop,
    ndcg_loop,
    others_mean,
)

KINDS = [
    list,
    tuple,
    iter,
    np.array,
    torch.tensor,
    pd.Series,
    lambda x: np.array(x, dtype=np.float32),
    lambda x: torch.tensor(x, requires_grad=True),
    lambda x: [np.float64(one) for one in x],
    lambda x: [torch.tensor(one) for one in x],
    lambda x: [Fraction(one) for one in x],
]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_kind_are_taken(kind):
    assert check.holm(lambda p: kind(holm_loop(p))).right


def test_item_ids_of_any_kind_are_taken():
    def filtered(kind, *case):
        found = filter_greedy(*case)
        return None if found is None else kind(found)

    for kind in (np.array, torch.tensor, lambda ids: [np.int64(one) for one in ids]):
        assert check.label_filter(partial(filtered, kind)).right
    for kind in (set, frozenset, np.array, lambda ids: {np.int32(one) for one in ids}):
        assert check.allowed(lambda *case, kind=kind: kind(allowed_loop(*case))).right


KNOWN = {
    "causal_mask": mask_loop,
    "label_filter": filter_greedy,
    "item_reward": item_loop,
    "list_reward": list_loop,
    "leave_one_out": others_mean,
    "gae": gae_lists,
    "clipped_loss": loss_with(),
    "allowed": allowed_loop,
    "ndcg": ndcg_loop,
    "holm": holm_loop,
}


@pytest.fixture(autouse=True)
def nothing_borrowed(monkeypatch):
    monkeypatch.setattr(artifacts, "BORROWED", {})
    yield
    while artifacts.UNDO:
        artifacts.UNDO.pop()()


def place(path):
    module, _, attribute = path.partition(":")
    owner = import_module(module)
    for part in attribute.split("."):
        owner = getattr(owner, part)
    return owner


PLACES = [path for _, paths in in_place.ADAPTERS.values() for path in paths]


def test_every_module_that_has_a_function_gets_the_students():
    """But the checks themselves, and what draws a lesson with the kit's own."""
    for file in (root() / "recnb").rglob("*.py"):
        import_module(".".join(file.relative_to(root()).with_suffix("").parts))
    kits = {id(place(path)) for path in PLACES}
    for name, module in list(sys.modules.items()):
        if not name.startswith("recnb.") or name.startswith(("recnb.check", "recnb.lesson")):
            continue
        for attribute, value in list(vars(module).items()):
            if id(value) in kits:
                assert f"{name}:{attribute}" in PLACES


def test_the_kits_own_come_back():
    own = [place(path) for path in PLACES]
    with check.in_use(**KNOWN):
        assert all(place(path) is not one for path, one in zip(PLACES, own, strict=True))
    assert [place(path) for path in PLACES] == own
    with pytest.raises(KeyError), check.in_use(**KNOWN):
        raise KeyError
    assert [place(path) for path in PLACES] == own
    with check.in_use(gae=gae_lists), check.in_use(gae=gae_matrix, holm=holm_loop):
        pass
    assert [place(path) for path in PLACES] == own


@pytest.mark.parametrize("gae", [gae_lists, gae_matrix, gae_buggy()])
def test_advantages_equal_the_kits_own(gae):
    cases = check.gae.cases()
    expected = [ppo_math.gae(**case) for case in cases]
    with check.in_use(gae=gae):
        found = [ppo_math.gae(**case) for case in cases]
    for (a, a_returns), (b, b_returns) in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-5)
        assert torch.allclose(a_returns, b_returns, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    rows, padded = torch.randn(2, 128, 200, generator=generator), torch.ones(128, 200)
    padded[:, 150:] = 0  # more numbers than a check takes from a function
    expected = ppo_math.gae(rows[0], rows[1], padded, 1.0, 0.9)
    with check.in_use(gae=gae):
        found = ppo_math.gae(rows[0], rows[1], padded, 1.0, 0.9)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))


def test_the_rest_of_ppos_arithmetic_equals_the_kits_own():
    groups, drawn = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0.3, -1, 2, 0.5, -0.7, 1])
    case = check.clipped_loss.cases()[-1]
    loss, titles = ppo_math.policy_loss(**case, count=7.0), [[1.0, 2.0], [0.5], [3.0]] * 2
    expected = ppo_math.leave_one_out(drawn, groups), ppo_math.title_by_title(titles, groups)
    slope = torch.autograd.grad(loss[0], case["log_probs"])[0]
    with check.in_use(leave_one_out=others_mean, clipped_loss=loss_with()):
        assert torch.allclose(ppo_math.leave_one_out(drawn, groups), expected[0])
        found = ppo_math.title_by_title(titles, groups)
        again = ppo_math.policy_loss(**case, count=7.0)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected[1], strict=True))
    assert torch.allclose(again[0], loss[0]) and torch.equal(again[1], loss[1])
    assert torch.allclose(torch.autograd.grad(again[0], case["log_probs"])[0], slope)


@pytest.mark.parametrize("whole", [True, False])
def test_the_automaton_allows_what_the_kits_own_does(whole, rng):
    titles = ["a", "a b", "a b c", "d", "d e", "f", "g h", "g i"]
    catalog = Catalog(titles, [{"AB"[i % 2]} for i in range(len(titles))])
    automaton = CatalogAutomaton(Codec(build_tokenizer(catalog, [], 320, whole)), catalog)
    starts = [
        (k, banned, () if control is None else control.needs(k, catalog))
        for k in (1, 2, 3)
        for banned in ([], [1], [2, 5])
        for control in (None, controls.Include("A"), controls.AtMost("A", "1/3"))
    ]
    own, paths = RowState.allowed, 0
    with check.in_use(allowed=allowed_loop):
        assert RowState.allowed is not own
        for start, _ in itertools.product(starts, range(4)):
            state = automaton.start(*start)
            while not state.done:
                found = state.allowed()
                assert sorted(found.tolist()) == sorted(set(own(state).tolist()))
                paths += len(found) > 1
                state.advance(int(rng.choice(found)))
    assert paths > 100


def test_numbers_that_fit_nowhere_are_refused_in_use():
    def later_wrong(answer):
        def holm(p):
            return holm_loop(p) if len(p) < 30 else answer

        return holm

    for answer in ([0.1], [math.nan] * 30, ["a"] * 30, None, object()):
        with (
            check.in_use(holm=later_wrong(answer)),
            pytest.raises(RecnbError, match="the student's holm gave"),
        ):
            statistics.holm(np.full(30, 0.1))


GAE = """import torch


def gae(rewards, values, mask, gamma, lam):
    advantage = following = torch.zeros_like(rewards[:, 0])
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        following = values[:, t] * mask[:, t]
        columns.insert(0, advantage)
    return torch.stack(columns, 1)
"""


def file_of(folder, text):
    path = folder / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_of_stubs_alone_is_told_so(tmp_path):
    stub = inspect.getsource(check.EXERCISES["gae"].stub)
    with pytest.raises(RecnbError, match="every function in it is still a stub"):
        in_place.student_functions(file_of(tmp_path, stub))


DAMAGED = ["", "{", "[]", "3", "{}", '{"functions": {}, "sha256": ""}', '{"functions": ["gae"]}']
DAMAGED += ['{"functions": {"gae": []}, "sha256": "a"}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_named(tmp_path, text, smoke):
    (tmp_path / STUDENT_RECORD).write_text(text)
    with pytest.raises(RecnbError, match=f"{STUDENT_RECORD} is damaged .* start the run again"):
        student_of(tmp_path)
    assert not is_done(smoke, "01_data", tmp_path)


def test_a_start_keeps_the_file_and_the_next_takes_it_away(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path))
    built = in_place.student_functions(file_of(tmp_path, GAE))
    found, run = [], tmp_path / "run"
    monkeypatch.setattr(launch, "_snakemake", lambda *_: found.append(student_of(run)))
    launch.run_profile(smoke, run, "01_data", built)
    launch.run_profile(smoke, run, "01_data")
    assert found == [built[1], None] and not (run / STUDENT_FILE).exists()


@pytest.mark.nightly
def test_a_run_with_right_functions_gives_the_same_tables(tmp_path):
    parts = [inspect.getsource(one) for one in (test_check.scored, item_loop, allowed_loop)]
    names = "item_reward = item_loop\nallowed = allowed_loop\n"
    path = file_of(tmp_path, "\n\n".join(["import math", GAE, *parts, names]))
    tables = []
    for run, more in (("own", []), ("built", ["--student", str(path)])):
        command = [sys.executable, "-m", "recnb.cli", "run", "smoke", "--run", run, *more]
        environment = os.environ | {"RECNB_RUNS": str(tmp_path / "runs")}
        done = subprocess.run(command, cwd=root(), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        tables.append(pd.read_csv(Path(tmp_path, "runs", run, "tables", "metrics.csv")))
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)
    made = json.loads((tmp_path / "runs" / "built" / "05_ppo" / "manifest.json").read_text())
    assert made["knobs"]["student"]["functions"] == ["gae", "item_reward"]
