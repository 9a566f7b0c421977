"""What the training stages share: arguments for TRL, what is in force before the first step, the facts of a run."""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from workflow.keys import canonical_json
from workflow.sections import EmStage, Training
from workflow.stage import Job, Result, StageError
from workflow.store import write_jsonl
from workflow.train import attention, checkpointing, effective, models, parallel

Params = TypeVar("Params", bound=Training)


@contextmanager
def scratch(job: Job) -> Iterator[Path]:
    """Make a folder on the results' own disk, gone before the outputs are listed: a full disk shows early."""
    folder = job.out / f"scratch.{os.environ.get('RANK', '0')}"
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_params(job: Job, section: type[Params]) -> Params:
    """The recipe's parameters as the config's own typed section; the seed stands beside them in the recipe."""
    return section.model_validate_json(canonical_json({k: v for k, v in job.params.items() if k != "seed"}))


def arguments(job: Job, params: Training) -> dict[str, Any]:
    """Build the arguments that SFTConfig and DPOConfig share; every one that matters is given.

    To the trainer a step is one batch of its data loader, so it accumulates nothing itself: see `steps`.

    Raises:
        StageError: the placement cannot make the declared batch.
    """
    import torch

    placement, seed = job.placement, job.params["seed"]
    check_batch(params.effective_batch_size, placement)
    fused = uses_fused_kernels(placement)
    same_name = params.model_dump(include=set(effective.ARGUMENTS))
    if fused and params.optim == "adamw_torch":
        same_name["optim"] = "adamw_torch_fused"  # the same AdamW in one kernel
    return {
        **same_name,
        "output_dir": str(checkpointing.output_dir(job)),
        "per_device_train_batch_size": params.effective_batch_size // placement["world_size"],
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": placement["gradient_checkpointing"],
        "bf16": params.dtype == "bfloat16",
        "use_liger_kernel": fused,
        "seed": seed,
        "data_seed": seed,
        "max_length": params.max_length,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide the very step that went wrong
        "save_strategy": "no",  # `checkpointing` saves by the clock, and when SIGTERM comes
        "save_total_limit": checkpointing.KEEP,
        "eval_strategy": "no",
        "report_to": placement.get("tracking", "none"),
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }


def uses_fused_kernels(placement: dict[str, Any]) -> bool:
    """Whether Liger's kernels (norms, SwiGLU, RoPE) and the fused AdamW run: placed, and there is a GPU.

    Raises:
        StageError: they are placed, there is a GPU, and liger-kernel is not installed.
    """
    import torch

    if placement.get("kernels", "torch") != "fused" or not torch.cuda.is_available():
        return False
    if find_spec("liger_kernel") is None:
        raise StageError("kernels: fused needs liger-kernel (envs/gpu.txt). Install it, or set kernels: torch.")
    return True


def check_batch(declared: int, placement: dict[str, Any]) -> None:
    """Refuse a placement whose rows at a time do not multiply out to the declared effective batch."""
    world, rows = placement["world_size"], placement.get("per_device_train_batch_size")
    at_once = world * (rows or 1)
    if declared % at_once:
        raise StageError(f"effective_batch_size {declared} cannot be made of {at_once} rows at a time: see placement.")


