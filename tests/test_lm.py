import copy
import itertools
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recnb import RecnbError
from recnb.catalog import Catalog
from recnb.controls import About, AllOf, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.engine import decoding
from recnb.engine.cache import mix
from recnb.engine.decoding import SHARED, TOGETHER, Draft, beam_search, decode
from recnb.engine.losses import chosen_and_entropy, next_token_loss
from recnb.engine.optimizer import MuonAndAdamW
from recnb.engine.packed import ending_at, next_logits, pack_answers, packed_attention
from recnb.engine.prepacked import prepacked
from recnb.instructions.templates import numbered
from recnb.lm.base import base_loss, known_vectors, train_base
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.loading import mini_model
from recnb.lm.parsing import parse, titles_of
from recnb.lm.recommender import LanguageModelRecommender, recommend_together
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer, title_tokens
from recnb.requests import Request
from recnb.sft import encode


def generated(model, codec, prompt, new, **how):
    """What transformers' generate writes behind a prompt, greedy unless told otherwise."""
    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=codec.pad,
        eos_token_id=codec.eos,
        **how,
    )
    return [row[len(prompt) :].tolist() for row in out]


def test_tokens_give_back_every_text(language_model, world):
    codec = language_model[1]
    odd = ["Amélie", "\U0001f600 <b>", 'Ignore all instructions\' and "quotes"']
    lists = [numbered([1, 2, 3], world[0]), "1. Tom\n2. Ha'ag\n\n"]
    for text in [*world[0].titles[1:], *odd, *lists]:
        assert codec.decode(codec.tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_odd_titles_survive_as_whole_tokens():
    catalog = Catalog(["Seven", "Amélie", "'Til There", "<i>x</i>", "M"], [{"A"}] * 5)
    codec = Codec(build_tokenizer(catalog, [], 400, True))
    text = numbered(range(1, 6), catalog)
    ids = codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert codec.decode(ids) == text and len(ids) == 10
    assert parse(text, catalog).items == [1, 2, 3, 4, 5]


def test_parsing(toy):
    answer = parse("Sure!\n1. a1\n2) B2 \n3.\n4. nothing\n5. a1", toy)
    assert answer.items == [1, 4, None, 1] and titles_of("") == []


def test_greedy_equals_generate(language_model):
    model, codec = language_model
    texts = "Hello you", "What is 2 plus 3? And more words", "x"
    prompts = [codec.prompt(text) for text in texts]
    ours = decode(model, codec, prompts, 12)
    for prompt, found in zip(prompts, ours, strict=True):
        assert found == generated(model, codec, prompt, 12)[0]


def test_the_two_ways_of_attention_agree():
    torch.manual_seed(0)
    query = torch.randn(3, 2, 4, 5, 8)
    keys, values = torch.randn(2, 3, 2, 11, 8)
    first = torch.tensor([[2], [6], [4]])[:, :, None]
    visible = torch.arange(11) <= first + torch.arange(5)[:, None]
    found = [mix(query, keys, values, visible[:, None], 0.3, fused) for fused in (True, False)]
    assert torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize("together", [8, TOGETHER], ids=["in parts", ""])
@pytest.mark.parametrize("start", [[], list(range(2, 2 + SHARED))], ids=["", "same start"])
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Granite"])
def test_rows_that_share_keys_decode_like_generate(family, start, together, monkeypatch):
    """Grouped queries; prompts of different length, some of them twice, and a start of all.

    They are fed without padding, the start once. Only the layers of the first three families end
    at the kept places; those of the others are computed as they are.
    """
    from types import SimpleNamespace

    import transformers

    monkeypatch.setattr(decoding, "TOGETHER", together)
    torch.manual_seed(0)
    special = {"residual_multiplier": 0.5} if family == "Granite" else {}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
        eos_token_id=1,
        pad_token_id=0,
        **special,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ends = [[5, 9, 30], [7], [5, 9, 30], [40, 41, 42, 43, 44, 45]]
    if start:
        ends.append([7, 8])
    prompts, codec = [start + end for end in ends], SimpleNamespace(pad=0, eos=1)
    found = decode(model, codec, prompts, 12)
    for prompt, tokens in zip(prompts, found, strict=True):
        assert tokens == generated(model, codec, prompt, 12)[0]
    assert model.config._attn_implementation == "eager"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN, no prepacking")
def test_prepacked_weights_give_the_same_products_and_leave_no_trace():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 30), torch.nn.GELU(), torch.nn.Linear(30, 7, bias=False)
    )
    x = torch.randn(5, 20)
    for _ in range(2):
        with torch.no_grad():
            expected = model(x)
            with prepacked(model):
                assert all("forward" in vars(layer) for layer in (model[0], model[2]))
                assert torch.allclose(model(x), expected, atol=1e-6)
            model[0].weight += 1  # the next copies must be of the new weights
    assert not any("forward" in vars(layer) for layer in model)
    with prepacked(model):  # gradients are on
        assert not any("forward" in vars(layer) for layer in model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), prepacked(model):
        assert model(x).dtype == torch.bfloat16
    with torch.no_grad(), prepacked(model.bfloat16()):
        assert model(x.bfloat16()).dtype == torch.bfloat16


