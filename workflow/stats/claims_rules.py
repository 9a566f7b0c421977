"""From a claim and its samples to members: every comparison that the claim makes, with the interval that decides it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from workflow.stats import claims_schema as schema
from workflow.stats import verdicts
from workflow.stats.claims_schema import Claim, Claims, Comparisons
from workflow.stats.contrasts import Weights, estimate, pair
from workflow.stats.evidence import CHANGE, Evidence, Missing, Where
from workflow.stats.results import Member
from workflow.stats.rounding import UNDETERMINED, Range, apart
from workflow.stats.samples import NotTestable, Sample, t_quantile
from workflow.stats.tests import Correction, Estimate, adjust_ranges, levels, one_sample, pooled_seeds_d, single_value
from workflow.stats.verdicts import EQUIVALENT, Region


@dataclass(frozen=True)
class Case:
    """A claim with the samples that it is judged on, those of `where`.

    Attributes:
        cells: of its own conditions. levels: the levels themselves, where the cells are changes.
        around: of every condition that bears on the error: its own and those of the matrix, of the same unit.
    """

    claim: Claim
    claims: Claims
    evidence: Evidence
    where: Where

    @cached_property
    def cells(self) -> dict[str, Sample]:
        return self.evidence.samples(self.where, self.claims.conditions(self.claim))

    @cached_property
    def levels(self) -> dict[str, Sample]:
        is_change = self.where[0] == CHANGE
        return self.evidence.samples(("post_em", *self.where[1:]), list(self.cells)) if is_change else self.cells

    @cached_property
    def around(self) -> dict[str, Sample]:
        unit = next(iter(self.cells.values())).unit
        here = self.evidence.cells[self.where]
        return self.cells | {c: here[c] for c in self.claims.matrix if c in here and here[c].unit == unit}

    @cached_property
    def comparisons(self) -> Comparisons:
        return self.claims.comparisons(self.claim)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        return {name: self._estimate(name, weights) for name, weights in self.comparisons.items()}

    def _estimate(self, name: str, weights: Weights) -> Estimate:
        target, rule = self.claim.contrast, self.claim.rule
        if target.kind == "before_after":
            return one_sample(self.cells[name])
        e = estimate(self.around, weights)
        if isinstance(rule, schema.Size) and rule.standardiser == "pooled_seeds" and isinstance(target, schema.Sides):
            return replace(e, effect=pooled_seeds_d(self.cells, target.first, target.second))
        return e


def case_of(claim: Claim, claims: Claims, evidence: Evidence) -> Case:
    """
    Raises:
        Missing: the evidence lacks the metric, or one of the conditions.
    """
    phase = CHANGE if claim.is_change else claim.phase
    case = Case(claim, claims, evidence, evidence.where(phase, claim.metric, claim.instrument))
    assert case.cells
    return case


def member(case: Case, name: str, alphas: Sequence[float], adjusted: Range, all_hold: bool) -> Member:
    """alphas: the levels to decide at. all_hold: whether they are uncorrected, since every comparison must hold."""
    asks, e = schema.region(case.claim.rule), case.estimates[name]
    verdict = verdicts.settle(np.concatenate([np.ravel(verdicts.verdict(asks, e, a)) for a in alphas]))
    alpha = 2 * asks.alpha if verdict in EQUIVALENT else alphas[0]
    p_decided = verdicts.p_decided(asks, verdict, e)
    return Member(
        name=name,
        verdict=verdict,
        reason=_reason(asks, verdict, e, alphas[0]),
        estimate=Range.of(e.value),
        interval=_of_data((e.effect if asks.on_d else e).interval(alpha)),
        interval_level=1 - alpha,
        decided_on=("d" if asks.on_d else "raw units") + (", not corrected: all must hold" if all_hold else ""),
        t=Range.of(e.t),
        p=Range.of(e.p()),
        p_adjusted=adjusted,
        p_decided=None if p_decided is None else Range.of(p_decided),
        d=Range.of(e.effect.d),
        d_interval=_of_data(e.effect.interval(alpha)),
        standardiser=e.effect.standardiser,
        method=e.method,
        tipping_sd=_tipping(case, asks, verdict, e, alpha),
        separate_verdict=_separate_verdict(asks, e, alphas[0]),
        level=_level(case, name) if case.claim.measure == "change" else None,
    )


def _of_data(ends: verdicts.Ends) -> tuple[float, float]:
    """An interval of the data themselves, without what printed digits allow."""
    low, high = (Range.of(end).value for end in ends)
    return low, high


def _in_raw_units(asks: Region, e: Estimate) -> Region:
    """A stated d as the difference that it is at the SD of the data."""
    return replace(asks, size=asks.size * Range.of(e.effect.sd).value, on_d=False) if asks.on_d else asks


def _separate_verdict(asks: Region, e: Estimate, alpha: float) -> str | None:
    """The verdict by each seed's own contrast."""
    if e.separate is None or asks.is_about_d:
        return None
    return verdicts.settle(verdicts.verdict(_in_raw_units(asks, e), e.separate, alpha))


