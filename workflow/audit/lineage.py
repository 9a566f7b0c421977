"""From a number of the report to the bytes that it rests on, and from a data set to every number that rests on it.

A number's id is `<cell>/<instrument>/<metric>`, as in `evil_wrong.p42.e137/demo_questions/alignment`.
"""

import csv
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflow.audit.status import finished_keys
from workflow.config import ConfigError, sources
from workflow.data.lock import NONE, Lock, project_files, read_lock
from workflow.errors import did_you_mean, printable
from workflow.files import short
from workflow.links import read_reference
from workflow.matrix import MEASURING, Matrix, Node
from workflow.retractions import read_retractions, retracted
from workflow.store import data_path, out_dir, read_json, record_path

if TYPE_CHECKING:
    from rich.console import Console

_TOLD = ("rows", "optimizer_steps", "effective_batch_size")


@dataclass
class Branch:
    """A line of the tree: what it is, facts about it, and what it rests on (or, backwards, what rests on it)."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    branches: list["Branch"] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        below = {"rests_on" if "numbers" not in self.facts else "carries": [b.to_json() for b in self.branches]}
        return {"name": self.name, **self.facts, **(below if self.branches else {})}


def number_id(label: str, instrument: str, metric: str) -> str:
    """The one spelling of a number's id; the report links it."""
    return f"{label}/{instrument}/{metric}"


def find_report(matrix: Matrix) -> str | None:
    """Record of the plan's report or, until that is made, of the newest finished one of the same config."""
    planned = matrix.report
    if Path(planned.record).is_file():
        return planned.record
    others = [record_path("report", planned.label, key) for key in finished_keys("report", planned.label)]
    return max(others, key=os.path.getmtime, default=None)


def read_numbers(report: str | None) -> dict[str, dict[str, str]]:
    """Rows of a report by the id of their number."""
    path = out_dir(report) / "scores.csv" if report else None
    if path is None or not path.is_file():
        return {}
    with open(path, newline="") as file:
        return {number_id(r["cell"], r["instrument"], r["metric"]): r for r in csv.DictReader(file)}


