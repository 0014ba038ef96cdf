"""Pictures that a student can move: in a notebook, and all on one page (docs/panel).

``pictures`` holds plain functions from a state to a figure, computed by the kit's own functions;
``live`` puts sliders and lists beside them. Where nobody can move a slider, each is one picture:
``RECNB_WIDGETS=static`` in the environment says so, and nothing else decides. The workflow and
``make test`` set it. A notebook that was saved with sliders shows the same picture where no kernel
runs, since both forms store it.
"""

import os

from recnb import RecnbError
from recnb.widgets import live, pictures


def _moves():
    said = os.environ.get("RECNB_WIDGETS", "live")
    if said not in ("live", "static"):
        raise RecnbError(
            f"RECNB_WIDGETS is {said!r} in the environment: set it to live (sliders) or static "
            "(one picture each), or leave it out"
        )
    return said == "live"


def rewards():
    """Ten titles to edit and reorder, a wish to choose: what each title and the list earn."""
    return live.rewards() if _moves() else pictures.render(pictures.rewards())


def credit():
    """Sliders for gamma and lambda: which token of a short answer gets how much of the rewards."""
    return live.credit() if _moves() else pictures.render(pictures.credit())


def label_filter():
    """The label filter, title by title through the teacher's ranking."""
    return live.label_filter() if _moves() else pictures.render(pictures.label_filter())


def trie():
    """The automaton over eight titles: take a token, ban a title, see what may still come."""
    return live.trie() if _moves() else pictures.render(pictures.trie())


def dial(frame):
    """A share to ask for, and what the answers to it delivered.

    Args:
        frame: DataFrame system, category, requested, delivered (``evaluation.cases.dial``).
    """
    return live.dial(frame) if _moves() else pictures.render(pictures.dial(frame))
