"""Each notebook's steps, tokens, memory, hours and disk, reckoned from a profile."""

import math
from dataclasses import dataclass, field

from recnb import machine
from recnb.evaluation.protocol import TASKS
from recnb.instructions import templates
from recnb.instructions.synthesis import table8
from recnb.lm.vllm_worker import SHARE
from recnb.plan.hardware import GIB
from recnb.plan.memory import (
    Numbers,
    Pass,
    block_bytes,
    cache_bytes,
    logits_bytes,
    operations,
    saved_bytes,
    training_bytes,
)
from recnb.teacher.ranking import SCORE_BYTES

LISTED = 11.2
"""Tokens of a line in an answer; the paper's A.2: 112 for ten. Titles in a prompt count alike."""
SPELLED, WHOLE, ITEM_TOKEN = 9.0, 2.0, 4.0
"""The same: mini with sub-words (computed from MovieLens' titles), mini with whole titles, any
model with item tokens (a number, its dot, the title, the line break)."""
A_WORD = 1.4
"""Tokens of an English word in a prompt or conversation; assumed. mini's phrases are one token."""
MINI_PROMPT = 14
"""Tokens of a mini model's prompt without its titles (laptop profile)."""
FRAME = 20
"""Tokens of a chat template around prompt and answer; assumed."""
ANSWERED = 0.8
"""A pass holds at most this share of answer tokens: conversations are mostly answer; assumed."""
LONGER = 1.5
"""The longest row of a batch against the mean one; assumed."""
READ_AT_ONCE = 1 << 16
"""Prompt tokens in one pass of decoding on a GPU (``recnb.engine.decoding.TOGETHER``)."""
CONTEXT_GIB, SLACK = 0.8, 1.08
"""Of a process: CUDA's context and kernels, or Python's libraries; and what an allocator loses to
gaps. Assumed."""
SAMPLE_BYTES, TOKEN_BYTES = 8700, 370
"""Host memory of an instruction as text (notebook 03) and of a token of the SL set (04): what the
reference run took on a CPU, 3.1 and 6.6 GiB, less libraries and model."""
A_USER, PAIR_BYTES = 60, 16
"""Interactions of a user (56 in the paper's Movie data); bytes of a pair of items that some user
has both of, for item-kNN and transitions. Both from a rehearsal (docs/scale.md)."""
SECONDS_A_SAMPLE, SECONDS_AN_ITEM = 4e-4, 1.4e-8
"""Making one instruction, and that for each item of the catalogue: 38 seconds for 58,398 at 18,744
items, measured on one core; how they part is assumed."""


@dataclass
class Stage:
    """One row of a plan.

    Attributes:
        memory: ``{what: bytes}`` at the fullest moment of a process; {} where no model works.
        hours, kind: and how they are known: measured, computed, or "".
        disk: bytes that stay in the run's folder, or lie there while it trains.
    """

    name: str
    steps: int = 0
    tokens: float = 0.0
    memory: dict = field(default_factory=dict)
    hours: float = 0.0
    kind: str = ""
    disk: float = 0.0

    @property
    def gib(self):
        """GiB of a process, with what is assumed beside the parts; 0 where no model works."""
        return SLACK * sum(self.memory.values()) / GIB + CONTEXT_GIB if self.memory else 0.0


@dataclass(frozen=True)
class Texts:
    """Tokens of the run's texts: means of a prompt and an answer of instructions, of a list of ten
    that is asked for; the longest sample."""

    prompt: float
    answer: float
    asked: float
    listed: float
    longest: float


