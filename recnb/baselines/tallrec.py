"""TALLRec (Bao et al. 2023, arXiv 2305.00447): will this user like that title, Yes or No?

A language model that already follows instructions is tuned (LoRA on q and v) on a handful of
examples, K, of "liked these, disliked those: likes that?"; its answer's first token gives a score,
judged by AUC. The ids of Yes and No are found through the tokenizer, never written down, and the
score is read right behind the prompt, whatever the titles in it.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from recnb import RecnbError, datasets
from recnb.datasets.tabular import read_csv, shown
from recnb.engine.losses import next_token_loss
from recnb.engine.packed import next_logits, side_by_side
from recnb.engine.shared import share, uncast_lora
from recnb.text_safety import visible

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
INSTRUCTION = (
    "Given the user's preference and unpreference, identify whether the user will like the target "
    '{kind} by answering "Yes." or "No.".'
)
INPUT = (
    "User Preference: {liked}\nUser Unpreference: {disliked}\n"
    "Whether the user will like the target {kind} {target}?"
)

MOVIES, BOOKS = "MovieLens-100K", "Book-Crossing"
"""The data sets that TALLRec reports. The second is a domain of a run only where its profile names
a folder with it; the run's own domain goes by ``data.item_noun``."""


@dataclass(frozen=True)
class Example:
    """One question and its answer; ids serve sequential baselines, TALLRec's files have none."""

    instruction: str
    input: str
    label: bool
    liked: tuple[int, ...] = ()
    target: int = 0

    @property
    def prompt(self):
        """The question in Alpaca's form."""
        return ALPACA.format(instruction=self.instruction, input=self.input)


def example(kind, liked, disliked, target, label, titles):
    """An ``Example`` in TALLRec's words.

    Args:
        kind: what an item is called (``data.item_noun``): "movie", "book", "game", ...
        liked, disliked: item ids, oldest first.
        titles: title of each item id; in Book-Crossing a pair of title and author.
    """

    def quote(item):
        if isinstance(titles[item], str):
            return f'"{titles[item]}"'
        title, author = titles[item]
        return f'"{title}" written by {author}'

    text = INPUT.format(
        kind=kind,
        liked=", ".join(map(quote, liked)),
        disliked=", ".join(map(quote, disliked)),
        target=quote(target),
    )
    return Example(INSTRUCTION.format(kind=kind), text, bool(label), tuple(liked), target)


def rating_examples(log, titles, noun, history=10, like_above=3, last=10_000):
    """Training, validation and test examples by the rules that TALLRec has for MovieLens-100K.

    Each user's ratings in the order of time; one example for every position from the eleventh on,
    with the ten before it. Of all examples, user by user as the log first names them, the last
    10,000 count: the first 80 % train, a tenth validates, a tenth tests. So few users stand behind
    the test (eleven on MovieLens-100K): a spread over draws of the training examples says nothing
    about other users.

    Args:
        log: DataFrame user, item, rating, timestamp, items as ids of ``titles``.
        titles: title of each item id.
        noun: what an item is called in the question.
        like_above: a rating above this is a like.
    """
    made = []
    for _, rows in log.groupby("user", sort=False):
        rows = rows.sort_values("timestamp", kind="stable")
        items, likes = rows["item"].tolist(), (rows["rating"] > like_above).tolist()
        for place in range(history, len(items)):
            recent = slice(place - history, place)
            before = list(zip(items[recent], likes[recent], strict=True))
            liked = [i for i, like in before if like]
            disliked = [i for i, like in before if not like]
            made.append(example(noun, liked, disliked, items[place], likes[place], titles))
    made = made[-last:]
    cuts = [int(0.8 * len(made)), int(0.9 * len(made))]
    return made[: cuts[0]], made[cuts[0] : cuts[1]], made[cuts[1] :]


