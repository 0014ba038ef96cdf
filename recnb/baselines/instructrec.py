"""InstructRec (Zhang et al. 2023) as the paper compares with it: lists by beam search.

It is trained to answer each instruction with one next title. Its 39 instructions come from three
sources, each a kind of sample here: the history, a preference (what the history is full of) and an
intention (a category of the title to come). None of them excludes anything or names a share.
Backbone: the profile's model, where the paper takes Flan-T5-XL.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from recnb.controls import Include, NoControl
from recnb.engine.cache import token_bytes
from recnb.engine.decoding import beam_search
from recnb.instructions.templates import numbered, render
from recnb.lm.loading import at_hand
from recnb.lm.parsing import parse
from recnb.lm.recommender import request_prompt

PREFERENCE = (
    "You are an expert recommender engine. You need to generate a recommendation list considering "
    "user's preference. The user prefers {liked}. You need to generate a recommendation list with "
    "{k} different items."
)


def samples(histories, catalog, count, data_knobs, seed):
    """InstructRec's training set, a third of each kind; an answer lists one item, the next one.

    Args:
        count: number of samples.

    Returns:
        DataFrame prompt, completion.

    Raises:
        RecnbError: no user has two training interactions.
    """
    rng = np.random.default_rng([seed, 115])
    rows = []
    for number, user in enumerate(rng.choice(histories.training_users(), size=count)):
        items = histories.train(user)
        place = histories.draw_target(user, data_knobs.latest_share, rng)
        shown = items[max(0, place - data_knobs.history_length) : place].tolist()
        target = int(items[place])
        own, liked = sorted(catalog.categories[target]), frequent_categories(shown, catalog)
        if number % 3 == 1 and liked:
            prompt = PREFERENCE.format(liked=", ".join(liked), k=1)
        elif number % 3 == 2 and own:
            prompt = render(Include(str(rng.choice(own))), shown, 1, catalog, rng)
        else:
            prompt = render(NoControl(), shown, 1, catalog, rng)
        rows.append((prompt, numbered([target], catalog)))
    return pd.DataFrame(rows, columns=["prompt", "completion"])


def frequent_categories(items, catalog, most=3):
    """The categories named most often by these items, at most three; ties by name."""
    counts = {}
    for item in items:
        for name in catalog.categories[item]:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]


class InstructRec:
    """Answers a request for k titles with the k best beams of a request for one.

    Args:
        model, codec: the tuned model; or in its place a function that opens it.
        batch_size: beams decoded together; a request has k.
        cache_bytes: most memory for their keys and values; 0 = no limit.
    """

    def __init__(self, model, codec, catalog, batch_size, seed, cache_bytes=0):
        self.model, self.codec, self.catalog = model, codec, catalog
        self.batch_size, self.seed, self.cache_bytes = batch_size, seed, cache_bytes
        lines = [f"1. {title}" for title in catalog.titles[1:]]
        tokens = codec.tokenizer(lines, add_special_tokens=False)["input_ids"]
        self.room = max(map(len, tokens)) + len(codec.ending)

    def prompts(self, requests):
        """Token ids of each prompt, which asks for one title."""
        one = [replace(request, k=1) for request in requests]
        return [self.codec.prompt(request_prompt(r, self.catalog, self.seed)) for r in one]

    def blocks(self, requests, prompts, ways=1):
        """Rows of the requests that are decoded together: of one k, full but for the last of it."""
        order = sorted(range(len(requests)), key=lambda i: (requests[i].k, len(prompts[i])))
        found, start = [], 0
        while start < len(order):
            k = requests[order[start]].k
            part = order[start : start + max(1, self.batch_size // k)]
            found.append([i for i in part if requests[i].k == k])
            start += len(found[-1])
        return found

    def recommend(self, requests, progress=lambda done, total: None):
        """One list a request; a beam that lists no title keeps its place, its text in brackets."""
        prompts, done = self.prompts(requests), 0
        answers, model = [None] * len(requests), at_hand(self.model)
        for rows in self.blocks(requests, prompts):
            k, groups = requests[rows[0]].k, []
            for fitting in self._fitting(rows, k, prompts, model):
                asked = [prompts[i] for i in fitting]
                groups += beam_search(model, self.codec, asked, k, self.room)
            for i, beams in zip(rows, groups, strict=True):
                titles = [self._title(self.codec.decode(tokens)) for tokens in beams]
                text = "\n".join(f"{n}. {title}" for n, title in enumerate(titles, start=1))
                answers[i] = parse(text, self.catalog, sum(map(len, beams)))
            done += len(rows)
            progress(done, len(requests))
        return answers

    def _fitting(self, rows, k, prompts, model):
        """Rows of a block whose beams' keys and values fit into ``cache_bytes``, one at least."""
        size = len(rows)
        if self.cache_bytes:
            longest = max(len(prompts[i]) for i in rows) + self.room
            size = max(1, self.cache_bytes // (k * longest * token_bytes(model)))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _title(self, text):
        found = parse(text, self.catalog).titles
        return found[0] if found else f"({' '.join(text.split())})"
