"""What a page consists of (tables that declare their columns, figures, sections), and how it becomes HTML and Markdown.

Everything that is done to every value is done here, once: a missing value becomes a mark, a number links to what it
rests on, control characters are spelled out, text is escaped.
"""

import base64
import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workflow.errors import UserError, printable
from workflow.stats.rounding import Range
from workflow.stats.text import p_range_text, range_text

MISSING = "missing"
DASH = "–"
TEMPLATES = Path(__file__).parent / "templates"
Row = Mapping[str, Any]


class PageError(UserError, ValueError):
    """A page that a reader could not check: a link to nowhere, two places of one name, something from the network."""


# --- values as text -------------------------------------------------------------------------------------------------


def decimals(unit: str) -> int:
    """Digits after the point: a fraction to .001, points of 100 to .01."""
    return 3 if unit.startswith(("fraction", "probability", "harness")) else 2


def show(value: float, unit: str, sign: bool = False) -> str:
    """A number in the digits of its unit."""
    return f"{value:{'+' if sign else ''}.{decimals(unit)}f}".replace("-", "−")


def count(value: float) -> str:
    """A whole number with thin groups of three: 231 000."""
    return f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Hours from one hour on, seconds below."""
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds:.1f} s"


def general(value: float, digits: int = 2) -> str:
    """A statistic such as t or d."""
    return f"{value:+.{digits}f}".replace("-", "−")


def ranged(value: Range) -> str:
    """A statistic, with its range over the rounding of printed inputs."""
    return (general(value.value) if value.exact else range_text(value)).replace("-", "−")


def p_value(value: Range | float) -> str:
    return p_range_text(value if isinstance(value, Range) else Range(value, value, value))


def interval(ends: tuple[float, float], unit: str, sign: bool = False) -> str:
    return f"{show(ends[0], unit, sign)} to {show(ends[1], unit, sign)}"


def ratio(parts: tuple[float, float]) -> str:
    """`0.750 (48 / 64)`."""
    top, bottom = parts
    return f"{show(top / bottom, 'fraction')} ({count(top)} / {count(bottom)})" if bottom else DASH


# --- tables ---------------------------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """A value with a tone (a CSS class: missing, struck, supported, refuted, open) or a link of its own; None: none."""

    value: Any
    tone: str = ""
    href: str | None = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, the field of the rows that it shows, and how. Numbers stand on the right."""

    name: str
    field: str
    format: Callable[[Any], str]
    is_text: bool = False


def text(name: str, field: str = "", format: Callable[[Any], str] = str) -> Column:
    return Column(name, field or name, format, is_text=True)


def number(name: str, field: str, unit: str, sign: bool = False) -> Column:
    return Column(name, field, lambda value: show(value, unit, sign))


def ends(name: str, field: str, unit: str, sign: bool = False) -> Column:
    """An interval: the field holds (low, high)."""
    return Column(name, field, lambda value: interval(value, unit, sign))


def stat(name: str, field: str, format: Callable[[Any], str] = general) -> Column:
    return Column(name, field, format)


def whole(name: str, field: str = "") -> Column:
    return Column(name, field or name, count)


class View(NamedTuple):
    """A cell as the templates show it."""

    text: str
    tone: str
    href: str
    is_text: bool


@dataclass(frozen=True)
class Table:
    """Rows under declared columns.

    A row is a mapping. Beside the fields of its columns it may hold `href`, what its numbers rest on, and `row_id`. A
    value of None or NaN is shown as a dash, MISSING as a mark.

    Attributes:
        instrument: whose scores these are; its judge is named in the notes.
        is_folded: whether a reader has to open it first.
    """

    id: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: tuple[str, ...] = ()
    instrument: str = ""
    is_folded: bool = False
    kind: str = "table"

    def cells(self, row: Row) -> list[View]:
        return [_view(column, row) for column in self.columns]


def _view(column: Column, row: Row) -> View:
    value = row.get(column.field)
    mark = value if isinstance(value, Mark) else Mark(value)
    value, tone = mark.value, mark.tone
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return View(DASH, tone, "", column.is_text)
    if isinstance(value, str):
        shown, is_plain = value, value in (MISSING, DASH)
        tone = "missing" if value == MISSING else tone
    else:
        shown, is_plain = column.format(value), False
    href = mark.href
    if href == "" and not column.is_text and not is_plain:
        href = row.get("href")
    return View(shown, tone, "" if shown == DASH else href or "", column.is_text)


# --- other blocks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prose:
    """One paragraph; the tone `warn` sets it off."""

    text: str
    tone: str = ""
    kind: str = "prose"


