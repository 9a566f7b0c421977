"""Judge completions through an OpenAI-compatible endpoint, and lose nothing.

    run = judge_completions(completions, prompts, settings, endpoint, api_key, journal_path)
    write_jsonl(path, run.rows)

Rows come in the order of the completions and hold no time and no attempt count, so that an interrupted and resumed run
gives the same bytes as an uninterrupted one, as far as the judge answers alike. What the attempts were is in the
journal and in `run.account`.
"""

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.evals.scoring import Outcome
from workflow.judge.journal import Journal
from workflow.judge.replies import JudgeError, Reply, check_method
from workflow.judge.requests import JudgeSettings, Plan, Request, Unit, lookups
from workflow.judge.transport import ASKED, ENCODINGS, Endpoint, Meter

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["Endpoint", "JudgeError", "JudgeRun", "JudgeSettings", "estimate", "judge_completions"]

CHECK_AFTER = 32  # replies after which a judge that the method cannot read ends the run
_TYPICAL_LOOKUPS = 12  # requests for one enumerated score: one, then one for each likely beginning of a number
# The first askers start this far apart, so that replies come back one by one. Started together, they
# come back together, wait for each other's handling (a ms or two of CPU) in every round, and
# 64 at 500 ms lose a fifth of the rate.
_STAGGER_S = 0.003
_ADVICE = {
    400: "The request is wrong for this endpoint; see the judge's settings.",
    401: "Is the environment variable that holds the key set, and right?",
    403: "The key may not use this model.",
    404: "Is the base URL right (it ends in /v1), and the model's name?",
    429: "Run again when its quota allows; every reply is kept.",
}
_REDIRECTED = "Redirects are not followed, since the key would go along. Name the address where it answers."


@dataclass(frozen=True)
class JudgeRun:
    """Judgments, and what they took.

    Attributes:
        rows: one per completion, in its order: question_id, sample, `outcomes` {metric: {kind, value, mass}}, `replies`
            [{prompt, prefill, text, model, top_logprobs, tokens...}], and `again`, the same two of a second judging, or
            None.
        account: judgments and replies of this cell; attempts, failures by reason, tokens and dollars of all that the
            journal holds; seconds of this run.
    """

    rows: list[dict[str, Any]]
    account: dict[str, Any]


def judge_completions(
    completions: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, str],
    settings: JudgeSettings,
    endpoint: Endpoint,
    api_key: str,
    journal_path: str | Path,
) -> JudgeRun:
    """Judge every completion, reusing the replies that are in the journal.

    Args:
        completions: rows with question_id, sample, question (text or chat messages) and completion.
        prompts: name -> template with {question} and {answer}.
        api_key: from the environment, by the caller; it is written nowhere. "none" for a server that wants no key.

    Raises:
        JudgeError: the run cannot go on (a fatal answer, another model, the budget, no answer). Run again to resume.
    """
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise JudgeError("judge: the key holds a blank or a character that no HTTP header can hold. Set it anew.")
    plan = Plan(completions, prompts, settings)
    with Journal(journal_path, frozenset({settings.model, *settings.allowed_models})) as journal:
        before, started = len(journal.replies), time.monotonic()
        asyncio.run(_Run(plan, endpoint, api_key, journal).judge_all())
        replies = {unit: _collect(plan, unit, journal) for unit in plan.units}
        check_method(settings.method, (of_unit[""] for of_unit in replies.values()))
        outcomes = {unit: plan.outcomes(unit, of_unit) for unit, of_unit in replies.items()}
        _note_unscored(plan, replies, outcomes, journal)
        account = {
            "judgments": len(plan.units),
            "replies": sum(len(of_unit) for of_unit in replies.values()),
            "replies_paid_now": len(journal.replies) - before,
            "attempts": journal.attempts,
            "failures": dict(sorted(journal.failures.items())),
            "tokens_in": journal.tokens[0],
            "tokens_out": journal.tokens[1],
            "usd": endpoint.usd(*journal.tokens),
            "models": sorted({reply.model for of_unit in replies.values() for reply in of_unit.values()}),
            "seconds": round(time.monotonic() - started, 3),
        }
    return JudgeRun(_rows(plan, replies, outcomes), account)


