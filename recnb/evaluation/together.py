"""Several processes for one evaluation: each answers a share of the requests (notebook 06).

A model answers requests in blocks, and a block is answered as a whole by one process: so an answer
is what one process alone would have written, whatever the number of processes. Each process keeps
its answers in a folder of its own, task by task; the notebook joins them in the order of the
requests.
"""

import json
import os
import shutil
from functools import partial

import pandas as pd

from recnb import workers
from recnb.baselines.instructrec import InstructRec
from recnb.catalog import Catalog
from recnb.engine.shared import processes
from recnb.evaluation.protocol import answer_all, keep_answers
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.loading import OneAtATime, load_codec
from recnb.lm.recommender import LanguageModelRecommender
from recnb.lm.vllm_client import Answering
from recnb.profile import Profile
from recnb.progress import Progress
from recnb.requests import Request

PARTS = "parts"
"""In the answers' folder: what each process has answered, until it is joined."""


def ways_of(name, knobs):
    """The ways in which a language model decodes.

    Args:
        name: of its system.
        knobs: the ``evaluation`` section of a profile.
    """
    return ["free"] if name in ("palr", "instructrec") else knobs.decoding


def language_systems(base, models, catalog, profile):
    """The language models of the comparison: ``{name: {decoding: system}}``.

    Each is opened when it is asked, and the one before goes first.

    Args:
        base: folder or Hub id of the base.
        models: ``{name: folders of its adapters}``, see ``recnb.lm.loading.load_adapted``.
    """
    knobs, seed, systems = profile.evaluation, profile.seed, {}
    codec, opening = load_codec(base), OneAtATime(base, profile.model.dtype)
    rank = profile.base.rank + profile.sft.rank + profile.ppo.rank
    written = Answering(base, profile.model.dtype, codec, rank, profile.compute)
    by_vllm = ["free"] if profile.compute.rollouts == "vllm" else []
    for name, adapters in models.items():
        model, ways = partial(opening.open, adapters), ways_of(name, knobs)
        if name == "instructrec":
            given = model, codec, catalog, knobs.batch_size, seed, profile.compute.cache_bytes
            systems[name] = {"free": InstructRec(*given)}
            continue
        automaton = CatalogAutomaton(codec, catalog) if ways != ["free"] else None
        systems[name] = {}
        for way in ways:
            systems[name][way] = LanguageModelRecommender(
                model,
                codec,
                catalog,
                automaton if way != "free" else None,
                knobs.batch_size,
                seed=seed,
                obey=way == "obey",
                cache_bytes=profile.compute.cache_bytes,
                writer=partial(written.answers, adapters) if way in by_vllm else None,
            )
    return systems


def shares(ways, requests, count):
    """The requests of each of so many processes: ``[{task: [Request]}]``.

    Blocks are dealt out in turn. A process that is given its share alone cuts it into the same
    blocks again.

    Args:
        ways: ``{decoding: system}`` of one language model.
        requests: ``{task: [Request]}``.
    """
    first, turn, found = next(iter(ways.values())), 0, [{} for _ in range(count)]
    # vLLM answers beside these, in batches of its own
    decoded = sum(not getattr(way, "writer", None) for way in ways.values())
    for task, asked in requests.items():
        for rows in first.blocks(asked, first.prompts(asked), max(1, decoded)):
            found[turn % count].setdefault(task, []).extend(asked[row] for row in rows)
            turn += 1
    return found


