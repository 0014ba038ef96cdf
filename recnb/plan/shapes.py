"""The shapes of language models: from a small table, a config.json or the profile's knobs."""

import json
from dataclasses import dataclass
from pathlib import Path

from recnb import RecnbError


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
