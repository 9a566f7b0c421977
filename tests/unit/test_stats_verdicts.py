"""The region rules, at their borders, and the tipping point."""

import numpy as np
import pytest

from workflow.stats import verdicts
from workflow.stats.confounding import aliased
from workflow.stats.rounding import UNDETERMINED
from workflow.stats.samples import sample
from workflow.stats.tests import Effect, Estimate, separate_variances


def difference(interval, direction, x, size=None):
    return verdicts.difference(interval, direction, x, size or interval)


@pytest.mark.parametrize(
    ("low", "high", "x", "verdict"),
    [
        (1.0, 3.0, 0.0, "supported"),
        (1.0, 3.0, 1.0, "supported"),
        (1.0, 3.0, 2.0, "difference shown, size not"),
        (1.0, 3.0, 3.5, "size refuted"),
        (-1.0, 3.0, 3.5, "size refuted"),
        (-1.0, 3.0, 2.0, "undetermined"),
        (-1.0, 3.0, 0.0, "undetermined"),
        (-3.0, -1.0, 0.0, "opposite"),
        (-3.0, -1.0, 2.0, "opposite"),
    ],
)
def test_a_difference_is_judged_by_where_its_interval_lies(low, high, x, verdict):
    assert verdicts.settle(difference((low, high), "higher", x)) == verdict
    assert verdicts.settle(difference((-high, -low), "lower", x)) == verdict


@pytest.mark.parametrize(
    ("low", "high", "x", "verdict"),
    [
        (1.0, 3.0, 0.0, "supported"),
        (-3.0, -1.0, 0.0, "supported"),
        (-1.0, 3.0, 0.0, "undetermined"),
        (-3.0, -1.0, 2.0, "difference shown, size not"),
        (-1.0, 1.0, 2.0, "size refuted"),
    ],
)
def test_either_direction(low, high, x, verdict):
    assert verdicts.settle(difference((low, high), "either", x)) == verdict


def test_a_size_may_be_held_against_an_interval_of_d():
    found = difference((0.5, 2.0), "higher", 4.0, size=(2.0, 3.8))
    assert verdicts.settle(found) == "size refuted", "an effect of 4 at a d of 2.9 was called supported"
    assert verdicts.settle(difference((0.5, 2.0), "higher", 3.0, size=(2.0, 3.8))).startswith("difference shown")


@pytest.mark.parametrize(
    ("inner", "outer", "verdict"),
    [
        ((-1.0, 2.0), (-2.0, 3.0), "equivalent"),
        ((1.0, 4.0), (0.5, 4.5), "equivalent and different"),
        ((1.0, 6.0), (0.5, 6.5), "undetermined"),  # different, and perhaps within the margin: not refuted
        ((5.5, 7.0), (5.0, 8.0), "equivalence refuted"),
        ((-7.0, -5.5), (-8.0, -5.2), "equivalence refuted"),
        ((4.0, 7.0), (3.0, 8.0), "undetermined"),
    ],
)
def test_equivalence_is_judged_by_two_intervals(inner, outer, verdict):
    assert verdicts.settle(verdicts.equivalence(inner, outer, 5.0)) == verdict


def test_corners_that_disagree_settle_on_what_they_share():
    assert verdicts.settle(np.array(["supported", "undetermined"])) == UNDETERMINED
    assert verdicts.settle(np.array(["equivalent", "equivalent and different"])) == "equivalent"
    assert verdicts.settle(np.array(["supported", "difference shown, size not"])) == "difference shown, size not"


def test_the_tipping_point_is_where_the_interval_meets_the_bound():
    """s* = sqrt(((|D| - x) / t)^2 - SE^2) / sqrt(2): with that SD of checkpoints, L = x."""
    a, b = sample(np.random.default_rng(0).normal(28, 2, 10)), sample(np.random.default_rng(1).normal(24, 2, 10))
    e = separate_variances([a, b], [1.0, -1.0])
    half = float(e.interval(0.05)[1] - e.value)
    t = half / float(e.se)
    x = 1.0
    expected = np.sqrt(((float(e.value) - x) / t) ** 2 - float(e.se) ** 2) / np.sqrt(2)
    found = verdicts.tipping_sd(e, float(e.value) - x, 0.05)
    assert found == pytest.approx(expected)
    wider = Estimate(e.value, np.sqrt(e.se**2 + 2 * found**2), e.df, e.effect, "")
    assert float(wider.interval(0.05)[0]) == pytest.approx(x)
    assert verdicts.tipping_sd(e, 0.1, 0.05) is None, "what does not hold has no tipping point"


def test_strength_follows_the_number_of_pipeline_seeds_and_falls_with_the_separate_test():
    assert [verdicts.strength_of(n, True) for n in (1, 2, 3, 4, 5, 9)] == [
        "none", "preliminary", "moderate", "moderate", "strong", "strong",
    ]  # fmt: skip
    assert verdicts.strength_of(9, False) == "preliminary"


def test_aliasing_is_two_conditions_without_a_common_machine():
    a, h = frozenset({"A100"}), frozenset({"H100"})
    assert aliased({"x": a, "y": h, "z": h})
    assert not aliased({"x": a | h, "y": h})
    assert not aliased({"x": h, "y": h})
    assert not aliased({"x": frozenset(), "y": h}), "a stage that the control skips"


def test_effects_name_their_standardiser():
    e = separate_variances([sample([1.0, 2.0, 4.0]), sample([0.0, 1.0, 1.5])], [1.0, -1.0])
    assert isinstance(e.effect, Effect)
    assert "pooled SD" in e.effect.standardiser
