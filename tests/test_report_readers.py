"""The report for everybody: by phone, in the dark, by ear, without telling colours apart."""

import io
import json
import re
import shutil
import subprocess
import tarfile
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from recnb import plots
from recnb.artifacts import atomic_path
from recnb.catalog import Catalog
from recnb.controls import About
from recnb.evaluation import protocol, wordings
from recnb.evaluation.cases import MARKS, case_html, legend
from recnb.evaluation.tables import TITLES, write_frame
from recnb.interactions import Histories
from recnb.ppo.trend import Trend
from recnb.profile import root
from recnb.report import CAPTIONS, _figure, _small, _stage_table, _table, glossary, write_report
from recnb.requests import Request, Response
from recnb.sources import cache_folder, verify

REFERENCE = root() / "papermill_runs" / "reference" / "laptop"
HOSTILE = "A \"<b>&amp;' of\nmany"
SYSTEMS = ["popularity", "sasrec", "sasrec_prompt", "sasrec_filter", "base", "instructrec"]
SYSTEMS += ["palr", "v1", "v2", "v3", "full"]


# The figures, as a run of today draws them, from few numbers.


def metrics():
    rows = []
    for place, system in enumerate(SYSTEMS):
        for task, metric in (("I1+", "TCP"), ("I1-", "TCP"), ("I2~30", "CPA")):
            for name, value in ((metric, 0.05 + 0.08 * place), (f"{metric} without control", 0.3)):
                rows.append((system, "free", task, name, value, value - 0.02, value + 0.02))
    columns = ["system", "decoding", "task", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def by_k(sizes, task):
    rows = []
    for system in SYSTEMS:
        for k in sizes:
            rows.append((system, "free", task, k, "Exact", 0.5, 0.4, 0.6))
            rows.append((system, "free", task, k, "Bias", 0.1, 0.0, 0.2))
    columns = ["system", "decoding", "task", "k", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def wordings_asked():
    rows = []
    for task in wordings.CONTROLS:
        for system in wordings.SYSTEMS:
            kinds = [("trained", 0.9), ("paraphrase", 0.4), ("paraphrase", 0.8), ("change", 0.7)]
            rows += [(system, task, kind, "TCP", value, 0.3) for kind, value in kinds]
    return pd.DataFrame(rows, columns=["system", "task", "kind", "metric", "value", "without"])


def two_halves():
    rows = []
    for system in ("v2", "full"):
        for task, half in (("I1+&I1-", "include"), ("I2>=30&I2<=20", "at least 30 %")):
            rows.append((system, "free", task, half, 0.3, 0.9, 0.2))
        rows.append((system, "free", "I1+&I1+", "include (2)", 0.3, np.nan, 0.5))
    return pd.DataFrame(
        rows, columns=["system", "decoding", "task", "half", "unsaid", "alone", "both"]
    )


def every_figure():
    """``{name in the report, or its own: Figure}``."""
    catalog = Catalog(["a", "b", "c"], [{"A", HOSTILE}, {"A"}, {"B"}])
    epochs = [{"epoch": e, "loss": 3 - e / 9, "validation NDCG@10": 0.1 + e / 99} for e in range(9)]
    steps = [{"step": s, "loss": 3 / (s + 1), "eval_loss": 4 / (s + 1)} for s in range(9)]
    columns = [column for panel in plots.PPO_PANELS.values() for column in panel]
    updates = [{column: 1 + u / 9 for column in columns} for u in range(20)]
    dial = pd.DataFrame(
        [
            (system, category, tenth / 10, tenth / 20)
            for system in ("base", "v2", "full")
            for category in ("Drama", HOSTILE, "Action")
            for tenth in range(11)
        ],
        columns=["system", "category", "requested", "delivered"],
    )
    shots = [(s, n, d, 0.5 + d / 50) for s in SYSTEMS for n in (16, 64) for d in (0, 1)]
    shots = pd.DataFrame(
        [("untuned", 0, 0, 0.4), *shots], columns=["system", "shots", "seed", "AUC"]
    )
    shares = [
        {"share": s, "perplexity": 9 - s, "low": 8 - s, "high": 10 - s, "loss": s, "MMLU": s / 2}
        for s in (0.1, 0.5)
    ]
    ledger = pd.DataFrame({"step": [0, 0, 1, 1], "reward above its prompt's mean": [1.0, 2, 3, 4]})
    bars = pd.DataFrame(
        {"system": ["SASRec", "ItemKNN"], "value": [0.2, 0.1], "low": [0.1, 0], "high": [0.3, 0.2]}
    )
    compared = pd.DataFrame(
        {
            "a": ["full free", "v2 free"],
            "task": "I0",
            "metric": "HR@10",
            "difference": [0.1, 0.0],
            "low": [0.05, -0.1],
            "high": [0.2, 0.1],
            "p corrected": [0.01, 0.9],
        }
    )
    return {
        "01_data/dataset": plots.dataset(Histories([[1, 2, 1], [3]]), catalog),
        "02_teacher/training": plots.teacher_training(epochs),
        "02_teacher/compare": plots.compare(bars, "HR@10", "Test HR@10"),
        "04_sft/base": plots.loss_curve(steps[:3], "Base: next-token loss"),
        "04_sft/loss": plots.loss_curve(steps),
        "05_ppo/training": plots.ppo_training(updates),
        "05_ppo/tokens": plots.token_rewards(["1. ", HOSTILE, "<end>"], [0, 0.5, 9]),
        "06_evaluation/controls": plots.control_overview(metrics()),
        "06_evaluation/exactness": plots.exactness(by_k([10], "I2~30")),
        "06_evaluation/halves": plots.halves(two_halves()),
        "06_evaluation/wordings": plots.wordings(wordings_asked(), wordings.CONTROLS),
        "07_case_studies/dial": plots.control_dial(dial),
        "08_tallrec/few_shot": plots.few_shot({"item": shots}),
        "09_general_ability/forgetting": plots.forgetting(shares),
        "05_ppo/trend": plots.reward_trend(ledger, Trend(0.5, 0.1, 2.0)),
        "by k": plots.exactness(by_k([5, 10, 15], "I2~30 by k")),
        "compare": plots.differences(compared, "one - another"),
    }


@pytest.fixture(scope="module")
def figures():
    made = every_figure()
    yield made
    for figure in made.values():
        plots.plt.close(figure)


def cases():
    catalog = Catalog([HOSTILE, "b", "c", "d"], [{"A"}, {"A"}, {"B"}, {"A"}])
    request = Request(0, (2,), (2, 3), About("A", "1/2"), 5, 1)
    answer = Response("x", [HOSTILE, "d", "b", "nowhere", "c"], [1, 4, 2, None, 3])
    return case_html(request, {"full": answer, HOSTILE: Response(HOSTILE)}, catalog, 0)


@pytest.fixture(scope="module")
def page(figures, tmp_path_factory):
    """The reference run's report with figures and case studies of today."""
    run = tmp_path_factory.mktemp("run") / "laptop"
    shutil.copytree(REFERENCE, run, ignore=shutil.ignore_patterns("answers", "notebooks"))
    for name in set(CAPTIONS) & set(figures):
        stage, stem = name.split("/")
        plots.save(figures[name], run / stage, stem)
    (run / "07_case_studies" / "cases.html").write_text(cases(), encoding="utf-8")
    for name in TITLES:  # tables that are younger than the run
        if not (run / "tables" / f"{name}.html").is_file():
            write_frame(pd.DataFrame({"system": ["v2"], "n": ["1"]}), run / "tables", name)
    return write_report(run).read_text(encoding="utf-8")


# What a page is made of.


class Tree(HTMLParser):
    """Start tags in order, each with its attributes and the tags that it stands in."""

    EMPTY = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), tuple(self.open)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def all(self, *tags):
        return [(attributes, inside) for tag, attributes, inside in self.found if tag in tags]


def test_every_picture_says_what_it_shows(page):
    pictures = [attributes for attributes, _ in Tree(page).all("img")]
    assert len(pictures) > 25 and all(p["src"].startswith("data:image/png;") for p in pictures)
    alts = [p["alt"] for p in pictures]
    assert all(len(alt) > 30 and alt[-1] == "." for alt in alts)
    told = "Drama from 0 to 50"
    assert sum(told in alt for alt in alts) == 4, "three panels, and the last on the first screen"
    assert any("A \"<b>&amp;' of many from 0 to 50" in alt for alt in alts), "escaped, on one line"


def test_headings_go_down_one_step_at_a_time(page):
    levels = [int(tag[1]) for tag, _, _ in Tree(page).found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:], strict=False))


