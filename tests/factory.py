"""Records for tests and benchmarks, by the one function that stages use."""

from pathlib import Path
from typing import Any

from workflow.keys import hash_bytes
from workflow.matrix import Node
from workflow.store import Input, Record, read_record


def inputs_of(node: Node) -> dict[str, Input]:
    """Links to a node's parents and data as they lie on disk."""
    stages = [p.stage for p in node.parents]
    inputs = {
        (p.stage if stages.count(p.stage) == 1 else f"{p.stage}/{p.label}/{p.key}"): read_record(p.record).as_input(
            p.record
        )
        for p in node.parents
    }
    for path in node.data if node.stage != "report" else ():
        if not Path(path).exists():
            continue
        sha256 = hash_bytes(Path(path).read_bytes())
        inputs["data"] = Input(path=path, key=node.recipe.data, digest=sha256, content=sha256)
    return inputs


def make_record(
    node: Node,
    outputs: list[dict[str, Any]],
    observed: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    inputs: dict[str, Input] | None = None,
) -> Record:
    """The record of a node of the plan; without links unless `inputs` are given."""
    return Record.create(
        node.recipe, node.label, inputs or {}, outputs, observed or {"seconds": 1.0}, metrics or {}, provenance or {}
    )
