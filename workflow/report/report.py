"""The report: one node, keyed by every number's key and by what is said about them. Read `assemble` first.

    python -m workflow.report.report --config JSON --record results/report/NAME/KEY/record.json
    python -m workflow.report.report --config JSON --publish

Its bytes follow from the records, the config, the claims and the history of their rules: no time, host or absolute
path is in them.
"""

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workflow.config import Config
from workflow.data.lock import read_lock
from workflow.errors import UserError, describe_os_error
from workflow.fingerprint import Comparison
from workflow.matrix import Matrix
from workflow.report.answer import QUESTION, answers_of, unit_of
from workflow.report.cells import UP, pages_of, sources_of
from workflow.report.claims import LEGEND, cards_of, evaluate, evidence_of, notes_of, to_json
from workflow.report.evals import (
    arc_section,
    checks_section,
    outcomes_section,
    preference_section,
    reruns_section,
)
from workflow.report.figures import Single, after_only, before_after, outlier, panel_of
from workflow.report.history import RuleOrigin, first_start, rule_origins
from workflow.report.numbers import write_scores
from workflow.report.outside import cost_table, unused_results
from workflow.report.page import Block, Figure, Headline, Page, Prose, Section, Table, check_pages, render
from workflow.report.provenance import (
    comparisons,
    data_section,
    differences_section,
    fingerprints,
    protocol_section,
)
from workflow.report.results import matrix_section, numbers_section, published_section
from workflow.report.spread import blocks_section, extremes, outlier_section, power_section, spread_section
from workflow.report.study import CLAIMS, Study, load_study
from workflow.report.tests import contrasts_section, factors_of, measured, pairs_section
from workflow.report.thresholds import thresholds_section
from workflow.stage import Job, Result, execute
from workflow.stats.results import ClaimResult

MODULE = "workflow.report.report"
FILES = ("scores.csv", "claims.json", "report.md")


@dataclass(frozen=True)
class Report:
    study: Study
    page: Page
    results: list[ClaimResult]
    origins: dict[str, RuleOrigin]
    protocols: dict[str, dict[str, str]]


# --- the page -------------------------------------------------------------------------------------------------------


def assemble(study: Study, is_preview: bool = False) -> Report:
    """The whole report.

    Raises:
        ProtocolError: cells of one table do not share one protocol, and no waiver lets them.
    """
    unused = unused_results(study)
    protocols = comparisons(study)
    evidence = evidence_of(study)
    results = evaluate(study, evidence)
    origins = rule_origins(CLAIMS, first_start(study))
    metrics = measured(study)
    hero, *figures = figures_of(study)
    sections = (
        checks_section(study),
        matrix_section(study, protocols),
        Section("figures", "Figures", tuple(f for f in figures if f), is_folded=False),
        preference_section(study),
        arc_section(study),
        outcomes_section(study),
        pairs_section(metrics, study.claims),
        contrasts_section(metrics, study.claims, factors_of(study)),
        blocks_section(study),
        spread_section(study, metrics),
        outlier_section(study, _outliers(study)),
        power_section(metrics, study),
        thresholds_section(study),
        reruns_section(study),
        published_section(study),
        protocol_section(study, protocols),
        differences_section(study),
        data_section(study),
        numbers_section(study),
        _outside(unused, cost_table(study)),
    )
    places = {metric: here[0].instrument for metric in ("alignment", "arc") if (here := study.places_of(metric))}
    page = Page(
        title=study.config.title,
        note=study.config.note,
        headline=Headline(QUESTION, answers_of(results, study.controls), unit_of(results), hero),
        banners=banners(study, protocols, results),
        cards=cards_of(results, origins, places),
        card_notes=(*LEGEND, *notes_of(study, evidence)),
        sections=tuple(_judged(study, section) for section in sections if section.blocks),
        files=FILES,
        preview=_preview(study) if is_preview else "",
    )
    return Report(study, page, results, origins, fingerprints(study))


