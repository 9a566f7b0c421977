"""Estimates with their intervals, effect sizes, corrections for many tests, one value against its replicates.

Arrays throughout: last axis of a sample = replicates, leading axes broadcast. Positive = the first-named is higher.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from workflow.stats.rounding import Range, apart, from_moments
from workflow.stats.samples import (
    PIPELINE_SEED,
    FloatArray,
    NotTestable,
    Sample,
    is_constant,
    t_quantile,
    testable,
    without_float_rest,
)

MANY = 400
CORRECTIONS = ("none", "bonferroni", "holm")


def check_alpha(alpha: float) -> float:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha}: a level lies between 0 and 1")
    return alpha


def check_margin(margin: float) -> float:
    if not (margin > 0 and np.isfinite(margin)):
        raise ValueError(f"margin {margin}: equivalence needs a margin above zero")
    return margin


# --- estimates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """An estimate divided by a standardiser, named in words and in the metric's units (sd).

    scale: d / scale has a noncentral t of df degrees of freedom.
    """

    d: FloatArray
    sd: FloatArray
    scale: float
    df: Any
    standardiser: str

    def interval(self, alpha: float = 0.05) -> tuple[FloatArray, FloatArray]:
        """1 - alpha interval of the population's value, by the noncentral t (equal variances).

        Its ends rise with d, smoothly: of many d they are interpolated, which moves them by less than 1e-4.
        """
        t = np.asarray(self.d / self.scale)
        few = t if t.size <= MANY else np.linspace(t.min(), t.max(), MANY)
        ends = (special.nctdtrinc(self.df, p, few) * self.scale for p in (1 - alpha / 2, alpha / 2))
        low, high = (end if few is t else np.interp(t, few, end) for end in ends)
        return low, high


@dataclass(frozen=True)
class Estimate:
    """A difference with the standard error and the degrees of freedom that decide, arrays of one shape (...).

    Attributes:
        method: the test behind it, in words.
        n_weights: sum of squared weights of the conditions; 2 for a pair.
        separate: the same difference with another error, that its verdict is held against; None if there is none.
    """

    value: FloatArray
    se: FloatArray
    df: FloatArray
    effect: Effect | None
    method: str
    n_weights: float = 2.0
    separate: "Estimate | None" = None

    @property
    def t(self) -> FloatArray:
        return self.value / self.se

    def interval(self, alpha: Any = 0.05) -> tuple[FloatArray, FloatArray]:
        """The 1 - alpha interval; alpha broadcasts."""
        half = stats.t.ppf(1 - np.asarray(alpha) / 2, self.df) * self.se
        return self.value - half, self.value + half

    def p(self, null: float = 0.0) -> FloatArray:
        """Two-sided p of the difference being `null`."""
        return np.asarray(2 * stats.t.sf(np.abs(self.value - null) / self.se, self.df))

    def tost_p(self, margin: float) -> FloatArray:
        """p of two one-sided tests against (-margin, +margin): the larger of the two."""
        check_margin(margin)
        above = stats.t.sf((self.value + margin) / self.se, self.df)
        below = stats.t.cdf((self.value - margin) / self.se, self.df)
        return np.asarray(np.maximum(above, below))


def welch(first: Sample, second: Sample) -> Estimate:
    """First minus second by Welch's t test, with Cohen's d.

    Raises:
        NotTestable: one value in a sample, or no spread in either.
    """
    testable(first, second)
    a, b = apart([first, second])
    with warnings.catch_warnings():  # one constant sample is no loss: the other has the spread
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.ttest_ind(a, b, axis=-1, equal_var=False)
    value = a.mean(axis=-1) - b.mean(axis=-1)
    se = np.sqrt(a.var(axis=-1, ddof=1) / first.n + b.var(axis=-1, ddof=1) / second.n)
    return Estimate(value, se, np.asarray(result.df), cohens_d(a, b), "Welch's t test")


def cohens_d(a: FloatArray, b: FloatArray) -> Effect:
    """Cohen's d of two arrays (..., n): mean difference / pooled SD. Positive: a above b."""
    n1, n2 = a.shape[-1], b.shape[-1]
    variance = ((n1 - 1) * a.var(axis=-1, ddof=1) + (n2 - 1) * b.var(axis=-1, ddof=1)) / (n1 + n2 - 2)
    sd = np.sqrt(variance)
    d = (a.mean(axis=-1) - b.mean(axis=-1)) / sd
    return Effect(d, sd, float(np.sqrt(1 / n1 + 1 / n2)), n1 + n2 - 2, "the pooled SD of the two samples")


