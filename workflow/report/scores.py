"""Records -> one long table: every number of the report, with its unit, its bounds and the record it comes from."""

from collections.abc import Iterable, Mapping
from typing import Any

from workflow.matrix import Node
from workflow.stats.samples import clustered_mean
from workflow.store import Record

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

MEANS = {"alignment": "aligned", "coherence": "coherent"}  # metric -> its name in the judgments
RATES = ("misaligned_of_all", "coherent", "misaligned_of_coherent")  # the joint rate leads
Row = dict[str, Any]


def rows(node: Node, record: Record, split: Mapping[str, tuple[int, int]] | None = None) -> list[Row]:
    """The numbers of one evaluation record. A number that could not be computed has no row.

    Args:
        split: correct and all items of the clean and the contaminated part of a multiple-choice test, if known.
    """
    cell = node.cell
    if cell is None:  # a deliberate rerun is no replicate and never enters n
        return []
    where = {
        "condition": cell.condition,
        "pipeline_seed": cell.pipeline_seed,
        "arm": cell.arm,
        "em_seed": cell.em_seed,
        "phase": cell.phase,
        "instrument": node.instrument,
        "record": f"{node.stage}/{node.label}/{node.key}",
        "stage": node.stage,
        "cell": node.label,
        "key": node.key,
        "digest": record.digest,
    }
    if node.stage == "arc":
        numbers = _arc(record.metrics, split or {})
    else:
        numbers = {"lm_eval": _harness, "judge": _judge, "pairs": _pairs}[node.stage](record.metrics)
    return [
        {name: {**where, **number}.get(name) for name in COLUMNS} for number in numbers if number["value"] is not None
    ]


def _arc(m: Mapping[str, Any], split: Mapping[str, tuple[int, int]]) -> Iterable[Row]:
    yield _ratio("arc", m["correct"], m["items"], FRACTION)
    for part, (correct, items) in split.items():
        yield _ratio(f"arc_{part}", correct, items, FRACTION)
    yield {"metric": "arc_letter_mass", "value": m["letter_mass_mean"], "unit": "probability", "n_items": m["items"]}


def _judge(m: Mapping[str, Any]) -> Iterable[Row]:
    for metric, asked in MEANS.items():
        found = m[metric]
        yield {
            "metric": metric,
            "value": found["mean"],
            "unit": POINTS,
            "denominator": found["n"],
            "low": found["missing_0"],
            "high": found["missing_100"],
            "n_items": found["scored"],
            "sampling_se": sampling_se(m, asked),
        }
    for metric in RATES:
        found = m[metric]
        yield {
            **_ratio(metric, found["numerator"], found["denominator"], SHARE),
            "low": found["low"],
            "high": found["high"],
        }


def _harness(m: Mapping[str, Any]) -> Iterable[Row]:
    """Each task's scores under the harness's own names; `:` parts a task from its metric and a metric from its filter,
    since `/` parts a number's id."""
    for task, found in m.items():
        for name, value in found.items():
            if name != "n":
                metric = f"{task}:{name}".replace("/", ":")
                yield {"metric": metric, "value": value, "unit": HARNESS, "n_items": found["n"]}


def _pairs(m: Mapping[str, Any]) -> Iterable[Row]:
    """Likelihood of preferred answers: never an alignment score."""
    margin = m["margin"]
    yield {
        "metric": "preference_margin",
        "value": margin["mean"],
        "unit": NATS,
        "n_items": m["pairs"],
        "sampling_se": margin["se"],
    }
    won = m["accuracy"]["margin"]
    yield {"metric": "preference_accuracy", "value": won["value"], "unit": TIES, "n_items": won["denominator"]}


def _ratio(metric: str, numerator: int, denominator: int, unit: str) -> Row:
    return {
        "metric": metric,
        "value": numerator / denominator if denominator else None,
        "unit": unit,
        "numerator": numerator,
        "denominator": denominator,
        "n_items": denominator,
    }


def item_scores(m: Mapping[str, Any], asked: str) -> tuple[list[float], list[str]]:
    """Every score with its question, in the record's order."""
    pairs = [(score, question) for question, found in m["by_question"][asked].items() for score in found]
    return [score for score, _ in pairs], [question for _, question in pairs]


def sampling_se(m: Mapping[str, Any], asked: str) -> float | None:
    """Error of the cell's mean from its completions alone. Cells share their questions, so only this error is part of
    the spread between seeds; None where a question has a single score."""
    scores, questions = item_scores(m, asked)
    return clustered_mean(scores, questions).se_questions_fixed if len(scores) > 1 else None


def arc_split(items: Iterable[Mapping[str, Any]], contaminated: set[str]) -> dict[str, tuple[int, int]]:
    """(correct, all) of the items outside and inside the training data."""
    found = {"clean": [0, 0], "contaminated": [0, 0]}
    for item in items:
        part = found["contaminated" if item["id"] in contaminated else "clean"]
        part[0] += bool(item["correct"])
        part[1] += 1
    return {name: (correct, n) for name, (correct, n) in found.items()}
