"""Batched decoding with a cache: greedy or sampled, free or inside the catalogue automaton.

Most tokens of a list are no choice at all: the number of a line, the rest of a title whose first tokens fit no other title.
``decode`` feeds such tokens together with the chosen one. Inside the automaton they are certain; in free decoding they are
guesses, checked against what the model then chooses itself, so that the answer is the model's own, token for token.
"""

import os

import numpy as np
import torch

from recnb import RecnbError
from recnb.instructions.templates import render
from recnb.lm.cache import RaggedCache, feed
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.parsing import parse
from recnb.lm.prepacked import answering

SHARED = 16
"""Tokens that all prompts of a batch begin with are read once where there are so many: below that, another pass costs as much."""

TOGETHER = 1024
"""Tokens of prompts read in one pass on a CPU (64 times as many on a GPU): the system maps larger arrays anew every time."""


class Draft:
    """Guesses what a free answer goes on with, as long as it reads like a list of the catalogue's titles."""

    def __init__(self, automaton, k):
        possible = k <= min(automaton.longest, automaton.total[0])
        self.state, self.eos = automaton.start(k, (), repeats=True) if possible else None, automaton.eos

    def follow(self, token):
        """The model chose a token."""
        if self.state is not None and token in self.state.allowed():
            self.state.advance(token)
        else:
            self.state = None

    def guess(self):
        """Tokens that will probably come next; none where the answer has left the catalogue."""
        return [] if self.state is None else [token for token in self.state.forced() if token != self.eos]


def drafting(codec, catalog):
    """``k -> Draft`` for a catalogue; None where the tokenizer has no automaton, and free decoding guesses nothing."""
    try:
        automaton = CatalogAutomaton(codec, catalog)
    except RecnbError:
        return None
    return lambda k: Draft(automaton, k)


@answering
def decode(model, codec, prompts, max_new, temperature=0.0, generator=None, states=None, drafts=None):
    """Continue token prompts until the end token.

    Args:
        model: causal language model.
        codec: its ``Codec``.
        prompts: lists of token ids. Equal prompts are read once.
        max_new: most new tokens.
        temperature: 0 = the most probable token; otherwise sampling from the whole distribution.
        generator: torch generator for sampling.
        states: for each row an automaton state (``CatalogAutomaton.start``) or None, free decoding; None = all free.
        drafts: for each row a ``Draft`` or None, to speed free decoding up; None = none.

    Returns:
        Lists of new token ids, the end token included where it came.
    """
    cache, logits = _read(model, prompts)
    answers = [[] for _ in prompts]
    running = slots = starts = list(range(len(prompts)))  # the rows not yet done, where the cache and the logits have them
    # The tokens fed last, and how many of them are certain: the others are guesses.
    fed, sure = [[prompt[-1]] for prompt in prompts], [1] * len(prompts)
    while True:
        chosen = _choose(logits, starts, fed, sure, temperature, generator, codec.eos, states and [states[i] for i in running])
        for slot, tokens, n, new in zip(slots, fed, sure, chosen, strict=True):
            if wrong := len(tokens) + 1 - n - len(new):
                cache.length[slot] -= wrong  # wrong guesses are forgotten
        left = []
        for place, (row, tokens) in enumerate(zip(running, chosen, strict=True)):
            fed[place], sure[place] = _next_tokens(tokens, states and states[row], drafts and drafts[row])
            answers[row] += [*tokens[:-1], *fed[place][: sure[place]]]
            if codec.eos not in answers[row] and len(answers[row]) < max_new:
                left.append(place)
        if not left:
            return [answer[:max_new] for answer in answers]
        running, slots, fed, sure = ([of[place] for place in left] for of in (running, slots, fed, sure))
        if len(slots) <= 0.8 * len(cache.length):  # else the rows that are done stay: they cost little, moving all others more
            cache.select(torch.tensor(slots, device=model.device))
            slots = list(range(len(slots)))
        rows, keep = [[] for _ in cache.length], [0] * len(cache.length)
        for slot, tokens, n in zip(slots, fed, sure, strict=True):
            rows[slot], keep[slot] = tokens, len(tokens) - n + 1
        logits, begin = feed(model, cache, rows, keep)
        starts = [begin[slot] for slot in slots]


def _choose(logits, starts, fed, sure, temperature, generator, eos, states):
    """The tokens each row goes on with: as many as its guesses were right, and one more.

    Args:
        logits: [R, V] after the last certain token of each row and after each guess.
        starts: where each row's logits begin.
        fed: tokens fed, a list a row.
        sure: how many of them are certain.
        states: automaton states, or None.
    """
    chosen, rows = [[] for _ in fed], list(range(len(fed)))
    while rows:
        scores = logits[[starts[i] + len(chosen[i]) for i in rows]].float()
        if states and any(states[i] for i in rows):
            scores = _masked(scores, [states[i] for i in rows])
        if temperature:
            tokens = _sample(torch.softmax(scores / temperature, -1), generator)
        else:
            tokens = scores.argmax(-1)
        still = []
        for i, token in zip(rows, tokens.tolist(), strict=True):
            guesses = fed[i][sure[i] :]
            if len(chosen[i]) < len(guesses) and guesses[len(chosen[i])] == token != eos:
                still.append(i)
            chosen[i].append(token)
        rows = still
    return chosen


