"""The base: next-token training on what needs no instruction, before the SL stage.

Four kinds of text: histories in quotes, a history's next titles as the numbered list that answers a
request (half of which say something unrelated besides), facts about one title, and conversations.
No control and no label of the teacher's. What comes out can list titles, as a chat model can, and
is this kit's "untouched language model", the zero-shot row of every table.

A mini model is trained so from nothing, every weight. A pretrained one gets its item tokens
(``model.item_tokens``) and reads the same texts in its own chat form, with LoRA (``base.rank``).
"""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import torch

from recnb.artifacts import atomic_path, write_json
from recnb.engine.losses import next_token_loss, title_mask
from recnb.engine.packed import next_logits, side_by_side
from recnb.instructions.templates import numbered, quoted
from recnb.lm.item_tokens import RECORD, add_titles, save_base, title_rows
from recnb.lm.loading import load_base, load_codec, located, mini_model
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer, title_tokens
from recnb.machine import autocast as faster_in_bfloat16
from recnb.profile import Sft
from recnb.sft import train_sft

MIX = {"history": 0.3, "numbered": 0.5, "fact": 0.15, "chat": 0.05}
"""Shares of the kinds of text."""
NOTES = {"smollm2": "SmolLM2-135M-Instruct, dequantised from a 4-bit GGUF file"}
"""What is said of a model by its ``model.name``."""
HELD = 64
"""Texts that a pretrained model's reading of the histories is measured on."""
LONGEST_LIST = 15
REMARK = 12
"""Words of a conversation that stand in a request beside what is asked."""


def framed(prompt, answer):
    """Prompt and answer as one text, in the words of a mini model's chat template."""
    return f"Instruction: {prompt}\nOutput: {answer}"


def draw_text(kind, histories, catalog, chat, window, rng, conversation=False):
    """One text of a kind.

    Args:
        conversation: as a pair of prompt and answer, for a model that knows conversations alone.
    """

    def joined(prompt, answer):
        return (prompt, answer) if conversation else framed(prompt, answer)

    if kind == "fact":
        item = int(rng.integers(1, len(catalog) + 1))
        names = ", ".join(sorted(catalog.categories[item])) or "of no category"
        fact = f"{quoted([item], catalog)} is {names}."
        return (f"What is {quoted([item], catalog)}?", fact) if conversation else fact
    if kind == "chat" and chat:
        prompt, answer = chat[rng.integers(len(chat))]
        return joined(prompt, answer)
    sequence = histories.train(rng.integers(len(histories)))
    if kind == "numbered":
        k = int(rng.integers(1, LONGEST_LIST + 1))
        start = int(rng.integers(0, max(1, len(sequence) - k)))
        before, items = sequence[max(0, start - 10) : start], sequence[start : start + k]
        lead, remark = "", []
        if len(before):
            shown = quoted(before, catalog)
            lead = f"The historical interactions are provided as follows: {shown}. "
        # So that the base lists whatever it does not understand: without a remark here, it named
        # one title or two when a wish was stated.
        if chat and rng.random() < 0.5:
            remark = chat[rng.integers(len(chat))][0].split()[:REMARK]
        ask = f"You need to generate a recommendation list with {len(items)} different items."
        return joined(lead + " ".join([*remark, ask]), numbered(items, catalog))
    start = int(rng.integers(0, max(1, len(sequence) - window)))
    shown = quoted(sequence[start : start + window], catalog)
    if conversation:
        return "Write down the historical interactions of a user.", shown
    return f"The historical interactions are provided as follows: {shown}."


