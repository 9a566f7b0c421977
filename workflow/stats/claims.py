"""Claims as code: the verdict and the sentence of each claim come from the evidence, never from a hand.

Once "4 of 4 cells beat control" stood over a table that said 3 of 4. Here the sentence is a template, and what fills it
is what was computed; the same rules run on raw per-seed values and on a published table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from workflow.stats import blocked, verdicts
from workflow.stats import claims_schema as schema
from workflow.stats.claims_rules import (
    Case,
    Family,
    Member,
    comparisons_of,
    conditions_of,
    family_of,
    member,
    overlap_members,
    replicate_member,
    words,
)
from workflow.stats.claims_schema import Claim, Claims
from workflow.stats.claims_text import sentence_of
from workflow.stats.evidence import Evidence, Missing, Where
from workflow.stats.items import ENOUGH, contrast_by_item, new_items_se, paired_half_width
from workflow.stats.rounding import UNDETERMINED
from workflow.stats.samples import PIPELINE_SEED, FloatArray, NotTestable, Sample, label, t_quantile
from workflow.stats.verdicts import Scope, Strength, Verdict

VERDICTS = get_args(Verdict)
MATRICES = 2000


@dataclass(frozen=True)
class ClaimResult:
    """A claim's verdict and sentence, and what they rest on.

    Attributes:
        scope: what the verdict is about: these checkpoints, or the conditions (two pipeline seeds or more).
        confounded_by: what else differs between the conditions, or what their scores are contaminated with.
        strength: how strongly it speaks of the conditions; declared_strength: how strongly the original put it.
        on_all_items, on_clean_items: the verdict of each, where test items were in the training data; else empty.
        clean_items: (clean for every condition of the claim, all), where scores by item are there.
        tipping_sd: SD between checkpoints above which the verdict no longer holds, in the metric's units.
        exploratory: whether the metric is no primary one.
    """

    id: str
    finding: int | None
    said: str
    metric: str
    phase: str
    measure: str
    verdict: str
    scope: Scope
    confounded_by: tuple[str, ...]
    strength: Strength
    declared_strength: str
    exploratory: bool
    reason: str
    sentence: str
    label: str
    unit: str
    n_by_condition: tuple[tuple[str, int], ...]
    n_pipeline_seeds: int
    tipping_sd: float | None
    on_all_items: str
    on_clean_items: str
    clean_items: tuple[int, int] | None
    members: tuple[Member, ...]
    rule: str
    rests_on: tuple[str, ...]


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
    confounded = _aliasing(names, evidence)
    on_all = on_clean = ""
    clean: tuple[int, int] | None = None
    if judged.case is not None:
        contamination = _contamination(claim, claims, evidence, judged)
        if contamination is not None:
            on_all, clean = judged.verdict if judged.members else "", contamination.clean
            if contamination.evidence is not None:
                judged = _judge(claim, claims, contamination.evidence)
                on_clean = judged.verdict
            judged, reasons = _held_against_items(judged, contamination)
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
    return replace(result, sentence=sentence_of(claim, result, cells))


def _judge(claim: Claim, claims: Claims, evidence: Evidence) -> _Judged:
    case = None
    try:
        case = Case(claim, claims, evidence, evidence.where(claim.phase, claim.metric, claim.instrument))
        evidence.samples(case.where, conditions_of(claim, claims))
        members = _members(case)
    except (Missing, NotTestable) as problem:
        return _Judged(case, "unverifiable", str(problem))
    rule = claim.rule
    if isinstance(rule, schema.Overlap):
        verdict, reason = _by_reading(members)
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
        return "refuted", "; ".join(_told(m) for m in against)
    for verdict in ("undetermined", UNDETERMINED, "difference shown, size not"):
        if left := [m for m in members if m.verdict == verdict]:
            return verdict, "; ".join(_told(m) for m in left)
    raise AssertionError(f"no verdict of {[m.verdict for m in members]}")


def _told(m: Member) -> str:
    return f"{m.name}: {m.verdict}" + (f", {m.reason}" if m.reason and m.verdict != UNDETERMINED else "")


def _by_reading(members: Sequence[Member]) -> tuple[str, str]:
    """Overlap: one verdict per reading; where they differ, the claim is conditional on what its interval means."""
    by_reading = {m.reading: [n for n in members if n.reading == m.reading] for m in members}
    words_, parts = [], []
    for reading, own in by_reading.items():
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


# --- what else differs ------------------------------------------------------------------------------------------------


def _aliasing(names: Sequence[str], evidence: Evidence) -> list[str]:
    """Fields whose values go with the conditions, so that nobody can tell the two apart."""
    found = []
    for field, by_condition in evidence.machines.items():
        here = {name: by_condition[name] for name in names if name in by_condition}
        if verdicts.aliased(here):
            values = "; ".join(f"{', '.join(sorted(values))} in {name}" for name, values in here.items() if values)
            found.append(f"{field} goes with the condition: {values}")
    return found


@dataclass(frozen=True)
class _Contamination:
    """evidence: the scores on clean items, where there are any. intervals: comparison -> (half-width over items, half-
    width over new items and replicates)."""

    reasons: tuple[str, ...]
    clean: tuple[int, int] | None = None
    evidence: Evidence | None = None
    half_widths: Mapping[str, tuple[float, float | None]] | None = None


def _contamination(claim: Claim, claims: Claims, evidence: Evidence, judged: _Judged) -> _Contamination | None:
    """What is known of test items in the training data of the claim's conditions; None if they are all clean."""
    assert judged.case is not None
    where = judged.case.where
    names = conditions_of(claim, claims)
    conditions, statement = evidence.contamination.get(claim.metric, (frozenset(), ""))
    if conditions & set(names):
        return _Contamination((f"{statement}; no scores by item are there to leave them out",))
    items = evidence.items.get(where)
    if items is None or not judged.members:
        return None
    unknown = items.unknown(names)
    reasons = [f"nobody has looked for test items in the training data of {', '.join(unknown)}"] if unknown else []
    mask = items.clean(names)
    n_clean, n = int(mask.sum()), len(mask)
    if n_clean == n:
        return _Contamination(tuple(reasons), (n, n), None, {}) if reasons else None
    reasons.append(f"{n - n_clean} of {n} test items are in the training data of a condition of the claim")
    if n_clean < 2:
        return _Contamination(tuple(reasons), (n_clean, n))
    clean = evidence.on_clean_items(claim.metric, where[2], names)
    return _Contamination(tuple(reasons), (n_clean, n), clean, _half_widths(claim, claims, evidence, where, mask))


