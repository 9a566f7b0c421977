"""An interrupted training goes on to the very bytes of an uninterrupted one, and never from what cannot be trusted."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.toy import EM, forget_results, inside, make_base, make_reference, put_data
from workflow.data import world
from workflow.keys import Recipe
from workflow.stage import StageError, execute
from workflow.store import Record, data_path, read_jsonl, read_record, record_path
from workflow.train import checkpointing, sft, trainer
from workflow.train.checkpointing import step_of

STEPS = 10  # two epochs of five steps of 16
PLACED = {
    "world_size": 1,
    "per_device_train_batch_size": 8,
    "gradient_checkpointing": False,
    "attn_implementation": "sdpa",
    "checkpoint_minutes": 0,  # after every step
}
SFT = {name: EM[name] for name in EM if name != "lora"} | {"num_train_epochs": 2}
PARAMS = {
    "tulu_sft": SFT,
    "tulu_dpo": {n: v for n, v in SFT.items() if n != "packing"} | {"beta": 5.0, "loss_type": "sigmoid_norm"},
    # dropout, since there every draw of the random numbers counts
    "em_lora": {**SFT, "lora": {**EM["lora"], "lora_dropout": 0.1}},
}


class Killed(BaseException):
    """As if by kill -9: nothing more is saved."""


class Toy:
    """A folder with a base model, and trainings on it that can be interrupted."""

    def __init__(self, root: Path):
        self.root = root
        self.base = make_base()
        self.data = {
            "tulu_sft": put_data(world.sft_rows(1)[:80]),
            "tulu_dpo": put_data(world.preference_rows(1)[:80]),
            "em_lora": put_data(world.em_rows(1)[:80]),
        }
        self.undisturbed = {stage: self.train(stage, "undisturbed", checkpoint_minutes=None) for stage in PARAMS}

    def recipe(self, stage: str) -> Recipe:
        return Recipe(stage, 1, self.data[stage], PARAMS[stage], (read_record(self.base).key,))

    def path(self, stage: str, cell: str) -> Path:
        return Path(record_path(stage, cell, self.recipe(stage).key))

    def checkpoints(self, stage: str, cell: str) -> Path:
        return self.path(stage, cell).parent / "checkpoint"

    def train(self, stage: str, cell: str, **placement: object) -> Record:
        import importlib

        module = importlib.import_module("workflow.train.dpo" if stage == "tulu_dpo" else "workflow.train.sft")
        path, recipe = self.path(stage, cell), self.recipe(stage)
        parents = [self.base, make_reference(self.base, recipe, cell)] if stage == "tulu_dpo" else [self.base]
        data = Path(data_path(recipe.data))
        forget_results()
        execute(module.MODULE, module.run, recipe, {**PLACED, **placement}, parents, data, path, [module.MODULE])
        return read_record(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    with inside(root):
        yield Toy(root)


@pytest.fixture
def at_step(monkeypatch):
    """Have something happen while a step is logged."""

    def at_step(step, act):
        told = trainer.Progress.log

        def log(self, state, logs):
            told(self, state, logs)
            if state.global_step == step and "loss" in logs:
                act()

        monkeypatch.setattr(trainer.Progress, "log", log)

    return at_step


def kill():
    raise Killed


def interrupt(toy, stage, cell, at_step, monkeypatch, step):
    at_step(step, kill)
    with pytest.raises(Killed):
        toy.train(stage, cell)
    monkeypatch.undo()
    return toy.checkpoints(stage, cell)


def same(record: Record, other: Record) -> None:
    """Equal bytes of weights, log and everything else."""
    assert [o.model_dump() for o in record.outputs] == [o.model_dump() for o in other.outputs]
    assert "train_log.jsonl" in {o.path for o in record.outputs}
    assert record.digest == other.digest


# within the first epoch, at its end, within the second
@pytest.mark.parametrize(("stage", "step"), [*((s, 9) for s in PARAMS), ("em_lora", 4), ("em_lora", 6)])
def test_a_killed_training_goes_on_to_the_same_bytes(toy, stage, step, at_step, monkeypatch):
    cell = f"killed.p{step}"
    left = interrupt(toy, stage, cell, at_step, monkeypatch, step)
    assert sorted(p.name for p in left.iterdir()) == [f"checkpoint-{n}" for n in (step - 2, step - 1)]
    record = toy.train(stage, cell)
    same(record, toy.undisturbed[stage])
    assert record.observed["resumed_from_step"] == step - 1
    assert record.observed["rows_drawn"] == toy.undisturbed[stage].observed["rows_drawn"] == 160
    assert record.observed["optimizer_steps"] == STEPS
    assert not left.exists()


def test_sigterm_saves_and_the_same_command_goes_on(toy, at_step, monkeypatch, capsys):
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        toy.train("em_lora", "told", checkpoint_minutes=None)
    monkeypatch.undo()
    assert stopped.value.code == 143
    assert "SIGTERM: saved after step 4 of 10; the same command resumes" in capsys.readouterr().err
    folder = toy.path("em_lora", "told").parent
    assert [p.name for p in folder.iterdir() if p.suffix != ".lock"] == ["checkpoint"]
    record = toy.train("em_lora", "told", checkpoint_minutes=None)
    same(record, toy.undisturbed["em_lora"])
    assert record.observed["resumed_from_step"] == 4
    assert record.observed["train_seconds"] > 0


def test_sigterm_in_the_last_step_lets_the_training_end(toy, at_step):
    at_step(STEPS, lambda: os.kill(os.getpid(), signal.SIGTERM))
    same(toy.train("em_lora", "late"), toy.undisturbed["em_lora"])


def test_a_torn_checkpoint_is_passed_over(toy, at_step, monkeypatch, capsys):
    left = interrupt(toy, "em_lora", "torn", at_step, monkeypatch, 5)
    weights = left / "checkpoint-4/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    record = toy.train("em_lora", "torn")
    assert "checkpoint-4: torn: adapter_model.safetensors is not the" in capsys.readouterr().err
    assert record.observed["resumed_from_step"] == 3
    same(record, toy.undisturbed["em_lora"])


def test_torn_checkpoints_alone_mean_a_fresh_start(toy, at_step, monkeypatch):
    left = interrupt(toy, "em_lora", "torn.p2", at_step, monkeypatch, 4)
    (left / "checkpoint-3/optimizer.pt").write_bytes(b"")
    (left / "checkpoint-2/whole.json").unlink()
    record = toy.train("em_lora", "torn.p2")
    assert record.observed["resumed_from_step"] == 0
    same(record, toy.undisturbed["em_lora"])


@pytest.mark.parametrize("change", [{"per_device_train_batch_size": 16}, {"gradient_checkpointing": True}])
def test_another_placement_starts_afresh(toy, at_step, monkeypatch, capsys, change):
    cell = f"placed.p{len(change)}{next(iter(change))[0]}"
    interrupt(toy, "em_lora", cell, at_step, monkeypatch, 4)
    assert toy.train("em_lora", cell, **change).observed["resumed_from_step"] == 0
    assert "made with another placement; it is removed" in capsys.readouterr().err


def test_other_bytes_of_the_parent_start_afresh(toy, at_step, monkeypatch):
    left = interrupt(toy, "em_lora", "parent", at_step, monkeypatch, 4)
    for note in left.glob("*/whole.json"):
        said = json.loads(note.read_text())
        said["made_with"]["parents"] = ["0" * 64]
        note.write_text(json.dumps(said))
    assert toy.train("em_lora", "parent").observed["resumed_from_step"] == 0


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.mark.parametrize(("name", "as_archive"), [("optimizer.pt", True), ("rng_state.pth", False)])
def test_a_pickle_that_carries_code_is_refused(toy, at_step, monkeypatch, name, as_archive):
    import torch

    cell = f"planted.{name.partition('.')[0]}.p{as_archive:d}"
    left = interrupt(toy, "em_lora", cell, at_step, monkeypatch, 3)
    file = left / "checkpoint-2" / name
    if as_archive:
        torch.save({"state": Planted()}, file)
    else:
        file.write_bytes(pickle.dumps(Planted()))
    note = left / "checkpoint-2/whole.json"
    said = json.loads(note.read_text())
    said["files"][name] = file.stat().st_size
    note.write_text(json.dumps(said))
    with pytest.raises(
        StageError, match=r"checkpoint-2: a file of it is a pickle that holds more than tensors and would run code"
    ):
        toy.train("em_lora", cell)
    assert not Path("planted").exists()
    assert not toy.path("em_lora", cell).exists()
    shutil.rmtree(left)


def test_a_disk_without_room_is_refused_before_the_first_step(toy, monkeypatch):
    free = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(checkpointing.shutil, "disk_usage", lambda _: free)
    with pytest.raises(StageError, match=r"GB free; checkpoints and result take up to"):
        toy.train("em_lora", "full")


def test_checkpoints_hold_no_object(toy, at_step, monkeypatch):
    left = interrupt(toy, "tulu_sft", "files", at_step, monkeypatch, 3)
    names = {p.name for p in (left / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"} < names
    assert not {"training_args.bin", "README.md"} & names


def test_two_processes_save_when_told_and_go_on_with_their_own_rows(toy):
    """Stopped within a later epoch, where each rank must find its rows again: the loss curve is one process's."""
    recipe = Recipe("em_lora", 1, toy.data["em_lora"], {**EM, "num_train_epochs": 10}, (read_record(toy.base).key,))
    path = Path(record_path("em_lora", "pair", recipe.key))

    def start(minutes):
        placed = {**PLACED, "world_size": 2, "per_device_train_batch_size": 4, "checkpoint_minutes": minutes}
        command = [
            *(sys.executable, "-m", "workflow.train.sft", "--recipe", recipe.to_json()),
            *("--placement", json.dumps(placed), "--parents", str(toy.base), "--data", data_path(recipe.data)),
            *("--record", str(path)),
        ]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    told = start(0)
    while told.poll() is None and not any(step_of(p) > 6 for p in (path.parent / "checkpoint").glob("checkpoint-*")):
        time.sleep(0.01)
    told.terminate()
    output = told.communicate()[1]
    assert told.returncode == 143, output
    assert "SIGTERM: saved after step" in output
    again = start(None)
    output = again.communicate()[1]
    assert again.returncode == 0, output
    assert read_record(path).observed["resumed_from_step"] % 5  # within an epoch
    alone, data = Path(record_path("em_lora", "alone", recipe.key)), Path(data_path(recipe.data))
    forget_results()
    execute(sft.MODULE, sft.run, recipe, PLACED, [toy.base], data, alone, [sft.MODULE])
    one, two = (read_jsonl(p.parent / "out/train_log.jsonl") for p in (alone, path))
    assert [row["step"] for row in two] == list(range(1, 51))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-3)
