"""The calibration benchmark: its Holm is statsmodels', and it runs whole on a few matrices."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

PATH = Path(__file__).parents[2] / "benchmarks/stats/calibration.py"


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["calibration"]


def test_holm_by_row_is_statsmodels(calibration):
    p = np.random.default_rng(0).uniform(0, 0.05, (20, 10))
    expected = np.array([multipletests(row, method="holm")[0] for row in p])
    assert (calibration.holm_rejects(p) == expected).all()


def test_pair_p_is_scipys(calibration):
    samples = np.random.default_rng(0).normal(size=(2, 5, 10))
    expected = stats.ttest_ind(samples[1, 0], samples[1, 4], equal_var=False).pvalue
    assert calibration.pair_p(samples)[1, 3] == pytest.approx(expected)


def test_report_is_whole_and_repeats(calibration):
    text = calibration.report(20, 1)
    assert text.count("\n## ") == len(calibration.SECTIONS)
    assert text == calibration.report(20, 1)


def test_taking_em_seeds_as_the_unit_raises_false_positives(calibration):
    sim = calibration.Simulation(np.random.default_rng(0), 300)
    wrong = calibration.pair_p(sim.matrices(sd_pipeline=2.0).reshape(300, 5, -1))
    assert (wrong < 0.005).any(axis=1).mean() > 0.5


def test_the_published_power_of_blocks(calibration):
    """P x E, power blocked and nested, false positives blocked; within the Monte-Carlo error of 3,000 matrices."""
    expected = {
        "2 x 10": (0.65, 0.42),
        "3 x 1": (0.63, 0.44),
        "3 x 3": (0.84, 0.58),
        "3 x 10": (0.92, 0.64),
        "5 x 2": (0.97, 0.83),
    }
    for name, pooled, _, _, nested, false, decides in calibration.blocks(
        calibration.Simulation(np.random.default_rng(0), 3000)
    ):
        share = [float(text.split("%")[0]) / 100 for text in (pooled, nested, false, decides)]
        assert share[:2] == pytest.approx(expected[name], abs=0.03), name
        assert share[2] == pytest.approx(0.05, abs=0.013), name
        assert share[3] <= 0.055, name
