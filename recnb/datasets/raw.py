"""Raw files as lines, streamed out of gzip or as they are, with an account of what is left out.

A reader (``amazon``, ``steam``, ``dat``) turns the lines of a file into rows. What it cannot use
it leaves out with a reason; nothing is left out without being counted.
"""

import hashlib
import html
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from recnb import RecnbError
from recnb.catalog import clean_title
from recnb.datasets.tabular import shown

MOST_UNREADABLE = 0.05
"""Share of a file's lines that may be unreadable before the whole file is refused."""
FIRST_LINES = 1000
"""A file none of whose first lines, so many at least, can be used is another kind of file."""
LONGEST_LINE = 64 << 20
"""Bytes of a line at most; the text of a longer one never lies in memory."""
LONGEST_RAW_TITLE, LONGEST_TITLE = 20_000, 400
"""Characters of a title that are looked at, and that are kept: prompts show at most 64 tokens."""
REST = "the rest of the file"
"""How the reason begins where a file breaks off."""
PIECE = 1 << 20
"""Bytes that are unpacked at a time."""


@dataclass(frozen=True)
class Dataset:
    """What there is to know about one dataset's raw files."""

    name: str
    """What the command line calls it."""
    item_files: tuple[str, ...]
    """Names of the file of items, the best first; each may also stand there without its .gz."""
    log_files: tuple[str, ...]
    """The same for the interactions."""
    item_form: str
    """What a line of the file of items is, for the message that a file is none."""
    log_form: str
    """The same for the interactions."""
    items: Callable
    """``items(reading)`` yields (line, id, title, list of categories)."""
    interactions: Callable
    """``interactions(reading)`` yields (line, user, item, seconds, rating or None)."""
    rated: bool = True
    """Whether interactions have ratings."""
    table1: str = ""
    """The dataset's name in the paper's Table 1."""


@dataclass
class Account:
    """How many rows something happened to, and the first of them."""

    rows: int
    line: int
    example: str


