"""Pairs, declared contrasts and the 2 x 2: weighted sums of condition means, each condition counting once.

The test follows from the unit of replication. EM seeds of one checkpoint per condition: each condition keeps its own
variance (Welch, or Satterthwaite for more than two). Pipeline seeds: blocks, `blocked.contrast`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from workflow.stats import blocked
from workflow.stats.rounding import Range, apart
from workflow.stats.samples import PIPELINE_SEED, NotTestable, Sample, label, same_unit, testable
from workflow.stats.tests import Effect, Estimate, adjust_ranges, cohens_d, hedges_correction, welch


def check_weights(name: str, weights: Mapping[str, float]) -> None:
    """
    Raises:
        ValueError: a weight that is no number, weights that do not sum to zero, or none at all.
    """
    if not all(np.isfinite(w) for w in weights.values()):
        raise ValueError(f"contrast {name}: a weight is NaN or infinite: {dict(weights)}")
    if not any(weights.values()) or abs(sum(weights.values())) > 1e-9:
        raise ValueError(f"contrast {name}: weights {dict(weights)} must sum to zero and not all be zero")


def estimate(samples: Mapping[str, Sample], weights: Mapping[str, float], name: str = "") -> Estimate:
    """The contrast of the named conditions. Of pipeline seeds, every sample given bears on the error.

    Raises:
        ValueError: weights that are no contrast, or a condition without values.
        NotTestable: one value in a condition, or no spread.
    """
    check_weights(name, weights)
    weights = {condition: w for condition, w in weights.items() if w}
    if missing := [condition for condition in weights if condition not in samples]:
        raise ValueError(f"contrast {name}: no values for {', '.join(missing)}")
    cells = [samples[condition] for condition in weights]
    if same_unit(*cells) == PIPELINE_SEED:
        testable(*cells)
        blocks = {c: s for c, s in samples.items() if s.unit == PIPELINE_SEED}
        return blocked.contrast(blocked.checkpoints(blocks), weights)
    if sorted(weights.values()) == [-1.0, 1.0]:
        first = max(weights, key=lambda condition: weights[condition])
        second = min(weights, key=lambda condition: weights[condition])
        return welch(samples[first], samples[second])
    return _satterthwaite(cells, np.array(list(weights.values())))


def _satterthwaite(cells: Sequence[Sample], w: np.ndarray) -> Estimate:
    testable(*cells)
    values = apart(cells)
    value = sum(weight * v.mean(axis=-1) for weight, v in zip(w, values, strict=True))
    variances = [v.var(axis=-1, ddof=1) for v in values]
    n = np.array([cell.n for cell in cells])
    parts = [weight**2 * v / k for weight, v, k in zip(w, variances, n, strict=True)]
    total = sum(parts)
    df = total**2 / sum(part**2 / (k - 1) for part, k in zip(parts, n, strict=True))
    within = np.sqrt(sum((k - 1) * v for v, k in zip(variances, n, strict=True)) / (n.sum() - len(n)))
    scale = float(np.sqrt(np.sum(w**2 / n)))
    effect = Effect(value / within, within, scale, int(n.sum() - len(n)), "the SD within conditions")
    return Estimate(np.asarray(value), np.sqrt(total), df, effect, "Satterthwaite's t test", float(np.sum(w**2)))


# --- results for tables -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One contrast as a row of a table, intervals at 95%; ranges are over printed digits.

    hedges_g is d times the small-sample factor; the noncentral-t interval is exact for the value that both estimate,
    so it is not shrunk with g.
    """

    name: str
    weights: tuple[tuple[str, float], ...]
    n: tuple[int, ...]
    unit: str
    method: str
    difference_first_minus_second: Range
    se: float
    df: float
    ci95_low: float
    ci95_high: float
    t: Range
    p: Range
    cohens_d_first_minus_second: Range
    standardiser: str
    hedges_g_first_minus_second: float
    effect_ci95_low: float
    effect_ci95_high: float
    label: str
    estimate: Estimate
    p_bonferroni: Range | None = None
    p_holm: Range | None = None
    p_tukey: float | None = None
    separate_p: float | None = None

    @property
    def first(self) -> str:
        return self.weights[0][0]

    @property
    def second(self) -> str:
        return self.weights[1][0]


