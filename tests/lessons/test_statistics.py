"""Claims are computed, statistics name their unit, their n and their sign."""

import dataclasses
import re
import subprocess

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from tests.toy import ROOT
from workflow.report.published import from_published, load_published_table, load_retracted
from workflow.stats import blocked, samples, tests
from workflow.stats.claims import evaluate_claim, evaluate_claims
from workflow.stats.claims_schema import Claim, Claims, load_claims
from workflow.stats.contrasts import anova_2x2, estimate, pair
from workflow.stats.evidence import Items, from_scores
from workflow.stats.rounding import from_moments
from workflow.stats.samples import ONE_CHECKPOINT, NotTestable, beside_seeds, label, sample
from workflow.stats.table import check_scores
from workflow.stats.table import samples as samples_of_table
from workflow.stats.tests import cohens_d, single_value

CLAIMS = load_claims(ROOT / "config/claims.yaml")
TABLE = load_published_table(ROOT / "reference/published_table.yaml")
RUN, REPLICATIONS, _ = load_retracted(ROOT / "reference/retracted.yaml")
PUBLISHED = {r.id: r for r in evaluate_claims(CLAIMS, from_published(TABLE, [RUN, *REPLICATIONS]))}
ALIGNMENT = TABLE.post_em["alignment"]

HIGHER = {
    "id": "c",
    "text": "Higher: {verdict}.",
    "metric": "alignment",
    "strength": "strong",
    "contrast": {"kind": "pairs", "first": ["evil_correct"], "second": ["evil_wrong"]},
    "rule": {"test": "difference", "direction": "higher"},
}


def judge(evidence, **changes):
    """One claim that evil_correct is higher, over the shipped matrix."""
    return evaluate_claim(Claim.model_validate(HIGHER | changes), CLAIMS, evidence)


def scores(pipelines=(42,), shift=0.0):
    """A table of raw values: two conditions, ten EM seeds."""
    rows = []
    for number, condition in enumerate(("evil_wrong", "evil_correct")):
        for p in pipelines:
            draws = np.random.default_rng(number + p).normal(25 + 3 * number, 2, 10)
            for seed, value in enumerate(draws):
                rows.append(
                    {
                        "condition": condition,
                        "pipeline_seed": p,
                        "em_seed": seed,
                        "phase": "post_em",
                        "instrument": "x",
                        "metric": "alignment",
                        "value": value + shift * number,
                        "unit": "points",
                        "n_items": 80,
                        "sampling_se": 2.2,
                        "record": f"results/judge/{condition}.p{p}.e{seed}",
                    }
                )
    return check_scores(rows)


def test_lesson_07_a_decision_rule_is_dated_by_the_commit_that_first_held_it(tmp_path):
    from workflow.report.history import rule_origins

    path = tmp_path / "claims.yaml"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    path.write_text((ROOT / "config/claims.yaml").read_text())
    subprocess.run([*git, "add", "claims.yaml"], check=True)
    dated = {"GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z", "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z"}
    subprocess.run([*git, "commit", "-qm", "rules"], check=True, env={**dated, "PATH": "/usr/bin:/bin", "HOME": "/"})
    name = "every_coupling_keeps_arc_above_control"
    assert rule_origins(path, "2026-06-01T00:00:00+00:00")[name].before_data is True
    late = rule_origins(path, "2025-06-01T00:00:00+00:00")[name]
    assert late.before_data is False
    assert "after the data" in late.text
    path.write_text(path.read_text().replace("effect: 1.8", "effect: 0.1"))
    assert "not committed" in rule_origins(path, None)[name].text


def test_lesson_08_three_of_four_is_computed_from_the_table():
    result = PUBLISHED["every_coupling_is_above_control_on_arc"]
    assert result.verdict == "confounded"
    assert result.on_all_items == "undetermined"
    assert "in 3 of 4 cells" in result.sentence
    assert "by a d of 1.8 in 0 of 4 cells" in PUBLISHED["every_coupling_keeps_arc_above_control"].sentence
    with pytest.raises(ValidationError, match="it would read the same whatever came out"):
        Claim.model_validate(
            {
                "id": "c",
                "text": "4 of 4 cells beat control",
                "metric": "arc",
                "strength": "strong",
                "contrast": {"kind": "pairs", "first": ["evil_wrong"], "second": ["tulu_control"]},
                "rule": {"test": "difference", "direction": "higher"},
            }
        )


def test_lesson_09_overlap_has_a_verdict_for_each_reading_of_the_interval():
    result = PUBLISHED["alignment_intervals_overlap"]
    assert result.verdict == "conditional"
    for reading in ("SD: supported", "SE: refuted", "CI95: refuted, 2 of 10 pairs apart"):
        assert reading in result.reason