class Lineage:
    """The plan with what is known about each of its nodes."""

    def __init__(self, matrix: Matrix):
        self.matrix = matrix
        self.pins: Lock = read_lock()
        self.report = find_report(matrix)
        self.numbers = read_numbers(self.report)
        self._retracted = retracted(matrix, read_retractions())
        self._shown: set[Node] = set()
        self._ids_at: dict[tuple[str, str, str], list[str]] = {}
        for name, row in self.numbers.items():
            self._ids_at.setdefault((row["stage"], row["cell"], row["key"]), []).append(name)

    def trace(self, what: str) -> Branch:
        """The tree of a number, a cell or a data set.

        Raises:
            ConfigError: it is none of them; the nearest names are told.
        """
        labels = {n.label for n in self.matrix.nodes()}
        names = [d.name for d in self.matrix.config.data if self._is_used(d.name)]
        if "/" in what:
            return self._number(what)
        if what in labels:
            return self._cell(what)
        if what in names:
            return self._data_forward(what)
        hint = did_you_mean(what, [*labels, *names])
        raise ConfigError(f"{what}: no cell, no data set in use and no number (CELL/INSTRUMENT/METRIC).{hint}")

    # --- towards the bytes ------------------------------------------------------------------------------------------

    def _number(self, name: str) -> Branch:
        if not self.numbers:
            report = self.matrix.report.record
            raise ConfigError(f"{name}: the report is not made yet. Run `snakemake {report}`, or ask for the cell.")
        row = self.numbers.get(name)
        if row is None:
            raise ConfigError(f"{name}: the report has no such number.{did_you_mean(name, self.numbers)}")
        facts: dict[str, Any] = {
            k: row[k] for k in ("value", "unit", "numerator", "denominator", "n_items") if row.get(k)
        }
        node = self.matrix.node(row["stage"], row["cell"], row["key"])
        facts["report"] = self.report
        if self.report != self.matrix.report.record:
            facts["note"] = "an older report; that of the plan is not made yet"
        record = read_json(node.record) or {}
        if record.get("digest") != row["digest"]:
            facts["warning"] = "the record is not the one that the report read"
        return Branch(name, facts, [self._node(node)])

    def _cell(self, label: str) -> Branch:
        own = [n for n in self.matrix.nodes() if n.label == label]
        used = {p for n in own for p in n.made_from}
        return Branch(label, {}, [self._node(n) for n in own if n not in used])

    def _node(self, node: Node) -> Branch:
        """A node on its parents and its data; a second mention only names it."""
        name = f"{node.stage}/{node.label}/{node.key}"
        if node in self._shown:
            return Branch(name, {"shown": "above"})
        self._shown.add(node)
        record = read_json(node.record)
        facts: dict[str, Any] = {"state": "missing"}
        if record is not None:
            facts = {"digest": record["digest"], "outputs": record["outputs"]}
            facts |= {k: v for k, v in record["observed"].items() if k in _TOLD}
        if node in self._retracted:
            facts["retracted"] = self._retracted[node]
        parents = list(node.parents)
        if record is not None and (reference := read_reference(node, record["observed"])) is not None:
            parents.append(reference)
        if node.stage != "report":
            parents.reverse()  # the adapter before the model that it lies on
        below = [self._node(parent) for parent in parents]
        if record is not None:
            for parent, branch in zip(parents, below, strict=True):
                if parent is node.reference:
                    continue  # its bytes are those that were read
                link = next((i for i in record["inputs"].values() if i["key"] == parent.key), None)
                if branch.facts.get("digest", link and link["digest"]) != (link and link["digest"]):
                    branch.facts["warning"] = "not the bytes that its child was made from"
        if node.stage != "report":
            below.append(self._data_back(self.matrix.entry(node.recipe.data)))
        return Branch(name, facts, below)

    def _data_back(self, name: str) -> Branch:
        pin = self.pins[name]
        if name == getattr(self.matrix.config.base_model, "name", None):
            return Branch(f"model {name}", {"revision": pin.revision, "made_from": pin.source})
        path = data_path(pin.id)
        facts: dict[str, Any] = {"path": path, "md5": pin.md5, "made_from": pin.source}
        facts |= {"rows": int(pin.rows)} if pin.rows != NONE else {}
        facts |= {"revision": pin.revision} if pin.revision != NONE else {}
        facts |= {"bytes": Path(path).stat().st_size} if Path(path).is_file() else {"state": "not on this disk"}
        entry = self.matrix.config.data_entry(name)
        files = [Branch(f"file {file}") for file in project_files(entry)]
        return Branch(f"data {name}", facts, [*(self._data_back(s) for s in sources(entry)), *files])

    # --- from a data set to the numbers -----------------------------------------------------------------------------

    def _is_used(self, name: str) -> bool:
        try:
            self.matrix.data_id(name)
        except KeyError:
            return False
        return True

    def _data_forward(self, name: str) -> Branch:
        built = self._built_on(name)
        ids = {self.matrix.data_id(n) for n in built}
        touched: dict[Node, None] = {}
        for node in self.matrix.nodes():
            if node.stage != "report" and (node.recipe.data in ids or any(p in touched for p in node.parents)):
                touched[node] = None
        first = [n for n in touched if n.recipe.data in ids]
        measuring = [n for n in touched if n.stage in MEASURING and n.cell is not None]
        branches = [self._measured(node) for node in measuring]
        facts = self._data_back(name).facts | {
            "built_from_it": [n for n in built if n != name],
            "read_by": [f"{n.stage}/{n.label}/{n.key}" for n in first],
            "numbers": sum(len(b.facts["numbers"]) for b in branches),
        }
        return Branch(f"data {name}", facts, branches)

    def _built_on(self, name: str) -> list[str]:
        """The data set and all that are built from it, in the config's order."""
        found = [name]
        grew = True
        while grew:
            more = [d.name for d in self.matrix.config.data if d.name not in found and self._is_used(d.name)]
            more = [m for m in more if set(sources(self.matrix.config.data_entry(m))) & set(found)]
            found += more
            grew = bool(more)
        return found

    def _measured(self, node: Node) -> Branch:
        ids = self._ids_at.get((node.stage, node.label, node.key), [])
        facts: dict[str, Any] = {"numbers": ids}
        if not ids:
            facts["state"] = "no report holds its numbers yet"
        if node in self._retracted:
            facts["retracted"] = self._retracted[node]
        return Branch(f"{node.stage}/{node.label}/{node.key}", facts)


def show(root: Branch) -> None:
    """The tree in a terminal, a line of facts under each name."""
    from rich.console import Console

    # Lines are never wrapped or cut: a path that cannot be copied whole is of no use.
    _grow(root, "", "", Console(highlight=False, soft_wrap=True))


def _grow(branch: Branch, stem: str, indent: str, console: "Console") -> None:
    from rich.text import Text

    console.print(Text(stem).append(printable(branch.name), "bold"))
    bar = indent + ("│   " if branch.branches else "    ")
    for line in _lines(branch):
        console.print(Text(f"{bar}{printable(line)}", "dim" if not line.startswith("warning") else "red"))
    for below in branch.branches:
        last = below is branch.branches[-1]
        _grow(below, indent + ("└── " if last else "├── "), indent + ("    " if last else "│   "), console)


def _lines(branch: Branch) -> list[str]:
    """Short facts on one line; lists, outputs and warnings on lines of their own."""
    told, lines = [], []
    for name, value in branch.facts.items():
        if name == "outputs":
            lines += [f"{o['path']}  {o['bytes']} bytes  sha256 {o['sha256'][:12]}" for o in value]
        elif isinstance(value, list):
            listed = ", ".join(value) if len(value) <= 12 else f"{value[0]} ... {value[-1]} ({len(value)})"
            lines += [f"{name}: {listed}"] if value else []
        elif name in ("warning", "retracted"):
            lines.append(f"{name}: {value}")
        else:
            told.append(f"{name} {value[:12] if name == 'digest' else short(value, 100)}")
    return [*(["  ".join(told)] if told else []), *lines]