def _sample(probabilities, generator):
    """One token [R] from each row's distribution [R, V]: where a uniform number falls among the sums of probabilities.

    torch.multinomial draws a number for every token of the vocabulary, which took a third of decoding.
    """
    sums = probabilities.cumsum(-1)
    total = sums[:, -1:].contiguous()
    falls = torch.rand(total.shape, generator=generator, device=total.device) * total
    # A number rounded up to the whole sum would fall behind the last token that has any probability.
    return torch.minimum(torch.searchsorted(sums, falls, right=True), torch.searchsorted(sums, total))[:, 0]


def _next_tokens(tokens, state, draft):
    """What to feed after the tokens just chosen, and how many of it are certain."""
    if state is not None:
        state.advance(tokens[-1])
        fed = [tokens[-1], *state.skip()]
        return fed, len(fed)
    if draft is None:
        return tokens[-1:], 1
    for token in tokens:
        draft.follow(token)
    return [tokens[-1], *draft.guess()], 1


def _masked(logits, states):
    """Logits [R, V] with -inf on what a row's state does not allow; rows without a state stay as they are."""
    guided = np.array([state is not None for state in states])
    allowed = [state.allowed() for state in states if state is not None]
    rows = torch.from_numpy(np.repeat(guided.nonzero()[0], [len(tokens) for tokens in allowed])).to(logits.device)
    tokens = torch.from_numpy(np.concatenate(allowed)).to(logits.device)
    masked = logits.masked_fill(torch.from_numpy(guided).to(logits.device)[:, None], float("-inf"))
    masked[rows, tokens] = logits[rows, tokens]
    return masked


