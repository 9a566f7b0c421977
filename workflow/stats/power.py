"""What could have been seen, and what more seeds or completions would buy for their GPU-hours."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from workflow.stats.samples import EM_SEED, PIPELINE_SEED, FloatArray

QUANTILES = 20_000


@lru_cache(maxsize=64)
def _relative_sd(df: float) -> FloatArray:
    """Quantiles of s / sigma, a chi variable over sqrt(df), at the middles of QUANTILES equal parts."""
    u = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.asarray(np.sqrt(stats.chi2.ppf(u, df) / df))


def power_of_t(ncp: float, df: float, alpha: float = 0.05) -> float:
    """Power of a two-sided t test at a true difference of `ncp` standard errors: over the distribution of its estimated
    error, the normal chance to pass its limit.

    Sound for two replicates at an alpha of .001 too, where scipy's noncentral t gives NaN and statsmodels' solver errs.
    """
    limit = float(stats.t.ppf(1 - alpha / 2, df)) * _relative_sd(df)
    return float(np.mean(stats.norm.sf(limit - ncp) + stats.norm.cdf(-limit - ncp)))


def detectable(df: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference, in standard errors, that a two-sided t test finds with this power."""
    if not (df > 0 and 0 < alpha < power < 1):
        raise ValueError(f"df {df}, alpha {alpha}, power {power}: df > 0 and 0 < alpha < power < 1")
    far = 10.0
    while power_of_t(far, df, alpha) < power:
        far *= 2
    return float(optimize.brentq(lambda ncp: power_of_t(ncp, df, alpha) - power, 0.0, far, xtol=1e-7))


def minimum_detectable(n: int, alpha: float = 0.05, unit: str = EM_SEED, n_conditions: int = 2) -> float:
    """The smallest true difference of two conditions that is found with power .8 at n replicates per condition.

    In SDs of one replicate; of pipeline seeds, which are blocks, in residual SDs of checkpoint means. alpha is the
    threshold of one test: .05 / 10 for ten pairs under Bonferroni.
    """
    df = (n_conditions - 1 if unit == PIPELINE_SEED else 2) * (n - 1)
    return detectable(df, alpha) * float(np.sqrt(2 / n))


# --- what more runs would buy -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerLevel:
    """A variance component of one score, or its cost in GPU-hours: of a checkpoint (condition x pipeline seed), of an
    EM seed, of a completion with its judging."""

    checkpoint: float
    em: float
    completion: float


@dataclass(frozen=True)
class Design:
    """Pipeline seeds, EM seeds of each, completions of each; all conditions alike.

    The variance of a condition's mean is checkpoint / P + em / (P E) + completion / (P E K); what is common to a
    pipeline seed is a block and leaves every difference. EM seeds and completions cannot buy the first term back: with
    P = 1 a design speaks of that checkpoint only, whose own deviation is in every replicate and invisible.
    """

    pipeline_seeds: int
    em_seeds: int
    completions: int

    def se_of_difference(self, variances: PerLevel) -> float:
        p, e, k = self.pipeline_seeds, self.em_seeds, self.completions
        of_checkpoints = 0.0 if p == 1 else variances.checkpoint / p
        return float(np.sqrt(2 * (of_checkpoints + variances.em / (p * e) + variances.completion / (p * e * k))))

    def detectable_difference(self, variances: PerLevel, n_conditions: int) -> float:
        p = self.pipeline_seeds
        df = 2 * (self.em_seeds - 1) if p == 1 else (n_conditions - 1) * (p - 1)
        return detectable(df) * self.se_of_difference(variances)

    def gpu_hours(self, costs: PerLevel, n_conditions: int) -> float:
        per_checkpoint = costs.checkpoint + self.em_seeds * (costs.em + self.completions * costs.completion)
        return n_conditions * self.pipeline_seeds * per_checkpoint


@dataclass(frozen=True)
class DesignRow:
    """One line of the power table, at .05 and power .8; saved: against the first line, where both answer the same
    question (one checkpoint's difference and a condition's are not the same quantity)."""

    design: Design
    se_of_difference: float
    detectable_difference: float
    gpu_hours: float
    extra_gpu_hours: float
    saved_per_gpu_hour: float | None


def power_table(designs: Sequence[Design], variances: PerLevel, costs: PerLevel, n_conditions: int) -> list[DesignRow]:
    """The first design is the baseline."""
    rows: list[DesignRow] = []
    for d in designs:
        least, hours = d.detectable_difference(variances, n_conditions), d.gpu_hours(costs, n_conditions)
        base = rows[0] if rows else None
        extra, saved = hours - (base.gpu_hours if base else hours), None
        if base and extra > 0 and (base.design.pipeline_seeds == 1) == (d.pipeline_seeds == 1):
            saved = (base.detectable_difference - least) / extra
        rows.append(DesignRow(d, d.se_of_difference(variances), least, hours, extra, saved))
    return rows
