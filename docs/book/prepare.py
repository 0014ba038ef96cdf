"""Writes the pages that Sphinx makes the book of: ``python docs/book/prepare.py build/book``.

The source tree mirrors the repository, so that a link that works on a page there works in the book.
Every number and figure is read from the reference run when the book is built.
"""

import base64
import html
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
import yaml

from recnb import RecnbError, check
from recnb.profile import root
from recnb.report import glossary
from recnb.sources import cache_folder, verify

BOOK = Path(__file__).resolve().parent
REFERENCE = root() / "papermill_runs" / "reference" / "laptop"
MATHJAX = "mathjax-3.2.2.tgz"
MATHJAX_SHA256 = "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09"
OWN = ["primer", "reading_intervals", "notation", "course_plans", "projects", "further_reading"]
PARTS = {
    "Before you start": ["/docs/book/primer", "/docs/book/notation", "/docs/book/glossary"],
    "Chapters": ["/notebooks/*"],
    "Judging": ["/docs/book/reading_intervals", "/docs/primary", "/benchmarks/LOG"],
    "Teaching": [
        "/docs/book/course_plans",
        "/docs/book/slides",
        "/docs/book/quiz",
        "/docs/book/projects",
        "/docs/book/further_reading",
    ],
}
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|tmp|var|mnt|opt|work)/[\w./-]*")
WIDE = 900
"""Pixels: a figure with several panels side by side is wider, and scrolls on a phone."""
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
PICTURE = re.compile(r"!\[[^\]\n]*\]\((?![a-z]+:)([^)\s]+)\)")
FOLD = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)


def pages():
    """``{place in the book: Markdown}`` of all pages but notebooks, API and index."""
    found = {f"docs/book/{name}.md": (BOOK / f"{name}.md").read_text("utf-8") for name in OWN}
    found["docs/book/slides.md"] = (BOOK / "slides.md").read_text("utf-8")
    found["docs/book/glossary.md"] = glossary_page()
    found["docs/book/quiz.md"] = quiz_page()
    for path in sorted((root() / "docs").glob("*.md")):
        found[f"docs/{path.name}"] = path.read_text("utf-8")
    found["benchmarks/LOG.md"] = front_page((root() / "benchmarks" / "LOG.md").read_text("utf-8"))
    return found


def front_page(log):
    """The LOG up to its first round."""
    front = re.split(r"\n## \S+ round", log, maxsplit=1)[0].rstrip()
    rounds = "*In the book this page ends here; the rounds stand in the kit's `benchmarks/LOG.md`.*"
    return f"{front}\n\n{rounds}\n"


def glossary_page():
    """All terms of the report's glossary."""
    lines = ["# Glossary", "", "Names as tables, figures and text show them, in an order in which"]
    lines += ["they can be understood. Symbols of formulas are in [Notation](notation.md).", ""]
    group = ""
    for term in glossary.terms():
        if term.group != group:
            group = term.group
            lines += [f"## {group}", "", "| name | meaning |", "|---|---|"]
        lines.append(f"| `{term.name}` | {html.escape(term.meaning, quote=False)} |")
        following = [t for t in glossary.terms() if t.group == group]
        if term is following[-1]:
            lines.append("")
    return "\n".join(lines)


def quiz():
    """The questions of quiz.yaml."""
    return yaml.safe_load((BOOK / "quiz.yaml").read_text("utf-8"))


def quiz_page():
    """Questions with folded answers, each with the place that answers it."""
    lines = ["# Quiz", "", "Ten questions. What they need stands in this book; nothing else is"]
    lines += ["needed. Write your answer down before you open ours.", ""]
    for number, entry in enumerate(quiz(), start=1):
        lines += [f"## Question {number}", "", entry["question"], ""]
        lines += ["<details><summary>Answer</summary>", "", entry["answer"], ""]
        lines += [f"See [{heading_of(entry['place'])}]({entry['place']}).", "", "</details>", ""]
    return "\n".join(lines)


def anchor(heading):
    """A heading's anchor, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections(text):
    """``{anchor: (heading, text up to the next heading)}`` of a page, code left out of account."""
    found, current = {}, None
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            heading = line.lstrip("#").strip()
            current = anchor(heading)
            found[current] = (heading, "")
        elif current is not None:
            found[current] = (found[current][0], found[current][1] + line + "\n")
    return found


def heading_of(place):
    """The heading that a place of the quiz, ``page.md#anchor``, names."""
    page, _, wanted = place.partition("#")
    found = sections((BOOK / page).read_text("utf-8"))
    if wanted not in found:
        raise RecnbError(f"docs/book/quiz.yaml: {page} has no section #{wanted}: {list(found)}")
    return found[wanted][0]


