"""Verdicts: what each claim says once its template is filled from the data, and since when its rule has been fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from workflow.matrix import MEASURING
from workflow.report.blocks import DASH, Block, Cell, Fold, Section, table
from workflow.report.history import RuleOrigin
from workflow.report.study import SCORED, Study
from workflow.stats.claims import ClaimResult, evaluate_claim
from workflow.stats.claims_schema import Claim
from workflow.stats.claims_tests import Member
from workflow.stats.evidence import Evidence, from_scores
from workflow.stats.reference import SingleRun
from workflow.stats.render import p_range_text, range_text

TONES = {"supported": "supported", "null by equivalence": "supported", "refuted": "refuted"}


def evaluate(study: Study, singles: Sequence[SingleRun] = ()) -> list[ClaimResult]:
    """Every claim on the main arm; one that names no instrument is judged on the config's first that measures it."""
    frame = study.frame(study.arms[0])
    evidence = Evidence("no scores", {}) if frame is None else from_scores(frame, singles)
    return [evaluate_claim(_placed(claim, study), study.claims, evidence) for claim in study.claims.claims]


def _placed(claim: Claim, study: Study) -> Claim:
    places = study.places_of(claim.metric)
    if claim.instrument is not None or not places:
        return claim
    return claim.model_copy(update={"instrument": places[0].instrument})


def claims_section(results: Sequence[ClaimResult], origins: Mapping[str, RuleOrigin], notes: Sequence[str]) -> Section:
    """The sentences in a table, then what they rest on behind a fold."""
    rows, ids = [], []
    for result in results:
        origin = origins.get(result.id)
        ids.append(f"claim/{result.id}")
        n = ", ".join(sorted({str(n) for _, n in result.n_by_condition})) or DASH
        rows.append(
            (
                str(result.finding or DASH),
                Cell(
                    result.verdict, f"claim/{result.id}/tests", "the tests behind it", TONES.get(result.verdict, "open")
                ),
                result.sentence + (f" ({result.reason}.)" if _is_left_out(result) else ""),
                result.strength
                + (f" (put as {result.declared_strength})" if result.strength != result.declared_strength else ""),
                f"{n} {result.unit}{'' if n in ('1', DASH) or not result.unit else 's'}",
                result.label or DASH,
                origin.text if origin else "not looked up",
            )
        )
    header = (
        "finding",
        "verdict",
        "claim, filled from the data",
        "strength",
        "n per condition",
        "holds",
        "rule unchanged since commit",
    )
    return Section(
        "claims",
        "Verdicts",
        (
            table("verdicts", "Claims and their verdicts", header, rows, (0, 1, 2, 3, 4, 5, 6), notes, ids),
            Fold(
                "claims-tests",
                "The tests behind each verdict",
                tuple(_tests(result, origins, notes) for result in results),
            ),
        ),
    )


def _is_left_out(result: ClaimResult) -> bool:
    """Whether the reason why nothing could be tested is not in the sentence."""
    return result.verdict == "unverifiable" and result.reason not in result.sentence


def _tests(result: ClaimResult, origins: Mapping[str, RuleOrigin], more: Sequence[str]) -> Block:
    rows = [_member(m) for m in result.members] or [(DASH, result.verdict, *[DASH] * 5, result.reason)]
    header = ("comparison", "verdict", "estimate", "t", "p", "p adjusted", "Cohen's d, first − second", "reason")
    rests = ", ".join(result.rests_on[:3]) + (
        f" and {len(result.rests_on) - 3} more" if len(result.rests_on) > 3 else ""
    )
    n = ", ".join(f"{name} {n}" for name, n in result.n_by_condition)
    notes = (
        f"What was said: {result.said}." if result.said else "",
        f"n ({result.unit}s): {n}." if n else "",
        f"Rule{f' {origins[result.id].rule}' if result.id in origins else ''}: {result.rule}",
        f"Rests on: {rests}.",
        *(note for note in more if note.startswith(SCORED)),
    )
    return table(f"claim/{result.id}/tests", result.id, header, rows, (0, 1, 7), notes)


def _member(m: Member) -> tuple[str | Cell, ...]:
    name = f"{m.name} [{m.reading}]" if m.reading else m.name
    d = range_text(m.d) if m.d else DASH
    numbers = (
        range_text(m.estimate) if m.estimate else DASH,
        range_text(m.t) if m.t else DASH,
        p_range_text(m.p) if m.p else DASH,
        p_range_text(m.p_adjusted) if m.p_adjusted else DASH,
        d,
    )
    return (name, Cell(m.verdict, tone=TONES.get(m.verdict, "open")), *numbers, m.reason)


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
