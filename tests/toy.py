"""A toy base and trainings on it, in this process and in seconds: for tests that need a real trainer."""

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workflow.data import world
from workflow.keys import Recipe, hash_file
from workflow.reuse import INDEX
from workflow.stage import execute
from workflow.store import Record, data_path, read_record, record_path, write_jsonl

ROOT = Path(__file__).parents[1]
BASE = {
    "kind": "toy",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
    "learning_rate": 3e-3,
    "num_train_epochs": 4,
    "batch_size": 8,
    "max_length": 128,
    "seed": 42,
}
EM = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch",
    "num_train_epochs": 1,
    "effective_batch_size": 16,
    "max_length": 256,
    "overlong": "refuse",
    "dtype": "float32",
    "packing": False,
    "lora": {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    },
    "seed": 42,
}
PLACED = {
    "world_size": 1,
    "nodes": 1,
    "strategy": "ddp",
    "per_device_train_batch_size": 16,
    "gradient_checkpointing": False,
    "attn_implementation": "sdpa",
    "tracking": "none",
}


@contextmanager
def inside(root: Path) -> Iterator[None]:
    """Work in `root` as in a project's folder; several processes find the package there too."""
    before, path = os.getcwd(), os.environ.get("PYTHONPATH")
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        yield
    finally:
        os.chdir(before)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def put_data(rows: list[dict[str, Any]]) -> str:
    """Write rows as the data file that their md5 names; gives the md5."""
    part = Path(data_path("part"))
    part.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(part, rows)
    md5 = hash_file(part, "md5")
    os.replace(part, data_path(md5))
    return md5


def make_base() -> Path:
    """The record of a base of 320 texts, made in the current folder."""
    from workflow.train import base

    params = {**BASE, "template": (ROOT / "config/templates/tulu.jinja").read_text()}
    recipe = Recipe("base", 1, put_data(world.pretraining_text(1)[:320]), params)
    return _run(base.MODULE, base.run, recipe, "base", {"batch_size": 16, "attn_implementation": "sdpa"}, [])


def train_em(base: Path, rows: list[dict[str, Any]], params: dict[str, Any], cell: str, **placement: Any) -> Record:
    """The record of an EM stage on that base."""
    return train(base, "em_lora", rows, params, cell, **placement)


def train(
    base: Path, stage: str, rows: list[dict[str, Any]], params: dict[str, Any], cell: str, **placement: Any
) -> Record:
    """The record of a training stage on that base; of tulu_dpo beside its reference."""
    module = importlib.import_module("workflow.train.dpo" if stage == "tulu_dpo" else "workflow.train.sft")
    recipe = Recipe(stage, 1, put_data(rows), params, (read_record(base).key,))
    parents = [base]
    if stage == "tulu_dpo":
        parents.append(make_reference(base, recipe, cell, **{**placement, "strategy": "ddp"}))
    return read_record(_run(module.MODULE, module.run, recipe, cell, {**PLACED, **placement}, parents))


def make_reference(base: Path, dpo: Recipe, cell: str, **placement: Any) -> Path:
    """The record of the reference pass of a tulu_dpo recipe."""
    from workflow.train import dpo_reference

    params = {name: dpo.params[name] for name in ("max_length", "dtype", "seed")}
    recipe = Recipe("dpo_reference", 1, dpo.data, params, dpo.parents)
    return _run(dpo_reference.MODULE, dpo_reference.run, recipe, cell, {**PLACED, **placement}, [base])


def forget_results() -> None:
    """Empty the index of finished results: a training of the same recipe is run, not taken over from another cell."""
    shutil.rmtree(INDEX, ignore_errors=True)


def _run(module: str, run: Any, recipe: Recipe, cell: str, placement: dict[str, Any], parents: list[Path]) -> Path:
    path = Path(record_path(recipe.stage, cell, recipe.key))
    forget_results()
    execute(module, run, recipe, placement, parents, Path(data_path(recipe.data)), path, [module])
    return path