def test_the_page_has_a_language_and_one_main_part_and_no_script(page):
    tree = Tree(page)
    [(html, _)] = tree.all("html")
    assert html["lang"] == "en" and len(tree.all("main")) == 1 and not tree.all("script")
    assert all("main" in inside for tag, _, inside in tree.found if tag in ("p", "h1", "table"))


def test_cells_know_their_heads_and_wide_tables_scroll_by_keyboard(page):
    tree = Tree(page)
    heads = tree.all("th")
    assert {attributes.get("scope") for attributes, _ in heads} == {"col", "row"}
    assert all(("thead" in inside) == (a["scope"] == "col") for a, inside in heads)
    rows = [inside for _, inside in tree.all("tr") if "tbody" in inside]
    assert sum(a["scope"] == "row" for a, _ in heads) == len(rows) > 100
    boxes = [a for a, _ in tree.all("div") if a.get("class") == "scroll"]
    assert len(boxes) == len(tree.all("table")) > 10
    assert all(b["tabindex"] == "0" and b["role"] == "region" and b["aria-label"] for b in boxes)


def test_a_stage_that_had_gpus_says_what_it_took_of_each():
    one = {"wall_seconds": 90, "peak_memory_mib": 700, "commit": "abc"}
    table = _stage_table({"01_data": one})
    assert list(table.columns) == ["minutes", "peak memory, MiB", "commit"]
    two = one | {"peak_gpu_memory_mib": [3072, 5]}
    table = _stage_table({"01_data": one, "04_sft": two})
    assert table["of each GPU, MiB"].tolist() == ["", "3072, 5"]
    assert table["minutes"].tolist() == ["1.5", "1.5"]