def texts(profile, counts):
    """Tokens of the run's texts, reckoned from the profile.

    Args:
        counts: samples of each task (``table8``).
    """
    knobs, model = profile.instructions, profile.model
    mini = model.name == "mini"
    title = LISTED
    if mini:
        title = WHOLE if model.whole_titles else SPELLED
    elif model.item_tokens:
        title = ITEM_TOKEN
    words = [len(text.split()) for text in templates.ALL]
    fixed = MINI_PROMPT if mini else FRAME + A_WORD * sum(words) / len(words)
    history = profile.data.history_length * title
    size = sum(range(1, knobs.k_max + 1)) / knobs.k_max  # the mean of the largest of k_draws is
    size += (knobs.k_max - size) * (1 - 2 / (knobs.k_draws + 1))  # nearer to k_max
    chosen = knobs.candidate_share * knobs.candidates * title
    total, chat = sum(counts.values()), counts["I4"]
    without = counts["I3"]  # no history
    lists = total - chat
    shown = fixed * lists + history * (lists - without) + chosen * (lists * 2 / 3)
    said = A_WORD * (2 if mini else 1) * knobs.chat_words * 0.75  # most are shorter
    prompt = (shown + chat * said * (1 - ANSWERED)) / total
    answer = (lists * size * title + chat * said * ANSWERED) / total
    longest = profile.sft.max_tokens
    if mini:
        most = fixed + history + (knobs.candidates + knobs.k_max) * title
        longest = min(longest, max(most, 2 * A_WORD * knobs.chat_words))
    return Texts(prompt, answer, fixed + history, 10 * title, longest)


def stages_of(profile, hardware, shape, users, items):
    """All rows of a plan.

    Args:
        hardware: ``Hardware``.
        shape: of the model.
        users, items: of the catalogue.

    Returns:
        List of ``Stage``, in the order of the run.
    """
    counts = table8(profile.instructions, users, items)
    given = profile, hardware, shape, texts(profile, counts), users, items, counts
    return [
        Stage("01_data"),
        _teacher(*given),
        _instructions(*given),
        _sft(*given),
        _ppo(*given),
        _evaluation(*given),
        _cases(*given),
        _tallrec(*given),
        _general(*given),
    ]


def _number(profile):
    return 2 if profile.model.dtype == "bfloat16" else 4


def _teacher(profile, hardware, shape, length, users, items, counts):
    knobs = profile.teacher
    tokens = users * min(knobs.max_length, 50) * knobs.max_epochs
    work = 6 * tokens * knobs.width * (items + 12 * knobs.layers * knobs.width)
    speed = 0.08  # TFLOP/s of a core, measured (papermill_runs/reference/speed.json)
    row = Stage("02_teacher", knobs.max_epochs * math.ceil(users / knobs.batch_size), tokens)
    row.hours, row.kind = work / speed / 1e12 / 3600, "computed"
    scores = 4.0 * knobs.batch_size * knobs.max_length * items
    row.memory = {
        "scores of the catalogue": 3 * min(scores, SCORE_BYTES),
        "pairs of items": PAIR_BYTES * min(items**2, users * A_USER**2),
    }
    row.disk = 4.0 * items * knobs.width
    return row


def _instructions(profile, hardware, shape, length, users, items, counts):
    total = sum(counts.values())
    row = Stage("03_instructions", 0, total * (length.prompt + length.answer))
    lists = total - counts["I4"]
    row.hours = (SECONDS_A_SAMPLE + SECONDS_AN_ITEM * items) * lists / 3600
    row.kind, row.disk = "computed", machine.LIST_BYTES * total
    if not hardware.cuda:
        row.memory = {"instructions as text": SAMPLE_BYTES * total}
    return row


def _autocast_bytes(profile, hardware):
    return 2 if hardware.autocast else _number(profile)


def _sl_pass(profile, hardware, length):
    """The largest pass of the SL stage."""
    longest, mean = length.longest, length.prompt + length.answer
    rows = profile.sft.batch_size / hardware.processes
    if profile.compute.micro_tokens:
        tokens = min(max(profile.compute.micro_tokens, longest), (rows - 1) * mean + longest)
        places = tokens * LONGER
    else:
        rows /= profile.sft.accumulation
        tokens, places = (rows - 1) * mean + longest, rows * longest
    return Pass(tokens, ANSWERED * tokens, max(places, tokens), longest)


def _trainings(profile, users, counts):
    """Samples of each SL training."""
    found = {"v2": sum(counts.values())}
    if profile.sft.v1:
        found["v1"] = counts["I0"]
    for name in ("palr", "instructrec"):
        if getattr(profile.sft, name):
            found[name] = getattr(profile.sft, name)
    return found


