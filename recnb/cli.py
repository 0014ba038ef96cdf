"""The command line: one thin command a verb; ``recnb --help`` lists them."""

import difflib
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from recnb import RecnbError, profile, sources
from recnb.artifacts import existing_run, is_done, read_manifest, run_folder, runs_folder, write_csv
from recnb.text_safety import visible

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Controllable recommendation with language models.",
)
ProfileArgument = Annotated[str, typer.Argument(help="profile")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="section.key=value, for example sft.rank=32")
]
RunArgument = Annotated[str, typer.Argument(help="name of the run")]
NewRun = Annotated[str, typer.Option("--run", help="name of the run, default: the profile's")]
AnsweredRun = Annotated[str, typer.Option("--run", help="the run whose requests were answered")]
FolderOption = Annotated[str, typer.Option(help="folder of the run, instead of its name")]


def overrides(pairs, option="--set"):
    """``["sft.rank=32"]`` -> ``{"sft.rank": 32}``; values are read as YAML."""
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise RecnbError(f"{option} {pair}: expected key=value, for example sft.rank=32")
        try:
            result[key] = profile.read_yaml(value)
        except RecnbError as error:
            raise RecnbError(f"{option} {pair}: the value cannot be read: {error}") from None
    return result


def _chosen(run_name, folder):
    """The run's folder, known to exist before anything heavy is imported."""
    if not folder:
        return existing_run(run_name)
    if not (Path(folder) / "profile.yaml").is_file():
        raise RecnbError(f"--folder {folder}: no run there (it holds no profile.yaml)")
    return Path(folder)


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="profile, or raw data set (docs/datasets.md)")
    ] = "laptop",
    mirror: Annotated[str, typer.Option(help="folder or address that has the raw files")] = "",
    set_: SetOption = [],  # noqa: B006
):
    """Download and verify what a profile needs, or raw data; nothing is downloaded twice."""
    from recnb.datasets import download

    if name not in download.known():
        if mirror:
            raise RecnbError(f"--mirror: {name} is no raw data set ({', '.join(download.known())})")
        from recnb.lm.hub import ready

        resolved = profile.load(name, overrides(set_))
        for source in sources.needed(resolved):
            print(f"{source.name}: {sources.fetch(source)} ({source.licence})")
        for sentence in ready(resolved.model.name):
            print(f"warning: {visible(sentence)}")
        return
    if set_:
        raise RecnbError(f"--set is for a profile, and {name} is a raw data set")
    about = download.known()[name]
    print(f"{about['title']}, {about['page']} (licence: {about['licence']})")
    print(f"recnb prepare {name} {download.fetch(name, mirror)} FOLDER")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="amazon, steam, movielens-1m or movietweetings")],
    source: Annotated[Path, typer.Argument(help="folder of the raw files")],
    out: Annotated[Path, typer.Argument(help="folder to make")],
    k_core: Annotated[
        int, typer.Option(min=1, help="users and items with fewer interactions are removed")
    ] = 5,
    user_core: Annotated[int, typer.Option(min=0, help="the same for users alone, 0 = k-core")] = 0,
    users: Annotated[int, typer.Option(min=0, help="at most so many, drawn; 0 = all")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
):
    """Make items.csv and interactions.csv out of a data set's raw files."""
    from recnb.datasets.prepare import broken_off, prepare, summary

    manifest = prepare(name, source, out, k_core, user_core, users, seed)
    print(visible(summary(manifest)))
    for sentence in broken_off(manifest):
        print(f"warning: {visible(sentence)}", file=sys.stderr)


