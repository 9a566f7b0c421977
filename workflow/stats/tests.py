"""Estimates with their intervals, effect sizes, corrections for many tests, one value against its replicates.

Arrays throughout: last axis of a sample = replicates, leading axes broadcast. Positive = the first-named is higher.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

from workflow.stats.rounding import Range, apart, from_moments
from workflow.stats.samples import (
    CONSTANT,
    PIPELINE_SEED,
    FloatArray,
    NotTestable,
    Sample,
    t_quantile,
    testable,
    without_float_rest,
)

MANY = 400
Correction = Literal["none", "bonferroni", "holm"]
Ends = tuple[FloatArray, FloatArray]


# --- estimates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """An estimate divided by a standardiser, named in words and in the metric's units (sd).

    scale: d / scale has a noncentral t of df degrees of freedom.
    """

    d: FloatArray
    sd: FloatArray
    scale: float
    df: int
    standardiser: str

    def interval(self, alpha: float = 0.05) -> Ends:
        """1 - alpha interval of the population's value, by the noncentral t (equal variances).

        Its ends rise with d, smoothly: of many d they are interpolated, which moves them by less than 1e-4.
        """
        t = np.asarray(self.d / self.scale)
        few = t if t.size <= MANY else np.linspace(t.min(), t.max(), MANY)
        ends = (special.nctdtrinc(self.df, p, few) * self.scale for p in (1 - alpha / 2, alpha / 2))
        low, high = (end if few is t else np.interp(t, few, end) for end in ends)
        return low, high

    @property
    def hedges_g(self) -> float:
        """d times the exact small-sample factor J(df), about 1 - 3 / (4 df - 1). The interval is exact for the value
        that both estimate, so it is not shrunk with g."""
        j = np.exp(special.gammaln(self.df / 2) - special.gammaln((self.df - 1) / 2)) / np.sqrt(self.df / 2)
        return float(j if self.df > 1 else 1.0) * Range.of(self.d).value


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
    effect: Effect
    method: str
    n_weights: float = 2.0
    separate: "Estimate | None" = None

    @property
    def t(self) -> FloatArray:
        return self.value / self.se

    def interval(self, alpha: float = 0.05) -> Ends:
        half = stats.t.ppf(1 - np.asarray(alpha) / 2, self.df) * self.se
        return self.value - half, self.value + half

    def p(self, null: float = 0.0) -> FloatArray:
        """Two-sided p of the difference being `null`."""
        return np.asarray(2 * stats.t.sf(np.abs(self.value - null) / self.se, self.df))

    def p_range(self) -> Range:
        """p over what printed digits allow: 1 is among them where zero lies between the corners."""
        p = Range.of(self.p())
        return Range(p.value, p.low, 1.0) if np.min(self.value) < 0 < np.max(self.value) else p

    def tost_p(self, margin: float) -> FloatArray:
        """p of two one-sided tests against (-margin, +margin): the larger of the two."""
        above = stats.t.sf((self.value + margin) / self.se, self.df)
        below = stats.t.cdf((self.value - margin) / self.se, self.df)
        return np.asarray(np.maximum(above, below))


def separate_variances(samples: Sequence[Sample], weights: Sequence[float]) -> Estimate:
    """A weighted sum of means, each with its own variance: Welch's t test of a pair, Satterthwaite's of more.

    Raises:
        NotTestable: one value in a sample, or no spread in any.
    """
    testable(*samples)
    values = apart(samples)
    parts = [w**2 * v.var(axis=-1, ddof=1) / s.n for w, v, s in zip(weights, values, samples, strict=True)]
    if sorted(weights) == [-1, 1]:
        method = "Welch's t test"
        with warnings.catch_warnings():  # one constant sample is no loss: the other has the spread
            warnings.simplefilter("ignore", RuntimeWarning)
            df = stats.ttest_ind(*values, axis=-1, equal_var=False).df
    else:
        method = "Satterthwaite's t test"
        df = sum(parts) ** 2 / sum(part**2 / (s.n - 1) for part, s in zip(parts, samples, strict=True))
    value, se, n_weights = _weighted_mean(values, weights), np.sqrt(sum(parts)), sum(w**2 for w in weights)
    return Estimate(value, se, np.asarray(df), cohens_d(values, weights), method, n_weights)


def _weighted_mean(values: Sequence[FloatArray], weights: Sequence[float]) -> FloatArray:
    return np.asarray(sum(w * v.mean(axis=-1) for w, v in zip(weights, values, strict=True)))


def cohens_d(values: Sequence[FloatArray], weights: Sequence[float] = (1.0, -1.0)) -> Effect:
    """A weighted sum of means over the SD within the arrays (..., n), pooled. Of two: positive where the first is above
    the second."""
    n = [v.shape[-1] for v in values]
    df = sum(n) - len(n)
    sd = np.sqrt(sum((k - 1) * v.var(axis=-1, ddof=1) for v, k in zip(values, n, strict=True)) / df)
    scale = float(np.sqrt(sum(w**2 / k for w, k in zip(weights, n, strict=True))))
    standardiser = "the pooled SD of the two samples" if len(n) == 2 else "the SD within conditions"
    return Effect(_weighted_mean(values, weights) / sd, sd, scale, df, standardiser)


def pooled_seeds_d(samples: Mapping[str, Sample], first: Sequence[str], second: Sequence[str]) -> Effect:
    """d of two groups of conditions over the SD of all seeds of a group, which differences between its conditions
    widen: not interchangeable with d within conditions."""
    values = dict(zip([*first, *second], apart([samples[c] for c in (*first, *second)]), strict=True))
    shape = np.broadcast_shapes(*(v.shape[:-1] for v in values.values()))
    groups = [
        np.concatenate([np.broadcast_to(values[c], (*shape, values[c].shape[-1])) for c in group], axis=-1)
        for group in (first, second)
    ]
    return replace(cohens_d(groups), standardiser="the SD of all seeds of a group, pooled over its conditions")


def one_sample(changes: Sample) -> Estimate:
    """The mean of one sample against zero, by its own spread."""
    testable(changes)
    v = changes.values
    sd = v.std(axis=-1, ddof=1)
    value, scale, df = v.mean(axis=-1), float(1 / np.sqrt(changes.n)), changes.n - 1
    effect = Effect(value / sd, sd, scale, df, "the SD of the changes")
    dfs, method = np.full(np.shape(value), float(df)), "one-sample t test of the changes"
    return Estimate(value, sd / np.sqrt(changes.n), dfs, effect, method, n_weights=1.0)


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
            return Sample(values, after.unit, records=after.records + before.records)
        rounding = after.mean_rounding + before.mean_rounding
        return from_moments(after.mean - before.mean, after.spread, after.n, rounding, after.sd_rounding, after.unit)
    common = tuple(seed for seed in after.blocks if seed in before.blocks)
    if not common:
        raise NotTestable("no checkpoint was measured both before and after EM")
    parts = [s.values[..., [s.blocks.index(seed) for seed in common]] for s in (after, before)]
    values = without_float_rest(parts[0] - parts[1], *parts)
    return Sample(values, after.unit, common, records=after.records + before.records)


# --- many tests -------------------------------------------------------------------------------------------------------


def adjust(p_values: Sequence[float], correction: Correction, n_tests: int | None = None) -> list[float]:
    """Adjusted p, each to be compared with alpha itself.

    n_tests is the size of the planned family when some of its tests could not be made: they count as p = 1, so that a
    missing cell does not make the others look better.
    """
    if correction == "none":
        return list(p_values)
    missing = (n_tests or len(p_values)) - len(p_values)
    return list(_corrected((*p_values, *[1.0] * missing), correction))[: len(p_values)]


@lru_cache(maxsize=256)
def _corrected(p: tuple[float, ...], method: str) -> tuple[float, ...]:
    """Kept, because statsmodels' Holm collects garbage on every call (50 ms), and claims share their families."""
    return tuple(multipletests(p, method=method)[1].tolist())


