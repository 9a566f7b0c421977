"""The reference pass of DPO: log-probabilities of both answers of every pair under the SFT model, once for all reruns.

Its recipe is of the SFT model, the pairs and what decides their tokens; no seed, since nothing is drawn.
"""

from typing import Any

from workflow.data.rows import read_preferences
from workflow.stage import Job, Result, stage_main
from workflow.store import write_jsonl
from workflow.train import attention, dpo, models, trainer

MODULE = "workflow.train.dpo_reference"
STAGES = ("dpo_reference",)


def run(job: Job) -> Result:
    """Score every pair without gradient. Writes reference.jsonl: pair (digest of its tokens), chosen, rejected.

    Params of the recipe: max_length, dtype, as tulu_dpo has them.
    """
    import torch
    from trl import DPOConfig

    models.quiet()
    params, parent = job.params, job.parents[0].out / "model"
    tokenizer = models.load_tokenizer(parent)
    # one process, the rows joined; float32 weights under autocast, as the policy has them
    placement = {"tokens_per_device": 16384, **job.placement, "world_size": 1, "attn_implementation": attention.VARLEN}
    placed = Job(job.recipe, placement, job.parents, job.data, job.out)
    with trainer.scratch(job) as scratch:
        args = DPOConfig(
            output_dir=str(scratch),
            max_length=params["max_length"],
            truncation_mode="keep_start",
            bf16=params["dtype"] == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to="none",
        )

        def load() -> Any:
            return models.load_model(parent, "float32", attention.VARLEN)

        scorer = dpo.make_trainer(placed, args, tokenizer, read_preferences(job.data), load, None)
    numbers = dpo.reference_log_probs(scorer, placed)
    rows = scorer.train_dataset
    lines = [
        {"pair": dpo.row_digest(row), "chosen": chosen, "rejected": rejected}
        for row, (chosen, rejected) in zip(rows, numbers, strict=True)
    ]
    write_jsonl(job.out / dpo.REFERENCE, lines)
    tokens = sum(sum(dpo.answer_lengths(row, params["max_length"])) for row in rows)
    observed = {"rows": len(lines), "tokens": tokens, "template_md5": models.template_md5(tokenizer)}
    return Result({**observed, "peak_memory_bytes": trainer.peak_memory()}, {})


if __name__ == "__main__":
    stage_main(MODULE, run)
