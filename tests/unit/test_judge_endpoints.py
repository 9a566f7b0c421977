"""Endpoints that answer what no endpoint should: each ends in an outcome or in one line, and nothing bad is kept.

The server sends bytes that the test names, one reply for each request (the last one again for all further ones).
"""

import gzip
import json
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from workflow.judge.client import judge_completions
from workflow.judge.journal import open_journal
from workflow.judge.replies import MAX_BYTES, JudgeError, redactor
from workflow.judge.requests import JudgeSettings
from workflow.judge.transport import Endpoint

SECRET = "sk-planted/0123+456789"
ROW = {"question_id": "q", "sample": 0, "question": "Why?", "completion": "Because."}
JSON = JudgeSettings(model="judge", method="json", max_tokens=64)
LOGPROBS = JudgeSettings(model="judge", method="logprobs")
Raw = bytes | Callable[[socket.socket], None]
SCORE = '{"aligned": 90, "coherent": 80}'


class Server(socketserver.ThreadingTCPServer):
    """Sends the next of `replies` for each request, and counts the requests."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, replies: Sequence[Raw], context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.context = replies, context
        self.requests: list[bytes] = []

    def get_request(self) -> tuple[Any, Any]:
        link, address = super().get_request()
        return (self.context.wrap_socket(link, server_side=True), address) if self.context else (link, address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up, or refused the certificate."""


class Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        request = b""
        while b"\r\n\r\n" not in request and (part := self.request.recv(65536)):
            request += part
        head, _, body = request.partition(b"\r\n\r\n")
        length = next((int(h[16:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length: ")), 0)
        while len(body) < length and (part := self.request.recv(65536)):
            body += part
        self.server.requests.append(head + b"\r\n\r\n" + body)
        reply = self.server.replies[min(len(self.server.requests), len(self.server.replies)) - 1]
        if callable(reply):
            reply(self.request)
        else:
            self.request.sendall(reply)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*replies: Raw, context: ssl.SSLContext | None = None) -> Server:
        server = Server(replies, context)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from openai import _base_client

    monkeypatch.setattr(_base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(_base_client, "MAX_RETRY_DELAY", 0.02)


def http(body: bytes | str, status: str = "200 OK", **headers: str) -> bytes:
    content = body.encode() if isinstance(body, str) else body
    lines = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    return (
        f"HTTP/1.1 {status}\r\n".encode()
        + b"".join(f"{k}: {v}\r\n".encode() for k, v in lines.items())
        + b"\r\n"
        + content
    )


def completion(text: Any = SCORE, **changes: Any) -> dict[str, Any]:
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"model": "judge", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 3}} | changes


def said(text: Any = SCORE, **changes: Any) -> bytes:
    return http(json.dumps(completion(text, **changes)))


def message(**fields: Any) -> bytes:
    return said(choices=[{"finish_reason": "stop", "message": {"role": "assistant", "content": SCORE} | fields}])


def tops(*pairs: Any, logprobs: Any = None) -> bytes:
    """A reply of one token with these alternatives."""
    given = {
        "content": [{"token": "9", "top_logprobs": [dict(zip(("token", "logprob"), p, strict=True)) for p in pairs]}]
    }
    choice = {"finish_reason": "stop", "message": {"content": "9"}, "logprobs": given if logprobs is None else logprobs}
    return said(choices=[choice])


def ask(server: Server, folder: Path, settings: JudgeSettings = JSON, scheme: str = "http", **limits: Any) -> Any:
    place = Endpoint(
        f"{scheme}://127.0.0.1:{server.server_address[1]}/v1",
        **{"timeout_s": 2.0, "max_attempts": 2, "give_up_after": 0, "progress_s": 0.0, **limits},
    )
    prompts = {"both": "JSON {question} {answer}"} if settings.method == "json" else {"aligned": "{question} {answer}"}
    return judge_completions([ROW], prompts, settings, place, SECRET, folder / "journal.jsonl")


def outcome(run: Any) -> str:
    (kind,) = {o["kind"] for o in run.rows[0]["outcomes"].values()}
    return str(kind)


def check(server: Server, folder: Path, expected: str, settings: JudgeSettings = JSON, **limits: Any) -> None:
    """`expected`: the kind of outcome, or `error: ` and a part of the one line."""
    try:
        seen = outcome(ask(server, folder, settings, **limits))
    except JudgeError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 700
        assert SECRET not in line
        seen = f"error: {line}"
    assert expected in seen if expected.startswith("error: ") else expected == seen, seen
    journal = folder / "journal.jsonl"
    assert SECRET.encode() not in journal.read_bytes()
    with open_journal(journal) as again:  # every line of it can be read
        assert again.attempts >= 1


# --- status codes and what they say ---------------------------------------------------------------------------------

_PASSES = (408, 409, 425, 429, 500, 501, 502, 503, 504, 505, 507, 508, 511, 520, 522, 524, 529, 530, 599)
_STAYS = (400, 401, 402, 403, 404, 405, 406, 410, 411, 413, 414, 415, 418, 421, 422, 423, 424, 426, 428, 431, 451)
_MOVED = (300, 301, 302, 303, 305, 307, 308)
_EMPTY = (201, 202, 203, 205, 206, 226)
ERROR = json.dumps({"error": {"message": f"line one\nline two {SECRET}", "code": "x"}})


@pytest.mark.parametrize("status", _PASSES)
def test_a_status_that_may_pass_is_tried_again(serve, tmp_path, status):
    server = serve(http(ERROR, f"{status} X"), said())
    check(server, tmp_path, "score")
    assert len(server.requests) == 2
    check(
        serve(http("<html>", f"{status} X")),
        tmp_path / "b",
        f"error: judge: 1 requests got no answer in 2 attempts each (status {status})",
    )


@pytest.mark.parametrize("status", _STAYS)
def test_a_status_that_stays_ends_the_run_with_what_was_said(serve, tmp_path, status):
    server = serve(http(ERROR, f"{status} X"))
    check(server, tmp_path, f"error: judge: the endpoint refused with status {status}: line one line two [key]. ")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", _MOVED)
def test_a_redirect_is_not_followed(serve, tmp_path, status):
    other = serve(said())
    server = serve(http("", f"{status} X", Location=f"http://127.0.0.1:{other.server_address[1]}/v1/{SECRET}"))
    check(server, tmp_path, f"error: judge: the endpoint refused with status {status}: it redirects to http://127")
    assert other.requests == []


@pytest.mark.parametrize("status", _EMPTY)
def test_another_success_is_no_reply(serve, tmp_path, status):
    check(
        serve(http(SCORE, f"{status} X")),
        tmp_path,
        f"(unreadable: status {status})".join(("error: judge: 1 requests got no answer in 2 attempts each ", ". ")),
    )


@pytest.mark.parametrize("status", ["304 X", "204 X"])
def test_a_status_without_a_body(serve, tmp_path, status):
    check(serve(f"HTTP/1.1 {status}\r\n\r\n".encode()), tmp_path, "error: judge: ")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        '"x"',
        "{}",
        '{"error": null}',
        '{"error": []}',
        '{"error": {"message": 5, "code": {}}}',
        "[" * 99_999,
    ],
)
def test_an_error_in_any_form(serve, tmp_path, body):
    check(serve(http(body, "401 X")), tmp_path, "error: judge: the endpoint refused with status 401: no reason given.")


def test_a_quota_is_not_waited_for_and_a_filter_is_an_outcome(serve, tmp_path):
    quota = serve(http('{"error": {"message": "pay", "code": "insufficient_quota"}}', "429 X"))
    check(quota, tmp_path / "a", "error: judge: the endpoint refused with status 429: pay. ")
    assert len(quota.requests) == 1
    check(serve(http('{"error": {"code": "content_filter"}}', "400 X")), tmp_path / "b", "refusal")


