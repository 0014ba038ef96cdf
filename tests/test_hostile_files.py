"""Files from others, damaged in every way: each is read, or refused with a message that names it.

The ordinary tests draw a hundred cases a property, ``make nightly`` 10,000.
"""

import csv
import io
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from recnb import RecnbError
from recnb.baselines import tallrec
from recnb.baselines.endpoint import Endpoint
from recnb.datasets import build, tabular
from recnb.evaluation.protocol import request_sets, score_texts
from recnb.evaluation.stored import read_answers
from recnb.lm.loading import adapted, load_base, mini_model
from recnb.lm.parsing import titles_of
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.profile import load
from recnb.workflow.execute import _shorten_paths
from tests.catalogues import GAMES, tables

how = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
many, fewer = settings(**how), settings(max_examples=settings().max_examples // 4, **how)
CELLS = st.sampled_from(
    ["", "0", "1", "i1", "u1", "-1", "1.0", "1e999", "nan", "NaN", "None", "inf", "٣", "9" * 30]
    + ["2024-05-31", "9999-99-99", "a|b", "|", '"', '""', '"a', "a\nb", "\r", ",", ";", "\t", "\0"]
    + ["\ufeff", "é", "\x1b[2J", "=1", "<b>", "1. a\n2. b", "I0", "I1+", "x" * 200_000]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@st.composite
def damaged(draw, content):
    """Bytes of a sound file, cut, or with some of them changed."""
    content = bytearray(content)
    for place in draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


@st.composite
def rows(draw, columns):
    """A CSV file of those columns in some order, rows of any length, quoted or not."""
    names = draw(st.permutations(columns) | st.lists(st.sampled_from([*columns, "x"]), max_size=5))
    table = draw(st.lists(st.lists(CELLS, max_size=5), max_size=6))
    separator = draw(st.sampled_from([",", ";", "\t"]))
    file = io.StringIO()
    if draw(st.booleans()):
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows([names, *table])
    else:
        file.write("\n".join(separator.join(row) for row in [names, *table]))
    return file.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-16", "cp037"])), "replace")


def read_or_refused(read, *words):
    """Run it; an error must be the kit's, and name these words."""
    try:
        read()
    except RecnbError as error:
        assert all(word in str(error) for word in words), error


def own(folder):
    return load("smoke", {"data.dataset": "tabular", "data.path": str(folder)}).data


@many
@given(rows(["item", "title", "categories"]), rows(["user", "item", "timestamp", "rating"]))
def test_tables_of_a_catalogue(tmp_path, items, log):
    (tmp_path / "items.csv").write_bytes(items)
    (tmp_path / "interactions.csv").write_bytes(log)
    read_or_refused(lambda: build(own(tmp_path), 0))


@pytest.fixture(scope="module")
def asked(world, teacher):
    """Requests of two users."""
    smoke = load("smoke")
    knobs = smoke.evaluation.model_copy(update={"users": 2, "bootstrap": 10})
    requests = request_sets(world[1], world[0], teacher, knobs, smoke.data, 0)
    return knobs, {task: requests[task] for task in ("I0", "I1+")}


@many
@given(rows(["task", "user", "text"]) | st.binary(max_size=200))
def test_answers_to_score(tmp_path, asked, world, content):
    file = tmp_path / "answers.csv"
    file.write_bytes(content)
    knobs, requests = asked

    def score():
        score_texts(read_answers(file), requests, world[0], "theirs", knobs, 0)

    read_or_refused(score)


@settings(deadline=None)
@given(CELLS)
def test_answers_with_any_text_are_scored(asked, world, text):
    knobs, requests = asked
    table = [(task, r.user, text) for task, group in requests.items() for r in group]
    frame = pd.DataFrame(table, columns=["task", "user", "text"])
    assert len(score_texts(frame, requests, world[0], "theirs", knobs, 0))


def test_answers_are_read_as_written(tmp_path):
    file = tmp_path / "answers.csv"
    file.write_text('task,user,text\nI0,7,"1. a\n2. b, c"\nI0,8\n')
    table = read_answers(file)
    assert table.to_dict("list") == {
        "task": ["I0"] * 2,
        "user": [7, 8],
        "text": ["1. a\n2. b, c", ""],
    }
    file.write_text("task,user,text\nI0,7,1. a, b\n")
    with pytest.raises(RecnbError, match="more cells than the header"):
        read_answers(file)


def test_a_title_behind_a_million_blanks():
    """A pattern that tries every blank takes hours here."""
    assert titles_of("1. a" + " " * 1_000_000 + "b")[0].startswith("a ")


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    items, log = tables(GAMES, users=20, items=30)
    folder = tmp_path_factory.mktemp("parquet")
    items.to_parquet(folder / "items.parquet")
    log.to_parquet(folder / "interactions.parquet")
    return folder


@many
@given(st.data())
def test_a_damaged_parquet_file(parquet, tmp_path, data):
    for name in ("items.parquet", "interactions.parquet"):
        shutil.copy(parquet / name, tmp_path / name)
    name = data.draw(st.sampled_from(["items.parquet", "interactions.parquet"]))
    content = (parquet / name).read_bytes()
    (tmp_path / name).write_bytes(data.draw(damaged(content)))
    read_or_refused(lambda: build(own(tmp_path), 0))


COLUMNS = {
    "lists": (["title"], [["a", "b"]] * 30, "column 'title' holds lists, records or bytes"),
    "records": (["categories"], [{"a": 1}] * 30, "column 'categories' holds lists"),
    "bytes": (["item"], [b"\xff"] * 30, "column 'item' holds lists, records or bytes"),
    "nothing": (["item"], [None] * 30, "the item has no id (30 rows like it)"),
    "no title": (["title"], [None] * 30, "is empty once markup"),
    "numbers": (["item"], list(range(30)), "item 'i"),
    "dates": (["item"], [pd.Timestamp(0)] * 30, "stands there twice"),
    "yes": (["item"], [True] * 30, "item 'True' stands there twice"),
    "no rows": (["item"], [], "has a header and no rows"),
    "no categories": (["categories"], [None] * 30, "column categories is empty in every row"),
}


@pytest.mark.parametrize("change", COLUMNS)
def test_parquet_columns_of_another_kind(parquet, tmp_path, change):
    (column,), values, message = COLUMNS[change]
    shutil.copy(parquet / "interactions.parquet", tmp_path)
    frame = pd.read_parquet(parquet / "items.parquet").head(len(values))
    frame[column] = pd.Series(values, dtype=object if change != "dates" else None)
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "items.parquet")
    with pytest.raises(RecnbError, match="items.parquet|interactions.parquet") as refused:
        tabular.read(own(tmp_path))
    assert message in str(refused.value)


def test_a_small_parquet_file_of_gigabytes(parquet, tmp_path, monkeypatch):
    shutil.copy(parquet / "interactions.parquet", tmp_path)
    same = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, "int32")), ["x" * 100_000])
    table = pa.table({"item": same, "title": same, "categories": same})
    pq.write_table(table, tmp_path / "items.parquet", compression="zstd")
    assert (tmp_path / "items.parquet").stat().st_size < 1_000_000
    with pytest.raises(RecnbError, match="items.parquet: holds more than 4 GiB of text"):
        tabular.read(own(tmp_path))
    monkeypatch.setattr(tabular, "MOST_ROWS", 99_999)
    with pytest.raises(RecnbError, match="says it has 100,000 rows, more than 99,999"):
        tabular.read(own(tmp_path))


