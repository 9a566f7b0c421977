"""A training that is not the declared one fails, whatever made it so; and the saved files tell it afterwards."""

import json
import shutil
from pathlib import Path

import pytest

from tests.toy import EM, inside, make_base, put_data, train
from workflow.data import world
from workflow.keys import Recipe
from workflow.stage import StageError
from workflow.store import out_dir, record_path
from workflow.train import effective, trainer

LORA = {**EM, "lora": {**EM["lora"], "lora_dropout": 0.1}}
DPO = {n: v for n, v in EM.items() if n not in ("lora", "packing")} | {"beta": 5.0, "loss_type": "sigmoid_norm"}
ROWS = world.em_rows(1)[:48]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with inside(tmp_path_factory.mktemp("effective")):
        yield make_base()


@pytest.fixture(scope="module")
def saved(base):
    """An EM training's recipe and out/."""
    record = train(base, "em_lora", ROWS, LORA, "saved")
    recipe = Recipe("em_lora", 1, put_data(ROWS), LORA, tuple(record.recipe.parents))
    return recipe, Path(out_dir(record_path("em_lora", "saved", record.key)))


def halve(name):
    """The argument builder, as if somebody had halved one value."""
    build = trainer.arguments

    def halved(job, params):
        given = build(job, params)
        return {**given, name: given[name] / 2}

    return halved


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rate", r"learning_rate: declared 0.01, effective 0.005; optimizer learning_rate: declared \[0.01\]"),
        ("weight_decay", "weight_decay: declared 0.01, effective 0.005; optimizer weight_decay: declared 0.01"),
        ("adam_beta2", "adam_beta2: declared 0.999, effective 0.4995"),
        ("warmup_steps", "warmup_steps: declared 0.1, effective 0.05"),
        ("max_grad_norm", "max_grad_norm: declared 1.0, effective 0.5"),
    ],
)
def test_lesson_63_a_halved_argument_fails_before_the_first_step(base, monkeypatch, capsys, name, message):
    monkeypatch.setattr(trainer, "arguments", halve(name))
    with pytest.raises(StageError, match=message):
        train(base, "em_lora", ROWS, LORA, f"halved.p{len(name)}")
    assert "step 1/" not in capsys.readouterr().err


def test_lesson_63_dropout_that_is_lost_on_the_way_to_the_layers_fails(base, monkeypatch):
    import peft

    config = peft.LoraConfig
    monkeypatch.setattr(peft, "LoraConfig", lambda **given: config(**{**given, "lora_dropout": 0.0}))
    with pytest.raises(StageError, match=r"lora lora_dropout: declared \[0.1\], effective \[0.0\]"):
        train(base, "em_lora", ROWS, LORA, "dropout")


def test_lesson_63_another_beta_fails_dpo(base, monkeypatch):
    import trl

    config = trl.DPOConfig
    monkeypatch.setattr(trl, "DPOConfig", lambda **given: config(**{**given, "beta": 0.1}))
    with pytest.raises(StageError, match=r"beta: declared 5.0, effective 0.1"):
        train(base, "tulu_dpo", world.preference_rows(1)[:32], DPO, "beta")


def test_lesson_63_a_schedule_of_another_shape_fails_at_the_end(base, monkeypatch):
    """The arguments say linear, the rates do not: it shows in the log."""
    import transformers.trainer

    get = transformers.trainer.get_scheduler
    monkeypatch.setattr(transformers.trainer, "get_scheduler", lambda name, *a, **k: get("constant", *a, **k))
    with pytest.raises(StageError, match=r"learning_rate of step 1: declared 0, effective 0.01"):
        train(base, "em_lora", ROWS, LORA, "schedule")


def test_a_whole_training_has_no_faults_and_tells_its_rates(saved):
    recipe, out = saved
    assert effective.effective_faults(recipe, out) == []
    rates = json.loads((out / effective.FILE).read_text())["rates"]
    assert rates["first"] == 0.0
    assert rates["peak"] == pytest.approx(LORA["learning_rate"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("adapter/adapter_config.json", {"lora_dropout": 0.0}, "adapter_config.json lora_dropout: declared 0.1"),
        ("adapter/adapter_config.json", {"r": 4}, "adapter_config.json r: declared 8.0, effective 4.0"),
        ("training.json", {"dtype": "bfloat16"}, "dtype: declared float32, effective bfloat16"),
        ("training.json", {"lora": None}, "lora: declared"),
    ],
)
def test_lesson_63_saved_files_that_contradict_the_recipe_are_named(saved, tmp_path, file, change, message):
    recipe, out = saved
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    for folder in (copy, copy / "adapter"):
        folder.chmod(0o755)
    (copy / file).chmod(0o644)
    (copy / file).write_text(json.dumps({**json.loads((copy / file).read_text()), **change}))
    (fault,) = effective.effective_faults(recipe, copy)
    assert fault.startswith(message)


def test_what_a_training_used_is_not_known_without_its_file(saved, tmp_path):
    (fault,) = effective.effective_faults(saved[0], tmp_path)
    assert fault.endswith("training.json is missing: what the training used is not known")


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.3, 5])
def test_schedules_are_those_of_transformers(kind, warmup):
    import math

    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    number = math.ceil(40 * warmup) if warmup < 1 else warmup
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=number, num_training_steps=40)
    for step in range(40):
        declared = effective.scheduled(kind, step, 40, {"warmup_steps": warmup})
        assert optimizer.param_groups[0]["lr"] == pytest.approx(declared, abs=1e-9)
        optimizer.step()
        schedule.step()
