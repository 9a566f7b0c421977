"""This run beside the published table: only where the instrument is the same, or under a label that says it is not."""

from collections.abc import Mapping

from workflow.report.blocks import DASH, MISSING, Block, Cell, Cells, Fold, Section, Table, show, table
from workflow.report.comparisons import MAIN
from workflow.report.published_table import PublishedTable
from workflow.report.study import Place, Study
from workflow.report.tables import WHAT, lineage_cell
from workflow.stats.samples import Sample


def published_section(study: Study) -> Section:
    """Compared where this run used the published instrument on the published base model; else shown apart, labelled."""
    published = study.published
    if published is None:
        return Section("published", "The published numbers", ())
    blocks: list[Block] = []
    for metric in (m for m in MAIN if m in published.post_em):
        places = study.places_of(metric)
        same = [p for p in places if _is_same(study, published, p)]
        place = next(iter(same or places), None)
        made = _side_by_side(study, published, metric, place, bool(same))
        blocks.append(made if same else Fold(f"fold-{made.id}", f"{made.caption}: not comparable", (made,)))
    return Section("published", "The published numbers", tuple(blocks))


def _is_same(study: Study, published: PublishedTable, place: Place) -> bool:
    """ARC is ARC wherever a real model answers it; a judged score only under the published instrument's name and by a
    judge model."""
    if study.is_toy or place.instrument in study.scorers:
        return False
    return place.metric == "arc" or place.instrument == published.instruments[place.metric]


def _side_by_side(study: Study, published: PublishedTable, metric: str, place: Place | None, same: bool) -> Table:
    unit = published.units[metric]
    arm = study.arms[0]
    own = {phase: study.sample(arm, phase, place) if place else {} for phase in ("pre_em", "post_em")}
    theirs: Mapping[str, Mapping[str, Sample]] = {
        "pre_em": published.pre_em[metric],
        "post_em": published.post_em[metric],
    }
    rows: list[Cells] = []
    for name in dict.fromkeys([*published.post_em[metric], *study.conditions]):
        for phase in ("pre_em", "post_em"):
            mine, other = own[phase].get(name), theirs[phase].get(name)
            if mine is None and other is None:
                continue
            cells = [
                lineage_cell(text, arm if phase == "post_em" else None, phase, place, name) if place else Cell(text)
                for text in _told(mine, unit)
            ]
            gap = show(mine.mean - other.mean, unit, sign=True) if same and mine and other else DASH
            rows.append([name, phase, *_told(other, unit), *cells, gap])
    header = (
        "condition",
        "phase",
        "published mean",
        "95% CI half-width",
        "n",
        "this run: mean",
        "95% CI half-width",
        "n",
        "this run − published",
    )
    here = (
        f"{place.instrument} on "
        f"{study.config.base_model.name if study.config.base_model.kind == 'hub' else 'a toy model'}"
        if place
        else "nothing"
    )
    notes = (
        f"Published: instrument {published.instruments[metric]}, n in EM seeds on one checkpoint per condition. "
        f"{published.source}",
        f"This run: {here}. "
        + (
            ""
            if same
            else "Another model or another instrument: the two columns measure different things and are not subtracted."
        ),
        study.judge_note(place.instrument) if place else "",
    )
    return table(f"published-{metric}", f"{WHAT[metric]}, published and here", header, rows, (0, 1), notes)


def _told(summary: Sample | None, unit: str) -> list[str]:
    if summary is None:
        return [MISSING, DASH, DASH]
    half = summary.ci95_half_width
    return [show(summary.mean, unit), f"n = {summary.n}" if half is None else show(half, unit), str(summary.n)]