def rated_examples(data_knobs, knobs, catalog, seed):
    """``rating_examples`` of a profile's dataset: all ratings of the catalogue's titles.

    Returns:
        ``(parts, why not)``: the three lists and None, or None and the reason why there are none.
    """
    items, log = datasets.read(data_knobs, seed)
    if "rating" not in log.columns:
        return None, "the dataset has no ratings"
    number = datasets.numbers(datasets.kept(items, log, data_knobs.k_core)[0])
    rated = log.assign(item=log["item"].map(number)).dropna(subset="item").astype({"item": int})
    parts = rating_examples(
        rated, catalog.titles, data_knobs.item_noun, knobs.history_length, knobs.like_above
    )
    alike = any(len({one.label for one in part}) < 2 for part in parts)
    if alike or len(parts[0]) < max(knobs.shots):
        return None, (
            f"too few examples: users with more than {knobs.history_length} ratings "
            f"(tallrec.history_length), above and up to {knobs.like_above} (tallrec.like_above), "
            f"enough for {max(knobs.shots)} shots"
        )
    return parts, None


def book_examples(ratings, titles, seed, history=10, like_above=5):
    """Training, validation and test examples by the rules that TALLRec has for Book-Crossing.

    Each user with more than three books gives one example. Book-Crossing has no times: a user's
    books are shuffled, the last is the target. Users are split 80 : 10 : 10. Ratings of zero
    ("implicit" in the data) are left out, as TALLRec's authors say they did; their published script
    keeps them as dislikes.

    Args:
        ratings: DataFrame user, item, rating.
        titles: pair of title and author of each item id.
        seed: of the shuffles.
    """
    rng = np.random.default_rng([seed, 114])
    made = []
    for _, rows in ratings[ratings["rating"] > 0].groupby("user", sort=True):
        if len(rows) <= 3:
            continue
        order = rng.permutation(len(rows))[-(history + 1) :]
        items = rows["item"].to_numpy()[order].tolist()
        likes = (rows["rating"].to_numpy()[order] > like_above).tolist()
        before = list(zip(items[:-1], likes[:-1], strict=True))
        liked = [i for i, like in before if like]
        disliked = [i for i, like in before if not like]
        made.append(example("book", liked, disliked, items[-1], likes[-1], titles))
    made = [made[i] for i in rng.permutation(len(made))]
    cuts = [int(0.8 * len(made)), int(0.9 * len(made))]
    return made[: cuts[0]], made[cuts[0] : cuts[1]], made[cuts[1] :]


def read_book_crossing(folder):
    """Ratings and titles out of ``BX-Book-Ratings.csv`` and ``BX-Books.csv`` of Book-Crossing.

    Returns:
        ``(DataFrame user, item, rating, pairs of title and author)``, items numbered from 1.

    Raises:
        RecnbError: a missing file or column, no CSV, a rating that is none, with its row.
    """
    files = {
        "BX-Book-Ratings.csv": ["User-ID", "ISBN", "Book-Rating"],
        "BX-Books.csv": ["ISBN", "Book-Title", "Book-Author"],
    }
    tables = []
    for name, columns in files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise RecnbError(
                f"{path} does not exist; Book-Crossing is {name} with the columns "
                f"{', '.join(columns)}"
            )
        how = {"sep": ";", "encoding": "latin-1", "escapechar": "\\", "on_bad_lines": "skip"}
        try:
            table = read_csv(path, **how)
        except (OSError, ValueError, OverflowError) as error:
            raise RecnbError(f"{path} is not a readable CSV file: {shown(error, 200)}") from error
        missing = [column for column in columns if column not in table.columns]
        if missing:
            found = ", ".join(shown(column) for column in table.columns[:12])
            raise RecnbError(f"{path}: no column {missing[0]!r}; found {found}")
        tables.append(table[columns])
    ratings, books = tables
    bad = ~ratings["Book-Rating"].str.fullmatch(r"[0-9]|10")
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise RecnbError(
            f"{Path(folder) / 'BX-Book-Ratings.csv'}, row {row + 1}: rating "
            f"{shown(ratings['Book-Rating'].iloc[row])!r} is not one of 0 to 10"
        )
    books = books.drop_duplicates("ISBN")
    ratings = ratings[ratings["ISBN"].isin(set(books["ISBN"]))]
    books = books[books["ISBN"].isin(set(ratings["ISBN"]))]
    number = {isbn: place for place, isbn in enumerate(books["ISBN"], start=1)}
    log = pd.DataFrame(
        {
            "user": ratings["User-ID"],
            "item": ratings["ISBN"].map(number),
            "rating": ratings["Book-Rating"].astype(int),
        }
    )
    return log, [("", ""), *zip(books["Book-Title"], books["Book-Author"], strict=True)]


