"""One solution of every exercise, for the teacher's copies: plain functions, no word of the kit.

The grader compares with the kit's own functions where the kit has them, and with these elsewhere.
"""

import math
from collections import Counter
from fractions import Fraction

import torch


def core(pairs, k):
    while True:
        users = Counter(user for user, _ in pairs)
        items = Counter(item for _, item in pairs)
        left = [(u, i) for u, i in pairs if users[u] >= k and items[i] >= k]
        if len(left) == len(pairs):
            return left
        pairs = left


def future_share(times, test):
    return sum(time > times[test] for time in times) / (len(times) - 1)


def last_chance(times, place):
    if times[place] != max(times):
        return 0.0
    return 1 / times.count(times[place])


def ndcg(items, target, k):
    if target not in items[:k]:
        return 0.0
    return 1 / math.log2(items.index(target) + 2)


def causal_mask(real):
    length = real.shape[1]
    before = torch.tril(torch.ones(length, length, dtype=torch.bool))
    return before & real[:, None, :] | torch.eye(length, dtype=torch.bool)


def smoothed(counts, popularity, weight):
    everything, seen = sum(popularity), sum(counts)
    pairs = zip(counts, popularity, strict=True)
    return [(c + weight * q / everything) / (seen + weight) for c, q in pairs]


def label_filter(ranked, inside, k, least, most):
    taken, count = [], 0
    for place, item in enumerate(ranked):
        if len(taken) == k:
            break
        rest = ranked[place + 1 :]
        rest_inside = sum(other in inside for other in rest)
        now, left = count + (item in inside), k - len(taken) - 1
        fewest = max(least - now, left - (len(rest) - rest_inside), 0)
        if fewest <= min(most - now, rest_inside, left):
            taken.append(item)
            count = now
    return taken if len(taken) == k else None


def miss(k, share):
    exact = k * share
    return abs(exact - math.floor(exact + Fraction(1, 2)))


def bounds(wish, share, k):
    if wish == "include":
        return k, k
    if wish == "exclude":
        return 0, 0
    if wish == "at most":
        return 0, math.floor(k * share)
    if wish == "at least":
        return math.ceil(k * share), k
    nearest = math.floor(k * share + Fraction(1, 2))
    return nearest, nearest


def loss_mask(question, answer):
    return [False] * len(question) + [True] * len(answer)


def slope(p, early):
    m = sum(a * b for a, b in zip(p, early, strict=True))
    return [a * (b - m) / (1 - m) for a, b in zip(p, early, strict=True)]


def title_loss(p, early, target, weight):
    m = sum(a * b for a, b in zip(p, early, strict=True))
    return -math.log(p[target]) - weight * math.log(1 - m)


def arrival(steps, values, part):
    first, last = values[0], values[-1]
    for step, value in zip(steps, values, strict=True):
        if (value - first) / (last - first) >= part:
            return step


def item_reward(items, ranks, history, target, k, wish, category, share):
    scores, before, c_in, c_out = [], set(), 0, 0
    km = 0 if share is None else k * share
    for i, item in enumerate(items):
        if item is None or item in before or item in history or i >= k:
            scores.append(-1.0)
            continue
        before.add(item)
        inside = item in category
        c_in, c_out = c_in + inside, c_out + (not inside)
        preference = 1.0 if item == target else 1 / math.log2(ranks[i] + 3)
        if wish == "none":
            control = preference
        elif wish in ("include", "exclude"):
            control = float(inside == (wish == "include"))
        elif wish == "at most":
            if c_out > k - km:
                control = 0.5
            else:
                control = 1.0 if not inside else 0.5 if c_in < km else 0.0
        elif wish == "at least":
            if c_in > k:
                control = 0.5
            else:
                control = 1.0 if inside else 0.5 if c_out < k - km else 0.0
        elif inside:
            control = 1.0 if c_in <= km else 0.0
        else:
            control = 1.0 if c_in >= km else 0.5 if c_out <= k - km else 0.0
        scores.append(0.5 * preference + 0.5 * control)
    return scores


