"""What a run takes before it is started: steps, tokens, memory, hours, disk, downloads.

No model is loaded and nothing is downloaded: the model's shape comes from a config.json, from a
small table or from the profile. Memory is that of one process. What the equations rest on is
compared with the tensors that PyTorch really keeps, in ``tests/test_plan.py``; what is assumed has
a constant of its own below.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from recnb import RecnbError, machine, sources
from recnb.evaluation.protocol import TASKS
from recnb.instructions import templates
from recnb.instructions.synthesis import table8
from recnb.lm.vllm_worker import SHARE
from recnb.teacher.ranking import SCORE_BYTES

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A Llama-like language model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    tied: bool
    biases: bool = False
    """Queries, keys and values have biases (Qwen2)."""

    @property
    def matrices(self):
        """Weights of the linear layers of one block: q, k, v, o; gate, up, down."""
        attention = 2 * self.width * self.head * (self.heads + self.kv_heads)
        return attention + 3 * self.width * self.inner

    @property
    def parameters(self):
        """All weights."""
        biases = (self.heads + 2 * self.kv_heads) * self.head if self.biases else 0
        block = self.matrices + biases + 2 * self.width
        tables = (1 if self.tied else 2) * self.vocabulary * self.width
        return self.layers * block + tables + self.width

    def adapter(self, rank, layers_from=0):
        """Weights of LoRA on all linear layers: rank x (inputs + outputs) of each."""
        query, other = self.head * self.heads, self.head * self.kv_heads
        ends = 2 * (self.width + query) + 2 * (self.width + other) + 3 * (self.width + self.inner)
        return rank * ends * (self.layers - layers_from)


SHAPES = {
    # the models' own config.json on the Hub; their published sizes are in tests/test_plan.py
    "meta-llama/Llama-2-7b-chat-hf": Shape(32, 4096, 32, 32, 128, 11008, 32000, False),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(32, 4096, 32, 8, 128, 14336, 128256, False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 576, 9, 3, 64, 1536, 49152, True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Shape(32, 960, 15, 5, 64, 2560, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Shape(24, 2048, 32, 32, 64, 8192, 49152, True),
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(24, 896, 14, 2, 64, 4864, 151936, True, True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(28, 1536, 12, 2, 128, 8960, 151936, True, True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(28, 3584, 28, 4, 128, 18944, 152064, False, True),
}
GATED = ("meta-llama/", "google/gemma", "mistralai/")
"""Beginnings of Hub ids whose licence must be accepted before a download."""
SIZES = {"movielens-100k": (943, 1664), "paper-movie": (13218, 18744), "paper-steam": (12658, 8572)}
"""Users and items: of MovieLens-100K with merged titles; of the paper's Table 1."""

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
A100_TFLOPS = 29.0
"""What one GPU of the paper made of its SL stage: 70 minutes an epoch on four (A.2), over the
tokens and operations computed here."""
A100_TOKENS = 2240.0
"""Answer tokens a second of one GPU: the paper's 20 lists of 112 tokens (A.2), by vLLM. This kit's
own decoding on a GPU has not been timed."""
SAMPLE_BYTES, TOKEN_BYTES = 8700, 370
"""Host memory of an instruction as text (notebook 03) and of a token of the SL set (04): what the
reference run took on a CPU, 3.1 and 6.6 GiB, less libraries and model."""
A_USER, PAIR_BYTES = 60, 16
"""Interactions of a user (56 in the paper's Movie data); bytes of a pair of items that some user
has both of, for item-kNN and transitions. Both from a rehearsal (docs/scale.md)."""
SECONDS_A_SAMPLE, SECONDS_AN_ITEM = 4e-4, 1.4e-8
"""Making one instruction, and that for each item of the catalogue: 38 seconds for 58,398 at 18,744
items, measured on one core; how they part is assumed."""


@dataclass(frozen=True)
class Hardware:
    """What a run is planned for.

    Attributes:
        memory: GiB of one process.
        processes: that work together in stages 04 to 06, one GPU each (``compute.processes``).
        tflops: of one process in training, 10^12 operations a second.
        tokens: answer tokens a second of one process; None = from ``tflops`` of float32.
        source: "measured" or "stated", said of every hour.
        cuda: GPUs.
        autocast: matrix products in bfloat16.
    """

    memory: float
    processes: int
    tflops: float
    tokens: float | None
    source: str
    cuda: bool
    autocast: bool


