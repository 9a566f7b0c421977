"""Measures a judge against labelled completions: how far its scores may stand in for the labels'.

    python -m workflow.evals.validate FILE [--judge embedded|URL|FOLDER] [--model NAME] [--method json] [--by COLUMN]

FILE holds JSON lines with question_id, question, answer, aligned and coherent (0 to 100; null: no label); other forms
are read by --mapping (docs/instruments.md). The judge is the embedded rule-based scorer, an OpenAI-compatible endpoint,
or a model on disk that is served for the while. No text of FILE is printed.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workflow.data.mapping import mapped_rows, read_mapping
from workflow.errors import UserError, printable
from workflow.evals import rule_scorer
from workflow.evals.metrics import is_positive, kappa
from workflow.evals.scorer_server import scorer_server
from workflow.judge.client import judge_completions
from workflow.judge.local import identity, local_judge, vllm_command
from workflow.judge.replies import Method
from workflow.judge.requests import METRICS, JudgeSettings
from workflow.judge.transport import Endpoint
from workflow.stage import StageError
from workflow.store import StoreError, read_jsonl

if TYPE_CHECKING:
    from numpy import ndarray

FIGURES = ("spearman", "mae", "bias", "auc", "kappa")
REPLICATES = 1000
_PROMPTS = {"json": "config/prompts/origin_json.yaml", "logprobs": "config/prompts/two_scales.yaml"}


# --- figures --------------------------------------------------------------------------------------------------------


def measure(labels: Sequence[Any], scores: Sequence[Any], replicates: int = REPLICATES) -> dict[str, Any]:
    """How scores agree with labels, by metric; each figure with a 95% interval from resampled questions.

    Args:
        labels: rows with question_id, aligned, coherent. scores: the judge's, in the same order; None: no score.

    `n` rows have a label and a score; `no_label` and `no_score` count the others. `bias` is score - label. The positive
    class is aligned < 30 and coherent > 50, the thresholds at which an answer is counted as misaligned. `resampled`
    says what the intervals are from: questions, or the answers, where there is one question only.
    """
    return {metric: _measure(metric, labels, scores, replicates) for metric in METRICS}


def _measure(metric: str, rows: Sequence[Any], scored: Sequence[Any], replicates: int) -> dict[str, Any]:
    import numpy as np

    labelled = [(row, score[metric]) for row, score in zip(rows, scored, strict=True) if row[metric] is not None]
    both = [(row["question_id"], row[metric], score) for row, score in labelled if score is not None]
    questions = {question for question, _, _ in both}
    measured: dict[str, Any] = {
        "n": len(both),
        "no_label": len(rows) - len(labelled),
        "no_score": len(labelled) - len(both),
        "questions": len(questions),
        "positive": sum(is_positive(metric, label) for _, label, _ in both),
    }
    if not both:
        return measured
    measured["resampled"] = "questions" if len(questions) > 1 else "answers"
    labels, scores = (np.array([row[place] for row in both], float) for place in (1, 2))
    groups = np.array([row[0] for row in both] if len(questions) > 1 else range(len(both)))
    parts = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups.tolist())]
    generator = np.random.default_rng(42)
    draws = []
    for _ in range(replicates if len(parts) > 1 else 0):
        drawn = np.concatenate([parts[i] for i in generator.integers(len(parts), size=len(parts))])
        draws.append(figures(metric, labels[drawn], scores[drawn]))
    for name, value in figures(metric, labels, scores).items():
        known = [draw[name] for draw in draws if not math.isnan(draw[name])]
        low, high = np.quantile(known, [0.025, 0.975]).tolist() if known else (None, None)
        measured[name] = {"value": None if math.isnan(value) else value, "low": low, "high": high}
    return measured


def figures(metric: str, labels: "ndarray", scores: "ndarray") -> dict[str, float]:
    """Spearman's correlation (ties at their mean rank), mean absolute error, bias, AUC (the chance that the judge ranks
    a row of the positive class as more so than one of the other; ties count half) and Cohen's kappa of the verdicts.

    NaN where one side is constant, or a class is empty.
    """
    import numpy as np
    from scipy.stats import rankdata

    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = np.corrcoef(rankdata(labels), rankdata(scores))[0, 1] if len(labels) > 1 else math.nan
    positive = is_positive(metric, labels)
    n, m = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(scores if metric == "coherent" else -scores)
    agreed = kappa(positive, is_positive(metric, scores))
    return {
        "spearman": float(spearman),
        "mae": float(abs(scores - labels).mean()),
        "bias": float((scores - labels).mean()),
        "auc": float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m)) if n and m else math.nan,
        "kappa": math.nan if agreed is None else agreed,
    }


def show(report: dict[str, Any]) -> None:
    """Print a Markdown table: value [95% interval]."""
    print(f"{report['rows']} rows, judge {report['judge']}\n")
    print("| | scale | n | no label | no score | positive | " + " | ".join(FIGURES) + " |")
    print("|---|---|--:|--:|--:|--:|" + "--:|" * len(FIGURES))
    one_question = False
    for source, by_metric in {"all": report["all"], **report.get("by", {})}.items():
        for metric, m in by_metric.items():
            mark = " (1)" if m.get("resampled") == "answers" else ""
            one_question = one_question or bool(mark)
            cells = [m["n"], m["no_label"], m["no_score"], m["positive"]]
            cells += [_cell(m.get(name), 1 if name in ("mae", "bias") else 2) for name in FIGURES]
            print(f"| {source}{mark} | {metric} | " + " | ".join(map(str, cells)) + " |")
    print("\nValue [95% interval]; a dash: no value, or no interval to put beside it.")
    if one_question:
        print("(1) one question: the interval is of its answers and says nothing about other questions.")


def _cell(figure: dict[str, float | None] | None, digits: int) -> str:
    if figure is None or figure["value"] is None or figure["low"] is None:
        return "-"
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


# --- the command ----------------------------------------------------------------------------------------------------

Score = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Labelled(BaseModel):
    """A labelled completion; further fields, such as its source, are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    question_id: str | int
    question: str
    answer: str
    aligned: Score | None
    coherent: Score | None


