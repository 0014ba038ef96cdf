"""Two wishes at once, looked at one by one: which is heard, which is lost, which is turned round.

Table 7 says whether both wishes of a pair were met. It does not say why not. Here each half of a
pair is followed alone: how much of the list is of its category when nothing was said, when this
wish was said alone, and when it was said beside the other one.
"""

import json

import numpy as np
import pandas as pd

from recnb.controls import About, AllOf, AtLeast, AtMost, Exclude, Include, Share, from_json
from recnb.evaluation.protocol import DECODINGS, SYSTEMS
from recnb.lm.parsing import parse

COLUMNS = ["system", "decoding", "task", "half", "unsaid", "alone", "both", "kept", "n"]
WORDS = {
    Include: "include",
    Exclude: "exclude",
    AtMost: "at most",
    About: "about",
    AtLeast: "at least",
}
LEAST = 0.1
"""A wish that moves less than this share of the list, said alone, is not followed further."""


def halves(stored, catalog):
    """Each half of each pair of wishes in one system's answers.

    Args:
        stored: its answers, as ``protocol.answer_all`` stores them.
        catalog: ``Catalog``.

    Returns:
        DataFrame task, half, unsaid, alone, both, kept, n. The middle ones are mean shares of the
        list that are of the half's category: in the I0 answer, in the answer to this wish alone
        (of the users who were asked it about the same category; empty if nobody was), in the answer
        to the pair. kept = (both - unsaid) / (alone - unsaid): 1 = as if said alone, 0 = not heard,
        below 0 = turned round.
    """
    answers, wishes, alone = {}, {}, {}
    for row in stored.itertuples():
        answers[row.task, row.user] = parse(row.text, catalog).items[: row.k], row.k
        wishes[row.task, row.user] = from_json(json.loads(row.control))
    for (task, user), wish in wishes.items():
        if not isinstance(wish, AllOf):
            alone.setdefault((user, wish), answers[task, user])
    found = []
    for (task, user), wish in wishes.items():
        if not isinstance(wish, AllOf) or ("I0", user) not in answers:
            continue
        for place, part in enumerate(wish.controls):
            inside = part.inside(catalog)
            shares = [_share(inside, *answers["I0", user]), _share(inside, *answers[task, user])]
            single = alone.get((user, part))
            shares.append(np.nan if single is None else _share(inside, *single))
            found.append((task, place, _name(wish, place), *shares))
    columns = ["task", "place", "half", "unsaid", "both", "alone"]
    frame = pd.DataFrame(found, columns=columns)
    groups = frame.groupby(["task", "place", "half"], sort=False)
    means = groups[["unsaid", "alone", "both"]].mean().assign(n=groups.size()).reset_index()
    # Of those users alone who were asked for the half alone, too.
    paired = frame.dropna(subset="alone").groupby(["task", "place", "half"], sort=False)
    paired = means[["task", "place", "half"]].merge(
        paired[["unsaid", "alone", "both"]].mean().reset_index(), how="left"
    )
    moved = paired["alone"] - paired["unsaid"]
    kept = (paired["both"] - paired["unsaid"]) / moved
    means["kept"] = kept.where(moved.abs() >= LEAST)
    return means[[column for column in COLUMNS if column in means]]


def _share(inside, items, k):
    known = [i for i in items if i is not None]
    return float(inside[known].sum()) / k


def _name(wish, place):
    """ "exclude", "at most 20 %"; "include (2)" for the second half of two alike."""
    part = wish.controls[place]
    word = WORDS[type(part)]
    if isinstance(part, Share):
        word += f" {float(100 * part.share):g} %"
    alike = len({type(part) for part in wish.controls}) < len(wish.controls)
    return f"{word} ({place + 1})" if alike else word


def all_halves(folder, catalog):
    """``halves`` of every system in a folder of stored answers, with columns system, decoding."""
    parts = []
    for system in SYSTEMS:
        for decoding in DECODINGS:
            path = folder / f"{system}-{decoding}.parquet"
            if path.is_file():
                part = halves(pd.read_parquet(path), catalog)
                parts.append(part.assign(system=system, decoding=decoding))
    return pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)


def readable(frame):
    """The table as text cells: shares in %, kept as a fraction."""
    cells = frame.assign(n=frame["n"].astype(str))
    for column in ("unsaid", "alone", "both"):
        cells[column] = [f"{100 * x:.1f}" if np.isfinite(x) else "" for x in frame[column]]
    cells["kept"] = [f"{x:+.2f}" if np.isfinite(x) else "" for x in frame["kept"]]
    return cells


def sentences(frame, systems=("v2", "full")):
    """What becomes of each half of the paper's two pairs, free decoding.

    Args:
        frame: from ``all_halves``.
        systems: the systems to speak of.
    """
    lines = []
    free = frame[(frame["decoding"] == "free") & frame["system"].isin(systems)]
    for row in free[free["task"].isin(["I1+&I1-", "I2<=20&I1-"])].itertuples():
        line = f"{row.system}, {row.task}, {row.half}: {100 * row.unsaid:.0f} % of the list unsaid"
        if np.isfinite(row.alone):
            line += f", {100 * row.alone:.0f} % said alone"
        lines.append(f"{line}, {100 * row.both:.0f} % beside the other wish{_fate(row.kept)}.")
    return lines


def _fate(kept):
    if not np.isfinite(kept):
        return ""
    if kept < 0:
        return ": turned round"
    return ": heard" if kept > 0.5 else ": half lost or more"