def this_machine(profile):
    """The GPU of this machine if there is one, with the paper's speed; else its cores, measured."""
    import torch

    if torch.cuda.is_available():
        return stated(profile, torch.cuda.get_device_properties(0).total_memory / GIB)
    speed, fast = machine.recorded(profile.model), machine.autocast(profile.model)
    if "float32" not in speed:
        width = profile.model.width if profile.model.name == "mini" else machine.HUB_WIDTH
        speed = machine.number_format(width)
    tflops = speed["bfloat16" if fast else "float32"] * machine.cores() / 1000
    memory = machine.memory() / GIB
    processes = profile.compute.processes  # they share the memory and the cores
    tflops, memory = tflops / processes, memory / processes
    return Hardware(memory, processes, tflops, None, "measured", False, fast)


def stated(profile, memory, tflops=0.0, tokens=0.0):
    """GPUs of so much memory (GiB), one a process, at a stated speed or the paper's."""
    speed = tflops or A100_TFLOPS, tokens or A100_TOKENS
    fast = profile.model.autocast is not False
    return Hardware(memory, profile.compute.processes, *speed, "stated", True, fast)


def shape_of(profile, items):
    """The shape of a profile's model.

    Args:
        items: of the catalogue; with one token a title, the vocabulary grows by them.

    Raises:
        RecnbError: neither a folder with a config.json nor a model of the table.
    """
    knobs = profile.model
    if knobs.name == "mini":
        titles = items if knobs.whole_titles else 0
        sizes = knobs.heads, knobs.heads, knobs.width // knobs.heads, 4 * knobs.width
        return Shape(knobs.layers, knobs.width, *sizes, knobs.vocabulary + titles, True)
    name = "HuggingFaceTB/SmolLM2-135M-Instruct" if knobs.name == "smollm2" else knobs.name
    found = SHAPES.get(name) or _read(Path(name) / "config.json")
    if found is None:
        raise RecnbError(
            f"model.name {name}: its shape is not known here ({', '.join(SHAPES)}, smollm2, mini): "
            "put its config.json into a folder and plan with --set model.name=FOLDER"
        )
    if knobs.item_tokens:
        found = Shape(**vars(found) | {"vocabulary": found.vocabulary + items})
    return found


def _read(path):
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        heads, width = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            layers=config["num_hidden_layers"],
            width=width,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head=config.get("head_dim") or width // heads,
            inner=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings")),
            biases=config.get("model_type") == "qwen2",
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecnbError(
            f"{path}: not the settings of a Llama-like model ({type(error).__name__}: {error}): "
            "copy the model's own config.json there"
        ) from error


@dataclass(frozen=True)
class Pass:
    """One forward pass for training.

    Attributes:
        tokens: T, real ones, end to end.
        answers: R, the places that carry loss.
        places: P, samples x the longest one, as attention sees them side by side.
        longest: L.
    """

    tokens: float
    answers: float
    places: float
    longest: float


@dataclass(frozen=True)
class Numbers:
    """How a training computes.

    Attributes:
        size: c, bytes of the model's numbers.
        autocast: matrix products in bfloat16.
        rank: r, of LoRA; 0 = all weights are trained.
        fused: attention by one kernel, as on a GPU.
    """

    size: int
    autocast: bool
    rank: int
    fused: bool

    @property
    def product(self):
        """a, bytes of the numbers of a matrix product."""
        return 2 if self.autocast else self.size

    @property
    def cast_inputs(self):
        """An input is cast once for each product that it goes into: by autocast, or by LoRA."""
        return self.autocast and (self.size == 4 or self.rank > 0)

    @property
    def norm(self):
        """Bytes that a norm keeps of each number: its input in float32, and what a trained weight
        is multiplied with."""
        return 4 if self.rank else 4 + self.size

    @property
    def cast(self):
        """Bytes of the copy that autocast makes of a float32 weight."""
        return 2 if self.autocast and self.size == 4 else 0