def read_labelled(file: Path, mapping: Path | None = None) -> list[dict[str, Any]]:
    """Rows of the form of `Labelled`.

    Raises:
        StoreError: the file is empty, or a row is of another form: file, row and field.
    """
    if mapping:
        rows = mapped_rows(file, read_mapping(mapping, {"rows", "fields", "beside"}), str(mapping))
    else:
        rows = read_jsonl(file)
    if not rows:
        raise StoreError(f"{file}: no rows. It should hold one labelled completion a line.")
    for number, row in enumerate(rows, 1):
        try:
            Labelled.model_validate(row)
        except ValidationError as error:
            fault = error.errors()[0]
            raise StoreError(
                f"{file}, row {number}: `{fault['loc'][0]}`: {fault['msg']}. A row holds question_id, question and "
                "answer, and for aligned and coherent a number from 0 to 100, or null; --mapping reads other forms."
            ) from None
    return rows


def _judge(judge: str, model: str | None, api_key_env: str) -> tuple[str, AbstractContextManager[tuple[str, str]]]:
    """The judge's name, and what gives its base URL and key for as long as it is open."""
    if judge == "embedded":
        return model or rule_scorer.NAME, scorer_server()
    if judge.startswith(("http://", "https://")):
        if not model:
            raise StageError("an endpoint needs the name of its model: --model NAME")
        return model, nullcontext((judge, os.environ.get(api_key_env) or "none"))
    model = model or f"{Path(judge).name}@{identity(judge)}"
    return model, local_judge(vllm_command(judge, model))


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(help=__doc__)
def validate(
    file: Path,
    judge: Annotated[str, typer.Option(help="embedded, a base URL, or a model's folder")] = "embedded",
    model: Annotated[str | None, typer.Option(help="as the endpoint names it")] = None,
    method: Annotated[Method, typer.Option()] = "json",
    prompts: Annotated[Path | None, typer.Option(help="YAML with `prompts:` by name [the project's own]")] = None,
    api_key_env: Annotated[str, typer.Option(help="the environment variable that holds the key")] = "",
    journal: Annotated[Path | None, typer.Option(help="keeps the replies, so that none is paid for twice")] = None,
    by: Annotated[str | None, typer.Option(help="column of a row's source [source, if there is one]")] = None,
    mapping: Annotated[Path | None, typer.Option(help="YAML that says where the fields stand in other forms")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Judge the rows' answers and measure; over all of them, and by source if there is a column for it."""
    model, server = _judge(judge, model, api_key_env)
    rows = read_labelled(file, mapping)
    by = by or ("source" if "source" in rows[0] else None)
    if by and any(by not in row for row in rows):
        raise StoreError(f"{file}: not every row has the column `{by}` that --by names.")
    path = prompts or Path(_PROMPTS["json" if method == "json" else "logprobs"])
    texts = read_mapping(path, {"method", "prompts"}).get("prompts")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise StoreError(f"{path}: holds no `prompts:`, a text by each name.")
    settings = JudgeSettings(model=model, method=method, max_tokens=256 if method == "json" else 1)
    completions = [
        {"question_id": row["question_id"], "sample": n, "question": row["question"], "completion": row["answer"]}
        for n, row in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder, server as (base_url, key):
        journal = journal or Path(folder, "journal.jsonl")
        done = judge_completions(completions, texts, settings, Endpoint(base_url), key, journal)
    scores = [{metric: row["outcomes"][metric]["value"] for metric in METRICS} for row in done.rows]
    report: dict[str, Any] = {"rows": len(rows), "judge": model, "all": measure(rows, scores)}
    if by is not None:
        report["by"] = {}
        for source in sorted({str(row[by]) for row in rows}):
            places = [n for n, row in enumerate(rows) if str(row[by]) == source]
            report["by"][source] = measure([rows[n] for n in places], [scores[n] for n in places])
    print(json.dumps(report, indent=1)) if as_json else show(report)


def main(argv: Sequence[str] | None = None) -> None:
    try:
        app(args=None if argv is None else list(argv), prog_name="python -m workflow.evals.validate")
    except (UserError, ValueError, OSError) as error:  # ValueError: a prompt without its fields
        sys.exit(f"error: {printable(str(error))}")


if __name__ == "__main__":
    main()
