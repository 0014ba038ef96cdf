"""The book: its pages agree with kit and notebooks; built, every link leads somewhere."""

import base64
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from recnb import RecnbError, cli, profile
from recnb.profile import STAGES, root
from recnb.report import glossary
from tests.test_dependencies import locked

BOOK = root() / "docs" / "book"
NOTEBOOKS = sorted((root() / "notebooks").glob("*.ipynb"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
PIXEL += "AAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BOOK_PYTHON = root() / ".venv-book" / "bin" / "python"


@cache
def book():
    """docs/book/prepare.py as a module."""
    spec = importlib.util.spec_from_file_location("prepare", BOOK / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def markdown_of(notebook):
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@cache
def texts():
    """``{name: Markdown}`` of the book's pages and of the notebooks as they stand."""
    return book().pages() | {f"notebooks/{path.name}": markdown_of(path) for path in NOTEBOOKS}


# ---- the quiz


def test_each_question_is_answered_where_the_quiz_says():
    questions = book().quiz()
    assert len(questions) == 10
    for entry in questions:
        page, _, place = entry["place"].partition("#")
        found = book().sections((BOOK / page).read_text("utf-8"))
        assert place in found, entry["place"]
        for words in entry["says"]:
            assert words.lower() in found[place][1].lower(), f"{entry['place']} lacks {words!r}"
        assert entry["answer"].strip() and entry["question"].strip()


def test_a_question_without_its_section_is_found(monkeypatch):
    with pytest.raises(RecnbError, match="no section #nowhere"):
        book().heading_of("primer.md#nowhere")


def test_the_worked_numbers_of_the_pages_are_right():
    import torch

    from recnb.evaluation.statistics import holm
    from recnb.ppo.ppo_math import gae

    row = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    for lam in (1.0, 0.5, 0.0):
        advantages = gae(row, torch.zeros_like(row), torch.ones_like(row), 1.0, lam)[0][0].tolist()
        cells = " | ".join(f"{a:g}" for a in advantages)
        assert f"| lambda = {lam:g} | {cells} |" in texts()["docs/book/primer.md"]
    page = texts()["docs/book/reading_intervals.md"]
    table = re.findall(r"^\| (\.\d+) \| \d \| \.\d+ \| (\.\d+) \|$", page, re.MULTILINE)
    p, corrected = zip(*[map(float, row) for row in table], strict=True)
    assert len(p) == 4 and holm(list(p)) == pytest.approx(corrected)
    assert [v < 0.05 for v in holm([0.01, 0.02, 0.03, 0.2])] == [True, False, False, False]


# ---- glossary and notation


def test_every_name_of_the_tables_has_an_entry():
    metrics = pd.read_csv(book().REFERENCE / "tables" / "metrics.csv")
    names = {name for column in ("system", "decoding", "task") for name in metrics[column]}
    names |= {name.removesuffix(" without control") for name in metrics["metric"]}
    lacking = [n for n in names if not any(t.pattern.fullmatch(n) for t in glossary.terms())]
    assert not lacking, f"recnb/report/glossary.yaml lacks {sorted(lacking)}"
    page = texts()["docs/book/glossary.md"]
    assert all(f"| `{term.name}` |" in page for term in glossary.terms())


def symbols(text):
    """Formulas in the first column of tables headed "symbol"."""
    found, inside = set(), False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.startswith("| symbol |"):
            inside = True
        elif inside:
            found |= set(re.findall(r"\$[^$]+\$", line.split("|")[1]))
    return found


def test_every_symbol_of_the_notebooks_is_explained():
    known = symbols(texts()["docs/book/notation.md"])
    assert len(known) > 30
    for path in NOTEBOOKS:
        lacking = symbols(markdown_of(path)) - known
        assert not lacking, f"docs/book/notation.md lacks {lacking} of {path.name}"


# ---- commands

STARTS = ("recnb ", ".venv/bin/recnb ", "make ", "python ", ".venv/bin/python ")


def commands(text):
    """Command lines of a page: of its blocks, and what stands between backticks."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language in ("", "sh", "bash", "console"):
            found += [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]
    return [command for command in found if command.startswith(STARTS)]


def expect_command(command):
    """Fail unless the command line could be given as it stands."""
    words = [w for w in shlex.split(command, comments=True) if w not in ("...", "…", "&&")]
    program, words = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        makefile = (root() / "Makefile").read_text("utf-8")
        for target in [word for word in words if "=" not in word]:  # the rest are variables
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), (
                f"no target {target}"
            )
        for name in [word.partition("=")[0] for word in words if "=" in word]:
            assert re.search(rf"^{re.escape(name)} \?=", makefile, re.MULTILINE), f"no {name}"
        return
    if program == "python":
        if words[0].endswith(".py"):
            assert (root() / words[0]).is_file(), words[0]
        return
    group = typer.main.get_command(cli.app)
    if len(words) == 1 and words[0] in group.commands:
        return  # the name of a command, in a sentence
    assert words[0].startswith("-") or words[0] in group.commands, f"no command {words[0]}"
    if words[0].startswith("-"):
        return
    context = group.commands[words[0]].make_context(words[0], words[1:])
    said = context.params
    names = ["laptop"]
    if words[0] in ("run", "tune", "doctor", "plan"):
        names = said.get("names") or [said.get("name")]
    for name in ["laptop" if name in (None, "PROFILE") else name for name in names]:
        profile.load(name, cli.overrides(said.get("set_") or []))
        for key, values in cli.overrides(said.get("try_") or [], "--try").items():
            for value in values:
                profile.load(name, {key: value})
    assert not said.get("until") or said["until"] in STAGES, said["until"]


def test_every_command_of_the_book_exists():
    count = 0
    for place, text in texts().items():
        for command in commands(text):
            try:
                expect_command(command)
            except Exception as error:
                pytest.fail(f"{place}: {command}: {type(error).__name__}: {error}")
            count += 1
    assert count > 40


@pytest.mark.parametrize(
    "command",
    [
        "make reproduction",
        "recnb go",
        "recnb run laptop --sett a=1",
        "recnb run laptop --set ppo.kl=1",
        "recnb tune laptop --try 'ppo.kl_weight=[-1]'",
        "recnb run laptop --until 04",
        "python benchmarks/nothing.py",
    ],
)
def test_a_command_that_does_not_exist_is_found(command):
    assert commands(f"```\n{command}\n```") == [command] == commands(f"or `{command}`")
    with pytest.raises(BaseException) as found:
        expect_command(command)
    assert not isinstance(found.value, KeyboardInterrupt)


def test_harmless_commands_run(tmp_path, monkeypatch):
    """As a project page and the pages on machines show them, on the reference run."""
    monkeypatch.setenv("RECNB_RUNS", str(book().REFERENCE.parent))
    monkeypatch.chdir(tmp_path)
    for command in ("recnb doctor", "recnb requests prompts.csv --run laptop"):
        assert any(command in text for text in texts().values())
        done = CliRunner().invoke(cli.app, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.output, done.exception)
    assert len(pd.read_csv(tmp_path / "prompts.csv")) > 1000


# ---- course plans and slides


def test_course_plans_add_up_and_name_what_there_is():
    page = texts()["docs/book/course_plans.md"]
    found = book().sections(page)
    for plan in ("ninety-minutes", "a-lab-of-ninety-minutes"):
        minutes = re.findall(r"^\| (\d+) \|", found[plan][1], re.MULTILINE)
        assert sum(map(int, minutes)) == 90, plan
    weeks = re.findall(r"^\| \d \| (\d+) \|", found["two-weeks"][1], re.MULTILINE)
    stated = 0
    for path in NOTEBOOKS:
        stated += int(re.search(r"\| Time \| (\d+) minutes", markdown_of(path))[1])
    assert len(weeks) == 8 and sum(map(int, weeks)) >= stated, "less time than the notebooks state"
    exercises = {
        number
        for path in NOTEBOOKS
        for number in re.findall(r"^\*\*(\d\.\d) ", markdown_of(path), re.MULTILINE)
    }
    tables = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    cells = [cell for row in tables.splitlines() for cell in row.split("|")]
    named = {n for cell in cells if "notebooks/" not in cell for n in re.findall(r"\d\.\d", cell)}
    assert named and named <= exercises, named - exercises
    assert all(f"{stage}.ipynb" in page for stage in STAGES[:7])


def test_twenty_slides_show_the_runs_own_numbers(tmp_path, monkeypatch):
    deck = book().slides()
    assert len(re.findall("<section>", deck)) == 20 and "–</td>" not in deck
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', deck)
    told = re.findall(r'<img\b[^>]*?\balt="([^"]*)"', deck)
    assert len(told) == len(re.findall("<img", deck)) > 8 and min(map(len, told)) > 40
    run = tmp_path / "laptop"
    shutil.copytree(book().REFERENCE, run)
    path = run / "tables" / "metrics.csv"
    metrics = pd.read_csv(path)
    chosen = (
        (metrics["system"] == "full") & (metrics["task"] == "I2~30") & (metrics["metric"] == "CPA")
    )
    metrics.loc[chosen, "value"] = 12.34
    metrics.to_csv(path, index=False)
    monkeypatch.setattr(book(), "REFERENCE", run)
    assert "1234.0 %" in book().slides() and "1234.0 %" not in deck


# ---- chapters


def notebook(tmp_path, *cells):
    path = tmp_path / "01_data.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def code(source, *outputs, tags=()):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def test_a_chapter_keeps_what_a_reader_needs(tmp_path):
    out = nbformat.v4.new_output
    picture = out("display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": 'a "<b>'}})
    view = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox()"}
    widget = out("display_data", view)
    cells = [
        nbformat.v4.new_markdown_cell(
            "# A\n[x](../recnb/sft.py) [y](02_teacher.ipynb) [z](../LICENSE)"
        ),
        code('profile = "smoke"', tags=["parameters"]),
        code('profile = "/home/me/laptop.yaml"', tags=["injected-parameters"]),
        code("1", out("stream", name="stderr", text="noise"), widget, picture),
        code("2", out("stream", text="in /tmp/abc/run/tables and 3/4 of https://a.b/home/c\n")),
        code("_ = stage.finish({})"),
        code("_ = check.leave_one_out(my_leave_one_out)", tags=["exercise"]),
        code("_ = stage.finish({})\nprint('found')", out("stream", text="found\n")),
    ]
    everything = {"api/recnb.sft.md", "notebooks/02_teacher.ipynb"}
    made = book().chapter(notebook(tmp_path, *cells), everything).cells
    assert made[0].source == "# A\n[x](../api/recnb.sft.md) [y](02_teacher.ipynb) z"
    assert [c.metadata.get("tags") for c in made[1:3]] == [["remove-cell"], ["hide-input"]]
    assert made[2].metadata["mystnb"]["code_prompt_show"] == "Show the parameters of this run"
    assert made[2].source == 'profile = "laptop.yaml"'
    (image,) = made[3].outputs
    assert (
        'alt="a &quot;&lt;b&gt;" width="1" src="data:image/png;base64,' in image.data["text/html"]
    )
    assert made[4].outputs[0].text == "in tables and 3/4 of https://a.b/home/c\n"
    assert made[5].metadata["tags"] == ["remove-cell"]
    assert made[-1].metadata["tags"] == ["remove-input"] and made[-1].outputs[0].text == "found\n"
    assert (
        made[7].source.startswith("<details><summary>Solution")
        and "def leave_one_out" in made[7].source
    )
    assert made == book().chapter(notebook(tmp_path, *cells), everything).cells


def test_a_chapter_has_todays_words_and_the_runs_numbers(tmp_path):
    """A run is older than the text: what is still the same code keeps its outputs."""

    def told(text):
        return nbformat.v4.new_output("stream", text=text)

    def with_id(cell, name):
        cell["id"] = name
        return cell

    def text(source):
        return with_id(nbformat.v4.new_markdown_cell(source), "text")

    parameters = with_id(code('run = "lesson"', tags=["parameters"]), "parameters")
    injected = with_id(code('run = "laptop"', tags=["injected-parameters"]), "any")
    then = [
        text("# Old"),
        parameters,
        injected,
        with_id(code("1", told("of the run")), "same"),
        with_id(code("2", told("by the old code")), "changed"),
        with_id(code("9", told("gone")), "dropped"),
    ]
    now = [
        text("# New"),
        parameters,
        with_id(code("1", told("of the lesson")), "same"),
        with_id(code("2 + 0", told("by the new code")), "changed"),
        with_id(code('plots.save(f, stage.folder, "dial")'), "picture"),
        with_id(code('plots.save(f, stage.folder, "none")'), "no-picture"),
        with_id(code("saw(up, 'it rose')", told("seen: it rose")), "claims"),
        with_id(code("_ = check.gae(my_gae)", told("not written"), tags=["exercise"]), "exercise"),
    ]
    figures = tmp_path / "01_data" / "figures"
    figures.mkdir(parents=True)
    (figures / "dial.png").write_bytes(base64.b64decode(PIXEL))
    (figures / "dial.json").write_text('{"alt": "a dial"}')
    (tmp_path / "notebooks").mkdir()
    executed = tmp_path / "notebooks" / "01_data.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=then), executed)
    made = book().chapter(executed, set(), notebook(tmp_path, *now)).cells
    said = [c.source[:9] for c in made if c.cell_type == "markdown"]
    notes = book().OTHER_RUN[:9], book().CLAIMS[:9]
    assert said == ["# New", *notes, "<details>"]
    ran = {c.source: c.outputs for c in made if c.cell_type == "code"}
    assert 'run = "laptop"' in ran and "9" not in ran
    assert ran["1"][0].text == "of the run" and ran["2 + 0"][0].text == "by the new code"
    picture, nothing, claims = list(ran.values())[-4:-1]
    assert 'alt="a dial"' in picture[0].data["text/html"] and nothing == claims == []
    assert made[[c.source for c in made].index("2 + 0") + 1].source == book().OTHER_RUN


def test_a_chapter_that_failed_is_refused(tmp_path):
    failed = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    with pytest.raises(RecnbError, match="cell 0 ended in ValueError"):
        book().chapter(notebook(tmp_path, code("1", failed)), set())


def test_a_link_to_nothing_is_refused():
    with pytest.raises(RecnbError, match="docs/a.md: the link to b.md leads to no file"):
        book().relink("[b](b.md)", "docs/a.md", {"docs/a.md"})
    with pytest.raises(RecnbError, match="docs/a.md: the picture b.png is not there"):
        book().pictures("![b](b.png)", "docs/a.md")


def test_folded_hints_become_markdown():
    text = "<details><summary>Hint</summary>$p_v$, <code>a &lt; *b*</code>"
    text += "<pre>x = 1\ny</pre></details>"
    made = book().unfold(text)
    assert "\n\n$p_v$, `a < *b*`\n\n```python\nx = 1\ny\n```\n\n</details>" in made


@pytest.mark.parametrize("folder", ["papermill_runs/reference/laptop/notebooks", "notebooks"])
def test_all_sources_are_written(folder, tmp_path, monkeypatch):
    """From the reference run's notebooks, and from those of today, which a next run will hold."""
    monkeypatch.setattr(book(), "mathjax", lambda folder: None)
    book().prepare(tmp_path, root() / folder)
    written = {str(p.relative_to(tmp_path / "source")) for p in tmp_path.rglob("*") if p.is_file()}
    assert {f"notebooks/{stage}.ipynb" for stage in STAGES} | set(book().pages()) <= written
    assert {f"api/{module}.md" for module in book().modules()} <= written
    shown = {p for place, text in book().pages().items() for p in book().pictures(text, place)}
    assert "benchmarks/growth.png" in shown and shown <= written
    for path in (tmp_path / "source").rglob("*"):
        if path.suffix in (".md", ".ipynb", ".html"):
            text = path.read_text("utf-8")
            assert str(root()) not in text and str(Path.home()) + "/" not in text, path
    for path in (tmp_path / "source" / "notebooks").glob("*.ipynb"):
        nbformat.validate(nbformat.read(path, as_version=4))
        assert not re.findall(r'<img alt=\\"\\"', path.read_text("utf-8")), path


def test_the_books_own_lock_is_pinned():
    assert len(locked("docs/book/requirements.lock")) > 40
    pins = locked("docs/book/requirements.lock")
    assert {"sphinx", "myst-nb", "sphinx-book-theme"} <= set(pins)


# ---- the built book


class Page(HTMLParser):
    """Links, anchors and loaded files of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.loaded = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("script", "img", "iframe") and attributes.get("src"):
            self.loaded.append(attributes["src"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(attributes["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The HTML folder of a book that was built without a warning."""
    if not (root() / ".venv-book" / ".ready").is_file():
        pytest.skip("the book's environment is not there: make book makes it")
    if not (book().cache_folder() / book().MATHJAX).is_file() and not shutil.which("npm"):
        pytest.skip("npm, which fetches MathJax, is not installed")
    folder = tmp_path_factory.mktemp("book")
    book().prepare(folder)
    command = [BOOK_PYTHON, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", BOOK]
    command += ["-d", folder / "doctrees", folder / "source", folder / "html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root())
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


@pytest.mark.nightly
def test_every_link_of_the_book_leads_somewhere(built):
    files = [path for path in built.rglob("*.html") if "_static" not in path.parts]
    pages = {path: Page(path.read_text("utf-8")) for path in files}
    assert len(pages) > 60
    broken, outside = [], []
    for path, page in pages.items():
        outside += [(path.name, src) for src in page.loaded if re.match(r"(https?:)?//", src)]
        for target in [*page.links, *page.loaded]:
            if re.match(r"[a-z]+:|//", target) or target == "#":
                continue
            name, _, place = target.split("?")[0].partition("#")
            aim = (path.parent / unquote(name)).resolve() if name else path
            if not aim.is_file():
                broken.append((path.name, target))
            elif (
                place
                and aim in pages
                and unquote(place) not in pages[aim].ids
                and aim.parent.name != "slides"
            ):
                broken.append((path.name, target))
    assert not broken and not outside, (broken[:20], outside[:20])


@pytest.mark.nightly
def test_the_book_names_no_path_of_this_machine(built):
    for path in built.rglob("*"):
        if path.suffix in (".html", ".js", ".inv") and path.name != "tex-svg.js":
            text = path.read_bytes().decode("utf-8", "replace")
            for where in (str(root()), str(built), str(Path.home()) + "/"):
                assert where not in text, (path, where)


def dom(address, tmp_path):
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000"]
    done = subprocess.run(
        [*command, "--dump-dom", address], capture_output=True, text=True, timeout=300
    )
    return done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM, reason="Chromium, the browser of this test, is not installed")
def test_formulas_and_search_work_without_network(built, tmp_path):
    notation = built / "docs" / "book" / "notation.html"
    page, raw = dom(notation.as_uri(), tmp_path), notation.read_text("utf-8")
    assert page.count("<mjx-container") >= raw.count('class="math notranslate') > 0
    assert "data-mjx-error" not in page
    found = dom((built / "search.html").as_uri() + "?q=bootstrap", tmp_path)
    assert "reading_intervals.html" in re.search(r'id="search-results".*', found, re.DOTALL)[0]
    assert "data-mode" in found, "the theme's switch of light and dark is gone"


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM, reason="Chromium, the browser of this test, is not installed")
def test_slides_render_their_formulas(built, tmp_path):
    deck = dom((built / "slides" / "index.html").as_uri(), tmp_path)
    assert deck.count("<mjx-container") > 5 and "data-mjx-error" not in deck
    shown = re.sub(r"<script.*?</script>", "", deck, flags=re.DOTALL)
    assert "\\[" not in shown and "\\(" not in shown, "a formula stayed as it was typed"
    assert (
        base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', deck)[1])[:4]
        == b"\x89PNG"
    )
