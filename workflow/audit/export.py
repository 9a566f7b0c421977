"""`export`: a result with its record and a card, in a folder that can be published; read back and verified.

A copy is only called exported once every file of it was read again and has the bytes that the record names. The card is
rendered from records, so it cannot say what was not done.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from workflow.config import ConfigError
from workflow.errors import printable
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
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not an empty folder of its own. Name a new folder.")
    if taken := [o.path for o in record.outputs if o.path in (CARD, RECORD)]:
        raise StoreError(f"{node.record}: an output named {taken[0]} would lie where the export has its own file.")
    target.mkdir(parents=True, exist_ok=True)
    for output in record.outputs:
        (target / output.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / output.path, target / output.path, follow_symlinks=False)
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
    """A value as it may stand in a cell of a Markdown table: on one line, with nothing that Markdown or HTML reads."""
    if isinstance(value, dict):
        value = ", ".join(f"{k} {v}" for k, v in sorted(value.items()))
    text = printable(" ".join(str(value).split()))
    return re.sub(r"([\\`*_\[\]<>|#!&])", r"\\\1", text)