def test_a_column_that_stands_there_twice(tmp_path):
    (tmp_path / "items.csv").write_text("item, title,title,categories\n1,a,b,c\n")
    (tmp_path / "interactions.csv").write_text("user,item,timestamp\nu,1,1\n")
    with pytest.raises(RecnbError, match="items.csv: column 'title' stands there twice"):
        tabular.read(own(tmp_path))


def test_an_unquoted_separator_is_no_silent_loss(tmp_path):
    (tmp_path / "items.csv").write_text("item,title,categories\n1,Good, Bad,c\n")
    (tmp_path / "interactions.csv").write_text("user,item,timestamp\nu,1,1\n")
    with pytest.raises(RecnbError, match="items.csv: .*more cells than the header"):
        tabular.read(own(tmp_path))


RECORD = {"instruction": "a", "input": "b", "output": "Yes."}


@many
@given(
    st.binary(max_size=60)
    | damaged(json.dumps([RECORD]).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.lists(st.fixed_dictionaries(dict.fromkeys(RECORD, JSON))).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_tallrecs_files(tmp_path, content):
    path = tmp_path / "train.json"
    path.write_bytes(content)

    def read():
        for one in tallrec.read_json(path):
            one.prompt.encode("utf-8")

    read_or_refused(read, "train.json")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a":' * 50_000])
def test_tallrecs_files_that_are_deep_or_long(tmp_path, text):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(RecnbError, match="train.json: not readable as JSON"):
        tallrec.read_json(path)


def test_half_a_surrogate_pair_in_tallrecs_files(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([RECORD | {"input": "\ud800"}]))
    assert tallrec.read_json(path)[0].input == "\\ud800"


@many
@given(
    rows(["User-ID", "ISBN", "Book-Rating"]),
    rows(["ISBN", "Book-Title", "Book-Author"]) | st.binary(max_size=60),
)
def test_book_crossing(tmp_path, ratings, books):
    (tmp_path / "BX-Book-Ratings.csv").write_bytes(ratings)
    (tmp_path / "BX-Books.csv").write_bytes(books)
    read_or_refused(lambda: tallrec.read_book_crossing(tmp_path), "BX-Book")


def test_a_rating_that_is_none(tmp_path):
    (tmp_path / "BX-Books.csv").write_text("ISBN;Book-Title;Book-Author\n1;a;b\n")
    (tmp_path / "BX-Book-Ratings.csv").write_text("User-ID;ISBN;Book-Rating\n1;1;5\n1;1;\n")
    with pytest.raises(RecnbError, match="BX-Book-Ratings.csv, row 2: rating '' is not one of"):
        tallrec.read_book_crossing(tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory, world, smoke):
    """A mini model and an adapter for it, saved: ``(base folder, adapter folder, model)``."""
    folder = tmp_path_factory.mktemp("models")
    codec = Codec(build_tokenizer(world[0], [("What is 2?", "5.")] * 5, 400, True))
    model = mini_model(len(codec.tokenizer), smoke.model, codec, 0)
    model.save_pretrained(folder / "base")
    codec.tokenizer.save_pretrained(folder / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", load_base(folder / "base")[0]


def opened(folder, models):
    """Open a copy of either folder of ``models``."""
    if (folder / "adapter_config.json").is_file():
        return adapted(load_base(models[0])[0], folder)
    return load_base(folder)


@pytest.mark.filterwarnings("ignore")
@fewer
@given(st.data(), st.sampled_from([0, 1]))
def test_damaged_models_and_adapters(tmp_path, models, data, which):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(models[which], folder)
    files = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    path = folder / data.draw(st.sampled_from(files))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    read_or_refused(lambda: opened(folder, models), str(folder))


@pytest.mark.filterwarnings("ignore")
@fewer
@given(st.data(), st.sampled_from([0, 1]))
def test_any_value_in_a_configuration(tmp_path, models, data, which):
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(models[which], folder)
    path = folder / ("config.json", "adapter_config.json")[which]
    config = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(config)))
    path.write_text(json.dumps(config | {key: data.draw(JSON)}))
    read_or_refused(lambda: opened(folder, models), str(folder))


@pytest.mark.parametrize(
    "which, change, message",
    [
        (0, {"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000, the weights beside"),
        (0, {"num_hidden_layers": 3}, "its weights lack 9 of those that config.json names"),
        (0, {"vocab_size": 10**9}, "cannot be loaded"),
        (1, {"r": 10**9}, "r is 1,000,000,000, the weights beside it are for at most"),
    ],
)
def test_configurations_larger_than_their_weights(tmp_path, models, which, change, message):
    folder = tmp_path / "model"
    shutil.copytree(models[which], folder)
    path = folder / ("config.json", "adapter_config.json")[which]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecnbError, match=message):
        opened(folder, models)


NOTEBOOK = '{"cells":[],"metadata":{},"nbformat":4,"nbformat_minor":5,"image/png":"/home/me/x"}'


@many
@given(
    st.binary(max_size=60) | damaged(NOTEBOOK.encode()) | JSON.map(lambda v: json.dumps(v).encode())
)
def test_executed_notebooks(tmp_path, content):
    path = tmp_path / "01_data.ipynb"
    path.write_bytes(content)
    read_or_refused(lambda: _shorten_paths(path, tmp_path), "01_data.ipynb")


@pytest.mark.parametrize("home, kept", [("/", "/home/me/x"), ("/home/me", "~/x")])
def test_homes_in_executed_notebooks(tmp_path, monkeypatch, home, kept):
    path = tmp_path / "01_data.ipynb"
    path.write_text(NOTEBOOK)
    monkeypatch.setattr(Path, "home", lambda: Path(home))
    _shorten_paths(path, tmp_path)
    assert json.loads(path.read_text())["image/png"] == kept


REPLY = '{"choices":[{"message":{"content":%s}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'


@many
@given(JSON.map(json.dumps) | st.just('"\\ud800"'))
def test_answers_of_an_endpoint(tmp_path, world, content):
    endpoint = Endpoint(load("smoke").endpoint, world[0], 0, tmp_path)
    reply = httpx.Response(200, content=(REPLY % content).encode())
    read_or_refused(lambda: endpoint._read(reply)["text"].encode("utf-8"), "not a chat completion")
