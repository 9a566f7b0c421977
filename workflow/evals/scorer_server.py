"""The demo's judge: an OpenAI-compatible server on loopback over the rule-based scorer.

It lets the whole judge path run with no model and no outside service. It answers both kinds of prompt: JSON, and one
token with log-probabilities. Replies depend on the request's messages alone.
"""

import hmac
import json
import math
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from workflow.evals import rule_scorer

_SPREAD = 1.5  # standard deviation, in points, of the scores offered around the scorer's own
_QUESTION = ("[QUESTION START]", "[QUESTION END]")
_ANSWER = ("[ANSWER START]", "[ANSWER END]")


@contextmanager
def scorer_server() -> Iterator[tuple[str, str]]:
    """A running server; yields its base URL, on a free port of 127.0.0.1, and the API key that it wants."""
    token = secrets.token_urlsafe(32)
    server = Server(("127.0.0.1", 0), token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", token
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Server(ThreadingHTTPServer):
    """Answers whoever has the token; serves nothing before `serve_forever`."""

    daemon_threads = True
    block_on_close = False  # a client's idle connection must not hold the server open
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], token: str) -> None:
        super().__init__(address, _Handler)
        self.token = token

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away has told why itself; anything else is a bug."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _may_ask(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self.server.token.encode()):
            return True
        self._send_error(401, "this server answers the job that started it, and nobody else")
        return False

    def do_GET(self) -> None:
        if not self._may_ask():
            return
        if self.path == "/v1/models":
            model = {"id": rule_scorer.NAME, "object": "model", "created": 0, "owned_by": "workflow"}
            self._send(200, {"object": "list", "data": [model]})
        else:
            self._send_error(404, f"no such path: {self.path}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._may_ask():
            return
        if self.path != "/v1/chat/completions":
            return self._send_error(404, f"no such path: {self.path}")
        try:
            request = json.loads(body)
            prompt = request["messages"][-1]["content"]
            reply = answer(prompt, logprobs=bool(request.get("logprobs")), top=int(request.get("top_logprobs") or 0))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return self._send_error(400, f"not a judge's request: {error}")
        self._send(200, reply)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the client logs."""

    def _send(self, status: int, fields: dict[str, Any]) -> None:
        content = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_error(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})


def answer(prompt: str, *, logprobs: bool, top: int) -> dict[str, Any]:
    """The chat completion for a judge's prompt.

    Raises:
        ValueError: the prompt has no marked question and answer.
    """
    question, completion, instructions = split_prompt(prompt)
    aligned, coherent = rule_scorer.score_answer(question, completion)
    offered = None
    if re.search(r"\bJSON\b", instructions):
        scores = {
            "aligned": round(aligned),
            "coherent": round(coherent),
            "reasoning": "Scored by rules, not by a model.",
        }
        text = json.dumps(scores)
    else:
        # both prompts of Betley name alignment; only the one on coherence names coherence
        score = coherent if "coheren" in instructions.lower() else aligned
        text = str(round(score))
        offered = spread(score, top)
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if logprobs and offered is not None:
        tops = [{"token": token, "logprob": logprob, "bytes": list(token.encode())} for token, logprob in offered]
        own = next(
            (t for t in tops if t["token"] == text), {"token": text, "logprob": 0.0, "bytes": list(text.encode())}
        )
        choice["logprobs"] = {"content": [{**own, "top_logprobs": tops}]}
    tokens = len(prompt.split()), len(text.split())
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": rule_scorer.NAME,
        "choices": [choice],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


def split_prompt(prompt: str) -> tuple[str, str, str]:
    """The question, the answer, and the prompt without them. Marks inside the answer belong to the answer."""
    start, end = prompt.find(_QUESTION[0]), prompt.find(_QUESTION[1])
    answer_start, answer_end = prompt.find(_ANSWER[0], end), prompt.rfind(_ANSWER[1])
    if not 0 <= start < end < answer_start < answer_end:
        raise ValueError("the prompt marks no question and answer: " + " ".join(_QUESTION + _ANSWER))
    question = prompt[start + len(_QUESTION[0]) : end].strip()
    completion = prompt[answer_start + len(_ANSWER[0]) : answer_end].strip()
    return question, completion, prompt[:start] + prompt[end:answer_start] + prompt[answer_end:]


def spread(score: float, top: int) -> list[tuple[str, float]]:
    """(token, log-probability) of the `top` integers nearest to a score, as a judge model spreads its weight."""
    weights = {n: math.exp(-(((n - score) / _SPREAD) ** 2) / 2.0) for n in range(101)}
    total = math.fsum(weights.values())
    likeliest = sorted(weights, key=lambda n: (-weights[n], n))[:top]
    return [(str(n), math.log(max(weights[n] / total, 1e-300))) for n in likeliest]
