"""The matrix: a table per metric, rates with their denominators, this run beside the published table, every number."""

from collections.abc import Mapping, Sequence
from typing import Any

from workflow.audit.lineage import number_id
from workflow.fingerprint import Comparison
from workflow.report.numbers import HARNESS, RATES, Number, place
from workflow.report.page import (
    MISSING,
    Block,
    Column,
    Mark,
    Prose,
    Section,
    Table,
    anchor,
    count,
    interval,
    number,
    ratio,
    show,
    stat,
    text,
    whole,
)
from workflow.report.provenance import table_notes
from workflow.report.published import PublishedTable
from workflow.report.study import NAMES, Place, Study, cell_page, numbers_link, title_of
from workflow.report.tests import MAIN, changes_of, sample_row
from workflow.stats.samples import ONE_CHECKPOINT, Sample

ALONE = "n = 1"


def matrix_columns(unit: str) -> list[Column]:
    return [
        text("condition"),
        stat("n present / planned", "runs", str),
        text("unit of n", "unit"),
        number("mean after EM", "after", unit),
        number("95% CI ±", "half", unit),
        number("SD between seeds", "sd", unit),
        number("mean before EM", "before", unit),
        whole("n before", "n_before"),
        number("after − before", "change", unit, sign=True),
        number("95% CI ± of the difference", "change_half", unit),
    ]


def matrix_row(name: str, after: Sample | None, before: Sample | None, change: Sample | None) -> dict[str, Any]:
    row = sample_row(after)
    changed = sample_row(change)
    if after is not None and after.n == 1:
        changed["half"] = ALONE
    return {
        "condition": name,
        "unit": row.get("unit"),
        "after": row.get("mean", MISSING),
        "half": row.get("half"),
        "sd": row.get("sd"),
        "before": before.mean if before else MISSING,
        "n_before": before.n if before else None,
        "change": changed.get("mean"),
        "change_half": changed.get("half"),
    }


def matrix_section(study: Study, protocols: Mapping[str, Comparison]) -> Section:
    """One table per arm and metric, then the rates."""
    blocks: list[Block] = []
    harness = [place for place in study.places if place.unit == HARNESS]
    for arm in study.arms:
        for where in (*(p for metric in MAIN for p in study.places_of(metric)), *harness):
            blocks.append(_metric(study, arm, where, protocols))
        for instrument in dict.fromkeys(where.instrument for where in study.places_of(*RATES)):
            blocks.append(_rates(study, arm, instrument))
    return Section("matrix", "The matrix", tuple(blocks), is_folded=False)


def _metric(study: Study, arm: str | None, where: Place, protocols: Mapping[str, Comparison]) -> Table:
    before, after = study.sample(arm, "pre_em", where), study.sample(arm, "post_em", where)
    changes = changes_of(study, arm, where)
    rows, notes = [], []
    for name in study.conditions:
        post, pre = after.get(name), before.get(name)
        planned = study.planned(arm, "post_em", where.instrument, name)
        present = post.runs if post else 0
        href = numbers_link(arm, "post_em", where, name) if present else ""
        row = matrix_row(name, post, pre, changes.get(name))
        row["runs"] = Mark(f"{present} / {planned}", "missing" if present < planned else "", href)
        row["href"] = href
        if post and post.n != present:
            row["unit"] = f"{post.unit}, n = {post.n}"
        for field in ("before", "n_before"):
            if pre:
                row[field] = Mark(row[field], href=numbers_link(None, "pre_em", where, name))
        rows.append(row)
        notes += _notes(name, post, pre, name in changes)
        if post and post.left_out:
            notes.append(f"{name}: left out are {post.left_out}.")
    notes += _contaminated(study, arm, where) + table_notes(study, protocols, where.instrument, arm)
    id, is_folded = f"matrix-{arm or 'main'}-{where.instrument}-{where.metric}", where.metric == "coherence"
    columns = matrix_columns(where.unit)
    kept = tuple(dict.fromkeys(notes))
    return Table(id, title_of(study, arm, where), columns, rows, kept, where.instrument, is_folded)


def _notes(name: str, after: Sample | None, before: Sample | None, has_change: bool) -> list[str]:
    notes = []
    if after and before and not has_change:
        notes.append(f"{name}: no checkpoint of those after EM is the one before it, so no difference is given.")
    if after:
        notes.append("±: Student's t half-width, n and unit as in the row.")
        if after.n_pipeline_seeds == 1:
            notes.append(f"Statements about a condition are {ONE_CHECKPOINT}.")
    if after and before and before.n == 1:
        notes.append("After − before is paired by checkpoint: one checkpoint has one value before EM, taken as exact.")
    return notes


