"""Several pipeline seeds: a seed is a block, since it is the same in every condition.

    y = mu_condition + b_seed + g_(condition x seed) + e_(EM seed)

The unit is the checkpoint (condition x pipeline seed), its value the mean over its EM seeds. A condition is tested
against the interaction g, whose mean square is the residual of an additive OLS. Where SDs differ between conditions
that pooled error errs, so the HC3 error of the same OLS is computed too and the larger of the two decides. Whether
seeds matter never decides whether to block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations, product
from math import factorial

import numpy as np
import statsmodels.api as sm
from scipy import stats

from workflow.stats.samples import PIPELINE_SEED, FloatArray, NotTestable, Sample, without_float_rest
from workflow.stats.tests import Effect, Estimate, one_sample

METHOD = "additive OLS with pipeline seeds as blocks, the larger of pooled and HC3 error"
RESIDUAL = "the residual SD of checkpoint means"
MAX_PERMUTATIONS = 20_000


@dataclass(frozen=True)
class Checkpoints:
    """Means of checkpoints, shape (..., conditions, seeds); NaN where one is missing."""

    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    means: FloatArray

    @property
    def is_balanced(self) -> bool:
        return bool(np.isfinite(self.means).all())


def checkpoints(samples: Mapping[str, Sample]) -> Checkpoints:
    """The table of checkpoints from samples whose replicates are pipeline seeds."""
    if wrong := [name for name, s in samples.items() if s.unit != PIPELINE_SEED or len(s.blocks) != s.n]:
        raise ValueError(f"no pipeline seed is named for the values of {', '.join(wrong)}")
    seeds = tuple(dict.fromkeys(seed for s in samples.values() for seed in s.blocks))
    shape = np.broadcast_shapes(*(s.values.shape[:-1] for s in samples.values()))
    means = np.full((*shape, len(samples), len(seeds)), np.nan)
    for i, s in enumerate(samples.values()):
        for j, seed in enumerate(s.blocks):
            means[..., i, seeds.index(seed)] = s.values[..., j]
    return Checkpoints(tuple(samples), seeds, means)


@dataclass(frozen=True)
class Fit:
    """The additive OLS of one table of checkpoints. `residual_sd`: root of the mean square of condition x seed."""

    table: Checkpoints
    result: sm.regression.linear_model.RegressionResultsWrapper
    df: int

    @property
    def residual_sd(self) -> float:
        return float(np.sqrt(self.result.mse_resid))


def fit(table: Checkpoints) -> Fit:
    """One mean per condition at the average seed, one effect per seed.

    Raises:
        NotTestable: one seed; conditions that no seed connects; nothing left to estimate the error from.
    """
    present = np.argwhere(np.isfinite(table.means))
    n_conditions, n_seeds = table.means.shape
    if n_seeds < 2:
        raise NotTestable("one pipeline seed: no variance between checkpoints")
    seeds = np.eye(n_seeds)[present[:, 1]][:, 1:] - (present[:, 1] == 0)[:, None]  # effects that sum to zero
    x = np.hstack([np.eye(n_conditions)[present[:, 0]], seeds])
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise NotTestable("conditions and pipeline seeds fall into parts that share no checkpoint")
    df = len(present) - x.shape[1]
    if df < 1:
        raise NotTestable(f"{len(present)} checkpoints for {x.shape[1]} means: nothing is left for the error")
    y = table.means[tuple(present.T)]
    result = sm.OLS(y, x).fit()
    if result.mse_resid <= (1e-9 * np.abs(y).max()) ** 2:
        raise NotTestable("no spread: every pipeline seed gave the same differences")
    return Fit(table, result, df)


def contrast(table: Checkpoints, weights: Mapping[str, float]) -> Estimate:
    """A weighted sum of condition means, with each seed's own contrast (df P - 1) as the separate-error test."""
    w = np.array([weights.get(name, 0.0) for name in table.conditions])
    if table.means.ndim > 2:
        return balanced_contrast(table.means, w)
    table = _estimable(table, {name for name, weight in weights.items() if weight})
    w = np.array([weights.get(name, 0.0) for name in table.conditions])
    ols = fit(table)
    full = np.concatenate([w, np.zeros(len(table.seeds) - 1)])
    with np.errstate(divide="ignore", invalid="ignore"):  # a checkpoint that nothing else bears on is fitted exactly
        covariances = (ols.result.cov_params(), ols.result.get_robustcov_results("HC3").cov_params())
        pooled, robust = (float(np.sqrt(full @ c @ full)) for c in covariances)
    if not np.isfinite(robust):
        raise NotTestable("a single checkpoint connects the others: no error of its own")
    value = np.asarray(float(ols.result.params @ full))
    return _estimate(value, np.maximum(pooled, robust), ols.df, ols.residual_sd, pooled, w, table.means)


