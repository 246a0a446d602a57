"""A small HTTP server in this process that answers as vLLM's does, or as wrongly as told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

V = 30  # tokens, one a letter
KEY = "sk-very-secret"


def distribution(tokens: list[int]) -> np.ndarray:
    """Log-probabilities [V] of the token after these."""
    rng = np.random.default_rng([len(tokens), *tokens])
    logits = rng.normal(0, 2, V)
    return logits - np.log(np.exp(logits).sum())


class FakeServer:
    """State of one server; a test sets what goes wrong."""

    def __init__(self) -> None:
        self.models: Any = [{"id": "tiny", "max_model_len": 64}]
        self.max_logprobs = V
        self.offset = 0  # of the ids that /tokenize gives
        self.tokenizes = True
        self.scores = True
        self.key: str | None = None
        self.seconds = 0.0  # that a completion takes
        # Called with the number of the completion; a (status, headers, body) it returns is sent in
        # place of the answer, "drop" breaks the connection in the middle of it.
        self.trouble: Callable[[int], Any] = lambda number: None
        self.change: Callable[[list[Any]], Any] = lambda entries: entries  # of prompt_logprobs
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def completion(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        """The answer to POST /v1/completions."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            number = len(self.bodies)
            self.bodies.append(body)
        try:
            time.sleep(self.seconds)
            trouble = self.trouble(number)
            return trouble if trouble is not None else self._scored(body)
        finally:
            with self._lock:
                self._at_once -= 1

    def _scored(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        tokens, named = body["prompt"], body["prompt_logprobs"]
        if named > self.max_logprobs:
            return _error(400, f"Requested {named}, greater than max allowed: {self.max_logprobs}")
        if max(tokens) >= V:
            return _error(400, f"Token id {max(tokens)} is out of vocabulary")
        if len(tokens) >= self.models[0].get("max_model_len", 64):
            return _error(400, "maximum context length exceeded")
        choice: dict[str, Any] = {"text": "", "prompt_token_ids": tokens}
        if self.scores:
            choice["prompt_logprobs"] = self.change(
                [None, *(entry(tokens, i, named) for i in range(1, len(tokens)))]
            )
        return 200, {}, {"choices": [choice]}


def entry(tokens: list[int], place: int, named: int) -> dict[str, Any]:
    """vLLM's words on one token: itself first, then the likeliest."""
    logprobs = distribution(tokens[:place])
    order = np.argsort(-logprobs, kind="stable")
    ids = dict.fromkeys([tokens[place], *order[:named].tolist()])
    ranks = {int(token): rank for rank, token in enumerate(order, start=1)}
    return {
        str(token): {"logprob": float(logprobs[token]), "rank": ranks[token], "decoded_token": "x"}
        for token in ids
    }


def _error(status: int, message: str) -> tuple[int, dict[str, str], Any]:
    return status, {}, {"error": {"message": message, "code": status}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer
    fake: FakeServer

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._send(*self._answer({}))

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        answer = self._answer(json.loads(self.rfile.read(length)))
        if answer == "drop":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        else:
            self._send(*answer)

    def _answer(self, body: dict[str, Any]) -> Any:
        fake = self.fake
        fake.headers.append(dict(self.headers))
        if fake.key and self.headers["Authorization"] != f"Bearer {fake.key}":
            return _error(401, f"wrong key: {self.headers['Authorization']}")
        if self.path == "/v1/models":
            return 200, {}, {"data": fake.models}
        if self.path == "/v1/completions":
            return fake.completion(body)
        if self.path == "/tokenize" and fake.tokenizes:
            text = body["prompt"]
            return 200, {}, {"tokens": [(ord(c) + fake.offset) % V for c in text]}
        return _error(404, "Not Found")

    def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def running() -> Iterator[FakeServer]:
    """A fake server on a free port of this machine."""
    fake = FakeServer()
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
