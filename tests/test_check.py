"""Right functions of any style are accepted, typical wrong ones shown where they differ."""

import contextlib
import inspect
import io
import json
import math
import re
import signal
import threading
import time
from collections import deque
from fractions import Fraction

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from recnb import RecnbError, artifacts, check, cli, controls
from recnb.artifacts import Stage, is_done, keep_student, open_stage, read_manifest
from recnb.check import arithmetic, compare, exercise, in_place, lists
from recnb.controls import About, AllOf, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.evaluation import metrics, primary, protocol, statistics
from recnb.evaluation.protocol import Ranker
from recnb.lm import constrained
from recnb.lm.constrained import CatalogAutomaton
from recnb.ppo import ppo_math, rewards
from recnb.profile import STAGES, load, root, save
from recnb.requests import Request, Response
from recnb.teacher import sasrec
from recnb.workflow import execute
from recnb.workflow.several import share

# ---- label_filter


def filter_greedy(ranked, inside, k, least, most):
    taken, count = [], 0
    for place, item in enumerate(ranked):
        rest = ranked[place + 1 :]
        now = count + (item in inside)
        left = k - len(taken) - 1
        rest_in = sum(other in inside for other in rest)
        low, high = max(least - now, left - (len(rest) - rest_in)), min(most - now, rest_in, left)
        if left >= 0 and max(low, 0) <= high:
            taken.append(item)
            count = now
    return taken if len(taken) == k else None


def filter_by_choosing_the_number_inside(ranked, inside, k, least, most):
    """The best list for each number inside; then the one that is first in ranked order."""
    place = {item: n for n, item in enumerate(ranked)}
    ours = [item for item in ranked if item in inside]
    others = [item for item in ranked if item not in inside]
    lists_ = []
    for n in range(least, most + 1):
        if n <= len(ours) and 0 <= k - n <= len(others):
            lists_.append(sorted([*ours[:n], *others[: k - n]], key=place.get))
    best = min(lists_, key=lambda items: [place[i] for i in items], default=None)
    return None if best is None else np.array(best)


def filter_inside_only(ranked, inside, k, least, most):
    return [item for item in ranked if item in inside][:k]


def filter_no_reserve(ranked, inside, k, least, most):
    taken, count = [], 0
    for item in ranked:
        if len(taken) < k and (item not in inside or count < most):
            taken.append(item)
            count += item in inside
    return taken if len(taken) == k and count >= least else None


def filter_inside_first(ranked, inside, k, least, most):
    found = filter_greedy(ranked, inside, k, least, most)
    return None if found is None else sorted(found, key=lambda item: item not in inside)


def filter_short_list(ranked, inside, k, least, most):
    return filter_greedy(ranked, inside, k, least, most) or ranked[:k]


# ---- rewards


def scored(items, ranks, history, target, k, wish, category, share, **bug):
    """Equations 1 to 5 with Algorithm 1; ``bug`` names what is done wrong."""
    item_rewards, starred, before, c_in, c_out = [], [], set(), 0, 0
    km = 0 if share is None else k * share
    for i, (item, rank) in enumerate(zip(items, ranks, strict=True), start=1):
        legal = item is not None and item not in before and item not in history and i <= k
        if bug.get("repeats_allowed"):
            legal = item is not None and item not in history and i <= k
        if bug.get("history_allowed"):
            legal = item is not None and item not in before and i <= k
        if bug.get("beyond_k"):
            legal = item is not None and item not in before and item not in history
        before.add(item)
        if not legal:
            item_rewards.append(-1.0)
            starred.append(-1.0 if not bug.get("illegal_free") else 0.0)
            continue
        preference = 1.0 if item == target else 1 / math.log2(rank + bug.get("rank_offset", 3))
        if bug.get("target_is_any"):
            preference = 1 / math.log2(rank + 3)
        starred.append(preference / math.log2(i + bug.get("offset", 2)))
        inside = item in category
        if not bug.get("count_late"):
            c_in, c_out = c_in + inside, c_out + (not inside)
        if wish == "none":
            control = preference
        elif wish == "include":
            control = float(inside)
        elif wish == "exclude":
            control = float(not inside)
        elif wish == "at most":
            if c_out > k - km:
                control = 0.5
            elif not inside:
                control = 1.0
            else:
                control = 0.5 if c_in < km and not bug.get("allowed_is_illegal") else 0.0
        elif wish == "at least":
            if c_in > (km if bug.get("line_17") else k):
                control = 0.5
            elif inside:
                control = 1.0
            else:
                control = 0.5 if c_out < k - km else 0.0
        elif inside:
            control = 1.0 if c_in <= km else 0.0
        elif c_in >= km:
            control = 1.0
        else:
            control = 0.5 if c_out <= k - km else 0.0
        if bug.get("count_late"):
            c_in, c_out = c_in + inside, c_out + (not inside)
        item_rewards.append(0.5 * preference + 0.5 * control)
    total = sum(starred)
    gaps = {
        "include": k - c_in,
        "exclude": k - c_out,
        "at most": c_in - km,
        "at least": km - c_in,
        "about": abs(c_in - km),
    }
    if wish == "none":
        aim = total
    else:
        aim = 1 / math.log2(max(gaps[wish], 0) + bug.get("gap_offset", 2))
        aim = 1 / (1 + float(max(gaps[wish], 0))) if bug.get("released") else aim
    return item_rewards, 0.5 * total + 0.5 * float(aim)


def item_loop(*case):
    return scored(*case)[0]


