"""Exercises on tensors and numbers: PPO's arithmetic, the causal mask, Holm's correction."""

from itertools import product

import numpy as np
import torch

from recnb.check import stubs
from recnb.check.compare import ANY, plain
from recnb.check.exercise import Exercise
from recnb.evaluation import statistics
from recnb.ppo import ppo_math
from recnb.teacher import sasrec

kit_gae, kit_policy_loss = ppo_math.gae, ppo_math.policy_loss
kit_leave_one_out, kit_causal_mask = ppo_math.leave_one_out, sasrec.causal_mask
kit_holm = statistics.holm
"""The kit's own, whatever stands in their place later."""


def _mask(lengths, places):
    return (torch.arange(places)[None] < torch.tensor(lengths)[:, None]).float()


def _group_cases():
    cases, rewards = [], [1.0, 4.0, 2.0, -3.0]
    for n in range(1, 5):
        for groups in product(range(3), repeat=n):
            cases.append({"rewards": rewards[:n], "groups": list(groups)})
    rng = np.random.default_rng(11)
    for n in range(5, 35):
        drawn = rng.normal(size=n).round(3).tolist()
        cases.append({"rewards": drawn, "groups": rng.integers(6, size=n).tolist()})
    return cases


leave_one_out = Exercise(
    stub=stubs.leave_one_out,
    stage="05_ppo",
    stars=1,
    minutes=10,
    hint="The mean of the others is (sum of the group - own reward) / (size of the group - 1).",
    kit=(ppo_math.leave_one_out,),
    reference=lambda rewards, groups: [
        plain(kit_leave_one_out(torch.tensor(rewards), torch.tensor(groups)))
    ],
    cases=_group_cases,
)


def _gae_cases():
    cases, rewards, values = [], [1.0, 2.0, -1.0], [0.5, 3.0, 2.0]
    for t in (1, 2, 3):
        for length, gamma, lam in product(range(t, 0, -1), (1.0, 0.5), (1.0, 0.5)):
            rows = torch.tensor([rewards[:t]]), torch.tensor([values[:t]]), _mask([length], t)
            cases.append((*rows, gamma, lam))
    generator = torch.Generator().manual_seed(12)
    rng = np.random.default_rng(12)
    for n in range(40):
        b, t = 1 + n % 4, 2 + n // 4
        rewards, values = 3 * torch.randn(2, b, t, generator=generator)
        lengths = rng.integers(1, t + 1, size=b).tolist()
        cases.append((rewards, values, _mask(lengths, t), 1 - 0.1 * (n % 3), 0.95 - 0.3 * (n % 2)))
    names = "rewards", "values", "mask", "gamma", "lam"
    return [dict(zip(names, case, strict=True)) for case in cases]


def _without_padding(value, arguments):
    table, mask = plain(value), plain(arguments["mask"])
    rows = isinstance(table, list) and all(isinstance(row, list) for row in table)
    if not rows or [len(row) for row in table] != [len(row) for row in mask]:
        return [table]
    pairs = zip(table, mask, strict=True)
    return [[[a if m else ANY for a, m in zip(*pair, strict=True)] for pair in pairs]]


def _advantages(**case):
    return _without_padding(kit_gae(**case)[0], case)


gae = Exercise(
    stub=stubs.gae,
    stage="05_ppo",
    stars=2,
    minutes=20,
    hint="Go from the last place to the first and carry two things along: the next value and the "
    "next advantage. Multiply both by the mask when you pass them on.",
    kit=(ppo_math.gae,),
    reference=_advantages,
    cases=_gae_cases,
    read=_without_padding,
)


def _loss_cases():
    cases, old = [], torch.tensor([[-1.0, -2.0, -0.5]])
    moved, advantages = torch.tensor([[0.5, -0.5, 0.1]]), torch.tensor([[1.0, -1.0, 2.0]])
    for shift, advantage in product((0.0, 0.5, -0.5), (1.0, -1.0)):
        one = old[:, :1]
        cases.append((one + shift, one, torch.tensor([[advantage]]), torch.ones(1, 1), 0.2))
    for t, sign, clip in product((2, 3), (1, -1), (0.2, 0.3)):
        for length in range(t, 0, -1):
            rows = old[:, :t] + sign * moved[:, :t], old[:, :t], advantages[:, :t]
            cases.append((*rows, _mask([length], t), clip))
    generator = torch.Generator().manual_seed(13)
    rng = np.random.default_rng(13)
    for n in range(30):
        b, t = 1 + n % 3, 2 + n // 3
        old, moved, advantages = torch.randn(3, b, t, generator=generator)
        lengths = rng.integers(1, t + 1, size=b).tolist()
        cases.append((old + 0.4 * moved, old, advantages, _mask(lengths, t), 0.2))
    names = "log_probs", "old", "advantages", "mask", "clip"
    cases = [dict(zip(names, case, strict=True)) for case in cases]
    for case in cases:
        case["log_probs"] = case["log_probs"].clone().requires_grad_()
    return cases


def _loss_and_gradient(value, arguments):
    """A loss whose gradient does not reach the model is right on paper and teaches nothing."""
    loss, gradient = plain(value), None
    if isinstance(value, torch.Tensor) and value.requires_grad and not value.ndim:
        gradient = torch.autograd.grad(value, arguments["log_probs"], allow_unused=True)[0]
    return [loss, "none" if gradient is None else plain(gradient)]


def _policy_loss(**case):
    return _loss_and_gradient(kit_policy_loss(**case)[0], case)


clipped_loss = Exercise(
    stub=stubs.clipped_loss,
    stage="05_ppo",
    stars=2,
    minutes=15,
    hint="The clip takes away the gain of a step that goes too far, never the harm: take the "
    "smaller of the two products, then the minus sign. Divide by the number of tokens, not places.",
    kit=(ppo_math.policy_loss, ppo_math.masked_mean),
    reference=_policy_loss,
    cases=_loss_cases,
    read=_loss_and_gradient,
    labels=("loss ", "gradient of log_probs "),
)


def _mask_cases():
    cases = []
    for length in range(1, 5):
        for padding in range(length + 1):
            cases.append({"real": torch.arange(length)[None] >= padding})
    rng = np.random.default_rng(14)
    for length in range(5, 9):
        padding = torch.from_numpy(rng.integers(length + 1, size=3))
        cases.append({"real": torch.arange(length)[None] >= padding[:, None]})
    return cases


causal_mask = Exercise(
    stub=stubs.causal_mask,
    stage="02_teacher",
    stars=2,
    minutes=15,
    hint="Three conditions: j <= i, j is real, or j == i. torch.tril and torch.eye make the first "
    "and the last; real[:, None, :] stretches the second over the rows.",
    kit=(sasrec.causal_mask,),
    reference=lambda real: [plain(kit_causal_mask(real))],
    cases=_mask_cases,
)


def _p_cases():
    grid = [0.01, 0.02, 0.03, 0.04, 0.3, 0.6]
    cases = [{"p": list(p)} for n in (1, 2, 3) for p in product(grid, repeat=n)]
    rng = np.random.default_rng(15)
    for n in range(4, 24):
        cases.append({"p": (rng.random(n) ** 3).round(4).tolist()})
    return cases


holm = Exercise(
    stub=stubs.holm,
    stage="06_evaluation",
    stars=2,
    minutes=15,
    hint="Sort, multiply the smallest by n, the next by n - 1 and so on, never let a value fall "
    "below the one before it, cut at 1, and put all back in their places.",
    kit=(statistics.holm,),
    reference=lambda p: [plain(kit_holm(p))],
    cases=_p_cases,
)