def _estimable(table: Checkpoints, used: set[str]) -> Checkpoints:
    """Without the conditions and seeds that have a single checkpoint, which says nothing of the error."""
    while True:
        present = np.isfinite(table.means)
        rows, columns = present.sum(axis=1) > 1, present.sum(axis=0) > 1
        if thin := [c for c, enough in zip(table.conditions, rows, strict=True) if c in used and not enough]:
            raise NotTestable(f"one checkpoint of {', '.join(thin)} beside the others: no error of its own")
        if rows.all() and columns.all():
            return table
        names = tuple(c for c, keep in zip(table.conditions, rows, strict=True) if keep)
        seeds = tuple(s for s, keep in zip(table.seeds, columns, strict=True) if keep)
        table = Checkpoints(names, seeds, table.means[rows][:, columns])


def balanced_contrast(means: FloatArray, w: FloatArray) -> Estimate:
    """The same for many complete tables at once, shape (..., conditions, seeds), in closed form."""
    n_conditions, n_seeds = means.shape[-2:]
    residuals = residuals_of(means)
    df = (n_conditions - 1) * (n_seeds - 1)
    ms = np.square(residuals).sum(axis=(-2, -1)) / df
    left = 1 - (n_conditions + n_seeds - 1) / (n_conditions * n_seeds)  # 1 - leverage
    robust = np.sqrt(np.square(residuals).sum(axis=-1) @ np.square(w)) / (n_seeds * left)
    pooled = np.sqrt(ms * np.sum(w**2) / n_seeds)
    value = means.mean(axis=-1) @ w
    return _estimate(value, np.maximum(pooled, robust), df, np.sqrt(ms), pooled, w, means)


def residuals_of(means: FloatArray) -> FloatArray:
    """Condition x seed effects of complete tables (..., conditions, seeds)."""
    rows, columns = means.mean(axis=-1, keepdims=True), means.mean(axis=-2, keepdims=True)
    return np.asarray(means - rows - columns + means.mean(axis=(-2, -1), keepdims=True))


def _estimate(
    value: FloatArray, se: FloatArray, df: int, sd: FloatArray | float, pooled: FloatArray | float,
    w: FloatArray, means: FloatArray,
) -> Estimate:  # fmt: skip
    scale = np.asarray(pooled) / sd
    effect = Effect(value / sd, np.asarray(sd), float(np.ravel(scale)[0]), df, RESIDUAL)
    dfs = np.full(np.shape(value), float(df))
    return Estimate(value, np.asarray(se), dfs, effect, METHOD, float(np.sum(w**2)), _separate(means, w))


def _separate(means: FloatArray, w: FloatArray) -> Estimate | None:
    """The contrast of each seed that has all of its conditions, as one sample; None with fewer than two such seeds."""
    used = means[..., w != 0, :]
    whole = np.isfinite(used).all(axis=tuple(range(used.ndim - 1)))
    if whole.sum() < 2:
        return None
    values = np.einsum("...cp,c->...p", used[..., whole], w[w != 0])
    values = without_float_rest(values, used[..., whole])
    try:
        return one_sample(Sample(values, PIPELINE_SEED, int(whole.sum())))
    except NotTestable:
        return None


# --- omnibus tests and variances --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FTest:
    """F on (df1, df2), and the 95% interval of the ratio of variances that it estimates, where there is one."""

    name: str
    f: float
    df1: int
    df2: int
    p: float
    ratio95_low: float | None = None
    ratio95_high: float | None = None


@dataclass(frozen=True)
class Components:
    """What several pipeline seeds say as a whole. Variances: estimates, floored at zero."""

    condition: FTest
    seed: FTest
    checkpoint: FTest | None
    var_seed: float
    var_checkpoint: float | None
    var_em: float | None
    p_permutation: float | None
    n_conditions: int
    n_pipeline_seeds: int
    n_em_seeds: int


