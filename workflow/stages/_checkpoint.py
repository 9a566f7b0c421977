"""Which checkpoint of a training may be gone on from: a whole one, made in the same way, without code in it."""

import json
import pickle
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workflow.stage import Job, StageError
from workflow.store import list_files

NOTE = "whole.json"
_PLACED = (
    *("world_size", "nodes", "strategy"),
    *("per_device_train_batch_size", "gradient_checkpointing", "attn_implementation"),
)
_NO_CODE = (".json", ".safetensors", ".jinja", ".txt")  # everything else is read as a pickle


def describe(job: Job) -> dict[str, Any]:
    """What must be the same before and after: a result is made by one placement, from one set of bytes and packages."""
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "peft", "accelerate")}
    return {
        "key": job.recipe.key,
        "parents": [parent.record.digest for parent in job.parents],
        "placement": {name: job.placement.get(name) for name in _PLACED},
        "packages": packages,
    }


def newest(folder: Path, made_with: dict[str, Any]) -> Path | None:
    """The newest whole checkpoint made under the same conditions; others are passed over, and why is told.

    Raises:
        StageError: one of them holds a pickle that would run code.
    """
    found = steps(folder)
    for checkpoint in found:
        _refuse_code(checkpoint)
    for checkpoint in found:
        wrong = fault(checkpoint, made_with)
        if wrong is None:
            return checkpoint
        print(f"{checkpoint}: {wrong}; it is not used", file=sys.stderr, flush=True)
    return None


def steps(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def note(checkpoint: Path) -> dict[str, Any]:
    """What was written beside the files: with what they were made, after how many seconds, and their sizes."""
    return json.loads((checkpoint / NOTE).read_text())


def fault(checkpoint: Path, made_with: dict[str, Any]) -> str | None:
    """Why a checkpoint cannot be used, if it cannot."""
    try:
        said = note(checkpoint)
        state = json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return "torn: its note or the trainer's state cannot be read"
    for name, size in said["files"].items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            return f"torn: {name} is not the {size} bytes that were written"
    if state["global_step"] != step_of(checkpoint):
        return f"the trainer's state is of step {state['global_step']}"
    differing = [name for name, value in made_with.items() if said["made_with"].get(name) != value]
    return f"made with another {', another '.join(differing)}" if differing else None


def _refuse_code(checkpoint: Path) -> None:
    """Read every pickle by torch's restricted unpickler before the trainer does, which reads them in the same way."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for name in list_files(checkpoint):
        file = checkpoint / name
        if file.suffix in _NO_CODE:
            continue
        with open(file, "rb") as opened:
            is_pickle = opened.read(1) == b"\x80"
        if not is_pickle and not zipfile.is_zipfile(file):
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
