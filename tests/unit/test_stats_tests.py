"""Tests, effect sizes, corrections, contrasts and outliers against scipy, statsmodels and hand-worked cases."""

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
from workflow.stats.contrasts import anova_2x2, compare, compare_all, compare_groups, contrast, declared_contrasts
from workflow.stats.rounding import from_moments
from workflow.stats.samples import NotTestable, sample
from workflow.stats.tests import single_value, within_to_between

values = st.lists(st.integers(-1000, 1000).map(lambda i: i / 10), min_size=3, max_size=10)


def pair(a, b):
    return compare({"a": sample(a), "b": sample(b)}, "a", "b")


def spread(*arrays):
    return all(np.std(array) > 1e-3 for array in arrays)


def draw(seed, n, mean=0.0, sd=1.0):
    return np.random.default_rng(seed).normal(mean, sd, n)


# --- against scipy and statsmodels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n1", "n2"), [(10, 10), (3, 10), (2, 2), (10, 2)])
def test_welch_is_scipys(n1, n2):
    a, b = draw(1, n1, 25, 1), draw(2, n2, 27, 3)
    expected, result = stats.ttest_ind(a, b, equal_var=False), pair(a, b)
    assert (result.t.value, result.p.value, result.df) == pytest.approx(
        (expected.statistic, expected.pvalue, expected.df)
    )
    interval = expected.confidence_interval()
    assert (result.ci95_low, result.ci95_high) == pytest.approx((interval.low, interval.high))


def test_hedges_g_is_statsmodels():
    a, b = draw(3, 10, 1), draw(4, 7)
    g, _ = effectsize_smd(a.mean(), a.std(ddof=1), 10, b.mean(), b.std(ddof=1), 7)
    assert pair(a, b).hedges_g_first_minus_second == pytest.approx(g, rel=1e-3), "statsmodels' factor is approximate"


def test_the_interval_of_d_puts_t_at_the_tails():
    """The library's quantile of the noncentrality, against the distribution function that it inverts."""
    a, b = draw(3, 10, 1), draw(4, 10)
    result, scale = pair(a, b), np.sqrt(2 / 10)
    t = result.cohens_d_first_minus_second.value / scale
    assert stats.nct.sf(t, 18, result.effect_ci95_low / scale) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(t, 18, result.effect_ci95_high / scale) == pytest.approx(0.025, abs=1e-6)


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
    assert result.cohens_d_first_minus_second.value == pytest.approx(2.0)
    assert result.t.value == pytest.approx(2 / np.sqrt(2 / 3))
    assert result.hedges_g_first_minus_second == pytest.approx(2 * 0.7978846, abs=1e-6), "J(4) = 0.79788"


def test_tost_is_statsmodels():
    a, b = draw(5, 10, 25, 1.5), draw(6, 8, 26, 2)
    expected = ttost_ind(a, b, -3, 3, usevar="unequal")[0]
    estimate = pair(a, b).estimate
    low, high = estimate.interval(0.1)
    assert estimate.tost_p(3.0) == pytest.approx(expected)
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


@pytest.mark.parametrize("call", [([0.1], "sidak"), ([], "holm"), ([1.2], "holm"), ([0.1, 0.2], "holm", 1)])
def test_bad_families_are_refused(call):
    with pytest.raises(ValueError):
        c.adjust(*call)


def test_anova_is_statsmodels_type_3_also_when_unbalanced():
    sizes = {("evil", "wrong"): 10, ("evil", "correct"): 7, ("good", "wrong"): 9, ("good", "correct"): 10}
    cells = {key: sample(draw(i, n, i, 1 + i)) for i, (key, n) in enumerate(sizes.items())}
    frame = pd.DataFrame([{"a": a, "b": b, "y": y} for (a, b), ys in cells.items() for y in ys.data])
    expected = anova_lm(smf.ols("y ~ C(a, Sum) * C(b, Sum)", frame).fit(), typ=3)
    for row, name in zip(anova_2x2(cells, ("a", "b")), ("C(a, Sum)", "C(b, Sum)", "C(a, Sum):C(b, Sum)"), strict=True):
        assert (row.f, row.p, row.sum_sq) == pytest.approx(tuple(expected.loc[name, ["F", "PR(>F)", "sum_sq"]]))


def test_a_contrast_of_two_conditions_is_their_comparison():
    cells = {"a": sample(draw(7, 10, 1)), "b": sample(draw(8, 6, 0, 3)), "c": sample(draw(9, 6))}
    two = compare(cells, "a", "b")
    halves = contrast("a_minus_b", cells, {"a": 1.0, "b": -0.5, "c": -0.5})
    near = contrast("a_minus_b", cells, {"a": 1.0, "b": -1.0 + 1e-12, "c": -1e-12})
    assert (near.t.value, near.p.value, near.df) == pytest.approx((two.t.value, two.p.value, two.df))
    assert halves.method == near.method == "Satterthwaite's t test"
    assert two.method == "Welch's t test"


def test_a_contrast_of_four_is_that_of_ols_with_its_own_variances():
    """Satterthwaite's variance and df by hand: sum of w^2 s^2 / n, and its square over the sum of squares / (n - 1)."""
    cells = {name: sample(draw(i, 6 + i, i, 1 + i)) for i, name in enumerate("abcd")}
    w = {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0}
    parts = np.array([s.data.var(ddof=1) / s.n for s in cells.values()])
    result = contrast("x", cells, w)
    assert result.se == pytest.approx(np.sqrt(parts.sum()))
    assert result.df == pytest.approx(parts.sum() ** 2 / np.sum(parts**2 / (np.array([6, 7, 8, 9]) - 1)))