def block_bytes(shape, work, numbers):
    """Bytes that one block but the last keeps for the backward pass, without checkpointing.

    With w the width, i the inner width, q = heads x head, a and c of ``Numbers``, it keeps for

    - each of T tokens: 4·2w of its two norms (2c·w more where their weights are trained); a·n·w
      of the inputs of its products, n = 6 where an input is cast once a product, else 3;
      4a·i of the feed-forward part (gate, its SiLU, up, their product); 7a·r of LoRA; (2c + a)·q,
      query, key and value on their way to where attention wants them;
    - each of P places: 3a·q of attention, a·L·heads of probabilities and, where those are cast
      from float32, 4·L·heads more. A fused kernel keeps 4a·q alone.

    Under autocast, weights of float32 are kept once more, in 2 bytes, and so is LoRA.
    """
    keys, rest = _of_token(shape, numbers)
    placed, queries = _of_place(shape, work, numbers)
    return work.tokens * (keys + rest) + work.places * (placed + queries) + _casts(shape, numbers)


def last_block_bytes(shape, work, numbers):
    """The same of the last block: T tokens pass the first norm and give keys and values, the R
    answers alone do all the rest."""
    keys, rest = _of_token(shape, numbers)
    if not numbers.cast_inputs:  # the answers' part of an input is a copy
        rest += numbers.product * shape.width
    placed, queries = _of_place(shape, work, numbers)
    asked = work.answers * (rest + queries)
    return work.tokens * keys + work.places * placed + asked + _casts(shape, numbers)


def _of_token(shape, numbers):
    """Of a token: what comes before and with its key and value, and all that comes after."""
    query, size, product = shape.heads * shape.head, numbers.size, numbers.product
    norm = numbers.norm * shape.width
    before, inputs = (2, 6) if numbers.cast_inputs else (1, 3)
    keys = norm + product * (before * shape.width + 2 * numbers.rank) + (size + product) * query
    wide = (inputs - before) * shape.width + 4 * shape.inner + 5 * numbers.rank
    return keys, norm + product * wide + size * query


def _of_place(shape, work, numbers):
    """Of a place in attention: its key and value, and its query with probabilities or output."""
    query, product = shape.heads * shape.head, numbers.product
    if numbers.fused:
        return 2 * product * query, 2 * product * query
    scores = shape.heads * work.longest * (product + (4 if product == 2 else 0))
    return 2 * product * query, product * query + scores


def _casts(shape, numbers):
    lora = 2 * shape.adapter(numbers.rank) / shape.layers if numbers.autocast else 0
    return numbers.cast * shape.matrices + lora


def saved_bytes(shape, work, numbers, checkpointing, layers_from=0):
    """Bytes of the activations that a forward pass keeps for the backward pass.

    Without checkpointing (blocks - 1) x ``block_bytes`` + ``last_block_bytes``, less the first
    norm's, whose input needs no gradient under LoRA; with it a block keeps its input alone, c·w a
    token. Both times the vocabulary's probabilities and the last norm's input in float32,
    4·R·(V + w), and where all weights are trained what norm and head are multiplied with,
    R·w·(c + a).

    Args:
        layers_from: blocks below it are not trained and keep nothing (``sft.layers_from``).
    """
    head = work.answers * (4 * shape.vocabulary + numbers.norm * shape.width)
    head += 0 if numbers.rank else work.answers * numbers.product * shape.width
    head += numbers.cast * shape.vocabulary * shape.width
    trained = shape.layers - layers_from
    if checkpointing:
        return trained * numbers.size * work.tokens * shape.width + head
    blocks = (trained - 1) * block_bytes(shape, work, numbers)
    blocks -= 4 * work.tokens * shape.width if numbers.rank else 0
    return blocks + last_block_bytes(shape, work, numbers) + head


def logits_bytes(shape, answers):
    """Bytes that the vocabulary takes for a moment: the logits in 16 and in 32 bits, and the
    gradient in 32, 10·R·V, beside the probabilities of ``saved_bytes``."""
    return 10 * answers * shape.vocabulary


