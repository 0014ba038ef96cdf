"""Raw files against a plain reading; their dirt, the memory they take, and their download."""

import ast
import gzip
import http.server
import json
import shutil
import threading
import tracemalloc
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recnb import RecnbError
from recnb.artifacts import sha256
from recnb.cli import main, overrides
from recnb.datasets import build, download, raw, rehearsal, steam
from recnb.datasets import prepare as module
from recnb.datasets.prepare import DATASETS, Log, draw, narrowed, prepare, summary
from recnb.datasets.raw import Reading
from recnb.interactions import k_core, k_core_rows
from recnb.profile import load, root


@pytest.fixture(autouse=True)
def few_counters(monkeypatch):
    """A small table: 64 MiB for each of so many small files would be the tests' main work."""
    monkeypatch.setattr(module, "COUNTERS", 1 << 16)
    monkeypatch.setattr(module, "BATCH", 1000)


LATER = ("too few interactions", "the user has this item in an earlier line", "users not drawn")
FILES = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


@pytest.fixture(scope="module", params=list(DATASETS))
def rehearsed(request, tmp_path_factory):
    """A data set's name, a folder of invented raw files, and what is wrong with them."""
    folder = tmp_path_factory.mktemp("raw") / request.param
    return request.param, folder, rehearsal.write(request.param, folder, 500, 200, seed=3)


def lines_of(path):
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return file.read().split(b"\n")


def plain_rows(path, name):
    """Every record of a file that can be read at all, the simplest way."""
    for line in lines_of(path):
        try:
            if name == "amazon":
                row = json.loads(line)
            elif name == "steam":
                row = ast.literal_eval(line.decode())
            else:
                row = line.decode("latin-1" if name == "movielens-1m" else "utf-8").split("::")
        except (ValueError, SyntaxError):
            continue
        if isinstance(row, dict) or name.startswith("movie"):
            yield row


def plain_items(path, name):
    """``{id: categories}`` in the order of the file."""
    found = {}
    for row in plain_rows(path, name):
        if name == "amazon":
            title, path_, item = row.get("title") or "", row.get("category"), row.get("asin")
            item = None if item is None else str(item).zfill(10)
            if item and path_ and title not in ("", "<br>") and "getTime" not in title:
                names = [part.replace("&amp;", "&") for part in path_[1:]]
                own = [", ".join(names[: n + 1]) for n in range(len(names))]
                found.setdefault(item, own)
        elif name == "steam":
            own = list(dict.fromkeys(row.get("genres", []) + row.get("tags", [])))
            if row.get("id") and own and (row.get("title") or row.get("app_name")):
                found.setdefault(row["id"], own)
        elif len(row) == 3 and row[0] and row[1]:
            found.setdefault(row[0], [genre for genre in row[2].split("|") if genre])
    return found


def plain_log(path, name):
    rows = []
    for row in plain_rows(path, name):
        if name == "amazon" and {"reviewerID", "asin", "unixReviewTime", "overall"} <= set(row):
            asin = str(row["asin"]).zfill(10)
            rows.append((row["reviewerID"], asin, row["unixReviewTime"], row["overall"]))
        elif name == "steam" and {"username", "product_id", "date"} <= set(row):
            time = pd.to_datetime(row["date"], errors="coerce", utc=True)
            if pd.notna(time):
                rows.append((row["username"], row["product_id"], int(time.timestamp()), 0))
        elif name.startswith("movie") and len(row) == 4 and row[0] and row[3] and row[2] != "good":
            rows.append((row[0], row[1], int(row[3]), float(row[2])))
    return pd.DataFrame(rows, columns=["user", "item", "timestamp", "rating"])


def tables(folder):
    frames = [pd.read_csv(folder / f, dtype=str, keep_default_na=False) for f in TABLES]
    frames[1]["timestamp"] = frames[1]["timestamp"].astype(int)
    return frames


TABLES = "items.csv", "interactions.csv"


def files(name):
    return DATASETS[name].item_files[0], DATASETS[name].log_files[0]


