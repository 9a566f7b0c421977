"""Verdicts: what each claim says once its template is filled from the data, and since when its rule has been fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from workflow.matrix import MEASURING
from workflow.report.blocks import DASH, Block, Cell, Fold, Section, table
from workflow.report.confounds import items_of, machines_of, refuse_equal_treatments
from workflow.report.history import RuleOrigin
from workflow.report.study import SCORED, Study
from workflow.stats.chance import MATRICES, false_support
from workflow.stats.claims import evaluate_claim
from workflow.stats.claims_schema import Claim, Claims
from workflow.stats.evidence import Evidence, SingleRun, from_scores
from workflow.stats.results import ClaimResult, Member
from workflow.stats.text import interval_text, number, p_range_text, range_text
from workflow.stats.verdicts import AGAINST, HOLDS

TONES = dict.fromkeys(HOLDS, "supported") | dict.fromkeys(AGAINST, "refuted")


def evidence_of(study: Study, singles: Sequence[SingleRun] = ()) -> Evidence:
    """The main arm's scores, with their items and machines."""
    arm = study.arms[0]
    frame = study.frame(arm)
    if frame is None:
        return Evidence("no scores", {})
    return from_scores(frame, singles, items=items_of(study, arm), machines=machines_of(study, arm))


def evaluate(study: Study, evidence: Evidence) -> list[ClaimResult]:
    """Every claim on the main arm; one that names no instrument is judged on the config's first that measures it.

    Raises:
        ConfigError: a claim compares conditions between which nothing differs.
    """
    refuse_equal_treatments(study)
    return [evaluate_claim(claim, study.claims, evidence) for claim in placed_claims(study).claims]


def placed_claims(study: Study) -> Claims:
    """The claims, each with its instrument."""
    return study.claims.model_copy(update={"claims": [_placed(claim, study) for claim in study.claims.claims]})


def _placed(claim: Claim, study: Study) -> Claim:
    places = study.places_of(claim.metric)
    if claim.instrument is not None or not places:
        return claim
    return claim.model_copy(update={"instrument": places[0].instrument})


def claims_section(results: Sequence[ClaimResult], origins: Mapping[str, RuleOrigin], notes: Sequence[str]) -> Section:
    """The sentences in a table, then what they rest on behind a fold."""
    rows = [_row(result, origins.get(result.id)) for result in results]
    ids = [f"claim/{result.id}" for result in results]
    header = (
        "finding",
        "verdict",
        "claim, filled from the data",
        "scope",
        "confounded by",
        "strength",
        "n per condition",
        "holds",
        "rule unchanged since commit",
    )
    tests = tuple(_tests(result, origins, notes) for result in results)
    blocks = (
        table("verdicts", "Claims and their verdicts", header, rows, tuple(range(9)), (*LEGEND, *notes), ids),
        Fold("claims-tests", "The tests behind each verdict", tests),
    )
    return Section("claims", "Verdicts", blocks)


LEGEND = (
    "Scope: what a verdict is about, these checkpoints or (from two pipeline seeds on) the conditions. Strength: 2 "
    "pipeline seeds preliminary, 3 or 4 moderate, 5 and more strong, if each contrast's own error agrees.",
    "Confounded: the verdict may be that of test items which some conditions trained on.",
)


def _row(result: ClaimResult, origin: RuleOrigin | None) -> tuple[str | Cell, ...]:
    n = ", ".join(sorted({str(n) for _, n in result.n_by_condition})) or DASH
    tone = TONES.get(result.verdict, "open")
    return (
        str(result.finding or DASH),
        Cell(result.verdict, f"claim/{result.id}/tests", "the tests behind it", tone),
        result.sentence,
        result.scope,
        "; ".join(result.confounded_by) or DASH,
        f"{result.strength} (put as {result.declared_strength})" + (", exploratory" if result.exploratory else ""),
        f"{n} {result.unit}{'' if n in ('1', DASH) or not result.unit else 's'}",
        result.label or DASH,
        origin.text if origin else "not looked up",
    )


