"""Say how far two judgings of the same completions agree: a second one by the same judge, or one by another judge."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from workflow.evals.metrics import is_positive, kappa

Outcomes = Mapping[str, Mapping[str, Any]]  # by metric: {kind, value, mass}


def agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How far the second judgings agree with the first, by metric, over the rows that were judged twice.

    `pairs` were judged twice, `same_kind` of them with the same kind of outcome, `scored` with a score both times; over
    these, the mean and the largest absolute difference, and how many lie on the same side of the metric's threshold.
    """
    twice = [(row["outcomes"], row["again"]["outcomes"]) for row in rows if row["again"] is not None]
    return {metric: _compare(metric, twice) for metric in (twice[0][0] if twice else ())}


def panel_agreement(
    first: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float | int | None]]:
    """How far another judge agrees with the first on one cell, by metric.

    Args:
        first, other: rows of judgments.jsonl over the same completions, in the same order.

    Returns:
        As `agreement`, and: `kappa`, Cohen's, of the verdicts at the metric's threshold (None if both always say the
        same); `difference`, other minus first, of the cell's means over the rows that both scored.

    Raises:
        ValueError: the two are not of the same completions.
    """
    ids = [[(row["question_id"], row["sample"]) for row in rows] for rows in (first, other)]
    if ids[0] != ids[1]:
        raise ValueError("the two judgings are not of the same completions")
    pairs = [(a["outcomes"], b["outcomes"]) for a, b in zip(first, other, strict=True)]
    report = {}
    for metric in pairs[0][0] if pairs else ():
        scores = _scores(metric, pairs)
        sides = [[is_positive(metric, both[judge]) for both in scores] for judge in (0, 1)]
        difference = math.fsum(b - a for a, b in scores) / len(scores) if scores else None
        report[metric] = {**_compare(metric, pairs), "kappa": kappa(*sides), "difference": difference}
    return report


def _compare(metric: str, pairs: Sequence[tuple[Outcomes, Outcomes]]) -> dict[str, Any]:
    scores = _scores(metric, pairs)
    apart = [abs(a - b) for a, b in scores]
    return {
        "pairs": len(pairs),
        "same_kind": sum(a[metric]["kind"] == b[metric]["kind"] for a, b in pairs),
        "scored": len(scores),
        "mean_abs_difference": sum(apart) / len(apart) if apart else None,
        "max_abs_difference": max(apart, default=None),
        "same_side": sum(is_positive(metric, a) == is_positive(metric, b) for a, b in scores),
    }


def _scores(metric: str, pairs: Sequence[tuple[Outcomes, Outcomes]]) -> list[tuple[float, float]]:
    both = [(a[metric], b[metric]) for a, b in pairs]
    return [(a["value"], b["value"]) for a, b in both if a["kind"] == b["kind"] == "score"]
