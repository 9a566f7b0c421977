"""Write a GGUF file, once, as the folder of a model; records say that its weights are dequantised."""

import json
from pathlib import Path
from typing import Any

from workflow.errors import UserError, printable
from workflow.keys import hash_file
from workflow.train.models import quiet

NOTE = "conversion.json"


def dequantise(file: Path, folder: Path) -> dict[str, Any]:
    """Read the weights as float32 and save them with tokenizer and settings.

    Returns:
        What stands in the folder's `conversion.json`: the file's name, sha256 and the types of its tensors.

    Raises:
        UserError: no GGUF that transformers can read, or a folder that is there already.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise UserError("reading GGUF needs the package gguf: pip install gguf") from None
    if folder.exists():
        raise UserError(f"{folder} is there already. Name another folder, or remove it.")
    quiet()
    try:
        types = sorted({tensor.tensor_type.name for tensor in GGUFReader(file).tensors})
        where, name = str(file.parent), file.name
        read = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{file}: no model that can be read: {printable(str(error))[:200]}") from None
    model: Any = AutoModelForCausalLM.from_config(read.config)  # the one that was read refuses to be saved
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    note = {"from": file.name, "sha256": hash_file(file), "tensors": types, "weights": "dequantised to float32"}
    (folder / NOTE).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")
    return note