def modules():
    """Names of the kit's public modules."""
    names = []
    for path in sorted((root() / "recnb").rglob("*.py")):
        parts = path.relative_to(root()).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not parts[-1].startswith("_"):
            names.append(".".join(parts))
    return names


def relink(text, place, book):
    """Links of a page as the book can follow them.

    A link to a page of the book stays. One to a module of the kit leads to its API page; one to
    another file of the repository becomes plain text, since the book stands alone.

    Args:
        text: Markdown.
        place: of the page, relative to the repository's root.
        book: places of all pages.

    Raises:
        RecnbError: the repository has no such file.
    """

    def one(match):
        shown, target = match[1], match[2]
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            return match[0]
        path, _, fragment = target.partition("#")
        aim = os.path.normpath(os.path.join(os.path.dirname(place), path))
        if aim in book:
            return match[0]
        module = aim.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if aim.endswith(".py") and f"api/{module}.md" in book:
            up = os.path.relpath(f"api/{module}.md", os.path.dirname(place))
            return f"[{shown}]({up})"
        if not (root() / aim).exists():
            raise RecnbError(f"{place}: the link to {target} leads to no file")
        return shown if "`" in shown else f"`{aim}`" if shown == path else shown

    return LINK.sub(one, text)


def unfold(text):
    """Folded hints as Markdown, so that formulas and code in them are read as such."""

    def one(match):
        body = re.sub(r"<pre>(.*?)</pre>", preformatted, match[2], flags=re.DOTALL)
        body = re.sub(r"<code>(.*?)</code>", lambda m: f"`{html.unescape(m[1])}`", body)
        return f"<details><summary>{match[1]}</summary>\n\n{body.strip()}\n\n</details>\n"

    return FOLD.sub(one, text)


def preformatted(match):
    return f"\n\n```python\n{html.unescape(match[1])}\n```\n\n"


def without_machine(text):
    """Paths of the machine that ran a notebook, cut down to their last part."""
    return MACHINE_PATH.sub(lambda m: Path(m[0]).name or "...", text)


SAVED = re.compile(r'stage\.folder, "(\w+)"')
OTHER_RUN = """\
*The output above is that of the `lesson` profile, an invented world, and may say other things than
the tables here: the cell is newer than the reference run, whose results stand in the rest of this
chapter.*"""

CLAIMS = """\
*These claims are newer than the reference run; what of them holds there, its tables above say.*"""


def brought_up(executed, written, figures):
    """A run's notebook in the words of today's, which may be newer than the run.

    Cells are matched by their ids. Text is today's. A code cell that is still the same keeps the
    run's outputs. One that is not shows the figure that the run has under its name, or else what
    the notebook as it is committed shows, with a note. Claims about a run are shown of no other.

    Args:
        executed, written: nbformat notebooks.
        figures: folder of the run's figures of this stage.
    """
    ran = {cell.get("id"): cell for cell in executed.cells}
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    cells = []
    for cell in written.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cells += [cell, *injected]
            continue
        old = ran.get(cell.get("id"))
        if cell.cell_type != "code" or old is not None and old.source == cell.source:
            cells.append(old if cell.cell_type == "code" else cell)
            continue
        cells.append(cell)
        if old is not None and "show_run(" in cell.source:
            cell.outputs = old.outputs  # they say which run it is
            continue
        named = SAVED.search(cell.source)
        if named and (figures / f"{named[1]}.png").is_file():
            cell.outputs = [figure_output(figures / f"{named[1]}.png")]
        elif "saw(" in cell.source:
            cell.outputs = []
            cells.append(nbformat.v4.new_markdown_cell(CLAIMS))
        elif cell.outputs and not same_in_every_run(cell):
            cells.append(nbformat.v4.new_markdown_cell(OTHER_RUN))
    return nbformat.v4.new_notebook(cells=cells)


def same_in_every_run(cell):
    """Whether a cell's output says nothing of a run: an exercise's, or what marks mean."""
    return "exercise" in cell.metadata.get("tags", []) or "legend()" in cell.source


