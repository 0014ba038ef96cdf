"""The term against repeats: a title that already stands in the prompt or in the list must not come again.

Cross-entropy alone teaches this last, because each single earlier title costs it little. Unlikelihood training (Welleck
et al. 2020) adds -log(1 - m) at every place where a title is due, m being the probability of the earlier titles.
"""

import torch
from torch.nn import functional as F


def repeated_mass(log_probs, ids, places, is_title):
    """Probability of the titles that would be a repeat.

    A title is one at a place if it occurs before that place and not from it on: a candidate of the prompt that
    the list names later is still wanted.

    Args:
        log_probs: float [R, V], one row for each place where a title is due.
        ids: int [S, L], tokens of the samples.
        places: int [R, 2], sample and position of the title that is due.
        is_title: bool [V].

    Returns:
        float [R].
    """
    sample, position = places.unbind(1)
    here = torch.arange(ids.shape[1], device=ids.device)
    same = (ids[:, :, None] == ids[:, None, :]) & is_title[ids][:, None, :]
    first = ~(same & (here[None, :] < here[:, None])).any(2) & is_title[ids]
    last = torch.where(same, here, -1).amax(2)
    banned = first[sample] & (last[sample] < position[:, None])
    return (log_probs.gather(1, ids[sample]).exp() * banned).sum(1)


def unlikelihood(mass):
    """Mean of -log(1 - m), finite for every m in [0, 1]."""
    return -torch.log1p(-mass.clamp(max=1 - 1e-4)).mean()


def next_token_loss(log_probs, ids, places, is_title=None, repeat_weight=0.0):
    """Cross-entropy plus the weighted term against repeats.

    Args:
        log_probs: float [R, V] of the tokens at ``places``.
        ids: int [S, L].
        places: int [R, 2], sample and position of each token that carries loss.
        is_title: bool [V], or None for no term.
    """
    targets = ids[places[:, 0], places[:, 1]]
    loss = F.nll_loss(log_probs, targets)
    if repeat_weight and is_title is not None:
        due = is_title[targets]
        if due.any():
            loss = loss + repeat_weight * unlikelihood(repeated_mass(log_probs, ids, places, is_title)[due])
    return loss


def title_mask(titles, vocabulary, device=None):
    """bool [V]: True for the title tokens [N+1] of ``title_tokens``; None for None."""
    if titles is None:
        return None
    mask = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    mask[torch.tensor(titles[1:])] = True
    return mask