def list_reward(items, ranks, history, target, k, wish, category, share):
    total, before, c_in, c_out = 0.0, set(), 0, 0
    for i, item in enumerate(items):
        if item is None or item in before or item in history or i >= k:
            total -= 1
            continue
        before.add(item)
        c_in, c_out = c_in + (item in category), c_out + (item not in category)
        preference = 1.0 if item == target else 1 / math.log2(ranks[i] + 3)
        total += preference / math.log2(i + 3)
    if wish == "none":
        return total
    km = 0 if share is None else k * share
    gaps = {
        "include": k - c_in,
        "exclude": k - c_out,
        "at most": c_in - km,
        "at least": km - c_in,
        "about": abs(c_in - km),
    }
    return 0.5 * total + 0.5 / math.log2(max(gaps[wish], 0) + 2)


def gae(rewards, values, mask, gamma, lam):
    advantages = torch.zeros_like(rewards)
    value, advantage = torch.zeros(len(rewards)), torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * value - values[:, t]
        advantages[:, t] = delta + gamma * lam * advantage
        value, advantage = values[:, t] * mask[:, t], advantages[:, t] * mask[:, t]
    return advantages


def leave_one_out(rewards, groups):
    advantages = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if groups[j] == groups[i] and j != i]
        advantages.append(reward - sum(others) / len(others) if others else reward)
    return advantages


def clipped_loss(log_probs, old, advantages, mask, clip):
    ratio = torch.exp(log_probs - old)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(advantages * ratio, advantages * clipped)
    return -(gain * mask).sum() / mask.sum()


def allowed(prefix, titles, end):
    prefix, found = tuple(prefix), set()
    for title in titles:
        if title[: len(prefix)] == prefix:
            found.add(end if len(title) == len(prefix) else title[len(prefix)])
    return found


def holm(p):
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, (len(p) - rank) * p[place])
        corrected[place] = min(highest, 1.0)
    return corrected


def strict(items, k, history, inside, least, most):
    legal = len(items) == k and None not in items and len(set(items)) == k
    legal = legal and not set(items) & set(history)
    return float(legal and least <= sum(item in inside for item in items) <= most)


def most_share(size, seen, k):
    return min(size - seen, k) / k


def failing(answers, categories, excluded):
    wrong = [categories[i] for items in answers for i in items if excluded in categories[i]]
    others = [names for names in categories if excluded in names]
    return [sum(map(len, sets)) / len(sets) if sets else None for sets in (wrong, others)]


def two_wishes(items, first, second, share, k):
    nearest = math.floor(k * share + Fraction(1, 2))
    return sum(i in first for i in items) - nearest, sum(i in second for i in items)


def auc(labels, scores):
    likes = [s for label, s in zip(labels, scores, strict=True) if label]
    dislikes = [s for label, s in zip(labels, scores, strict=True) if not label]
    above = sum((a > b) + 0.5 * (a == b) for a in likes for b in dislikes)
    return above / (len(likes) * len(dislikes))


def two_errors(values, positive, negative):
    n, mean = len(values), sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return deviation / math.sqrt(n), math.sqrt((1 / positive + 1 / negative) / 12)


def answer_share(prompts, answers, on_inputs):
    trained = sum(answers) + (sum(prompts) if on_inputs else 0)
    return sum(answers) / trained


def no_idea(n, bound):
    little = 1 / (2 * bound)
    return [little] + [(1 - little) / (n - 1)] * (n - 1), 0


def forgot(names, log_probs, base):
    perplexity = {}
    for name, row in zip(names, log_probs, strict=True):
        perplexity[name] = math.exp(-sum(row) / len(row))
    ratios = [(name, perplexity[name] / perplexity[base]) for name in names if name != base]
    return sorted(ratios, key=lambda pair: -pair[1])


def guessing(right, n, choices):
    q = 1 / choices
    return right / n, (right / n - q) / math.sqrt(q * (1 - q) / n)