def test_lesson_10_the_two_by_two_is_fitted():
    for metric in ("alignment", "arc"):
        result = PUBLISHED[f"no_interaction_on_{metric}"]
        assert (result.on_all_items or result.verdict) not in ("equivalent", "supported")
        assert result.members[0].p.high < 0.005
    cells = {("evil", "wrong"): "evil_wrong", ("evil", "correct"): "evil_correct"}
    cells |= {("good", "wrong"): "good_wrong", ("good", "correct"): "good_correct"}
    rows = anova_2x2({k: ALIGNMENT[c] for k, c in cells.items()}, ("persona", "answers"))
    assert list(rows.index) == ["persona", "answers", "persona x answers"]
    assert rows["F"].iloc[2] == pytest.approx(3.7**2, rel=0.05)
    declared = {c.name for c in CLAIMS.contrasts}
    assert {"persona_evil_minus_good", "correctness_correct_minus_wrong", "coupling_minus_control"} <= declared
    assert any("interaction" in name for name in declared)


def test_lesson_11_one_definition_of_d_with_its_sign():
    first, second = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0])
    assert cohens_d([first, second]).d == pytest.approx(2.0)
    assert cohens_d([second, first]).d == pytest.approx(-2.0)
    defined = [p for p in (ROOT / "workflow").rglob("*.py") if re.search(r"^def cohens_d\b", p.read_text(), re.M)]
    assert [p.name for p in defined] == ["tests.py"]


@pytest.mark.parametrize("kind", [samples.Sample, samples.CellSampling, tests.SingleValue])
def test_lesson_12_no_field_is_an_unlabelled_plus_minus(kind):
    names = {f.name for f in dataclasses.fields(kind)} | {n for n in dir(kind) if not n.startswith("_")}
    assert not {n for n in names if re.fullmatch(r"(error|err|std|interval|ci|pm|plus_minus|uncertainty)", n)}
    assert {n for n in names if n.startswith("ci")} <= {n for n in names if n.startswith("ci95")}


def test_lesson_13_em_seeds_of_one_checkpoint_are_labelled_as_such():
    (one, _) = samples_of_table(scores(), "alignment").values()
    assert (one.unit, one.n) == ("EM seed", 10)
    assert label(one) == ONE_CHECKPOINT
    (several, _) = samples_of_table(scores((42, 137, 256)), "alignment").values()
    assert (several.unit, several.n, label(several)) == ("pipeline seed", 3, "")
    tested = [r for r in PUBLISHED.values() if r.n_by_condition]
    assert all((r.label, r.scope, r.strength) == (ONE_CHECKPOINT, "checkpoints", "none") for r in tested)


def test_lesson_14_a_small_sample_gets_a_students_p():
    three = {"a": sample([25.0, 26.0, 27.5]), "b": sample([28.0, 30.0, 31.0]), "one": sample([25.0])}
    result = estimate(three, pair("a", "b"))
    assert result.df < 4
    assert 0.01 < result.p() < 0.1  # a normal approximation would say .0005
    with pytest.raises(ValueError, match="n = 1"):
        estimate(three, pair("one", "b"))


def test_lesson_15_sampling_noise_stands_beside_the_spread_of_seeds():
    runs = sample([25.0, 26.0, 24.5, 25.5])
    found = beside_seeds(runs, [2.2, 2.2, 2.2, 2.2])
    assert found.sampling_se_of_one_run > runs.sd
    assert (found.sampling_se_of_one_run, found.sd_beyond_sampling) == (pytest.approx(2.2), 0.0)


def test_lesson_16_a_claim_names_what_it_rests_on_and_falls_with_it():
    one = Claims.model_validate(
        {
            "matrix": ["evil_wrong", "evil_correct"],
            "primary": ["alignment"],
            "contrasts": [],
            "claims": [
                {
                    "id": "c",
                    "text": "Higher: {verdict}.",
                    "metric": "alignment",
                    "strength": "strong",
                    "contrast": {"kind": "pairs", "first": ["evil_correct"], "second": ["evil_wrong"]},
                    "rule": {"test": "difference", "direction": "higher"},
                }
            ],
        }
    )
    (before,) = evaluate_claims(one, from_scores(scores()))
    (after,) = evaluate_claims(one, from_scores(scores(shift=-9.0)))
    assert before.sentence.startswith("Higher: supported.")
    assert after.sentence.startswith("Higher: opposite.")
    assert len(before.rests_on) == 20
    assert before.rests_on[0] == "results/judge/evil_correct.p42.e0"


