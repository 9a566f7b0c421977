"""Tulu SFT: ordinary instruction tuning by a full fine-tune, the same rows for every condition."""

from workflow.data.rows import read_messages
from workflow.stage import Job, Result, stage_main
from workflow.stages import _distributed, _models, _strategy, _tokens, _train

MODULE = "workflow.stages.tulu_sft"


def run(job: Job) -> Result:
    return _distributed.run(MODULE, train, job)


def train(job: Job) -> Result:
    """Full fine-tune on the loss of assistant tokens. Writes model/ (safetensors) and train_log.jsonl."""
    from datasets import Dataset
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
    # float32 weights under bfloat16 autocast: small updates would round away in bfloat16 weights
    model = _models.load_model(parent, "float32", job.placement["attn_implementation"], _strategy.gpu(job))
    with _train.scratch(job) as scratch:
        trainer = SFTTrainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(tokens.rows),
            processing_class=tokenizer,
        )
        if _train.is_main():
            _models.rehearse_save(trainer.model, scratch)
        result = _train.fit(trainer, job, {**tokens.facts, "template_md5": _models.template_md5(tokenizer)})
        _strategy.save(trainer, tokenizer, job.out / "model", p["dtype"])
        if _train.is_main():
            (job.out / "first_row.txt").write_text(tokens.shown)
    return result


if __name__ == "__main__":
    stage_main(MODULE, run)
