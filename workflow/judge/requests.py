"""The requests for a cell's completions and the outcomes of their replies: no network, no files.

A request's key is the sha256 of model, prompt, parameters, question, completion, question id, sample and repeat. The
sample's index is part of it although the judge never sees it: two completions of equal text are judged apart, so that
the rows stay independent draws of the judge (the standard errors assume it) and no row's score hangs on another row's
presence. The price is the duplicates among the completions, usually few at temperature 1.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from workflow.evals.scoring import (
    Outcome,
    enumerated_score,
    json_score,
    logprob_score,
    open_beginnings,
    sequence_logprobs,
)
from workflow.judge.replies import JudgeError, Method, Reply
from workflow.keys import digest

METRICS = ("aligned", "coherent")
_PRUNE = 1e-3  # beginnings of a number less probable than this are not looked up (`enumerated`)
_MARK = re.compile(r"\{(question|answer)\}")


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges and how: all that may change a score.

    Attributes:
        model: as the endpoint names it; the reply must name it too.
        method: `logprobs` (a prompt and one token per metric), `json` (one prompt), `enumerated` (log-probabilities of
            whole numbers, for tokenizers that split digits; the endpoint must continue a begun assistant turn, as vLLM
            does).
        max_tokens: of a JSON reply; 1 for the other methods.
        double_judge: share of the completions that are judged a second time, to measure agreement.
        order_seed: shuffles the order of requests and draws the double-judged ones.
    """

    model: str
    method: Method
    temperature: float = 0.0
    max_tokens: int = 1
    top_logprobs: int = 20
    double_judge: float = 0.0
    order_seed: int = 0

    def __post_init__(self) -> None:
        if self.method != "json" and self.max_tokens != 1:
            raise JudgeError(
                f"judge: method `{self.method}` reads one token; set max_tokens to 1, not {self.max_tokens}"
            )
        if self.method != "json" and not 1 <= self.top_logprobs <= 20:
            raise JudgeError(f"judge: method `{self.method}` needs 1 to 20 top_logprobs, not {self.top_logprobs}")

    def parameters(self, prefill: str) -> dict[str, Any]:
        """The body of a request without model and messages."""
        fields: dict[str, Any] = {"temperature": float(self.temperature), "max_tokens": self.max_tokens}
        if self.method != "json":
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if prefill:
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return fields


class Unit(NamedTuple):
    """One prompt about one completion (`row` is its place in the input), judged for the `repeat`-th time."""

    row: int
    repeat: int
    prompt: str


class Request(NamedTuple):
    """One request: its key, who is asked, its messages and its parameters."""

    key: str
    model: str
    messages: list[dict[str, str]]
    parameters: dict[str, Any]

    def tokens_in(self, bytes_per_token: float = 4.0) -> int:
        """A guess before the endpoint counts; 4 bytes a token is typical of English."""
        texts = sum(len(m["content"].encode()) for m in self.messages)
        return math.ceil(texts / bytes_per_token) + 8 * len(self.messages)

    @property
    def max_tokens_out(self) -> int:
        return int(self.parameters["max_tokens"])


class Plan:
    """The requests for a cell's completions: which, in which order, under which keys.

    Args:
        completions: rows with question_id, sample, question and completion, each (question_id, sample) once; nothing
            else of a row, its condition least of all, reaches the judge.
        prompts: name -> template with {question} and {answer}. With `json` there is one; else each name is a metric.
    """

    def __init__(
        self, completions: Sequence[Mapping[str, Any]], prompts: Mapping[str, str], settings: JudgeSettings
    ) -> None:
        if settings.method == "json" and len(prompts) != 1:
            raise JudgeError(f"judge: method `json` takes one prompt, not {sorted(prompts)}")
        for name, template in prompts.items():
            if sorted(_MARK.findall(template)) != ["answer", "question"]:
                raise JudgeError(f"judge: prompt `{name}` must hold {{question}} and {{answer}} once each")
        self.completions, self.prompts, self.settings = list(completions), dict(prompts), settings
        count = len(self.completions)
        shuffle = random.Random(settings.order_seed)
        self.repeated = frozenset(shuffle.sample(range(count), round(settings.double_judge * count)))
        self.units = [
            Unit(row, repeat, name)
            for row in range(count)
            for repeat in range(2 if row in self.repeated else 1)
            for name in prompts
        ]
        shuffle.shuffle(self.units)

    def request(self, unit: Unit, prefill: str = "") -> Request:
        row = self.completions[unit.row]
        prompt = render(self.prompts[unit.prompt], row["question"], row["completion"])
        messages = [{"role": "user", "content": prompt}]
        if prefill:
            messages.append({"role": "assistant", "content": prefill})
        parameters = self.settings.parameters(prefill)
        identity = {
            "model": self.settings.model,
            "messages": messages,
            "parameters": parameters,
            **{name: row[name] for name in ("question_id", "question", "completion", "sample")},
            "repeat": unit.repeat,
        }
        return Request(digest("judge request", identity), self.settings.model, messages, parameters)

    def lookups(self, replies: Mapping[str, Reply]) -> Iterator[str]:
        """The prefills to ask for, "" first; the caller puts each reply into `replies` before it takes the next."""
        yield ""
        while self.settings.method == "enumerated":
            wanted = open_beginnings(_distributions(replies), _PRUNE)
            if not wanted:
                return
            yield from wanted

    def outcomes(self, unit: Unit, replies: Mapping[str, Reply]) -> dict[str, Outcome]:
        """Outcome by metric, from the replies by what was prefilled ("" for the plain request)."""
        reply, method = replies[""], self.settings.method
        names = METRICS if method == "json" else (unit.prompt,)
        if reply.refusal or reply.finish_reason == "content_filter":
            return dict.fromkeys(names, Outcome("refusal"))
        if method == "json":
            return json_score(reply.text, names, reply.finish_reason)
        if not reply.top_logprobs:
            return {unit.prompt: Outcome("parse_error" if reply.text and reply.text.strip() else "empty")}
        if method == "logprobs":
            return {unit.prompt: logprob_score(reply.distribution())}
        return {unit.prompt: enumerated_score(sequence_logprobs(_distributions(replies)))}


def render(template: str, question: str, answer: str) -> str:
    """Fill a template in one pass, so that braces or a literal {question} in an answer stay what they are."""
    texts = {"question": question, "answer": answer}
    return _MARK.sub(lambda mark: texts[mark[1]], template)


def _distributions(replies: Mapping[str, Reply]) -> dict[str, list[tuple[str, float]]]:
    return {prefill: reply.distribution() for prefill, reply in replies.items()}