def _judged(study: Study, section: Section) -> Section:
    """Every table of judged scores names the scorer, once, in its notes."""

    def add(block: Block) -> Block:
        if not isinstance(block, Table) or not (note := study.judge_note(block.instrument)):
            return block
        return replace(block, notes=(*block.notes, note))

    return replace(section, blocks=tuple(add(block) for block in section.blocks))


def _preview(study: Study) -> str:
    total = len(study.missing) + len(study.records)
    names = list(dict.fromkeys(node.label for node in study.missing))
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    what = f": {', '.join(names[:6])}{more}" if names else ""
    return f"PREVIEW, no result: {len(study.missing)} of {total} measurements are missing{what}."


def _outside(*groups: Sequence[Block]) -> Section:
    """What the page shows and its key does not cover: two runs of one key differ here alone."""
    blocks = [block for group in groups for block in group]
    intro = Prose(
        "Times, cost and results that the plan does not use, as they were when this page was made; so is the commit "
        "that first held a rule, among the facts of a verdict. Nothing of it is in this report's key, in a mean or in "
        "a verdict."
    )
    return Section(
        "outside", "Cost, and what lies unused (outside the report's key)", (intro, *blocks) if blocks else ()
    )


def banners(study: Study, protocols: Mapping[str, Comparison], results: Sequence[ClaimResult] = ()) -> tuple[str, ...]:
    """What a reader must know before the first number."""
    found = []
    if study.is_toy:
        found.append("A toy model: this report shows that the plumbing works. Nothing in it is a finding.")
    for name in dict.fromkeys(study.scorers.values()):
        found.append(f"Alignment and coherence are scored by {name}, a rule-based scorer. No judge model was asked.")
    if study.missing:
        total = len(study.missing) + len(study.records)
        found.append(f"Incomplete: {len(study.missing)} of {total} measurements of the plan are missing.")
    if study.retracted:
        found.append(f"{len(study.retracted)} results of the plan are retracted; they are named below and in no mean.")
    if items := [r for r in results if r.on_all_items]:
        clean = min((r.clean_items[0] for r in items if r.clean_items), default=0)
        found.append(
            f"Test items stand in the training data of some conditions: {len(items)} verdicts are on clean items "
            f"({clean} or more) or confounded: {', '.join(r.id for r in items)}."
        )
    others = dict.fromkeys(why for r in results for why in r.confounded_by if " goes with the condition: " in why)
    found += [f"Confounded: {why}." for why in others]
    if waived := sorted({w.difference.field for c in protocols.values() for w in c.waived}):
        found.append(f"Cells of different protocols stand in one table under a waiver: {', '.join(waived)}.")
    return tuple(found)


def figures_of(study: Study) -> list[Figure | None]:
    """The first screen's figure, then one per metric; None where nothing is measured."""
    figures: list[Figure | None] = []
    rest: list[Figure | None] = []
    scorers = "".join(f" {study.judge_note(name)}" for name in study.scorers)
    for arm in study.arms:
        slug = arm or "main"
        named = f" Arm {slug}." if len(study.arms) > 1 else ""
        places = [*study.places_of("alignment"), *study.places_of("arc")]
        panels = {place: panel_of(study, arm, place) for place in places}
        first = [next((panels[p] for p in places if p.metric == metric), None) for metric in ("alignment", "arc")]
        shown = [panel for panel in first if panel is not None]
        caption = (
            f"Before and after EM: large points are checkpoints, small points EM runs. The axes do not start at "
            f"zero.{named}{scorers}"
        )
        figures.append(before_after(f"figure-before-after-{slug}", shown, study.conditions, caption) if shown else None)
        for place, panel in panels.items():
            n = " or ".join(map(str, sorted({s.n for s in panel.after.values()}))) or "0"
            caption = (
                f"After EM, every run as a point, mean and 95% interval (Student's t), n = {n}. The axis does not "
                f"start at zero.{named} {study.judge_note(place.instrument)}"
            ).strip()
            id = f"figure-after-{slug}-{place.instrument}-{place.metric}"
            rest.append(after_only(id, panel, study.conditions, caption))
    return [*(figures or [None]), *rest]


