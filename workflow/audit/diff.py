"""Every difference between two cells, grouped: what was asked, the data, what was observed, placement, environment."""

from dataclasses import dataclass
from typing import Any

from workflow.audit.status import column
from workflow.data.lock import Lock, read_lock
from workflow.errors import printable
from workflow.files import Change, changes
from workflow.matrix import STAGES, Matrix, Node
from workflow.store import read_json

GROUPS = ("recipe", "data", "observed", "placement", "environment", "metrics", "outputs")
# Observed facts that say how the batch lay on the machine.
_PLACED = ("placement", "world_size", "strategy", "per_device_train_batch_size", "gradient_accumulation_steps")
# The command repeats recipe and placement; start and end differ between any two jobs.
_UNTOLD = ("command", "start", "end")

Groups = dict[str, list[Change]]


@dataclass(frozen=True)
class StageDiff:
    """One stage of both cells: where each lies, and what differs, by group."""

    stage: str
    left: str | None
    right: str | None
    groups: Groups


def diff(matrix: Matrix, left: str, right: str) -> list[StageDiff]:
    """Stage by stage, the stages before the cells' own included.

    Raises:
        StaleKeyError: the plan has no such cell.
    """
    a, b = chain(matrix, left), chain(matrix, right)
    pins = read_lock()
    found = []
    order = list(STAGES)
    for name in sorted(a.keys() | b.keys(), key=lambda c: (order.index(c.partition(":")[0]), c)):
        one, two = a.get(name), b.get(name)
        if one is two:
            continue  # the same node: a shared parent
        groups = _groups(matrix, pins, one, two)
        found.append(StageDiff(name, one.record if one else None, two.record if two else None, groups))
    return found


def chain(matrix: Matrix, label: str) -> dict[str, Node]:
    """The cell's nodes and all that they are made from, by stage and instrument, in the plan's order."""
    own = matrix.cell_nodes(label)
    wanted = {*own, *matrix.ancestors(*own)}
    return {column(n): n for n in matrix.nodes() if n in wanted}


def _groups(matrix: Matrix, pins: Lock, one: Node | None, two: Node | None) -> Groups:
    if one is None or two is None:
        present = [n.record if n else "(no such stage)" for n in (one, two)]
        return {"recipe": [Change("stage", *present)]}
    a, b = _sides(matrix, pins, one), _sides(matrix, pins, two)
    return {group: list(changes(a[group], b[group])) for group in GROUPS}


def _sides(matrix: Matrix, pins: Lock, node: Node) -> dict[str, dict[str, Any]]:
    """What there is to compare of one node: its recipe in any case, the rest if it is finished."""
    recipe = node.recipe
    parents = {f"parents.{p.stage}": p.key for p in node.parents} if node.stage != "report" else {}
    record = read_json(node.record) or {}
    observed, provenance = dict(record.get("observed", {})), dict(record.get("provenance", {}))
    data = {"id": recipe.data, "observed": observed.pop("data_facts", {})}
    if node.stage != "report":
        data |= _pinned(matrix, pins, recipe.data)
    placement = {name: observed.pop(name) for name in _PLACED if name in observed}
    return {
        "recipe": {"version": recipe.version, "params": recipe.params, **parents},
        "data": data,
        "observed": {"finished": bool(record), **observed},
        "placement": placement,
        "environment": {k: v for k, v in provenance.items() if k not in _UNTOLD},
        "metrics": {k: v for k, v in record.get("metrics", {}).items() if k != "by_question"},
        "outputs": {o["path"]: o["sha256"] for o in record.get("outputs", ())},
    }


def _pinned(matrix: Matrix, pins: Lock, data_id: str) -> dict[str, Any]:
    name = matrix.entry(data_id)
    pin = pins[name]
    return {"name": name, "rows": pin.rows, "md5": pin.md5, "revision": pin.revision, "made_from": pin.source}


def to_json(found: list[StageDiff]) -> list[dict[str, Any]]:
    return [
        {
            "stage": d.stage,
            "left": d.left,
            "right": d.right,
            **{group: [c._asdict() for c in listed] for group, listed in d.groups.items() if listed},
        }
        for d in found
    ]


def show(found: list[StageDiff]) -> None:
    total = 0
    for d in found:
        listed = {group: told for group, told in d.groups.items() if told}
        if not listed:
            continue
        print(f"{d.stage}")
        print(f"  - {d.left or '(none)'}\n  + {d.right or '(none)'}")
        for group, told in listed.items():
            print(f"  {group}:")
            for change in told:
                total += 1
                print(printable(f"    {change}"))
    print(f"{total} differences" if total else "no difference")
