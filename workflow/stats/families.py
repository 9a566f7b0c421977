"""The tests that share an alpha with those of a claim, and the level that each is made at."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from workflow.stats.claims_rules import Case
from workflow.stats.contrasts import Weights, estimate, pair
from workflow.stats.evidence import Missing
from workflow.stats.rounding import Range
from workflow.stats.samples import NotTestable, Sample
from workflow.stats.tests import Correction, adjust_ranges, levels


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
