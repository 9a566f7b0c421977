"""Clean items: who trained on what, per-item averages, and the two intervals."""

import numpy as np
import pytest
from scipy import stats

from workflow.stats.confounding import half_widths, new_items_se
from workflow.stats.evidence import Items
from workflow.stats.samples import NotTestable


def items(n=6, contaminated=None):
    ids = tuple(f"i{k}" for k in range(n))
    rng = np.random.default_rng(0)
    correct = {(c, p, e): rng.random(n) < 0.7 for c in "ab" for p in (1, 2) for e in (1, 2, 3)}
    return Items(ids, correct, contaminated or {"a": frozenset(), "b": frozenset()})


def test_clean_is_clean_for_every_condition_of_the_contrast():
    found = items(contaminated={"a": frozenset({"i0"}), "b": frozenset({"i3"}), "c": frozenset({"i5"})})
    assert found.clean(["a", "b"]).tolist() == [False, True, True, False, True, True]
    assert found.clean(["a"]).tolist() == [False, True, True, True, True, True]
    assert found.unknown(["a", "d"]) == ["d"]
    assert items(contaminated={"a": None, "b": frozenset()}).unknown(["a", "b"]) == ["a"]


def test_em_seeds_are_averaged_by_item_before_pipeline_seeds():
    two = items()
    mask = np.ones(6, dtype=bool)
    by_hand = np.mean([two.correct["a", 1, e] for e in (1, 2, 3)], axis=0)
    assert two.by_replicate("a", mask).shape == (2, 6)
    assert two.by_replicate("a", mask)[0] == pytest.approx(by_hand)
    one = Items(two.ids, {run: right for run, right in two.correct.items() if run[1] == 1}, two.contaminated)
    assert one.by_replicate("a", mask).shape == (3, 6), "EM seeds are the replicates of one checkpoint"


def test_accuracy_is_over_the_mask_alone():
    found = items()
    mask = np.array([True, False, False, True, False, False])
    assert found.accuracy(mask)["a", 1, 2] == found.correct["a", 1, 2][[0, 3]].mean()


def test_the_paired_interval_is_a_t_interval_of_item_differences():
    known, mask = items(40), np.ones(40, dtype=bool)
    tables = {c: known.by_replicate(c, mask) for c in "ab"}
    paired, new = half_widths(tables, {"a": 1.0, "b": -1.0}, are_blocks=True)
    differences = tables["a"].mean(axis=0) - tables["b"].mean(axis=0)
    expected = stats.ttest_1samp(differences, 0).confidence_interval()
    assert paired == pytest.approx((expected.high - expected.low) / 2)
    assert new > paired
    assert half_widths({c: y[:1] for c, y in tables.items()}, {"a": 1.0, "b": -1.0}, are_blocks=False)[1] is None


def test_new_items_add_their_variance_without_counting_the_cell_twice():
    """V_replicate + V_item - V_(item x replicate), unbiased by simulation of a two-way layout."""
    rng = np.random.default_rng(1)
    n, p, i, s_p, s_i, s_e = 8000, 4, 30, 1.0, 2.0, 3.0
    y = rng.normal(0, s_p, (n, p, 1)) + rng.normal(0, s_i, (n, 1, i)) + rng.normal(0, s_e, (n, p, i))
    truth = s_p**2 / p + s_i**2 / i + s_e**2 / (p * i)
    assert y.mean(axis=(1, 2)).var() == pytest.approx(truth, rel=0.05)
    assert np.mean([new_items_se([(1.0, one)]) ** 2 for one in y[:2000]]) == pytest.approx(truth, rel=0.05)
    with pytest.raises(NotTestable, match="one replicate"):
        new_items_se([(1.0, np.zeros((1, 5)))])


def test_what_is_no_item_table_is_refused():
    with pytest.raises(ValueError, match="an item twice"):
        Items(("i", "i"), {}, {})
    with pytest.raises(ValueError, match="not the 2 items"):
        Items(("i", "j"), {("a", 1, 1): np.array([True])}, {})