def item_arrays(items, ranks, history, target, k, wish, category, share):
    """The legal part in NumPy, Algorithm 1 as conditions that exclude each other."""
    n = len(items)
    first = [item is not None and items.index(item) == i for i, item in enumerate(items)]
    legal = np.array(first, dtype=bool) & ~np.isin([i or 0 for i in items], history)
    legal &= np.arange(n) < k
    inside = np.array([item in category for item in items], dtype=bool)
    s = 1 / np.log2(np.array(ranks, dtype=float) + 3)
    s = np.where([item == target for item in items], 1.0, s)
    c_in, c_out = np.cumsum(inside & legal), np.cumsum(~inside & legal)
    m = float(k * (share or 0))
    few = np.where(c_in < m - 1e-9, 0.5, 0.0)
    if wish == "at most":
        effect = np.where(c_out > k - m + 1e-9, 0.5, np.where(inside, few, 1.0))
    elif wish == "at least":
        effect = np.where(inside, 1.0, np.where(c_out < k - m - 1e-9, 0.5, 0.0))
    elif wish == "about":
        outside = np.where(c_in >= m - 1e-9, 1.0, np.where(c_out <= k - m + 1e-9, 0.5, 0.0))
        effect = np.where(inside, np.where(c_in <= m + 1e-9, 1.0, 0.0), outside)
    else:
        effect = {"none": s, "include": 1.0 * inside, "exclude": 1.0 * ~inside}[wish]
    return torch.tensor(np.where(legal, s + effect, -2.0) / 2)


def list_loop(*case):
    return np.float32(scored(*case)[1])


def list_arrays(items, ranks, history, target, k, wish, category, share):
    legal = [
        i < k and item is not None and item not in items[:i] + history
        for i, item in enumerate(items)
    ]
    places = np.arange(1, len(items) + 1)
    s = np.where([item == target for item in items], 1.0, 1 / np.log2(np.array(ranks) + 3.0))
    total = np.where(legal, s / np.log2(places + 2), -1.0).sum() if items else 0.0
    good = [item for item, fine in zip(items, legal, strict=True) if fine]
    c_in = len([item for item in good if item in category])
    low, high = {
        "none": (0, k),
        "include": (k, math.inf),
        "exclude": (0, 0),
        "at most": (0, k * (share or 0)),
        "at least": (k * (share or 0), k),
        "about": (k * (share or 0), k * (share or 0)),
    }[wish]
    gap = max(low - c_in, c_in - high, 0)
    if wish == "exclude":
        gap = max(k - (len(good) - c_in), 0)
    effect = total if wish == "none" else 1 / np.log2(float(gap) + 2)
    return torch.tensor((total + effect) / 2)


def buggy(part, **bug):
    return lambda *case: scored(*case, **bug)[part]


# ---- leave one out, GAE, clipped loss


def others_mean(rewards, groups):
    out = []
    for i, reward in enumerate(rewards):
        rest = [r for j, r in enumerate(rewards) if j != i and groups[j] == groups[i]]
        out.append(reward - sum(rest) / len(rest) if rest else reward)
    return out


def others_pandas(rewards, groups):
    frame = pd.DataFrame({"r": rewards, "g": groups}).groupby("g")["r"]
    n, total = frame.transform("size"), frame.transform("sum")
    r = pd.Series(rewards)
    return (r - (total - r) / (n - 1)).where(n > 1, r)


def minus_group_mean(rewards, groups):
    return [r - np.mean([a for a, h in zip(rewards, groups, strict=True) if h == g])
            for r, g in zip(rewards, groups, strict=True)]  # fmt: skip


def minus_mean_of_all_others(rewards, groups):
    return others_mean(rewards, [0] * len(rewards))


def alone_is_zero(rewards, groups):
    return [a if groups.count(g) > 1 else 0.0
            for a, g in zip(others_mean(rewards, groups), groups, strict=True)]  # fmt: skip


def gae_lists(rewards, values, mask, gamma, lam):
    table = []
    for r, v, m in zip(rewards.tolist(), values.tolist(), mask.tolist(), strict=True):
        row, a, following = [None] * len(r), 0.0, 0.0
        for t in range(int(sum(m)) - 1, -1, -1):
            a = r[t] + gamma * following - v[t] + gamma * lam * a
            row[t], following = a, v[t]
        table.append(row)
    return table


def gae_matrix(rewards, values, mask, gamma, lam):
    """A = sum over l of (gamma lambda)^l delta_{t+l}, as one matrix product."""
    r, v, m = (x.numpy() for x in (rewards, values, mask))
    following = np.pad((v * m)[:, 1:], ((0, 0), (0, 1)))
    delta = (r + gamma * following - v) * m
    t = np.arange(r.shape[1])
    ahead = t[:, None] - t[None, :]
    weights = np.where(ahead >= 0, (gamma * lam) ** np.maximum(ahead, 0), 0.0)
    return delta @ weights


def gae_buggy(lam_used=True, gamma_used=True, masked=True, carry_gamma=True, old_value=False):
    def gae(rewards, values, mask, gamma, lam):
        gamma, lam = gamma if gamma_used else 1.0, lam if lam_used else 1.0
        mask = mask if masked else torch.ones_like(mask)
        a, following, columns = 0, 0, []
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + gamma * following - values[:, t]
            a = (delta + (gamma if carry_gamma else 1.0) * lam * a) * mask[:, t]
            following = values[:, t] * mask[:, t] if not old_value else 0 * values[:, t]
            columns.insert(0, a)
        return torch.stack(columns, 1)

    return gae


def loss_with(r_of=torch.exp, worst=torch.maximum, sign=-1.0, masked=True, gradient=True):
    def loss(log_probs, old, advantages, mask, clip):
        ratio = r_of(log_probs - old)
        plain, near = sign * advantages * ratio, sign * advantages * ratio.clamp(1 - clip, 1 + clip)
        terms = worst(plain, near)
        found = (terms * mask).sum() / mask.sum() if masked else (terms * mask).mean()
        return found if gradient else found.item()

    return loss


