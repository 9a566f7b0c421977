"""Load the model of an evaluation once, and lend it to several cells, each with its own adapter."""

import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow.errors import UserError
from workflow.keys import Recipe
from workflow.stage import Job, Result, StageError
from workflow.train.model_files import check_model_folder, refuse_missing_adapter_tensors
from workflow.train.models import load_model, load_tokenizer, quiet

EFFECTIVE = "effective.json"  # beside a stage's outputs: settings as they were read back from what ran
Make = Callable[[Job, Any, Any], Result]  # of one cell: its job, the model in eval mode, the tokenizer


def run_each(jobs: Sequence[Job], make: Make) -> Iterator[tuple[Job, Result | Exception]]:
    """Make cells one after another with one base model, exchanging adapters.

    Random numbers are reset for each cell, and the base weights are never changed: a cell alone and together with
    others has the same bytes on a CPU. A failure is that of its own cell; after memory ran out no more are made.

    Args:
        jobs: cells of one stage whose first parent is the same model.

    Yields:
        Each job as soon as it is done, with its result or the error.
    """
    import torch

    base, tokenizer = load_base(jobs[0])
    for job in jobs:
        result: Result | Exception
        out_of_memory = False
        try:
            with adapted(base, job) as model:
                torch.manual_seed(0)
                result = make(job, model, tokenizer)
        except (torch.OutOfMemoryError, MemoryError):
            result, out_of_memory = StageError("memory ran out. Lower batch_size in the stage's placement."), True
        except (UserError, OSError) as error:
            result = error
        yield job, result
        if out_of_memory:
            return


def run_one(results: Iterator[tuple[Job, Result | Exception]]) -> Result:
    """The result of a single job that went through the way of several."""
    ((_, result),) = results
    if isinstance(result, Exception):
        raise result
    return result


def load_base(job: Job) -> tuple[Any, Any]:
    """The first parent's model in eval mode, on the GPU if there is one, and its tokenizer, which pads on the left."""
    import torch

    quiet()
    folder = model_folder(job)
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    model = load_model(folder, declared_dtype(folder), job.placement["attn_implementation"])
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places of sequences in batches of like length, shortest first; prints how far it is."""
    order = sorted(range(len(lengths)), key=lambda n: lengths[n])
    for start in range(0, len(order), size):
        yield order[start : start + size]
        if start // size % 50 == 0:
            print(f"{min(start + size, len(order))}/{len(order)} sequences", file=sys.stderr, flush=True)


def positioned(batch: Any) -> dict[str, Any]:
    """A left-padded batch with the position of each token counted from the first real one: without them the positions
    of a sequence depend on what it is padded to."""
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


@contextmanager
def adapted(base: Any, job: Job) -> Iterator[Any]:
    """The base with the cell's adapter around it, or as it is; afterwards it is as it was."""
    import torch
    from peft import PeftModel

    adapter = adapter_folder(job)
    if adapter is None:
        yield base
        return
    check_model_folder(adapter)
    with refuse_missing_adapter_tensors(adapter):
        model = PeftModel.from_pretrained(base, adapter)
    try:
        yield model.to(base.device).eval()
    finally:
        model.unload()
        base.requires_grad_(True)  # as it was loaded: PyTorch's CPU kernels round differently for frozen weights
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def model_folder(job: Job) -> Path:
    return job.parents[0].out / "model"


def adapter_folder(job: Job) -> Path | None:
    """Of a cell after EM; it is the result of the second parent."""
    return job.parents[1].out / "adapter" if len(job.parents) > 1 else None


# --- declared against effective -------------------------------------------------------------------------------------


def declared_dtype(model: Path) -> str:
    """Data type that the weights in that folder are in."""
    config = json.loads((model / "config.json").read_text())
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def declared_adapter(folder: Path | None) -> dict[str, Any] | None:
    """Rank and scale of an adapter, as its own settings say."""
    if folder is None:
        return None
    settings = json.loads((folder / "adapter_config.json").read_text())
    return {name: settings[name] for name in ("r", "lora_alpha", "use_rslora")}


def effective_model(model: Any) -> dict[str, Any]:
    """Data type, and rank and scale of the adapter, as they are in the model that answers."""
    from peft import PeftModel

    adapter = None
    if isinstance(model, PeftModel):
        config: Any = model.peft_config[model.active_adapter]
        adapter = {name: getattr(config, name) for name in ("r", "lora_alpha", "use_rslora")}
    return {"dtype": str(model.dtype).removeprefix("torch."), "adapter": adapter}


def save_effective(job: Job, effective: dict[str, Any], faults: Callable[[Recipe, Path], list[str]]) -> None:
    """Write down what was in effect, and refuse the cell if it is not what was declared.

    Args:
        effective: at least `dtype` and `adapter`, as `effective_model` gives them.
        faults: holds the stage's outputs against its recipe.

    Raises:
        StageError: the first difference.
    """
    declared = {"dtype": declared_dtype(model_folder(job)), "adapter": declared_adapter(adapter_folder(job))}
    differences = [
        f"{name} {value} declared, {effective[name]} in effect"
        for name, value in declared.items()
        if effective[name] != value != "auto"
    ]
    (job.out / EFFECTIVE).write_text(json.dumps(effective, sort_keys=True) + "\n")
    if differences := differences + faults(job.recipe, job.out):
        raise StageError(f"what ran is not what was declared: {differences[0]}.")


def read_effective(out: Path) -> dict[str, Any] | None:
    """What `save_effective` wrote; None for a result of before."""
    path = out / EFFECTIVE
    return json.loads(path.read_text()) if path.is_file() else None


def adapter_faults(recipe: Recipe, effective: dict[str, Any] | None) -> list[str]:
    """An adapter where the recipe has none, or none where it has one."""
    if effective is None or (effective["adapter"] is not None) == (len(recipe.parents) > 1):
        return []
    return [f"{len(recipe.parents)} parents declared, adapter {effective['adapter']} in effect"]