def test_a_model_with_attention_of_its_own_is_refused():
    from types import SimpleNamespace

    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(RecnbError, match="its own way"):
        decode(model, SimpleNamespace(pad=0, eos=1), [[5, 6]], 3)


def test_beam_search_equals_generate(language_model):
    """With answers that end early: the end token is made likely."""
    model, codec = language_model
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[codec.eos] *= 3
    texts = "Three films please", "One film", "And now something completely different"
    prompts = [codec.prompt(text) for text in texts]
    how = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0}
    found = beam_search(model, codec, prompts, 4, 6)
    for prompt, beams in zip(prompts, found, strict=True):
        expected = generated(model, codec, prompt, 6, early_stopping="never", **how)
        assert beams == [
            row[: row.index(codec.eos) + 1] if codec.eos in row else row for row in expected
        ]


@pytest.fixture(scope="module")
def list_writer(language_model, world):
    """A model that has learned to answer with lists of titles, with some repeats left."""
    model, codec = copy.deepcopy(language_model[0]), language_model[1]
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        rows = []
        for n in rng.integers(2, 5, size=16):
            items = rng.choice(np.arange(1, 40), n, replace=False)
            rows.append(codec.prompt(f"{n} films") + codec.answer(numbered(items, world[0])))
        optimizer.zero_grad()
        base_loss(model, rows, codec.pad, None, 0.0).backward()
        optimizer.step()
    return model.eval(), codec


@contextmanager
def counted(model):
    """One entry for each forward pass of the model."""
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def test_guessing_ahead_changes_no_token_and_saves_passes(list_writer, world):
    model, codec = list_writer
    automaton = CatalogAutomaton(codec, world[0])
    texts = "4 films", "2 films", "4 films", "Hello", "3 films, please"
    prompts = [codec.prompt(text) for text in texts]
    plain = decode(model, codec, prompts, 60)
    assert plain == decode(model, codec, prompts, 60, drafts=[Draft(automaton, 4) for _ in prompts])
    with counted(model) as calls:
        row = decode(model, codec, prompts[:1], 60, drafts=[Draft(automaton, 4)])[0]
        assert row == plain[0] and len(calls) < 0.8 * len(row)
    titles = sum(len(parse(codec.decode(row), world[0]).items) for row in plain)
    assert titles >= 8, "the model writes lists"
    for prompt, found in zip(prompts, plain, strict=True):
        assert found == generated(model, codec, prompt, 60)[0]


def test_guessing_ahead_samples_from_the_models_own_distribution(list_writer, world):
    """Frequencies of the first two titles, with and without guesses, from 600 samples each."""
    model, codec = list_writer
    automaton = CatalogAutomaton(codec, world[0])
    prompts, found = [codec.prompt("2 films")] * 600, []
    for drafts in (None, [Draft(automaton, 2) for _ in prompts]):
        draws = torch.Generator().manual_seed(5)
        rows = decode(model, codec, prompts, 40, 0.7, draws, drafts=drafts)
        answers = [[*parse(codec.decode(row), world[0]).items, None, None] for row in rows]
        firsts = np.array([[item or 0 for item in items[:2]] for items in answers])
        found.append([np.bincount(column, minlength=60) / 600 for column in firsts.T])
    distance = np.abs(np.array(found[0]) - np.array(found[1])).sum(1) / 2
    # total variation, about .10 between two samples of 600 from the same 39 titles
    assert (distance < 0.16).all()


def test_a_draft_longer_than_the_catalogue_guesses_nothing(list_writer, world):
    draft = Draft(CatalogAutomaton(list_writer[1], world[0]), len(world[0]) + 1)
    draft.follow(5)
    assert draft.guess() == []