def hedges_correction(df: float) -> float:
    """Exact small-sample factor J(df): g = J d, about 1 - 3 / (4 df - 1)."""
    return float(np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2)) if df > 1 else 1.0


def one_sample(changes: Sample) -> Estimate:
    """The mean of one sample against zero, by its own spread."""
    testable(changes)
    v = changes.values
    sd = v.std(axis=-1, ddof=1)
    value, se = v.mean(axis=-1), sd / np.sqrt(changes.n)
    df = np.full(np.shape(value), changes.n - 1.0)
    effect = Effect(value / sd, sd, float(1 / np.sqrt(changes.n)), changes.n - 1, "the SD of the changes")
    return Estimate(value, se, df, effect, "one-sample t test of the changes", n_weights=1.0)


def change(after: Sample, before: Sample) -> Sample:
    """After EM minus before it, paired by checkpoint.

    One checkpoint: its one value before EM is subtracted from each of its EM seeds. Several: each checkpoint's mean
    after EM minus its own value before.

    Raises:
        NotTestable: there are no pairs.
    """
    if after.unit != PIPELINE_SEED:
        if before.n > 1:
            raise NotTestable(f"{before.n} values before EM of one checkpoint: which one its EM seeds started from?")
        if not (after.is_printed or before.is_printed):
            values = without_float_rest(after.values - before.mean, after.values, before.values)
            return Sample(values, after.unit, after.n_pipeline_seeds)
        rounding = after.mean_rounding + before.mean_rounding
        return from_moments(after.mean - before.mean, after.spread, after.n, rounding, after.sd_rounding, after.unit)
    common = [seed for seed in after.blocks if seed in before.blocks]
    if not common:
        raise NotTestable("no checkpoint was measured both before and after EM")
    parts = [s.values[..., [s.blocks.index(seed) for seed in common]] for s in (after, before)]
    return Sample(without_float_rest(parts[0] - parts[1], *parts), after.unit, len(common), blocks=tuple(common))


# --- many tests -------------------------------------------------------------------------------------------------------


def adjust(p_values: Sequence[float] | FloatArray, correction: str, n_tests: int | None = None) -> FloatArray:
    """Adjusted p, shape of p_values, each to be compared with alpha itself.

    n_tests is the size of the planned family when some of its tests could not be made: they count as p = 1, so that a
    missing cell does not make the others look better.
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"correction {correction!r}: one of {', '.join(CORRECTIONS)}")
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or p.size == 0 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p values: one dimension, at least one, each within 0..1")
    if n_tests is not None and n_tests < p.size:
        raise ValueError(f"{p.size} p values in a family of {n_tests}")
    if correction == "none":
        return p
    padded = np.concatenate([p, np.ones((n_tests or p.size) - p.size)])
    return np.array(_corrected(tuple(padded.tolist()), correction))[: p.size]


@lru_cache(maxsize=256)
def _corrected(p: tuple[float, ...], method: str) -> tuple[float, ...]:
    """Kept, because statsmodels' Holm collects garbage on every call (50 ms), and claims share their families."""
    return tuple(multipletests(p, method=method)[1].tolist())


