"""Records -> one long table: every number with its unit, its bounds and the record that it comes from."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workflow.matrix import Node
from workflow.stats.samples import clustered_mean
from workflow.store import Record

# What scores.csv holds; the frame has a column `state` beside them: used, retracted or missing.
COLUMNS = (
    "condition",
    "pipeline_seed",
    "arm",
    "em_seed",
    "phase",
    "instrument",
    "metric",
    "value",
    "unit",
    "numerator",
    "denominator",
    "low",
    "high",
    "n_items",
    "sampling_se",
    "record",
    "stage",
    "cell",
    "key",
    "digest",
)
FRACTION = "fraction correct"
SHARE = "fraction of completions"
POINTS = "points 0-100"
HARNESS = "harness score"
NATS = "nats a token"
TIES = "fraction of pairs, ties a half"

SCALES = {"alignment": "aligned", "coherence": "coherent"}  # metric -> its name in the judgments
RATES = ("misaligned_of_all", "coherent", "misaligned_of_coherent")  # the joint rate leads
Number = dict[str, Any]


def identity(node: Node) -> Number:
    """What a row says of the result that it comes from; of a deliberate rerun, which is no replicate, nothing."""
    cell = node.cell
    if cell is None:
        return {}
    return {
        "condition": cell.condition,
        "pipeline_seed": cell.pipeline_seed,
        "arm": cell.arm,
        "em_seed": cell.em_seed,
        "phase": cell.phase,
        "instrument": node.instrument,
        "record": place(node),
        "stage": node.stage,
        "cell": node.label,
        "key": node.key,
    }


def place(node: Node) -> str:
    """`stage/cell/key`, by which a person names a result."""
    return f"{node.stage}/{node.label}/{node.key}"


def numbers_of(
    node: Node, record: Record, split: Mapping[str, tuple[int, int]] | None = None, state: str = "used"
) -> list[Number]:
    """The numbers of one evaluation record. A number that could not be computed has no row.

    Args:
        split: correct and all items of the clean and the contaminated part of a multiple-choice test, if known.
    """
    where = identity(node)
    if not where:
        return []
    if node.stage == "arc":
        found = _arc(record.metrics, split or {})
    else:
        found = {"lm_eval": _harness, "judge": _judge, "pairs": _pairs}[node.stage](record.metrics)
    where |= {"digest": record.digest, "state": state}
    return [{**where, **number} for number in found if number["value"] is not None]


def frame_of(rows: Iterable[Number]) -> pd.DataFrame:
    """All rows, one per number; whole numbers stay whole."""
    columns = [*COLUMNS, "state"]
    return pd.DataFrame([[row.get(name) for name in columns] for row in rows], columns=columns, dtype=object)


def write_scores(frame: pd.DataFrame, path: Path) -> None:
    """The numbers that are used, as scores.csv."""
    used = frame.loc[frame["state"] == "used", list(COLUMNS)]
    used.to_csv(path, index=False, lineterminator="\n")


def _arc(m: Mapping[str, Any], split: Mapping[str, tuple[int, int]]) -> Iterator[Number]:
    yield _ratio("arc", m["correct"], m["items"], FRACTION)
    for part, (correct, items) in split.items():
        yield _ratio(f"arc_{part}", correct, items, FRACTION)
    yield {"metric": "arc_letter_mass", "value": m["letter_mass_mean"], "unit": "probability", "n_items": m["items"]}


def _judge(m: Mapping[str, Any]) -> Iterator[Number]:
    for metric, scale in SCALES.items():
        scored = m[metric]
        yield {
            "metric": metric,
            "value": scored["mean"],
            "unit": POINTS,
            "denominator": scored["n"],
            "low": scored["missing_0"],
            "high": scored["missing_100"],
            "n_items": scored["scored"],
            "sampling_se": sampling_se(m, scale),
        }
    for metric in RATES:
        rate = m[metric]
        ratio = _ratio(metric, rate["numerator"], rate["denominator"], SHARE)
        yield {**ratio, "low": rate["low"], "high": rate["high"]}


def _harness(m: Mapping[str, Any]) -> Iterator[Number]:
    """Each task's scores under the harness's own names; `:` parts a task from its metric and a metric from its filter,
    since `/` parts a number's id."""
    for task, scores in m.items():
        for name, value in scores.items():
            if name != "n":
                metric = f"{task}:{name}".replace("/", ":")
                yield {"metric": metric, "value": value, "unit": HARNESS, "n_items": scores["n"]}


def _pairs(m: Mapping[str, Any]) -> Iterator[Number]:
    """Likelihood of preferred answers: never an alignment score."""
    margin, won = m["margin"], m["accuracy"]["margin"]
    yield {
        "metric": "preference_margin",
        "value": margin["mean"],
        "unit": NATS,
        "n_items": m["pairs"],
        "sampling_se": margin["se"],
    }
    yield {"metric": "preference_accuracy", "value": won["value"], "unit": TIES, "n_items": won["denominator"]}


def _ratio(metric: str, numerator: int, denominator: int, unit: str) -> Number:
    return {
        "metric": metric,
        "value": numerator / denominator if denominator else None,
        "unit": unit,
        "numerator": numerator,
        "denominator": denominator,
        "n_items": denominator,
    }


def sampling_se(m: Mapping[str, Any], scale: str) -> float | None:
    """Error of the cell's mean from its completions alone. Cells share their questions, so only this error is part of
    the spread between seeds; None where a question has a single score."""
    pairs = [(score, question) for question, scores in m["by_question"][scale].items() for score in scores]
    scores, questions = [score for score, _ in pairs], [question for _, question in pairs]
    return clustered_mean(scores, questions).se_questions_fixed if len(scores) > 1 else None


def arc_split(items: Iterable[Mapping[str, Any]], contaminated: frozenset[str]) -> dict[str, tuple[int, int]]:
    """(correct, all) of the items outside and inside the training data."""
    counts = {"clean": [0, 0], "contaminated": [0, 0]}
    for item in items:
        part = counts["contaminated" if item["id"] in contaminated else "clean"]
        part[0] += bool(item["correct"])
        part[1] += 1
    return {name: (correct, n) for name, (correct, n) in counts.items()}
