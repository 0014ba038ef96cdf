import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recnb import RecnbError
from recnb.catalog import Catalog, clean_title, shorten, unique_titles
from recnb.datasets import assemble, build, merged, tabular
from recnb.interactions import Histories, k_core, statistics, time_order
from recnb.profile import Data


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("Usual Suspects, The (1995)", "The Usual Suspects (1995)"),
        ("Usual Suspects, The", "The Usual Suspects"),
        ("Good, The Bad and The Ugly, The (1966)", "The Good, The Bad and The Ugly (1966)"),
        ("Cry, the Beloved Country (1995)", "Cry, the Beloved Country (1995)"),
        ("a\nb\t c", "a b c"),
        ("Tom &amp; <b>Jerry</b>", "Tom & Jerry"),
        ("\U0001f600 'quoted' \"x\"", "\U0001f600 'quoted' \"x\""),
    ],
)
def test_clean_title(raw, clean):
    assert clean_title(raw) == clean


WORDS = st.text(alphabet="abAB (2)", min_size=1, max_size=6).map(str.strip).filter(bool)


@given(st.lists(WORDS, max_size=20))
def test_unique_titles(titles):
    unique = unique_titles(titles)
    assert len({t.casefold() for t in unique}) == len(titles)
    assert all(new.startswith(old) for old, new in zip(titles, unique, strict=True))


def test_long_titles_are_cut_and_stay_unique():
    long = "A very long name " * 30
    assert shorten("The Usual Suspects (1995)") == "The Usual Suspects (1995)"
    cut = unique_titles([shorten(long + "one"), shorten(long + "two")])
    assert len(set(cut)) == 2 and all(len(title) < 300 for title in cut)
    assert long.startswith(shorten(long)) and len(shorten("!" * 100)) == 64


def test_catalog_finds_and_suggests(toy):
    assert toy.find(" A1 ") == 1 and toy.find("a3") is None and len(toy) == 6
    assert toy.members("A") == {1, 2, 5}
    with pytest.raises(RecnbError, match="nearest: A"):
        toy.members("AA")
    with pytest.raises(RecnbError, match="none of 1 items has a category"):
        Catalog(["x"], [set()])


def test_k_core_by_brute_force(rng):
    log = pd.DataFrame({"user": rng.integers(30, size=300), "item": rng.integers(40, size=300)})
    log = log.drop_duplicates()
    left = k_core(log, 5)
    assert left["user"].value_counts().min() >= 5 and left["item"].value_counts().min() >= 5
    rows = set(map(tuple, log.values))
    while True:
        users, items = [u for u, _ in rows], [i for _, i in rows]
        bad = {(u, i) for u, i in rows if users.count(u) < 5 or items.count(i) < 5}
        if not bad:
            break
        rows -= bad
    assert set(map(tuple, left.values)) == rows
    with pytest.raises(RecnbError, match="lower data.k_core"):
        k_core(log, 100)


def test_ties_keep_file_order():
    log = pd.DataFrame({"user": [1, 1, 1], "item": [9, 3, 5], "timestamp": [7, 7, 2]})
    assert time_order(log)["item"].tolist() == [5, 9, 3]


def test_leave_one_out_and_round_trip(tmp_path, world):
    catalog, histories = world
    assert histories.target(0, "test") == histories.items[0][-1]
    assert histories.target(0, "validation") not in histories.seen(0, "validation")
    histories.to_parquet(tmp_path / "h.parquet")
    catalog.to_parquet(tmp_path / "c.parquet")
    again = Histories.from_parquet(tmp_path / "h.parquet")
    assert all(np.array_equal(a, b) for a, b in zip(again.items, histories.items, strict=True))
    assert Catalog.from_parquet(tmp_path / "c.parquet").categories == catalog.categories
    numbers = statistics(histories, catalog)
    assert numbers["interactions"] == sum(map(len, histories.items))


ITEMS = "item,title,categories\n1,One,A|B\n2,Two,B\n3,Three,A\n"
BARE = ITEMS.replace("A|B", "").replace(",B", ",").replace(",A", ",")
LOG = "user,item,timestamp\n" + "".join(f"{u},{i},{i}\n" for u in range(3) for i in (1, 2, 3))


@pytest.mark.parametrize(
    "items, log, message",
    [
        (ITEMS.replace("categories", "genre"), LOG, "no column 'categories'"),
        (BARE, LOG, "categories is empty"),
        (ITEMS + "1,Again,A\n", LOG, "line 5: item '1' stands there twice"),
        (ITEMS, LOG.replace("0,2,2", "0,2,yesterday"), "line 3: timestamp 'yesterday'"),
        (ITEMS, LOG.replace("timestamp", "date"), "no column 'timestamp'"),
        (ITEMS, LOG.replace("1,3,3", "1,8,3"), "line 7: item '8' is not in the table of items"),
    ],
)
def test_tabular_names_file_and_row(tmp_path, items, log, message):
    (tmp_path / "items.csv").write_text(items)
    (tmp_path / "interactions.csv").write_text(log)
    with pytest.raises(RecnbError, match=message):
        tabular.read(Data(dataset="tabular", path=str(tmp_path)))


def test_tabular_works(tmp_path):
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "interactions.csv").write_text(LOG)
    catalog, histories = assemble(*tabular.read(Data(dataset="tabular", path=str(tmp_path))), 3)
    assert catalog.titles[1:] == ["One", "Two", "Three"] and len(histories) == 3
    with pytest.raises(RecnbError, match="nothing does not exist"):
        tabular.read(Data(dataset="tabular", path=str(tmp_path / "nothing")))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_training_targets_come_from_the_latest_share_of_the_training_part(share):
    histories = Histories([np.arange(1, 43), np.arange(1, 5)])
    rng = np.random.default_rng(0)
    drawn = {user: {histories.draw_target(user, share, rng) for _ in range(500)} for user in (0, 1)}
    first = {1.0: 1, 0.5: 20, 0.01: 39}[share]
    assert drawn == {0: set(range(first, 40)), 1: {1}}


def test_items_of_one_title_become_one():
    items = pd.DataFrame(
        {
            "item": [4, 7, 9],
            "title": ["Chasing Amy (1997)", "Heat (1995)", " chasing  AMY (1997)"],
            "categories": [["Comedy"], ["Action"], ["Romance", "Comedy"]],
        }
    )
    log = pd.DataFrame(
        {
            "user": [1, 1, 1, 2],
            "item": [4, 9, 7, 9],
            "rating": [5, 1, 3, 2],
            "timestamp": [30, 10, 20, 5],
        }
    )
    kept, merged_log = merged(items, log)
    assert kept["item"].tolist() == [4, 7]
    assert kept["categories"].tolist() == [["Comedy", "Romance"], ["Action"]]
    rows = merged_log[["user", "item", "rating", "timestamp"]].to_numpy().tolist()
    assert rows == [[1, 4, 1, 10], [1, 7, 3, 20], [2, 4, 2, 5]], "the earlier of two ratings stays"
    assert items["categories"][0] == ["Comedy"], "the given table is left as it is"


def test_movielens_holds_each_film_once(smoke):
    knobs = smoke.data.model_copy(update={"dataset": "movielens-100k", "merge_titles": True})
    catalog, histories = build(knobs, 0)
    assert not [title for title in catalog.titles if title.endswith(" (2)")]
    assert all(len(set(items.tolist())) == len(items) for items in histories.items)
