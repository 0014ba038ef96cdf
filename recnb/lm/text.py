"""Between text and tokens: prompts in a model's own chat form, the exact bytes of each token."""

import re
from functools import lru_cache

from recnb import RecnbError


class Codec:
    """A tokenizer with what the kit needs of it.

    Attributes:
        tokenizer: a transformers tokenizer.
        eos: id of the token that ends an answer.
        pieces: list of bytes, one a token id; special tokens are empty. Joined, they are the
            decoded text, so the place of every character in a sampled token sequence is known
            without decoding twice.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.eos = tokenizer.eos_token_id
        if self.eos is None:
            name = tokenizer.name_or_path or type(tokenizer).__name__
            raise RecnbError(
                f"tokenizer {name}: it has no end-of-sequence token, which ends an answer: set "
                "eos_token in its tokenizer_config.json, or choose another model (model.name)"
            )
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.pieces = _pieces(tokenizer)

    def prompt(self, text):
        """Token ids of a user's message, up to where the answer starts."""
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.tokenizer(f"Instruction: {text}\nOutput: ")["input_ids"]

    def prompts(self, texts):
        """``prompt`` for many texts."""
        return [self.prompt(text) for text in texts]

    def answer(self, text):
        """Token ids of an answer, with the end token."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.eos]

    def decode(self, ids):
        """Text of token ids; bytes that are no UTF-8 become the replacement character."""
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


def _pieces(tokenizer):
    vocabulary = tokenizer.get_vocab()
    added = dict(tokenizer.added_tokens_decoder)
    byte_level = any(token.startswith("Ġ") for token in vocabulary)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        if i in added:
            pieces[i] = b"" if added[i].special else added[i].content.encode()
        elif byte_level:
            pieces[i] = bytes(_byte_alphabet()[c] for c in token)
        elif match := re.fullmatch(r"<0x([0-9A-F]{2})>", token):  # SentencePiece's single bytes
            pieces[i] = bytes([int(match[1], 16)])
        else:
            pieces[i] = token.replace("▁", " ").encode()
    return pieces


@lru_cache
def _byte_alphabet():
    """GPT-2's: printable bytes stand for themselves, characters from 256 on for all other bytes."""
    printable = []
    for first, last in ("!~", "¡¬", "®ÿ"):
        printable += range(ord(first), ord(last) + 1)
    alphabet, extra = {chr(b): b for b in printable}, 0
    for byte in range(256):
        if byte not in printable:
            alphabet[chr(256 + extra)] = byte
            extra += 1
    return alphabet
