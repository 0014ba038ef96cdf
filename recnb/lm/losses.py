"""The unlikelihood term: a title that already stands in the prompt or in the list must not come again.

Cross-entropy alone teaches this last, because each single earlier title costs it little. Unlikelihood training (Welleck
et al. 2020) adds -log(1 - p(earlier titles)) at every place where a title is due.
"""

import torch


def repeated_mass(log_probs, sample, titles, history):
    """Probability that falls on titles that would be a repeat.

    Args:
        log_probs: float [R, V], one row for each place where a title is due, in reading order.
        sample: int [R], which sample a row belongs to (rising).
        titles: int [R], the title token due there, as a column of ``history``.
        history: bool [S, N], titles that stand in the prompt of each sample.

    Returns:
        float [R]: sum of the probabilities of the prompt's titles (except those that this or a later place of the same
        list asks for: a list chosen from candidates names titles of its prompt) and of the titles already listed.
    """
    rows, items = len(sample), history.shape[1]
    due = torch.zeros(rows, items, device=log_probs.device)
    due[torch.arange(rows), titles] = 1
    running = due.cumsum(0) - due  # titles listed before, over all samples
    first = torch.searchsorted(sample, sample)  # row at which the own sample starts
    listed = (running - running[first]) > 0
    wanted = torch.zeros(history.shape, device=log_probs.device).index_add_(0, sample, due) > 0
    banned = listed | (history & ~wanted)[sample]
    return (log_probs.exp() * banned).sum(1)


def unlikelihood(mass):
    """Mean of -log(1 - mass), kept finite."""
    return -torch.log1p(-mass.clamp(max=1 - 1e-4)).mean()


def title_column(titles, vocabulary):
    """int [V]: position of each title token among the titles, -1 elsewhere; None for ``titles`` None."""
    if titles is None:
        return None
    column = torch.full((vocabulary,), -1)
    column[torch.tensor(titles[1:])] = torch.arange(len(titles) - 1)
    return column
