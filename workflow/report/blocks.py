"""What a page consists of: cells, tables, figures, folds, sections. Rendered to HTML and to Markdown alike.

A cell that shows a number carries `ref`, the anchor of its lineage, and `title`, which names what it was computed from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from workflow.stats.rounding import Range
from workflow.stats.text import p_range_text, range_text

MISSING = "missing"
NO_INTERVAL = "n = 1"  # stands where an interval would, had there been a second value
DASH = "–"


@dataclass(frozen=True)
class Cell:
    """A piece of text; tone is its CSS class: missing, struck, supported, refuted, open."""

    text: str
    ref: str = ""
    title: str = ""
    tone: str = ""
    id: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Prose:
    """One paragraph of pieces, put together without blanks."""

    parts: tuple[Cell, ...]
    tone: str = ""
    kind: Literal["prose"] = "prose"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header. `left`: numbers of the columns that hold text; the others hold numbers."""

    id: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: tuple[int, ...] = (0,)
    notes: tuple[str, ...] = ()
    row_ids: tuple[str, ...] = ()
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Figure:
    """A figure as SVG for the page and as PNG beside it; `alt` says in words what it shows."""

    id: str
    caption: str
    alt: str
    svg: bytes
    png: bytes
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Preformatted:
    """Text as it is, such as a completion; `ref` says which row of which artifact it is."""

    ref: str
    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Fold:
    """What a reader has to open first. Only content behind a fold may be harmful text."""

    id: str
    summary: str
    blocks: tuple["Block", ...]
    kind: Literal["fold"] = "fold"


Cells = Sequence[str | Cell]  # one row, as it is written down
Block = Prose | Table | Figure | Preformatted | Fold


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """A whole report. `banners` stand under the title, before everything else."""

    title: str
    note: str
    banners: tuple[str, ...]
    sections: tuple[Section, ...]
    colophon: tuple[str, ...] = field(default=())


def prose(*parts: str | Cell, tone: str = "") -> Prose:
    return Prose(tuple(part if isinstance(part, Cell) else Cell(part) for part in parts), tone)


def row(*cells: str | Cell) -> tuple[Cell, ...]:
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in cells)


def table(
    id: str,
    caption: str,
    header: Sequence[str],
    rows: Iterable[Cells],
    left: tuple[int, ...] = (0,),
    notes: Iterable[str] = (),
    row_ids: Iterable[str] = (),
) -> Table:
    """A table whose rows all have the header's length; repeated notes stand once.

    Raises:
        ValueError: a row of another length, which would put numbers under a wrong header.
    """
    made = tuple(row(*cells) for cells in rows)
    bad = [cells for cells in made if len(cells) != len(header)]
    if bad:
        raise ValueError(f"table {id}: a row of {len(bad[0])} cells under {len(header)} headers")
    kept = tuple(dict.fromkeys(note for note in notes if note))
    return Table(id, caption, tuple(header), made, left, kept, tuple(row_ids))


def tables_of(blocks: Iterable[Block]) -> Iterable[Table]:
    """Every table, inside folds too."""
    for block in blocks:
        if isinstance(block, Table):
            yield block
        elif isinstance(block, Fold):
            yield from tables_of(block.blocks)


def figures_of(blocks: Iterable[Block]) -> Iterable[Figure]:
    """Every figure, inside folds too."""
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Fold):
            yield from figures_of(block.blocks)


# --- numbers as text ------------------------------------------------------------------------------------------------


def decimals(unit: str) -> int:
    """Digits after the point by unit: a fraction to .001, points of 100 to .01."""
    return 3 if unit.startswith(("fraction", "probability", "harness")) else 2


def show(value: float | None, unit: str, sign: bool = False) -> str:
    """A number in the digits of its unit; what is not there is a dash, never `nan`."""
    if value is None or not np.isfinite(value):
        return DASH
    text = f"{value:+.{decimals(unit)}f}" if sign else f"{value:.{decimals(unit)}f}"
    return text.replace("-", "−")


def general(value: float | None, digits: int = 2) -> str:
    """A statistic such as t or d, to fixed digits."""
    return DASH if value is None or not np.isfinite(value) else f"{value:+.{digits}f}".replace("-", "−")


def ranged(value: Range | None) -> str:
    """A statistic with its range over the rounding of printed inputs; a plain number for raw values."""
    if value is None:
        return DASH
    return (general(value.value) if value.exact else range_text(value)).replace("-", "−")


def p_value(value: Range | None) -> str:
    return DASH if value is None else p_range_text(value)


def count(value: float | int | None) -> str:
    """A whole number with thin groups of three: 231 000."""
    return DASH if value is None else f"{value:,.0f}".replace(",", " ")


def duration(seconds: float | None) -> str:
    """Hours from one hour on, seconds below."""
    if seconds is None:
        return DASH
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def group_anchor(arm: str | None, phase: str, instrument: str, metric: str, condition: str = "") -> str:
    """Anchor of the numbers of one metric, or of one condition's share of them."""
    return "/".join(part for part in ("numbers", arm or "", phase, instrument, metric, condition) if part)
