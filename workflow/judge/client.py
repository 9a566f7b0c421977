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
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2

from workflow.evals.scoring import Outcome
from workflow.judge.journal import Journal, open_journal
from workflow.judge.replies import JudgeError, Reply, check_method
from workflow.judge.requests import JudgeSettings, Plan, Request, Unit
from workflow.judge.transport import ASKED, ENCODINGS, Endpoint, Meter

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

CHECK_AFTER = 32  # replies after which a judge that the method cannot read ends the run
_TYPICAL_LOOKUPS = 12  # requests for one enumerated score: one, then one for each likely beginning of a number
# The askers start this far apart, so that replies come back one by one. Started together, they come back together, wait
# for each other's handling (a ms or two of CPU) in every round, and 64 at 500 ms lose a fifth of the rate.
_STAGGER_S = 0.003
_ADVICE = {
    400: "The request is wrong for this endpoint; see the judge's settings.",
    401: "Is the environment variable that holds the key set, and right?",
    403: "The key may not use this model.",
    404: "Is the base URL right (it ends in /v1), and the model's name?",
    429: "Run again when its quota allows; every reply is kept.",
}
_REDIRECTED = "Redirects are not followed, since the key would go along. Name the address where it answers."

Replies = dict[Unit, dict[str, Reply]]  # the replies for a unit by what was prefilled