def test_a_table_keeps_its_cells():
    cells = [("a <b>", "0.5 (0.4) [-0.1, 0.9]"), ("v2 (paper)", "a note, " * 8), ("", "[deleted]")]
    frame = pd.DataFrame(cells, columns=["system", "value"])
    made = _table(frame.to_html(index=False, border=0), "x")
    assert '<th scope="row">a &lt;b&gt;</th>' in made and made.count('class="note"') == 1
    assert made.count('<span class="range">') == 1 and "<td>[deleted]</td>" in made
    assert made.count('<tr class="paper">') == 1
    text = [part.strip() for part in re.sub("<[^>]*>", "\n", made).splitlines()]
    shown = " ".join(part for part in text if part)
    assert shown.startswith("system value a &lt;b&gt; 0.5 (0.4) [-0.1, 0.9] v2 (paper) a note,")


# Words.


class Order(HTMLParser):
    """The text that is seen, and where in it each ``dfn`` stands."""

    def __init__(self, text):
        super().__init__()
        self.text, self.defined, self.skip, self.inside = "", [], 0, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.skip += tag in ("pre", "code", "style", "title")
        self.inside = tag == "dfn"
        alt = dict(attributes).get("alt")
        self.text += f" {alt} " if alt else " "

    def handle_endtag(self, tag):
        self.skip -= tag in ("pre", "code", "style", "title")
        self.text += " "

    def handle_data(self, data):
        if self.inside:
            self.defined.append((data, len(self.text)))
            self.inside = False
        self.text += "" if self.skip else data


def test_every_word_is_explained_where_it_first_stands(page):
    order = Order(page)
    places = {}
    for name, place in order.defined:
        places.setdefault(name, place)
    used = 0
    for term in glossary.terms():
        first = term.pattern.search(order.text).start()
        assert first >= places[term.name], (term.name, order.text[first - 60 : first + 40])
        used += [name for name, _ in order.defined].count(term.name) > 1
    assert used > 40, "the glossary has each once more"


def test_no_short_name_of_the_tables_lacks_an_explanation(page):
    """Whatever stands in the tables' heads, or names a system, is in the glossary."""
    tables = REFERENCE / "tables"
    numbers = pd.read_csv(tables / "metrics.csv")
    names = set(numbers["system"]) | set(numbers["task"]) | set(numbers["decoding"])
    names |= set(numbers["metric"].str.removesuffix(" without control"))
    names |= {*protocol.SYSTEMS, *protocol.TASKS, *protocol.DECODINGS}
    for name in names:
        assert any(t.pattern.fullmatch(name.removesuffix(" by k")) for t in glossary.terms()), name


def test_a_glossary_in_which_meanings_use_only_what_stands_before_them():
    known = glossary.terms()
    assert len({term.name for term in known}) == len(known) > 50
    for place, term in enumerate(known):
        later = [t.name for t in known[place + 1 :] if t.pattern.search(term.meaning)]
        assert not later, (term.name, later)
        assert term.meaning.endswith("."), term.name


def test_words_are_explained_once_and_with_what_they_need():
    met = []
    first = glossary.explain(met, lambda: plots.text_safety.html("v3 & TCP"))
    assert [t for t in ("v3", "item reward", "RL stage", "v2", "SL stage") if t not in met] == []
    assert first.index("<dfn>SL stage") < first.index("<dfn>v2") < first.index("<dfn>v3")
    assert glossary.explain(met, lambda: "v2, TCP") == "v2, TCP"


