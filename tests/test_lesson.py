"""Code and pictures that lessons show: short enough, out of the module, with words for each."""

import json
import math
import re

import matplotlib.pyplot as plt
import pytest
import torch

from recnb.controls import AtMost
from recnb.lesson import attention, attention_weights, clipping, credit, source
from recnb.ppo import ppo_math, trainer
from recnb.profile import STAGES, root
from recnb.teacher import sasrec


def test_code_is_shown_as_it_stands_without_its_docstring():
    shown = source(ppo_math.gae)
    assert shown.name == "recnb.ppo.ppo_math.gae" and '"""' not in shown.text
    assert shown.text.startswith("def gae(") and "delta = rewards" in shown.text
    space = {"torch": ppo_math.torch}
    exec(shown.text, space)  # it is whole
    rows = [ppo_math.torch.rand(2, 5) for _ in range(3)]
    assert space["gae"](*rows, 0.9, 0.5)[0].equal(ppo_math.gae(*rows, 0.9, 0.5)[0])
    assert source(AtMost.item_score).text.startswith("def item_score(self")
    assert "```python\ndef gae" in shown._repr_markdown_() and repr(shown).startswith("# recnb")


def test_what_is_too_long_for_a_lesson_is_refused():
    with pytest.raises(ValueError, match=r"train_ppo has \d+ lines, more than 30"):
        source(trainer.train_ppo)


def test_credit_fades_by_gamma_lambda_a_token():
    figure, found = credit([0.0] * 9 + [2.0], gamma=0.9, lambdas=(0.0, 0.5, 1.0))
    for lam, advantages in found.items():
        for place, advantage in enumerate(advantages):
            assert math.isclose(advantage, 2 * (0.9 * lam) ** (9 - place), rel_tol=1e-5)
    assert "A line for each lambda".lower() in figure.axes[0].get_label().lower()


def test_past_the_clip_nothing_is_gained():
    figure = clipping(0.2)
    good, bad = (line.get_ydata() for line in figure.axes[0].lines[:2])
    assert good.max() == pytest.approx(1.2) and good[-1] == good.max()
    assert bad.max() == pytest.approx(-0.8) and bad[0] == bad.max() and bad[-1] == -1.5


def test_the_attention_shown_is_the_one_that_predicts(teacher, monkeypatch):
    """The weights, applied to the values, give what the model's own attention gives."""
    seen, model = [], teacher.model

    def watched(q, k, v, attn_mask):
        seen.append((v, attend(q, k, v, attn_mask=attn_mask)))
        return seen[-1][1]

    attend = sasrec.F.scaled_dot_product_attention
    monkeypatch.setattr(sasrec.F, "scaled_dot_product_attention", watched)
    weights = attention_weights(model, [5, 9, 2, 7])
    assert weights.shape == (len(model.blocks), model.blocks[0].heads, 4, 4)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-6)
    assert weights.triu(1).eq(0).all()
    for layer, (values, mixed) in zip(weights, seen, strict=True):
        assert torch.allclose(layer @ values[0], mixed[0], atol=1e-5)


def test_a_map_of_attention_shows_each_share_in_figures(teacher, world):
    figure = attention(teacher.model, [5, 9, 2], world[0].titles)
    (axis,) = figure.axes
    assert len(axis.texts) == 6 and axis.texts[0].get_text() == "100"
    told = axis.get_label()
    assert world[0].titles[2][:24] in told and "3 titles, oldest first" in told
    plt.close(figure)


MINUTES = {
    "seconds": 0.2,
    "half a minute": 0.5,
    "two": 2,
    "three": 3,
    "four": 4,
    "a quarter of an hour": 15,
    "an hour": 60,
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_minutes_a_lesson_states_are_those_of_the_reference_run(stage):
    path = root() / "notebooks" / f"{stage}.ipynb"
    head = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    found = re.search(
        r"running takes (?:.* on `lesson`, )?(.+?)(?: minutes)?(?: on `laptop`)? \|", head
    )
    manifest = root() / "papermill_runs" / "reference" / "laptop" / stage / "manifest.json"
    took = json.loads(manifest.read_text())["wall_seconds"] / 60
    assert took / 2 < MINUTES[found[1]] < 2 * took or took + MINUTES[found[1]] < 0.5
