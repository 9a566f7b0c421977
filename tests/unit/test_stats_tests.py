"""Tests, effect sizes, corrections, contrasts and outliers against scipy, statsmodels and hand-worked cases."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind

from workflow.stats import tests as c
from workflow.stats.contrasts import anova_2x2, check_weights, compare, compare_all, estimate, means_of
from workflow.stats.rounding import from_moments
from workflow.stats.samples import NotTestable, sample
from workflow.stats.tests import single_value, within_to_between

values = st.lists(st.integers(-1000, 1000).map(lambda i: i / 10), min_size=3, max_size=10)


def pair(a, b):
    return estimate({"a": sample(a), "b": sample(b)}, {"a": 1.0, "b": -1.0})


def spread(*arrays):
    return all(np.std(array) > 1e-3 for array in arrays)


def draw(seed, n, mean=0.0, sd=1.0):
    return np.random.default_rng(seed).normal(mean, sd, n)


# --- against scipy and statsmodels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n1", "n2"), [(10, 10), (3, 10), (2, 2), (10, 2)])
def test_welch_is_scipys(n1, n2):
    a, b = draw(1, n1, 25, 1), draw(2, n2, 27, 3)
    expected, result = stats.ttest_ind(a, b, equal_var=False), pair(a, b)
    assert (float(result.t), float(result.p()), float(result.df)) == pytest.approx(
        (expected.statistic, expected.pvalue, expected.df)
    )
    interval = expected.confidence_interval()
    assert result.interval() == pytest.approx((interval.low, interval.high))


def test_hedges_g_is_statsmodels():
    a, b = draw(3, 10, 1), draw(4, 7)
    g, _ = effectsize_smd(a.mean(), a.std(ddof=1), 10, b.mean(), b.std(ddof=1), 7)
    assert pair(a, b).effect.hedges_g == pytest.approx(g, rel=1e-3), "statsmodels' factor is approximate"


def test_the_interval_of_d_puts_t_at_the_tails():
    """The library's quantile of the noncentrality, against the distribution function that it inverts."""
    a, b = draw(3, 10, 1), draw(4, 10)
    result, scale = pair(a, b), np.sqrt(2 / 10)
    t, (low, high) = float(result.effect.d) / scale, result.effect.interval()
    assert stats.nct.sf(t, 18, low / scale) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(t, 18, high / scale) == pytest.approx(0.025, abs=1e-6)


def test_the_interval_of_many_d_is_that_of_each():
    d = np.random.default_rng(0).normal(0, 3, 1000)
    low, high = c.Effect(d, np.ones(1000), np.sqrt(0.2), 18, "").interval()
    one = c.Effect(d[7], np.ones(1), np.sqrt(0.2), 18, "").interval()
    assert (low[7], high[7]) == pytest.approx(one, abs=1e-3)


def test_at_ten_values_a_side_d_must_be_3_2_to_show_1_8():
    low = [c.Effect(np.asarray(d), np.ones(1), np.sqrt(0.2), 18, "").interval()[0] for d in (3.1, 3.2)]
    assert low[0] < 1.8 < low[1]


