import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recnb.controls import About, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.ppo.rewards import batch_scores, legal_items, score_list
from recnb.requests import Request, Response
from tests.test_controls import CONTROLS, WORLD

LISTS = st.lists(st.one_of(st.none(), st.integers(1, 20)), max_size=12)


def brute_force(request, items, ranks):
    """Equations 1 to 5 and Algorithm 1, line by line as printed."""
    scores, ctl, star, seen, c_in, c_out, k = [], [], [], [], 0, 0, request.k
    c, m = request.control, float(getattr(request.control, "share", 0))
    for i, item in enumerate(items, start=1):
        if item is None or item in seen or item in request.history or i > k:
            scores.append(-1.0), ctl.append(-1.0), star.append(-1.0)
            seen.append(item)
            continue
        seen.append(item)
        scores.append(1.0 if item == request.target else 1 / math.log2(ranks[i - 1] + 3))
        star.append(scores[-1] / math.log2(i + 2))
        inn = int(item % 3 == 0 and item <= 18)
        out = 1 - inn
        c_in, c_out = c_in + inn, c_out + out
        eps = 1e-9
        if isinstance(c, NoControl):
            s = scores[-1]
        elif isinstance(c, Include):
            s = inn
        elif isinstance(c, Exclude):
            s = out
        elif isinstance(c, AtMost):
            if c_out > k - k * m + eps:
                s = 0.5
            elif out:
                s = 1.0
            else:
                s = 0.5 if c_in < k * m - eps else 0.0
        elif isinstance(c, AtLeast):
            if c_in > k:
                s = 0.5
            elif inn:
                s = 1.0
            else:
                s = 0.5 if c_out < k - k * m - eps else 0.0
        elif inn:
            s = 1.0 if c_in <= k * m + eps else 0.0
        elif c_in >= k * m - eps:
            s = 1.0
        else:
            s = 0.5 if c_out <= k - k * m + eps else 0.0
        ctl.append(float(s))
    over = c_in - k * m
    gap = {NoControl: 0, AtMost: max(over, 0), AtLeast: max(-over, 0), About: abs(over)}
    if isinstance(c, NoControl):
        aim = sum(star)
    elif isinstance(c, Include):
        aim = 1 / math.log2(k - c_in + 2)
    elif isinstance(c, Exclude):
        aim = 1 / math.log2(k - c_out + 2)
    else:
        aim = 1 / math.log2(gap[type(c)] + 2)
    item = [0.5 * a + 0.5 * b for a, b in zip(scores, ctl, strict=True)]
    return scores, ctl, item, 0.5 * sum(star) + 0.5 * aim


@given(
    CONTROLS,
    LISTS,
    st.integers(1, 10),
    st.integers(1, 20),
    st.lists(st.integers(1, 20), max_size=4),
    st.integers(0, 99),
)
def test_equations_by_brute_force(control, items, k, target, history, seed):
    ranks = np.random.default_rng(seed).integers(20, size=len(items))
    request = Request(0, tuple(history), tuple(history), control, k, target)
    found = score_list(request, items, ranks, WORLD)
    scores, ctl, item, total = brute_force(request, items, ranks)
    assert np.allclose(found.preference, scores)
    assert np.allclose(found.control, ctl)
    assert np.allclose(found.item, item)
    assert found.list == pytest.approx(total)


@given(CONTROLS, LISTS.filter(len), st.integers(1, 10), st.sampled_from(["paper", "released"]))
def test_an_illegal_item_never_pays(control, items, k, fidelity):
    request = Request(0, (), (), control, k, 1)
    ranks = np.zeros(len(items), dtype=int)
    before = score_list(request, items, ranks, WORLD, fidelity)
    assert np.all(before.item[~before.legal] == -1)
    assert np.all(before.item[before.legal] >= 0)


@given(
    CONTROLS.filter(lambda c: not isinstance(c, NoControl)),
    st.permutations(range(1, 21)),
    st.integers(1, 10),
)
def test_an_obeying_list_scores_the_controls_maximum(control, ranked, k):
    chosen = control.select(ranked, k, WORLD)
    if chosen and not (isinstance(control, About) and (k * control.share).denominator > 1):
        assert control.list_score(chosen, k, WORLD, 0.0) == pytest.approx(1.0)


def test_released_reading_without_a_target_finds_none_among_missing_titles(toy):
    request = Request(0, (), (), NoControl(), 2, None)
    with_gap = score_list(request, [None, 3], [0, 1], toy, "released")
    without = score_list(request, [3], [1], toy, "released")
    assert with_gap.list < without.list, "a title that does not exist is no hit"


def test_released_reading_by_hand(toy):
    request = Request(0, (), (), Include("A"), 2, 1)
    score = score_list(request, [1, 3], [0, 1], toy, "released")
    ideal = 1 + 1 / math.log2(3) ** 2
    total = (1 / 1 + 0.5 / math.log2(3)) / ideal
    assert score.list == pytest.approx(0.5 * total + 0.5 * (1 / 2))
    plain = score_list(Request(0, (), (), NoControl(), 2, 3), [1, 3], [0, 1], toy, "released")
    total = (1 / math.log2(3) + 1 / math.log2(3)) / ideal
    assert plain.list == pytest.approx(0.5 * total + 0.5 / math.log2(3))
    half = Request(0, (), (), AtLeast("A", "1/2"), 2, 1)
    many = score_list(half, [1, 2], [0, 1], toy, "released")
    assert many.control.tolist() == [1.0, 0.5]


def test_what_the_prompt_does_not_show_is_legal():
    request = Request(0, (2,), (1, 2), NoControl(), 3, 3)
    assert legal_items(request, [1, 2, 3, 3]).tolist() == [True, False, True, False]


def test_batch_equals_single(world, teacher, rng):
    catalog, histories = world
    seen = [tuple(histories.items[u][:3]) for u in range(5)]
    requests = [Request(u, own, own, NoControl(), 4, 7) for u, own in enumerate(seen)]
    drawn = [rng.integers(1, len(catalog), size=5).tolist() for _ in requests]
    answers = [Response("", [], items) for items in drawn]
    scores = batch_scores(requests, answers, teacher, catalog)
    for request, answer, found in zip(requests, answers, scores, strict=True):
        rank = teacher.ranks([request.seen], [answer.items])[0]
        alone = score_list(request, answer.items, rank, catalog)
        assert np.allclose(found.item, alone.item, atol=1e-6)


def test_what_the_prompt_hides_may_get_the_last_rank(world, teacher):
    catalog, histories = world
    seen = tuple(int(i) for i in histories.items[0][:6])
    fresh = next(i for i in range(1, len(catalog)) if i not in seen)
    request = Request(0, seen[-2:], seen, NoControl(), 3, None)
    answer = Response("", [], [seen[0], fresh, seen[-1]])
    raw = batch_scores([request], [answer], teacher, catalog)[0]
    last = batch_scores([request], [answer], teacher, catalog, hidden_seen="last")[0]
    lowest = 1 / math.log2(len(catalog) - len(seen) - 1 + 3)
    assert last.preference[0] == pytest.approx(lowest) and raw.preference[0] >= lowest
    assert last.preference[1:].tolist() == raw.preference[1:].tolist()
    assert last.preference[2] == -1, "what the prompt shows stays illegal"
