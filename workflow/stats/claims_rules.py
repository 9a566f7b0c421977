"""From a claim and its samples to members: every comparison that the claim makes, with the interval that decides it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from workflow.stats import claims_schema as schema
from workflow.stats import verdicts
from workflow.stats.claims_schema import Claim, Claims
from workflow.stats.contrasts import compare_groups, estimate
from workflow.stats.evidence import CHANGE, Evidence, Missing, Where
from workflow.stats.results import Member
from workflow.stats.rounding import UNDETERMINED, Range, apart
from workflow.stats.samples import NotTestable, Sample, t_quantile
from workflow.stats.tests import Estimate, one_sample, single_value
from workflow.stats.verdicts import Words

Weights = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A claim with the samples that it is judged on, those of `where`."""

    claim: Claim
    claims: Claims
    evidence: Evidence
    where: Where

    @cached_property
    def cells(self) -> dict[str, Sample]:
        return self.evidence.samples(self.where, conditions_of(self.claim, self.claims))

    @cached_property
    def levels(self) -> dict[str, Sample]:
        """The levels themselves, where the cells are changes."""
        if self.where[0] != CHANGE:
            return self.cells
        return self.evidence.samples(("post_em", *self.where[1:]), list(self.cells))

    @cached_property
    def around(self) -> dict[str, Sample]:
        """Every condition that bears on the error: the claim's own and those of the matrix, of the same unit."""
        unit = next(iter(self.cells.values())).unit
        here = self.evidence.cells[self.where]
        return self.cells | {c: here[c] for c in self.claims.matrix if c in here and here[c].unit == unit}

    @cached_property
    def comparisons(self) -> dict[str, Weights]:
        """Weights by name, in the claim's order."""
        return comparisons_of(self.claim, self.claims)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        if isinstance(self.claim.rule, schema.Change):
            return {name: one_sample(self.cells[name]) for name in self.comparisons}
        return {name: self._estimate(name, weights) for name, weights in self.comparisons.items()}

    def _estimate(self, name: str, weights: Weights) -> Estimate:
        e = estimate(self.around, weights, name)
        target, rule = self.claim.contrast, self.claim.rule
        if isinstance(rule, schema.Size) and rule.standardiser == "pooled_seeds":
            assert isinstance(target, schema.Groups), target.kind
            return replace(e, effect=compare_groups(self.cells, target.first, target.second).pooled_seeds)
        return e


def case_of(claim: Claim, claims: Claims, evidence: Evidence) -> Case:
    """
    Raises:
        Missing: the evidence lacks the metric, or one of the conditions.
    """
    changes = claim.measure == "change" or isinstance(claim.rule, schema.Change)
    case = Case(
        claim, claims, evidence, evidence.where(CHANGE if changes else claim.phase, claim.metric, claim.instrument)
    )
    assert case.cells
    return case


def conditions_of(claim: Claim, claims: Claims) -> list[str]:
    """Every condition that a claim speaks of, in order."""
    match claim.contrast:
        case schema.Pairs(first=first, second=second) | schema.Groups(first=first, second=second):
            return list(dict.fromkeys([*first, *second]))
        case schema.AllPairs(conditions=conditions) | schema.BeforeAfter(conditions=conditions):
            return list(conditions)
        case schema.Weights(name=name):
            return list(claims.weights(name))
        case schema.OneRun(against=against):
            return [against]


def comparisons_of(claim: Claim, claims: Claims) -> dict[str, Weights]:
    """Name and weights of each comparison; of before_after the condition alone."""
    match claim.contrast:
        case schema.Pairs(first=first, second=second):
            return {f"{a} - {b}": {a: 1.0, b: -1.0} for a in first for b in second if a != b}
        case schema.AllPairs(conditions=conditions):
            return {f"{a} - {b}": {a: 1.0, b: -1.0} for a, b in combinations(conditions, 2)}
        case schema.Weights(name=name):
            return {name: claims.weights(name)}
        case schema.Groups(first=first, second=second):
            weights = {c: 1 / len(first) for c in first} | {c: -1 / len(second) for c in second}
            return {f"{'+'.join(first)} - {'+'.join(second)}": weights}
        case schema.BeforeAfter(conditions=conditions):
            return {name: {name: 1.0} for name in conditions}
        case _:
            return {}


# --- one comparison ---------------------------------------------------------------------------------------------------


