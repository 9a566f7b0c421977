"""The same statistics, claims and page from the published table alone: `make reference`, seconds on any CPU.

Every number is a printed one, so every statistic carries its range over the rounding, and what that rounding leaves
open is undetermined at this precision.

    python -m workflow.report.reference
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from workflow.report.assemble import write_figures
from workflow.report.blocks import Block, Cell, Cells, Page, Section, show, table
from workflow.report.claims_section import chance_note, claims_section, to_json
from workflow.report.comparisons import MAIN, Measured, contrasts_section, pairs_section
from workflow.report.figures import Panel, Single, before_after, matrix, outlier
from workflow.report.history import rule_origins
from workflow.report.page import render_html, render_markdown
from workflow.report.power import power_section
from workflow.report.published_table import (
    PublishedTable,
    SingleRun,
    from_published,
    load_published_pairs,
    load_published_table,
    load_retracted,
)
from workflow.report.reference_sections import (
    cost_section,
    printed_beside_section,
    printed_pairs_section,
    retracted_section,
)
from workflow.report.spread import ratio_table
from workflow.report.study import CLAIMS
from workflow.stats.claims import evaluate_claims
from workflow.stats.claims_schema import load_claims
from workflow.stats.tests import change, single_value

FOLDER = Path("reference")
OUT = Path("results/reference")
FACTORS = {
    f"{persona}_{answers}": (persona, answers) for persona in ("evil", "good") for answers in ("wrong", "correct")
}
TITLE = "The published matrix, recomputed from its own table"
NOTE = "No model was run for this page: every number is a printed one, or follows from printed ones."


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workflow.report.reference", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    page, claims = build()
    html, markdown = render_html(page), render_markdown(page)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.html").write_text(html, encoding="utf-8")
    (args.out / "report.md").write_text(markdown, encoding="utf-8")
    (args.out / "claims.json").write_text(json.dumps(claims, indent=1, allow_nan=False) + "\n")
    write_figures(page, args.out / "figures")
    told: dict[str, int] = {}
    for claim in claims:
        told[claim["verdict"]] = told.get(claim["verdict"], 0) + 1
    print(f"{len(claims)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in told.items()))
    print(f"report: {args.out / 'report.html'}")
    return 0


def build() -> tuple[Page, list[dict[str, Any]]]:
    """The page, and the claims as data."""
    published = load_published_table(FOLDER / "published_table.yaml")
    run, replications, retraction = load_retracted(FOLDER / "retracted.yaml")
    claims = load_claims(CLAIMS)
    evidence = from_published(published, [run, *replications])
    results = evaluate_claims(claims, evidence)
    metrics = [_measured(published, metric) for metric in MAIN if metric in published.post_em]
    notes = (
        f"Source: {published.source}",
        "Ranges in square brackets: over the rounding of the printed figures.",
        chance_note(claims, evidence),
        "The rules were written with the published numbers known: none of them is a pre-registration.",
    )
    sections = (
        claims_section(results, rule_origins(CLAIMS, None), notes),
        Section("matrix", "The published matrix", tuple(_matrix(published, m) for m in metrics)),
        Section("figures", "Figures", tuple(_figures(published, metrics, run, replications))),
        retracted_section(published, run, replications, retraction),
        pairs_section(metrics, claims),
        printed_pairs_section(published, load_published_pairs(FOLDER / "published_pairs.csv")),
        contrasts_section(metrics, claims, FACTORS),
        Section("spread", "Between conditions and within them", (ratio_table(metrics),)),
        power_section(metrics),
        printed_beside_section(published, run),
        cost_section(published),
    )
    return Page(TITLE, NOTE, (), sections), to_json(results)


def _measured(published: PublishedTable, metric: str) -> Measured:
    unit = published.units[metric]
    name = {"arc": "ARC accuracy", "alignment": "Alignment", "coherence": "Coherence"}[metric]
    title = f"{name} ({published.instruments[metric]}, {unit})"
    return Measured(
        metric, title, metric, unit, published.post_em[metric], f"matrix-{metric}", f"published table, {metric}"
    )


def _matrix(published: PublishedTable, m: Measured) -> Block:
    rows: list[Cells] = []
    ids = []
    for name, after in m.cells.items():
        before = published.pre_em[m.metric][name]
        changes = change(after, before)
        numbers = (
            str(after.n),
            after.unit,
            show(after.mean, m.unit),
            show(after.ci95_half_width, m.unit),
            show(after.sd, m.unit),
            show(before.mean, m.unit),
            str(before.n),
            show(changes.mean, m.unit, sign=True),
        )
        ids.append(f"published/{m.metric}/{name}")
        rows.append(
            [
                name,
                *(
                    Cell(text, f"published/{m.metric}/{name}", f"{FOLDER}/published_table.yaml: {m.metric}, {name}")
                    for text in numbers
                ),
            ]
        )
    header = (
        "condition",
        "n",
        "unit of n",
        "mean after EM",
        "95% CI half-width",
        "SD between seeds (from the half-width)",
        "mean before EM",
        "n before",
        "after − before",
    )
    notes = (
        "Half-width: Student t over EM seeds on one checkpoint per condition; the value before EM is one "
        "evaluation of that checkpoint and has no interval.",
    )
    return table(f"matrix-{m.metric}", m.title, header, rows, (0, 2), notes, ids)


def _figures(
    published: PublishedTable, metrics: list[Measured], run: SingleRun, replications: list[SingleRun]
) -> list[Block]:
    axes = {"alignment": "alignment, points 0–100", "arc": "ARC accuracy, fraction correct"}
    names = list(metrics[0].cells)
    panels = [
        Panel(
            m.title.split(" (")[0],
            axes[m.metric],
            {},
            m.cells,
            {n: [s.mean] for n, s in published.pre_em[m.metric].items()},
        )
        for m in metrics
        if m.metric in axes
    ]
    told = "The seeds themselves were not published: the bar is their mean."
    n = next(iter(metrics[0].cells.values())).n
    found: list[Block] = [
        before_after("figure-before-after", panels, names, f"Before and after EM, as published. {told}"),
        matrix(
            "figure-matrix",
            panels,
            names,
            f"After EM, as published: mean and 95% interval over {n} EM seeds. The axes do not start at zero. {told}",
        ),
    ]
    for metric, axis in axes.items():
        result = single_value(
            run.values[metric].value, published.post_em[metric][run.condition], run.values[metric].half_unit
        )
        more = {r.name: r.values[metric].value for r in replications} | {
            f"mean of {n} seeds": published.post_em[metric][run.condition].mean
        }
        row = Single(f"{run.condition},\nretracted run", result, (), more)
        caption = (
            f"The retracted run (cross) against the prediction interval of its condition's {n} seeds; "
            f"triangles: the rerun of the same seed, and the mean of the {n} seeds."
        )
        found.append(outlier(f"figure-retracted-{metric}", f"The retracted run: {metric}", axis, [row], caption))
    return found


if __name__ == "__main__":
    sys.exit(main())