def loss_with_where(log_probs, old, advantages, mask, clip):
    ratio = torch.exp(log_probs - old)
    far = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
    bound = torch.where(advantages > 0, 1 + clip, 1 - clip)
    chosen = torch.where(far, bound, ratio) * advantages
    return -chosen[mask.bool()].mean()


# ---- allowed, ndcg, holm, causal mask


def allowed_loop(prefix, titles, end):
    tokens = []
    for title in titles:
        if list(title[: len(prefix)]) == prefix:
            tokens.append(title[len(prefix)] if len(title) > len(prefix) else end)
    return tokens


def allowed_tree(prefix, titles, end):
    tree = {}
    for title in titles:
        node = tree
        for token in (*title, end):
            node = node.setdefault(token, {})
    for token in prefix:
        tree = tree[token]
    return np.array(list(tree))


def allowed_longest_only(prefix, titles, end):
    found = set(allowed_loop(prefix, titles, end))
    return found - {end} or found


def allowed_stops_early(prefix, titles, end):
    found = set(allowed_loop(prefix, titles, end))
    return {end} if end in found else found


def allowed_any_place(prefix, titles, end):
    n = len(prefix)
    return {title[n] if len(title) > n else end for title in titles if len(title) >= n}


def allowed_last_token_only(prefix, titles, end):
    if not prefix:
        return {title[0] for title in titles}
    pairs = [(*title, end)[i : i + 2] for title in titles for i in range(len(title))]
    return {b for a, b in pairs if a == prefix[-1]}


def ndcg_loop(items, target, k):
    for i, item in enumerate(items[:k], start=1):
        if item == target:
            return 1 / math.log2(i + 1)
    return 0


def ndcg_arrays(items, target, k):
    hits = np.array([item == target for item in items[:k]], dtype=float)
    gains = hits / np.log2(np.arange(2, len(hits) + 2))
    return gains.max()


def holm_loop(p):
    order, out, highest = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for n, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - n) * p[i]))
        out[i] = highest
    return out


def holm_pandas(p):
    series = pd.Series(p).sort_values(kind="stable")
    raised = (series * np.arange(len(p), 0, -1)).cummax().clip(upper=1)
    return raised.sort_index()


def holm_sorted_out(p):
    return sorted(holm_loop(p))


def mask_loop(real):
    b, n = real.shape
    row = range(n)
    return [[[j == i or (j < i and bool(real[x, j])) for j in row] for i in row] for x in range(b)]


def mask_where(real):
    n = real.shape[1]
    place = torch.arange(n)
    looks = (place[None, :, None] >= place[None, None, :]) * real[:, None, :].int()
    looks[:, place, place] = 1
    return looks.float()


def mask_tril(real):
    return torch.ones(len(real), *[real.shape[1]] * 2).tril().bool()


RIGHT = {
    "label_filter": [filter_greedy, filter_by_choosing_the_number_inside],
    "item_reward": [item_loop, item_arrays],
    "list_reward": [list_loop, list_arrays],
    "leave_one_out": [others_mean, others_pandas],
    "gae": [gae_lists, gae_matrix, gae_buggy()],
    "clipped_loss": [loss_with(), loss_with_where],
    "allowed": [allowed_loop, allowed_tree],
    "ndcg": [ndcg_loop, ndcg_arrays],
    "holm": [holm_loop, holm_pandas, lambda p: deque(holm_loop(p)).__iter__()],
    "causal_mask": [mask_loop, mask_where],
}
WRONG = {
    "label_filter": [
        filter_inside_only,
        filter_no_reserve,
        filter_inside_first,
        filter_short_list,
        lambda ranked, inside, k, least, most: ranked[:k],
    ],
    "item_reward": [
        buggy(0, allowed_is_illegal=True),
        buggy(0, rank_offset=2),
        buggy(0, target_is_any=True),
        buggy(0, repeats_allowed=True),
        buggy(0, history_allowed=True),
        buggy(0, beyond_k=True),
        buggy(0, count_late=True),
        buggy(0, line_17=True),
    ],
    "list_reward": [
        buggy(1, offset=1),
        buggy(1, rank_offset=2),
        buggy(1, illegal_free=True),
        buggy(1, gap_offset=1.5),
        buggy(1, released=True),
        lambda *case: 10 * scored(*case)[1],
    ],
    "leave_one_out": [minus_group_mean, minus_mean_of_all_others, alone_is_zero],
    "gae": [
        gae_buggy(masked=False),
        gae_buggy(lam_used=False),
        gae_buggy(gamma_used=False),
        gae_buggy(carry_gamma=False),
        gae_buggy(old_value=True),
        lambda *case: ppo_math.gae(*case)[1],
        lambda *case: ppo_math.gae(*case)[0].flip(1),
    ],
    "clipped_loss": [
        loss_with(worst=torch.minimum),
        loss_with(sign=1.0),
        loss_with(masked=False),
        loss_with(r_of=lambda x: 1 + x),
        loss_with(gradient=False),
        loss_with(worst=lambda plain, near: near),
        loss_with(worst=lambda plain, near: plain),
    ],
    "allowed": [
        allowed_longest_only,
        allowed_stops_early,
        allowed_any_place,
        allowed_last_token_only,
        lambda prefix, titles, end: {*allowed_loop(prefix, titles, end), end},
    ],
    "ndcg": [
        lambda items, target, k: ndcg_loop(items, target, len(items)),
        lambda items, target, k: ndcg_loop(items, target, k) * math.log(2),
        lambda items, target, k: ndcg_loop([0, *items], target, k + 1),
        lambda items, target, k: ndcg_loop([i for i in items if i], target, k),
        lambda items, target, k: ndcg_loop(items, target, k) / sum(
            1 / math.log2(i + 1) for i in range(1, k + 1)
        ),
    ],
    "holm": [
        lambda p: [min(1, len(p) * x) for x in p],
        lambda p: [min(1, x * (len(p) - sorted(p).index(x))) for x in p],
        holm_sorted_out,
        lambda p: [x * len(p) / (1 + sorted(p).index(x)) for x in p],
        lambda p: p,
    ],
    "causal_mask": [
        mask_tril,
        lambda real: mask_tril(real) & real[:, None, :],
        lambda real: mask_where(real).transpose(1, 2),
        lambda real: real[:, None, :].expand(-1, real.shape[1], -1),
    ],
}  # fmt: skip


