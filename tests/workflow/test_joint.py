"""EM seeds trained together are those of each seed alone; one that fails takes no other with it."""

import json
from pathlib import Path

import pytest

from tests.toy import EM, PLACED, forget_results, inside, make_base, put_data, train
from workflow.data import world
from workflow.keys import Recipe
from workflow.stage import Job, Parent, Request, StageError, execute_all
from workflow.store import data_path, out_dir, read_jsonl, read_record, record_path
from workflow.train import joint, sft

ROWS = world.em_rows(1)[:90]  # five steps of 16 and one of 10, twice
SEEDS = (42, 137, 7)
PARAMS = {**EM, "num_train_epochs": 2, "lora": {**EM["lora"], "lora_dropout": 0.1}}
JOINED = {"attn_implementation": "varlen"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("joint")):
        yield make_base()


@pytest.fixture(scope="module")
def alone(base):
    """out/ of each seed's own training."""
    found = {}
    for seed in SEEDS:
        record = train(base, "em_lora", ROWS, {**PARAMS, "seed": seed}, f"cell.e{seed}", **JOINED)
        found[seed] = Path(out_dir(record_path("em_lora", record.cell, record.key)))
    return found


def jobs(base, folder, params=PARAMS, **placed):
    made = []
    for seed in SEEDS:
        recipe = Recipe("em_lora", 1, put_data(ROWS), {**params, "seed": seed}, (read_record(base).key,))
        out = folder / str(seed) / "out"
        out.mkdir(parents=True)
        placement = {**PLACED, **JOINED, "together": 3, **placed}
        made.append(Job(recipe, placement, (Parent(base, read_record(base)),), Path(data_path(recipe.data)), out))
    return made


def column(out, name):
    return [entry[name] for entry in read_jsonl(out / "train_log.jsonl")]


def same(out, other):
    """Within float32's rounding: losses, norms, rates, matrices; equal settings and names."""
    from safetensors.torch import load_file

    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        assert column(out, name) == pytest.approx(column(other, name), abs=tolerance)
    for name in ("step", "learning_rate", "rows"):
        assert column(out, name) == column(other, name)
    for file in ("adapter/adapter_config.json", "training.json", "first_row.txt"):
        assert (out / file).read_text() == (other / file).read_text()
    one, two = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (out, other))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        assert (weights - two[name]).abs().max() < 2e-4, name  # of steps of 1e-2


@pytest.mark.parametrize("placed", [{}, {"per_device_train_batch_size": 4}])
def test_each_seed_is_what_it_is_alone_dropout_included(base, alone, tmp_path, placed):
    params = PARAMS if not placed else {**PARAMS, "lora": {**PARAMS["lora"], "lora_dropout": 0.0}}
    results = list(joint.run_together(jobs(base, tmp_path, params, **placed)))
    assert [job.params["seed"] for job, _ in results] == list(SEEDS)
    for job, result in results:
        seed = job.params["seed"]
        if placed:  # the masks of other micro-batches are others
            record = train(base, "em_lora", ROWS, {**params, "seed": seed}, f"plain.e{seed}", **JOINED)
            other = Path(out_dir(record_path("em_lora", record.cell, record.key)))
        else:
            other = alone[seed]
        same(job.out, other)
        assert result.observed["rows_drawn"] == 180
        assert result.observed["optimizer_steps"] == 12
        assert result.metrics["train_loss_last"] == column(job.out, "loss")[-1]


def test_by_token_budget_the_losses_are_the_same(base, tmp_path):
    params = {**PARAMS, "lora": {**PARAMS["lora"], "lora_dropout": 0.0}}
    whole = list(joint.run_together(jobs(base, tmp_path / "whole", params)))
    placed = {"per_device_train_batch_size": None, "tokens_per_device": 900}
    parts = list(joint.run_together(jobs(base, tmp_path / "parts", params, **placed)))
    for (one, _), (other, result) in zip(whole, parts, strict=True):
        assert column(other.out, "loss") == pytest.approx(column(one.out, "loss"), abs=1e-5)
        assert result.observed["micro_batches_per_step"] > 1
        assert result.observed["tokens_at_once"] <= 1000  # stretches are filled to the longest


