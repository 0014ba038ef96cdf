"""Any OpenAI-compatible endpoint as a recommender: the paper's GPT-3.5 row, or your own server.

The key is read from the environment when a request is sent and appears nowhere else. Answers are
cached by what was asked, so that a repeated or stopped run pays once.
"""

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from recnb import RecnbError
from recnb.artifacts import write_json
from recnb.catalog import LONGEST_TITLE
from recnb.lm.parsing import parse
from recnb.lm.recommender import request_prompt

AGAIN = {408, 409, 429, 500, 502, 503, 504}
"""Answers after which the same request is worth another try."""
RULES = (
    "You recommend titles of one fixed catalogue. Its titles look like these: {examples}. "
    "Its categories are: {categories}. Never recommend a title of the user's history, and none "
    "twice. Answer with the numbered list alone, one title a line, the title exactly as the "
    'catalogue writes it: "1. Title".'
)


class Endpoint:
    """``recommend(requests) -> list[Response]`` over HTTP.

    Args:
        knobs: the ``endpoint`` section of a profile.
        catalog: ``Catalog``.
        seed: draws the wording of each request, as for every other system.
        cache: folder of answers, one JSON file each.
    """

    def __init__(self, knobs, catalog, seed, cache):
        self.knobs, self.catalog, self.seed, self.cache = knobs, catalog, seed, cache
        examples = ", ".join(f"'{title}'" for title in catalog.titles[1:4])
        self.rules = RULES.format(examples=examples, categories=", ".join(catalog.names))
        self.spent, self.lock = 0.0, threading.Lock()
        cache.mkdir(parents=True, exist_ok=True)

    def recommend(self, requests, progress=lambda done, total: None):
        """Ask for all requests, several at a time; answers come in the order of the requests.

        Raises:
            RecnbError: no key, a refused request, an endpoint that stays unreachable, the spending
                cap is reached.
        """
        with (
            httpx.Client(timeout=self.knobs.timeout) as client,
            ThreadPoolExecutor(self.knobs.concurrency) as pool,
        ):
            asked, waiting, responses = {}, [], []
            for request in requests:  # what two users ask alike is asked once
                body = self._body(request)
                call = json.dumps([self.knobs.url, body], sort_keys=True)
                key = hashlib.sha256(call.encode()).hexdigest()
                if key not in asked:
                    asked[key] = pool.submit(self._answer, client, body, self.cache / f"{key}.json")
                waiting.append(asked[key])
            try:
                for future in waiting:
                    responses.append(future.result())
                    progress(len(responses), len(requests))
            finally:
                for future in waiting:
                    future.cancel()
        return responses

    def _body(self, request):
        prompt = request_prompt(request, self.catalog, self.seed)
        return {
            "model": self.knobs.model,
            "temperature": 0,
            "max_tokens": LONGEST_TITLE * (request.k + 1),
            "messages": [
                {"role": "system", "content": self.rules},
                {"role": "user", "content": prompt},
            ],
        }

    def _answer(self, client, body, path):
        if not path.is_file():
            write_json(path, self._ask(client, body))
        kept = json.loads(path.read_text(encoding="utf-8"))
        return parse(kept["text"], self.catalog, kept["completion_tokens"])

    def _ask(self, client, body):
        key = os.environ.get(self.knobs.key_variable)
        if not key:
            raise RecnbError(
                f"endpoint {self.knobs.url}: set the environment variable "
                f"{self.knobs.key_variable} to its key"
            )
        for attempt in range(self.knobs.tries):
            if self.spent >= self.knobs.cap:
                raise RecnbError(
                    f"endpoint {self.knobs.url}: {self.spent:.2f} spent, the cap is "
                    f"{self.knobs.cap:.2f} (endpoint.cap); answers so far are cached, raise the "
                    "cap and run again to go on"
                )
            if attempt:
                time.sleep(self.knobs.wait * 2 ** (attempt - 1))
            try:
                reply = client.post(
                    f"{self.knobs.url.rstrip('/')}/chat/completions",
                    json=body,
                    headers={"Authorization": f"Bearer {key}"},
                )
            except httpx.TransportError as error:
                trouble = type(error).__name__
                continue
            if reply.status_code in AGAIN:
                trouble = f"status {reply.status_code}"
                continue
            return self._read(reply)
        raise RecnbError(
            f"endpoint {self.knobs.url}: no answer after {self.knobs.tries} tries, the last: "
            f"{trouble}"
        )

    def _read(self, reply):
        """Text and tokens of a reply; what it cost is added up."""
        if reply.status_code != 200:
            raise RecnbError(
                f"endpoint {self.knobs.url} refused the request with status {reply.status_code}: "
                f"{reply.text[:200]}"
            )
        try:
            data = reply.json()
            text, used = data["choices"][0]["message"]["content"] or "", data["usage"]
            row = {
                "text": text.encode("utf-8", "replace").decode(),  # JSON may hold "\\ud800"
                "prompt_tokens": used["prompt_tokens"],
                "completion_tokens": used["completion_tokens"],
            }
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RecnbError(
                f"endpoint {self.knobs.url}: not a chat completion: {reply.text[:200]!r}"
            ) from error
        price = row["prompt_tokens"] * self.knobs.price_prompt
        price += row["completion_tokens"] * self.knobs.price_completion
        with self.lock:
            self.spent += price / 1e6
        return row