def pairs_of(table):
    return [
        pytest.param(name, function, id=f"{name}-{n}")
        for name, functions in table.items()
        for n, function in enumerate(functions)
    ]


@pytest.mark.parametrize("name, function", pairs_of(RIGHT))
def test_right_functions_of_any_style_are_accepted(name, function, capsys):
    result = getattr(check, name)(function)
    assert result.right, result.message
    assert capsys.readouterr().out == f"{name}: right, {result.cases} cases\n"


@pytest.mark.parametrize("name, function", pairs_of(WRONG))
def test_wrong_functions_are_shown_a_case(name, function, capsys):
    result = getattr(check, name)(function)
    assert not result.right and not result.stub
    assert "expected" in result.message and "got" in result.message
    assert capsys.readouterr().out == result.message + "\n"


def test_every_exercise_is_tried():
    assert set(RIGHT) == set(WRONG) == set(check.EXERCISES) == set(in_place.ADAPTERS)
    assert all(len(RIGHT[n]) >= 2 and len(WRONG[n]) >= 3 for n in RIGHT)
    for name, one in check.EXERCISES.items():
        assert getattr(check, name) is one and name == one.name and 1 <= one.stars <= 3


def test_the_references_are_the_kits_own():
    assert arithmetic.kit_gae is ppo_math.gae and lists.score_list is rewards.score_list
    assert lists.first_list is controls.first_list and lists.accuracy is metrics.accuracy
    assert lists.next_tokens is constrained.RowState.allowed
    assert arithmetic.kit_holm is statistics.holm
    assert arithmetic.kit_causal_mask is sasrec.causal_mask
    assert check.gae(lambda *case: ppo_math.gae(*case)[0]).right
    assert check.clipped_loss(lambda *case: ppo_math.policy_loss(*case)[0]).right


def last_line(result):
    return result.message.splitlines()[-1].strip()


def test_the_smallest_case_is_the_one_shown():
    assert last_line(check.label_filter(filter_no_reserve)) == (
        "ranked [7, 1], inside {1}, k = 1, 1 inside: expected [1], got None"
    )
    assert last_line(check.gae(gae_buggy(masked=False))) == (
        "rewards = [[1, 2]], values = [[0.5, 3]], mask = [[1, 0]], gamma = 1, lam = 1: "
        "expected [[0.5, any]], got [[2.5, any]]"
    )
    assert last_line(check.item_reward(buggy(0, allowed_is_illegal=True))) == (
        "items [1], ranks [5], history [9], target 1, k = 4, at most 1/2 in {1, 3, 5, 7}: "
        "expected [0.75], got [0.5]"
    )
    assert last_line(check.holm(lambda p: [min(1, len(p) * x) for x in p])) == (
        "p = [0.01, 0.02]: expected [0.02, 0.02], got [0.02, 0.04]"
    )
    assert last_line(check.allowed(allowed_stops_early)) == (
        "prefix = [1], titles = [[1], [1, 2]], end = 0: expected {0, 2}, got {0}"
    )


def test_enumerated_cases_grow():
    """What is shown first is smallest only if the cases come in that order."""
    sizes = {
        "label_filter": lambda case: len(case["ranked"]),
        "ndcg": lambda case: len(case["items"]),
        "holm": lambda case: len(case["p"]),
        "leave_one_out": lambda case: len(case["rewards"]),
    }
    for name, size in sizes.items():
        found = [size(case) for case in check.EXERCISES[name].cases()]
        assert found == sorted(found), name


def test_no_case_stands_on_an_edge_where_right_functions_part():
    """The gradient at exactly 1 + eps is a matter of taste."""
    for case in arithmetic.clipped_loss.cases():
        ratio = (case["log_probs"] - case["old"]).exp()
        for edge in (1 - case["clip"], 1 + case["clip"]):
            assert (ratio - edge).abs().min() > 1e-4


# ---- what a function may do to the check


def shout(rewards, groups):
    print("here I am", rewards)
    return rewards[3]


def endless(rewards, groups):
    while True:
        rewards = list(rewards)


def stubborn(rewards, groups):
    while True:
        try:
            endless(rewards, groups)
        except:  # noqa: E722
            pass


def for_ever(rewards, groups):
    while True:
        yield 1.0


def leaves(rewards, groups):
    raise SystemExit("I quit")


class Speechless(Exception):
    def __str__(self):
        raise ValueError("no words")


def cannot_say(rewards, groups):
    raise Speechless


def keeps_itself(rewards, groups):
    right = others_mean(rewards, groups)
    rewards.append(rewards)
    return right


def in_place_right(rewards, groups):
    right = others_mean(rewards, groups)
    rewards[:] = right
    return rewards