def figure_output(path):
    """A saved figure as the output of a cell, with its alt text."""
    image = base64.b64encode(path.read_bytes()).decode("ascii")
    alt = json.loads(path.with_suffix(".json").read_text("utf-8"))["alt"]
    told = {"image/png": {"alt": alt}}
    return nbformat.v4.new_output("display_data", data={"image/png": image}, metadata=told)


def chapter(path, book, written=None):
    """An executed notebook as the book shows it.

    What only serves the run is left out or folded, machine paths are gone, figures carry their alt
    text, and behind each exercise of the kit its solution is folded.

    Args:
        path: of the executed notebook.
        book: places of all pages.
        written: path of the same notebook as it stands today; see ``brought_up``.

    Raises:
        RecnbError: a cell ended in an error.
    """
    notebook = nbformat.read(path, as_version=4)
    if written is not None:
        figures = path.parent.parent / path.stem / "figures"
        notebook = brought_up(notebook, nbformat.read(written, as_version=4), figures)
    place = f"notebooks/{path.name}"
    cells, heading = [], path.stem
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            titles = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)
            heading = titles[-1] if titles else heading
            text = relink(unfold(without_machine(cell.source)), place, book)
            cells.append(nbformat.v4.new_markdown_cell(text))
            continue
        if cell.cell_type != "code":
            continue
        outputs = [shown(o, heading, f"{path.name}, cell {number}") for o in cell.outputs]
        new = nbformat.v4.new_code_cell(
            without_machine(cell.source), outputs=[o for o in outputs if o]
        )
        new.metadata.update(fold(cell))
        cells.append(new)
        cells += solutions(cell)
    clean = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    for number, cell in enumerate(clean.cells):
        cell["id"] = f"cell-{number}"  # nbformat draws ids; the same sources make the same book
    return clean


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def fold(cell):
    """Metadata that folds or removes what a reader does not need at once."""
    kind = set(cell.metadata.get("tags", []))
    if "stage.finish(" in cell.source and cell.outputs:
        return {"tags": ["remove-input"]}  # it prints what the run found
    if "parameters" in kind or "stage.finish(" in cell.source or "show_versions()" in cell.source:
        return {"tags": ["remove-cell"]}
    if "injected-parameters" in kind:
        return prompted("the parameters of this run")
    if "open_stage(" in cell.source:
        return prompted("how the run is opened")
    return {}


def prompted(what):
    """A folded input with words of its own on the fold."""
    words = {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}
    return {"tags": ["hide-input"], "mystnb": words}


def shown(output, heading, where):
    """One output as the book shows it, or None for what it leaves out."""
    if output.output_type == "error":
        raise RecnbError(f"{where} ended in {output.ename}: {without_machine(output.evalue)}")
    if output.output_type == "stream":
        if output.name == "stderr":
            return None
        return nbformat.v4.new_output("stream", text=without_machine(output.text))
    data = output.data
    if any(kind.startswith("application/vnd.jupyter.widget") for kind in data):
        return None  # it needs a kernel
    if "image/png" in data:
        alt = output.metadata.get("image/png", {}).get("alt") or f"Figure: {heading}"
        alt = html.escape(without_machine(alt))
        image = "".join(data["image/png"].split())
        size = png_width(image)
        wide = ' class="wide"' if size > WIDE else ""
        markup = f'<img{wide} alt="{alt}" width="{size}" src="data:image/png;base64,{image}">'
        data = {"text/html": markup}
    elif "text/html" in data:
        data = {"text/html": without_machine(data["text/html"])}
    elif "text/markdown" in data:
        data = {"text/markdown": without_machine(data["text/markdown"])}
    elif "text/plain" in data:
        data = {"text/plain": without_machine(data["text/plain"])}
    else:
        return None
    return nbformat.v4.new_output("display_data", data=data)


def png_width(image):
    """Pixels across a PNG, from its header, as base64."""
    return int.from_bytes(base64.b64decode(image[:48])[16:20], "big")


def solutions(cell):
    """The kit's own code behind an exercise that ``recnb.check`` checks, folded."""
    name = re.search(r"\bcheck\.(\w+)\(my_", cell.source)
    if "exercise" not in cell.metadata.get("tags", []) or not name:
        return []
    parts = []
    for part in check.find(name[1]).kit:
        code = textwrap.dedent(inspect.getsource(part)).rstrip()
        parts.append(f"```python\n# {part.__module__}\n{code}\n```")
    text = "<details><summary>Solution: the kit's own code</summary>\n\n"
    return [nbformat.v4.new_markdown_cell(text + "\n\n".join(parts) + "\n\n</details>")]


