"""The matrix: one table per metric, rates with both denominators, ARC clean and contaminated, the judge's outcomes."""

from collections.abc import Iterable

from workflow.fingerprint import Comparison
from workflow.report.blocks import (
    DASH,
    MISSING,
    NO_INTERVAL,
    Block,
    Cell,
    Cells,
    Section,
    count,
    group_anchor,
    prose,
    show,
    table,
)
from workflow.report.protocol import table_notes
from workflow.report.scores import HARNESS, RATES
from workflow.report.study import Place, Study
from workflow.stats.samples import ONE_CHECKPOINT, NotTestable, Sample
from workflow.stats.tests import change

HEADER = (
    "condition",
    "n present / planned",
    "unit of n",
    "mean after EM",
    "95% CI half-width",
    "SD between seeds",
    "mean before EM",
    "n before",
    "after − before",
    "95% CI half-width of the difference",
)
WHAT = {
    "arc": "ARC accuracy",
    "alignment": "Alignment",
    "coherence": "Coherence",
    "coherent": "coherent",
    "misaligned_of_all": "misaligned of all",
    "misaligned_of_coherent": "misaligned of coherent",
}


def lineage_cell(text: str, arm: str | None, phase: str, place: Place, condition: str = "", tone: str = "") -> Cell:
    """A number with the anchor of the values that it was computed from."""
    if text in (DASH, MISSING):
        return Cell(text, tone="missing" if text == MISSING else "")
    anchor = group_anchor(arm, phase, place.instrument, place.metric, condition)
    return Cell(text, anchor, f"lineage: {anchor.removeprefix('numbers/')}", tone)


def matrix_section(study: Study, protocols: dict[str, Comparison]) -> Section:
    """One table per arm and metric, then the rates."""
    blocks: list[Block] = []
    if study.missing:
        blocks.append(
            prose(
                f"{len(study.missing)} of the results that the plan wants are not there; they are marked ",
                Cell(MISSING, tone="missing"),
                ".",
                tone="warn",
            )
        )
    for arm in study.arms:
        for metric in ("alignment", "arc", "coherence"):
            for place in study.places_of(metric):
                blocks.append(_metric_table(study, arm, place, protocols))
    harness = [place for place in study.places if place.unit == HARNESS]
    blocks += [_metric_table(study, arm, place, protocols) for arm in study.arms for place in harness]
    for arm in study.arms:
        for instrument in dict.fromkeys(place.instrument for place in study.places_of(*RATES)):
            blocks.append(_rate_table(study, arm, instrument))
    return Section("matrix", "The matrix", tuple(blocks))


def title(study: Study, arm: str | None, place: Place) -> str:
    """`Alignment (demo_questions, points 0-100)`, with the arm where there are several."""
    named = f", arm {arm or 'main'}" if len(study.arms) > 1 else ""
    return f"{WHAT.get(place.metric, place.metric)} ({place.instrument}, {place.unit}{named})"


def _metric_table(study: Study, arm: str | None, place: Place, protocols: dict[str, Comparison]) -> Block:
    after, before = study.sample(arm, "post_em", place), study.sample(arm, "pre_em", place)
    rows: list[Cells] = []
    notes = [study.judge_note(place.instrument)]
    for name in study.conditions:
        post, pre = after.get(name), before.get(name)
        planned = study.planned(arm, "post_em", place.instrument, name)
        present = post.runs if post else 0
        tone = "missing" if present < planned else ""
        runs = lineage_cell(f"{present} / {planned}", arm, "post_em", place, name, tone)
        runs = runs if present else Cell(f"0 / {planned}", tone=tone)  # there are no numbers to link to
        unit = post.unit if post else DASH
        if post and post.n != present:
            unit = f"{post.unit}, n = {post.n}"
        rows.append((name, runs, unit, *_numbers(arm, place, name, post, pre)))
        notes += _notes(name, post, pre)
        if post and post.left_out:
            notes.append(f"{name}: left out are {post.left_out}.")
    notes += _contaminated(study, arm, place)
    notes += table_notes(study, protocols, place.instrument, arm)
    return table(
        f"matrix-{arm or 'main'}-{place.instrument}-{place.metric}",
        title(study, arm, place),
        HEADER,
        rows,
        (0, 2),
        notes,
    )


def _contaminated(study: Study, arm: str | None, place: Place) -> list[str]:
    """Which conditions trained on items of the test, as a note under their scores on all of it."""
    by_condition: dict[str, frozenset[str]] = {}
    unknown: dict[str, None] = {}
    for node, ids in study.contaminated.items():
        if node.cell is None or node.instrument != place.instrument or node.cell.arm not in (None, arm):
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


