"""People's own tables: every problem with file, line and value; what is suspicious with figures."""

import json
import os
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recnb import RecnbError
from recnb.datasets import build
from recnb.datasets.check import before_run, check
from recnb.datasets.raw import REST
from recnb.datasets.tabular import load as load_tables
from recnb.profile import load, root
from tests.catalogues import GAMES, books, games, tables, write


def own(folder, **knobs):
    changed = {"data.dataset": "tabular", "data.path": str(folder)}
    return load("smoke", changed | {key.replace("__", "."): value for key, value in knobs.items()})


def found(folder, **knobs):
    problems, warnings = check(own(folder, **knobs))
    return "\n".join(problems), "\n".join(warnings)


@pytest.mark.parametrize("make", [games, books])
def test_good_catalogues_pass(make, tmp_path):
    profile = own(make(tmp_path), tallrec__like_above=6)
    assert check(profile) == ([], [])
    catalog, histories = build(profile.data, 0)
    assert len(catalog) > 100 and len(histories) == 200


def test_dates_order_histories(tmp_path):
    items, log = tables(GAMES)
    by_number = build(own(write(tmp_path / "a", items, log)).data, 0)
    by_date = build(own(games(tmp_path / "b")).data, 0)
    same = zip(by_number[1].items, by_date[1].items, strict=True)
    assert all((a == b).all() for a, b in same)


BAD = [
    ("items.csv", lambda t: t.replace("item,title", "Item, Titel"), "did you mean 'Item'"),
    ("items.csv", lambda t: "", "items.csv: is empty"),
    ("items.csv", lambda t: t.splitlines()[0] + "\n", "has a header and no rows"),
    ("items.csv", lambda t: t.replace("Iron Harvest 1", "<img src=x>"), "line 3: the title"),
    ("items.csv", lambda t: t + "i0,Again,War\n", "line 152: item 'i0' stands there twice"),
    ("interactions.csv", lambda t: t + "u1,i9999,5\n", "item 'i9999' is not in the table"),
    ("interactions.csv", lambda t: t + "u1,i1,soon\n", "timestamp 'soon' is no number"),
    ("interactions.csv", lambda t: t.replace("\n", "\0\n"), "NUL bytes"),
]


@pytest.mark.parametrize("file, change, problem", BAD)
def test_bad_files(tmp_path, file, change, problem):
    items, log = tables(GAMES)
    path = write(tmp_path, items, log.drop(columns="rating")) / file
    path.write_text(change(path.read_text()), newline="")
    problems, _ = found(tmp_path)
    assert problem in problems and file in problems


def test_all_problems_at_once_with_lines_as_an_editor_counts(tmp_path):
    items, log = tables(GAMES)
    items.loc[2, "title"] = "one\ntwo\nthree"
    items.loc[5, "title"] = "<b></b>"
    items.loc[9, "item"] = "i0"
    log = log.astype(str)
    log.loc[3, "rating"] = "7,0"
    problems, _ = found(write(tmp_path, items, log))
    assert "items.csv, line 9: the title '<b></b>' is empty" in problems
    assert "items.csv, line 13: item 'i0' stands there twice" in problems
    assert "interactions.csv, line 5: rating '7,0' is not a number: write decimals" in problems
    with pytest.raises(RecnbError, match="line 9"):
        before_run(own(tmp_path))


def test_ids_of_a_spreadsheet(tmp_path):
    items, log = tables(GAMES)
    items["item"] = items["item"].str[1:]
    log["item"] = log["item"].str[1:] + ".0"
    problems, _ = found(write(tmp_path, items, log))
    assert "without the .0 it is" in problems


@pytest.mark.parametrize("shorn", ["items", "log"])
def test_ids_that_are_numbers_in_one_table_and_text_in_the_other(shorn, tmp_path):
    items, log = tables(GAMES)
    for frame in (items, log):
        frame["item"] = frame["item"].str[1:].str.zfill(5)
    short = {"items": items, "log": log}[shorn]
    short["item"] = short["item"].astype(int)
    problems, _ = found(write(tmp_path, items, log))
    assert "interactions.csv, line 2: item " in problems and "without leading zeros" in problems


def test_what_broke_off_while_it_was_prepared_is_said_again(tmp_path):
    games(tmp_path)
    row = {"file": "log.json.gz", "why": f"{REST}: its gzip data end early", "rows": 1, "line": 453}
    for content, said in (
        (json.dumps({"left_out": [row, row | {"why": "not JSON"}]}), 1),
        ('{"left_out": [1]}', 0),
        ("[]", 0),
        ("", 0),
    ):
        (tmp_path / "manifest.json").write_text(content)
        problems, warnings = found(tmp_path)
        assert not problems and warnings.count("log.json.gz breaks off at line 453") == said
        assert "log.json.gz" not in warnings.replace("log.json.gz breaks off at line 453", "")


