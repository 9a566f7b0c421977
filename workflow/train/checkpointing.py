"""Save checkpoints of a training, and resume from the newest that is whole and was made under the same conditions.

    results/<stage>/<cell>/<key>/checkpoint/checkpoint-120/     beside out/, removed once the result is published

transformers' Trainer writes, rotates and reads the files; it reads pickles by torch's restricted unpickler. This module
says when: each time the placement's `checkpoint_minutes` have passed, and on SIGTERM (a preempted job, or one that is
out of time), after which the job ends without a record and the same command resumes.
"""

import json
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workflow.stage import CHECKPOINT, Job, StageError
from workflow.store import list_files
from workflow.train import parallel

KEEP = 2  # the newest and the one before it, should the disk fail under the newest
MANIFEST = "whole.json"  # written last
_PLACED = (
    *("world_size", "nodes", "strategy"),
    *("per_device_train_batch_size", "tokens_per_device", "kernels"),
    *("gradient_checkpointing", "checkpoint_layers", "attn_implementation"),
)


@dataclass(frozen=True)
class ResumeState:
    """What this process did not do itself: the step it resumed from, and the seconds that went before."""

    step: int
    seconds: float


def output_dir(job: Job) -> Path:
    """The trainer's `output_dir`: one for all ranks, kept when the job is killed."""
    return job.out.parent / CHECKPOINT


def train(trainer: Any, job: Job) -> ResumeState:
    """Run `trainer.train()` from the newest valid checkpoint, and save checkpoints on the way.

    Raises:
        StageError: a checkpoint holds code, or the disk has no room for checkpoints and result.
        SystemExit: SIGTERM came; a checkpoint was saved.
    """
    made_with = describe(job)
    start, seconds_before = _agree_on_start(trainer, output_dir(job), made_with)
    _check_room(trainer, job)
    saver = _Saver(job, made_with, step_of(start) if start else 0, seconds_before)
    trainer.add_callback(saver.callback(trainer))
    with saver.catch_sigterm():
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except pickle.UnpicklingError:
            raise StageError(
                f"{start}: a file of it is a pickle that holds more than tensors and would run code; it was not "
                f"loaded. Find out who wrote it, then remove {output_dir(job)} to train afresh."
            ) from None
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):  # torch's way to say that the disk is full
                raise
            raise StageError(f"the disk is full ({output_dir(job)}). Free some space and run again.") from None
        finally:
            with suppress(OSError):
                output_dir(job).rmdir()  # if it is empty
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if saver.sigterm_received and step < steps:
        print(f"SIGTERM: saved after step {step} of {steps}; the same command resumes", file=sys.stderr, flush=True)
        raise SystemExit(parallel.STOPPED)
    return ResumeState(saver.first, saver.seconds())


# --- find and validate ----------------------------------------------------------------------------------------------


def describe(job: Job) -> dict[str, Any]:
    """Describe what must be equal before and after: one placement, one set of parents' bytes, one set of packages."""
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}
    return {
        "key": job.recipe.key,
        "parents": [parent.record.digest for parent in job.parents],
        "placement": {name: job.placement.get(name) for name in _PLACED},
        "packages": packages,
    }


