"""How the effective batch lies on the machine changes nothing that a number rests on.

16x1, 4x4 and two processes of 2x4 train the same adapter: step by step the same loss, also where the two processes hold
shards (fsdp2). With dropout the draws differ, as they do between two seeds; then rows, tokens and learning rates still
agree.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.toy import EM, PLACED, forget_results, inside, make_base, make_reference, put_data, train, train_em
from workflow.data import world
from workflow.data.rows import read_preferences
from workflow.fingerprint import compare, fingerprint
from workflow.keys import Recipe
from workflow.sections import DpoStage
from workflow.stage import Job, Parent, StageError, execute
from workflow.store import data_path, out_dir, read_jsonl, read_record, record_path
from workflow.train import checkpointing

ROWS = world.em_rows(1)[:160]  # ten steps of 16
PLACEMENTS = {
    "1 x 16": {"world_size": 1, "per_device_train_batch_size": 16},
    "1 x 4 x 4": {"world_size": 1, "per_device_train_batch_size": 4},
    "2 x 4 x 2": {"world_size": 2, "per_device_train_batch_size": 4},
}
SETTINGS = {
    "exact": EM,
    "dropout": {**EM, "lora": {**EM["lora"], "lora_dropout": 0.05}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(setting, placement) -> record and log."""
    root = tmp_path_factory.mktemp("placement")
    found = {}
    with inside(root):
        base = make_base()
        for setting, params in SETTINGS.items():
            for number, (name, placed) in enumerate(PLACEMENTS.items()):
                found[setting, name] = done(base, params, f"cell.p{number}", placed)
        again = {**SETTINGS["dropout"], "seed": 137}
        found["dropout", "seed 137"] = done(base, again, "cell.p9", PLACEMENTS["1 x 16"])
    return found


def done(base, params, cell, placed):
    record = train_em(base, ROWS, params, cell, **placed)
    out = Path(record_path(record.stage, record.cell, record.key)).parent / "out"
    return record, read_jsonl(out / "train_log.jsonl")


def column(log, name):
    return [row[name] for row in log]


@pytest.mark.parametrize("name", ["1 x 4 x 4", "2 x 4 x 2"])
def test_without_dropout_every_step_has_the_same_loss(runs, name):
    _, one = runs["exact", "1 x 16"]
    _, other = runs["exact", name]
    assert column(one, "step") == list(range(1, 11))
    assert column(other, "loss") == pytest.approx(column(one, "loss"), rel=1e-4)
    assert one[0]["loss"] - one[-1]["loss"] > 0.3  # a run in which nothing moves would agree with anything
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-3)


@pytest.mark.parametrize("name", ["1 x 4 x 4", "2 x 4 x 2"])
def test_with_dropout_the_protocol_is_the_same_and_the_loss_moves_less_than_between_seeds(runs, name, capsys):
    record, one = runs["dropout", "1 x 16"]
    other_record, other = runs["dropout", name]
    for fact in ("rows", "rows_drawn", "tokens", "loss_tokens", "optimizer_steps", "effective_batch_size", "sequences"):
        assert other_record.observed[fact] == record.observed[fact], fact
    assert column(other, "learning_rate") == column(one, "learning_rate")
    assert column(other, "step") == column(one, "step")
    _, seed = runs["dropout", "seed 137"]
    with capsys.disabled():
        print(f"\n  {name} against 1 x 16, largest loss difference of a step: {gap(one, other):.4f}; "
              f"another seed: {gap(one, seed):.4f}")  # fmt: skip
    assert gap(one, other) < gap(one, seed)


def gap(one, other):
    return max(abs(a - b) for a, b in zip(column(one, "loss"), column(other, "loss"), strict=True))


def test_the_fingerprints_are_equal_up_to_placement(runs):
    found = compare({name: fingerprint([runs["exact", name][0]]) for name in PLACEMENTS})
    assert found.level == "placement"
    assert not found.refusals
    differ = {d.field for d in found.footnotes}
    assert differ == {
        "em_lora.world_size",
        "em_lora.per_device_train_batch_size",
        "em_lora.gradient_accumulation_steps",
    }
    assert len({fingerprint([runs["exact", name][0]]).id for name in PLACEMENTS}) == 1


# --- rows joined, steps by token budget ------------------------------------------------------------------------------