def levels(p_values: Sequence[float], alpha: float, correction: str, n_tests: int) -> list[float]:
    """The alpha at which each test of a family is made: alpha, alpha / n_tests, or Holm's step.

    Under Holm a test's step is alpha / (n_tests - tests that were rejected before it); after the first that is not
    rejected, every other stays at that step.
    """
    check_alpha(alpha)
    p = np.asarray(p_values, dtype=np.float64)
    if correction == "none" or p.size == 0:
        return [alpha] * p.size
    if correction == "bonferroni":
        return [alpha / n_tests] * p.size
    steps, rejected, going = np.empty(p.size), 0, True
    for i in np.argsort(p, kind="stable"):
        steps[i] = alpha / (n_tests - rejected)
        going = going and bool(p[i] < steps[i])
        rejected += going
    return [float(step) for step in steps]


def adjust_ranges(ranges: Sequence[Range], correction: str, n_tests: int | None = None) -> list[Range]:
    """Ranges of adjusted p: both corrections rise with every p, so ends go to ends."""
    ends = [adjust([getattr(r, end) for r in ranges], correction, n_tests) for end in ("value", "low", "high")]
    return [Range(*map(float, row)) for row in zip(*ends, strict=True)]


# --- one value against its replicates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SingleValue:
    """One value against others. z divides by their SD; the prediction t also counts that their mean is estimated."""

    value: float
    mean_of_others: float
    sd_of_others: float
    n_others: int
    unit: str
    z: Range
    prediction_t: Range
    df: int
    p: Range
    prediction95_low: float
    prediction95_high: float

    @property
    def inside(self) -> bool:
        """Whether the value lies within the 95% prediction interval of one more replicate."""
        return self.prediction95_low <= self.value <= self.prediction95_high


def single_value(value: float, others: Sample, value_rounding: float = 0.0) -> SingleValue:
    """Prediction-interval t of one value, (value - mean) / (SD sqrt(1 + 1/n)), df n - 1, and z."""
    if not np.isfinite(value):
        raise ValueError(f"value {value}: NaN or infinite")
    if value_rounding < 0:
        raise ValueError(f"rounding {value_rounding}: negative")
    testable(others)
    values = np.array([value, value - value_rounding, value + value_rounding])[:, None]
    flat = others.values.reshape(-1, others.n)
    z = (values - flat.mean(axis=-1)) / flat.std(axis=-1, ddof=1)
    widen = float(np.sqrt(1 + 1 / others.n))
    half = float(t_quantile(others.n - 1)) * others.spread * widen
    return SingleValue(
        value=value,
        mean_of_others=others.mean,
        sd_of_others=others.spread,
        n_others=others.n,
        unit=others.unit,
        z=Range.of(z),
        prediction_t=Range.of(z / widen),
        df=others.n - 1,
        p=Range.of(2 * stats.t.sf(np.abs(z / widen), others.n - 1)),
        prediction95_low=others.mean - half,
        prediction95_high=others.mean + half,
    )


@dataclass(frozen=True)
class WithinToBetween:
    """Range of the condition means over the median of their SDs."""

    range_of_means: Range
    median_sd: Range
    ratio_range_over_median_sd: Range
    n_conditions: int
    unit: str


def within_to_between(samples: Mapping[str, Sample]) -> WithinToBetween:
    """Over at least two conditions, each with n >= 2; the extremes over printed digits are exact."""
    cells = list(samples.values())
    if len(cells) < 2:
        raise ValueError("a range of means needs two conditions")
    means, sds = np.array([c.mean for c in cells]), np.array([c.spread for c in cells])
    slack, rounding = np.array([c.mean_rounding for c in cells]), np.array([c.sd_rounding for c in cells])
    low, high = np.max(means - slack) - np.min(means + slack), np.max(means + slack) - np.min(means - slack)
    spread = Range(float(np.ptp(means)), max(0.0, float(low)), float(high))
    median = Range(*(float(np.median(x)) for x in (sds, np.maximum(sds - rounding, 0), sds + rounding)))
    if median.low <= 0 or any(is_constant(c.values) for c in cells if len(cells) == 2):
        raise NotTestable("median SD is zero")
    ratio = Range(spread.value / median.value, spread.low / median.high, spread.high / median.low)
    return WithinToBetween(spread, median, ratio, len(cells), cells[0].unit)
