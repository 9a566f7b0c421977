"""Save, find, validate and load the checkpoints of a training.

    results/<stage>/<cell>/<key>/checkpoint/step-00000120/     beside out/, removed once the result is published

transformers' Trainer writes and reads the files. This module decides when one is saved and which may be resumed from.
A checkpoint is saved when the placement's `checkpoint_minutes` have passed, and on SIGTERM (a preempted job, or one
that is out of time), after which the job ends without a record and the same command resumes. It is written in the
job's own workspace and moved by rename, so two jobs of one key never write into the same one.
"""

import json
import os
import pickle
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workflow.stage import CHECKPOINT, Job, StageError
from workflow.store import list_files
from workflow.train import parallel
from workflow.train.model_files import is_pickle_with_code

KEEP = 2  # the newest and the one before it, should the disk fail under the newest
MANIFEST = "whole.json"
_OUTPUT_DIR = "saving"
_PLACED = (
    *("world_size", "nodes", "strategy"),
    *("per_device_train_batch_size", "tokens_per_device", "kernels"),
    *("gradient_checkpointing", "checkpoint_layers", "attn_implementation"),
)
_NO_CODE = (".json", ".safetensors", ".jinja", ".txt")  # everything else is read as a pickle


@dataclass(frozen=True)
class ResumeState:
    """What this process did not do itself: the step it resumed from, and the seconds that went before."""

    step: int
    seconds: float


def output_dir(job: Job) -> Path:
    """The trainer's `output_dir`: one for all ranks, in the workspace, which a later job of this host clears away."""
    return job.out / _OUTPUT_DIR


def train(trainer: Any, job: Job) -> ResumeState:
    """Run `trainer.train()` from the newest valid checkpoint, and save checkpoints on the way.

    Raises:
        StageError: a checkpoint holds code, or the disk has no room for checkpoints and result.
        SystemExit: SIGTERM came; a checkpoint was saved.
    """
    made_with = describe(job)
    folder = job.out.parent / CHECKPOINT
    start, seconds_before = _agree_on_start(trainer, job, folder, made_with)
    _check_room(trainer, job)
    first = step_of(start) if start else 0
    saver = _Saver(job, folder, made_with, first, seconds_before, time.monotonic())
    trainer.add_callback(saver.callback(trainer))
    with saver.catch_sigterm():
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):  # torch's way to say that the disk is full
                raise
            raise StageError(f"the disk is full ({output_dir(job)}). Free some space and run again.") from None
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        shutil.rmtree(output_dir(job), ignore_errors=True)
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if saver.sigterm_received and step < steps:
        print(f"SIGTERM: saved after step {step} of {steps}; the same command resumes", file=sys.stderr, flush=True)
        raise SystemExit(parallel.STOPPED)
    return ResumeState(first, seconds_before + time.monotonic() - saver.began)


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


def newest(folder: Path, made_with: dict[str, Any]) -> Path | None:
    """Find the newest valid checkpoint made under the same conditions; print why others are passed over.

    Raises:
        StageError: one of them holds a pickle that would run code.
    """
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints:
        _refuse_code(checkpoint)
    for checkpoint in checkpoints:
        problem = fault(checkpoint, made_with)
        if problem is None:
            return checkpoint
        print(f"{checkpoint}: {problem}; it is not used", file=sys.stderr, flush=True)
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """List checkpoints, the newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read what was written beside the files: the conditions, the seconds of training before it, the files' sizes."""
    return json.loads((checkpoint / MANIFEST).read_text())


def fault(checkpoint: Path, made_with: dict[str, Any]) -> str | None:
    """Say why a checkpoint cannot be used, if it cannot."""
    try:
        manifest = read_manifest(checkpoint)
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return "torn: its manifest or the trainer's state cannot be read"
    for name, size in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            return f"torn: {name} is not the {size} bytes that were written"
    if state["global_step"] != step_of(checkpoint):
        return f"the trainer's state is of step {state['global_step']}"
    differing = [name for name, value in made_with.items() if manifest["made_with"].get(name) != value]
    return f"made with another {', another '.join(differing)}" if differing else None