def test_hand_worked_d():
    # means 4 and 2, variances 1 and 1, so the pooled SD is 1; SE = sqrt(1/3 + 1/3)
    result = pair([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    assert float(result.effect.d) == pytest.approx(2.0)
    assert float(result.t) == pytest.approx(2 / np.sqrt(2 / 3))
    assert result.effect.hedges_g == pytest.approx(2 * 0.7978846, abs=1e-6), "J(4) = 0.79788"


def test_tost_is_statsmodels():
    a, b = draw(5, 10, 25, 1.5), draw(6, 8, 26, 2)
    expected = ttost_ind(a, b, -3, 3, usevar="unequal")[0]
    result = pair(a, b)
    low, high = result.interval(0.1)
    assert result.tost_p(3.0) == pytest.approx(expected)
    assert (expected < 0.05) == (low > -3 and high < 3), "the 90% interval says the same"


def test_corrections_are_statsmodels():
    p = [0.001, 0.01, 0.03, 0.04]
    assert c.adjust(p, "holm") == pytest.approx(multipletests(p, method="holm")[1])
    assert c.adjust(p, "bonferroni") == pytest.approx([0.004, 0.04, 0.12, 0.16])
    assert c.adjust(p, "none") == pytest.approx(p)


def test_tests_that_could_not_be_made_stay_in_the_family():
    assert c.adjust([0.004], "bonferroni", 10) == pytest.approx([0.04])
    assert c.adjust([0.004, 0.01], "holm", 10) == pytest.approx([0.04, 0.09])


def test_levels_are_what_the_adjusted_p_are_compared_at():
    p = [0.001, 0.2, 0.012, 0.03]
    for correction in ("none", "bonferroni", "holm"):
        at = c.levels(p, 0.05, correction, 4)
        assert [x < a for x, a in zip(p, at)] == [x < 0.05 for x in c.adjust(p, correction)]
    assert c.levels([0.001, 0.2], 0.05, "holm", 10) == pytest.approx([0.005, 0.05 / 9])


def test_anova_is_statsmodels_type_3_also_when_unbalanced():
    sizes = {("evil", "wrong"): 10, ("evil", "correct"): 7, ("good", "wrong"): 9, ("good", "correct"): 10}
    cells = {key: sample(draw(i, n, i, 1 + i)) for i, (key, n) in enumerate(sizes.items())}
    frame = pd.DataFrame([{"a": a, "b": b, "y": y} for (a, b), ys in cells.items() for y in ys.data])
    expected = anova_lm(smf.ols("y ~ C(a, Sum) * C(b, Sum)", frame).fit(), typ=3)
    table = anova_2x2(cells, ("a", "b"))
    assert list(table.index) == ["a", "b", "a x b"]
    for name, column in product(("F", "PR(>F)", "sum_sq"), range(3)):
        assert table[name].iloc[column] == pytest.approx(expected[name].iloc[column + 1])
    assert table["partial_eta_squared"].between(0, 1).all()


def test_a_contrast_of_two_conditions_is_their_comparison():
    cells = {"a": sample(draw(7, 10, 1)), "b": sample(draw(8, 6, 0, 3)), "c": sample(draw(9, 6))}
    two = estimate(cells, {"a": 1.0, "b": -1.0})
    halves = estimate(cells, {"a": 1.0, "b": -0.5, "c": -0.5})
    near = estimate(cells, {"a": 1.0, "b": -1.0 + 1e-12, "c": -1e-12})
    assert [float(x) for x in (near.t, near.p(), near.df)] == pytest.approx(
        [float(x) for x in (two.t, two.p(), two.df)]
    )
    assert halves.method == near.method == "Satterthwaite's t test"
    assert two.method == "Welch's t test"


def test_a_contrast_of_four_is_that_of_ols_with_its_own_variances():
    """Satterthwaite's variance and df by hand: sum of w^2 s^2 / n, and its square over the sum of squares / (n - 1)."""
    cells = {name: sample(draw(i, 6 + i, i, 1 + i)) for i, name in enumerate("abcd")}
    w = {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0}
    parts = np.array([s.data.var(ddof=1) / s.n for s in cells.values()])
    result = estimate(cells, w)
    assert float(result.se) == pytest.approx(np.sqrt(parts.sum()))
    assert float(result.df) == pytest.approx(parts.sum() ** 2 / np.sum(parts**2 / (np.array([6, 7, 8, 9]) - 1)))


def test_a_contrast_without_a_test_says_why():
    cells = {"a": sample([1.0, 2.0]), "b": sample([2.0, 4.0]), "one": sample([1.0])}
    reasons = [compare(name, cells, {"a": 1.0, name: -1.0}).reason for name in ("b", "z", "one")]
    assert reasons == ["", "no values for z", "n = 1: no SD, no interval"]


def test_group_means_are_means_of_means_and_pooled_d_says_so():
    cells = {"a": sample([1.0, 2.0, 3.0]), "b": sample([5.0, 7.0]), "x": sample([0.0, 1.0, 2.0])}
    assert float(estimate(cells, means_of(["a", "b"], ["x"])).value) == 3.0
    pooled = c.pooled_seeds_d(cells, ["a", "b"], ["x"])
    assert pooled.df == 5 + 3 - 2
    assert float(pooled.d) == pytest.approx(float(c.cohens_d([np.array([1.0, 2, 3, 5, 7]), np.array([0.0, 1, 2])]).d))
    assert "all seeds of a group" in pooled.standardiser


def test_outlier_by_hand():
    # others 1 2 3: mean 2, SD 1. z of 6 is 4; t = 4 / sqrt(4/3) on 2 df
    result = single_value(6.0, sample([1.0, 2.0, 3.0]))
    assert (result.z.value, result.prediction_t.value) == (4.0, pytest.approx(4 / np.sqrt(4 / 3)))
    assert result.p.value == pytest.approx(2 * stats.t.sf(4 / np.sqrt(4 / 3), 2))
    assert result.inside == (result.p.value > 0.05)
    assert result.z.exact


def test_range_over_median_sd_by_hand():
    cells = {"a": from_moments(1.0, 1.0, 5), "b": from_moments(4.0, 2.0, 5), "c": from_moments(2.0, 3.0, 5)}
    assert within_to_between(cells).ratio_range_over_median_sd.value == pytest.approx(1.5)


# --- what must not be compared --------------------------------------------------------------------------------------


def test_one_value_has_no_test():
    with pytest.raises(NotTestable, match="n = 1"):
        pair([1.0], [1.0, 2.0])
    result = compare_all({"a": sample([1.0]), "b": sample([1.0, 2.0]), "c": sample([2.0, 4.0])})
    assert [r.estimate is None for r in result] == [True, True, False]


def test_no_spread_has_no_test():
    with pytest.raises(NotTestable, match="no spread"):
        pair([1.0, 1.0], [2.0, 2.0])
    assert pair([1.0, 1.0], [2.0, 3.0]).t < 0, "spread in one is enough"
    with pytest.raises(NotTestable, match="no spread"):
        single_value(1.0, sample([2.0, 2.0]))
    with pytest.raises(NotTestable, match="no spread"):
        estimate({c: sample([1.0, 1.0]) for c in "abc"}, {"a": 1.0, "b": -0.5, "c": -0.5})


def test_different_units_of_replication_are_never_compared():
    cells = {"a": sample([1.0, 2.0], "pipeline seed", (1, 2)), "b": sample([1.0, 2.0])}
    with pytest.raises(ValueError, match="different units"):
        estimate(cells, {"a": 1.0, "b": -1.0})


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({}, "sum to zero"),
        ({"a": 1.0}, "sum to zero"),
        ({"a": 0.0, "b": 0.0}, "all be zero"),
        ({"a": 1.0, "b": float("nan")}, "NaN"),
    ],
)
def test_contrasts_that_are_none_are_refused(weights, why):
    with pytest.raises(ValueError, match=why):
        check_weights(weights)