@pytest.mark.parametrize("cores", [(5, 5), (14, 7), (1, 1)])
def test_a_plain_reading_gives_the_same_tables(rehearsed, cores, tmp_path):
    name, source, _ = rehearsed
    user_core, item_core = cores
    manifest = prepare(name, source, tmp_path / "out", item_core, user_core)
    items, log = tables(tmp_path / "out")
    catalogue = plain_items(source / files(name)[0], name)
    expected = plain_log(source / files(name)[1], name)
    expected = expected[expected["item"].isin(set(catalogue))].drop_duplicates(["user", "item"])
    while True:
        of_user = expected.groupby("user")["item"].transform("size")
        of_item = expected.groupby("item")["user"].transform("size")
        keep = (of_user >= user_core) & (of_item >= item_core)
        if keep.all():
            break
        expected = expected[keep]
    assert len(expected) > 1500
    shared = ["user", "item", "timestamp"]
    pd.testing.assert_frame_equal(log[shared], expected[shared].reset_index(drop=True))
    if name == "steam":
        assert "rating" not in log
    else:
        assert log["rating"].astype(float).tolist() == expected["rating"].tolist()
    there = set(expected["item"])
    left = [item for item in catalogue if item in there]
    assert items["item"].tolist() == left
    assert items["categories"].tolist() == ["|".join(catalogue[item]) for item in left]
    assert not items["title"].str.contains("<b>|&amp;|, The$", regex=True).any()
    made = manifest["counts"]
    assert made["users"] == expected["user"].nunique() and made["items"] == len(left)
    assert made["interactions"] == len(expected)


def test_every_reason_is_counted(rehearsed, tmp_path):
    name, source, wrong = rehearsed
    manifest = prepare(name, source, tmp_path / "out")
    told = Counter()
    for one in manifest["left_out"]:
        told[one["why"]] += one["rows"]
        if not one["why"].startswith(LATER):
            assert one["rows"] and 1 <= one["line"]
            assert one["why"] in (tmp_path / "out" / "README.md").read_text().replace("&#58;", ":")
    later = {why: told.pop(why) for why in list(told) if why.startswith(LATER)}
    assert told == wrong and len(wrong) >= 8
    # Every line of the log is in the table, or left out for one reason.
    log_lines = manifest["sources"][1]["lines"]
    out = sum(one["rows"] for one in manifest["left_out"] if one["file"] == files(name)[1])
    assert log_lines == out + manifest["counts"]["interactions"] and later
    for source_file, there in zip(manifest["sources"], files(name), strict=True):
        assert source_file["sha256"] == sha256(source / there)


def test_the_same_command_gives_the_same_bytes(rehearsed, tmp_path):
    name, source, wrong = rehearsed
    again = tmp_path / "again"
    assert rehearsal.write(name, again, 500, 200, seed=3) == wrong
    for file in files(name):
        assert sha256(again / file) == sha256(source / file)
    prepare(name, source, tmp_path / "a", users=150, seed=5)
    prepare(name, again, tmp_path / "b", users=150, seed=5)
    other = prepare(name, again, tmp_path / "c", users=150, seed=6)
    for file in (*TABLES, "manifest.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "items.csv").read_bytes() != (tmp_path / "c/items.csv").read_bytes()
    assert 140 <= other["counts"]["users"] <= 150


def test_a_run_reads_what_was_prepared(rehearsed, tmp_path):
    name, source, _ = rehearsed
    manifest = prepare(name, source, tmp_path / "out")
    own = {"data.dataset": "tabular", "data.path": str(tmp_path / "out"), "data.k_core": 5}
    catalog, histories = build(load("smoke", own).data, 0)
    assert len(catalog) == manifest["counts"]["items"]
    assert sum(map(len, histories.items)) == manifest["counts"]["interactions"]
    assert catalog.titles[1:] == tables(tmp_path / "out")[0]["title"].tolist()


def test_fewer_counters_change_nothing(rehearsed, tmp_path, monkeypatch):
    name, source, _ = rehearsed
    prepare(name, source, tmp_path / "a", users=100)
    monkeypatch.setattr(module, "COUNTERS", 50)
    monkeypatch.setattr(module, "BATCH", 77)
    prepare(name, source, tmp_path / "b", users=100)
    for file in (*TABLES, "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


LOGS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), min_size=1, max_size=60)


def as_log(pairs):
    users, items = np.array(pairs, np.int32).T
    users = pd.factorize(users)[0].astype(np.int32)
    names = [f"u{user}" for user in range(users.max() + 1)]
    return Log(users, names, items, np.arange(len(pairs)), np.ones(len(pairs), np.float32))


@given(LOGS, st.integers(1, 4))
def test_k_core_on_numbers_is_k_core(pairs, k):
    log = as_log(pairs)
    frame = pd.DataFrame({"user": log.users, "item": log.items})
    rows = k_core_rows(log.users, log.items, k, k)
    try:
        assert list(rows) == list(k_core(frame, k).index)
    except RecnbError:
        assert not len(rows)