@app.command()
def rehearse(
    name: Annotated[str, typer.Argument(help="amazon, steam, movielens-1m or movietweetings")],
    out: Annotated[Path, typer.Argument(help="folder to make")],
    users: Annotated[int, typer.Option(min=1, help="people")] = 1000,
    items: Annotated[int, typer.Option(min=20, help="items")] = 500,
    length: Annotated[int, typer.Option(min=5, help="interactions of a person, mean")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of all draws")] = 0,
):
    """Write invented raw files of a data set, with the dirt of the real ones, for a trial."""
    from recnb.datasets.rehearsal import write

    for reason, rows in write(name, out, users, items, seed, length).items():
        print(f"{rows:10,}  {reason}")
    print(f"recnb prepare {visible(name)} {visible(out)} FOLDER")


@app.command()
def run(
    names: Annotated[list[str], typer.Argument(help="profiles")] = ["laptop"],  # noqa: B006
    run_name: NewRun = "",
    until: Annotated[str, typer.Option(help="last stage, for example 04_sft")] = "",
    set_: SetOption = [],  # noqa: B006
    earlier: Annotated[
        str, typer.Option("--from", help="a run whose stages with the same knobs are taken over")
    ] = "",
    variant: Annotated[
        list[str], typer.Option(help="one of the profile's variants, alone; again for another")
    ] = [],  # noqa: B006
    student: Annotated[
        str, typer.Option(help="Python file with functions of your own (docs/build_it_yourself.md)")
    ] = "",
    executor: Annotated[
        Literal["local", "slurm"], typer.Option(help="who computes (docs/cluster.md)")
    ] = "local",
    workflow_profile: Annotated[
        str, typer.Option(help="for slurm: a100, or a folder with a config.yaml")
    ] = "",
    at_once: Annotated[
        int,
        typer.Option(min=1, help="runs side by side on this machine, each with its share of cores"),
    ] = 1,
):
    """Run the notebooks of a profile, in order; what is up to date is not run again.

    With seeds or variants: a run each, and a summary. Several profiles: one after the other, some
    at once, or all together on a cluster.
    """
    from recnb.workflow.cluster import cluster
    from recnb.workflow.launch import run_together, together
    from recnb.workflow.several import planned, share

    changed = overrides(set_)
    profiles = [profile.load(name, changed) for name in names]
    if until and until not in profile.STAGES:
        close = difflib.get_close_matches(until, profile.STAGES, n=1, cutoff=0.3)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise RecnbError(
            f"--until {until}: no such stage.{hint} Stages: {', '.join(profile.STAGES)}"
        )
    if run_name and len(names) > 1:
        raise RecnbError(f"--run {run_name} names one profile's run, and these are {len(names)}")
    if workflow_profile and executor != "slurm":
        raise RecnbError("--workflow-profile is for --executor slurm: say it too")
    if at_once > 1 and executor == "slurm":
        raise RecnbError("--at-once is for this machine; SLURM has jobs of the workflow profile")
    submit_to = cluster(workflow_profile) if executor == "slurm" else None
    built = None
    if student:
        from recnb.check.in_place import refuse_released, student_functions

        built = student_functions(student)
    runs, summaries = [], []
    for name, resolved in zip(names, profiles, strict=True):
        own = planned(name, changed, run_name or resolved.name, variant)
        runs += [(run_folder(label), one) for label, _, _, one in own]
        kinds = dict.fromkeys(kind for _, _, kind, _ in own)
        for which in kinds if resolved.seeds and not until else []:
            summaries.append([label for label, _, kind, _ in own if kind == which])
    twice = sorted({folder.name for folder, _ in runs if [f for f, _ in runs].count(folder) > 1})
    if twice:
        raise RecnbError(f"{', '.join(twice)}: two of these runs would have this name")
    if earlier and student:
        raise RecnbError("--from: a run with a student's functions makes its stages itself")
    if earlier and len(runs) > 1:
        raise RecnbError("--from is for one run: several take what they share from each other")
    for _, one in runs if student else []:
        refuse_released(one, built[1])
    taken = [existing_run(earlier)] if earlier else None
    several = built is None and (variant or len(runs) > 1)
    for group in together(runs, submit_to, at_once):
        for folder, one in group if taken or several else []:
            share(one, folder, until or profile.STAGES[-1], taken)
        run_together([(one, folder) for folder, one in group], until, built, submit_to, at_once)
    for labels in summaries:
        _summarise(labels)


@app.command()
def tune(
    name: ProfileArgument,
    try_: Annotated[
        list[str], typer.Option("--try", help="section.key=[values], for example ppo.steps=[60,90]")
    ],
    set_: SetOption = [],  # noqa: B006
    system: Annotated[str, typer.Option(help="the system whose numbers are shown")] = "full",
):
    """Try knobs on validation targets: each combination is a run, the table compares them.

    The test targets stay unseen until recnb run. Earlier stages are shared with other runs.
    """
    from recnb.workflow.tune import overview
    from recnb.workflow.tune import tune as run_trials

    frame = run_trials(name, overrides(set_), overrides(try_, "--try"))
    print(visible(overview(frame, system).to_markdown(index=False, floatfmt=".4f")))
    print(visible(runs_folder() / f"{profile.load(name).name}-tune.csv"))


@app.command("check-data")
def check_data(
    folder: Annotated[Path, typer.Argument(help="folder of items.csv, interactions.csv")],
    name: Annotated[str, typer.Option("--profile", help="profile")] = "laptop",
    set_: SetOption = [],  # noqa: B006
):
    """Say what is wrong with a catalogue of your own, and what is suspicious."""
    from recnb.datasets.check import check

    changed = overrides(set_) | {"data.dataset": "tabular", "data.path": str(folder)}
    problems, warnings = check(profile.load(name, changed))
    for sentence in warnings:
        print(f"warning: {visible(sentence)}")
    if problems:
        raise RecnbError("\n".join([f"{folder} cannot be used:", *problems]))
    print(f"{visible(folder)}: {len(warnings)} warnings, no problem")


@app.command()
def doctor(name: ProfileArgument = "laptop", set_: SetOption = []):  # noqa: B006
    """Say what this machine is and what a run of the profile would choose on it."""
    from recnb.machine import describe, estimate

    resolved = profile.load(name, overrides(set_))
    print("\n".join(describe(resolved) + estimate(resolved)))


@app.command()
def plan(
    name: ProfileArgument = "laptop",
    set_: SetOption = [],  # noqa: B006
    gpu_memory: Annotated[
        float, typer.Option(min=0, help="GiB of a GPU to plan for; 0 = this machine")
    ] = 0,
    tflops: Annotated[
        float, typer.Option(min=0, help="of a GPU in training; 0 = what the paper's reached")
    ] = 0,
    tokens: Annotated[
        float, typer.Option(min=0, help="answer tokens a second of a GPU; 0 = the paper's, by vLLM")
    ] = 0,
    users: Annotated[int, typer.Option(min=0, help="of the catalogue; 0 = as known")] = 0,
    items: Annotated[int, typer.Option(min=0, help="of the catalogue; 0 = as known")] = 0,
):
    """Reckon a run through before it is started: steps, tokens, memory, hours, disk, downloads.

    Fails if something does not fit, and says which knob to turn.
    """
    from recnb import plan as planning
    from recnb.plan.hardware import stated, this_machine

    resolved = profile.load(name, overrides(set_))
    if not gpu_memory and (tflops or tokens):
        raise RecnbError("--tflops and --tokens are for --gpu-memory: say it too")
    if gpu_memory:
        hardware = stated(resolved, gpu_memory, tflops, tokens)
    else:
        hardware = this_machine(resolved)
    found = planning.plan(resolved, hardware, users, items)
    print(visible("\n".join(planning.lines_of(found, hardware))))
    refusals = found.refusals
    if not gpu_memory:
        refusals = refusals + planning.disk_refusals(found)
    if refusals:
        raise RecnbError("\n".join([f"{resolved.name} does not fit:", *refusals]))


@app.command("gpu-check")
def gpu_check(
    out: Annotated[Path, typer.Option(help="folder for the report")] = Path("build/gpu-check"),
):
    """Try the kit on this machine's CUDA GPU, ten minutes at most; fails if a line does.

    Some SL and RL steps, a 7B-shaped model's memory against recnb plan, answers against the CPU's,
    lists a second (docs/gpu.md).
    """
    from recnb.gpu_check import gpu_check as check

    check(out, lambda text: print(text, flush=True))


@app.command()
def status(run_name: RunArgument = "laptop"):
    """Say which notebooks of a run are up to date."""
    from recnb.owner import held_by, owner

    folder = existing_run(run_name)
    resolved = profile.load(folder / "profile.yaml")
    if owner(folder):
        from recnb.workflow.launch import under_way

        where = under_way(folder) or ": no notebook at this moment"
        print(visible(f"{held_by(folder)}\nunder way{where}"))
    for stage in profile.STAGES:
        if is_done(resolved, stage, folder):
            manifest = read_manifest(folder / stage, stage)
            seconds, memory = manifest["wall_seconds"], manifest["peak_memory_mib"]
            print(f"{stage:18} up to date  {seconds:8.0f} s  {memory:6} MiB")
        else:
            print(f"{stage:18} to do")


@app.command()
def report(run_name: RunArgument = "laptop", folder: FolderOption = ""):
    """Write report.html of a finished run."""
    where = _chosen(run_name, folder)
    from recnb.report import write_report

    print(visible(write_report(where)))


@app.command()
def evaluate(run_name: RunArgument = "laptop", folder: FolderOption = ""):
    """Make all tables of a run anew from its stored answers; no model is needed."""
    where = _chosen(run_name, folder)
    from recnb.evaluation.stored import evaluate_run

    evaluate_run(where, where / "tables")
    print(visible(where / "tables"))


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="CSV with the columns task, user, text")],
    run_name: AnsweredRun = "laptop",
    folder: FolderOption = "",
    name: Annotated[str, typer.Option(help="what to call the system")] = "",
):
    """Score someone else's answers to a run's requests; writes FILE.metrics.csv."""
    where = _chosen(run_name, folder)
    from recnb.evaluation.stored import score_file

    metrics, target = score_file(file, where, name or file.stem)
    shown = metrics[~metrics["metric"].str.endswith("without control")]
    shown = shown[["task", "metric", "value", "low", "high", "n"]]
    print(visible(shown.to_markdown(index=False, floatfmt=".4f")))
    print(visible(target))


