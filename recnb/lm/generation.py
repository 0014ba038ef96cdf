"""Batched decoding with a cache: greedy or sampled, free or inside the catalogue automaton.

Most tokens of a list are no choice at all: the number of a line, the rest of a title whose first tokens fit no other title.
``decode`` feeds such tokens together with the chosen one. Inside the automaton they are certain; in free decoding they are
guesses, checked against what the model then chooses itself, so that the answer is the model's own, token for token.
"""

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from recnb import RecnbError
from recnb.instructions.templates import render
from recnb.lm.constrained import CatalogAutomaton
from recnb.lm.parsing import parse


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room to spare: a step writes its own places and copies no others."""

    block = 64

    def update(self, key_states, value_states, *args, **kwargs):
        """Store new states [B, H, m, d] and return all so far, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.used = 0
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        start, self.used = self.used, self.used + key_states.shape[2]
        if self.used > self.keys.shape[2]:
            self.keys, self.values = self._grown(self.keys, start), self._grown(self.values, start)
        self.keys[:, :, start : self.used] = key_states
        self.values[:, :, start : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def _grown(self, states, used):
        room = states.new_empty(*states.shape[:2], self.used + self.block, states.shape[3])
        room[:, :, :used] = states[:, :, :used]
        return room

    def get_seq_length(self):
        """Places in use."""
        return self.used if self.is_initialized else 0


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


@torch.no_grad()
def decode(model, codec, prompts, max_new, temperature=0.0, generator=None, states=None, drafts=None):
    """Continue token prompts until the end token.

    Args:
        model: causal language model.
        codec: its ``Codec``.
        prompts: lists of token ids. Equal prompts are read once.
        max_new: most new tokens.
        temperature: 0 = the most probable token; otherwise sampling from the whole distribution.
        generator: torch generator for sampling.
        states: one automaton state a row (``CatalogAutomaton.start``), or None for free decoding.
        drafts: one ``Draft`` a row to speed free decoding up, or None.

    Returns:
        Lists of new token ids, the end token included where it came.
    """
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    length = max(map(len, distinct))
    fed = [[codec.pad] * (length - len(p)) + list(p) for p in distinct]
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in distinct], device=model.device)
    cache = Cache(layers=[GrowingLayer() for _ in range(model.config.num_hidden_layers)])
    logits = model(input_ids=torch.tensor(fed, device=model.device), attention_mask=mask, use_cache=True, logits_to_keep=1,
                   position_ids=(mask.cumsum(1) - 1).clamp(min=0), past_key_values=cache).logits  # fmt: skip
    number = {prompt: place for place, prompt in enumerate(distinct)}
    copies = torch.tensor([number[tuple(p)] for p in prompts], device=model.device)
    logits, mask = logits[copies], mask[copies]
    cache.batch_select_indices(copies)

    answers, running = [[] for _ in prompts], list(range(len(prompts)))
    # The tokens fed last, and how many of them are certain: the others are guesses.
    fed, sure = [[prompt[-1]] for prompt in prompts], [1] * len(prompts)
    while True:
        chosen = _choose(logits, fed, sure, temperature, generator, codec.eos, states and [states[i] for i in running])
        right = torch.tensor([n + len(tokens) - 1 for n, tokens in zip(sure, chosen, strict=True)], device=model.device)
        width = max(map(len, fed))
        mask[:, -width:] *= torch.arange(width, device=model.device) < right[:, None]  # a wrong guess is never looked at again
        left = []
        for place, (row, tokens) in enumerate(zip(running, chosen, strict=True)):
            if codec.eos in answers[row] or len(answers[row]) >= max_new:
                fed[place], sure[place] = [codec.pad], 1
                continue
            fed[place], sure[place] = _next_tokens(tokens, states and states[row], drafts and drafts[row])
            answers[row] += [*tokens[:-1], *fed[place][: sure[place]]]
            if codec.eos not in answers[row] and len(answers[row]) < max_new:
                left.append(place)
        if not left:
            return [answer[:max_new] for answer in answers]
        if len(left) <= 0.8 * len(running):  # else rows that are done run along, which costs less than moving the others
            kept = torch.tensor(left, device=model.device)
            mask, running = mask[kept], [running[i] for i in left]
            fed, sure = [fed[i] for i in left], [sure[i] for i in left]
            cache.batch_select_indices(kept)
        width = max(map(len, fed))
        ids = torch.tensor([row + [codec.pad] * (width - len(row)) for row in fed], device=model.device)
        real = torch.arange(width, device=model.device) < torch.tensor([len(row) for row in fed], device=model.device)[:, None]
        positions = mask.sum(1, keepdim=True) + torch.arange(width, device=model.device)
        mask = torch.cat([mask, real.to(mask.dtype)], 1)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                       logits_to_keep=width - min(sure) + 1).logits  # fmt: skip