# --- properties -----------------------------------------------------------------------------------------------------


@given(values, values)
def test_names_swapped_turn_the_sign(x, y):
    assume(spread(x, y))
    a, b = pair(x, y), pair(y, x)
    assert a.t == pytest.approx(-b.t)
    assert a.p() == pytest.approx(b.p())
    assert a.effect.d == pytest.approx(-b.effect.d)
    low, high = b.effect.interval()
    assert a.effect.interval() == pytest.approx((-high, -low), abs=1e-6)


@given(values, values, st.floats(0.1, 50), st.floats(-50, 50))
def test_scale_and_shift_leave_t_p_and_d(x, y, factor, shift):
    assume(spread(x, y))
    a, b = pair(x, y), pair(*([factor * v + shift for v in z] for z in (x, y)))
    for theirs, ours in ((b.t, a.t), (b.p(), a.p()), (b.effect.d, a.effect.d)):
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-7)
    assert b.value == pytest.approx(factor * a.value, rel=1e-6, abs=1e-7)
    assert b.tost_p(factor * 3.0) == pytest.approx(a.tost_p(3.0), abs=1e-7)


@given(values, values, st.randoms())
def test_order_within_a_sample_does_not_matter(x, y, random):
    assume(spread(x, y))
    shuffled = list(x)
    random.shuffle(shuffled)
    assert pair(shuffled, y).t == pytest.approx(pair(x, y).t, abs=1e-7)


@settings(max_examples=15)  # statsmodels' Holm collects garbage on every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni(p):
    none, holm, bonferroni = (np.array(c.adjust(p, name)) for name in ("none", "holm", "bonferroni"))
    assert (none <= holm + 1e-12).all()
    assert (holm <= bonferroni + 1e-12).all()