def read_json(path):
    """Examples out of one of TALLRec's own files.

    Raises:
        RecnbError: not such a file, with the record's number.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecnbError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(records, list):
        raise RecnbError(f"{path}: a list of records is expected, found {type(records).__name__}")
    made = []
    for number, record in enumerate(records):
        record = record if isinstance(record, dict) else {}
        fields = [record.get(name) for name in ("instruction", "input", "output")]
        texts = all(isinstance(field, str) for field in fields)
        if not texts or not fields[2].strip().startswith(("Yes", "No")):
            raise RecnbError(
                f"{path} record {number}: instruction, input and output (Yes. or No.) are expected"
            )
        texts = [visible(field) for field in fields[:2]]  # "\ud800" is JSON and no text
        made.append(Example(*texts, fields[2].strip().startswith("Yes")))
    return made


def solved(examples):
    """Examples with their answers, as they stand before a question that is asked in context."""
    return "".join(f"{one.prompt}{'Yes.' if one.label else 'No.'}\n\n" for one in examples)


def encode(examples, codec, before=""):
    """Tokens of each example up to where Yes and No part.

    Args:
        before: what stands in front of each prompt (``solved``).

    Returns:
        List of ``(prompt ids, id that begins Yes, id that begins No)``.
    """
    rows = []
    for one in examples:
        answered = [f"{before}{one.prompt}Yes.", f"{before}{one.prompt}No."]
        yes, no = codec.tokenizer(answered, add_special_tokens=False)["input_ids"]
        parted = next(i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
        start = [] if codec.tokenizer.bos_token_id is None else [codec.tokenizer.bos_token_id]
        rows.append((start + yes[:parted], yes[parted], no[parted]))
    return rows


@torch.no_grad()
def scores(model, codec, encoded, batch_size=64):
    """How much likelier Yes is than No: float [n], the difference of the logits behind a prompt."""
    model.eval()
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    found = np.empty(len(encoded))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        prompts, yes, no = zip(*(encoded[i] for i in places), strict=True)
        ids, real = side_by_side(list(prompts), codec.pad, model.device)
        keep = real & ~F.pad(real[:, 1:], (0, 1))
        logits = next_logits(model, ids, real, keep)
        row = torch.arange(len(places))
        found[places] = (logits[row, list(yes)] - logits[row, list(no)]).cpu().numpy()
    return found


def auc(model, codec, examples, encoded=None):
    """Area under the ROC curve of a model's Yes against No, in [0, 1]."""
    found = scores(model, codec, encoded or encode(examples, codec))
    return float(roc_auc_score([one.label for one in examples], found))


