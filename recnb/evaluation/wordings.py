"""The same wishes in words that were never trained, and with the slips that people make.

A model is trained and tested on one set of sentences (``recnb/controls.py``). Whether it hears the
wish or knows the sentence, only other sentences can tell: ``wordings.yaml`` holds 22 a control, and
``CHANGES`` alters the trained ones. With ``evaluation.other_languages`` the wish also comes in
German, Spanish and French, which is counted apart. User, category, k and history stay those of the
evaluation.

What a mini model can make of unknown words: its tokenizer is byte-level, so there is no unknown
token; a word without a token of its own becomes pieces, down to single bytes. But a trained
sentence is two or three tokens, and the words of other sentences are tokens that stand in no
trained wish: of the tokens of all paraphrases, category names included, 16 % stand in any
instruction of the laptop profile's training (65 % with ``instructions.wordings: varied``). From
its conversations (I4) the model has met 99.9 % of them. ``familiar_share`` counts this.
"""

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from recnb import RecnbError
from recnb.artifacts import write_csv
from recnb.evaluation.metrics import bootstrap_interval, on_grid
from recnb.evaluation.protocol import answer_all, per_user, stored_requests
from recnb.evaluation.tables import LESS_IS_BETTER, write_frame
from recnb.instructions.templates import fill, template_of
from recnb.lm.recommender import wording_rng
from recnb.progress import Progress

SYSTEMS = ["base", "v2", "full"]
"""Who is asked, in free decoding: an automaton would not need to hear anything."""
CONTROLS = {
    "I1+": "include",
    "I1-": "exclude",
    "I2<=20": "at most",
    "I2~30": "about",
    "I2>=30": "at least",
}
"""Task of the evaluation -> its wish, as ``wordings.yaml`` calls it."""
METRICS = ["TCP", "CPA", "Strict"]
SPELLED = {2: "two", 3: "three", 7: "seven", 8: "eight", 20: "twenty", 30: "thirty"}
FRACTIONS = {20: "a fifth", 30: "three tenths"}
PLACE = "Here are user's historical interactions: {history}, and user's intention: {intention}."
"""Where the wish stands in the paper's instruction."""
OFF = "Other wordings were not asked: evaluation.wordings is false in this profile."
LEGEND = (
    "A wording is told from no wish where the 95 % interval of the difference between a user's "
    "list with it and the same user's list without a wish leaves 0 out on the side that was asked "
    "for; on the other side it is taken for the opposite."
)


UNHEARD = {"not told": "not told from no wish either", "opposite": "taken for the opposite, too"}
"""What is said of trained words with these verdicts."""


@lru_cache
def _file():
    text = (Path(__file__).parent / "wordings.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def paraphrases():
    """``{control: [sentence with slots]}``, as ``wordings.yaml`` holds them."""
    return {control: _file()[control] for control in CONTROLS.values()}


def translations():
    """``{control: {language: [sentence with slots]}}``: the wish in another language."""
    return _file()["other languages"]


def spoken(sentence, control, k, noun):
    """A paraphrase with its slots filled.

    Raises:
        RecnbError: a share of k for which the kit has no words.
    """
    slots = {"category": control.category, "noun": noun, "nouns": plural(noun), "k": k}
    if hasattr(control, "share"):
        percent, count = control.share * 100, control.share * k
        if percent not in FRACTIONS or count.denominator != 1 or count not in SPELLED:
            raise RecnbError(f"wordings.yaml: no words for {float(percent):g} % of {k} items")
        slots |= {"percent": percent, "tens": SPELLED[percent], "fraction": FRACTIONS[percent]}
        slots |= {"count": count, "number": SPELLED[count], "rest": k - count}
        slots["tenths"] = SPELLED[percent / 10]
    return sentence.format(**slots)


def plural(noun):
    """More than one of a noun: movies, stories, boxes."""
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search(r"(s|x|z|ch|sh)$", noun) else "s")


def typo(word, rng):
    """The word with one letter doubled, left out or swapped with the next one."""
    slips = {word[:i] + word[i] + word[i:] for i in range(len(word))}
    slips |= {word[:i] + word[i + 1 :] for i in range(len(word))}
    slips |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    return str(rng.choice(sorted(slips - {word, ""})))


def typo_in_a_word(template, wish, rng):
    """One slip, in a word of at least four letters that is not the category."""
    places = [m.span() for m in re.finditer(r"(?<![{\w])[A-Za-z]{4,}(?![}\w])", wish)]
    start, end = places[rng.integers(len(places))]
    return template, wish[:start] + typo(wish[start:end], rng) + wish[end:], str


def typo_in_the_category(template, wish, rng):
    """One slip, in the category."""
    return template, wish, lambda name: typo(name, rng)