def _half_widths(
    claim: Claim, claims: Claims, evidence: Evidence, where: Where, mask: npt.NDArray[np.bool_]
) -> dict[str, tuple[float, float | None]]:
    items = evidence.items[where]
    before = evidence.items.get(("pre_em", *where[1:]))
    changes = claim.measure == "change" or claim.rule.test == "change"
    if changes and before is None:
        return {}
    found = {}
    for name, weights in comparisons_of(claim, claims).items():
        means = {c: items.means(c, mask) for c in weights}
        replicates = {c: items.replicates(c, mask) for c in weights}
        if changes and before is not None:
            means = {c: y - before.means(c, mask) for c, y in means.items()}
            replicates = {c: y - before.means(c, mask).mean(axis=0) for c, y in replicates.items()}
        paired = paired_half_width(contrast_by_item(means, weights))
        found[name] = paired, _new_items_half_width(means, replicates, weights)
    return found


def _new_items_half_width(
    means: Mapping[str, FloatArray], replicates: Mapping[str, FloatArray], weights: Mapping[str, float]
) -> float | None:
    """At 95%; pipeline seeds are blocks where every condition has the same number of two or more."""
    rows = {y.shape[0] for y in means.values()}
    try:
        if len(rows) == 1 and rows != {1}:
            tables = [(1.0, np.asarray(sum(w * means[c] for c, w in weights.items())))]
        else:
            tables = [(w, replicates[c]) for c, w in weights.items()]
        df = min(min(y.shape) for _, y in tables) - 1
        return float(t_quantile(df)) * new_items_se(tables)
    except NotTestable:
        return None


def _held_against_items(judged: _Judged, found: _Contamination) -> tuple[_Judged, list[str]]:
    """Confounded: no scores by item, too few clean items, or items that alone could move it across its margin."""
    reasons = list(found.reasons)
    if found.clean is not None and found.clean[0] == found.clean[1]:
        return judged, reasons
    if judged.verdict == "unverifiable":
        return judged, reasons
    too_few = found.clean is None or found.clean[0] < ENOUGH
    if found.clean is not None and too_few:
        reasons.append(f"{found.clean[0]} clean items: fewer than {ENOUGH}")
    members = []
    for m in judged.members:
        paired, new = (found.half_widths or {}).get(m.name, (None, None))
        if m.estimate is not None and new is not None:
            m = replace(m, new_items=(m.estimate.value - new, m.estimate.value + new))
        members.append(m)
        if judged.case is not None and paired is not None and paired > (allowed := _allowed(judged.case.claim, m)):
            reasons.append(f"{m.name}: the clean items alone leave ±{paired:.3g}, more than {allowed:.3g}")
            too_few = True
    if too_few:
        return replace(judged, verdict="confounded", members=tuple(members)), reasons
    return replace(judged, members=tuple(members)), []