def adjust_ranges(ranges: Sequence[Range], correction: Correction, n_tests: int | None = None) -> list[Range]:
    """Ranges of adjusted p: both corrections rise with every p, so ends go to ends."""
    ends = [adjust([getattr(r, end) for r in ranges], correction, n_tests) for end in ("value", "low", "high")]
    return [Range(*row) for row in zip(*ends, strict=True)]


def levels(p_values: Sequence[float], alpha: float, correction: Correction, n_tests: int) -> list[float]:
    """The alpha at which each test of a family is made: alpha, alpha / n_tests, or Holm's step.

    Under Holm a test's step is alpha / (n_tests - tests that were rejected before it); after the first that is not
    rejected, every other stays at that step.
    """
    if correction != "holm":
        return [alpha / (n_tests if correction == "bonferroni" else 1)] * len(p_values)
    steps, rejected, going = [alpha] * len(p_values), 0, True
    for i in np.argsort(p_values, kind="stable"):
        steps[i] = alpha / (n_tests - rejected)
        going = going and p_values[i] < steps[i]
        rejected += going
    return steps


# --- one value against its replicates ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SingleValue:
    """One value against others. z divides by their SD; the prediction t also counts that their mean is estimated."""

    value: float
    others: Sample
    z: Range
    prediction_t: Range
    p: Range
    prediction95_low: float
    prediction95_high: float

    @property
    def inside(self) -> bool:
        """Whether the value lies within the 95% prediction interval of one more replicate."""
        return self.prediction95_low <= self.value <= self.prediction95_high


def single_value(value: float, others: Sample, value_rounding: float = 0.0) -> SingleValue:
    """Prediction-interval t of one value, (value - mean) / (SD sqrt(1 + 1/n)), df n - 1, and z."""
    testable(others)
    corners = np.array([value, value - value_rounding, value + value_rounding])[:, None]
    flat = others.values.reshape(-1, others.n)
    z = (corners - flat.mean(axis=-1)) / flat.std(axis=-1, ddof=1)
    widen = float(np.sqrt(1 + 1 / others.n))
    p = 2 * stats.t.sf(np.abs(z / widen), others.n - 1)
    half = float(t_quantile(others.n - 1)) * others.spread * widen
    low, high = others.mean - half, others.mean + half
    return SingleValue(value, others, Range.of(z), Range.of(z / widen), Range.of(p), low, high)


@dataclass(frozen=True)
class WithinToBetween:
    """Range of the condition means over the median of their SDs."""

    range_of_means: Range
    median_sd: Range
    ratio_range_over_median_sd: Range


def within_to_between(samples: Mapping[str, Sample]) -> WithinToBetween:
    """Over at least two conditions, each with n >= 2."""
    testable(*samples.values())
    values = apart(list(samples.values()))
    means = np.stack(np.broadcast_arrays(*(v.mean(axis=-1) for v in values)))
    sds = np.stack(np.broadcast_arrays(*(v.std(axis=-1, ddof=1) for v in values)))
    spread, median = np.ptp(means, axis=0), np.median(sds, axis=0)
    if np.min(median) <= CONSTANT * np.max(np.abs(means)):
        raise NotTestable("median SD is zero")
    return WithinToBetween(Range.of(spread), Range.of(median), Range.of(spread / median))