def small_letters(template, wish, rng):
    """The category in lower case."""
    return template, wish, str.lower


def capital_letters(template, wish, rng):
    """The category in upper case."""
    return template, wish, str.upper


def no_quotation_marks(template, wish, rng):
    """The category without its quotation marks."""
    return template, wish.replace("'{category}'", "{category}"), str


def no_punctuation(template, wish, rng):
    """The whole prompt without punctuation, but for the titles and what stands between them."""
    return re.sub("[.,:']", "", template), re.sub("[.,:']", "", wish), str


def wish_first(template, wish, rng):
    """The wish before the history."""
    moved = "Here is user's intention: {intention}, and user's historical interactions: {history}."
    return template.replace(PLACE, moved), wish, str


def wish_last(template, wish, rng):
    """The wish at the very end, behind the number of items."""
    moved = template.replace(PLACE, "Here are user's historical interactions: {history}.")
    return f"{moved} Here is user's intention: {{intention}}.", wish, str


CHANGES = {
    "a typo in a word": typo_in_a_word,
    "a typo in the category": typo_in_the_category,
    "category in lower case": small_letters,
    "category in upper case": capital_letters,
    "no quotation marks": no_quotation_marks,
    "no punctuation": no_punctuation,
    "wish before the history": wish_first,
    "wish at the end": wish_last,
}
"""What is done to the trained prompt. Each takes its template, its wish with ``{category}`` as a
slot, and a generator; each returns template, wish and what to do to the category's name."""


def changed_prompt(change, request, catalog, seed):
    """A request's trained prompt with one of ``CHANGES``; None if that leaves it as it is."""
    name = request.control.category
    slotted = replace(request.control, category="{category}")
    template = template_of(slotted, request.history)
    wish = slotted.intention(wording_rng(request, seed))  # the sentence that the evaluation drew
    rng = np.random.default_rng([seed, 121, request.user, list(CHANGES).index(change)])
    prompts = []
    for words, sentence, of_name in [(template, wish, str), CHANGES[change](template, wish, rng)]:
        intention = sentence.replace("{category}", of_name(name))
        prompts.append(fill(words, intention, request.history, request.k, catalog))
    return prompts[1] if prompts[1] != prompts[0] else None


def worded_requests(requests, catalog, noun, users, seed, languages=False):
    """The single wishes of the evaluation in other words.

    Args:
        requests: from ``protocol.request_sets``.
        noun: what an item is called (``data.item_noun``).
        users: how many of each task's users are asked, the same for all wordings.
        languages: also in other languages.

    Returns:
        ``{"task|kind|wording": [Request]}``; kind is "paraphrase", "change" or "language", whose
        wording begins with the language's name.
    """
    order = np.random.default_rng([seed, 120]).permutation([r.user for r in requests["I0"]])
    worded = {}
    for task, name in CONTROLS.items():
        of_user = {r.user: r for r in requests[task]}
        chosen = sorted([int(u) for u in order if u in of_user][:users])
        asked = [of_user[user] for user in chosen]
        sentences = {f"paraphrase|{sentence}": sentence for sentence in paraphrases()[name]}
        for language, own in translations()[name].items() if languages else ():
            sentences |= {f"language|{language}: {sentence}": sentence for sentence in own}
        for wording, sentence in sentences.items():
            group = []
            for r in asked:
                wish = spoken(sentence, r.control, r.k, noun)
                template = template_of(r.control, r.history)
                prompt = fill(template, wish, r.history, r.k, catalog)
                group.append(replace(r, prompt=prompt))
            worded[f"{task}|{wording}"] = group
        for change in CHANGES:
            prompts = [changed_prompt(change, r, catalog, seed) for r in asked]
            group = [replace(r, prompt=p) for r, p in zip(asked, prompts, strict=True) if p]
            if group:
                worded[f"{task}|change|{change}"] = group
    return worded


def ask(stage, systems, requests, folder, catalog, together=None):
    """Let ``SYSTEMS`` answer the wishes in other words; answers are stored like all others.

    Args:
        stage: the evaluation's ``Stage``.
        systems: ``{name: {decoding: system}}``.
        requests: from ``protocol.request_sets``.
        folder: the answers' folder; they go into ``wordings`` there.
        together: called first with requests, folder and ``{name: decodings}``, for several
            processes (``recnb.evaluation.together.answer_together``).
    """
    knobs, seed = stage.profile.evaluation, stage.profile.seed
    noun = stage.profile.data.item_noun
    users, languages = knobs.wording_users, knobs.other_languages
    worded = worded_requests(requests, catalog, noun, users, seed, languages)
    if together:
        together(worded, folder / "wordings", {name: ["free"] for name in SYSTEMS})
    for name in SYSTEMS:
        way = {"free": systems[name]["free"]}
        progress = Progress(stage, f"{name}, other wordings")
        answer_all(way, worded, folder / "wordings", name, progress)


