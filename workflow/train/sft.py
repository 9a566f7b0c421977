"""Supervised fine-tuning on assistant tokens: coupling_sft and tulu_sft in full, em_lora through an adapter."""

from typing import Any

from workflow.data.rows import read_messages
from workflow.sections import EmStage, SftStage
from workflow.stage import Job, Result, stage_main
from workflow.train import attention, models, parallel, steps, tokens, trainer
from workflow.train.joint import run_together

__all__ = ["MODULE", "STAGES", "run", "run_together", "train"]

MODULE = "workflow.train.sft"
STAGES = ("coupling_sft", "tulu_sft", "em_lora")


def run(job: Job) -> Result:
    return parallel.run(MODULE, train, job)


def train(job: Job) -> Result:
    """Train on the loss of assistant tokens."""
    models.quiet()
    params = read_params(job)
    parent = job.parents[0].out / "model"
    tokenizer = models.load_tokenizer(parent)
    rows = tokens.tokenize(read_messages(job.data), tokenizer, params.max_length, params.overlong)
    # a full fine-tune keeps float32 weights under bfloat16 autocast: small updates would round away in bfloat16
    dtype = params.dtype if isinstance(params, EmStage) else "float32"
    sft = build(
        job,
        params,
        tokenizer,
        rows.rows,
        lambda: models.load_model(parent, dtype, job.placement["attn_implementation"], parallel.load_device(job)),
    )
    return trainer.run(sft, job, params, tokenizer, rows.facts, rows.shown)


def read_params(job: Job) -> SftStage:
    return trainer.read_params(job, EmStage if job.recipe.stage == "em_lora" else SftStage)


def build(job: Job, params: SftStage, tokenizer: Any, rows: list[dict[str, list[int]]], load: Any) -> Any:
    """Build TRL's trainer for the stage; `load` gives the model, after the seed is set and the arguments are made."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(job.params["seed"])
    given = trainer.arguments(job, params)
    if attention.joins_rows(job.placement) and not params.packing:
        given |= {"padding_free": True, "max_length": None}  # the rows are cut already
    args = SFTConfig(
        **given,
        packing=params.packing,
        dataset_kwargs=None if params.packing else {"skip_prepare_dataset": True},
    )
    lora = LoraConfig(task_type="CAUSAL_LM", **params.lora.model_dump()) if isinstance(params, EmStage) else None
    sft = steps.step_trainer(SFTTrainer)(
        model=load(),
        args=parallel.apply_strategy(args, job),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    sft.prepare_steps(job, length=lambda row: len(row["input_ids"]), targets=tokens.count_targets)
    return sft


if __name__ == "__main__":
    stage_main(MODULE, run)