@answering
def beam_search(model, codec, prompts, beams, max_new):
    """The most probable answers by beam search, without a bonus for length.

    Each prompt is read once and its cache copied to the beams; transformers' beam search reads it once a beam.

    Args:
        prompts: P lists of token ids.
        beams: answers wanted for each prompt.
        max_new: most new tokens; an answer still open then is returned as it is.

    Returns:
        For each prompt, ``beams`` lists of token ids, the most probable first.
    """
    cache, logits = _read(model, prompts)
    count, never = len(prompts), torch.tensor(float("-inf"), device=model.device)
    first = torch.arange(count, device=model.device)[:, None]
    open_scores, open_ = torch.zeros(count, 1, device=model.device), torch.zeros(count, 1, 0, dtype=torch.long, device=model.device)
    done_scores = never.expand(count, beams)
    done = torch.full((count, beams, 0), codec.pad, device=model.device)
    for step in range(max_new):
        total = open_scores[:, :, None] + torch.log_softmax(logits.float(), -1).view(*open_scores.shape, -1)
        scores, best = total.flatten(1).topk(2 * beams)  # enough of them: each open answer can end in one way only
        parent, token = best // total.shape[2], best % total.shape[2]
        written = torch.cat([open_.gather(1, _like(parent, open_)), token[:, :, None]], 2)
        ends = (token == codec.eos) | (step + 1 == max_new)
        ranked = torch.arange(2 * beams, device=model.device) < beams  # an end counts if it is among the best
        done_scores, kept = torch.cat([done_scores, torch.where(ends & ranked, scores, never)], 1).topk(beams)
        done = torch.cat([torch.nn.functional.pad(done, (0, 1), value=codec.pad), written], 1)
        done = done.gather(1, _like(kept, done))
        open_scores, kept = torch.where(ends, never, scores).topk(beams)
        if (open_scores[:, 0] <= done_scores[:, -1]).all():  # an open answer can only become less probable
            break
        open_, parent = written.gather(1, _like(kept, written)), parent.gather(1, kept)
        cache.select((first * (len(cache.length) // count) + parent).flatten())
        logits, _ = feed(model, cache, open_[:, :, -1].reshape(-1, 1).tolist(), [1] * (count * beams))
    cut = lambda tokens: tokens[: tokens.index(codec.eos) + 1] if codec.eos in tokens else tokens  # noqa: E731
    return [[cut(tokens) for tokens in group] for group in done.tolist()]


def _like(index, table):
    """An index [P, m] for ``table.gather(1, ...)`` with table [P, n, t]."""
    return index[:, :, None].expand(-1, -1, table.shape[2])


def _read(model, prompts):
    """Cache and logits [B, V] after prompts; equal ones are read once, and so is what all of them begin with."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    cache = RaggedCache(model.config.num_hidden_layers, model.device)
    shared = min(len(os.path.commonprefix(distinct)), min(map(len, distinct)) - 1)
    if len(distinct) > 1 and shared >= SHARED:
        feed(model, cache, [distinct[0][:shared]], [1])
        cache.select(torch.zeros(len(distinct), dtype=torch.long, device=model.device))
    else:
        shared = 0
    rests, logits, read = [prompt[shared:] for prompt in distinct], [], 0
    cache.reserve(len(distinct), max(map(len, distinct)))
    for group in _groups(rests, TOGETHER if model.device.type == "cpu" else 64 * TOGETHER):
        logits.append(feed(model, cache, group, [1] * len(group), slice(read, read + len(group)))[0])
        read += len(group)
    logits = torch.cat(logits)
    if len(distinct) == len(prompts):
        return cache, logits
    number = {prompt: place for place, prompt in enumerate(distinct)}
    copies = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=model.device)
    cache.select(copies)
    return cache, logits[copies]


def _groups(rows, most):
    """Neighbours among token rows together, as long as they have no more tokens than this; a longer row stands alone."""
    groups, room = [], 0
    for row in rows:
        if not groups or len(row) > room:
            groups.append([])
            room = most
        groups[-1].append(row)
        room -= len(row)
    return groups


class LanguageModelRecommender:
    """A language model that answers requests: ``recommend(requests) -> list[Response]``.

    Args:
        model, codec: from ``recnb.lm.loading``.
        catalog: ``Catalog``.
        automaton: ``CatalogAutomaton`` for constrained decoding, None for free.
        obey: the automaton also enforces each request's control.
        batch_size: answers decoded together.
        tokens_per_title: most tokens reserved for each line of the answer.
    """

    def __init__(self, model, codec, catalog, automaton=None, batch_size=128, tokens_per_title=None, seed=0,
                 obey=False):  # fmt: skip
        self.model, self.codec, self.catalog, self.automaton = model, codec, catalog, automaton
        self.draft = None if automaton else drafting(codec, catalog)
        self.batch_size, self.seed, self.obey = batch_size, seed, obey
        lines = codec.tokenizer([f"\n10. {t}" for t in catalog.titles[1:]], add_special_tokens=False)["input_ids"]
        self.per_line = tokens_per_title or max(len(ids) for ids in lines)

    def recommend(self, requests, progress=lambda done, total: None):
        """Answer requests in batches of similar prompt length; the order of the answers is that of the requests."""
        return recommend_together([self], requests, progress)[0]

    def guides(self, requests):
        """What leads the decoding of each request: ``(states, drafts)``, None where there is none."""
        if self.automaton:
            return [self._state(r) for r in requests], [None] * len(requests)
        return [None] * len(requests), [self.draft and self.draft(r.k) for r in requests]

    def _state(self, request):
        needs = request.control.needs(request.k, self.catalog) if self.obey else ()
        return self.automaton.start(request.k, request.seen, needs)


def recommend_together(recommenders, requests, progress=lambda done, total: None):
    """The answers of one model decoding in several ways, each prompt read only once.

    Args:
        recommenders: ``LanguageModelRecommender``s of the same model and prompts; the first one's batch size counts, the
            answers decoded together, of all ways, and its room for a line.

    Returns:
        A list of ``Response`` for each recommender, in the order of the requests.
    """
    first = recommenders[0]
    prompts = first.codec.prompts([request_prompt(r, first.catalog, first.seed) for r in requests])
    order = sorted(range(len(requests)), key=lambda i: (requests[i].k, len(prompts[i])))
    responses = [[None] * len(requests) for _ in recommenders]
    size = max(1, first.batch_size // len(recommenders))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        guides = [recommender.guides([requests[i] for i in rows]) for recommender in recommenders]
        states, drafts = (sum(parts, []) for parts in zip(*guides, strict=True))
        room = {i: (requests[i].k + 1) * first.per_line + 1 for i in rows}
        answers = iter(decode(first.model, first.codec, [prompts[i] for i in rows] * len(recommenders), max(room.values()),
                              states=states, drafts=drafts))  # fmt: skip
        for answered in responses:
            for i in rows:
                tokens = next(answers)[: room[i]]  # an answer without an end must not depend on its neighbours
                answered[i] = parse(first.codec.decode(tokens), first.catalog, len(tokens))
        progress(min(start + size, len(order)), len(order))
    return responses


def request_prompt(request, catalog, seed):
    """The prompt text of a request; the wording of its intention depends on the seed and the user alone."""
    rng = np.random.default_rng([seed, 107, request.user + 1])
    return render(request.control, list(request.history), request.k, catalog, rng)