def _numbers(arm: str | None, place: Place, name: str, post: Sample | None, pre: Sample | None) -> Iterable[Cell]:
    def after(text: str) -> Cell:
        return lineage_cell(text, arm, "post_em", place, name)

    yield after(show(post.mean, place.unit) if post else MISSING)
    yield after(NO_INTERVAL if post and post.n == 1 else show(post.ci95_half_width if post else None, place.unit))
    yield after(NO_INTERVAL if post and post.n == 1 else show(post.sd if post else None, place.unit))
    yield lineage_cell(show(pre.mean, place.unit) if pre else MISSING, None, "pre_em", place, name)
    yield lineage_cell(str(pre.n) if pre else DASH, None, "pre_em", place, name)
    changes = _changes(post, pre)
    yield after(show(changes.mean if changes else None, place.unit, sign=True))
    yield after(NO_INTERVAL if post and post.n == 1 else show(changes.ci95_half_width if changes else None, place.unit))


def _changes(post: Sample | None, pre: Sample | None) -> Sample | None:
    """After minus before, paired by checkpoint; None where there are no pairs."""
    try:
        return change(post, pre) if post and pre else None
    except NotTestable:
        return None


def _notes(name: str, post: Sample | None, pre: Sample | None) -> Iterable[str]:
    if post and pre and _changes(post, pre) is None:
        yield f"{name}: no checkpoint of those after EM is the one before it, so no difference is given."
    if post:
        yield "Half-widths: Student t, n and unit as in the row."
        if post.n_pipeline_seeds == 1:
            yield f"Statements about a condition are {ONE_CHECKPOINT}."
    if post and pre and pre.n == 1:
        yield "After − before is paired by checkpoint: one checkpoint has one value before EM, taken as exact."


def _rate_table(study: Study, arm: str | None, instrument: str) -> Block:
    """Rates of single completions, summed over runs: numerator / denominator, with the bounds of what has no score."""
    header = (
        "condition",
        "phase",
        "runs",
        *(f"{WHAT[rate]} (n / of)" for rate in RATES),
        *(f"bounds: {WHAT[rate]}" for rate in RATES),
    )
    rows: list[Cells] = []
    for name in study.conditions:
        for phase in ("pre_em", "post_em"):
            chosen = {
                rate: [
                    r
                    for r in study.rows
                    if (r["instrument"], r["metric"], r["condition"], r["phase"]) == (instrument, rate, name, phase)
                    and (phase == "pre_em" or r["arm"] == arm)
                ]
                for rate in RATES
            }
            runs = len(chosen["misaligned_of_all"])
            if not runs:
                rows.append((name, phase, Cell(MISSING, tone="missing"), *[DASH] * (2 * len(RATES))))
                continue
            rates, bounds = [], []
            for rate, found in chosen.items():
                place = Place(instrument, rate, "fraction")
                top, bottom = sum(r["numerator"] for r in found), sum(r["denominator"] for r in found)
                text = f"{show(top / bottom, 'fraction')} ({count(top)} / {count(bottom)})" if bottom else DASH
                rates.append(lineage_cell(text, arm if phase == "post_em" else None, phase, place, name))
                ends = [(r["low"], r["high"]) for r in found if r["low"] is not None and r["high"] is not None]
                bounds.append(_bounds(ends))
            rows.append((name, phase, str(runs), *rates, *bounds))
    notes = (
        "Completions of all runs of a row are pooled in numerator and denominator; the replicates are the runs, "
        "so no interval is given here.",
        "misaligned: aligned below the threshold and coherent above it, for one completion; of coherent: of the "
        "completions with both scores that are coherent, which are selected after the treatment.",
        "bounds: mean over runs of the least and the most that completions without a score allow.",
        study.judge_note(instrument),
    )
    named = f", arm {arm or 'main'}" if len(study.arms) > 1 else ""
    return table(
        f"rates-{arm or 'main'}-{instrument}",
        f"Rates of completions ({instrument}{named})",
        header,
        rows,
        (0, 1),
        notes,
    )


def _bounds(ends: list[tuple[float, float]]) -> str:
    if not ends:
        return DASH
    if all(low == high for low, high in ends):
        return "all scored"
    low, high = (sum(end[i] for end in ends) / len(ends) for i in (0, 1))
    return f"{show(low, 'fraction')} to {show(high, 'fraction')}"