@given(LOGS, st.integers(1, 3), st.integers(1, 2), st.integers(1, 8), st.integers(0, 3))
def test_the_draw_is_the_largest_that_fits(pairs, user_core, item_core, users, seed):
    core = user_core, item_core
    whole = as_log(pairs)
    log, why = narrowed(whole, core, users, seed)
    assert len(log.names) <= users and sum(why.values()) + len(log) == len(whole)
    full, _ = narrowed(whole, core, 0, 0)
    if len(full.names) <= users:
        assert len(log) == len(full)
        return
    order = np.random.default_rng([seed, 211]).permutation(len(full.names))
    fits = []
    for many in range(len(full.names) + 1):
        rows = np.flatnonzero(order[full.users] < many)
        rows = rows[k_core_rows(full.users[rows], full.items[rows], *core)]
        if len(set(full.users[rows])) <= users:
            fits = list(rows)
    assert list(draw(full, core, users, seed)) == fits


def test_movietweetings_by_hand(tmp_path):
    source = tmp_path / "raw"
    source.mkdir()
    films = (
        "0000001::Fantômas, The (1913)::Crime|Drama\n0000002::A::B (2000)::\n0000003::C::D|D\r\n"
    )
    (source / "movies.dat").write_text(films, encoding="utf-8")
    ratings = "7::0000002::8::30\n7::1::9::20\n7::3::0::20\n9::0000001::10::5"
    (source / "ratings.dat").write_text(ratings)
    manifest = prepare("movietweetings", source, tmp_path / "out", k_core=1)
    assert (tmp_path / "out" / "items.csv").read_text(encoding="utf-8") == (
        "item,title,categories\n0000001,The Fantômas (1913),Crime|Drama\n0000002,A::B (2000),\n"
        "0000003,C,D\n"
    )
    assert (tmp_path / "out" / "interactions.csv").read_text() == (
        "user,item,timestamp,rating\n7,0000002,30,8\n7,0000001,20,9\n7,0000003,20,0\n"
        "9,0000001,5,10\n"
    )
    assert manifest["times"] == {"users_with_ties": 1, "whole_days": False}
    assert manifest["counts"]["sparsity"] == round(1 - 4 / 6, 4) and not manifest["table1"]


def amazon(folder, items, reviews, suffix=".gz"):
    """Raw Amazon files of these lines (bytes, or records)."""
    folder.mkdir(exist_ok=True)
    for name, rows in zip(files("amazon"), (items, reviews), strict=True):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        content = b"".join(line + b"\n" for line in lines)
        path = folder / name.removesuffix("" if suffix else ".gz")
        path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


def item(number, title="Kagemusha", category=("Movies & TV", "Art", "By Language")):
    return {"asin": f"{number:010d}", "title": title, "category": list(category)}


def review(user, number, time=86400, **more):
    return {
        "reviewerID": user,
        "asin": f"{number:010d}",
        "overall": 5.0,
        "unixReviewTime": time,
    } | more


def test_amazon_in_detail(tmp_path):
    long = "A" * 10_000_000
    items = [
        item(1, "Oldboy &amp;amp; Friends"),
        item(2, long),
        item(3, "<span>Ip Man</span>", ["Movies & TV", "Art|Pop &amp; Rock", "</span></span>", 5]),
        item(4, "A\ud800B\u2028C", ["Movies & TV"]),
        {"asin": 5, "title": "By number", "category": ["x", "y"]},
    ]
    people = ["=1+1", 'with "quotes", comma', "two\nlines", "zero\0"]
    reviews = [review(user, n, time="86400", overall="4") for user in people for n in range(1, 6)]
    reviews[0] |= {"vote": "1,204", "asin": 1, "style": None}
    source = amazon(tmp_path / "raw", items, reviews, suffix="")
    manifest = prepare("amazon", source, tmp_path / "out", k_core=4)
    made, log = tables(tmp_path / "out")
    assert made["title"].tolist() == ["Oldboy & Friends", "A" * 400, "Ip Man", "AB C", "By number"]
    paths = ["Art|Art, By Language"] * 2 + ["Art/Pop & Rock", "", "y"]
    assert made["categories"].tolist() == paths
    assert log["user"].unique().tolist() == [*people[:2], json.dumps(people[2]), '"zero\\u0000"']
    assert {one["why"]: one["rows"] for one in manifest["noted"]} == {
        "title cut off": 1,
        "no category below the department": 1,
    }
    assert manifest["times"]["whole_days"] and manifest["table1"]["users"]["paper"] == 13218
    assert "| users | 13,218 | 4 | -100.0% |" in summary(manifest)


