"""Files of the form ``a::b::c``: MovieLens-1M (Latin-1) and MovieTweetings (UTF-8).

Ratings are ``user::item::rating::seconds``, films ``item::title (year)::genre|genre``. A film
without a genre stays in the catalogue, as in MovieLens-100K.
"""

from functools import partial

from recnb.datasets.raw import Dataset, category, identifier, number, seconds, title

RATING = "A line of it is user::item::rating::seconds."
FILM = "A line of it is item::title (year)::genre|genre."
NO_GENRE = "(no genres listed)"


def items(reading, encoding, digits):
    """Yield (line, id, title, genres) of each usable line of the films."""
    for line, fields in _rows(reading, encoding, 3):
        item = _id(fields[0], digits)
        name = "::".join(fields[1:-1])
        genres = [category(genre) for genre in fields[-1].split("|")]
        genres = [genre for genre in genres if genre not in ("", NO_GENRE)]
        if len(fields) == 4 and None not in map(number, fields):
            reading.cannot_read("a rating in the place of a film", line, "::".join(fields))
        elif item is None:
            reading.leave_out("no id", line, name)
        elif (name := title(reading, line, name)) is not None:
            if not genres:
                reading.note("no genre", line, name)
            yield line, item, name, list(dict.fromkeys(genres))


def interactions(reading, encoding, digits):
    """Yield (line, user, item, seconds, rating) of each usable line of the ratings."""
    for line, fields in _rows(reading, encoding, 4):
        user, item = identifier(fields[0].strip()), _id(fields[1], digits)
        stars, time = number(fields[2]), seconds(fields[3])
        if len(fields) > 4:
            reading.cannot_read("more than four fields", line, "::".join(fields))
        elif user is None:
            reading.leave_out("no user", line, item)
        elif item is None:
            reading.leave_out("no film", line, user)
        elif stars is None:
            reading.leave_out("no rating", line, fields[2])
        elif time is None:
            reading.leave_out("no time", line, fields[3])
        else:
            yield line, user, item, time, stars


def _id(text, digits):
    """An id; the leading zeros that a number lost are put back."""
    text = text.strip()
    return identifier(text.zfill(digits) if text.isdecimal() else text)


def _rows(reading, encoding, least):
    """(line, fields) of each line that has enough of them."""
    for first, lines in reading.blocks():
        for line, raw in enumerate(lines, first):
            try:
                text = raw.decode(encoding).rstrip("\r")
            except UnicodeDecodeError:
                reading.cannot_read(f"not {encoding}", line, raw[:300].decode("latin-1"))
                continue
            fields = text.split("::")
            if len(fields) >= least:
                yield line, fields
            elif not text.strip():
                reading.leave_out("an empty line", line, "")
            else:
                reading.cannot_read(f"fewer than {least} fields separated by ::", line, text)


MOVIELENS_1M = Dataset(
    "movielens-1m",
    ("movies.dat",),
    ("ratings.dat",),
    FILM,
    RATING,
    partial(items, encoding="latin-1", digits=0),
    partial(interactions, encoding="latin-1", digits=0),
)
MOVIETWEETINGS = Dataset(
    "movietweetings",
    ("movies.dat",),
    ("ratings.dat",),
    FILM,
    RATING,
    partial(items, encoding="utf-8", digits=7),
    partial(interactions, encoding="utf-8", digits=7),
)
