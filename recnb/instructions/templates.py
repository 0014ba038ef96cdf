"""The words of the instructions: Listings 1 to 4, with and without candidates.

``instructions.wordings: varied`` adds wishes in other words, and other places for the wish. The
wordings that the evaluation holds out (``recnb/evaluation/wordings.yaml``) share neither: the tests
compare them with everything that stands here.
"""

from fractions import Fraction

from recnb.controls import About, AtLeast, AtMost, Exclude, Include

SEQUENTIAL = (
    "You are an expert recommender engine. You need to generate a recommendation list considering "
    "user's preference from historical interactions. The historical interactions are provided as "
    "follows: {history}. You need to generate a recommendation list with {k} different items."
)
SEQUENTIAL_CANDIDATES = (
    "You are an expert recommender engine. You need to select a recommendation list considering "
    "user's preference from historical interactions. The historical interactions are provided as "
    "follows: {history}. The candidate items are: {candidates}. You need to select a "
    "recommendation list with {k} different items from candidate items."
)
CATEGORY = (
    "You are an expert recommender engine. You need to generate a recommendation list "
    "simultaneously considering user's preference inferred from historical interactions and user's "
    "intention. If user's preference conflicts with his intention, you should comply with his "
    "intention. Here are user's historical interactions: {history}, and user's intention: "
    "{intention}. You need to generate a recommendation list with {k} different items."
)
CATEGORY_CANDIDATES = (
    "You are an expert recommender engine. You need to select a recommendation list from candidate "
    "items simultaneously considering user's preference inferred from historical interactions and "
    "user's intention. If user's preference conflicts with his intention, you should comply with "
    "his intention. Here are user's historical interactions: {history}, and user's intention: "
    "{intention}. The candidate items are: {candidates}. You need to select a recommendation list "
    "with {k} different items from candidate items."
)
PROPORTION = (
    "You are an expert recommender engine. You need to generate a recommendation list "
    "simultaneously considering user's preference inferred from historical interactions and user's "
    "intention. Here are user's historical interactions: {history}, and user's intention: "
    "{intention}. You need to generate a recommendation list with {k} different items."
)
SEARCH = (
    "You are an expert recommender engine. You need to generate a recommendation list complying "
    "user's intention. Here is user's intention: {intention}. Please generate a recommendation "
    "list with {k} different items."
)
SEARCH_CANDIDATES = (
    "You are an expert recommender engine. You need to select a recommendation list complying "
    "user's intention from candidate items. Here is user's intention: {intention}. The candidate "
    "items are: {candidates}. Please select a recommendation list with {k} different items from "
    "candidate items."
)
ALL = [
    SEQUENTIAL,
    SEQUENTIAL_CANDIDATES,
    CATEGORY,
    CATEGORY_CANDIDATES,
    PROPORTION,
    SEARCH,
    SEARCH_CANDIDATES,
]


def quoted(items, catalog):
    """'Heat (1995)', 'Babe (1995)': titles as they stand in a prompt."""
    return ", ".join(f"'{catalog.titles[i]}'" for i in items)


def numbered(items, catalog):
    """The answer's form: one numbered title a line."""
    return "\n".join(f"{n}. {catalog.titles[i]}" for n, i in enumerate(items, start=1))


VARIED = {
    "Include": [
        "Show me {category} titles",
        "I am in the mood for {category}",
        "More '{category}' this time",
        "Every entry should be {category}",
        "I am looking for '{category}' items",
        "My taste runs to {category} these days",
        "Give me a list full of {category}",
        "I could use some {category} right now",
        "Stick to '{category}' in this list",
        "What I want is {category}",
    ],
    "Exclude": [
        "Leave out everything that is {category}",
        "No '{category}' in this list",
        "I have had enough of {category}",
        "Skip the {category} titles",
        "I do not care for '{category}' items",
        "Spare me {category} this time",
        "The list should be free of {category}",
        "I am tired of {category}",
        "Anything except '{category}' will do",
        "Please avoid {category} items",
    ],
    "AtMost": [
        "Up to {percent}% of the list may be {category}",
        "Keep '{category}' items at {percent}% or below",
        "{category} should fill {percent}% of the list at the very most",
        "I accept a maximum of {percent} percent {category}",
        "The part of {category} must not exceed {percent}%",
        "Limit '{category}' to {percent} percent",
        "Let {category} stay under or at {percent}%",
        "{percent}% {category} items, or fewer",
        "At most {percent} percent of the titles from {category}",
        "{percent}% is the ceiling for '{category}'",
    ],
    "About": [
        "About {percent}% of the list should come from {category}",
        "I want '{category}' to fill around {percent} percent",
        "Aim for {percent}% {category} items",
        "Mix in {category} so that it makes up some {percent}%",
        "Roughly {percent} percent '{category}'",
        "The part of {category} should be near {percent}%",
        "Let {category} take close to {percent} percent of the list",
        "{category} items: {percent}%, give or take",
        "Keep '{category}' at around {percent}%",
        "Make the list {percent} percent {category}, more or less",
    ],
    "AtLeast": [
        "At least {percent}% of the list should be {category}",
        "Give '{category}' items {percent} percent or more",
        "{category} should fill {percent}% of the list or more",
        "I need a minimum of {percent}% {category}",
        "The part of {category} must not fall below {percent}%",
        "Let '{category}' reach {percent} percent or above",
        "{percent}% is the floor for {category}",
        "Not less than {percent} percent of the titles from {category}",
        "Start from {percent}% '{category}' and go up from there",
        "I will take {percent}% {category} items or more, never fewer",
    ],
}
"""``instructions.wordings: varied``: ten more wordings a control. Its shares are those of
``draw_control``, multiples of 10 % of any k, so numbers of items would seldom be whole."""
VARIED["Search"] = VARIED["Include"]
VARIED_LAYOUTS = [
    "{intention}. These are the titles I know, oldest first: {history}. Give me {k} others.",
    "I know these titles, oldest first: {history}. {intention}. Name {k} that I do not know.",
    "Recommend {k} different titles. My history is {history}. One condition: {intention}.",
    "My history: {history}. Continue it with {k} different titles. My wish: {intention}.",
]
"""Where else a wish may stand: first, between history and k, last after either."""