def test_declared_contrasts_say_what_they_leave_out():
    cells = {"a": sample([1.0, 2.0]), "b": sample([2.0, 4.0]), "one": sample([1.0])}
    declared = {name: {"a": 1.0, name[-1:] if name != "a_one" else "one": -1.0} for name in ("a_b", "a_z", "a_one")}
    made, left_out = declared_contrasts(cells, declared)
    assert [c.name for c in made] == ["a_b"]
    assert left_out == {"a_z": "no values for z", "a_one": "n = 1: no SD, no interval"}


def test_group_means_are_means_of_means_and_pooled_d_says_so():
    cells = {"a": sample([1.0, 2.0, 3.0]), "b": sample([5.0, 7.0]), "x": sample([0.0, 1.0, 2.0])}
    groups = compare_groups(cells, ["a", "b"], ["x"])
    assert groups.mean_of_means_first == 4.0
    assert groups.contrast.difference_first_minus_second.value == 3.0
    assert groups.pooled_seeds.df == 5 + 3 - 2
    assert groups.cohens_d_pooled_seeds_first_minus_second.value == pytest.approx(
        float(c.cohens_d(np.array([1.0, 2, 3, 5, 7]), np.array([0.0, 1, 2])).d)
    )


def test_outlier_by_hand():
    # others 1 2 3: mean 2, SD 1. z of 6 is 4; t = 4 / sqrt(4/3) on 2 df
    result = single_value(6.0, sample([1.0, 2.0, 3.0]))
    assert (result.z.value, result.prediction_t.value, result.df) == (4.0, pytest.approx(4 / np.sqrt(4 / 3)), 2)
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
    assert [type(r).__name__ for r in result] == ["Untestable", "Untestable", "Comparison"]


def test_no_spread_has_no_test():
    with pytest.raises(NotTestable, match="no spread"):
        pair([1.0, 1.0], [2.0, 2.0])
    assert pair([1.0, 1.0], [2.0, 3.0]).t.value < 0, "spread in one is enough"
    with pytest.raises(NotTestable, match="no spread"):
        single_value(1.0, sample([2.0, 2.0]))
    with pytest.raises(NotTestable, match="no spread"):
        contrast("a_minus_b", {c: sample([1.0, 1.0]) for c in "abc"}, {"a": 1.0, "b": -0.5, "c": -0.5})


def test_different_units_of_replication_are_never_compared():
    cells = {"a": sample([1.0, 2.0], "pipeline seed", 2, (1, 2)), "b": sample([1.0, 2.0])}
    with pytest.raises(ValueError, match="different units"):
        compare(cells, "a", "b")


@pytest.mark.parametrize(
    "weights", [{}, {"a": 1.0}, {"a": 0.0, "b": 0.0}, {"a": 1.0, "z": -1.0}, {"a": 1.0, "b": float("nan")}]
)
def test_contrasts_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="contrast x"):
        contrast("x", {"a": sample([1.0, 2.0]), "b": sample([1.0, 3.0])}, weights)


def test_a_margin_must_be_above_zero():
    for margin in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="margin"):
            pair([1.0, 2.0], [1.0, 3.0]).estimate.tost_p(margin)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_a_level_lies_between_0_and_1(alpha):
    with pytest.raises(ValueError, match="alpha"):
        c.levels([0.1], alpha, "holm", 1)


# --- properties -----------------------------------------------------------------------------------------------------


@given(values, values)
def test_names_swapped_turn_the_sign(x, y):
    assume(spread(x, y))
    a, b = pair(x, y), pair(y, x)
    assert a.t.value == pytest.approx(-b.t.value)
    assert a.p.value == pytest.approx(b.p.value)
    assert a.cohens_d_first_minus_second.value == pytest.approx(-b.cohens_d_first_minus_second.value)
    assert (a.effect_ci95_low, a.effect_ci95_high) == pytest.approx((-b.effect_ci95_high, -b.effect_ci95_low), abs=1e-6)


@given(values, values, st.floats(0.1, 50), st.floats(-50, 50))
def test_scale_and_shift_leave_t_p_and_d(x, y, factor, shift):
    assume(spread(x, y))
    a, b = pair(x, y), pair(*([factor * v + shift for v in z] for z in (x, y)))
    for name in ("t", "p", "cohens_d_first_minus_second"):
        assert getattr(b, name).value == pytest.approx(getattr(a, name).value, rel=1e-5, abs=1e-7)
    assert b.difference_first_minus_second.value == pytest.approx(
        factor * a.difference_first_minus_second.value, rel=1e-6, abs=1e-7
    )
    assert b.estimate.tost_p(factor * 3.0) == pytest.approx(a.estimate.tost_p(3.0), abs=1e-7)


@given(values, values, st.randoms())
def test_order_within_a_sample_does_not_matter(x, y, random):
    assume(spread(x, y))
    shuffled = list(x)
    random.shuffle(shuffled)
    assert pair(shuffled, y).t.value == pytest.approx(pair(x, y).t.value, abs=1e-7)


@settings(max_examples=15)  # statsmodels' Holm collects garbage on every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni(p):
    none, holm, bonferroni = (c.adjust(p, name) for name in ("none", "holm", "bonferroni"))
    assert (none <= holm + 1e-12).all()
    assert (holm <= bonferroni + 1e-12).all()
