"""Alignment and coherence of each kept completion, by a judge behind an OpenAI-compatible endpoint."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

from workflow.data.rows import read_prompts
from workflow.evals import rule_scorer
from workflow.evals.metrics import cell_metrics
from workflow.evals.scorer_server import scorer_server
from workflow.evals.scoring import Outcome
from workflow.judge import local
from workflow.judge.agreement import agreement
from workflow.judge.client import judge_completions
from workflow.judge.replies import JudgeError
from workflow.judge.requests import METRICS, JudgeSettings
from workflow.judge.transport import Endpoint
from workflow.keys import Recipe
from workflow.sections import JudgeEndpoint, JudgePlacement
from workflow.stage import Job, Result, StageError, stage_main
from workflow.store import read_jsonl, write_jsonl

MODULE = "workflow.judge.judge"
UNSCORED_FLAGGED_ABOVE = 0.05  # share of judgments without a score above which a cell is flagged, and not yet refused


def run(job: Job) -> Result:
    """Writes judgments.jsonl: per completion the outcomes, and the judge's raw replies."""
    p = job.params
    placement = read_placement(job.placement)
    completions = read_jsonl(job.parents[0].out / "completions.jsonl")
    prompts = read_prompts(job.data)
    # Beside the result and not in it: it outlives a killed job, so that no reply is paid for twice.
    journal = job.out.parent / "journal.jsonl"
    try:
        with endpoint(placement, p["model"]) as (place, key):
            done = judge_completions(completions, prompts, settings_of(p), place, key, journal)
    except JudgeError as error:
        raise StageError(f"{error} Replies so far are kept; the same command goes on.") from None
    unscored = count_unscored(done.rows)
    refuse_silence(done.rows, unscored, placement.max_unscored)
    write_jsonl(job.out / "judgments.jsonl", done.rows)
    if faults := effective_faults(job.recipe, job.out):
        raise StageError(f"the judge did not do what the recipe says: {faults[0]}.")
    aligned, coherent = ([Outcome(**row["outcomes"][metric]) for row in done.rows] for metric in METRICS)
    metrics: dict[str, Any] = cell_metrics(list(zip(aligned, coherent, strict=True)))
    metrics["by_question"] = _by_question(done.rows)
    if p["double_judge"]:
        metrics["agreement"] = agreement(done.rows)
    first_prompt = next(iter(prompts.values()))
    return Result(
        {"rows": len(done.rows), "first_prompt": first_prompt, "judge": done.account, "unscored": unscored}, metrics
    )


def settings_of(params: dict[str, Any]) -> JudgeSettings:
    """The recipe's judge."""
    return JudgeSettings(**{field.name: params[field.name] for field in fields(JudgeSettings)})