def test_a_file_that_breaks_off_gives_all_its_whole_lines(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [f"{rng.integers(2**62):x}" * 5 for _ in range(900)]
    reviews = [review(f"u{n // 30}", n % 30, reviewText=text) for n, text in enumerate(texts)]
    source = amazon(tmp_path / "raw", [item(n) for n in range(30)], reviews)
    path = source / files("amazon")[1]
    content, whole = path.read_bytes(), lines_of(path)
    for cut in (len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with open(path, "rb") as file:
            rest = raw._Unpacker()
            there = b"".join(rest.pieces(file.read())).count(b"\n")
        manifest = prepare("amazon", source, tmp_path / "out")
        log = tables(tmp_path / "out")[1]
        [why] = [one for one in manifest["left_out"] if "rest of the file" in one["why"]]
        assert "end early" in why["why"] and why["line"] == there + 1
        used = sum(one["rows"] for one in manifest["left_out"] if one["why"] in LATER) + len(log)
        assert used == manifest["sources"][1]["lines"] == there > len(whole) // 3
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 255
    path.write_bytes(bytes(damaged))
    with monkeypatch.context() as patch:
        patch.setattr(raw, "PIECE", 4096)
        manifest = prepare("amazon", source, tmp_path / "out", k_core=1)
    assert any("damaged" in one["why"] for one in manifest["left_out"])
    assert 300 < manifest["sources"][1]["lines"] < 901
    with pytest.raises(RecnbError, match="line 1: the rest of the file: .*damaged"):
        prepare("amazon", source, tmp_path / "out")
    path.write_bytes(content + gzip.compress(json.dumps(review("late", 1)).encode()))
    assert prepare("amazon", source, tmp_path / "out")["sources"][1]["lines"] == 901


def test_the_command_warns_of_a_file_that_breaks_off(tmp_path, monkeypatch, capsys):
    reviews = [review(f"u{n // 30}", n % 30) for n in range(900)]
    source = amazon(tmp_path / "raw", [item(n) for n in range(30)], reviews)
    path = source / files("amazon")[1]
    path.write_bytes(path.read_bytes()[:-300])
    monkeypatch.setattr("sys.argv", ["recnb", "prepare", "amazon", str(source), f"{tmp_path}/out"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    there = json.loads((tmp_path / "out" / "manifest.json").read_text())["sources"][1]["lines"]
    assert end.value.code == 0 and "neither table: fetch the file again" in said
    assert f"warning: Movies_and_TV.json.gz breaks off at line {there + 1}," in said


def test_lines_of_any_length(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "PIECE", 64)
    monkeypatch.setattr(raw, "LONGEST_LINE", 1000)
    path = tmp_path / "some.json"
    lines = [b"a" * n for n in (1, 0, 900, 5000, 3, 1100, 70_000, 2)]
    path.write_bytes(b"\n".join(lines))
    reading, found = Reading(path, "form"), {}
    with pytest.raises(RecnbError, match="3 of 8 lines cannot be read, more than 5%"):
        for first, block in reading.blocks():
            found |= dict(enumerate(block, first))
    assert found == {n: line for n, line in enumerate(lines, 1) if len(line) < 1000}
    assert reading.left_out["a line longer than 0 MiB"].line == 4 and reading.lines == 8


WRONG = [
    (b'{"asin": "1", "title": "x"}', "no reviewerID"),
    (b"reviewerID,asin,overall", "not JSON"),
    (b"\x00\xff\xfe", "not UTF-8"),
    (b"PK\x03\x04", "not JSON"),
]


@pytest.mark.parametrize("line, why", WRONG)
@pytest.mark.parametrize("many", [1, 5000])
def test_another_file_is_named_with_its_line(line, why, many, tmp_path):
    source = amazon(tmp_path / "raw", [item(1)], [line] * many)
    with pytest.raises(RecnbError) as error:
        prepare("amazon", source, tmp_path / "out")
    text = str(error.value)
    assert "Movies_and_TV.json.gz, line 1: " in text and why in text and "reviewerID" in text
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("name", DATASETS)
def test_files_in_each_others_place(name, rehearsed, tmp_path):
    if rehearsed[0] != name:
        return
    source, (items, log) = tmp_path / "raw", files(name)
    source.mkdir()
    shutil.copy(rehearsed[1] / items, source / log)
    shutil.copy(rehearsed[1] / log, source / items)
    with pytest.raises(RecnbError, match=f"{items}, line 1: .*(right file|cannot be read)"):
        prepare(name, source, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00junk"])
def test_files_without_a_line(content, tmp_path):
    source = amazon(tmp_path / "raw", [item(1)], [])
    (source / files("amazon")[1]).write_bytes(content)
    with pytest.raises(RecnbError, match="Movies_and_TV.json.gz, line 1: "):
        prepare("amazon", source, tmp_path / "out")


def test_a_share_of_unreadable_lines_is_an_error(tmp_path):
    rows = [review(f"u{n % 10}", n // 10) for n in range(200)]
    few = amazon(tmp_path / "few", [item(n) for n in range(20)], rows + [b"x"] * 10)
    assert prepare("amazon", few, tmp_path / "out")["counts"]["interactions"] == 200
    many = amazon(tmp_path / "many", [item(n) for n in range(20)], rows + [b"x"] * 11)
    with pytest.raises(RecnbError, match="line 201: not JSON, 'x': 11 of 211 lines cannot be read"):
        prepare("amazon", many, tmp_path / "out")
    assert (tmp_path / "out" / "items.csv").is_file()  # what was there stays


def test_what_is_missing_or_in_the_way(tmp_path):
    with pytest.raises(RecnbError, match="no such folder.*recnb fetch amazon"):
        prepare("amazon", tmp_path / "raw", tmp_path / "out")
    source = amazon(tmp_path / "raw", [item(1)], [review("a", 1)])
    with pytest.raises(RecnbError, match="known are amazon, steam"):
        prepare("books", source, tmp_path / "out")
    with pytest.raises(RecnbError, match="lower --k-core"):
        prepare("amazon", source, tmp_path / "out")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(RecnbError, match="did not make it"):
        prepare("amazon", source, mine, k_core=1)
    with pytest.raises(RecnbError, match="is not empty"):
        rehearsal.write("amazon", mine, 10, 20)
    assert (mine / "thesis.txt").exists() and not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = amazon(tmp_path / "raw", [item(1)], [review("a", 1)])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_candidates", full)
    with pytest.raises(RecnbError, match="cannot write .*out: No space left"):
        prepare("amazon", source, tmp_path / "out", k_core=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("name", ["amazon", "steam", "movietweetings"])
def test_memory_does_not_grow_with_lines_that_are_not_kept(name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COUNTERS", 1 << 21)
    monkeypatch.setattr(module, "BATCH", 1 << 10)
    monkeypatch.setattr(raw, "PIECE", 1 << 16)
    rehearsal.write(name, tmp_path / "raw", 300, 100)
    peaks, counts = [], []
    form = rehearsal.FORMS[name]()
    for strangers in (0, 25_000):
        log = tmp_path / "raw" / files(name)[1]
        with gzip.open(log, "ab", 1) if log.suffix == ".gz" else open(log, "ab") as file:
            for user in range(strangers):
                line = form.interaction(10**9 + user, user % 100, rehearsal.START, 5)
                file.write(line + b"\n")
        tracemalloc.start()
        counts.append(prepare(name, tmp_path / "raw", tmp_path / "out")["counts"])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert counts[0] == counts[1]
    assert peaks[1] < peaks[0] + 600_000  # their ids alone would take 2 MB


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
KEYS = ["asin", "title", "category", "reviewerID", "overall", "unixReviewTime", "username"]
KEYS += ["product_id", "date", "id", "genres", "tags", "app_name"]
RECORDS = st.dictionaries(st.sampled_from(KEYS), VALUES)
LINE = st.one_of(
    st.binary(max_size=60),
    RECORDS.map(lambda row: json.dumps(row).encode()),
    RECORDS.map(lambda row: repr(row).encode("utf-8", "surrogatepass")),
    st.text("::1|a ", max_size=20).map(str.encode),
    st.text("{}[]u'\":, 1\\n", max_size=30).map(str.encode),
)


@FILES
@example([b'{"asin": 1e400, "title": "x", "category": ["a", "b"]}'])
@example([b'{"reviewerID": "a", "asin": "b", "overall": NaN, "unixReviewTime": 1e308}'])
@example([b"[" * 100_000, b"{u'id': " + b"(" * 5000, b"1" + b"0" * 5000])
@example([b"{u'username': u'a', u'product_id': [], u'date': {}}"])
@given(st.lists(LINE, max_size=8))
def test_any_lines_are_rows_or_counted(tmp_path, lines):
    path = tmp_path / "file"
    path.write_bytes(b"\n".join(lines))
    for dataset in DATASETS.values():
        for reader in (dataset.items, dataset.interactions):
            reading, rows = Reading(path, "form"), 0
            try:
                for line, *row in reader(reading):
                    rows += 1
                    assert 1 <= line <= reading.lines and row[0] and row[1]
                    "".join(map(str, row)).encode()  # what a table can hold
            except RecnbError as error:
                assert "file, line 1:" in str(error) or "cannot be read" in str(error)
            assert rows + sum(one.rows for one in reading.left_out.values()) == reading.lines


NAMES = ["username", "product_id", "date", "text", "hours", "page"]
PIECES = ["username", "u'username': u'x'", "\\", "\\'", "'", '"', "\n", "\\u", "\u2665", "é", ", "]
FIELDS = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES)).map("".join))
FIELDS |= st.integers(0, 10**15) | st.booleans() | st.none()


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), FIELDS), max_size=7), st.sampled_from([repr, ascii])
)
def test_the_quick_way_reads_as_python_does(pairs, write):
    parts = [f"u'{k}': {'u' if isinstance(v, str) else ''}{write(v)}" for k, v in pairs]
    line = ("{" + ", ".join(parts) + "}").encode("utf-8", "surrogatepass")
    reading = Reading(Path("file"), "form")
    found = steam.review(reading, 1, line)
    try:
        row = ast.literal_eval(line.decode())
    except UnicodeDecodeError:
        assert found is None
        return
    assert found == tuple(row.get(key) for key in steam.WANTED)


@given(st.text("{}u'\":, abc1\\nx", max_size=40))
def test_the_quick_way_takes_nothing_that_python_refuses(text):
    quick = steam.FLAT.fullmatch("{u'username': " + text + "}")
    if quick:
        assert isinstance(ast.literal_eval("{u'username': " + text + "}"), dict)


@given(st.text(max_size=40) | st.lists(st.sampled_from(["&amp;", "&", "lt;", "<b>", ", The"])))
def test_a_cleaned_title_is_clean(pieces):
    title = raw.plain("".join(pieces))
    assert raw.plain(title) == title and "\n" not in title


class Shop(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; drops each connection after ``server.least`` bytes."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        if self.path not in server.files:
            return self.send_error(404)
        if server.busy:
            server.busy -= 1
            return self.send_error(503)
        content, etag = server.files[self.path]
        start = 0
        same = self.headers.get("If-Range") in (None, etag)
        if server.ranges and self.headers.get("Range") and same:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(content) and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : start + server.least])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A server of two files, one of them with a known sha256, as the only place there is."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.asked, server.ranges, server.busy, server.least = [], True, 0, 10**9
    content = np.random.default_rng(0).bytes(300_000)
    server.files = {
        "/a.json.gz": (gzip.compress(content, mtime=0), '"one"'),
        "/b.dat": (b"1::2::3", '"b"'),
    }
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    (tmp_path / "b").write_bytes(b"1::2::3")
    pinned = {"urls": [f"{server.address}/b.dat"], "sha256": sha256(tmp_path / "b"), "bytes": 7}
    files = {"a.json.gz": {"urls": [f"{server.address}/a.json.gz"]}, "b.dat": pinned}
    about = {"title": "T", "licence": "L", "page": "P", "files": files}
    monkeypatch.setattr(download, "known", lambda: {"thing": about})
    monkeypatch.setattr(download, "WAIT", 0.001)
    monkeypatch.setenv("RECNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def whole(server, folder):
    return (folder / "a.json.gz").read_bytes() == server.files["/a.json.gz"][0]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if ".part" in path.name)


def test_a_download_goes_on_where_it_broke_off(shop, tmp_path, capsys):
    shop.least = 100_000
    folder = download.fetch("thing")
    ranges = [asked for path, asked in shop.asked if path == "/a.json.gz"]
    assert whole(shop, folder) and ranges == [None, *(f"bytes={n}00000-" for n in (1, 2, 3))]
    assert "was not verified" in capsys.readouterr().out and not leftovers(folder)
    record = json.loads((folder / "sha256.json").read_text())
    assert record["a.json.gz"]["sha256"] == sha256(folder / "a.json.gz")
    assert [row["trust"] for row in record.values()] == ["first use", "pinned in downloads.yaml"]
    shop.asked.clear()
    assert download.fetch("thing") == folder and not shop.asked


def test_a_killed_download_goes_on(shop, tmp_path, monkeypatch):
    shop.least, folder = 100_000, tmp_path / "cache" / "raw" / "thing"
    monkeypatch.setattr(download.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        download.fetch("thing")
    assert leftovers(folder) == ["a.json.gz.part", "a.json.gz.part.json"]
    shop.least = 10**9
    download.fetch("thing")
    assert shop.asked[1] == ("/a.json.gz", "bytes=100000-") and whole(shop, folder)


def test_a_file_that_changed_meanwhile_begins_anew(shop, tmp_path, monkeypatch):
    shop.least, folder = 100_000, tmp_path / "cache" / "raw" / "thing"

    def changed(_):
        content = gzip.compress(np.random.default_rng(1).bytes(250_000))
        shop.files["/a.json.gz"], shop.least = (content, '"two"'), 10**9

    monkeypatch.setattr(download.time, "sleep", changed)
    download.fetch("thing")
    assert whole(shop, folder) and not leftovers(folder)


def test_without_ranges_a_download_begins_anew(shop, monkeypatch):
    shop.least, shop.ranges = 100_000, False
    monkeypatch.setattr(download.time, "sleep", lambda _: setattr(shop, "least", 10**9))
    assert whole(shop, download.fetch("thing"))


def test_a_busy_server_is_asked_again(shop):
    shop.busy = download.TRIES - 1
    assert whole(shop, download.fetch("thing"))


def test_one_message_when_it_cannot_be(shop, tmp_path, monkeypatch, capsys):
    shop.least = 0
    with pytest.raises(RecnbError, match=r"cannot download a.json.gz: .*--mirror FOLDER"):
        download.fetch("thing")
    shop.least = 100_000
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(RecnbError, match="100,000 bytes are kept; run again to go on"):
        download.fetch("thing")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 9))
    with pytest.raises(RecnbError, match="needs [0-9,]+ more bytes and .* has 9 left"):
        download.fetch("thing")