def _refuse_code(checkpoint: Path) -> None:
    """Read every pickle by torch's restricted unpickler before the trainer does, which reads them in the same way."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for name in list_files(checkpoint):
        file = checkpoint / name
        if file.suffix in _NO_CODE:
            continue
        if is_pickle_with_code(file):  # of any protocol: the older ones are text, which torch reads too
            raise StageError(
                f"{file}: a pickle that holds more than tensors and would run code; it was not loaded. Find out who "
                f"wrote it, then remove {checkpoint.parent} to train afresh."
            )
        if not zipfile.is_zipfile(file):
            continue  # torn: the trainer's files are zip archives
        try:
            with safe_globals():  # numpy's arrays, as the state of numpy's random numbers holds one
                torch.load(file, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            what = next((line.strip() for line in str(error).splitlines() if "global" in line.lower()), "")
            raise StageError(
                f"{file}: a pickle that holds more than tensors and would run code; it was not loaded ({what}). "
                f"Find out who wrote it, then remove {checkpoint.parent} to train afresh."
            ) from None
        except (RuntimeError, EOFError, OSError, KeyError):
            continue  # torn: its size tells


# --- load -----------------------------------------------------------------------------------------------------------


def _agree_on_start(trainer: Any, job: Job, folder: Path, made_with: dict[str, Any]) -> tuple[Path | None, float]:
    """Let the first rank choose the checkpoint: another could see another state of a shared disk."""
    from accelerate.utils import broadcast_object_list

    choice: list[Any] = [None]
    if trainer.accelerator.is_main_process:
        start = _hold(folder, output_dir(job), made_with)
        choice = [(str(start), read_manifest(start)["seconds"]) if start else None]
        if start:
            print(f"resuming from {folder / start.name}", file=sys.stderr, flush=True)
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(choice)
    return (Path(choice[0][0]), choice[0][1]) if choice[0] else (None, 0.0)


def _hold(folder: Path, into: Path, made_with: dict[str, Any]) -> Path | None:
    """Link the newest valid checkpoint into this job's workspace.

    Another job of the key, which outlived its Snakemake, removes them all when it is done; and the trainer would
    resume from half a checkpoint without a word.
    """
    while (start := newest(folder, made_with)) is not None:
        held = into / start.name
        try:
            shutil.copytree(start, held, copy_function=os.link)
        except OSError:  # it went away, or this disk has no links
            shutil.rmtree(held, ignore_errors=True)
            if fault(start, made_with) is None:
                return start
            continue
        if fault(held, made_with) is None:
            return held
        shutil.rmtree(held)
    return None


# --- save -----------------------------------------------------------------------------------------------------------


@dataclass
class _Saver:
    job: Job
    folder: Path
    made_with: dict[str, Any]
    first: int
    seconds_before: float
    began: float
    sigterm_received: bool = False
    saved_at: float = 0.0

    @contextmanager
    def catch_sigterm(self) -> Iterator[None]:
        def on_sigterm(signum: int, frame: Any) -> None:
            self.sigterm_received = True  # looked at when the step is done

        self.saved_at = time.monotonic()
        previous = signal.signal(signal.SIGTERM, on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def callback(self, trainer: Any) -> Any:
        from transformers import TrainerCallback

        saver = self

        class Save(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step != saver.first:
                    at = f"step {state.global_step}, not from the checkpoint of step {saver.first}"
                    raise StageError(f"the trainer starts from {at}. Run again.")

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                should_stop, should_save = saver.agree(trainer.accelerator)
                control.should_save = control.should_save or should_stop or should_save
                control.should_training_stop = control.should_training_stop or should_stop

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                saver.save(trainer.accelerator, state.global_step)

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

    def save(self, accelerator: Any, step: int) -> None:
        """Write the manifest beside the trainer's files and move them to where a later job looks for them."""
        self.saved_at = time.monotonic()
        accelerator.wait_for_everyone()  # each rank has written its random numbers
        if not accelerator.is_main_process:
            return
        written = output_dir(self.job) / f"checkpoint-{step}"
        for name in ("training_args.bin", "README.md"):  # a pickle of an object, and a card with this machine's paths
            (written / name).unlink(missing_ok=True)
        sizes = {name: (written / name).stat().st_size for name in list_files(written)}
        for name in sizes:
            with open(written / name, "rb") as file:
                os.fsync(file.fileno())  # the manifest must not outlive what it vouches for
        seconds = round(self.seconds_before + time.monotonic() - self.began, 3)
        manifest = {"made_with": self.made_with, "seconds": seconds, "files": sizes}
        (written / MANIFEST).write_text(json.dumps(manifest, indent=1))
        self.folder.mkdir(exist_ok=True)
        target = self.folder / f"step-{step:08d}"
        if target.exists() and fault(target, self.made_with) is not None:
            shutil.rmtree(target)
        if target.exists():  # another job of this key was here first
            shutil.rmtree(written)
        else:
            os.rename(written, target)
        self._rotate()

    def _rotate(self) -> None:
        checkpoints = list_checkpoints(self.folder)
        usable = [p for p in checkpoints if fault(p, self.made_with) is None]
        for checkpoint in checkpoints:
            if checkpoint not in usable[:KEEP]:
                shutil.rmtree(checkpoint, ignore_errors=True)


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
