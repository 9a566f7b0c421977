"""Cells of one table: one protocol, one environment, the same measurement; everything else is told field by field."""

import pytest

from tests.fake import stand_ins
from tests.lessons.planted import demo, plan, prints, records
from workflow.accepted import Acceptance
from workflow.config import Config, ConfigError
from workflow.fingerprint import ProtocolError, compare, fingerprint
from workflow.matrix import Matrix
from workflow.sections import Waiver
from workflow.store import StoreError, read_record, record_path

E42, E137, ODD = "evil_wrong.p42.e42", "evil_wrong.p42.e137", "good_correct.p42.e42"
# What eight processes in place of one did to the retracted cell.
EIGHT = {
    "observed.world_size": 8,
    "observed.effective_batch_size": 128,
    "observed.optimizer_steps": 47,
}


# --- 4-6: one table, one protocol -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "fact", "value"),
    [
        ("tulu_sft", "observed.rows", 5999),
        ("tulu_sft", "observed.tokens", 1),
        ("em_lora", "observed.template_md5", "other"),
        ("generate", "observed.backend", "vllm"),
        ("judge", "observed.judge.models", ["another-judge"]),
        ("tulu_dpo", "observed.rows_dropped", 3),
        ("coupling_sft", "observed.data_facts.unique_questions", 900),
    ],
)
def test_lesson_04_rows_of_two_protocols_are_refused_in_one_table(stage, fact, value):
    with pytest.raises(ProtocolError, match=f"{stage}.{fact.removeprefix('observed.')}"):
        compare(prints(E42, E137, odd={E137: {stage: {fact: value}}})).require()


def test_lesson_04_cells_of_one_protocol_are_equal_whatever_they_manipulate():
    found = compare(prints("tulu_control.p42.e42", E42, E137, ODD))
    assert found.level == "equal", [str(d) for d in found.refusals]
    assert len({f.id for f in prints(E42, E137).values()}) == 1


def test_lesson_04_the_text_of_another_data_set_is_another_protocol_unless_it_is_what_is_manipulated():
    raw = demo()
    raw["arms"].append({"name": "benign", "data": "demo_benign"})
    matrix = plan(raw)
    labels = (E42, "evil_wrong.p42.benign.e42")
    chains = {label: records(label, matrix=matrix) for label in labels}
    with pytest.raises(ProtocolError, match=r"em_lora.data"):
        compare({label: fingerprint(found) for label, found in chains.items()}).require()
    by_arm = {label: fingerprint(found, ("coupling_sft", "em_lora")) for label, found in chains.items()}
    compare(by_arm).require()


@pytest.mark.parametrize("fact", ["optimizer_steps", "world_size", "effective_batch_size"])
def test_lesson_05_a_cell_without_its_counts_is_refused(fact):
    cells = prints(E42, E137, odd={label: {"em_lora": {f"observed.{fact}": None}} for label in (E42, E137)})
    with pytest.raises(ProtocolError, match=f"em_lora.{fact}: not recorded in {E42}, {E137}"):
        compare(cells).require()


def test_lesson_05_a_result_without_a_whole_record_is_no_result(tmp_path):
    (one,) = [r for r in records(E42) if r.stage == "em_lora"]
    path = tmp_path / record_path(one.stage, one.cell, one.key)
    with pytest.raises(StoreError, match="no record, so no result"):
        read_record(path)
    path.parent.mkdir(parents=True)
    path.write_text(one.to_json().replace('"observed"', '"facts"'))
    with pytest.raises(StoreError, match="not a record of schema 2"):
        read_record(path)


def test_lesson_06_what_sets_a_cell_apart_is_told_field_by_field():
    odd = {ODD: {"em_lora": {**EIGHT, "observed.placement.world_size": 8, "provenance.gpu": ["A100"]}}}
    found = compare(prints(E42, E137, ODD, odd=odd))
    assert {d.field for d in found.refusals} == {"em_lora.effective_batch_size", "em_lora.optimizer_steps"}
    assert {d.field for d in found.footnotes} == {"em_lora.world_size", "em_lora.gpu"}
    (hardware,) = [d for d in found.footnotes if d.field == "em_lora.gpu"]
    assert str(hardware) == f'em_lora.gpu: ["NVIDIA H100 80GB HBM3"] in {E42}, {E137}; ["A100"] in {ODD}'


# --- 37, 48-50, 54: measurement, environment, machine, packing ------------------------------------------------------


def measured(label, edits=None):
    return fingerprint(r for r in records(label, edits) if r.stage == "generate")