def prepare_layers(model: Any, placement: dict[str, Any]) -> None:
    """Leave only the first `checkpoint_layers` layers to checkpointing, which is on for all, and cast norms once."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    count = placement.get("checkpoint_layers")
    if placement["gradient_checkpointing"] and count is not None:
        for layer in layers[count:]:
            layer.gradient_checkpointing = False
    if uses_fused_kernels(placement):
        for module in (module for layer in layers for module in layer.modules()):
            if "RMSNorm" in type(module).__name__:
                module.register_forward_hook(cast_once)


def cast_once(module: Any, inputs: Any, output: Any) -> Any:
    """Cast a norm's output to autocast's precision, which each linear layer after it would do for itself."""
    import torch

    if not torch.is_autocast_enabled(output.device.type):
        return output
    return output.to(torch.get_autocast_dtype(output.device.type))


# --- progress and facts ---------------------------------------------------------------------------------------------


def check_finite(step: int, loss: float, grad_norm: float | None) -> None:
    """Refuse a step whose loss or gradient is not a number.

    Raises:
        StageError: it is not.
    """
    if not math.isfinite(loss) or not math.isfinite(grad_norm or 0.0):
        raise StageError(
            f"step {step}: the loss is {loss}, the gradient norm {grad_norm}. "
            "Training stopped; lower the learning rate or look at the data."
        )


@dataclass
class Progress:
    """Print step, loss and time left every few seconds."""

    every: float = 10.0
    began: float = field(default_factory=time.monotonic)
    printed_at: float = 0.0
    first_step: int = 0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        progress = self

        class Print(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                progress.first_step = state.global_step

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                progress.log(state, logs or {})

        return Print()

    def log(self, state: Any, logs: dict[str, Any]) -> None:
        if (loss := logs.get("loss")) is not None:
            check_finite(state.global_step, loss, logs.get("grad_norm"))
            if state.is_world_process_zero:
                self.report(state.global_step, state.max_steps, f"epoch {state.epoch:.2f}, loss {loss:.4f}")

    def report(self, step: int, steps: int, what: str) -> None:
        now = time.monotonic()
        if now - self.printed_at >= self.every or step in (1, steps):
            self.printed_at = now
            left = (now - self.began) / (step - self.first_step) * (steps - step)
            line = f"step {step}/{steps}, {what}, {now - self.began:.0f} s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)


def _prepare_callback(trainer: Any, job: Job) -> Any:
    """Check what is in force before the first step, and shuffle each epoch by its own number, also when resumed."""
    from transformers import TrainerCallback

    class Prepare(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            parallel.check_strategy(trainer, job)
            effective.check_trainer(trainer, job)
            prepare_layers(trainer.model, job.placement)

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.order.set_epoch(int(state.epoch + 1e-6))

    return Prepare()


def run(trainer: Any, job: Job, params: Training, tokenizer: Any, facts: dict[str, Any], shown: str) -> Result:
    """Train, save the model or its adapter, and hold the saved files against the recipe.

    Writes model/ or adapter/ (safetensors), train_log.jsonl, training.json and first_row.txt, which holds `shown`.

    Raises:
        StageError: it cannot be saved, or was not the declared training.
    """
    with scratch(job) as folder:
        if parallel.is_main():
            models.check_can_save(trainer.model, folder)
    result = fit(trainer, job, params, {**facts, "template_md5": models.template_md5(tokenizer)})
    settings = effective.describe(trainer)
    if isinstance(params, EmStage):
        parallel.save(trainer, None, job.out / "adapter")
    else:
        parallel.save(trainer, tokenizer, job.out / "model", params.dtype)
    if parallel.is_main():
        (job.out / "first_row.txt").write_text(shown)
        effective.check_effective(settings, job)
    return result


def fit(trainer: Any, job: Job, params: Training, facts: dict[str, Any]) -> Result:
    """Train, write train_log.jsonl, and hold what was observed against what was declared.

    Raises:
        StageError: world size, effective batch or steps are not the declared ones.
    """
    import torch
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress().callback())
    trainer.add_callback(_prepare_callback(trainer, job))
    parallel.keep_autocast(trainer, job)
    world, batch = trainer.accelerator.num_processes, params.effective_batch_size
    if world != job.placement["world_size"]:
        raise StageError(
            f"{world} processes are there, the placement says {job.placement['world_size']}: the effective batch would "
            f"be {batch * world // job.placement['world_size']}, not {batch}."
        )
    print(f"{len(trainer.train_dataset)} rows in steps of {batch}", file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    resumed = checkpointing.train(trainer, job)
    names = ("step", "loss", "learning_rate", "grad_norm", "rows")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    log = [{name: entry[name] for name in names if name in entry} for entry in history]
    facts = {
        **facts,
        "strategy": parallel.in_force(trainer),
        "micro_batches_per_step": trainer.micro_batches,
        "tokens_at_once": trainer.tokens_at_once,
        "resumed_from_step": resumed.step,
        "tracker_run_id": tracker_run(job),
    }
    result = observe(job, params, log, len(trainer.train_dataset), resumed.seconds, facts)
    if trainer.accelerator.is_main_process:
        write_jsonl(job.out / "train_log.jsonl", log)
    return result


def observe(
    job: Job, params: Training, log: list[dict[str, Any]], sequences: int, seconds: float, facts: dict[str, Any]
) -> Result:
    """Make the result of a training from its log, one entry a step.

    Raises:
        StageError: steps or rows are not the declared ones.
    """
    import torch

    batch, epochs, world = params.effective_batch_size, params.num_train_epochs, job.placement["world_size"]
    declared, most = epochs * math.ceil(sequences / batch), min(batch, sequences)  # a data set may be a small one
    rows = [entry["rows"] for entry in log]
    if len(log) != declared or max(rows) != most or sum(rows) != sequences * epochs:
        raise StageError(
            f"observed {len(log)} steps of {max(rows)} rows, {sum(rows)} in all, declared {declared} of {batch}, "
            f"{sequences * epochs} in all. The protocol is not the declared one; nothing is recorded."
        )
    rows_at_once = job.placement.get("per_device_train_batch_size") or batch // world
    first, last = log[0]["loss"], log[-1]["loss"]
    examples = {name: facts[name] for name in ("first_prompt",) if name in facts}
    observed = {
        **{name: value for name, value in facts.items() if name not in examples},
        "world_size": world,
        "effective_batch_size": batch,
        "per_device_train_batch_size": rows_at_once,
        "gradient_accumulation_steps": batch // world // rows_at_once,
        "rows_per_step": [min(rows), max(rows)],
        "rows_joined": attention.joins_rows(job.placement),
        "kernels": "fused" if uses_fused_kernels(job.placement) else "torch",
        "optimizer_steps": len(log),
        "declared_steps": declared,
        "epochs": epochs,
        "sequences": sequences,
        "rows_drawn": sum(rows),
        "first_loss": first,
        "last_loss": last,
        "train_seconds": round(seconds, 3),
        "gpu_seconds": round(seconds * world, 3) if torch.cuda.is_available() else 0.0,
        "peak_memory_bytes": peak_memory(),
        "data_facts": models.data_facts(job.data),
    }
    return Result(observed, {"train_loss_first": first, "train_loss_last": last}, examples)


def peak_memory() -> int:
    """Most bytes in use: of the GPU if there is one, of the process otherwise."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tracker_run(job: Job) -> str | None:
    if job.placement.get("tracking") == "wandb":
        import wandb

        return wandb.run.id if wandb.run else None
    if job.placement.get("tracking") == "trackio":
        import trackio

        run = trackio.context_vars.current_run.get()
        return str(run.name) if run else None
    return None