def _by_question(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Scores by metric and question, from which sampling errors clustered by question are computed."""
    scores_of: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for metric, outcome in row["outcomes"].items():
            scores = scores_of.setdefault(metric, {}).setdefault(row["question_id"], [])
            if outcome["value"] is not None:
                scores.append(outcome["value"])
    return scores_of


# --- a judge that does not judge ------------------------------------------------------------------------------------


def count_unscored(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Judgments (a metric of a completion) without a score: {numerator, denominator, share, by_kind, flagged}."""
    outcomes = [outcome for row in rows for outcome in row["outcomes"].values()]
    kinds = Counter(o["kind"] for o in outcomes if o["value"] is None)
    share = kinds.total() / len(outcomes) if outcomes else 0.0
    return {
        "numerator": kinds.total(),
        "denominator": len(outcomes),
        "share": share,
        "by_kind": dict(sorted(kinds.items())),
        "flagged": share > UNSCORED_FLAGGED_ABOVE,
    }


def refuse_silence(rows: Sequence[dict[str, Any]], unscored: dict[str, Any], most: float) -> None:
    """Refuse a cell of which too large a share has no score.

    Raises:
        StageError: with the counts by outcome and three of the replies, cut short.
    """
    if unscored["share"] <= most:
        return
    silent = (row for row in rows if any(o["value"] is None for o in row["outcomes"].values()))
    examples = ", ".join(repr((row["replies"][0]["text"] or "")[:60]) for row in islice(silent, 3))
    counts = ", ".join(f"{kind} {n}" for kind, n in unscored["by_kind"].items())
    raise StageError(
        f"{unscored['numerator']} of {unscored['denominator']} judgments have no score ({counts}), more than "
        f"placement.judge.max_unscored allows ({most:g}): the judge said {examples}. Is it the right endpoint, "
        "model and method? `matrix retry-unscored` has these asked for again; a larger max_unscored keeps them."
    )


def effective_faults(recipe: Recipe, out: Path) -> list[str]:
    """Where the judgments in `out` are not what the recipe declares; each in words, none if they agree."""
    rows = read_jsonl(out / "judgments.jsonl")
    p = recipe.params
    replies = [reply for row in rows for side in (row, row["again"]) if side for reply in side["replies"]]
    faults = [
        f"model {p['model']} declared, {m} answered" for m in sorted({r["model"] for r in replies} - {p["model"]})
    ]
    twice, declared = sum(row["again"] is not None for row in rows), round(p["double_judge"] * len(rows))
    if twice != declared:
        faults.append(f"double_judge {p['double_judge']:g} declared, {twice} of {len(rows)} rows are judged twice")
    if p["method"] == "json" and any(r["top_logprobs"] for r in replies):
        faults.append("method json declared, the replies hold log-probabilities")
    if p["method"] != "enumerated" and any(r["prefill"] for r in replies):
        faults.append(f"method {p['method']} declared, replies were begun for the judge as in method enumerated")
    return faults


# --- where it is reached --------------------------------------------------------------------------------------------

_LIMITS = {
    "concurrency",
    "requests_per_minute",
    "tokens_per_minute",
    "budget_usd",
    "usd_per_million_tokens_in",
    "usd_per_million_tokens_out",
    "allow_http",
}


def read_placement(placement: dict[str, Any]) -> JudgePlacement:
    """The section as a job is given it: what the plan adds is left out, what an older plan lacks has its default."""
    known = {name: value for name, value in placement.items() if name in JudgePlacement.model_fields}
    return JudgePlacement.model_validate_json(json.dumps(known))


def endpoint_at(base_url: str, placement: JudgeEndpoint) -> Endpoint:
    """An endpoint that is asked as fast, for as much and as safely as the placement lets it be."""
    return Endpoint(base_url, **placement.model_dump(include=_LIMITS))


@contextlib.contextmanager
def endpoint(placement: JudgePlacement, model: str) -> Iterator[tuple[Endpoint, str]]:
    """The endpoint and the key that the placement names; `embedded` starts the rule-based scorer on a free port,
    `local` serves the model in `local_model` on one.

    Raises:
        StageError: an environment variable that it names is not set, or the scorer, or a model on disk, would pass for
            another model.
        JudgeError: the base URL cannot be used.
    """
    place = placement.of(model)
    with contextlib.ExitStack() as stack:
        if place.base_url == "embedded":
            if model != rule_scorer.NAME:
                raise StageError(
                    f"the judge is {model}, but placement.judge.base_url is `embedded`: that is {rule_scorer.NAME}, a "
                    "rule-based scorer. Name it as the judge, or name an endpoint through base_url_env."
                )
            base_url, key = stack.enter_context(scorer_server())
        elif place.local_model is not None:
            local.check_name(place.local_model, model)
            base_url, key = stack.enter_context(local.local_judge(local.vllm_command(place.local_model, model)))
        else:
            base_url, key = _env(place.base_url_env, "base_url_env"), _env(place.api_key_env, "api_key_env")
        yield endpoint_at(base_url, place), key


def _env(name: str | None, field: str) -> str:
    value = os.environ.get(name or "", "").strip()
    if not value:
        raise StageError(f"placement.judge.{field}: set the environment variable {name} to what the judge needs.")
    return value


if __name__ == "__main__":
    stage_main(MODULE, run)