def tune(model, codec, examples, validation, knobs, seed, autocast=False, micro_tokens=0):
    """Rec-tuning: LoRA on the examples, the epoch of the best validation AUC kept.

    Args:
        model: the instruction-tuned model; it is copied.
        examples: the K examples.
        validation: examples that choose the epoch.
        knobs: the ``tallrec`` section of a profile.
        autocast: matrix products of the training in bfloat16.
        micro_tokens: most tokens of one pass (``compute.micro_tokens``); a batch is cut into as
            many as that takes. 0 = one.

    Returns:
        ``(model, rows)``: the PEFT model and one row an epoch (loss, validation AUC).
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 115])
    lora = LoraConfig(
        r=knobs.rank,
        lora_alpha=knobs.alpha,
        lora_dropout=knobs.dropout,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(copy.deepcopy(model), lora)
    adapted = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapted, lr=knobs.learning_rate)
    training, held = encode(examples, codec), encode(validation, codec)
    truth = [one.label for one in validation]
    best, best_state, rows, waited = -1.0, None, [], 0
    for epoch in range(1, knobs.epochs + 1):
        tuned.train()
        losses, order = [], rng.permutation(len(training))
        for start in range(0, len(order), knobs.batch_size):
            places = order[start : start + knobs.batch_size]
            chosen = [(training[i], examples[i].label) for i in places]
            optimizer.zero_grad(set_to_none=True)
            given = tuned, codec, chosen, knobs.train_on_inputs, autocast, micro_tokens
            losses.append(add_gradients(*given))
            torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            optimizer.step()
        value = float(roc_auc_score(truth, scores(tuned, codec, held)))
        rows.append({"epoch": epoch, "loss": float(np.mean(losses)), "validation AUC": value})
        waited += 1
        if value > best:
            best, waited = value, 0
            best_state = {k: v.clone() for k, v in tuned.state_dict().items() if "lora_" in k}
        if waited >= knobs.patience:
            break
    tuned.load_state_dict(best_state, strict=False)
    return tuned.eval(), rows


def add_gradients(model, codec, chosen, train_on_inputs, autocast=False, micro_tokens=0):
    """Add the gradient of the mean loss of a batch; returns that loss.

    Args:
        chosen: pairs of what ``encode`` returns of an example, and its label.
        train_on_inputs, autocast, micro_tokens: as for ``tune``.
    """
    rows = [[*prompt, yes if label else no] for (prompt, yes, no), label in chosen]
    pieces, counts, total = share([len(row) for row in rows], micro_tokens), None, 0.0
    if len(pieces) == 1:
        pieces = [range(len(rows))]  # in the order of the batch
    else:
        counts = sum(len(row) - 1 for row in rows) if train_on_inputs else len(rows), 0
    for piece in pieces:
        part = [rows[i] for i in piece]
        loss = _loss(model, codec, part, train_on_inputs, autocast, counts)
        loss.backward()
        total += loss.item()
    return total


def _loss(model, codec, rows, train_on_inputs, autocast, counts):
    ids, real = side_by_side(rows, codec.pad, model.device)
    following = F.pad(real[:, 1:], (0, 1))
    keep = following if train_on_inputs else following & ~F.pad(real[:, 2:], (0, 2))
    places = keep.nonzero() + torch.tensor([0, 1], device=keep.device)
    fast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=autocast)
    with fast, uncast_lora(model, autocast):
        logits = next_logits(model, ids, real, keep)
    return next_token_loss(logits, ids, places, counts=counts)


class Sequential(torch.nn.Module):
    """A sequential recommender on the same K examples: state of the liked titles times the target.

    Args:
        kind: "gru4rec", "caser" (convolutions over the last titles) or "sasrec" (self-attention).
        items: number of items, ids from 1.
        width: size of the vectors.
        length: liked titles that are read, the latest ones.
    """

    def __init__(self, kind, items, width=32, length=10):
        super().__init__()
        self.kind, self.length = kind, length
        self.item = torch.nn.Embedding(items + 1, width, padding_idx=0)
        self.target = torch.nn.Embedding(items + 1, width, padding_idx=0)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        if kind == "gru4rec":
            self.body = torch.nn.GRU(width, width, batch_first=True)
        elif kind == "caser":
            self.across = torch.nn.ModuleList(
                torch.nn.Conv2d(1, 4, (height, width)) for height in (2, 3, 4)
            )
            self.down = torch.nn.Conv2d(1, 2, (length, 1))
            self.out = torch.nn.Linear(3 * 4 + 2 * width, width)
        elif kind == "sasrec":
            self.position = torch.nn.Embedding(length, width)
            self.body = torch.nn.TransformerEncoderLayer(
                width, 2, 2 * width, dropout=0.1, batch_first=True
            )
        else:
            raise RecnbError(f"no sequential baseline {kind!r}: gru4rec, caser or sasrec")

    def forward(self, liked, target):
        """liked int [B, length] (0 = padding, left), target int [B] -> logits of a like [B]."""
        x = self.item(liked)
        if self.kind == "gru4rec":
            state = self.body(x)[0][:, -1]
        elif self.kind == "caser":
            wide = x[:, None]
            across = [F.relu(conv(wide)).squeeze(3).amax(2) for conv in self.across]
            state = F.relu(self.out(torch.cat([*across, self.down(wide).flatten(1)], 1)))
        else:
            hidden = liked.eq(0)
            # a user who likes nothing yet has nothing but padding: attend to one of it
            hidden[:, -1] = False
            state = self.body(x + self.position.weight, src_key_padding_mask=hidden)[:, -1]
        return (state * self.target(target)).sum(1) + self.bias


def sequential_auc(kind, examples, validation, test, items, seed, epochs=60, patience=10):
    """Test AUC of a sequential baseline on the same examples, its epoch chosen on validation."""
    torch.manual_seed(seed)
    model = Sequential(kind, items)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=1e-4)
    liked, target, label = _tensors(examples, model.length)
    held = [_tensors(part, model.length) for part in (validation, test)]
    best, kept, waited = -1.0, 0.5, 0
    for _ in range(epochs):
        model.train()
        loss = F.binary_cross_entropy_with_logits(model(liked, target), label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            value, found = (float(roc_auc_score(truth, model(*asked))) for *asked, truth in held)
        waited += 1
        if value > best:
            best, kept, waited = value, found, 0
        if waited >= patience:
            break
    return kept


def _tensors(examples, length):
    liked = torch.zeros(len(examples), length, dtype=torch.long)
    for row, one in enumerate(examples):
        last = one.liked[-length:]
        if last:
            liked[row, -len(last) :] = torch.tensor(last)
    target = torch.tensor([one.target for one in examples])
    return liked, target, torch.tensor([float(one.label) for one in examples])


def popularity_auc(examples, test):
    """Test AUC of "how many of the K examples' likes is the target": all that a count can say."""
    counts = {}
    for one in examples:
        likes = [*one.liked, one.target] if one.label else one.liked
        for item in likes:
            counts[item] = counts.get(item, 0) + 1
    found = [counts.get(one.target, 0) for one in test]
    return float(roc_auc_score([one.label for one in test], found))


CARRIED = "tallrec, carried over"
"""The transfer: a model tuned on the run's own data answers about Book-Crossing."""
NOTES = {
    "untuned": "the model before any example",
    "in context": "nothing is trained: so many solved examples stand in the prompt",
    CARRIED: "tuned on the run's own examples, at the largest K and the last draw",
}


