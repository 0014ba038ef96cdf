"""Prompt and answer are what the tokenizer's own chat template writes, byte for byte.

Tiny tokenizers of the two kinds that matter (SentencePiece with its blanks, byte-level BPE) carry
the published templates of Llama-2, Llama-3, Llama-3.1, Qwen2.5, Qwen3 and SmolLM2.
"""

import copy
import json
from importlib.resources import files

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recnb import RecnbError, sources
from recnb.catalog import Catalog
from recnb.instructions.templates import numbered
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.loading import known_codec, mini_model
from recnb.lm.text import Codec
from recnb.profile import Model, Sft, load
from recnb.sft import train_sft

CATALOG = Catalog(["Heat", "Heat Wave", "Babe"], [{"A"}, {"A"}, {"B"}])
ASKED = ["Ten films", "You like 'Heat', 'Amélie'.\nTwo films, please"]
ANSWERS = ["1. Heat\n2. Babe", "Yes", "1. Heat Wave"]


def published(name):
    """A model's own chat template, as trl keeps it."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


# As in the tokenizer_config.json of meta-llama/Llama-2-7b-chat-hf.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    r"{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
# As in SmolLM2-135M-Instruct, which test_the_real_smollm2 opens.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
THOUGHT = "<think>\n\n</think>\n\n"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
MODELS = {
    # name: kind of tokenizer, template, what stands before the question, behind it, at the end
    "Llama-2": ("pieces", LLAMA2, "<s>[INST] ", " [/INST] ", " </s>"),
    "Llama-3": (
        "bytes",
        published("llama3"),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "Llama-3.1": (
        "bytes",
        published("llama3_1"),
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{DATES}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "Qwen2.5": (
        "bytes",
        published("qwen2_5"),
        f"<|im_start|>system\n{QWEN}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "Qwen3": (
        "bytes",
        published("qwen3"),
        "<|im_start|>user\n",
        f"<|im_end|>\n<|im_start|>assistant\n{THOUGHT}",
        "<|im_end|>",
    ),
    "SmolLM2": (
        "bytes",
        SMOLLM2,
        f"<|im_start|>system\n{SMOLLM}<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
}
BOS = {"Llama-2": "<s>"} | dict.fromkeys(["Llama-3", "Llama-3.1"], "<|begin_of_text|>")


SPECIAL = ["<unk>", "<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>"]
SPECIAL += ["<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
WORDS = [*ASKED, *ANSWERS, "[INST] a [/INST] 1. Heat", "1. a\n2. b\n3. c", "user assistant"]


def tokenizer_of(kind, template, bos=None, eos="</s>"):
    """A tokenizer trained on a few words, no pad token: "pieces" like Llama-2's, or "bytes"."""
    bpe = {"pieces": _pieces, "bytes": _bytes}[kind]()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _trained(bpe, alphabet):
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(WORDS * 3, trainer)
    return bpe


def _bytes():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return _trained(bpe, pre_tokenizers.ByteLevel.alphabet())


