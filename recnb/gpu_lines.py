"""Some steps of every stage, tried and judged: what ``recnb gpu-check`` does, on any device.

Each check runs what the notebooks run, on little, and returns lines that pass or fail. None of them
needs a GPU: ``tests/test_gpu_check.py`` runs them on a CPU, with tiny models.
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, LlamaConfig

from recnb import RecnbError, machine
from recnb.catalog import Catalog
from recnb.engine.decoding import decode
from recnb.engine.packed import next_logits, side_by_side
from recnb.instructions.synthesis import heldout_requests, synthesize
from recnb.interactions import Histories
from recnb.lm.loading import attention
from recnb.lm.recommender import request_prompt
from recnb.lm.tokenizer import title_tokens
from recnb.plan import hardware, plan
from recnb.plan.hardware import GIB
from recnb.plan.shapes import SHAPES
from recnb.ppo.prompts import rl_requests
from recnb.ppo.trainer import train_ppo
from recnb.profile import Profile, load
from recnb.sft import train_sft
from recnb.teacher.ranking import Teacher

PAPER_LISTS = 20.0
"""Lists of 112 tokens a second of one A100 in the paper (A.2): Llama-2-7b, by vLLM."""
NEW = 112
"""Tokens of such a list."""
SHORT = 64
"""Tokens of an answer in the gpu profile's RL steps: what recnb plan takes the mean one for."""
MORE, LESS = 1.1, 0.5
"""Measured over planned memory: more than the first, and what was said to fit may not; less than
the second where a pass is filled up, and the plan refuses what would fit."""
TIE = 0.01
"""Two tokens whose logits are nearer than this are as good as each other: sums in another order
move a logit of 32 bits by a hundredth of it."""
SHAPE = SHAPES["meta-llama/Llama-2-7b-chat-hf"]
LAYERS = (SHAPE.layers, 16, 8, 4, 2, 1)
"""Layers of the large model; the first that fits is taken."""
ALONE = {"sft.v1": False, "sft.palr": 0, "sft.instructrec": 0, "ppo.v3": False}
"""One training of each kind: no second model beside it."""


@dataclass
class Line:
    """One finding.

    Attributes:
        what: what was looked at.
        passed: whether it is as expected.
        found, expected: in words.
        numbers: what was measured, for gpu_check.json.
    """

    what: str
    passed: bool
    found: str
    expected: str
    numbers: dict = field(default_factory=dict)


@dataclass
class Trial:
    """What the checks work with.

    Attributes:
        profile: ``Profile``.
        open_model: gives a new ``(model, Codec)`` each time.
        catalog, histories, teacher: the profile's, the teacher as a rule untrained.
        device: where every tensor must live, for example "cuda".
        meter: a context that yields a list, to which it adds the bytes of tensors at the fullest
            moment when it is left.
    """

    profile: Profile
    open_model: Callable
    catalog: Catalog
    histories: Histories
    teacher: Teacher
    device: str
    meter: Callable

    @property
    def autocast(self):
        """Whether training computes in bfloat16, as the notebooks decide it."""
        return machine.autocast(self.profile.model)


class Places:
    """Within it, notes where the tensors of a training live and which numbers it learns in.

    Attributes:
        found: ``Counter`` of pairs (what, device): results of layers, weights, their gradients, the
            optimizer's numbers.
        learned: number formats of the trained weights.
    """

    KINDS = "results of layers", "weights", "gradients", "optimizer's numbers"

    def __init__(self):
        self.found, self.learned, self.handles = Counter(), set(), []

    def __enter__(self):
        self.handles = [
            register_module_forward_hook(self._layer),
            register_optimizer_step_post_hook(self._step),
        ]
        return self

    def __exit__(self, *failure):
        for handle in self.handles:
            handle.remove()

    def _note(self, what, tensor):
        self.found[what, tensor.device.type] += 1

    def _layer(self, module, given, result):
        for part in result if isinstance(result, tuple) else (result,):
            if torch.is_tensor(part):
                self._note("results of layers", part)

    def _step(self, optimizer, *_):
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            self.learned.add(weight.dtype)
            if weight.grad is not None:
                self._note("gradients", weight.grad)
            for number in optimizer.state.get(weight, {}).values():
                if torch.is_tensor(number) and number.ndim:  # Adam may count its steps elsewhere
                    self._note("optimizer's numbers", number)

    def model(self, model):
        """Note every weight and buffer of a model."""
        for tensor in [*model.parameters(), *model.buffers()]:
            self._note("weights", tensor)