def _outliers(study: Study) -> list[Block]:
    """Per metric of the main arm, each condition's most extreme run."""
    found: list[Block] = []
    for place in study.places_of("alignment", "arc"):
        singles = [Single(e.cell, e.result, e.siblings, {}) for e in extremes(study, study.arms[0], place)]
        if singles:
            panel = panel_of(study, study.arms[0], place)
            note = study.judge_note(place.instrument)
            caption = f"Each condition's most extreme run against its siblings (dots). {note}".strip()
            id = f"figure-outliers-{place.instrument}-{place.metric}"
            found.append(outlier(id, panel.title, panel.axis, singles, caption))
    return found


# --- writing --------------------------------------------------------------------------------------------------------


def write_page(
    page: Page,
    results: Sequence[ClaimResult],
    out: Path,
    cells: Mapping[str, str] | None = None,
    sources: Collection[str] = (),
) -> None:
    """report.html, report.md, claims.json, the figures and the pages of cells; nothing if a link leads nowhere.

    Args:
        cells: pages of cells by path. sources: files of results that these may lead to.

    Raises:
        PageError: the report would not stand alone.
    """
    pages = {"report.html": render("page.html.j2", page=page), **(cells or {})}
    figures = {f"figures/{f.id}.{kind}": data for f in page.figures for kind, data in f.files.items()}
    check_pages(pages, [*FILES, *figures, *sources])
    for name, data in {**{n: html.encode() for n, html in pages.items()}, **figures}.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    (out / "report.md").write_text(render("page.md.j2", page=page), encoding="utf-8")
    (out / "claims.json").write_text(to_json(results))


def write(report: Report, out: Path, up: str = UP) -> None:
    """All files of a report. up: from the page of a cell there to results/."""
    cells = dict(pages_of(report.study, up))
    write_page(report.page, report.results, out, cells, sources_of(report.study, up))
    write_scores(report.study.numbers, out / "scores.csv")


# --- the stage ------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=json.loads, required=True, help="the whole config, as JSON")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--publish", action="store_true", help="copy the finished report to its stable paths")
    args = parser.parse_args(argv)
    try:
        matrix = Matrix(Config.from_dict(args.config), read_lock())
        if args.publish:
            from workflow.report.overview import publish

            publish(matrix)
            return 0
        node = matrix.node(*args.record.parts[-4:-1])
        parents = [Path(p.record) for p in node.parents]
        own_argv = [f"--config={json.dumps(args.config)}", f"--record={args.record}"]

        def run(job: Job) -> Result:
            return make(matrix, job)

        execute(MODULE, run, node.recipe, {}, parents, None, args.record, own_argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if (message := describe_os_error(error, args.record or "results")) is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    return 0


def make(matrix: Matrix, job: Job) -> Result:
    """Write all files of the report.

    Raises:
        ProtocolError: cells of one table do not share one protocol, and no waiver lets them.
        PageError: the page would not stand alone.
    """
    records = dict(zip(matrix.report.parents, (parent.record for parent in job.parents), strict=True))
    report = assemble(load_study(matrix, records))
    write(report, job.out)
    observed = {
        "rows": int((report.study.numbers["state"] == "used").sum()),
        "records": len(records),
        "retracted": len(report.study.retracted),
        "rules": {
            name: {"rule": o.rule, "commit": o.commit, "date": o.date, "before_data": o.before_data}
            for name, o in report.origins.items()
        },
        "protocols": report.protocols,
    }
    return Result(observed, {"verdicts": {result.id: result.verdict for result in report.results}})


if __name__ == "__main__":
    sys.exit(main())