def components(values: FloatArray) -> Components:
    """Omnibus tests of condition, seed and checkpoint from runs, shape (conditions, pipeline seeds, EM seeds).

    Raises:
        NotTestable: fewer than two conditions or pipeline seeds, or no spread between checkpoints.
    """
    y = np.asarray(values, dtype=np.float64)
    n_conditions, n_seeds, n_em = y.shape
    if min(n_conditions, n_seeds) < 2 or not np.isfinite(y).all():
        raise NotTestable("the omnibus tests need two conditions and two pipeline seeds, all complete")
    means = y.mean(axis=2)
    df = (n_conditions - 1) * (n_seeds - 1)
    ms_cp = float(np.square(residuals_of(means)).sum() / df)
    if ms_cp <= (1e-9 * np.abs(means).max()) ** 2:
        raise NotTestable("no spread between checkpoints")
    ms_c, ms_p = n_seeds * means.mean(axis=1).var(ddof=1), n_conditions * means.mean(axis=0).var(ddof=1)
    seed = _f("pipeline seed", ms_p / ms_cp, n_seeds - 1, df, n_conditions)
    checkpoint = var_checkpoint = var_em = None
    if n_em > 1 and (ms_e := float(y.var(axis=2, ddof=1).mean())) > 0:
        checkpoint = _f("checkpoint", n_em * ms_cp / ms_e, df, n_conditions * n_seeds * (n_em - 1), n_em)
        var_checkpoint, var_em = max(0.0, ms_cp - ms_e / n_em), ms_e
    return Components(
        condition=_f("condition", ms_c / ms_cp, n_conditions - 1, df),
        seed=seed,
        checkpoint=checkpoint,
        var_seed=max(0.0, float(ms_p - ms_cp) / n_conditions),
        var_checkpoint=var_checkpoint,
        var_em=var_em,
        p_permutation=permutation_p(means),
        n_conditions=n_conditions,
        n_pipeline_seeds=n_seeds,
        n_em_seeds=n_em,
    )


def _f(name: str, f: float, df1: int, df2: int, n: int | None = None) -> FTest:
    """With n, the interval of sigma^2_name / sigma^2_error, where F estimates 1 + n times that ratio."""
    f = float(f)
    p = float(stats.f.sf(f, df1, df2))
    if n is None:
        return FTest(name, f, df1, df2, p)
    low, high = (max(0.0, (f / float(stats.f.ppf(q, df1, df2)) - 1) / n) for q in (0.975, 0.025))
    return FTest(name, f, df1, df2, p, low, high)


def permutation_p(means: FloatArray, seed: int = 0) -> float:
    """p of no condition effect: conditions permuted within each pipeline seed, means (conditions, seeds).

    Exact where there are at most MAX_PERMUTATIONS arrangements, else from that many seeded draws.
    """
    n_conditions, n_seeds = means.shape
    observed = means.mean(axis=1).var()
    if factorial(n_conditions) ** (n_seeds - 1) <= MAX_PERMUTATIONS:
        orders = np.array(list(permutations(range(n_conditions))))
        columns = [means[:, [0]].T, *(means[orders, j] for j in range(1, n_seeds))]
        sums = np.array([np.sum(parts, axis=0) for parts in product(*columns)]) / n_seeds
        return float(np.mean(sums.var(axis=1) >= observed * (1 - 1e-12)))
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.broadcast_to(means, (MAX_PERMUTATIONS, *means.shape)), axis=1)
    hits = np.count_nonzero(shuffled.mean(axis=2).var(axis=1) >= observed * (1 - 1e-12))
    return (1 + hits) / (1 + MAX_PERMUTATIONS)


def tukey_p(table: Checkpoints, first: str, second: str) -> float | None:
    """Tukey's p of one of all pairs; None where the table is not complete or conditions have unequal residual SDs
    (Levene's test about the median, .05)."""
    if not table.is_balanced or len(table.conditions) < 3:
        return None
    residuals = residuals_of(table.means)
    if len(table.seeds) > 2 and stats.levene(*residuals, center="median").pvalue < 0.05:
        return None
    ols = fit(table)
    a, b = (table.means[table.conditions.index(name)].mean() for name in (first, second))
    q = abs(a - b) / (ols.residual_sd / np.sqrt(len(table.seeds)))
    return float(stats.studentized_range.sf(q, len(table.conditions), ols.df))
