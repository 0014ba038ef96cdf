"""Functions that a course asks for beside those of ``recnb.check``: signature and contract."""


def core(pairs, k):
    """The k-core of a log: every user and every item left has at least k pairs.

    Args:
        pairs: list of pairs (user, item), no two alike.
        k: at least 1.

    Returns:
        The pairs that stay, in any order; removing an item may leave a user with too few.
    """
    raise NotImplementedError


def future_share(times, test):
    """How much of a user's other interactions a random test item lets the model see too early.

    Args:
        times: list of the times of all interactions of one user, at least two, all different.
        test: place of the test interaction in ``times``, counted from 0.

    Returns:
        The share of the *other* interactions that happened after the test interaction.
    """
    raise NotImplementedError


def last_chance(times, place):
    """How likely an interaction is the test item if ties are broken at random.

    Args:
        times: list of the times of one user's interactions, in order; some are equal.
        place: of an interaction in ``times``, counted from 0.

    Returns:
        The probability that it stands last when interactions of the same time come in random order.
    """
    raise NotImplementedError


def smoothed(counts, popularity, weight):
    """Probabilities of the next item out of few counts, backed by popularity.

        p_j = (counts_j + weight q_j) / (sum of counts + weight),  q_j = popularity_j / its sum

    Args:
        counts: list of N ints, how often each item came next.
        popularity: list of N ints, how often each item was taken at all; not all are 0.
        weight: float above 0, how many observations popularity is worth.

    Returns:
        List of N floats.
    """
    raise NotImplementedError


def miss(k, share):
    """By how much the nearest whole number misses k times the share of "about m %".

    Args:
        k: items asked for.
        share: m, as a Fraction.

    Returns:
        The distance between k m and the integer nearest to it.
    """
    raise NotImplementedError


def bounds(wish, share, k):
    """A wish as a control sees it: how many of the k items must lie in the category.

        include k, exclude 0, at most: up to k m, at least: k m or more,
        about: the integer nearest to k m, half up

    Args:
        wish: "include", "exclude", "at most", "at least" or "about".
        share: m as a Fraction; None for include and exclude.
        k: items asked for.

    Returns:
        A pair: the least and the greatest number of items inside that a list of k may hold.
    """
    raise NotImplementedError


def loss_mask(question, answer):
    """Which places of question and answer, one behind the other, carry loss.

    Place t holds the loss of predicting token t from those before it.

    Args:
        question, answer: lists of token ids; the answer's last one is the end.

    Returns:
        A list of bools, one a token of both.
    """
    raise NotImplementedError


def slope(p, early):
    """The derivative of the repeat term -log(1 - m) by the logits z.

    p = softmax(z), and m is the probability of the titles that stand in the list already.

    Args:
        p: list of floats, probabilities of all titles.
        early: list of 1 (stands in the list already) and 0.

    Returns:
        List of floats, d(-log(1 - m)) / dz_v for each title v.
    """
    raise NotImplementedError


def title_loss(p, early, target, weight):
    """The SL stage's loss at the place of one title: likelihood and the term against repeats.

        loss = -log p[target] - weight log(1 - m),  m the probability of the earlier titles

    Args:
        p: list of floats, probabilities of all titles.
        early: list of 1 (stands in the list already) and 0; not for the target.
        target: place of the right title in ``p``.
        weight: ``sft.repeat_weight``.

    Returns:
        A float.
    """
    raise NotImplementedError


def arrival(steps, values, part):
    """When a curve has come a part of its way, from its first value to its last.

    Args:
        steps: list of the steps at which it was measured, rising, at least two.
        values: list of what was measured; the last differs from the first and may lie below it.
        part: of the way, above 0 and at most 1.

    Returns:
        The first of the steps at which that part of the way, or more, is behind it.
    """
    raise NotImplementedError


def strict(items, k, history, inside, least, most):
    """Strict: did a user get all that was asked for?

    Args:
        items: list of ids in order, of any length; None = a title that no item has.
        k: items asked for.
        history: list of the ids that the prompt showed.
        inside: set of the ids in the category.
        least, most: bounds on the number of items inside.

    Returns:
        1.0 if the answer has exactly k entries, every one exists, none stands there twice, none is
        in the history, and the number inside lies within the bounds; else 0.0.
    """
    raise NotImplementedError


def most_share(size, seen, k):
    """The largest share of a category that any list of unseen items can deliver.

    Args:
        size: items in the category.
        seen: how many of them the user has.
        k: length of the list, at least 1.

    Returns:
        A float between 0 and 1.
    """
    raise NotImplementedError


def failing(answers, categories, excluded):
    """Are the titles that slip through an "exclude" different from others of their category?

    Args:
        answers: list of lists of item ids.
        categories: list of sets of names; item i has ``categories[i]``.
        excluded: the name that no answer should hold.

    Returns:
        A pair: the mean number of categories of the entries that fail, each time one is listed
        counted, and of all items in the excluded category; None in place of a mean of nothing.
    """
    raise NotImplementedError


def two_wishes(items, first, second, share, k):
    """How far a list is from "about m % of A, no B".

    Args:
        items: list of k ids.
        first, second: sets of the ids in A and in B.
        share: m as a Fraction.
        k: length of the list.

    Returns:
        A pair: how many items of A are too many (below 0: too few) against the integer nearest to
        k m, half up; and how many items of B there are.
    """
    raise NotImplementedError


def auc(labels, scores):
    """The area under the ROC curve: how often a like scores above a dislike, ties half.

    Args:
        labels: list of 1 and 0, at least one of each.
        scores: list of floats, ties included.

    Returns:
        A float.
    """
    raise NotImplementedError


def two_errors(values, positive, negative):
    """Both errors of a cell of TALLRec's table.

        between draws   standard deviation of the values (n - 1) / sqrt(n)
        of the test     sqrt((1 / positive + 1 / negative) / 12), for an AUC near a half

    Args:
        values: list of n AUCs, one a draw of training examples, n at least 2.
        positive, negative: likes and dislikes among the test examples.

    Returns:
        A pair of floats.
    """
    raise NotImplementedError


def answer_share(prompts, answers, on_inputs):
    """What part of the trained tokens belongs to answers (``tallrec.train_on_inputs``).

    Args:
        prompts, answers: lists of the numbers of tokens of each example's prompt and answer.
        on_inputs: whether prompts carry loss as well.

    Returns:
        A float: answer tokens with loss over all tokens with loss.
    """
    raise NotImplementedError


def no_idea(n, bound):
    """A model that does worse than having no idea.

    Args:
        n: number of tokens, at least 2.
        bound: a perplexity, at least n.

    Returns:
        A pair: a list of n probabilities, none of them 0, that sum to 1; and the place of the token
        that comes, so that the perplexity 1 / p[token] lies above the bound.
    """
    raise NotImplementedError


def forgot(names, log_probs, base):
    """Models in the order of what they forgot.

        perplexity = exp(- mean log-probability of the tokens)

    Args:
        names: list of the models' names, all different.
        log_probs: list of lists: log-probabilities that each model gives the tokens.
        base: name of the model that the others came from.

    Returns:
        List of pairs (name, its perplexity over the base's) of all models but the base, the
        largest ratio first; no two are alike.
    """
    raise NotImplementedError


def guessing(right, n, choices):
    """Is a score on questions with several choices more than guessing?

    Args:
        right: questions answered rightly.
        n: questions asked.
        choices: answers to choose from in each.

    Returns:
        A pair of floats: the score, and how many standard errors sqrt(q (1 - q) / n) it lies above
        the guess q = 1 / choices.
    """
    raise NotImplementedError