def answer_together(stage, base, models, catalog, requests, folder, ways=None):
    """With ``compute.processes`` above 1, let that many processes answer for the language models.

    ``answer_all`` then finds their answers, as it finds those of an earlier start. What another
    number of processes has answered, before it was stopped, counts for every task that it finished.

    Args:
        stage: the evaluation's ``Stage``.
        base, models: as for ``language_systems``.
        requests: ``{task: [Request]}``.
        folder: the answers' folder.
        ways: ``{name: decodings}`` of the systems that are asked; None = all in all their ways.

    Raises:
        RecnbError: a process failed, with what it said.
    """
    compute, knobs = stage.profile.compute, stage.profile.evaluation
    ways = ways or {name: ways_of(name, knobs) for name in models}
    parts = folder / PARTS
    join(ways, requests, folder)
    tasks = {task for task in requests if requests[task]}
    done = all(tasks <= answered(folder, name, ways[name]) for name in ways)
    if done or not workers.wanted(compute):
        if parts.is_dir():
            shutil.rmtree(parts)
        return
    for other in parts.glob("*-of-*"):
        if not other.name.endswith(f"-of-{compute.processes}"):
            shutil.rmtree(other)
    place = parts / "job"
    place.mkdir(parents=True, exist_ok=True)
    catalog.to_parquet(place / "catalog.parquet")
    rows = [(task, json.dumps(r.to_json())) for task, asked in requests.items() for r in asked]
    pd.DataFrame(rows, columns=["task", "request"]).to_parquet(place / "requests.parquet")
    settings = {"base": str(base), "ways": ways}
    settings["models"] = {name: [str(adapter) for adapter in models[name]] for name in ways}
    settings["profile"] = stage.profile.model_dump(mode="json")
    bars = {}

    def show(row):
        name = row["system"]
        text = f"{name}, {', '.join(ways[name])}, in {compute.processes} processes"
        bars.setdefault(name, Progress(stage, text)).row(row)

    workers.start(place, {"work": "answers", "settings": settings}, compute, show)
    join(ways, requests, folder)
    shutil.rmtree(parts)


def answer_job(place, settings, show):
    """One worker's part of ``answer_together``, from the job that the notebook wrote."""
    profile = Profile.model_validate(settings["profile"])
    catalog, requests = Catalog.from_parquet(place / "catalog.parquet"), {}
    for row in pd.read_parquet(place / "requests.parquet").itertuples():
        requests.setdefault(row.task, []).append(Request.from_json(json.loads(row.request)))
    rank, count = int(os.environ["RANK"]), processes()
    systems = language_systems(settings["base"], settings["models"], catalog, profile)
    folder = place.parent.parent
    for name, decodings in settings["ways"].items():
        asked = {decoding: systems[name][decoding] for decoding in decodings}
        done = answered(folder, name, decodings)
        own = shares(asked, requests, count)[rank]
        own = {task: some for task, some in own.items() if task not in done}

        def step(done, of, name=name):
            show({"system": name, "step": done, "of": of})

        answer_all(asked, own, place.parent / f"{rank}-of-{count}", name, step)


def answered(folder, name, decodings):
    """Tasks that a system has answered in all these ways."""
    tasks = []
    for decoding in decodings:
        path = folder / f"{name}-{decoding}.parquet"
        if not path.is_file():
            return set()
        tasks.append(set(pd.read_parquet(path, columns=["task"])["task"]))
    return set.intersection(*tasks)


def join(ways, requests, folder):
    """Put the processes' answers together, in the order of the requests.

    Tasks up to the first one that is not answered as a whole are joined, so that whoever goes on
    from there leaves the same files.
    """
    for name, decodings in ways.items():
        for decoding in decodings:
            file = f"{name}-{decoding}.parquet"
            parts = sorted((folder / PARTS).glob(f"*-of-*/{file}"))
            if not parts:
                continue
            if (folder / file).is_file():
                parts = [folder / file, *parts]
            found = pd.concat([pd.read_parquet(path) for path in parts], ignore_index=True)
            place = {(row.task, row.user): row.Index for row in found.itertuples()}
            order = []
            for task, asked in requests.items():
                rows = [place.get((task, request.user)) for request in asked]
                if None in rows:
                    break
                order += rows
            if order:
                keep_answers(found.iloc[order].reset_index(drop=True), folder / file)
