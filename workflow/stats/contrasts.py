"""Pairs, declared contrasts and the 2 x 2: weighted sums of condition means, each condition counting once.

The test follows from the unit of replication. EM seeds of one checkpoint per condition: each condition keeps its own
variance. Pipeline seeds: blocks, `blocked.contrast`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from workflow.stats import blocked
from workflow.stats.rounding import Range
from workflow.stats.samples import CONSTANT, PIPELINE_SEED, NotTestable, Sample, same_unit, testable
from workflow.stats.tests import Estimate, adjust_ranges, separate_variances

Weights = Mapping[str, float]


def pair(first: str, second: str) -> dict[str, float]:
    """Weights of first minus second."""
    return {first: 1.0, second: -1.0}


def means_of(first: Sequence[str], second: Sequence[str]) -> dict[str, float]:
    """Weights of one group of conditions minus another, each a mean of means."""
    return {c: 1 / len(first) for c in first} | {c: -1 / len(second) for c in second}


def check_weights(weights: Weights) -> Weights:
    """The weights, which are numbers, sum to zero and are not all zero; or a ValueError."""
    if not all(np.isfinite(w) for w in weights.values()):
        raise ValueError(f"a weight is NaN or infinite: {dict(weights)}")
    if not any(weights.values()) or abs(sum(weights.values())) > 1e-9:
        raise ValueError(f"weights {dict(weights)} must sum to zero and not all be zero")
    return weights


def estimate(samples: Mapping[str, Sample], weights: Weights) -> Estimate:
    """The contrast of the named conditions. Of pipeline seeds, every sample given bears on the error.

    Raises:
        ValueError: weights that are no contrast, or a condition without values.
        NotTestable: one value in a condition, or no spread.
    """
    weights = {condition: w for condition, w in check_weights(weights).items() if w}
    if missing := [condition for condition in weights if condition not in samples]:
        raise NotTestable(f"no values for {', '.join(missing)}")
    cells = [samples[condition] for condition in weights]
    if same_unit(*cells) == PIPELINE_SEED:
        testable(*cells)
        blocks = {c: s for c, s in samples.items() if s.unit == PIPELINE_SEED}
        return blocked.contrast(blocked.checkpoints(blocks), weights)
    return separate_variances(cells, list(weights.values()))


# --- for tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One contrast as a row of a table: its estimate, or None and the reason why there is no test.

    p_bonferroni, p_holm: over the family of pairs; p_tukey: of blocks with equal SDs.
    """

    name: str
    weights: Weights
    estimate: Estimate | None
    reason: str = ""
    p_bonferroni: Range | None = None
    p_holm: Range | None = None
    p_tukey: float | None = None


def compare(name: str, samples: Mapping[str, Sample], weights: Weights) -> Comparison:
    """A contrast, or why it has no test: a table shows that instead of leaving it out."""
    try:
        return Comparison(name, weights, estimate(samples, weights))
    except NotTestable as reason:
        return Comparison(name, weights, None, str(reason))


def compare_all(samples: Mapping[str, Sample], family_size: int | None = None) -> list[Comparison]:
    """Every pair, with p adjusted for the whole family; a pair without a test stays in the family and in the list."""
    pairs = [compare(f"{a} - {b}", samples, pair(a, b)) for a, b in combinations(samples, 2)]
    p = [c.estimate.p_range() for c in pairs if c.estimate is not None]
    if not p:
        return pairs
    size = family_size or len(pairs)
    adjusted = iter(zip(adjust_ranges(p, "bonferroni", size), adjust_ranges(p, "holm", size), strict=True))
    blocks = all(s.unit == PIPELINE_SEED for s in samples.values())
    table = blocked.checkpoints(samples) if blocks else None
    rows = []
    for c in pairs:
        if c.estimate is not None:
            bonferroni, holm = next(adjusted)
            tukey = None if table is None else blocked.tukey_p(table, *c.weights)
            c = replace(c, p_bonferroni=bonferroni, p_holm=holm, p_tukey=tukey)
        rows.append(c)
    return rows


def anova_2x2(cells: Mapping[tuple[str, str], Sample], factors: tuple[str, str]) -> pd.DataFrame:
    """Type III table of samples keyed by (level of the first factor, level of the second); pipeline seeds as blocks.

    Returns:
        statsmodels' columns sum_sq, df, F, PR(>F), with df_residual and partial_eta_squared; a row per term.
    """
    if len(cells) != 4 or any(len({key[i] for key in cells}) != 2 for i in (0, 1)):
        raise ValueError(f"a 2 x 2 needs its four cells, got {list(cells)}")
    unit = same_unit(*cells.values())
    testable(*cells.values())
    rows = [
        {"a": a, "b": b, "y": y, "block": s.blocks[i] if s.blocks else 0}
        for (a, b), s in cells.items()
        for i, y in enumerate(s.data)
    ]
    block = " + C(block, Sum)" if unit == PIPELINE_SEED else ""
    fit = smf.ols(f"y ~ C(a, Sum) * C(b, Sum){block}", pd.DataFrame(rows)).fit()
    if fit.df_resid < 1 or fit.mse_resid <= (CONSTANT * max(abs(row["y"]) for row in rows)) ** 2:
        raise NotTestable("nothing is left to estimate the error from")
    anova = anova_lm(fit, typ=3)
    names = {"C(a, Sum)": factors[0], "C(b, Sum)": factors[1], "C(a, Sum):C(b, Sum)": " x ".join(factors)}
    residual = anova.loc["Residual"]
    anova["df_residual"] = residual["df"]
    anova["partial_eta_squared"] = anova["sum_sq"] / (anova["sum_sq"] + residual["sum_sq"])
    return anova.loc[list(names)].rename(index=names)