class JudgeRun(NamedTuple):
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
        completions: rows with question_id, sample, question and completion.
        prompts: name -> template with {question} and {answer}.
        api_key: from the environment, by the caller; it is written nowhere. "none" for a server that wants no key.

    Raises:
        JudgeError: the run cannot go on (a fatal answer, another model, the budget, no answer). Run again to resume.
    """
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise JudgeError("judge: the key holds a blank or a character that no HTTP header can hold. Set it anew.")
    plan = Plan(completions, prompts, settings)
    with open_journal(journal_path, settings.model) as journal:
        before, started = len(journal.replies), time.monotonic()
        replies = asyncio.run(_Run(plan, endpoint, api_key, journal).judge_all())
        check_method(settings.method, (replies[unit][""] for unit in plan.units))
        outcomes = {unit: plan.outcomes(unit, replies[unit]) for unit in plan.units}
        for unit, by_metric in outcomes.items():
            if kinds := {o.kind for o in by_metric.values() if o.value is None}:
                journal.add_unscored(min(kinds), [plan.request(unit, prefill).key for prefill in replies[unit]])
        account = {
            "judgments": len(plan.units),
            "replies": sum(map(len, replies.values())),
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
    tokens_out = each * sum(request.max_tokens_out for request in requests)
    usd = endpoint.usd(tokens_in, tokens_out)
    return {"requests": each * len(requests), "tokens_in": tokens_in, "tokens_out_at_most": tokens_out, "usd": usd}


class _Run:
    """As many askers as the endpoint allows share the plan's units; the first error that ends the run ends them all."""

    def __init__(self, plan: Plan, endpoint: Endpoint, api_key: str, journal: Journal) -> None:
        self.plan, self.endpoint, self.api_key, self.journal = plan, endpoint, api_key, journal
        self.meter = Meter(endpoint, api_key, journal, self._check)
        self.replies: Replies = {}
        self.unanswered: list[str] = []  # the reasons of requests that used up their attempts
        self.known = 0  # units whose replies the journal already held
        self.started = time.monotonic()

    async def judge_all(self) -> Replies:
        """Fill the journal with a reply to every request of the plan."""
        from openai import AsyncOpenAI

        if len(self.journal.replies) >= CHECK_AFTER:
            self._check_method()
        units = iter(self.plan.units)
        async with AsyncOpenAI(
            base_url=self.endpoint.base_url,
            api_key=self.api_key,
            max_retries=self.endpoint.max_attempts - 1,
            timeout=None,  # the transport has one, over the whole attempt
            default_headers={"Accept-Encoding": ENCODINGS},
            http_client=httpx2.AsyncClient(transport=self.meter, follow_redirects=False),
        ) as client:
            reporter = asyncio.create_task(self._report())
            askers = [
                asyncio.create_task(self._judge(client, units, n * _STAGGER_S))
                for n in range(self.endpoint.concurrency)
            ]
            try:
                await asyncio.gather(*askers)
            finally:
                for task in (reporter, *askers):
                    task.cancel()
                await asyncio.gather(reporter, *askers, return_exceptions=True)
        self._print_progress()
        if self.unanswered:
            raise self._give_up()
        return self.replies

    async def _judge(self, client: "AsyncOpenAI", units: Iterator[Unit], delay_s: float) -> None:
        """Judge unit after unit until none is left; one that the client gave up on is left out."""
        await asyncio.sleep(delay_s)
        for unit in units:
            replies: dict[str, Reply] = {}
            known = True
            for prefill in self.plan.lookups(replies):
                request = self.plan.request(unit, prefill)
                if request.key not in self.journal.replies:
                    known = False
                    await self._ask(client, request)
                if request.key not in self.journal.replies:
                    break
                replies[prefill] = self.journal.replies[request.key]
            else:
                self.known += known
                self.replies[unit] = replies

    async def _ask(self, client: "AsyncOpenAI", request: Request) -> None:
        """Ask until the journal holds a reply or the client gives up.

        Raises:
            JudgeError: asking again would not help.
        """
        from openai import APIConnectionError, APIStatusError

        ASKED.set(request)
        body = {"model": request.model, "messages": request.messages, **request.parameters}
        try:
            # The transport has read and kept the reply: nothing is left for the client to parse.
            await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except APIConnectionError as error:
            self.unanswered.append(str(error.__cause__))
        except APIStatusError as error:
            if fatal := _fatal(error, client.max_retries):
                raise fatal from None
            self.unanswered.append(f"status {error.status_code}")
        if len(self.unanswered) > self.endpoint.give_up_after:
            raise self._give_up()

    def _give_up(self) -> JudgeError:
        reasons, attempts = ", ".join(sorted(set(self.unanswered))), self.endpoint.max_attempts
        return JudgeError(
            f"judge: {len(self.unanswered)} requests got no answer in {attempts} attempts each ({reasons}). "
            "Every reply is kept; run again to ask for the rest."
        )

    def _check(self, reply: Reply) -> None:
        """What a reply that is already in the journal says of the judge."""
        if reply.model != self.plan.settings.model:
            raise JudgeError(
                f"judge: {reply.model!r} answered, not {self.plan.settings.model!r}. Name the one that you mean as the "
                "endpoint names it."
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
        done, total, seconds = len(self.replies), len(self.plan.units), time.monotonic() - self.started
        judged = done - self.known
        eta = f"{(total - done) * seconds / judged:.0f} s" if judged else "unknown"
        rate, failed = judged / max(seconds, 1e-9), sum(self.journal.failures.values())
        print(
            f"judge: {done} of {total} ({100 * done / max(total, 1):.0f}%), {rate:.1f}/s, "
            f"ETA {eta}, ${self.meter.budget.spent:.4f}, {failed} failed attempts",
            file=sys.stderr,
            flush=True,
        )


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


def _rows(plan: Plan, replies: Replies, outcomes: Mapping[Unit, Mapping[str, Outcome]]) -> list[dict[str, Any]]:
    def of_judging(row: int, repeat: int) -> dict[str, Any]:
        units = [Unit(row, repeat, name) for name in plan.prompts]
        return {
            "outcomes": {metric: o._asdict() for unit in units for metric, o in outcomes[unit].items()},
            "replies": [
                {"prompt": unit.prompt, "prefill": prefill, **reply.model_dump(mode="json")}
                for unit in units
                for prefill, reply in sorted(replies[unit].items())
            ],
        }

    return [
        {
            "question_id": completion["question_id"],
            "sample": completion["sample"],
            **of_judging(row, 0),
            "again": of_judging(row, 1) if row in plan.repeated else None,
        }
        for row, completion in enumerate(plan.completions)
    ]
