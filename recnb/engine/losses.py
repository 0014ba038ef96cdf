"""Losses over the vocabulary, with their gradients written out.

Automatic gradients pass over [places, vocabulary] three times as often.

The term against repeats: a title that already stands in the prompt or in the list must not come
again. Cross-entropy alone teaches this last, because each single earlier title costs it little.
Unlikelihood training (Welleck et al. 2020) adds -log(1 - m) at every place where a title is due, m
being the probability of the earlier titles.
"""

import torch

ALMOST_ONE = 1 - 1e-4
"""The mass of repeats counts up to here, so that the term stays finite."""


def earlier_titles(ids, places, is_title):
    """The titles that would be a repeat.

    A title is one at a place if it occurs before that place and not from it on: a candidate of the
    prompt that the list names later is still wanted.

    Args:
        ids: int [S, L], tokens of the samples.
        places: int [R, 2], sample and position of the title that is due.
        is_title: bool [V].

    Returns:
        ``(rows, tokens)``, int [N] each: places, each with a title that must not come there; no
            pair comes twice.
    """
    sample, position = places.unbind(1)
    here = torch.arange(ids.shape[1], device=ids.device)
    same = (ids[:, :, None] == ids[:, None, :]) & is_title[ids][:, None, :]  # [S, L, L]
    # [S, L] each: whether a token is its title's first, and where its title comes last
    first = ~(same & (here[None, :] < here[:, None])).any(2) & is_title[ids]
    last = torch.where(same, here, -1).amax(2)
    rows, columns = (first[sample] & (last[sample] < position[:, None])).nonzero(as_tuple=True)
    return rows, ids[sample[rows], columns]


def _softmax(logits):
    """Probabilities [R, V] and log-sum-exp [R, 1] of logits [R, V]."""
    # The largest probability is at least 1/V, so its logarithm is exact.
    top = logits.amax(-1, keepdim=True)
    probabilities = torch.softmax(logits, -1)
    return probabilities, top - probabilities.amax(-1, keepdim=True).log()


class _NextToken(torch.autograd.Function):
    """Mean of -log p(target), plus weight times that of -log(1 - m) where a title is due.

    With p = softmax(z): d/dz_v of the first is p_v - [v = target]; of -log(1 - m), p_v ([v is a
    repeat] - m) / (1 - m).
    """

    @staticmethod
    def forward(ctx, logits, targets, due, rows, tokens, weight, counts):
        p, total = _softmax(logits)
        each = torch.arange(len(targets), device=logits.device)
        mass = p.new_zeros(len(p)).index_add(0, rows, p[rows, tokens])  # [R], m at each place
        answers, titles = counts or (len(targets), due.sum())
        share = weight * due / torch.as_tensor(titles).clamp(min=1)
        push = share * (mass < ALMOST_ONE) / (1 - mass.clamp(max=ALMOST_ONE))
        ctx.save_for_backward(p, targets, rows, tokens, push, mass)
        ctx.answers = answers
        missed = total[:, 0] - logits[each, targets]
        loss = missed.sum() / answers if counts else missed.mean()
        return loss - (share * torch.log1p(-mass.clamp(max=ALMOST_ONE))).sum()

    @staticmethod
    def backward(ctx, gradient):
        p, targets, rows, tokens, push, mass = ctx.saved_tensors
        each, mean = torch.arange(len(targets), device=p.device), 1 / ctx.answers
        slope = p * (mean - push * mass)[:, None]
        slope[rows, tokens] += p[rows, tokens] * push[rows]
        slope[each, targets] -= mean
        return slope.mul_(gradient), None, None, None, None, None, None


def next_token_loss(logits, ids, places, is_title=None, repeat_weight=0.0, counts=None):
    """Cross-entropy plus the weighted term against repeats.

    With ``counts``, the losses of a batch's pieces add up to the loss of the batch, however uneven
    the pieces are.

    Args:
        logits: float [R, V] of the tokens at ``places``.
        ids: int [S, L].
        places: int [R, 2], sample and position of each token that carries loss.
        is_title: bool [V], or None for no term.
        counts: of the batch that these samples are a piece of: tokens that carry loss, and titles
            among them; None = they are all of it.
    """
    targets = ids[places[:, 0], places[:, 1]]
    due = torch.zeros(len(targets), device=logits.device)
    rows = tokens = torch.empty(0, dtype=torch.long, device=logits.device)
    if repeat_weight and is_title is not None:
        here = is_title[targets].nonzero()[:, 0]
        due[here] = 1.0
        rows, tokens = earlier_titles(ids, places[here], is_title)
        rows = here[rows]
    return _NextToken.apply(logits, targets, due, rows, tokens, repeat_weight, counts)


class _ChosenAndEntropy(torch.autograd.Function):
    """log p(chosen) and the entropy H; d/dz_v: [v = chosen] - p_v, and -p_v (log p_v + H)."""

    @staticmethod
    def forward(ctx, logits, chosen):
        p, total = _softmax(logits)
        each = torch.arange(len(chosen), device=logits.device)
        entropy = total[:, 0] - torch.einsum("rv,rv->r", p, logits)  # H = log-sum-exp - sum of p z
        ctx.save_for_backward(p, logits, chosen, total[:, 0] - entropy)
        return logits[each, chosen] - total[:, 0], entropy

    @staticmethod
    def backward(ctx, of_chosen, of_entropy):
        p, logits, chosen, middle = ctx.saved_tensors
        each = torch.arange(len(chosen), device=p.device)
        # log p_v + H = z_v - (log-sum-exp - H), so that both slopes are p times a row's line in z
        start = of_entropy * middle - of_chosen
        slope = torch.addcmul(start[:, None], logits, of_entropy[:, None], value=-1).mul_(p)
        slope[each, chosen] += of_chosen
        return slope, None


def chosen_and_entropy(logits, chosen):
    """Log-probability of chosen tokens and entropy of each distribution.

    Args:
        logits: float [R, V].
        chosen: int [R].

    Returns:
        ``(float [R], float [R])``.
    """
    return _ChosenAndEntropy.apply(logits, chosen)


def title_mask(titles, vocabulary, device=None):
    """bool [V]: True for the title tokens [N+1] of ``title_tokens``; None for None."""
    if titles is None:
        return None
    mask = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    mask[torch.tensor(titles[1:])] = True
    return mask
