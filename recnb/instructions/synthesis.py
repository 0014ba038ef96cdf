"""Making the instruction set: counts of Table 8, samples of training histories, a Parquet file."""

import json
from itertools import repeat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recnb import RecnbError
from recnb.artifacts import atomic_path
from recnb.controls import About, AllOf, Exclude, Include, NoControl, Search
from recnb.instructions.chat_mix import conversations
from recnb.instructions.labels import (
    draw_control,
    draw_k,
    frequent_other_category,
    label_list,
    ranked_items,
    released_sample,
)
from recnb.instructions.templates import draw_aside, numbered, render
from recnb.requests import Request
from recnb.teacher.ranking import scored, unseen

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("user", pa.int32()),
        ("k", pa.int32()),
        ("control", pa.string()),
        ("history", pa.list_(pa.int32())),
        ("seen", pa.list_(pa.int32())),
        ("target", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("prompt", pa.string()),
        ("completion", pa.string()),
    ]
)
ATTEMPTS = 1000
"""A sample that has no legal list is drawn again, at most this often: where one draw in fifty has
one, the chance of none is 2e-9."""


def table8(knobs, users, items):
    """How many samples of each task: Table 8's rule, or the profile's numbers.

    Args:
        knobs: the ``instructions`` section of a profile.
        users: number of users (one I0, I1 and I2 sample each, unless the profile says more).
        items: number of items (one I3 sample each).
    """
    sequential, category = knobs.sequential or users, knobs.category or users
    proportion, search = knobs.proportion or users, knobs.search or items
    released = knobs.fidelity == "released"  # that code never teaches "about"
    part = proportion // (2 if released else 3)
    about = 0 if released else proportion - 2 * part
    counts = {
        "I0": sequential,
        "I1+": category - category // 2,
        "I1-": category // 2,
        "I2<=": proportion - part - about,
        "I2>=": part,
        "I2~": about,
        "I3": search,
    }
    for number, pair in enumerate(knobs.pair_kinds if knobs.pairs else []):
        counts[pair] = len(range(number, knobs.pairs, len(knobs.pair_kinds)))
    total = sum(counts.values())
    return counts | {"I4": round(total * knobs.chat_share / (1 - knobs.chat_share))}


def synthesize(histories, catalog, teacher, knobs, data_knobs, seed, batch=512):
    """Yield the samples of the training set in random order, as dicts of ``SCHEMA``."""
    rng = np.random.default_rng([seed, 103])
    counts = table8(knobs, len(histories), len(catalog))
    tasks = np.repeat(list(counts), list(counts.values()))
    rng.shuffle(tasks)
    users = np.array(histories.training_users())
    if knobs.k_max > len(catalog):
        raise RecnbError(
            f"instructions.k_max ({knobs.k_max}) is larger than the catalogue "
            f"({len(catalog)} items): lower it"
        )
    talk = []
    if counts["I4"]:
        talk = conversations(data_knobs.dataset, knobs.chat_words, counts["I4"], rng)
        if not talk:
            raise RecnbError(
                f"no conversation has at most {knobs.chat_words} words (instructions.chat_words): "
                "raise it, or set instructions.chat_share to 0"
            )
    chat = _endless(talk)
    places = scored_places(histories, users, teacher, rng, data_knobs.latest_share, batch)
    for task in tasks:
        if task == "I4":
            yield _chat_sample(*next(chat))
        elif task == "I3":
            yield _search_sample(catalog, knobs, rng)
        else:
            yield _history_sample(task, places, histories, catalog, knobs, data_knobs, rng)


def scored_places(histories, users, teacher, rng, latest_share, batch=512):
    """Endless (user, place of the target in the training part, the teacher's scores there)."""
    while True:
        chosen = rng.choice(users, size=batch).tolist()
        places = [histories.draw_target(user, latest_share, rng) for user in chosen]
        before = [histories.train(u)[:place] for u, place in zip(chosen, places, strict=True)]
        yield from zip(chosen, places, teacher.scores(before), strict=True)


def _endless(pairs):
    while pairs:
        yield from pairs


