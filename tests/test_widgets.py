"""What the widgets draw is what the kit computes; moving a control changes the picture."""

import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from recnb import RecnbError, widgets
from recnb.controls import About
from recnb.lm.parsing import parse
from recnb.profile import root
from recnb.widgets import live, pictures

NAMES = ["rewards", "credit", "label_filter", "trie"]


@pytest.fixture(autouse=True)
def closed():
    """No figure stays open: a slider that leaks one a move fills the memory of a lesson."""
    plt.close("all")  # what tests of other modules left
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left


@pytest.fixture
def frame():
    rows = [
        (system, "Comedy", tenth / 10, delivered)
        for system in ("v2", "full")
        for tenth in range(11)
        for delivered in (tenth / 10, 0.0)
    ]
    return pd.DataFrame(rows, columns=["system", "category", "requested", "delivered"])


def told(figure):
    """Alt text of a figure."""
    return pictures.render(figure).alt


# Pictures.


def test_rewards_of_the_first_answer_by_hand():
    request, items, score = pictures.scored(pictures.ANSWER, "about 30 % Comedy")
    assert request.control == About("Comedy", "3/10") and request.k == 10
    assert score.legal.tolist() == [True] * 5 + [False] * 3 + [True] * 2
    # Rank 0, and outside while fewer than 7 of 10 are: (1 / log2(3) + 1/2) / 2.
    assert score.item[0] == pytest.approx((1 / math.log2(3) + 0.5) / 2)
    assert score.preference[2] == 1  # the target
    # Behind Cousin Max, which the user has, all move up: Lost Keys has rank 9.
    assert score.preference[8] == pytest.approx(1 / math.log2(12))
    words = told(pictures.rewards())
    for reason in ("(a repeat)", "(in the history)", "(no such title)", "the target"):
        assert words.count(reason) == 1


def test_a_students_text_is_text():
    words = told(pictures.rewards(("<script>", "$\\frac$", ""), "no wish"))
    assert words.count("no such title") == 3
    html = pictures.as_html(pictures.render(pictures.rewards(("<script>alert(1)</script>",))))
    assert "<script" not in html and "&lt;script&gt;" in html


def test_credit_is_gae_by_hand():
    rewards, advantages = pictures.credited(0.5, 0.9)
    assert [i for i, reward in enumerate(rewards) if reward] == [2, 5, 7, 8]
    for start, advantage in enumerate(advantages):
        by_hand = sum(r * 0.45**n for n, r in enumerate(rewards[start:]))
        assert advantage == pytest.approx(by_hand, rel=1e-5)
    assert pictures.credited(0.0, 0.9)[1] == pytest.approx(rewards)


@pytest.mark.parametrize("wish", pictures.WISHES)
def test_the_filter_steps_to_the_first_list_that_obeys(wish):
    """Against all lists in the ranking's order."""
    for k in (1, 3, 5):
        ranked, found = pictures.filtered(wish, k)
        control = pictures.WISHES[wish]
        possible = (
            list(some)
            for some in itertools.combinations(ranked, k)
            if control.met(some, k, pictures.CATALOG)
        )
        assert found == next(possible, None)
        words = told(pictures.label_filter(wish, k, len(ranked)))
        assert len(re.findall(r": taken, \d+ of", words)) == len(found)


def test_the_filter_says_what_it_has_read_so_far():
    assert "Nothing is read yet" in told(pictures.label_filter(step=0))
    words = told(pictures.label_filter("no Comedy", 3, 3))
    assert "Cold Feet (Comedy): passed over" in words and "2 of 3 taken" in words
    assert "Two Left Shoes" not in words
    assert "this ranking has none" in told(pictures.label_filter("only Comedy", 9, 12))


def test_every_list_that_the_tree_can_write_obeys():
    """All paths of tokens, for two titles: the lists are those that brute force finds."""
    for wish in ("no wish", "only Comedy", "no Comedy"):
        control, found, paths = pictures.WISHES[wish], set(), [()]
        while paths:
            tokens = paths.pop()
            state, text = pictures.row_state(("Heat",), wish, 2, tokens)
            if state.done:
                found.add(tuple(parse(text, pictures.TRIE_CATALOG).items))
            paths += [(*tokens, token) for token in pictures.may_come(state)]
        unseen = [i for i in range(1, 9) if pictures.TRIE_CATALOG.titles[i] != "Heat"]
        pairs = itertools.permutations(unseen, 2)
        assert found == {p for p in pairs if control.met(p, 2, pictures.TRIE_CATALOG)}


