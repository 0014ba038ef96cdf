"""Answers written by vLLM (``compute.rollouts``), by a process in vLLM's own environment.

Token ids are all that comes from there: log-probabilities and values are those of the kit's own
model. Adapters go there as they are and are never merged: those of SL and RL become one of the
ranks' sum, a new one after every update. Decoding inside the automaton stays with
``recnb.engine.decoding``, which leads it token by token.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from recnb import RecnbError
from recnb.lm.item_tokens import read_record
from recnb.lm.loading import located, refuse_code
from recnb.owner import end_tree
from recnb.profile import root

PYTHON = "RECNB_VLLM"
"""Environment variable: the Python that has vLLM. Without it: .venv-vllm of the checkout."""
WORKER = Path(__file__).with_name("vllm_worker.py")
START, ANSWER = 1800.0, 3600.0
"""Seconds after which a model that is being opened, or answers, count as lost."""
LONGEST = 4096
"""Most tokens of a prompt with its answer, if the model has places for so many."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of LoRA that vLLM can be opened for."""
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Beginnings of the variables that would tell vLLM that it is one of several processes."""
HF = "or set compute.rollouts to hf"


def python():
    """The Python of vLLM's environment.

    Raises:
        RecnbError: there is none.
    """
    given = os.environ.get(PYTHON)
    path = Path(given) if given else root() / ".venv-vllm" / "bin" / "python"
    if not path.is_file():
        raise RecnbError(
            f"compute.rollouts: vllm works in an environment of its own, and {path} is not there: "
            "make one (python3 -m venv FOLDER; FOLDER/bin/pip install vllm) and set the "
            f"environment variable {PYTHON} to FOLDER/bin/python, {HF}"
        )
    return path


class Worker:
    """A vLLM process, asked in JSON lines (``vllm_worker.py``).

    Args:
        settings: its first message.

    Raises:
        RecnbError: it cannot be started, or not open the model.
    """

    def __init__(self, settings):
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.rest = b""
        self.process = subprocess.Popen(
            [str(python()), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=_environment(),
        )
        try:
            self.ask(settings, START)
        except BaseException:
            self.close()
            raise

    def ask(self, message, seconds):
        """The reply to a message.

        Raises:
            RecnbError: vLLM refused it, has ended, or gave no reply in time.
        """
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            reply = json.loads(self._line(seconds))
        except BrokenPipeError:
            raise self._ended() from None
        if "error" in reply:
            raise RecnbError(f"vLLM: {reply['error'][:2000]}; change what it names, {HF}")
        return reply

    def _line(self, seconds):
        pipe, until = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.rest:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                self.close()
                raise RecnbError(
                    f"vLLM gave no answer in {seconds:.0f} seconds and was ended: the same command "
                    f"goes on from the last checkpoint; {HF}"
                )
            piece = os.read(pipe, 1 << 16)
            if not piece:
                raise self._ended()
            self.rest += piece
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def _ended(self):
        code = self.process.wait()
        self.errors.seek(0)
        said = "\n".join(self.errors.read().strip().splitlines()[-15:])
        return RecnbError(
            f"the vLLM process ended with exit code {code}: the same command goes on from the last "
            f"checkpoint; if it ends again, change what it said last, {HF}\n{said}"
        )

    def close(self):
        """End it, with all that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            end_tree(psutil.Process(self.process.pid))
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def _environment():
    """Of a worker: alone, and on the GPU of this process."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(OF_TORCHRUN)}
    found |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if torch.cuda.is_available():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else list(map(str, range(torch.cuda.device_count())))
        found["CUDA_VISIBLE_DEVICES"] = names[torch.cuda.current_device()]
    return found


class Writer:
    """Continues prompts by vLLM.

    Args:
        model: folder or Hub id.
        dtype: of its weights.
        eos: token that ends an answer.
        rank: the largest sum of ranks of adapters that are used together.
        cache_bytes: for keys and values; 0 = a share of the memory.
    """

    def __init__(self, model, dtype, eos, rank, cache_bytes):
        self.eos, self.count, self.adapter = eos, 0, None
        fitting = [possible for possible in RANKS if possible >= rank]
        if not fitting:
            raise RecnbError(
                f"compute.rollouts: vllm takes LoRA of rank {RANKS[-1]} at most, and those of SL "
                f"and RL add up to {rank}: lower sft.rank or ppo.rank, {HF}"
            )
        places = AutoConfig.from_pretrained(model).max_position_embeddings
        self.longest = min(places, LONGEST)
        settings = {"model": model, "dtype": dtype, "longest": self.longest}
        settings |= {"rank": fitting[0] if rank else 0, "cache_bytes": cache_bytes}
        self.worker = Worker(settings)
        self.scratch = tempfile.TemporaryDirectory(prefix="recnb-")

    def use(self, adapters):
        """Answer with these adapters from now on, beside the weights.

        Args:
            adapters: from ``read_adapter`` and ``live_adapter``; none = the model alone.
        """
        before, self.adapter = self.adapter, None
        if adapters:
            self.count += 1
            self.adapter = str(Path(self.scratch.name) / str(self.count))
            save_adapter(stacked(adapters), Path(self.adapter))
        if before:
            shutil.rmtree(before)

    def answers(self, prompts, rooms, temperature=0.0, seeds=None):
        """New token ids for each prompt, the end token included where it came.

        Args:
            prompts: lists of token ids.
            rooms: most new tokens of each.
            temperature: 0 = the most probable token.
            seeds: of each answer's draws.
        """
        for ids, room in zip(prompts, rooms, strict=True):
            if len(ids) + room > self.longest:
                raise RecnbError(
                    f"a prompt of {len(ids):,} tokens with an answer of up to {room:,} is longer "
                    f"than the {self.longest:,} that vLLM was opened for: ask for shorter lists or "
                    f"histories, {HF}"
                )
        asked = {"prompts": prompts, "rooms": rooms, "end": self.eos, "adapter": self.adapter}
        asked |= {"temperature": temperature, "seeds": seeds}
        answers = self.worker.ask(asked, ANSWER)["answers"]
        if len(answers) != len(prompts):
            raise RecnbError(f"vLLM gave {len(answers)} answers to {len(prompts)} prompts: {HF}")
        for answer, room in zip(answers, rooms, strict=True):
            ends = answer.index(self.eos) + 1 if self.eos in answer else room
            if len(answer) != ends:
                raise RecnbError(
                    f"vLLM gave an answer of {len(answer)} tokens where the end token or the room "
                    f"asks for {ends}: {HF}"
                )
        return answers

    def close(self):
        """End vLLM."""
        self.worker.close()
        self.scratch.cleanup()


@contextlib.contextmanager
def rollouts(model, codec, knobs, compute):
    """``Rollouts`` of a model of ``load_adapted`` that RL is going to train; None for hf.

    Args:
        knobs: the ``ppo`` section of a profile.
        compute: its ``compute`` section.
    """
    if compute.rollouts == "hf":
        yield None
        return
    found = Rollouts(model.opened, codec, knobs.rank, compute)
    try:
        yield found
    finally:
        found.writer.close()


class Rollouts:
    """Sampled answers of the RL stage: the SL stage's adapters and the actor's, as it is now."""

    def __init__(self, opened, codec, rank, compute):
        model, folders, dtype = served(*opened)
        self.before = [read_adapter(folder) for folder in folders]
        total = sum(map(rank_of, self.before)) + rank
        self.writer = Writer(model, dtype, codec.eos, total, compute.cache_bytes)

    def answers(self, peft, prompts, room, temperature, seeds):
        """As ``Writer.answers``, by the actor of a PEFT model."""
        self.writer.use([*self.before, live_adapter(peft, "actor")])
        return self.writer.answers(prompts, [room] * len(prompts), temperature, seeds)


class Answering:
    """Greedy answers of the evaluation: one vLLM process for all systems that share their weights.

    Args:
        base, dtype: as for ``load_adapted``.
        codec: of the model.
        rank: the largest sum of ranks of a system's adapters.
        compute: the ``compute`` section of a profile.
    """

    def __init__(self, base, dtype, codec, rank, compute):
        self.base, self.dtype, self.codec, self.rank = base, dtype, codec, rank
        self.compute, self.writer, self.model, self.used = compute, None, None, None

    def answers(self, adapters, prompts, rooms):
        """As ``Writer.answers``, by the base with these adapters (folders)."""
        model, folders, dtype = served(self.base, adapters, self.dtype)
        if self.model != model:
            self.close()
            cache_bytes = self.compute.cache_bytes
            self.writer = Writer(model, dtype, self.codec.eos, self.rank, cache_bytes)
            self.model, self.used = model, []
        if self.used != folders:
            self.writer.use([read_adapter(folder) for folder in folders])
            self.used = folders
        return self.writer.answers(prompts, rooms)

    def close(self):
        """End vLLM, if it runs."""
        if self.writer is not None:
            self.writer.close()
        self.writer = self.model = None


def served(base, adapters, dtype):
    """What vLLM opens for a model of ``load_adapted``: ``(folder or Hub id, adapters, dtype)``.

    Raises:
        RecnbError: the model has tokens of its own for titles.
    """
    record = read_record(base)
    if record:
        if record["titles"]:
            raise RecnbError(
                "compute.rollouts: vllm takes no rows of the vocabulary beside a model's own, and "
                f"{base} has {record['titles']:,} for titles: set model.item_tokens to false, {HF}"
            )
        own = Path(base) / "adapter"
        adapters = [own, *adapters] if own.is_dir() else adapters
        base = located(record["model"])
    folders = []
    for folder in adapters:
        if (Path(folder) / "adapter_config.json").is_file():
            folders.append(str(folder))
        else:  # a whole model, in the place of all before
            base, folders = folder, []
    return str(base), folders, dtype


def read_adapter(folder):
    """LoRA of a PEFT folder: ``{layer: (A float32 [r, inputs], B float32 [outputs, r])}``.

    B has the scale in it already: the update is B A.
    """
    refuse_code(folder)
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    return _scaled(tensors, config["lora_alpha"] / config["r"])


def live_adapter(peft, name):
    """The same of an adapter of a PEFT model, as it is now."""
    config = peft.peft_config[name]
    tensors = get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)
    return _scaled(tensors, config.lora_alpha / config.r)


def _scaled(tensors, scale):
    layers = {}
    for name, tensor in tensors.items():
        layer, _, part = name.removesuffix(".weight").rpartition(".")
        if part not in ("lora_A", "lora_B"):
            raise RecnbError(
                f"compute.rollouts: vllm takes adapters of linear layers alone, and this one holds "
                f"{name}: {HF}"
            )
        layers.setdefault(layer, {})[part] = tensor.detach().float().cpu()
    return {layer: (both["lora_A"], scale * both["lora_B"]) for layer, both in layers.items()}


def rank_of(adapter):
    """r of an adapter."""
    return len(next(iter(adapter.values()))[0])


def stacked(adapters):
    """Several adapters as one, exactly: B1 A1 + B2 A2 = [B1 B2] [A1; A2].

    A layer that one of them leaves as it is gets zeros from it.
    """
    found = {}
    for layer in sorted(set().union(*adapters)):
        inputs, outputs = next(
            (down.shape[1], up.shape[0])
            for down, up in (adapter[layer] for adapter in adapters if layer in adapter)
        )
        parts = []
        for adapter in adapters:
            r = rank_of(adapter)
            nothing = torch.zeros(r, inputs), torch.zeros(outputs, r)
            parts.append(adapter.get(layer, nothing))
        downs, ups = zip(*parts, strict=True)
        found[layer] = torch.cat(downs), torch.cat(ups, 1)
    return found


def save_adapter(adapter, folder):
    """Write an adapter as a PEFT folder."""
    rank = rank_of(adapter)
    names = sorted({layer.rpartition(".")[2] for layer in adapter})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, task_type="CAUSAL_LM")
    config.save_pretrained(folder)
    tensors = {}
    for layer, (down, up) in adapter.items():
        tensors[f"{layer}.lora_A.weight"] = down.contiguous()
        tensors[f"{layer}.lora_B.weight"] = up.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
