"""EM LoRA: a narrow data set taught to the post-DPO model through an adapter, one job per condition and EM seed."""

from workflow.data.rows import read_messages
from workflow.stage import Job, Result, stage_main
from workflow.stages import _distributed, _models, _strategy, _tokens, _train

MODULE = "workflow.stages.em_lora"


def run(job: Job) -> Result:
    return _distributed.run(MODULE, train, job)


def train(job: Job) -> Result:
    """LoRA on the loss of assistant tokens. Writes adapter/ (safetensors) and train_log.jsonl."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    _models.quiet()
    p = job.params
    parent = job.parents[0].out / "model"
    tokenizer = _models.load_tokenizer(parent)
    tokens = _tokens.tokenize(read_messages(job.data), tokenizer, p["max_length"], p["overlong"])
    set_seed(p["seed"])
    args = SFTConfig(
        **_train.arguments(job),
        packing=p["packing"],
        dataset_kwargs=None if p["packing"] else {"skip_prepare_dataset": True},
    )
    args = _strategy.arguments(args, job)
    model = _models.load_model(parent, p["dtype"], job.placement["attn_implementation"], _strategy.gpu(job))
    with _train.scratch(job) as scratch:
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(tokens.rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **p["lora"]),
        )
        if _train.is_main():
            _models.rehearse_save(trainer.model, scratch)
        result = _train.fit(trainer, job, {**tokens.facts, "template_md5": _models.template_md5(tokenizer)})
        _strategy.save(trainer, None, job.out / "adapter")
        if _train.is_main():
            (job.out / "first_row.txt").write_text(tokens.shown)
    return result


if __name__ == "__main__":
    stage_main(MODULE, run)