ASIDES = [
    "I have seen '{}' items before",
    "There are '{}' products here, too",
    "I know what '{}' items are",
    "A friend told me about '{}' products",
    "My friend likes '{}' products",
    "My brother is interested in '{}'",
    "My sister prefers '{}' items",
    "My friend doesn't like '{}' products",
    "My brother hates '{}' items",
    "My sister doesn't want to browse any '{}' product",
]
"""Remarks about a category that ask for nothing, or tell of somebody else's wish."""
THINGS = ["wooden", "cheap", "used", "blue", "heavy", "handmade", "large", "silent", "old", "fresh"]
"""What no category is called: a wish about it can neither be met nor missed."""


def draw_aside(control, catalog, rng):
    """What stands beside a wish and changes nothing (``instructions.asides``); None if nothing can.

    Half of the asides are a remark about a category that the wish does not name, half a wish in the
    words of any control, about a thing that is no category. The first are meant to make a model
    look which category a wish is about, the second which words are about a category at all;
    benchmarks/LOG.md says how little a mini model made of it.

    Args:
        control: the wish.
    """
    others = [name for name in catalog.names if name not in control.names()]
    things = [name for name in THINGS if name not in {n.lower() for n in catalog.names}]
    if rng.random() < 0.5 and others:
        return ASIDES[rng.integers(len(ASIDES))].format(rng.choice(others))
    if not things:
        return None
    thing = str(rng.choice(things))
    tenths = Fraction(int(rng.integers(11)), 10)
    wishes = [Include(thing), Exclude(thing)]
    wishes += [share(thing, tenths) for share in (AtMost, About, AtLeast)]
    return wishes[rng.integers(len(wishes))].intention(rng)


def template_of(control, history, candidates=None):
    """The paper's instruction for a request, with its slots."""
    if control.template == "category" and not history:  # I3: nobody's history, just a wish
        return SEARCH_CANDIDATES if candidates else SEARCH
    if control.template == "sequential":
        return SEQUENTIAL_CANDIDATES if candidates else SEQUENTIAL
    if control.template == "proportion":
        return PROPORTION
    return CATEGORY_CANDIDATES if candidates else CATEGORY


def fill(template, intention, history, k, catalog, candidates=None):
    """A prompt: an instruction with its slots filled."""
    return template.format(
        history=quoted(history, catalog),
        candidates=quoted(candidates, catalog) if candidates else "",
        intention=intention,
        k=k,
    )


def varied_intention(control, rng):
    """A wish in words of ``VARIED``, or None for a control that has none there."""
    sentences = VARIED.get(type(control).__name__)
    if not sentences:
        return None
    sentence = sentences[rng.integers(len(sentences))]
    percent = f"{float(control.share * 100):g}" if hasattr(control, "share") else ""
    return sentence.format(category=control.category, percent=percent)


def render(control, history, k, catalog, rng, candidates=None, wordings="paper", aside=None):
    """The prompt of a request.

    Args:
        control: ``Control``; it chooses template and intention.
        history: item ids shown, oldest first; empty for a search (I3).
        k: items asked for.
        rng: NumPy generator that draws the intention's wording.
        candidates: item ids to choose from, or None for free generation. Proportion controls have
            no such form.
        wordings: "paper", or "varied": half of the wishes are worded by ``VARIED``, half of the
            prompts with a wish and a history, but no candidates, are laid out by
            ``VARIED_LAYOUTS``.
        aside: a remark (``draw_aside``), put before or behind the wish.
    """
    template, intention = template_of(control, history, candidates), control.intention(rng)
    if wordings == "varied" and intention:
        if rng.random() < 0.5:
            intention = varied_intention(control, rng) or intention
        if history and not candidates and rng.random() < 0.5:
            template = VARIED_LAYOUTS[rng.integers(len(VARIED_LAYOUTS))]
    if aside:
        intention = " and ".join(rng.permutation([intention, aside]).tolist())
    return fill(template, intention, history, k, catalog, candidates)