def list_checkpoints(folder: Path) -> list[Path]:
    """List checkpoints, the newest first."""
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def fault(checkpoint: Path, made_with: dict[str, Any]) -> str | None:
    """Say why a checkpoint cannot be used, if it cannot."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return "torn: its manifest cannot be read"
    for name, size in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            return f"torn: {name} is not the {size} bytes that were written"
    differing = [name for name, value in made_with.items() if manifest["made_with"].get(name) != value]
    return f"made with another {', another '.join(differing)}" if differing else None


def _agree_on_start(trainer: Any, folder: Path, made_with: dict[str, Any]) -> tuple[Path | None, float]:
    """Let the first rank choose the newest valid checkpoint, and remove those that are not: no rank sees another."""
    from accelerate.utils import broadcast_object_list

    choice: list[Any] = [None, 0.0]
    if trainer.accelerator.is_main_process:
        for checkpoint in list_checkpoints(folder):
            if (problem := fault(checkpoint, made_with)) is not None:
                print(f"{checkpoint}: {problem}; it is removed", file=sys.stderr, flush=True)
                shutil.rmtree(checkpoint)
            elif choice[0] is None:
                choice = [str(checkpoint), json.loads((checkpoint / MANIFEST).read_text())["seconds"]]
                print(f"resuming from {checkpoint}", file=sys.stderr, flush=True)
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(choice)
    return (Path(choice[0]) if choice[0] else None), choice[1]


# --- save -----------------------------------------------------------------------------------------------------------


class _Saver:
    """Says when to save and to stop, and writes the manifest beside the trainer's files."""

    def __init__(self, job: Job, made_with: dict[str, Any], first: int, seconds_before: float):
        self.job, self.made_with, self.first, self.seconds_before = job, made_with, first, seconds_before
        self.began = self.saved_at = time.monotonic()
        self.sigterm_received = False

    def seconds(self) -> float:
        """Seconds of training, those before this process included."""
        return self.seconds_before + time.monotonic() - self.began

    @contextmanager
    def catch_sigterm(self) -> Iterator[None]:
        def on_sigterm(signum: int, frame: Any) -> None:
            self.sigterm_received = True  # looked at when the step is done

        previous = signal.signal(signal.SIGTERM, on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def callback(self, trainer: Any) -> Any:
        from transformers import TrainerCallback

        saver = self

        class Save(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                should_stop, should_save = saver.agree(trainer.accelerator)
                control.should_save = control.should_save or should_stop or should_save
                control.should_training_stop = control.should_training_stop or should_stop

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                saver.write_manifest(trainer.accelerator, state.global_step)

        return Save()

    def agree(self, accelerator: Any) -> tuple[bool, bool]:
        """Decide whether to stop and whether to save, the same on every rank: one that is told tells all."""
        minutes = self.job.placement.get("checkpoint_minutes")
        should_save = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        if accelerator.num_processes > 1:
            import torch

            votes = torch.tensor([float(self.sigterm_received), float(should_save)], device=accelerator.device)
            stop, save = accelerator.reduce(votes, "sum").tolist()
            self.sigterm_received, should_save = stop > 0, save > 0
        return self.sigterm_received, should_save

    def write_manifest(self, accelerator: Any, step: int) -> None:
        """Write down the conditions and the files' sizes, once all ranks have written theirs."""
        self.saved_at = time.monotonic()
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            return
        written = output_dir(self.job) / f"checkpoint-{step}"
        for name in ("training_args.bin", "../README.md"):  # a pickle of an object, and TRL's card with our paths
            (written / name).unlink(missing_ok=True)
        sizes = {name: (written / name).stat().st_size for name in list_files(written)}
        for name in sizes:
            with open(written / name, "rb") as file:
                os.fsync(file.fileno())  # the manifest must not outlive what it vouches for
        manifest = {"made_with": self.made_with, "seconds": round(self.seconds(), 3), "files": sizes}
        part = written / f"{MANIFEST}.part"
        part.write_text(json.dumps(manifest, indent=1))
        os.replace(part, written / MANIFEST)


def _check_room(trainer: Any, job: Job) -> None:
    """Refuse to start where the first save would fail: weights, two moments each, and the result itself.

    Raises:
        StageError: the disk is too small.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in trainer.model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    weights = trained if hasattr(trainer.model, "peft_config") else sum(size for size, _ in sizes)
    kept = KEEP + 1 if job.placement.get("checkpoint_minutes") is not None else 1
    copies = 2 if parallel.placed(job) == "fsdp2" else 1  # the model's own files, and those that accelerate reads
    need = kept * (copies * weights + 2 * trained) + weights
    free = shutil.disk_usage(job.out).free
    if free < need:
        raise StageError(
            f"the disk of {job.out.parent} has {free / 1e9:.1f} GB free; checkpoints and result take up to "
            f"{need / 1e9:.1f} GB. Free some space and run again."
        )
