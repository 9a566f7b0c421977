"""Draw judged completions to be labelled by people, and correct the judge's means by their labels.

    python -m workflow.evals.labelling draw results/judge/*/*/record.json --labels 100 --margin 5 --out FOLDER
    python -m workflow.evals.labelling correct FOLDER/key.jsonl LABELS.jsonl --contrast evil_wrong=1,tulu_control=-1

`draw` writes sample.jsonl (id, question, answer: nothing that tells the condition or the score) and key.jsonl, which
stays with whoever analyses. Rows are drawn with a known probability in every condition, stratified by question and band
of the score. LABELS holds id and aligned (0 to 100). `correct` gives each condition's mean without the judge's error,

    theta = mean of all scores + weighted mean of (label - score) over the labelled rows,

and the variance that labelling adds, clustered by question (prediction-powered inference: Angelopoulos et al. 2023,
doi.org/10.1126/science.adi6000, here with design weights). A contrast's variance is that of its scores between
checkpoints (--variance, from `stats`) plus the sum of w^2 times those.
"""

import json
import math
import os
import random
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from workflow.errors import UserError, printable
from workflow.evals.metrics import COHERENT_ABOVE, MISALIGNED_BELOW
from workflow.store import StoreError, read_jsonl, write_jsonl

BANDS = (MISALIGNED_BELOW, COHERENT_ABOVE)
UNSCORED = 50.0  # stands in for a score that the judge did not give; labels correct it like any other


class Corrected(NamedTuple):
    """A mean with the judge's error taken out.

    Attributes:
        naive: mean of the judge's scores over all rows. mean: corrected. n, labelled, questions: counts.
        variance: what labelling a sample adds, clustered by question; NaN if one question was labelled.
    """

    naive: float
    mean: float
    variance: float
    n: int
    labelled: int
    questions: int


def draw(rows: Sequence[Mapping[str, Any]], labels: int, seed: int) -> list[dict[str, Any]]:
    """Rows to be labelled, `labels` of each condition or a few more, in an order that tells nothing.

    Args:
        rows: with condition, question_id and aligned (None: no score). Strata are condition x question x band of the
            score; each gives its share, and one row at least.

    Returns the rows with `row` (number in the input) and `probability`.
    """
    strata: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        score = row["aligned"]
        band = -1 if score is None else sum(score >= edge for edge in BANDS)
        strata[str(row["condition"]), str(row["question_id"]), band].append(number)
    sizes = Counter(str(row["condition"]) for row in rows)
    source = random.Random(f"labelling:{seed}")
    chosen: list[dict[str, Any]] = []
    for (condition, _, _), members in sorted(strata.items()):
        size = min(len(members), max(1, round(labels * len(members) / sizes[condition])))
        share = size / len(members)
        chosen += [{**rows[n], "row": n, "probability": share} for n in source.sample(members, size)]
    source.shuffle(chosen)
    return chosen


def correct(rows: Sequence[Mapping[str, Any]], labels: Mapping[Any, float]) -> Corrected:
    """Mean of one condition, corrected.

    Args:
        rows: of the condition, with aligned, question_id, and, where they were drawn, id and probability.
        labels: by id.
    """
    scores = [UNSCORED if row["aligned"] is None else float(row["aligned"]) for row in rows]
    drawn = [
        (row["question_id"], 1 / row["probability"], labels[row["id"]] - score)
        for row, score in zip(rows, scores, strict=True)
        if row["id"] in labels
    ]
    total = math.fsum(weight for _, weight, _ in drawn)
    error = math.fsum(weight * apart for _, weight, apart in drawn) / total
    sums: dict[str, float] = defaultdict(float)
    for question, weight, apart in drawn:
        sums[question] += weight * (apart - error) / total
    count = len(sums)
    variance = math.fsum(v * v for v in sums.values()) * count / (count - 1) if count > 1 else math.nan
    naive = statistics.fmean(scores)
    return Corrected(naive, naive + error, variance, len(scores), len(drawn), count)


def contrast_of(weights: Mapping[str, float], cells: Mapping[str, Corrected], between: float = 0.0) -> dict[str, float]:
    """Weighted sum of corrected means with its 95% interval.

    `between` is the variance of the same contrast of the judge's scores between checkpoints. The t distribution has one
    degree of freedom less than the labelled questions.
    """
    from scipy.stats import t

    variance = between + math.fsum(w * w * cells[name].variance for name, w in weights.items())
    half = float(t.ppf(0.975, min(cells[name].questions for name in weights) - 1)) * math.sqrt(variance)
    estimate = math.fsum(w * cells[name].mean for name, w in weights.items())
    naive = math.fsum(w * cells[name].naive for name, w in weights.items())
    return {"naive": naive, "estimate": estimate, "low": estimate - half, "high": estimate + half, "variance": variance}


def labels_needed(margin: float, residual_sd: float) -> int:
    """Labels per condition for a difference of two conditions to have this 95% half-width from labelling alone."""
    return math.ceil(2 * (statistics.NormalDist().inv_cdf(0.975) * residual_sd / margin) ** 2)


# --- the command ------------------------------------------------------------------------------------------------------


def condition_of(cell: str) -> str:
    """A cell's label without its seeds: `evil_wrong`, `evil_wrong.benign`; `evil_wrong@pre_em` before EM."""
    condition = re.sub(r"\.[per]\d+", "", cell)
    return condition if re.search(r"\.e\d+", cell) else f"{condition}@pre_em"