def test_marks_are_words():
    page = cases()
    for words, _, _ in MARKS.values():
        assert words in page and words in legend() and re.search("[a-z]{4}", words)
    assert "★ target</span> A &quot;&lt;b&gt;" in page
    plain = re.sub(" style='[^']*'", "", page)
    lines = re.findall("<li>(.*?)</li>", plain, flags=re.DOTALL)
    assert [line.split(" <span")[0] for line in lines[1:5]] == ["d", "b", "nowhere", "c"]


# Figures.


def test_every_panel_stands_alone(figures):
    for name, figure in figures.items():
        for axis in figure.axes:
            assert re.search(r"\d", axis.get_label()) and axis.get_label().endswith("."), name
            assert axis.get_xlabel(), name
            if len(axis.get_yticks()):
                assert any(label.get_visible() for label in axis.get_yticklabels()), name


@pytest.mark.parametrize("name", sorted(CAPTIONS))
def test_letters_on_a_phone_have_nine_pixels(name, figures):
    """A panel as wide as a page of 390 pixels less its margins."""
    figure = figures[name]
    for axis in figure.axes:
        points = axis.get_tightbbox().width / figure.dpi * 72
        texts = [t for t in axis.findobj(Text) if t.get_text().strip() and t.get_visible()]
        assert round(min(t.get_fontsize() for t in texts) * (390 - 32 - 8) / points) >= 9


def test_save_stores_panels_and_alt_texts(figures, tmp_path):
    shown = plots.save(figures["07_case_studies/dial"], tmp_path, "dial")
    folder = tmp_path / "figures"
    assert {f.name for f in folder.iterdir()} == {
        "dial.json",
        "dial.png",
        *(f"dial-{n}.png" for n in (1, 2, 3)),
    }
    stored = json.loads((folder / "dial.json").read_text(encoding="utf-8"))
    assert len(stored["panels"]) == 3 and stored["alt"] == " ".join(stored["panels"])
    data, metadata = shown._repr_mimebundle_()
    assert metadata == {"image/png": {"alt": stored["alt"]}} and "3 Axes" in data["text/plain"]


@pytest.mark.parametrize("name", ["07_case_studies/dial", "05_ppo/training"])
def test_pictures_in_the_page_look_as_they_were_made(name, figures, tmp_path):
    plots.save(figures[name], tmp_path, "made")
    file = tmp_path / "figures" / "made.png"
    small = _small(file)
    assert len(small) < len(file.read_bytes()) / 2
    with Image.open(file) as before, Image.open(io.BytesIO(small)) as after:
        assert after.mode == "P" and len(after.getcolors()) <= 64
        pixels = [np.asarray(picture.convert("RGB"), float) for picture in (before, after)]
    assert np.abs(pixels[0] - pixels[1]).mean() < 1  # of 255


def test_an_older_run_shows_its_whole_figure_with_the_caption(figures, tmp_path):
    plots.save(figures["04_sft/loss"], tmp_path / "04_sft", "loss")
    (tmp_path / "04_sft" / "figures" / "loss.json").unlink()
    assert f'<img alt="{CAPTIONS["04_sft/loss"]}" src=' in _figure(tmp_path, "04_sft/loss", -1)
    assert _figure(tmp_path, "04_sft/base") == ""


# Colours. Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.

