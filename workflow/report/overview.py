"""Around a report: its stable copy, the overview of the matrix beside it, previews, two reports side by side."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workflow.audit.status import UNDONE, Survey, finished_keys, survey
from workflow.audit.status_view import MARKS, rows, worst
from workflow.config import Config
from workflow.errors import ConfigError
from workflow.files import write_atomic
from workflow.matrix import MEASURING, STAGES, Matrix
from workflow.report.cells import UP
from workflow.report.numbers import place
from workflow.report.page import Mark, Table, duration, render, show, text
from workflow.report.reference import build
from workflow.report.report import Report, assemble, write, write_page
from workflow.report.study import EMBEDDED, cell_page, finished, load_study
from workflow.stats.table import check_scores, samples
from workflow.store import RESULTS, out_dir, read_record

STABLE = {"report.html": "latest.html", "scores.csv": "latest.csv", "claims.json": "latest.json"}
METRICS = ("arc", "alignment", "coherence")
REFERENCE = Path("results/reference")


# --- the stable copy ------------------------------------------------------------------------------------------------


def publish(matrix: Matrix) -> Path:
    """Copy the plan's report to results/report/NAME/, where its paths stay when its key moves. Returns latest.html.

    Raises:
        StoreError: that report is not made yet.
    """
    record = matrix.report.record
    read_record(record)
    out, target = out_dir(record), Path(record).parent.parent
    files = {p.relative_to(out): p for p in sorted(out.rglob("*")) if p.is_file()}
    for folder in ("cells", "figures"):  # a page of a cell that is gone must not stay
        shutil.rmtree(target / folder) if (target / folder).is_dir() and not (target / folder).is_symlink() else None
    for name, file in files.items():
        if name.parts[0] in ("record.json", "metrics.json"):
            continue
        data = file.read_bytes()
        if name.parts[0] == "cells":  # it lies two folders higher here
            data = data.replace(f'href="{UP}'.encode(), f'href="{UP.removeprefix("../../")}'.encode())
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target / name, data, sync=False)
        if str(name) in STABLE:
            write_atomic(target / STABLE[str(name)], data, sync=False)
    write_atomic(target / "overview.html", overview(matrix, has_cells=True), sync=False)
    return target / "latest.html"


def preview(matrix: Matrix, out: Path) -> Report:
    """A report of what is finished so far, the rest shown as missing. No result: it has no record, no rule makes it.

    Raises:
        ConfigError: the folder is there already.
        StoreError: a record was edited.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already. Name a folder that is not.")
    report = assemble(load_study(matrix, finished(matrix)), is_preview=True)
    out.mkdir(parents=True)
    write(report, out, f"{os.path.relpath(RESULTS, out / 'cells' / 'cell')}/")
    write_atomic(out / "overview.html", overview(matrix, has_cells=True))
    return report


def reference(out: Path) -> str:
    """The report of the published table; returns the verdicts' counts in a line."""
    page, results = build()
    out.mkdir(parents=True, exist_ok=True)
    write_page(page, results, out)
    counts = Counter(result.verdict for result in results)
    return f"{len(results)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())


