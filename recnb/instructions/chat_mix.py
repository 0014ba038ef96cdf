"""General conversation (I4), mixed in so that the model does not forget how to talk.

ShareGPT comes from a pinned package and is used at run time only. The synthetic dataset has small
talk of its own.
"""

import json

from recnb import RecnbError, sources


def records(text_file, piece=1 << 20):
    """Decode a JSON array record by record; one that is cut off gives all its whole records.

    Args:
        text_file: open text file that starts with ``[``.
        piece: characters read at a time.
    """
    decoder, ended = json.JSONDecoder(), False
    buffer = text_file.read(piece).lstrip()
    if not buffer.startswith("["):
        name = getattr(text_file, "name", "the conversation file")
        raise RecnbError(
            f"{name}, line 1: starts with {buffer[:20]!r}, a JSON array of conversations starts "
            "with '[': delete it to have it downloaded again"
        )
    buffer = buffer[1:]
    while True:
        buffer = buffer.lstrip(", \n\r\t")
        try:
            record, end = decoder.raw_decode(buffer)
        except json.JSONDecodeError:
            if ended:
                return
            more = text_file.read(piece)
            ended = not more
            buffer += more
            continue
        yield record
        buffer = buffer[end:]


def sharegpt(words, limit):
    """First exchanges in English of moderate length: ``[(prompt, answer), ...]``.

    Args:
        words: most words in prompt and answer together.
        limit: stop after this many.
    """
    path = sources.fetch(sources.SHAREGPT) / "ShareGPT_V3_unfiltered_cleaned_split.json"
    pairs = []
    with open(path, encoding="utf-8") as file:
        for record in records(file):
            turns = record.get("conversations") or []
            if len(turns) < 2 or turns[0].get("from") != "human" or turns[1].get("from") != "gpt":
                continue
            prompt, answer = turns[0]["value"].strip(), turns[1]["value"].strip()
            says_something = min(len(prompt.split()), len(answer.split())) >= 3
            moderate = says_something and _moderate(prompt + " " + answer, words)
            if moderate and _english(prompt) and _english(answer):
                pairs.append((prompt, answer))
            if len(pairs) == limit:
                break
    return pairs


def _moderate(text, words):
    """At most this many words, none longer than is ordinary: code and tables have few blanks."""
    return len(text.split()) <= words and len(text) <= 8 * words


def _english(text):
    return text.isascii() and "http" not in text and "<" not in text


def small_talk(limit, rng):
    """Additions and greetings for the synthetic world: ``[(prompt, answer), ...]``."""
    pairs = []
    for _ in range(limit):
        a, b = (int(n) for n in rng.integers(1, 10, size=2))
        if rng.random() < 0.7:
            pairs.append((f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."))
        else:
            pairs.append(("How are you today?", "I am fine, thank you. What can I do for you?"))
    return pairs


def conversations(dataset, words, limit, rng):
    """Conversations that fit the dataset: small talk for the synthetic one, ShareGPT otherwise."""
    return small_talk(limit, rng) if dataset == "synthetic" else sharegpt(words, limit)
