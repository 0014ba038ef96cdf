"""The endpoint row against a small OpenAI-compatible server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from recnb import RecnbError
from recnb.baselines.endpoint import Endpoint
from recnb.controls import Exclude, NoControl
from recnb.profile import Endpoint as Knobs
from recnb.requests import Request

KEY = "secret-of-a-test"


@pytest.fixture
def server(monkeypatch):
    """A server that fails as ``failures`` says and then answers with two titles and some talk."""
    monkeypatch.setenv("TEST_KEY", KEY)
    state = {"failures": [], "asked": [], "reply": None}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["asked"].append((self.path, self.headers["Authorization"], body))
            if state["failures"]:
                return self.answer(state["failures"].pop(), {"error": "busy"})
            text = "Sure!\n1. a1\n2. no such title"
            reply = {
                "choices": [{"message": {"content": text}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10},
            }
            self.answer(200, state["reply"] or reply)

        def answer(self, status, data):
            body = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["url"] = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()


def knobs(server, **changes):
    return Knobs(url=server["url"], key_variable="TEST_KEY", wait=0.0, **changes)


def asked(n):
    controls = NoControl(), Exclude("B")
    return [Request(u, (3,), (3, 4), controls[u % 2], 2, 1) for u in range(n)]


def test_answers_come_in_order_and_from_the_cache_the_second_time(server, toy, tmp_path):
    system = Endpoint(knobs(server, concurrency=3), toy, 0, tmp_path)
    answers = system.recommend(asked(2) + asked(2))
    assert [a.items for a in answers] == [[1, None]] * 4 and answers[0].tokens == 10
    path, key, body = server["asked"][0]
    assert path == "/v1/chat/completions" and key == f"Bearer {KEY}"
    system_prompt, prompt = (m["content"] for m in body["messages"])
    assert "'a1'" in system_prompt and "A, B" in system_prompt and "historical" in prompt
    before = len(server["asked"])
    again = Endpoint(knobs(server), toy, 0, tmp_path).recommend(asked(2))
    assert [a.text for a in again] == [a.text for a in answers[:2]]
    assert len(server["asked"]) == before
    assert not any(KEY in path.read_text() for path in tmp_path.glob("*"))


def test_a_busy_endpoint_is_asked_again(server, toy, tmp_path):
    server["failures"] = [503, 429]
    assert Endpoint(knobs(server), toy, 0, tmp_path).recommend(asked(1))[0].items == [1, None]
    assert len(server["asked"]) == 3


@pytest.mark.parametrize(
    "failures, message",
    [
        ([503] * 9, "no answer after 2 tries, the last: status 503"),
        ([401], "refused the request with status 401"),
    ],
)
def test_an_endpoint_that_will_not_answer_is_named(server, toy, tmp_path, failures, message):
    server["failures"] = failures
    with pytest.raises(RecnbError, match=message) as error:
        Endpoint(knobs(server, tries=2), toy, 0, tmp_path).recommend(asked(1))
    assert KEY not in str(error.value) and not list(tmp_path.glob("*"))


def test_unreachable_no_key_and_nonsense(server, toy, tmp_path, monkeypatch):
    with pytest.raises(RecnbError, match="the last: ConnectError"):
        gone = knobs(server, tries=2).model_copy(update={"url": "http://127.0.0.1:9/v1"})
        Endpoint(gone, toy, 0, tmp_path).recommend(asked(1))
    server["reply"] = {"choices": []}
    with pytest.raises(RecnbError, match="not a chat completion"):
        Endpoint(knobs(server), toy, 0, tmp_path).recommend(asked(1))
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(RecnbError, match="set the environment variable TEST_KEY"):
        Endpoint(knobs(server), toy, 0, tmp_path).recommend(asked(1))


def test_the_cap_stops_the_spending_and_keeps_the_answers(server, toy, tmp_path):
    dear = knobs(server, price_prompt=10_000.0, cap=1.5, concurrency=1)  # one answer costs about 1
    requests = [Request(u, (u,), (u,), NoControl(), 2, 1) for u in range(1, 6)]
    with pytest.raises(RecnbError, match="the cap is 1.50"):
        Endpoint(dear, toy, 0, tmp_path).recommend(requests)
    assert len(server["asked"]) == 2 and len(list(tmp_path.glob("*.json"))) == 2
