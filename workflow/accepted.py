"""config/accepted.yaml: codes of a stage that people say give the same numbers.

Results of other code are not pooled unless the stage's version was bumped, which makes them again, or an entry here
says that the change moved no number. The report prints the reason.
"""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from workflow.entries import Listed, append_entry, read_entries

ACCEPTED = "config/accepted.yaml"
_HEADER = "# Changes of code that move no number. `matrix accept` adds to it; commit it.\n"


class Acceptance(Listed):
    """One entry: a stage, digests of codes that count as one, why, and since when."""

    stage: str
    codes: tuple[str, ...] = Field(min_length=2)
    reason: str = Field(min_length=1)
    date: str


def read_accepted(path: str | Path = ACCEPTED) -> tuple[Acceptance, ...]:
    """Read all entries; an absent file accepts nothing."""
    return read_entries(Acceptance, path)


def accept(stage: str, codes: tuple[str, ...], reason: str, path: str | Path = ACCEPTED) -> Acceptance:
    """Write down that these codes of a stage give the same numbers."""
    date = datetime.now(UTC).date().isoformat()
    entry = Acceptance(stage=stage, codes=codes, reason=" ".join(reason.split()), date=date)
    append_entry(entry, path, _HEADER)
    return entry


def equivalents(entries: tuple[Acceptance, ...], stage: str, code: str | None) -> frozenset[str | None]:
    """All codes of a stage that count as `code`, itself among them."""
    same: set[str | None] = {code}
    grew = True
    while grew:
        more = {c for e in entries if e.stage == stage and same & set(e.codes) for c in e.codes} - same
        same |= more
        grew = bool(more)
    return frozenset(same)
