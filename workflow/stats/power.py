"""What could have been seen, and what more seeds or completions would buy for their GPU-hours.

The variance of a condition's mean over P pipeline seeds, E EM seeds each and K completions each is
    checkpoint / P + em / (P E) + completion / (P E K),
in which `checkpoint` is the condition x seed part: what is common to a pipeline seed is a block and leaves every
difference. EM seeds and completions cannot buy the first term back: with P = 1 a design speaks of that checkpoint only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from workflow.stats.samples import EM_SEED, ONE_CHECKPOINT, PIPELINE_SEED, FloatArray

QUANTILES = 20_000


@lru_cache(maxsize=64)
def _relative_sd(df: float) -> FloatArray:
    """Quantiles of s / sigma, a chi variable over sqrt(df), at the middles of QUANTILES equal parts."""
    u = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return np.asarray(np.sqrt(stats.chi2.ppf(u, df) / df))


def power_of_t(difference: float, se: float, df: float, alpha: float = 0.05) -> float:
    """Power of a two-sided t test: over the distribution of its standard error, the normal chance to pass its limit.

    Sound for two replicates and an alpha of .001 too, where scipy's noncentral t gives NaN.
    """
    if not (se > 0 and df > 0 and 0 < alpha < 1):
        raise ValueError(f"se {se}, df {df}, alpha {alpha}: the first two are above zero, alpha lies within 0..1")
    ncp, limit = difference / se, float(stats.t.ppf(1 - alpha / 2, df)) * _relative_sd(df)
    return float(np.mean(stats.norm.sf(limit - ncp) + stats.norm.cdf(-limit - ncp)))


def detectable(df: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference, in standard errors, that a two-sided t test finds with this power."""
    if not 0 < alpha < power < 1:
        raise ValueError(f"alpha {alpha}, power {power}: 0 < alpha < power < 1")
    far = 10.0
    while power_of_t(far, 1.0, df, alpha) < power:
        far *= 2
    return float(optimize.brentq(lambda ncp: power_of_t(ncp, 1.0, df, alpha) - power, 0.0, far, xtol=1e-7))


@dataclass(frozen=True)
class MinimumDetectable:
    """The smallest true difference that a two-sided test of two conditions finds with the power stated.

    in_sds: in SDs of one replicate; of blocks, in residual SDs of checkpoint means. difference: in the metric's units.
    """

    n_per_condition: int
    unit: str
    alpha: float
    power: float
    df: int
    in_sds: float
    difference: float | None


def minimum_detectable(
    n_per_condition: int,
    alpha: float = 0.05,
    power: float = 0.8,
    sd: float | None = None,
    unit: str = EM_SEED,
    n_conditions: int = 2,
) -> MinimumDetectable:
    """At n per condition; alpha is the threshold of one test, so give .05 / 10 for ten pairs under Bonferroni.

    unit: EM seeds are two independent samples, df 2 (n - 1); pipeline seeds are blocks, df (C - 1)(n - 1).
    """
    if n_per_condition < 2:
        raise ValueError(f"n = {n_per_condition}: nothing is detectable with one replicate per condition")
    if sd is not None and sd < 0:
        raise ValueError(f"SD {sd}: negative")
    df = (n_conditions - 1 if unit == PIPELINE_SEED else 2) * (n_per_condition - 1)
    in_sds = detectable(df, alpha, power) * float(np.sqrt(2 / n_per_condition))
    return MinimumDetectable(n_per_condition, unit, alpha, power, df, in_sds, None if sd is None else in_sds * sd)


@dataclass(frozen=True)
class Variances:
    """Variance components of one score: of checkpoints (condition x pipeline seed), EM seeds, single completions."""

    checkpoint: float
    em: float
    completion: float

    def __post_init__(self) -> None:
        if not min(self.checkpoint, self.em, self.completion) >= 0:
            raise ValueError(f"{self}: a variance is negative or no number")


@dataclass(frozen=True)
class Costs:
    """GPU-hours, from records: of one checkpoint, of one EM run, of one completion with its judging."""

    per_pipeline_seed: float
    per_em_seed: float
    per_completion: float


@dataclass(frozen=True)
class Design:
    """How much of each; all conditions alike."""

    pipeline_seeds: int
    em_seeds: int
    completions: int


@dataclass(frozen=True)
class DesignRow:
    """One line of the power table. se_* are of the difference between two conditions."""

    design: Design
    unit: str
    df: int
    se_of_difference: float
    minimum_detectable_difference: float
    gpu_hours: float
    extra_gpu_hours: float
    detectable_difference_saved: float | None  # against the baseline; None where the two answer different questions
    saved_per_gpu_hour: float | None
    label: str


def design_row(
    design: Design,
    variances: Variances,
    costs: Costs,
    n_conditions: int,
    baseline: "DesignRow | None" = None,
    alpha: float = 0.05,
    power: float = 0.8,
) -> DesignRow:
    """One design; saved_per_gpu_hour compares it with the baseline, where there is one that costs less."""
    p, e, k = design.pipeline_seeds, design.em_seeds, design.completions
    if min(p, e, k) < 1 or p * e < 2 or n_conditions < 2:
        raise ValueError(f"{design}: needs at least one of each, two runs per condition and two conditions")
    one_checkpoint = p == 1  # its own deviation stays in every replicate and is invisible
    variance = variances.em / (p * e) + variances.completion / (p * e * k)
    variance += 0.0 if one_checkpoint else variances.checkpoint / p
    se = float(np.sqrt(2 * variance))
    df = 2 * (e - 1) if one_checkpoint else (n_conditions - 1) * (p - 1)
    difference = detectable(df, alpha, power) * se
    hours = n_conditions * p * (costs.per_pipeline_seed + e * (costs.per_em_seed + k * costs.per_completion))
    extra = 0.0 if baseline is None else hours - baseline.gpu_hours
    saved = None
    if baseline is not None and (baseline.design.pipeline_seeds == 1) == one_checkpoint:
        saved = baseline.minimum_detectable_difference - difference
    return DesignRow(
        design=design,
        unit=EM_SEED if one_checkpoint else PIPELINE_SEED,
        df=df,
        se_of_difference=se,
        minimum_detectable_difference=difference,
        gpu_hours=hours,
        extra_gpu_hours=extra,
        detectable_difference_saved=saved,
        saved_per_gpu_hour=saved / extra if saved is not None and extra > 0 else None,
        label=ONE_CHECKPOINT if one_checkpoint else "",
    )


def power_table(
    designs: Sequence[Design],
    variances: Variances,
    costs: Costs,
    n_conditions: int,
    alpha: float = 0.05,
    power: float = 0.8,
) -> list[DesignRow]:
    """The first design is the baseline. Savings are given only between designs that answer the same question: one
    checkpoint's difference and a condition's difference are not the same quantity."""
    if not designs:
        raise ValueError("no designs")
    baseline = design_row(designs[0], variances, costs, n_conditions, None, alpha, power)
    rest = (design_row(d, variances, costs, n_conditions, baseline, alpha, power) for d in designs[1:])
    return [baseline, *rest]
