"""The report: one self-contained HTML file of a run, readable on a phone."""

import base64
import json
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from recnb import RecnbError
from recnb import profile as profiles
from recnb.artifacts import atomic_path, fingerprint, read_manifest
from recnb.evaluation.stored import write_other_tables
from recnb.evaluation.tables import TITLES

CAPTIONS = {
    "01_data/dataset": "The data: popularity, history length, categories.",
    "02_teacher/training": "The teacher's training.",
    "02_teacher/compare": "The teacher beside baselines on the test items (full ranking, seen items masked; 95 % intervals).",
    "04_sft/base": "Training of the base model.",
    "04_sft/loss": "The SL stage.",
    "05_ppo/training": "The RL stage.",
    "05_ppo/tokens": "Which token of an answer receives which reward.",
    "06_evaluation/controls": "How well each system obeys (free decoding, 95 % intervals).",
    "09_general_ability/forgetting": "What conversation in the instruction set (I4) does: small SL stages with "
    "different shares of it.",
    "08_tallrec/few_shot": "TALLRec's question (will the user like this title?) after a handful of examples.",
    "07_case_studies/dial": "The control dial: the share asked for against the share delivered.",
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>recnb: {{ name }}</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; color: #222; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 2px solid #4c72b0; padding-bottom: .2rem; }
.scroll { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .82rem; white-space: nowrap; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
thead th { background: #eef2f8; } tr.paper td { color: #777; background: #fafafa; }
figure { margin: 1rem 0; } figcaption { color: #555; font-size: .9rem; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .8rem; }
.answer { border-left: 4px solid #4c72b0; padding: .1rem .8rem; margin: .6rem 0; }
.target { background: #c8e6c9; } .inside { background: #fff3b0; } .repeat { background: #f8c9c9; }
.unknown { text-decoration: line-through; color: #a00; }
</style></head><body>
<h1>recnb: run {{ name }}</h1>
<p>Controllable recommendation with a language model, after Lu et al., <em>Aligning Large Language Models for Controllable
Recommendations</em> (arXiv 2403.05063). Every number below comes from this run; grey rows are the paper's reported
numbers (Llama-2-7b on other, larger datasets), for orientation and not for comparison.</p>
<h2>Summary</h2><ul>{% for line in summary %}<li>{{ line }}</li>{% endfor %}</ul>
{{ figure("06_evaluation/controls") }}
<h2>Data</h2>{{ statistics }}{{ table("table1") }}{{ figure("01_data/dataset") }}
<h2>Teacher</h2>{{ figure("02_teacher/compare") }}{{ figure("02_teacher/training") }}
<h2>Instructions</h2>{{ table("table8") }}
<h2>Language model</h2><p>{{ model }}</p>{{ figure("04_sft/base") }}{{ figure("04_sft/loss") }}
<h2>Reinforcement learning</h2>{{ figure("05_ppo/training") }}{{ figure("05_ppo/tokens") }}
<h2>Results</h2>
<p><b>free</b>: the model writes what it likes, as in the paper. <b>constrained</b>: an automaton lets it write only
unseen titles of the catalogue, no repeats, exactly k. <b>obey</b>: the automaton also enforces the control (ours, not the
paper's). Intervals are 95 % bootstrap intervals over users; rankers do not decode and say <i>free</i>. InHistory counts
titles that the prompt showed; Seen counts everything the user had before. Bold: the best of our systems with this way of
decoding; underlined: the runner-up. Whether two of them differ beyond noise, the table of differences says.</p>
{% for name in results %}{{ table(name) }}{% endfor %}
<h3>Differences</h3>
<p>Paired over the same users; p from 50,000 random sign flips, corrected for the number of comparisons in the same table (Holm).
"detectable" is the smallest difference that a single test with this many users would show in four of five repetitions. All:
<code>tables/differences.csv</code>.</p>
<div class="scroll">{{ differences }}</div>
<h2>General ability</h2>
<p>Perplexity on conversations that no training saw, with 95 % bootstrap intervals over them; lower is better.
{{ ability_note }}</p>
{{ table("general") }}{{ figure("09_general_ability/forgetting") }}
<h2>Case studies</h2>{{ figure("07_case_studies/dial") }}<h3>Table 6: single answers</h3>{{ cases }}
<h2>TALLRec</h2>
<p>Yes or No to one title, after K examples (arXiv 2305.00447); AUC in %, mean ± standard deviation over draws of the examples.
{{ tallrec_note }}</p>{{ figure("08_tallrec/few_shot") }}{{ table("tallrec") }}
<h2>The run</h2>{{ stages }}
<h3>Versions and machine</h3><pre>{{ versions }}</pre>
<h3>Settings</h3><pre>{{ settings }}</pre>
</body></html>
"""


def write_report(run_folder):
    """Write ``report.html`` of a finished run.

    Raises:
        RecnbError: a stage or a table is missing.
    """
    run_folder = Path(run_folder).resolve()
    manifests = {stage: read_manifest(run_folder / stage, stage) for stage in profiles.STAGES}
    settings = (run_folder / "profile.yaml").read_text(encoding="utf-8")
    profile = profiles.load(run_folder / "profile.yaml")
    stale = [s for s in profiles.STAGES if manifests[s]["fingerprint"] != fingerprint(profile, s)]
    environment = jinja2.Environment(autoescape=True)
    write_other_tables(profile, run_folder, run_folder / "tables")
    missing = [n for n in ("differences.csv", *(f"{t}.html" for t in TITLES)) if not (run_folder / "tables" / n).is_file()]
    if missing:
        raise RecnbError(f"{run_folder / 'tables' / missing[0]} does not exist: recnb evaluate makes the tables from the answers")

    def table(name):
        found = _table((run_folder / "tables" / f"{name}.html").read_text(encoding="utf-8"))
        return Markup("<h3>{}</h3><div class='scroll'>{}</div>").format(TITLES[name], found)

    first = manifests["01_data"]
    html = environment.from_string(PAGE).render(
        name=run_folder.name, summary=_summary(manifests, stale), table=table,
        results=("table2", "table3", "table4", "table5", "table7"),
        statistics=_frame(pd.Series({k: f"{v:,.6g}" for k, v in first["numbers"].items()}).rename("value").to_frame()),
        model=manifests["04_sft"]["numbers"]["model"],
        differences=_differences(run_folder / "tables" / "differences.csv"),
        cases=Markup((run_folder / "07_case_studies" / "cases.html").read_text(encoding="utf-8")),
        ability_note=manifests["09_general_ability"]["numbers"]["note"],
        tallrec_note=manifests["08_tallrec"]["numbers"]["note"],
        stages=_frame(_stage_table(manifests)), settings=settings,
        versions=json.dumps(first["versions"] | first["hardware"] | {"commit": first["commit"]}, indent=1),
        figure=lambda name: _figure(run_folder, name),
    )  # fmt: skip
    with atomic_path(run_folder / "report.html") as temporary:
        temporary.write_text(html, encoding="utf-8")
    return run_folder / "report.html"


def _summary(manifests, stale):
    lines = list(manifests["06_evaluation"]["numbers"]["findings"])
    lines.append(manifests["05_ppo"]["numbers"]["finding"])
    wall = sum(m["wall_seconds"] for m in manifests.values())
    memory = max(m["peak_memory_mib"] for m in manifests.values())
    count = len(manifests)
    lines.append(f"All {count} notebooks took {wall / 60:.1f} minutes; the largest one used {memory / 1024:.1f} GiB of memory.")
    if stale:
        lines.append(f"Warning: {', '.join(stale)} were made with other knobs than the settings below.")
    return lines


def _stage_table(manifests):
    rows = {s: {"minutes": f"{m['wall_seconds'] / 60:.1f}", "peak memory, MiB": m["peak_memory_mib"], "commit": m["commit"]}
            for s, m in manifests.items()}  # fmt: skip
    return pd.DataFrame(rows).T


def _frame(frame):
    return Markup(f'<div class="scroll">{frame.to_html(border=0)}</div>')


def _table(html):
    head, *rows = html.split("<tr>")
    marked = [('<tr class="paper">' if "(paper)" in row else "<tr>") + row for row in rows]
    return Markup(head + "".join(marked))


def _differences(path):
    """The comparisons of full and v2, and of full's ways of decoding."""
    frame = pd.read_csv(path)
    own = frame["b"].str.startswith("full-") | (frame["b"] == "v2-free")
    shown = frame[own].drop(columns="table").rename(columns={"p corrected": "p, corrected"})
    numbers = {c: "{:.4f}".format for c in ("difference", "low", "high", "p", "p, corrected", "detectable")}
    return Markup(shown.to_html(index=False, border=0, formatters=numbers))


def _figure(run_folder, name):
    stage, stem = name.split("/")
    path = run_folder / stage / "figures" / f"{stem}.png"
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    caption = CAPTIONS[name]
    return Markup(f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>')
