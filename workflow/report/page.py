"""A page as HTML and as Markdown, and the check that it stands alone: links lead somewhere, nothing is loaded."""

import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workflow.errors import UserError
from workflow.report.blocks import Block, Cell, Fold, Page, Preformatted, Prose, Table

TEMPLATES = Path(__file__).parent / "templates"
_LOADS = {"src", "srcset", "poster", "data", "action", "background"}


class PageError(UserError, ValueError):
    """A page that a reader could not check: a link to nowhere, two places of one name, something from the network."""


def render_html(page: Page) -> str:
    """One file with its style and figures inside.

    Raises:
        PageError: a link that does not resolve, or anything that would be loaded from elsewhere.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fragment"] = lambda anchor: quote(anchor, safe="/:.,-_+")
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    html = environment.get_template("page.html.j2").render(page=page, style=style)
    check_html(html)
    return html


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.inner: list[str] = []
        self.outer: list[str] = []
        self.styles: list[str] = []
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            text = value or ""
            if name == "style":
                self.styles.append(text)
            if name == "id":
                self.ids.append(text)
            elif name == "href" and text.startswith("#"):
                self.inner.append(unquote(text[1:]))
            elif name in (*_LOADS, "href", "xlink:href") and not text.startswith("data:"):
                self.outer.append(f"{tag} {name}={text}")


def check_html(html: str) -> None:
    """Check links, names, styles and cells of a page. What its texts say, such as NaN or `url(`, is no matter here.

    Raises:
        PageError: all faults at once.
    """
    links = _Links()
    links.feed(html)
    links.close()
    known = set(links.ids)
    faults = [f"no place is named {anchor}" for anchor in dict.fromkeys(links.inner) if anchor not in known]
    faults += [f"{n} places are named {name}" for name, n in Counter(links.ids).items() if n > 1]
    faults += [f"leads out of the page: {what}" for what in links.outer]
    loads = re.findall(r"(?:url\(|@import)\s*([^)\s]+)", "\n".join(links.styles))
    faults += [f"style loads {url}" for url in loads if "data:" not in url]
    if re.search(r"<td[^>]*>\s*[+-]?(?:nan|inf)\s*</td>", html, re.I):
        faults.append("a number is not a number")
    if faults:
        raise PageError("the report would not stand alone: " + "; ".join(faults[:20]))


# --- Markdown -------------------------------------------------------------------------------------------------------


def render_markdown(page: Page) -> str:
    """The same page as text; figures are linked as files beside it, and folds are `<details>`."""
    lines = [f"# {page.title}", "", page.note, ""]
    lines += [line for banner in page.banners for line in (f"> **{banner}**", "")]
    for section in page.sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_markdown(block), ""]
    lines += list(page.colophon)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _markdown(block: Block) -> list[str]:
    match block:
        case Prose():
            return ["".join(_inline(part) for part in block.parts)]
        case Table():
            return _markdown_table(block)
        case Preformatted():
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
            return [f"`{block.ref}`", "", fence, block.text, fence]
        case Fold():
            inner = [line for part in block.blocks for line in (*_markdown(part), "")]
            return ["<details>", f"<summary>{_escape(block.summary)}</summary>", "", *inner, "</details>"]
        case _:
            return [f"![{block.alt}](figures/{block.id}.png)", "", f"*{_escape(block.caption)}*"]


def _markdown_table(block: Table) -> list[str]:
    rule = ["---" if i in block.left else "---:" for i in range(len(block.header))]
    lines = [f"**{_escape(block.caption)}**", ""]
    lines += [_line(block.header), _line(rule)]
    lines += [_line([_inline(cell) for cell in cells]) for cells in block.rows]
    return lines + [line for note in block.notes for line in ("", f"<sub>{_escape(note)}</sub>")]


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _inline(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.tone == "struck":
        return f"~~{text}~~"
    if cell.tone == "missing":
        return f"**{text}**"
    return f"`{cell.text}`" if cell.tone == "code" else text


def _escape(text: str) -> str:
    return re.sub(r"([|<>*_~`\[\]])", r"\\\1", text.replace("\n", " "))
