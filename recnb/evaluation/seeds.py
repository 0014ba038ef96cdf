"""Several runs that differ in their seed: what all of them show, and how far they lie apart.

One seed is one draw of everything: base, samples, answers. ``recnb summarise`` writes the summary
into the first run's ``seeds/`` and makes its report again, which then quotes means over the seeds.
"""

import json

import pandas as pd

from recnb import RecnbError
from recnb import profile as profiles
from recnb.artifacts import atomic_path, existing_run, read_manifest, sha256
from recnb.evaluation.primary import p_text, percent

FOLDER, ABOUT = "seeds", "runs.json"
COMPARED = {"seed", "seeds", "variants", "name"}
"""Keys of a profile in which runs of one summary may differ."""


def over_seeds(frames):
    """Mean and standard deviation over runs that differ in their seed alone.

    Args:
        frames: list of ``metrics.csv`` tables, one a run.

    Returns:
        DataFrame table, system, decoding, task, metric, mean, sd, runs; rows that some run lacks
        count the runs that have them.
    """
    keys = ["table", "system", "decoding", "task", "metric"]
    values = pd.concat(frames).dropna(subset="value").groupby(keys, sort=False)["value"]
    return values.agg(mean="mean", sd="std", runs="size").reset_index()


def effects_over_seeds(frames, keys=("name", "claim", "a", "b", "task", "metric", "expected")):
    """Paired effects over runs that differ in their seed alone.

    An effect counts as ``real`` if its mean is farther from 0 than the runs' standard deviation,
    it has the same sign in every run, and every run's corrected p is below .05. The largest p is
    taken, and the p-values are not pooled: the runs share their test users, so that their p-values
    depend on each other, and the largest of several p-values is valid however they depend. The
    price is that each further run can only make it larger.

    Args:
        frames: list of ``primary.csv`` or ``differences.csv`` tables, one a run.
        keys: the columns that name a comparison.

    Returns:
        DataFrame of the keys, then mean, sd, runs, largest p corrected, real; sd needs two runs,
        and so does ``real``. Comparisons that a run did not compute count the runs that have them.
    """
    every = pd.concat(frames).groupby(list(keys), sort=False)
    effects = every["difference"]
    found = effects.agg(mean="mean", sd="std", runs="count", least="min", most="max")
    worst = every["p corrected"].max()
    same_sign = (found["least"] > 0) | (found["most"] < 0)
    beyond = found["mean"].abs() > found["sd"]
    real = (found["runs"] > 1) & same_sign & beyond & (worst < 0.05)
    found = found[["mean", "sd", "runs"]].assign(**{"largest p corrected": worst, "real": real})
    return found.reset_index()