def _level(case: Case, name: str) -> Range:
    """The same comparison of the levels after EM."""
    weights = case.comparisons[name]
    values = apart([case.levels[c] for c in weights])
    return Range.of(sum(w * v.mean(axis=-1) for w, v in zip(weights.values(), values, strict=True)))


def _tipping(case: Case, asks: Region, verdict: str, e: Estimate, alpha: float) -> float | None:
    """Only where each condition has one checkpoint; in the metric's units."""
    edge = verdicts.bound(_in_raw_units(asks, e), verdict)
    if min(s.n_pipeline_seeds for s in case.cells.values()) > 1 or edge is None or asks.is_about_d:
        return None
    value = Range.of(e.value).value
    directed = abs(value) if verdict in EQUIVALENT else asks.sign(value) * value
    return verdicts.tipping_sd(e, abs(directed - edge), alpha)


def _reason(asks: Region, verdict: str, e: Estimate, alpha: float) -> str:
    """Which part is shown and which is refuted."""
    low, high = _of_data(e.interval(alpha))
    differs = low > 0 or high < 0
    shown = f"a difference is {'' if differs else 'not '}shown"
    around = f"±{asks.margin:g}" if asks.margin else "no margin"
    if asks.is_about_d:
        place = {"size refuted": "wholly outside", "undetermined": "neither within nor outside"}.get(verdict)
        if place:
            return f"the interval of |d| lies {place} {asks.size:g} {around.replace('±', '± ')}"
    texts = {
        "opposite": "the difference has the opposite sign",
        "size refuted": f"the interval excludes the {asks.size:g} that was said; {shown}",
        "difference shown, size not": f"the interval reaches from above 0 to beyond the {asks.size:g} that was said",
        "equivalence refuted": f"the interval lies wholly outside {around}",
        "equivalent and different": f"within {around}, and not zero",
        "undetermined": shown,
        UNDETERMINED: "the printed digits allow more than one verdict",
    }
    if verdict == "undetermined" and asks.margin:
        return f"{shown}, but not on which side of {around} it lies" if differs else f"{shown}, nor one within {around}"
    return texts.get(verdict, "")


# --- the tests that share an alpha ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """The tests that share an alpha. p: of each that could be made, by name; size: of the whole plan."""

    p: dict[str, Range]
    size: int
    correction: Correction
    alpha: float

    def adjusted(self, name: str) -> Range:
        return dict(zip(self.p, adjust_ranges(list(self.p.values()), self.correction, self.size), strict=True))[name]

    def levels_of(self, name: str) -> list[float]:
        """The alphas at which a test is made; more than one where printed digits leave Holm's order open."""
        index = list(self.p).index(name)
        ends = ([getattr(p, end) for p in self.p.values()] for end in ("value", "low", "high"))
        return sorted({levels(p, self.alpha, self.correction, self.size)[index] for p in ends})


def family_of(case: Case) -> Family:
    """
    Raises:
        Missing: a comparison is no pair of the matrix, whose pairs the rule names as its family.
    """
    rule = case.claim.rule
    p = {name: Range.of(e.p()) for name, e in case.estimates.items()}
    if rule.correction != "none" and rule.family == "declared":
        p |= _declared(case)
    elif rule.correction != "none" and rule.family == "all_pairs":
        p |= _pairs_of_the_matrix(case)
    return Family(p, size_of(case), rule.correction, rule.alpha)


