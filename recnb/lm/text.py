"""Between text and tokens: prompts in a model's own chat form, the exact bytes of each token."""

import re
from functools import lru_cache

from recnb import RecnbError

ANSWER = "recnb-answer"
"""Stands for an answer where a chat template is asked what it writes around one."""


class Codec:
    """A tokenizer with what the kit needs of it.

    Prompt and answer together are what the tokenizer's chat template writes for the two, byte for
    byte, up to the token that ends the answer. Without a template they are the paper's form
    (section 2.2), ended by the end-of-sequence token.

    Attributes:
        tokenizer: a transformers tokenizer.
        eos: id of the token that ends an answer: the special token that the template writes behind
            it, else the tokenizer's end of sequence.
        ending: token ids that end an answer, ``eos`` last; Llama-2 writes a blank before it.
        pad: id of the padding token; where there is none, ``eos``, which is masked as padding is.
        notes: sentences about what the tokenizer lacks, and what is done without it.
        pieces: list of bytes, one a token id; special tokens are empty. Joined, they are the
            decoded text, so the place of every character in a sampled token sequence is known
            without decoding twice.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.notes = tokenizer, []
        name = tokenizer.name_or_path or type(tokenizer).__name__
        self.pieces = _pieces(tokenizer)
        self.opening, self.tail, self.eos = "", "", tokenizer.eos_token_id
        if tokenizer.chat_template:
            self._read_template(name)
        else:
            self.notes.append(
                f'tokenizer {name} has no chat template: prompts are written as "Instruction: '
                '...", answers behind "Output: " (section 2.2 of the paper); a chat model needs '
                "its own chat_template"
            )
        if self.eos is None:
            raise RecnbError(
                f"tokenizer {name}: it has no end-of-sequence token, which ends an answer: set "
                "eos_token in its tokenizer_config.json, or choose another model (model.name)"
            )
        self.pad = tokenizer.pad_token_id
        if self.pad is None:
            self.pad = self.eos
            self.notes.append(
                f"tokenizer {name} has no pad token: batches are filled up with the end token, "
                "which no loss and no attention sees there"
            )
        self.ending = [*self._ids(ANSWER + self.tail)[len(self._ids(ANSWER)) :], self.eos]

    def _read_template(self, name):
        """What the chat template writes between prompt and answer, and behind the answer."""
        asked = [{"role": "user", "content": "A question"}]
        try:
            invited = self._render(asked, invite=True)
            whole = self._render([*asked, {"role": "assistant", "content": ANSWER}], invite=False)
        except Exception as error:  # templates are programs and raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise RecnbError(
                f"tokenizer {name}: its chat template cannot write a question and an answer "
                f"({reason}): set another chat_template, or choose another model (model.name)"
            ) from error
        before, found, after = whole.partition(ANSWER)
        if not found or not before.startswith(invited):
            self.notes.append(
                f"tokenizer {name}: its chat template does not write an answer behind the prompt: "
                "answers are ended by the end-of-sequence token"
            )
            return
        self.opening = before[len(invited) :]
        # SentencePiece writes the blank before a text itself, with the text's first token.
        if self.opening.endswith(" ") and self.decode(self._ids("x")) == " x":
            self.opening = self.opening[:-1]
        special = [t for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        ends = [(after.find(t.content), t.content) for t in special if t.content in after]
        if ends:
            place, end = min(ends)
            self.tail, self.eos = after[:place], self.tokenizer.convert_tokens_to_ids(end)

    def _render(self, messages, invite):
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=invite
        )

    def _ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt(self, text):
        """Token ids of a user's message, up to where the answer starts."""
        if self.tokenizer.chat_template:
            text = self._render([{"role": "user", "content": text}], invite=True)
            return self._ids(text + self.opening)
        ids = self.tokenizer(f"Instruction: {text}\nOutput: ")["input_ids"]
        return ids[:-1] if ids[-1:] == [self.eos] else ids  # some tokenizers end every text

    def prompts(self, texts):
        """``prompt`` for many texts."""
        return [self.prompt(text) for text in texts]

    def answer(self, text):
        """Token ids of an answer, with its ending."""
        return [*self._ids(text + self.tail), self.eos]

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
