"""Language models by name (mini, SmolLM2 out of a package, Hub id or local folder) and adapters."""

import gc
import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recnb import RecnbError, sources
from recnb.artifacts import atomic_path
from recnb.engine.beside import kept_beside
from recnb.lm.item_tokens import add_titles, enlarge, read_record, read_rows
from recnb.lm.text import Codec
from recnb.machine import device


def mini_model(vocabulary, knobs, codec, seed):
    """An untrained mini Llama.

    Args:
        vocabulary: number of tokens.
        knobs: the ``model`` section of a profile.
        codec: ``Codec`` of its tokenizer.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        # 0.02, the default, suits widths in the thousands; here the first steps would be too small.
        initializer_range=knobs.width**-0.5,
        vocab_size=vocabulary,
        hidden_size=knobs.width,
        intermediate_size=4 * knobs.width,
        num_hidden_layers=knobs.layers,
        num_attention_heads=knobs.heads,
        num_key_value_heads=knobs.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=codec.tokenizer.bos_token_id,
        eos_token_id=codec.eos,
        pad_token_id=codec.pad,
        attn_implementation=attention(),
    )
    return LlamaForCausalLM(config).to(device())


def attention():
    """Attention for transformers: on a CPU, in bfloat16, the plain one trains twice as fast."""
    return "sdpa" if torch.cuda.is_available() else "eager"


def load_base(folder, dtype="float32"):
    """Base model and codec from a folder or Hub id; no code of the model's author is run.

    The folder may be one of ``item_tokens.save_base``: then the model it goes out from is loaded,
    gets the rows of its titles, and the adapter that read the histories is merged into it.

    Raises:
        RecnbError: nothing there, or not a causal language model.
    """
    record = read_record(folder)
    name = folder if record is None else located(record["model"])
    model = _load_model(name, getattr(torch, dtype))  # refuses what may carry code, before the rest
    codec = load_codec(folder)
    if record and record["titles"]:
        enlarge(model, record["first"], read_rows(folder, record, model))
    adapter = Path(folder) / "adapter"
    if record and adapter.is_dir():
        model = adapted(model, adapter)
    model.opened = str(folder), [], dtype  # for processes that shall load the same
    return model, codec


def located(name):
    """Folder or Hub id of a model by the ``model.name`` of a profile."""
    return str(smollm2_folder()) if name == "smollm2" else name


def load_codec(folder):
    """Codec of a model's tokenizer, from a folder or Hub id; its weights are not looked at."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds on a damaged folder
        raise RecnbError(
            f"model {folder}: its tokenizer cannot be loaded ({_reason(error)}): copy the model "
            "anew, with its tokenizer"
        ) from error
    return Codec(tokenizer)


def known_codec(knobs, catalog):
    """Codec of a model that is there before the run; None where notebook 04 makes the tokenizer.

    Args:
        knobs: the ``model`` section of a profile.
        catalog: ``Catalog``, whose titles become tokens if the profile says so.

    Raises:
        RecnbError: a title that cannot be a token.
    """
    if knobs.name == "mini":
        return None
    codec = load_codec(located(knobs.name))
    if not knobs.item_tokens:
        return codec
    add_titles(codec.tokenizer, catalog)
    return Codec(codec.tokenizer)


def _load_model(folder, dtype):
    refuse_code(folder)
    gc.collect()  # a model that nobody uses may still be held by its trainer, in a circle
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention(),
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises many kinds on a damaged folder
        raise RecnbError(
            f"model {folder}: cannot be loaded ({_reason(error)}); model.name is mini, smollm2, a "
            "folder with a causal language model, or the id of one on the Hub"
        ) from error
    lacking = sorted(found["missing_keys"])
    if lacking:  # transformers would fill them with random numbers and only warn
        raise RecnbError(
            f"model {folder}: its weights lack {len(lacking)} of those that config.json names, the "
            f"first: {lacking[0]}; copy the model anew"
        )
    return model.eval().to(device())


