"""Set a result aside so that it is made again; and the codes that made a stage's results."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from workflow.audit.status import current_code
from workflow.errors import ConfigError, did_you_mean
from workflow.files import write_atomic
from workflow.links import read_links
from workflow.matrix import STAGES, Matrix, Node
from workflow.retractions import parse_place
from workflow.reuse import forget
from workflow.store import REDONE, node_dir, out_dir, record_path, set_aside

JOURNAL = "journal.jsonl"


class Redone(NamedTuple):
    """Where the old result lies now, and the planned nodes that were made from it."""

    aside: Path
    below: set[Node]


def redo(matrix: Matrix, place: str, reason: str) -> Redone:
    """Set a result aside with the reason, and drop what would bring it back: record, copy, index, a judge's journal.

    Raises:
        ConfigError: not STAGE/CELL/KEY, no such result, nothing there to set aside, or no reason.
    """
    stage, cell, key = parse_place(matrix, place, reason)
    record = Path(record_path(stage, cell, key))
    folder = Path(node_dir(stage, cell, key))
    if not out_dir(record).is_dir():
        raise ConfigError(f"{place}: there is no result to set aside. Run `snakemake {record}`.")
    forget("/".join((stage, cell, key)))
    aside = set_aside(out_dir(record), REDONE)
    record.unlink(missing_ok=True)
    for older in folder.glob("superseded.*"):  # nothing of this key is restored in place of a new result
        set_aside(older, REDONE)
    if (folder / JOURNAL).exists():
        os.replace(folder / JOURNAL, _free(aside.with_name(f"{aside.name}.{JOURNAL}")))
    said = {"reason": " ".join(reason.split()), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomic(aside.with_name(f"{aside.name}.json"), json.dumps(said, indent=1) + "\n")
    nodes = [n for n in matrix.nodes() if (n.stage, n.label, n.key) == (stage, cell, key)]
    return Redone(aside, matrix.descendants(*nodes))


def _free(path: Path) -> Path:
    count = 1
    free = path
    while free.exists():
        count += 1
        free = path.with_name(f"{path.name}.{count}")
    return free


def codes_of(matrix: Matrix, stage: str) -> tuple[str, ...]:
    """Digests of the codes that made a stage's finished results, and of the present one.

    Raises:
        ConfigError: there is no such stage.
    """
    if stage not in STAGES:
        raise ConfigError(f"{stage}: no stage; there are {', '.join(STAGES)}.{did_you_mean(stage, STAGES)}")
    summaries = read_links(matrix.nodes()).summaries
    codes = {s.code for n, s in summaries.items() if n.stage == stage} | {current_code(stage)}
    return tuple(sorted(code for code in codes if code))