@pytest.mark.parametrize(
    "function, message",
    [
        (shout, r"it raised IndexError: list index out of range, in line \d+: return rewards\[3\]"),
        (leaves, r'it raised SystemExit: I quit, in line \d+: raise SystemExit\("I quit"\)'),
        (lambda rewards: 0, r"it raised TypeError: .* \(does it take the arguments that the stub"),
        (lambda rewards, groups: None, r"expected \[1\], got None"),
        (lambda rewards, groups: "1", r"expected \[1\], got '1'"),
        (lambda rewards, groups: {0: 1.0}, r"got a value of type dict: return numbers"),
        (lambda rewards, groups: object, r"got a value of type type"),
        (lambda rewards, groups: [object()], r"got a value of type object"),
        (lambda rewards, groups: [], r"got \[\] \(1 entries expected, 0 given\)"),
        (lambda rewards, groups: [*rewards, 0], r"\(1 entries expected, 2 given\)"),
        (lambda rewards, groups: 1.0, r"expected \[1\], got 1"),
        (lambda rewards, groups: [math.nan] * len(rewards), r"expected \[1\], got \[nan\]"),
        (lambda rewards, groups: [1j], r"got a value of type complex"),
        (lambda rewards, groups: torch.ones(20_000), r"an array of 20,000 entries came back"),
        (lambda rewards, groups: [10**5000], r"got \[a huge number\]"),
        (lambda rewards, groups: [Fraction(1, 10**5000)], r"got \[0\]"),
        (keeps_itself, r"it changed its argument rewards, which was \[1\]: work on a copy"),
        (cannot_say, r"it raised Speechless, in line \d+: raise Speechless"),
        (in_place_right, r"it changed its argument rewards from \[1, 4\] to \[-3, 3\]: work on a"),
        (for_ever, r"more than 10,000 entries came back"),
        ("no function", r"a function is expected, got str"),
    ],
)
def test_nothing_ends_the_check(function, message):
    result = check.leave_one_out(function)
    assert not result.right and re.search(message, result.message), result.message
    assert "Traceback" not in result.message and "recnb/" not in result.message


def test_what_it_printed_is_shown_with_the_case_alone(capsys):
    result = check.leave_one_out(shout)
    assert result.message.endswith("it printed: here I am [1.0]")
    assert capsys.readouterr().out.count("here I am") == 1


def test_what_it_says_cannot_command_the_terminal():
    def red(rewards, groups):
        print("\x1b[2J\udc80")
        raise ValueError("\x1b[31mred")

    message = check.leave_one_out(red).message
    assert "red" in message and "\x1b" not in message and "\udc80" not in message


def test_a_stub_is_called_one():
    for name, one in check.EXERCISES.items():
        result = getattr(check, name)(one.stub)
        assert result.stub and not result.right and "not written yet" in result.message


def test_changes_of_tensors_and_sets_are_seen_too():
    def zero_padding(rewards, values, mask, gamma, lam):
        rewards *= mask
        return ppo_math.gae(rewards, values, mask, gamma, lam)[0]

    assert (
        "changed its argument rewards from [[1, 2]] to [[1, 0]]" in check.gae(zero_padding).message
    )

    def empties(ranked, inside, k, least, most):
        found = filter_greedy(ranked, inside, k, least, most)
        inside.clear()
        return found

    assert "changed its argument inside from {7} to {}" in check.label_filter(empties).message


@pytest.mark.parametrize("function", [endless, stubborn])
def test_loops_that_never_end(function, monkeypatch):
    monkeypatch.setattr(compare.attempt, "__defaults__", (0.3,))
    started, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    result = check.leave_one_out(function)
    assert "no answer within 0.3 s" in result.message and time.monotonic() - started < 20
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_of_somebody_else_goes_on():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rang.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        assert check.leave_one_out(others_mean).right
        deadline = time.monotonic() + 5
        while not rang and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rang
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_slow_is_said_to_be_slow(monkeypatch):
    monkeypatch.setattr(exercise, "CHECK_SECONDS", 0.05)

    def slow(p):
        time.sleep(0.03)
        return holm_loop(p)

    result = check.holm(slow)
    assert not result.right and "far too slow" in result.message


def test_outside_the_main_thread_the_missing_limit_is_said():
    found = []
    thread = threading.Thread(target=lambda: found.append(check.holm(holm_loop)))
    thread.start()
    thread.join()
    assert found[0].right and "no time limit could be set here" in found[0].message


def test_numbers_are_alike_within_a_tolerance_and_nan_never():
    assert compare.same([0.1 + 0.2, 3], [0.3, np.float32(3).item()])
    assert compare.same([Fraction(1, 3)], [1 / 3]) and compare.same(math.inf, math.inf)
    assert not compare.same(1.0, 1.001) and not compare.same(math.nan, math.nan)
    assert not compare.same(frozenset({1}), [1]) and not compare.same([1], "1")
    assert "0.33330" not in compare.difference("", 0.3333, 0.33333)
    assert compare.difference("", 0.33333, 0.33334) == "expected 0.33333, got 0.33334"


def test_stub_hint_and_solution(capsys):
    for name, one in check.EXERCISES.items():
        check.stub(name)
        text = capsys.readouterr().out
        assert text.startswith(f"def {name}(") and text.endswith("raise NotImplementedError\n")
        check.hint(name)
        assert f"{one.minutes} minutes" in capsys.readouterr().out
        check.solution(name)
        text = capsys.readouterr().out
        assert inspect.getsource(one.kit[0]).splitlines()[0].strip() in text
    with pytest.raises(RecnbError, match="no exercise 'gea'; there are: causal_mask"):
        check.stub("gea")


# ---- the student's function in the kit


@pytest.fixture
def process(monkeypatch):
    """A process of its own: marks that a test leaves do not reach other tests."""
    monkeypatch.setattr(artifacts, "BORROWED", {})
    monkeypatch.setattr(artifacts, "UNDO", [])
    yield
    while artifacts.UNDO:
        artifacts.UNDO.pop()()


def counted(function):
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counting, calls


CONTROLS = [NoControl(), Include("A"), Exclude("B"), AtMost("A", "1/3"), AtLeast("B", "1/2")]
CONTROLS += [About("A", "2/5"), controls.Search("B"), AllOf((AtMost("A", "1/2"), Exclude("B")))]


