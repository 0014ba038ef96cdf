"""Can the tuned model still talk? Perplexity on unseen conversations, MMLU, GSM8K; I4's share."""

import csv
import json
import tempfile
from pathlib import Path

import lm_eval
import numpy as np
import pandas as pd
import torch
import yaml
from datasets import Dataset
from lm_eval.models.huggingface import HFLM

from recnb import RecnbError
from recnb.engine.packed import next_logits, side_by_side
from recnb.evaluation.tables import reported
from recnb.instructions.chat_mix import conversations
from recnb.lm.loading import load_adapted, load_base
from recnb.machine import autocast
from recnb.sft import train_sft

MMLU_SHOTS, GSM8K_SHOTS = 5, 8


def heldout_chat(train, dataset, words, count, seed):
    """Conversations that are not among the training samples.

    I4 may have used every one of its length, so these may be twice as long.

    Args:
        train: the instruction set's rows of task I4, columns prompt and completion.
        dataset: name of the profile's dataset.
        words: most words of prompt and answer together in I4.
        count: how many, at most.

    Returns:
        List of pairs (prompt, answer), all different.

    Raises:
        RecnbError: every conversation was used for training.
    """
    known = set(zip(train["prompt"], train["completion"], strict=True))
    rng = np.random.default_rng([seed, 116])
    drawn = conversations(dataset, 2 * words, len(known) + 2 * count, rng)
    fresh = [pair for pair in dict.fromkeys(drawn) if pair not in known][:count]
    if not fresh:
        raise RecnbError(
            "no conversation is left that training did not use: lower instructions.chat_share"
        )
    return fresh


@torch.no_grad()
def chat_losses(model, codec, pairs, batch_size=16, max_tokens=1024):
    """Negative log-likelihood of each answer.

    Args:
        pairs: conversations (prompt, answer).
        max_tokens: longer conversations are cut at their end.

    Returns:
        ``(losses, tokens)``: sum over each answer's tokens, and their number, float arrays; an
        answer that is cut away whole counts no token.
    """
    rows = [(codec.prompt(p), codec.answer(a)) for p, a in pairs]
    losses, tokens = np.zeros(len(rows)), np.zeros(len(rows))
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        whole = [(question + answer)[:max_tokens] for question, answer in part]
        ids, real = side_by_side(whole, codec.pad, model.device)
        place = torch.arange(ids.shape[1], device=ids.device)
        begin = torch.tensor([len(question) for question, _ in part], device=ids.device)[:, None]
        keep = torch.zeros_like(real)  # the place before each token of the answer
        keep[:, :-1] = (real & (place >= begin))[:, 1:]
        found = torch.log_softmax(next_logits(model, ids, real, keep), -1)
        sample, column = keep.nonzero(as_tuple=True)
        nll = -found.gather(1, ids[sample, column + 1][:, None])[:, 0].double().cpu().numpy()
        np.add.at(losses, start + sample.cpu().numpy(), nll)
        np.add.at(tokens, start + sample.cpu().numpy(), 1)
    return losses, tokens


def perplexity(losses, tokens, resamples, seed):
    """exp(mean loss a token) with its 95 % bootstrap interval over conversations."""
    rng = np.random.default_rng([seed, 117])
    drawn = rng.integers(len(losses), size=(resamples, len(losses)))
    values = np.exp(losses[drawn].sum(1) / np.maximum(tokens[drawn].sum(1), 1))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(np.exp(losses.sum() / tokens.sum())), float(low), float(high)


def read_mmlu(folder):
    """MMLU as its authors publish it: ``dev/<subject>_dev.csv`` and ``test/<subject>_test.csv``.

    A row is question, four choices and the answer, as a letter or as 0 to 3; a first row
    "question,..." is a header.

    Returns:
        ``{subject: {"dev": Dataset, "test": Dataset}}``.

    Raises:
        RecnbError: a file is missing or a row has another form, with file and row.
    """
    files = (folder / "test").glob("*_test.csv")
    subjects = sorted(path.name.removesuffix("_test.csv") for path in files)
    if not subjects:
        raise RecnbError(
            f"{folder}/test has no <subject>_test.csv: general_ability.data must be MMLU's and "
            "GSM8K's folder"
        )
    found = {}
    for subject in subjects:
        dev = _mmlu_rows(folder / "dev" / f"{subject}_dev.csv")
        test = _mmlu_rows(folder / "test" / f"{subject}_test.csv")
        found[subject] = {"dev": Dataset.from_list(dev), "test": Dataset.from_list(test)}
    return found


