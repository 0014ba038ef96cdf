"""A catalogue of games reads nothing about films: the words are the catalogue's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

from recnb import plots
from recnb.baselines import tallrec
from recnb.baselines.endpoint import Endpoint
from recnb.datasets import build
from recnb.evaluation import statistics
from recnb.evaluation.cases import dial
from recnb.evaluation.protocol import REASONS, Ranker, answer_all, request_sets
from recnb.evaluation.stored import write_results
from recnb.evaluation.tables import reported
from recnb.instructions.checks import dataset_card
from recnb.instructions.synthesis import synthesize
from recnb.profile import load, root
from recnb.sft import model_card
from recnb.teacher.popularity import Popularity
from tests.catalogues import books, games

FILM = re.compile(r"film|movie|cinema", re.IGNORECASE)
QUOTED = re.compile(
    r"MovieLens|The paper's datasets: Movie |Movie \(paper\)|paper, Movie|<td>Movie</td>"
    r"|\(paper\)\W+Movie\b"
)
"""Names of data sets and the paper's own rows are no words for this run's items."""
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TITLES = ["", *[f"Puerto Rico {n}" for n in range(1, 8)]]


def film_words(text):
    """The lines of a text that speak of films."""
    return [line for line in text.splitlines() if FILM.search(QUOTED.sub("", line))]


def test_the_search_finds_a_film_word_and_passes_quoted_names():
    assert film_words("MovieLens-100K\nThe target movie") == ["The target movie"]
    assert film_words("| PALR (paper) | Movie | 0.1 |\n| full | Movie |") == ["| full | Movie |"]


@pytest.fixture
def of_books(tmp_path):
    """Profile, catalogue, histories and popularity of a catalogue of books."""
    knobs = {"dataset": "tabular", "path": str(books(tmp_path / "books")), "item_noun": "book"}
    profile = load("smoke", {f"data.{name}": value for name, value in knobs.items()})
    profile = profile.model_copy(
        update={"evaluation": profile.evaluation.model_copy(update={"users": 12, "bootstrap": 20})}
    )
    catalog, histories = build(profile.data, 0)
    return profile, catalog, histories, Popularity(histories, len(catalog))


def test_tables_cards_and_prompts_of_books_name_no_films(of_books, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "FLIPS", 200)
    profile, catalog, histories, teacher = of_books
    knobs = profile.evaluation
    requests = request_sets(histories, catalog, teacher, knobs, profile.data, 0)
    for name in ("sasrec", "popularity", "base", "v2", "full"):
        answer_all({"free": Ranker(teacher, catalog)}, requests, tmp_path, name)
    write_results(tmp_path, histories, catalog, profile, REASONS, tmp_path / "tables")
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "tables").iterdir()]
    assert len(texts) > 20
    few = profile.instructions.model_copy(
        update={"sequential": 20, "category": 20, "proportion": 30, "search": 20, "chat_share": 0}
    )
    samples = synthesize(histories, catalog, teacher, few, profile.data, 0)
    frame = pd.DataFrame(samples)
    texts += [*frame["prompt"], *frame["completion"]]
    texts.append(dataset_card(profile, frame["task"].value_counts().to_dict(), frame))
    texts.append(model_card(profile, "mini", len(frame)))
    endpoint = Endpoint(profile.endpoint, catalog, 0, tmp_path / "cache")
    for asked in requests.values():
        texts += [json.dumps(endpoint._body(request)) for request in asked[:3]]
    assert not film_words("\n".join(texts))


def test_figures_of_books_name_no_films(of_books):
    profile, catalog, histories, teacher = of_books
    systems = {"full": Ranker(teacher, catalog)}
    known = histories, catalog, teacher, profile.data, profile.cases, 0
    ratings = pd.DataFrame(
        [("untuned", 0, 0, 0.5), ("tallrec", 16, 0, 0.6)],
        columns=["system", "shots", "seed", "AUC"],
    )
    figures = [
        plots.dataset(histories, catalog),
        plots.control_dial(dial(systems, *known)),
        plots.few_shot({"book": ratings}),
        plots.token_rewards(["1. ", "Amber Harvest 1"], [0.0, 1.0]),
    ]
    words = [text.get_text() for figure in figures for text in figure.findobj(Text)]
    for figure in figures:
        plt.close(figure)
    assert "book" in words and not film_words("\n".join(words))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_sources_name_no_films(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells and not film_words("\n".join("".join(cell["source"]) for cell in cells))


def test_tallrec_asks_with_the_catalogues_word():
    log = pd.DataFrame(
        {"user": 1, "item": range(1, 8), "rating": [5, 1] * 3 + [5], "timestamp": range(7)}
    )
    game = tallrec.rating_examples(log, TITLES, "game", history=2)[0][0]
    assert not film_words(game.prompt) and 'the target game "Puerto Rico 3"?' in game.prompt
    movie = tallrec.rating_examples(log, TITLES, "movie", history=2)[0][0]
    assert movie.prompt == game.prompt.replace("target game", "target movie")


def test_the_table_of_a_book_catalogue_has_one_domain_of_its_own():
    frame = pd.DataFrame(
        [("untuned", 0, 0, 0.5), ("tallrec", 16, 0, 0.6)],
        columns=["system", "shots", "seed", "AUC"],
    )
    table = tallrec.table({"book": frame}, {}, reported()["tallrec"])
    own = table[~table["system"].str.endswith("(paper)")]
    assert set(own["domain"]) == {"book"} and not own["note"].str.contains("not run").any()
    assert not film_words(table.to_csv())


@pytest.mark.nightly
@pytest.mark.parametrize("make, noun", [(games, "game"), (books, "book")])
def test_a_whole_run_of_another_catalogue_names_no_films(make, noun, tmp_path):
    """Every text that all nine notebooks and the report write."""
    folder = make(tmp_path / "tables")
    knobs = [f"data.path={folder}", f"data.item_noun={noun}", "tallrec.like_above=6"]
    command = [sys.executable, "-m", "recnb.cli", "run", "smoke", "--run", noun]
    for knob in ["data.dataset=tabular", "instructions.chat_share=0", *knobs]:
        command += ["--set", knob]
    environment = os.environ | {"RECNB_RUNS": str(tmp_path / "runs")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root())
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / noun
    for path in run.rglob("*"):
        if path.suffix in (".ipynb", ".html", ".md", ".csv", ".tex", ".json", ".txt"):
            text = re.sub(r"[A-Za-z0-9+/=]{200,}", "", path.read_text(encoding="utf-8"))  # pictures
            assert not film_words(text), path
    train = pd.read_parquet(run / "03_instructions" / "train.parquet")
    assert not film_words("\n".join([*train["prompt"], *train["completion"]]))