def test_rewards_with_a_students_functions_are_the_kits_own(process, toy, rng):
    requests = [Request(0, (6,), (6,), control, k, 1) for control in CONTROLS for k in (2, 4)]
    answers = []
    for request in requests:
        items = [int(i) or None for i in rng.integers(7, size=request.k)]
        answers.append(Response("", [], items))

    class Ranks:
        def ranks(self, seen, items):
            return [np.arange(len(row)) for row in items]

    own = rewards.batch_scores(requests, answers, Ranks(), toy)
    item, calls = counted(item_arrays)
    whole, list_calls = counted(list_arrays)
    with check.in_use(item_reward=item, list_reward=whole):
        calls.clear(), list_calls.clear()
        theirs = rewards.batch_scores(requests, answers, Ranks(), toy)
    assert len(calls) == len(list_calls) == len(requests) - 2, "AllOf stays the kit's"
    for a, b in zip(own, theirs, strict=True):
        assert np.allclose(a.item, b.item) and a.list == pytest.approx(b.list)
        assert np.array_equal(a.legal, b.legal)
    assert rewards.score_list is lists.score_list, "afterwards the kit's own is back"


def test_a_students_rewards_are_those_of_the_paper(process, toy):
    """The lesson sets the released code's beside them, which stay the kit's."""
    request = Request(0, (), (), AtMost("A", "1/3"), 3, 1)
    given = request, [3, 1, 4], [1, 0, 2], toy
    own = rewards.score_list(*given, "released")
    item, calls = counted(item_loop)
    with check.in_use(item_reward=item, list_reward=list_loop):
        calls.clear()
        assert np.array_equal(rewards.score_list(*given, "released").item, own.item) and not calls
        assert rewards.score_list(*given, "paper").list != own.list and calls
    record = {"file": "mine.py", "functions": {"gae": "05_ppo", "list_reward": "05_ppo"}}
    in_place.refuse_released(load("smoke"), record)
    released = load("smoke", {"ppo.fidelity": "released"})
    with pytest.raises(RecnbError, match="list_reward of mine.py compute the equations as printed"):
        in_place.refuse_released(released, record)
    in_place.refuse_released(released, {"file": "mine.py", "functions": {"gae": "05_ppo"}})


def test_ppo_with_a_students_functions_is_the_kits_own(process):
    torch.manual_seed(0)
    mask = (torch.arange(7)[None] < torch.tensor([7, 3, 5])[:, None]).float()
    r, v, old, moved = torch.randn(4, 3, 7)
    groups = torch.tensor([0, 0, 1])

    def all_of_it():
        advantages, returns = ppo_math.gae(r * mask, v * mask, mask, 0.9, 0.8)
        log_probs = (old + moved).requires_grad_()
        loss, bound = ppo_math.policy_loss(log_probs, old, advantages, mask, 0.2, mask.sum() / 2)
        loss.backward()
        alone = ppo_math.leave_one_out(r[:, 0], groups)
        return advantages, returns, loss.detach(), bound, log_probs.grad, alone

    own = all_of_it()
    for gae, loss, alone in zip(
        *(RIGHT[n][:2] for n in ("gae", "clipped_loss", "leave_one_out")), strict=True
    ):
        with check.in_use(gae=gae, clipped_loss=loss, leave_one_out=alone):
            assert ppo_math.gae is not arithmetic.kit_gae
            theirs = all_of_it()
        for a, b in zip(own, theirs, strict=True):
            assert a.dtype == b.dtype and torch.allclose(a, b, atol=1e-5)
    assert ppo_math.gae is arithmetic.kit_gae


@pytest.mark.parametrize("function", [allowed_loop, allowed_tree])
def test_the_automaton_with_a_students_function_is_the_kits_own(
    process, function, language_model, world, rng
):
    """Every token of random walks, with bans of items and with a wish."""
    _, codec = language_model
    catalog = world[0]
    automaton = CatalogAutomaton(codec, catalog)
    control = AtMost(catalog.names[0], "1/3")
    student, calls = counted(function)

    def start():
        return automaton.start(4, [1, 2, 5], control.needs(4, catalog))

    with check.in_use(allowed=student):
        calls.clear()
        for _ in range(3):
            state = start()
            while not state.done:
                theirs, own = state.allowed(), lists.next_tokens(state)
                assert set(theirs.tolist()) == set(own.tolist())
                state.advance(int(rng.choice(theirs)))
    assert len(calls) >= 12


def test_labels_metrics_and_masks_with_a_students_functions(process, toy, rng):
    asked = [(control, k) for control in CONTROLS for k in (1, 2, 3, 4)]
    orders = [rng.permutation(6) + 1 for _ in range(5)]
    tables = [rng.random(9) for _ in range(5)]
    real = torch.arange(5)[None] >= torch.tensor([0, 2, 4])[:, None]

    class Scorer:
        def scores(self, histories):
            return np.stack([np.array([-np.inf, 3, 1, 2, 6, 5, 4])] * len(histories))

    def all_of_it():
        labels = [c.select(order, k, toy) for order in orders for c, k in asked]
        answers = Ranker(Scorer(), toy, obey=True).recommend(
            [Request(0, (), (1,), c, k, 2) for c, k in asked]
        )
        numbers = [protocol.accuracy(a.items, 2, {"K": 3, "L": 1}) for a in answers]
        numbers += [protocol.accuracy([3, None, 2], 2)]
        corrected = [statistics.holm(pd.Series(p)) for p in tables] + [primary.holm(tables[0])]
        return labels, [a.items for a in answers], numbers, corrected, sasrec.causal_mask(real)

    own = all_of_it()
    for n in (0, 1):
        parts = {name: RIGHT[name][n] for name in ("label_filter", "ndcg", "holm", "causal_mask")}
        student, calls = counted(parts["label_filter"])
        with check.in_use(**parts | {"label_filter": student}):
            calls.clear()
            theirs = all_of_it()
        assert len(calls) == 6 * len(asked) - 6 * 4, "AllOf's two needs stay the kit's"
        assert theirs[0] == own[0] and theirs[1] == own[1] and theirs[4].equal(own[4])
        for a, b in zip(own[2], theirs[2], strict=True):
            assert a == pytest.approx(b)
        assert np.allclose(own[3][0], theirs[3][0]) and np.allclose(own[3][5], theirs[3][5])