def _allowed(claim: Claim, m: Member) -> float:
    """The margin, or the effect that was stated, or else the difference itself, in the metric's units."""
    margin, raw, d = (getattr(claim.rule, name, None) for name in ("margin", "effect_raw", "effect"))
    if margin is not None and claim.rule.test != "size":
        return float(margin)
    if raw is not None:
        return float(raw)
    assert m.estimate is not None
    if d is not None and m.d is not None and m.d.value:
        return float(d) * abs(m.estimate.value / m.d.value)
    return abs(m.estimate.value)


# --- how often a claim would be supported by chance -------------------------------------------------------------------


def false_support(claims: Claims, evidence: Evidence, matrices: int = MATRICES, seed: int = 0) -> float | None:
    """Share of seeded matrices without any effect in which some claim of a difference is supported.

    Each cell keeps its own n, unit and spread (of blocks: variance of seeds and of condition x seed); metrics are drawn
    independently. Under no effect Holm's first step is Bonferroni's. None where no such claim can be judged.
    """
    null = replace(evidence, cells=_without_effects(evidence, matrices, seed), items={}, contamination={})
    supported = []
    for claim in claims.claims:
        if not isinstance(claim.rule, schema.Difference | schema.Change | schema.OnlyPairs):
            continue
        try:
            case = Case(claim, claims, null, null.where(claim.phase, claim.metric, claim.instrument))
            supported.append(_supported(case, matrices))
        except (Missing, NotTestable):
            continue
    return float(np.mean(np.any(supported, axis=0))) if supported else None


def _supported(case: Case, matrices: int) -> npt.NDArray[np.bool_]:
    rule, k = case.claim.rule, len(case.comparisons)
    matrix = len(case.claims.matrix)
    family = {
        "claim": k,
        "all_pairs": matrix * (matrix - 1) // 2,
        "declared": len(case.claims.planned()) * len(case.claims.primary),
    }[rule.family]
    corrected = rule.alpha / (1 if rule.correction == "none" else family)
    alpha = rule.alpha if k > 1 and not isinstance(rule, schema.OnlyPairs) else corrected
    holds = {name: np.broadcast_to(words(rule, e, alpha), (matrices,)) for name, e in case.estimates.items()}
    if isinstance(rule, schema.OnlyPairs):
        named = {frozenset(pair) for pair in rule.pairs}
        return np.all(
            [
                w == "supported" if frozenset(case.comparisons[name]) in named else np.char.startswith(w, "equivalent")
                for name, w in holds.items()
            ],
            axis=0,
        )
    return np.all([w == "supported" for w in holds.values()], axis=0)


def _without_effects(evidence: Evidence, matrices: int, seed: int) -> dict[Where, dict[str, Sample]]:
    found: dict[Where, dict[str, Sample]] = {}
    for number, (where, cells) in enumerate(evidence.cells.items()):
        rng = np.random.default_rng([seed, number])
        blocks = {name: s for name, s in cells.items() if s.unit == PIPELINE_SEED and s.n > 1}
        sd_seed, sd_checkpoint = _block_sds(blocks)
        by_seed = {p: rng.normal(0, sd_seed, matrices) for s in blocks.values() for p in s.blocks}
        found[where] = {}
        for name, s in cells.items():
            if s.n == 1:
                values = np.zeros((matrices, 1))
            elif name in blocks:
                common = np.stack([by_seed[p] for p in s.blocks], axis=-1)
                values = common + rng.normal(0, sd_checkpoint, (matrices, s.n))
            else:
                values = rng.normal(0, s.spread or 1.0, (matrices, s.n))
            found[where][name] = Sample(values, s.unit, s.n_pipeline_seeds, blocks=s.blocks)
    return found


def _block_sds(cells: Mapping[str, Sample]) -> tuple[float, float]:
    """SD of pipeline seeds and of condition x seed; 0 and 1 where they cannot be told."""
    table = blocked.checkpoints(cells) if len(cells) > 1 else None
    if table is None or not table.is_balanced:
        return 0.0, 1.0
    try:
        whole = blocked.components(table.means[..., None])
    except NotTestable:
        return 0.0, 1.0
    ols = blocked.fit(table)
    return float(np.sqrt(whole.var_seed)), ols.residual_sd
