"""Every title one token in a model that was trained elsewhere.

A title of ten sub-words becomes one token with a vector at the input and one at the output (a row
of the embedding table and of the LM head). Where a model uses one table for both, the two are
parted: then the output rows can be trained while all below a layer stays as it is.

What a new row starts as (``initial_rows``), at the input and at the output alike:

    words    s_i     mean of the vectors of the title's sub-words, less the mean over all titles, m
    teacher  W z_i   z_i is the teacher's item vector less the mean; W [d, w], whose columns are
                     orthonormal (its rows where w > d), minimises sum_i |s_i - W z_i|^2
    row_i            m + both parts, brought to equal size

The words say what a title is about, the teacher who chooses it. Of all turns of the teacher's space
into the model's, W is the one that comes nearest to the words: "chosen by the same people" lies, as
far as it can, where the model has words that such titles share, and nothing is drawn. Only turns
are allowed because the two have little to do with each other: a free W (ridge least squares)
explains an eighth of the words' variance on MovieLens and loses more than half of the teacher's
neighbours on the way; a turn keeps every distance (benchmarks/LOG.md, twelfth round).

A mean of sub-words is shorter than a sub-word and teacher vectors have a scale of their own, so the
sum gets the spread of ordinary rows, and each row their median length: a longer output row would be
a likelier title in every place.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from recnb import RecnbError
from recnb.artifacts import write_json

RECORD, ROWS = "pretrained.json", "rows.safetensors"
"""In a base's folder: which model it goes out from, and the rows of its titles."""


def add_titles(tokenizer, catalog):
    """Make every title one token.

    A title is found where no letter or digit touches it, the longest one first.

    Args:
        tokenizer: a fast transformers tokenizer, changed in place.
        catalog: ``Catalog``.

    Returns:
        ``(first, words)``: id of the first title, those of the others follow; and the sub-words of
        each title before, a list of N lists of ids.

    Raises:
        RecnbError: a title that is a token already, or that is not found as one in a list.
    """
    titles = catalog.titles[1:]
    words = tokenizer(titles, add_special_tokens=False)["input_ids"]
    known, first = tokenizer.get_vocab(), len(tokenizer)
    for item, (title, ids) in enumerate(zip(titles, words, strict=True), start=1):
        if title in known or len(ids) < 2:
            raise RecnbError(
                f"item {item}: the title {title!r} is a token of the model already, in other "
                "texts too: give the item a longer title (its year), or set model.item_tokens to "
                "false"
            )
    tokenizer.add_tokens([AddedToken(t, normalized=False, single_word=True) for t in titles])
    _check_found(tokenizer, titles, first)
    return first, words


def _check_found(tokenizer, titles, first):
    """Raise unless each title is its own token in a list and between quotation marks."""
    for form in ("\n2. {}\n3. ", "as follows: '{}', '"):
        lines = tokenizer([form.format(t) for t in titles], add_special_tokens=False)["input_ids"]
        for place, (title, ids) in enumerate(zip(titles, lines, strict=True)):
            found = [i - first for i in ids if i >= first]
            if found != [place]:
                text = form.format(title).strip()
                read = ", ".join(repr(titles[i]) for i in found) or "no title"
                raise RecnbError(
                    f"item {place + 1}: in the text {text!r} the tokenizer finds {read} instead of "
                    f"{title!r}: give the item another title, or set model.item_tokens to false"
                )


def initial_rows(table, words, vectors):
    """Rows of new titles (see the module's text).

    Args:
        table: float [V, d], the ordinary tokens' rows.
        words: sub-words of each title, N lists of ids.
        vectors: float [N, w], the teacher's item vectors.

    Returns:
        float32 [N, d].

    Raises:
        RecnbError: the teacher knows other items.
    """
    if len(vectors) != len(words):
        raise RecnbError(
            f"the teacher has vectors of {len(vectors)} items, the catalogue has {len(words)}: "
            "run notebook 02_teacher again with this catalogue"
        )
    table = table.detach().float().cpu()
    said = torch.stack([table[ids].mean(0) for ids in words])  # [N, d]
    middle = said.mean(0)
    said = said - middle
    z = vectors.detach().double().cpu()
    z = z - z.mean(0)
    left, _, right = torch.linalg.svd(z.T @ said.double(), full_matrices=False)
    fitted = (z @ left @ right).float()  # [N, d]; the nearest turn (Procrustes)
    parts = said / _size(said) + fitted / _size(fitted)
    rows = middle + parts / _size(parts) * _size(table - table.mean(0))
    return rows * (table.norm(dim=1).median() / rows.norm(dim=1, keepdim=True).clamp(min=1e-12))