@dataclass(frozen=True)
class Untestable:
    """A contrast that has no test, and why: a table shows it instead of leaving it out."""

    name: str
    first: str
    second: str
    reason: str


def contrast(name: str, samples: Mapping[str, Sample], weights: Mapping[str, float]) -> Comparison:
    """A contrast with everything that a table shows of it."""
    e = estimate(samples, weights, name)
    cells = [samples[condition] for condition, w in weights.items() if w]
    effect = e.effect
    assert effect is not None  # every estimate of `estimate` has one
    low, high = e.interval()
    d_low, d_high = effect.interval()
    straddles = np.min(e.value) < 0 < np.max(e.value)
    p = Range.of(e.p())
    return Comparison(
        name=name,
        weights=tuple((condition, w) for condition, w in weights.items() if w),
        n=tuple(cell.n for cell in cells),
        unit=same_unit(*cells),
        method=e.method,
        difference_first_minus_second=Range.of(e.value),
        se=Range.of(e.se).value,
        df=Range.of(e.df).value,
        ci95_low=Range.of(low).value,
        ci95_high=Range.of(high).value,
        t=Range.of(e.t),
        p=replace(p, high=1.0) if straddles else p,  # zero lies between the corners
        cohens_d_first_minus_second=Range.of(effect.d),
        standardiser=effect.standardiser,
        hedges_g_first_minus_second=hedges_correction(effect.df) * Range.of(effect.d).value,
        effect_ci95_low=Range.of(d_low).value,
        effect_ci95_high=Range.of(d_high).value,
        label=label(*cells),
        estimate=e,
        separate_p=None if e.separate is None else Range.of(e.separate.p()).value,
    )


def compare(samples: Mapping[str, Sample], first: str, second: str) -> Comparison:
    """First minus second."""
    return contrast(f"{first} - {second}", samples, {first: 1.0, second: -1.0})


def compare_all(samples: Mapping[str, Sample], family_size: int | None = None) -> list[Comparison | Untestable]:
    """Every pair, with p adjusted for the whole family; a pair without a test stays in the family and in the list."""
    pairs: list[Comparison | Untestable] = []
    for first, second in combinations(samples, 2):
        try:
            pairs.append(compare(samples, first, second))
        except NotTestable as reason:
            pairs.append(Untestable(f"{first} - {second}", first, second, str(reason)))
    tested = [pair for pair in pairs if isinstance(pair, Comparison)]
    if not tested:
        return pairs
    size = family_size or len(pairs)
    bonferroni, holm = (adjust_ranges([pair.p for pair in tested], name, size) for name in ("bonferroni", "holm"))
    table = blocked.checkpoints(samples) if tested[0].unit == PIPELINE_SEED else None

    def tukey(pair: Comparison) -> float | None:
        return None if table is None else blocked.tukey_p(table, pair.first, pair.second)

    adjusted = iter(
        replace(pair, p_bonferroni=b, p_holm=h, p_tukey=tukey(pair))
        for pair, b, h in zip(tested, bonferroni, holm, strict=True)
    )
    return [next(adjusted) if isinstance(pair, Comparison) else pair for pair in pairs]


def declared_contrasts(
    samples: Mapping[str, Sample], declared: Mapping[str, Mapping[str, float]]
) -> tuple[list[Comparison], dict[str, str]]:
    """Every declared contrast that the samples allow, and for each other one the reason why not, by name."""
    rows, left_out = [], {}
    for name, weights in declared.items():
        if missing := [condition for condition in weights if condition not in samples]:
            left_out[name] = f"no values for {', '.join(missing)}"
            continue
        try:
            rows.append(contrast(name, samples, weights))
        except NotTestable as reason:
            left_out[name] = str(reason)
    return rows, left_out


