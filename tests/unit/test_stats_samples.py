"""Means, intervals and the table they come from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workflow.stats.rounding import from_moments
from workflow.stats.samples import (
    ONE_CHECKPOINT,
    CellSampling,
    NotTestable,
    Sample,
    beside_seeds,
    clustered_mean,
    label,
    sample,
)
from workflow.stats.table import COLUMNS, NoSharedSeed, check_scores, runs, samples
from workflow.stats.tests import change

values = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def row(condition="a", pipeline=42, em=1, value=25.0, **changes):
    base = dict(zip(COLUMNS, (condition, pipeline, em, "post_em", "judge", "alignment", value, "points", 80, 2.0)))
    return base | changes


def test_interval_is_students_t():
    x = [25.0, 27.0, 26.0, 24.5, 28.0]
    expected = stats.t.interval(0.95, 4, loc=np.mean(x), scale=stats.sem(x))
    half = sample(x).ci95_half_width
    assert (sample(x).mean - half, sample(x).mean + half) == pytest.approx(expected)


def test_half_width_of_ten_is_2_262_standard_errors():
    summary = from_moments(25.0, 2.0, 10)
    assert summary.ci95_half_width == pytest.approx(2.262157 * 2 / np.sqrt(10), abs=1e-5)


def test_one_value_has_no_interval():
    one = sample([90.65])
    assert (one.mean, one.sd, one.ci95_half_width) == (90.65, None, None)


def test_one_pipeline_seed_is_said_and_several_are_not():
    assert label(sample([1.0, 2.0])) == ONE_CHECKPOINT
    assert label(sample([1.0, 2.0], "pipeline seed")) == ""


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [float("inf")], [None, 1.0], 1.0])
def test_nan_empty_and_wrong_shape_are_refused(bad):
    with pytest.raises(ValueError, match=r"empty|NaN"):
        sample(bad)


def test_masked_values_are_refused_by_name():
    with pytest.raises(ValueError, match="1 values are masked"):
        sample(np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False]))


def test_a_pipeline_seed_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        sample([1.0, 2.0], "pipeline seed", (42, 42))
    with pytest.raises(ValueError, match="2 values and 1 pipeline seeds"):
        sample([1.0, 2.0], "pipeline seed", (42,))


@given(values, st.randoms())
def test_order_does_not_matter(x, random):
    shuffled = list(x)
    random.shuffle(shuffled)
    a, b = sample(x), sample(shuffled)
    assert (a.mean, a.sd) == (pytest.approx(b.mean, abs=1e-9), pytest.approx(b.sd, abs=1e-9))


@given(values, st.floats(0.01, 100))
def test_scale_carries_through(x, factor):
    a, b = sample(x), sample([factor * v for v in x])
    assert b.mean == pytest.approx(factor * a.mean, rel=1e-6, abs=1e-6)
    assert b.ci95_half_width == pytest.approx(factor * a.ci95_half_width, rel=1e-6, abs=1e-6)


def test_a_change_is_paired_with_the_checkpoint_that_it_started_from():
    one = change(sample([24.0, 26.0]), sample([90.0], "pipeline seed", blocks=(42,)))
    assert (one.values.tolist(), one.unit) == ([-66.0, -64.0], "EM seed")
    after = sample([25.0, 20.0, 30.0], "pipeline seed", (1, 2, 3))
    before = sample([88.0, 92.0], "pipeline seed", (3, 2))
    several = change(after, before)
    assert (several.values.tolist(), several.blocks) == ([-72.0, -58.0], (2, 3))


def test_what_has_no_pair_has_no_change():
    with pytest.raises(NotTestable, match="which one"):
        change(sample([24.0, 26.0]), sample([90.0, 91.0], "pipeline seed", (1, 2)))
    with pytest.raises(NotTestable, match="both before and after"):
        change(sample([1.0], "pipeline seed", (1,)), sample([1.0], "pipeline seed", (2,)))


def test_a_printed_change_keeps_both_roundings():
    after, before = from_moments(25.0, 2.0, 10, 0.005, 0.01), Sample(np.array([90.0]), "pipeline seed", (), 0.05)
    found = change(after, before)
    assert (found.mean, found.mean_rounding) == (pytest.approx(-65.0), pytest.approx(0.055))
    assert found.values.mean(axis=-1).min() == pytest.approx(-65.055)


def test_one_pipeline_seed_makes_em_seeds_the_unit():
    cell = samples(check_scores([row(em=e, value=v) for e, v in ((1, 24.0), (2, 26.0))]), "alignment")["a"]
    assert (cell.values.tolist(), cell.unit, cell.sampling_se) == ([24.0, 26.0], "EM seed", (2.0, 2.0))


def test_several_pipeline_seeds_are_the_unit_and_their_common_em_seeds_are_averaged_first():
    uneven = [row(pipeline=1, em=e, value=v) for e, v in ((1, 20.0), (2, 22.0), (3, 24.0))]
    cell = samples(check_scores([*uneven, row(pipeline=2, em=1, value=30.0)]), "alignment")["a"]
    assert (cell.values.tolist(), cell.unit, cell.blocks) == ([20.0, 30.0], "pipeline seed", (1, 2))
    assert (cell.runs, cell.left_out) == (2, "EM seeds 2, 3, which not every checkpoint has")


def test_checkpoints_that_share_no_em_seed_are_refused():
    with pytest.raises(NoSharedSeed, match="share no EM seed"):
        samples(check_scores([row("a", 1, 1), row("a", 2, 2)]), "alignment")


def test_a_condition_with_one_pipeline_seed_reduces_all_to_the_shared_one():
    table = check_scores(
        [row("a", p, e, 25.0 + p + e) for p in (1, 2) for e in (1, 2)] + [row("b", 1, 1), row("b", 1, 2)]
    )
    cells = samples(table, "alignment")
    assert {cell.unit for cell in cells.values()} == {"EM seed"}
    assert cells["a"].left_out == "pipeline seeds 2, which not every condition has"


def test_conditions_that_share_no_pipeline_seed_are_refused():
    with pytest.raises(ValueError, match="share none"):
        samples(check_scores([row("a", 1), row("b", 2)]), "alignment")


def test_runs_are_conditions_by_pipeline_seeds_by_common_em_seeds():
    rows = [row(c, p, e, 10.0 * p + e) for c in "ab" for p in (1, 2) for e in (1, 2)]
    table = check_scores([*rows, row("a", 1, 3), row(em=None, phase="pre_em")])
    assert runs(table, "alignment").tolist() == [[[11.0, 12.0], [21.0, 22.0]]] * 2
    with pytest.raises(NotTestable, match="not every condition"):
        runs(check_scores(rows[:-2]), "alignment")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{"condition": "a"}], "no column"),
        ([row(value=float("nan"))], "NaN"),
        ([row(), row()], "twice"),
        ([row(phase="after")], "phase"),
        ([row(em=None)], "em_seed"),
        ([row(phase="pre_em")], "em_seed"),
        ([row(pipeline=None)], "pipeline_seed"),
        ([row(condition=None)], "condition is empty"),
        ([row(), row(em=2, unit="fraction")], "more than one unit"),
        ([row(sampling_se=-1.0)], "negative"),
    ],
)
def test_scores_that_break_a_promise_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        check_scores(rows)


def test_two_instruments_must_be_told_apart():
    table = check_scores([row(), row(instrument="other")])
    with pytest.raises(ValueError, match="say which"):
        samples(table, "alignment")
    assert samples(table, "alignment", instrument="other")["a"].values.tolist() == [25.0]
    assert samples(table, "arc") == {}


# --- sampling -------------------------------------------------------------------------------------------------------


def test_clustered_error_by_hand():
    # questions 1 and 2 with means 1 and 5: residual sums -4 and +4; SE^2 = 2/1 * (16 + 16) / 4^2 = 4
    result = clustered_mean([0.0, 2.0, 4.0, 6.0], [1, 1, 2, 2])
    assert result.se_clustered_by_question == pytest.approx(2.0)
    # within each question the variance is 2: SE = sqrt(2 * 2 + 2 * 2) / 4
    assert result.se_questions_fixed == pytest.approx(np.sqrt(8) / 4)


def test_a_balanced_clustered_error_is_that_of_question_means():
    items = np.random.default_rng(0).normal(size=(8, 10)) + np.arange(8)[:, None]
    result = clustered_mean(items.ravel(), np.repeat(np.arange(8), 10))
    assert result.se_clustered_by_question == pytest.approx(stats.sem(items.mean(axis=1)))


def test_what_items_cannot_say_is_not_said():
    assert clustered_mean([1.0, 2.0], ["q", "q"]).se_clustered_by_question is None
    assert clustered_mean([1.0, 2.0], ["q", "r"]).se_questions_fixed is None
    assert clustered_mean([1.0], ["q"]) == CellSampling(None, None)


def test_items_and_questions_must_match():
    with pytest.raises(ValueError, match="2 item scores and 1 questions"):
        clustered_mean([1.0, 2.0], ["q"])


@settings(max_examples=40, deadline=None)
@given(st.permutations(list(range(8))), st.floats(0.1, 10))
def test_clustered_error_ignores_order_and_follows_scale(order, factor):
    y, q = np.array([1.0, 4, 2, 2, 7, 5, 3, 9]), np.array([0, 0, 1, 1, 2, 2, 2, 3])
    base, moved = clustered_mean(y, q), clustered_mean(factor * y[order], q[order])
    assert moved.se_clustered_by_question == pytest.approx(factor * base.se_clustered_by_question)


def test_sampling_error_stands_beside_the_seed_sd():
    result = beside_seeds(from_moments(25.0, 1.8, 10), [2.2] * 10)
    assert result.sampling_se_of_one_run > 1.8
    assert (result.sd_beyond_sampling, result.share_of_variance_from_sampling) == (0.0, 1.0)
    wide = beside_seeds(from_moments(25.0, 5.0, 10), [3.0] * 10)
    assert wide.sd_beyond_sampling == pytest.approx(4.0)
    with pytest.raises(NotTestable):
        beside_seeds(sample([1.0]), [2.0])