def judged_rows(records: Sequence[Path]) -> list[dict[str, Any]]:
    """Completions with the scores of the judge's records, as draw() wants them."""
    rows = []
    for path in records:
        record = json.loads(path.read_bytes())
        generate = Path(os.path.abspath(path)).parents[4] / record["inputs"]["generate"]["path"]
        completions = read_jsonl(generate.parent / "out/completions.jsonl")
        judged = read_jsonl(path.parent / "out/judgments.jsonl")
        rows += [
            {
                "condition": condition_of(record["cell"]),
                "cell": record["cell"],
                "question_id": completion["question_id"],
                "question": completion["question"],
                "answer": completion["completion"],
                "aligned": judgment["outcomes"]["aligned"]["value"],
            }
            for completion, judgment in zip(completions, judged, strict=True)
        ]
    return rows


def read_labels(path: Path, key: Sequence[Mapping[str, Any]]) -> dict[Any, float]:
    """Labels by id.

    Raises:
        StoreError: a label is no number from 0 to 100 or has another's id, or a drawn row has none.
    """
    labels: dict[Any, float] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        label: Any = row.get("aligned")
        if type(label) not in (int, float) or not 0 <= label <= 100 or row.get("id") in labels:
            raise StoreError(f"{path}, row {number}: needs an id of its own and a label from 0 to 100.")
        labels[row.get("id")] = float(label)
    if missing := {row["id"] for row in key if row["id"] is not None} - set(labels):
        raise StoreError(
            f"{path}: {len(missing)} drawn rows have no label, first id {min(missing)}. Label all: leaving out the "
            "hard ones would bend the mean."
        )
    return labels


app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


@app.command("draw")
def draw_files(
    records: list[Path],
    out: Annotated[Path, typer.Option(help="a new folder")],
    labels: Annotated[int, typer.Option(help="per condition")] = 100,
    margin: Annotated[float, typer.Option(help="half-width that a difference should have")] = 5.0,
    residual_sd: Annotated[float | None, typer.Option(help="SD of label - score, if known from labels")] = None,
    seed: int = 42,
) -> None:
    """Write the sample to be labelled."""
    rows = judged_rows(records)
    chosen = draw(rows, labels, seed)
    out.mkdir(parents=True, exist_ok=False)
    shown = [{"id": n, "question": r["question"], "answer": r["answer"], "aligned": None} for n, r in enumerate(chosen)]
    write_jsonl(out / "sample.jsonl", shown)
    kept = ("condition", "cell", "question_id", "aligned")
    key = [{"id": None, "probability": None, **{name: row[name] for name in kept}} for row in rows]
    for n, row in enumerate(chosen):
        key[row["row"]] |= {"id": n, "probability": row["probability"]}
    write_jsonl(out / "key.jsonl", key)
    sd = residual_sd or statistics.pstdev(row["aligned"] for row in rows if row["aligned"] is not None)
    basis = "as --residual-sd says" if residual_sd else "the scores' own SD, as if the judge explained nothing"
    counts = sorted(Counter(row["condition"] for row in chosen).items())
    print(f"{len(chosen)} of {len(rows)} rows in {out}/sample.jsonl: {', '.join(f'{c} {n}' for c, n in counts)}")
    print(
        f"A half-width of {margin:g} for a difference of two conditions needs {labels_needed(margin, sd)} labels in "
        f"each at a residual SD of {sd:.1f} ({basis})."
    )


@app.command("correct")
def correct_files(
    key: Path,
    labels: Path,
    contrast: Annotated[str | None, typer.Option(metavar="CONDITION=WEIGHT,...")] = None,
    variance: Annotated[float, typer.Option(help="of the contrast between checkpoints")] = 0.0,
) -> None:
    """Correct the judge's means by the labels."""
    rows = read_jsonl(key)
    by_id = read_labels(labels, rows)
    cells = {
        condition: correct([row for row in rows if row["condition"] == condition], by_id)
        for condition in sorted({str(row["condition"]) for row in rows})
    }
    for condition, c in cells.items():
        print(
            f"{condition}: judge {c.naive:.1f}, corrected {c.mean:.1f} (SE of labelling {math.sqrt(c.variance):.1f}; "
            f"{c.labelled} labels of {c.n} rows, {c.questions} questions)"
        )
    if contrast:
        weights = {name: float(w) for name, w in (part.split("=", 1) for part in contrast.split(","))}
        if unknown := set(weights) - set(cells):
            raise StoreError(f"--contrast: no condition {', '.join(sorted(unknown))} in {key}.")
        d = contrast_of(weights, cells, variance)
        print(f"{contrast}: judge {d['naive']:.1f}, corrected {d['estimate']:.1f} [{d['low']:.1f}, {d['high']:.1f}]")


def main(argv: Sequence[str] | None = None) -> None:
    try:
        app(args=None if argv is None else list(argv), prog_name="python -m workflow.evals.labelling")
    except KeyError as error:
        sys.exit(f"error: a row or a record has no {error}. Name files that `draw` and the judge wrote.")
    except (UserError, OSError, ValueError) as error:
        sys.exit(f"error: {printable(str(error))}")


if __name__ == "__main__":
    main()
