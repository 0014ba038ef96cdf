"""InstructRec (Zhang et al. 2023) as the paper compares with it: one next title for each instruction, lists by beam search.

Its 39 instructions come from three sources, each a kind of sample here: the history, a preference (what the history is full
of) and an intention (a category of the title to come). None of them excludes anything or names a share. Backbone: the
profile's model, where the paper takes Flan-T5-XL.
"""

import numpy as np
import pandas as pd

from recnb.controls import Include, NoControl
from recnb.instructions.templates import numbered, render
from recnb.lm.generation import beam_search, request_prompt
from recnb.lm.parsing import parse

PREFERENCE = (
    "You are an expert recommender engine. You need to generate a recommendation list considering user's preference. "
    "The user prefers {liked}. You need to generate a recommendation list with {k} different items."
)


def samples(histories, catalog, count, data_knobs, seed):
    """InstructRec's training set, a third of each kind: the answer is a list of one, the item that came next.

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
        shown, target = items[max(0, place - data_knobs.history_length) : place].tolist(), int(items[place])
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
        model, codec: the tuned model.
        batch_size: beams decoded together; a request has k.
    """

    def __init__(self, model, codec, catalog, batch_size, seed):
        self.model, self.codec, self.catalog, self.batch_size, self.seed = model, codec, catalog, batch_size, seed
        lines = codec.tokenizer([f"1. {t}" for t in catalog.titles[1:]], add_special_tokens=False)["input_ids"]
        self.room = max(map(len, lines)) + 1

    def recommend(self, requests, progress=lambda done, total: None):
        """One list a request; a beam that is no list of one keeps its place with its text in brackets."""
        one = [type(r)(r.user, r.history, r.seen, r.control, 1, r.target) for r in requests]
        prompts = [self.codec.prompt(request_prompt(r, self.catalog, self.seed)) for r in one]
        order = sorted(range(len(requests)), key=lambda i: (requests[i].k, len(prompts[i])))
        answers, start = [None] * len(requests), 0
        while start < len(order):
            k = requests[order[start]].k
            rows = [i for i in order[start : start + max(1, self.batch_size // k)] if requests[i].k == k]
            groups = beam_search(self.model, self.codec, [prompts[i] for i in rows], k, self.room)
            for i, beams in zip(rows, groups, strict=True):
                titles = [self._title(self.codec.decode(tokens)) for tokens in beams]
                text = "\n".join(f"{n}. {title}" for n, title in enumerate(titles, start=1))
                answers[i] = parse(text, self.catalog, sum(map(len, beams)))
            start += len(rows)
            progress(start, len(order))
        return answers

    def _title(self, text):
        found = parse(text, self.catalog).titles
        return found[0] if found else f"({' '.join(text.split())})"
