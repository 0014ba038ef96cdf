"""Amazon Movies & TV, the release of 2018: reviews and metadata as JSON lines.

An item's categories are the paths of the paper ("Art House & International, By Original Language,
Chinese"): each beginning of its own path, the shop's department left out. Every review counts as
an interaction, whatever its stars.
"""

from recnb.datasets.raw import Dataset, category, identifier, json_row, number, seconds, title

ASIN_LENGTH = 10
DEEPEST = 12
"""Levels of a category path at most; the longest real ones have five."""


def items(reading):
    """Yield (line, asin, title, categories) of each usable line of the metadata."""
    for first, lines in reading.blocks():
        for line, text in enumerate(lines, first):
            row = json_row(reading, line, text)
            if row is None:
                continue
            item = identifier(row.get("asin"), ASIN_LENGTH)
            if item is None:
                reading.leave_out("no asin", line, row.get("title"))
                continue
            path = row.get("category")
            path = [category(name) for name in path] if isinstance(path, list) else []
            path = [name for name in path if name][:DEEPEST]
            if not path:
                reading.leave_out("no category", line, item)
                continue
            name = title(reading, line, row.get("title"))
            if name is None:
                continue
            if len(path) == 1:
                reading.note("no category below the department", line, item)
            own = [", ".join(path[1:end]) for end in range(2, len(path) + 1)]
            yield line, item.strip(), name, list(dict.fromkeys(own))


def interactions(reading):
    """Yield (line, reviewer, asin, seconds, stars) of each usable line of the reviews."""
    for first, lines in reading.blocks():
        for line, text in enumerate(lines, first):
            row = json_row(reading, line, text)
            if row is None:
                continue
            user, item = identifier(row.get("reviewerID")), row.get("asin")
            item = identifier(item, ASIN_LENGTH)
            time, stars = seconds(row.get("unixReviewTime")), number(row.get("overall"))
            if user is None:
                reading.leave_out("no reviewerID", line, item)
            elif item is None:
                reading.leave_out("no asin", line, user)
            elif time is None:
                reading.leave_out("no unixReviewTime", line, row.get("unixReviewTime"))
            elif stars is None:
                reading.leave_out("no overall", line, row.get("overall"))
            else:
                yield line, user, item.strip(), time, stars


AMAZON = Dataset(
    "amazon",
    ("meta_Movies_and_TV.json.gz",),
    ("Movies_and_TV.json.gz", "Movies_and_TV_5.json.gz"),
    "A line of it is a JSON object with asin, title and category.",
    "A line of it is a JSON object with reviewerID, asin, overall and unixReviewTime.",
    items,
    interactions,
    table1="Movie",
)
