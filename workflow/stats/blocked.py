"""Several pipeline seeds: a seed is a block, since it is the same in every condition.

    y = mu_condition + b_seed + g_(condition x seed) + e_(EM seed)

The unit is the checkpoint (condition x pipeline seed), its value the mean over its EM seeds. A condition is tested
against the interaction g, whose mean square is the residual of an additive OLS. Where SDs differ between conditions
that pooled error errs, so the HC3 error of the same OLS is computed too and the larger of the two decides. Each seed's
own contrast stands beside it and decides how strongly a verdict speaks, not what it says. Whether seeds matter never
decides whether to block.

Where SDs are equal the HC3 variance is 1 / (1 - h) times too wide on average, with the leverage
h = (C + P - 1) / (C P): 2.5 times for five conditions on two seeds, 1.9 on three, 1.6 on five. That is the power which
docs/calibration.md shows as lost against the pooled error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations, product
from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt
import statsmodels.api as sm
from scipy import stats

from workflow.stats.samples import CONSTANT, PIPELINE_SEED, FloatArray, NotTestable, Sample, without_float_rest
from workflow.stats.tests import Effect, Estimate, one_sample

METHOD = "additive OLS with pipeline seeds as blocks, the larger of pooled and HC3 error"
ALONE = "a single checkpoint connects the others: no error of its own"
MAX_PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Checkpoints:
    """Means of checkpoints, shape (..., conditions, seeds); NaN where one is missing."""

    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    means: FloatArray

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Shape (conditions, seeds)."""
        return np.isfinite(self.means[(0,) * (self.means.ndim - 2)])


def checkpoints(samples: Mapping[str, Sample]) -> Checkpoints:
    """The table of checkpoints from samples whose replicates are pipeline seeds."""
    if unnamed := [name for name, s in samples.items() if s.unit != PIPELINE_SEED or not s.blocks]:
        raise ValueError(f"no pipeline seed is named for the values of {', '.join(unnamed)}")
    seeds = tuple(dict.fromkeys(seed for s in samples.values() for seed in s.blocks))
    shape = np.broadcast_shapes(*(s.values.shape[:-1] for s in samples.values()))
    means = np.full((*shape, len(samples), len(seeds)), np.nan)
    for i, s in enumerate(samples.values()):
        means[..., i, [seeds.index(seed) for seed in s.blocks]] = s.values
    return Checkpoints(tuple(samples), seeds, means)


def design(present: npt.NDArray[np.bool_]) -> FloatArray:
    """One mean per condition at the average seed, then one effect per seed, summing to zero; a row per checkpoint.

    Args:
        present: shape (conditions, seeds).

    Raises:
        NotTestable: one seed; conditions that no seed connects; nothing left to estimate the error from.
    """
    condition, seed = np.nonzero(present)
    n_conditions, n_seeds = present.shape
    if n_seeds < 2:
        raise NotTestable("one pipeline seed: no variance between checkpoints")
    x = np.hstack([np.eye(n_conditions)[condition], np.eye(n_seeds)[seed][:, 1:] - (seed == 0)[:, None]])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise NotTestable("conditions and pipeline seeds fall into parts that share no checkpoint")
    if len(x) <= x.shape[1]:
        raise NotTestable(f"{len(x)} checkpoints for {x.shape[1]} means: nothing is left for the error")
    return x


def fit(table: Checkpoints) -> Any:
    """statsmodels' results of the additive OLS of one table."""
    y = table.means[table.present]
    result = sm.OLS(y, design(table.present)).fit()
    if result.mse_resid <= (CONSTANT * np.abs(y).max()) ** 2:
        raise NotTestable("no spread: every pipeline seed gave the same differences")
    return result


