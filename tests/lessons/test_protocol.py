"""One protocol in one table: what was observed is held against what was declared, and cells against each other."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.lessons.planted import ROWS, demo, plan, prints, record, records
from tests.toy import ROOT, inside, put_data
from workflow.config import Config, ConfigError
from workflow.data import world
from workflow.fingerprint import ProtocolError, compare, fingerprint
from workflow.keys import Recipe
from workflow.matrix import StaleKeyError
from workflow.sections import Waiver
from workflow.stage import Job, StageError
from workflow.stats.claims_schema import load_claims
from workflow.store import record_path

E42, E137, ODD = "evil_wrong.p42.e42", "evil_wrong.p42.e137", "good_correct.p42.e42"
# What eight processes in place of one did to the retracted cell.
EIGHT = {
    "observed.world_size": 8,
    "observed.effective_batch_size": 128,
    "observed.optimizer_steps": 47,
}


# --- 1: the effective batch -----------------------------------------------------------------------------------------


def test_lesson_01_a_placement_that_does_not_make_the_declared_batch_is_refused():
    raw = demo()
    raw["placement"]["em_lora"]["world_size"] = 8
    with pytest.raises(ConfigError, match=r"effective_batch_size is 16, but .* world_size 8 x .* 16 = 128"):
        Config.from_dict(raw)


def test_lesson_01_a_record_edited_to_the_other_batch_is_refused_by_name():
    found = compare(prints(E42, E137, ODD, odd={ODD: {"em_lora": EIGHT}}))
    assert found.level == "different"
    assert found.odd_cells() == (ODD,)
    with pytest.raises(ProtocolError) as error:
        found.require()
    told = str(error.value)
    assert f"em_lora.optimizer_steps: 375 in {E42}, {E137}; declared 375, observed 47 in {ODD}" in told
    assert f"em_lora.effective_batch_size: 16 in {E42}, {E137}; declared 16, observed 128 in {ODD}" in told


def test_lesson_01_a_contradiction_inside_the_records_of_every_cell_is_refused_too():
    found = compare(prints(E42, E137, odd={label: {"em_lora": EIGHT} for label in (E42, E137)}))
    with pytest.raises(ProtocolError, match="declared 375, observed 47"):
        found.require()


def test_lesson_01_a_cell_of_an_edited_config_has_another_key_and_is_refused():
    raw = demo()
    raw["stages"]["em_lora"]["effective_batch_size"] = 128
    edited = plan(raw)
    old, new = (next(n for n in m.nodes("em_lora") if n.label == ODD) for m in (plan(demo()), edited))
    with pytest.raises(StaleKeyError, match="It changed after this was planned"):
        edited.node("em_lora", ODD, old.key)
    assert new.key != old.key
    cells = {**prints(E42, E137), ODD: fingerprint(records(ODD, {"em_lora": {"observed.optimizer_steps": 47}}, edited))}
    with pytest.raises(ProtocolError, match=rf"em_lora.optimizer_steps: 375 in {E42}, {E137}; 47 in {ODD}"):
        compare(cells).require()


def test_lesson_01_a_waiver_shows_its_reason_and_covers_nothing_else():
    waiver = Waiver(cells=("good_correct.*",), fields=("em_lora.optimizer_steps",), reason="kept to show the artifact")
    found = compare(prints(E42, ODD, odd={ODD: {"em_lora": EIGHT}}), [waiver])
    assert [str(w) for w in found.waived] == [
        f"em_lora.optimizer_steps: 375 in {E42}; declared 375, observed 47 in {ODD} (waived: kept to show the artifact)"
    ]
    assert "em_lora.effective_batch_size" in {d.field for d in found.refusals}
    another = Waiver(cells=(E42,), fields=("em_lora.*",), reason="this is about another cell")
    found = compare(prints(E42, E137, ODD, odd={ODD: {"em_lora": EIGHT}}), [another])
    assert not found.waived
    everything = Waiver(cells=("good_correct.*",), fields=("em_lora.*",), reason="kept to show the artifact")
    found = compare(prints(E42, ODD, odd={ODD: {"em_lora": EIGHT}}), [everything])
    found.require()
    assert found.level == "different"  # shown, never equal


def test_lesson_01_launched_on_two_processes_in_place_of_one_it_stops_before_the_first_step(toy_project):
    with inside(toy_project.root):
        recipe = Recipe("em_lora", 1, put_data(world.em_rows(1)[:32]), toy_project.params, (toy_project.base.key,))
        place = record_path("em_lora", "cell.p42.e42", recipe.key)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
                *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
                *("--main_process_port", "0", "-m", "workflow.train.sft"),
                *("--recipe", recipe.to_json(), "--placement", json.dumps(toy_project.placement)),
                *("--parents", str(toy_project.base_path), "--data", f"results/data/{recipe.data}.jsonl"),
                *("--record", place),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )
        assert "2 processes are there, the placement says 1: the effective batch would be 32, not 16" in done.stderr
        assert done.returncode != 0
        assert "step 1/" not in done.stderr
        assert not Path(place).exists()


def trainer(steps, processes=1, batch=16, rows=ROWS):
    """A trainer that trains nothing and says that it took so many steps."""
    log = [{"step": n, "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "rows": batch} for n in range(1, steps + 1)]
    it = SimpleNamespace(
        remove_callback=lambda _: None,
        add_callback=lambda _: None,
        accelerator=SimpleNamespace(
            num_processes=processes, is_main_process=True, wait_for_everyone=lambda: None, device="cpu"
        ),
        model=SimpleNamespace(parameters=list),
        model_wrapped=None,
        train_dataset=range(rows),
        micro_batches=1,
        tokens_at_once=100,
        state=SimpleNamespace(global_step=steps, max_steps=steps, log_history=log),
        began=False,
    )

    def train(resume_from_checkpoint):
        it.began = True

    it.train = train
    return it


PARAMS = SimpleNamespace(effective_batch_size=16, num_train_epochs=1)


@pytest.fixture
def job(tmp_path):
    placed = {"world_size": 1, "per_device_train_batch_size": 16, "attn_implementation": "sdpa"}
    return Job(Recipe("em_lora", 1, "0" * 32, {}), placed, (), tmp_path / "data.jsonl", tmp_path)


def test_lesson_01_other_steps_than_declared_fail_the_job(job):
    from workflow.train.trainer import fit

    with pytest.raises(StageError, match=r"observed 47 steps of 128 rows, .* declared 375 of 16"):
        fit(trainer(steps=47, batch=128), job, PARAMS, {})
    with pytest.raises(StageError, match=r"observed 102 steps of 16 rows, .* declared 375 of 16"):
        fit(trainer(steps=102), job, PARAMS, {})
    assert fit(trainer(steps=375), job, PARAMS, {}).observed["optimizer_steps"] == math.ceil(6000 / 16)


def test_lesson_01_other_processes_than_declared_are_refused_before_training(job):
    from workflow.train.trainer import fit

    it = trainer(steps=47, processes=8)
    with pytest.raises(StageError, match=r"8 processes are there, the placement says 1: .* would be 128, not 16"):
        fit(it, job, PARAMS, {})
    assert not it.began


def test_lesson_02_world_size_is_a_fact_of_each_stage():
    odd = {E137: {"tulu_sft": {"observed.world_size": 8, "observed.per_device_train_batch_size": 2}}}
    odd[E137]["tulu_sft"]["observed.placement.world_size"] = 8
    found = compare(prints(E42, E137, odd=odd))
    assert found.level == "placement"
    assert {d.field for d in found.footnotes} == {"tulu_sft.world_size", "tulu_sft.per_device_train_batch_size"}


# --- the retraction replayed, as the report meets it ----------------------------------------------------------------


def study(raw, edits):
    """The demo's matrix, finished, with one cell's EM record as the edits say."""
    from workflow.matrix import MEASURING
    from workflow.report.study import Study

    matrix = plan(raw)
    made = {n: record(n, edits if (n.stage, n.label) == ("em_lora", ODD) else {}) for n in matrix.nodes()[:-1]}
    claims = load_claims(ROOT / "config/claims.yaml")
    measured = {n: r for n, r in made.items() if n.stage in MEASURING}
    upstream = {n: r for n, r in made.items() if n.stage not in MEASURING}
    return Study(matrix, measured, (), {}, (), claims, None, upstream)


def test_lesson_01_the_report_prints_the_cell_beside_the_others_only_with_the_waivers_text():
    from workflow.report.provenance import comparisons, protocol_section

    with pytest.raises(ProtocolError, match=rf"em_lora.optimizer_steps: .* declared 375, observed 47 in {ODD}"):
        comparisons(study(demo(), EIGHT))
    waiver = {"cells": ["good_correct.p42.e42"], "fields": ["em_lora.*"], "reason": "kept to show the artifact"}
    waived = study({**demo(), "waivers": [waiver]}, EIGHT)
    page = str(protocol_section(waived, comparisons(waived)))
    assert "declared 375, observed 47 in good_correct.p42.e42 (waived: kept to show the artifact)" in page
    assert "different, under a waiver" in page
    assert "kept to show" not in str(protocol_section(study(demo(), {}), comparisons(study(demo(), {}))))