class Reference:
    """Numbers and figures of the reference run, for the slides.

    Args:
        run: folder of a finished run.
    """

    def __init__(self, run):
        self.run = run
        frame = pd.read_csv(run / "tables" / "metrics.csv")
        self.metrics = frame.set_index(["system", "decoding", "task", "metric"])
        self.primary = pd.read_csv(run / "tables" / "primary.csv").set_index("name")
        self.table1 = pd.read_csv(run / "tables" / "table1.csv")

    def value(self, system, decoding, task, metric):
        """A number of metrics.csv as text, percent but for ranks; a dash where it was not run."""
        key = (system, decoding, task, metric)
        if key not in self.metrics.index:
            return "–"
        number = self.metrics.loc[[key]].iloc[0]["value"]
        if pd.isna(number):
            return "–"
        if metric.startswith(("HR", "NDCG")):
            return f"{number:.3f}"
        return f"{100 * number:.2f} %" if task == "format" else f"{100 * number:.1f} %"

    def interval(self, system, decoding, task, metric):
        """The 95 % interval behind ``value``."""
        key = (system, decoding, task, metric)
        if key not in self.metrics.index:
            return ""
        row = self.metrics.loc[[key]].iloc[0]
        if pd.isna(row["low"]):
            return ""
        if metric.startswith(("HR", "NDCG")):
            return f"[{row['low']:.3f}, {row['high']:.3f}]"
        digits = 2 if task == "format" else 1
        return f"[{100 * row['low']:.{digits}f}, {100 * row['high']:.{digits}f}]"

    def verdicts(self):
        """Rows of the primary comparisons that the run could make."""
        made = self.primary.dropna(subset=["difference"]).reset_index()
        return made.to_dict("records")

    def users(self):
        return int(self.metrics["n"].max())

    def facts(self):
        """``[(what, number)]`` of Table 1."""
        first = self.table1.iloc[0]
        return [(name, first[name]) for name in self.table1.columns if name != "dataset"]

    def minutes(self):
        """Of all stages together, from their manifests."""
        manifests = sorted(self.run.glob("*/manifest.json"))
        seconds = sum(json.loads(m.read_text("utf-8"))["wall_seconds"] for m in manifests)
        return round(seconds / 60)

    def rewards(self):
        """``before``, ``after``, ``low`` and ``high`` of the RL stage, as text."""
        numbers = json.loads((self.run / "05_ppo" / "manifest.json").read_text("utf-8"))["numbers"]
        return {name: f"{value:.2f}" for name, value in numbers.items() if name != "finding"}

    def figure(self, place):
        """A figure of the run, such as "07_case_studies/dial", as an img element."""
        stage, name = place.split("/")
        path = self.run / stage / "figures" / f"{name}.png"
        image = base64.b64encode(path.read_bytes()).decode("ascii")
        words = path.with_suffix(".json")
        alt = f"Figure {name} of notebook {stage}"
        if words.is_file():
            alt = json.loads(words.read_text("utf-8"))["alt"]
        return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{image}">'

    def drawing(self, name):
        """A drawing of the notebooks, as an img element with the alt text that it has there."""
        folder = root() / "notebooks"
        image = base64.b64encode((folder / "figures" / f"{name}.svg").read_bytes()).decode("ascii")
        cells = [c for p in sorted(folder.glob("*.ipynb")) for c in nbformat.read(p, 4).cells]
        text = "\n".join(cell.source for cell in cells)
        alt = html.escape(re.search(rf"!\[([^\]]+)\]\(figures/{name}\.svg\)", text)[1])
        return f'<img alt="{alt}" src="data:image/svg+xml;base64,{image}">'


def slides():
    """The deck as one HTML page."""
    reference = Reference(REFERENCE)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    template = environment.from_string((BOOK / "slides.html").read_text("utf-8"))
    return template.render(run=reference, value=reference.value, interval=reference.interval)