@app.command()
def course(
    folder: Annotated[Path, typer.Argument(help="folder to make")],
    seed: Annotated[
        int, typer.Option(min=0, help="of nbgrader's hidden tests, default: drawn")
    ] = None,
):
    """Write a course: students' notebooks, the teacher's, and a place for submissions."""
    from recnb.course.copies import ASSIGNMENT, write_course

    print(write_course(folder, seed), "graded exercises")
    print(visible(f"for students: {folder / 'release' / ASSIGNMENT}"))
    print(visible(f"recnb grade {folder / 'submitted'} {folder / 'grades'}"))


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="a folder of notebooks for each student")],
    out: Annotated[Path, typer.Argument(help="folder for the tables")],
    seed: Annotated[int, typer.Option(min=0, help="of the hidden inputs, default: drawn")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="for one exercise of one student")] = 5.0,
):
    """Grade a course's submissions, each answer in a process with limits (docs/course.md)."""
    from recnb.course.grade import LIMITS, grade, write_grades

    if out.resolve().is_relative_to(submissions.resolve()):
        raise RecnbError(f"{out} lies among the submissions: name another folder for the tables")
    grades, seed, held = grade(submissions, seed, seconds, lambda name: print(visible(name)))
    write_grades(grades, out, seed, held)
    lacking = [limit for limit in LIMITS if limit not in held]
    if lacking:
        print(
            f"warning: this system could not limit {', '.join(lacking)}: grade in a container "
            "without network, as docs/course.md shows"
        )
    totals = grades.groupby("student", sort=False)[["points", "of"]].sum().reset_index()
    totals["student"] = totals["student"].map(visible)
    print(totals.to_markdown(index=False))
    print(visible(out / "grades.html"))


