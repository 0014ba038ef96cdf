"""Two runs side by side: what a change did, on the same requests, with paired tests."""

import pandas as pd

from recnb import RecnbError
from recnb.evaluation.protocol import per_user, stored_requests
from recnb.evaluation.statistics import tested
from recnb.evaluation.stored import open_run
from recnb.evaluation.tables import LAYOUT


def compare_runs(folder, other, systems=("v2", "full"), decodings=("free",)):
    """Paired differences of two runs' systems, ``folder`` - ``other``, each against its namesake.

    Only tasks whose requests are the same in both runs are compared: another teacher names other
    unwanted categories, and other data have other users.

    Args:
        folder, other: two run folders.
        systems: names of ``protocol.SYSTEMS``.
        decodings: names of ``protocol.DECODINGS``.

    Returns:
        ``(differences, left_out)``: DataFrame with ``statistics.COLUMNS``, and the tasks that were
        not compared.

    Raises:
        RecnbError: nothing can be compared.
    """
    profile, catalog, histories, answers = open_run(folder)
    other_profile, other_catalog, other_histories, other_answers = open_run(other)
    if catalog.titles != other_catalog.titles:
        raise RecnbError(
            f"{folder} and {other} have different catalogues ({len(catalog)} and "
            f"{len(other_catalog)} items, or other titles): compare runs of the same data"
        )
    found, left_out = [], set()
    for system in systems:
        for path in (answers / f"{system}-{decoding}.parquet" for decoding in decodings):
            if not (path.is_file() and (other_answers / path.name).is_file()):
                continue
            mine = _values(path, catalog, histories, profile)
            given = catalog, other_histories, other_profile
            theirs = _values(other_answers / path.name, *given)
            name = path.stem
            for table, kinds in LAYOUT.items():
                for task, metric in kinds:
                    if mine[0].get(task) != theirs[0].get(task):
                        left_out.add(task)
                    elif (task, metric) in mine[1] and (task, metric) in theirs[1]:
                        column = (mine[1][task, metric] - theirs[1][task, metric]).dropna()
                        which = (table, f"{name} ({folder.name})", f"{name} ({other.name})")
                        found.append(((*which, task, metric), column.to_numpy()))
    if not found:
        raise RecnbError(
            f"{folder} and {other} share no requests that {' or '.join(systems)} answered in both: "
            "compare runs of the same data and teacher, or name other systems with --system"
        )
    return tested(found, profile.evaluation.bootstrap, profile.seed), sorted(left_out)


def _values(path, catalog, histories, profile):
    """What was asked, ``{task: [Request]}`` by user, and each user's metrics, wide."""
    stored = pd.read_parquet(path)
    requests = stored_requests(stored, histories, profile.data, profile.evaluation.split)
    values = per_user(stored, requests, catalog)
    asked = {task: sorted(of, key=lambda request: request.user) for task, of in requests.items()}
    return asked, values.pivot(index="user", columns=["task", "metric"], values="value")
