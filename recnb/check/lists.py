"""Exercises about lists of items: labels, rewards, the automaton, NDCG."""

from fractions import Fraction
from functools import lru_cache
from itertools import combinations, product

import numpy as np

from recnb import controls
from recnb.catalog import Catalog
from recnb.check import stubs
from recnb.check.compare import Unfit, plain, shown
from recnb.check.exercise import Exercise
from recnb.evaluation import metrics
from recnb.lm import constrained
from recnb.ppo import rewards
from recnb.requests import Request

first_list, score_list, accuracy = controls.first_list, rewards.score_list, metrics.accuracy
next_tokens = constrained.RowState.allowed
"""The kit's own, whatever stands in their place later."""
WISHES = {
    "none": controls.NoControl,
    "include": controls.Include,
    "exclude": controls.Exclude,
    "at most": controls.AtMost,
    "at least": controls.AtLeast,
    "about": controls.About,
}


def _label_cases():
    cases = []
    for n in range(1, 5):
        for k in range(1, n + 2 if n < 3 else n + 1):
            bounds = [(low, high) for high in range(k + 1) for low in range(high + 1)]
            for pattern, (least, most) in product(product((False, True), repeat=n), bounds):
                ranked = [7, 1, 3, 9][:n]
                inside = {item for item, lies in zip(ranked, pattern, strict=True) if lies}
                cases.append((ranked, inside, k, least, most))
    rng = np.random.default_rng(1)
    for n in range(5, 45):
        ranked = (rng.permutation(60)[:n] + 1).tolist()
        inside = set(rng.choice(60, 20, replace=False).tolist())
        k = int(rng.integers(1, min(n, 10) + 1))
        least, most = sorted(rng.integers(0, k + 1, size=2).tolist())
        cases.append((ranked, inside, k, least, most))
    names = "ranked", "inside", "k", "least", "most"
    return [dict(zip(names, case, strict=True)) for case in cases]


def _labels(ranked, inside, k, least, most):
    members = np.zeros(max(*ranked, *inside, 0) + 1, dtype=bool)
    members[list(inside)] = True
    return [first_list(np.array(ranked), k, [(members, least, most)])]


def _label_words(arguments):
    ranked, inside, k, least, most = arguments.values()
    bounds = f"{least}" if least == most else f"{least} to {most}"
    return f"ranked {shown(ranked)}, inside {shown(plain(inside))}, k = {k}, {bounds} inside"


label_filter = Exercise(
    stub=stubs.label_filter,
    stage="03_instructions",
    stars=2,
    minutes=25,
    hint="Go through ranked once, and count what you took inside and outside. Take an item only if "
    "the list can still be ended after it: how many must still come from inside, how many may, and "
    "how many items of either kind are left?",
    kit=(controls.first_list, controls.can_end, controls.taken),
    reference=_labels,
    cases=_label_cases,
    words=_label_words,
)


INSIDE = frozenset((1, 3, 5, 7))
RANKS = {1: 5, 2: 0, 3: 4, None: 0}


def _answers():
    """Items, ranks and k of small answers: 1 is the target, 9 stands in the history."""
    answers = []
    for n in (1, 2):
        for k, items in product((1, 2, 4), product((1, 2, 3, 9, None), repeat=n)):
            answers.append((list(items), k))
    for n in (3, 4):
        for pattern in product((0, 1), repeat=n):
            answers.append(([2 * place + 2 - lies for place, lies in enumerate(pattern)], n))
    return [(items, [RANKS.get(item, 1) for item in items], k) for items, k in answers]


