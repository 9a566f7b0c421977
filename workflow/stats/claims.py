"""Claims as code: the verdict and the sentence of each claim come from the evidence, never from a hand.

Once "4 of 4 cells beat control" stood over a table that said 3 of 4. Here the sentence is a template, and what fills it
is what was computed; the same rules run on raw per-seed values and on a published table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workflow.stats import claims_schema as schema
from workflow.stats import verdicts
from workflow.stats.claims_rules import Case, case_of, family_of, member, overlap_members, replicate_member
from workflow.stats.claims_schema import Claim, Claims
from workflow.stats.claims_text import sentence_of
from workflow.stats.confounding import aliasing, contamination_of, held_against_items
from workflow.stats.evidence import Evidence, Missing
from workflow.stats.results import ClaimResult, Member
from workflow.stats.rounding import UNDETERMINED
from workflow.stats.samples import NotTestable, Sample, label


def evaluate_claims(claims: Claims, evidence: Evidence) -> list[ClaimResult]:
    """Every claim, in the order of the file."""
    return [evaluate_claim(claim, claims, evidence) for claim in claims.claims]


@dataclass(frozen=True)
class Judged:
    """A claim judged on one set of samples. case: None where the evidence lacks them; the others as in ClaimResult."""

    case: Case | None
    verdict: str
    reason: str
    members: tuple[Member, ...] = ()
    confounded_by: tuple[str, ...] = ()
    on_all_items: str = ""
    on_clean_items: str = ""
    clean_items: tuple[int, int] | None = None

    @property
    def cells(self) -> dict[str, Sample]:
        """What was tested."""
        return self.case.cells if self.case and self.members else {}


def evaluate_claim(claim: Claim, claims: Claims, evidence: Evidence) -> ClaimResult:
    """One claim; what cannot be tested comes out as unverifiable, with the reason."""
    judged = _on_clean_items(_judge(claim, claims, evidence))
    names, cells = claims.conditions(claim), judged.cells
    seeds = min((s.n_pipeline_seeds for s in cells.values()), default=0)
    agrees = all(m.separate_verdict in (None, m.verdict) for m in judged.members)
    is_decided = judged.verdict not in ("unverifiable", "confounded")
    result = ClaimResult(
        **claim.model_dump(include={"id", "finding", "said", "metric", "phase", "measure"}),
        verdict=judged.verdict,
        scope="conditions" if seeds > 1 else "checkpoints",
        confounded_by=(*judged.confounded_by, *aliasing(names, evidence)),
        strength=verdicts.strength_of(seeds, agrees) if is_decided else "none",
        declared_strength=claim.strength,
        exploratory=claim.metric not in claims.primary,
        reason=judged.reason,
        sentence="",
        label=label(*cells.values()) if cells else "",
        unit=next(iter(cells.values())).unit if cells else "",
        n_by_condition=tuple((name, cell.n) for name, cell in cells.items()),
        n_pipeline_seeds=seeds,
        tipping_sd=_tipping(judged) if seeds == 1 and is_decided else None,
        on_all_items=judged.on_all_items,
        on_clean_items=judged.on_clean_items,
        clean_items=judged.clean_items,
        members=judged.members,
        rule=claim.rule.model_dump_json(exclude_none=True),
        rests_on=evidence.rests_on(judged.case.where, names) if judged.case else (evidence.source,),
    )
    levels = judged.case.levels if judged.case and cells else {}
    return replace(result, sentence=sentence_of(claim, result, cells, levels))


def _on_clean_items(judged: Judged) -> Judged:
    """Where test items are in the training data of a condition, the verdict is that on clean items alone."""
    case = judged.case
    contamination = contamination_of(case) if case else None
    if case is None or contamination is None:
        return judged
    if not judged.members or not contamination.is_certain:
        clean_items = contamination.clean_items if judged.members else None
        return replace(judged, confounded_by=contamination.reasons, clean_items=clean_items)
    on_clean, clean_items = judged, contamination.clean_items
    if clean_items and clean_items[0] > 1:
        names = case.claims.conditions(case.claim)
        on_clean = _judge(case.claim, case.claims, case.evidence.on_clean_items(case.where, names))
    members, reasons = held_against_items(case, on_clean.members, contamination)
    return replace(
        on_clean,
        verdict="confounded" if reasons else on_clean.verdict,
        members=members,
        confounded_by=reasons,
        on_all_items=judged.verdict,
        on_clean_items="" if on_clean is judged else on_clean.verdict,
        clean_items=clean_items,
    )


def _judge(claim: Claim, claims: Claims, evidence: Evidence) -> Judged:
    case = None
    try:
        case = case_of(claim, claims, evidence)
        members = _members(case)
    except (Missing, NotTestable) as problem:
        return Judged(case, "unverifiable", str(problem))
    match claim.rule:
        case schema.Overlap():
            verdict, reason = by_reading(members)
        case schema.OnlyPairs(pairs=pairs):
            verdict, reason = _only(pairs, members)
        case rule:
            verdict, reason = aggregate(members, rule.test == "equivalence")
    return Judged(case, verdict, reason, tuple(members))


def _members(case: Case) -> list[Member]:
    """All of k need no correction to hold together, and each needs it to be held against the claim. The interval that
    shows equivalence is never corrected, the one that shows a difference beside it always."""
    rule = case.claim.rule
    if isinstance(rule, schema.Overlap):
        return overlap_members(case, rule)
    if isinstance(rule, schema.Replicate):
        return [replicate_member(case, rule)]
    family = family_of(case)
    adjusted = {name: family.adjusted(name) for name in case.comparisons}
    if len(case.comparisons) > 1 and not isinstance(rule, schema.OnlyPairs | schema.Equivalence):
        uncorrected = [member(case, name, [rule.alpha], p, all_hold=True) for name, p in adjusted.items()]
        if all(m.verdict == "supported" for m in uncorrected):
            return uncorrected
    return [member(case, name, family.levels_of(name), p, all_hold=False) for name, p in adjusted.items()]


# --- many comparisons, one verdict ------------------------------------------------------------------------------------


def aggregate(members: Sequence[Member], is_equivalence: bool = False) -> tuple[str, str]:
    """A claim about all of its comparisons: one that is held against it refutes it, and is named with what it shows."""
    if len(members) == 1:
        return members[0].verdict, members[0].reason
    holds = verdicts.EQUIVALENT if is_equivalence else ("supported",)
    if all(m.verdict in holds for m in members):
        return max((m.verdict for m in members), key=holds.index), ""
    against = verdicts.AGAINST if is_equivalence else (*verdicts.AGAINST, *verdicts.EQUIVALENT)
    for verdict, shown in (
        ("refuted", against),
        *((word, (word,)) for word in ("undetermined", UNDETERMINED, "difference shown, size not")),
    ):
        if named := [_member_and_verdict(m) for m in members if m.verdict in shown]:
            return verdict, "; ".join(named)
    raise AssertionError(f"no verdict of {[m.verdict for m in members]}")


def _member_and_verdict(m: Member) -> str:
    return f"{m.name}: {m.verdict}" + (f", {m.reason}" if m.reason and m.verdict != UNDETERMINED else "")


def by_reading(members: Sequence[Member]) -> tuple[str, str]:
    """Overlap: one verdict per reading; where they differ, the claim is conditional on what its interval means."""
    words, parts = [], []
    for reading in dict.fromkeys(m.reading for m in members):
        own = [m for m in members if m.reading == reading]
        words.append(aggregate(own)[0])
        apart = sum(m.estimate.value > 1e-9 for m in own)
        parts.append(f"{reading.upper()}: {words[-1]}, {apart} of {len(own)} pairs apart")
    return words[0] if len(set(words)) == 1 else "conditional", "; ".join(parts)


def _only(pairs: Sequence[tuple[str, str]], members: Sequence[Member]) -> tuple[str, str]:
    """The named pairs differ and all others are equivalent; where the others are merely not shown to differ, the
    difference was detected there and nowhere else, which is less."""
    named = [set(pair) for pair in pairs]
    inside = [m for m in members if set(m.name.split(" - ")) in named]
    others = [m for m in members if m not in inside]
    equivalent = verdicts.EQUIVALENT
    for verdict, why, shown in (
        ("refuted", "so do {}", [m for m in others if m.verdict == "supported"]),
        ("refuted", "equivalent: {}", [m for m in inside if m.verdict in equivalent]),
        (UNDETERMINED, f"{{}}: {UNDETERMINED}", [m for m in members if m.verdict == UNDETERMINED]),
        ("undetermined", "not shown for {}", [m for m in inside if m.verdict != "supported"]),
        (
            "detected only in the named pairs",
            "equivalence not shown for {}",
            [m for m in others if m.verdict not in equivalent],
        ),
    ):
        if shown:
            return verdict, why.format(", ".join(m.name for m in shown))
    return "supported", ""


def _tipping(judged: Judged) -> float | None:
    """The least that undoes a verdict that rests on all members; the most where one that is against it is enough."""
    if judged.verdict == "refuted":
        against = (*verdicts.AGAINST, *verdicts.EQUIVALENT)
        known = [m.tipping_sd for m in judged.members if m.verdict in against and m.tipping_sd is not None]
        return max(known, default=None)
    known = [m.tipping_sd for m in judged.members if m.tipping_sd is not None]
    return min(known) if known and len(known) == len(judged.members) else None