def places_line(what, places, device):
    """Whether all that ``Places`` saw lives on one kind of device, and learns in 32 bits."""
    elsewhere = {f"{kind} on {at}": n for (kind, at), n in places.found.items() if at != device}
    unseen = [kind for kind in Places.KINDS if not any(kind == seen for seen, _ in places.found)]
    formats = sorted(str(dtype).removeprefix("torch.") for dtype in places.learned)
    found = f"{places.found.total():,} tensors on {device}"
    if elsewhere:
        found = "; ".join(f"{n:,} {name}" for name, n in sorted(elsewhere.items()))
    found += "".join(f"; no {kind} were seen" for kind in unseen)
    return Line(
        f"{what}: where tensors live",
        not elsewhere and not unseen and formats == ["float32"],
        f"{found}; learned in {', '.join(formats) or 'nothing'}",
        f"all on {device}, the learned ones in float32",
        {f"{kind}, {at}": n for (kind, at), n in sorted(places.found.items())},
    )


def memory_line(what, measured, planned, least=0.0):
    """Whether a stage's tensors took what ``recnb plan`` reckons.

    Args:
        measured, planned: bytes.
        least: the smallest share of the plan that is right; 0 where its rows are longer than these.
    """
    ratio = measured / planned
    return Line(
        f"{what}: memory of tensors at the fullest moment",
        least <= ratio <= MORE,
        f"{measured / GIB:.2f} GiB, {ratio:.2f} of the plan",
        f"{least:g} to {MORE:g} of the {planned / GIB:.2f} GiB of recnb plan",
        {"measured": measured, "planned": planned},
    )