def summary(matrix: Matrix) -> str:
    """Means by condition before and after EM in the first arm, over how many runs, and commands to try next."""
    config = matrix.config
    scores = pd.read_csv(out_dir(matrix.report.record) / "scores.csv")
    arm = config.arms[0].name
    of_arm = scores["arm"].isna() if arm is None else scores["arm"] == arm
    frame = check_scores(scores[of_arm | (scores["phase"] == "pre_em")])
    places = frame.loc[frame["metric"].isin(METRICS), ["metric", "instrument", "unit"]].drop_duplicates()
    lines = [["condition", "runs", *(f"{metric} ({instrument})" for metric, instrument, _ in places.values)]]
    cells = {
        (metric, instrument, phase): samples(frame, metric, phase, instrument)
        for metric, instrument, _ in places.values
        for phase in ("pre_em", "post_em")
    }
    for condition in frame["condition"].unique():
        runs, shown = 0, []
        for metric, instrument, unit in places.values:
            both = [cells[metric, instrument, phase].get(condition) for phase in ("pre_em", "post_em")]
            runs = max(runs, *(cell.runs for cell in both if cell))
            shown.append(" -> ".join(show(cell.mean, unit) if cell else "missing" for cell in both))
        lines.append([str(condition), str(runs), *shown])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = ["  ".join(c.ljust(width) for c, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    head = ["means before -> after EM, and the runs after EM"]
    if config.placement.judge.base_url == EMBEDDED:
        names = ", ".join(dict.fromkeys(i.judge.model for i in config.instruments))
        table.append(f"alignment and coherence are scored by {names}: a rule-based scorer, no judge model")
    return "\n".join([*head, *table])


def next_steps(config: Config, configfile: str) -> str:
    """Commands to try, that work as printed."""
    cell = f"{next(c.name for c in config.conditions if c.enabled)}.p{config.pipeline_seeds[0]}"
    number = f"{config.instruments[0].name}/alignment" if config.instruments else f"{config.arc[0].name}/arc"
    return (
        f"    source .venv/bin/activate\n"
        f"    matrix status --configfile {configfile}\n"
        f"    matrix lineage {cell}/{number} --configfile {configfile}\n"
        f"    snakemake -n all --configfile {configfile}"
    )


# --- the overview ---------------------------------------------------------------------------------------------------


def overview(matrix: Matrix, has_cells: bool) -> str:
    """The matrix as a grid of cells by state with what each took, the graph, and what is not as it should be. It shows
    the folder as it is now, and is no part of a report."""
    found = survey(matrix)
    counts = Counter(state.state for state in found.states.values())
    page = {
        "title": matrix.config.title,
        "counts": ", ".join(f"{n} {state}" for state, n in counts.items()),
        "missing": str(found.prices.cost(found.to_compute())) if found.to_compute() else "",
        "marks": [(mark, state) for state, (mark, _) in MARKS.items() if counts[state]],
        "grid": _grid(found, has_cells),
        "graph": _graph(found),
        "odd": _odd(found),
        "waivers": [f"{', '.join(w.cells)}: {', '.join(w.fields)} ({w.reason})" for w in matrix.config.waivers],
        "reports": _reports(matrix),
    }
    return render("overview.html.j2", page=page)


def _grid(found: Survey, has_cells: bool) -> dict[str, Any]:
    grid = rows(found)
    heads = list(dict.fromkeys(head for row in grid.values() for head in row))
    lines = []
    for name, row in grid.items():
        cells = []
        for head in heads:
            nodes = row.get(head, [])
            seconds = [f.observed.get("seconds", 0.0) for n in nodes if (f := found.links.summaries.get(n))]
            states = {found.states[n].state for n in nodes}
            measured = next((n for n in nodes if n.stage in MEASURING and found.states[n].state not in UNDONE), None)
            done = states <= {"done"}
            cells.append(
                {
                    "mark": worst([found.states[n] for n in nodes])[0],
                    "tone": "supported" if done else "refuted" if states & {"failed", "retracted"} else "",
                    "states": ", ".join(sorted(states)),
                    "took": duration(sum(seconds)) if seconds else "",
                    "href": cell_page(measured.label, str(measured.instrument)) if measured and has_cells else "",
                }
            )
        lines.append({"name": name, "cells": cells})
    return {"heads": heads, "rows": lines}


def _graph(found: Survey) -> list[dict[str, Any]]:
    """Stages as boxes of a picture, left to right by how far they lie from the base model."""
    depth: dict[str, int] = {}
    counts: dict[str, Counter[bool]] = {}
    edges: dict[str, set[str]] = {}
    for node, state in found.states.items():
        counts.setdefault(node.stage, Counter())[state.state in UNDONE] += 1
        edges.setdefault(node.stage, set()).update(parent.stage for parent in node.parents)
        depth[node.stage] = max([depth.get(node.stage, 0), *(depth[p.stage] + 1 for p in node.parents)])
    depth["report"] = max(depth.values())
    lanes: Counter[int] = Counter()
    boxes: dict[str, dict[str, Any]] = {}
    for stage in (name for name in STAGES if name in counts):
        x, y = 132 * depth[stage], 46 * lanes[depth[stage]]
        lanes[depth[stage]] += 1
        finished_, total = counts[stage][False], counts[stage].total()
        told = f"{finished_} of {total} finished"
        boxes[stage] = {"stage": stage, "x": x, "y": y, "told": told, "is_done": finished_ == total}
    for stage, box in boxes.items():
        box["from"] = [(boxes[p]["x"] + 112, boxes[p]["y"] + 17) for p in sorted(edges[stage]) if p in boxes]
    return list(boxes.values())


def _odd(found: Survey) -> Table:
    """Results that are not simply done: retracted, failed, of other code or environment, outdated, missing."""
    odd = [(node, s) for node, s in found.states.items() if s.state != "done"]
    order = {"retracted": 0, "failed": 1, "interrupted": 2, "other code": 3, "other environment": 4, "outdated": 5}
    odd.sort(key=lambda item: order.get(item[1].state, 9))
    lines = [
        {"state": Mark(s.state, "refuted" if s.state in ("retracted", "failed") else "open"), "result": place(node),
         "why": s.reason}
        for node, s in odd[:400]
    ]  # fmt: skip
    notes = (f"And {len(odd) - 400} more; `matrix status --json` names them all.",) if len(odd) > 400 else ()
    columns = (text("state"), text("result"), text("why"))
    return Table("odd", f"Results that are not simply done ({len(odd)})", columns, lines, notes)


def _reports(matrix: Matrix) -> Table:
    """Finished reports of this config's name, and the command that holds each against the plan's."""
    name, key = matrix.report.label, matrix.report.key
    lines = [
        {
            "key": Mark(other, href=f"{other}/out/report.html"),
            "what": "the plan's" if other == key else "",
            "command": "" if other == key else f"matrix compare {name}/{other} {name}/{key}",
        }
        for other in finished_keys("report", name)
    ]
    columns = (text("report", "key"), text("", "what"), text("what changed since", "command"))
    return Table("reports", "Finished reports of this name", columns, lines)


# --- two reports side by side ---------------------------------------------------------------------------------------


def find_report(name: str) -> Path:
    """The record of a report by its path, its folder, or NAME/KEY.

    Raises:
        ConfigError: there is none.
    """
    for path in (Path(name), Path(name) / "record.json", Path(RESULTS) / "report" / name / "record.json"):
        if path.name == "record.json" and path.is_file():
            return path
    raise ConfigError(f"{name}: no finished report. Name it as NAME/KEY, as under results/report/, or by its path.")


def compare(one: str, two: str) -> dict[str, Any]:
    """Numbers, verdicts and protocols that differ between two finished reports."""
    records = [find_report(name) for name in (one, two)]
    scores = [pd.read_csv(out_dir(r) / "scores.csv") for r in records]
    left, right = (s.set_index(["cell", "instrument", "metric"])[["value", "record"]] for s in scores)
    both = left.join(right, how="outer", lsuffix="_old", rsuffix="_new")
    differs = both[(both["value_old"] != both["value_new"]) & ~(both["value_old"].isna() & both["value_new"].isna())]
    numbers = [
        {"number": "/".join(map(str, at)), "old": _value(row["value_old"]), "new": _value(row["value_new"])}
        for at, row in differs.iterrows()
    ]
    claims = [{c["id"]: c["verdict"] for c in json.loads((out_dir(r) / "claims.json").read_bytes())} for r in records]
    prints = [_flat(read_record(r).observed["protocols"]) for r in records]
    return {
        "reports": [str(r.parent) for r in records],
        "numbers": len(both),
        "changed": numbers,
        "verdicts": _changes("claim", *claims),
        "protocols": _changes("cell", *prints),
    }


def _value(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _flat(protocols: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {f"{cell}/{instrument}": id for instrument, cells in protocols.items() for cell, id in cells.items()}


def _changes(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*old, *new])
    return [{kind: n, "old": old.get(n), "new": new.get(n)} for n in names if old.get(n) != new.get(n)]


def show_comparison(found: Mapping[str, Any], shown: int = 40) -> str:
    """Lines for a terminal."""
    lines = ["old: {}\nnew: {}".format(*found["reports"])]
    lines.append(f"{len(found['changed'])} of {found['numbers']} numbers differ")
    lines += _lines(found["changed"], "number", shown)
    lines.append(f"{len(found['verdicts'])} verdicts differ")
    lines += _lines(found["verdicts"], "claim", shown)
    lines.append(f"{len(found['protocols'])} protocol fingerprints differ")
    lines += _lines(found["protocols"], "cell", shown)
    return "\n".join(lines)


def _lines(changed: Sequence[Mapping[str, Any]], kind: str, shown: int) -> list[str]:
    lines = [f"  {c[kind]}: {_told(c['old'])} -> {_told(c['new'])}" for c in changed[:shown]]
    return lines + ([f"  and {len(changed) - shown} more; `--json` has them all"] if len(changed) > shown else [])


def _told(value: Any) -> str:
    return "absent" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
