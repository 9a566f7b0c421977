"""Hold a model's folder and what was loaded from it against what a model is: settings, safetensors, every tensor.

A pickle runs code when it is read, and so does a class that a folder brings along; a tensor that a file lacks is filled
with random numbers, and the run goes on.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow.stage import StageError

# What a model's folder may hold. `.model` and `.tiktoken` are vocabularies, which are no pickles.
_HARMLESS = {".json", ".safetensors", ".txt", ".jinja", ".md", ".model", ".tiktoken", ".gitattributes", ".jsonl"}
_NAMES_CODE = ("auto_map", "custom_pipelines")


def check_model_folder(folder: Path) -> None:
    """Refuse a model's folder that brings code or pickles along, or has no safetensors.

    Raises:
        StageError: the first file at fault, and what to do.
    """
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.relative_to(folder).parts):
        name = file.relative_to(folder)
        if file.suffix in (".py", ".so", ".pyc"):
            raise StageError(f"{folder}: {name} is code, which no model needs here. Take a model that has none.")
        if file.suffix not in _HARMLESS and file.name not in ("LICENSE", ".gitattributes", "NOTICE"):
            raise StageError(
                f"{folder}: {name} may be a pickle, which runs code when it is read; only safetensors and settings are "
                "read here. Remove it, or save the model anew with `save_pretrained`."
            )
        if file.suffix == ".json":
            _check_settings(file)
    if not list(folder.glob("*.safetensors")):
        raise StageError(f"{folder}: no .safetensors file in it. Save the model with `save_pretrained`.")


def _check_settings(file: Path) -> None:
    try:
        settings = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StageError(f"{file}: not JSON ({type(error).__name__}). Fetch the model again.") from None
    for field in _NAMES_CODE:
        if isinstance(settings, dict) and settings.get(field):
            raise StageError(
                f"{file}: `{field}` names code that would be run. Take a model whose class is in transformers."
            )


def check_loaded(folder: Path, loading: dict[str, Any]) -> None:
    """Refuse a model of which a tensor was not in its files.

    Args:
        loading: what `from_pretrained(..., output_loading_info=True)` returns beside the model. Tied weights are not
            counted as missing there.

    Raises:
        StageError: the first tensors that are missing or have another shape.
    """
    mismatched = [key[0] if isinstance(key, tuple) else str(key) for key in loading.get("mismatched_keys") or ()]
    for what, keys in (("lacks", sorted(loading.get("missing_keys") or ())), ("has another shape of", mismatched)):
        if keys:
            some = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise StageError(
                f"{folder}: its safetensors {what} {some}, which would be random numbers. The files are cut or of "
                "another model: fetch or save it again."
            )


@contextmanager
def refuse_missing_adapter_tensors(folder: Path) -> Iterator[None]:
    """PEFT warns where an adapter's file lacks a tensor, and leaves it at its start; here that is an error.

    Raises:
        StageError: it warned.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Mm]issing adapter keys.*")
        try:
            yield
        except UserWarning as warning:
            keys = str(warning).rpartition("checkpoint: ")[2][:200]
            raise StageError(
                f"{folder}: its safetensors lack {keys}, which would stay as they began. The file is cut, or of "
                "another model: train it again."
            ) from None