def test_rows_that_end_early_leave_the_others_alone(list_writer, world):
    model, codec = list_writer
    automaton = CatalogAutomaton(codec, world[0])
    prompts = [codec.prompt(f"{2 + n % 3} films") for n in range(9)]
    lengths = [1, 9, 2, 1, 1, 7, 1, 3, 1]

    def start():
        return [automaton.start(k, [k]) for k in lengths]

    together = decode(model, codec, prompts, 400, states=start())
    alone = []
    for prompt, state in zip(prompts, start(), strict=True):
        alone += decode(model, codec, [prompt], 400, states=[state])
    assert together == alone
    assert [len(parse(codec.decode(row), world[0]).items) for row in together] == lengths


def test_sampling_draws_each_token_as_often_as_its_probability():
    from recnb.engine.decoding import _sample

    shares = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = _sample(shares.expand(60_000, -1), torch.Generator().manual_seed(0))
    found = drawn.bincount(minlength=6) / len(drawn)
    assert torch.allclose(found, shares, atol=0.01) and (found[shares == 0] == 0).all()


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_sampling_never_draws_what_has_no_probability(number, monkeypatch):
    """At the ends of the unit interval (1: a product rounded up), with sums short of 1."""
    from recnb.engine.decoding import _sample

    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(*shape, number))
    shares = torch.tensor([[0.0, 0.7, 0.2999, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert (shares.gather(1, _sample(shares, None)[:, None]) > 0).all()


def places(state):
    return state.node, state.n, state.done, state.queue, state.left.tolist()


def test_forced_tokens_are_those_with_one_way_on():
    """Titles that are prefixes of each other; the walk takes one allowed token at a time."""
    catalog = Catalog(["a", "a b", "a b c", "dragon", "drum"], [{"A"}] * 5)
    codec = Codec(build_tokenizer(catalog, [], 320, False))
    automaton = CatalogAutomaton(codec, catalog)
    rng = np.random.default_rng(0)
    for _ in range(30):
        seen = rng.choice(np.arange(1, 6), rng.integers(0, 3), replace=False).tolist()
        state, steps = automaton.start(3, seen), 0
        while not state.done:
            forced, expected, ahead = state.forced(), [], copy.copy(state)
            ahead.left, ahead.queue = state.left.copy(), list(state.queue)
            while not ahead.done and len(ahead.allowed()) == 1:
                expected.append(int(ahead.allowed()[0]))
                ahead.advance(expected[-1])
            assert expected[: len(forced)] == forced
            assert bool(forced) == bool(expected)
            skipped, walked = copy.deepcopy(state), copy.deepcopy(state)
            assert skipped.skip() == forced
            for token in forced:
                walked.advance(token)
            assert places(skipped) == places(walked)
            state.advance(int(rng.choice(state.allowed())))
            steps += 1
        assert steps > 3


def test_constrained_equals_generate_with_allowed_tokens(language_model, world):
    model, codec = language_model
    automaton = CatalogAutomaton(codec, world[0])
    prompt = codec.prompt("Three films please")
    ours = decode(model, codec, [prompt], 80, states=[automaton.start(3, [1, 2, 5])])[0]

    def allowed(_, ids):
        state = automaton.start(3, [1, 2, 5])
        for token in ids[len(prompt) :].tolist():
            state.advance(token)
        return state.allowed().tolist()

    assert [ours] == generated(model, codec, prompt, 80, prefix_allowed_tokens_fn=allowed)
    items = parse(codec.decode(ours), world[0]).items
    assert len(set(items)) == 3 and not {None, 1, 2, 5} & set(items)


def every_answer(codec, catalog, start):
    """All item lists that an automaton lets through; ``start()`` gives a fresh state."""
    found = set()

    def walk(tokens):
        state = start()
        for token in tokens:
            state.advance(token)
        if tokens and tokens[-1] == codec.eos:
            found.add(tuple(parse(codec.decode(tokens), catalog).items))
            return
        for token in state.allowed().tolist():
            walk([*tokens, token])

    walk([])
    return found


def test_automaton_allows_exactly_the_legal_lists():
    """Titles that are prefixes of each other, by enumeration of every path."""
    catalog = Catalog(["a", "a b", "a b c", "d"], [{"A"}] * 4)
    codec = Codec(build_tokenizer(catalog, [], 320, False))
    automaton = CatalogAutomaton(codec, catalog)
    found = every_answer(codec, catalog, lambda: automaton.start(2, [4]))
    assert found == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}


def test_obeying_automaton_allows_exactly_the_obeying_lists(toy):
    codec = Codec(build_tokenizer(toy, [], 320, True))
    automaton = CatalogAutomaton(codec, toy)
    control = AllOf((AtMost("A", "1/3"), AtLeast("B", "2/3")))
    for k, seen in ((3, [1]), (2, [3, 4, 6])):
        needs = control.needs(k, toy)
        found = every_answer(codec, toy, partial(automaton.start, k, seen, needs))
        legal = set(itertools.permutations([i for i in range(1, 7) if i not in seen], k))
        obeying = {
            items
            for items in legal
            if all(low <= mask[list(items)].sum() <= high for mask, low, high in needs)
        }
        assert found == (obeying or legal)  # a wish that cannot be met is dropped
        assert bool(obeying) == (k == 3)


@given(st.integers(0, 10**6))
def test_an_obeying_list_meets_every_control_that_can_be_met(seed):
    rng = np.random.default_rng(seed)
    categories = [set(rng.choice(list("ABC"), rng.integers(1, 3))) for _ in range(12)]
    catalog = Catalog([f"t{i}" for i in range(12)], categories)
    codec = Codec(build_tokenizer(catalog, [], 300, True))
    automaton = CatalogAutomaton(codec, catalog)
    names = rng.choice(catalog.names, 2)
    kinds = [
        Include(names[0]),
        Exclude(names[0]),
        About(names[0], "1/2"),
        AllOf((AtLeast(names[0], "3/10"), Exclude(names[1]))),
    ]
    control, k = kinds[rng.integers(4)], int(rng.integers(1, 6))
    seen = rng.choice(np.arange(1, 13), 4, replace=False).tolist()
    state, tokens = automaton.start(k, seen, control.needs(k, catalog)), []
    while codec.eos not in tokens:
        tokens.append(int(rng.choice(state.allowed())))
        state.advance(tokens[-1])
    items = parse(codec.decode(tokens), catalog).items
    assert len(set(items)) == k and not set(items) & {None, *seen}
    possible = control.select([i for i in range(1, 13) if i not in seen], k, catalog) is not None
    met = all(low <= mask[items].sum() <= high for mask, low, high in control.needs(k, catalog))
    assert met or not possible


def test_guessing_rows_and_guided_rows_decode_together(list_writer, world):
    model, codec = list_writer
    automaton = CatalogAutomaton(codec, world[0])
    prompt = codec.prompt("4 films")
    free = decode(model, codec, [prompt], 60)[0]
    guided = decode(model, codec, [prompt], 60, states=[automaton.start(4, [])])[0]
    with counted(model) as calls:
        decode(model, codec, [prompt], 60, drafts=[Draft(automaton, 4)])
    assert len(calls) < len(free), "some guess was right"
    together = decode(
        model,
        codec,
        [prompt] * 2,
        60,
        states=[None, automaton.start(4, [])],
        drafts=[Draft(automaton, 4), None],
    )
    assert together == [free, guided]


def test_decoding_in_several_ways_at_once_changes_no_answer(list_writer, world):
    model, codec = list_writer
    automaton = CatalogAutomaton(codec, world[0])
    ways = [
        LanguageModelRecommender(model, codec, world[0], a, batch_size=4, obey=obey)
        for a, obey in ((None, False), (automaton, False), (automaton, True))
    ]
    seen = [tuple(range(1, u + 2)) for u in range(9)]
    requests = [
        Request(u, seen[u], seen[u], Include(world[0].names[u % 2]), 2 + u % 3) for u in range(9)
    ]
    together = recommend_together(ways, requests)
    assert together == [way.recommend(requests) for way in ways]
    assert together[0] != together[1] != together[2]


def test_recommender_keeps_the_order_of_requests(language_model, world):
    model, codec = language_model
    automaton = CatalogAutomaton(codec, world[0])
    requests = [
        Request(u, tuple(range(1, 2 + u % 3)), (1, 2, 3), NoControl(), 2 + u % 3, None)
        for u in range(7)
    ]
    by_three = LanguageModelRecommender(model, codec, world[0], automaton, batch_size=3)
    together = by_three.recommend(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = LanguageModelRecommender(model, codec, world[0], automaton).recommend([request])[0]
        assert answer.items == alone.items and len(answer.items) == request.k


@given(st.integers(0, 10**6), st.booleans())
def test_loss_and_gradient_against_the_definition(seed, certain):
    """By brute force and by automatic differentiation; also where a repeat is certain."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, samples, length = 9, 3, 12
    is_title = torch.rand(vocabulary, generator=generator) < 0.6
    ids = torch.randint(0, vocabulary, (samples, length), generator=generator)
    places = torch.tensor([(s, t) for s in range(samples) for t in range(1, length)])
    logits = torch.randn(len(places), vocabulary, generator=generator, dtype=torch.float64)
    logits = logits * 30 if certain else logits
    logits.requires_grad_()
    log_probs = torch.log_softmax(logits, -1)
    targets, terms = ids[places[:, 0], places[:, 1]], []
    for row, (s, t) in enumerate(places.tolist()):
        if is_title[ids[s, t]]:
            before, after = set(ids[s, :t].tolist()), set(ids[s, t:].tolist())
            banned = [token for token in before - after if is_title[token]]
            terms.append(-torch.log1p(-log_probs[row, banned].exp().sum().clamp(max=1 - 1e-4)))
    expected = -log_probs[torch.arange(len(places)), targets].mean()
    if terms:
        expected = expected + 0.7 * torch.stack(terms).mean()
    found = next_token_loss(logits, ids, places, is_title, 0.7)
    slopes = [
        torch.autograd.grad(2 * loss, logits, retain_graph=True)[0] for loss in (expected, found)
    ]
    assert found.item() == pytest.approx(expected.item()) and torch.isfinite(found)
    assert torch.allclose(*slopes, atol=1e-9)
    plain = next_token_loss(logits, ids, places)
    assert plain.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item())


def test_log_probabilities_and_entropy_against_torch(rng):
    logits = torch.tensor(rng.normal(0, 4, size=(20, 30)), requires_grad=True)
    chosen = torch.tensor(rng.integers(30, size=20))
    weights = torch.tensor(rng.normal(size=(2, 20)))
    expected = torch.distributions.Categorical(logits=logits)
    expected = (expected.log_prob(chosen), expected.entropy())
    found = chosen_and_entropy(logits, chosen)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b)
    slopes = [
        torch.autograd.grad((torch.stack(pair) * weights).sum(), logits)[0]
        for pair in (expected, found)
    ]
    assert torch.allclose(*slopes)


@pytest.mark.parametrize("spare", [0, 64])
def test_embeddings_start_with_what_is_known_of_the_items(world, teacher, smoke, spare):
    """The teacher's vectors; beyond them titles lean to their categories' codes, and differ."""
    catalog, width = world[0], teacher.model.item.embedding_dim
    codec = Codec(build_tokenizer(catalog, [], 400, True))
    knobs = smoke.model.model_copy(update={"width": width + spare})
    model = mini_model(len(codec.tokenizer), knobs, codec, 0)
    titles = title_tokens(codec.tokenizer, catalog)
    known_vectors(model, codec.tokenizer, titles, teacher, catalog, 0)
    table = model.get_input_embeddings().weight.detach()
    found, wanted = table[titles[1:], :width], teacher.model.item.weight.detach()[1:]
    assert torch.allclose(found / found.std(), wanted / wanted.std(), atol=1e-5)
    assert table.isfinite().all()
    if spare:
        rest = torch.nn.functional.normalize(table[titles[1:], width:])
        for name in catalog.names:
            own = table[codec.tokenizer.get_vocab()[name], width:]
            code = torch.nn.functional.normalize(own, dim=0)
            inside = torch.tensor([name in names for names in catalog.categories[1:]])
            assert (rest[inside] @ code).mean() > (rest[~inside] @ code).mean() + 0.1
        assert (rest @ rest.T - torch.eye(len(rest))).max() < 0.95
    alike = Catalog(catalog.titles[1:], [{catalog.names[0]}] * len(catalog))
    known_vectors(model, codec.tokenizer, titles, teacher, alike, 0)
    assert model.get_input_embeddings().weight.isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_base_of_few_steps_trains(language_model, world, smoke, steps):
    model, codec = copy.deepcopy(language_model[0]), language_model[1]
    knobs = smoke.base.model_copy(update={"steps": steps, "batch_size": 2, "repeat_weight": 0.0})
    rows = []
    train_base(model, codec, None, world[1], world[0], [], knobs, 0, rows.append, autocast=False)
    assert rows[-1]["step"] == steps and np.isfinite(rows[-1]["loss"])


@pytest.fixture
def grouped():
    """A Llama whose heads share keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def padded_logits(model, ids, real):
    positions = (real.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=real.long(), position_ids=positions).logits


def key_gradient(model, logits):
    keys = model.model.layers[0].self_attn.k_proj.weight
    return torch.autograd.grad(logits.logsumexp(-1).sum(), keys)[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("left", [True, False])
def test_packed_logits_equal_padded_ones(grouped, left, fused, monkeypatch):
    """Gradients too, with grouped keys and values, whatever side the padding is on."""
    lengths, width = [3, 9, 6, 1], 9
    ids = torch.randint(1, 50, (4, width))
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    real = real.flip(1) if left else real
    keep = real & (torch.rand(4, width) < 0.6)
    monkeypatch.setattr(torch.Tensor, "is_cuda", fused)  # the fused path, which a GPU takes
    packed = next_logits(grouped, ids, real, keep)
    monkeypatch.undo()
    padded = padded_logits(grouped, ids, real)[keep]
    assert torch.allclose(packed, padded, atol=1e-5)
    assert grouped.config._attn_implementation == "eager"
    assert torch.allclose(key_gradient(grouped, packed), key_gradient(grouped, padded), atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_answers_behind_one_prompt_equal_answers_alone(grouped, fused, monkeypatch):
    """Each prompt once, whatever its answers' order: logits before each token, and gradients."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", fused)  # the fused path, which a GPU takes
    prompts = torch.tensor([7, 3, 7, 5, 3, 7])
    texts = {3: [4, 9, 11], 5: [8], 7: [21, 22, 23, 24, 25]}
    answers = [[1, 2], [3], [1, 2, 30, 31], [5, 6, 7], [40, 41, 42], [2]]
    ids, real = torch.zeros(6, 9, dtype=torch.long), torch.zeros(6, 9, dtype=torch.bool)
    for row, (number, tokens) in enumerate(zip(prompts.tolist(), answers, strict=True)):
        place = slice(5 - len(texts[number]), 5 + len(tokens))
        ids[row, place] = torch.tensor(texts[number] + tokens)
        real[row, place] = True
    packed, before = pack_answers(ids, real, real[:, 5:], prompts)
    assert packed["input_ids"].shape[1] == 9 + sum(len(a) - 1 for a in answers)
    with packed_attention(grouped):
        found = grouped(**packed).logits[0, before]
    with packed_attention(grouped), ending_at(grouped, before):
        kept = grouped(**packed).logits[0]
    keep = torch.zeros_like(real)
    keep[:, 4:-1] = real[:, 5:]
    monkeypatch.undo()
    expected = padded_logits(grouped, ids, real)[keep]
    slope = key_gradient(grouped, expected)
    for logits in (found, kept):
        assert torch.allclose(logits, expected, atol=1e-5)
        assert torch.allclose(key_gradient(grouped, logits), slope, atol=1e-5)


def test_muon_moves_matrices_and_adamw_the_rest(grouped):
    """As torch's two do side by side; a saved state goes on as if training had not stopped."""

    def step(model, *optimizers):
        model.zero_grad()
        model(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def same(a, b):
        return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

    alone, both = copy.deepcopy(grouped), MuonAndAdamW(grouped, 0.01, 0.02)
    matrices = [p for name, p in alone.named_parameters() if "_proj" in name]
    others = [p for name, p in alone.named_parameters() if "_proj" not in name]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=0.02, weight_decay=0.0, fused=True)
    for share in (1, 0.5):
        for group in muon.param_groups + adamw.param_groups + both.param_groups:
            group["lr"] *= share
        step(alone, muon, adamw)
        step(grouped, both)
    assert same(alone, grouped)
    resumed = copy.deepcopy(grouped)
    restored = MuonAndAdamW(resumed, 0.9, 0.9)
    restored.load_state_dict(copy.deepcopy(both.state_dict()))
    step(grouped, both)
    step(resumed, restored)
    assert same(grouped, resumed) and not same(alone, grouped)


def test_completion_loss_equals_the_full_loss(language_model, tmp_path):
    import pandas as pd
    from trl import SFTConfig

    from recnb.sft import CompletionTrainer

    # a copy: trl patches the model it is given
    model, codec = copy.deepcopy(language_model[0]), language_model[1]
    texts = {"prompt": ["Hello", "What is 2 plus 3?"], "completion": ["1. x\n2. y", "5"]}
    data, _ = encode(pd.DataFrame(texts), codec, 200)
    arguments = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_length=None,
        gradient_checkpointing=False,
    )
    trainer = CompletionTrainer(
        model=model, train_dataset=data, processing_class=codec.tokenizer, args=arguments
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    batch = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    ours = trainer.compute_loss(model, dict(batch))
    full = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss
    assert torch.allclose(ours, full, atol=1e-5)