def _pieces():
    """SentencePiece's way: a blank before every text, single bytes for what is unknown."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"), normalizers.Replace("\n", "▁")]
    )
    learned.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learned = json.loads(_trained(learned, ["▁"]).to_str())
    vocabulary = learned["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in learned["model"]["merges"]]
    bpe = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bpe.add_special_tokens(SPECIAL)
    return bpe


def codec_of(name):
    kind, template, _, _, end = MODELS[name]
    return Codec(tokenizer_of(kind, template, BOS.get(name), end.strip()))


def written(codec, ids):
    """The text of tokens, special ones spelled out."""
    names = codec.tokenizer.convert_ids_to_tokens(ids)
    pairs = zip(ids, names, strict=True)
    return "".join(codec.decode([i]) or name for i, name in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_prompt_and_answer_are_what_the_template_writes(name):
    codec = codec_of(name)
    _, _, before, between, end = MODELS[name]
    for asked in ASKED:
        for answer in ANSWERS:
            turns = [("user", asked), ("assistant", answer)]
            messages = [{"role": role, "content": content} for role, content in turns]
            whole = codec.tokenizer.apply_chat_template(messages, tokenize=False)
            assert whole.rstrip("\n") == before + asked + between + answer + end
            expected = codec.tokenizer(whole, add_special_tokens=False)["input_ids"]
            found = codec.prompt(asked) + codec.answer(answer)
            assert expected[: len(found)] == found
            rest = codec.decode(expected[len(found) :])
            assert rest in ("", "\n"), "the answer's end token is the last that is taught"
            assert codec.eos == found[-1] and written(codec, [codec.eos]) == end.strip()


def test_llama2_reads_these_bytes():
    codec = codec_of("Llama-2")
    ids = codec.prompt("Ten films") + codec.answer("1. Heat")
    expected = "<s> [INST] Ten films [/INST] 1. Heat </s>"  # SentencePiece's blank behind <s>
    assert written(codec, ids) == expected
    assert codec.decode(codec.ending) == " " and codec.ending[-1] == codec.tokenizer.eos_token_id


def test_an_end_token_of_the_template_counts_though_the_tokenizer_names_another():
    tokenizer = tokenizer_of("bytes", SMOLLM2, eos="</s>")
    codec = Codec(tokenizer)
    assert codec.eos == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["Llama-2", "Llama-3"])
def test_guided_answers_end_as_taught_ones_do(name):
    codec = codec_of(name)
    automaton = CatalogAutomaton(codec, CATALOG)
    for items in ([1, 3], [3, 1], [2, 1]):  # Heat begins Heat Wave: it may end or go on
        taught = codec.answer(numbered(items, CATALOG))
        state, forced = automaton.start(2, ()), automaton.start(2, ())
        said = []
        for token in taught:
            assert token in state.allowed()
            state.advance(token)
        assert state.done and list(state.allowed()) == [codec.eos]
        while codec.eos not in said:
            ahead = forced.skip()
            assert ahead == taught[len(said) : len(said) + len(ahead)]
            said += ahead
            if codec.eos not in said:
                forced.advance(taught[len(said)])
                said.append(taught[len(said)])
        assert said == taught


def test_mini_ends_with_its_end_token_alone(language_model):
    codec = language_model[1]
    assert codec.notes == [] and codec.ending == [codec.tokenizer.eos_token_id]
    assert codec.opening == codec.tail == ""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "1. x"}]
    whole = codec.tokenizer.apply_chat_template(messages, tokenize=False)
    ids = codec.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert codec.prompt("Hi") + codec.answer("1. x") == ids


def test_the_real_smollm2():
    try:
        sources.fetch(sources.SMOLLM2)
    except RecnbError as error:
        if "sha256" in str(error):
            raise
        pytest.skip(f"SmolLM2 cannot be fetched here: {error}")
    codec = known_codec(Model(name="smollm2"), CATALOG)
    assert codec.tokenizer.chat_template.strip() == SMOLLM2
    _, _, before, between, end = MODELS["SmolLM2"]
    ids = codec.prompt("Ten films") + codec.answer("1. Heat")
    assert written(codec, ids) == f"{before}Ten films{between}1. Heat{end}"
    assert codec.eos == codec.tokenizer.eos_token_id and codec.ending == [codec.eos]


def test_without_a_template_the_papers_form_is_used_and_told():
    tokenizer = tokenizer_of("pieces", None, bos="<s>")
    codec = Codec(tokenizer)
    assert "no chat template" in codec.notes[0] and "section 2.2" in codec.notes[0]
    assert codec.decode(codec.prompt("Hi") + codec.answer("1. x")) == (
        " Instruction: Hi\nOutput:  1. x"
    )
    assert codec.ending == [tokenizer.eos_token_id]


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of("pieces", None, bos="<s>")
    ends = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A </s>", None, ends)
    ids = Codec(tokenizer).prompt("Hi")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids


@pytest.mark.parametrize(
    "template, said",
    [("{{ raise_exception('no such role') }}", "no such role"), ("{{ x.y.z }}", "undefined")],
)
def test_a_template_that_fails_is_told(template, said):
    with pytest.raises(RecnbError, match=f"chat template cannot write .*{said}.*chat_template"):
        Codec(tokenizer_of("bytes", template))


def test_a_template_without_answers_ends_them_with_the_end_of_sequence():
    template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}"
    codec = Codec(tokenizer_of("bytes", template + "{% endfor %}"))
    assert "does not write an answer" in codec.notes[0]
    assert codec.ending == [codec.tokenizer.eos_token_id]


def test_no_end_at_all_is_an_error():
    with pytest.raises(RecnbError, match="no end-of-sequence token"):
        Codec(tokenizer_of("bytes", None, eos=None))


def test_without_a_pad_token_the_end_is_still_taught(tmp_path):
    """Batches are filled up with the end token: the loss must be the one of a true pad token."""
    bare = codec_of("Llama-2")
    assert bare.tokenizer.pad_token is None and "no pad token" in bare.notes[-1]
    padded = copy.deepcopy(bare.tokenizer)
    padded.pad_token = "<unk>"
    padded = Codec(padded)
    assert padded.notes == [] and padded.pad != padded.eos == bare.pad
    texts = {"prompt": ["Hi", "Two films, please"], "completion": ["1. Heat", "1. Heat\n2. Babe"]}
    knobs = Sft(rank=0, batch_size=2, learning_rate=0.01, epochs=3, evaluations=1, checkpoints=1)
    losses, fresh = [], mini_model(len(padded.tokenizer), load("smoke").model, padded, 0)
    for codec in (bare, padded):
        model = copy.deepcopy(fresh)
        frame = pd.DataFrame(texts)
        folder = tmp_path / str(codec.pad)
        _, rows = train_sft(model, codec, frame, frame, None, knobs, 0, folder, autocast=False)
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]