def training_bytes(shape, number, rank, layers_from=0, adapters=1):
    """Bytes of weights that are trained, their gradients and Adam's two numbers a weight.

    Returns:
        ``(adapters, gradients and optimizer)``. LoRA's are float32 (4 + 12 bytes a weight); without
        LoRA the model's own weights are trained, 3c bytes a weight.
    """
    if not rank:
        return 0, 3 * number * shape.parameters
    weights = adapters * shape.adapter(rank, layers_from)
    return 4 * weights, 12 * weights


def cache_bytes(shape, rows, tokens, number):
    """Bytes of the keys and values of so many rows: 2·layers·kv_heads·head·number a token."""
    return 2 * shape.layers * shape.kv_heads * shape.head * number * rows * tokens


def operations(shape, tokens, answers, rank, checkpointing, layers_from=0):
    """Floating-point operations of training on so many tokens.

    A forward pass is 2 a weight and token, F; the gradient of the inputs another F, that of the
    weights a third where they are trained; checkpointing adds one F. Blocks below ``layers_from``
    take the first alone.
    """
    block = 2 * tokens * shape.matrices
    head = 2 * answers * shape.vocabulary * shape.width
    times = (2 if rank else 3) + bool(checkpointing)
    return block * (layers_from + times * (shape.layers - layers_from)) + times * head


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


@dataclass
class Plan:
    """What ``plan`` found.

    Attributes:
        stages: ``Stage``, in the order of the run.
        downloads: sentences.
        refusals: sentences: what does not fit, and which knob to turn.
    """

    stages: list
    downloads: list
    refusals: list


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


