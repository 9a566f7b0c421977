"""Models and tokenizers on disk: loaded and saved the same way by every stage and evaluation."""

import json
import shutil
from pathlib import Path
from typing import Any

from workflow.errors import describe_os_error
from workflow.keys import hash_bytes
from workflow.stage import StageError
from workflow.train import attention
from workflow.train.model_files import check_loaded, check_model_folder


def quiet() -> None:
    """Logs hold facts, not bars."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def load_model(folder: Path, dtype: str, attn_implementation: str, gpu: int | None = None) -> Any:
    """A causal LM from a result's `model/` folder; straight to a GPU, if one is named.

    Args:
        dtype: torch's name of a data type, or "auto": as the weights are.

    Raises:
        StageError: the folder holds code or a pickle, or lacks a tensor of the model.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    check_model_folder(folder)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device_map=None if gpu is None else {"": gpu},
        local_files_only=True,
        ignore_mismatched_sizes=True,  # told in `loading`, with the tensor's name
        output_loading_info=True,
    )
    model, loading = loaded
    check_loaded(folder, loading)
    return model


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_template(tokenizer: Any) -> None:
    """A template that slips in a system prompt of its own is refused: rendering must be what the messages say."""
    user = [{"role": "user", "content": "u"}]
    system = [{"role": "system", "content": "s"}]
    alone = tokenizer.apply_chat_template(user, tokenize=False)
    with_system = tokenizer.apply_chat_template(system + user, tokenize=False)
    if not with_system.endswith(alone.removeprefix(tokenizer.bos_token or "")):
        raise StageError(f"the chat template adds a system prompt of its own: {alone!r}. Use one that does not.")


def template_md5(tokenizer: Any) -> str:
    return hash_bytes(tokenizer.chat_template.encode(), "md5")


def data_facts(data: Path) -> dict[str, Any]:
    """What was counted when the data set was built: rows, unique questions, what was left out and why."""
    note = data.with_suffix(".json")
    return json.loads(note.read_text()) if note.is_file() else {}


def save(model: Any, tokenizer: Any, folder: Path, dtype: str | None = None) -> None:
    """Weights as safetensors, settings as JSON; nothing that holds a path, a time or a pickle.

    Raises:
        StageError: the disk is at fault; safetensors reports that in words of its own.
    """
    import torch
    from safetensors import SafetensorError

    try:
        if dtype is not None:
            model = model.to(getattr(torch, dtype))
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        if (told := describe_os_error(error, folder)) is None:
            raise
        raise StageError(told) from None
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card names a path of this machine
    settings = folder / "adapter_config.json"
    if settings.is_file():
        said = json.loads(settings.read_text())
        said["target_modules"] = sorted(said["target_modules"])  # a set: its order changes from run to run
        said["base_model_name_or_path"] = None  # the record names it, by key
        settings.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def check_can_save(model: Any, scratch: Path) -> None:
    """Save once before step 1: a run of hours must not fail at its end for a reason that was there at its start."""
    folder = scratch / "check"
    save(model, None, folder)
    shutil.rmtree(folder)
