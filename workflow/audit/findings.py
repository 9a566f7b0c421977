"""What `verify` has to say, and how bad it is."""

from dataclasses import dataclass, field
from typing import Literal

from workflow.errors import printable

Level = Literal["broken", "unverifiable"]


@dataclass(frozen=True)
class Finding:
    """One fault: how bad, where, what."""

    level: Level
    path: str
    what: str

    def __str__(self) -> str:
        return printable(f"{self.level}: {self.path}: {self.what}").replace("\n", "\\n")


@dataclass
class Findings:
    """All faults of one run, and remarks that are no faults."""

    faults: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def broken(self, path: object, what: str) -> None:
        self.faults.append(Finding("broken", str(path), what))

    def unverifiable(self, path: object, what: str) -> None:
        self.faults.append(Finding("unverifiable", str(path), what))

    def remark(self, what: str) -> None:
        self.remarks.append(what)

    @property
    def code(self) -> int:
        """0 whole, 1 broken, 2 unverifiable."""
        levels = {fault.level for fault in self.faults}
        return 1 if "broken" in levels else 2 if levels else 0