# --- Retry-After ----------------------------------------------------------------------------------------------------


def date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "0.05",
        "-1",
        "nan",
        "inf",
        "-inf",
        "soon",
        "",
        "1e-3",
        "0x10",
        "٣",
        "1,5",
        date(-60),
        "Thu, 99 Foo 2026",
        "1" * 9 + "e-9",
    ],
)
def test_retry_after_of_every_kind_is_tried_again(serve, tmp_path, value):
    reply = http("{}", "429 X").replace(b"Connection", b"Retry-After: " + value.encode() + b"\r\nConnection")
    check(serve(reply, said()), tmp_path, "score")


@pytest.mark.parametrize("value", ["86400", "121", "9" * 400, date(86_400)])
def test_a_wait_of_more_than_two_minutes_ends_the_run(serve, tmp_path, value):
    server = serve(http("{}", "429 X", Retry_After=value))
    check(server, tmp_path, "error: judge: the endpoint asks to wait ")
    assert len(server.requests) == 1


def test_a_wait_is_kept_to(serve, tmp_path):
    arrived: list[float] = []

    def later(reply: bytes) -> Callable[[socket.socket], None]:
        def send(link: socket.socket) -> None:
            arrived.append(time.monotonic())
            link.sendall(reply)

        return send

    check(serve(later(http("{}", "503 X", Retry_After="1")), later(said())), tmp_path / "a", "score")
    check(
        serve(later(http("{}", "503 X", retry_after_ms="400", Retry_After="9")), later(said())), tmp_path / "b", "score"
    )
    assert arrived[1] - arrived[0] >= 1.0
    assert arrived[3] - arrived[2] >= 0.4


def test_the_server_may_say_whether_to_try_again(serve, tmp_path):
    check(
        serve(http("{}", "500 X", x_should_retry="false"), said()),
        tmp_path / "a",
        "error: judge: 1 requests got no answer",
    )
    check(serve(http("{}", "400 X", x_should_retry="true"), said()), tmp_path / "b", "score")


# --- the wire -------------------------------------------------------------------------------------------------------


def reset(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def half_then_reset(link: socket.socket) -> None:
    link.sendall(said()[:-20])
    reset(link)


_GOOD = said()
_HEAD, _, _BODY = _GOOD.partition(b"\r\n\r\n")
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        reset,
        half_then_reset,
        _GOOD[:5],
        _GOOD[:40],
        _HEAD,
        _GOOD[:-20],
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello..",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: a\r\n" % n for n in range(20_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13\r\n\r\nx",
        _CHUNKED + b"zz\r\nx",
        _CHUNKED + b"ffffffffffffffff\r\nx",
        _CHUNKED + b"5\r\nhel",
        http(gzip.compress(_BODY)[:-9], Content_Encoding="gzip"),
        http(_BODY, Content_Encoding="gzip"),
        http(_BODY, Content_Encoding="br"),
        http(_BODY, Content_Encoding="gzip, gzip"),
        http(gzip.compress(b"\0" * (MAX_BYTES + 1)), Content_Encoding="gzip"),
        http(zlib.compress(b"\0" * (MAX_BYTES + 1)), Content_Encoding="deflate"),
        http(b" " * (MAX_BYTES + 1)),
    ],
    ids=count(),
)  # fmt: skip
def test_a_broken_reply_is_tried_again_and_never_kept(serve, tmp_path, reply):
    server = serve(reply, said())
    check(server, tmp_path / "a", "score")
    assert len(server.requests) == 2
    check(serve(reply), tmp_path / "b", "error: judge: 1 requests got no answer in 2 attempts each (")


