import io
import json
import zipfile

import pytest

from recnb import RecnbError, sources
from recnb.artifacts import atomic_path, sha256
from recnb.instructions.chat_mix import records
from recnb.profile import load


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("pkg/data.txt", "hello")
        bundle.writestr("../../escape.txt", "bad")
    return path


def source(wheel, **changes):
    given = dict(
        name="thing",
        requirement="thing==1",
        digest=sha256(wheel),
        members=("pkg/data.txt",),
        licence="MIT",
    )
    return sources.Source(**(given | changes))


def test_fetch_once_then_no_network(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "_download", lambda s, scratch: wheel)
    folder = sources.fetch(source(wheel))
    assert (folder / "data.txt").read_text() == "hello"
    monkeypatch.setattr(sources, "_download", lambda s, scratch: pytest.fail("went to the network"))
    assert sources.fetch(source(wheel)) == folder
    (folder / "data.txt").write_text("changed")
    with pytest.raises(RecnbError, match="damaged"):
        sources.fetch(source(wheel))


def test_failures_leave_nothing(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("RECNB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RecnbError, match="sha256"):
        sources.verify(wheel, "0" * 64)
    monkeypatch.setattr(sources, "_download", lambda s, scratch: wheel)
    with pytest.raises(RecnbError, match="has no pkg/other"):
        sources.fetch(source(wheel, members=("pkg/data.txt", "pkg/other")))
    assert not list((tmp_path / "cache").iterdir())


def test_unreachable_index(tmp_path, monkeypatch, wheel):
    monkeypatch.setenv("RECNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(RecnbError, match="cannot download recnb-no-such-package"):
        sources.fetch(source(wheel, requirement="recnb-no-such-package==1"))
    assert not (tmp_path / "cache").exists()


def test_extraction_stays_inside(wheel, tmp_path):
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    assert sources.extract(wheel, "../../escape.txt", target) == "escape.txt"
    assert (target / "escape.txt").is_file() and not (tmp_path / "escape.txt").exists()


def test_cut_off_json_gives_all_whole_records():
    text = json.dumps([{"a": n, "text": "x" * n} for n in range(30)], indent=1)
    cut = text[: text.rindex('"a": 29') + 5]
    for piece in (7, 64, 10**6):
        assert [r["a"] for r in records(io.StringIO(cut), piece)] == list(range(29))
    with pytest.raises(RecnbError, match="starts with"):
        list(records(io.StringIO("{}")))


def test_atomic_path_leaves_nothing_half_written(tmp_path):
    with pytest.raises(ValueError), atomic_path(tmp_path / "x.txt") as temporary:
        temporary.write_text("half")
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_conversations_are_fetched_before_a_run_whatever_their_share():
    """Notebook 09 reads some that no training saw, also where the training has none."""
    needed = sources.needed(load("laptop", {"instructions.chat_share": 0}))
    assert sources.SHAREGPT in needed and sources.MOVIELENS in needed
    assert not sources.needed(load("smoke"))
