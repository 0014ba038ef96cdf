"""From raw files to the two tables that ``data.dataset: tabular`` reads, in bounded memory.

The log is read once into a spool (item number, time, rating, user) while a table of small counters
learns how often each user occurs. A second pass over the spool takes only rows whose user and item
can be frequent enough, with numbers for ids; filtering and drawing happen on these. What memory
holds is the catalogue, the counters and those rows, however long the file is.
"""

import csv
import json
import zlib
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from recnb import RecnbError, __version__
from recnb.artifacts import atomic_path, sha256, write_json
from recnb.datasets.amazon import AMAZON
from recnb.datasets.dat import MOVIELENS_1M, MOVIETWEETINGS
from recnb.datasets.raw import REST, Account, Reading
from recnb.datasets.steam import STEAM
from recnb.datasets.tabular import shown
from recnb.interactions import k_core_rows
from recnb.text_safety import markdown, visible

DATASETS = {one.name: one for one in (AMAZON, STEAM, MOVIELENS_1M, MOVIETWEETINGS)}
COUNTERS = 1 << 26
"""Counters of users, a byte each. Two users may share one: then both can seem more frequent than
they are, never less, and the exact count comes after the second pass."""
BATCH = 1 << 16
"""Rows that the spool writes, and the counters learn, at a time."""
TOLD = 1_000_000
"""A line of progress comes after so many lines."""


