"""What is wrong, and what is suspicious, in people's own tables: before anything is computed."""

import json
from pathlib import Path

import pandas as pd

from recnb import RecnbError
from recnb.catalog import LONGEST_TITLE, clean_title, shorten
from recnb.datasets import kept, merged, numbered
from recnb.datasets.prepare import broken_off
from recnb.datasets.tabular import load, shown
from recnb.instructions.synthesis import rehearse, validation_samples
from recnb.teacher.popularity import Popularity
from recnb.text_safety import visible

LEAST_USERS = 10
"""Users left after filtering: below, no interval over users says anything."""
LEAST_CATEGORIES = 2
"""A wish against a category needs another one to choose from."""
EVALUATED = 10
"""Titles that a validation or test request asks for."""
NEARLY_ALL, HARDLY_ANY = 0.9, 3
"""A category of more than this share, or of fewer than so many items, makes a poor wish."""


def before_run(profile):
    """Check a tabular profile's data; print what is suspicious.

    Raises:
        RecnbError: what would make a stage fail, all of it, one problem a line.
    """
    if profile.data.dataset != "tabular":
        return
    problems, warnings = check(profile)
    if problems:
        raise RecnbError("\n".join(["the data cannot be used:", *problems]))
    for sentence in warnings:
        print(f"warning: {visible(sentence)}")


def warnings_of(profile):
    """What is suspicious in a tabular profile's data; nothing for the kit's own datasets."""
    return check(profile)[1] if profile.data.dataset == "tabular" else []


def check(profile):
    """All problems and warnings of a profile's tables.

    Returns:
        ``(problems, warnings)``, two lists of sentences.
    """
    data = profile.data
    tables = load(data)
    tables.notes += _broken_off(Path(data.path))
    if tables.problems or tables.items is None or tables.log is None:
        return tables.problems, tables.notes
    items, log = tables.items, tables.log
    if data.merge_titles:
        items, log = merged(items, log)
    left, events, problem = _filtered(items, log, data.k_core)
    if problem:
        return [problem], tables.notes
    problems = _limits(profile, left, events)
    if not problems:
        catalog, histories = numbered(left, events)
        problems = _tasks(profile, catalog, histories)
        tables.notes += _requests(profile, catalog, histories)
    warnings = [*tables.notes, *_titles(items), *_categories(items, left, data)]
    warnings += [*_times(log, events), *_removed(items, log, left, events, data.k_core)]
    return problems, warnings + _ratings(log, profile.tallrec)