def words(rule: schema.Rule, e: Estimate, alpha: float) -> Words:
    """The verdict of a comparison at a level, in every row of its estimate."""
    if isinstance(rule, schema.Equivalence):
        return verdicts.equivalence(e.interval(2 * rule.alpha), e.interval(alpha), rule.margin)
    if isinstance(rule, schema.Size):
        assert e.effect is not None
        inner, outer = (_about(e.effect.interval(a), rule.effect) for a in (2 * rule.alpha, alpha))
        about = verdicts.equivalence(inner, outer, rule.margin)
        return np.where(
            np.char.startswith(about, "equivalent"),
            "supported",
            np.where(about == "equivalence refuted", "size refuted", about),
        )
    if isinstance(rule, schema.OnlyPairs):
        shown = verdicts.difference(e.interval(alpha), "either")
        alike = verdicts.equivalence(e.interval(2 * rule.alpha), e.interval(alpha), rule.margin)
        return np.where(shown == "supported", shown, alike)
    assert isinstance(rule, schema.Difference | schema.Change), rule.test
    size = e.effect.interval(alpha) if rule.effect is not None and e.effect is not None else None
    by_region = verdicts.difference(e.interval(alpha), rule.direction, _stated(rule), size)
    if isinstance(rule, schema.Difference) and rule.margin is not None:
        alike = verdicts.equivalence(e.interval(2 * rule.alpha), e.interval(alpha), rule.margin)
        by_region = np.where((by_region == "undetermined") & np.char.startswith(alike, "equivalent"), alike, by_region)
    return np.asarray(by_region)


def _stated(rule: schema.Rule) -> float:
    return float(getattr(rule, "effect", None) or getattr(rule, "effect_raw", None) or 0.0)


def _about(interval: verdicts.Ends, size: float) -> verdicts.Ends:
    """The interval of |d| - size."""
    low, high = interval
    inner = np.where((low <= 0) & (high >= 0), 0.0, np.minimum(np.abs(low), np.abs(high)))
    return inner - size, np.maximum(np.abs(low), np.abs(high)) - size


def member(case: Case, name: str, alphas: Sequence[float], adjusted: Range, all_hold: bool) -> Member:
    """alphas: the levels to decide at. all_hold: whether they are uncorrected, since every comparison must hold."""
    rule, e = case.claim.rule, case.estimates[name]
    verdict = verdicts.settle(np.concatenate([np.ravel(words(rule, e, a)) for a in alphas]))
    alpha = 2 * rule.alpha if verdict.startswith("equivalent") else alphas[0]
    on_d = isinstance(rule, schema.Size) or getattr(rule, "effect", None) is not None
    decided = e.effect if on_d and e.effect is not None else e
    low, high = (Range.of(end).value for end in decided.interval(alpha))
    effect = e.effect.interval(alpha) if e.effect is not None else None
    return Member(
        name=name,
        verdict=verdict,
        reason=reason_of(rule, verdict, e, alphas[0]),
        estimate=Range.of(e.value),
        interval=(low, high),
        interval_level=1 - alpha,
        decided_on=("d" if on_d else "raw units") + (", not corrected: all must hold" if all_hold else ""),
        t=Range.of(e.t),
        p=Range.of(e.p()),
        p_adjusted=adjusted,
        p_decided=_p_decided(rule, verdict, e),
        d=None if e.effect is None else Range.of(e.effect.d),
        d_interval=None if effect is None else (Range.of(effect[0]).value, Range.of(effect[1]).value),
        standardiser="" if e.effect is None else e.effect.standardiser,
        method=e.method,
        tipping_sd=_tipping(case, verdict, e, alpha),
        separate_verdict=_separate_verdict(rule, e, alphas[0]),
        level=_level(case, name) if case.claim.measure == "change" else None,
    )


def _separate_verdict(rule: schema.Rule, e: Estimate, alpha: float) -> str | None:
    """The verdict by each seed's own contrast; a size in d is turned into one in the units that it standardises."""
    if e.separate is None or isinstance(rule, schema.Size):
        return None
    if isinstance(rule, schema.Difference | schema.Change) and rule.effect is not None and e.effect is not None:
        sd = float(np.ravel(e.effect.sd)[0])
        return verdicts.settle(verdicts.difference(e.separate.interval(alpha), rule.direction, rule.effect * sd))
    return verdicts.settle(words(rule, e.separate, alpha))


def _level(case: Case, name: str) -> Range:
    """The same comparison of the levels after EM."""
    weights = case.comparisons[name]
    values = apart([case.levels[c] for c in weights])
    return Range.of(sum(w * v.mean(axis=-1) for w, v in zip(weights.values(), values, strict=True)))


def _p_decided(rule: schema.Rule, verdict: str, e: Estimate) -> Range | None:
    """p of the hypothesis on the edge of the region; None where the size was held against d, which has no t."""
    if verdict.startswith("equivalent") and not isinstance(rule, schema.Size):
        return Range.of(e.tost_p(float(getattr(rule, "margin", 0.0))))
    if isinstance(rule, schema.Equivalence | schema.OnlyPairs) and verdict == "equivalence refuted":
        return Range.of(np.maximum(e.p(rule.margin), e.p(-rule.margin)))
    if isinstance(rule, schema.Size) or getattr(rule, "effect", None) is not None:
        return None
    x = _stated(rule) * (-1.0 if getattr(rule, "direction", "") == "lower" else 1.0)
    return Range.of(e.p(x if verdict in ("supported", "size refuted") else 0.0))