def estimate(
    completions: Sequence[Mapping[str, Any]], prompts: Mapping[str, str], settings: JudgeSettings, endpoint: Endpoint
) -> dict[str, Any]:
    """What judging would take, before anything is asked: requests, tokens in (guessed at 4 bytes each) and dollars."""
    plan = Plan(completions, prompts, settings)
    each = _TYPICAL_LOOKUPS if settings.method == "enumerated" else 1
    requests = [plan.request(unit) for unit in plan.units]
    tokens_in = each * sum(request.tokens_in() for request in requests)
    tokens_out = each * sum(request.max_tokens_out() for request in requests)
    usd = endpoint.usd(tokens_in, tokens_out)
    return {"requests": each * len(requests), "tokens_in": tokens_in, "tokens_out_at_most": tokens_out, "usd": usd}


class _Run:
    """One task a unit; a semaphore lets `concurrency` of them ask. The first error that ends the run ends all tasks."""

    def __init__(self, plan: Plan, endpoint: Endpoint, api_key: str, journal: Journal) -> None:
        self.plan, self.endpoint, self.api_key, self.journal = plan, endpoint, api_key, journal
        self.meter = Meter(endpoint, api_key, journal, self._check)
        self.exhausted: list[str] = []
        self.done = self.known = 0  # units, and those of them that the journal already held
        self.started = time.monotonic()

    async def judge_all(self) -> None:
        """Fill the journal with a reply to every request of the plan."""
        import httpx2
        from openai import AsyncOpenAI

        if len(self.journal.replies) >= CHECK_AFTER:
            self._check_method()
        asking = asyncio.Semaphore(self.endpoint.concurrency)
        async with AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.api_key,
            max_retries=self.endpoint.max_attempts - 1,
            default_headers={"Accept-Encoding": ENCODINGS},
            http_client=httpx2.AsyncClient(transport=self.meter.transport(), follow_redirects=False),
        ) as client:
            try:
                async with asyncio.TaskGroup() as tasks:
                    reporter = tasks.create_task(self._report())
                    async with asyncio.TaskGroup() as units:
                        for number, unit in enumerate(self.plan.units):
                            units.create_task(self._judge(client, asking, unit, number))
                    reporter.cancel()
            except BaseExceptionGroup as group:
                raise _first(group) from None
        self._print_progress()
        if self.exhausted:
            raise self._unanswered()

    async def _judge(self, client: "AsyncOpenAI", asking: asyncio.Semaphore, unit: Unit, number: int) -> None:
        replies: dict[str, Reply] = {}
        known = True
        async with asking:
            for prefill in lookups(self.plan.settings, replies):
                request = self.plan.request(unit, prefill)
                if request.key not in self.journal.replies:
                    if known and number < self.endpoint.concurrency:
                        await asyncio.sleep(number * _STAGGER_S)
                    known = False
                    if not await self._ask(client, request):
                        return
                replies[prefill] = self.journal.replies[request.key]
        self.known += known
        self.done += 1

    async def _ask(self, client: "AsyncOpenAI", request: Request) -> bool:
        """Ask until the journal holds a reply; False if the client gave up.

        Raises:
            JudgeError: asking again would not help.
        """
        import httpx2
        from openai import APIConnectionError, APIStatusError

        ASKED.set(request)
        body = {"model": request.model, "messages": request.messages, **request.parameters}
        try:
            # The transport has read and kept the reply: nothing is left for the client to parse.
            await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except APIConnectionError as error:
            self._exhaust(str(error.__cause__))
        except APIStatusError as error:
            if fatal := _fatal(error, client.max_retries):
                raise fatal from None
            self._exhaust(f"status {error.status_code}")
        return request.key in self.journal.replies

    def _exhaust(self, reason: str) -> None:
        self.exhausted.append(reason)
        if len(self.exhausted) > self.endpoint.give_up_after:
            raise self._unanswered()

    def _unanswered(self) -> JudgeError:
        reasons, attempts = ", ".join(sorted(set(self.exhausted))), self.endpoint.max_attempts
        return JudgeError(
            f"judge: {len(self.exhausted)} requests got no answer in {attempts} attempts each ({reasons}). "
            "Every reply is kept; run again to ask for the rest."
        )

    def _check(self, reply: Reply) -> None:
        """What a reply that is already in the journal says of the judge."""
        if reply.model not in self.journal.models:
            raise JudgeError(
                f"judge: {reply.model!r} answered, not {self.plan.settings.model!r}. If that is the same judge, add "
                "the name to allowed_models: its replies so far are then used."
            )
        if len(self.journal.replies) == CHECK_AFTER:
            self._check_method()

    def _check_method(self) -> None:
        check_method(self.plan.settings.method, islice(self.journal.replies.values(), CHECK_AFTER))

    async def _report(self) -> None:
        """Force the journal to the disk every second; print progress every `progress_s`."""
        printed = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            await asyncio.to_thread(self.journal.sync)
            if time.monotonic() - printed >= self.endpoint.progress_s:
                printed = time.monotonic()
                self._print_progress()

    def _print_progress(self) -> None:
        if not self.endpoint.progress_s:
            return
        total, judged, seconds = len(self.plan.units), self.done - self.known, time.monotonic() - self.started
        eta = f"{(total - self.done) * seconds / judged:.0f} s" if judged else "unknown"
        rate, failed = judged / max(seconds, 1e-9), sum(self.journal.failures.values())
        print(
            f"judge: {self.done} of {total} ({100 * self.done / max(total, 1):.0f}%), {rate:.1f}/s, "
            f"ETA {eta}, ${self.meter.budget.spent:.4f}, {failed} failed attempts",
            file=sys.stderr,
            flush=True,
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group of groups: the others followed from it, or say the same."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fatal(error: "APIStatusError", retries: int) -> JudgeError | None:
    """The error that ends the run, unless the client gave up on what might pass."""
    status = error.status_code
    if (status in (408, 409, 425, 429) or status >= 500) and error.code != "insufficient_quota":
        asks = error.response.headers.get("retry-after")
        if asks is None or int(error.request.headers["x-stainless-retry-count"]) == retries:
            return None
        return JudgeError(f"judge: the endpoint asks to wait {asks!r}. Run again then; every reply is kept.")
    message = error.body.get("message") if isinstance(error.body, dict) else ""
    advice = _REDIRECTED if 300 <= status < 400 else _ADVICE.get(status, "Run again when this is mended.")
    return JudgeError(f"judge: the endpoint refused with status {status}: {message or 'no reason given'}. {advice}")


def _collect(plan: Plan, unit: Unit, journal: Journal) -> dict[str, Reply]:
    """The unit's replies in the journal, by what was prefilled."""
    replies: dict[str, Reply] = {}
    for prefill in lookups(plan.settings, replies):
        replies[prefill] = journal.replies[plan.request(unit, prefill).key]
    return replies


Replies = Mapping[Unit, Mapping[str, Reply]]
Outcomes = Mapping[Unit, Mapping[str, Outcome]]


def _note_unscored(plan: Plan, replies: Replies, outcomes: Outcomes, journal: Journal) -> None:
    """Write down which replies gave no score, so that they can be taken back and asked for again."""
    for unit, of_unit in outcomes.items():
        kinds = {o.kind for o in of_unit.values() if o.value is None}
        if kinds:
            journal.add_unscored(min(kinds), [plan.request(unit, prefill).key for prefill in replies[unit]])


def _rows(plan: Plan, replies: Replies, outcomes: Outcomes) -> list[dict[str, Any]]:
    def of_judging(row: int, repeat: int) -> dict[str, Any]:
        judged: dict[str, Any] = {}
        raw: list[dict[str, Any]] = []
        for name in plan.prompts:
            unit = Unit(row, repeat, name)
            judged |= {metric: o.to_dict() for metric, o in outcomes[unit].items()}
            raw += [
                {"prompt": name, "prefill": p, **r.model_dump(mode="json")} for p, r in sorted(replies[unit].items())
            ]
        return {"outcomes": judged, "replies": raw}

    return [
        {
            "question_id": completion["question_id"],
            "sample": completion["sample"],
            **of_judging(row, 0),
            "again": of_judging(row, 1) if row in plan.repeated else None,
        }
        for row, completion in enumerate(plan.completions)
    ]