BUDGET = {"per_device_train_batch_size": None, "tokens_per_device": 400, "attn_implementation": "varlen"}
JOINED = {
    "joined, 16 rows": {"attn_implementation": "varlen"},
    "joined, 400 tokens": BUDGET,
    "padded, 4 rows": {"per_device_train_batch_size": 4},
    "joined, 400 tokens, two processes": {**BUDGET, "world_size": 2},
    "joined, 400 tokens, two shards": {**BUDGET, "world_size": 2, "strategy": "fsdp2"},
}
STAGES = {
    "tulu_sft": world.sft_rows(1)[:90],
    "tulu_dpo": world.preference_rows(1)[:42],
    "em_lora": ROWS[:90],
}


@pytest.fixture(scope="module")
def plain(base):
    """Every stage as it was placed before rows could be joined; the last step has fewer rows than a batch."""
    return {stage: log_of(train(base, stage, rows, params_of(stage), "plain")) for stage, rows in STAGES.items()}


def params_of(stage):
    return {"tulu_sft": SFT, "tulu_dpo": DPO, "em_lora": EM}[stage]


def log_of(record):
    return read_jsonl(out(record) / "train_log.jsonl")


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("stage", STAGES)
def test_no_placement_moves_a_loss_by_more_than_rounding(base, plain, stage, name):
    cell = f"{stage}.p{list(JOINED).index(name)}"
    record = train(base, stage, STAGES[stage], params_of(stage), cell, **JOINED[name])
    found = log_of(record)
    assert column(found, "loss") == pytest.approx(column(plain[stage], "loss"), abs=1e-5)
    assert column(found, "rows") == column(plain[stage], "rows") == [16] * (len(found) - 1) + [10]
    assert record.observed["effective_batch_size"] == 16
    assert record.observed["rows_joined"] is name.startswith("joined")
    if "tokens" in name:
        assert record.observed["tokens_at_once"] <= 400
        assert record.observed["micro_batches_per_step"] > 1


def test_lesson_01_a_step_of_other_rows_than_declared_stops_the_training(base, monkeypatch):
    """Planted: a process that leaves the last row of each step out."""
    from workflow.train import steps

    divide = steps.divide
    monkeypatch.setattr(steps, "divide", lambda lengths, *given: divide(lengths[:-1], *given))
    with pytest.raises(StageError, match=r"step 1: 15 rows were drawn, 16 are declared"):
        train(base, "em_lora", ROWS[:32], EM, "short")


def dpo_job(base, rows, name, *beside):
    """A tulu_dpo job on those pairs, in a folder of its own."""
    recipe = Recipe("tulu_dpo", 1, put_data(rows), DPO, (read_record(base).key,))
    folder = Path(name, "out")
    folder.mkdir(parents=True)
    parents = tuple(Parent(path, read_record(path)) for path in (base, *beside))
    return Job(recipe, PLACED, parents, Path(data_path(recipe.data)), folder)


def test_dpo_beside_its_reference_has_the_losses_of_dpo_beside_a_frozen_model(base, plain):
    """To the last digit, since the pairs are scored in the batches in which they are trained on."""
    from trl.trainer.utils import add_fused_lm_head

    from workflow.train import dpo, dpo_pairs, models, trainer

    job = dpo_job(base, STAGES["tulu_dpo"], "frozen")
    params, folder = trainer.read_params(job, DpoStage), job.parents[0].out / "model"
    model, frozen = (models.load_model(folder, "float32", "sdpa") for _ in range(2))
    add_fused_lm_head(frozen)
    tokenizer, pairs = models.load_tokenizer(folder), read_preferences(job.data)
    built = dpo_pairs.build(job, dpo.arguments(job, params), model, tokenizer, pairs)
    built.ref_model = frozen
    trainer.fit(built, job, params, {})
    assert read_jsonl(job.out / "train_log.jsonl") == plain["tulu_dpo"]


def test_a_reference_of_other_pairs_is_refused(base):
    """By the stage where it is not made from the recipe's data and parents, and by its pairs in any case."""
    from workflow.train import dpo

    other = dpo_job(base, STAGES["tulu_dpo"], "more")
    reference = make_reference(base, other.recipe, "more")
    job = dpo_job(base, STAGES["tulu_dpo"][:-1], "fewer", reference)
    with pytest.raises(StageError, match=r"the reference's 42 pairs are not the 41 of this stage"):
        dpo.run(job)
    path = Path(record_path("tulu_dpo", "fewer", job.recipe.key))
    with pytest.raises(StageError, match=r"neither a parent of the recipe nor made from its data and parents"):
        execute(dpo.MODULE, dpo.run, job.recipe, PLACED, [base, reference], job.data, path)
    with pytest.raises(StageError, match=r"no dpo_reference among its --parents"):
        execute(dpo.MODULE, dpo.run, job.recipe, PLACED, [base], job.data, path)