@dataclass
class Reading:
    """One raw file being read.

    Attributes:
        form: what a line of it should be, in words.
        lines: lines read so far.
        left_out: reason -> ``Account`` of the lines that give no row.
        notes: what was repaired -> ``Account``.
        sha256: of the file as it lies there, once all of it was read.
        done: share of the file that was read.
    """

    path: Path
    form: str
    lines: int = 0
    left_out: dict[str, Account] = field(default_factory=dict)
    notes: dict[str, Account] = field(default_factory=dict)
    unused: int = 0
    unreadable: int = 0
    first_unreadable: str = ""
    cut: str = ""
    sha256: str = ""
    done: float = 0.0

    def leave_out(self, reason, line, text):
        """Count a line that gives no row."""
        _count(self.left_out, reason, line, text)
        self.unused += 1

    def cannot_read(self, reason, line, text):
        """Count a line that is not of the file's form; too many of them, and the file is none."""
        self.leave_out(reason, line, text)
        self.unreadable += 1
        self.first_unreadable = self.first_unreadable or f"line {line}: {reason}, {shown(text)!r}"

    def note(self, what, line, text):
        """Count a line that gives a row after a repair."""
        _count(self.notes, what, line, text)

    def blocks(self):
        """Yield (number of the first line, list of whole lines as bytes, without line feeds).

        Raises:
            RecnbError: the file cannot be opened, is of another kind, or too much of it is
                unreadable.
        """
        rest, skipping = b"", False
        for piece in self._pieces():
            if self.lines >= FIRST_LINES:
                self._refuse_another_kind()
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            if skipping and lines:  # the end of the line that was too long
                lines, skipping = lines[1:], False
            if lines:
                if not self.lines:
                    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
                yield self._counted(lines)
            if skipping:
                rest = b""
            elif len(rest) > LONGEST_LINE:
                self.lines += 1
                reason = f"a line longer than {LONGEST_LINE >> 20} MiB"
                self.cannot_read(reason, self.lines, _text(rest))
                rest, skipping = b"", True
        if self.cut:
            _count(self.left_out, self.cut, self.lines + 1, _text(rest))
        elif rest:
            yield self._counted([rest])
        if not self.lines:
            why = self.cut or "there is no line to read"
            raise RecnbError(f"{self.path}, line 1: {why}. {self.form}")
        self._refuse_another_kind()
        if self.unreadable > MOST_UNREADABLE * self.lines:
            share = f"{self.unreadable:,} of {self.lines:,} lines"
            raise RecnbError(
                f"{self.path}, {self.first_unreadable}: {share} cannot be read, more than "
                f"{MOST_UNREADABLE:.0%}: fetch the file again. {self.form}"
            )

    def _counted(self, lines):
        self.lines += len(lines)
        return self.lines - len(lines) + 1, lines

    def _pieces(self):
        """The file's content in pieces; its digest is taken on the way."""
        digest, unpacker = hashlib.sha256(), _Unpacker()
        try:
            with open(self.path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                while raw := file.read(PIECE // 4):
                    digest.update(raw)
                    self.done = file.tell() / size
                    if packed:
                        yield from unpacker.pieces(raw)
                    else:
                        yield raw
        except OSError as error:
            raise RecnbError(f"cannot read {self.path}: {error.strerror or error}") from error
        self.cut = unpacker.trouble() if packed else ""
        self.sha256 = digest.hexdigest()

    def _refuse_another_kind(self):
        if self.unused >= self.lines:
            reason, first = next(iter(self.left_out.items()))
            raise RecnbError(
                f"{self.path}, line {first.line}: {reason} ({first.example!r}), and none of "
                f"{self.lines:,} lines can be used: is this the right file? {self.form}"
            )


class _Unpacker:
    """gzip data in pieces of ``PIECE`` bytes at most, whatever they unpack to.

    ``gzip.open`` loses up to a buffer of sound lines where a file is cut off; this does not.
    """

    def __init__(self):
        self.member, self.damage = zlib.decompressobj(31), ""

    def pieces(self, raw):
        """What these bytes of the file unpack to; nothing any more behind damage."""
        while raw and not self.damage:
            if self.member.eof:
                raw = raw.lstrip(b"\0")  # padding between the members
                if not raw:
                    return
                self.member = zlib.decompressobj(31)
            try:
                piece = self.member.decompress(raw, PIECE)
            except zlib.error as error:
                self.damage = f"{REST}: its gzip data are damaged ({error})"
                return
            raw = self.member.unused_data if self.member.eof else self.member.unconsumed_tail
            if piece:
                yield piece

    def trouble(self):
        """Why the rest of the file is missing; empty if it is not."""
        if self.damage or self.member.eof:
            return self.damage
        return f"{REST}: its gzip data end early (a download that broke off?)"


def _count(accounts, what, line, text):
    if what in accounts:
        accounts[what].rows += 1
    else:
        accounts[what] = Account(1, line, "" if text is None else shown(text))


def _text(line):
    return line[:300].decode("utf-8", "replace")


DECODE = json.JSONDecoder().raw_decode


def json_row(reading, number, line):
    """The JSON object on a line, or None, counted."""
    try:
        text = line.decode()
        row, end = DECODE(text)
        if end != len(text):  # blanks, a carriage return, or something that is not JSON
            row = json.loads(text)
    except UnicodeDecodeError:
        reading.cannot_read("not UTF-8", number, _text(line))
    except (ValueError, RecursionError):
        blank = not line.strip()
        why = "an empty line" if blank else "not JSON"
        (reading.leave_out if blank else reading.cannot_read)(why, number, _text(line))
    else:
        if isinstance(row, dict):
            return row
        reading.cannot_read("not a JSON object", number, text)
    return None


def identifier(value, digits=0):
    """An id as text, whether it was text or a number; None if it is missing.

    Args:
        digits: a number is filled with leading zeros to so many.

    An id with control characters or line feeds comes as the JSON of it, on one line.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value).zfill(digits) if abs(value) < 1 << 63 else ""
    if not isinstance(value, str) or not value.strip():
        return None
    return value if value.isprintable() else json.dumps(value)


def number(value):
    """A finite number out of a number or its text; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def seconds(value):
    """A time as whole seconds; None if it is none."""
    if type(value) is not int:
        value = number(value)
    return int(value) if value is not None and abs(value) < 1 << 62 else None


def title(reading, line, value):
    """A title as the kit shows it; None, counted, if there is none to show."""
    if not isinstance(value, str) or not value.strip():
        return reading.leave_out("no title", line, value)
    if "getTime" in value:
        return reading.leave_out("a script in the title's place", line, value)
    found = plain(value)
    if not found:
        return reading.leave_out("no title once markup is removed", line, value)
    if len(value) > LONGEST_RAW_TITLE or len(found) > LONGEST_TITLE:
        reading.note("title cut off", line, found)
    return found


def plain(value):
    """Text without markup and entities, so that cleaning it once more changes nothing."""
    text = html.unescape(value[:LONGEST_RAW_TITLE])
    text = text.encode("utf-8", "ignore").decode()  # halves of surrogate pairs
    while (cleaned := clean_title(text)[:LONGEST_TITLE].rstrip()) != text:
        text = cleaned
    return text


def category(value):
    """A category's name as it may stand in the table: no markup, no separator; or empty."""
    return plain(value).replace("|", "/") if isinstance(value, str) else ""
