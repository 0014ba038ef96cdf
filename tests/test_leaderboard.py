"""Leaders and ties follow from tests of the users' values; a bad file stops nobody else."""

import html.parser
import sys

import numpy as np
import pandas as pd
import pytest

from recnb import RecnbError, cli, leaderboard
from recnb.evaluation import protocol, statistics
from recnb.evaluation.protocol import Ranker, request_sets
from recnb.profile import load
from recnb.teacher.popularity import Popularity
from tests.test_text_safety import NASTY, harmless

RANKING = next(iter(leaderboard.METRICS))


@pytest.fixture(scope="module")
def asked(world, teacher):
    """Profile, catalogue and requests of forty users, as a run would have stored them."""
    profile = load("smoke")
    knobs = profile.evaluation.model_copy(update={"users": 40, "bootstrap": 200})
    profile = profile.model_copy(update={"evaluation": knobs})
    return profile, world[0], request_sets(world[1], world[0], teacher, knobs, profile.data, 0)


@pytest.fixture(scope="module")
def answers(asked, world, teacher):
    """Three systems' answers; each is a table task, user, text."""
    _, catalog, requests = asked
    popular = Popularity(world[1], len(catalog))
    systems = {
        "obedient": Ranker(teacher, catalog, True),
        "plain": Ranker(teacher, catalog),
        "popular": Ranker(popular, catalog),
    }
    tables = {}
    for name, system in systems.items():
        rows = []
        for task, group in requests.items():
            answered = system.recommend(group)
            rows += [(task, r.user, a.text) for r, a in zip(group, answered, strict=True)]
        tables[name] = pd.DataFrame(rows, columns=["task", "user", "text"])
    return tables


@pytest.fixture
def folder(asked, answers, tmp_path, monkeypatch):
    monkeypatch.setattr(leaderboard, "run_requests", lambda where: asked)
    for name, table in answers.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return tmp_path


def test_pairs_are_tested_user_by_user_and_corrected_over_their_metric(folder, asked, answers):
    board = leaderboard.rank(folder, None)
    _, catalog, requests = asked
    for name, (tasks, metric, sign) in leaderboard.METRICS.items():
        values = {}
        for system, table in answers.items():
            found = protocol.values_of_texts(table, requests, catalog)
            found = found[found["metric"] == metric].set_index(["task", "user"])["value"]
            users = sorted(set.intersection(*({r.user for r in requests[t]} for t in tasks)))
            values[system] = [np.mean([found[task, user] for task in tasks]) for user in users]
            shown = board.systems.loc[system, (name, "value")]
            assert shown == pytest.approx(np.mean(values[system]), abs=1e-6)
            low, high = board.systems.loc[system, [(name, "low"), (name, "high")]]
            assert low <= shown <= high and board.systems.loc[system, (name, "n")] == len(users)
        rows = board.pairs[board.pairs["metric"] == name]
        assert len(rows) == 3
        moved = [np.subtract(values[a], values[b]) for a, b in rows[["a", "b"]].values]
        p = statistics.sign_flip_p(np.stack(moved, 1), statistics.FLIPS, 0)
        tested = [n for n, column in enumerate(moved) if np.any(column)]
        corrected = np.ones(3)
        corrected[tested] = statistics.holm(p[tested])
        assert rows["p corrected"].to_numpy() == pytest.approx(corrected)
        for row, column, q in zip(rows.to_dict("records"), moved, corrected, strict=True):
            ahead = row["a"] if column.mean() * sign > 0 else row["b"]
            assert row["better"] == (ahead if q < 0.05 else "")


def test_who_obeys_leads_and_who_answers_alike_is_tied(folder, answers):
    answers["plain"][::-1].to_csv(folder / "again.csv", index=False)
    board = leaderboard.rank(folder, None)
    assert board.systems.index[0] == "obedient" and board.tied("obedient", RANKING) == []
    assert "again" in board.tied("plain", RANKING) and "plain" in board.tied("again", RANKING)
    assert board.notes == ["again.csv, plain.csv hold the same answers"]
    text = leaderboard.write_leaderboard(board, folder / "leaderboard").read_text()
    assert "again.csv, plain.csv hold the same answers" in text
    assert "obedient before " in text
    csv = pd.read_csv(folder / "leaderboard" / "leaderboard.csv")
    assert list(csv["system"])[0] == "obedient" and f"{RANKING} low" in csv
    assert set(pd.read_csv(folder / "leaderboard" / "pairs.csv")["metric"]) == set(
        leaderboard.METRICS
    )


def test_few_repeats_are_better():
    columns = {"format RepeatItem": pd.Series(np.arange(12.0))}
    more = {"format RepeatItem": pd.Series(np.arange(12.0) + 1)}
    pairs = leaderboard._pairs({"few": columns, "many": more}, 100, 0)
    assert list(pairs["better"]) == ["few"] and pairs["difference"].item() == -1