# --- in shards ------------------------------------------------------------------------------------------------------

SHARDED = {"world_size": 2, "strategy": "fsdp2", "per_device_train_batch_size": 4}
SFT = {name: value for name, value in EM.items() if name != "lora"}
DPO = {name: value for name, value in SFT.items() if name != "packing"} | {"beta": 5.0, "loss_type": "sigmoid_norm"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("shards")):
        yield make_base()


def out(record):
    return out_dir(record_path(record.stage, record.cell, record.key))


def same_result(one, two, weights):
    """The same files, and up to rounding the same losses and weights."""
    from safetensors.torch import load_file

    logs = [read_jsonl(out(record) / "train_log.jsonl") for record in (one, two)]
    assert column(logs[1], "loss") == pytest.approx(column(logs[0], "loss"), abs=1e-4)
    assert column(logs[1], "grad_norm") == pytest.approx(column(logs[0], "grad_norm"), rel=1e-3)
    assert abs(logs[0][0]["loss"] - logs[0][-1]["loss"]) > 0.03
    assert [o.path for o in one.outputs] == [o.path for o in two.outputs]
    for file in [o.path for o in one.outputs if o.path.endswith(("config.json", "tokenizer.json", ".jinja"))]:
        assert (out(one) / file).read_bytes() == (out(two) / file).read_bytes()
    expected, found = (load_file(out(record) / weights) for record in (one, two))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert (found[name] - tensor).abs().max() < 1e-3, name  # of one step's size: 1e-2
    assert two.observed["strategy"] == "fsdp2"
    assert two.observed["rows_drawn"] == one.observed["rows_drawn"]


def test_a_sharded_full_fine_tune_is_stopped_goes_on_and_is_that_of_one_process(base):
    rows = world.sft_rows(1)[:160]
    one = train(base, "tulu_sft", rows, SFT, "one", gradient_checkpointing=True)
    forget_results()
    recipe = Recipe("tulu_sft", 1, put_data(rows), SFT, (read_record(base).key,))
    path = Path(record_path("tulu_sft", "shards", recipe.key))

    def start(minutes):
        placed = {**PLACED, **SHARDED, "gradient_checkpointing": True, "checkpoint_minutes": minutes}
        command = [
            *(sys.executable, "-m", "workflow.train.sft", "--recipe", recipe.to_json()),
            *("--placement", json.dumps(placed), "--parents", str(base), "--data", data_path(recipe.data)),
            *("--record", str(path)),
        ]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    told = start(0)
    while told.poll() is None and not any((path.parent / "checkpoint").glob("checkpoint-*")):
        time.sleep(0.01)
    told.terminate()
    output = told.communicate()[1]
    assert told.returncode == 143, output
    assert "SIGTERM: saved after step" in output
    newest = checkpointing.list_checkpoints(path.parent / "checkpoint")[0]
    assert {"pytorch_model_fsdp.bin", "optimizer.bin", "rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(newest))
    again = start(None)
    output = again.communicate()[1]
    assert again.returncode == 0, output
    two = read_record(path)
    assert two.observed["resumed_from_step"] == checkpointing.step_of(newest)
    same_result(one, two, "model/model.safetensors")


@pytest.mark.parametrize(
    ("stage", "params", "rows", "weights"),
    [
        ("tulu_dpo", DPO, world.preference_rows(1)[:96], "model/model.safetensors"),
        ("em_lora", EM, ROWS[:96], "adapter/adapter_model.safetensors"),
    ],
)
def test_sharded_dpo_and_lora_are_those_of_one_process(base, stage, params, rows, weights):
    one = train(base, stage, rows, params, "one")
    two = train(base, stage, rows, params, "shards", **SHARDED)
    same_result(one, two, weights)


def test_in_bfloat16_shards_compute_in_the_precision_of_a_whole_model(base):
    """By accelerate's own policy the first loss, before any update, would differ by 2e-3 and its gradient by 3e-3."""
    params = {**SFT, "dtype": "bfloat16"}
    one = train(base, "tulu_sft", world.sft_rows(1)[:32], params, "half.one", per_device_train_batch_size=4)
    two = train(base, "tulu_sft", world.sft_rows(1)[:32], params, "half.shards", **SHARDED)
    first, sharded = (read_jsonl(out(record) / "train_log.jsonl")[0] for record in (one, two))
    assert sharded["loss"] == pytest.approx(first["loss"], abs=2e-5)
    assert sharded["grad_norm"] == pytest.approx(first["grad_norm"], rel=3e-4)
    config = json.loads((out(two) / "model/config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config == json.loads((out(one) / "model/config.json").read_text())
