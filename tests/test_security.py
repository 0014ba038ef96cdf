import json
import pickle
import re
import zipfile
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recnb import RecnbError, profile, sources
from recnb.lm.loading import load_base, refuse_code
from recnb.profile import root
from recnb.report import PAGE


def test_yaml_bombs_are_refused(tmp_path):
    nine = [(b, ",".join([f"*{a}"] * 9)) for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    levels = [f"{key}: &{key} [{aliases}]" for key, aliases in nine]
    bombs = {
        "alias": "a: &a [x]\n" + "\n".join(levels),
        "deep": "[" * 5000,
        "characters": "# " + "x" * 1_000_001,
        "not valid YAML": "a: !!python/object/apply:os.system [true]",
    }
    for message, text in bombs.items():
        path = tmp_path / "bomb.yaml"
        path.write_text(text)
        with pytest.raises(RecnbError, match=message):
            profile.load(path)


@given(st.text(max_size=200) | st.text("{}[]:,-&*!|>#'\"\n ab1", max_size=80))
def test_any_yaml_works_or_is_refused(text):
    try:
        profile.read_yaml(text)
    except RecnbError:
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_profile_file_works_or_is_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    try:
        profile.load(path)
    except RecnbError:
        pass


def test_a_zip_member_too_large_or_a_link_is_refused(tmp_path):
    archive, folder = tmp_path / "a.zip", tmp_path / "out"
    folder.mkdir()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("bomb", b"\0" * 100_000)
        bundle.writestr(link, "/etc/passwd")
    with pytest.raises(RecnbError, match="unpacks to 100,000 bytes"):
        sources.extract(archive, "bomb", folder, largest=99_999)
    with pytest.raises(RecnbError, match="is a link"):
        sources.extract(archive, "link", folder)
    assert not list(folder.iterdir())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 140), st.integers(0, 255))
def test_a_damaged_zip_works_or_is_refused(tmp_path, place, byte):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("data", b"hello" * 20)
    content = bytearray(archive.read_bytes())
    content[place % len(content)] = byte
    archive.write_bytes(content)
    try:
        sources.extract(archive, "data", tmp_path)
    except RecnbError:
        pass


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_pickle_is_never_opened(tmp_path):
    model, ran = tmp_path / "model", tmp_path / "ran"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt"):
        (model / name).write_bytes(pickle.dumps(Payload(str(ran))))
    with pytest.raises(RecnbError, match="can carry code"):
        load_base(model)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "adapter_config.json"])
@pytest.mark.parametrize(
    "text, message",
    [
        ('{"auto_map": {"AutoModel": "evil.Model"}}', "never run"),
        ("{", "not valid JSON"),
        ("[1]", "JSON object"),
    ],
)
def test_a_config_that_points_to_code_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RecnbError, match=message):
        refuse_code(tmp_path)


def test_a_pickled_adapter_beside_safetensors_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"never read")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RecnbError, match="no adapter_model.safetensors there"):
        refuse_code(tmp_path)


def page_of(text):
    """The report with that text wherever it shows one; tags and attributes that it then has."""
    plain = ["name", "model", "ability_note", "tallrec_note", "versions", "settings"]
    plain += ["statistics", "differences", "stages", "cases"]  # all made elsewhere, as markup
    lists = dict.fromkeys(["summary", "primary", "wordings", "results"], [text])
    nothing = dict.fromkeys(["table", "figure"], lambda name: "")
    page = PAGE.render(dict.fromkeys(plain, text), warnings=[(text, text)], **lists, **nothing)
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(page)
    return page, found


def test_the_report_escapes_every_text():
    _, harmless = page_of("x")
    _, hostile = page_of("</pre></title></style><script>x</script><img src=x onerror=x>\"'{{ 1 }}")
    assert harmless == hostile


def test_the_report_forbids_scripts_and_loading():
    page, found = page_of("x")
    [policy] = [
        a["content"] for tag, a in found if a.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    allowed = {"default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'"}
    assert rules == allowed | {"form-action": "'none'", "base-uri": "'none'"}
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {
        t for t, _ in found
    }
    assert not re.search(r"(src|href)=[\"']?(?!data:)", page)


def test_every_promise_names_a_test_that_exists():
    lines = (root() / "SECURITY.md").read_text().splitlines()
    rows = [line.split(" | ")[1] for line in lines if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        names, file = re.findall(r"`([^`]+)`", row), ""
        assert names, row
        for name in names:
            path, _, test = name.partition("::")
            file = path or file
            text = (root() / file).read_text()
            assert not test or f"def {test}(" in text, name