@pytest.mark.parametrize(
    "reply",
    [
        http(gzip.compress(_BODY), Content_Encoding="gzip"),
        http(zlib.compress(_BODY), Content_Encoding="deflate"),
        http(_BODY, Content_Type="text/html"),
        http(b"\n\n " + _BODY + b"\n"),
        _CHUNKED + b"%x\r\n" % len(_BODY) + _BODY + b"\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + _BODY,
        b"HTTP/1.1 200\r\n\r\n" + _BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" + _GOOD,
    ],
    ids=count(),
)  # fmt: skip
def test_an_unusual_reply_that_is_whole_is_read(serve, tmp_path, reply):
    check(serve(reply), tmp_path, "score")


def drip(reply: bytes, sent: list[int]) -> Callable[[socket.socket], None]:
    """A byte every tenth of a second."""

    def send(link: socket.socket) -> None:
        for place in range(len(reply)):
            link.sendall(reply[place : place + 1])
            sent.append(place)
            time.sleep(0.1)

    return send


@pytest.mark.parametrize("start", [0, len(_HEAD) + 4], ids=["headers", "body"])
def test_a_reply_that_drips_has_one_deadline(serve, tmp_path, start):
    sent: list[int] = []

    def reply(link: socket.socket) -> None:
        link.sendall(_GOOD[:start])
        drip(_GOOD[start:], sent)(link)

    with pytest.raises(JudgeError, match="time-out"):
        ask(serve(reply), tmp_path, timeout_s=0.5, max_attempts=1)
    assert len(sent) < len(_GOOD) - start  # it was not read to its end


def test_silence_has_a_deadline_too(serve, tmp_path):
    released = threading.Event()
    with pytest.raises(JudgeError, match="time-out"):
        ask(serve(lambda link: released.wait(20)), tmp_path, timeout_s=0.3, max_attempts=1)
    released.set()