def test_a_bad_file_is_named_and_the_rest_goes_on(folder, answers):
    table = answers["plain"]
    table.drop(columns="user").to_csv(folder / "columns.csv", index=False)
    table.assign(task="I9").to_csv(folder / "task.csv", index=False)
    pd.concat([table, table[:1]]).to_csv(folder / "twice.csv", index=False)
    (folder / "bytes.csv").write_bytes(b"\xff\xfe\x00task,user\n\x00")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "link.csv").symlink_to(folder / "plain.csv")
    (folder / "plain.metrics.csv").write_text("system,metric\n")  # what recnb score leaves there
    board = leaderboard.rank(folder, None)
    assert sorted(board.systems.index) == ["obedient", "plain", "popular"]
    said = "\n".join(board.problems)
    for part in ("columns.csv: no column 'user'", "task.csv: line 2: no task 'I9'", "twice.csv"):
        assert part in said
    assert all(name in said for name in ("bytes.csv", "empty.csv", "link.csv: a link"))
    assert len(board.problems) == 6
    text = leaderboard.write_leaderboard(board, folder / "leaderboard").read_text()
    assert "task.csv: line 2" in text
    assert len(leaderboard.rank(folder, None).problems) == 6  # its own tables are no answers


def test_tasks_that_are_left_out_have_no_rank(folder, answers):
    answers["plain"].query("task == 'I0'").to_csv(folder / "short.csv", index=False)
    board = leaderboard.rank(folder, None)
    assert board.systems.index[-1] == "short"
    assert np.isnan(board.systems.loc["short", (RANKING, "value")])
    assert board.systems.loc["short", ("I0 HR@10", "n")] == 40
    pairs = board.pairs[(board.pairs[["a", "b"]] == "short").any(axis=1)]
    assert set(pairs["metric"]) == {"I0 HR@10", "I0 NDCG@10"}
    page = leaderboard.write_leaderboard(board, folder / "leaderboard").read_text()
    assert "not answered" in page


def test_one_file_alone(folder):
    for name in ("plain", "popular"):
        (folder / f"{name}.csv").unlink()
    board = leaderboard.rank(folder, None)
    assert len(board.systems) == 1 and board.pairs.empty
    assert "nobody" in leaderboard.write_leaderboard(board, folder / "leaderboard").read_text()


def test_nothing_to_rank(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(leaderboard, "run_requests", lambda where: asked)
    with pytest.raises(RecnbError, match="no folder of answers"):
        leaderboard.rank(tmp_path / "none", None)
    with pytest.raises(RecnbError, match="no CSV file with the columns task, user, text"):
        leaderboard.rank(tmp_path, None)
    (tmp_path / "a.csv").write_text("task,text\nI0,x\n")
    with pytest.raises(RecnbError, match="(?s)no file can be scored.*a.csv: no column 'user'"):
        leaderboard.rank(tmp_path, None)


class Elements(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.add(tag)
        assert not any(name.startswith("on") or name in ("href", "src") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


def test_names_and_problems_are_plain_text_everywhere(tmp_path):
    parts = [(name, part) for name in leaderboard.METRICS for part in ("value", "low", "high", "n")]
    columns = pd.MultiIndex.from_tuples(parts)
    systems = pd.DataFrame(0.5, index=NASTY, columns=columns)
    values = {"metric": RANKING, "a": NASTY[:-1], "b": NASTY[1:], "better": [*NASTY[1:-1], ""]}
    pairs = pd.DataFrame(values)
    board = leaderboard.Board(systems, pairs, list(NASTY), list(NASTY))
    page = Elements(harmless(leaderboard.write_leaderboard(board, tmp_path).read_text()))
    assert "script" not in page.found and "img" not in page.found and "b" not in page.found
    assert page.text.count("<script>alert(1)</script>") >= 3
    harmless((tmp_path / "leaderboard.md").read_text())
    for name in ("leaderboard", "pairs"):
        frame = pd.read_csv(tmp_path / f"{name}.csv", dtype=str, keep_default_na=False)
        cells = frame.to_numpy().ravel()
        assert not [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))]


def test_the_command(folder, monkeypatch, capsys):
    (folder / "bad\x1b[31m.csv").write_text("task,text\n")
    run = folder / "run"
    run.mkdir()
    (run / "profile.yaml").write_text("name: games\n")
    command = ["recnb", "leaderboard", str(folder), "--folder", str(run)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    shown = harmless(capsys.readouterr().out)
    assert "left out: " in shown and "leaderboard.html" in shown
    assert (folder / "leaderboard" / "leaderboard.md").is_file()