def _tipping(case: Case, verdict: str, e: Estimate, alpha: float) -> float | None:
    """Only where each condition has one checkpoint; in the metric's units."""
    if min(s.n_pipeline_seeds for s in case.cells.values()) > 1:
        return None
    rule = case.claim.rule
    value = float(np.ravel(e.value)[0])
    sd = float(np.ravel(e.effect.sd)[0]) if e.effect is not None else 0.0
    x = _stated(rule) * (sd if getattr(rule, "effect", None) is not None else 1.0)
    margin = float(getattr(rule, "margin", None) or 0.0)
    signed = -value if getattr(rule, "direction", "") == "lower" else value
    distance = {
        "supported": abs(value) - x,
        "difference shown, size not": abs(value),
        "opposite": abs(value),
        "size refuted": x - (abs(value) if getattr(rule, "direction", "either") == "either" else signed),
        "equivalent": margin - abs(value),
        "equivalent and different": margin - abs(value),
        "equivalence refuted": abs(value) - margin,
    }.get(verdict)
    if distance is None or isinstance(rule, schema.Size):
        return None
    return verdicts.tipping_sd(e, distance, alpha)


def reason_of(rule: schema.Rule, verdict: str, e: Estimate, alpha: float) -> str:
    """Which part is shown and which is refuted."""
    low, high = (Range.of(end).value for end in e.interval(alpha))
    differs = low > 0 or high < 0
    shown = f"a difference is {'' if differs else 'not '}shown"
    if isinstance(rule, schema.Size) and verdict in ("undetermined", "size refuted"):
        lies = "wholly outside" if verdict == "size refuted" else "neither within nor outside"
        return f"the interval of |d| lies {lies} {rule.effect:g} ± {rule.margin:g}"
    size, margin = f"{_stated(rule):g}", getattr(rule, "margin", None)
    around = f"±{margin:g}" if margin else "no margin"
    if verdict == "undetermined" and margin:
        return f"{shown}, but not on which side of {around} it lies" if differs else f"{shown}, nor one within {around}"
    texts = {
        "opposite": "the difference has the opposite sign",
        "size refuted": f"the interval excludes the {size} that was said; {shown}",
        "difference shown, size not": f"the interval reaches from above 0 to beyond the {size} that was said",
        "equivalence refuted": f"the interval lies wholly outside {around}",
        "equivalent and different": f"within {around}, and not zero",
        "undetermined": shown,
        UNDETERMINED: "the printed digits allow more than one verdict",
    }
    return texts.get(verdict, "")


# --- rules that are not about a difference ----------------------------------------------------------------------------


def overlap_members(case: Case, rule: schema.Overlap) -> list[Member]:
    """mean +- width of each pair, by reading; the estimate is the gap, positive when they lie apart."""
    return [_overlap(case.cells[a], case.cells[b], f"{a} - {b}", r) for r in rule.readings for a, b in _pairs(case)]


def _pairs(case: Case) -> list[tuple[str, str]]:
    return [(a, b) for a, b in (tuple(w) for w in case.comparisons.values())]


def _overlap(first: Sample, second: Sample, name: str, reading: str) -> Member:
    if min(first.n, second.n) < 2:
        raise NotTestable("n = 1: no SD, no interval")
    values = apart([first, second])
    means, sds = ([f(v) for v in values] for f in (lambda v: v.mean(axis=-1), lambda v: v.std(axis=-1, ddof=1)))
    factors = [_width_factor(s.n, reading) for s in (first, second)]
    gap = np.abs(means[0] - means[1]) - factors[0] * sds[0] - factors[1] * sds[1]
    verdict = verdicts.settle(np.where(gap > 1e-9, "refuted", "supported"))
    why = {"refuted": "the intervals lie apart", UNDETERMINED: "the printed digits allow both"}.get(verdict, "")
    return Member(name, verdict, why, estimate=Range.of(gap), decided_on="the gap between intervals", reading=reading)


def _width_factor(n: int, reading: str) -> float:
    """Interval half-width in SDs."""
    if reading == "sd":
        return 1.0
    return float(1 / np.sqrt(n) if reading == "se" else t_quantile(n - 1) / np.sqrt(n))


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
    facts = f"z {result.z.value:.1f}, prediction t {result.prediction_t.value:.1f} on {result.df} df"
    verdict = UNDETERMINED if outside is None else "supported" if outside == rule.lies else "refuted"
    slack, centre = value.half_unit + others.mean_rounding, value.value - others.mean
    return Member(
        name=f"{run.name} - {run.condition}",
        verdict=verdict,
        reason=facts,
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
