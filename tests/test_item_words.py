"""A catalogue of games reads nothing about films: the words are the catalogue's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recnb.baselines import tallrec
from recnb.evaluation.tables import reported
from recnb.profile import root
from tests.catalogues import books, games

FILM = re.compile(r"film|movie|cinema", re.IGNORECASE)
QUOTED = re.compile(r"MovieLens|The paper's datasets: Movie |Movie \(paper\)|paper, Movie")
"""Names of data sets and the paper's own rows are no words for this run's items."""
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TITLES = ["", *[f"Puerto Rico {n}" for n in range(1, 8)]]


def film_words(text):
    """The lines of a text that speak of films."""
    return [line for line in text.splitlines() if FILM.search(QUOTED.sub("", line))]


def test_the_search_finds_a_film_word_and_passes_quoted_names():
    assert film_words("MovieLens-100K\nThe target movie") == ["The target movie"]


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
            assert not film_words(path.read_text(encoding="utf-8")), path
    train = pd.read_parquet(run / "03_instructions" / "train.parquet")
    assert not film_words("\n".join([*train["prompt"], *train["completion"]]))
