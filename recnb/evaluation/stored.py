"""Work on a run's stored answers alone: its tables again, its requests and scores for others."""

import json
from pathlib import Path

import pandas as pd

from recnb import RecnbError
from recnb import profile as profiles
from recnb.artifacts import Reader, is_done, read_manifest, same_knobs, write_csv
from recnb.catalog import Catalog
from recnb.datasets.tabular import read_csv, shown
from recnb.evaluation import halves
from recnb.evaluation.primary import in_family, primary, write_primary
from recnb.evaluation.protocol import evaluate_stored, proportion_by_k, score_texts, stored_requests
from recnb.evaluation.statistics import comparisons
from recnb.evaluation.tables import (
    exactness,
    form,
    table1,
    table6,
    table8,
    tallrec_table,
    write_frame,
    write_tables,
)
from recnb.evaluation.wordings import write_wordings
from recnb.interactions import Histories
from recnb.lm.recommender import request_prompt
from recnb.text_safety import spreadsheet


def open_run(run_folder):
    """Profile, catalogue, histories and answers folder of a run, checked against its manifests."""
    run_folder = Path(run_folder)
    if not (run_folder / "profile.yaml").is_file():
        raise RecnbError(f"{run_folder}: no such run")
    profile = profiles.load(run_folder / "profile.yaml")
    if not is_done(profile, "06_evaluation", run_folder):
        raise RecnbError(
            f"{run_folder}: the evaluation is missing, changed or of other knobs: run notebook "
            "06_evaluation again"
        )
    reader = Reader(profile, run_folder)
    catalog = Catalog.from_parquet(reader.input("01_data", "catalog.parquet"))
    histories = Histories.from_parquet(reader.input("01_data", "histories.parquet"))
    answers = next((run_folder / "06_evaluation" / "answers").glob("*/"))
    return profile, catalog, histories, answers


def remarks(profile):
    """What a reader must know of systems that did answer: ``{system: text}``."""
    return {
        "sasrec_prompt": "the teacher, told no more of the user than a prompt shows",
        "palr": f"trained on {profile.sft.palr:,} samples",
        "instructrec": (
            f"trained on {profile.sft.instructrec:,} samples; backbone: this profile's model, "
            "where the paper takes Flan-T5-XL"
        ),
    }


def write_results(answers, histories, catalog, profile, not_run, tables):
    """Metrics, tables and comparisons of stored answers; the one way in which they are made.

    Args:
        answers: folder of ``answer_all``'s files.
        not_run: ``{system: reason}``.
        tables: folder for ``metrics.csv``, ``differences.csv`` and the tables.

    Returns:
        ``(metrics, users, tables)``, the last as ``{name: DataFrame}``: the tables as they are
        shown, but "primary", "exactness" and "halves" as numbers.
    """
    knobs, seed = profile.evaluation, profile.seed
    metrics, users = evaluate_stored(
        answers, histories, catalog, profile.data, knobs, seed, not_run, remarks(profile)
    )
    made = write_tables(metrics, tables)
    differences = comparisons(users, knobs.bootstrap, seed)
    differences = differences.assign(family=in_family(differences))
    write_csv(differences, tables / "differences.csv", 6)
    made["primary"] = primary(users, knobs.bootstrap, seed)
    write_primary(made["primary"], tables)
    # all systems were asked the same (evaluate_stored): one file names every k
    asked = pd.read_parquet(next(answers.glob("*.parquet")), columns=["task", "user", "k"])
    parts = []
    for (system, decoding), values in users.items():
        by_k = proportion_by_k(asked, values, knobs.bootstrap, seed)
        parts.append(by_k.assign(system=system, decoding=decoding))
    made["exactness"] = pd.concat(parts, ignore_index=True)
    write_frame(form(metrics), tables, "form")
    write_frame(exactness(made["exactness"], not_run), tables, "exactness")
    write_csv(made["exactness"], tables / "exactness.csv", 6)
    made["halves"] = halves.all_halves(answers, catalog)
    write_frame(halves.readable(made["halves"]), tables, "halves")
    return metrics, users, made