@dataclass(frozen=True)
class GroupComparison:
    """Two groups of conditions: once as a mean of means, once with all seeds pooled. The two are not interchangeable.

    pooled_seeds: d over the SD of all seeds of a group, which differences between its conditions widen.
    """

    weights: dict[str, float]
    mean_of_means_first: float
    mean_of_means_second: float
    contrast: Comparison
    pooled_seeds: Effect

    @property
    def cohens_d_pooled_seeds_first_minus_second(self) -> Range:
        return Range.of(self.pooled_seeds.d)


def compare_groups(samples: Mapping[str, Sample], first: Sequence[str], second: Sequence[str]) -> GroupComparison:
    """Two groups of conditions, first minus second."""
    if not first or not second or set(first) & set(second):
        raise ValueError(f"groups {list(first)} and {list(second)}: both need a condition, and none may be in both")
    weights = {c: 1 / len(first) for c in first} | {c: -1 / len(second) for c in second}
    row = contrast(f"{'+'.join(first)}_minus_{'+'.join(second)}", samples, weights)
    values = dict(zip(weights, apart([samples[c] for c in weights]), strict=True))
    shape = np.broadcast_shapes(*(v.shape[:-1] for v in values.values()))
    pooled = [
        np.concatenate([np.broadcast_to(values[c], (*shape, values[c].shape[-1])) for c in group], axis=-1)
        for group in (first, second)
    ]
    means = [float(np.mean([samples[c].mean for c in group])) for group in (first, second)]
    return GroupComparison(weights, means[0], means[1], row, replace_standardiser(cohens_d(*pooled)))


def replace_standardiser(effect: Effect) -> Effect:
    return replace(effect, standardiser="the SD of all seeds of a group, pooled over its conditions")


# --- the 2 x 2 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnovaRow:
    """One line of the table: type III sum of squares, F, p, share of the variance left over by the other terms."""

    term: str
    sum_sq: float
    df: int
    df_residual: int
    f: float
    p: float
    partial_eta_squared: float
    unit: str


def anova_2x2(cells: Mapping[tuple[str, str], Sample], factors: tuple[str, str]) -> list[AnovaRow]:
    """Type III table of samples keyed by (level of the first factor, level of the second); pipeline seeds as blocks."""
    a_levels, b_levels = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    if len(cells) != 4 or len(a_levels) != 2 or len(b_levels) != 2:
        raise ValueError(f"a 2 x 2 needs its four cells, got {list(cells)}")
    unit = same_unit(*cells.values())
    testable(*cells.values())
    rows = [
        {"a": a, "b": b, "y": y, "block": s.blocks[i] if s.blocks else 0}
        for (a, b) in product(a_levels, b_levels)
        for s in (cells[a, b],)
        for i, y in enumerate(s.data)
    ]
    block = " + C(block, Sum)" if unit == PIPELINE_SEED else ""
    fit = smf.ols(f"y ~ C(a, Sum) * C(b, Sum){block}", pd.DataFrame(rows)).fit()
    if fit.df_resid < 1 or fit.mse_resid <= (1e-9 * max(abs(row["y"]) for row in rows)) ** 2:
        raise NotTestable("nothing is left to estimate the error from")
    anova = anova_lm(fit, typ=3)
    names = {"C(a, Sum)": factors[0], "C(b, Sum)": factors[1], "C(a, Sum):C(b, Sum)": " x ".join(factors)}
    residual = float(anova.loc["Residual", "sum_sq"])
    return [
        AnovaRow(
            name,
            float(anova.loc[term, "sum_sq"]),
            int(anova.loc[term, "df"]),
            int(fit.df_resid),
            float(anova.loc[term, "F"]),
            float(anova.loc[term, "PR(>F)"]),
            float(anova.loc[term, "sum_sq"] / (anova.loc[term, "sum_sq"] + residual)),
            unit,
        )
        for term, name in names.items()
    ]