def test_a_seed_that_fails_voids_itself_alone(base, alone, tmp_path, monkeypatch):
    import torch

    draw = joint._initial_adapter

    def planted(model, config, seed, scratch):
        start = draw(model, config, seed, scratch)
        if seed == 137:
            next(iter(start.values())).fill_(torch.nan)
        return start

    monkeypatch.setattr(joint, "_initial_adapter", planted)
    for job, result in joint.run_together(jobs(base, tmp_path)):
        if job.params["seed"] == 137:
            assert isinstance(result, StageError)
            assert "step 1: the loss is nan" in str(result)
            assert not list(job.out.rglob("*.safetensors"))
        else:
            same(job.out, alone[job.params["seed"]])


def test_an_effective_value_that_is_not_the_declared_one_fails_the_cells(base, tmp_path, monkeypatch):
    import torch

    optimizer = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda w, lr, **given: optimizer(w, lr=lr / 2, **given))
    for _, result in joint.run_together(jobs(base, tmp_path)):
        assert isinstance(result, StageError)
        assert "learning_rate: declared 0.01, effective 0.005" in str(result)


def test_a_job_of_another_recipe_is_given_back_untrained(base, tmp_path):
    first, second, _ = jobs(base, tmp_path)
    recipe = Recipe("em_lora", 1, second.recipe.data, {**second.params, "learning_rate": 1e-3}, second.recipe.parents)
    other = Job(recipe, second.placement, second.parents, second.data, second.out)
    (given_back, error), (made, result) = joint.run_together([first, other])
    assert given_back is other
    assert "in more than the seed" in str(error)
    assert made is first
    assert result.observed["optimizer_steps"] == 12


@pytest.mark.parametrize(
    ("params", "placed", "message"),
    [
        ({**PARAMS, "packing": True}, {}, "need optim adamw_torch and no packing"),
        ({**PARAMS, "optim": "adafactor"}, {}, "need optim adamw_torch and no packing"),
        (PARAMS, {"per_device_train_batch_size": 6}, "effective_batch_size 16 cannot be made of 6 rows at a time"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(base, tmp_path, params, placed, message):
    with pytest.raises(StageError, match=message):
        list(joint.run_together(jobs(base, tmp_path, params, **placed)))


def test_settings_are_read_off_the_objects_that_trained(base, tmp_path):
    job, *_ = (job for job, _ in joint.run_together(jobs(base, tmp_path)))
    settings = json.loads((job.out / "training.json").read_text())
    assert settings["lora"]["lora_dropout"] == [0.1]
    assert settings["optimizer"]["class"] == "AdamW"
    assert settings["rates"]["peak"] == pytest.approx(1e-2)


class Killed(BaseException):
    """As if by kill -9: nothing more is saved."""


def test_one_command_makes_all_cells_and_after_a_kill_makes_them_again(base, alone, monkeypatch):
    forget_results()
    requests = []
    for seed in SEEDS:
        recipe = Recipe("em_lora", 1, put_data(ROWS), {**PARAMS, "seed": seed}, (read_record(base).key,))
        path = Path(record_path("em_lora", f"together.p42.e{seed}", recipe.key))
        placed = {**PLACED, **JOINED, "together": 3}
        requests.append(Request(recipe, placed, (base,), Path(data_path(recipe.data)), path))
    step = joint.Joint.step

    def killed(self, number, drawn):
        if number == 4:
            raise Killed
        step(self, number, drawn)

    monkeypatch.setattr(joint.Joint, "step", killed)
    with pytest.raises(Killed):
        execute_all(sft.MODULE, sft.run, requests[0], requests[1:], sft.run_together)
    assert not any(request.record.exists() for request in requests)
    monkeypatch.undo()
    execute_all(sft.MODULE, sft.run, requests[0], requests[1:], sft.run_together)
    for request, seed in zip(requests, SEEDS, strict=True):
        record = read_record(request.record)
        assert record.observed["together"] == [r.record.parts[-3] for r in requests]
        same(out_dir(request.record), alone[seed])
