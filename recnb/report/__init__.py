"""The report: one self-contained HTML file of a run, made from ``page.html``."""

import base64
import json
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from recnb import RecnbError
from recnb import profile as profiles
from recnb.artifacts import atomic_path, read_manifest, same_knobs
from recnb.evaluation.findings import in_plain_words
from recnb.evaluation.primary import sentences
from recnb.evaluation.stored import write_other_tables
from recnb.evaluation.tables import TITLES, title_of
from recnb.fidelity import deviations
from recnb.text_safety import visible

PAGE = jinja2.Environment(
    autoescape=True, loader=jinja2.PackageLoader("recnb", "report")
).get_template("page.html")
CAPTIONS = {
    "01_data/dataset": "The data: popularity, history length, categories.",
    "02_teacher/training": "The teacher's training.",
    "02_teacher/compare": (
        "The teacher beside baselines on the test items (full ranking, seen items masked; "
        "95 % intervals)."
    ),
    "04_sft/base": "Training of the base model.",
    "04_sft/loss": "The SL stage.",
    "05_ppo/training": "The RL stage.",
    "05_ppo/tokens": "Which token of an answer receives which reward.",
    "06_evaluation/exactness": "How exactly about 30 % is kept (95 % intervals).",
    "06_evaluation/controls": "How well each system obeys (free decoding, 95 % intervals).",
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
    "07_case_studies/dial": "The control dial: the share asked for against the share delivered.",
}


def write_report(run_folder):
    """Write ``report.html`` of a finished run.

    Raises:
        RecnbError: a stage or a table is missing.
    """
    run_folder = Path(run_folder).resolve()
    manifests = {stage: read_manifest(run_folder / stage, stage) for stage in profiles.STAGES}
    settings = (run_folder / "profile.yaml").read_text(encoding="utf-8")
    profile = profiles.load(run_folder / "profile.yaml")
    stale = [stage for stage in profiles.STAGES if not same_knobs(profile, stage, run_folder)]
    write_other_tables(profile, run_folder, run_folder / "tables")
    wordings = manifests["06_evaluation"]["numbers"].get("wordings", [])
    names = [*TITLES, "wording"] if wordings else TITLES
    for name in ("differences.csv", *(f"{table}.html" for table in names)):
        if not (run_folder / "tables" / name).is_file():
            raise RecnbError(
                f"{run_folder / 'tables' / name} does not exist: recnb evaluate makes the tables "
                "from the answers"
            )

    def table(name):
        found = _table((run_folder / "tables" / f"{name}.html").read_text(encoding="utf-8"))
        return Markup("<h3>{}</h3><div class='scroll'>{}</div>").format(title_of(name), found)

    first = manifests["01_data"]
    numbers = pd.Series({name: f"{value:,.6g}" for name, value in first["numbers"].items()})
    html = PAGE.render(
        name=run_folder.name,
        plain=in_plain_words(pd.read_csv(run_folder / "tables" / "metrics.csv")),
        summary=_summary(manifests),
        warnings=_warnings(manifests, stale),
        table=table,
        results=("table2", "table3", "table4", "table5", "table7"),
        statistics=_frame(numbers.rename("value").to_frame()),
        model=manifests["04_sft"]["numbers"]["model"],
        wordings=wordings,
        primary=sentences(pd.read_csv(run_folder / "tables" / "primary.csv")),
        cases=Markup((run_folder / "07_case_studies" / "cases.html").read_text(encoding="utf-8")),
        ability_note=manifests["09_general_ability"]["numbers"]["note"],
        tallrec_note=manifests["08_tallrec"]["numbers"]["note"],
        stages=_frame(_stage_table(manifests)),
        deviations=_frame(_deviations(profile)),
        settings=settings,
        versions=json.dumps(
            first["versions"]
            | first["hardware"]
            | {"commit": first["commit"], "profile": first.get("profile")},
            indent=1,
        ),
        figure=lambda name: _figure(run_folder, name),
    )
    with atomic_path(run_folder / "report.html") as temporary:
        temporary.write_text(visible(html), encoding="utf-8")
    return run_folder / "report.html"


def _summary(manifests):
    lines = list(manifests["06_evaluation"]["numbers"]["findings"])
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
    return found + [(s, "made with other knobs than the settings below") for s in stale]


def _stage_table(manifests):
    rows = {
        s: {
            "minutes": f"{m['wall_seconds'] / 60:.1f}",
            "peak memory, MiB": m["peak_memory_mib"],
            "commit": m["commit"],
        }
        for s, m in manifests.items()
    }
    return pd.DataFrame(rows).T


def _deviations(profile):
    rows = [(knob, visible(here), paper) for knob, here, paper in deviations(profile)]
    return pd.DataFrame(rows, columns=["knob", "here", "paper"]).set_index("knob")


def _frame(frame):
    return Markup(f'<div class="scroll">{frame.to_html(border=0)}</div>')


def _table(html):
    head, *rows = html.split("<tr>")
    marked = [('<tr class="paper">' if "(paper)" in row else "<tr>") + row for row in rows]
    return Markup(head + "".join(marked))


def _figure(run_folder, name):
    stage, stem = name.split("/")
    path = run_folder / stage / "figures" / f"{stem}.png"
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    caption = CAPTIONS[name]
    return Markup(
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
