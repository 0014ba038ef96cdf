import numpy as np
import pytest
import torch
from hypothesis import settings

from recnb.catalog import Catalog
from recnb.datasets import build
from recnb.lm.loading import mini_model
from recnb.lm.text import Codec
from recnb.lm.tokenizer import build_tokenizer
from recnb.profile import load
from recnb.teacher.ranking import Teacher
from recnb.teacher.training import untrained

settings.register_profile("nightly", max_examples=10_000, deadline=None)


@pytest.fixture(scope="session")
def smoke():
    return load("smoke")


@pytest.fixture(scope="session")
def world(smoke):
    """Catalogue and histories of the smoke profile."""
    return build(smoke.data, smoke.seed)


@pytest.fixture(scope="session")
def teacher(smoke, world):
    torch.manual_seed(0)
    return Teacher(untrained(len(world[0]), smoke.teacher))


@pytest.fixture(scope="session")
def toy():
    """Six items, kinds A and B, one item in both."""
    categories = [{"A"}, {"A"}, {"B"}, {"B"}, {"A", "B"}, {"B"}]
    return Catalog(["a1", "a2", "b1", "b2", "ab", "b3"], categories)


@pytest.fixture(scope="session", params=[True, False], ids=["whole-titles", "sub-words"])
def language_model(request, smoke, world):
    """A random mini model, once with each kind of title token: (model, codec)."""
    chat = [("What is 2 plus 3?", "2 plus 3 is 5.")] * 5
    codec = Codec(build_tokenizer(world[0], chat, 400, request.param))
    return mini_model(len(codec.tokenizer), smoke.model, codec, 0).eval(), codec


@pytest.fixture
def rng():
    return np.random.default_rng(0)
