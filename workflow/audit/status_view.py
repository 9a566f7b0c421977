"""The grid in a terminal: conditions down, seeds across, one mark per stage where the terminal is wide enough."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workflow.audit.status import STATES, NodeState, State, Survey, column
from workflow.errors import printable
from workflow.matrix import Node

MARKS: dict[State, tuple[str, str]] = {
    "done": ("✓", "green"),
    "other code": ("o", "cyan"),
    "other environment": ("e", "cyan"),
    "outdated": ("↓", "yellow"),
    "can be taken over": ("=", "yellow"),
    "missing": ("·", "yellow"),
    "stale": ("~", "magenta"),
    "running": (">", "blue"),
    "interrupted": ("⏸", "yellow"),
    "failed": ("✗", "bold red"),
    "retracted": ("R", "red"),
}
_WORST: tuple[State, ...] = (
    "failed",
    "retracted",
    "interrupted",
    "stale",
    "running",
    "missing",
    "outdated",
    "can be taken over",
    "other code",
    "other environment",
    "done",
)
_REFRESH_S = 5.0
_SHOWN = 12  # notes in full; a matrix of 40 000 nodes must not scroll its own summary away

Row = dict[str, list[Node]]  # column heading -> nodes, in the order of the stages


def watch(look: Callable[[], Survey]) -> None:
    """Show the matrix again and again until no job is running, or Ctrl-C."""
    console = _console()
    with suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            found = look()
            console.clear()  # nothing where there is no terminal
            show(found, console)
            if not any(state.state == "running" for state in found.states.values()):
                return
            time.sleep(max(_REFRESH_S, time.monotonic() - began))


def _console() -> Console:
    return Console(width=max(80, shutil.get_terminal_size((120, 24)).columns), highlight=False)


def show(found: Survey, console: Console | None = None) -> None:
    """Grid, states by stage with the cost of what is missing, and the reasons of what is not as it should be."""
    console = console or _console()
    matrix = found.matrix
    console.print(f"[bold]{matrix.config.title}[/] ({matrix.configfile})\n")
    _print_grid(found, console)
    console.print("  ".join(f"[{style}]{mark}[/] {state}" for state, (mark, style) in MARKS.items()), "\n")
    console.print(_stages(found))
    _print_notes(found, console)
    counts = Counter(s.state for s in found.states.values())
    console.print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    if counts["stale"]:
        console.print("stale: finished under another key; `why CELL` says which fields of the recipe changed")
    if counts["outdated"]:
        console.print("outdated: made from other bytes than a parent has now, or below such; restored where it fits")
    if found.data_of_other_code:
        names = ", ".join(found.data_of_other_code)
        console.print(f"data built by other code than now: {names}; `matrix lock` builds them again and compares")
    for node, count in list(found.unscored().items())[:_SHOWN]:
        kinds = ", ".join(f"{kind} {n}" for kind, n in count["by_kind"].items())
        console.print(f"without a score: {count['share']:.0%} of judge/{node.label}/{node.key} ({kinds})", markup=False)
    undone = found.to_compute()
    if undone:
        console.print(f"missing: {found.prices.cost(undone)}")


def rows(found: Survey) -> dict[str, Row]:
    """`condition.p42[.arm]` -> {"pre": nodes, "42": nodes, ...}; the base, the report and reruns are in no cell."""
    grid: dict[str, Row] = {}
    for node in found.states:
        if cell := node.cell:
            name = f"{cell.condition}.p{cell.pipeline_seed}" + (f".{cell.arm}" if cell.arm else "")
            heading = "pre" if cell.em_seed is None else f"e{cell.em_seed}"
            grid.setdefault(name, {}).setdefault(heading, []).append(node)
    return grid


def _print_grid(found: Survey, console: Console) -> None:
    grid = rows(found)
    if not grid:
        return
    headings = list(dict.fromkeys(h for row in grid.values() for h in row))
    before, after = _columns(grid, pre=True), _columns(grid, pre=False)
    widths = {h: max(len(h), len(before if h == "pre" else after)) for h in headings}
    left = max(map(len, grid)) + 1
    if left + sum(w + 1 for w in widths.values()) > console.width:
        _print_compact(found, grid, headings, left, console)
        return
    console.print(f"pre: {', '.join(before)}" + (f"\neN:  {', '.join(after)}" if after else ""))
    console.print(" " * left + " ".join(h.ljust(widths[h]) for h in headings).rstrip(), style="bold")
    for name, row in grid.items():
        line = Text(name.ljust(left))
        for heading in headings:
            nodes = {column(node): node for node in row.get(heading, [])}
            places = before if heading == "pre" else after
            for place in places:
                line.append(*(MARKS[found.states[nodes[place]].state] if place in nodes else (" ", "")))
            line.append(" " * (widths[heading] - len(places) + 1))
        line.rstrip()
        console.print(line, no_wrap=True, crop=False)


def _print_compact(found: Survey, grid: dict[str, Row], headings: list[str], left: int, console: Console) -> None:
    seeds = [h for h in headings if h != "pre"]
    told = f"pre, then {seeds[0]} to {seeds[-1]} in the config's order" if seeds else "pre"
    console.print(f"One mark per cell, the worst of its stages: {told}")
    per_line = console.width - left
    for start in range(0, len(headings), per_line):
        for name, row in grid.items():
            line = Text(name.ljust(left))
            marks = [worst([found.states[n] for n in row.get(h, ())]) for h in headings[start : start + per_line]]
            for (mark, style), run in groupby(marks):  # a span for each mark would take most of the time
                line.append(mark * len(list(run)), style)
            console.print(line, no_wrap=True, crop=False)


def _columns(grid: dict[str, Row], pre: bool) -> list[str]:
    """What the marks of a cell stand for, in order; the row with the most stages gives the order."""
    cells = [nodes for row in grid.values() for heading, nodes in row.items() if (heading == "pre") == pre]
    return list(dict.fromkeys(column(n) for nodes in sorted(cells, key=len, reverse=True) for n in nodes))


def worst(states: list[NodeState]) -> tuple[str, str]:
    found = {s.state for s in states}
    return next((MARKS[state] for state in _WORST if state in found), (" ", ""))


def _stages(found: Survey) -> Table:
    by_stage: dict[str, list[Node]] = {}
    for node in found.states:
        by_stage.setdefault(node.stage, []).append(node)
    used = [s for s in STATES if any(state.state == s for state in found.states.values())]
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for state in used:
        table.add_column(state, justify="right", style=MARKS[state][1])
    for name in ("GPU-hours missing", "job-seconds missing", "from past records"):
        table.add_column(name, justify="right")
    for stage, nodes in by_stage.items():
        counts = Counter(found.states[n].state for n in nodes)
        table.add_row(stage, *[str(counts[s] or "") for s in used], *_costs(found, stage, found.to_compute(nodes)))
    return table


def _costs(found: Survey, stage: str, undone: list[Node]) -> Iterator[str]:
    price = found.prices.of(stage)
    if not undone:
        yield from ("", "", "")
    elif price is None:
        yield from ("?", "?", "none")
    else:
        cost = found.prices.cost(undone)
        yield "?" if price.gpu_seconds is None else f"{cost.gpu_hours:.2f}"
        yield f"{cost.seconds:.0f}"
        yield f"{price.records}{'' if price.planned else ' of other keys'}"


def _print_notes(found: Survey, console: Console) -> None:
    for state in ("running", "failed", "retracted", "interrupted", "outdated", "other environment"):
        noted = [(node, s) for node, s in found.states.items() if s.state == state and s.reason]
        for node, told in noted[:_SHOWN]:
            title = Text(f"\n{state}: ", MARKS[told.state][1])
            console.print(title.append(f"{node.stage}/{node.label}/{node.key}", "default"))
            for line in filter(None, (told.log, *told.reason.split(" | "))):
                console.print(f"  {printable(line)}", markup=False)
        if len(noted) > _SHOWN:
            console.print(f"  and {len(noted) - _SHOWN} more {state}; `status --json` names them all")
    console.print()