def test_a_mirror_is_for_raw_data(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["recnb", "fetch", "smoke", "--mirror", "x"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and "smoke is no raw data set (amazon" in capsys.readouterr().err


def test_a_disk_that_fills_up(shop, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download, "_one_connection", full)
    with pytest.raises(RecnbError, match="cannot fetch into .*No space left on device.*again"):
        download.fetch("thing")


def test_no_network(shop, tmp_path):
    shop.shutdown()
    shop.server_close()
    with pytest.raises(RecnbError, match="cannot download a.json.gz: .*refused.*--mirror"):
        download.fetch("thing")
    assert not list((tmp_path / "cache" / "raw" / "thing").iterdir())


@pytest.mark.parametrize(
    "path, content, message",
    [
        ("/a.json.gz", b"<html>Sorry</html>", "no gzip file, it begins with '<html>Sorry"),
        ("/b.dat", b"1::2::4", "sha256 is"),
        ("/b.dat", b"1::2", "has 4 bytes, expected are 7"),
    ],
)
def test_what_is_not_the_file_is_refused(shop, tmp_path, path, content, message):
    shop.files[path] = content, '"x"'
    with pytest.raises(RecnbError, match=message):
        download.fetch("thing")
    folder = tmp_path / "cache" / "raw" / "thing"
    assert not (folder / path[1:]).exists() and not leftovers(folder)


def test_the_first_download_is_trusted_and_holds(shop):
    folder = download.fetch("thing")
    with open(folder / "a.json.gz", "ab") as file:
        file.write(b"more")
    with pytest.raises(RecnbError, match="is not the file that it was"):
        download.fetch("thing")
    (folder / "a.json.gz").unlink()
    shop.files["/a.json.gz"] = gzip.compress(b"another"), '"x"'
    with pytest.raises(RecnbError, match="sha256 is"):
        download.fetch("thing")
    (folder / "sha256.json").write_text("[1]")
    with pytest.raises(RecnbError, match="sha256.json is damaged"):
        download.fetch("thing")


def test_a_mirror(shop, tmp_path, monkeypatch):
    (tmp_path / "mirror" / "thing").mkdir(parents=True)
    for path, (content, _) in shop.files.items():
        (tmp_path / "mirror" / "thing" / path[1:]).write_bytes(content)
    folder = download.fetch("thing", str(tmp_path / "mirror"))
    assert whole(shop, folder) and not shop.asked
    assert "machine" not in (record := (folder / "sha256.json").read_text())
    assert str(tmp_path) not in record
    shutil.rmtree(folder)
    shop.files |= {f"/copy/thing{path}": file for path, file in shop.files.items()}
    assert whole(shop, download.fetch("thing", f"{shop.address}/copy/"))
    assert {path for path, _ in shop.asked} == {"/copy/thing/a.json.gz", "/copy/thing/b.dat"}
    shutil.rmtree(folder)
    with pytest.raises(RecnbError, match="a mirror has a folder a dataset"):
        download.fetch("thing", str(tmp_path))


def test_the_second_address_is_asked_if_the_first_has_nothing(shop, monkeypatch):
    about = download.known()["thing"]
    about["files"]["a.json.gz"]["urls"].insert(0, f"{shop.address}/gone")
    assert whole(shop, download.fetch("thing"))
    about["files"]["b.dat"]["urls"] = [f"{shop.address}/gone", "ftp://nowhere/"]
    (download.fetch("thing") / "b.dat").unlink()
    with pytest.raises(RecnbError, match="gone: the server answers 404; .*nowhere/: no address"):
        download.fetch("thing")


def test_members_of_a_zip_file(shop, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as bundle:
        bundle.writestr("ml/ratings.dat", "1::1::5::0")
    shop.files["/z.zip"] = (tmp_path / "z.zip").read_bytes(), '"z"'
    files = download.known()["thing"]["files"]
    files["z.zip"] = {"urls": [f"{shop.address}/z.zip"], "members": ["ml/ratings.dat"]}
    folder = download.fetch("thing")
    (folder / "ratings.dat").write_text("damaged")
    assert (download.fetch("thing") / "ratings.dat").read_text() == "1::1::5::0"
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == []


def test_addresses_fit_what_prepare_reads():
    known = yaml.safe_load(Path(download.__file__).with_name("downloads.yaml").read_text())
    assert set(known) == set(DATASETS)
    for name, about in known.items():
        there = {Path(m).name for one in about["files"].values() for m in one.get("members", [])}
        there |= set(about["files"])
        assert set(DATASETS[name].item_files) & there and set(DATASETS[name].log_files) & there
        for one in about["files"].values():
            assert all(url.startswith("https://") for url in one["urls"])
            assert one.get("sha256") is None or len(one["sha256"]) == 64


def test_from_rehearsal_to_tables_on_the_command_line(tmp_path, monkeypatch, capsys):
    raw_files, out = str(tmp_path / "raw"), str(tmp_path / "out")
    for command in (
        ["rehearse", "steam", raw_files, "--users", "200", "--items", "80"],
        ["prepare", "steam", raw_files, out, "--k-core", "4", "--user-core", "6", "--users", "50"],
        ["check-data", out],
    ):
        monkeypatch.setattr("sys.argv", ["recnb", *command])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    text = capsys.readouterr().out
    assert "Table 1" in text and "no problem" in text
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert made["knobs"] == {"k_core": 4, "user_core": 6, "users": 50, "seed": 0}


def test_movietweetings_by_the_commands_of_the_page(tmp_path, monkeypatch, capsys):
    """On invented files that lie as in the published repository."""
    page = (root() / "docs" / "datasets.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0].split() for line in page.splitlines() if "/recnb " in line]
    own = [words[1:] for words in lines if "data/movietweetings" in " ".join(words)]
    assert [words[0] for words in own] == ["prepare", "check-data", "run"]
    monkeypatch.chdir(tmp_path)
    rehearsal.write("movietweetings", Path(own[0][2]), 200, 80)
    for words in own[:2]:
        monkeypatch.setattr("sys.argv", ["recnb", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    assert "no problem" in capsys.readouterr().out
    knobs = dict(word.split("=") for word in own[2] if "=" in word)
    assert load("laptop", overrides([f"{k}={v}" for k, v in knobs.items()])).data.path == own[0][3]


def test_a_walk_is_not_held_in_memory():
    rows = rehearsal.walks(10**9, 100, np.random.default_rng(0))
    assert len(list(islice(rows, 5000))) == 5000


def test_people_of_a_walk_have_as_many_interactions_as_asked():
    for length, least in ((20, 8), (56, 22)):
        users = [row[0] for row in rehearsal.walks(900, 400, np.random.default_rng(0), length)]
        sizes = np.bincount(users)
        staying = sizes[sizes > 1]
        assert staying.min() > least and abs(staying.mean() - length) < 0.1 * length
        assert 0.25 < (sizes == 1).mean() < 0.42