def _learning(profile, hardware, shape, work, rank, again, layers_from=0, adapters=1):
    """Parts of the memory of a training; ``again``: with checkpointing."""
    size = _number(profile)
    own, optimizer = training_bytes(shape, size, rank, layers_from, adapters)
    numbers = Numbers(size, hardware.autocast, rank, hardware.cuda)
    parts = {
        "weights": size * shape.parameters,
        "adapters": own,
        "gradients and optimizer": optimizer,
        "saved activations": saved_bytes(shape, work, numbers, again, layers_from),
        "logits": logits_bytes(shape, work.answers),
    }
    if again:
        parts["a block computed again"] = block_bytes(shape, work, numbers)
    return parts


def _sft(profile, hardware, shape, length, users, items, counts):
    knobs, trainings = profile.sft, _trainings(profile, users, counts)
    row, mean = Stage("04_sft", kind="computed"), length.prompt + length.answer
    work = _sl_pass(profile, hardware, length)
    row.memory = _learning(
        profile, hardware, shape, work, knobs.rank, profile.compute.checkpointing, knobs.layers_from
    )
    if profile.compute.strategy == "fsdp2":
        blocks = _number(profile) * shape.layers * shape.matrices
        row.memory["weights"] -= blocks * (1 - 1 / hardware.processes)
        # the one that works and the next one, which is on its way
        row.memory["blocks brought together"] = 2 * blocks / shape.layers
    others = RESIDENT["04_sft"](profile) - 1
    row.memory["other models in memory"] = others * _number(profile) * shape.parameters
    if not hardware.cuda:
        row.memory["samples as tokens"] = TOKEN_BYTES * trainings["v2"] * mean
    for samples in trainings.values():
        row.steps += max(1, int(math.ceil(samples / knobs.batch_size) * knobs.epochs))
        row.tokens += samples * knobs.epochs * mean
    answers = row.tokens * length.answer / mean
    base = profile.base
    if profile.model.name == "mini" or base.rank:
        read = base.steps * base.batch_size * min(256, base.history_window * 2 + 20)
        row.steps, row.tokens = row.steps + base.steps, row.tokens + read
        answers += read
    given = knobs.rank, profile.compute.checkpointing, knobs.layers_from
    work = operations(shape, row.tokens, answers, *given)
    row.hours = work / (hardware.tflops * 1e12 * hardware.processes) / 3600
    tuned = 4 * shape.adapter(knobs.rank) if knobs.rank else _number(profile) * shape.parameters
    made = _number(profile) * shape.parameters if profile.model.name == "mini" else 0
    row.disk = made + tuned * (len(trainings) + 9)
    return row


def _answer_hours(shape, hardware, prompts, answers, processes):
    """Hours to read so many prompt tokens and write so many answer tokens.

    On processors one process has the cores of all.
    """
    if hardware.tokens:
        return answers / (hardware.tokens * processes) / 3600
    work = 2 * (prompts + answers) * shape.layers * shape.matrices
    work += 2 * answers * shape.vocabulary * shape.width
    return work / (hardware.tflops * 1e12 * hardware.processes) / 3600


def _ppo(profile, hardware, shape, length, users, items, counts):
    knobs, compute, number = profile.ppo, profile.compute, _number(profile)
    trainings, rows = 1 + knobs.v3, knobs.prompts * knobs.samples
    size = (knobs.k_min + knobs.k_max) / 2 / 10 * length.listed
    row = Stage("05_ppo", knobs.steps * knobs.epochs * knobs.minibatches * trainings)
    group = LONGER * (length.asked + knobs.samples * size)  # a prompt with its answers
    groups = knobs.prompts / hardware.processes / knobs.minibatches
    tokens = group * max(groups, 1)
    if compute.micro_tokens:
        tokens = min(tokens, max(compute.micro_tokens, group))
    answers = tokens * knobs.samples * size / (length.asked + knobs.samples * size)
    work = Pass(tokens, answers, tokens * LONGER, group)
    learning = _learning(
        profile, hardware, shape, work, knobs.rank, compute.checkpointing, adapters=2
    )
    learning["logits"] += 4 * answers * shape.vocabulary  # the entropy's gradient needs them
    kept = LONGER * (length.asked + size)
    cache = cache_bytes(shape, rows / hardware.processes, kept, _autocast_bytes(profile, hardware))
    cache = _bounded(cache, rows / hardware.processes, compute)
    answering = {name: learning[name] for name in ("weights", "adapters")}
    answering["gradients and optimizer"] = learning["gradients and optimizer"]
    if number == 4:
        answering["weights with the actor in them"] = number * shape.layers * shape.matrices
    answering["cache"] = cache
    answering |= _reading(shape, rows / hardware.processes, length.asked, number)
    row.memory = dict(max(learning, answering, key=lambda parts: sum(parts.values())))
    row.memory |= _vllm(profile, hardware, shape)
    if profile.sft.rank and number == 2:
        row.memory["adapters"] += 4 * shape.adapter(profile.sft.rank)  # the SL stage's, beside
    others = RESIDENT["05_ppo"](profile) - 1
    row.memory["other models in memory"] = others * number * shape.parameters
    steps = knobs.steps * trainings
    read, written = steps * knobs.prompts * length.asked, steps * rows * size
    row.tokens = read + written
    seconds = 3600 * _answer_hours(shape, hardware, read, written, hardware.processes)
    both = 2 * operations(shape, row.tokens, written, knobs.rank, compute.checkpointing)
    scoring = 3 * 2 * row.tokens * shape.layers * shape.matrices
    seconds += (knobs.epochs * both + scoring) / (hardware.tflops * 1e12 * hardware.processes)
    row.hours, row.kind = seconds / 3600, "computed"
    row.disk = 4 * 2 * shape.adapter(knobs.rank) * (trainings + 9)
    return row


