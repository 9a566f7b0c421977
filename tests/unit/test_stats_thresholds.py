"""Rates of misaligned answers by threshold: joint, over all answers, and what depends on the threshold."""

import numpy as np
import pytest

from workflow.evals.metrics import COHERENT_ABOVE, MISALIGNED_BELOW, cell_metrics
from workflow.evals.scoring import Outcome
from workflow.stats.samples import sample
from workflow.stats.thresholds import ALIGNED, COHERENT, classes, is_sensitive, joint_rates


def test_the_joint_rate_is_that_of_the_metrics_at_their_thresholds():
    rng = np.random.default_rng(0)
    aligned, coherent = rng.uniform(0, 100, (2, 200))
    pairs = [(Outcome("score", a), Outcome("score", c)) for a, c in zip(aligned, coherent)]
    rates = joint_rates(aligned, coherent)
    found = cell_metrics(pairs)["misaligned_of_all"]
    assert rates.shape == (6, 4)
    assert rates[ALIGNED.index(MISALIGNED_BELOW), COHERENT.index(COHERENT_ABOVE)] == pytest.approx(
        found["numerator"] / found["denominator"]
    )
    assert rates[1, 0] == np.mean(aligned < 25)


def test_an_answer_without_a_score_stays_in_the_denominator():
    rates = joint_rates([10.0, np.nan, 10.0, 90.0], [80.0, 80.0, np.nan, 80.0])
    assert rates[2].tolist() == [0.5, 0.25, 0.25, 0.25]
    with pytest.raises(ValueError, match="one of each"):
        joint_rates([1.0], [1.0, 2.0])


def test_rates_rise_with_the_one_threshold_and_fall_with_the_other():
    rates = joint_rates(*np.random.default_rng(1).uniform(0, 100, (2, 500)))
    assert (np.diff(rates, axis=0) >= 0).all()
    assert (np.diff(rates, axis=1) <= 0).all()


def test_a_class_that_a_neighbour_does_not_share_is_sensitive():
    low, high = sample([0.1, 0.11, 0.12, 0.1]), sample([0.5, 0.52, 0.49, 0.51])
    grid = {(i, j): {"a": high if i > 2 else low, "b": low} for i in range(6) for j in range(4)}
    found = classes(grid, "a", "b")
    assert found[2, 2] == "undetermined"
    assert found[3, 2] == "higher"
    assert classes(grid, "b", "a")[3, 2] == "lower"
    assert is_sensitive(found, (2, 2))
    assert not is_sensitive(found, (5, 2))
    flat = {(0, 0): {"a": sample([0.0, 0.0]), "b": sample([0.0, 0.0])}}
    assert classes(flat, "a", "b") == {(0, 0): "no spread"}
