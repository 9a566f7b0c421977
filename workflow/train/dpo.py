"""Tulu DPO: preference tuning by a full fine-tune with the length-normalised loss; its model is the pre-EM model."""

from typing import Any

from workflow.data.rows import Pair, read_preferences
from workflow.stage import Job, Result, StageError, stage_main
from workflow.stages import _distributed, _models, _strategy, _train

MODULE = "workflow.stages.tulu_dpo"


def run(job: Job) -> Result:
    return _distributed.run(MODULE, train, job)


def train(job: Job) -> Result:
    """DPO against a frozen copy of the SFT model. Writes model/ (safetensors) and train_log.jsonl."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    _models.quiet()
    p = job.params
    parent = job.parents[0].out / "model"
    tokenizer = _models.load_tokenizer(parent)
    pairs = read_preferences(job.data)
    set_seed(p["seed"])
    attn, gpu = job.placement["attn_implementation"], _strategy.gpu(job)
    # before the arguments, which set up accelerate's way that one process reads and gives the others their shards: TRL
    # shards the reference where it is
    whole = _models.load_model(parent, "float32", attn, gpu)
    args = DPOConfig(
        **_train.arguments(job),
        beta=p["beta"],
        loss_type=[p["loss_type"]],
        truncation_mode="keep_start",
    )
    args = _strategy.arguments(args, job)
    with _train.scratch(job) as scratch:
        trainer = DPOTrainer(
            model=_models.load_model(parent, "float32", attn, gpu),
            ref_model=_strategy.reference(whole, job),
            args=args,
            train_dataset=Dataset.from_list([_conversation(pair) for pair in pairs]),
            processing_class=tokenizer,
        )
        facts, shown = _facts(trainer.train_dataset, pairs, tokenizer, p)
        if _train.is_main():
            _models.rehearse_save(trainer.model, scratch)
        result = _train.fit(trainer, job, {**facts, "template_md5": _models.template_md5(tokenizer)})
        _strategy.save(trainer, tokenizer, job.out / "model", p["dtype"])
        if _train.is_main():
            (job.out / "first_row.txt").write_text(shown)
    return result


def _conversation(pair: Pair) -> dict[str, Any]:
    return {"prompt": pair.prompt, "chosen": [pair.chosen], "rejected": [pair.rejected]}


def _facts(rows: Any, pairs: list[Pair], tokenizer: Any, p: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Counts over what TRL tokenized, and one decoded pair.

    TRL drops a pair whose prompt alone fills `max_length`, since its collator then cuts both answers to nothing.

    Raises:
        StageError: it did, and `overlong` says refuse; or an answer is empty.
    """
    dropped = len(pairs) - len(rows)
    if dropped and p["overlong"] == "refuse":
        raise StageError(
            f"{dropped} pairs have a prompt of {p['max_length']} tokens or more, so nothing of their answers is left. "
            "Raise max_length, take them out, or set `overlong: drop`, which counts them."
        )
    total = targets = cut = 0
    for row in rows:
        for answer in ("chosen_ids", "rejected_ids"):
            length = len(row["prompt_ids"]) + len(row[answer])
            total += min(length, p["max_length"])
            targets += min(length, p["max_length"]) - len(row["prompt_ids"])
            cut += length > p["max_length"]
            if not row[answer]:
                raise StageError(f"a pair's {answer.removesuffix('_ids')} answer has no tokens. Correct the row.")
    first = rows[0]
    prompt = tokenizer.decode(first["prompt_ids"])
    shown = "\n\n".join(f"{prompt}[[{tokenizer.decode(first[a])}]]" for a in ("chosen_ids", "rejected_ids"))
    facts = {
        "rows_read": len(pairs),
        "rows": len(rows),
        "rows_dropped": dropped,
        "rows_truncated": cut,
        "tokens": total,
        "loss_tokens": targets,
        "masked_fraction": round(1 - targets / total, 6),
        "first_prompt": prompt,
    }
    return facts, shown


if __name__ == "__main__":
    stage_main(MODULE, run)