def _reward_cases():
    shares = [(wish, Fraction(1, part)) for wish in list(WISHES)[3:] for part in (2, 3)]
    wishes = [(wish, None) for wish in list(WISHES)[:3]] + shares
    cases = []
    for (items, ranks, k), (wish, share) in product(_answers(), wishes):
        category = set() if wish == "none" else set(INSIDE)
        cases.append((items, ranks, [9], 1, k, wish, category, share))
    for wish, share in wishes:  # an answer without a list
        cases.append(([], [], [9], 1, 2, wish, set() if wish == "none" else {1}, share))
    rng = np.random.default_rng(2)
    for n in range(150):
        wish, k = list(WISHES)[n % 6], int(rng.integers(1, 11))
        items = [int(i) or None for i in rng.integers(20, size=rng.integers(1, 3 + n // 12))]
        share = Fraction(int(rng.integers(11)), 10) if n % 6 > 2 else None
        ranks, history = rng.integers(19, size=len(items)).tolist(), rng.integers(1, 20, size=3)
        category = set() if wish == "none" else set(rng.integers(1, 20, size=8).tolist())
        case = items, ranks, history.tolist(), int(rng.integers(1, 20)), k, wish, category, share
        cases.append(case)
    names = "items", "ranks", "history", "target", "k", "wish", "category", "share"
    return [dict(zip(names, case, strict=True)) for case in cases]


@lru_cache(maxsize=256)
def _catalog(category):
    """Items 1 to 20, those of ``category`` in "it"."""
    names = [{"it"} if item in category else {"other"} for item in range(1, 21)]
    return Catalog([f"title {item}" for item in range(1, 21)], names)


def _score(items, ranks, history, target, k, wish, category, share):
    parts = [] if wish == "none" else ["it"] if share is None else ["it", share]
    request = Request(0, tuple(history), tuple(history), WISHES[wish](*parts), k, target)
    return score_list(request, items, ranks, _catalog(frozenset(category)))


def _reward_words(arguments):
    items, ranks, history, target, k, wish, category, share = arguments.values()
    share = "" if share is None else f"{share} in "
    wish = "no wish" if wish == "none" else f"{wish} {share}{shown(plain(category))}"
    return (
        f"items {shown(items)}, ranks {shown(ranks)}, history {shown(history)}, target {target}, "
        f"k = {k}, {wish}"
    )


item_reward = Exercise(
    stub=stubs.item_reward,
    stage="05_ppo",
    stars=2,
    minutes=30,
    hint="First mark the legal items; then walk over them with two counters. Test the lines of "
    "Algorithm 1 in the order in which they stand, and keep k * share a Fraction.",
    kit=(rewards.score_list, rewards.legal_items, *list(WISHES.values())[1:]),
    reference=lambda **case: [plain(_score(**case).item)],
    cases=_reward_cases,
    words=_reward_words,
)
list_reward = Exercise(
    stub=stubs.list_reward,
    stage="05_ppo",
    stars=2,
    minutes=25,
    hint="Illegal items cost -1 each in the sum, but count neither inside nor outside. The first "
    "item is divided by log2(3).",
    kit=(rewards.score_list, controls.Control.list_score, *list(WISHES.values())[1:]),
    reference=lambda **case: [_score(**case).list],
    cases=_reward_cases,
    words=_reward_words,
)


class _Letters:
    """A tokenizer for small titles: a to z are the tokens 1 to 26."""

    name_or_path = "letters"

    def __call__(self, text, add_special_tokens=False):
        rows = [self(line)["input_ids"] for line in text] if isinstance(text, list) else None
        letters = [ord(c) - 96 if c.islower() else 1000 + ord(c) for c in text if rows is None]
        return {"input_ids": letters if rows is None else rows}


class _LetterCodec:
    tokenizer, eos, ending = _Letters(), 0, [0]


def _title_cases():
    known = [(1,), (1, 2), (1, 2, 3), (2,), (2, 1), (3, 1)]
    groups = [list(group) for size in (1, 2, 3) for group in combinations(known, size)]
    rng = np.random.default_rng(3)
    for size in range(4, 34):
        drawn = {tuple(rng.integers(1, 5, size=rng.integers(1, 6)).tolist()) for _ in range(size)}
        groups.append(sorted(drawn))
    cases = []
    for titles in groups:
        beginnings = {title[:n] for title in titles for n in range(len(title) + 1)}
        for prefix in sorted(beginnings, key=lambda tokens: (len(tokens), tokens)):
            cases.append({"prefix": list(prefix), "titles": titles, "end": 0})
    return cases


@lru_cache(maxsize=256)
def _automaton(titles):
    texts = ["".join(chr(96 + token) for token in title) for title in titles]
    # One more title, banned: without it all could begin alike, which the automaton takes as given.
    return constrained.CatalogAutomaton(
        _LetterCodec(), Catalog([*texts, "zz"], [{"it"}] * (len(texts) + 1))
    )


def _next(prefix, titles, end):
    state = _automaton(tuple(titles)).start(1, [len(titles) + 1])
    while state.queue:
        state.advance(state.queue[0])
    for token in prefix:
        state.advance(token)
    return [frozenset(next_tokens(state).tolist())]


def _as_set(value, arguments):
    answer = plain(value)
    if isinstance(answer, list) and not any(isinstance(token, list) for token in answer):
        answer = frozenset(answer)
    if not isinstance(answer, frozenset):
        raise Unfit(f"got {shown(answer)}: return a set or a list of token ids")
    return [answer]


allowed = Exercise(
    stub=stubs.allowed,
    stage="06_evaluation",
    stars=2,
    minutes=15,
    hint="Look at every title that begins with the prefix: either it goes on, or it ends here. "
    "Both can be true of two titles at once.",
    kit=(constrained.RowState.allowed,),
    reference=_next,
    cases=_title_cases,
    read=_as_set,
)


def _ndcg_cases():
    cases = []
    for n, k in product((1, 2, 3), (1, 2, 3)):
        for items in product((5, 1, None), repeat=n):
            cases.append({"items": list(items), "target": 5, "k": k})
    rng = np.random.default_rng(4)
    for n in range(4, 24):
        cases.append({"items": rng.permutation(n).tolist(), "target": n // 3, "k": 10})
    return cases


ndcg = Exercise(
    stub=stubs.ndcg,
    stage="06_evaluation",
    stars=1,
    minutes=10,
    hint="The place in the whole list counts, unknown titles included. The logarithm has base 2.",
    kit=(metrics.accuracy,),
    reference=lambda items, target, k: [accuracy(items, target, {"K": k})["NDCG@K"]],
    cases=_ndcg_cases,
)