def test_a_wrong_function_is_refused_and_nothing_is_put_in_place(process):
    with pytest.raises(RecnbError, match="gae: not right yet. Case"):
        with check.in_use(leave_one_out=others_mean, gae=gae_buggy(lam_used=False)):
            raise AssertionError("it was let in")
    assert ppo_math.leave_one_out is arithmetic.kit_leave_one_out and not artifacts.BORROWED
    with pytest.raises(RecnbError, match="no exercise 'gea'"), check.in_use(gea=others_mean):
        raise AssertionError("it was let in")


def test_errors_in_a_stage_are_told_as_the_students(process, monkeypatch):
    monkeypatch.setattr(in_place, "refuse_wrong", lambda name, function: None)
    rewards_, groups = torch.ones(2), torch.zeros(2, dtype=torch.int)
    bad = [
        (shout, r"the student's leave_one_out: it raised IndexError.*in line"),
        (lambda rewards, groups: None, "gave no numbers|no finite ones"),
        (lambda rewards, groups: [math.nan, 1], "no finite ones"),
        (lambda rewards, groups: [1], r"of shape \[1\]"),
    ]
    for function, message in bad:
        with check.in_use(leave_one_out=function), pytest.raises(RecnbError, match=message):
            ppo_math.leave_one_out(rewards_, groups)


# ---- a run with a student's file

SOLUTIONS = """
def leave_one_out(rewards, groups):
    out = []
    for i, (r, g) in enumerate(zip(rewards, groups)):
        rest = [q for j, q in enumerate(rewards) if groups[j] == g and j != i]
        out.append(r - sum(rest) / len(rest) if rest else r)
    return out


def gae(rewards, values, mask, gamma, lam):
    raise NotImplementedError
"""
WRONG_SOLUTIONS = SOLUTIONS.replace(" and j != i", "")


@pytest.fixture
def solutions(tmp_path):
    path = tmp_path / "solutions.py"
    path.write_text(SOLUTIONS)
    return path


def test_a_file_is_read_and_checked(solutions, capsys):
    source, record = in_place.student_functions(solutions)
    assert source == SOLUTIONS.encode() and record["functions"] == {"leave_one_out": "05_ppo"}
    assert record["sha256"] == artifacts.sha256(solutions) and record["file"] == "solutions.py"
    shown = capsys.readouterr().out
    assert "leave_one_out: right" in shown and "gae: still the stub, the kit's own is used" in shown