def write_summary(runs):
    """Summarise runs; the files lie in the first one's ``seeds/``.

    Args:
        runs: names of finished runs of one profile, each with another seed.

    Returns:
        List of the paths written: ``metrics.csv`` (every number), ``primary.csv`` and
        ``differences.csv`` (paired effects, the fixed family and all others), and ``runs.json``,
        which says what runs they were.

    Raises:
        RecnbError: a run has no tables, two have the same seed or differ in another knob.
    """
    folders = [existing_run(run) for run in runs]
    seeds = _same_but_seed(folders)
    frames = {}
    for name in ("metrics.csv", "primary.csv", "differences.csv"):
        paths = [folder / "tables" / name for folder in folders]
        for path in paths:
            if not path.is_file():
                raise RecnbError(
                    f"{path} does not exist: run it first (recnb run PROFILE --run NAME --set "
                    f"seed=1), or recnb evaluate {path.parent.parent.name}, which makes the tables "
                    "from the answers"
                )
        frames[name] = [pd.read_csv(path) for path in paths]
    metrics, primary, differences = frames.values()
    others = ("table", "a", "b", "task", "metric", "family")
    tables = (
        over_seeds(metrics),
        effects_over_seeds(primary),
        effects_over_seeds(differences, others),
    )
    manifest = read_manifest(folders[0] / "06_evaluation", "06_evaluation")
    about = {"runs": list(runs), "seeds": seeds, "fingerprint": manifest["fingerprint"]}
    about["metrics"] = [sha256(folder / "tables" / "metrics.csv") for folder in folders]
    with atomic_path(folders[0] / FOLDER) as temporary:
        temporary.mkdir()
        for name, table in zip(frames, tables, strict=True):
            table.to_csv(temporary / name, index=False, float_format="%.6f")
        (temporary / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return [folders[0] / FOLDER / name for name in (*frames, ABOUT)]


def read_summary(folder):
    """The summary that lies in a run's folder.

    Args:
        folder: of the run.

    Returns:
        ``(seeds, metrics, effects)``: the runs' seeds; every number, its mean as ``value``, so that
        whatever reads a run's ``metrics.csv`` reads it; the effects of the fixed family, likewise
        with their means as ``difference`` and with a ``verdict``. Or None: there is no summary, or
        it was made before the evaluation of one of the runs was.
    """
    path = folder / FOLDER / ABOUT
    if not path.is_file():
        return None
    about = json.loads(path.read_text(encoding="utf-8"))
    manifest = read_manifest(folder / "06_evaluation", "06_evaluation")
    if about["fingerprint"] != manifest["fingerprint"]:
        return None
    for name, content in zip(about["runs"], about.get("metrics", []), strict=False):
        table = folder.with_name(name) / "tables" / "metrics.csv"
        if table.is_file() and sha256(table) != content:
            return None
    metrics, effects = (pd.read_csv(path.with_name(f"{n}.csv")) for n in ("metrics", "primary"))
    effects = effects.rename(columns={"mean": "difference"})
    effects["verdict"] = [verdict(row) for row in effects.itertuples()]
    return about["seeds"], metrics.rename(columns={"mean": "value"}), effects


def verdict(row):
    """What may be said of one effect of the fixed family."""
    if not row.runs:
        return "not computed"
    if not row.real:
        return "not shown"
    as_expected = (row.difference > 0) == (row.expected == "+")
    return "shown" if as_expected else "the opposite is shown"


def _same_but_seed(folders):
    """The runs' seeds; a mean over runs of different knobs would say nothing about them."""
    first, seeds = None, {}
    for folder in folders:
        knobs = profiles.load(folder / "profile.yaml").model_dump(mode="json")
        seed = knobs["seed"]
        if seed in seeds:
            raise RecnbError(f"{seeds[seed]} and {folder.name} have the same seed, {seed}")
        seeds[seed] = folder.name
        knobs = {key: value for key, value in knobs.items() if key not in COMPARED}
        first = first or knobs
        unlike = [
            f"{section}.{key}"
            for section, own in knobs.items()
            for key, value in (own.items() if isinstance(own, dict) else [("", own)])
            if value != (first[section][key] if isinstance(own, dict) else first[section])
        ]
        if unlike:
            raise RecnbError(
                f"{folder.name} and {folders[0].name} differ in more than their seed: "
                f"{', '.join(unlike)}"
            )
    return list(seeds)


def readable(effects):
    """The fixed family's effects over the seeds, from ``read_summary``, as text cells."""
    rows = []
    for row in effects.rename(columns={"largest p corrected": "p"}).itertuples():
        cell = {"": row.name, "claim": row.claim, "difference of": f"{row.a} - {row.b}"}
        cell |= {"in": row.task, "metric": row.metric, "expected": row.expected}
        if row.runs and percent(row.metric):
            cell["mean ± sd"] = f"{100 * row.difference:+.2f} ± {100 * row.sd:.2f} points"
        elif row.runs:
            cell["mean ± sd"] = f"{row.difference:+.4f} ± {row.sd:.4f}"
        if row.runs:
            cell["largest p, corrected"] = p_text(row.p)
        rows.append(cell | {"over the seeds": row.verdict})
    columns = ["", "claim", "difference of", "in", "metric", "expected", "mean ± sd"]
    columns += ["largest p, corrected", "over the seeds"]
    return pd.DataFrame(rows).reindex(columns=columns).fillna("")