def held_examples(parts, knobs, seed):
    """The validation and the test examples that ``few_shot`` asks, up to ``tallrec.held`` each."""
    rng, chosen = np.random.default_rng([seed, 117]), []
    for part in parts[1:]:
        drawn = rng.permutation(len(part))[: knobs.held]
        chosen.append([part[i] for i in np.sort(drawn)])
    return chosen


def few_shot(
    model,
    codec,
    parts,
    items,
    knobs,
    seed,
    progress=lambda done, of: None,
    autocast=False,
    micro_tokens=0,
):
    """The whole comparison on one domain: every system at every K, over several draws of examples.

    Args:
        model: the instruction-tuned model.
        parts: training, validation and test examples.
        items: number of items, or 0 for TALLRec's own files, which name no ids: then there are no
            sequential baselines.
        knobs: the ``tallrec`` section of a profile.
        autocast, micro_tokens: as for ``tune``.

    Returns:
        ``(DataFrame system, shots, seed, AUC, last tuned model)``; "untuned" is the model before
        rec-tuning, "in context" the same one with solved examples in its prompt.
    """
    training, (validation, test) = parts[0], held_examples(parts, knobs, seed)
    for name, part in (("validation", validation), ("test", test)):
        if len({one.label for one in part}) < 2:
            raise RecnbError(
                f"TALLRec's {name} examples ({len(part)}) are all alike: AUC needs likes and "
                "dislikes (tallrec.held)"
            )
    if max(knobs.shots) > len(training):
        raise RecnbError(
            f"tallrec.shots: {max(knobs.shots)} examples asked for, the training set has "
            f"{len(training)}"
        )
    encoded = encode(test, codec)
    rows = [("untuned", 0, 0, auc(model, codec, test, encoded))]
    for draw in knobs.seeds if knobs.in_context else []:
        rng = np.random.default_rng([seed, 121, draw])
        chosen = rng.choice(len(training), min(knobs.in_context, len(training)), replace=False)
        shown = encode(test, codec, solved([training[i] for i in chosen]))
        rows.append(("in context", len(chosen), draw, auc(model, codec, test, shown)))
    total, done, tuned = len(knobs.shots) * len(knobs.seeds), 0, None
    for shots in knobs.shots:
        for draw in knobs.seeds:
            rng = np.random.default_rng([seed, 116, draw, shots])
            chosen = rng.choice(len(training), shots, replace=False)
            examples = [training[i] for i in chosen]
            if items:
                rows.append(("popularity", shots, draw, popularity_auc(examples, test)))
                for kind in ("gru4rec", "caser", "sasrec"):
                    value = sequential_auc(kind, examples, validation, test, items, draw)
                    rows.append((kind, shots, draw, value))
            given = model, codec, examples, validation, knobs, draw
            tuned, _ = tune(*given, autocast, micro_tokens)
            rows.append(("tallrec", shots, draw, auc(tuned, codec, test, encoded)))
            done += 1
            progress(done, total)
    return pd.DataFrame(rows, columns=["system", "shots", "seed", "AUC"]), tuned


