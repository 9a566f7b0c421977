"""Train several EM seeds of one checkpoint in one process, over one frozen base model.

Each seed keeps what it has alone: adapter, order of rows, dropout's random numbers, mean loss, clipping, AdamW state,
schedule. Only the base's arithmetic is shared: the seeds' rows lie joined in one sequence, seed after seed, and each
LoRA layer multiplies a seed's stretch of it with that seed's matrices (bmm). The adapters
are saved one by one, as PEFT saves them. A run that is stopped starts again: seeds together take minutes.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from workflow.data.rows import read_messages
from workflow.keys import canonical_json
from workflow.sections import EmStage
from workflow.stage import Job, Result, StageError
from workflow.store import write_jsonl
from workflow.train import attention, effective, models, tokens, trainer
from workflow.train.stacked import Joint, Seed, Seeds


def run_together(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Exception]]:
    """Train the jobs' seeds at the same time; give each job's result, or the error that stopped that seed alone.

    A job that differs from the first in more than its seed is given back with an error and is not trained.

    Raises:
        StageError: the first job's recipe or placement allows no training together.
    """
    import torch
    from peft import LoraConfig

    models.quiet()
    job = jobs[0]
    _check_job(job)
    for other in jobs:
        if _shared(other) != _shared(job):
            yield other, StageError(f"its recipe differs from {job.recipe.key} in more than the seed")
    jobs = [other for other in jobs if _shared(other) == _shared(job)]
    params = trainer.read_params(job, EmStage)
    parent = job.parents[0].out / "model"
    tokenizer = models.load_tokenizer(parent)
    rows = tokens.tokenize(read_messages(job.data), tokenizer, params.max_length, params.overlong)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = models.load_model(parent, params.dtype, attention.VARLEN)
    config = LoraConfig(task_type="CAUSAL_LM", **params.lora.model_dump())
    with trainer.scratch(job) as scratch:
        starts = [_initial_adapter(model, config, j.params["seed"], scratch) for j in jobs]
    seeds = make_seeds(jobs, rows.rows, device)
    began = time.monotonic()
    joint = Joint(model.to(device), params, job.placement, seeds, starts)
    facts = {**rows.facts, "template_md5": models.template_md5(tokenizer), **joint.train(rows.rows)}
    seconds = time.monotonic() - began
    settings, adapters = joint.describe(), joint.take_adapters()
    for seed, adapter in zip(seeds, adapters, strict=True):
        try:
            if seed.failed is not None:
                raise seed.failed
            result = trainer.observe(seed.job, params, seed.log, len(rows.rows), seconds, facts)
            _save(seed, adapter, model, config, settings)
        except StageError as error:
            yield seed.job, error
            continue
        (seed.job.out / "first_row.txt").write_text(rows.shown)
        gpu_seconds = round(result.observed["gpu_seconds"] / len(seeds), 3)
        own = {"seconds": round(seconds / len(seeds), 3), "gpu_seconds": gpu_seconds}
        yield seed.job, result._replace(observed={**result.observed, **own})


def make_seeds(jobs: Sequence[Job], rows: list[dict[str, list[int]]], device: Any) -> Seeds:
    """Give each job its own order of rows and its own generator of dropout masks, as it would have them alone."""
    import torch
    from accelerate.data_loader import SeedableRandomSampler

    return [
        Seed(
            job,
            order=SeedableRandomSampler(rows, data_seed=job.params["seed"]),
            dropout=torch.Generator(device).manual_seed(job.params["seed"]),
        )
        for job in jobs
    ]


def _shared(job: Job) -> str:
    """The recipe without its seed."""
    recipe = job.recipe.to_dict()
    return canonical_json({**recipe, "params": {k: v for k, v in recipe["params"].items() if k != "seed"}})


def _check_job(job: Job) -> None:
    if job.params["optim"] not in ("adamw_torch", "adamw_torch_fused") or job.params["packing"]:
        raise StageError("seeds trained together need optim adamw_torch and no packing: set together: 1.")
    trainer.check_batch(job.params["effective_batch_size"], job.placement)


def _initial_adapter(model: Any, config: Any, seed: int, scratch: Any) -> dict[str, Any]:
    """Let PEFT draw the adapter that this seed starts from alone, take it off the model again, and try a save."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
    wrapped = get_peft_model(model, config)
    models.check_can_save(wrapped, scratch)
    start = {name: value.detach().clone() for name, value in wrapped.named_parameters() if "lora_" in name}
    wrapped.unload()
    return start


def _save(seed: Seed, adapter: dict[str, Any], model: Any, config: Any, settings: dict[str, Any]) -> None:
    """Save one seed's files as its stage alone would, and hold them against its recipe.

    Raises:
        StageError: they are not those of the recipe.
    """
    from peft import get_peft_model

    wrapped = get_peft_model(model, config)
    wrapped.load_state_dict(adapter, strict=False)
    models.save(wrapped, None, seed.job.out / "adapter")
    wrapped.unload()
    write_jsonl(seed.job.out / "train_log.jsonl", seed.log)
    arguments = {**settings["arguments"], "seed": seed.order.initial_seed}
    effective.check_effective({**settings, "arguments": arguments}, seed.job)
