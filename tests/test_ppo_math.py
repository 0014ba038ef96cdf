import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recnb.lm.parsing import titles_of
from recnb.ppo import ppo_math

# b"\xc3" and b"\xa9" are the two halves of é
PARTS = [b"1. ", b"\n2. ", b"\n", b"3", b". ", b"a", b" b", b" ", b"\xc3", b"\xa9", b"x\n4. y"]
PIECES = st.lists(st.sampled_from(PARTS), max_size=14)


@given(PIECES)
def test_title_ends_finds_the_lines_that_parsing_reads(pieces):
    ends = ppo_math.title_ends(pieces)
    text = b"".join(pieces).decode("utf-8", errors="replace")
    assert len(ends) == len(titles_of(text))
    for end, title in zip(ends, titles_of(text), strict=True):
        upto = b"".join(pieces[: end + 1]).decode("utf-8", errors="replace")
        assert title.rstrip("\ufffd") in upto
    assert ends == sorted(ends)


def test_title_ends_by_hand():
    assert ppo_math.title_ends([b"1. ", b"He", b"at", b"\n2. ", b"Babe", b""]) == [2, 4]
    assert ppo_math.title_ends([b"Sure!\n1. A\n2. B", b"\n"]) == [0, 0]
    for pieces in ([b"hello"], [], [b"1. "]):
        assert ppo_math.title_ends(pieces) == []


def test_place_rewards():
    assert ppo_math.place_rewards(5, [1, 3], [0.5, -1.0], 2.0, 4).tolist() == [0, 0.5, 0, -1, 2]
    assert ppo_math.place_rewards(3, [2], [0.5], 2.0, 2).tolist() == [0, 0, 2.5]

    class OnAGpu:
        def __float__(self):
            return 2.0

    assert ppo_math.place_rewards(3, [], [], OnAGpu(), 2).tolist() == [0, 0, 2]


def random_case(seed):
    generator = torch.Generator().manual_seed(seed)
    b, t = 4, 7
    lengths = torch.randint(1, t + 1, (b,), generator=generator)
    mask = (torch.arange(t) < lengths[:, None]).double()
    tensors = [torch.randn(b, t, generator=generator, dtype=torch.float64) for _ in range(4)]
    return mask, [x * mask for x in tensors]


@given(st.integers(0, 10**6))
def test_gae_by_brute_force(seed):
    mask, (rewards, values, *_) = random_case(seed)
    gamma, lam = 0.97, 0.9
    advantages, returns = ppo_math.gae(rewards, values, mask, gamma, lam)
    for b in range(len(mask)):
        n = int(mask[b].sum())
        r, v = rewards[b, :n].tolist(), [*values[b, :n].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        expected = [sum((gamma * lam) ** (j - t) * delta[j] for j in range(t, n)) for t in range(n)]
        assert torch.allclose(advantages[b, :n], torch.tensor(expected, dtype=torch.float64))
        assert advantages[b, n:].eq(0).all()
    assert torch.allclose(returns, (advantages + values) * mask)


@given(st.integers(0, 10**6))
def test_losses_and_whitening_by_brute_force(seed):
    mask, (new, old, advantages, values) = random_case(seed)
    kept = [x[mask.bool()].tolist() for x in (new, old, advantages, values)]
    flat = list(zip(*kept, strict=True))
    clip, e = 0.2, 2.718281828459045
    terms = []
    for n, o, a, _ in flat:
        ratio = e ** (n - o)
        terms.append(max(-a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip)))
    found = ppo_math.policy_loss(new, old, advantages, mask, clip)[0].item()
    assert abs(found - sum(terms) / len(terms)) < 1e-9
    terms = []
    for _, o, a, v in flat:
        clipped = o + min(max(v - o, -clip), clip)
        terms.append(0.5 * max((v - a) ** 2, (clipped - a) ** 2))
    found = ppo_math.value_loss(values, old, advantages, mask, clip).item()
    assert abs(found - sum(terms) / len(terms)) < 1e-9
    if len(flat) > 1:
        white = ppo_math.whiten(new, mask)[mask.bool()]
        assert abs(white.mean()) < 1e-9 and abs((white**2).mean().sqrt() - 1) < 1e-6
        scaled = ppo_math.whiten(new, mask, shift_mean=False)[mask.bool()]
        assert torch.allclose(scaled - scaled.mean(), white)


def test_explained_variance():
    mask, (returns, *_) = random_case(1)
    assert ppo_math.explained_variance(returns, returns, mask) == 1
    assert abs(ppo_math.explained_variance(torch.zeros_like(returns), returns, mask)) < 1e-9


def test_leave_one_out_takes_the_others_mean_off(rng):
    rewards = torch.from_numpy(rng.normal(size=7)).float()
    groups = torch.tensor([3, 3, 3, 9, 9, 4, 3])
    found = ppo_math.leave_one_out(rewards, groups)
    for i in range(7):
        others = [rewards[j] for j in range(7) if groups[j] == groups[i] and j != i]
        expected = rewards[i] - sum(others) / len(others) if others else rewards[i]
        assert found[i] == pytest.approx(float(expected), abs=1e-6)


def test_titles_are_compared_with_those_in_the_same_line(rng):
    items = [rng.normal(size=n) for n in (3, 2, 4, 0, 1, 3)]
    groups = torch.tensor([5, 5, 5, 5, 8, 8])
    found = ppo_math.title_by_title(items, groups)
    for i, rewards in enumerate(items):
        assert len(found[i]) == len(rewards)
        for line, reward in enumerate(rewards):
            others = [
                items[j][line]
                for j in range(6)
                if j != i and groups[j] == groups[i] and len(items[j]) > line
            ]
            expected = reward - sum(others) / len(others) if others else reward
            assert found[i][line] == pytest.approx(expected, abs=1e-6)
