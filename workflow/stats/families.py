"""The tests that share an alpha with those of a claim, and the level that each is made at."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from workflow.stats.claims_rules import Case, Weights
from workflow.stats.contrasts import estimate
from workflow.stats.evidence import Missing, Where
from workflow.stats.rounding import Range
from workflow.stats.samples import NotTestable, Sample
from workflow.stats.tests import adjust_ranges, levels


@dataclass(frozen=True)
class Family:
    """The tests that share an alpha. p: of each that could be made, by name; size: of the whole plan."""

    p: dict[str, Range]
    size: int
    correction: str
    alpha: float

    def adjusted(self, name: str) -> Range:
        return dict(zip(self.p, adjust_ranges(list(self.p.values()), self.correction, self.size), strict=True))[name]

    def levels_of(self, name: str) -> list[float]:
        """The alphas at which a test is made; more than one where printed digits leave Holm's order open."""
        index = list(self.p).index(name)
        ends = ([getattr(p, end) for p in self.p.values()] for end in ("value", "low", "high"))
        return sorted({levels(p, self.alpha, self.correction, self.size)[index] for p in ends})


def family_of(case: Case) -> Family:
    rule, own = case.claim.rule, {name: Range.of(e.p()) for name, e in case.estimates.items()}
    if rule.correction == "none" or rule.family == "claim":
        return Family(own, max(1, len(own)), rule.correction, rule.alpha)
    if rule.family == "declared":
        planned = case.claims.planned()
        places = [w for metric in case.claims.primary if (w := _place(case, metric)) is not None]
        others = {
            f"{name}, {w[1]}": p
            for w in places
            for name, weights in planned.items()
            if (w, name) != (case.where, *own) and (p := _p(case.evidence.cells[w], weights)) is not None
        }
        size = len(planned) * len(case.claims.primary)
        is_planned = set(own) <= set(planned) and case.claim.metric in case.claims.primary
        return Family(own | others, size + (0 if is_planned else len(own)), rule.correction, rule.alpha)
    matrix = case.claims.matrix
    outside = [n for n, w in case.comparisons.items() if not set(w) <= set(matrix)]
    if outside:
        raise Missing(f"not a pair of the matrix, whose family the rule names: {', '.join(outside)}")
    mine = {frozenset(w) for w in case.comparisons.values()}
    around = case.around
    others = {
        f"{a} - {b}": p
        for a, b in combinations([c for c in matrix if c in around], 2)
        if frozenset((a, b)) not in mine and (p := _p(around, {a: 1.0, b: -1.0})) is not None
    }
    return Family(own | others, len(matrix) * (len(matrix) - 1) // 2, rule.correction, rule.alpha)


def _place(case: Case, metric: str) -> Where | None:
    places = [w for w in case.evidence.cells if w[:2] == (case.where[0], metric)]
    same = [w for w in places if w[2] == case.where[2]]
    return next(iter(same or places), None)


def _p(samples: Mapping[str, Sample], weights: Weights) -> Range | None:
    if not set(weights) <= set(samples):
        return None
    try:
        return Range.of(estimate(samples, weights).p())
    except NotTestable:
        return None