def _broken_off(folder):
    """Warnings about raw files that broke off when ``recnb prepare`` read them."""
    try:
        return broken_off(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # tables of one's own have no manifest, or another one


def _filtered(items, log, k):
    """What is left to learn from, with numbers for ids: strings would take twice the time."""
    numbers = pd.Index(items["item"]).get_indexer(log["item"])
    log = log.assign(user=pd.factorize(log["user"])[0], item=numbers)
    try:
        left, events = kept(items.assign(item=range(len(items))), log, k)
    except RecnbError as error:
        users, of = log["user"].nunique(), log["item"].nunique()
        return None, None, f"{error} ({users:,} users, {of:,} items, {len(log):,} interactions)"
    if events.empty:
        return None, None, "no user has three interactions, the least for a history and two targets"
    return left, events, None


def _limits(profile, items, log):
    """Sentences about what is too small for some stage."""
    lengths = log["user"].value_counts()
    names = {name for own in items["categories"] for name in own}
    knobs = profile.instructions.k_max, profile.ppo.k_max, profile.evaluation.format_k[1]
    most = max(*knobs, EVALUATED)
    need = most + profile.data.history_length
    found = []
    if len(lengths) < LEAST_USERS:
        found.append(f"{len(lengths)} users are left, at least {LEAST_USERS} are needed")
    if len(items) < need:
        found.append(
            f"{len(items)} items are left, at least {need} are needed: lists of up to {most} "
            f"(instructions.k_max, ppo.k_max, evaluation.format_k; validation and test ask for "
            f"{EVALUATED}) beside histories of {profile.data.history_length} (data.history_length)"
        )
    if len(names) < LEAST_CATEGORIES:
        found.append(f"{len(names)} category is left, at least {LEAST_CATEGORIES} are needed")
    if lengths.max() < 4:
        found.append("no user has four interactions, the least to learn from, validate and test")
    return [f"{text} (after filtering with data.k_core {profile.data.k_core})" for text in found]


def _tasks(profile, catalog, histories):
    """Sentences about tasks that cannot be posed; popularity stands in for the teacher."""
    teacher = Popularity(histories, len(catalog))
    known = profile.instructions, profile.data, profile.seed
    found = rehearse(histories, catalog, teacher, *known)
    validation = validation_samples(histories, catalog, teacher, *known)
    if "I0" not in {row["task"] for row in validation}:
        found.append(
            f"no user of the validation has {EVALUATED} unseen items left, which its lists ask "
            f"for: histories hold nearly all of the {len(catalog)} items; bring more items, or "
            "users with shorter histories"
        )
    if not any(catalog.categories[items[-1]] for items in histories.items):
        found.append("no user's last item, the test target, has a category: no wish can be tested")
    return found


def _requests(profile, catalog, histories):
    """Warnings about requests that some users, or all, cannot be asked."""
    users, found = len(histories), []
    targets = [catalog.categories[items[-1]] for items in histories.items]
    bare = sum(not names for names in targets)
    if bare:
        found.append(
            f"the test items of {bare:,} of {users:,} users have no category: tasks that name one "
            "of the target's leave these users out"
        )
    if max(map(len, targets)) < 2:
        found.append("no test item has two categories: Table 7's wish for two of them stays empty")
    most = max(profile.evaluation.format_k[1], EVALUATED, *profile.evaluation.proportion_k)
    short = sum(len(catalog) - len(items) + 1 < most for items in histories.items)
    if short:
        found.append(
            f"{short:,} of {users:,} users have fewer than {most} unseen items left: where a test "
            "request asks for more (evaluation.format_k), their constrained lists are shorter"
        )
    learnable = len(histories.training_users())
    if profile.ppo.heldout_users > learnable // 2:
        found.append(
            f"ppo.heldout_users ({profile.ppo.heldout_users}) is more than half of the "
            f"{learnable:,} users with a training part: half of them measure the RL stage's reward"
        )
    return found


def _titles(items):
    found, clean = [], items["title"].map(clean_title)
    twice = clean.str.casefold().duplicated()
    if twice.any():
        title = shown(items["title"][twice].iloc[0])
        found.append(
            f"{int(twice.sum()):,} titles stand there more than once, the first {title!r}: later "
            'ones get " (2)"; if they are the same item, set data.merge_titles to true'
        )
    long = clean[clean.str.len() > LONGEST_TITLE]  # a token has a letter at least
    cut = long[long.map(shorten).ne(long)]
    if len(cut):
        found.append(
            f"{len(cut):,} titles have more than {LONGEST_TITLE} tokens of four letters each and "
            f"are cut off there, the first {shown(cut.iloc[0])!r}"
        )
    marked = items["title"].str.contains(r"<[a-zA-Z/]|&[a-z]+;", regex=True)
    if marked.any():
        title = shown(items["title"][marked].iloc[0])
        found.append(f"{int(marked.sum()):,} titles hold markup, which is removed: {title!r}")
    return found


def _categories(items, left, data):
    found = []
    sizes = pd.Series([name for own in left["categories"] for name in own]).value_counts()
    alone = items["categories"].map(len).le(1).all()
    for sign in [s for s in (",", ";", "|", "/") if alone and s != data.category_separator]:
        inside = sizes[sizes.index.str.contains(sign, regex=False)]
        pieces = {piece.strip() for name in sizes.index for piece in name.split(sign)}
        if len(inside) > len(sizes) / 4 and len(pieces) < 0.7 * len(sizes):
            found.append(
                f"{len(sizes):,} categories on {len(left):,} items, {len(inside):,} of which hold "
                f'"{sign}" (such as {shown(inside.index[0])!r}): is that what separates them? Set '
                "data.category_separator to it"
            )
    nearly = sizes[sizes > NEARLY_ALL * len(left)]
    if len(nearly):
        share = nearly.iloc[0] / len(left)
        found.append(
            f"category {shown(nearly.index[0])!r} is on {share:.0%} of the items: any list meets "
            "a wish for it, hardly any one against it"
        )
    hardly = sizes[sizes < HARDLY_ANY]
    if len(hardly):
        found.append(
            f"{len(hardly):,} of {len(sizes):,} categories have fewer than {HARDLY_ANY} items "
            f"(such as {shown(hardly.index[-1])!r}): lists of them cannot be filled"
        )
    if len(sizes) < 4:
        found.append(f"only {len(sizes)} categories: wishes say little")
    bare = left["categories"].map(len).eq(0)
    if bare.any():
        found.append(f"{int(bare.sum()):,} of {len(left):,} items have no category")
    return found


def _times(log, events):
    """Warnings about the order of histories; ``events`` is in that order."""
    found, stamps = [], log["timestamp"]
    if stamps.nunique() == 1:
        return ["all timestamps are equal: histories have the order of the file"]
    if stamps.abs().max() > 1e11:
        found.append("timestamps look like milliseconds: that is fine, only their order counts")
    fine = stamps[stamps.ne(0)]
    if len(stamps) > 100 and stamps.nunique() < len(stamps) / 50 and (fine % 1000).eq(0).all():
        found.append(
            f"{len(stamps):,} timestamps have only {stamps.nunique():,} different values, all "
            "multiples of 1,000: a spreadsheet may have rounded them (1.555e+12), so that their "
            "order is lost"
        )
    before = events.groupby("user")["timestamp"].shift()
    same = events["timestamp"].eq(before)
    users = events["user"].nunique()
    ties = int(same.groupby(events["user"]).any().sum())
    last = int(same[~events["user"].duplicated(keep="last")].sum())
    if ties > users / 10:
        found.append(
            f"{ties / users:.0%} of the users have interactions at the same time, and for "
            f"{last / users:.0%} the test item ties with the one before it: file order decides"
        )
    median = events["user"].value_counts().median()
    if median < 5:
        found.append(f"histories are short: half of them have at most {median:.0f} interactions")
    return found


def _removed(items, log, left, events, k):
    parts = [
        ("users", log["user"].nunique(), events["user"].nunique()),
        ("items", len(items), len(left)),
        ("interactions", len(log), len(events)),
    ]
    if all(now > 0.9 * before for _, before, now in parts):
        return []
    told = [f"{before - now:,} of {before:,} {what}" for what, before, now in parts if now < before]
    return [f"filtering (data.k_core {k}, at least 3 a user, no doubles) removes {', '.join(told)}"]


def _ratings(log, tallrec):
    if "rating" not in log:
        return []
    low, high = log["rating"].min(), log["rating"].max()
    liked = (log["rating"] > tallrec.like_above).mean()
    if 0.2 <= liked <= 0.9:
        return []
    return [
        f"ratings run from {low:g} to {high:g}, and {liked:.0%} of them are above "
        f"tallrec.like_above ({tallrec.like_above:g}): set it to what a like is on this scale"
    ]