def levels(folder, histories, catalog, data_knobs, knobs, seed):
    """What every wording comes to, from the stored answers alone.

    Args:
        folder: the answers' folder, after ``ask``.
        knobs: the ``evaluation`` section of a profile.

    Returns:
        DataFrame system, task, kind (trained, paraphrase, change, language), wording, metric; value
        with its interval over users (low, high) and their number n; without, the same users' level
        without a wish; difference with its interval; and verdict: heard, not told, or opposite.
    """
    rows = []
    for system in SYSTEMS:
        values = _values(folder, system, histories, catalog, data_knobs, knobs.split)
        for (task, metric), group in values.groupby(["task", "metric"], sort=False):
            name, kind, wording = (*task.split("|", 2), "trained", "")[:3]
            less = (name, metric) in LESS_IS_BETTER
            measured = _measured(group, less, knobs.bootstrap, seed)
            rows.append((system, name, kind, wording, metric, *measured))
    columns = "system task kind wording metric value low high n".split()
    columns += "without difference difference_low difference_high verdict".split()
    return pd.DataFrame(rows, columns=columns)


def _values(folder, system, histories, catalog, data_knobs, split):
    """One system's values with and without a wish: DataFrame task, metric, value, without."""
    plain = pd.read_parquet(folder / f"{system}-free.parquet")
    path = folder / "wordings" / f"{system}-free.parquet"
    if not path.is_file():
        raise RecnbError(f"{path} does not exist: run notebook 06_evaluation again")
    worded = pd.read_parquet(path)
    asked = set(zip(worded["task"].str.split("|").str[0], worded["user"], strict=True))
    trained = [key in asked for key in zip(plain["task"], plain["user"], strict=True)]
    used = pd.concat([plain[plain["task"] == "I0"], plain[trained], worded], ignore_index=True)
    values = per_user(used, stored_requests(used, histories, data_knobs, split), catalog)
    table = values[values["task"] != "I0"].pivot(index=["task", "user"], columns="metric")["value"]
    parts = []
    for metric in [m for m in METRICS if m in table]:
        part = table[[metric, f"{metric} without control"]].dropna()
        part = part.set_axis(["value", "without"], axis=1).reset_index()
        parts.append(part.assign(metric=metric))
    order = {task: place for place, task in enumerate(used["task"].drop_duplicates())}
    return pd.concat(parts).sort_values("task", key=lambda tasks: tasks.map(order), kind="stable")


def _measured(group, less, resamples, seed):
    value, without = group["value"].to_numpy(), group["without"].to_numpy()
    interval = bootstrap_interval(value, resamples, seed)
    low, high = bootstrap_interval(value - without, resamples, seed)
    worst, best = (-high, -low) if less else (low, high)
    verdict = "heard" if worst > 0 else "opposite" if best < 0 else "not told"
    means = [float(on_grid(numbers).mean()) for numbers in (value, without, value - without)]
    return means[0], *interval, len(value), *means[1:], low, high, verdict


def table(each):
    """``levels`` as the table ``wording``: one row a system, wish and metric, values in %.

    Best and worst are the paraphrases by their value; equal ones in the order of the file.
    """
    rows = []
    for (system, task, metric), group in each.groupby(["system", "task", "metric"], sort=False):
        trained, other, best, worst = _parts(group)
        row = {
            "system": system,
            "wish": f"{task} ({CONTROLS[task]})",
            "metric": metric,
            "without a wish": _percent(trained.without),
            "trained wording": _percent(trained.value),
            "paraphrases": _spread(other["value"]),
            "told from no wish": _count(other, "heard"),
            "taken for the opposite": _count(other, "opposite"),
            "best": f'"{best.wording}" {_percent(best.value)}',
            "worst": f'"{worst.wording}" {_percent(worst.value)}',
        }
        values = group[group["kind"] == "change"].set_index("wording")["value"]
        row |= {c: _percent(values[c]) if c in values else "" for c in CHANGES}
        translated = group[group["kind"] == "language"]
        row |= {f"in {name}": _spread(own["value"]) for name, own in _by_language(translated)}
        if len(translated):
            row["other languages told from no wish"] = _count(translated, "heard")
            row["other languages taken for the opposite"] = _count(translated, "opposite")
        rows.append(row)
    return pd.DataFrame(rows)