def samples(trial, count):
    """Instructions of the profile's kinds, no conversations: a frame of prompt and completion."""
    third = -(-count // 3)
    counts = dict.fromkeys(["sequential", "category", "proportion"], third) | {"search": 1}
    knobs = trial.profile.instructions.model_copy(update=counts | {"chat_share": 0.0, "pairs": 0})
    given = trial.histories, trial.catalog, trial.teacher, knobs, trial.profile.data
    rows = islice(synthesize(*given, trial.profile.seed), count)
    return pd.DataFrame(rows)[["prompt", "completion"]]


def full_samples(trial, codec):
    """A batch of samples that fill ``sft.max_tokens``, four fifths of them answer."""
    knobs = trial.profile.sft
    words = int(knobs.max_tokens / len(codec.answer(" film" * 100)) * 98)  # 98 %: the chat form
    said = pd.DataFrame({"prompt": [" film" * (words // 5)]})
    said["completion"] = " film" * (words - words // 5)
    return pd.concat([said] * knobs.batch_size, ignore_index=True)


def sl_steps(trial, frame, folder, planned=None, least=0.0):
    """Train on a frame of samples once, as notebook 04 does.

    Args:
        frame: samples; as many steps as batches of ``sft.batch_size``.
        folder: for adapter and checkpoints.
        planned: bytes of tensors by ``recnb plan``, None = not compared; least: ``memory_line``.

    Returns:
        Lines: it learns, where tensors live, memory.
    """
    once = {"epochs": 1.0, "evaluations": 1, "checkpoints": 1}
    knobs, compute = trial.profile.sft.model_copy(update=once), trial.profile.compute
    held = frame[: knobs.batch_size]
    with trial.meter() as most, Places() as places:
        model, codec = trial.open_model()
        titles = title_tokens(codec.tokenizer, trial.catalog)
        given = model, codec, frame, held, titles, knobs, trial.profile.seed, folder
        tuned, rows = train_sft(*given, autocast=trial.autocast, compute=compute)
        places.model(tuned)
        del model, tuned, given
    losses = [row["loss"] for row in rows if "loss" in row]
    steps, seconds = -(-len(frame) // knobs.batch_size), rows[-1]["train_runtime"]
    whole = len(losses) == steps and all(map(math.isfinite, losses))
    what = f"SL, {steps} step{'s' * (steps > 1)}"
    lines = [
        Line(
            f"{what}: the loss",
            whole and (steps == 1 or losses[-1] < losses[0]),
            f"{losses[0]:.3f} -> {losses[-1]:.3f}, {len(frame) / seconds:.1f} samples a second",
            f"{steps} finite numbers" + ", the last below the first" * (steps > 1),
            {"losses": losses, "seconds": seconds},
        ),
        places_line(what, places, trial.device),
    ]
    return lines + ([memory_line(what, most[0], planned, least)] if planned else [])


def rl_steps(trial, steps, max_new, folder, planned=None, least=0.0):
    """Some PPO steps, as notebook 05 makes them, on requests of their own.

    Args:
        max_new: most tokens of an answer.
        folder, planned, least: as for ``sl_steps``.

    Returns:
        Lines: the numbers of each step, actor and critic have learned, where tensors live, memory.
    """
    profile = trial.profile
    knobs = profile.ppo.model_copy(update={"steps": steps, "distinct": 0, "checkpoints": 1})
    world = trial.histories, trial.catalog, trial.teacher
    rng, users = np.random.default_rng(profile.seed), trial.histories.training_users()
    drawn = users, *world, profile.data, knobs.k_min, knobs.k_max, rng
    requests = rl_requests(steps * knobs.prompts, *drawn)
    began = time.perf_counter()
    with trial.meter() as most, Places() as places:
        model, codec = trial.open_model()
        given = model, codec, requests, trial.teacher, trial.catalog, knobs, profile.seed, folder
        more = {"autocast": trial.autocast, "compute": profile.compute}
        tuned, rows = train_ppo(*given, max_new, **more)
        places.model(tuned)
        moved = {
            adapter: max(
                weight.abs().max().item()
                for name, weight in tuned.named_parameters()
                if f"lora_B.{adapter}" in name
            )
            for adapter in ("actor", "critic")
        }
        del model, tuned, given
    seconds = time.perf_counter() - began
    rows = [row for row in rows if "kl" in row]
    numbers = [value for row in rows for value in row.values()]
    whole = len(rows) == steps and all(map(math.isfinite, numbers))
    what = f"RL, {steps} step{'s' * (steps > 1)}"
    kl, reward = rows[0]["kl"], [row["reward"] for row in rows]
    lines = [
        Line(
            f"{what}: numbers of the training",
            whole and abs(kl) < 1e-3,
            f"KL {kl:.1e} at first; mean reward {reward[0]:.2f} -> {reward[-1]:.2f}; "
            f"{steps * knobs.prompts * knobs.samples / seconds:.1f} answers a second, learning and "
            "loading included",
            f"{steps} rows of finite numbers; the actor begins as the SL model (KL 0)",
            {"rewards": reward, "first KL": kl, "seconds": seconds},
        ),
        Line(
            f"{what}: actor and critic learn",
            all(0 < change < math.inf for change in moved.values()),
            ", ".join(f"{name}: {change:.1e}" for name, change in moved.items()),
            "both have left 0, from where LoRA's second matrix starts",
            moved,
        ),
        places_line(what, places, trial.device),
    ]
    return lines + ([memory_line(what, most[0], planned, least)] if planned else [])


def asked(trial, count):
    """``count`` requests for ten items without a wish, about test targets."""
    world = trial.histories, trial.catalog, trial.teacher, trial.profile.data, trial.profile.seed
    users = [user % len(trial.histories) for user in range(count)]
    return heldout_requests([], users, "test", *world)


def answers_lines(trial, rows, new=NEW, planned=None, least=0.0):
    """Lists a second: greedy answers of exactly ``new`` tokens by the kit's own decoding.

    Args:
        rows: answers decoded together.
        planned, least: as for ``sl_steps``.

    Returns:
        Lines: speed, memory.
    """
    with trial.meter() as most:
        model, codec = trial.open_model()
        endless = copy.copy(codec)
        endless.eos = -1  # no answer ends before its last token
        texts = [request_prompt(r, trial.catalog, trial.profile.seed) for r in asked(trial, rows)]
        prompts, room = codec.prompts(texts), {"cache_bytes": trial.profile.compute.cache_bytes}
        decode(model, endless, prompts[:2], 2)  # a GPU's first kernels are made when asked for
        began = time.perf_counter()
        answers = decode(model, endless, prompts, new, **room)
        seconds = time.perf_counter() - began
        del model
    lengths = {len(answer) for answer in answers}
    speed = rows / seconds
    lines = [
        Line(
            f"{rows} answers of {new} tokens",
            len(answers) == rows and lengths == {new},
            f"{speed:.1f} lists a second; tokens each: {', '.join(map(str, sorted(lengths)))}",
            f"{new} tokens each. For orientation: the paper's {PAPER_LISTS:g} a second with Llama-"
            "2-7b on an A100, by vLLM",
            {"lists a second": speed, "seconds": seconds, "paper": PAPER_LISTS},
        )
    ]
    what = f"{rows} answers of {new} tokens"
    return lines + ([memory_line(what, most[0], planned, least)] if planned else [])


def shortfall(model, codec, prompts, answers):
    """By how much the tokens of given answers fall short of what a model finds best.

    The model reads prompts and answers in one pass, as in training.

    Returns:
        The largest difference of logits, a float; 0 = each token is the model's own best.
    """
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    ids, real = side_by_side(rows, codec.pad, model.device)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    place = torch.arange(ids.shape[1], device=model.device)
    due = real & (place >= starts[:, None])  # bool [S, L], the answers' tokens
    with torch.no_grad():
        logits = next_logits(model, ids, real, due.roll(-1, 1))  # [R, V], before each of them
    chosen = logits.gather(1, ids[due][:, None])[:, 0]
    return (logits.max(1).values - chosen).max().item()


def same_answers(model, twin, codec, prompts, new):
    """Greedy answers of one model on two devices, and of its two kinds of passes on the first.

    Args:
        model: on the device that is tried, in float32.
        twin: the same model on the CPU.

    Returns:
        Two lines.
    """
    ours, theirs = (decode(one, codec, prompts, new) for one in (model, twin))
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    lines = []
    for what, judge in (
        (f"greedy answers, {model.device.type} against CPU", twin),
        ("greedy answers, written with the cache, read in a training pass", model),
    ):
        short = shortfall(judge, codec, prompts, ours)
        found = f"a token falls short of the best by {short:.1e} at most"
        if judge is twin:
            found = f"{equal} of {len(prompts)} equal token by token; {found}"
        expected = f"each token is the best, or as good (within {TIE:g} of a logit)"
        numbers = {"equal": equal, "of": len(prompts), "largest shortfall": short}
        lines.append(Line(what, short <= TIE, found, expected, numbers))
    return lines


def planned_bytes(profile, memory, trial):
    """Bytes of tensors of the three stages by ``recnb plan``: ``{stage: bytes}``.

    Args:
        memory: GiB of the GPU.

    Returns:
        ``(bytes, fits)``; fits: whether the plan refuses none of these stages.
    """
    gpu = replace(hardware.stated(profile, memory), autocast=machine.autocast(profile.model))
    users, items = len(trial.histories), len(trial.catalog)
    stages = plan(profile, gpu, users, items).stages
    three = [row for row in stages if row.name in ("04_sft", "05_ppo", "06_evaluation")]
    found = {row.name: sum(row.memory.values()) for row in three}
    return found, all(row.gib <= memory for row in three)


def large_config(layers, codec):
    """Llama-2-7b's shape with so many layers and the vocabulary of a tokenizer at hand."""
    return LlamaConfig(
        vocab_size=len(codec.tokenizer),
        hidden_size=SHAPE.width,
        intermediate_size=SHAPE.inner,
        num_hidden_layers=layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        max_position_embeddings=4096,
        eos_token_id=codec.eos,
        pad_token_id=codec.pad,
    )


def random_model(config, codec, dtype, device):
    """An untrained ``(model, Codec)`` of this shape, made where it shall live."""
    torch.manual_seed(0)
    with torch.device(device):
        given = {"dtype": getattr(torch, dtype), "attn_implementation": attention()}
        return AutoModelForCausalLM.from_config(config, **given).eval(), codec


def large_checks(trial, codec, config, memory, folder):
    """A model of this shape: one step of SL, one of RL, one batch of answers, with their memory.

    Args:
        trial: world, device and meter; profile and model come from here.
        config: the shape; ``recnb plan`` reads it, too.
        memory: GiB of the GPU.
        folder: for what they train.

    Returns:
        Pairs of a name and a function that gives ``Line``s.
    """
    profile = large_profile(config, folder / "shape")
    opening = partial(random_model, config, codec, profile.model.dtype, trial.device)
    trial = replace(trial, profile=profile, open_model=opening)
    (planned, _), rows = planned_bytes(profile, memory, trial), profile.evaluation.batch_size
    name = f"Llama-2-7b's shape, {config.num_hidden_layers} of {SHAPE.layers} layers"

    def sl():
        return sl_steps(trial, full_samples(trial, codec), folder / "sl", planned["04_sft"], LESS)

    def rl():
        return rl_steps(trial, 1, NEW, folder / "rl", planned["05_ppo"], LESS)

    def answers():
        return answers_lines(trial, rows, NEW, planned["06_evaluation"], LESS)

    def of_this_model(check):
        return [replace(line, what=f"{name}: {line.what}") for line in check()]

    named = {"SL": sl, "RL": rl, "answers": answers}
    return [(f"{name}: {what}", partial(of_this_model, check)) for what, check in named.items()]


def large_profile(config, folder):
    """``paper-movie`` with a model of this shape, in one process and with little to compute.

    Args:
        folder: for config.json.
    """
    config.save_pretrained(folder)
    few = {"sft.batch_size": 4, "ppo.epochs": 1, "compute.processes": 1}
    return load("paper-movie", ALONE | few | {"model.name": str(folder)})


def fitting_config(codec, memory, trial, folder):
    """The largest of ``LAYERS`` that ``recnb plan`` says fits.

    Raises:
        RecnbError: not even one layer does.
    """
    for layers in LAYERS:
        config = large_config(layers, codec)
        _, fits = planned_bytes(large_profile(config, folder), memory, trial)
        if fits:
            return config
    raise RecnbError(
        f"one layer of Llama-2-7b's width does not fit the {memory:.1f} GiB that are free on this "
        "GPU: end the other programs on it, or take a larger one"
    )
