"""How far reruns of one recipe (`.r2`) differ, in metrics and in bytes: what a seed is worth."""

from dataclasses import dataclass
from typing import Any

from workflow.audit.checks import original
from workflow.audit.inventory import Inventory, Result
from workflow.files import flatten
from workflow.store import Record


@dataclass(frozen=True)
class Replicate:
    """A rerun beside its original."""

    stage: str
    cell: str
    key: str
    equal_outputs: int
    outputs: int
    metrics: dict[str, tuple[float, float]]  # scalar metrics that differ: original, rerun

    def __str__(self) -> str:
        bytes_ = f"{self.equal_outputs} of {self.outputs} outputs byte-equal"
        if not self.metrics:
            return f"{self.stage}/{self.cell}: {bytes_}; every metric equal"
        told = ", ".join(f"{name} {a:g} -> {b:g} ({b - a:+.3g})" for name, (a, b) in self.metrics.items())
        return f"{self.stage}/{self.cell}: {bytes_}; {told}"


def compare(first: Record, again: Record) -> Replicate:
    """Two records of one recipe."""
    a, b = ({o.path: o.sha256 for o in record.outputs} for record in (first, again))
    before, after = _numbers(first.metrics), _numbers(again.metrics)
    differing = {n: (before[n], after[n]) for n in before if n in after and before[n] != after[n]}
    equal = sum(a.get(name) == sha256 for name, sha256 in b.items())
    return Replicate(again.stage, again.cell, again.key, equal, len(a.keys() | b.keys()), differing)


def replicates(inventory: Inventory) -> list[Replicate]:
    """Every rerun on disk whose original is there too."""
    by_place: dict[tuple[str, str, str], Result] = {r.place: r for r in inventory.results.values()}
    found = []
    for (stage, cell, key), result in by_place.items():
        first = by_place.get((stage, original(cell), key))
        if first is not None and first is not result:
            found.append(compare(first.record, result.record))
    return found


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {n: float(v) for n, v in flatten(metrics).items() if isinstance(v, int | float) and not isinstance(v, bool)}