@app.command()
def leaderboard(
    submissions: Annotated[Path, typer.Argument(help="folder of CSV files: task, user, text")],
    run_name: AnsweredRun = "laptop",
    folder: FolderOption = "",
):
    """Compare many systems' answers to a run's requests: who leads, and who is tied."""
    where = _chosen(run_name, folder)
    from recnb.leaderboard import rank, write_leaderboard

    board = rank(submissions, where)
    for sentence in board.problems:
        print(f"left out: {visible(sentence)}")
    print(visible(write_leaderboard(board, submissions / "leaderboard")))


@app.command()
def requests(
    file: Annotated[Path, typer.Argument(help="CSV to write: task, user, prompt")],
    run_name: Annotated[str, typer.Option("--run", help="name of the run")] = "laptop",
    folder: FolderOption = "",
):
    """Write a run's requests as prompts for your own system; `recnb score` scores its answers."""
    where = _chosen(run_name, folder)
    from recnb.evaluation.stored import write_requests

    print(write_requests(where, file), "requests in", visible(file))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="name of a run")],
    second: Annotated[str, typer.Argument(help="name of a run with the same requests")],
    system: Annotated[list[str], typer.Option(help="systems")] = ["v2", "full"],  # noqa: B006
    decoding: Annotated[list[str], typer.Option(help="ways of decoding")] = ["free"],  # noqa: B006
):
    """Compare two runs, first - second, user by user: a table, a CSV file and a picture."""
    folders = existing_run(first), existing_run(second)
    from recnb import plots
    from recnb.evaluation.compare import compare_runs

    table, left_out = compare_runs(*folders, system, decoding)
    if left_out:
        print(visible(f"left out, the requests differ: {', '.join(left_out)}"))
    alike = table["difference"].eq(0) & table["detectable"].eq(0)
    shown = table[~alike].drop(columns=["table", "b", "detectable"])
    print(visible(shown.to_markdown(index=False, floatfmt=".4f")))
    print(f"{alike.sum()} more comparisons are the same for every user")
    name = f"{first}-against-{second}"
    target = runs_folder() / f"{name}.csv"
    write_csv(table, target, 6)
    print(visible(target))
    if not alike.all():
        plots.save(plots.differences(table[~alike], f"{first} - {second}"), runs_folder(), name)
        print(runs_folder() / "figures" / f"{name}.png")


@app.command()
def summarise(
    runs: Annotated[list[str], typer.Argument(help="names of runs that differ in their seed")],
):
    """Mean and standard deviation of every number over runs of several seeds.

    Of paired effects too. They lie in the folder seeds of the first run, whose report quotes them.
    """
    _summarise(runs)


def _summarise(runs):
    from recnb.evaluation.seeds import read_summary, readable, write_summary
    from recnb.report import write_report

    paths = write_summary(runs)
    folder = existing_run(runs[0])
    for row in readable(read_summary(folder)[2]).to_dict("records"):
        found = f"{row['']} {row['claim']}: {row['over the seeds']}"
        print(f"{found} ({row['metric']}, {row['difference of']}: {row['mean ± sd'] or 'not run'})")
    print(visible("\n".join(map(str, paths))))
    print(write_report(folder))


def main():
    """Entry point: an error of the user's is one message and exit code 1."""
    try:
        app()
    except RecnbError as error:
        print(f"recnb: {visible(error)}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
