"""Batched decoding with a cache: greedy or sampled, free or inside the catalogue automaton."""

import torch
from transformers import DynamicCache

from recnb.instructions.templates import render
from recnb.lm.parsing import parse


@torch.no_grad()
def decode(model, codec, prompts, max_new, temperature=0.0, generator=None, states=None):
    """Continue token prompts until the end token.

    Args:
        model: causal language model.
        codec: its ``Codec``.
        prompts: lists of token ids; they are padded on the left.
        max_new: most new tokens.
        temperature: 0 = the most probable token; otherwise sampling from the whole distribution.
        generator: torch generator for sampling.
        states: one automaton state a row (``CatalogAutomaton.start``), or None for free decoding.

    Returns:
        Lists of new token ids, the end token included where it came.
    """
    length = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), length), codec.pad)
    mask = torch.zeros(len(prompts), length + max_new, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask[:, :length].cumsum(1) - 1).clamp(min=0)
    following = positions[:, -1:] + 1
    cache = DynamicCache(config=model.config)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    produced = []
    for step in range(max_new):
        out = model(input_ids=ids, attention_mask=mask[:, : length + step], position_ids=positions,
                    past_key_values=cache, use_cache=True, logits_to_keep=1)  # fmt: skip
        logits = out.logits[:, -1].float()
        if states is not None:
            logits = _masked(logits, states)
        if temperature:
            chosen = torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator)[:, 0]
        else:
            chosen = logits.argmax(-1)
        chosen = torch.where(alive, chosen, codec.pad)
        produced.append(chosen)
        if states is not None:
            for state, token in zip(states, chosen.tolist(), strict=True):
                state.advance(token)
        alive &= chosen.ne(codec.eos)
        if not alive.any():
            break
        ids, positions, following = chosen[:, None], following, following + 1
    rows = torch.stack(produced, 1).tolist()
    return [row[: row.index(codec.eos) + 1] if codec.eos in row else row for row in rows]


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
        self.batch_size, self.seed, self.obey = batch_size, seed, obey
        longest = codec.tokenizer([f"\n10. {t}" for t in catalog.titles[1:]], add_special_tokens=False)["input_ids"]
        self.per_line = tokens_per_title or min(64, max(len(ids) for ids in longest))

    def recommend(self, requests, progress=lambda done, total: None):
        """Answer requests in batches of similar prompt length; the order of the answers is that of the requests."""
        prompts = self.codec.prompts([request_prompt(r, self.catalog, self.seed) for r in requests])
        order = sorted(range(len(requests)), key=lambda i: (requests[i].k, len(prompts[i])))
        responses = [None] * len(requests)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            states = None
            if self.automaton:
                states = [self._state(requests[i]) for i in rows]
            room = (max(requests[i].k for i in rows) + 1) * self.per_line + 1
            answers = decode(self.model, self.codec, [prompts[i] for i in rows], room, states=states)
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
