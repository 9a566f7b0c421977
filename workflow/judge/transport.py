"""The HTTP transport under the openai client: it paces, bills, bounds, cleans and journals every attempt.

The client decides what is tried again and when. What an endpoint sends reaches it only as a status, an error of one
short line and the headers that say when to retry; replies go to the journal.
"""

import asyncio
import ipaddress
import time
import zlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import cycle
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from workflow.judge.journal import Journal
from workflow.judge.replies import (
    MAX_BYTES,
    JudgeError,
    Reply,
    UnreadableReply,
    one_line,
    read_error,
    read_reply,
    redactor,
)
from workflow.judge.requests import Request

GRACE_S = 10.0  # for the attempts that are under way when the run ends: they are paid for
_CONNECTIONS_PER_POOL = 4
_CAUTIOUS = 3.0  # bytes a token, where a guess must not be too low
ENCODINGS = "gzip, deflate"  # what `_body` can bound
_RETRY_HEADERS = ("retry-after", "retry-after-ms", "x-should-retry")

# The request for which the current task asks. The client has no place for it, and an endpoint must not see it.
ASKED: ContextVar[Request] = ContextVar("asked")


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is reached, how fast and for how much: nothing here may change a score.

    Attributes:
        base_url: of an OpenAI-compatible API, up to `/v1`.
        concurrency: requests in flight at most.
        requests_per_minute, tokens_per_minute: None = not limited.
        timeout_s: of one attempt, from connecting to the last byte. max_attempts: per request.
        give_up_after: requests that may use up their attempts before the run stops; fewer are named at its end.
        budget_usd: the run stops before it could cost more, counting all that its journal holds. None = no cap.
        allow_http: whether the key and the texts may travel unencrypted to another machine.
        progress_s: seconds between lines of progress on stderr; 0 = none.

    Raises:
        JudgeError: the URL is no URL, holds a secret, or is not encrypted; or the budget has no price.
    """

    base_url: str
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout_s: float = 120.0
    max_attempts: int = 8
    give_up_after: int = 10
    budget_usd: float | None = None
    usd_per_million_tokens_in: float = 0.0
    usd_per_million_tokens_out: float = 0.0
    allow_http: bool = False
    progress_s: float = 5.0

    def __post_init__(self) -> None:
        if self.budget_usd is not None and not (self.usd_per_million_tokens_in or self.usd_per_million_tokens_out):
            raise JudgeError("judge: a budget needs the price of a million tokens, in and out.")
        try:
            url = urlsplit(self.base_url)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise JudgeError("judge: the base URL is no http(s) address. It looks like https://HOST/v1.")
        if url.username or url.password or url.query or url.fragment:
            raise JudgeError(
                "judge: the base URL holds a user, a password or a query. Give the key by its environment variable."
            )
        if url.scheme == "http" and not self.is_local and not self.allow_http:
            raise JudgeError(
                f"judge: http://{url.hostname} is not encrypted, and the key would be sent to it. Use https, or set "
                "placement.judge.allow_http: true."
            )

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.usd_per_million_tokens_in + tokens_out * self.usd_per_million_tokens_out) / 1e6

    @property
    def is_local(self) -> bool:
        host = urlsplit(self.base_url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def proxy(self) -> str | None:
        """The proxy that the environment names for this address; loopback has none."""
        url = urlsplit(self.base_url)
        return None if self.is_local or proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)


class Pace:
    """So much a minute, spread evenly: each taker books the next free moment and learns how long to wait for it."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = 60.0 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    def book(self, amount: float, now: float) -> float:
        """Seconds to wait before `amount` may be used."""
        start = max(self._free_at, now)
        self._free_at = start + amount * self._seconds_each
        return start - now

    def correct(self, difference: float) -> None:
        """Book more, or give back, once the true amount is known."""
        self._free_at += difference * self._seconds_each


class Budget:
    """A cap on what has been spent plus the most that the attempts in flight may still cost."""

    def __init__(self, cap: float | None, spent: float) -> None:
        self.cap, self.spent = cap, spent
        self._in_flight: list[float] = []

    async def reserve(self, usd: float) -> None:
        """Set `usd` aside, waiting for attempts in flight if it does not fit now.

        Raises:
            JudgeError: it can no longer fit.
        """
        while self.cap is not None and self.spent + sum(self._in_flight) + usd > self.cap:
            if not self._in_flight:
                raise JudgeError(
                    f"judge: the budget of ${self.cap:.2f} is reached: ${self.spent:.4f} spent and the next request "
                    f"may cost ${usd:.4f}. Every reply is kept; raise the budget and run again to go on from here."
                )
            await asyncio.sleep(0.05)
        self._in_flight.append(usd)

    def settle(self, reserved: float, spent: float) -> None:
        """Replace a reservation by what it did cost."""
        self._in_flight.remove(reserved)
        self.spent += spent


class _Failure(Exception):
    """An attempt without a reply: why, whether it may have been billed, and what the client is shown of it."""

    def __init__(self, reason: str, *, billed: bool = True, response: httpx2.Response | None = None) -> None:
        super().__init__(reason)
        self.reason, self.billed, self.response = reason, billed, response