def _choose(logits, fed, sure, temperature, generator, eos, states):
    """The tokens each row goes on with: as many as its guesses were right, and one more.

    Args:
        logits: [B, m, V] after the last m places fed.
        fed: tokens fed, a list a row; shorter rows were padded on the right.
        sure: how many of them are certain.
        states: automaton states, or None.
    """
    skipped = max(map(len, fed)) - logits.shape[1]
    chosen, rows = [[] for _ in fed], list(range(len(fed)))
    while rows:
        scores = logits[rows, [sure[i] + len(chosen[i]) - 1 - skipped for i in rows]].float()
        if states:
            scores = _masked(scores, [states[i] for i in rows])
        if temperature:
            tokens = torch.multinomial(torch.softmax(scores / temperature, -1), 1, generator=generator)[:, 0]
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


def _next_tokens(tokens, state, draft):
    """What to feed after the tokens just chosen, and how many of it are certain."""
    if state is not None:
        state.advance(tokens[-1])
        forced = state.forced()
        for token in forced:
            state.advance(token)
        return [tokens[-1], *forced], 1 + len(forced)
    if draft is None:
        return tokens[-1:], 1
    for token in tokens:
        draft.follow(token)
    return [tokens[-1], *draft.guess()], 1


def _masked(logits, states):
    masked = torch.full_like(logits, float("-inf"))
    for row, state in enumerate(states):
        allowed = torch.from_numpy(state.allowed()).to(logits.device)
        masked[row, allowed] = logits[row, allowed]
    return masked


class LanguageModelRecommender:
    """A language model that answers requests: ``recommend(requests) -> list[Response]``.

    Args:
        model, codec: from ``recnb.lm.loading``.
        catalog: ``Catalog``.
        automaton: ``CatalogAutomaton`` for constrained decoding, None for free.
        obey: the automaton also enforces each request's control.
        batch_size: prompts decoded together.
        tokens_per_title: most tokens reserved for each line of the answer.
    """

    def __init__(self, model, codec, catalog, automaton=None, batch_size=128, tokens_per_title=None, seed=0,
                 obey=False):  # fmt: skip
        self.model, self.codec, self.catalog, self.automaton = model, codec, catalog, automaton
        self.draft = None if automaton else drafting(codec, catalog)
        self.batch_size, self.seed, self.obey = batch_size, seed, obey
        longest = codec.tokenizer([f"\n10. {t}" for t in catalog.titles[1:]], add_special_tokens=False)["input_ids"]
        # An automaton's answer is always whole; a free one gets no more than 64 tokens a line.
        self.per_line = tokens_per_title or min(10**6 if automaton else 64, max(len(ids) for ids in longest))

    def recommend(self, requests, progress=lambda done, total: None):
        """Answer requests in batches of similar prompt length; the order of the answers is that of the requests."""
        prompts = self.codec.prompts([request_prompt(r, self.catalog, self.seed) for r in requests])
        order = sorted(range(len(requests)), key=lambda i: (requests[i].k, len(prompts[i])))
        responses = [None] * len(requests)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            states = drafts = None
            if self.automaton:
                states = [self._state(requests[i]) for i in rows]
            elif self.draft:
                drafts = [self.draft(requests[i].k) for i in rows]
            room = (max(requests[i].k for i in rows) + 1) * self.per_line + 1
            answers = decode(self.model, self.codec, [prompts[i] for i in rows], room, states=states, drafts=drafts)
            for i, tokens in zip(rows, answers, strict=True):
                responses[i] = parse(self.codec.decode(tokens), self.catalog, len(tokens))
            progress(min(start + self.batch_size, len(order)), len(order))
        return responses

    def _state(self, request):
        needs = request.control.needs(request.k, self.catalog) if self.obey else ()
        return self.automaton.start(request.k, request.seen, needs)


def request_prompt(request, catalog, seed):
    """The prompt text of a request; the wording of its intention depends on the seed and the user alone."""
    import numpy as np

    rng = np.random.default_rng([seed, 107, request.user + 1])
    return render(request.control, list(request.history), request.k, catalog, rng)
