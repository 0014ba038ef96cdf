"""The mini model's tokenizer: byte-level BPE on chat, plus whole phrases and titles as tokens.

A model of a few million parameters that trains for minutes cannot afford to read the same sentence
word by word forty thousand times. The fixed phrases of the templates, a list's numbers ("\\n2. "),
the names of categories and (``whole_titles``) every title are single tokens: a request for ten
films is about 40 tokens instead of 250. With whole titles the model cannot invent a title; with
sub-word titles it can.
"""

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recnb.controls import DISLIKE, LIKE, Share, _subclasses
from recnb.instructions import templates

SPECIAL = ["<pad>", "<bos>", "<eos>"]
CHAT_TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}Instruction: {{ m['content'] }}\n"
    "{% else %}Output: {{ m['content'] }}{{ '<eos>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Output: {% endif %}"
)
LISTED = 20
"""List numbers up to this one are single tokens."""


def phrases():
    """The fixed pieces of all templates and intentions, cut at placeholders and sentence ends."""
    share = "In the recommendation list, the proportion of '{{}}' items should be {} {{}}"
    texts = [*templates.ALL, *LIKE, *DISLIKE, *(share.format(cls.words) for cls in _words())]
    pieces = set()
    for text in texts:
        for part in re.split(r"{\w*}", text):
            pieces.update(re.findall(r"[^.:]+[.:]?|[.:]", part))
    pieces = sorted(piece for piece in pieces if len(piece) > 1)
    percents = [f"{n}0%" for n in range(11)]
    return [*pieces, "Instruction: ", "\nOutput: ", "', '", *percents]


def _words():
    return [cls for cls in _subclasses(Share) if hasattr(cls, "words")]


def build_tokenizer(catalog, chat, vocabulary, whole_titles):
    """Train the tokenizer.

    Args:
        catalog: ``Catalog``.
        chat: pairs (prompt, answer) to learn ordinary words from.
        vocabulary: number of byte-pair tokens.
        whole_titles: every title is one token.

    Returns:
        A ``PreTrainedTokenizerFast`` with chat template, pad, bos and eos.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    corpus = []
    for prompt, answer in chat:
        corpus += [prompt, answer]
    corpus += templates.ALL * 5 + catalog.titles[1:] + catalog.names * 20
    corpus += [f"{n} {n}0% {n}%" for n in range(LISTED + 1)] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(corpus, trainer)
    numbers = ["1. ", *(f"\n{n}. " for n in range(2, LISTED + 1))]
    bpe.add_tokens([AddedToken(text, normalized=False) for text in [*phrases(), *numbers]])
    # A name is a token where it stands as a word: not the "War" in "Wars".
    bpe.add_tokens([AddedToken(name, normalized=False, single_word=True) for name in catalog.names])
    if whole_titles:
        bpe.add_tokens([AddedToken(title, normalized=False) for title in catalog.titles[1:]])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def title_tokens(tokenizer, catalog):
    """Token ids of all titles [N+1], the padding token first; None if some title is no token."""
    vocabulary = tokenizer.get_vocab()
    if any(title not in vocabulary for title in catalog.titles[1:]):
        return None
    return [tokenizer.pad_token_id, *(vocabulary[title] for title in catalog.titles[1:])]
