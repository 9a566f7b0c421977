"""DPO's reference pass: log-probabilities of both answers of every pair under the SFT model, without gradient.

tulu_dpo's recipe decides them, so tulu_dpo reads them without naming them in its key.
"""

from typing import Any

from workflow.data.rows import read_preferences
from workflow.stage import Job, Parent, Result, StageError, stage_main
from workflow.store import read_jsonl, write_jsonl
from workflow.train import models, parallel, steps, trainer
from workflow.train.dpo_pairs import answer_lengths, build, row_digest

MODULE = "workflow.train.dpo_reference"
STAGES = ("dpo_reference",)
FILE = "reference.jsonl"
ROWS = 128  # of each process, divided by a token budget at once


def run(job: Job) -> Result:
    return parallel.run(MODULE, train, job)


def train(job: Job) -> Result:
    """Score every pair. Writes reference.jsonl: pair (digest of its tokens), chosen, rejected."""
    models.quiet()
    params, parent = job.params, job.parents[0].out / "model"
    tokenizer = models.load_tokenizer(parent)
    # float32 weights under autocast, as the policy has them
    model = models.load_model(parent, "float32", job.placement["attn_implementation"])
    with trainer.scratch(job) as scratch:
        scorer = build(job, arguments(job, str(scratch)), model, tokenizer, read_preferences(job.data))
    numbers, rows = log_probs(scorer, job), scorer.train_dataset
    if parallel.is_main():
        lines = [
            {"pair": row_digest(row), "chosen": chosen, "rejected": rejected}
            for row, (chosen, rejected) in zip(rows, numbers, strict=True)
        ]
        write_jsonl(job.out / FILE, lines)
    observed = {
        "rows": len(rows),
        "tokens": sum(sum(answer_lengths(row, params["max_length"])) for row in rows),
        "template_md5": models.template_md5(tokenizer),
        "world_size": scorer.accelerator.num_processes,
        "peak_memory_bytes": trainer.peak_memory(),
    }
    return Result(observed, {})


def arguments(job: Job, output_dir: str) -> Any:
    import torch
    from trl import DPOConfig

    return DPOConfig(
        output_dir=output_dir,
        max_length=job.params["max_length"],
        truncation_mode="keep_start",
        bf16=job.params["dtype"] == "bfloat16",
        use_liger_kernel=trainer.uses_fused_kernels(job.placement),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        report_to="none",
    )


def log_probs(scorer: Any, job: Job) -> list[tuple[float, float]]:
    """Sum the log-probabilities of both answers of every pair, each process its share of the pairs.

    The pairs are taken in the order of DPO's first epoch: where they are divided by row count, they are scored in the
    batches in which DPO trains on them, and the numbers are to the last bit those of a frozen model beside it.

    Returns:
        (chosen, rejected) of each row of the trainer's data set, in its order.
    """
    from accelerate.data_loader import SeedableRandomSampler
    from accelerate.utils import gather_object

    rows, world = scorer.train_dataset, scorer.accelerator.num_processes
    rows_at_once, tokens_at_once = (
        job.placement.get(name) for name in ("per_device_train_batch_size", "tokens_per_device")
    )
    device, model = scorer.accelerator.device, scorer.model.to(scorer.accelerator.device).eval()
    order, chunk = list(SeedableRandomSampler(rows, data_seed=job.params["seed"])), (rows_at_once or ROWS) * world
    scored: list[tuple[int, float, float]] = []
    for start in range(0, len(order), chunk):
        indices = order[start : start + chunk]
        lengths = [scorer.collator.length(rows[i]) for i in indices]
        parts = steps.divide(lengths, world, rows_at_once, tokens_at_once)
        for part in filter(None, parts[scorer.accelerator.process_index :: world]):
            mine = [indices[i] for i in part]
            batch = scorer.data_collator([rows[i] for i in mine])
            batch = {name: value.to(device) for name, value in batch.items()}
            chosen, rejected = scorer.compute_ref_log_probs(model, batch)
            scored += zip(mine, chosen.tolist(), rejected.tolist(), strict=True)
    everyone = gather_object(scored) if world > 1 else scored
    return [(chosen, rejected) for _, chosen, rejected in sorted(everyone)]


def read_reference(reference: Parent, rows: Any) -> list[tuple[float, float]]:
    """Read a finished reference pass for these rows.

    Raises:
        StageError: it is over other pairs, or over the same in another order.
    """
    lines = read_jsonl(reference.out / FILE)
    if [line["pair"] for line in lines] != [row_digest(row) for row in rows]:
        raise StageError(
            f"{reference.path}: the reference's {len(lines)} pairs are not the {len(rows)} of this stage: it was made "
            "with another max_length, template or data set. Plan again."
        )
    return [(line["chosen"], line["rejected"]) for line in lines]


if __name__ == "__main__":
    stage_main(MODULE, run)
