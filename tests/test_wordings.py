"""The wishes in other words: what they are, that nothing trained holds them, and their table."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from recnb import RecnbError, plots
from recnb.artifacts import Reader, Stage
from recnb.catalog import Catalog
from recnb.controls import DISLIKE, LIKE, About, AtLeast, AtMost, Exclude, Include, Search
from recnb.datasets import build
from recnb.evaluation import wordings
from recnb.evaluation.protocol import Ranker, answer_all, request_sets, stored_requests
from recnb.evaluation.stored import evaluate_run
from recnb.instructions import synthesis
from recnb.instructions.chat_mix import sharegpt
from recnb.instructions.labels import ranked_items
from recnb.instructions.templates import (
    ALL,
    VARIED,
    VARIED_LAYOUTS,
    numbered,
    quoted,
    render,
    varied_intention,
)
from recnb.interactions import Histories
from recnb.lm.recommender import LanguageModelRecommender, request_prompt
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.profile import load, root, save
from recnb.requests import Request, Response
from recnb.teacher.popularity import Popularity
from recnb.teacher.ranking import Teacher
from recnb.teacher.training import untrained

PAPER = [sentence.format("{category}") for sentence in LIKE + DISLIKE]
PAPER += [cls("{category}", "1/5").intention(None) for cls in (AtMost, About, AtLeast)]
TRAINED = [*PAPER, *(s for own in VARIED.values() for s in own), *ALL, *VARIED_LAYOUTS]
HELD_OUT = [s for own in wordings.paraphrases().values() for s in own]


def test_there_are_twenty_paraphrases_a_control_and_each_is_another():
    assert list(wordings.paraphrases()) == list(wordings.CONTROLS.values())
    for control, own in wordings.paraphrases().items():
        assert len(own) >= 20, control
        assert all("{category}" in sentence and "|" not in sentence for sentence in own)
    plain = [tuple(wordings.plain_words(sentence)) for sentence in HELD_OUT]
    assert len(set(plain)) == len(plain)
    assert f"{len(HELD_OUT)} wordings" in (root() / "README.md").read_text()
    assert "holds 22 others" in (root() / "notebooks" / "06_evaluation.ipynb").read_text()
    assert {len(own) for own in wordings.paraphrases().values()} == {22}, "as the notebook says"
    assert any("{noun}" in s for s in HELD_OUT) and any("{nouns}" in s for s in HELD_OUT)


def test_every_share_is_named_and_nothing_else_is():
    for control, own in wordings.paraphrases().items():
        for sentence in own:
            share = re.search(
                r"\{(percent|tens|count|number|tenths|fraction|rest)\}|third", sentence
            )
            assert bool(share) == (control in ("at most", "about", "at least")), sentence


def test_no_paraphrase_shares_four_words_in_a_row_with_a_trained_sentence():
    runs = {s: wordings.longest_shared_run(s, TRAINED) for s in HELD_OUT}
    print("longest shared run:", max(runs.values(), key=lambda run: run[0]))
    assert {s: run for s, run in runs.items() if run[0] > 3} == {}


def test_the_comparison_of_wordings_can_fail():
    """Case, punctuation, quotation marks, percent signs and numbers make no other wording."""
    plain, run = wordings.plain_words, wordings.longest_shared_run
    assert plain("I LIKE {category} {nouns}!") == plain("I like '{}' products")
    assert plain("{category}: {percent} per cent") == plain('"{category}" 20%')
    assert run("oh, i don't like '{category}' items", TRAINED) == (
        5,
        "I don't like '{category}' products",
    )
    assert run("{category} of sorts", ["quite unlike"]) == (0, None)
    share = "Should be more than, or equal to {percent} percent"
    assert run(share, TRAINED)[0] == 8
    assert run("a b c d", ["x b c y", "c d a"])[0] == 2


def test_training_may_use_ten_more_wordings_a_control():
    paper = {tuple(wordings.plain_words(sentence)) for sentence in PAPER}
    seen = set()
    for name, own in VARIED.items():
        assert len(own) >= 10
        plain = {tuple(wordings.plain_words(sentence)) for sentence in own}
        assert len(plain) == len(own) and not plain & paper
        assert not plain & seen or name == "Search"
        seen |= plain
        percent = ["{percent}" in sentence for sentence in own]
        assert all(percent) if name in ("AtMost", "About", "AtLeast") else not any(percent)
    places = [layout.index("{intention}") < layout.index("{history}") for layout in VARIED_LAYOUTS]
    assert set(places) == {True, False}
    assert not {tuple(wordings.plain_words(s)) for s in VARIED_LAYOUTS + ALL} & seen


def test_varied_instructions_use_all_of_them_and_paper_none(world, teacher, smoke):
    catalog, histories = world
    prompts = {}
    for kind in ("paper", "varied"):
        knobs = smoke.instructions.model_copy(update={"wordings": kind})
        rows = synthesis.synthesize(histories, catalog, teacher, knobs, smoke.data, 0)
        prompts[kind] = [row["prompt"] for row in rows if row["task"] not in ("I0", "I4")]
    starts = [
        layout.split("{")[0] or layout.split("}")[1].split("{")[0] for layout in VARIED_LAYOUTS
    ]
    pieces = [re.split(r"\{category\}|\{percent\}", s) for own in VARIED.values() for s in own]
    pieces = [max(parts, key=len) for parts in pieces]
    for piece in starts + pieces:
        assert any(piece in prompt for prompt in prompts["varied"]), piece
    for start in starts:
        assert not any(start in prompt for prompt in prompts["paper"]), start
    assert not any("{" in prompt for prompt in prompts["varied"])
    moved = np.mean([any(start in p for start in starts) for p in prompts["varied"]])
    assert 0.25 < moved < 0.5, "half of the prompts with a history and without candidates"


def test_varied_leaves_what_has_no_wish_and_what_it_has_no_words_for(toy, rng):
    from recnb.controls import AllOf, NoControl

    assert varied_intention(AtMost("A", "1/5"), rng).count("20") == 1
    assert "A" in varied_intention(Search("A"), rng)
    both = AllOf([Include("A"), Exclude("B")])
    assert varied_intention(both, rng) is None
    for seed in range(20):
        generator = np.random.default_rng(seed)
        prompt = render(NoControl(), [1], 2, toy, generator, wordings="varied")
        assert prompt == render(NoControl(), [1], 2, toy, rng)
        prompt = render(both, [1], 2, toy, generator, wordings="varied")
        assert "'A'" in prompt and "'B'" in prompt


@pytest.mark.parametrize(
    "noun, nouns", [("movie", "movies"), ("story", "stories"), ("box", "boxes"), ("toy", "toys")]
)
def test_slots(noun, nouns):
    assert wordings.plural(noun) == nouns
    text = "{category} {noun} {nouns} {k}"
    assert wordings.spoken(text, Include("War"), 10, noun) == f"War {noun} {nouns} 10"
    text = "{percent} {tens} {count} {number} {rest} {tenths} {fraction}"
    spoken = wordings.spoken(text, AtMost("War", "1/5"), 10, noun)
    assert spoken == "20 twenty 2 two 8 two a fifth"
    spoken = wordings.spoken(text, About("War", "3/10"), 10, noun)
    assert spoken == "30 thirty 3 three 7 three three tenths"
    for control, k in [(About("War", "1/2"), 10), (About("War", "3/10"), 5)]:
        with pytest.raises(RecnbError, match="no words for"):
            wordings.spoken(text, control, k, noun)


def test_typos(rng):
    assert {wordings.typo("ab", rng) for _ in range(80)} == {"aab", "abb", "a", "b", "ba"}
    assert wordings.typo("A", rng) == "AA"


@pytest.fixture(scope="module")
def asked(world, teacher, smoke):
    knobs = smoke.evaluation.model_copy(update={"wordings": True, "wording_users": 12})
    requests = request_sets(world[1], world[0], teacher, knobs, smoke.data, 0)
    worded = wordings.worded_requests(requests, world[0], "film", knobs.wording_users, 0)
    return requests, worded, knobs


def test_the_worded_requests_differ_in_words_alone(asked, world):
    requests, worded, knobs = asked
    again = wordings.worded_requests(requests, world[0], "film", knobs.wording_users, 0)
    assert again == worded, "drawn from the seed"
    assert {t.split("|")[0] for t in worded} == set(wordings.CONTROLS)
    for task in wordings.CONTROLS:
        of_user = {r.user: r for r in requests[task]}
        own = {name: group for name, group in worded.items() if name.startswith(f"{task}|")}
        assert len(own) == len(wordings.paraphrases()[wordings.CONTROLS[task]]) + len(
            wordings.CHANGES
        )
        groups = list(own.values())
        for group in groups:
            assert [r.user for r in group] == [r.user for r in groups[0]] and len(group) == 12
            for r in group:
                assert replace(r, prompt=None) == of_user[r.user]
                assert (
                    request_prompt(r, world[0], 0)
                    == r.prompt
                    != request_prompt(of_user[r.user], world[0], 0)
                )


def changed(control, change, catalog, user=3, seed=0):
    request = Request(user, (1,), (1,), control, 10, 2)
    return request_prompt(request, catalog, seed), wordings.changed_prompt(
        change, request, catalog, seed
    )


@pytest.fixture
def shelf():
    return Catalog(["Heat, again", "Babe"], [{"Drama"}, {"Comedy"}])


@pytest.mark.parametrize("control", [Include("Drama"), Exclude("Drama"), About("Drama", "3/10")])
def test_what_each_change_does(control, shelf):
    whole, text = changed(control, "category in lower case", shelf)
    assert text == whole.replace("Drama", "drama")
    whole, text = changed(control, "category in upper case", shelf)
    assert text == whole.replace("Drama", "DRAMA")
    whole, text = changed(control, "no quotation marks", shelf)
    assert text == whole.replace("'Drama'", "Drama")
    whole, text = changed(control, "no punctuation", shelf)
    assert text == re.sub("[.,:']", "", whole).replace("Heat again", "'Heat, again'")
    wish = control.intention(np.random.default_rng([0, 107, 4]))
    for change, later in [("wish before the history", False), ("wish at the end", True)]:
        whole, text = changed(control, change, shelf)
        assert text.count(wish) == 1 and text.count("'Heat, again'") == 1 and "10" in text
        assert (text.index(wish) > text.index("'Heat, again'")) == later
        assert (text.index(wish) > text.index("with 10 different")) == later
    assert text.endswith(f"{wish}.")


@pytest.mark.parametrize("control", [Include("Drama"), Exclude("Drama"), About("Drama", "3/10")])
def test_a_typo_changes_one_word(control, shelf):
    for user in range(12):
        for change in ("a typo in a word", "a typo in the category"):
            whole, text = changed(control, change, shelf, user)
            before, after = whole.split(), text.split()
            slips = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert len(slips) == 1 and abs(len(whole) - len(text)) <= 1
            assert ("Drama" in slips[0][0]) == (change == "a typo in the category")


def test_a_change_that_changes_nothing_is_not_asked():
    plain = Catalog(["Heat", "Babe"], [{"drama"}, {"drama"}])
    assert changed(Include("drama"), "category in lower case", plain)[1] is None


def test_the_words_reach_the_model(language_model, world):
    model, codec = language_model
    read = []

    class Recorder(Codec):
        def prompts(self, texts):
            read.extend(texts)
            return super().prompts(texts)

    system = LanguageModelRecommender(model, Recorder(codec.tokenizer), world[0])
    system.recommend(
        [
            Request(0, (1,), (1,), Include("x"), 1, 2, "no x at all"),
            Request(1, (1,), (1,), Include("x"), 1, 2),
        ]
    )
    assert read[0] == "no x at all" and read[1].startswith("You are an expert")


class Listener:
    """Hears a category, spelled as it is in the catalogue, and lists its unseen items; no more."""

    def __init__(self, teacher, catalog):
        self.teacher, self.catalog = teacher, catalog

    def recommend(self, requests, progress):
        answers = []
        scores = self.teacher.scores([r.seen for r in requests])
        for request, row in zip(requests, scores, strict=True):
            prompt = request_prompt(request, self.catalog, 0)
            prompt = prompt.replace(quoted(request.history, self.catalog), "")
            heard = [
                n for n in self.catalog.names if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", prompt)
            ]
            items = ranked_items(row, request.seen, None)
            if heard:
                inside = self.catalog.mask(heard[0])[items]
                items = np.concatenate([items[inside], items[~inside]])
            text = numbered(items[: request.k], self.catalog)
            answers.append(Response(text))
        return answers


@pytest.fixture(scope="module")
def answered(asked, world, teacher, smoke, tmp_path_factory):
    """base cannot hear, v2 hears the category alone, full is obeyed by code whatever the words."""
    requests, _, knobs = asked
    folder = tmp_path_factory.mktemp("answers")
    systems = {
        "base": {"free": Ranker(teacher, world[0])},
        "v2": {"free": Listener(teacher, world[0])},
        "full": {"free": Ranker(teacher, world[0], obey=True)},
    }
    for name, ways in systems.items():
        answer_all(ways, requests, folder, name)
    profile = smoke.model_copy(update={"evaluation": knobs})
    wordings.ask(Stage("06_evaluation", profile, folder), systems, requests, folder, world[0])
    return folder


def test_the_table_tells_who_hears_what(answered, asked, world, smoke, tmp_path):
    knobs = asked[2]
    profile = smoke.model_copy(update={"evaluation": knobs})
    each, table, lines = wordings.write_wordings(answered, world[1], world[0], profile, tmp_path)
    one = each[(each["system"] == "base") & (each["task"] == "I1+") & (each["metric"] == "TCP")]
    assert one["kind"].value_counts().to_dict() == {"paraphrase": 22, "change": 8, "trained": 1}
    assert (each["n"] == 12).all()
    # who does not listen lists the same with and without a wish
    deaf = each[each["system"] == "base"]
    assert (deaf["value"] == deaf["without"]).all() and (deaf["verdict"] == "not told").all()
    # who hears the category alone includes it whatever the words, and takes "exclude" for "include"
    v2 = each[(each["system"] == "v2") & (each["metric"] == "TCP")]
    misspelled = v2["wording"].isin(
        ["a typo in the category", "category in lower case", "category in upper case"]
    )
    assert (v2[~misspelled & (v2["task"] == "I1+")]["verdict"] == "heard").all()
    assert (v2[~misspelled & (v2["task"] == "I1-")]["verdict"] == "opposite").all()
    assert (v2[misspelled]["value"] == v2[misspelled]["without"]).all()
    assert (v2[misspelled]["verdict"] == "not told").all() and misspelled.sum() == 6
    # who obeys does so in every wording (some users have too few unseen items)
    own = each[(each["system"] == "full") & (each["metric"] != "Strict")]
    assert set(own[own["task"] == "I1-"]["value"]) == {0.0}
    assert (own[own["task"] != "I1-"].groupby("task")["value"].nunique() == 1).all()
    assert set(own[own["task"] == "I1-"]["verdict"]) == {"heard"}
    assert "opposite" not in set(own["verdict"])
    rows = table.set_index(["system", "wish", "metric"])
    row = rows.loc["v2", "I1- (exclude)", "TCP"]
    assert row["told from no wish"] == "0 of 22" and row["taken for the opposite"] == "22 of 22"
    assert row["a typo in the category"] == row["without a wish"] != row["trained wording"]
    assert row["best"].startswith('"no {category} at all"'), "of equal ones the first of the file"
    hand = wordings_by_hand(answered, "v2", "I1-|change|a typo in a word", world[0])
    assert rows.loc["v2", "I1- (exclude)", "TCP"]["a typo in a word"] == f"{100 * hand:.1f}"
    assert {m for _, _, m in rows.index} == {"TCP", "CPA", "Strict"}
    line = next(line for line in lines if line.startswith("v2, exclude (TCP, 12 users)"))
    assert "0 are told from no wish and 22 are taken for the opposite." in line
    assert "The trained words: taken for the opposite, too." in line and "Best" not in line
    line = next(line for line in lines if line.startswith("v2, include"))
    assert "22 are told from no wish" in line and "Strict" in line
    assert "category in lower case" in line.split("no longer told from no wish with: ")[1]
    assert "not told from no wish either" in next(x for x in lines if x.startswith("base, about"))
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"wording_each.csv", *(f"wording.{s}" for s in ("csv", "md", "tex", "html"))}
    assert len(pd.read_csv(tmp_path / "wording_each.csv")) == len(each)
    figure = plots.wordings(each, wordings.CONTROLS)
    dots = [c for c in figure.axes[0].collections if len(c.get_offsets()) == 22]
    assert len(figure.axes) == 5 and len(dots) >= 3


TRANSLATED = [
    (control, language, sentence)
    for control, own in wordings.translations().items()
    for language, sentences in own.items()
    for sentence in sentences
]


def test_wishes_in_other_languages():
    assert list(wordings.translations()) == list(wordings.CONTROLS.values())
    for own in wordings.translations().values():
        assert {language: len(s) for language, s in own.items()} == {
            "German": 2,
            "Spanish": 2,
            "French": 2,
        }
    sentences = [sentence for _, _, sentence in TRANSLATED]
    assert len(set(sentences)) == len(sentences) and not any("|" in s for s in sentences)
    for control, _, sentence in TRANSLATED:
        slots = set(re.findall(r"{(\w+)}", sentence))
        share = control in ("at most", "about", "at least")
        assert "category" in slots <= {"category", "k", "percent", "count"}, "no English words"
        assert bool(slots & {"percent", "count"}) == share, sentence
        assert wordings.longest_shared_run(sentence, TRAINED)[0] <= 3


def test_other_languages_are_asked_and_told_apart(asked, world, teacher, smoke, tmp_path):
    requests, worded, knobs = asked
    knobs = knobs.model_copy(update={"other_languages": True, "wording_users": 4})
    more = wordings.worded_requests(requests, world[0], "film", 12, 0, languages=True)
    added = {name: group for name, group in more.items() if name not in worded}
    assert {n: g for n, g in more.items() if n in worded} == worded, "the others are as before"
    assert len(added) == len(TRANSLATED) and all("|language|" in name for name in added)
    spoken = added["I2<=20|language|German: Höchstens {percent} % {category}"]
    assert all(f"Höchstens 20 % {r.control.category}" in r.prompt for r in spoken)
    systems = dict.fromkeys(wordings.SYSTEMS, {"free": Listener(teacher, world[0])})
    for name, ways in systems.items():
        answer_all(ways, requests, tmp_path, name)
    profile = smoke.model_copy(update={"evaluation": knobs})
    wordings.ask(Stage("06_evaluation", profile, tmp_path), systems, requests, tmp_path, world[0])
    tables = tmp_path / "tables"
    tables.mkdir()
    each, table, lines = wordings.write_wordings(tmp_path, world[1], world[0], profile, tables)
    group = each[(each["system"] == "v2") & (each["task"] == "I1+") & (each["metric"] == "TCP")]
    kinds = {"paraphrase": 22, "change": 8, "language": 6, "trained": 1}
    assert group["kind"].value_counts().to_dict() == kinds
    row = table.set_index(["system", "wish", "metric"]).loc["v2", "I1+ (include)", "TCP"]
    own = group[group["kind"] == "language"]
    spanish = 100 * own[own["wording"].str.startswith("Spanish: ")]["value"]
    expected = f"{spanish.mean():.1f} ({spanish.min():.1f} to {spanish.max():.1f})"
    assert row["in Spanish"] == expected and "in German" in row
    heard = (own["verdict"] == "heard").sum()
    assert row["other languages told from no wish"] == f"{heard} of 6"
    assert row["told from no wish"].endswith("of 22"), "paraphrases are counted without them"
    line = next(line for line in lines if line.startswith("v2, include"))
    assert f"{expected} % in Spanish" in line and f"of these 6, {heard} are told" in line


def test_best_and_worst_by_hand():
    """For "exclude" less is better, by TCP, and more by Strict."""
    rows = []
    for kind, wording, tcp, verdict in [
        ("trained", "", 0.1, "heard"),
        ("paraphrase", "a", 0.3, "heard"),
        ("paraphrase", "b", 0.2, "heard"),
        ("paraphrase", "c", 0.7, "opposite"),
        ("paraphrase", "d", 0.7, "not told"),
        ("change", "wish at the end", 0.5, "not told"),
    ]:
        for metric, value in [("TCP", tcp), ("Strict", 1 - tcp)]:
            rows.append(("full", "I1-", kind, wording, metric, value, 0.5, 20, verdict))
    columns = "system task kind wording metric value without n verdict".split()
    each = pd.DataFrame(rows, columns=columns)
    tcp, whole = (row for _, row in wordings.table(each).iterrows())
    assert tcp["paraphrases"] == "47.5 (20.0 to 70.0)" and tcp["trained wording"] == "10.0"
    assert (tcp["best"], tcp["worst"]) == ('"b" 20.0', '"c" 70.0')
    assert (whole["best"], whole["worst"]) == ('"b" 80.0', '"c" 30.0')
    assert tcp["told from no wish"] == "2 of 4" and tcp["taken for the opposite"] == "1 of 4"
    assert tcp["wish at the end"] == "50.0" and tcp["no punctuation"] == ""
    assert wordings.sentences(each)[1] == (
        "full, exclude (TCP, 20 users): 50.0 % without a wish, 10.0 % in the trained words, "
        "47.5 (20.0 to 70.0) % in 4 others. Of these, 2 are told from no wish and 1 are taken for "
        'the opposite. Best: "b" (20.0 %), worst: "c" (70.0 %). The trained words are no longer '
        "told from no wish with: wish at the end. Whole answers as asked (Strict): 90.0 % in the "
        "trained words, 52.5 (30.0 to 80.0) % in the others."
    )


def wordings_by_hand(folder, system, task, catalog):
    """Mean share of the category in the stored lists."""
    stored = pd.read_parquet(folder / "wordings" / f"{system}-free.parquet")
    shares = []
    for row in stored[stored["task"] == task].itertuples():
        name = json.loads(row.control)["category"]
        titles = [line.split(". ", 1)[1] for line in row.text.split("\n")]
        inside = [name in catalog.categories[catalog.find(title)] for title in titles]
        shares.append(sum(inside) / len(inside))
    return np.mean(shares)


def test_missing_answers_are_an_error(answered, asked, world, smoke, tmp_path):
    for name in wordings.SYSTEMS:
        (tmp_path / f"{name}-free.parquet").write_bytes(
            (answered / f"{name}-free.parquet").read_bytes()
        )
    with pytest.raises(RecnbError, match="run notebook 06_evaluation again"):
        wordings.levels(tmp_path, world[1], world[0], smoke.data, asked[2], 0)


def test_the_knobs_are_off():
    for profile in (load("smoke"), load("laptop")):
        assert not profile.evaluation.wordings and profile.instructions.wordings == "paper"
        assert not profile.evaluation.other_languages


def spoken_paraphrases(names):
    """Every paraphrase with a category each, and the category as the model sees none: cut out."""
    controls = {
        "include": Include,
        "exclude": Exclude,
        "at most": lambda name: AtMost(name, "1/5"),
        "about": lambda name: About(name, "3/10"),
        "at least": lambda name: AtLeast(name, "3/10"),
    }
    texts = []
    for control, own in wordings.paraphrases().items():
        for place, sentence in enumerate(own):
            name = names[place % len(names)]
            texts.append(wordings.spoken(sentence, controls[control](name), 10, "movie"))
    return texts


def test_words_of_a_paraphrase_are_no_tokens_of_the_trained_wishes(world, teacher, smoke):
    """The mini tokenizer knows every byte, but the model met few of these tokens in a wish."""
    catalog, histories = world
    chat = [("What is 2 plus 3?", "2 plus 3 is 5.")] * 5
    codec = Codec(build_tokenizer(catalog, chat, 400, True))
    rows = synthesis.synthesize(histories, catalog, teacher, smoke.instructions, smoke.data, 0)
    prompts = [row["prompt"] for row in rows if row["task"] != "I4"]
    assert wordings.familiar_share(codec, prompts, prompts) == 1
    share = wordings.familiar_share(codec, spoken_paraphrases(catalog.names), prompts)
    print(f"familiar tokens: {share:.3f}")
    assert share < 0.5
    assert all(codec.decode(codec.answer(text)) == text for text in HELD_OUT), "no unknown token"


@pytest.mark.nightly
def test_shares_of_familiar_tokens_in_the_docstring():
    """MovieLens-100K and the conversations of the laptop profile; both are pinned packages."""
    profile = load("laptop")
    catalog, histories = build(profile.data, 0)
    teacher = Teacher(untrained(len(catalog), profile.teacher))
    counts = synthesis.table8(profile.instructions, len(histories), len(catalog))
    chat = sharegpt(profile.instructions.chat_words, counts["I4"])
    codec = Codec(build_tokenizer(catalog, chat, profile.model.vocabulary, True))
    texts = spoken_paraphrases(catalog.names)
    smaller = {"sequential": 200, "category": 2000, "proportion": 2000, "search": 1000}
    shares = []
    for kind in ("paper", "varied"):
        knobs = profile.instructions.model_copy(
            update=smaller | {"chat_share": 0.0, "wordings": kind}
        )
        rows = synthesis.synthesize(histories, catalog, teacher, knobs, profile.data, 0)
        prompts = [row["prompt"] for row in rows]
        shares.append(wordings.familiar_share(codec, texts, prompts))
        if kind == "paper":
            prompts += [text for pair in chat for text in pair]
            chatted = wordings.familiar_share(codec, texts, prompts)
    stated = " ".join(wordings.__doc__.split())
    assert f"included, {100 * shares[0]:.0f} % stand in any instruction" in stated
    assert f"({100 * shares[1]:.0f} % with ``instructions.wordings: varied``)" in stated
    assert f"has met {100 * chatted:.1f} % of them" in stated


def test_a_run_is_evaluated_again_with_its_other_wordings(tmp_path):
    """``recnb evaluate`` makes the table out of what is stored: the reference run, 12 users."""
    run = tmp_path / "laptop"
    shutil.copytree(root() / "papermill_runs" / "reference" / "laptop", run)
    profile = load(
        run / "profile.yaml", {"evaluation.wordings": True, "evaluation.wording_users": 2}
    )
    save(profile, run / "profile.yaml")
    reader = Reader(profile, run)
    catalog = Catalog.from_parquet(reader.input("01_data", "catalog.parquet"))
    histories = Histories.from_parquet(reader.input("01_data", "histories.parquet"))
    folder = next((run / "06_evaluation" / "answers").iterdir())
    for path in folder.glob("*.parquet"):
        frame = pd.read_parquet(path)
        frame[frame["user"] < 12].reset_index(drop=True).to_parquet(path, index=False)
    requests = stored_requests(pd.read_parquet(path), histories, profile.data)
    system = {"free": Ranker(Popularity(histories, len(catalog)), catalog)}
    stage = Stage("06_evaluation", profile, run)
    wordings.ask(stage, dict.fromkeys(wordings.SYSTEMS, system), requests, folder, catalog)
    stage.finish({"findings": [], "wordings": ["heard"]})
    tables = tmp_path / "tables"
    evaluate_run(run, tables)
    each = pd.read_csv(tables / "wording_each.csv", keep_default_na=False)
    assert set(each["system"]) == set(wordings.SYSTEMS) and set(each["n"]) <= {1, 2}
    made = pd.read_csv(tables / "wording.csv")
    assert len(made) == 3 * 5 * 2
    assert (tables / "wording.tex").is_file() and (tables / "metrics.csv").is_file()
