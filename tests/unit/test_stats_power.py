"""Power and least detectable effects, against statsmodels and closed forms."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestIndPower

from workflow.stats.power import Design, PerLevel, detectable, minimum_detectable, power_of_t, power_table
from workflow.stats.samples import PIPELINE_SEED


def test_minimum_detectable_effect_is_statsmodels_where_that_is_right():
    assert TTestIndPower().power(minimum_detectable(10, 0.005), 10, 0.005) == pytest.approx(0.8, abs=1e-4)
    assert power_of_t(1.5 / np.sqrt(2 / 10), 18) == pytest.approx(TTestIndPower().power(1.5, 10, 0.05), abs=1e-5)


@pytest.mark.parametrize(
    ("n", "alpha", "in_sds"),
    [(2, 0.01, 12.68), (2, 0.005, 17.94), (3, 0.005, 5.76), (3, 0.001, 8.72), (4, 0.001, 5.20)],
)
def test_few_replicates(n, alpha, in_sds):
    assert minimum_detectable(n, alpha) == pytest.approx(in_sds, abs=0.005)


def test_few_replicates_are_right_by_simulation():
    effect = minimum_detectable(2, 0.01)
    x = np.random.default_rng(0).normal(0, 1, (40_000, 2, 2))
    mean, sd = x.mean(axis=2) + np.array([effect, 0.0]), np.sqrt(x.var(axis=2, ddof=1).mean(axis=1))
    assert np.mean(np.abs(mean[:, 0] - mean[:, 1]) / sd > 9.9248) == pytest.approx(0.8, abs=0.01)  # t(.995, 2)


@pytest.mark.parametrize(("seeds", "at_05", "at_005"), [(2, 3.76, 7.06), (3, 2.61, 3.97), (5, 1.89, 2.64)])
def test_a_blocked_pair_in_residual_sds(seeds, at_05, at_005):
    for alpha, expected in ((0.05, at_05), (0.005, at_005)):
        assert minimum_detectable(seeds, alpha, PIPELINE_SEED, 5) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    "call",
    [
        lambda: minimum_detectable(1),
        lambda: detectable(4, alpha=0.0),
        lambda: detectable(4, alpha=0.9, power=0.8),
        lambda: power_table([Design(1, 1, 80)], PerLevel(1, 1, 1), PerLevel(1, 1, 1), 5),
    ],
)
def test_what_has_no_power_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_em_seeds_cannot_buy_back_the_variance_of_checkpoints():
    variances, costs = PerLevel(36.0, 4.0, 400.0), PerLevel(35.0, 0.5, 0.001)
    designs = [Design(3, 10, 80), Design(3, 100, 80), Design(6, 10, 80), Design(3, 10, 8000), Design(1, 10, 80)]
    base, more_em, more_pipelines, more_completions, one = power_table(designs, variances, costs, 5)
    floor = np.sqrt(2 * 36 / 3)
    assert base.se_of_difference > more_em.se_of_difference > floor
    assert more_completions.se_of_difference > floor
    assert more_pipelines.detectable_difference < more_em.detectable_difference
    assert one.detectable_difference == pytest.approx(detectable(18) * one.se_of_difference)
    assert one.saved_per_gpu_hour is None, "a difference of two checkpoints is another quantity"
    saved = base.detectable_difference - more_pipelines.detectable_difference
    assert more_pipelines.extra_gpu_hours == pytest.approx(5 * 3 * (35 + 10 * (0.5 + 0.08)))
    assert more_pipelines.saved_per_gpu_hour == pytest.approx(saved / more_pipelines.extra_gpu_hours)
