"""Numbers that documents state are recomputed here."""

import re

from recnb.catalog import Catalog
from recnb.controls import About, AtLeast, AtMost, Exclude, Include, NoControl
from recnb.ppo.rewards import score_list
from recnb.profile import Profile, root
from recnb.requests import Request


def test_fidelity_table_of_rewards():
    text = (root() / "docs" / "fidelity.md").read_text()
    toy = Catalog(["a1", "a2", "b1", "b2"], [{"A"}, {"A"}, {"B"}, {"B"}])
    controls = [NoControl(), Include("A"), Exclude("A"), *(cls("A", "1/3") for cls in (AtMost, AtLeast, About))]
    for control in controls:
        asked = Request(0, (), (), control, 3, 3)
        paper, released = (score_list(asked, [1, 3, 2], [1, 0, 2], toy, f).list for f in ("paper", "released"))
        name = " ".join([type(control).__name__, *(str(v) for v in vars(control).values())])
        assert f"| {name} | {paper:.3f} | {released:.3f} |" in text


def test_fidelity_names_real_knobs():
    text = (root() / "docs" / "fidelity.md").read_text()
    for section, key in re.findall(r"`(instructions|ppo|sft|data)\.(\w+)", text):
        assert key in type(getattr(Profile(name="x"), section)).model_fields