def mathjax(folder):
    """Place MathJax and its licence in a folder, from the cache, else by npm's client.

    Raises:
        RecnbError: npm is not there or cannot fetch it, or the bytes are others than the pinned.
    """
    kept = cache_folder() / MATHJAX
    if not kept.is_file():
        if not shutil.which("npm"):
            raise RecnbError("npm, which fetches MathJax for the book, is not installed")
        kept.parent.mkdir(parents=True, exist_ok=True)
        package = MATHJAX.removesuffix(".tgz").replace("-", "@")
        command = ["npm", "pack", package, "--pack-destination", str(kept.parent)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RecnbError(f"npm cannot fetch {package}: {done.stderr.strip()}")
    verify(kept, MATHJAX_SHA256)
    with tarfile.open(kept) as bundle:
        for member, name in (("es5/tex-svg.js", "tex-svg.js"), ("LICENSE", "mathjax-LICENSE")):
            (folder / name).write_bytes(bundle.extractfile(f"package/{member}").read())


def toctrees(places):
    """The book's order, as MyST; pages of docs/ that have no place in ``PARTS`` come last."""
    named = {entry for entries in PARTS.values() for entry in entries}
    rest = [f"/{place.removesuffix('.md')}" for place in places if re.match(r"docs/\w+\.md", place)]
    last = {"Using the kit": [entry for entry in rest if entry not in named] + ["/api/index"]}
    lines = []
    for title, entries in (PARTS | last).items():
        lines += ["```{toctree}", ":hidden:", ":glob:", f":caption: {title}", "", *entries, "```"]
        lines.append("")
    return "\n".join(lines)


def pictures(text, place):
    """Places, relative to the repository's root, of the pictures that a page shows.

    Raises:
        RecnbError: the repository has no such file.
    """
    found = []
    for target in PICTURE.findall(text):
        aim = os.path.normpath(os.path.join(os.path.dirname(place), target))
        if not (root() / aim).is_file():
            raise RecnbError(f"{place}: the picture {target} is not there")
        found.append(aim)
    return found


def write(place, text, source):
    path = source / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def prepare(folder, notebooks=REFERENCE / "notebooks"):
    """Write Sphinx's source tree to ``folder/source``.

    Args:
        folder: of the build; what an earlier build left in it is removed.
        notebooks: folder of executed notebooks, beside it the folders of their stages.

    Raises:
        RecnbError: a link leads nowhere, a notebook ended in an error, MathJax is not at hand.
    """
    source = Path(folder) / "source"
    for old in ("source", "doctrees", "html"):
        if (Path(folder) / old).exists():
            shutil.rmtree(Path(folder) / old)
    found = pages()
    executed = sorted(Path(notebooks).glob("*.ipynb"))
    if not executed:
        raise RecnbError(f"{notebooks} holds no executed notebook")
    book = set(found) | {f"notebooks/{path.name}" for path in executed}
    book |= {f"api/{module}.md" for module in modules()} | {"api/index.md", "docs/book/index.md"}
    index = (BOOK / "index.md").read_text("utf-8").replace("TOCTREES", toctrees(found))
    for place, text in [*found.items(), ("docs/book/index.md", index)]:
        write(place, relink(without_machine(unfold(text)), place, book), source)
        for picture in pictures(text, place):
            (source / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root() / picture, source / picture)
    for path in executed:
        text = nbformat.writes(chapter(path, book, root() / "notebooks" / path.name))
        write(f"notebooks/{path.name}", text, source)
    drawings = source / "notebooks" / "figures"
    shutil.copytree(root() / "notebooks" / "figures", drawings, dirs_exist_ok=True)
    for module in modules():
        directive = f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```\n"
        write(f"api/{module}.md", f"# {module}\n\n{directive}", source)
    entries = "\n".join(f"/api/{module}" for module in modules())
    said = "Every module of the kit, out of its docstrings."
    tree = f"```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```"
    write("api/index.md", f"# API reference\n\n{said}\n\n{tree}\n", source)
    (source / "_static").mkdir()
    mathjax(source / "_static")
    shutil.copy(BOOK / "book.css", source / "_static")
    write("_extra/slides/index.html", slides(), source)
    away = '<meta http-equiv="refresh" content="0; url=docs/book/index.html">'
    link = '<a href="docs/book/index.html">The book</a>'
    head = (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>recnb</title>{away}"
    )
    write("_extra/index.html", f"{head}</head><body>{link}</body></html>\n", source)


if __name__ == "__main__":
    try:
        prepare(*sys.argv[1:])
    except RecnbError as error:
        sys.exit(f"error: {error}")
