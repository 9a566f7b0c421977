"""Replicates of one condition: mean, SD, n, unit of replication, and the sampling error inside each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import statsmodels.api as sm
from scipy import stats

FloatArray = npt.NDArray[np.float64]
EM_SEED = "EM seed"
PIPELINE_SEED = "pipeline seed"
ONE_CHECKPOINT = "conditional on one checkpoint per condition"
CONSTANT = 1e-9  # values that differ by less than this share of their size are one value; float sums differ by 1e-16


class NotTestable(ValueError):
    """The numbers are sound, but no test exists for them: n = 1, no spread, nothing shared."""


def finite(values: Any, what: str = "values") -> FloatArray:
    """Values as floats, shape (..., n) with n >= 1.

    Raises:
        ValueError: masked, NaN, infinite or missing values.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"{what}: {int(np.ma.getmaskarray(values).sum())} values are masked. Leave them out by name.")
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{what}: empty. A missing cell is shown as missing, not averaged.")
    if bad := int(np.count_nonzero(~np.isfinite(array))):
        raise ValueError(f"{what}: {bad} of {array.size} values are NaN or infinite. Account for them first.")
    return array


def is_constant(values: FloatArray) -> bool:
    """Whether all replicates (last axis) are equal, up to the error of summing floats, in any row."""
    return bool(np.any(np.ptp(values, axis=-1) <= CONSTANT * np.max(np.abs(values), axis=-1)))


def without_float_rest(differences: FloatArray, *operands: FloatArray) -> FloatArray:
    """Differences without what float subtraction left of equal values: rounded to 12 digits of the largest operand."""
    largest = max(float(np.max(np.abs(operand), initial=0.0)) for operand in operands)
    return differences if largest == 0 else np.round(differences, 11 - int(np.floor(np.log10(largest))))


def t_quantile(df: Any, level: float = 0.95) -> Any:
    """Two-sided Student t quantile: 2.262 for df = 9 at 95%."""
    return stats.t.ppf(0.5 + level / 2, df)


@dataclass(frozen=True, eq=False)
class Sample:
    """Replicates of one condition.

    Attributes:
        values: shape (..., n). The first row is the data; further rows are what the digits of printed figures allow.
        unit: what a replicate is. blocks: the pipeline seed of each value, where a pipeline seed is the replicate.
        mean_rounding, sd_rounding: half a unit of the last printed digit; 0 for raw values.
        runs: how many runs are averaged in the values. sampling_se: of each run, where every run has it.
        left_out: seeds that are not used, in words. records: artifacts behind the values.
    """

    values: FloatArray
    unit: str = EM_SEED
    blocks: tuple[int, ...] = ()
    mean_rounding: float = 0.0
    sd_rounding: float = 0.0
    runs: int = 0
    sampling_se: tuple[float, ...] = ()
    left_out: str = ""
    records: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", finite(self.values, f"values per {self.unit}"))
        if self.blocks and len(self.blocks) != self.n:
            raise ValueError(f"{self.n} values and {len(self.blocks)} pipeline seeds")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"a pipeline seed twice in one sample: {self.blocks}")

    @property
    def n(self) -> int:
        return self.values.shape[-1]

    @property
    def n_pipeline_seeds(self) -> int:
        """Checkpoints behind the values: EM seeds are always those of one."""
        return self.n if self.unit == PIPELINE_SEED else 1

    @property
    def is_printed(self) -> bool:
        return self.mean_rounding > 0 or self.sd_rounding > 0

    @property
    def data(self) -> FloatArray:
        """The values themselves, shape (n,)."""
        return self.values.reshape(-1, self.n)[0]

    @property
    def mean(self) -> float:
        return float(self.data.mean())

    @property
    def sd(self) -> float | None:
        """SD between replicates (ddof 1); None for one value, 0 for a constant."""
        if self.n == 1:
            return None
        return 0.0 if is_constant(self.data) else float(self.data.std(ddof=1))

    @property
    def spread(self) -> float:
        """The SD, for tests that cannot run without one."""
        if self.sd is None:
            raise NotTestable("n = 1: no SD, no interval")
        return self.sd

    @property
    def ci95_half_width(self) -> float | None:
        return None if self.sd is None else float(t_quantile(self.n - 1)) * (self.sd / float(np.sqrt(self.n)))


def sample(values: Any, unit: str = EM_SEED, blocks: Sequence[int] = ()) -> Sample:
    """A sample of raw values, shape (n,)."""
    return Sample(values, unit, tuple(blocks))


def same_unit(*samples: Sample) -> str:
    """The unit that all share; different units of replication are never put in one test."""
    units = {s.unit for s in samples}
    if len(units) != 1:
        raise ValueError(f"different units of replication in one comparison: {', '.join(sorted(units))}")
    return units.pop()


def testable(*samples: Sample) -> None:
    """
    Raises:
        NotTestable: a sample of one value, or no spread in any of them.
    """
    same_unit(*samples)
    if any(s.n == 1 for s in samples):
        raise NotTestable("n = 1: no SD, no interval")
    if all(is_constant(s.values) for s in samples):
        raise NotTestable("no spread: every replicate gave the same value")


def label(*samples: Sample) -> str:
    """What every condition-level statement from one pipeline seed must carry; empty otherwise."""
    return ONE_CHECKPOINT if min(s.n_pipeline_seeds for s in samples) == 1 else ""


# --- sampling error inside a cell -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellSampling:
    """Two sampling errors of the mean of one cell's items; None where the items cannot give one.

    se_clustered_by_question: how far the mean would move with other questions of the same kind.
    se_questions_fixed: with other completions of the same questions. Cells share their questions, so only this one is
    part of the spread between seeds.
    """

    se_clustered_by_question: float | None
    se_questions_fixed: float | None


def clustered_mean(values: Any, questions: Sequence[Any]) -> CellSampling:
    """Errors of a mean over items, shape (n,), with the question of each item, shape (n,)."""
    y = finite(values, "item scores")
    if len(questions) != y.size:
        raise ValueError(f"{y.size} item scores and {len(questions)} questions")
    _, codes = np.unique(np.asarray(questions), return_inverse=True)
    counts = np.bincount(codes)
    clustered = fixed = None
    if len(counts) > 1:
        fit = sm.OLS(y, np.ones((y.size, 1))).fit(cov_type="cluster", cov_kwds={"groups": codes})
        clustered = float(fit.bse[0])
    if counts.min() > 1:
        within = [float(y[codes == k].var(ddof=1)) for k in range(len(counts))]
        fixed = float(np.sqrt(np.sum(counts * within))) / y.size
    return CellSampling(clustered, fixed)


@dataclass(frozen=True)
class SamplingBesideSeeds:
    """Sampling error of a run mean (root mean square over runs), what of the between-seed SD it does not explain
    (floored at zero), and its share of the variance between seeds."""

    sampling_se_of_one_run: float
    sd_beyond_sampling: float
    share_of_variance_from_sampling: float


def beside_seeds(between: Sample, sampling_se: Sequence[float]) -> SamplingBesideSeeds:
    """between: the run means; sampling_se: the error of each run mean with the questions fixed, shape (runs,)."""
    mean_square, total = float(np.mean(np.square(finite(sampling_se, "sampling errors")))), between.spread**2
    beyond = float(np.sqrt(max(0.0, total - mean_square)))
    return SamplingBesideSeeds(mean_square**0.5, beyond, 1.0 if total == 0 else min(1.0, mean_square / total))