def _history_sample(task, places, histories, catalog, knobs, data_knobs, rng):
    draw = released_sample if knobs.fidelity == "released" else _sample
    for _, (user, position, score) in zip(range(ATTEMPTS), places, strict=False):
        train = histories.train(user)
        seen, target = train[:position], int(train[position])
        drawn = draw(task, score, seen, target, knobs, catalog, rng)
        if not drawn:
            continue
        control, k, labels = drawn
        history, candidates = seen[-data_knobs.history_length :].tolist(), None
        if task in ("I0", "I1+", "I1-") and rng.random() < knobs.candidate_share:
            others = unseen([seen], len(catalog))[0]
            candidates = _candidates(labels, others, knobs.candidates, rng)
        aside = None
        if knobs.asides and task != "I0" and rng.random() < knobs.asides:
            aside = draw_aside(control, catalog, rng)
        prompt = render(control, history, k, catalog, rng, candidates, knobs.wordings, aside)
        return _row(task, user, k, control, history, seen.tolist(), target, labels, prompt, catalog)
    raise RecnbError(_no_list(task, 0, ATTEMPTS, catalog, knobs))


def _no_list(task, posed, draws, catalog, knobs):
    """Why a task can hardly be posed: which categories are small or large beside the lists."""
    found = f"task {task} had a legal label list in {posed} of {draws} draws"
    if len(catalog.names) < 2 and task in ("I1-", "I2<="):
        return (
            f"{found}: it names a category that the target lacks, and the catalogue has one "
            f"category ({catalog.names[0]}); give its items finer categories"
        )
    sizes = sorted((len(catalog.members(name)), name) for name in catalog.names)
    (least, smallest), (most, largest) = sizes[0], sizes[-1]
    bare = sum(not names for names in catalog.categories[1:])
    return (
        f"{found}: lists ask for up to {knobs.k_max} unseen items (instructions.k_max); of "
        f"{len(catalog)} items {least} are of the smallest category ({smallest}), {most} of the "
        f"largest ({largest}) and {bare} of none; lower instructions.k_max, or join small "
        "categories and divide large ones"
    )


def rehearse(histories, catalog, teacher, knobs, data_knobs, seed, draws=200):
    """Which tasks cannot be posed, tried out before anything is trained.

    Args:
        teacher: has ``scores(histories)``; the order of its lists matters little, how many items
            are unseen in which category decides.
        draws: tries for each task, at most; one that succeeds in less than a fiftieth of them is
            named.

    Returns:
        A list of sentences, one a task.
    """
    rng, found = np.random.default_rng([seed, 120]), []
    counts = table8(knobs, len(histories), len(catalog))
    draw = released_sample if knobs.fidelity == "released" else _sample
    users = histories.training_users()
    places = scored_places(histories, users, teacher, rng, data_knobs.latest_share, batch=50)
    for task in [task for task in counts if counts[task] and task not in ("I3", "I4")]:
        posed = 0
        for _, (user, place, score) in zip(range(draws), places, strict=False):
            seen, target = histories.train(user)[:place], int(histories.train(user)[place])
            posed += draw(task, score, seen, target, knobs, catalog, rng) is not None
            if posed >= draws / 50:
                break
        else:
            found.append(_no_list(task, posed, draws, catalog, knobs))
    return found


def _sample(task, score, seen, target, knobs, catalog, rng):
    """Control, k and label list as section 2.2 has them; None if this sample has none."""
    ranked = ranked_items(score, seen, target)
    control = draw_control(task, ranked, target, catalog, rng)
    k = draw_k(knobs, rng)
    labels = label_list(control, ranked, k, knobs, catalog) if control else None
    return (control, k, labels) if labels else None


def _search_sample(catalog, knobs, rng):
    for _ in range(ATTEMPTS):
        name = str(rng.choice(catalog.names))
        positive = rng.random() < 0.5
        control = Search(name) if positive else Exclude(name)
        inside = catalog.mask(name)
        outside = ~inside
        outside[0] = False  # padding is no item
        right, wrong = (inside, outside) if positive else (outside, inside)
        pool = np.flatnonzero(right)
        k = 1 if knobs.fidelity == "released" else draw_k(knobs, rng)
        if len(pool) < k:
            continue
        labels = [int(i) for i in rng.choice(pool, size=k, replace=False)]
        candidates = None
        if rng.random() < knobs.candidate_share:
            candidates = _candidates(labels, wrong, knobs.candidates, rng)
        prompt = render(control, [], k, catalog, rng, candidates, knobs.wordings)
        return _row("I3", -1, k, control, [], [], -1, labels, prompt, catalog)
    raise RecnbError(_no_list("I3", 0, ATTEMPTS, catalog, knobs))


