"""Batched decoding with a cache: greedy or sampled, free or inside the catalogue automaton.

Most tokens of a list are no choice at all: the number of a line, the rest of a title whose first
tokens fit no other title. ``decode`` feeds such tokens together with the chosen one. Inside the
automaton they are certain; in free decoding they are guesses, checked against what the model then
chooses itself, so that the answer is the model's own, token for token.
"""

import os

import numpy as np
import torch

from recnb.engine.cache import RaggedCache, feed, token_bytes
from recnb.engine.packed import neighbours
from recnb.engine.prepacked import answering

SHARED = 16
"""A beginning shared by all prompts is read once if it is so long; else a pass costs as much."""

TOGETHER = 1024
"""Tokens of prompts read in one pass on a CPU, 64 times as many on a GPU.

The system maps larger arrays anew every time.
"""


class Draft:
    """Guesses how a free answer goes on, as long as it reads like a list of catalogue titles."""

    def __init__(self, automaton, k):
        possible = k <= automaton.total[0]
        self.state = automaton.start(k, (), repeats=True) if possible else None
        self.eos = automaton.eos

    def follow(self, token):
        """The model chose a token."""
        if self.state is not None and token in self.state.allowed():
            self.state.advance(token)
        else:
            self.state = None

    def guess(self):
        """Tokens that will probably come next; none where the answer has left the catalogue."""
        if self.state is None:
            return []
        return [token for token in self.state.forced() if token != self.eos]