@dataclass
class Log:
    """Interactions with numbers for ids, in the order of the file.

    Attributes:
        users: [n] int32, numbered as they first appear. names: what the file calls each.
        items: [n] int32, rows of the catalogue.
        times: [n] int64 seconds. ratings: [n] float32, NaN where there are none.
    """

    users: np.ndarray
    names: list[str]
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray

    def __len__(self):
        return len(self.users)

    def take(self, rows):
        """Some of the interactions, users numbered anew."""
        old, first, users = np.unique(self.users[rows], return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")  # as they first appear
        new = np.empty_like(order)
        new[order] = np.arange(len(order))
        names = [self.names[user] for user in old[order]]
        columns = self.items[rows], self.times[rows], self.ratings[rows]
        return Log(new[users].astype(np.int32), names, *columns)


def prepare(name, source, out, k_core=5, user_core=0, users=0, seed=0):
    """Write items.csv, interactions.csv, manifest.json and README.md of a dataset.

    Args:
        name: a key of ``DATASETS``.
        source: folder of the raw files.
        out: folder to make; one that an earlier call made is replaced, any other one is not.
        k_core: users and items with fewer interactions are removed until none is left.
        user_core: the same for users alone, where they need another number; 0 = ``k_core``.
        users: so many users at most are kept, drawn at random; 0 = all.
        seed: of that draw.

    Returns:
        The manifest as plain data.

    Raises:
        RecnbError: a file is missing, unreadable or another one; nothing is left; the disk is full.
    """
    dataset, source, out = _dataset(name), Path(source), Path(out)
    items_file = _find(source, dataset.item_files, dataset)
    log_file = _find(source, dataset.log_files, dataset)
    _may_be_replaced(out)
    for part in sorted(out.parent.glob(f".{out.name}.part-*")):
        print(f"{visible(part)}: left over from a start that was killed, or from one under way")
    item_reading = Reading(items_file, dataset.item_form)
    log_reading = Reading(log_file, dataset.log_form)
    core = (user_core or k_core, k_core)
    with atomic_path(out) as folder:
        folder.mkdir()
        catalogue = read_catalogue(dataset, item_reading)
        _told(item_reading, f"{len(catalogue):,} items")
        spool = folder / "spool"
        counters, item_rows, unknown = _spool(dataset, log_reading, catalogue, spool)
        _told(log_reading, f"{item_rows.sum():,} interactions with items of the catalogue")
        candidates = _candidates(spool, counters, item_rows, core)
        spool.unlink()
        log, later = narrowed(candidates, core, users, seed)
        later["too few interactions"] += int(item_rows.sum()) - len(candidates)
        if not len(log):
            raise RecnbError(
                f"{source}: no user with {core[0]} interactions with items of {core[1]} is left of "
                f"{int(item_rows.sum()):,} interactions: lower --k-core"
            )
        ids = list(catalogue)
        kept = np.unique(log.items)
        with open(folder / "items.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["item", "title", "categories"])
            for item in kept:
                title, categories = catalogue[ids[item]]
                writer.writerow([ids[item], title, "|".join(categories)])
        _write_log(folder / "interactions.csv", log, ids, dataset.rated)
        manifest = {
            "dataset": name,
            "kit": __version__,
            "knobs": {"k_core": k_core, "user_core": core[0], "users": users, "seed": seed},
            "sources": [_source(item_reading), _source(log_reading)],
            "left_out": [
                *_accounts(item_reading.path.name, item_reading.left_out),
                *_accounts(log_reading.path.name, log_reading.left_out | unknown),
                *({"file": log_file.name, "why": w, "rows": n} for w, n in later.items() if n),
            ],
            "noted": [
                *_accounts(item_reading.path.name, item_reading.notes),
                *_accounts(log_reading.path.name, log_reading.notes),
            ],
            "counts": counts(log),
            "times": ties(log),
            "table1": _table1(dataset, counts(log)),
            "outputs": {n: sha256(folder / n) for n in ("items.csv", "interactions.csv")},
        }
        write_json(folder / "manifest.json", manifest)
        (folder / "README.md").write_text(summary(manifest), encoding="utf-8")
    return manifest


def _dataset(name):
    if name not in DATASETS:
        raise RecnbError(f"dataset {name}: known are {', '.join(DATASETS)}")
    return DATASETS[name]


def _find(source, names, dataset):
    """The first of these files that stands there, with or without .gz."""
    endings = [n for name in names for n in dict.fromkeys((name, name.removesuffix(".gz")))]
    for name in endings:
        if (source / name).is_file():
            return source / name
    what = "" if source.is_dir() else " (there is no such folder)"
    raise RecnbError(
        f"{source}{what}: {dataset.name} needs {' or '.join(endings)} there; "
        f"recnb fetch {dataset.name} downloads it"
    )


def _may_be_replaced(out):
    if not out.exists():
        return
    try:
        made = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["dataset"]
    except (OSError, ValueError, TypeError, KeyError):
        made = None
    if made not in DATASETS and not (out.is_dir() and not any(out.iterdir())):
        raise RecnbError(f"{out} exists and recnb prepare did not make it: name another folder")


def read_catalogue(dataset, reading):
    """``{id: (title, tuple of categories)}`` of the file of items, in its order.

    Of several usable lines of one item the first counts.
    """
    catalogue, same = {}, {}
    for line, item, title, categories in dataset.items(reading):
        if item in catalogue:
            reading.leave_out("an earlier line has this item", line, item)
            continue
        categories = tuple(categories)  # few are different: each is in memory once
        catalogue[item] = title, same.setdefault(categories, categories)
    return catalogue


def _spool(dataset, reading, catalogue, path):
    """Write the log's usable rows to ``path``.

    Returns:
        Counters of users [COUNTERS] uint8; rows of each item [items]; account of the rows whose
        item is not in the catalogue.
    """
    numbers = {item: code for code, item in enumerate(catalogue)}
    counters = np.zeros(COUNTERS, np.uint8)
    item_rows = np.zeros(len(catalogue), np.int64)
    unknown, told = {}, TOLD
    codes, hashes, rows = [], [], []

    def flush():
        np.add(item_rows, np.bincount(codes, minlength=len(item_rows)), out=item_rows)
        places, times = np.unique(np.array(hashes, np.int64), return_counts=True)
        counters[places] = np.minimum(255, counters[places] + times)
        file.write("".join(rows).encode())
        codes.clear(), hashes.clear(), rows.clear()

    with open(path, "wb") as file:
        for line, user, item, time, rating in dataset.interactions(reading):
            code = numbers.get(item)
            if code is None:
                first = unknown.setdefault("its item has no usable line", Account(0, line, item))
                first.rows += 1
                continue
            codes.append(code)
            hashes.append(_place(user.encode()))
            rows.append(f"{code}\t{time}\t{rating}\t{user}\n")
            if len(rows) == BATCH:
                flush()
                if reading.lines >= told:
                    print(f"{reading.path.name}: {told:,} lines, {reading.done:.0%} of the file")
                    told += TOLD
        if rows:
            flush()
    for first in unknown.values():
        first.example = shown(first.example)
    return counters, item_rows, unknown


def _place(user):
    """The counter of a user."""
    return zlib.crc32(user) % COUNTERS


def _candidates(path, counters, item_rows, core):
    """``Log`` of the spooled rows whose user and item may have enough interactions."""
    frequent_users = memoryview(counters >= min(core[0], 255))
    frequent_items = (item_rows >= core[1]).tolist()
    users, items, times, ratings = array("i"), array("i"), array("q"), array("f")
    numbers = {}
    with open(path, "rb") as file:
        for row in file:
            code, time, rating, user = row[:-1].split(b"\t", 3)
            code = int(code)
            if frequent_items[code] and frequent_users[_place(user)]:
                users.append(numbers.setdefault(user, len(numbers)))
                items.append(code)
                times.append(int(time))
                ratings.append(float("nan") if rating == b"None" else float(rating))
    names = [user.decode() for user in numbers]
    columns = [np.array(column) for column in (items, times, ratings)]
    return Log(np.array(users), names, *columns)


def narrowed(log, core, users, seed):
    """First row of each user and item, k-core, draw of users.

    Returns:
        The ``Log`` that is left; ``{why: rows}`` of what is not.
    """
    pairs = log.users.astype(np.int64) * (int(log.items.max(initial=0)) + 1) + log.items
    first = np.sort(np.unique(pairs, return_index=True)[1])
    del pairs
    inner = first[k_core_rows(log.users[first], log.items[first], *core)]
    whole = _rows_between(log, inner)
    left = log.take(inner)
    drawn = inner
    if 0 < users < len(left.names):
        drawn = inner[draw(left, core, users, seed)]
        left = log.take(drawn)
    rows = _rows_between(log, drawn)
    return left, {
        "too few interactions": len(log) - whole,
        "users not drawn, and items that then have too few": whole - rows,
        "the user has this item in an earlier line": rows - len(drawn),
    }


def _rows_between(log, rows):
    """How many rows of the log, repeated ones included, have a user and an item of ``rows``."""
    users = np.zeros(len(log.names), bool)
    items = np.zeros(int(log.items.max(initial=0)) + 1, bool)
    users[log.users[rows]] = items[log.items[rows]] = True
    return int((users[log.users] & items[log.items]).sum())


def draw(log, core, users, seed):
    """Rows of the k-core of randomly drawn users: of as many as leave at most ``users``.

    Users stand in one random order, and the first m of it are drawn. A larger m never leaves fewer
    users, so that the largest one that fits is found by halving.
    """
    places = np.random.default_rng([seed, 211]).permutation(len(log.names))[log.users]
    few, many, best = users, len(log.names), None
    while few <= many:
        drawn = (few + many) // 2
        rows = np.flatnonzero(places < drawn)
        rows = rows[k_core_rows(log.users[rows], log.items[rows], *core)]
        if len(np.unique(log.users[rows])) <= users:
            best, few = rows, drawn + 1
        else:
            many = drawn - 1
    return best


def _write_log(path, log, ids, rated):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["user", "item", "timestamp"] + ["rating"] * rated)
        for start in range(0, len(log), BATCH):
            part = slice(start, start + BATCH)
            columns = [
                [log.names[user] for user in log.users[part]],
                [ids[item] for item in log.items[part]],
                log.times[part].tolist(),
            ]
            if rated:
                columns.append([f"{rating:g}" for rating in log.ratings[part]])
            writer.writerows(zip(*columns, strict=True))


def counts(log):
    """Users, items, interactions and sparsity, as Table 1 has them."""
    users, items = len(log.names), len(np.unique(log.items))
    sparsity = round(1 - len(log) / (users * items), 4)
    return {"users": users, "items": items, "interactions": len(log), "sparsity": sparsity}


def ties(log):
    """How many users have interactions at the same time, and whether times are whole days."""
    order = np.lexsort((log.times, log.users))
    users, times = log.users[order], log.times[order]
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    return {
        "users_with_ties": len(np.unique(users[1:][same])),
        "whole_days": bool((log.times % 86_400 == 0).all()),
    }


def _source(reading):
    size = reading.path.stat().st_size
    name = reading.path.name
    return {"file": name, "bytes": size, "sha256": reading.sha256, "lines": reading.lines}


def _accounts(file, accounts):
    return [{"file": file, "why": why} | asdict(one) for why, one in accounts.items()]


def _table1(dataset, here):
    """The paper's Table 1 beside these counts; None for data that the paper does not use."""
    if not dataset.table1:
        return None
    path = Path(__file__).parents[1] / "evaluation" / "paper.yaml"
    table = yaml.safe_load(path.read_text(encoding="utf-8"))["table1"]
    paper = dict(zip(table["columns"], table[dataset.table1], strict=True))
    return {key: {"paper": value, "here": here[key]} for key, value in paper.items()}


def _told(reading, result):
    print(f"{visible(reading.path.name)}: {reading.lines:,} lines, {result}")


def broken_off(manifest):
    """Sentences about raw files that broke off: the tables lack what stood behind that line."""
    return [
        f"{one['file']} breaks off at line {one['line']:,}, and what stands behind it is in "
        "neither table: fetch the file again and prepare anew"
        for one in manifest["left_out"]
        if one["why"].startswith(REST)
    ]


def summary(manifest):
    """The manifest in words, as Markdown."""
    knobs, made, times = manifest["knobs"], manifest["counts"], manifest["times"]
    draw = f", at most {knobs['users']:,} users drawn with seed {knobs['seed']}"
    days = " (times are whole days)"
    lines = [
        f"# {manifest['dataset']}, prepared for recnb",
        "",
        "Two tables that `data.dataset: tabular` reads: items.csv and interactions.csv. "
        "manifest.json says the same as this page, for programs.",
        "",
        f"Users with at least {knobs['user_core']} interactions and items with at least "
        f"{knobs['k_core']}{draw if knobs['users'] else ''}: {made['users']:,} users, "
        f"{made['items']:,} items, {made['interactions']:,} interactions, sparsity "
        f"{made['sparsity']:.2%}.",
        "",
        f"Users with interactions at the same time{days if times['whole_days'] else ''}, which "
        f"stand in the order of the file: {times['users_with_ties']:,}.",
        "",
        "| file | bytes | lines | sha256 |",
        "|---|---|---|---|",
    ]
    for one in manifest["sources"]:
        lines.append(
            f"| {markdown(one['file'])} | {one['bytes']:,} | {one['lines']:,} | {one['sha256']} |"
        )
    for title, rows in (("Left out", manifest["left_out"]), ("Kept, and", manifest["noted"])):
        if rows:
            lines += [
                "",
                f"| {title} | rows | file | first line | there |",
                "|---|---|---|---|---|",
            ]
        for one in rows:
            line, example = one.get("line", ""), markdown(one.get("example", ""))
            why, file = markdown(one["why"]), markdown(one["file"])
            lines.append(f"| {why} | {one['rows']:,} | {file} | {line} | {example} |")
    if manifest["table1"]:
        lines += ["", "| Table 1 | paper | here | difference |", "|---|---|---|---|"]
        for key, one in manifest["table1"].items():
            digits = ",.4f" if key == "sparsity" else ","
            apart = f"{one['here'] / one['paper'] - 1:+.1%}"
            paper, here = format(one["paper"], digits), format(one["here"], digits)
            lines.append(f"| {key} | {paper} | {here} | {apart} |")
    return "\n".join(lines) + "\n"
