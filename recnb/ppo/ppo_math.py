"""PPO's arithmetic on plain tensors: rewards, KL, whitening, advantages, losses; no trl here.

Shapes: B answers, T token places (padded on the right); ``mask`` float [B, T] is 1 on the tokens
of the answer.
"""

import re

import torch

LINE = re.compile(rb"^\s*\d+\s*[.)]\s*(.*?)\s*$")


def title_ends(pieces):
    """Token place at which each listed title ends, found in the sampled tokens themselves.

    Args:
        pieces: bytes of each token of one answer, in order. A token may hold part of a character, a
            title's end and the next line's start, or several lines.

    Returns:
        One place a numbered line with a title, in order, unfinished last line included; the same
        lines that ``recnb.lm.parsing.titles_of`` reads.
    """
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    places, start = [], 0
    for line in b"".join(pieces).split(b"\n"):
        match = LINE.match(line)
        if match and match[1]:
            last_byte = start + match.end(1) - 1
            places.append(next(i for i, end in enumerate(ends) if end > last_byte))
        start += len(line) + 1
    return places


def place_rewards(length, places, item_rewards, list_reward, last):
    """Equation 6 without its KL term: item rewards at title ends, list reward on the last token.

    Args:
        length: the number of token places, T.
        places: token places from ``title_ends``.
        item_rewards: one number a place.
        list_reward: already multiplied by its weight.
        last: place of the answer's last token.

    Returns:
        float [T].
    """
    rewards = torch.zeros(length)
    for place, reward in zip(places, item_rewards, strict=True):
        rewards[place] += float(reward)
    rewards[last] += float(list_reward)  # which may lie on a GPU, where these never do
    return rewards


def leave_one_out(rewards, groups):
    """Each reward minus the mean of the other rewards of its group.

    The mean is independent of the answer it is taken off, so the policy gradient stays unbiased;
    what all answers to a prompt have in common, its difficulty, is gone. A group of one keeps its
    reward.

    Args:
        rewards: float [B].
        groups: int [B], equal for the answers to one prompt.
    """
    same = (groups[:, None] == groups[None, :]).to(rewards.dtype)
    others = same.sum(1) - 1
    return rewards - (same @ rewards - rewards) / others.clamp(min=1)


def title_by_title(items, groups):
    """``leave_one_out`` of each title's reward among the titles in the same line.

    Args:
        items: B lists, an answer's item rewards in order.
        groups: int [B], equal for the answers to one prompt.

    Returns:
        B float tensors as long as the lists.
    """
    compared = [torch.zeros(len(rewards)) for rewards in items]
    for line in range(max(map(len, items), default=0)):
        rows = [row for row, rewards in enumerate(items) if len(rewards) > line]
        rewards = torch.tensor([float(items[row][line]) for row in rows])
        for row, reward in zip(rows, leave_one_out(rewards, groups[rows]), strict=True):
            compared[row][line] = reward
    return compared


def kl_penalty(log_probs, reference):
    """Per-token estimate of the KL of Equation 6: log pi(y_t) - log pi_SFT(y_t), [B, T]."""
    return log_probs - reference


def masked_mean(x, mask, count=None):
    """Mean of x [B, T] over the places where mask is 1.

    Args:
        count: divide by this instead of the number of places: who adds up the gradients of several
            pieces passes the number of places of all of them.
    """
    return (x * mask).sum() / (mask.sum() if count is None else count)


def whiten(x, mask, shift_mean=True):
    """x divided by its standard deviation over the masked places; padding becomes 0.

    Args:
        shift_mean: also centre it.
    """
    count = mask.sum()
    mean = (x * mask).sum() / count
    variance = (((x - mean) ** 2) * mask).sum() / count
    deviation = variance.clamp(min=1e-8).sqrt()
    return ((x - mean if shift_mean else x) / deviation) * mask


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}; after the last
    token V and A are 0.

    Args:
        rewards, values: [B, T].
        gamma, lam: discount and lambda.

    Returns:
        ``(advantages, returns)``, both [B, T], returns = advantages + values.
    """
    advantage = following = torch.zeros_like(rewards[:, 0])
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        following = values[:, t] * mask[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], 1)
    return advantages, (advantages + values) * mask


def policy_loss(log_probs, old, advantages, mask, clip, count=None):
    """Clipped surrogate: mean of max(-A r, -A clip(r, 1 - eps, 1 + eps)) with r = pi / pi_old.

    Returns:
        ``(loss, share of places where the clip binds)``.
    """
    ratio = (log_probs - old).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(plain, clipped), mask, count)
    return loss, masked_mean((clipped > plain).to(mask.dtype), mask)


def value_loss(values, old, returns, mask, clip, count=None):
    """Half the mean of max((V - R)^2, (V_clipped - R)^2); V_clipped is within ``clip`` of old."""
    near = old + (values - old).clamp(-clip, clip)
    worse = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * masked_mean(worse, mask, count)


def explained_variance(values, returns, mask):
    """1 - Var(R - V) / Var(R) over the masked places: 1 = perfect critic, 0 = like the mean."""

    def variance(x):
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)
