"""The language model as a recommender: requests become prompts, answers become lists of titles."""

import numpy as np

from recnb import RecnbError
from recnb.engine.decoding import Draft, decode
from recnb.instructions.templates import render
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.loading import at_hand
from recnb.lm.parsing import parse


def drafting(codec, catalog):
    """``k -> Draft`` for a catalogue; None where the tokenizer has no automaton to guess with."""
    try:
        automaton = CatalogAutomaton(codec, catalog)
    except RecnbError:
        return None
    return lambda k: Draft(automaton, k)


class LanguageModelRecommender:
    """A language model that answers requests: ``recommend(requests) -> list[Response]``.

    Args:
        model, codec: from ``recnb.lm.loading``; or a function in the model's place that opens it
            when it is asked (``OneAtATime``).
        catalog: ``Catalog``.
        automaton: ``CatalogAutomaton`` for constrained decoding, None for free.
        obey: the automaton also enforces each request's control.
        batch_size: answers decoded together.
        cache_bytes: most memory for keys and values while answers are decoded; 0 = no limit.
        writer: continues prompts in the model's place, ``(prompts, rooms) -> token ids`` with the
            most new tokens of each (``recnb.lm.vllm_client``); None = the kit's own decoding.
    """

    def __init__(
        self,
        model,
        codec,
        catalog,
        automaton=None,
        batch_size=128,
        seed=0,
        obey=False,
        cache_bytes=0,
        writer=None,
    ):
        self.writer = writer
        self.model, self.codec, self.catalog, self.automaton = model, codec, catalog, automaton
        self.cache_bytes = cache_bytes
        self.draft = None if automaton or writer else drafting(codec, catalog)
        self.batch_size, self.seed, self.obey = batch_size, seed, obey
        lines = [f"\n10. {title}" for title in catalog.titles[1:]]
        lines = codec.tokenizer(lines, add_special_tokens=False)["input_ids"]
        self.per_line = max(len(ids) for ids in lines)

    def recommend(self, requests, progress=lambda done, total: None):
        """Answer requests, decoded in batches of similar prompt length, in their own order."""
        return recommend_together([self], requests, progress)[0]

    def prompts(self, requests):
        """Token ids of each request's prompt."""
        texts = [request_prompt(r, self.catalog, self.seed) for r in requests]
        return self.codec.prompts(texts)

    def blocks(self, requests, prompts, ways=1):
        """Rows of the requests that are decoded together: all blocks are full but the last.

        Args:
            prompts: theirs.
            ways: in which the model decodes at once.
        """
        order = sorted(range(len(requests)), key=lambda i: (requests[i].k, len(prompts[i])))
        size = max(1, self.batch_size // ways)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def written(self, requests):
        """The answers of the ``writer``."""
        rooms = [(r.k + 1) * self.per_line + 1 for r in requests]
        answers = self.writer(self.prompts(requests), rooms)
        return [parse(self.codec.decode(ids), self.catalog, len(ids)) for ids in answers]

    def guides(self, requests):
        """What leads each request's decoding: ``(states, drafts)``, None where nothing does."""
        if self.automaton:
            return [self._state(r) for r in requests], [None] * len(requests)
        return [None] * len(requests), [self.draft and self.draft(r.k) for r in requests]

    def _state(self, request):
        needs = request.control.needs(request.k, self.catalog) if self.obey else ()
        return self.automaton.start(request.k, request.seen, needs)


def recommend_together(recommenders, requests, progress=lambda done, total: None):
    """The answers of one model decoding in several ways, each prompt read only once.

    Args:
        recommenders: ``LanguageModelRecommender``s of the same model and prompts. The first one's
            batch size counts (answers of all ways decoded together), and its room for a line.

    Returns:
        A list of ``Response`` for each recommender, in the order of the requests.
    """
    others = [recommender for recommender in recommenders if not recommender.writer]
    if len(others) < len(recommenders):
        led = iter(recommend_together(others, requests, progress) if others else [])
        found = [one.written(requests) if one.writer else next(led) for one in recommenders]
        progress(len(requests), len(requests))
        return found
    first = recommenders[0]
    model, prompts, done = at_hand(first.model), first.prompts(requests), 0
    responses = [[None] * len(requests) for _ in recommenders]
    for rows in first.blocks(requests, prompts, len(recommenders)):
        asked, states, drafts = [], [], []
        for recommender in recommenders:
            own_states, own_drafts = recommender.guides([requests[i] for i in rows])
            states += own_states
            drafts += own_drafts
            asked += [prompts[i] for i in rows]
        room = {i: (requests[i].k + 1) * first.per_line + 1 for i in rows}
        most = max(room.values())
        given = model, first.codec, asked, most
        room_for = {"cache_bytes": first.cache_bytes}
        answers = iter(decode(*given, states=states, drafts=drafts, **room_for))
        for answered in responses:
            for i in rows:
                # An answer without an end must not depend on its neighbours.
                tokens = next(answers)[: room[i]]
                answered[i] = parse(first.codec.decode(tokens), first.catalog, len(tokens))
        done += len(rows)
        progress(done, len(requests))
    return responses


def request_prompt(request, catalog, seed):
    """The prompt text of a request; seed and user alone decide how its intention is worded."""
    if request.prompt is not None:
        return request.prompt
    rng = wording_rng(request, seed)
    return render(request.control, list(request.history), request.k, catalog, rng)


def wording_rng(request, seed):
    """The generator that draws the wording of a user's wish."""
    return np.random.default_rng([seed, 107, request.user + 1])