def table(results, missing, reported):
    """Mean and standard deviation of the AUC over draws, in %, beside TALLRec's reported numbers.

    Args:
        results: ``{domain: DataFrame of few_shot}``; a domain is the word for the run's items, or
            ``BOOKS``.
        missing: ``{domain: reason}`` of the domains that were not run.
        reported: the ``tallrec`` part of ``paper.yaml``.

    Returns:
        DataFrame system, domain, a column for each number of examples, note: why a row has empty
        cells.
    """
    rows = []
    for domain, frame in results.items():
        for system, group in frame.groupby("system", sort=False):
            note = NOTES.get(system, "learns from examples: nothing at 0")
            row = {"system": system, "domain": domain, "note": note}
            for shots, values in group.groupby("shots")["AUC"]:
                spread = f" ± {100 * values.std():.2f}" if len(values) > 1 else ""
                row[str(shots)] = f"{100 * values.mean():.2f}{spread}"
            rows.append(row)
    for domain, reason in missing.items():
        rows.append({"system": "tallrec", "domain": domain, "note": f"not run: {reason}"})
    note = "reported, for these numbers of examples"
    asked = {**results, **missing}
    for domain in (MOVIES, BOOKS) if BOOKS in asked else (MOVIES,):
        for system, numbers in reported[domain].items():
            row = {"system": f"{system} (paper)", "domain": domain, "note": note}
            for shots, value in zip(reported["shots"], numbers, strict=True):
                row[str(shots)] = f"{value:.2f}"
            rows.append(row)
    frame = pd.DataFrame(rows).fillna("")
    shots = sorted((c for c in frame.columns if c.isdigit()), key=int)
    return frame[["system", "domain", *shots, "note"]]