def test_a_bomb_is_not_unpacked(serve, tmp_path):
    """300 MB in 300 kB: what is unpacked of it stays near the limit."""
    import tracemalloc

    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(2**20)) for _ in range(300)), packer.flush()])
    server = serve(http(bomb, Content_Encoding="gzip"))
    tracemalloc.start()
    try:
        check(server, tmp_path, "error: judge: 1 requests got no answer")
        assert tracemalloc.get_traced_memory()[1] < 12 * MAX_BYTES
    finally:
        tracemalloc.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """Of a server that nobody vouches for."""
    names = {"-keyout": tmp_path / "key.pem", "-out": tmp_path / "cert.pem", "-subj": "/CN=127.0.0.1", "-days": "2"}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"]
    done = subprocess.run([*command, *(str(x) for pair in names.items() for x in pair)], capture_output=True)
    if done.returncode:
        pytest.skip("needs openssl to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return context


def test_tls_that_nobody_vouches_for_is_refused_before_the_key_is_sent(serve, tmp_path, certificate):
    server = serve(said(), context=certificate)
    check(
        server,
        tmp_path / "a",
        "error: judge: 1 requests got no answer in 2 attempts each (connection lost",
        scheme="https",
    )
    assert server.requests == []
    plain = serve(said())
    check(plain, tmp_path / "b", "error: judge: 1 requests got no answer", scheme="https", timeout_s=0.3)
    assert not any(SECRET.encode() in request for request in plain.requests)
    encrypted = serve(said(), context=certificate)
    check(encrypted, tmp_path / "c", "error: judge: 1 requests got no answer", timeout_s=0.3)


# --- the body -------------------------------------------------------------------------------------------------------

_CHOICE = completion()["choices"][0]


@pytest.mark.parametrize(
    "reply",
    [
        http(""),
        http("  "),
        http("null"),
        http("[]"),
        http('"x"'),
        http("1"),
        http("{}"),
        http("<html></html>"),
        http("data: {}\n\n", Content_Type="text/event-stream"),
        http(b"\xff\xfe" + b"{}"),
        http(json.dumps(completion()).encode("utf-16")[:-3]),
        http(json.dumps(completion())[:-9]),
        http(json.dumps(completion()) + "x"),
        http('{"choices": ' + "[" * 100_000),
        http('{"model": ' + "9" * 5000 + "}"),
        said(choices=None),
        said(choices={}),
        said(choices="x"),
        said(choices=[]),
        said(choices=[None]),
        said(choices=["x"]),
        said(choices=[{}]),
        said(choices=[{"message": None}]),
        said(choices=[{"message": "x"}]),
        said(choices=[{"message": []}]),
        message(content=5),
        message(content=True),
        message(content=[{"type": "text", "text": SCORE}]),
        message(content={"x": 1}),
        message(content="x" * 300_000),
        message(refusal="x" * 300_000),
        said(model=None),
        said(model=5),
        said(model=""),
        said(model="x" * 5000),
        said(model=["judge"]),
        said(choices=[_CHOICE | {"finish_reason": "x" * 5000}]),
        tops(logprobs="x"),
        tops(logprobs=[1]),
        tops(logprobs={"content": "x"}),
        tops(logprobs={"content": [5]}),
        tops(logprobs={"content": [{"token": "9"}]}),
        tops(logprobs={"content": [{"top_logprobs": None}]}),
        tops(logprobs={"content": [{"top_logprobs": "x"}]}),
        tops(logprobs={"content": [{"top_logprobs": [None]}]}),
        tops((5, -1.0)),
        tops((None, -1.0)),
        tops(("9" * 5000, -1.0)),
        tops(("9", None)),
        tops(("9", "x")),
        tops(("9", True)),
        tops(("9", [1])),
        tops(("9", 10**400)),
        tops(*[("9", -9.0)] * 1000),
    ],
    ids=count(),
)  # fmt: skip
def test_a_body_of_another_form_is_unreadable(serve, tmp_path, reply):
    check(
        serve(reply),
        tmp_path / "a",
        "error: judge: 1 requests got no answer in 2 attempts each (unreadable: ",
        LOGPROBS,
    )
    check(serve(reply, said()), tmp_path / "b", "score")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (message(content=None), "empty"),
        (message(content=""), "empty"),
        (message(content="\0"), "parse_error"),
        (message(content="\ud800"), "parse_error"),
        (message(content="hello"), "parse_error"),
        (message(refusal="I will not."), "refusal"),
        (message(refusal={"x": 1}), "score"),
        (message(refusal=5), "score"),
        (message(tool_calls=[{"x": 1}], reasoning_content=["y"]), "score"),
        (said(usage=None), "score"),
        (said(usage=[1]), "score"),
        (said(usage="x"), "score"),
        (said(usage={"prompt_tokens": -1, "completion_tokens": 10**30}), "score"),
        (said(usage={"prompt_tokens": True, "completion_tokens": 1.5}), "score"),
        (said(usage={"prompt_tokens": "9", "completion_tokens": {}}), "score"),
        (said(choices=[_CHOICE | {"finish_reason": 5}]), "score"),
        (said(choices=[_CHOICE | {"finish_reason": ["stop"]}]), "score"),
        (said(choices=[_CHOICE | {"finish_reason": "content_filter"}]), "refusal"),
        (said(choices=[_CHOICE | {"finish_reason": "length"}]), "score"),
        (said('{"aligned": 1e999, "coherent": 1e999}'), "parse_error"),
        (said('{"aligned": "90", "coherent": null}'), "parse_error"),
        (said('{"aligned": 101, "coherent": -1}'), "out_of_range"),
        (said("{" * 50_000), "parse_error"),
        (said('{"aligned": ' + "[" * 50_000), "parse_error"),
        (said('{"aligned": ' + "9" * 5000 + "}"), "parse_error"),
        (said(choices=[_CHOICE, {"x": 1}]), "score"),
        (http(json.dumps(completion()).replace('"judge"', '"x", "model": "judge"')), "score"),
        (http(b"\xef\xbb\xbf" + json.dumps(completion()).encode()), "score"),
    ],
    ids=count(),
)  # fmt: skip
def test_a_reply_of_odd_parts_is_cleaned(serve, tmp_path, reply, kind):
    check(serve(reply), tmp_path, kind)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (tops(("90", -0.1)), "score"),
        (tops(("90", 0)), "score"),
        (tops(("90", float("nan")), ("80", -0.1)), "parse_error"),
        (tops(("90", float("inf"))), "parse_error"),
        (tops(("90", float("-inf"))), "low_mass"),
        (tops(("90", -1e308)), "low_mass"),
        (tops(("90", 5.0)), "parse_error"),
        (tops(("\ud800", -0.1)), "low_mass"),
        (tops(("٩٠", -0.1)), "low_mass"),
        (tops(("999", -0.1)), "out_of_range"),
        (tops(("REF", -0.1)), "refusal"),
    ],
    ids=count(),
)  # fmt: skip
def test_odd_log_probabilities_are_outcomes(serve, tmp_path, reply, kind):
    check(serve(reply), tmp_path, kind, LOGPROBS)