@answering
def decode(
    model,
    codec,
    prompts,
    max_new,
    temperature=0.0,
    generator=None,
    states=None,
    drafts=None,
    numbers=None,
    cache_bytes=0,
):
    """Continue token prompts until the end token.

    Args:
        model: causal language model.
        codec: its ``Codec``.
        prompts: lists of token ids. Equal prompts are read once.
        max_new: most new tokens.
        temperature: 0 = the most probable token; otherwise sampling from the whole distribution.
        generator: torch generator for sampling.
        states: for each row an automaton state (``CatalogAutomaton.start``) or None, free decoding;
            None = all free.
        drafts: for each row a ``Draft`` or None, to speed free decoding up; None = none.
        numbers: float [B, max_new] from 0 to 1, which of each row's tokens is sampled at each
            place, whatever rows are decoded beside it; None = the generator's next ones.
        cache_bytes: most memory for keys and values; rows that do not fit are decoded one group
            after another, at least one row at a time. 0 = all together.

    Returns:
        Lists of new token ids, the end token included where it came.
    """
    longest = max(map(len, prompts)) + max_new + RaggedCache.block
    group, answers = len(prompts), []
    if cache_bytes:
        group = max(1, cache_bytes // (longest * token_bytes(model)))
    for start in range(0, len(prompts), group):
        part = slice(start, start + group)
        guides = states and states[part], drafts and drafts[part]
        drawn = None if numbers is None else numbers[part].tolist()
        sampling = temperature, generator, drawn
        answers += _decode_together(model, codec, prompts[part], max_new, *sampling, *guides)
    return answers


def _decode_together(
    model, codec, prompts, max_new, temperature, generator, numbers, states, drafts
):
    """``decode`` of rows whose cache fits."""
    cache, logits = _read(model, prompts)  # [R, V], what may follow each row's prompt
    answers = [[] for _ in prompts]
    running = list(range(len(prompts)))  # the rows not yet done; the lists below keep their order
    slots = starts = running  # where the cache and the logits have these rows
    fed = [[prompt[-1]] for prompt in prompts]  # the tokens fed last
    sure = [1] * len(prompts)  # how many of them are certain: the others are guesses
    while True:
        leading = states and [states[row] for row in running]
        drawn = None if numbers is None else _due(numbers, running, answers)
        sampling = temperature, generator, drawn
        chosen = _choose(logits, starts, fed, sure, *sampling, codec.eos, leading)
        _forget_wrong_guesses(cache, slots, fed, sure, chosen)
        left = []
        for place, row in enumerate(running):
            state, draft = states and states[row], drafts and drafts[row]
            fed[place], sure[place] = _next_tokens(chosen[place], state, draft)
            answers[row] += chosen[place][:-1] + fed[place][: sure[place]]
            if codec.eos not in answers[row] and len(answers[row]) < max_new:
                left.append(place)
        if not left:
            return [answer[:max_new] for answer in answers]
        running = [running[place] for place in left]
        slots = [slots[place] for place in left]
        fed = [fed[place] for place in left]
        sure = [sure[place] for place in left]
        # A few rows that are done may stay: they cost less than moving all others.
        if len(slots) <= 0.8 * len(cache.length):
            cache.select(torch.tensor(slots, device=model.device))
            slots = list(range(len(slots)))
        logits, starts = _feed_running(model, cache, slots, fed, sure)


def _forget_wrong_guesses(cache, slots, fed, sure, chosen):
    """Set rows back to where the model chose something else than was guessed."""
    for slot, tokens, certain, new in zip(slots, fed, sure, chosen, strict=True):
        guesses, right = len(tokens) - certain, len(new) - 1
        if guesses > right:
            cache.length[slot] -= guesses - right


def _feed_running(model, cache, slots, fed, sure):
    """Logits after the last certain token and after each guess, and where each row's begin."""
    rows, keep = [[] for _ in cache.length], [0] * len(cache.length)
    for slot, tokens, certain in zip(slots, fed, sure, strict=True):
        rows[slot] = tokens
        keep[slot] = len(tokens) - certain + 1
    logits, begin = feed(model, cache, rows, keep)
    return logits, [begin[slot] for slot in slots]


def _due(numbers, running, answers):
    """For each running row, the numbers of the tokens that are not chosen yet: lists of floats.

    The last one stands in for those of tokens that will be cut off.
    """
    return [numbers[row][len(answers[row]) :] or numbers[row][-1:] for row in running]


def _choose(logits, starts, fed, sure, temperature, generator, drawn, eos, states):
    """The tokens each row goes on with: as many as its guesses were right, and one more.

    Args:
        logits: [R, V] after the last certain token of each row and after each guess.
        starts: where each row's logits begin.
        fed: tokens fed, a list a row.
        sure: how many of them are certain.
        drawn: for each row the numbers that sample its tokens to come, or None: the generator's.
        states: automaton states, or None.
    """
    chosen = [[] for _ in fed]
    rows = list(range(len(fed)))  # those whose guesses have all been right so far
    while rows:
        scores = logits[[starts[i] + len(chosen[i]) for i in rows]].float()  # [rows, V]
        if states and any(states[i] for i in rows):
            scores = _masked(scores, [states[i] for i in rows])
        if temperature:
            falls = None
            if drawn:
                falls = [drawn[i][min(len(chosen[i]), len(drawn[i]) - 1)] for i in rows]
            tokens = _sample(torch.softmax(scores / temperature, -1), generator, falls)
        else:
            tokens = scores.argmax(-1)
        still = []
        for i, token in zip(rows, tokens.tolist(), strict=True):
            guesses, n = fed[i][sure[i] :], len(chosen[i])
            if n < len(guesses) and guesses[n] == token != eos:
                still.append(i)
            chosen[i].append(token)
        rows = still
    return chosen


def _sample(probabilities, generator, falls=None):
    """One token [R] from each row's distribution [R, V].

    It is the one where a uniform number falls among the sums of probabilities. torch.multinomial
    draws a number for every token of the vocabulary, which took a third of decoding.
    """
    sums = probabilities.cumsum(-1)  # [R, V]
    total = sums[:, -1:].contiguous()  # [R, 1]
    if falls is None:
        falls = torch.rand(total.shape, generator=generator, device=total.device)
    else:
        falls = torch.tensor(falls, device=total.device)[:, None]
    drawn = torch.searchsorted(sums, falls * total, right=True)
    # A number rounded up to the whole sum would fall behind the last token with any probability.
    last = torch.searchsorted(sums, total)
    return torch.minimum(drawn, last)[:, 0]


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
    """Logits [R, V] with -inf on what a row's state, if it has one, does not allow."""
    guided = np.array([state is not None for state in states])  # bool [R]
    allowed = [state.allowed() for state in states if state is not None]
    rows = np.repeat(guided.nonzero()[0], [len(tokens) for tokens in allowed])
    # int [N] each: the pairs of a row and a token that are allowed
    rows = torch.from_numpy(rows).to(logits.device)
    tokens = torch.from_numpy(np.concatenate(allowed)).to(logits.device)
    guided = torch.from_numpy(guided).to(logits.device)
    masked = logits.masked_fill(guided[:, None], float("-inf"))
    masked[rows, tokens] = logits[rows, tokens]
    return masked


@answering
def beam_search(model, codec, prompts, beams, max_new):
    """The most probable answers by beam search, without a bonus for length.

    Each prompt is read once and its cache copied to the beams; transformers' beam search reads it
    once a beam.

    Args:
        prompts: P lists of token ids.
        beams: answers wanted for each prompt.
        max_new: most new tokens; an answer still open then is returned as it is.

    Returns:
        For each prompt, ``beams`` lists of token ids, the most probable first.
    """
    cache, logits = _read(model, prompts)  # [P, V]
    count, never = len(prompts), torch.tensor(float("-inf"), device=model.device)
    first = torch.arange(count, device=model.device)[:, None]
    # Answers still open [P, m, tokens] and ended [P, beams, tokens], with log-probabilities; m is
    # 1 before the first token, then ``beams``.
    open_ = torch.zeros(count, 1, 0, dtype=torch.long, device=model.device)
    open_scores = torch.zeros(count, 1, device=model.device)
    done = torch.full((count, beams, 0), codec.pad, device=model.device)
    done_scores = never.expand(count, beams)
    # An end counts if it is among the ``beams`` best continuations.
    ranked = torch.arange(2 * beams, device=model.device) < beams
    for step in range(max_new):
        next_scores = torch.log_softmax(logits.float(), -1).view(*open_scores.shape, -1)
        total = open_scores[:, :, None] + next_scores  # [P, m, V]
        # Twice as many are enough: each open answer can end in one way only.
        scores, best = total.flatten(1).topk(2 * beams)  # [P, 2 beams]
        parent, token = best // total.shape[2], best % total.shape[2]
        written = torch.cat([open_.gather(1, _like(parent, open_)), token[:, :, None]], 2)
        ends = (token == codec.eos) | (step + 1 == max_new)

        ended_scores = torch.where(ends & ranked, scores, never)
        done_scores, kept = torch.cat([done_scores, ended_scores], 1).topk(beams)
        done = torch.cat([torch.nn.functional.pad(done, (0, 1), value=codec.pad), written], 1)
        done = done.gather(1, _like(kept, done))

        open_scores, kept = torch.where(ends, never, scores).topk(beams)
        # An open answer can only become less probable.
        if (open_scores[:, 0] <= done_scores[:, -1]).all():
            break
        open_ = written.gather(1, _like(kept, written))
        parent = parent.gather(1, kept)
        cache.select((first * (len(cache.length) // count) + parent).flatten())
        last = open_[:, :, -1].reshape(-1, 1).tolist()
        logits, _ = feed(model, cache, last, [1] * len(last))
    return [[_up_to(codec.eos, tokens) for tokens in group] for group in done.tolist()]


def _up_to(end, tokens):
    """The tokens up to the end token, that one included."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _like(index, table):
    """An index [P, m] for ``table.gather(1, ...)`` with table [P, n, t]."""
    return index[:, :, None].expand(-1, -1, table.shape[2])


def _read(model, prompts):
    """Cache and logits [B, V] after prompts; equal ones, and a shared beginning, are read once."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    cache = RaggedCache(model.config.num_hidden_layers, model.device)
    shared = min(len(os.path.commonprefix(distinct)), min(map(len, distinct)) - 1)
    if len(distinct) > 1 and shared >= SHARED:
        feed(model, cache, [distinct[0][:shared]], [1])
        cache.select(torch.zeros(len(distinct), dtype=torch.long, device=model.device))
    else:
        shared = 0
    cache.reserve(len(distinct), max(map(len, distinct)))
    rests = [prompt[shared:] for prompt in distinct]
    most = TOGETHER if model.device.type == "cpu" else 64 * TOGETHER
    parts = []
    for group in neighbours([len(rest) for rest in rests], most):
        part = slice(group[0], group[-1] + 1)
        logits, _ = feed(model, cache, rests[part], [1] * len(group), part)
        parts.append(logits)
    logits = torch.cat(parts)  # [distinct, V]
    if len(distinct) == len(prompts):
        return cache, logits
    number = {prompt: place for place, prompt in enumerate(distinct)}
    copies = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=model.device)
    cache.select(copies)
    return cache, logits[copies]