SIGHT = {
    "all colours": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color):
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB [3]."""
    ratio = (TO_XYZ @ rgb) / (TO_XYZ @ np.ones(3))
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(one, other, sight):
    """Difference of two colours as someone sees them; about 2 is just noticed."""
    seen = [lab(np.clip(np.array(SIGHT[sight]) @ linear(c), 0, 1)) for c in (one, other)]
    return float(np.linalg.norm(seen[0] - seen[1]))


def contrast(one, other):
    """Contrast ratio of WCAG 2."""
    light = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (one, other))
    return light[1] / light[0]


def test_the_measures_know_what_is_known():
    assert round(contrast("#000000", "#ffffff"), 6) == 21 and contrast("#777777", "#ffffff") < 4.5
    assert round(apart("#000000", "#ffffff", "all colours"), 2) == 100
    red, green = "#e41a1c", "#4d9221"  # a pair that deuteranopes are known to confuse
    assert apart(red, green, "deuteranopia") < apart(red, green, "all colours") / 3


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_differ_for_everybody(sight):
    for one, other in combinations(plots.COLORS.values(), 2):
        assert apart(one, other, sight) > 15, (one, other)
    for one, other in combinations([color for _, color, _ in MARKS.values()], 2):
        assert apart(one, other, sight) > 5, "pale marks, which their words tell apart"
    first = [plots.series(place)["color"] for place in range(3)]
    assert min(apart(one, other, sight) for one, other in combinations(first, 2)) > 30


def test_no_two_series_look_alike_without_colours():
    styles = [plots.series(place) for place in range(10)]
    assert len({s["marker"] for s in styles}) == 10
    assert len({(s["color"], s["ls"]) for s in styles}) == 10


def test_graphics_stand_out_from_white():
    for color in (*plots.COLORS.values(), plots.GRAY):
        assert contrast(color, "#ffffff") >= 3, color
    for words, color, _ in MARKS.values():
        assert contrast("#1c1c1c", color) >= 4.5 and contrast("#6b6b6b", color) >= 3, words


TEMPLATE = (root() / "recnb" / "report" / "page.html").read_text(encoding="utf-8")


def schemes():
    """The page's colours: ``[{name: color}]`` of the light and the dark page."""
    blocks = re.findall(r":root \{([^}]*)\}", TEMPLATE)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


def test_text_is_readable_in_the_light_and_in_the_dark():
    light, dark = schemes()
    assert set(light) == set(dark) and contrast(light["page"], dark["page"]) > 15
    for colors in (light, dark):
        for behind in ("page", "head", "paper", "box", "alarm-box"):
            for text in ("text", "soft"):
                assert contrast(colors[text], colors[behind]) >= 4.5, (text, behind)
        for line in ("accent", "alarm"):
            assert contrast(colors[line], colors["page"]) >= 3, line


def test_every_colour_of_the_page_is_one_of_these():
    style = re.sub(r":root \{[^}]*\}", "", TEMPLATE.split("<style>")[1].split("</style>")[0])
    assert set(re.findall(r"#[0-9a-f]{3,6}\b", style)) == {"#fff", "#1c1c1c"}
    used, defined = set(re.findall(r"var\(--([\w-]+)\)", style)), set(schemes()[0])
    assert used == defined


# In a browser: make a11y.

AXE = "4.14.1"
AXE_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PROBE = """<script>
axe.run(document, {resultTypes: ['violations']}).then(found => parent.postMessage(JSON.stringify({
  broken: found.violations.map(v => [v.id, v.help, v.nodes.slice(0, 3).map(n => n.html)]),
  passed: found.passes.length,
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  width: innerWidth, page: document.documentElement.scrollWidth}), '*'));
</script>"""
FRAME = """<!doctype html><iframe src="page.html" style="border: 0; width: WIDTHpx; height: 3000px">
</iframe><p id="found"></p><script>
addEventListener('message', e => { document.getElementById('found').textContent = e.data; });
</script>"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The text of axe-core, from the cache, else by npm's client, as the pinned bytes."""
    kept = cache_folder() / f"axe-core-{AXE}.tgz"
    if not kept.is_file():
        if not shutil.which("npm"):
            pytest.skip("npm, which fetches axe-core, is not installed")
        scratch = tmp_path_factory.mktemp("npm")
        command = ["npm", "pack", f"axe-core@{AXE}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        assert done.returncode == 0, f"npm cannot fetch axe-core: {done.stderr}"
        verify(scratch / kept.name, AXE_SHA256)
        with atomic_path(kept) as temporary:
            shutil.copyfile(scratch / kept.name, temporary)
    verify(kept, AXE_SHA256)
    with tarfile.open(kept) as bundle:
        return bundle.extractfile("package/axe.min.js").read().decode("utf-8")


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM, reason="Chromium, the browser of this test, is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_axe_finds_nothing(width, scheme, page, axe, tmp_path):
    """No violation of axe-core's rules, and no page wider than its window."""
    policy = re.search('<meta http-equiv="Content-Security-Policy"[^>]*>', page)[0]
    probed = page.replace(policy, "").replace(
        "</main>", "</main>" + f"<script>{axe}</script>{PROBE}"
    )
    (tmp_path / "page.html").write_text(probed, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,3100"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=120000"]
    command += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    command += ["--dump-dom", (tmp_path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = re.search('<p id="found">(.+)</p>', done.stdout)
    assert said, done.stderr[-2000:]
    found = json.loads(glossary.html.unescape(said[1]))
    assert found["width"] == width and found["dark"] == (scheme == "dark") and found["passed"] > 20
    assert found["page"] <= width, "the page scrolls sideways"
    assert not found["broken"], found["broken"]
