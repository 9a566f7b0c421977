"""Pipeline seeds as blocks: against statsmodels, scipy and textbook formulas, and what the wrong test would do."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm

from workflow.stats import blocked
from workflow.stats.contrasts import anova_2x2, compare_all, estimate
from workflow.stats.samples import NotTestable, sample

NAMES = tuple("abcde")


def draws(n, conditions=5, pipelines=3, ems=10, sd_seed=2.0, sd_checkpoint=1.5, sd_em=1.8, shift=0.0, seed=0, sds=None):
    """Runs, shape (n, conditions, pipelines, ems); the first condition lies `shift` above the others."""
    rng = np.random.default_rng(seed)
    b = rng.normal(0, sd_seed, (n, 1, pipelines, 1))
    g = rng.normal(0, sd_checkpoint, (n, conditions, pipelines, 1))
    scale = np.ones(conditions) if sds is None else np.asarray(sds)
    e = rng.normal(0, sd_em, (n, conditions, pipelines, ems))
    y = b + scale[None, :, None, None] * (g + e)
    y[:, 0] += shift
    return y


def table(means, names=NAMES):
    return blocked.Checkpoints(tuple(names[: len(means)]), tuple(range(len(means[0]))), np.asarray(means))


def samples_of(means, names=NAMES, seeds=None):
    seeds = seeds or range(len(means[0]))
    return {
        name: sample(
            [v for v in row if np.isfinite(v)],
            "pipeline seed",
            [s for s, v in zip(seeds, row) if np.isfinite(v)],
        )
        for name, row in zip(names, means)
    }


def long(means):
    return pd.DataFrame(
        [
            {"c": NAMES[i], "p": f"p{j}", "y": v}
            for i, row in enumerate(means)
            for j, v in enumerate(row)
            if np.isfinite(v)
        ]
    )


PAIR = {"a": 1.0, "b": -1.0}
W = np.array([1.0, -1.0, 0.0, 0.0, 0.0])


def test_a_pair_is_a_contrast_against_condition_by_seed():
    means = draws(1)[0].mean(axis=2)
    residuals = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + means.mean()
    ms = np.square(residuals).sum() / 8
    result = blocked.contrast(table(means), PAIR)
    pooled = np.sqrt(ms * 2 / 3)
    assert float(result.value) == pytest.approx(means[0].mean() - means[1].mean())
    assert float(result.df) == 8
    assert float(result.se) >= pooled * (1 - 1e-12)
    assert float(result.effect.d) == pytest.approx(result.value / np.sqrt(ms))


def test_the_closed_form_is_the_librarys_on_100_matrices():
    means = draws(100, shift=3.0, sds=[1, 2, 3, 1, 0.5]).mean(axis=3)
    for w in (W, np.array([0.25, 0.25, 0.25, 0.25, -1.0]), np.array([0, 1.0, -1.0, -1.0, 1.0])):
        closed = blocked.closed_form(means, w)
        for i, own in enumerate(means):
            library = blocked.contrast(table(own), dict(zip(NAMES, w)))
            assert (float(library.value), float(library.se)) == pytest.approx((closed.value[i], closed.se[i]))
            assert library.p() == pytest.approx(closed.p()[i])
            assert library.effect.interval() == pytest.approx([end[i] for end in closed.effect.interval()], abs=2e-3)


def test_the_closed_form_is_the_librarys_where_a_checkpoint_is_missing():
    means = draws(20, pipelines=4, sds=[1, 2, 3, 1, 0.5]).mean(axis=3)
    means[:, 1, 2] = means[:, 4, 0] = np.nan
    closed = blocked.contrast(blocked.Checkpoints(NAMES, tuple(range(4)), means), PAIR)
    for i, own in enumerate(means):
        library = blocked.contrast(table(own), PAIR)
        assert (library.value, library.se, library.df) == pytest.approx((closed.value[i], closed.se[i], closed.df[i]))


def test_the_larger_error_decides():
    """HC3 of the same OLS, by the library and its own summary."""
    means = draws(1, sds=[4, 4, 1, 1, 1], seed=3)[0].mean(axis=2)
    fit = smf.ols("y ~ 0 + C(c) + C(p, Sum)", long(means)).fit()
    contrast = np.array([1.0, -1.0, 0, 0, 0, 0, 0])
    hc3 = fit.get_robustcov_results("HC3").t_test(contrast)
    plain = fit.t_test(contrast)
    result = blocked.contrast(table(means), PAIR)
    assert float(result.se) == pytest.approx(max(float(hc3.sd.item()), float(plain.sd.item())))
    assert result.p() == pytest.approx(max(float(np.squeeze(hc3.pvalue)), float(np.squeeze(plain.pvalue))))


def test_a_missing_checkpoint_is_additive_ols():
    means = draws(1)[0].mean(axis=2)
    means[1, 2] = np.nan
    result = blocked.contrast(table(means), PAIR)
    fit = smf.ols("y ~ 0 + C(c) + C(p, Sum)", long(means)).fit()
    assert float(result.df) == 14 - 5 - 3 + 1 == fit.df_resid
    assert float(result.value) == pytest.approx(float(fit.t_test(np.array([1.0, -1, 0, 0, 0, 0, 0])).effect.item()))
    assert float(result.value) != pytest.approx(np.nanmean(means[0]) - np.nanmean(means[1]))


def test_a_condition_with_one_checkpoint_or_no_common_seed_is_refused():
    means = draws(1)[0].mean(axis=2)
    means[1, 1:] = np.nan
    with pytest.raises(NotTestable, match="one checkpoint of b"):
        blocked.contrast(table(means), PAIR)
    assert np.isfinite(blocked.contrast(table(means), {"a": 1.0, "c": -1.0}).value), "the others keep their test"
    apart = np.full((4, 4), np.nan)
    apart[:2, :2], apart[2:, 2:] = [[1, 2], [2, 4]], [[3, 4], [5, 7]]
    with pytest.raises(NotTestable, match="share no checkpoint"):
        blocked.contrast(table(apart), {"a": 1.0, "c": -1.0})


def test_no_spread_between_checkpoints_is_refused():
    with pytest.raises(NotTestable, match="no spread"):
        blocked.contrast(table(np.add.outer([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])), PAIR)
    with pytest.raises(NotTestable, match="no spread"):
        blocked.omnibus(np.add.outer([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])[..., None])


def test_the_separate_error_test_is_a_paired_t_test():
    means = draws(1, pipelines=5)[0].mean(axis=2)
    separate = blocked.contrast(table(means), PAIR).separate
    expected = stats.ttest_rel(means[0], means[1])
    assert (float(separate.t), float(separate.p()), float(separate.df)) == pytest.approx(
        (expected.statistic, expected.pvalue, 4)
    )


def test_omnibus_tests_are_those_of_the_two_way_table():
    y = draws(1, shift=3.0)[0]
    condition, seed, checkpoint = blocked.omnibus(y)
    frame = long(y.mean(axis=2))
    expected = anova_lm(smf.ols("y ~ C(c) + C(p)", frame).fit())
    assert (condition.f, condition.p) == pytest.approx(tuple(expected.loc["C(c)", ["F", "PR(>F)"]]))
    assert (seed.f, seed.p) == pytest.approx(tuple(expected.loc["C(p)", ["F", "PR(>F)"]]))
    assert (condition.df1, condition.df2, seed.df1) == (4, 8, 2)
    assert (checkpoint.df1, checkpoint.df2) == (8, 5 * 3 * 9)
    assert len(blocked.omnibus(y[..., :1])) == 2, "one EM seed: checkpoints are not told from EM seeds"
    with pytest.raises(NotTestable, match="two pipeline seeds"):
        blocked.omnibus(y[:, :1])


def test_intervals_hold_the_ratios_of_variances():
    held = np.zeros(2)
    for y in draws(200, pipelines=5, ems=4):
        _, seed, checkpoint = blocked.omnibus(y)
        true = (4 / (2.25 + 3.24 / 4), 2.25 / 3.24)
        held += [test.ratio95[0] <= r <= test.ratio95[1] for test, r in zip((seed, checkpoint), true)]
    assert held.min() >= 180  # 95% of 200, less three standard errors
    assert held.max() <= 199


def test_permutation_within_blocks_is_exact_where_it_can_be():
    means = np.array([[3.0, 5.0], [1.0, 2.0], [0.0, 1.5]])
    # of 6 arrangements of the second seed against the first, only the one that is there is as far apart
    assert blocked.permutation_p(means) == pytest.approx(1 / 6)
    p = [blocked.permutation_p(y.mean(axis=2)) for y in draws(100, ems=1)]
    assert np.mean(np.array(p) < 0.05) < 0.12
    assert blocked.permutation_p(draws(1, pipelines=5)[0].mean(axis=2)) == blocked.permutation_p(
        draws(1, pipelines=5)[0].mean(axis=2)
    ), "drawn, and seeded"


def test_tukey_is_for_equal_sds_and_complete_tables():
    means = draws(1, pipelines=4)[0].mean(axis=2)
    result = blocked.tukey_p(table(means), "a", "b")
    fit = blocked.fit(table(means))
    q = abs(means[0].mean() - means[1].mean()) / (np.sqrt(fit.mse_resid) / 2)
    assert result == pytest.approx(stats.studentized_range.sf(q, 5, 12))
    means[0, 0] = np.nan
    assert blocked.tukey_p(table(means), "a", "b") is None
    unequal = draws(1, pipelines=8, sds=[20, 1, 1, 1, 1])[0].mean(axis=2)
    assert blocked.tukey_p(table(unequal), "a", "b") is None


def test_tables_of_pairs_and_the_2x2_block_too():
    means = draws(1, conditions=4)[0].mean(axis=2)
    cells = samples_of(means)
    pairs = compare_all(cells)
    assert {p.estimate.method for p in pairs} == {blocked.METHOD}
    assert pairs[0].p_tukey is not None
    assert pairs[0].estimate.separate.p() == pytest.approx(stats.ttest_rel(means[0], means[1]).pvalue)
    assert estimate(cells, PAIR).df == 6
    rows = anova_2x2(
        {("e", "w"): cells["a"], ("g", "w"): cells["b"], ("e", "c"): cells["c"], ("g", "c"): cells["d"]}, ("p", "q")
    )
    assert rows["df_residual"].iloc[0] == 6
    interaction = estimate(cells, {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0})
    ms = blocked.fit(table(means)).mse_resid
    assert rows["F"].iloc[2] == pytest.approx(float(interaction.value) ** 2 / (ms * 4 / 3))


def p_pooled(means):
    """p of the first pair by the pooled error alone; means (n, conditions, seeds)."""
    _, c, p = means.shape
    ms = np.square(blocked.residuals_of(means)).sum(axis=(1, 2)) / ((c - 1) * (p - 1))
    t = (means[:, 0].mean(axis=1) - means[:, 1].mean(axis=1)) / np.sqrt(2 * ms / p)
    return 2 * stats.t.sf(np.abs(t), (c - 1) * (p - 1))


def test_pooled_error_alone_is_wrong_where_sds_differ_as_arcs_do():
    sds = np.array([4.19, 1.54, 0.84, 2.24, 2.10]) / 2.10
    means = draws(4000, pipelines=3, sds=sds).mean(axis=3)
    both = blocked.closed_form(means, W)
    assert np.mean(p_pooled(means) < 0.05) > 0.1
    assert np.mean(both.p() < 0.05) < np.mean(p_pooled(means) < 0.05) - 0.03


def test_em_seed_counts_that_differ_by_condition_make_the_test_wrong():
    """Two conditions of one EM seed, three of ten: their checkpoints are noisier than the error that they share."""
    y = draws(4000, sd_checkpoint=0.5)
    uneven = y.mean(axis=3)
    uneven[:, :2] = y[:, :2, :, 0]
    assert np.mean(p_pooled(uneven) < 0.05) > 0.07
    assert np.mean(p_pooled(y[..., :1].mean(axis=3)) < 0.05) == pytest.approx(0.05, abs=0.011)