def write_other_tables(profile, run_folder, tables):
    """Tables 1, 6, 8, general ability and TALLRec, of the stages stored with these knobs alone."""
    reader, tables = Reader(profile, run_folder), Path(tables)
    manifests = {}
    for stage in profiles.STAGES:
        if (reader.run_folder / stage / "manifest.json").is_file():
            if same_knobs(profile, stage, reader.run_folder):
                manifests[stage] = read_manifest(reader.run_folder / stage, stage)
    text = {"dtype": str, "keep_default_na": False}
    if "01_data" in manifests:
        write_frame(table1(manifests["01_data"]["numbers"]), tables, "table1")
    if "03_instructions" in manifests:
        counts = manifests["03_instructions"]["numbers"]["counts"]
        write_frame(table8(counts).rename_axis("task").reset_index(), tables, "table8")
    if "07_case_studies" in manifests:
        cases = pd.read_csv(reader.input("07_case_studies", "cases.csv"), **text)
        write_frame(table6(cases), tables, "table6")
    if "08_tallrec" in manifests:
        answered = pd.read_csv(reader.input("08_tallrec", "table.csv"), **text)
        write_frame(tallrec_table(answered), tables, "tallrec")
    if "09_general_ability" in manifests:
        ability = pd.read_csv(reader.input("09_general_ability", "table.csv"), **text)
        write_frame(ability, tables, "general")


def evaluate_run(run_folder, tables):
    """All tables of a run from what it stored, byte for byte those of its notebooks and report."""
    profile, catalog, histories, answers = open_run(run_folder)
    not_run = json.loads((answers.parent.parent / "not_run.json").read_text(encoding="utf-8"))
    results = write_results(answers, histories, catalog, profile, not_run, Path(tables))
    if profile.evaluation.wordings:
        write_wordings(answers, histories, catalog, profile, Path(tables))
    write_other_tables(profile, run_folder, tables)
    return results


def run_requests(run_folder):
    """Profile, catalogue and requests of a run, ``{task: list}``."""
    profile, catalog, histories, answers = open_run(run_folder)
    first = pd.read_parquet(sorted(answers.glob("*.parquet"))[0])
    split = profile.evaluation.split
    return profile, catalog, stored_requests(first, histories, profile.data, split)


def write_requests(run_folder, file):
    """Write task, user and prompt of every request as CSV; returns their number."""
    profile, catalog, requests = run_requests(run_folder)
    rows = []
    for task, asked in requests.items():
        rows += [(task, r.user, request_prompt(r, catalog, profile.seed)) for r in asked]
    write_csv(pd.DataFrame(rows, columns=["task", "user", "prompt"]), file)
    return len(rows)


def read_answers(file):
    """Someone else's answers as strings, but for the user, a number where it is one."""
    try:
        table = read_csv(file)
    except (OSError, ValueError, OverflowError) as error:
        raise RecnbError(f"{file} is not a readable CSV file: {shown(error, 200)}") from error
    if "user" in table:
        numbers = pd.to_numeric(table["user"], errors="coerce")
        table["user"] = numbers.astype(object).where(numbers.notna(), table["user"])
    return table


def score_file(file, run_folder, name):
    """Score a CSV of answers against a run's requests.

    Returns:
        ``(metrics, path)``: the long form, and where it was written.

    Raises:
        RecnbError: an unreadable file, or what ``score_texts`` says of its rows, with the file's
            name.
    """
    table = read_answers(file)
    profile, catalog, requests = run_requests(run_folder)
    try:
        name = spreadsheet(name)  # a file's name, perhaps somebody else's
        metrics = score_texts(table, requests, catalog, name, profile.evaluation, profile.seed)
    except RecnbError as error:
        raise RecnbError(f"{file}: {error}") from None
    target = Path(file).with_suffix(".metrics.csv")
    write_csv(metrics, target, 6)
    return metrics, target
