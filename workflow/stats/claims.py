"""Claims as code: the verdict and the sentence of each claim come from the evidence, never from a hand.

Once "4 of 4 cells beat control" stood over a table that said 3 of 4. Here the sentence is a template, and what fills it
is what was computed; the same rules run on raw per-seed values and on a published table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workflow.stats import claims_schema as schema
from workflow.stats import verdicts
from workflow.stats.claims_rules import (
    Case,
    case_of,
    conditions_of,
    member,
    overlap_members,
    replicate_member,
)
from workflow.stats.claims_schema import Claim, Claims
from workflow.stats.claims_text import sentence_of
from workflow.stats.confounding import aliasing, contamination_of, held_against_items
from workflow.stats.evidence import Evidence, Missing
from workflow.stats.families import Family, family_of
from workflow.stats.results import ClaimResult, Member
from workflow.stats.rounding import UNDETERMINED
from workflow.stats.samples import NotTestable, label


def evaluate_claims(claims: Claims, evidence: Evidence) -> list[ClaimResult]:
    """Every claim, in the order of the file."""
    return [evaluate_claim(claim, claims, evidence) for claim in claims.claims]


@dataclass(frozen=True)
class _Judged:
    """A claim judged on one set of samples."""

    case: Case | None
    verdict: str
    reason: str
    members: tuple[Member, ...] = ()


def evaluate_claim(claim: Claim, claims: Claims, evidence: Evidence) -> ClaimResult:
    """One claim; what cannot be tested comes out as unverifiable, with the reason."""
    names = conditions_of(claim, claims)
    judged = _judge(claim, claims, evidence)
    confounded = aliasing(names, evidence)
    on_all = on_clean = ""
    clean: tuple[int, int] | None = None
    contamination = contamination_of(claim, claims, evidence, judged.case.where) if judged.case else None
    if contamination is not None and not judged.members:
        confounded = [*contamination.reasons, *confounded]
    elif contamination is not None and not contamination.is_certain:
        confounded, clean = [*contamination.reasons, *confounded], contamination.clean
    elif contamination is not None:
        on_all, clean = judged.verdict, contamination.clean
        if contamination.evidence is not None:
            judged = _judge(claim, claims, contamination.evidence)
            on_clean = judged.verdict
        members, reasons = held_against_items(claim, judged.members, contamination)
        judged = replace(judged, members=members, verdict="confounded" if reasons else judged.verdict)
        confounded = [*reasons, *confounded]
    cells = judged.case.cells if judged.case is not None and judged.members else {}
    seeds = min((s.n_pipeline_seeds for s in cells.values()), default=0)
    agrees = all(m.separate_verdict in (None, m.verdict) for m in judged.members)
    decided = judged.verdict not in ("unverifiable", "confounded")
    result = ClaimResult(
        id=claim.id,
        finding=claim.finding,
        said=claim.said,
        metric=claim.metric,
        phase=claim.phase,
        measure=claim.measure,
        verdict=judged.verdict,
        scope="conditions" if seeds > 1 else "checkpoints",
        confounded_by=tuple(confounded),
        strength=verdicts.strength_of(seeds, agrees) if decided else "none",
        declared_strength=claim.strength,
        exploratory=claim.metric not in claims.primary,
        reason=judged.reason,
        sentence="",
        label=label(*cells.values()) if cells else "",
        unit=next(iter(cells.values())).unit if cells else "",
        n_by_condition=tuple((name, cell.n) for name, cell in cells.items()),
        n_pipeline_seeds=seeds,
        tipping_sd=_tipping(judged) if seeds == 1 and decided else None,
        on_all_items=on_all,
        on_clean_items=on_clean,
        clean_items=clean,
        members=judged.members,
        rule=claim.rule.model_dump_json(exclude_none=True),
        rests_on=evidence.rests_on(judged.case.where, names) if judged.case else (evidence.source,),
    )
    levels = judged.case.levels if judged.case is not None and judged.members else {}
    return replace(result, sentence=sentence_of(claim, result, cells, levels))


def _judge(claim: Claim, claims: Claims, evidence: Evidence) -> _Judged:
    case = None
    try:
        case = case_of(claim, claims, evidence)
        members = _members(case)
    except (Missing, NotTestable) as problem:
        return _Judged(case, "unverifiable", str(problem))
    rule = claim.rule
    if isinstance(rule, schema.Overlap):
        verdict, reason = by_reading(members)
    elif isinstance(rule, schema.OnlyPairs):
        verdict, reason = _only(rule, members)
    else:
        verdict, reason = aggregate(members, isinstance(rule, schema.Equivalence))
    return _Judged(case, verdict, reason, tuple(members))


def _members(case: Case) -> list[Member]:
    """All of k need no correction to hold together, and each needs it to be held against the claim. The interval that
    shows equivalence is never corrected, the one that shows a difference beside it always."""
    rule = case.claim.rule
    if isinstance(rule, schema.Overlap):
        return overlap_members(case, rule)
    if isinstance(rule, schema.Replicate):
        return [replicate_member(case, rule)]
    family = family_of(case)
    if len(case.comparisons) > 1 and not isinstance(rule, schema.OnlyPairs | schema.Equivalence):
        uncorrected = _at(case, family, [rule.alpha])
        if all(m.verdict == "supported" for m in uncorrected):
            return uncorrected
    return _at(case, family, None)


def _at(case: Case, family: Family, alphas: Sequence[float] | None) -> list[Member]:
    return [
        member(case, name, alphas or family.levels_of(name), family.adjusted(name), alphas is not None)
        for name in case.comparisons
    ]


# --- many comparisons, one verdict ------------------------------------------------------------------------------------


def _holds(equivalence: bool) -> tuple[str, ...]:
    return ("equivalent", "equivalent and different") if equivalence else ("supported",)


def aggregate(members: Sequence[Member], equivalence: bool = False) -> tuple[str, str]:
    """A claim about all of its comparisons: one that is held against it refutes it, and is named with what it shows."""
    if len(members) == 1:
        return members[0].verdict, members[0].reason
    holds = _holds(equivalence)
    if all(m.verdict in holds for m in members):
        verdict = next((word for word in reversed(holds) if any(m.verdict == word for m in members)), holds[0])
        return verdict, ""
    against = [
        m for m in members if m.verdict in verdicts.AGAINST or (m.verdict.startswith("equiv") and not equivalence)
    ]
    if against:
        return "refuted", "; ".join(_member_and_verdict(m) for m in against)
    for verdict in ("undetermined", UNDETERMINED, "difference shown, size not"):
        if left := [m for m in members if m.verdict == verdict]:
            return verdict, "; ".join(_member_and_verdict(m) for m in left)
    raise AssertionError(f"no verdict of {[m.verdict for m in members]}")


def _member_and_verdict(m: Member) -> str:
    return f"{m.name}: {m.verdict}" + (f", {m.reason}" if m.reason and m.verdict != UNDETERMINED else "")


def by_reading(members: Sequence[Member]) -> tuple[str, str]:
    """Overlap: one verdict per reading; where they differ, the claim is conditional on what its interval means."""
    parted = {m.reading: [n for n in members if n.reading == m.reading] for m in members}
    words_, parts = [], []
    for reading, own in parted.items():
        apart = sum(1 for m in own if m.estimate is not None and m.estimate.value > 1e-9)
        words_.append(aggregate(own)[0])
        parts.append(f"{reading.upper()}: {words_[-1]}, {apart} of {len(own)} pairs apart")
    return words_[0] if len(set(words_)) == 1 else "conditional", "; ".join(parts)


def _only(rule: schema.OnlyPairs, members: Sequence[Member]) -> tuple[str, str]:
    """The named pairs differ and all others are equivalent; where the others are merely not shown to differ, the
    difference was detected there and nowhere else, which is less."""
    named = {frozenset(pair) for pair in rule.pairs}
    inside = [m for m in members if frozenset(m.name.split(" - ")) in named]
    others = [m for m in members if m not in inside]
    if too := [m.name for m in others if m.verdict == "supported"]:
        return "refuted", f"so do {', '.join(too)}"
    if alike := [m.name for m in inside if m.verdict in ("equivalent", "equivalent and different")]:
        return "refuted", f"equivalent: {', '.join(alike)}"
    if vague := [m.name for m in members if m.verdict == UNDETERMINED]:
        return UNDETERMINED, f"{', '.join(vague)}: {UNDETERMINED}"
    if not_shown := [m.name for m in inside if m.verdict != "supported"]:
        return "undetermined", f"not shown for {', '.join(not_shown)}"
    if unlike := [m.name for m in others if not m.verdict.startswith("equivalent")]:
        return "detected only in the named pairs", f"equivalence not shown for {', '.join(unlike)}"
    return "supported", ""


def _tipping(judged: _Judged) -> float | None:
    """The least that undoes a verdict that rests on all members; the most where one that is against it is enough."""
    deciding = [m for m in judged.members if m.verdict in verdicts.AGAINST or m.verdict.startswith("equiv")]
    if judged.verdict != "refuted":
        deciding = list(judged.members)
    known = [m.tipping_sd for m in deciding if m.tipping_sd is not None]
    if not known or (judged.verdict != "refuted" and len(known) < len(judged.members)):
        return None
    return max(known) if judged.verdict == "refuted" else min(known)