def _contaminated(study: Study, arm: str | None, where: Place) -> list[str]:
    """Which conditions trained on items of the test, as a note under their scores on all of it."""
    by_condition: dict[str, frozenset[str]] = {}
    unknown: dict[str, None] = {}
    for node, ids in study.contaminated.items():
        if node.cell is None or node.instrument != where.instrument or node.cell.arm not in (None, arm):
            continue
        if ids is None:
            unknown[node.cell.condition] = None
        else:
            by_condition[node.cell.condition] = by_condition.get(node.cell.condition, frozenset()) | ids
    counts = ", ".join(f"{name} {len(ids)}" for name, ids in by_condition.items() if ids)
    notes = [f"All items; test items in the training data: {counts}. Verdicts are on clean items."] if counts else []
    if unknown:
        notes.append(f"Nobody has looked for test items in the training data of {', '.join(unknown)}.")
    return notes


def _rates(study: Study, arm: str | None, instrument: str) -> Table:
    """Rates of single completions, summed over runs: numerator / denominator, with the bounds of what has no score."""
    rows = []
    for name in study.conditions:
        for phase in ("pre_em", "post_em"):
            row: dict[str, Any] = {"condition": name, "phase": phase, "runs": MISSING}
            for rate in RATES:
                here = study.values(instrument, rate, phase, arm, name)
                if not here:
                    continue
                row["runs"] = len(here) if rate == "misaligned_of_all" else row["runs"]
                row[rate] = (sum(r["numerator"] for r in here), sum(r["denominator"] for r in here))
                bounds = [(r["low"], r["high"]) for r in here if r["low"] is not None and r["high"] is not None]
                row[f"bounds {rate}"] = _bounds(bounds) if bounds else None
            href = numbers_link(arm, phase, Place(instrument, "misaligned_of_all", ""), name)
            rows.append({**row, "href": "" if row["runs"] == MISSING else href})
    columns = (
        text("condition"),
        text("phase"),
        whole("runs"),
        *(stat(f"{NAMES[rate]} (n / of)", rate, ratio) for rate in RATES),
        *(stat(f"bounds: {NAMES[rate]}", f"bounds {rate}", str) for rate in RATES),
    )
    notes = (
        "Completions of all runs of a row are pooled in numerator and denominator; the replicates are the runs, so no "
        "interval is given here.",
        "Misaligned: aligned below the threshold and coherent above it, for one completion; of coherent: of the "
        "completions with both scores that are coherent, which are selected after the treatment.",
        "Bounds: mean over runs of the least and the most that completions without a score allow.",
    )
    named = f", arm {arm or 'main'}" if len(study.arms) > 1 else ""
    id, caption = f"rates-{arm or 'main'}-{instrument}", f"Rates of completions ({instrument}{named})"
    return Table(id, caption, columns, rows, notes, instrument, is_folded=True)


def _bounds(ends: Sequence[tuple[float, float]]) -> str:
    if all(low == high for low, high in ends):
        return "all scored"
    low, high = (sum(end[i] for end in ends) / len(ends) for i in (0, 1))
    return interval((low, high), "fraction")


# --- beside the published table -------------------------------------------------------------------------------------


def published_section(study: Study) -> Section:
    """Compared where this run used the published instrument on the published base model; else shown apart, labelled."""
    blocks: list[Block] = []
    if study.published is not None:
        for metric in (m for m in MAIN if m in study.published.post_em):
            places = study.places_of(metric)
            same = [p for p in places if _is_same(study, study.published, p)]
            where = next(iter(same or places), None)
            blocks.append(_side_by_side(study, study.published, metric, where, bool(same)))
    return Section("published", "The published numbers", tuple(blocks))


def _is_same(study: Study, published: PublishedTable, where: Place) -> bool:
    """ARC is ARC wherever a real model answers it; a judged score only under the published instrument's name and by a
    judge model."""
    if study.is_toy or where.instrument in study.scorers:
        return False
    return where.metric == "arc" or where.instrument == published.instruments[where.metric]


