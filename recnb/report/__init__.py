"""The report: one self-contained HTML file of a run, made from ``page.html``.

It is for people who read with a phone, in the dark, with a screen reader or without telling colours
apart: ``make a11y`` and tests/test_report_readers.py hold it to that.
"""

import base64
import io
import json
import re
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from recnb import profile as profiles
from recnb.artifacts import atomic_path, read_manifest, same_knobs
from recnb.evaluation import primary, seeds
from recnb.evaluation.cases import legend
from recnb.evaluation.findings import in_plain_words
from recnb.evaluation.stored import evaluate_run, write_other_tables
from recnb.evaluation.tables import TITLES, title_of
from recnb.fidelity import deviations
from recnb.report import glossary
from recnb.text_safety import html, visible

PAGE = jinja2.Environment(
    autoescape=True, loader=jinja2.PackageLoader("recnb", "report")
).get_template(
    "page.html",
    globals={
        "define": glossary.define,
        "explain": glossary.explain,
        "groups": glossary.groups,
        "legend": Markup(legend()),
    },
)
CAPTIONS = {
    "01_data/dataset": "The data: popularity, history length, categories.",
    "02_teacher/training": "The teacher's training.",
    "02_teacher/compare": (
        "The teacher beside baselines on the test items (all items ranked but those that the user "
        "has; 95 % intervals)."
    ),
    "04_sft/base": "Training of the base model.",
    "04_sft/loss": "The SL stage.",
    "05_ppo/training": "The RL stage.",
    "05_ppo/tokens": "Which token of an answer receives which reward.",
    "06_evaluation/exactness": "How exactly about 30 % is kept (95 % intervals).",
    "06_evaluation/controls": (
        "How well each system obeys, writing freely (95 % intervals); hatched: the same system "
        "when the wish is not said."
    ),
    "06_evaluation/halves": (
        "Two wishes at once, each half: said alone it moves the list from the circle to the bar, "
        "beside the other wish to the diamond."
    ),
    "06_evaluation/wordings": "The same wishes in other words: one dot a wording.",
    "09_general_ability/forgetting": (
        "What conversation in the instruction set (I4) does: small SL stages with different shares "
        "of it."
    ),
    "08_tallrec/few_shot": (
        "TALLRec's question (will the user like this title?) after a handful of examples."
    ),
    "07_case_studies/dial": (
        "The control dial: the share of a category that is asked for against the share that the "
        "lists hold. A system that obeys perfectly lies on the dotted line."
    ),
}


def write_report(run_folder):
    """Write ``report.html`` of a finished run.

    Raises:
        RecnbError: a stage is missing, or a table and the answers that it is made from.
    """
    run_folder = Path(run_folder).resolve()
    manifests = {stage: read_manifest(run_folder / stage, stage) for stage in profiles.STAGES}
    settings = (run_folder / "profile.yaml").read_text(encoding="utf-8")
    profile = profiles.load(run_folder / "profile.yaml")
    stale = [stage for stage in profiles.STAGES if not same_knobs(profile, stage, run_folder)]
    write_other_tables(profile, run_folder, run_folder / "tables")
    wordings = manifests["06_evaluation"]["numbers"].get("wordings", [])
    names = [*TITLES, "wording"] if wordings else TITLES
    needed = ("metrics.csv", "differences.csv", *(f"{table}.html" for table in names))
    if not all((run_folder / "tables" / name).is_file() for name in needed):
        evaluate_run(run_folder, run_folder / "tables")  # its evaluation is taken from another run

    def table(name):
        found = (run_folder / "tables" / f"{name}.html").read_text(encoding="utf-8")
        return Markup("<h3>{}</h3>{}").format(title_of(name), _table(found, title_of(name)))

    metrics = pd.read_csv(run_folder / "tables" / "metrics.csv")
    family = pd.read_csv(run_folder / "tables" / "primary.csv")
    verdicts = primary.verdicts(primary.readable(family))
    over = seeds.read_summary(run_folder)
    if over:
        over_seeds = seeds.readable(over[2])
        verdicts = primary.verdicts(over_seeds, "over the seeds", f"over {len(over[0])} seeds")
    first = manifests["01_data"]
    numbers = pd.Series({name: f"{value:,.6g}" for name, value in first["numbers"].items()})
    page = PAGE.render(
        name=run_folder.name,
        plain=in_plain_words(*(over[1:] if over else (metrics, family))),
        seeds=over and over[0],
        over_seeds=over and _frame(over_seeds.set_index(""), "Over the seeds"),
        summary=_summary(manifests, verdicts),
        warnings=_warnings(manifests, stale),
        table=table,
        results=("table2", "table3", "table4", "table5", "table7"),
        statistics=_frame(numbers.rename("value").rename_axis("number"), "The data in numbers"),
        model=manifests["04_sft"]["numbers"]["model"],
        wordings=wordings,
        primary=primary.sentences(family),
        cases=Markup((run_folder / "07_case_studies" / "cases.html").read_text(encoding="utf-8")),
        ability_note=manifests["09_general_ability"]["numbers"]["note"],
        tallrec_note=manifests["08_tallrec"]["numbers"]["note"],
        stages=_frame(_stage_table(manifests), "The notebooks"),
        deviations=_frame(_deviations(profile), "Settings that are not the paper's"),
        settings=settings,
        versions=json.dumps(
            first["versions"]
            | first["hardware"]
            | {"commit": first["commit"], "profile": first.get("profile")},
            indent=1,
        ),
        figure=lambda name: _figure(run_folder, name),
        first_picture=_figure(run_folder, "07_case_studies/dial", only=-1),
    )
    with atomic_path(run_folder / "report.html") as temporary:
        temporary.write_text(visible(page), encoding="utf-8")
    return run_folder / "report.html"


