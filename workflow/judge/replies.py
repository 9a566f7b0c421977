"""Read what a judge's endpoint sends: nothing of it is trusted, and nothing of it holds the key.

A reply is cleaned to the fields below, or it is unreadable; an unreadable one is asked for again.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workflow.errors import UserError
from workflow.evals.scoring import splits_digits

MAX_BYTES = 4 * 2**20  # of a reply, after decompression
_MAX_NAME = 200
_MAX_TOKENS = 10**9
_SHORTEST_SECRET = 8  # "none" and "EMPTY", the customary keys of local servers, are no secrets

Method = Literal["logprobs", "json", "enumerated"]
Count = Annotated[int, Field(ge=0, le=_MAX_TOKENS)]
Text = Annotated[str, Field(max_length=200_000)]
Token = Annotated[str, Field(max_length=1000)]
Logprob = Annotated[float, Field(allow_inf_nan=False)] | Literal["NaN", "Infinity", "-Infinity"]
Redact = Callable[[str], str]


class JudgeError(UserError, RuntimeError):
    """The judging cannot go on: what happened and what to do. Every paid reply is in the journal."""


class UnreadableReply(ValueError):
    """An HTTP 200 whose body is no chat completion."""


class Reply(BaseModel):
    """What the judge answered.

    Attributes:
        model: that answered, as it names itself.
        top_logprobs: (token, natural log-probability) of the first token's alternatives; what is no finite number
            stands as text.
        tokens_in, tokens_out: as the endpoint counted them, None if it did not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: Text | None
    model: Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
    finish_reason: Annotated[str, Field(max_length=_MAX_NAME)] | None = None
    refusal: Text | None = None
    top_logprobs: Annotated[list[tuple[Token, Logprob]], Field(max_length=200)] | None = None
    tokens_in: Count | None = None
    tokens_out: Count | None = None

    def distribution(self) -> list[tuple[str, float]]:
        return [(token, float(logprob)) for token, logprob in self.top_logprobs or []]


def redactor(secret: str) -> Redact:
    """A function that takes the key out of a text, in every spelling that JSON, a URL or a text within a text may give
    it: `/`, `\\/`, `\\u002f`, `\\\\u002F` and `%2F` are one character."""
    if len(secret) < _SHORTEST_SECRET:
        return str

    def spellings(character: str) -> str:
        code = ord(character)
        return rf"(?:\\*{re.escape(character)}|\\+u(?i:{code:04x})|%(?i:{code:02x}))"

    pattern = re.compile("".join(map(spellings, secret)))
    return lambda text: pattern.sub("[key]", text)


def read_reply(body: bytes, redact: Redact) -> Reply:
    """The reply in a chat completion's JSON.

    Raises:
        UnreadableReply: not JSON, not of that form, or larger than any reply is.
    """

    def clean(value: Any) -> Any:
        """A text is cleaned; anything else is left to be refused."""
        return redact(_whole(value)) if isinstance(value, str) else value

    try:
        fields = json.loads(body)
        choice = fields["choices"][0]
        message, usage, logprobs = choice["message"], fields.get("usage"), choice.get("logprobs")
        reason, refusal = choice.get("finish_reason"), message.get("refusal")
        tokens = logprobs.get("content") if logprobs else None
        tops = tokens and [(clean(top["token"]), _logprob(top["logprob"])) for top in tokens[0]["top_logprobs"]]
        return Reply(
            text=clean(message.get("content")),
            model=clean(fields["model"]),
            finish_reason=clean(reason) if isinstance(reason, str) else None,
            refusal=clean(refusal) if isinstance(refusal, str) else None,
            top_logprobs=tops if tokens else None,
            tokens_in=_count(usage, "prompt_tokens"),
            tokens_out=_count(usage, "completion_tokens"),
        )
    except ValidationError as error:  # a ValueError too, whose text holds what was sent
        raise UnreadableReply(f"unreadable: {'.'.join(map(str, error.errors()[0]['loc'][:1]))}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise UnreadableReply(f"unreadable: no chat completion ({type(error).__name__})") from None


def read_error(body: bytes, redact: Redact) -> tuple[str | None, str]:
    """(code, message) of an error's JSON, short and without the key; an error in another form has neither."""
    try:
        error = json.loads(body)["error"]
        code, message = error.get("code"), error.get("message")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, ""
    code = code if isinstance(code, str) and len(code) <= _MAX_NAME else None
    return code, one_line(message, redact) if isinstance(message, str) else ""


def one_line(text: str, redact: Redact) -> str:
    """The first 300 characters of what an endpoint said: printable, on one line, without the key."""
    return re.sub(r"[^\S ]+|[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", redact(_whole(text)))[:300]


def _whole(text: str) -> str:
    """Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None


def _logprob(value: Any) -> Any:
    if type(value) not in (int, float):
        return value
    number = float(value)
    return number if math.isfinite(number) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(number, "NaN")


def check_method(method: Method, first_replies: Iterable[Reply]) -> None:
    """Refuse a judge that the method cannot read, instead of paying for rows without a score, or with a wrong one."""
    replies = [r for r in first_replies if r.text and r.text.strip()]
    if method == "json" or not replies:
        return
    if not any(r.top_logprobs for r in replies):
        raise JudgeError("judge: the endpoint sends no log-probabilities. Use the method `json`, or another judge.")
    if method == "logprobs" and splits_digits(r.distribution() for r in replies):
        raise JudgeError("judge: its tokenizer splits numbers into digits. Use the method `enumerated`.")