def test_the_tree_says_why_a_title_may_not_come():
    words = told(pictures.trie(("Heat",), "only Comedy", 3, ("Night",)))
    assert "Heat (Drama) banned: the user has it" in words
    assert "Night Train (Drama) banned: the wish could not be met" in words
    assert "Night Train Home (Comedy) may come" in words and "Salt (Drama) not from here" in words
    words = told(pictures.trie((), "no wish", 2, ("Salt", "\n2. ")))
    assert "Salt (Drama) banned: listed already" in words
    ended = told(pictures.trie((), "no wish", 1, ("Salt", "<end>")))
    assert "nothing, the list is ended" in ended


def test_what_cannot_be_is_refused_with_what_could():
    with pytest.raises(RecnbError, match="'Train' may not come here; allowed: .*'Night'"):
        pictures.trie(tokens=("Train",))
    with pytest.raises(RecnbError, match="no film 'Jaws' in Toy Story"):
        pictures.trie(banned=("Jaws",))
    with pytest.raises(RecnbError, match="no wish 'more' in the examples; there are: no wish"):
        pictures.rewards(wish="more")


def test_the_dial_counts_the_answers(frame):
    words = told(pictures.dial(frame, share=30))
    assert "Line for full, Comedy" in words and "At 30 % it is 15 %" in words
    assert "of 2 answers to about 30 % Comedy, 1 lie" in words and "0 % in 1, 30 % in 1" in words
    with pytest.raises(
        RecnbError, match="no answer of base .* systems v2, full; categories Comedy"
    ):
        pictures.dial(frame, "base")


# Widgets.


@pytest.mark.parametrize("name", NAMES)
def test_a_widget_starts_with_the_picture_that_stands_for_it(name, monkeypatch):
    monkeypatch.setenv("RECNB_WIDGETS", "live")
    moved = getattr(widgets, name)()
    monkeypatch.setenv("RECNB_WIDGETS", "static")
    still = getattr(widgets, name)()
    assert moved.picture.png == still.png and moved.picture.alt == still.alt
    data, metadata = moved._repr_mimebundle_()
    same, same_metadata = still._repr_mimebundle_()
    view = "application/vnd.jupyter.widget-view+json"
    assert data.pop(view)["model_id"] == moved.box.model_id
    assert data == same and metadata == same_metadata and metadata["image/png"]["alt"]


def test_nothing_but_two_words_decides_the_form(monkeypatch):
    monkeypatch.setenv("RECNB_WIDGETS", "off")
    with pytest.raises(RecnbError, match="RECNB_WIDGETS is 'off'.*set it to live"):
        widgets.credit()
    monkeypatch.delenv("RECNB_WIDGETS")
    assert isinstance(widgets.credit(), live.Live)


def test_a_student_edits_and_reorders_the_list():
    found = live.rewards()
    fields = found.controls["titles"].lines
    fields[5].value = "Ninth Floor"
    assert "6. Ninth" not in found.picture.alt and "Ninth Floor 0." in found.picture.alt
    assert "(a repeat)" not in found.picture.alt
    assert 'alt="Bars of item rewards' in found.shown.value
    drawn = []
    draw = found.draw
    found.draw = lambda **state: drawn.append(state["titles"]) or draw(**state)
    found.up[2].click()
    assert [line.value for line in fields[:3]] == ["The Long Rain", "Night Ferry", "Cold Feet"]
    assert len(drawn) == 1 and drawn[0][1:3] == ("Night Ferry", "Cold Feet")
    assert found.up[0].disabled
    found.controls["wish"].value = "no Comedy"
    assert "under the wish “no Comedy”" in found.picture.alt


def test_sliders_move_the_picture(frame):
    found = live.credit()
    found.controls["lam"].value = 0.0
    assert "1. 0.00 and 0.00" in found.picture.alt and "lambda 0.00" in found.shown.value
    found = live.label_filter()
    found.controls["step"].value = 12
    found.controls["wish"].value = "only Comedy"
    assert "5 of 5 taken" in found.picture.alt
    found.controls["k"].value = 6  # one more than there are comedies
    assert "no list obeys" in found.picture.alt
    found.controls["k"].value = 2
    assert "2 of 2 taken" in found.picture.alt
    found = live.dial(frame)
    for share in (0, 50, 100):
        found.controls["share"].value = share
        assert f"At {share} % it is {share / 2:.0f} %" in found.picture.alt
    found.controls["system"].value = "v2"
    assert "Line for v2" in found.picture.alt