def _reason(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


def refuse_code(folder):
    """Raise if a local model or adapter would bring code along: a pickle, or ``auto_map``.

    A Hub id is no folder; for it ``use_safetensors`` and ``trust_remote_code`` do the same.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RecnbError(
                f"{folder / name}: not valid JSON ({error}): copy the model anew"
            ) from error
        if not isinstance(config, dict):
            raise RecnbError(
                f"{folder / name}: holds a {type(config).__name__}, a JSON object with the model's "
                "settings is expected: copy the model anew"
            )
        if config.get("auto_map"):
            raise RecnbError(
                f"{folder / name}: auto_map points to the author's own code, which is never run: "
                "use a model whose class transformers has"
            )
    # Beside other safetensors, PEFT would still read a pickle in an adapter's place.
    adapter = (folder / "adapter_config.json").is_file()
    weights = "adapter_model.safetensors" if adapter else "*.safetensors"
    if not list(folder.glob(weights)):
        raise RecnbError(
            f"model {folder}: no {weights} there; other weights (.bin, .pt) can carry code and "
            "are not read: convert them to safetensors"
        )
    _refuse_sizes(folder, adapter, sorted(folder.glob(weights)))


def _refuse_sizes(folder, adapter, files):
    """Raise if a configuration asks for more layers or a larger rank than its weights hold.

    They would be built, for as long as memory lasts, before anyone sees that they do not fit.
    """
    shapes = []
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                shapes += [file.get_slice(name).get_shape() for name in file.keys()]
        except (OSError, SafetensorError) as error:
            raise RecnbError(
                f"{path}: not readable as safetensors ({error}): copy the model anew"
            ) from error
    name = "adapter_config.json" if adapter else "config.json"
    if not (folder / name).is_file():
        return
    config = json.loads((folder / name).read_text(encoding="utf-8"))
    largest = max((size for shape in shapes for size in shape), default=0)
    limits = dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer"], len(shapes))
    if adapter:
        limits = {"r": largest}
    for key, most in limits.items():
        if isinstance(config.get(key), int) and config[key] > most:
            raise RecnbError(
                f"{folder / name}: {key} is {config[key]:,}, the weights beside it are for at most "
                f"{most:,}: copy the model anew"
            )


def smollm2_folder():
    """SmolLM2-135M-Instruct as safetensors, made once from the pinned package's 4-bit GGUF file."""
    from transformers import GgufConfig

    source = sources.fetch(sources.SMOLLM2)
    folder = Path(f"{source}-safetensors")
    if not (folder / "config.json").is_file():
        name = Path(sources.SMOLLM2.members[0]).name
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        with atomic_path(folder) as temporary:
            model.save_pretrained(temporary)
            AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(temporary)
    return folder


def load_adapted(base_folder, adapters, dtype="float32"):
    """Base model with LoRA adapters merged into it, one after the other: ready for generation.

    Args:
        base_folder: folder or Hub id of the base.
        adapters: folders of PEFT adapters in the order in which they were trained; a folder with a
            whole model (SL with rank 0) replaces what came before.

    Returns:
        ``(model, Codec)``.
    """
    model, codec = load_base(base_folder, dtype)
    for adapter in adapters:
        model = adapted(model, adapter)
    model.opened = str(base_folder), [str(adapter) for adapter in adapters], dtype
    return model, codec


class OneAtATime:
    """Opens models of one base, each when it is asked for; the one before goes first.

    Args:
        base, dtype: as for ``load_adapted``.
    """

    def __init__(self, base, dtype):
        self.base, self.dtype = base, dtype
        self.adapters = self.model = None

    def open(self, adapters):
        """The base with these adapters, see ``load_adapted``."""
        if self.adapters != adapters:
            self.adapters = self.model = None
            self.model, _ = load_adapted(self.base, adapters, self.dtype)
            self.adapters = adapters
        return self.model


def at_hand(model):
    """A model that may stand for a function which opens it."""
    return model if isinstance(model, torch.nn.Module) else model()


def adapted(model, adapter):
    """The model with an adapter merged into it, or the whole model in the adapter's place.

    Weights of 16 bits would round the adapter's updates away: it stays beside them.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        return _load_model(adapter, model.dtype)
    refuse_code(adapter)
    try:
        peft = PeftModel.from_pretrained(model, adapter)
        exact = model.dtype == torch.float32
        model = peft.merge_and_unload() if exact else kept_beside(peft)
    except MemoryError:
        raise
    except Exception as error:  # PEFT raises many kinds on a damaged folder
        raise RecnbError(
            f"adapter {adapter}: cannot be loaded ({_reason(error)}): train or copy it anew"
        ) from error
    return model.eval().to(device())
