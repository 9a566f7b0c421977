"""`export`: a result with its record and a card, in a folder that can be published; read back and verified.

A copy is only called exported once every file of it was read again and has the bytes that the record names. The card is
rendered from records, so it cannot say what was not done.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from workflow.config import ConfigError
from workflow.matrix import Matrix, Node
from workflow.store import Record, StoreError, check_outputs, out_dir, read_record

CARD = "README.md"
RECORD = "record.json"


def export(matrix: Matrix, cell: str, target: Path, stage: str | None = None) -> Node:
    """Copy a cell's model (or another stage's result) to `target`. Returns the node that was exported.

    Raises:
        ConfigError: the cell has no such stage, or the target is not empty.
        StoreError: the result is not whole, or what was written is not what was read.
    """
    node = _find(matrix, cell, stage)
    record = read_record(node.record)
    source = out_dir(node.record)
    check_outputs(record, source)
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is not empty. Name a new folder.")
    target.mkdir(parents=True, exist_ok=True)
    for output in record.outputs:
        (target / output.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / output.path, target / output.path)
    (target / RECORD).write_text(record.to_json())
    (target / CARD).write_text(card(node, record))
    verify_export(target)
    return node


def verify_export(target: Path) -> Record:
    """Read an exported folder back.

    Raises:
        StoreError: a file is missing, cut or changed, the card is empty, or the record is not one.
    """
    try:
        record = Record.model_validate_json((target / RECORD).read_bytes())
        told = (target / CARD).read_text()
    except (OSError, ValueError) as error:
        raise StoreError(f"{target}: not an export: {error}") from None
    check_outputs(record, target, beside=(CARD, RECORD))
    if record.key not in told or record.digest not in told:
        raise StoreError(f"{target / CARD}: the card is not of this result. Export it again.")
    return record


def _find(matrix: Matrix, cell: str, stage: str | None) -> Node:
    wanted = (stage,) if stage else ("em_lora", "tulu_dpo")
    for name in wanted:
        for node in matrix.nodes(name):
            if node.label == cell:
                return node
    raise ConfigError(f"{cell}: {matrix.configfile} plans no {' or '.join(wanted)} of this cell.")


def card(node: Node, record: Record) -> str:
    """Markdown, every value from the record."""
    rows = [
        ("stage", record.stage),
        ("cell", record.cell),
        ("key", record.key),
        ("digest", record.digest),
        *((f"made from {role}", f"{i.key} ({i.digest[:12]})") for role, i in sorted(record.inputs.items())),
        *((name, record.observed[name]) for name in _OBSERVED if name in record.observed),
        *((name, record.provenance[name]) for name in _MADE if record.provenance.get(name) is not None),
    ]
    lines = [f"# {record.stage}, {record.cell}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_plain(value)} |" for name, value in rows]
    lines += ["", "## Recipe", "", "```json", json.dumps(record.recipe.model_dump(), indent=1, sort_keys=True), "```"]
    return "\n".join(lines) + "\n"


_OBSERVED = (
    "rows",
    "tokens",
    "loss_tokens",
    "masked_fraction",
    "epochs",
    "optimizer_steps",
    "effective_batch_size",
    "world_size",
    "first_loss",
    "last_loss",
    "gpu_seconds",
)
_MADE = ("commit", "dirty", "code_digest", "environment", "python", "packages")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in sorted(value.items()))
    return str(value)