def contrast(table: Checkpoints, weights: Mapping[str, float]) -> Estimate:
    """A weighted sum of condition means; of one table by the library, of many in closed form."""
    table = _without_single_checkpoints(table, {name for name, weight in weights.items() if weight})
    w = np.array([weights.get(name, 0.0) for name in table.conditions])
    if table.means.ndim > 2:
        return closed_form(table.means, w)
    ols = fit(table)
    full = np.concatenate([w, np.zeros(len(table.seeds) - 1)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a checkpoint that nothing else bears on is fitted exactly
        covariances = (ols.cov_params(), ols.get_robustcov_results("HC3").cov_params())
        pooled, robust = (np.sqrt(full @ c @ full) for c in covariances)
    if not np.isfinite(robust):
        raise NotTestable(ALONE)
    return _estimate(table.means, w, ols.params @ full, pooled, robust, int(ols.df_resid), np.sqrt(ols.mse_resid))


def _without_single_checkpoints(table: Checkpoints, used: set[str]) -> Checkpoints:
    """Without the conditions and seeds that have one checkpoint, which says nothing of the error."""
    present = table.present
    rows, columns = present.sum(axis=1) > 1, present.sum(axis=0) > 1
    if thin := [c for c, enough in zip(table.conditions, rows, strict=True) if c in used and not enough]:
        raise NotTestable(f"one checkpoint of {', '.join(thin)} beside the others: no error of its own")
    if rows.all() and columns.all():
        return table
    names = tuple(c for c, keep in zip(table.conditions, rows, strict=True) if keep)
    seeds = tuple(s for s, keep in zip(table.seeds, columns, strict=True) if keep)
    return _without_single_checkpoints(Checkpoints(names, seeds, table.means[..., rows, :][..., columns]), used)


def closed_form(means: FloatArray, w: FloatArray) -> Estimate:
    """The same for many tables at once, shape (..., conditions, seeds), with the same checkpoints in all of them."""
    present = np.isfinite(means[(0,) * (means.ndim - 2)])
    x, y = design(present), means[..., present]
    inverse = np.linalg.pinv(x)
    hat, share = x @ inverse, w @ inverse[: len(w)]  # share: of each checkpoint in the estimate
    spare = 1 - np.diag(hat)  # 1 - leverage
    if spare.min() < CONSTANT:
        raise NotTestable(ALONE)
    squares, df = np.square(y - y @ hat), len(x) - x.shape[1]
    ms = squares.sum(axis=-1) / df
    pooled, robust = np.sqrt(ms * (share @ share)), np.sqrt(squares @ np.square(share / spare))
    return _estimate(means, w, y @ share, pooled, robust, df, np.sqrt(ms))


def residuals_of(means: FloatArray) -> FloatArray:
    """Condition x seed effects of complete tables (..., conditions, seeds)."""
    rows, columns = means.mean(axis=-1, keepdims=True), means.mean(axis=-2, keepdims=True)
    return np.asarray(means - rows - columns + means.mean(axis=(-2, -1), keepdims=True))


def _estimate(means: FloatArray, w: FloatArray, value: Any, pooled: Any, robust: Any, df: int, sd: Any) -> Estimate:
    value, sd = np.asarray(value), np.asarray(sd)
    scale = float(np.ravel(pooled / sd)[0])
    effect = Effect(value / sd, sd, scale, df, "the residual SD of checkpoint means")
    dfs, separate = np.full(np.shape(value), float(df)), _separate(means, w)
    return Estimate(value, np.maximum(pooled, robust), dfs, effect, METHOD, float(np.sum(w**2)), separate)


def _separate(means: FloatArray, w: FloatArray) -> Estimate | None:
    """The contrast of each seed that has all of its conditions, as one sample; None with fewer than two such seeds."""
    used = means[..., w != 0, :]
    whole = np.isfinite(used).all(axis=tuple(range(used.ndim - 1)))
    values = np.einsum("...cp,c->...p", used[..., whole], w[w != 0])
    try:
        return one_sample(Sample(without_float_rest(values, used[..., whole]), PIPELINE_SEED)) if whole.any() else None
    except NotTestable:
        return None


# --- omnibus tests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FTest:
    """F on (df1, df2), and the 95% interval of the ratio of variances that it estimates, where there is one."""

    name: str
    f: float
    df1: int
    df2: int
    p: float
    ratio95: tuple[float, float] | None


def mean_squares(means: FloatArray) -> tuple[float, float, float]:
    """Of conditions, of seeds and of condition x seed; means (conditions, seeds) of a complete table."""
    n_conditions, n_seeds = means.shape
    error = float(np.square(residuals_of(means)).sum()) / ((n_conditions - 1) * (n_seeds - 1))
    by_condition, by_seed = means.mean(axis=1).var(ddof=1), means.mean(axis=0).var(ddof=1)
    return n_seeds * float(by_condition), n_conditions * float(by_seed), error


def omnibus(runs: FloatArray) -> list[FTest]:
    """F tests of condition, pipeline seed and (where each has several EM seeds) checkpoint.

    Args:
        runs: shape (conditions, pipeline seeds, EM seeds).

    Raises:
        NotTestable: fewer than two conditions or pipeline seeds, or no spread between checkpoints.
    """
    n_conditions, n_seeds, n_em = runs.shape
    if min(n_conditions, n_seeds) < 2:
        raise NotTestable("the omnibus tests need two conditions and two pipeline seeds")
    means = runs.mean(axis=2)
    df = (n_conditions - 1) * (n_seeds - 1)
    ms_condition, ms_seed, ms_error = mean_squares(means)
    if ms_error <= (CONSTANT * np.abs(means).max()) ** 2:
        raise NotTestable("no spread between checkpoints")
    tests = [
        _f("condition", ms_condition / ms_error, n_conditions - 1, df),
        _f("pipeline seed", ms_seed / ms_error, n_seeds - 1, df, n_conditions),
    ]
    if n_em > 1 and (ms_em := float(runs.var(axis=2, ddof=1).mean())) > 0:
        tests.append(_f("checkpoint", n_em * ms_error / ms_em, df, n_conditions * n_seeds * (n_em - 1), n_em))
    return tests


def _f(name: str, f: float, df1: int, df2: int, n: int | None = None) -> FTest:
    """With n, the interval of sigma^2_name / sigma^2_error, where F estimates 1 + n times that ratio."""
    ends = [max(0.0, (f / float(stats.f.ppf(q, df1, df2)) - 1) / n) for q in (0.975, 0.025)] if n else None
    return FTest(name, f, df1, df2, float(stats.f.sf(f, df1, df2)), (ends[0], ends[1]) if ends else None)


def permutation_p(means: FloatArray, seed: int = 0) -> float:
    """p of no condition effect: conditions permuted within each pipeline seed, means (conditions, seeds).

    Exact where there are at most MAX_PERMUTATIONS arrangements, else from that many seeded draws.
    """
    n_conditions, n_seeds = means.shape
    least = means.mean(axis=1).var() * (1 - 1e-12)
    if factorial(n_conditions) ** (n_seeds - 1) <= MAX_PERMUTATIONS:
        orders = np.array(list(permutations(range(n_conditions))))
        columns = [means[:, [0]].T, *(means[orders, j] for j in range(1, n_seeds))]
        sums = np.array([np.sum(parts, axis=0) for parts in product(*columns)]) / n_seeds
        return float(np.mean(sums.var(axis=1) >= least))
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.broadcast_to(means, (MAX_PERMUTATIONS, *means.shape)), axis=1)
    return (1 + np.count_nonzero(shuffled.mean(axis=2).var(axis=1) >= least)) / (1 + MAX_PERMUTATIONS)


def tukey_p(table: Checkpoints, first: str, second: str) -> float | None:
    """Tukey's p of one of all pairs; None where the table is not complete or conditions have unequal residual SDs
    (Levene's test about the median, .05)."""
    if not table.present.all() or len(table.conditions) < 3:
        return None
    if len(table.seeds) > 2 and stats.levene(*residuals_of(table.means), center="median").pvalue < 0.05:
        return None
    ols = fit(table)
    a, b = (table.means[table.conditions.index(name)].mean() for name in (first, second))
    q = abs(a - b) / np.sqrt(ols.mse_resid / len(table.seeds))
    return float(stats.studentized_range.sf(q, len(table.conditions), ols.df_resid))