class Meter(httpx2.AsyncBaseTransport):
    """What every attempt passes through; `check` looks at each reply once it is in the journal."""

    def __init__(self, endpoint: Endpoint, api_key: str, journal: Journal, check: Callable[[Reply], None]) -> None:
        self.endpoint, self.journal, self.check = endpoint, journal, check
        self.redact = redactor(api_key)
        self.requests, self.tokens = Pace(endpoint.requests_per_minute), Pace(endpoint.tokens_per_minute)
        self.budget = Budget(endpoint.budget_usd, endpoint.usd(*journal.tokens))
        # Several pools, since one looks at each of its connections for every request: a quarter of the time at 64.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=2 * _CONNECTIONS_PER_POOL)
        verify, proxy = httpx2.create_ssl_context(), endpoint.proxy()
        self.pools = [
            httpx2.AsyncHTTPTransport(verify=verify, limits=limits, proxy=proxy)
            for _ in range(-(-endpoint.concurrency // _CONNECTIONS_PER_POOL))
        ]
        self._turn = cycle(self.pools)

    async def aclose(self) -> None:
        for pool in self.pools:
            await pool.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One attempt, paced and paid for. If the run ends meanwhile, it may still bring its reply."""
        asked = ASKED.get()
        most = asked.tokens_in(_CAUTIOUS), asked.max_tokens_out
        now = time.monotonic()
        await asyncio.sleep(max(self.requests.book(1.0, now), self.tokens.book(float(sum(most)), now)))
        await self.budget.reserve(self.endpoint.usd(*most))
        attempt = asyncio.ensure_future(self._exchange(request, asked, most))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            await asyncio.wait({attempt}, timeout=GRACE_S)
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)  # its outcome is in the journal
            raise

    async def _exchange(self, request: httpx2.Request, asked: Request, most: tuple[int, int]) -> httpx2.Response:
        """Send, read, write down, settle."""
        billed = most
        try:
            reply = await self._reply(request, asked)
            billed = _or(reply.tokens_in, most[0]), _or(reply.tokens_out, most[1])
            self.journal.add_reply(asked.key, reply, billed)
            self.check(reply)
            return httpx2.Response(200, request=request)
        except _Failure as failure:
            billed = most if failure.billed else (0, 0)
            self.journal.add_failure(asked.key, failure.reason, billed)
            if failure.response is None:
                raise httpx2.ReadError(failure.reason, request=request) from None
            return failure.response
        except asyncio.CancelledError:
            self.journal.add_failure(asked.key, "ended with the run", billed)
            raise
        finally:
            self.tokens.correct(sum(billed) - sum(most))
            self.budget.settle(self.endpoint.usd(*most), self.endpoint.usd(*billed))

    async def _reply(self, request: httpx2.Request, asked: Request) -> Reply:
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                response = await next(self._turn).handle_async_request(request)
                try:
                    body = await _body(response)
                finally:
                    await response.aclose()
            if response.status_code == 200:
                return read_reply(body, self.redact)
        except UnreadableReply as error:
            raise _Failure(str(error)) from None
        except TimeoutError:
            raise _Failure("time-out") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, zlib.error) as error:
            reached = not isinstance(error, httpx2.ConnectError)
            raise _Failure(f"connection lost ({type(error).__name__})", billed=reached) from None
        return self._read_status(response, body, request, asked)

    def _read_status(self, response: httpx2.Response, body: bytes, request: httpx2.Request, asked: Request) -> Reply:
        """A reply, if the endpoint's filter refused the text; otherwise a failure in a form that is safe to show."""
        status = response.status_code
        code, message = read_error(body, self.redact)
        if status == 400 and code == "content_filter":
            return Reply(text=None, model=asked.model, finish_reason="content_filter", tokens_in=0, tokens_out=0)
        if 200 <= status < 300:
            raise _Failure(f"unreadable: status {status}")
        if 300 <= status < 400:
            message = f"it redirects to {one_line(response.headers.get('location', 'nowhere'), self.redact)}"
        headers = {
            name: response.headers[name][:100].encode("ascii", "replace").decode()
            for name in _RETRY_HEADERS
            if name in response.headers
        }
        if code == "insufficient_quota":
            headers["x-should-retry"] = "false"
        elif status == 425:
            headers["x-should-retry"] = "true"
        shown = httpx2.Response(
            status, headers=headers, json={"error": {"message": message, "code": code}}, request=request
        )
        raise _Failure(f"status {status}", billed=False, response=shown)


async def _body(response: httpx2.Response) -> bytes:
    """The decompressed body, of at most MAX_BYTES however it is packed."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise UnreadableReply("unreadable: content encoding")
    inflate = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # zlib or gzip, by its header
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk if inflate is None else inflate.decompress(chunk, MAX_BYTES + 1 - len(body))
        if len(body) > MAX_BYTES:
            raise UnreadableReply(f"unreadable: more than {MAX_BYTES} bytes")
    if inflate is not None and not inflate.eof:
        raise UnreadableReply("unreadable: cut short")
    return bytes(body)


def _or(counted: int | None, otherwise: int) -> int:
    return otherwise if counted is None else counted
