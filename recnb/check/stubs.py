"""The functions a student writes: signature and contract. ``check.stub`` prints them from here."""


def label_filter(ranked, inside, k, least, most):
    """The labels of one instruction: the best list of k items that obeys (section 2.2.2).

    A list obeys if at least ``least`` and at most ``most`` of its k items lie in the category. Of
    all obeying lists in ranked order, it is the one with the best first item, among those the one
    with the best second item, and so on.

    Args:
        ranked: list of different item ids, best first.
        inside: set of the ids that lie in the category.
        k: length of the list, at least 1.
        least, most: the bounds; "at most 30 %" of 10 is 0 and 3, "include" is k and k.

    Returns:
        List of k ids in ranked order, or None if no list of k obeys.
    """
    raise NotImplementedError


def item_reward(items, ranks, history, target, k, wish, category, share):
    """R_item of every item of an answer: Equations 1 and 2 with Algorithm 1.

    An item is illegal if it is None, stands earlier in the answer, stands in the history, or is not
    among the first k; both its scores are -1. A legal item has

        Score_i   = 1 if it is the target, else 1 / log2(rank + 3)        (1)
        Score_ctl = Algorithm 1; with the wish "none" it is Score_i
        R_item    = 0.5 Score_i + 0.5 Score_ctl                           (2)

    Algorithm 1, with m = share and the counts c_in and c_out of legal items inside and outside the
    category so far, this one included:

        include    1 inside, 0 outside
        exclude    0 inside, 1 outside
        at most    if c_out > k - k m: 0.5; else outside: 1;
                   else (inside): 0.5 if c_in < k m, else 0
        at least   if c_in > k: 0.5; else inside: 1;
                   else (outside): 0.5 if c_out < k - k m, else 0
        about      inside: 1 if c_in <= k m, else 0;
                   outside: 1 if c_in >= k m, else 0.5 if c_out <= k - k m, else 0

    Args:
        items: list of item ids in order; None = a title that no item has.
        ranks: list of the teacher's rank of each item, counted from 0 (any number for None).
        history: list of the ids that the prompt showed.
        target: id of the ground truth.
        k: number of items asked for.
        wish: "none", "include", "exclude", "at most", "at least" or "about".
        category: set of the ids in the category; empty for "none".
        share: m as a Fraction, so that k * m is exact; None unless the wish is a share.

    Returns:
        List of floats, one an item.
    """
    raise NotImplementedError


def list_reward(items, ranks, history, target, k, wish, category, share):
    """R_list of an answer: Equations 3 to 5, without the factor 10.

    With the i-th item counted from 1, and legal items and Score_i as in ``item_reward``:

        Score*_i      = Score_i / log2(i + 2) if legal, else -1            (3)
        Score_ctl     = 1 / log2(gap + 2)                                  (4)
        R_list        = 0.5 sum(Score*) + 0.5 Score_ctl                    (5)

    With the wish "none" Score_ctl is sum(Score*). The gap is how far the legal items, c_in inside
    and c_out outside the category, are from the wish:

        include max(k - c_in, 0)      at most  max(c_in - k m, 0)      about |c_in - k m|
        exclude max(k - c_out, 0)     at least max(k m - c_in, 0)

    Args:
        items, ranks, history, target, k, wish, category, share: as for ``item_reward``.

    Returns:
        A float.
    """
    raise NotImplementedError


def leave_one_out(rewards, groups):
    """Each answer's reward minus the mean reward of the other answers to the same prompt.

    An answer that is the only one to its prompt keeps its reward.

    Args:
        rewards: list of B floats.
        groups: list of B ints, equal for answers to the same prompt.

    Returns:
        List of B floats.
    """
    raise NotImplementedError


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lambda A_{t+1}

    After the last token of an answer V and A are 0. Answers are padded on the right; what stands in
    the padding is garbage and must not count.

    Args:
        rewards, values: float tensors [B, T], B answers of at most T tokens.
        mask: float tensor [B, T], 1 on the tokens of the answer, 0 on padding.
        gamma, lam: discount and lambda, floats.

    Returns:
        The advantages [B, T]; in the padding anything.
    """
    raise NotImplementedError


def clipped_loss(log_probs, old, advantages, mask, clip):
    """PPO's clipped loss, a mean over the tokens of all answers.

        r_t  = exp(log_probs_t - old_t)
        loss = mean of -min(A_t r_t, A_t clip(r_t, 1 - eps, 1 + eps)) where mask is 1

    The model learns through it: compute it with torch, so that its gradient reaches ``log_probs``.

    Args:
        log_probs, old: float tensors [B, T], log-probabilities now and when the answers were made.
        advantages: float tensor [B, T].
        mask: float tensor [B, T], 1 on the tokens of the answers, 0 on padding.
        clip: eps.

    Returns:
        A tensor with one number.
    """
    raise NotImplementedError


def allowed(prefix, titles, end):
    """Which tokens may come next while the model writes one title of the catalogue.

    Args:
        prefix: list of the title's tokens so far; empty before the first.
        titles: list of tuples of token ids, the titles that may still come. One title may be the
            beginning of another.
        end: the token that follows a whole title.

    Returns:
        The ids of all tokens with which the text is still, or has just become, one of the titles;
        ``end`` if it is one already. A set, or a list in any order.
    """
    raise NotImplementedError


def ndcg(items, target, k):
    """NDCG@k of one list with one relevant item.

        NDCG@k = 1 / log2(i + 1) if the target is the i-th item, i <= k, else 0

    i counts from 1. The best possible list has the target first and 1 / log2(2) = 1, so there is
    nothing to divide by.

    Args:
        items: list of item ids; None = a title that no item has, which takes its place all the
            same. The target may stand there twice: the first one counts.
        target: the held-out item.
        k: the cut-off.

    Returns:
        A float.
    """
    raise NotImplementedError


def holm(p):
    """Holm's correction of the p-values of n tests.

    Sorted, p_(1) <= ... <= p_(n), the corrected values are

        q_(i) = min(1, max over j <= i of (n - j + 1) p_(j))

    Args:
        p: list of floats, in any order.

    Returns:
        List of the corrected p-values, in the order of ``p``.
    """
    raise NotImplementedError


def causal_mask(real):
    """Where each place of a padded history may look: at itself and at real items before it.

    Args:
        real: bool tensor [B, L], False where the history is padding (on the left).

    Returns:
        Bools [B, L, L], True in row i, column j if place i may look at place j. Padding may look
        at itself alone: a row without any True would make the attention NaN.
    """
    raise NotImplementedError