def test_lesson_37_before_and_after_are_not_subtracted_when_they_were_sampled_differently():
    before = measured("evil_wrong.p42")
    assert compare({"before": before, "after": measured(E42)}).level == "equal"
    other = {"generate": {"observed.backend": "vllm", "observed.sampler.temperature": 0.7}}
    with pytest.raises(ProtocolError) as error:
        compare({"before": before, "after": measured(E42, other)}).require()
    assert "generate.backend: transformers in before; declared transformers, observed vllm in after" in str(error.value)
    assert "generate.sampler.temperature: 1.0 in before; declared 1.0, observed 0.7 in after" in str(error.value)


def test_lesson_48_cells_of_different_environments_are_not_pooled_without_a_waiver():
    edits = {"provenance.environment.digest": "ffff", "provenance.packages.torch": "2.4.0"}
    cells = prints(E42, E137, odd={E137: {"em_lora": edits}})
    with pytest.raises(ProtocolError) as error:
        compare(cells).require()
    assert f"em_lora.environment: 58423a4edc74 in {E42}; ffff in {E137}" in str(error.value)
    assert f"em_lora.packages.torch: 2.13.0 in {E42}; 2.4.0 in {E137}" in str(error.value)
    fields = ("em_lora.environment", "em_lora.packages.*")
    found = compare(cells, [Waiver(cells=(E137,), fields=fields, reason="the old node was all there was")])
    found.require()
    assert all("the old node was all there was" in str(w) for w in found.waived)


def test_lesson_49_another_machine_is_a_footnote_that_names_it():
    found = compare(prints(E42, E137, odd={E137: {"em_lora": {"provenance.gpu": ["NVIDIA H200"]}}}))
    assert found.level == "placement"
    assert [str(d) for d in found.footnotes] == [
        f'em_lora.gpu: ["NVIDIA H100 80GB HBM3"] in {E42}; ["NVIDIA H200"] in {E137}'
    ]


def test_lesson_50_results_of_uncommitted_code_are_named():
    found = compare(prints(E42, E137, odd={E137: {"em_lora": {"provenance.dirty": True}}}))
    assert found.dirty == (E137,)


def other_code(accepted=()):
    edits = {E42: {}, E137: {"em_lora": {"provenance.code_digest": "def"}}}
    return compare({cell: fingerprint(records(cell, edit), accepted=accepted) for cell, edit in edits.items()})


def test_lesson_64_cells_of_other_code_are_not_pooled():
    with pytest.raises(ProtocolError) as error:
        other_code().require()
    assert f"em_lora.code_digest: abc in {E42}; def in {E137}" in str(error.value)
    assert "bump the version of em_lora in workflow/matrix.py" in str(error.value)
    assert "python -m workflow accept em_lora" in str(error.value)


def test_lesson_64_unless_somebody_says_that_no_number_moved():
    entry = Acceptance(stage="em_lora", codes=("abc", "def"), reason="renamed a function", date="2026-01-01")
    found = other_code((entry,))
    found.require()
    assert found.accepted == {"em_lora": ("abc", "def")}
    with pytest.raises(ProtocolError):  # of another stage
        other_code((entry.model_copy(update={"stage": "arc"}),)).require()


def test_lesson_54_packing_is_another_protocol_and_another_key():
    raw = demo()
    raw["stages"]["em_lora"]["packing"] = True
    packed = plan(raw)
    odd = {"em_lora": {"observed.sequences": 1632, "observed.optimizer_steps": 102}}
    cells = {**prints(E42, E137), ODD: fingerprint(records(ODD, odd, packed))}
    with pytest.raises(ProtocolError) as error:
        compare(cells).require()
    assert f"em_lora.optimizer_steps: 375 in {E42}, {E137}; 102 in {ODD}" in str(error.value)
    assert f"em_lora.packing: false in {E42}, {E137}; true in {ODD}" in str(error.value)
    keys = [{n.key for n in m.nodes("em_lora")} for m in (plan(demo()), packed)]
    assert not keys[0] & keys[1]


def test_lesson_55_seeds_are_named_by_the_stage_that_they_seed():
    raw = demo()
    raw["seeds"] = raw.pop("em_seeds")
    with pytest.raises(ConfigError) as error:
        Config.from_dict(raw)
    assert "em_seeds: missing" in str(error.value)
    assert "seeds: unknown name" in str(error.value)
    config = Config.from_dict({**demo(), "pipeline_seeds": [42, 137], "em_seeds": [42]})
    labels = {n.label for n in Matrix(config, stand_ins(config)).nodes("em_lora")}
    assert {"evil_wrong.p42.e42", "evil_wrong.p137.e42"} <= labels