def _vllm(profile, hardware, shape):
    """What vLLM takes on the same GPU: the base once more, and its keys and values.

    Without a budget it takes a share of the GPU's memory, whatever the model's size.
    """
    if profile.compute.rollouts != "vllm":
        return {}
    if not profile.compute.cache_gib:
        return {"vLLM": SHARE * hardware.memory * GIB}
    weights = _number(profile) * shape.parameters
    return {"vLLM": weights + profile.compute.cache_gib * GIB}


def _bounded(cache, rows, compute):
    """What the cache of so many rows takes under compute.cache_gib: at least one row's."""
    return min(cache, max(compute.cache_gib * GIB, cache / rows)) if compute.cache_gib else cache


def _reading(shape, rows, prompt, number):
    """What decoding needs beside weights and cache: a pass over prompts, logits of all rows."""
    tokens = min(READ_AT_ONCE, rows * prompt)
    passed = tokens * (3 * shape.inner + 6 * shape.width) * number
    return {"reading prompts": passed, "logits": 12 * rows * shape.vocabulary}


def _systems(profile):
    """How many language models answer in notebook 06."""
    sft = profile.sft
    return 3 + sft.v1 + bool(sft.palr) + bool(sft.instructrec) + profile.ppo.v3


def _decoding(profile, hardware, shape, length, rows, models):
    """Parts of the memory of answering."""
    number = _number(profile)
    tokens = LONGER * (length.asked + length.listed)
    parts = {
        "weights": number * shape.parameters,
        "other models in memory": (models - 1) * number * shape.parameters,
        "cache": _bounded(cache_bytes(shape, rows, tokens, number), rows, profile.compute),
    }
    if number == 2:
        parts["adapters"] = models * 4 * shape.adapter(profile.sft.rank + profile.ppo.rank)
    if not hardware.cuda and number == 4:
        parts["weights laid out for the processor"] = number * shape.parameters
    return parts | _reading(shape, rows, length.asked, number)


def _evaluation(profile, hardware, shape, length, users, items, counts):
    knobs, systems = profile.evaluation, _systems(profile)
    asked = min(knobs.users or users, users)
    tasks = len(TASKS) - (0 if knobs.proportion_k else 1)
    once = bool(profile.sft.palr) + bool(profile.sft.instructrec)
    ways = (systems - once) * len(knobs.decoding) + once
    prompts = tasks * asked * systems * length.asked
    answers = tasks * asked * ways * length.listed
    row = Stage("06_evaluation", tasks * asked * ways, prompts + answers, kind="computed")
    models = RESIDENT["06_evaluation"](profile)
    row.memory = _decoding(profile, hardware, shape, length, knobs.batch_size, models)
    row.memory |= _vllm(profile, hardware, shape)
    row.hours = _answer_hours(shape, hardware, prompts, answers, hardware.processes)
    row.disk = 120.0 * tasks * asked * (ways + 4)  # compressed texts, as measured
    return row


