"""Printed figures as data: a printed cell becomes `n` values with exactly its mean and SD, once for every corner of
what its digits allow. A statistic of them is an array, and its range is the range over that array.

A printed 25.71 is a number within 25.705..25.715. t, d and estimates are monotone in each mean and SD, so their
extremes lie at the corners.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import product
from typing import Any

import numpy as np

from workflow.stats.samples import EM_SEED, PIPELINE_SEED, FloatArray, Sample, t_quantile

UNDETERMINED = "undetermined at this precision"


@dataclass(frozen=True)
class Range:
    """A statistic of the data, and the least and greatest that printed digits allow; one point for raw values."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, array: Any) -> "Range":
        """From a statistic's array: the first element is that of the data themselves."""
        a = np.asarray(array, dtype=np.float64)
        return cls(float(a.flat[0]), float(a.min()), float(a.max()))

    def contains(self, number: float, slack: float = 0.0) -> bool:
        """Whether the number lies in the range, give or take slack (half a unit of its own last digit)."""
        slack += 1e-9 * max(1.0, abs(number))
        return self.low - slack <= number <= self.high + slack

    def below(self, threshold: float) -> str:
        """Whether the statistic is under the threshold: yes, no, or undetermined at this precision."""
        if self.high < threshold:
            return "yes"
        return "no" if self.low >= threshold else UNDETERMINED

    @property
    def exact(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Printed:
    """A figure as printed: its value and half a unit of its last digit."""

    value: float
    half_unit: float

    @classmethod
    def parse(cls, text: str) -> "Printed":
        """From text, because 0.030 as a number has lost the digit that says how well it is known."""
        try:
            number = Decimal(text)
        except InvalidOperation:
            raise ValueError(f"{text!r}: not a number") from None
        if not number.is_finite():
            raise ValueError(f"{text!r}: NaN or infinite")
        last_digit = int(number.as_tuple().exponent)
        return cls(float(number), float(Decimal((0, (5,), last_digit - 1))))


def printed_p(text: str, decimals: int | None = None) -> Range:
    """A printed p as a range. A p of 0.0 is a bound, not a zero: under half a unit of the last printed digit.

    decimals: to how many digits the column is printed, where the text itself has dropped trailing zeros.
    """
    printed = Printed.parse(text)
    half = printed.half_unit if decimals is None else 0.5 * 10.0**-decimals
    if not 0 <= printed.value <= 1:
        raise ValueError(f"{text!r}: a p lies within 0..1")
    if printed.value == 0:
        return Range(half, 0.0, half)
    return Range(printed.value, max(0.0, printed.value - half), min(1.0, printed.value + half))


def from_moments(
    mean: float, sd: float, n: int, mean_rounding: float = 0.0, sd_rounding: float = 0.0, unit: str = EM_SEED
) -> Sample:
    """`n` values with exactly this mean and SD, and one row more for each further corner of the rounding.

    An SD that is printed as 0 is small, not absent.
    """
    if n < 2:
        raise ValueError(f"n = {n}: one value has no SD")
    if not (sd >= 0 and mean_rounding >= 0 and sd_rounding >= 0):
        raise ValueError(f"SD {sd}, rounding {mean_rounding} and {sd_rounding}: none may be negative")
    pattern = np.arange(n) - (n - 1) / 2
    pattern /= pattern.std(ddof=1)
    means = dict.fromkeys((mean, mean - mean_rounding, mean + mean_rounding))
    sds = dict.fromkeys((sd, max(sd - sd_rounding, 1e-6 * (sd + sd_rounding)), sd + sd_rounding))
    rows = np.array([m + s * pattern for m, s in product(means, sds)])
    return Sample(rows if len(rows) > 1 else rows[0], unit, (), mean_rounding, sd_rounding)


def from_mean_and_ci(mean: str, ci95_half_width: str, n: int, unit: str = EM_SEED) -> Sample:
    """Sample of a printed mean and its 95% Student t half-width: SD = half-width * sqrt(n) / t."""
    centre, half = Printed.parse(mean), Printed.parse(ci95_half_width)
    to_sd = float(np.sqrt(n) / t_quantile(n - 1))
    return from_moments(centre.value, half.value * to_sd, n, centre.half_unit, half.half_unit * to_sd, unit)


def from_single(value: str) -> Sample:
    """Sample of one printed value of one checkpoint: n = 1, no interval."""
    printed = Printed.parse(value)
    return Sample(np.array([printed.value]), PIPELINE_SEED, (), printed.half_unit)


def apart(samples: Sequence[Sample]) -> list[FloatArray]:
    """The samples' values with every printed one on an axis of its own, so that they broadcast over all corners."""
    if not any(s.is_printed for s in samples):
        return [s.values for s in samples]
    axes = range(len(samples))
    return [s.values.reshape(*(-1 if axis == i else 1 for axis in axes), s.n) for i, s in enumerate(samples)]