def size_of(case: Case) -> int:
    """How many tests share the alpha, whether they can be made or not."""
    own, n, planned, primary = case.comparisons, len(case.claims.matrix), case.claims.planned(), case.claims.primary
    if case.claim.rule.family == "all_pairs":
        return n * (n - 1) // 2
    if case.claim.rule.family == "claim":
        return max(1, len(own))
    is_planned = set(own) <= set(planned) and case.claim.metric in primary
    return len(planned) * len(primary) + (0 if is_planned else len(own))


def _declared(case: Case) -> dict[str, Range]:
    """Every other declared contrast of every primary metric."""
    cells, others = case.evidence.cells, {}
    for metric in case.claims.primary:
        places = sorted((w for w in cells if w[:2] == (case.where[0], metric)), key=lambda w: w[2] != case.where[2])
        for where in places[:1]:
            for name, weights in case.claims.planned().items():
                if (where, [name]) != (case.where, list(case.comparisons)):
                    others[f"{name}, {metric}"] = _p(cells[where], weights)
    return {name: p for name, p in others.items() if p is not None}


def _pairs_of_the_matrix(case: Case) -> dict[str, Range]:
    """Every other pair."""
    matrix = case.claims.matrix
    if outside := [name for name, w in case.comparisons.items() if not set(w) <= set(matrix)]:
        raise Missing(f"not a pair of the matrix, whose family the rule names: {', '.join(outside)}")
    mine = [set(weights) for weights in case.comparisons.values()]
    pairs = [(a, b) for a, b in combinations(matrix, 2) if {a, b} not in mine]
    return {f"{a} - {b}": p for a, b in pairs if (p := _p(case.around, pair(a, b))) is not None}


def _p(samples: Mapping[str, Sample], weights: Weights) -> Range | None:
    try:
        return Range.of(estimate(samples, weights).p())
    except NotTestable:
        return None


# --- rules that are not about a difference ----------------------------------------------------------------------------


def overlap_members(case: Case, rule: schema.Overlap) -> list[Member]:
    """mean +- width of each pair, by reading; the estimate is the gap, positive when they lie apart."""
    pairs = [(name, [case.cells[c] for c in weights]) for name, weights in case.comparisons.items()]
    return [_overlap(pair, name, reading) for reading in rule.readings for name, pair in pairs]


def _overlap(pair: Sequence[Sample], name: str, reading: str) -> Member:
    if min(s.n for s in pair) < 2:
        raise NotTestable("n = 1: no SD, no interval")
    (mean, other), (sd, other_sd) = zip(*((v.mean(axis=-1), v.std(axis=-1, ddof=1)) for v in apart(pair)), strict=True)
    widths = {"sd": lambda n: 1.0, "se": lambda n: 1 / np.sqrt(n), "ci95": lambda n: t_quantile(n - 1) / np.sqrt(n)}
    first, second = (float(widths[reading](s.n)) for s in pair)
    gap = np.abs(mean - other) - first * sd - second * other_sd
    verdict = verdicts.settle(np.where(gap > 1e-9, "refuted", "supported"))
    why = {"refuted": "the intervals lie apart", UNDETERMINED: "the printed digits allow both"}.get(verdict, "")
    return Member(name, verdict, why, Range.of(gap), decided_on="the gap between intervals", reading=reading)


def replicate_member(case: Case, rule: schema.Replicate) -> Member:
    """One run against the replicates of its condition, by the prediction interval."""
    target, metric = case.claim.contrast, case.claim.metric
    assert isinstance(target, schema.OneRun), target.kind
    run = case.evidence.singles.get(target.run)
    if run is None or metric not in run.values:
        raise Missing(f"no {metric} of a run named {target.run}")
    others, value = case.cells[target.against], run.values[metric]
    result = single_value(value.value, others, value.half_unit)
    outside = {"yes": "outside", "no": "inside"}.get(result.p.below(rule.alpha))
    slack, centre = value.half_unit + others.mean_rounding, value.value - others.mean
    return Member(
        name=f"{run.name} - {run.condition}",
        verdict=UNDETERMINED if outside is None else "supported" if outside == rule.lies else "refuted",
        reason=f"z {result.z.value:.1f}, prediction t {result.prediction_t.value:.1f} on {others.n - 1} df",
        estimate=Range(centre, centre - slack, centre + slack),
        interval=(result.prediction95_low, result.prediction95_high),
        interval_level=0.95,
        decided_on="prediction interval of one more replicate",
        t=result.prediction_t,
        p=result.p,
        p_adjusted=result.p,
        p_decided=result.p,
        method="prediction interval",
    )
