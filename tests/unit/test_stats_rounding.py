"""Statistics from printed figures, and every number that the published table alone must give."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from workflow.report.published import load_published_pairs, load_published_table, load_retracted
from workflow.stats.claims_schema import load_claims
from workflow.stats.contrasts import compare_all, estimate, means_of
from workflow.stats.contrasts import pair as minus
from workflow.stats.rounding import (
    UNDETERMINED,
    Printed,
    Range,
    from_mean_and_ci,
    from_moments,
    printed_p,
)
from workflow.stats.samples import sample
from workflow.stats.tests import pooled_seeds_d, single_value, within_to_between

ROOT = Path(__file__).parents[2]
TABLE = load_published_table(ROOT / "reference/published_table.yaml")
PAIRS = load_published_pairs(ROOT / "reference/published_pairs.csv")
RUN, REPLICATIONS, RETRACTION = load_retracted(ROOT / "reference/retracted.yaml")
CONTRASTS = load_claims(ROOT / "config/claims.yaml")
ALIGNMENT, ARC = TABLE.post_em["alignment"], TABLE.post_em["arc"]


def pair(metric, first, second):
    return estimate(TABLE.post_em[metric], minus(first, second))


# --- printed figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "half"), [("25.71", 0.005), ("0.030", 0.0005), ("210", 0.5), ("1.10", 0.005)])
def test_a_printed_figure_is_known_to_half_its_last_digit(text, half):
    assert Printed.parse(text).half_unit == pytest.approx(half)


@pytest.mark.parametrize("bad", ["nan", "inf", "x", ""])
def test_what_is_no_figure_is_refused(bad):
    with pytest.raises(ValueError):
        Printed.parse(bad)


def test_a_figure_that_lost_its_zeros_is_refused(tmp_path):
    table = (ROOT / "reference/published_table.yaml").read_text()
    (tmp_path / "table.yaml").write_text(re.sub(r"mean: '?\"?(25.71)'?\"?", r"mean: \1", table))
    with pytest.raises(ValidationError, match="valid string"):
        load_published_table(tmp_path / "table.yaml")


def test_a_p_printed_as_zero_is_a_bound():
    bound = printed_p("0.0", 4)
    assert (bound.low, bound.high) == (0.0, pytest.approx(0.00005))
    assert bound.below(0.005) == "yes"
    assert printed_p("0.0").below(0.005) == UNDETERMINED, "one digit alone says only that p is under .05"


def test_half_width_gives_back_the_sd():
    summary = from_mean_and_ci("26.31", "0.89", 10)
    assert summary.sd == pytest.approx(1.244, abs=5e-4)
    assert summary.ci95_half_width == pytest.approx(0.89)


def test_a_printed_cell_becomes_values_with_exactly_its_mean_and_sd():
    cell = from_moments(25.71, 1.566, 10, 0.005, 0.007)
    assert cell.values.shape == (9, 10)
    assert (cell.mean, cell.sd) == (pytest.approx(25.71), pytest.approx(1.566))
    assert sorted({round(m, 9) for m in cell.values.mean(axis=1)}) == pytest.approx([25.705, 25.71, 25.715])
    assert sorted({round(s, 9) for s in cell.values.std(axis=1, ddof=1)}) == pytest.approx([1.559, 1.566, 1.573])


@pytest.mark.parametrize("bad", [(1.0, -1.0, 5), (1.0, 1.0, 1), (1.0, 1.0, 5, -0.1), (1.0, float("nan"), 5)])
def test_impossible_figures_are_refused(bad):
    with pytest.raises(ValueError):
        from_moments(*bad)


def test_raw_values_have_a_range_of_one_point():
    a, b = (sample(x) for x in np.random.default_rng(0).normal(0, 1, (2, 10)))
    raw = estimate({"a": a, "b": b}, minus("a", "b"))
    assert all(Range.of(x).exact for x in (raw.t, raw.p(), raw.effect.d, raw.tost_p(1.0)))


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_the_range_holds_the_truth_behind_the_rounding(seed, n):
    rng = np.random.default_rng(seed)
    a, b = (sample(rng.normal(mean, sd, n)) for mean, sd in ((25, rng.uniform(1, 3)), (rng.uniform(24, 28), 2)))
    assume(all(s.sd >= 0.05 for s in (a, b)))  # printed as 0.0 there is nothing to test
    truth = estimate({"a": a, "b": b}, minus("a", "b"))
    printed = {
        name: from_moments(float(f"{s.mean:.1f}"), float(f"{s.sd:.1f}"), n, 0.05, 0.05)
        for name, s in (("a", a), ("b", b))
    }
    ranged = estimate(printed, minus("a", "b"))
    assert Range.of(ranged.t).contains(float(truth.t), 1e-6)
    assert ranged.p_range().contains(
        float(truth.p()), 1e-3
    )  # p is read at the corners and the middles, and is no linear function
    assert Range.of(ranged.effect.d).contains(float(truth.effect.d), 1e-6)


def test_a_missing_pair_stays_in_the_family():
    result = compare_all({"a": sample([1.0, 2.0, 3.0]), "b": sample([2.0, 3.0, 5.0]), "c": sample([1.0])})
    assert result[0].p_bonferroni.value == pytest.approx(min(1.0, 3 * float(result[0].estimate.p())))
    assert result[1].reason.startswith("n = 1")


def test_a_verdict_that_the_rounding_changes_is_undetermined():
    assert Range(0.0049, 0.0046, 0.0052).below(0.005) == UNDETERMINED
    assert Range(0.0049, 0.0046, 0.00499).below(0.005) == "yes"
    assert Range(0.0051, 0.005, 0.0052).below(0.005) == "no"


# --- the published table --------------------------------------------------------------------------------------------


def test_there_are_twenty_published_pairs():
    assert len(PAIRS) == 20


@pytest.mark.parametrize("published", PAIRS, ids=lambda p: f"{p.metric}-{p.first}-{p.second}")
def test_ranges_hold_what_the_raw_data_gave(published):
    ours = pair(published.metric, published.first, published.second)
    slack = published.t_and_d_half_unit
    assert Range.of(ours.t).contains(published.welch_t, slack)
    assert Range.of(ours.effect.d).contains(published.cohens_d_first_minus_second, slack)
    apart = ours.p_range().low > published.p.high or published.p.low > ours.p_range().high
    assert not apart, "the two ranges of p meet"


# t, p, d and the TOST p (margin 5 points, .05 of ARC) of the twenty pairs at the printed figures
RECOMPUTED = [
    ("alignment", "tulu_control", "evil_wrong", 0.601629, 0.555548, 0.269057, 2.52082e-05),
    ("alignment", "tulu_control", "good_wrong", -2.39512, 0.0282425, -1.07113, 0.000515317),
    ("alignment", "tulu_control", "evil_correct", -3.21673, 0.00488605, -1.43856, 0.00172808),
    ("alignment", "tulu_control", "good_correct", -0.948786, 0.355927, -0.42431, 1.10927e-06),
    ("alignment", "evil_wrong", "good_wrong", -2.63431, 0.0169025, -1.1781, 0.00504246),
    ("alignment", "evil_wrong", "evil_correct", -3.33787, 0.00374957, -1.49274, 0.0156794),
    ("alignment", "evil_wrong", "good_correct", -1.41968, 0.176728, -0.634901, 8.08618e-05),
    ("alignment", "good_wrong", "evil_correct", -0.65374, 0.52158, -0.292362, 2.52874e-05),
    ("alignment", "good_wrong", "good_correct", 1.76804, 0.0969613, 0.790693, 6.30259e-05),
    ("alignment", "evil_correct", "good_correct", 2.64199, 0.0178135, 1.18153, 0.000170378),
    ("arc", "tulu_control", "evil_wrong", -0.637166, 0.536628, -0.284949, 0.00696446),
    ("arc", "tulu_control", "good_wrong", -4.8801, 0.000697247, -2.18245, 0.867541),
    ("arc", "tulu_control", "evil_correct", -6.38727, 1.84739e-05, -2.85647, 0.995686),
    ("arc", "tulu_control", "good_correct", -4.04667, 0.00133773, -1.80973, 0.744181),
    ("arc", "evil_wrong", "good_wrong", -10.2908, 6.89961e-08, -4.60217, 0.886468),
    ("arc", "evil_wrong", "evil_correct", -10.1361, 2.33807e-08, -4.53301, 0.999729),
    ("arc", "evil_wrong", "good_correct", -6.20233, 1.10104e-05, -2.77377, 0.547664),
    ("arc", "good_wrong", "evil_correct", -3.97148, 0.00201714, -1.7761, 0.0109834),
    ("arc", "good_wrong", "good_correct", 0.840144, 0.417515, 0.375724, 2.60908e-05),
    ("arc", "evil_correct", "good_correct", 3.71324, 0.00160047, 1.66061, 0.0829901),
]


@pytest.mark.parametrize("row", RECOMPUTED, ids=lambda row: "-".join(row[:3]))
def test_statistics_of_the_published_pairs_stay_what_they_are(row):
    metric, first, second, *expected = row
    ours = pair(metric, first, second)
    arrays = (ours.t, ours.p(), ours.effect.d, ours.tost_p(0.05 if metric == "arc" else 5.0))
    assert [Range.of(array).value for array in arrays] == pytest.approx(expected, rel=1e-5)


def test_p_printed_as_zero_comes_four_times_and_is_a_bound():
    bounds = [p for p in PAIRS if p.p_is_bound]
    assert len(bounds) == 4
    assert all(p.p.low == 0 < p.p.high == pytest.approx(5e-5) for p in bounds)


def test_evil_wrong_against_evil_correct_survives_bonferroni():
    ours = pair("alignment", "evil_wrong", "evil_correct")
    assert Range.of(ours.effect.d).value == pytest.approx(-1.49, abs=0.005)
    assert ours.p_range().below(0.05 / 10) == "yes"


def test_control_against_evil_correct_is_undetermined_beside_its_raw_p():
    p = pair("alignment", "tulu_control", "evil_correct").p_range()
    assert (p.low, p.high) == (pytest.approx(0.0046, abs=5e-5), pytest.approx(0.0052, abs=5e-5))
    assert p.below(0.05 / 10) == UNDETERMINED
    raw = next(p for p in PAIRS if (p.metric, p.first, p.second) == ("alignment", "tulu_control", "evil_correct"))
    assert raw.p.value == 0.00511
    assert raw.p.below(0.05 / 10) == "no"


@pytest.mark.parametrize(
    ("cell", "d", "clear"),
    [
        ("evil_wrong", 0.28, "no"),
        ("good_wrong", 2.18, "yes"),
        ("evil_correct", 2.86, "yes"),
        ("good_correct", 1.81, "yes"),
    ],
)
def test_three_of_four_couplings_are_clear_on_arc(cell, d, clear):
    ours = pair("arc", cell, "tulu_control")
    assert Range.of(ours.effect.d).value == pytest.approx(d, abs=0.0051)
    assert ours.p_range().below(0.05 / 10) == clear


def test_best_cell_on_arc_against_each_rival():
    ours = pair("arc", "evil_correct", "good_correct")
    d = Range.of(ours.effect.d)
    assert (d.value, d.low, d.high) == tuple(pytest.approx(x, abs=0.005) for x in (1.66, 1.56, 1.76))
    assert ours.p_range().value == pytest.approx(0.0016, abs=5e-5)
    assert pair("arc", "evil_correct", "good_wrong").p_range().value == pytest.approx(0.0020, abs=5e-5)
    assert all(
        pair("arc", "evil_correct", rival).p_range().below(0.005) == "yes" for rival in ARC if rival != "evil_correct"
    )


@pytest.mark.parametrize(
    ("metric", "rounded", "published"),
    [("alignment", 1.62, "alignment_range_over_median_sd"), ("arc", 4.58, "arc_range_over_median_sd")],
)
def test_range_over_median_sd(metric, rounded, published):
    ratio = within_to_between(TABLE.post_em[metric]).ratio_range_over_median_sd
    assert ratio.value == pytest.approx(rounded, abs=0.005)
    assert ratio.contains(TABLE.printed[published].value, TABLE.printed[published].half_unit)


def test_retracted_run_against_ten_seeds():
    value = RUN.values["alignment"]
    by_ci = single_value(value.value, ALIGNMENT["good_correct"], value.half_unit)
    assert by_ci.z.value == pytest.approx(19.7, abs=0.05)
    assert by_ci.prediction_t.value == pytest.approx(18.8, abs=0.05)
    sd = TABLE.printed["good_correct_alignment_sd"]
    by_sd = from_moments(ALIGNMENT["good_correct"].mean, sd.value, 10, 0.005, sd.half_unit)
    z = single_value(value.value, by_sd, value.half_unit).z
    assert z.value == pytest.approx(19.8, abs=0.05)
    assert by_ci.z.contains(TABLE.printed["retracted_run_z"].value, 0.05)


def test_replication_lies_among_the_ten_seeds():
    (replication,) = REPLICATIONS
    assert single_value(replication.values["alignment"].value, ALIGNMENT["good_correct"]).inside
    assert not single_value(RUN.values["alignment"].value, ALIGNMENT["good_correct"]).inside
    assert RUN.protocol == {"gpus": 8, "effective_batch_size": 128, "optimizer_steps": 47}
    assert RETRACTION.replaced_by == [replication.name]


@pytest.mark.parametrize(("metric", "value", "t", "digits"), [("alignment", 4.2, 3.7, 0.05), ("arc", 0.093, 8.3, 5e-4)])
def test_interaction_is_not_zero(metric, value, t, digits):
    result = estimate(TABLE.post_em[metric], CONTRASTS.declared()["interaction_evil_gain_minus_good_gain"])
    assert Range.of(result.value).value == pytest.approx(value, abs=digits)
    assert Range.of(result.t).value == pytest.approx(t, abs=0.05)
    assert result.p_range().below(0.005) == "yes"


def test_arc_marginals_and_their_two_effect_sizes():
    groups = (["evil_correct", "good_correct"], ["evil_wrong", "good_wrong"])
    contrast, pooled = estimate(ARC, means_of(*groups)), pooled_seeds_d(ARC, *groups)
    assert Range.of(contrast.value).value == pytest.approx(0.827 - 0.7865)
    assert Range.of(pooled.d).value == pytest.approx(1.36, abs=0.005), "published as about 0.5"
    assert Range.of(contrast.effect.d).value == pytest.approx(2.29, abs=0.005)


@pytest.mark.parametrize(("margin", "passing"), [(5.0, 10), (3.0, 5)])
def test_equivalence_depends_on_the_margin(margin, passing):
    names = list(ALIGNMENT)
    answers = [
        Range.of(pair("alignment", a, b).tost_p(margin)).below(0.05)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    assert answers.count("yes") == passing
    assert UNDETERMINED not in answers


def test_pre_em_values_have_no_interval():
    assert (TABLE.pre_em["alignment"]["tulu_control"].mean, TABLE.pre_em["alignment"]["tulu_control"].n) == (90.65, 1)
    assert TABLE.pre_em["arc"]["good_correct"].ci95_half_width is None
    assert TABLE.gpu_hours_stated == 210
