"""The words of the instructions: Listings 1 to 4, with and without candidates."""

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


def render(control, history, k, catalog, rng, candidates=None):
    """The prompt of a request.

    Args:
        control: ``Control``; it chooses template and intention.
        history: item ids shown, oldest first; empty for a search (I3).
        k: items asked for.
        rng: NumPy generator that draws the intention's wording.
        candidates: item ids to choose from, or None for free generation. Proportion controls have
            no such form.
    """
    if control.template == "category" and not history:  # I3: nobody's history, just a wish
        template = SEARCH_CANDIDATES if candidates else SEARCH
    elif control.template == "sequential":
        template = SEQUENTIAL_CANDIDATES if candidates else SEQUENTIAL
    elif control.template == "proportion":
        template = PROPORTION
    else:
        template = CATEGORY_CANDIDATES if candidates else CATEGORY
    return template.format(
        history=quoted(history, catalog),
        candidates=quoted(candidates, catalog) if candidates else "",
        intention=control.intention(rng),
        k=k,
    )
