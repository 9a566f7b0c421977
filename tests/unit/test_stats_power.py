"""Power and least detectable effects, against statsmodels and closed forms."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestIndPower

from workflow.stats.power import (
    Costs,
    Design,
    Variances,
    design_row,
    detectable,
    minimum_detectable,
    power_of_t,
    power_table,
)
from workflow.stats.samples import ONE_CHECKPOINT, PIPELINE_SEED


def test_minimum_detectable_effect_is_statsmodels_where_that_is_right():
    result = minimum_detectable(10, 0.005, 0.8, sd=1.82)
    assert TTestIndPower().power(result.in_sds, 10, 0.005) == pytest.approx(0.8, abs=1e-4)
    assert result.difference == pytest.approx(1.82 * result.in_sds)
    assert power_of_t(1.5, np.sqrt(2 / 10), 18) == pytest.approx(TTestIndPower().power(1.5, 10, 0.05), abs=1e-5)


@pytest.mark.parametrize(
    ("n", "alpha", "in_sds"),
    [(2, 0.01, 12.68), (2, 0.005, 17.94), (3, 0.005, 5.76), (3, 0.001, 8.72), (4, 0.001, 5.20)],
)
def test_few_replicates(n, alpha, in_sds):
    assert minimum_detectable(n, alpha).in_sds == pytest.approx(in_sds, abs=0.005)


def test_few_replicates_are_right_by_simulation():
    effect = minimum_detectable(2, 0.01).in_sds
    x = np.random.default_rng(0).normal(0, 1, (40_000, 2, 2))
    mean, sd = x.mean(axis=2) + np.array([effect, 0.0]), np.sqrt(x.var(axis=2, ddof=1).mean(axis=1))
    assert np.mean(np.abs(mean[:, 0] - mean[:, 1]) / sd > 9.9248) == pytest.approx(0.8, abs=0.01)  # t(.995, 2)


@pytest.mark.parametrize(("seeds", "at_05", "at_005"), [(2, 3.76, 7.06), (3, 2.61, 3.97), (5, 1.89, 2.64)])
def test_a_blocked_pair_in_residual_sds(seeds, at_05, at_005):
    for alpha, expected in ((0.05, at_05), (0.005, at_005)):
        least = minimum_detectable(seeds, alpha, unit=PIPELINE_SEED, n_conditions=5)
        assert (least.in_sds, least.df) == (pytest.approx(expected, abs=0.005), 4 * (seeds - 1))


@pytest.mark.parametrize(
    "call",
    [
        lambda: minimum_detectable(1),
        lambda: minimum_detectable(3, sd=-1.0),
        lambda: detectable(4, alpha=0.0),
        lambda: detectable(4, alpha=0.9, power=0.8),
        lambda: power_of_t(1.0, 0.0, 4),
        lambda: Variances(-1.0, 1.0, 1.0),
        lambda: Variances(float("nan"), 1.0, 1.0),
        lambda: design_row(Design(1, 1, 80), Variances(1, 1, 1), Costs(1, 1, 1), 5),
        lambda: design_row(Design(2, 2, 80), Variances(1, 1, 1), Costs(1, 1, 1), 1),
        lambda: power_table([], Variances(1, 1, 1), Costs(1, 1, 1), 5),
    ],
)
def test_what_has_no_power_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_em_seeds_cannot_buy_back_the_variance_of_checkpoints():
    variances, costs = Variances(36.0, 4.0, 400.0), Costs(35.0, 0.5, 0.001)
    designs = [Design(3, 10, 80), Design(3, 100, 80), Design(6, 10, 80), Design(3, 10, 8000), Design(1, 10, 80)]
    base, more_em, more_pipelines, more_completions, one = power_table(designs, variances, costs, 5)
    floor = np.sqrt(2 * 36 / 3)
    assert base.se_of_difference > more_em.se_of_difference > floor
    assert more_completions.se_of_difference > floor
    assert more_pipelines.minimum_detectable_difference < more_em.minimum_detectable_difference
    assert (base.unit, base.df, one.unit, one.df) == ("pipeline seed", 8, "EM seed", 18)
    assert one.label == ONE_CHECKPOINT
    assert one.detectable_difference_saved is one.saved_per_gpu_hour is None, (
        "a difference of two checkpoints is another quantity"
    )
    assert more_pipelines.extra_gpu_hours == pytest.approx(5 * 3 * (35 + 10 * (0.5 + 0.08)))