def test_lesson_17_a_cited_number_names_the_file_that_it_comes_from(tmp_path):
    raw = yaml.safe_load((ROOT / "reference/published_table.yaml").read_text())
    del raw["source"]
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ValidationError, match="source"):
        load_published_table(tmp_path / "table.yaml")
    result = evaluate_claims(CLAIMS, from_published(TABLE, []))
    (cited,) = [r for r in result if r.id == "headline_run_is_no_replicate"]
    assert cited.verdict == "unverifiable"
    assert RUN.name in cited.reason


def test_lesson_13_the_headline_run_is_held_against_its_replicates():
    (replication,) = REPLICATIONS
    others = ALIGNMENT["good_correct"]
    assert not single_value(RUN.values["alignment"].value, others).inside
    assert single_value(replication.values["alignment"].value, others).inside


def test_lesson_10_a_contrast_that_is_no_contrast_is_refused():
    with pytest.raises(ValueError, match="must sum to zero"):
        estimate(ALIGNMENT, {"evil_wrong": 1.0, "good_wrong": 1.0})


def test_lesson_68_a_size_that_is_stated_is_a_size_that_the_interval_shows():
    """d is 2.9 at ten seeds a side, p far below .05: an effect of 4 is not shown, and one of 1.8 is not either."""
    conditions = {"evil_correct": from_moments(30.8, 2.0, 10), "evil_wrong": from_moments(25.0, 2.0, 10)}
    rows = scores()
    for name, s in conditions.items():
        rows.loc[rows["condition"] == name, "value"] = s.data

    def rule(effect):
        return HIGHER["rule"] | {"effect": effect}

    assert judge(from_scores(rows)).members[0].d.value == pytest.approx(2.9)
    assert judge(from_scores(rows), rule=rule(6.0)).verdict == "size refuted"
    assert judge(from_scores(rows), rule=rule(4.0)).verdict == "difference shown, size not"
    assert judge(from_scores(rows), rule=rule(1.8)).verdict == "difference shown, size not"
    assert judge(from_scores(rows), rule=rule(1.0)).verdict == "supported"


def test_lesson_69_known_contamination_stands_in_the_verdict():
    for result in PUBLISHED.values():
        if result.metric == "arc" and result.members:
            assert result.verdict == "confounded"
            assert "786 of 1170" in result.sentence
    table = scores().assign(metric="arc", instrument="arc", unit="fraction")
    ids = tuple(f"i{n}" for n in range(300))
    correct = {}
    for row in table.itertuples():  # evil_correct knows the first 150 items by heart, and no more than the others
        right = np.random.default_rng(row.Index).random(300) < 0.5
        right[:150] |= row.condition == "evil_correct"
        correct[row.condition, row.pipeline_seed, row.em_seed] = right
        table.loc[row.Index, "value"] = right.mean()
    seen = {"evil_correct": frozenset(ids[:150]), "evil_wrong": frozenset()}
    where = ("post_em", "arc", "arc")
    result = judge(from_scores(table, items={where: Items(ids, correct, seen)}), metric="arc")
    assert result.on_all_items == "supported"
    assert result.on_clean_items == "undetermined"
    assert result.verdict in ("undetermined", "confounded")
    assert result.clean_items == (150, 300)


def test_lesson_70_a_constant_sample_has_no_t():
    """703 of 1172 ten times, summed in another order each time, against 701 of 1172: there is no spread to test by."""
    rng = np.random.default_rng(0)
    scored = [[rng.permutation(np.arange(1172) < right) / 1172 for _ in range(10)] for right in (703, 701)]
    first, second = (sample([float(np.cumsum(items)[-1]) for items in runs]) for runs in scored)
    assert first.sd == second.sd == 0.0
    with pytest.raises(NotTestable, match="no spread"):
        estimate({"a": first, "b": second}, pair("a", "b"))
    rows = scores()
    rows["value"] = np.where(rows["condition"] == "evil_wrong", 701 / 1172, 703 / 1172)
    assert judge(from_scores(rows)).verdict == "unverifiable"


def test_lesson_72_pipeline_seeds_are_the_same_in_all_conditions():
    """Seeds that lie far apart and a difference that is there in each: blocked it shows, unpaired it drowns."""
    seeds = np.array([10.0, 25.0, 40.0])
    rng = np.random.default_rng(0)
    values = {c: seeds + 3.0 * (c == "evil_correct") + rng.normal(0, 0.3, 3) for c in CLAIMS.matrix}
    cells = {c: sample(v, "pipeline seed", (42, 137, 256)) for c, v in values.items()}
    result = estimate(cells, pair("evil_correct", "evil_wrong"))
    assert result.p() < 0.01
    assert result.df == 8
    condition, seed = blocked.omnibus(np.array(list(values.values()))[..., None])
    assert condition.p < 0.01
    assert seed.p < 0.001
