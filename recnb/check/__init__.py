"""Build it yourself: write the method's functions, have them checked, run the stages with them.

``check.stub("gae")`` prints what to write, ``check.gae(my_gae)`` says whether it is right, and
``with check.in_use(gae=my_gae)`` or ``recnb run ... --student FILE`` lets the kit call it.
docs/build_it_yourself.md lists the functions.
"""

import inspect
import textwrap

from recnb.check.arithmetic import causal_mask, clipped_loss, gae, holm, leave_one_out
from recnb.check.compare import Result
from recnb.check.in_place import EXERCISES, find, in_use
from recnb.check.lists import allowed, item_reward, label_filter, list_reward, ndcg

__all__ = [
    "EXERCISES",
    "Result",
    "allowed",
    "causal_mask",
    "clipped_loss",
    "gae",
    "hint",
    "holm",
    "in_use",
    "item_reward",
    "label_filter",
    "leave_one_out",
    "list_reward",
    "ndcg",
    "solution",
    "stub",
]


def stub(name):
    """Print the function to fill in: its signature, its equations and shapes."""
    print(inspect.getsource(find(name).stub).rstrip())


def hint(name):
    """Print a hint, and how long it should take."""
    found = find(name)
    print(f"{'*' * found.stars} {found.minutes} minutes, first used in {found.stage}")
    print(textwrap.fill(found.hint, 88))


def solution(name):
    """Print the kit's own code, as it stands in its modules."""
    for part in find(name).kit:
        print(f"# {part.__module__}")
        print(textwrap.dedent(inspect.getsource(part)))