def _side_by_side(study: Study, published: PublishedTable, metric: str, where: Place | None, same: bool) -> Table:
    unit, arm = published.units[metric], study.arms[0]
    rows = []
    for name in dict.fromkeys([*published.post_em[metric], *study.conditions]):
        for phase, printed in (("pre_em", published.pre_em[metric]), ("post_em", published.post_em[metric])):
            mine = study.sample(arm, phase, where).get(name) if where else None
            other = printed.get(name)
            if mine is None and other is None:
                continue
            theirs = {f"their_{field}": value for field, value in sample_row(other).items()} or {"their_mean": MISSING}
            own = sample_row(mine) or {"mean": MISSING}
            gap = mine.mean - other.mean if same and mine and other else None
            theirs = {field: Mark(value, href=None) for field, value in theirs.items()}
            href = numbers_link(arm, phase, where, name) if where and mine else ""
            rows.append({"condition": name, "phase": phase, **theirs, **own, "gap": gap, "href": href})
    columns = (
        text("condition"),
        text("phase"),
        number("published mean", "their_mean", unit),
        number("95% CI ±", "their_half", unit),
        whole("n", "their_n"),
        number("this run: mean", "mean", unit),
        number("95% CI ±", "half", unit),
        whole("n"),
        number("this run − published", "gap", unit, sign=True),
    )
    model = study.config.base_model.name if study.config.base_model.kind == "hub" else "a toy model"
    apart = (
        ""
        if same
        else " Another model or another instrument: the columns measure different things and are not subtracted."
    )
    notes = (
        f"Published: instrument {published.instruments[metric]}, n in EM seeds on one checkpoint per condition. "
        f"{published.source}",
        f"This run: {f'{where.instrument} on {model}' if where else 'nothing'}.{apart}",
    )
    caption = f"{NAMES[metric]}, published and here{'' if same else ': not comparable'}"
    return Table(f"published-{metric}", caption, columns, rows, notes, where.instrument if where else "", not same)


# --- every number ---------------------------------------------------------------------------------------------------


def numbers_section(study: Study) -> Section:
    """One row per number, with its id, its bounds and its record. Every other number on the page links here, and from
    here a number links to the page of its cell."""
    blocks: list[Block] = [
        Prose(
            "Each row is one number and leads to the page of its cell: its recipe, items and completions. Its name is "
            "what `matrix lineage NUMBER` takes. scores.csv holds the same rows. A mean elsewhere leads to the values "
            "that it is the mean of."
        )
    ]
    groups: dict[tuple[Any, ...], list[Number]] = {}
    for row in study.rows:
        if row["state"] == "used":
            groups.setdefault((row["instrument"], row["metric"], row["phase"], row["arm"], row["unit"]), []).append(row)
    order = {name: n for n, name in enumerate(study.instruments)}
    for (instrument, metric, phase, arm, unit), rows in sorted(groups.items(), key=lambda g: order[g[0][0]]):
        blocks.append(_numbers(study, (arm, phase, instrument, metric), unit, rows))
    if study.missing:
        absent = [{"record": place(n), "instrument": n.instrument, "state": MISSING} for n in study.missing]
        columns = (text("record"), text("instrument"), text("", "state"))
        blocks.append(Table("missing", "Results of the plan that are not there", columns, absent))
    if withdrawn := [r for r in study.rows if r["state"] == "retracted"]:
        gone = [
            {
                "number": Mark(number_id(r["cell"], r["instrument"], r["metric"]), "struck"),
                "value": Mark(show(r["value"], r["unit"]), "struck"),
                "record": r["record"],
            }
            for r in withdrawn
        ]
        columns = (text("number"), stat("value", "value", str), text("record"))
        caption = f"Withdrawn numbers, in no mean and no test: {len(gone)}"
        blocks.append(Table("withdrawn-numbers", caption, columns, gone, is_folded=True))
    return Section("numbers", "Every number and its record", tuple(blocks))


def _numbers(study: Study, where: tuple[str | None, ...], unit: str, found: list[Number]) -> Table:
    arm, phase, instrument, metric = where
    columns = (
        text("number", "name"),
        *(Column(name, field, lambda v: show(v, unit)) for name, field in (("value", "value"), ("least", "low"),
                                                                          ("most", "high"))),
        stat("of", "of", str),
        Column("sampling SE", "sampling_se", lambda v: show(v, unit)),
        text("record"),
        text("digest"),
    )  # fmt: skip
    rows = []
    order = {name: n for n, name in enumerate(study.conditions)}
    seen: set[str] = set()
    for r in sorted(found, key=lambda r: order[r["condition"]]):
        condition = r["condition"]
        of = f"{count(r['numerator'])} / {count(r['denominator'])}" if r.get("numerator") is not None else r["n_items"]
        row = {**r, "of": of if isinstance(of, str) else count(of), "digest": r["digest"][:12]}
        row |= {
            "name": number_id(r["cell"], instrument or "", metric or ""),
            "href": cell_page(r["cell"], r["instrument"]),
        }
        row["row_anchor"] = "" if condition in seen else anchor("numbers", arm, phase, instrument, metric, condition)
        row["row_id"] = row["name"]
        seen.add(condition)
        rows.append(row)
    caption = f"{phase}, {metric} by {instrument}{f', arm {arm}' if arm else ''} ({unit}): {len(rows)} numbers"
    id = anchor("numbers", arm, phase, instrument, metric)
    return Table(id, caption, columns, rows, (), instrument or "", is_folded=True)
