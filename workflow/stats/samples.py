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


def finite(values: Any, what: str = "values", stacked: bool = False) -> FloatArray:
    """Values as floats, shape (n,), or (..., n) if stacked; n >= 1.

    Raises:
        ValueError: masked, NaN, infinite or missing values, or another shape.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{what}: {int(np.ma.getmaskarray(values).sum())} values are masked. Leave them out by name.")
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 and not (stacked and array.ndim > 1):
        raise ValueError(f"{what}: expected one dimension, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{what}: empty. A missing cell is shown as missing, not averaged.")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise ValueError(f"{what}: {bad} of {array.size} values are NaN or infinite. Account for them first.")
    return array


def is_constant(values: FloatArray) -> bool:
    """Whether all replicates (last axis) are equal, up to the error of summing floats, in any row."""
    return bool(np.any(np.ptp(values, axis=-1) <= CONSTANT * np.max(np.abs(values), axis=-1)))


def without_float_rest(differences: FloatArray, *operands: FloatArray) -> FloatArray:
    """Differences without what float subtraction left of equal values: rounded to 12 digits of the largest operand."""
    largest = max(float(np.max(np.abs(operand), initial=0.0)) for operand in operands)
    if largest == 0:
        return differences
    return np.round(differences, 11 - int(np.floor(np.log10(largest))))


def t_quantile(df: Any, level: float = 0.95) -> Any:
    """Two-sided Student t quantile: 2.262 for df = 9 at 95%."""
    return stats.t.ppf(0.5 + level / 2, df)


@dataclass(frozen=True, eq=False)
class Sample:
    """Replicates of one condition.

    Attributes:
        values: shape (..., n). The first row is the data; further rows are what the digits of printed figures allow.
        unit: what a replicate is. n_pipeline_seeds: checkpoints behind them.
        mean_rounding, sd_rounding: half a unit of the last printed digit; 0 for raw values.
        blocks: the pipeline seed of each value, where a pipeline seed is the replicate.
    """

    values: FloatArray
    unit: str = EM_SEED
    n_pipeline_seeds: int = 1
    mean_rounding: float = 0.0
    sd_rounding: float = 0.0
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", finite(self.values, f"values per {self.unit}", stacked=True))
        if self.blocks and len(self.blocks) != self.n:
            raise ValueError(f"{self.n} values and {len(self.blocks)} pipeline seeds")
        if len(set(self.blocks)) != len(self.blocks):
            raise ValueError(f"a pipeline seed twice in one sample: {self.blocks}")

    @property
    def n(self) -> int:
        return self.values.shape[-1]

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
    def se(self) -> float | None:
        return None if self.sd is None else self.sd / float(np.sqrt(self.n))

    @property
    def ci95_half_width(self) -> float | None:
        return None if self.se is None else float(t_quantile(self.n - 1)) * self.se

    @property
    def ci95(self) -> tuple[float, float] | None:
        half = self.ci95_half_width
        return None if half is None else (self.mean - half, self.mean + half)

    @property
    def note(self) -> str:
        """What a reader must know beside the number; empty when there is nothing to add."""
        notes = ["n = 1: no interval"] if self.n == 1 else []
        return "; ".join([*notes, ONE_CHECKPOINT] if self.n_pipeline_seeds == 1 else notes)


def sample(values: Any, unit: str = EM_SEED, n_pipeline_seeds: int = 1, blocks: Sequence[int] = ()) -> Sample:
    """A sample of raw values, shape (n,)."""
    return Sample(finite(values), unit, n_pipeline_seeds, blocks=tuple(blocks))


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
    """The mean of one cell's items and its two sampling errors; None where the items cannot give one, with a note.

    se_clustered_by_question: how far the mean would move with other questions of the same kind.
    se_questions_fixed: with other completions of the same questions. Cells share their questions, so only this one is
    part of the spread between seeds.
    """

    mean: float
    n_items: int
    n_questions: int
    se_clustered_by_question: float | None
    ci95_half_width_clustered_by_question: float | None
    se_questions_fixed: float | None
    note: str


def clustered_mean(values: Any, questions: Sequence[Any]) -> CellSampling:
    """Mean over items, shape (n,), with the question of each item, shape (n,)."""
    y = finite(values, "item scores")
    if len(questions) != y.size:
        raise ValueError(f"{y.size} item scores and {len(questions)} questions")
    names, codes = np.unique(np.asarray(questions), return_inverse=True)
    counts = np.bincount(codes)
    notes = []
    clustered = half = fixed = None
    if len(names) > 1:
        fit = sm.OLS(y, np.ones((y.size, 1))).fit(cov_type="cluster", cov_kwds={"groups": codes})
        clustered = float(fit.bse[0])
        half = float(t_quantile(len(names) - 1)) * clustered
    else:
        notes.append("one question: no error between questions")
    if counts.min() > 1:
        within = [float(y[codes == k].var(ddof=1)) for k in range(len(names))]
        fixed = float(np.sqrt(np.sum(counts * within))) / y.size
    else:
        notes.append("a question with one completion: no error within questions")
    return CellSampling(float(y.mean()), int(y.size), len(names), clustered, half, fixed, "; ".join(notes))


@dataclass(frozen=True)
class SamplingBesideSeeds:
    """Between-seed SD of run means beside the sampling error of a run mean (root mean square over runs).

    sd_beyond_sampling: what of the between-seed SD completions do not explain, floored at zero.
    """

    between_seed_sd: float
    sampling_se_of_one_run: float
    sd_beyond_sampling: float
    share_of_variance_from_sampling: float
    n_seeds: int
    unit: str

    @property
    def sampling_exceeds_seed_sd(self) -> bool:
        return self.sampling_se_of_one_run > self.between_seed_sd


def beside_seeds(between: Sample, sampling_se: Any) -> SamplingBesideSeeds:
    """between: the run means; sampling_se: the error of each run mean with the questions fixed, shape (n_runs,)."""
    errors = finite(sampling_se, "sampling errors")
    if (errors < 0).any():
        raise ValueError("sampling errors: negative")
    mean_square = float(np.mean(np.square(errors)))
    total = between.spread**2
    return SamplingBesideSeeds(
        between_seed_sd=between.spread,
        sampling_se_of_one_run=float(np.sqrt(mean_square)),
        sd_beyond_sampling=float(np.sqrt(max(0.0, total - mean_square))),
        share_of_variance_from_sampling=1.0 if total == 0 else min(1.0, mean_square / total),
        n_seeds=between.n,
        unit=between.unit,
    )