def test_a_list_is_written_by_its_buttons():
    found = live.trie()

    def press(words):
        (button,) = (b for b in found.buttons.children if b.description == words)
        button.click()

    assert [b.description for b in found.buttons.children] == [
        "Toy", "Heat", "Night", "Salt", "start again",
    ]  # fmt: skip
    for words in ("Night", "Train", "2."):
        press(words)
    assert "Written so far: 1. Night Train / 2. ." in found.picture.alt
    assert "Night Train (Drama) banned: listed already" in found.picture.alt
    found.controls["wish"].value = "only Comedy"  # a new list
    assert found.tokens == () and "Salt (Drama) banned: the wish" in found.picture.alt
    found.controls["banned"].value = tuple(pictures.TRIE_FILMS)
    assert "no list is left" in found.shown.value and not found.buttons.children
    found.controls["banned"].value = ()
    press("Heat")
    press("start again")
    assert found.tokens == ()


# The panel in a browser, and the environments that serve it.

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_binder_gets_the_versions_of_the_lock():
    """environment.yml, which Binder and conda read, has the lock's pins and the kit itself."""
    text = (root() / "environment.yml").read_text(encoding="utf-8")
    entries = [line.strip().removeprefix("- ") for line in text.split("- pip:\n")[1].splitlines()]
    lock = (root() / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lock if line and not line.startswith("#")]
    assert entries[-1] == "-e ." and sorted(entries[:-1]) == sorted(pins)


class Browser:
    """Chromium, told over two pipes what to do (its DevTools protocol)."""

    def __init__(self, folder):
        down, self.down = os.pipe()
        self.up, up = os.pipe()
        shell = f'exec "$@" 3<&{down} 4>&{up}'  # the numbers that Chromium reads and writes
        command = ["bash", "-c", shell, "bash", CHROMIUM, "--headless", "--no-sandbox"]
        command += ["--disable-gpu", f"--user-data-dir={folder}", "--remote-debugging-pipe"]
        with open(os.devnull, "w") as nowhere:
            self.process = subprocess.Popen(command, pass_fds=(down, up), stderr=nowhere)
        os.close(down)
        os.close(up)
        self.rest, self.number, self.asked, self.session = b"", 0, [], {}
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        found = self.tell("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": found["sessionId"]}

    def tell(self, method, **parameters):
        """Send one command; its result. Addresses that the page asks meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.down, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                data = os.read(self.up, 1 << 20)
                assert data, "Chromium has ended"
                self.rest += data
            line, self.rest = self.rest.split(b"\0", 1)
            event = json.loads(line)
            if event.get("method") == "Network.requestWillBeSent":
                self.asked.append(event["params"]["request"]["url"])
            if event.get("method") == "Network.webSocketCreated":
                self.asked.append(event["params"]["url"])
            if event.get("id") == self.number:
                return event["result"]


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM, reason="Chromium, the browser of this test, is not installed")
def test_the_panel_shows_five_pictures_and_asks_no_other_host(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(root() / "docs" / "panel"), str(Path(sys.prefix) / "share" / "jupyter")]
    environment = os.environ | {"JUPYTER_PATH": os.pathsep.join(paths), "RECNB_WIDGETS": "live"}
    command = [sys.executable, "-m", "voila", str(root() / "docs" / "panel" / "panel.ipynb")]
    command += ["--template=panel", "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}"]
    log, browser = tmp_path / "voila.log", None
    with open(log, "w") as written:
        server = subprocess.Popen(command, env=environment, stdout=written, stderr=written)
    try:
        deadline = time.monotonic() + 400
        while "running at" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(1)
        browser = Browser(tmp_path / "profile")
        browser.tell("Network.enable")
        browser.tell("Page.navigate", url=f"http://127.0.0.1:{port}/")
        count = "document.querySelectorAll('p[aria-live]').length"
        shown = 0
        while shown < 5:
            assert time.monotonic() < deadline, f"{shown} of 5 pictures: {log.read_text()}"
            time.sleep(1)
            shown = browser.tell("Runtime.evaluate", expression=count)["result"].get("value", 0)
        said = browser.tell("Runtime.evaluate", expression="document.body.innerText")
    finally:
        if browser:
            browser.process.terminate()
            browser.process.wait(60)
        server.terminate()
        server.wait(60)
    for words in ("passed over", "The whole list earns", "lambda", "may come", "one title of ten"):
        assert words in said["result"]["value"]
    asked = [urlsplit(url) for url in browser.asked]
    others = {url.geturl()[:200] for url in asked if url.scheme not in ("data", "blob")}
    others = {url for url in others if urlsplit(url).netloc != f"127.0.0.1:{port}"}
    assert len(asked) > 20 and not others
