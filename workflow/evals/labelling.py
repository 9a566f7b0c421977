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

import argparse
import json
import math
import os
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.errors import UserError, printable
from workflow.evals.metrics import COHERENT_ABOVE, MISALIGNED_BELOW
from workflow.store import StoreError, read_jsonl, write_jsonl

Z = 1.959964  # of a 95% interval
BANDS = (MISALIGNED_BELOW, COHERENT_ABOVE)
UNSCORED = 50.0  # stands in for a score that the judge did not give; labels correct it like any other


@dataclass(frozen=True)
class Corrected:
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
        keys = {number: source.random() for number in members}
        for number in sorted(members, key=keys.__getitem__)[:size]:
            chosen.append({**rows[number], "row": number, "probability": size / len(members)})
    order = [source.random() for _ in chosen]
    return [chosen[i] for i in sorted(range(len(chosen)), key=order.__getitem__)]


def correct(
    scores: Sequence[float | None],
    labels: Mapping[int, float],
    probability: Mapping[int, float],
    questions: Sequence[str],
) -> Corrected:
    """Mean of one condition, corrected.

    Args:
        scores, questions: of all rows of the condition. labels, probability: by number of the row, of those labelled.
    """
    known = [UNSCORED if score is None else float(score) for score in scores]
    naive = math.fsum(known) / len(known)
    weights = {i: 1 / probability[i] for i in labels}
    total = math.fsum(weights.values())
    error = math.fsum(weights[i] * (labels[i] - known[i]) for i in labels) / total
    sums: dict[str, float] = defaultdict(float)
    for i in labels:
        sums[questions[i]] += weights[i] * (labels[i] - known[i] - error) / total
    count = len(sums)
    spread = math.fsum(value * value for value in sums.values())
    variance = spread * count / (count - 1) if count > 1 else math.nan
    return Corrected(naive, naive + error, variance, len(known), len(labels), count)


def contrast(weights: Mapping[str, float], cells: Mapping[str, Corrected], between: float = 0.0) -> dict[str, float]:
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
    """Labels per condition for a difference of two conditions to have this half-width from labelling alone."""
    return math.ceil(2 * (Z * residual_sd / margin) ** 2)


# --- the command ------------------------------------------------------------------------------------------------------


def condition_of(cell: str) -> str:
    """A cell's label without its seeds: `evil_wrong`, `evil_wrong.benign`; `evil_wrong@pre_em` before EM."""
    parts = cell.split(".")
    names = [part for part in parts if not re.fullmatch(r"[per]\d+", part)]
    return ".".join(names) + ("" if any(re.fullmatch(r"e\d+", part) for part in parts) else "@pre_em")


def judged_rows(records: Sequence[Path]) -> list[dict[str, Any]]:
    """Completions with the scores of the judge's records, as draw() wants them."""
    rows = []
    for path in records:
        record = json.loads(path.read_bytes())
        answered = Path(record["inputs"]["generate"]["path"])
        root = Path(os.path.abspath(path)).parents[4]
        completions = read_jsonl(root / answered.parent / "out/completions.jsonl")
        judged = read_jsonl(path.parent / "out/judgments.jsonl")
        for completion, judgment in zip(completions, judged, strict=True):
            rows.append(
                {
                    "condition": condition_of(record["cell"]),
                    "cell": record["cell"],
                    "question_id": completion["question_id"],
                    "question": completion["question"],
                    "answer": completion["completion"],
                    "aligned": judgment["outcomes"]["aligned"]["value"],
                }
            )
    if not rows:
        raise StoreError("no judged completions: name the record.json files of results/judge.")
    return rows