def _size(rows):
    """Root of the mean squared length of rows [N, d]."""
    return rows.square().sum(1).mean().sqrt().clamp(min=1e-12)


def title_rows(model, first, words, vectors):
    """``{"input": [N, d], "output": [N, d]}`` for a model before it is enlarged.

    Args:
        model: a causal language model; its table may have unused rows from ``first`` on.
        first, words: from ``add_titles``.
        vectors: float [N, w], the teacher's item vectors.
    """
    tables = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    return {
        name: initial_rows(layer.weight[:first], words, vectors) for name, layer in tables.items()
    }


def enlarge(model, first, rows):
    """Give a model the rows of its titles, in place; a table used for both ends is parted.

    Args:
        model: a causal language model.
        first: id of the first title.
        rows: from ``title_rows``.
    """
    count = len(rows["input"])
    if first + count > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(first + count, mean_resizing=False)
    head = model.get_output_embeddings()
    if head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr():
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    with torch.no_grad():
        for layer, own in ((model.get_input_embeddings(), "input"), (head, "output")):
            layer.weight[first : first + count] = rows[own].to(layer.weight)
    model.config.item_rows = [first, count]
    # PEFT would compare with the model of that name, and save whole tables.
    model.name_or_path = model.config._name_or_path = ""
    return model


def trained_rows(model, layers_from):
    """Which rows train beside LoRA, in PEFT's words; None for a model without added titles.

    Rows at the input need a gradient through every layer: with LoRA on upper layers alone they
    stay, and those of the output train.
    """
    first, count = getattr(model.config, "item_rows", (0, 0))
    if not count:
        return None
    ids = list(range(first, first + count))
    return {"lm_head": ids} if layers_from else {"embed_tokens": ids, "lm_head": ids}


def save_base(folder, name, tokenizer, first=0, rows=None):
    """Write a base that goes out from another model: its name, tokenizer and title rows.

    Args:
        folder: a new folder; an adapter may be added to it as ``adapter``.
        name: ``model.name`` of the profile.
        tokenizer: with the titles, if there are rows.
        first, rows: of ``enlarge``; None = titles stay sub-words.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    count = 0
    if rows is not None:
        count = len(rows["input"])
        save_file({name: part.contiguous() for name, part in rows.items()}, folder / ROWS)
    write_json(folder / RECORD, {"model": name, "first": first, "titles": count})


def read_record(folder):
    """``pretrained.json`` of a base's folder; None if it has none.

    Raises:
        RecnbError: damaged.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        first, count = record["first"], record["titles"]
        if not isinstance(record["model"], str) or {type(first), type(count)} != {int}:
            raise ValueError("model must be a text, first and titles whole numbers")
        return record
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecnbError(f"{path}: damaged ({error}): run notebook 04_sft again") from error


def read_rows(folder, record, model):
    """The title rows of a base's folder, which must fit the model.

    Raises:
        RecnbError: damaged, or made for another model.
    """
    path, count = Path(folder) / ROWS, record["titles"]
    width = model.get_input_embeddings().weight.shape[1]
    try:
        rows = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RecnbError(
            f"{path}: not readable as safetensors ({error}): run notebook 04_sft again"
        ) from error
    shapes = {name: list(part.shape) for name, part in rows.items()}
    table = model.get_input_embeddings().weight.shape[0]
    if shapes != {"input": [count, width], "output": [count, width]} or record["first"] > table:
        raise RecnbError(
            f"{path}: rows of shapes {shapes} from token {record['first']} on; {record['model']} "
            f"with {table} tokens of width {width} needs {[count, width]} for both: it is another "
            "model than the one they were made for; run notebook 04_sft again"
        )
    return rows