def sentences(each):
    """What the numbers say of each system and wish, by the paper's metric and by ``Strict``."""
    lines = [LEGEND]
    for (system, task), both in each.groupby(["system", "task"], sort=False):
        group = both[both["metric"] != "Strict"]
        trained, other, best, worst = _parts(group)
        line = (
            f"{system}, {CONTROLS[task]} ({trained.metric}, {trained.n} users): "
            f"{_percent(trained.without)} % without a wish, {_percent(trained.value)} % in the "
            f"trained words, {_spread(other['value'])} % in {len(other)} others. Of these, "
            f"{(other['verdict'] == 'heard').sum()} are told from no wish and "
            f"{(other['verdict'] == 'opposite').sum()} are taken for the opposite."
        )
        if best.value != worst.value:
            line += (
                f' Best: "{best.wording}" ({_percent(best.value)} %), '
                f'worst: "{worst.wording}" ({_percent(worst.value)} %).'
            )
        changes = group[group["kind"] == "change"]
        lost = changes[changes["verdict"] != "heard"]["wording"].tolist()
        if trained.verdict != "heard":
            line += f" The trained words: {UNHEARD[trained.verdict]}."
        elif lost:
            line += f" The trained words are no longer told from no wish with: {', '.join(lost)}."
        translated = group[group["kind"] == "language"]
        if len(translated):
            each_language = [
                f"{_spread(own['value'])} % in {n}" for n, own in _by_language(translated)
            ]
            line += (
                f" In other languages: {', '.join(each_language)}; of these {len(translated)}, "
                f"{(translated['verdict'] == 'heard').sum()} are told from no wish and "
                f"{(translated['verdict'] == 'opposite').sum()} are taken for the opposite."
            )
        whole, others, _, _ = _parts(both[both["metric"] == "Strict"])
        line += (
            f" Whole answers as asked (Strict): {_percent(whole.value)} % in the trained words, "
            f"{_spread(others['value'])} % in the others."
        )
        lines.append(line)
    return lines


def _parts(group):
    """Of one system, wish and metric: the trained row, the paraphrases, best and worst of these."""
    trained = next(group[group["kind"] == "trained"].itertuples())
    other = group[group["kind"] == "paraphrase"]
    less = (trained.task, trained.metric) in LESS_IS_BETTER
    ranked = other.sort_values("value", ascending=less, kind="stable")
    best = next(ranked.itertuples())
    worst = next(ranked[ranked["value"] == ranked["value"].iloc[-1]].itertuples())
    return trained, other, best, worst


def _by_language(rows):
    """``(language, its rows)`` of the wordings in other languages, in the order of the file."""
    return rows.groupby(rows["wording"].str.split(":").str[0], sort=False)


def _percent(value):
    return f"{100 * value:.1f}"


def _spread(values):
    """The mean and the range."""
    low, high = _percent(values.min()), _percent(values.max())
    return f"{_percent(on_grid(values).mean())} ({low} to {high})"


def _count(rows, verdict):
    return f"{(rows['verdict'] == verdict).sum()} of {len(rows)}"


def write_wordings(folder, histories, catalog, profile, tables):
    """The table ``wording`` and ``wording_each.csv`` (every wording) from stored answers.

    Returns:
        ``(each, table, sentences)``.
    """
    each = levels(folder, histories, catalog, profile.data, profile.evaluation, profile.seed)
    made = table(each)
    write_frame(made, tables, "wording")
    write_csv(each, tables / "wording_each.csv", 6)
    return each, made, sentences(each)


SLOT = re.compile(r"\{\w*\}|\d+")
NOUNS = {"{noun}", "{nouns}", "item", "items", "product", "products", "title", "titles"}


def plain_words(sentence):
    """A sentence's words without case, punctuation and percent signs; slots as CATEGORY, NOUN, N.

    Two sentences with the same plain words are the same wording.
    """
    words = []
    text = re.sub(r"(?<!\{)\bper ?cent\b", " ", sentence.casefold())
    for word in re.findall(r"\{\w*\}|[\w']+", text):
        word = word if word in NOUNS else word.strip("'")
        if word in ("{category}", "{}"):
            words.append("CATEGORY")
        elif word in NOUNS:
            words.append("NOUN")
        elif SLOT.fullmatch(word):
            words.append("N")
        elif word:
            words.append(word)
    return words


def longest_shared_run(sentence, others):
    """Most words in a row that a sentence has in common with one of others, and that one."""
    own, longest, where = plain_words(sentence), 0, None
    for other in others:
        text = f" {' '.join(plain_words(other))} "
        while any(
            f" {' '.join(own[i : i + longest + 1])} " in text for i in range(len(own) - longest)
        ):
            longest, where = longest + 1, other
    return longest, where


def familiar_share(codec, texts, trained):
    """Share of the texts' tokens that stand anywhere in the trained texts."""
    known, tokens = set(), []
    for text in trained:
        known.update(codec.tokenizer(text, add_special_tokens=False)["input_ids"])
    for text in texts:
        tokens += codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    return sum(token in known for token in tokens) / len(tokens)