def _summary(manifests, verdicts):
    """Levels, then what the primary comparisons show; their numbers stand further down."""
    found = manifests["06_evaluation"]["numbers"]["findings"]
    lines = [line for line in found if not re.match(r"P\d+, ", line)] + verdicts
    lines.append(manifests["05_ppo"]["numbers"]["finding"])
    wall = sum(m["wall_seconds"] for m in manifests.values())
    memory = max(m["peak_memory_mib"] for m in manifests.values())
    count = len(manifests)
    lines.append(
        f"All {count} notebooks took {wall / 60:.1f} minutes; the largest one used "
        f"{memory / 1024:.1f} GiB of memory."
    )
    return lines


def _warnings(manifests, stale):
    """``(stage, sentence)`` of all stages' warnings; manifests of older kits have none."""
    found = [(s, line) for s, m in manifests.items() for line in m.get("warnings", [])]
    return found + [(s, "made with other settings than those below") for s in stale]


def _stage_table(manifests):
    rows = {}
    for stage, m in manifests.items():
        rows[stage] = {
            "minutes": f"{m['wall_seconds'] / 60:.1f}",
            "peak memory, MiB": m["peak_memory_mib"],
        }
        if "peak_gpu_memory_mib" in m:
            rows[stage]["of each GPU, MiB"] = ", ".join(map(str, m["peak_gpu_memory_mib"]))
        rows[stage]["commit"] = m["commit"]
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("notebook").fillna("")


def _deviations(profile):
    rows = [(knob, visible(here), paper) for knob, here, paper in deviations(profile)]
    return pd.DataFrame(rows, columns=["knob", "here", "paper"]).set_index("knob")


def _frame(frame, title):
    return _table(frame.reset_index().to_html(index=False, border=0), title)


def _table(table, title):
    """A table of pandas for every reader: heads say what they are heads of, wide ones scroll.

    Args:
        table: HTML, its cells text in which ``<``, ``>`` and ``&`` are escaped already.
        title: what a screen reader says of the box that scrolls.
    """
    head, *rows = table.replace(' style="text-align: right;"', "").split("<tr>")
    rows[0] = rows[0].replace("<th></th>", "<td></td>").replace("<th>", '<th scope="col">')
    for place, row in enumerate(rows[1:], start=1):
        row = re.sub("<td>(.*?)</td>", r'<th scope="row">\1</th>', row, count=1)
        row = re.sub(r"<td>(?=[^<]{40})(?![-+\d(])", '<td class="note">', row)
        row = re.sub(r" (\[[-+\d., ]+\])", r' <span class="range">\1</span>', row)
        rows[place] = row
    rows = [('<tr class="paper">' if "(paper)" in row else "<tr>") + row for row in rows]
    box = f'<div class="scroll" role="region" aria-label="{html(title)}" tabindex="0">'
    return Markup(f"{box}{head}{''.join(rows)}</div>")


COLOURS = 64
"""Of a picture in the page: charts have few, and the page a third of the bytes."""


def _small(file):
    """A picture's PNG with a palette of ``COLOURS``."""
    made = io.BytesIO()
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLOURS).save(made, "png", optimize=True)
    return made.getvalue()


def _figure(run_folder, name, only=None):
    """A figure's panels, each with its alt text, as pictures inside the page.

    Runs of older kits have one picture and no alt text: their caption takes its place.

    Args:
        only: place of the one panel to show.
    """
    stage, stem = name.split("/")
    path = run_folder / stage / "figures" / f"{stem}.png"
    if not path.is_file():
        return ""
    pictures, width = [(path, CAPTIONS[name])], ""
    if path.with_suffix(".json").is_file():
        alts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["panels"]
        pictures, width = [(path, alts[0])], 'width="480" '
        if len(alts) > 1:
            pictures = [(path.with_name(f"{stem}-{n}.png"), a) for n, a in enumerate(alts, start=1)]
    if only is not None:
        pictures = [pictures[only]]
    shown = [
        f'<img alt="{html(alt)}" {width}'
        f'src="data:image/png;base64,{base64.b64encode(_small(file)).decode()}">'
        for file, alt in pictures
    ]
    caption = f"<figcaption>{CAPTIONS[name]}</figcaption>"
    return Markup(f'<figure><div class="panels">{"".join(shown)}</div>{caption}</figure>')