def train_base(
    model,
    codec,
    titles,
    histories,
    catalog,
    chat,
    knobs,
    seed,
    log=lambda row: None,
    max_tokens=256,
    autocast=True,
):
    """Train a mini model in place.

    Args:
        model: ``mini_model``.
        titles: title token of each item [N+1] (``title_tokens``), or None with sub-word titles.
        knobs: the ``base`` section of a profile.
        log: called with a dict every 50 steps.
        autocast: matrix products in bfloat16.
    """
    rng = np.random.default_rng([seed, 106])
    kinds, shares = list(MIX), list(MIX.values())
    is_title = title_mask(titles, model.config.vocab_size, model.device)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=knobs.learning_rate,
        weight_decay=knobs.weight_decay,
        betas=(0.9, 0.95),
        fused=True,
    )
    # The schedule divides by the length of its rise, which must not be a whole step or less.
    total = max(knobs.steps, 3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, knobs.learning_rate, total_steps=total, pct_start=max(0.05, 1.5 / total)
    )
    model.train()
    bos, running = codec.tokenizer.bos_token_id, []
    for step in range(1, knobs.steps + 1):
        rows = []
        for kind in rng.choice(kinds, size=knobs.batch_size, p=shares):
            text = draw_text(kind, histories, catalog, chat, knobs.history_window, rng)
            rows.append([bos, *codec.answer(text)][:max_tokens])
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast):
            loss = base_loss(model, rows, codec.pad, is_title, knobs.repeat_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running.append(loss.item())
        if step % 50 == 0 or step == knobs.steps:
            log({"step": step, "of": knobs.steps, "loss": float(np.mean(running))})
            running = []
    return model.eval()


def base_loss(model, rows, pad, is_title, repeat_weight):
    """Next-token loss of token rows, with the term against earlier titles.

    Args:
        rows: lists of token ids.
        is_title: bool [V], the title tokens; None = no term.
    """
    ids, real = side_by_side(rows, pad, model.device)
    keep = torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], 1)
    logits = next_logits(model, ids, real, keep)
    places = keep.nonzero() + torch.tensor([0, 1], device=model.device)
    return next_token_loss(logits, ids, places, is_title, repeat_weight)


def known_vectors(model, tokenizer, titles, teacher, catalog, seed):
    """Start titles' embeddings with the teacher's vectors and with codes of their categories.

    The first dimensions of a title are the teacher's vector, scaled to the size of the other
    tokens' vectors. The rest is random, which tells like titles apart; half of its variance becomes
    the sum of the codes, random vectors, of the item's categories. The token of a category's name
    gets the same code.

    Args:
        model: mini model, changed in place.
        tokenizer: its tokenizer.
        titles: title token of each item [N+1].
        teacher: trained ``Teacher``; its width may be smaller than the model's.
        catalog: ``Catalog``.
        seed: draws the codes.
    """
    table = model.get_input_embeddings().weight
    vectors = teacher.model.item.weight.detach()[1:]
    width, tokens = vectors.shape[1], torch.tensor(titles[1:])
    with torch.no_grad():
        scale = table.std().cpu()
        table[tokens, :width] = (vectors * scale / vectors.std()).to(table.device)
        if width == table.shape[1]:
            return
        member = torch.zeros(len(tokens), len(catalog.names))  # [N, categories]
        for item, own in enumerate(catalog.categories[1:]):
            member[item] = torch.tensor([name in own for name in catalog.names])
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randn(len(catalog.names), table.shape[1] - width, generator=generator)
        shared = (member - member.mean(0)) @ codes
        names = torch.tensor([tokenizer.get_vocab()[name] for name in catalog.names])
        for rows, code in ((tokens, shared / shared.std().clamp(min=1e-6)), (names, codes)):
            table[rows, width:] = (table[rows, width:] + (code * scale).to(table.device)) / 2**0.5


def read_histories(model, codec, histories, catalog, chat, profile, folder, log, key):
    """Let a pretrained model read the base's texts: LoRA and title rows, kept in ``folder``.

    It is the SL stage's training on other samples: an interrupted one continues.

    Args:
        model, codec: with item tokens, if the profile wants them.
        folder: receives ``adapter/`` and ``log.json``.
        log: called with every logged row.
        key: names the settings, for the checkpoints.

    Returns:
        The logged rows that have a loss.
    """
    knobs, rng = profile.base, np.random.default_rng([profile.seed, 106])
    kinds = rng.choice(list(MIX), size=knobs.steps * knobs.batch_size + HELD, p=list(MIX.values()))
    rows = []
    for kind in kinds:
        pair = draw_text(kind, histories, catalog, chat, knobs.history_window, rng, True)
        rows.append((kind, *pair))
    frame = pd.DataFrame(rows, columns=["task", "prompt", "completion"])
    sft = Sft(
        rank=knobs.rank,
        alpha=knobs.alpha,
        learning_rate=knobs.learning_rate,
        batch_size=knobs.batch_size,
        repeat_weight=knobs.repeat_weight,
    )
    _, logged = train_sft(
        model,
        codec,
        frame[HELD:],
        frame[:HELD],
        title_tokens(codec.tokenizer, catalog),
        sft,
        profile.seed,
        folder,
        log,
        faster_in_bfloat16(profile.model),
        f"---\nlibrary_name: peft\n---\n# {profile.name}: histories read before the SL stage\n",
        key,
        profile.compute,
    )
    return [row for row in logged if "loss" in row]


