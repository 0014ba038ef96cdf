"""Item tokens in models trained elsewhere: tiny random Llamas, with one table for both ends or two.

The tokenizer knows nothing of the catalogue but ordinary words.
"""

import copy
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.linalg import orthogonal_procrustes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recnb import RecnbError
from recnb.catalog import Catalog
from recnb.controls import Include
from recnb.engine.decoding import decode
from recnb.instructions.templates import numbered, quoted
from recnb.lm.base import make_base
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.item_tokens import ROWS, add_titles, enlarge, initial_rows, trained_rows
from recnb.lm.loading import load_adapted, load_base, load_codec
from recnb.lm.parsing import parse
from recnb.lm.recommender import LanguageModelRecommender
from recnb.lm.tokenizer import title_tokens
from recnb.ppo.prompts import rl_requests
from recnb.ppo.trainer import train_ppo
from recnb.profile import Profile, Sft, load
from recnb.requests import Request
from recnb.sft import lora, train_sft, upper

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
CHAT = [("What is the weather like?", "It is a fine day."), ("Hello there", "Hello to you")]


def make_tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(["the user and the list of the night"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pretrained(request, tmp_path_factory):
    """Folder of a random Llama of three layers whose table has 10 rows more than it has tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("pretrained") / "model", make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 10,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=request.param,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(pretrained, world, teacher, tmp_path_factory):
    """A base with item tokens that has read the histories: (profile, folder, description, rows)."""
    folder = tmp_path_factory.mktemp("stage")
    profile = of(pretrained, base={"rank": 4, "steps": 3, "batch_size": 4, "learning_rate": 0.01})
    return profile, folder, *base_of(profile, folder, world, teacher)[1:]


def of(pretrained, base=None, sft=None, **model):
    model = {"name": str(pretrained), "item_tokens": True, "autocast": False} | model
    return Profile(name="tiny", model=model, base=base or {}, sft=sft or {})


def base_of(profile, folder, world, teacher):
    return make_base(profile, folder, world[1], world[0], CHAT, teacher, {})


def test_rows_are_words_and_the_teachers_vector_at_equal_size(rng):
    table, vectors = rng.normal(size=(51, 12)) + 1, rng.normal(size=(20, 5)) * 3 + 7
    words = [rng.integers(0, 51, rng.integers(2, 6)).tolist() for _ in range(20)]
    found = initial_rows(torch.tensor(table), words, torch.tensor(vectors)).numpy()

    said = np.array([np.mean([table[i] for i in ids], axis=0) for ids in words])
    middle = said.mean(0)
    z = vectors - vectors.mean(0)
    turn, _ = orthogonal_procrustes(np.hstack([z, np.zeros((20, 7))]), said - middle)
    weights = turn[:5]
    assert np.allclose(weights @ weights.T, np.eye(5)), "distances stay"
    others = [np.linalg.qr(rng.normal(size=(12, 5)))[0].T for _ in range(300)]
    others += [np.linalg.qr((weights + 0.01 * o).T)[0].T for o in others]
    others = [other * np.sign((other * weights).sum(1, keepdims=True)) for other in others]
    misses = [np.square(said - middle - z @ other).sum() for other in [weights, *others]]
    assert np.argmin(misses) == 0, "no other turn comes nearer to the words"

    def size(rows):
        return np.sqrt(np.mean([row @ row for row in rows]))

    parts = (said - middle) / size(said - middle) + z @ weights / size(z @ weights)
    rows = middle + parts * size(table - table.mean(0)) / size(parts)
    length = np.median(np.linalg.norm(table, axis=1))
    expected = np.array([row * length / np.linalg.norm(row) for row in rows])
    assert np.allclose(found, expected, atol=1e-5)
    # Sizes of the teacher's vectors do not matter.
    scaled = initial_rows(torch.tensor(table), words, torch.tensor(vectors * 100)).numpy()
    assert np.allclose(scaled, found, atol=1e-5)


def test_a_teacher_without_taste_leaves_the_words(rng):
    table, words = torch.randn(9, 4, generator=torch.manual_seed(0)), [[1, 2], [3, 4], [5, 6, 7]]
    rows = initial_rows(table, words, torch.ones(3, 2))
    assert torch.isfinite(rows).all()
    assert torch.allclose(rows.norm(dim=1), table.norm(dim=1).median().expand(3))


HOSTILE = [
    "Amélie (2001)",
    "12 Monkeys (1995)",
    "1. FC Köln",
    "Heat 2",
    "Heat 2: Again",
    "'Til There Was You",
    "Don't Look Now, 'It' Said",
    "花様年華",
    "🎬 Cut!",
    "<s>user",
    "the list of the user",
    "  ".join("ab"),
    "Ġthe night",
    "{k} items, please",
    "M*A*S*H \\n",
]
HOSTILE_CATALOG = Catalog(HOSTILE, [{"A"}] * len(HOSTILE))


def test_hostile_titles_are_found_and_come_back(tmp_path):
    tokenizer, catalog = make_tokenizer(), HOSTILE_CATALOG
    plain = make_tokenizer()
    first, words = add_titles(tokenizer, catalog)
    tokenizer.save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    ids = title_tokens(codec.tokenizer, catalog)
    assert ids[1:] == list(range(first, first + len(catalog)))
    assert words == plain(HOSTILE, add_special_tokens=False)["input_ids"]
    order = np.random.default_rng(0).permutation(np.arange(1, len(catalog) + 1)).tolist()
    for text in (numbered(order, catalog), quoted(order, catalog)):
        tokens = codec.answer(text)[:-1]
        assert [i for i in tokens if i >= first] == [ids[item] for item in order]
        assert codec.decode(tokens) == text
    assert parse(codec.decode(codec.answer(numbered(order, catalog))), catalog).items == order
    # A title inside a longer word is none, and other texts are as before.
    for text in ("the list of the users", "Heat 25", "the user and the night"):
        assert codec.tokenizer(text)["input_ids"] == plain(text)["input_ids"], (
            f"{text!r} was read differently"
        )


@pytest.mark.parametrize(
    "titles, message",
    [
        (["Heat 1", "the"], "item 2: the title 'the' is a token"),
        (["Heat 1", "</s>"], "item 2: the title '</s>' is a token"),
        (["Heat 1", "Ġthe"], "item 2: the title 'Ġthe' is a token"),
        (["Heat 1", "2. Heat 1"], "item 1: in the text '2. Heat 1.*' the tokenizer finds '2. Heat"),
    ],
)
def test_titles_that_cannot_be_tokens(titles, message):
    with pytest.raises(RecnbError, match=message):
        add_titles(make_tokenizer(), Catalog(titles, [{"A"}] * len(titles)))


def test_a_teacher_of_another_catalogue_is_refused(pretrained, world, teacher, tmp_path):
    more = Catalog([*world[0].titles[1:], "One more"], [*world[0].categories[1:], {"Comedy"}])
    with pytest.raises(RecnbError, match=f"{len(world[0])} items, the catalogue has {len(more)}"):
        base_of(of(pretrained), tmp_path, (more, world[1]), teacher)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"model.item_tokens": True}, "mini has model.whole_titles"),
        ({"base.rank": 4}, "mini has model.whole_titles"),
        ({"model.name": "x", "model.item_tokens": True, "sft.rank": 0}, "sft.rank above"),
        (
            {"model.name": "x", "model.item_tokens": True, "sft.train_embeddings": True},
            "train_embeddings",
        ),
        ({"model.name": "x", "sft.repeat_weight": 1}, "item_tokens: true"),
        ({"sft.layers_from": 1, "sft.rank": 0}, "sft.layers_from is for LoRA"),
    ],
)
def test_knobs_that_do_not_fit_together(knobs, message):
    with pytest.raises(RecnbError, match=message):
        load("gpu" if "model.name" in knobs else "laptop", knobs)


def test_a_layer_that_is_not_there(pretrained):
    with pytest.raises(RecnbError, match="layers 0 to 2"):
        upper(load_base(pretrained)[0], 3)


def test_enlarging_parts_the_table_and_keeps_the_rest(pretrained):
    model, codec = load_base(pretrained)
    before, first = copy.deepcopy(model), len(codec.tokenizer)
    ends = {"input": torch.randn(14, 32), "output": torch.randn(14, 32)}
    enlarge(model, first, ends)
    ids = torch.tensor([codec.prompt("the night of the user")])
    with torch.no_grad():
        old, new = before(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.allclose(old[..., :first], new[..., :first], atol=1e-5)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert torch.equal(table[first : first + 14], ends["input"])
    assert torch.equal(head[first : first + 14], ends["output"])
    assert table.data_ptr() != head.data_ptr() and len(table) == len(head) == first + 14
    again = copy.deepcopy(before)
    enlarge(again, first, {name: rows[:6] for name, rows in ends.items()})
    assert len(again.get_input_embeddings().weight) == first + 10, "spare rows are used"


@pytest.mark.parametrize("layers_from", [0, 1])
def test_gradients_reach_the_rows_and_lora_alone(made, world, layers_from):
    model, codec = load_base(made[1] / "base")
    rows = trained_rows(model, layers_from)
    peft = get_peft_model(model, lora(4, 8, rows=rows, layers=upper(model, layers_from)))
    for name, weight in peft.named_parameters():
        if "lora_B" in name:  # at zero, LoRA's A has no gradient
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.tensor([codec.answer(numbered([1, 2, 3], world[0]))])
    peft(input_ids=ids).logits.square().sum().backward()
    reached = {n for n, p in peft.named_parameters() if p.grad is not None and p.grad.any()}
    ends = {"lm_head"} if layers_from else {"embed_tokens", "lm_head"}
    assert {n for n in reached if "lora" not in n} == {
        n for n, _ in peft.named_parameters() if "trainable_tokens_delta" in n
    }
    assert {end for end in ("embed_tokens", "lm_head") for n in reached if end in n} == ends
    of_layer = {int(n.split("layers.")[1].split(".")[0]) for n in reached if "layers." in n}
    assert of_layer == set(range(layers_from, 3))


def samples(catalog, count=12):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        shown = rng.choice(np.arange(1, len(catalog) + 1), 5, replace=False).tolist()
        rows.append((f"I chose {quoted(shown[:2], catalog)}. More?", numbered(shown[2:], catalog)))
    return pd.DataFrame(rows, columns=["prompt", "completion"])


@pytest.mark.parametrize("layers_from", [0, 1])
def test_what_is_saved_is_small_and_loads_as_it_was(made, world, tmp_path, layers_from):
    model, codec = load_base(made[1] / "base")
    first, count = model.config.item_rows
    before = copy.deepcopy(model)
    frame = samples(world[0])
    knobs = Sft(rank=4, batch_size=4, learning_rate=0.01, repeat_weight=0.5, evaluations=1)
    knobs = knobs.model_copy(update={"layers_from": layers_from})
    titles = title_tokens(codec.tokenizer, world[0])
    tuned, _ = train_sft(model, codec, frame, frame[:4], titles, knobs, 0, tmp_path, autocast=False)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    rows = [shape for name, shape in shapes.items() if "lora" not in name]
    assert rows == [[count, 32]] * (1 if layers_from else 2)
    loaded, _ = load_adapted(made[1] / "base", [tmp_path / "adapter"])
    ids = torch.tensor([codec.prompt(frame["prompt"][0]) + codec.answer(frame["completion"][0])])
    with torch.no_grad():
        told, expected = loaded(input_ids=ids).logits, tuned(input_ids=ids).logits
    assert torch.allclose(told, expected, atol=1e-4)
    assert not torch.allclose(before(input_ids=ids).logits, expected, atol=1e-2)
    for end in ("get_input_embeddings", "get_output_embeddings"):
        new, old = getattr(loaded, end)().weight, getattr(before, end)().weight
        assert type(getattr(loaded, end)()) is type(getattr(before, end)())
        assert torch.equal(new[:first], old[:first]), "ordinary tokens stay"
        frozen = layers_from and end == "get_input_embeddings"
        assert torch.equal(new[first:], old[first:]) == bool(frozen)


def test_rows_of_a_16_bit_model_train_in_32_bits_and_load_as_they_answered(made, world, tmp_path):
    model, codec = load_base(made[1] / "base", "bfloat16")
    frame, knobs = samples(world[0]), Sft(rank=4, batch_size=4, learning_rate=1e-4, evaluations=1)
    tuned, _ = train_sft(model, codec, frame, frame[:4], None, knobs, 0, tmp_path, autocast=False)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = [weight for name, weight in saved.items() if "lora" not in name]
    assert len(rows) == 2 and all(weight.dtype == torch.float32 for weight in rows)
    assert all((weight != weight.bfloat16().float()).any() for weight in rows), "small steps count"
    loaded, _ = load_adapted(made[1] / "base", [tmp_path / "adapter"], "bfloat16")
    ids = torch.tensor([codec.prompt(frame["prompt"][0]) + codec.answer(frame["completion"][0])])
    with torch.no_grad():
        told, expected = loaded(input_ids=ids).logits, tuned(input_ids=ids).logits
    assert torch.allclose(told, expected, atol=0.05)


def test_a_base_reads_is_kept_and_is_loaded_as_it_was(made, world, teacher, pretrained):
    profile, folder, description, rows = made
    assert f"{len(world[0]):,} titles were added" in description and "histories" in description
    assert any("loss" in row for row in rows) and not (folder / "histories").exists()
    weights = sorted(path.name for path in folder.rglob("*.safetensors"))
    assert weights == ["adapter_model.safetensors", ROWS], "no copy of the model"
    plain = load_file(pretrained / "model.safetensors")
    model, codec = load_base(folder / "base")
    began, count = model.config.item_rows
    table = model.get_input_embeddings().weight
    assert count == len(world[0]) and title_tokens(codec.tokenizer, world[0])[1] == began
    assert torch.equal(table[:began], plain["model.embed_tokens.weight"][:began])
    start = load_file(folder / "base" / ROWS)["input"]
    assert not torch.allclose(table[began:], start, atol=1e-4), "reading trained the rows"
    stamp = (folder / "base.json").stat().st_mtime_ns
    where, same, _ = base_of(profile, folder, world, teacher)
    assert (where, same) == (str(folder / "base"), description)
    assert (folder / "base.json").stat().st_mtime_ns == stamp, "a kept base is not made again"


def test_a_reading_that_was_killed_goes_on(pretrained, world, teacher, tmp_path):
    profile = of(pretrained, base={"rank": 2, "steps": 10, "batch_size": 2})
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    base_of(profile, calm, world, teacher)
    seen = []

    class Killed(Exception):
        pass

    def cut(row):
        seen.append(row["step"])
        if len(seen) == 7:
            raise Killed

    given = profile, rough, world[1], world[0], CHAT, teacher, {}
    with pytest.raises(Killed):
        make_base(*given, cut)
    seen.clear()
    make_base(*given, lambda row: seen.append(row["step"]))
    assert min(seen) > 1, "it began anew"
    ends = [load_base(folder / "base")[0].state_dict() for folder in (calm, rough)]
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=1e-6) for name in ends[0])


def test_titles_may_stay_sub_words(pretrained, world, teacher, tmp_path):
    profile = of(pretrained, base={"rank": 2, "steps": 1, "batch_size": 2}, item_tokens=False)
    where, description, _ = base_of(profile, tmp_path, world, teacher)
    model, codec = load_base(where)
    assert "added" not in description and title_tokens(codec.tokenizer, world[0]) is None
    assert not hasattr(model.config, "item_rows") and trained_rows(model, 0) is None
    untouched = of(pretrained, item_tokens=False)
    assert base_of(untouched, tmp_path, world, teacher)[0] == str(pretrained)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda base: (base / "pretrained.json").write_text("{"), "damaged"),
        (lambda base: (base / "pretrained.json").write_text('{"model": 3}'), "damaged"),
        (lambda base: (base / ROWS).write_bytes(b"x"), "not readable"),
        (lambda base: save_file({"input": torch.ones(2, 32)}, base / ROWS), "another model"),
    ],
)
def test_a_damaged_base_is_told(made, tmp_path, damage, message):
    shutil.copytree(made[1] / "base", tmp_path / "base")
    damage(tmp_path / "base")
    with pytest.raises(RecnbError, match=message):
        load_base(tmp_path / "base")


def test_constrained_lists_equal_brute_force(made, world):
    """Greedy lists of three titles, each the best of those that may still come."""
    model, codec = load_base(made[1] / "base")
    ids, catalog = title_tokens(codec.tokenizer, world[0]), world[0]
    banned, prompt = [1, 2, 5], codec.prompt("Three titles, please")
    automaton = CatalogAutomaton(codec, catalog)
    found = decode(model, codec, [prompt], 60, states=[automaton.start(3, banned)])[0]
    text, listed = "", []
    for n in range(1, 4):
        text += f"{n}. " if n == 1 else f"\n{n}. "
        tokens = prompt + codec.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        free = [item for item in range(1, len(catalog) + 1) if item not in banned + listed]
        listed.append(max(free, key=lambda item: logits[ids[item]].item()))
        text += catalog.titles[listed[-1]]
    assert parse(codec.decode(found), catalog).items == listed
    assert found == codec.answer(numbered(listed, catalog))
    wish = Include(catalog.names[0])
    request = Request(0, (3,), (3, 4), wish, 4, 6)
    recommender = LanguageModelRecommender(model, codec, catalog, automaton, obey=True)
    answer = recommender.recommend([request])[0]
    assert len(set(answer.items)) == 4 and set(answer.items) <= catalog.members(wish.category)


def test_rl_goes_on_from_item_tokens(made, world, teacher, smoke, tmp_path):
    model, codec = load_base(made[1] / "base")
    before = copy.deepcopy(model)
    requests = rl_requests(
        8, range(20), world[1], world[0], teacher, smoke.data, 2, 3, np.random.default_rng(0)
    )
    few = {"prompts": 4, "samples": 2, "epochs": 1, "minibatches": 1, "checkpoints": 1, "steps": 2}
    knobs = smoke.ppo.model_copy(update=few)
    train_ppo(model, codec, requests, teacher, world[0], knobs, 0, tmp_path, 25, autocast=True)
    loaded, _ = load_adapted(made[1] / "base", [tmp_path / "actor"])
    for end in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(loaded, end)().weight, getattr(before, end)().weight)
    key = "model.layers.2.mlp.down_proj.weight"
    assert not torch.equal(loaded.state_dict()[key], before.state_dict()[key])
