"""Claims: their form is closed, and their verdicts and sentences come from raw values and from printed ones alike."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from scipy import stats

from workflow.report.published import from_published, load_published_table, load_retracted
from workflow.stats import claims_text
from workflow.stats.chance import false_support
from workflow.stats.claims import evaluate_claim, evaluate_claims
from workflow.stats.claims_schema import Claim, Claims, load_claims
from workflow.stats.evidence import Items, SingleRun, from_scores
from workflow.stats.rounding import UNDETERMINED, Printed
from workflow.stats.table import check_scores
from workflow.stats.verdicts import VERDICTS

ROOT = Path(__file__).parents[2]
CLAIMS = load_claims(ROOT / "config/claims.yaml")
TABLE = load_published_table(ROOT / "reference/published_table.yaml")
RUN, REPLICATIONS, _ = load_retracted(ROOT / "reference/retracted.yaml")
PUBLISHED = {r.id: r for r in evaluate_claims(CLAIMS, from_published(TABLE, [RUN, *REPLICATIONS]))}
SEEDS = (42, 137, 256, 512, 1024, 2048, 3072, 4096, 5120, 6144)


def exact(mean, sd, n, seed):
    """n values with exactly this mean and SD."""
    z = np.random.default_rng(seed).normal(size=n)
    return mean + sd * (z - z.mean()) / z.std(ddof=1)


def scores(conditions=CLAIMS.matrix, ems=10, pipelines=(42,), pre=True):
    """Raw values that round to the published table."""
    rows = []
    for metric, unit in TABLE.units.items():
        for i, condition in enumerate(conditions):
            cell = TABLE.post_em[metric][condition]
            for p in pipelines:
                common = {"condition": condition, "pipeline_seed": p, "instrument": "x", "metric": metric, "unit": unit}
                common |= {"n_items": 80, "sampling_se": None, "record": f"results/{condition}.p{p}"}
                values = exact(cell.mean, cell.sd, max(ems, 2), i + p)[:ems]
                rows += [common | {"em_seed": e, "phase": "post_em", "value": v} for e, v in zip(SEEDS, values)]
                before = TABLE.pre_em[metric][condition].mean
                rows += [common | {"em_seed": None, "phase": "pre_em", "value": before * (1 + 1e-5 * p)}] * pre
    return check_scores(rows)


def claim(**changes):
    base = {
        "id": "c",
        "text": "{verdict}",
        "metric": "alignment",
        "contrast": {"kind": "pairs", "first": ["evil_correct"], "second": ["evil_wrong"]},
        "rule": {"test": "difference", "direction": "higher"},
        "strength": "strong",
    }
    return Claim.model_validate(base | changes)


def judge(one, evidence):
    return evaluate_claim(one, CLAIMS, evidence)


# --- the published findings -----------------------------------------------------------------------------------------


VERDICTS_ON_THE_TABLE = {  # verdict, and that on all items where the contamination leaves none
    "alignment_falls_in_every_condition": ("supported", ""),
    "alignment_null_within_5_points": ("equivalent and different", ""),
    "alignment_null_within_3_points": ("undetermined", ""),
    "alignment_intervals_overlap": ("conditional", ""),
    "alignment_only_evil_wrong_and_evil_correct_differ": (UNDETERMINED, ""),
    "every_coupling_keeps_arc_above_control": ("confounded", "refuted"),
    "every_coupling_is_above_control_on_arc": ("confounded", "undetermined"),
    "every_coupling_protects_arc": ("confounded", "undetermined"),
    "correct_above_wrong_on_arc": ("confounded", "supported"),
    "correct_above_wrong_size": ("confounded", "undetermined"),
    "correct_above_wrong_with_evil_persona": ("confounded", "supported"),
    "correct_above_wrong_with_good_persona": ("confounded", "equivalent"),
    "correctness_gain_depends_on_scale": ("unverifiable", ""),
    "no_interaction_on_alignment": ("undetermined", ""),
    "no_interaction_on_arc": ("confounded", "equivalence refuted"),
    "evil_wrong_matches_control_on_alignment": ("equivalent", ""),
    "evil_wrong_matches_control_on_arc": ("confounded", "equivalent"),
    "headline_run_is_no_replicate": ("supported", ""),
    "rerun_is_a_replicate": ("supported", ""),
    "good_correct_keeps_its_alignment": ("refuted", ""),
    "evil_correct_is_best_on_arc": ("confounded", "supported"),
    "coupling_is_benign_before_em_on_alignment": ("unverifiable", ""),
    "coupling_is_benign_before_em_on_arc": ("unverifiable", ""),
}


@pytest.mark.parametrize("name", VERDICTS_ON_THE_TABLE)
def test_verdicts_on_the_published_table(name):
    result = PUBLISHED[name]
    assert (result.verdict, result.on_all_items) == VERDICTS_ON_THE_TABLE[name]
    assert result.verdict in VERDICTS
    assert result.verdict in result.sentence


def test_no_sentence_has_a_gap_or_a_float_sums_rest():
    for result in (*PUBLISHED.values(), *evaluate_claims(CLAIMS, from_scores(scores()))):
        assert "n/a" not in result.sentence
        assert "e-1" not in result.sentence
        assert ";." not in result.sentence
        assert "()" not in result.sentence


def test_a_claim_of_a_change_tells_the_levels_that_it_led_to():
    assert "to means of 25.21 to 28.15" in PUBLISHED["alignment_falls_in_every_condition"].sentence


def test_every_shipped_claim_has_an_expected_verdict_and_every_finding_a_claim():
    assert {c.finding for c in CLAIMS.claims if c.finding} == {1, 2, 3, 4, 5, 6, 7}
    assert set(PUBLISHED) == set(VERDICTS_ON_THE_TABLE)


def test_the_pair_on_the_edge_is_named():
    result = PUBLISHED["alignment_only_evil_wrong_and_evil_correct_differ"]
    assert "tulu_control - evil_correct: undetermined at this precision" in result.sentence


def test_equivalence_counts_are_in_the_sentence():
    assert "10 of 10 pairs" in PUBLISHED["alignment_null_within_5_points"].sentence
    assert "5 of 10 pairs" in PUBLISHED["alignment_null_within_3_points"].sentence


def test_best_cell_meets_every_rival():
    members = PUBLISHED["evil_correct_is_best_on_arc"].members
    assert {m.name for m in members} == {f"evil_correct - {c}" for c in CLAIMS.matrix if c != "evil_correct"}


def test_benign_before_em_is_one_value_per_condition():
    result = PUBLISHED["coupling_is_benign_before_em_on_alignment"]
    assert "n = 1" in result.reason
    assert result.sentence == "Before EM, coupling costs no alignment: unverifiable (n = 1: no SD, no interval)."
    assert result.strength == "none"


# --- raw values -----------------------------------------------------------------------------------------------------


def test_raw_values_decide_what_rounding_left_open():
    results = {r.id: r for r in evaluate_claims(CLAIMS, from_scores(scores(), [RUN, *REPLICATIONS]))}
    left_open = "alignment_only_evil_wrong_and_evil_correct_differ"
    assert results[left_open].verdict == "refuted", "these values have p .00489 for control against evil_correct"
    assert "so do tulu_control - evil_correct" in results[left_open].reason
    assert {k: r.verdict for k, r in results.items() if k != left_open} == {
        k: r.on_all_items or r.verdict for k, r in PUBLISHED.items() if k != left_open
    }, "no contamination is known of these"
    assert results[left_open].rests_on[0] == "results/tulu_control.p42"


def test_several_pipeline_seeds_speak_of_conditions():
    result = judge(CLAIMS.claims[1], from_scores(matrix(3)))
    assert (result.label, result.unit, result.scope, result.n_pipeline_seeds) == ("", "pipeline seed", "conditions", 3)
    assert dict(result.n_by_condition)["evil_wrong"] == 3
    assert result.tipping_sd is None
    assert "blocks" in result.members[0].method


def test_pre_em_is_tested_once_it_has_several_seeds():
    table = scores(pipelines=(42, 137, 256))
    noise = np.random.default_rng(0).normal(0, 1e-3, len(table))
    table["value"] += np.where(table["phase"] == "pre_em", noise * table["value"], 0)
    results = [r for r in evaluate_claims(CLAIMS, from_scores(table)) if r.finding == 7]
    assert {r.verdict for r in results} <= {"equivalent", "equivalent and different"}


@pytest.mark.parametrize(
    ("seeds", "strength"), [(1, "none"), (2, "preliminary"), (3, "moderate"), (4, "moderate"), (5, "strong")]
)
def test_strength_is_the_number_of_pipeline_seeds(seeds, strength):
    result = judge(claim(), from_scores(matrix(seeds)))
    assert (result.verdict, result.strength) == ("supported", strength)


def test_strength_falls_where_the_separate_error_disagrees():
    """Five seeds, a difference that the error of all conditions shows and that of the pair alone (df 4) does not."""
    results = [judge(claim(), from_scores(matrix(5, shift=0.8, seed=seed))) for seed in range(40)]
    shown = [r for r in results if r.verdict == "supported"]
    strengths = {(r.members[0].separate_verdict, r.strength) for r in shown}
    assert strengths == {("supported", "strong"), ("undetermined", "preliminary")}


def matrix(pipelines, shift=6.0, ems=4, seed=0):
    """Five conditions on the same pipeline seeds, evil_correct `shift` above the others; alignment before and after."""
    rng = np.random.default_rng(seed)
    rows = []
    common = {"instrument": "x", "metric": "alignment", "unit": "points", "n_items": 80, "sampling_se": None}
    for p in range(pipelines):
        block = rng.normal(0, 4)
        for condition in CLAIMS.matrix:
            centre = 25 + block + rng.normal(0, 0.5) + shift * (condition == "evil_correct")
            where = common | {"condition": condition, "pipeline_seed": p}
            rows += [where | {"em_seed": e, "phase": "post_em", "value": rng.normal(centre, 0.5)} for e in range(ems)]
            rows.append(where | {"em_seed": None, "phase": "pre_em", "value": 90 + block + rng.normal(0, 0.5)})
    return check_scores(rows)


def test_pipeline_seeds_are_blocks_and_not_noise():
    """Seeds differ by far more than conditions do; an unpaired test of the same means sees nothing."""
    table = matrix(3, shift=2.5)
    result = judge(claim(), from_scores(table))
    assert result.verdict == "supported"
    means = table[table["phase"] == "post_em"].groupby(["condition", "pipeline_seed"])["value"].mean()
    unpaired = stats.ttest_ind(means["evil_correct"], means["evil_wrong"])
    assert unpaired.pvalue > 0.2


def test_a_change_is_paired_by_checkpoint():
    table = matrix(3)
    change = claim(
        contrast={"kind": "before_after", "conditions": ["evil_wrong"]}, rule={"test": "change", "direction": "lower"}
    )
    member = judge(change, from_scores(table)).members[0]
    own = table[table["condition"] == "evil_wrong"]
    after = own[own["phase"] == "post_em"].groupby("pipeline_seed")["value"].mean().to_numpy()
    before = own[own["phase"] == "pre_em"]["value"].to_numpy()
    expected = stats.ttest_rel(after, before)
    assert (member.t.value, member.p.value) == pytest.approx((expected.statistic, expected.pvalue))


def test_protects_is_condition_by_time_with_the_levels_beside_it():
    """The conditions end at the same level, but one began lower: it lost less."""
    table = matrix(3, shift=0.0)
    low = (table["condition"] == "evil_correct") & (table["phase"] == "pre_em")
    table.loc[low, "value"] -= 10.0
    level, protects = claim(), claim(measure="change")
    assert judge(level, from_scores(table)).verdict == "undetermined"
    result = judge(protects, from_scores(table))
    assert result.verdict == "supported"
    assert abs(result.members[0].level.value) < 2 < result.members[0].estimate.value
    assert "levels" in claims_text.member_text(result.members[0])


def test_a_missing_condition_is_unverifiable_and_named():
    result = judge(claim(), from_scores(scores(conditions=["evil_correct"])))
    assert result.verdict == "unverifiable"
    assert "evil_wrong" in result.reason
    assert judge(claim(metric="mmlu"), from_scores(scores())).reason == "no post_em values of mmlu"


def test_conditions_that_share_no_pipeline_seed_are_unverifiable():
    table = scores(conditions=["evil_wrong", "evil_correct"])
    table.loc[table["condition"] == "evil_wrong", "pipeline_seed"] = 137
    assert "share none" in judge(claim(), from_scores(table)).reason


def degenerate(seed):
    """Constants, zeros, values equal but for a last bit, two values or noise, with holes."""
    rng = np.random.default_rng(seed)
    kind, pipelines, ems = rng.integers(0, 5), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    draw = [
        lambda: 0.5, lambda: 0.0, lambda: 0.5 + 1e-15 * rng.random(), lambda: float(rng.integers(0, 2)), rng.random,
    ][kind]  # fmt: skip
    rows = []
    for metric, scale in (("alignment", 100.0), ("arc", 1.0)):
        common = {"metric": metric, "instrument": "x", "unit": "u", "n_items": 80, "sampling_se": None}
        for condition in CLAIMS.matrix:
            for p in range(pipelines):
                cells = [("pre_em", None), *(("post_em", e) for e in range(ems))]
                rows += [
                    common | {"condition": condition, "pipeline_seed": p, "phase": phase, "em_seed": e}
                    | {"value": scale * draw()}
                    for phase, e in cells if rng.random() < 0.97
                ]  # fmt: skip
    return check_scores(rows)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(40))
def test_degenerate_tables_come_out_in_words_and_in_numbers_that_are_numbers(seed):
    results = evaluate_claims(CLAIMS, from_scores(degenerate(seed)))
    json.dumps([asdict(r) for r in results], allow_nan=False)
    assert all(r.verdict in VERDICTS for r in results)


def test_a_change_of_equal_values_has_no_spread():
    """703 of 1172 after EM and 1021 before it, in every run: what float subtraction leaves is no spread."""
    table = scores(conditions=["evil_wrong", "evil_correct"])
    is_post = table["phase"] == "post_em"
    table["value"] = np.where(is_post, 703 / 1172 + 1e-16 * (table["em_seed"].fillna(0) % 7).astype(float), 1021 / 1172)
    assert "no spread" in judge(claim(measure="change"), from_scores(table)).reason


def test_two_instruments_ask_for_a_name():
    table = scores()
    both = check_scores([*table.to_dict("records"), *table.assign(instrument="y").to_dict("records")])
    assert "must name one" in judge(claim(), from_scores(both)).reason
    assert judge(claim(instrument="y"), from_scores(both)).verdict == "supported"


def test_a_missing_cell_does_not_shrink_the_family():
    corrected = {"test": "difference", "direction": "higher", "correction": "bonferroni", "family": "all_pairs"}
    full = judge(claim(rule=corrected), from_scores(scores())).members[0].p_adjusted
    fewer = (
        judge(claim(rule=corrected), from_scores(scores(conditions=["evil_wrong", "evil_correct"])))
        .members[0]
        .p_adjusted
    )
    assert fewer.value == pytest.approx(full.value)


def test_opposite_sign_is_opposite():
    result = judge(claim(rule={"test": "difference", "direction": "lower"}), from_published(TABLE))
    assert (result.verdict, result.reason) == ("opposite", "the difference has the opposite sign")
    assert result.tipping_sd > 0


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"effect": 4.0}, "size refuted"),  # d is 1.49 here, and 4 was called supported
        ({"effect": 1.0}, "difference shown, size not"),
        ({"effect_raw": 2.0}, "difference shown, size not"),
        ({"effect_raw": 0.5}, "supported"),
        ({"effect_raw": 6.0}, "size refuted"),
        ({}, "supported"),
    ],
)
def test_a_size_that_is_stated_is_a_size_that_the_interval_shows(rule, verdict):
    result = judge(claim(rule={"test": "difference", "direction": "higher", **rule}), from_published(TABLE))
    assert result.verdict == verdict
    member = result.members[0]
    assert member.decided_on == ("d" if "effect" in rule else "raw units")
    low, high = member.interval
    x = rule.get("effect", rule.get("effect_raw", 0.0))
    assert {"supported": low >= x, "size refuted": high < x}.get(verdict, low < x <= high)
    assert member.p_decided is None or member.p_decided.value < 0.05 or verdict == "size refuted"


def test_a_difference_within_the_margin_does_not_refute_equivalence():
    """evil_wrong and evil_correct differ by 2.9 points, p .004: within 5 points all the same."""
    rule = {"test": "equivalence", "margin": 5.0, "because": "twice the sampling error"}
    assert judge(claim(rule=rule), from_published(TABLE)).verdict == "equivalent and different"
    assert judge(claim(rule=rule | {"margin": 3.0}), from_published(TABLE)).verdict == "undetermined"
    assert judge(claim(rule=rule | {"margin": 0.5}), from_published(TABLE)).verdict == "equivalence refuted"


def test_all_of_k_need_no_correction_to_hold_but_do_to_be_refuted():
    """Three comparisons at p about .03: together supported at .05; the same of the opposite sign refutes nothing."""
    table = scores(conditions=CLAIMS.matrix[:4])
    is_post = (table["metric"] == "alignment") & (table["phase"] == "post_em")
    for i, condition in enumerate(CLAIMS.matrix[:4]):
        own = is_post & (table["condition"] == condition)
        table.loc[own, "value"] = exact(25.0 + 2.0 * (i == 0), 1.95, 10, 0)
    contrast = {"kind": "pairs", "first": [CLAIMS.matrix[0]], "second": CLAIMS.matrix[1:4]}
    rule = {"test": "difference", "direction": "higher", "correction": "bonferroni"}
    result = judge(claim(contrast=contrast, rule=rule), from_scores(table))
    assert 0.05 / 3 < result.members[0].p.value < 0.05
    assert result.verdict == "supported"
    assert "not corrected" in result.members[0].decided_on
    other = judge(claim(contrast=contrast, rule=rule | {"direction": "lower"}), from_scores(table))
    assert other.verdict == "undetermined"


def test_the_only_pair_needs_the_others_to_be_equivalent():
    def only(**values):
        table = scores()
        is_post = (table["metric"] == "alignment") & (table["phase"] == "post_em")
        for condition in CLAIMS.matrix:
            own = is_post & (table["condition"] == condition)
            table.loc[own, "value"] = exact(values.get(condition, 25.0), values.get("sd", 1.0), 10, 0)
        one = next(c for c in CLAIMS.claims if c.rule.test == "only_pairs")
        return judge(one, from_scores(table))

    assert only(evil_correct=26.2, evil_wrong=23.8, sd=1.45).verdict == "supported"
    # the others are not shown to differ, nor to be alike: that is less than "the only pair"
    assert only(evil_correct=30.0, evil_wrong=20.0, sd=5.5).verdict == "detected only in the named pairs"
    assert only(evil_correct=40.0).verdict == "refuted"
    assert only(sd=1.0).verdict == "refuted"


def test_a_difference_neither_shown_nor_excluded_is_undetermined():
    one = claim(contrast={"kind": "pairs", "first": ["good_correct"], "second": ["tulu_control"]})
    assert judge(one, from_published(TABLE)).verdict == "undetermined"


def test_groups_of_different_scale():
    table = scores()
    small = table.assign(condition=table["condition"] + "_10k", pipeline_seed=table["pipeline_seed"])
    few = small[small["em_seed"].isin(SEEDS[:3]) | small["em_seed"].isna()]
    both = check_scores([*table.to_dict("records"), *few.to_dict("records")])
    contrast = {"kind": "groups", "first": ["evil_wrong", "good_wrong"], "second": ["evil_wrong_10k", "good_wrong_10k"]}
    assert judge(claim(metric="arc", contrast=contrast), from_scores(both)).strength == "none"
    (scale,) = (r for r in evaluate_claims(CLAIMS, from_scores(both)) if r.id == "correctness_gain_depends_on_scale")
    assert scale.verdict in ("supported", "opposite", "undetermined")
    assert "evil_correct_10k" in dict(scale.n_by_condition)


def test_own_run_against_replicates():
    one = claim(
        contrast={"kind": "one_run", "run": "mine", "against": "good_correct"},
        rule={"test": "replicate", "lies": "inside"},
    )
    mine = SingleRun("mine", "good_correct", 7, {}, {"alignment": Printed(26.0, 0.0)}, "this run")
    assert judge(one, from_scores(scores(), [mine])).verdict == "supported"
    assert judge(one, from_scores(scores())).reason == "no alignment of a run named mine"


# --- contamination ----------------------------------------------------------------------------------------------------


def with_items(n=400, contaminated=200, gain=0.0, clean_gain=0.0):
    """ARC of two conditions; the first `contaminated` items were in the training data of evil_correct, which answers
    them better by `gain`, and the others by `clean_gain`."""
    ids = tuple(f"i{k}" for k in range(n))
    correct, rows = {}, []
    for number, condition in enumerate(("evil_wrong", "evil_correct")):
        for e in SEEDS:
            rng = np.random.default_rng([number, e])
            p = np.full(n, 0.6)
            if condition == "evil_correct":
                p += np.where(np.arange(n) < contaminated, gain, clean_gain)
            right = rng.random(n) < p
            correct[condition, 42, e] = right
            rows.append(
                {
                    "condition": condition, "pipeline_seed": 42, "em_seed": e, "phase": "post_em", "instrument": "arc",
                    "metric": "arc", "value": right.mean(), "unit": "fraction", "n_items": n, "sampling_se": None,
                }
            )  # fmt: skip
    seen = {"evil_wrong": frozenset(), "evil_correct": frozenset(ids[:contaminated])}
    return from_scores(check_scores(rows), items={("post_em", "arc", "arc"): Items(ids, correct, seen)})


def test_a_gain_on_clean_items_is_supported_with_the_full_score_beside_it():
    result = judge(claim(metric="arc"), with_items(gain=0.3, clean_gain=0.2))
    assert (result.verdict, result.on_all_items, result.on_clean_items) == ("supported",) * 3
    assert "Judged on the 200 of 400 items" in result.sentence
    assert result.confounded_by == ()
    member = result.members[0]
    low, high = member.new_items
    assert low < member.interval[0] < member.interval[1] < high, "other items vary too, and decide nothing"


def test_too_few_clean_items_are_confounded():
    result = judge(claim(metric="arc"), with_items(n=290, contaminated=200, gain=0.3, clean_gain=0.3))
    assert (result.verdict, result.on_clean_items, result.strength) == ("confounded", "supported", "none")
    assert "90 clean items: fewer than 100" in result.confounded_by


def test_items_that_alone_could_cross_the_margin_are_confounded():
    rule = {"test": "equivalence", "margin": 0.01, "because": "a margin that 200 items cannot hold"}
    result = judge(claim(metric="arc", rule=rule), with_items())
    assert result.verdict == "confounded"
    assert any("clean items alone leave" in why and "more than 0.01" in why for why in result.confounded_by)


def test_a_change_over_blocks_is_judged_on_clean_items_too():
    """Three pipeline seeds, before and after EM: one condition keeps the half that it trained on, and no more."""
    ids, conditions = tuple(f"i{k}" for k in range(400)), ("evil_wrong", "evil_correct", "good_wrong")
    correct, rows = {"pre_em": {}, "post_em": {}}, []
    for number, condition in enumerate(conditions):
        for p in range(3):
            for phase, em_seeds in (("pre_em", [None]), ("post_em", [1, 2])):
                for e in em_seeds:
                    share = np.full(400, 0.9 if phase == "pre_em" else 0.5)
                    share[:200] += 0.4 * (phase == "post_em" and condition == "evil_correct")
                    right = np.random.default_rng([number, p, e or 0]).random(400) < share
                    correct[phase][condition, p, e] = right
                    rows.append(
                        {
                            "condition": condition, "pipeline_seed": p, "em_seed": e, "phase": phase,
                            "instrument": "arc", "metric": "arc", "value": right.mean(), "unit": "fraction",
                            "n_items": 400, "sampling_se": None,
                        }
                    )  # fmt: skip
    seen = {c: frozenset(ids[:200]) if c == "evil_correct" else frozenset() for c in conditions}
    items = {(phase, "arc", "arc"): Items(ids, runs, seen) for phase, runs in correct.items()}
    result = judge(claim(metric="arc", measure="change"), from_scores(check_scores(rows), items=items))
    assert (result.on_all_items, result.scope, result.clean_items) == ("supported", "conditions", (200, 400))
    assert result.on_clean_items == "undetermined"
    (member,) = result.members
    assert abs(member.estimate.value) < 0.1
    assert member.new_items is not None
    assert "blocks" in member.method


def test_training_data_in_which_nobody_has_looked_are_named():
    evidence = with_items(contaminated=0)
    ((where, known),) = evidence.items.items()
    evidence = from_scores(
        evidence.table,
        items={where: Items(known.ids, known.correct, {"evil_wrong": None, "evil_correct": frozenset()})},
    )
    result = judge(claim(metric="arc"), evidence)
    assert result.confounded_by == ("nobody has looked for test items in the training data of evil_wrong",)


def test_the_published_arc_is_confounded_with_what_is_known():
    for result in PUBLISHED.values():
        known = [why for why in result.confounded_by if "786 of 1170" in why and "none in that of good_correct" in why]
        assert bool(known) == (result.metric == "arc") or result.verdict == "unverifiable"
        assert result.metric == "arc" or result.verdict != "confounded"


def test_a_machine_that_goes_with_a_condition_is_named_in_the_verdict():
    a, h = frozenset({"A100"}), frozenset({"H100"})
    machines = {"GPU of em_lora": {"evil_wrong": a, "evil_correct": h, "good_wrong": h, "good_correct": h}}
    evidence = from_scores(scores(), machines=machines)
    result = judge(claim(), evidence)
    assert result.confounded_by == ("GPU of em_lora goes with the condition: H100 in evil_correct; A100 in evil_wrong",)
    assert result.verdict == "supported", "the verdict stands, with what it cannot be told from"
    untouched = claim(contrast={"kind": "pairs", "first": ["good_correct"], "second": ["good_wrong"]})
    assert judge(untouched, evidence).confounded_by == ()


# --- families ---------------------------------------------------------------------------------------------------------


def test_declared_contrasts_and_primary_metrics_are_one_holm_family():
    result = PUBLISHED["no_interaction_on_alignment"]
    p = result.members[0].p.value
    # 4 contrasts x 2 metrics; on ARC persona, correctness, interaction and coupling come before it
    assert result.members[0].p_adjusted.value >= p * 2
    assert result.members[0].p_adjusted.value <= p * 8
    assert len(CLAIMS.planned()) * len(CLAIMS.primary) == 8


def test_a_metric_that_is_not_primary_is_exploratory_and_says_so():
    result = judge(claim(metric="coherence"), from_published(TABLE))
    assert result.exploratory
    assert "Exploratory: coherence is no primary metric" in result.sentence
    assert not judge(claim(), from_published(TABLE)).exploratory


def test_the_chance_of_a_false_support_is_simulated_from_the_design():
    everything = false_support(CLAIMS, from_published(TABLE), matrices=500)
    assert everything == false_support(CLAIMS, from_published(TABLE), matrices=500), "seeded"
    assert 0.0 < everything < 0.3
    one = CLAIMS.model_copy(update={"claims": [claim()]})
    assert false_support(one, from_published(TABLE), matrices=4000) == pytest.approx(0.025, abs=0.01)  # one direction
    many = [claim(id=str(i), rule={"test": "difference", "direction": d}) for i, d in enumerate(("higher", "lower"))]
    both = CLAIMS.model_copy(update={"claims": many})
    assert false_support(both, from_published(TABLE), matrices=4000) == pytest.approx(0.05, abs=0.014)
    blocks = matrix(4)
    without_one = blocks[(blocks["condition"] != "good_wrong") | (blocks["pipeline_seed"] != 2)]
    for table in (blocks, without_one):
        assert 0.0 < false_support(one, from_scores(table), matrices=4000) <= 0.03
    assert false_support(CLAIMS.model_copy(update={"claims": []}), from_published(TABLE)) is None


# --- form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "Extra inputs"),
        ({"strength": "certain"}, "preliminary"),
        ({"text": "no verdict"}, "would read the same"),
        ({"text": "{verdict} {effect}"}, "text asks for"),
        ({"rule": {"test": "difference", "direction": "up"}}, "higher"),
        ({"rule": {"test": "difference", "direction": "higher", "alpha": "0.05"}}, "valid number"),
        ({"rule": {"test": "difference", "direction": "higher", "alpha": 5.0}}, "less than 1"),
        ({"rule": {"test": "equivalence", "because": "because of this"}}, "margin"),
        ({"rule": {"test": "equivalence", "margin": 5.0}}, "because"),
        ({"rule": {"test": "difference", "direction": "higher", "margin": 5.0}}, "needs a `because:`"),
        ({"rule": {"test": "difference", "direction": "higher", "effect": 1.0, "effect_raw": 1.0}}, "one size"),
        ({"rule": {"test": "difference", "direction": "higher", "effect": -1.0}}, "greater than 0"),
        ({"rule": {"test": "difference", "direction": "higher", "effect_raw": float("nan")}}, "finite number"),
        ({"rule": {"test": "equivalence", "margin": 0.0, "because": "because of this"}}, "greater than 0"),
        ({"rule": {"test": "equivalence", "margin": float("inf"), "because": "because of this"}}, "finite number"),
        ({"rule": {"test": "difference", "direction": "higher", "alpha": float("nan")}}, "less than 1"),
        (
            {
                "contrast": {"kind": "groups", "first": ["a"], "second": ["b"]},
                "rule": {"test": "difference", "direction": "higher", "correction": "holm", "family": "all_pairs"},
            },
            "family all_pairs is of pairs",
        ),
        ({"text": "{verdict} {first_mean}"}, "has none of"),
        ({"text": "{verdict} {t}", "contrast": {"kind": "pairs", "first": ["a"], "second": ["b", "c"]}}, "has none of"),
        ({"measure": "change", "phase": "pre_em"}, "phase must be post_em"),
        ({"rule": {"test": "guess"}}, "does not match"),
        ({"rule": {"test": "replicate", "lies": "inside"}}, "takes a contrast of kind one_run"),
        ({"contrast": {"kind": "pairs", "first": [], "second": ["a"]}}, "at least 1"),
    ],
)
def test_a_malformed_claim_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        claim(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claims": [claim().model_dump()] * 2}, "named twice: claim c"),
        ({"contrasts": [{"name": "x", "weights": {"a": 1.0, "b": -0.5}}]}, "must sum to zero"),
        ({"contrasts": [{"name": "x", "weights": {"a": 1.0, "b": float("nan")}}]}, "NaN"),
        ({"primary": ["a", "b", "c"]}, "at most 2"),
        ({"primary": []}, "at least 1"),
        ({"claims": [claim(contrast={"kind": "weights", "name": "z"}).model_dump()]}, "z is not declared"),
        ({"matrix": ["a", "a"]}, "named twice: a"),
    ],
)
def test_a_malformed_file_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Claims.model_validate({"matrix": ["a", "b"], "primary": ["m"], "contrasts": [], "claims": []} | changes)


def test_the_shipped_file_says_nothing_in_figures_of_results():
    texts = " ".join(c["text"] for c in yaml.safe_load((ROOT / "config/claims.yaml").read_text())["claims"])
    assert not any(figure in texts for figure in ("1.49", "3 of 4", "25.2", "50.85", "1.69", "0.827"))