def plan(profile, hardware, users=0, items=0):
    """Reckon a profile through.

    Args:
        hardware: ``Hardware``.
        users, items: of the catalogue; 0 = what the data set is known to have.

    Returns:
        ``Plan``.

    Raises:
        RecnbError: the model's shape or the catalogue's size is not known.
    """
    users, items = _sizes(profile, users, items)
    shape, counts = shape_of(profile, items), table8(profile.instructions, users, items)
    given = profile, hardware, shape, texts(profile, counts), users, items, counts
    stages = [
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
    return Plan(stages, _downloads(profile, shape), _refusals(profile, hardware, stages))


def _sizes(profile, users, items):
    known = SIZES.get(profile.data.dataset) or SIZES.get(profile.name) or (0, 0)
    if profile.data.dataset == "synthetic":
        known = profile.data.synthetic_users, profile.data.synthetic_items
    if profile.data.dataset == "tabular":
        record = Path(profile.data.path) / "manifest.json"  # recnb prepare's
        try:
            made = json.loads(record.read_text(encoding="utf-8"))["counts"]
            known = made["users"], made["items"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # tables of one's own have none
    users, items = users or known[0], items or known[1]
    if not users or not items:
        raise RecnbError(
            f"how many users and items {profile.data.path or profile.data.dataset} has is not "
            "known before the run: say --users and --items"
        )
    return users, items


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


def _downloads(profile, shape):
    lines = [f"{one.name}: {one.requirement} ({one.licence})" for one in sources.needed(profile)]
    name = profile.model.name
    if name not in ("mini", "smollm2") and not Path(name).is_dir():
        gated = "gated: accept its licence at the Hub and log in first (hf auth login)"
        note = gated if name.startswith(GATED) else "not known to be gated"
        lines.append(f"{name}: {2 * shape.parameters / GIB:.1f} GiB from the Hub; {note}")
    if profile.general_ability.data == "hub":
        lines.append("MMLU and GSM8K: from the Hub when notebook 09 runs, not beforehand")
    return lines


KNOBS = {
    "weights": "model.dtype bfloat16, or a smaller model (model.name)",
    ("04_sft", "weights"): "model.dtype bfloat16, compute.strategy fsdp2, or a smaller model",
    "adapters": "a smaller sft.rank",
    "gradients and optimizer": "LoRA (sft.rank above 0)",
    "saved activations": "compute.checkpointing true, and a smaller compute.micro_tokens",
    "a block computed again": "a smaller compute.micro_tokens",
    "logits": "a smaller compute.micro_tokens",
    "blocks brought together": "a smaller model (model.name)",
    "cache": "compute.cache_gib, or a smaller evaluation.batch_size",
    ("05_ppo", "cache"): "a smaller compute.cache_gib",
    ("08_tallrec", "saved activations"): "a smaller compute.micro_tokens",
    ("08_tallrec", "logits"): "a smaller compute.micro_tokens, or tallrec.train_on_inputs false",
    ("09_general_ability", "logits"): "a smaller general_ability.batch_size",
    ("09_general_ability", "reading prompts"): "a smaller general_ability.batch_size",
    "instructions as text": "fewer instructions",
    "samples as tokens": "fewer instructions",
    "other models in memory": "fewer of sft.v1, sft.palr, sft.instructrec and ppo.v3",
    "weights with the actor in them": "model.dtype bfloat16, where the adapter stays beside",
    "weights laid out for the processor": "model.dtype bfloat16",
    "reading prompts": "a smaller evaluation.batch_size",
    "scores of the catalogue": "a smaller teacher.batch_size",
    "pairs of items": "a larger data.k_core",
    "vLLM": "a small compute.cache_gib (0 is two fifths of a GPU), or compute.rollouts hf",
}
"""What to turn, for each part of the memory."""


def _refusals(profile, hardware, stages):
    found = []
    if profile.compute.strategy == "fsdp2":
        found.append(
            "05_ppo refuses compute.strategy fsdp2: run with it until 04_sft, and go on with "
            "--set compute.strategy=ddp"
        )
    for row in stages:
        if row.gib <= hardware.memory:
            continue
        parts = sorted(row.memory, key=row.memory.get, reverse=True)[:2]
        named = " and ".join(f"{row.memory[part] / GIB:.1f} GiB of {part}" for part in parts)
        turns = [KNOBS.get((row.name, part)) or KNOBS[part] for part in parts]
        turn = "; ".join(dict.fromkeys(turns))
        found.append(
            f"{row.name} needs {row.gib:.1f} GiB in a process that has {hardware.memory:.0f}, most "
            f"of it {named}; what helps: {turn}"
        )
    return found


def disk_refusals(found):
    """A sentence if the disk where runs are kept has less room than the run takes."""
    needed, free = sum(row.disk for row in found.stages) + machine.OTHER_BYTES, machine._free()
    if needed <= free:
        return []
    return [
        f"the run takes {needed / GIB:.1f} GiB of disk in {machine.runs_folder()}, where "
        f"{free / GIB:.1f} GiB are free: make room, or keep runs elsewhere (environment variable "
        "RECNB_RUNS)"
    ]


def lines_of(found, hardware, details=True):
    """A plan as Markdown: the stages, the parts of the memory, downloads."""
    lines = ["| stage | steps | tokens | GiB | hours | disk, MiB |", "|---|---|---|---|---|---|"]
    for row in found.stages:
        hours = f"{row.hours:.1f}" if row.hours >= 0.05 else f"{60 * row.hours:.1f} min"
        cells = [
            row.name,
            f"{row.steps:,}" if row.steps else "",
            _short(row.tokens),
            f"{row.gib:.1f}" if row.memory else "",
            f"{hours} ({row.kind})" if row.kind else "",
            f"{row.disk / 2**20:,.0f}" if row.disk else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    hours, disk = sum(s.hours for s in found.stages), sum(s.disk for s in found.stages)
    most = max(row.gib for row in found.stages)
    lines.append(f"| all | | | {most:.1f} | {hours:.1f} | {disk / 2**20:,.0f} |")
    if details:
        lines += ["", "GiB of a process at the fullest moment:", ""]
        for row in found.stages:
            parts = {part: size for part, size in row.memory.items() if size >= 0.05 * GIB}
            if parts:
                said = ", ".join(f"{part} {size / GIB:.1f}" for part, size in parts.items())
                lines.append(f"- {row.name}: {said}")
    speed = f"{hardware.tflops:.3g} TFLOP/s a process ({hardware.source})"
    tokens = f", {hardware.tokens:,.0f} answer tokens a second (stated)" if hardware.tokens else ""
    lines += ["", f"Hours: {hardware.processes} process(es) of {speed}{tokens}."]
    lines += [
        "",
        "To be downloaded:",
        "",
        *(f"- {line}" for line in found.downloads or ["nothing"]),
    ]
    return lines


def _short(tokens):
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.3g} {name}"
    return f"{tokens:.0f}" if tokens else ""
