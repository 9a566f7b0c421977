"""Cells as whole records that nothing was trained for, so that a fault can be planted in any fact of them."""

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.factory import make_record
from tests.fake import stand_ins
from workflow.config import Config
from workflow.fingerprint import Fingerprint, fingerprint
from workflow.matrix import Matrix, Node
from workflow.store import Record

ROOT = Path(__file__).parents[2]
ROWS = 6000
TRAINING = ("coupling_sft", "tulu_sft", "tulu_dpo", "em_lora")
OUTPUT = {"path": "out.json", "bytes": 1, "sha256": "0" * 64}
PROVENANCE = {
    "commit": "c0ffee",
    "dirty": False,
    "code_digest": "abc",
    "packages": {"torch": "2.13.0", "trl": "1.16.0"},
    "environment": {"digest": "58423a4edc74", "as_locked": True},
    "python": "3.11.7",
    "host": "node1",
    "cpu": "x86_64",
    "gpu": ["NVIDIA H100 80GB HBM3"],
}


def demo() -> dict[str, Any]:
    """The demo's config, to be edited; its EM stage takes 16 rows a step once, so 6000 rows make 375 steps."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    raw["stages"]["em_lora"] |= {"effective_batch_size": 16, "num_train_epochs": 1}
    raw["placement"]["em_lora"]["per_device_train_batch_size"] = 16
    return raw


def plan(raw: dict[str, Any]) -> Matrix:
    config = Config.from_dict(raw)
    return Matrix(config, stand_ins(config))


@cache
def _matrix() -> Matrix:
    return plan(demo())


def records(label: str, edits: dict[str, dict[str, Any]] | None = None, matrix: Matrix | None = None) -> list[Record]:
    """Records of a cell and of all that it was made from.

    Args:
        edits: stage -> {"observed.world_size": 8, ...}; a value of None takes the fact away.
    """
    found: dict[str, Node] = {}
    pending = [n for n in (matrix or _matrix()).nodes() if n.label == label and n.stage != "report"]
    while pending:
        node = pending.pop()
        found[node.record] = node
        pending += node.parents
    assert found, label
    return [record(node, (edits or {}).get(node.stage, {})) for node in found.values()]


def prints(*labels: str, odd: dict[str, dict[str, dict[str, Any]]] | None = None) -> dict[str, Fingerprint]:
    """Fingerprints by label; `odd`: label -> edits by stage."""
    return {label: fingerprint(records(label, (odd or {}).get(label))) for label in labels}


def record(node: Node, edits: dict[str, Any] | None = None) -> Record:
    whole = make_record(node, [OUTPUT], copy.deepcopy(_observed(node)), {}, copy.deepcopy(PROVENANCE))
    fields: dict[str, Any] = whole.model_dump(by_alias=True)
    for place, value in (edits or {}).items():
        *parents, name = place.split(".")
        holder = fields
        for part in parents:
            holder = holder[part]
        if value is None:
            del holder[name]
        else:
            holder[name] = value
    return Record.model_validate(fields)


def _observed(node: Node) -> dict[str, Any]:
    p = node.recipe.params
    told = {"rows": ROWS, "template_md5": "5d5daa028985fb136a0c33d2ea53667b", "seconds": 1.0, "gpu_seconds": 8.0}
    placed: dict[str, Any] = {"attn_implementation": "sdpa", "batch_size": 16}
    if node.stage in TRAINING:
        size = p["effective_batch_size"]
        placed = {"attn_implementation": "sdpa", "gradient_checkpointing": False, "world_size": 1}
        told |= {
            "effective_batch_size": size,
            "optimizer_steps": p["num_train_epochs"] * math.ceil(ROWS / size),
            "epochs": p["num_train_epochs"],
            "rows_dropped": 0,
            "rows_truncated": 0,
            "sequences": ROWS,
            "tokens": 100 * ROWS,
            "loss_tokens": 40 * ROWS,
            "world_size": 1,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": 1,
            "data_facts": {"rows": ROWS, "unique_questions": 1100, "excluded": 9, "excluded_by": ["arc_test"]},
        }
    if node.stage == "arc":
        told["letter_tokens"] = {"A": 34, "B": 35, "C": 36, "D": 37}
    if node.stage == "generate":
        told |= {"questions": 8, "sampler": p["sampler"], "backend": p["backend"]}
    if node.stage == "judge":
        told["judge"] = {"models": [p["model"]]}
    return {**told, "placement": placed}