def test_latin_1_is_read_with_a_note(tmp_path):
    items, log = tables(GAMES)
    items.loc[0, "title"] = "Café Über"
    write(tmp_path, items, log)
    (tmp_path / "items.csv").write_bytes((tmp_path / "items.csv").read_text().encode("latin-1"))
    read = load_tables(own(tmp_path).data)
    assert not read.problems and read.items["title"][0] == "Café Über"
    assert "not UTF-8" in read.notes[0]


def test_parquet_mapping_and_separator(tmp_path):
    items, log = tables(GAMES)
    items["categories"] = items["categories"].str.replace("|", ";")
    items.rename(columns={"title": "name"}).to_parquet(tmp_path / "items.parquet")
    log.to_parquet(tmp_path / "interactions.parquet")
    knobs = {"data__columns": {"title": "name"}, "data__category_separator": ";"}
    read = load_tables(own(tmp_path, **knobs).data)
    assert not read.problems and read.items["categories"].map(len).max() == 2
    items.to_csv(tmp_path / "items.csv")
    assert "both stand there" in found(tmp_path, **knobs)[0]


def test_files_that_are_none(tmp_path):
    assert "does not exist" in found(tmp_path / "nowhere")[0]
    (tmp_path / "file").write_text("x")
    assert "is a file: data.path is the folder" in found(tmp_path / "file")[0]
    (tmp_path / "items.csv").mkdir()
    problems, _ = found(tmp_path)
    assert "items.csv: is a folder" in problems and "interactions.csv does not exist" in problems


SUSPICIOUS = [
    (lambda i, g: (i.assign(categories=i["categories"].str.replace("|", ", ")), g), "separates"),
    (lambda i, g: (i, g.assign(timestamp=7)), "all timestamps are equal"),
    (lambda i, g: (i, g.assign(timestamp=g["timestamp"] // 10**6 * 10**9)), "rounded them"),
    (lambda i, g: (i, g.assign(timestamp=g["timestamp"] // 86400)), "at the same time"),
    (lambda i, g: (i.assign(categories="Card|" + i["categories"]), g), "'Card' is on 100% of"),
    (lambda i, g: (i, g), "tallrec.like_above (3)"),
    (lambda i, g: (i.assign(title=[*i["title"][:-1], i["title"][0]]), g), "more than once"),
    (lambda i, g: (i, g[g["item"].str[-1] != "3"]), "removes 15 of 150 items"),
    (lambda i, g: (i.replace(i["title"][0], "A" * 10**6), g), "1 titles have more than 64 tokens"),
]


@pytest.mark.parametrize("change, warning", SUSPICIOUS)
def test_suspicious_data(change, warning, tmp_path):
    problems, warnings = found(write(tmp_path, *change(*tables(GAMES))))
    assert not problems and warning in warnings


@pytest.mark.parametrize(
    "few, sentence",
    [
        ({"items": 8, "users": 60}, "8 items are left, at least"),
        ({"users": 5}, "5 users are left, at least 10"),
    ],
)
def test_limits(few, sentence, tmp_path):
    folder = write(tmp_path, *tables(GAMES[:2], **few))
    assert sentence in found(folder, data__k_core=1)[0]


def test_one_category(tmp_path):
    assert "1 category is left" in found(write(tmp_path, *tables(GAMES[:1])))[0]


def test_values_cannot_command_the_terminal(tmp_path):
    items, log = tables(GAMES)
    log.loc[0, "item"] = "\x1b[2J\x1b]8;;http://x\x07"
    problems, _ = found(write(tmp_path, items, log))
    assert "\x1b" not in problems and "x1b[2J" in problems


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, items, log):
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "items.csv").write_bytes(items)
    (folder / "interactions.csv").write_bytes(log)
    try:
        build(own(folder).data, 0)
    except RecnbError as error:
        assert str(error)


def test_a_relative_folder_is_that_of_the_terminal(tmp_path):
    """Notebooks run elsewhere; and bad tables end the run before any of them starts."""
    books(tmp_path / "books")
    command = [sys.executable, "-m", "recnb.cli", "run", "smoke", "--until", "01_data", "--set"]
    command += ["data.dataset=tabular", "--set", "data.path=books", "--set"]
    command += ["tallrec.like_above=6", "--run", "mine"]
    environment = os.environ | {"RECNB_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(root())}
    how = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(command, **how)
    assert done.returncode == 0 and "[1/9] 01_data done" in done.stdout, done.stderr
    (tmp_path / "books" / "items.csv").write_text("")
    shutil.rmtree(tmp_path / "runs")
    done = subprocess.run(command, **how)
    assert done.returncode == 1 and "items.csv: is empty" in done.stderr
    assert "[1/9]" not in done.stdout


@pytest.mark.nightly
def test_a_million_rows(tmp_path):
    """Prints how long it takes; the time is for people to judge."""
    items, log = tables(GAMES, users=5000, items=2000)
    log = pd.concat([log.assign(user=log["user"] + f"-{n}") for n in range(13)])
    write(tmp_path, items, log)
    began = time.perf_counter()
    problems, _ = found(tmp_path)
    print(f"{len(log):,} rows: {time.perf_counter() - began:.2f} s")
    assert not problems and len(log) > 1_000_000