def chance_note(claims: Claims, evidence: Evidence) -> str:
    """How often this design would support some claim by chance, by simulation."""
    share = false_support(claims, evidence)
    if share is None:
        return "No claim of a difference can be judged here, so none can be supported by chance."
    one = any(
        s.n_pipeline_seeds == 1 for w, cells in evidence.cells.items() if w[0] != "pre_em" for s in cells.values()
    )
    taken = ", checkpoints of a condition taken as alike" if one else ""
    return (
        f"Were there no effect at all, {share:.1%} of matrices of this design and spread would support some claim of a "
        f"difference ({MATRICES} seeded matrices{taken})."
    )


def _tests(result: ClaimResult, origins: Mapping[str, RuleOrigin], more: Sequence[str]) -> Block:
    rows = [_member(m) for m in result.members] or [(DASH, result.verdict, *[DASH] * 11, result.reason)]
    header = (
        "comparison",
        "verdict",
        "estimate",
        "interval that decided",
        "of",
        "t",
        "p",
        "p adjusted",
        "p that decided",
        "d, first − second",
        "its interval",
        "checkpoint SD that undoes it",
        "seed by seed",
        "reason",
    )
    rests = ", ".join(result.rests_on[:3]) + (
        f" and {len(result.rests_on) - 3} more" if len(result.rests_on) > 3 else ""
    )
    n = ", ".join(f"{name} {n}" for name, n in result.n_by_condition)
    methods = dict.fromkeys(m.method for m in result.members if m.method)
    standardisers = dict.fromkeys(m.standardiser for m in result.members if m.standardiser)
    notes = (
        f"What was said: {result.said}." if result.said else "",
        f"n ({result.unit}s): {n}." if n else "",
        f"Test: {', '.join(methods)}." if methods else "",
        f"d: over {', '.join(standardisers)}." if standardisers else "",
        f"Verdict on all items: {result.on_all_items}." if result.on_all_items else "",
        f"Verdict on the {result.clean_items[0]} of {result.clean_items[1]} clean items: {result.on_clean_items}."
        if result.on_clean_items and result.clean_items
        else "",
        *(
            f"{m.name}: 95% over new items of the kind {interval_text(*m.new_items)}; it decides nothing."
            for m in result.members
            if m.new_items
        ),
        *(f"{m.name}: the levels themselves differ by {range_text(m.level)}." for m in result.members if m.level),
        f"Rule{f' {origins[result.id].rule}' if result.id in origins else ''}: {result.rule}",
        f"Rests on: {rests}.",
        *(note for note in more if note.startswith(SCORED)),
    )
    return table(f"claim/{result.id}/tests", result.id, header, rows, (0, 1, 4, 12, 13), notes)


def _member(m: Member) -> tuple[str | Cell, ...]:
    decided = DASH
    if m.interval is not None and m.interval_level is not None:
        decided = f"{100 * m.interval_level:g}%: {interval_text(*m.interval)}"
    return (
        f"{m.name} [{m.reading}]" if m.reading else m.name,
        Cell(m.verdict, tone=TONES.get(m.verdict, "open")),
        range_text(m.estimate) if m.estimate else DASH,
        decided,
        m.decided_on or DASH,
        range_text(m.t) if m.t else DASH,
        *(p_range_text(p) if p else DASH for p in (m.p, m.p_adjusted, m.p_decided)),
        range_text(m.d) if m.d else DASH,
        interval_text(*m.d_interval) if m.d_interval else DASH,
        DASH if m.tipping_sd is None else number(m.tipping_sd),
        m.separate_verdict or DASH,
        m.reason,
    )


def study_notes(study: Study) -> list[str]:
    """What a reader of the verdicts must know about their data."""
    places = {metric: study.places_of(metric) for metric in ("alignment", "arc")}
    notes = [
        f"Claims about {metric} that name no instrument are judged on {found[0].instrument}, the first of {len(found)}."
        for metric, found in places.items()
        if len(found) > 1
    ]
    notes += [study.judge_note(name) for name in study.scorers]
    if len(study.arms) > 1:
        notes.append(f"Claims are judged on the arm {study.arms[0] or 'main'}.")
    return notes


def to_json(results: Sequence[ClaimResult]) -> list[dict[str, Any]]:
    """For programs: every field, ranges as value, low and high."""
    return [asdict(result) for result in results]


def first_start(study: Study) -> str | None:
    """When the oldest measurement of this report began, so that a rule can be called older or younger than its data."""
    starts = [r.provenance.get("start") for n, r in study.records.items() if n.stage in MEASURING]
    return min((s for s in starts if s), default=None)
