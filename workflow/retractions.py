"""config/retractions.yaml: results that are not to be used any more, and what they take with them.

A retraction names one result. Everything that was made from it is retracted too, for as long as the plan makes it from
that result; the report is left out, since it prints or drops what is retracted and has the retractions in its own key.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from workflow.entries import Listed, append_entry, read_entries
from workflow.errors import ConfigError
from workflow.keys import KEY
from workflow.store import record_path

if TYPE_CHECKING:
    from workflow.matrix import Matrix, Node

RETRACTIONS = "config/retractions.yaml"
_HEADER = "# Results that are not to be used any more. `matrix retract` adds to it; commit it.\n"

Place = tuple[str, str, str]


class Retraction(Listed):
    """One entry: the result, why, and since when."""

    stage: str
    cell: str
    key: str = Field(pattern=f"^({KEY.pattern})$")
    reason: str = Field(min_length=1)
    date: str

    @property
    def place(self) -> Place:
        return self.stage, self.cell, self.key


def read_retractions(path: str | Path = RETRACTIONS) -> tuple[Retraction, ...]:
    """Read all entries; an absent file retracts nothing."""
    return read_entries(Retraction, path)


def parse_place(matrix: "Matrix", place: str, reason: str) -> Place:
    """Read STAGE/CELL/KEY from a command line.

    Raises:
        ConfigError: not of that form, no such result in the plan or on disk, or no reason.
    """
    parts = tuple(place.removeprefix("results/").removesuffix("/record.json").strip("/").split("/"))
    if len(parts) != 3 or not KEY.fullmatch(parts[2]) or ".." in parts:
        raise ConfigError(f"{place}: not STAGE/CELL/KEY, as in em_lora/evil_wrong.p42.e137/26b52cac-c7f970ccc757.")
    if not reason.strip():
        raise ConfigError("--reason: say why; the report prints it.")
    planned = {(n.stage, n.label, n.key) for n in matrix.nodes()}
    if parts not in planned and not os.path.exists(record_path(*parts)):
        raise ConfigError(
            f"{place}: neither in the plan of {matrix.configfile} nor under results/. See `status --paths`."
        )
    return parts


def retract(matrix: "Matrix", place: str, reason: str, path: str | Path = RETRACTIONS) -> Retraction:
    """Write one entry down.

    Raises:
        ConfigError: not STAGE/CELL/KEY, no such result in the plan or on disk, retracted before, or no reason.
    """
    stage, cell, key = parse_place(matrix, place, reason)
    if any(entry.place == (stage, cell, key) for entry in read_retractions(path)):
        raise ConfigError(f"{place}: is in {path} already. Edit its reason there.")
    date = datetime.now(UTC).date().isoformat()
    entry = Retraction(stage=stage, cell=cell, key=key, reason=" ".join(reason.split()), date=date)
    append_entry(entry, path, _HEADER)
    return entry


def retracted(matrix: "Matrix", entries: tuple[Retraction, ...]) -> dict["Node", str]:
    """Name each retracted node of the plan with the reason: its own, or that of what it was made from."""
    own = {entry.place: entry.reason for entry in entries}
    reasons: dict[Node, str] = {}
    if not own:
        return reasons
    for node in matrix.nodes():  # parents stand before their children
        if node.stage == "report":
            continue
        place = (node.stage, node.label, node.key)
        if place in own:
            reasons[node] = own[place]
        elif parent := next((p for p in node.made_from if p in reasons), None):
            reason = reasons[parent]
            reasons[node] = (
                reason if reason.startswith("made from ") else f"made from {parent.stage}/{parent.label}: {reason}"
            )
    return reasons
