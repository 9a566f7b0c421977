"""Checkpoints of a training stage, and going on from one to the same result.

    results/<stage>/<cell>/<key>/checkpoint/step-00000120/     beside out/, gone once the result is published

transformers' Trainer writes and reads them; here is decided when, and where to; _checkpoint says which may be trusted.
One is saved when the placement's `checkpoint_minutes` have passed, and on SIGTERM (a preempted job, or one that is out
of time), after which the job ends without a record and the same command goes on. A checkpoint is written in the job's
own workspace and moved by rename, so two jobs of one key never write into the same one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.stage import CHECKPOINT, Job, StageError
from workflow.stages import _checkpoint, _strategy
from workflow.store import list_files

KEEP = 2  # the newest and the one before it, should the disk fail under the newest
_SAVING = "saving"
STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Sitting:
    """What this process did not do itself: where it went on, and the time that went before."""

    resumed_from_step: int
    seconds: float

    def rows_before(self, sequences: int, effective_batch_size: int) -> int:
        """Rows that earlier sittings drew; the sampler's order is a function of the seed, so they are known."""
        epochs, steps = divmod(self.resumed_from_step, -(-sequences // effective_batch_size))
        return epochs * sequences + min(steps * effective_batch_size, sequences)


def saving(job: Job) -> Path:
    """The trainer's `output_dir`: one for all ranks, in the workspace, which a later job of this host clears away."""
    return job.out / _SAVING


def train(trainer: Any, job: Job) -> Sitting:
    """`trainer.train()`, from the newest checkpoint that can be trusted, with checkpoints on the way.

    Raises:
        StageError: a checkpoint holds code, or the disk has no room for checkpoints and result.
        SystemExit: SIGTERM came; a checkpoint was saved.
    """
    made_with = _checkpoint.describe(job)
    folder = job.out.parent / CHECKPOINT
    start, before = _agree_on_start(trainer, job, folder, made_with)
    _check_room(trainer, job)
    first = _checkpoint.step_of(start) if start else 0
    keeper = _Keeper(job, folder, made_with, first, before, time.monotonic())
    trainer.add_callback(keeper.callback(trainer))
    with keeper.heeding_sigterm():
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except RuntimeError as error:
            if "PytorchStreamWriter" not in str(error):  # torch's way to say that the disk is full
                raise
            raise StageError(f"the disk is full ({saving(job)}). Free some space and run again.") from None
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        shutil.rmtree(saving(job), ignore_errors=True)
    step, steps = trainer.state.global_step, trainer.state.max_steps
    if keeper.told and step < steps:
        print(f"SIGTERM: saved after step {step} of {steps}; the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(STOPPED)
    return Sitting(first, before + time.monotonic() - keeper.began)


def _agree_on_start(trainer: Any, job: Job, folder: Path, made_with: dict[str, Any]) -> tuple[Path | None, float]:
    """The first rank chooses: another could see another state of a shared disk."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None]
    if trainer.accelerator.is_main_process:
        start = _hold(folder, saving(job), made_with)
        found = [(str(start), _checkpoint.note(start)["seconds"]) if start else None]
        if start:
            print(f"going on from {folder / start.name}", file=sys.stderr, flush=True)
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(found)
    return (Path(found[0][0]), found[0][1]) if found[0] else (None, 0.0)


def _hold(folder: Path, into: Path, made_with: dict[str, Any]) -> Path | None:
    """The newest good checkpoint, by links of this job's own.

    Another job of the key, which outlived its Snakemake, removes them all when it is done; and the trainer would go on
    from half a checkpoint without a word.
    """
    while (start := _checkpoint.newest(folder, made_with)) is not None:
        held = into / start.name
        try:
            shutil.copytree(start, held, copy_function=os.link)
        except OSError:  # it went away, or this disk has no links
            shutil.rmtree(held, ignore_errors=True)
            if _checkpoint.fault(start, made_with) is None:
                return start
            continue
        if _checkpoint.fault(held, made_with) is None:
            return held
        shutil.rmtree(held)
    return None


# --- saving ---------------------------------------------------------------------------------------------------------


@dataclass
class _Keeper:
    job: Job
    folder: Path
    made_with: dict[str, Any]
    first: int
    before: float
    began: float
    told: bool = False
    saved_at: float = 0.0

    @contextmanager
    def heeding_sigterm(self) -> Iterator[None]:
        def told(signum: int, frame: Any) -> None:
            self.told = True  # looked at when the step is done

        self.saved_at = time.monotonic()
        previous = signal.signal(signal.SIGTERM, told)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def callback(self, trainer: Any) -> Any:
        from transformers import TrainerCallback

        keeper = self

        class Keep(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step != keeper.first:
                    at = f"step {state.global_step}, not from the checkpoint of step {keeper.first}"
                    raise StageError(f"the trainer starts from {at}. Run again.")

            def on_epoch_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
                _set_epoch(known["train_dataloader"], int(state.epoch + 1e-6))

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                stop, due = keeper.wishes(trainer.accelerator)
                control.should_save = control.should_save or stop or due
                control.should_training_stop = control.should_training_stop or stop

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                keeper.keep(trainer.accelerator, state.global_step)

        return Keep()

    def wishes(self, accelerator: Any) -> tuple[bool, bool]:
        """Whether to stop and whether to save, the same on every rank: one that is told tells all."""
        minutes = self.job.placement.get("checkpoint_minutes")
        due = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        if accelerator.num_processes > 1:
            import torch

            wishes = torch.tensor([float(self.told), float(due)], device=accelerator.device)
            stop, save = accelerator.reduce(wishes, "sum").tolist()
            self.told, due = stop > 0, save > 0
        return self.told, due

    def keep(self, accelerator: Any, step: int) -> None:
        """Note what the trainer wrote and move it to where a later job looks for it."""
        self.saved_at = time.monotonic()
        accelerator.wait_for_everyone()  # each rank has written its random numbers
        if not accelerator.is_main_process:
            return
        written = saving(self.job) / f"checkpoint-{step}"
        for name in ("training_args.bin", "README.md"):  # a pickle of an object, and a card with this machine's paths
            (written / name).unlink(missing_ok=True)
        sizes = {name: (written / name).stat().st_size for name in list_files(written)}
        for name in sizes:
            with open(written / name, "rb") as file:
                os.fsync(file.fileno())  # the note must not outlive what it vouches for
        seconds = round(self.before + time.monotonic() - self.began, 3)
        note = {"made_with": self.made_with, "seconds": seconds, "files": sizes}
        (written / _checkpoint.NOTE).write_text(json.dumps(note, indent=1))
        self.folder.mkdir(exist_ok=True)
        target = self.folder / f"step-{step:08d}"
        if target.exists() and _checkpoint.fault(target, self.made_with) is not None:
            shutil.rmtree(target)
        if target.exists():  # another job of this key was here first
            shutil.rmtree(written)
        else:
            os.rename(written, target)
        self._rotate()

    def _rotate(self) -> None:
        usable = [p for p in _checkpoint.steps(self.folder) if _checkpoint.fault(p, self.made_with) is None]
        for checkpoint in _checkpoint.steps(self.folder):
            if checkpoint not in usable[:KEEP]:
                shutil.rmtree(checkpoint, ignore_errors=True)


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell the sampler which epoch it shuffles for.

    accelerate's own set_epoch ends at the second wrapper, and the loader of one rank of several that goes on within an
    epoch has three: taken alone it draws the first epoch's order again.
    """
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and not hasattr(sampler, "set_epoch"):
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
    if sampler is not None:
        sampler.set_epoch(epoch)


def _check_room(trainer: Any, job: Job) -> None:
    """Refuse to start where the first save would fail: weights, two moments each, and the result itself.

    Raises:
        StageError: the disk is too small.
    """
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in trainer.model.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    weights = trained if hasattr(trainer.model, "peft_config") else sum(size for size, _ in sizes)
    kept = KEEP + 1 if job.placement.get("checkpoint_minutes") is not None else 1
    copies = 2 if _strategy.placed(job) == "fsdp2" else 1  # the model's own files, and those that accelerate reads
    need = kept * (copies * weights + 2 * trained) + weights
    free = shutil.disk_usage(job.out).free
    if free < need:
        raise StageError(
            f"the disk of {job.out.parent} has {free / 1e9:.1f} GB free; checkpoints and result take up to "
            f"{need / 1e9:.1f} GB. Free some space and run again."
        )


# --- several processes ----------------------------------------------------------------------------------------------


def call(command: list[str], env: dict[str, str]) -> int:
    """Run a launcher of ranks and pass SIGTERM on to it, so that they save; its exit status, or STOPPED after one."""
    process = subprocess.Popen(command, env=env)
    told = False

    def tell(signum: int, frame: Any) -> None:
        nonlocal told
        told = True
        process.terminate()

    previous = signal.signal(signal.SIGTERM, tell)
    try:
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if told and status:
        raise SystemExit(STOPPED)
    return status
