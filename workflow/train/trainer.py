"""What the four training stages share: the arguments, the observation.

Functions, not a trainer of our own: each stage calls TRL itself.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.stage import Job, Result, StageError
from workflow.stages import _resume, _strategy
from workflow.stages._models import data_facts
from workflow.store import write_jsonl


@contextmanager
def scratch(job: Job) -> Iterator[Path]:
    """A folder on the results' own disk, gone before the outputs are listed: a disk that is too small shows early."""
    folder = job.out / f"scratch.{os.environ.get('RANK', '0')}"
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def accumulation(declared: int, placement: dict[str, Any]) -> int:
    """Micro-batches per step that make the declared effective batch.

    Raises:
        StageError: they do not multiply out.
    """
    at_once = placement["world_size"] * placement["per_device_train_batch_size"]
    if declared % at_once:
        raise StageError(f"effective_batch_size {declared} cannot be made of {at_once} rows at a time: see placement.")
    return declared // at_once


def arguments(job: Job) -> dict[str, Any]:
    """Arguments that SFTConfig and DPOConfig share, under transformers' names; every one that matters is given."""
    import torch

    p = job.params
    placed = job.placement
    return {
        "output_dir": str(_resume.saving(job)),
        "learning_rate": p["learning_rate"],
        "lr_scheduler_type": p["lr_scheduler_type"],
        "warmup_steps": p["warmup_steps"],
        "weight_decay": p["weight_decay"],
        "adam_beta1": p["adam_beta1"],
        "adam_beta2": p["adam_beta2"],
        "adam_epsilon": p["adam_epsilon"],
        "max_grad_norm": p["max_grad_norm"],
        "optim": p["optim"],
        "num_train_epochs": p["num_train_epochs"],
        "per_device_train_batch_size": placed["per_device_train_batch_size"],
        "gradient_accumulation_steps": accumulation(p["effective_batch_size"], placed),
        "gradient_checkpointing": placed["gradient_checkpointing"],
        "bf16": p["dtype"] == "bfloat16",
        "seed": p["seed"],
        "data_seed": p["seed"],
        "max_length": p["max_length"],
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide the very step that went wrong
        "save_strategy": "no",  # _resume saves by the clock, and when SIGTERM comes
        "eval_strategy": "no",
        "report_to": placed.get("tracking", "none"),
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }


@dataclass
class Counter:
    """Counts the rows that the trainer really draws, by standing between it and its collator."""

    collate: Any
    rows: int = 0

    def __call__(self, examples: list[Any]) -> Any:
        self.rows += len(examples)
        return self.collate(examples)


@dataclass
class Progress:
    """Step, loss and time left, every few seconds; refuses a loss that is not a number."""

    every: float = 10.0
    began: float = field(default_factory=time.monotonic)
    told: float = 0.0
    since: int = 0

    def callback(self) -> Any:
        from transformers import TrainerCallback

        outer = self

        class Tell(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                outer.since = state.global_step

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                outer.log(state, logs or {})

        return Tell()

    def log(self, state: Any, logs: dict[str, Any]) -> None:
        loss = logs.get("loss")
        if loss is None:
            return
        if not math.isfinite(loss) or not math.isfinite(logs.get("grad_norm") or 0.0):
            raise StageError(
                f"step {state.global_step}: the loss is {loss}, the gradient norm {logs.get('grad_norm')}. "
                "Training stopped; lower the learning rate or look at the data."
            )
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        if now - self.told >= self.every or state.global_step in (1, state.max_steps):
            self.told = now
            left = (now - self.began) / (state.global_step - self.since) * (state.max_steps - state.global_step)
            print(
                f"step {state.global_step}/{state.max_steps}, epoch {state.epoch:.2f}, loss {loss:.4f}, "
                f"{now - self.began:.0f} s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


def fit(trainer: Any, job: Job, facts: dict[str, Any]) -> Result:
    """Train, then hold what was observed against what was declared.

    Raises:
        StageError: world size, effective batch or steps are not the declared ones.
    """
    import torch
    from transformers import PrinterCallback

    p = job.params
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress().callback())
    trainer.add_callback(_strategy.callback(trainer, job))
    counter = trainer.data_collator = Counter(trainer.data_collator)
    world = trainer.accelerator.num_processes
    if world != job.placement["world_size"]:
        raise StageError(
            f"{world} processes are there, the placement says {job.placement['world_size']}: the effective batch would "
            f"be {p['effective_batch_size'] * world // job.placement['world_size']}, not {p['effective_batch_size']}."
        )
    sequences = len(trainer.train_dataset)
    declared = p["num_train_epochs"] * math.ceil(sequences / p["effective_batch_size"])
    print(f"{sequences} rows, {declared} steps of {p['effective_batch_size']}", file=sys.stderr, flush=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    sitting = _resume.train(trainer, job)
    args, state = trainer.args, trainer.state
    effective = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
    if effective != p["effective_batch_size"] or state.global_step != declared:
        raise StageError(
            f"observed {state.global_step} steps of {effective} rows, declared {declared} of "
            f"{p['effective_batch_size']}. The protocol is not the declared one; nothing is recorded."
        )
    by_rank = trainer.accelerator.gather(torch.tensor([counter.rows], device=trainer.accelerator.device)).tolist()
    if len(set(by_rank)) > 1:
        raise StageError(f"the processes drew {by_rank} rows, not as many each. Nothing is recorded.")
    drawn = sitting.rows_before(sequences, effective) + sum(by_rank)
    planned = sequences * p["num_train_epochs"]
    # several processes share the last batch of an epoch evenly, some rows of it twice
    padding = p["num_train_epochs"] * world * args.per_device_train_batch_size if world > 1 else 0
    if not planned <= drawn <= planned + padding:
        raise StageError(f"{drawn} rows were drawn, {sequences} x {p['num_train_epochs']} epochs were declared.")
    log = [
        {k: entry[k] for k in ("step", "loss", "learning_rate", "grad_norm") if k in entry}
        for entry in state.log_history
        if "loss" in entry
    ]
    if trainer.accelerator.is_main_process:
        write_jsonl(job.out / "train_log.jsonl", log)
    observed = {
        **facts,
        "world_size": world,
        "strategy": _strategy.in_force(trainer),
        "effective_batch_size": effective,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "optimizer_steps": state.global_step,
        "declared_steps": declared,
        "epochs": p["num_train_epochs"],
        "sequences": sequences,
        "rows_drawn": drawn,
        "first_loss": log[0]["loss"],
        "last_loss": log[-1]["loss"],
        "resumed_from_step": sitting.resumed_from_step,
        "train_seconds": round(sitting.seconds, 3),
        "gpu_seconds": round(sitting.seconds * world, 3) if torch.cuda.is_available() else 0.0,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak(),
        "data_facts": data_facts(job.data),
        "tracker_run_id": _tracker_run(job),
    }
    return Result(observed, {"train_loss_first": log[0]["loss"], "train_loss_last": log[-1]["loss"]})


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _tracker_run(job: Job) -> str | None:
    if job.placement.get("tracking") == "wandb":
        import wandb

        return wandb.run.id if wandb.run else None
    if job.placement.get("tracking") == "trackio":
        import trackio

        run = trackio.context_vars.current_run.get()
        return str(run.name) if run else None
    return None


def is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
