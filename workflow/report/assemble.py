"""The page from a study: which sections there are, and in which order. Read this first."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workflow.fingerprint import Comparison
from workflow.report import scores
from workflow.report.blocks import Page, Section, figures_of, prose
from workflow.report.claims_section import (
    chance_note,
    claims_section,
    evaluate,
    evidence_of,
    first_start,
    placed_claims,
    study_notes,
    to_json,
)
from workflow.report.comparisons import contrasts_section, factors_of, measured, pairs_section
from workflow.report.drawn import figures_section, outlier_figures
from workflow.report.facts import cost_section, data_section, differences_section
from workflow.report.history import RuleOrigin, rule_origins
from workflow.report.lineage import lineage_section
from workflow.report.measured import arc_section, outcomes_section, reruns_section
from workflow.report.page import render_html, render_markdown
from workflow.report.power import power_section
from workflow.report.protocol import comparisons, fingerprints, protocol_section
from workflow.report.published import published_section
from workflow.report.samples import checks_section, samples_section
from workflow.report.siblings import siblings_section
from workflow.report.spread import blocks_section, outlier_section, sampling_section
from workflow.report.study import CLAIMS, Study
from workflow.report.tables import matrix_section
from workflow.report.thresholds import thresholds_section
from workflow.stats.results import ClaimResult


@dataclass(frozen=True)
class Report:
    study: Study
    page: Page
    results: list[ClaimResult]
    origins: dict[str, RuleOrigin]
    protocols: dict[str, dict[str, str]]


def assemble(study: Study) -> Report:
    """The whole report.

    Raises:
        ProtocolError: cells of one table do not share one protocol, and no waiver lets them.
    """
    protocols = comparisons(study)
    evidence = evidence_of(study)
    results = evaluate(study, evidence)
    notes = [*study_notes(study), chance_note(placed_claims(study), evidence)]
    origins = rule_origins(CLAIMS, first_start(study))
    metrics = measured(study)
    sections = (
        claims_section(results, origins, notes),
        checks_section(study),
        matrix_section(study, protocols),
        figures_section(study),
        arc_section(study),
        pairs_section(metrics, study.claims),
        contrasts_section(metrics, study.claims, factors_of(study)),
        blocks_section(study),
        sampling_section(study, metrics),
        outlier_section(study, outlier_figures(study)),
        power_section(metrics, study),
        outcomes_section(study),
        thresholds_section(study),
        reruns_section(study),
        published_section(study),
        protocol_section(study, protocols),
        differences_section(study),
        data_section(study),
        samples_section(study),
        lineage_section(study),
        _outside(siblings_section(study), cost_section(study)),
    )
    top = banners(study, protocols, results)
    page = Page(study.config.title, study.config.note, top, tuple(s for s in sections if s.blocks))
    return Report(study, page, results, origins, fingerprints(study))


def _outside(*sections: Section) -> Section:
    """What the page shows and its key does not cover: two runs of one key differ here alone."""
    blocks = [block for section in sections for block in section.blocks]
    intro = prose(
        "Times, cost and results that the plan does not use, as they were when this page was made; so is the commit "
        "that first held a rule, in the table of verdicts. Nothing of it is in this report's key, in a mean or in a "
        "verdict."
    )
    return Section("outside", "Outside the report's key", (intro, *blocks) if blocks else ())


def banners(study: Study, protocols: dict[str, Comparison], results: Sequence[ClaimResult] = ()) -> tuple[str, ...]:
    """What a reader must know before the first number."""
    found = []
    if study.is_toy:
        found.append("A toy model: this report shows that the plumbing works. Nothing in it is a finding.")
    for name in dict.fromkeys(study.scorers.values()):
        found.append(f"Alignment and coherence are scored by {name}, a rule-based scorer. No judge model was asked.")
    if study.missing:
        found.append(
            f"Incomplete: {len(study.missing)} of {len(study.missing) + len(study.records)} measurements of the "
            f"plan are missing."
        )
    if study.retracted:
        found.append(f"{len(study.retracted)} results of the plan are retracted; they are named below and in no mean.")
    found += _confounded(results)
    waived = {str(w.difference.field) for c in protocols.values() for w in c.waived}
    if waived:
        found.append(f"Cells of different protocols stand in one table under a waiver: {', '.join(sorted(waived))}.")
    return tuple(found)


def _confounded(results: Sequence[ClaimResult]) -> list[str]:
    """One line for test items in training data, one for whatever else goes with the conditions."""
    found = []
    if items := [r.id for r in results if r.on_all_items]:
        clean = min((r.clean_items[0] for r in results if r.on_all_items and r.clean_items), default=0)
        found.append(
            f"Test items stand in the training data of some conditions: {len(items)} verdicts are on clean items "
            f"({clean} or more) or confounded: {', '.join(items)}."
        )
    others = {why: None for r in results for why in r.confounded_by if " goes with the condition: " in why}
    return found + [f"Confounded: {why}." for why in others]


def write(report: Report, out: Path) -> None:
    """report.html, report.md, scores.csv, claims.json and the figures."""
    (out / "report.html").write_text(render_html(report.page), encoding="utf-8")
    (out / "report.md").write_text(render_markdown(report.page), encoding="utf-8")
    write_scores(report.study.rows, out / "scores.csv")
    (out / "claims.json").write_text(json.dumps(to_json(report.results), indent=1, allow_nan=False) + "\n")
    write_figures(report.page, out / "figures")


def write_figures(page: Page, folder: Path) -> None:
    figures = [figure for section in page.sections for figure in figures_of(section.blocks)]
    if figures:
        folder.mkdir(exist_ok=True)
    for figure in figures:
        (folder / f"{figure.id}.svg").write_bytes(figure.svg)
        (folder / f"{figure.id}.png").write_bytes(figure.png)


def write_scores(rows: tuple[scores.Row, ...], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, scores.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
