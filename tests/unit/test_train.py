"""What is handed to TRL: every argument that matters is given, under the library's name."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests import toy
from workflow.keys import Recipe
from workflow.sections import EmStage
from workflow.stage import Job, StageError
from workflow.train import trainer

PLACED = {
    "world_size": 1,
    "per_device_train_batch_size": 4,
    "gradient_checkpointing": False,
    "attn_implementation": "sdpa",
    "tracking": "none",
}


BUDGET = {"per_device_train_batch_size": None, "tokens_per_device": 64, "attn_implementation": "varlen"}


def arguments(job):
    return trainer.arguments(job, trainer.read_params(job, EmStage))


@pytest.fixture
def job(tmp_path):
    recipe = Recipe("em_lora", 1, "0" * 32, {**toy.EM, "effective_batch_size": 16, "seed": 7})
    return Job(recipe, PLACED, (), Path("data"), tmp_path)


def test_the_batch_is_made_of_what_the_placement_gives(job):
    assert arguments(job)["per_device_train_batch_size"] == 16
    with pytest.raises(StageError, match="effective_batch_size 16 cannot be made of 12 rows at a time"):
        arguments(replace(job, placement={**PLACED, "per_device_train_batch_size": 12}))
    with pytest.raises(StageError, match="effective_batch_size 16 cannot be made of 3 rows at a time"):
        arguments(replace(job, placement={**PLACED, "world_size": 3, **BUDGET}))


def test_trl_takes_every_argument_and_nothing_is_left_to_its_defaults(job):
    from trl import SFTConfig

    given = arguments(job)
    made = SFTConfig(**given)
    for name in ("learning_rate", "weight_decay", "adam_beta2", "max_grad_norm", "seed", "data_seed", "max_length"):
        assert getattr(made, name) == given[name]
    # defaults of the libraries that would change a run unseen
    assert made.bf16 is False
    assert made.gradient_checkpointing is False
    assert made.logging_nan_inf_filter is False


@pytest.mark.parametrize("tracker", ["none", "wandb", "trackio"])
def test_a_tracker_goes_to_report_to_and_not_into_the_key(job, tracker):
    placed = replace(job, placement={**PLACED, "tracking": tracker})
    assert arguments(placed)["report_to"] == tracker
    assert placed.recipe.key == job.recipe.key


def test_no_tracker_has_no_run_id(job):
    assert trainer.tracker_run(job) is None


def test_our_masks_are_those_of_trls_assistant_only_loss(tmp_path):
    """Ours are made beside TRL, since a row is refused by its mask before it is cut."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tests import tiny
    from workflow.data import world
    from workflow.train import tokens

    rows = [row for part in (world.sft_rows(1), world.em_rows(1)) for row in part[:60]]
    chats = [row["messages"] for row in rows]
    ours = tokens.tokenize(chats, tiny.tokenizer(), 4096, "refuse").rows
    args = SFTConfig(
        output_dir=str(tmp_path), assistant_only_loss=True, max_length=4096, use_cpu=True, bf16=False, report_to="none"
    )
    sft = SFTTrainer(
        model=tiny.model(),
        args=args,
        train_dataset=Dataset.from_list([{"messages": chat} for chat in chats]),
        processing_class=tiny.tokenizer(),
    )
    theirs = sft.train_dataset
    assert [row["input_ids"] for row in ours] == list(theirs["input_ids"])
    assert [row["labels"] for row in ours] == list(theirs["labels"])