def _cases(profile, hardware, shape, length, users, items, counts):
    asked = 11 * 3 * min(profile.cases.dial_users, users) * profile.cases.dial_categories
    answers = asked * length.listed
    row = Stage("07_case_studies", asked, answers + asked * length.asked, kind="computed")
    models, rows = RESIDENT["07_case_studies"](profile), profile.evaluation.batch_size
    row.memory = _decoding(profile, hardware, shape, length, rows, models)
    row.hours = _answer_hours(shape, hardware, asked * length.asked, answers, 1)
    row.disk = 5.0 * (1 << 20)
    return row


def _tallrec(profile, hardware, shape, length, users, items, counts):
    knobs = profile.tallrec
    if profile.name == "paper-steam":  # Steam's reviews have no stars: nothing to learn from
        return Stage("08_tallrec")
    passes = sum(knobs.shots) * knobs.epochs * len(knobs.seeds)
    checks = len(knobs.shots) * len(knobs.seeds) * (knobs.epochs + 1) * knobs.held
    sample = length.asked
    row = Stage("08_tallrec", kind="computed")
    row.steps = sum(math.ceil(n / knobs.batch_size) for n in knobs.shots)
    row.steps *= knobs.epochs * len(knobs.seeds)
    row.tokens = (passes + checks) * sample
    loss = sample if knobs.train_on_inputs else 1
    tokens = knobs.batch_size * sample
    if profile.compute.micro_tokens:
        tokens = min(tokens, max(profile.compute.micro_tokens, sample))
    work = Pass(tokens, tokens / sample * loss, tokens, sample)
    row.memory = _learning(profile, hardware, shape, work, knobs.rank, False)
    row.hours = operations(shape, passes * sample, passes * loss, knobs.rank, False)
    row.hours += 2 * checks * sample * shape.layers * shape.matrices
    row.hours /= hardware.tflops * 1e12 * 3600
    return row


def _general(profile, hardware, shape, length, users, items, counts):
    knobs, systems = profile.general_ability, _systems(profile)
    row = Stage("09_general_ability", kind="computed")
    row.steps = len(knobs.shares) * math.ceil(knobs.samples / profile.sft.batch_size)
    trained = len(knobs.shares) * knobs.samples * (length.prompt + length.answer)
    row.tokens = trained
    row.hours = operations(
        shape, trained, trained * ANSWERED, profile.sft.rank, profile.compute.checkpointing
    )
    longest = LONGER * A_WORD * profile.instructions.chat_words * 2
    rows = 16
    if knobs.data:
        # Questions x tokens of 5 examples, the four choices in one pass; questions x tokens of 8
        # examples and an answer.
        mmlu, gsm8k = 57 * knobs.limit or 14042, knobs.limit or 1319
        read = systems * (mmlu * 800 + gsm8k * 1200)
        row.tokens += read
        row.hours += 2 * read * (shape.layers * shape.matrices + shape.vocabulary * shape.width)
        longest, rows = max(longest, 2048), max(1, knobs.batch_size)
    row.hours /= hardware.tflops * 1e12 * 3600
    number = _number(profile)
    passed = rows * longest * (3 * shape.inner + 6 * shape.width) * number
    row.memory = {
        "weights": number * shape.parameters,
        "other models in memory": (RESIDENT["09_general_ability"](profile) - 1)
        * number
        * shape.parameters,
        "reading prompts": passed,
        "logits": (number + 8) * rows * longest * shape.vocabulary,
    }
    if knobs.shares:
        work = _sl_pass(profile, hardware, length)
        learning = _learning(profile, hardware, shape, work, profile.sft.rank, False)
        row.memory = max(row.memory, learning, key=lambda parts: sum(parts.values()))
    return row


RESIDENT = {
    # v2, which the notebook goes on with, beside the one that trains
    "04_sft": lambda p: 1 + (p.sft.v1 or p.sft.palr > 0 or p.sft.instructrec > 0),
    "05_ppo": lambda p: 1,
    "06_evaluation": lambda p: 1,
    "07_case_studies": lambda p: 1,
    "09_general_ability": lambda p: 2,  # the next one is loaded before the last one goes
}
"""Models in memory at once, as the notebooks hold them."""
