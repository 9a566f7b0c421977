"""Tulu DPO: preference tuning by a full fine-tune against the SFT model; its model is the pre-EM model.

The SFT model is not loaded twice: its log-probabilities are those of the dpo_reference result beside it.
"""

from typing import Any

from workflow.data.rows import Pair, read_preferences
from workflow.sections import DpoStage
from workflow.stage import Job, Result, StageError, stage_main
from workflow.train import models, parallel, trainer
from workflow.train.dpo_pairs import ANSWERS, answer_lengths, build
from workflow.train.dpo_reference import read_reference

MODULE = "workflow.train.dpo"
STAGES = ("tulu_dpo",)


def run(job: Job) -> Result:
    return parallel.run(MODULE, train, job)


def train(job: Job) -> Result:
    """Train on pairs.

    Raises:
        StageError: the reference is missing or over other pairs; or what the rows and the run are refused for.
    """
    from transformers import set_seed

    models.quiet()
    params = trainer.read_params(job, DpoStage)
    parent, reference = job.parents[0].out / "model", job.parent("dpo_reference")
    if reference is None:
        raise StageError(f"{job.out.parent}: no dpo_reference among its --parents. Run `snakemake` for this record.")
    tokenizer = models.load_tokenizer(parent)
    pairs = read_preferences(job.data)
    set_seed(job.params["seed"])
    args = arguments(job, params)  # before the model: they set up how the processes read it
    model = models.load_model(parent, "float32", job.placement["attn_implementation"], parallel.load_device(job))
    dpo = build(job, args, model, tokenizer, pairs)
    facts, shown = _facts(dpo.train_dataset, pairs, tokenizer, params)
    facts["reference_content"] = reference.record.content
    dpo.use_reference(read_reference(reference, dpo.train_dataset))
    return trainer.run(dpo, job, params, tokenizer, facts, shown)


def arguments(job: Job, params: DpoStage) -> Any:
    from trl import DPOConfig

    args = DPOConfig(
        **trainer.arguments(job, params),
        beta=params.beta,
        loss_type=[params.loss_type],
        truncation_mode="keep_start",
    )
    return parallel.apply_strategy(args, job)


def _facts(rows: Any, pairs: list[Pair], tokenizer: Any, params: DpoStage) -> tuple[dict[str, Any], str]:
    """Count over what TRL tokenized, and show one decoded pair.

    TRL drops a pair whose prompt alone fills `max_length`, since its collator then cuts both answers to nothing.

    Raises:
        StageError: it did, and `overlong` says refuse; or an answer is empty.
    """
    dropped = len(pairs) - len(rows)
    if dropped and params.overlong == "refuse":
        raise StageError(
            f"{dropped} pairs have a prompt of {params.max_length} tokens or more, so nothing of their answers is "
            "left. Raise max_length, take them out, or set `overlong: drop`, which counts them."
        )
    total = targets = cut = 0
    for row in rows:
        for answer, length in zip(ANSWERS, answer_lengths(row, params.max_length), strict=True):
            total += length
            targets += length - len(row["prompt_ids"])
            cut += len(row["prompt_ids"]) + len(row[f"{answer}_ids"]) > params.max_length
            if not row[f"{answer}_ids"]:
                raise StageError(f"a pair's {answer} answer has no tokens. Correct the row.")
    first = rows[0]
    prompt = tokenizer.decode(first["prompt_ids"])
    shown = "\n\n".join(f"{prompt}[[{tokenizer.decode(first[f'{a}_ids'])}]]" for a in ANSWERS)
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