def pretrained_base(profile, folder, histories, catalog, chat, teacher, key, log):
    """A base that goes out from a model trained elsewhere: ``folder/base``, see ``save_base``.

    Returns:
        ``(description, rows)``, as from ``make_base``.
    """
    name, place, reading = profile.model.name, folder / "base", folder / "histories"
    codec, first, rows, what = load_codec(located(name)), 0, None, NOTES.get(name, name)
    if profile.model.item_tokens:
        model, _ = load_base(located(name))
        first, words = add_titles(codec.tokenizer, catalog)
        rows = title_rows(model, first, words, teacher.model.item.weight[1:])
        what += f"; {len(catalog):,} titles were added to it, each as one token"
    with atomic_path(place) as temporary:
        save_base(temporary, name, codec.tokenizer, first, rows)
    if not profile.base.rank:
        return f"{what}.", []
    model, codec = load_base(place, profile.model.dtype)
    logged = read_histories(model, codec, histories, catalog, chat, profile, reading, log, key)
    with atomic_path(place / "adapter") as temporary:
        shutil.copytree(reading / "adapter", temporary)
    return f"{what}; it has read the histories.", logged


def mini_base(profile, folder, histories, catalog, chat, teacher, log):
    """A mini model trained on the spot: ``folder/base``.

    Returns:
        ``(description, rows)``, as from ``make_base``.
    """
    tokenizer = build_tokenizer(catalog, chat, profile.model.vocabulary, profile.model.whole_titles)
    codec, titles = Codec(tokenizer), title_tokens(tokenizer, catalog)
    model = mini_model(len(tokenizer), profile.model, codec, profile.seed)
    if profile.base.teacher_embeddings:
        known_vectors(model, tokenizer, titles, teacher, catalog, profile.seed)
    rows = []

    def keep(row):
        rows.append(row)
        log(row)

    base, seed, fast = profile.base, profile.seed, faster_in_bfloat16(profile.model)
    train_base(model, codec, titles, histories, catalog, chat, base, seed, keep, autocast=fast)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    shape = f"{profile.model.layers} layers, width {profile.model.width}"
    tokens = f"{len(tokenizer)} tokens" + (", every title one token" if titles else "")
    with atomic_path(folder / "base") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return (
        f"mini: a Llama of {size:.2f} million parameters ({shape}) with {tokens}; its base was "
        "trained on the spot."
    ), rows


def make_base(profile, folder, histories, catalog, chat, teacher, inputs, log=lambda row: None):
    """The base model of a profile.

    "mini" is trained on the spot. Another model is found by name and, if the profile says so, gets
    item tokens and reads the histories. What is made is kept under ``folder/base`` with a key of
    everything it was made from, so that a changed SL knob does not make it again.

    Args:
        profile: ``Profile``.
        folder: the stage's folder.
        chat: pairs (prompt, answer), for the tokenizer and for the texts of kind "chat".
        teacher: ``Teacher`` of this catalogue.
        inputs: sha256 of each input file, part of the key.
        log: called with a dict now and then.

    Returns:
        ``(where, description, rows)``: folder or Hub id for ``load_base``, one sentence, log rows.

    Raises:
        RecnbError: titles that cannot become tokens, a teacher of another catalogue.
    """
    name, own = profile.model.name, (profile.model.item_tokens or profile.base.rank)
    if name != "mini" and not own:
        return located(name), NOTES[name] + "." if name in NOTES else name, []
    knobs = [
        profile.seed,
        profile.model.model_dump(mode="json"),
        profile.base.model_dump(mode="json"),
        inputs,
    ]
    key = hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()
    record, made = folder / "base.json", "config.json" if name == "mini" else RECORD
    if record.is_file() and (folder / "base" / made).is_file():
        kept = json.loads(record.read_text())
        if kept["key"] == key:
            return str(folder / "base"), kept["description"], kept["rows"]
    what = profile, folder, histories, catalog, chat, teacher
    if name == "mini":
        description, rows = mini_base(*what, log)
    else:
        description, rows = pretrained_base(*what, key[:12], log)
    write_json(record, {"key": key, "description": description, "rows": rows})
    shutil.rmtree(folder / "histories", ignore_errors=True)  # last: a start killed before needs it
    return str(folder / "base"), description, rows