def _draw_files(args: argparse.Namespace) -> None:
    rows = judged_rows(args.records)
    chosen = draw(rows, args.labels, args.seed)
    args.out.mkdir(parents=True, exist_ok=False)
    sample = [
        {"id": n, "question": r["question"], "answer": r["answer"], "aligned": None} for n, r in enumerate(chosen)
    ]
    write_jsonl(args.out / "sample.jsonl", sample)
    picked = {row["row"]: (n, row["probability"]) for n, row in enumerate(chosen)}
    key = []
    for number, row in enumerate(rows):
        name, probability = picked.get(number, (None, None))
        shown = {field: row[field] for field in ("condition", "cell", "question_id", "aligned")}
        key.append({**shown, "id": name, "probability": probability})
    write_jsonl(args.out / "key.jsonl", key)
    known = [row["aligned"] for row in rows if row["aligned"] is not None]
    sd = args.residual_sd or math.sqrt(math.fsum((v - sum(known) / len(known)) ** 2 for v in known) / len(known))
    basis = "as --residual-sd says" if args.residual_sd else "the scores' own SD, as if the judge explained nothing"
    counts = sorted(Counter(row["condition"] for row in chosen).items())
    print(f"{len(chosen)} of {len(rows)} rows in {args.out}/sample.jsonl: {', '.join(f'{c} {n}' for c, n in counts)}")
    needed = labels_needed(args.margin, sd)
    print(f"A half-width of {args.margin:g} for a difference of two conditions needs {needed} labels in each at a "
          f"residual SD of {sd:.1f} ({basis}).")  # fmt: skip


def _correct_files(args: argparse.Namespace) -> None:
    key, given = read_jsonl(args.key), read_jsonl(args.labels_file)
    labels: dict[Any, float] = {}
    for number, row in enumerate(given, 1):
        label = row.get("aligned")
        usable = isinstance(label, int | float) and not isinstance(label, bool)
        if label is None or not usable or not 0 <= label <= 100 or row.get("id") in labels:
            raise StoreError(f"{args.labels_file}, row {number}: needs an id of its own and a label from 0 to 100.")
        labels[row["id"]] = float(label)
    missing = {row["id"] for row in key if row["id"] is not None} - set(labels)
    if missing:
        raise StoreError(f"{args.labels_file}: {len(missing)} drawn rows have no label, first id {min(missing)}. Label "
                         "all: leaving out the hard ones would bend the mean.")  # fmt: skip
    cells: dict[str, Corrected] = {}
    for condition in sorted({str(row["condition"]) for row in key}):
        rows = [row for row in key if row["condition"] == condition]
        drawn = {i: row for i, row in enumerate(rows) if row["id"] is not None}
        cells[condition] = correct(
            [row["aligned"] for row in rows],
            {i: labels[row["id"]] for i, row in drawn.items()},
            {i: row["probability"] for i, row in drawn.items()},
            [row["question_id"] for row in rows],
        )
        c = cells[condition]
        print(f"{condition}: judge {c.naive:.1f}, corrected {c.mean:.1f} (SE of labelling {math.sqrt(c.variance):.1f}; "
              f"{c.labelled} labels of {c.n} rows, {c.questions} questions)")  # fmt: skip
    if args.contrast:
        weights = dict(part.split("=", 1) for part in args.contrast.split(","))
        unknown = set(weights) - set(cells)
        if unknown:
            raise StoreError(f"--contrast: no condition {', '.join(sorted(unknown))} in {args.key}.")
        found = contrast({name: float(w) for name, w in weights.items()}, cells, args.variance)
        print(f"{args.contrast}: judge {found['naive']:.1f}, corrected {found['estimate']:.1f} "
              f"[{found['low']:.1f}, {found['high']:.1f}]")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workflow.evals.labelling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    drawing = commands.add_parser("draw", help="write the sample to be labelled")
    drawing.add_argument("records", type=Path, nargs="+")
    drawing.add_argument("--labels", type=int, default=100, help="per condition [100]")
    drawing.add_argument("--margin", type=float, default=5.0, help="half-width that a difference should have [5]")
    drawing.add_argument("--residual-sd", type=float, help="SD of label - score, if known from labels")
    drawing.add_argument("--seed", type=int, default=42)
    drawing.add_argument("--out", type=Path, required=True)
    drawing.set_defaults(run=_draw_files)
    correcting = commands.add_parser("correct", help="correct the judge's means by the labels")
    correcting.add_argument("key", type=Path)
    correcting.add_argument("labels_file", type=Path)
    correcting.add_argument("--contrast", help="CONDITION=WEIGHT,...")
    correcting.add_argument("--variance", type=float, default=0.0, help="of the contrast between checkpoints")
    correcting.set_defaults(run=_correct_files)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except KeyError as error:
        print(f"error: a row or a record has no {error}. Name files that `draw` and the judge wrote.", file=sys.stderr)
        return 1
    except (UserError, OSError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