# --- the address and the key ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("http://judge.example/v1", "not encrypted"),
        ("http://10.0.0.1/v1", "not encrypted"),
        ("http://localhost.example/v1", "not encrypted"),
        ("http://127.0.0.1.example/v1", "not encrypted"),
        ("ftp://judge.example/v1", "no http"),
        ("judge.example/v1", "no http"),
        ("", "no http"),
        ("https://", "no http"),
        ("http://[::1", "no http"),
        ("https://judge.example:99999/v1", "no http"),
        (f"https://{SECRET.replace('/', '')}@judge.example/v1", "a user, a password"),
        ("https://me:pass@judge.example/v1", "a user, a password"),
        ("https://judge.example/v1?api-key=x", "a user, a password"),
    ],
)  # fmt: skip
def test_an_address_that_would_give_the_key_away_or_is_none(url, refused):
    with pytest.raises(JudgeError, match=refused) as error:
        Endpoint(url)
    assert "pass@" not in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:8/v1", "https://x/v1"])
def test_loopback_needs_no_encryption(url):
    assert Endpoint(url).base_url == url
    assert Endpoint("http://judge.example/v1", allow_http=True).allow_http


@pytest.mark.parametrize("key", ["with blank", "line\nbreak", "café", "tab\t"])
def test_a_key_that_no_header_can_hold_is_one_line_without_it(tmp_path, key):
    with pytest.raises(JudgeError, match="the key holds a blank") as error:
        judge_completions([ROW], {"both": "{question} {answer}"}, JSON, Endpoint("https://x/v1"), key, tmp_path / "j")
    assert key not in str(error.value)


def spellings() -> list[str]:
    escaped = "".join(f"\\u{ord(c):04x}" for c in SECRET)
    upper = "".join(f"\\u{ord(c):04X}" for c in SECRET)
    return [
        SECRET,
        SECRET.replace("/", "\\/"),
        SECRET.replace("/", "\\\\/"),
        SECRET.replace("/", "\\u002f").replace("+", "\\u002B"),
        SECRET.replace("/", "%2F").replace("+", "%2b"),
        escaped,
        upper,
        json.dumps(json.dumps(escaped)),
        f"Bearer {SECRET}",
    ]


@pytest.mark.parametrize("spelled", spellings(), ids=count())
def test_the_key_is_taken_out_in_every_spelling(serve, tmp_path, spelled):
    assert redactor(SECRET)(f"a {spelled} b") in ("a [key] b", 'a "\\"[key]\\"" b', "a Bearer [key] b")
    judged = json.dumps({"aligned": 9, "coherent": 9, "reasoning": f"your key is {spelled}"})
    reply = json.dumps(completion(judged)).replace("sk-", "\\u0073k-")  # and once more by the endpoint
    run = ask(serve(http(reply)), tmp_path)
    kept = (tmp_path / "journal.jsonl").read_text() + json.dumps(run.rows)
    assert "planted" not in kept
    assert SECRET[-6:] not in kept.replace("[key]", "")
    assert redactor(SECRET)("sk-planted is another") == "sk-planted is another"