def _mmlu_rows(path):
    letters = {"A": 0, "B": 1, "C": 2, "D": 3, "0": 0, "1": 1, "2": 2, "3": 3}
    rows = []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader, line = csv.reader(file), 1  # as an editor counts: questions have several
            for row in reader:
                header = line == 1 and row[:1] == ["question"]
                if not header and (len(row) != 6 or row[5] not in letters):
                    raise RecnbError(
                        f"{path}, line {line}: expected a question, four choices and an answer A "
                        f"to D or 0 to 3, found {len(row)} cells that end in {row[-1:]}: copy "
                        "MMLU's file anew"
                    )
                if not header:
                    answer = letters[row[5]]
                    rows.append({"question": row[0], "choices": row[1:5], "answer": answer})
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecnbError(
            f"{path} cannot be read ({error}): general_ability.data must be MMLU's and GSM8K's "
            "folder"
        ) from error
    return rows


def read_gsm8k(path):
    """GSM8K's test.jsonl as a Dataset with columns question and answer.

    Raises:
        RecnbError: no such file, or a line without the two, with its number.
    """
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
                rows.append({"question": record["question"], "answer": record["answer"]})
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise RecnbError(
                    f"{path}, line {number}: expected a JSON object with question and answer, "
                    f"found {line[:40]!r}: copy GSM8K's file anew"
                ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecnbError(
            f"{path} cannot be read ({error}): general_ability.data must be MMLU's and GSM8K's "
            "folder"
        ) from error
    return Dataset.from_list(rows)


def refuse_data(folder):
    """Raise before a run, not in its last notebook, where ``general_ability.data`` is no such
    folder; what it must hold: ``harness_tasks``.
    """
    read_mmlu(Path(folder) / "mmlu")
    read_gsm8k(Path(folder) / "gsm8k" / "test.jsonl")


def harness_tasks(data):
    """Tasks in lm-evaluation-harness's own words: MMLU's subjects, GSM8K with chains of thought.

    Args:
        data: "hub", or a folder with ``mmlu/dev``, ``mmlu/test`` and ``gsm8k/test.jsonl``.
    """
    if data == "hub":
        return ["mmlu", "gsm8k_cot"]
    settings = []
    for name in ("mmlu/default/_default_template_yaml", "gsm8k/gsm8k-cot.yaml"):
        words = (Path(lm_eval.__file__).parent / "tasks" / name).read_text(encoding="utf-8")
        settings.append(yaml.safe_load(words) | {"dataset_path": None, "dataset_name": None})
    gsm8k = read_gsm8k(Path(data) / "gsm8k" / "test.jsonl")
    tasks = []
    for subject, splits in read_mmlu(Path(data) / "mmlu").items():
        lead = (
            "The following are multiple choice questions (with answers) about "
            f"{subject.replace('_', ' ')}.\n\n"
        )
        own = {
            "task": f"mmlu_{subject}",
            "description": lead,
            "custom_dataset": lambda found=splits, **_: found,
        }
        tasks.append(settings[0] | own)
    settings[1].pop("tag", None)
    return [*tasks, settings[1] | {"custom_dataset": lambda **_: {"test": gsm8k}}]


def mmlu_gsm8k(model, codec, knobs, seed):
    """5-shot MMLU (mean over all questions) and 8-shot GSM8K (strict match), by the harness.

    Args:
        knobs: the ``general_ability`` section of a profile.

    Returns:
        ``({"MMLU": share, "GSM8K": share, "questions": number}, remark)``, or ``({}, reason)``
        where the data cannot be had.

    Raises:
        RecnbError: a local file is missing or has another form.
    """
    if not knobs.data:
        return {}, "not run: no data named (general_ability.data)"
    room = min(getattr(model.config, "max_position_embeddings", 2048), 4096)
    engine = HFLM(
        pretrained=model, tokenizer=codec.tokenizer, batch_size=knobs.batch_size, max_length=room
    )
    tasks = harness_tasks(knobs.data)
    note = f"prompts longer than {room:,} tokens lose their first examples" if room < 4096 else ""
    settings = {
        "limit": knobs.limit or None,  # questions of a task
        "bootstrap_iters": 0,  # errors of 57 subjects take minutes, and nobody is shown them
        "random_seed": seed,
        "log_samples": False,
    }
    try:
        run = lm_eval.simple_evaluate
        mmlu = run(engine, tasks=tasks[:-1], num_fewshot=MMLU_SHOTS, **settings)
        gsm8k = run(engine, tasks=tasks[-1:], num_fewshot=GSM8K_SHOTS, **settings)
    except OSError as error:  # ConnectionError is one too
        if knobs.data != "hub":
            raise
        return {}, f"not run: the Hub is out of reach ({type(error).__name__}: {str(error)[:200]})"
    subjects = {name: number["effective"] for name, number in mmlu["n-samples"].items()}
    questions = sum(subjects.values())
    right = sum(mmlu["results"][name]["acc,none"] * n for name, n in subjects.items())
    found = {
        "MMLU": right / questions,
        "GSM8K": gsm8k["results"]["gsm8k_cot"]["exact_match,strict-match"],
        "questions": questions + gsm8k["n-samples"]["gsm8k_cot"]["effective"],
    }
    return found, note


def measure(name, model, codec, pairs, knobs, seed):
    """Everything about one model, as a row of ``table``."""
    value, low, high = perplexity(*chat_losses(model, codec, pairs), 1000, seed)
    found, note = mmlu_gsm8k(model, codec, knobs, seed)
    return {"system": name, "perplexity": value, "low": low, "high": high, "note": note} | found


def shares_of(frame, shares):
    """Those of the shares of I4 that an instruction set allows, and a sentence if it is not all."""
    if (frame["task"] == "I4").any() or not any(shares):
        return shares, ""
    left = [share for share in shares if share == 0]
    return left, (
        "the instructions hold no conversations (instructions.chat_share is 0): "
        "general_ability.shares above 0 are left out"
    )


def share_sweep(
    base, train, validation, pairs, titles, profile, shares, progress=lambda done, of: None
):
    """Small SL stages that differ in their share of I4 alone: same base, size and settings.

    Args:
        base: folder or Hub id of the base.
        train, validation: the instruction sets.
        pairs: unseen conversations.
        titles: from ``title_tokens``.
        profile: ``Profile``; its sft section trains, its general_ability section names the size.
        shares: of I4, one SL stage each.

    Returns:
        List of rows like those of ``measure``, with share, and loss: that of the validation lists.
    """
    knobs, seed, rows = profile.general_ability, profile.seed, []
    sft, dtype, fast = profile.sft, profile.model.dtype, autocast(profile.model)
    for share in shares:
        model, codec = load_base(base, dtype)
        frame = share_of_chat(train, share, knobs.samples, seed)
        with tempfile.TemporaryDirectory() as folder:
            given = model, codec, frame, validation, titles, sft, seed, folder
            _, log = train_sft(*given, autocast=fast, compute=profile.compute)
            tuned, codec = load_adapted(base, [Path(folder) / "adapter"], dtype)
        loss = [row["eval_loss"] for row in log if "eval_loss" in row][-1]
        found = measure(f"I4 {share:.0%}", tuned, codec, pairs, knobs, seed)
        rows.append(found | {"share": share, "loss": loss})
        progress(len(rows), len(shares))
    return rows


def table(rows):
    """The table of general ability, the paper's reported rows below ours.

    Args:
        rows: list of dicts with system, perplexity, low, high, MMLU, GSM8K (None = not run) and
            note.

    Returns:
        DataFrame system, dataset, chat perplexity, MMLU, GSM8K, note; text cells, the two in %.
    """

    def share(value):
        return "" if value is None else f"{100 * value:.2f}"

    cells = []
    for r in rows:
        value = f"{r['perplexity']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        shares = [share(r.get(name)) for name in ("MMLU", "GSM8K")]
        cells.append((r["system"], "this run", value, *shares, r["note"]))
    paper = reported()["table5"]
    for dataset in ("Movie", "Steam"):
        for system, numbers in paper[dataset].items():
            values = dict(zip(paper["columns"], numbers, strict=True))
            note = "reported"
            if values["MMLU"] is None:
                note = "the paper has none: its inputs end at 512 tokens"
            shares = [share(values[name]) for name in ("MMLU", "GSM8K")]
            cells.append((f"{system} (paper)", dataset, "", *shares, note))
    columns = ["system", "dataset", "chat perplexity", "MMLU", "GSM8K", "note"]
    return pd.DataFrame(cells, columns=columns)


def share_of_chat(frame, share, count, seed):
    """A smaller instruction set with another share of I4, drawn from a large one.

    Args:
        frame: the training set, with columns task, prompt and completion.
        share: I4's share.
        count: number of samples in all; conversations come again where the set has too few.
    """
    rng = np.random.default_rng([seed, 118])
    chat, lists = np.flatnonzero(frame["task"] == "I4"), np.flatnonzero(frame["task"] != "I4")
    wanted = round(count * share)
    if wanted and not len(chat):
        raise RecnbError(
            f"general_ability.shares asks for {share:.0%} of conversations, but the instruction "
            "set has none (instructions.chat_share is 0): raise that, or set shares to [0]"
        )
    if count - wanted > len(lists):
        raise RecnbError(
            f"general_ability.samples ({count}) at a share of {share:.0%} asks for "
            f"{count - wanted} lists, the instruction set has {len(lists)}: lower it, or raise "
            "instructions.sequential, .category or .proportion"
        )
    talk = np.resize(rng.permutation(chat), wanted) if wanted else np.empty(0, dtype=int)
    picked = rng.choice(lists, size=count - wanted, replace=False)
    return frame.iloc[rng.permutation(np.concatenate([talk, picked]))].reset_index(drop=True)