@dataclass(frozen=True)
class Figure:
    """A figure in each format that is written beside the page; `alt` says in words what it shows."""

    id: str
    caption: str
    alt: str
    files: Mapping[str, bytes]  # svg, png, pdf, csv
    kind: str = "figure"


Block = Prose | Table | Figure


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its table of contents."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    is_folded: bool = True

    @property
    def tables(self) -> Iterator[Table]:
        return (block for block in self.blocks if isinstance(block, Table))

    @property
    def figures(self) -> Iterator[Figure]:
        return (block for block in self.blocks if isinstance(block, Figure))


@dataclass(frozen=True)
class Headline:
    """The first screen: the question, what the verdicts answer, the unit that the answer rests on, one figure."""

    question: str
    answers: tuple[str, ...]
    unit: str
    figure: Figure | None


@dataclass(frozen=True)
class Page:
    """A whole report. Banners are what a reader must know before the first number; cards are the verdicts."""

    title: str
    note: str
    headline: Headline
    banners: tuple[str, ...]
    cards: tuple[Any, ...]
    card_notes: tuple[str, ...]
    sections: tuple[Section, ...]
    files: tuple[str, ...] = ()
    preview: str = ""

    @property
    def figures(self) -> list[Figure]:
        first = [self.headline.figure] if self.headline.figure else []
        return [*first, *(figure for section in self.sections for figure in section.figures)]


# --- rendering ------------------------------------------------------------------------------------------------------


def anchor(*parts: str | None) -> str:
    """The id of a place of the page; parts that are empty are left out."""
    return "/".join(part for part in parts if part)


def link(id: str) -> str:
    """The href of a place of the page."""
    return f"#{quote(id, safe='/:.,-_+@')}"


def clean(value: Any) -> Any:
    """Every value that a template prints: control characters are spelled out. Markup is the templates' own."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return value if value.isprintable() else printable(value).replace("\\t", "\t")


def render(template: str, **values: Any) -> str:
    """A template with its values; those of `.html.j2` are escaped."""
    return _environment(template.endswith(".html.j2")).get_template(template).render(**values)


@cache
def _environment(escapes: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escapes,
        undefined=StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["md"] = escape_markdown
    environment.globals["style"] = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    environment.globals["script"] = Markup((TEMPLATES / "script.js").read_text(encoding="utf-8"))
    return environment


def escape_markdown(value: Any) -> str:
    """Text that is no markup in a Markdown table or paragraph."""
    return re.sub(r"([|<>*_~`\[\]#\\])", r"\\\1", str(clean(str(value))).replace("\n", " "))


# --- what a page may hold -------------------------------------------------------------------------------------------

_ATTRIBUTE = re.compile(r'\s(id|href|src|srcset|poster|data|action|background|style)="([^"]*)"')
_STYLE = re.compile(r"<style>(.*?)</style>", re.S)


def check_pages(pages: Mapping[str, str], files: Iterable[str] = ()) -> None:
    """Check the pages of a report together: every link leads to a place or file among them, no id stands twice, nothing
    is loaded from elsewhere. Texts are escaped, so attributes are the templates' own.

    Args:
        pages: HTML by path. files: other files that links may lead to, relative to the report's folder.

    Raises:
        PageError: all faults at once.
    """
    known = {path: _read_attributes(html) for path, html in pages.items()}
    ids = {path: Counter(value for name, value in found if name == "id") for path, found in known.items()}
    beside = {*files, *pages}
    faults = []
    for path, attributes in known.items():
        faults += [f"{path}: {n} places are named {id}" for id, n in ids[path].items() if n > 1]
        for name, value in dict.fromkeys(attributes):
            if name == "style" and "url(" in value:
                faults.append(f"{path}: style loads {value}")
            if name in ("id", "style") or value.startswith("data:"):
                continue
            target, _, fragment = value.partition("#")
            if name != "href" or "://" in value or target.startswith("/"):
                faults.append(f"{path}: leads out of the report: {value}")
                continue
            other = _resolve(path, unquote(target)) if target else path
            if other not in beside:
                faults.append(f"{path}: no file is named {other}")
            elif fragment and other in ids and unquote(fragment) not in ids[other]:
                faults.append(f"{path}: no place is named {unquote(fragment)}")
        for style in _STYLE.findall(pages[path]):
            faults += [f"{path}: style loads {url}" for url in re.findall(r"(?:url\(|@import)\s*([^)\s]+)", style)]
    if faults:
        raise PageError("the report would not stand alone: " + "; ".join(dict.fromkeys(faults[:20])))


def _read_attributes(html: str) -> list[tuple[str, str]]:
    return [(name, unescape(value)) for name, value in _ATTRIBUTE.findall(html)]


def _resolve(page: str, target: str) -> str:
    """A path relative to a page, as a path relative to the report's folder."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