@pytest.mark.parametrize(
    "text, message",
    [
        (WRONG_SOLUTIONS, r"solutions.py, line 2: leave_one_out: not right yet"),
        ("def gae(:\n", r"solutions.py: it raised SyntaxError: .*line 1"),
        (
            "import math\n1 / 0\n",
            r"it raised ZeroDivisionError: division by zero, in line 2: 1 / 0",
        ),
        ("exit(3)\n", r"it raised (SystemExit|NameError)"),
        ("def gea():\n    pass\n", "defines none of the functions that a run can use"),
        ("gae = 3\n", "defines none of the functions"),
        ("\n\ndef gea():\n    pass\n", r"It defines gea, line 3$"),
        ("\0\n", "solutions.py: it raised SyntaxError"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "solutions.py"
    path.write_text(text)
    with pytest.raises(RecnbError) as caught:
        in_place.student_functions(path)
    assert re.search(message, str(caught.value)), str(caught.value)
    with pytest.raises(RecnbError, match="cannot be read"):
        in_place.student_functions(tmp_path / "nothing.py")


def test_the_command_refuses_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "solutions.py"
    path.write_text(WRONG_SOLUTIONS)
    with pytest.raises(RecnbError, match="The run was not started"):
        cli.run(["smoke"], run_name="mine", student=str(path))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def run(tmp_path, monkeypatch, process):
    """A run "mine" as the kit's own, all stages done."""
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path))
    for stage in STAGES:
        open_stage(stage, "smoke", "mine").finish()
    return tmp_path / "mine"


def test_a_students_run_is_marked_from_the_stage_that_calls_it(run, solutions, smoke):
    keep_student(run, in_place.student_functions(solutions))
    done = [stage for stage in STAGES if is_done(smoke, stage, run)]
    assert done == STAGES[:4], "the first stages call nothing of it and stay"
    assert open_stage("04_sft", "smoke", "mine").finish()["warnings"] == []
    assert ppo_math.leave_one_out is arithmetic.kit_leave_one_out
    manifest = open_stage("05_ppo", "smoke", "mine").finish()
    assert ppo_math.leave_one_out is not arithmetic.kit_leave_one_out
    digest = artifacts.sha256(solutions)
    assert manifest["knobs"]["student"] == {"sha256": digest, "functions": ["leave_one_out"]}
    assert manifest["fingerprint"] != artifacts.fingerprint(smoke, "05_ppo")
    [warning] = manifest["warnings"]
    assert warning.startswith("made with a student's leave_one_out in place of the kit's own (")
    assert warning.endswith(f"(solutions.py, sha256 {digest[:12]})")
    assert is_done(smoke, "05_ppo", run) and not is_done(smoke, "06_evaluation", run)
    after = open_stage("06_evaluation", "smoke", "mine").finish()
    assert after["knobs"]["student"]["sha256"] == digest and is_done(smoke, "06_evaluation", run)
    keep_student(run, None)  # the next start asks for no student
    assert not is_done(smoke, "05_ppo", run) and not (run / "student.py").exists()
    with pytest.raises(
        RecnbError, match="05_ppo was made with a student's functions: run notebook"
    ):
        Stage("07_case_studies", smoke, run).input("05_ppo", "nothing")
    open_stage("04_sft", "smoke", "mine")
    assert ppo_math.leave_one_out is arithmetic.kit_leave_one_out, "the next stage has the kit's"


def test_neither_run_takes_the_others_stages(run, solutions, smoke, capsys):
    keep_student(run, in_place.student_functions(solutions))
    open_stage("05_ppo", "smoke", "mine").finish()
    share(smoke, run.parent / "kit")
    shared = [stage for stage in STAGES if (run.parent / "kit" / stage).exists()]
    assert shared == STAGES[:4]
    other = run.parent / "other"
    open_stage("01_data", "smoke", "other").finish()
    record = {"file": "b.py", "sha256": "1", "functions": {"leave_one_out": "05_ppo"}}
    keep_student(other, (b"#", record))
    share(smoke, other)
    assert [stage for stage in STAGES if (other / stage).exists()] == STAGES[:4]
    keep_student(other, in_place.student_functions(solutions))
    share(smoke, other)
    assert (other / "05_ppo").exists() and not (other / "06_evaluation").exists()


def test_checkpoints_and_answers_of_a_student_have_names_of_their_own(run, solutions, smoke):
    names = [artifacts.fingerprint(smoke, "05_ppo")[:12]]
    assert Stage("05_ppo", smoke, run).key == names[0]
    for text in (SOLUTIONS, SOLUTIONS + "#"):
        solutions.write_text(text)
        keep_student(run, in_place.student_functions(solutions))
        names.append(Stage("05_ppo", smoke, run).key)
        assert Stage("04_sft", smoke, run).key == artifacts.fingerprint(smoke, "04_sft")[:12]
    with check.in_use(leave_one_out=others_mean):
        names.append(Stage("05_ppo", smoke, run).key)
    assert len(set(names)) == 4


def test_what_a_notebook_borrows_is_marked(run, smoke):
    stage = open_stage("05_ppo", "smoke", "mine")
    with check.in_use(leave_one_out=others_mean):
        pass
    assert list(stage.finish()["knobs"]["student"]["notebook"]) == ["leave_one_out"]
    assert not is_done(smoke, "05_ppo", run) and not is_done(smoke, "06_evaluation", run)
    assert read_manifest(run / "05_ppo", "05_ppo")["knobs"]["student"]


def test_a_stage_refuses_a_file_that_was_changed_or_became_wrong(run, solutions):
    keep_student(run, in_place.student_functions(solutions))
    (run / "student.py").write_text(SOLUTIONS + "#")
    with pytest.raises(RecnbError, match="missing or was changed: start the run again with --stud"):
        open_stage("05_ppo", "smoke", "mine")
    source, record = in_place.student_functions(solutions)
    (run / "student.py").write_text(WRONG_SOLUTIONS)
    record["sha256"] = artifacts.sha256(run / "student.py")
    (run / "student.json").write_text(json.dumps(record))
    with pytest.raises(RecnbError, match="leave_one_out: not right yet"):
        open_stage("05_ppo", "smoke", "mine")
    assert ppo_math.leave_one_out is arithmetic.kit_leave_one_out
    for text in ("{", "[]", '{"functions": {"gae": "x"}, "sha256": "1"}', '{"functions": 3}'):
        (run / "student.json").write_text(text)
        with pytest.raises(RecnbError, match="student.json is damaged"):
            open_stage("05_ppo", "smoke", "mine")


def test_nothing_of_a_students_is_imported_unasked(run):
    (run / "student.py").write_text("raise AssertionError('imported')\n")
    open_stage("05_ppo", "smoke", "mine").finish()


def test_a_notebook_run_by_papermill_has_the_students_function(
    tmp_path, monkeypatch, smoke, solutions
):
    monkeypatch.setenv("RECNB_RUNS", str(tmp_path))
    monkeypatch.setattr(execute, "root", lambda: tmp_path)
    save(smoke, tmp_path / "profile.yaml")
    keep_student(tmp_path / "mine", in_place.student_functions(solutions))
    cells = [
        'profile = "smoke"\nrun = "smoke"\noverrides = {}',
        "from recnb.artifacts import open_stage\n"
        'stage = open_stage("05_ppo", profile, run, overrides)\n'
        "from recnb.ppo import ppo_math\n"
        'stage.finish({"called": ppo_math.leave_one_out.__module__})',
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(book, tmp_path / "notebooks" / "05_ppo.ipynb")
    monkeypatch.setenv("PYTHONPATH", str(root()))
    monkeypatch.setattr(execute, "is_done", lambda *arguments: True)  # no earlier stages here
    execute.execute("05_ppo", tmp_path / "profile.yaml", tmp_path / "mine")
    manifest = read_manifest(tmp_path / "mine" / "05_ppo", "05_ppo")
    assert manifest["numbers"] == {"called": "recnb.check.in_place"}
    assert manifest["knobs"]["student"]["functions"] == ["leave_one_out"]


# ---- the page


def test_the_pages_session_prints_what_it_says(process):
    text = (root() / "docs" / "build_it_yourself.md").read_text()
    blocks = re.findall(r"```(python|text)\n(.*?)```", text, re.S)
    names, said = {}, None
    outputs = 0
    for kind, block in blocks:
        if kind == "text":
            assert said == block
            outputs += 1
            continue
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(block, names)
        said = shown.getvalue()
    assert outputs >= 3


def test_the_pages_table_is_the_packages():
    text = (root() / "docs" / "build_it_yourself.md").read_text()
    rows = re.findall(r"\| `(\w+)` \| \[(\w+)\]\(.*?\) \| (★+) \| (\d+) \|", text)
    expected = [(n, e.stage, "★" * e.stars, str(e.minutes)) for n, e in check.EXERCISES.items()]
    assert rows == expected