def _candidates(labels, allowed, size, rng):
    """The labels and random others of ``allowed``, bool [N+1], shuffled."""
    allowed = allowed.copy()
    allowed[labels] = False
    others = np.flatnonzero(allowed)
    missing = min(len(others), max(size - len(labels), 0))
    fill = rng.choice(others, size=missing, replace=False).tolist()
    return rng.permutation(labels + fill).astype(int).tolist()


def _row(task, user, k, control, history, seen, target, labels, prompt, catalog):
    return {
        "task": task,
        "user": user,
        "k": k,
        "control": json.dumps(control.to_json()),
        "history": history,
        "seen": seen,
        "target": target,
        "labels": labels,
        "prompt": prompt,
        "completion": numbered(labels, catalog),
    }


def _chat_sample(prompt, answer):
    return {
        "task": "I4",
        "user": -1,
        "k": 0,
        "control": "",
        "history": [],
        "seen": [],
        "target": -1,
        "labels": [],
        "prompt": prompt,
        "completion": answer,
    }


def write(samples, path, chunk=4096):
    """Stream samples to Parquet, atomically; returns the number of each task."""
    counts = {}
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        rows = []
        for row in samples:
            counts[row["task"]] = counts.get(row["task"], 0) + 1
            rows.append(row)
            if len(rows) == chunk:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return counts


def heldout_requests(parts, users, split, histories, catalog, teacher, data_knobs, seed, k=10):
    """Requests about held-out targets, as 3.2 sets them up.

    Args:
        parts: list of pairs ``(category -> Control, "target" or "other")``, none for plain
            requests. "target" draws a category of the target, "other" takes the most frequent one
            in the teacher's list that the target lacks. Several parts (Table 7) name different
            categories and become one ``AllOf``.
        users: ids of the users asked for.
        split: "test" or "validation".
        k: a number, or a sequence with one a user.

    Returns:
        List of ``Request``; users who give too few categories are left out.
    """
    histories_seen = [histories.seen(u, split) for u in users]
    scores = repeat(None, len(users))
    if any(category_of == "other" for _, category_of in parts):
        scores = scored(teacher, histories_seen, len(catalog))
    requests = []
    for row, (user, score) in enumerate(zip(users, scores, strict=True)):
        rng = np.random.default_rng([seed, 104, int(user)])
        seen, target = histories_seen[row], histories.target(user, split)
        names = []
        for _, category_of in parts:
            if category_of == "target":
                own = sorted(catalog.categories[target] - set(names))
                names.append(str(rng.choice(own)) if own else None)
            else:
                best = ranked_items(score, seen, None)[:10]
                names.append(frequent_other_category(best, target, catalog, rng, set(names)))
        if None in names:
            continue
        controls = [make(name) for (make, _), name in zip(parts, names, strict=True)]
        controls = controls or [NoControl()]
        control = AllOf(controls) if len(controls) > 1 else controls[0]
        wanted = int(k if np.isscalar(k) else k[row])
        requests.append(request_of(histories, data_knobs, user, split, control, wanted))
    return requests


def request_of(histories, data_knobs, user, split, control, k):
    """The ``Request`` for a user's held-out target."""
    seen = tuple(int(i) for i in histories.seen(user, split))
    history, target = seen[-data_knobs.history_length :], histories.target(user, split)
    return Request(int(user), history, seen, control, k, target)


def validation_samples(histories, catalog, teacher, knobs, data_knobs, seed):
    """The four validation tasks of 3.1.1 (I0, I1+, I1-, about 50 %), labelled, k = 10."""
    rng = np.random.default_rng([seed, 105])
    size = min(knobs.validation_users, len(histories))
    users = sorted(rng.choice(len(histories), size=size, replace=False).tolist())
    kinds = {
        "I0": [],
        "I1+": [(Include, "target")],
        "I1-": [(Exclude, "other")],
        "I2~": [(_about_half, "target")],
    }
    for task, parts in kinds.items():
        requests = heldout_requests(
            parts, users, "validation", histories, catalog, teacher, data_knobs, seed
        )
        scores = scored(teacher, [r.seen for r in requests], len(catalog))
        for r, score in zip(requests, scores, strict=True):
            ranked = ranked_items(score, r.seen, r.target)
            labels = label_list(r.control, ranked, r.k, knobs, catalog)
            if labels:
                history, seen = list(r.history), list(r.seen)
                prompt = render(r.control, r.history, r.k, catalog, rng)
                yield _row(
                    task, r.user, r.k, r.control, history, seen, r.target, labels, prompt, catalog
                )


def _about_half(name):
    return About(name, "1/2")
