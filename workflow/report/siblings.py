"""Finished results of this plan's conditions that the plan does not use. Seeds that speak against a number once lay on
disk while it was written up; whoever reads a report must see that there is more."""

import re

from workflow.audit.logs import names
from workflow.audit.status import finished_keys
from workflow.matrix import MEASURING
from workflow.report.blocks import DASH, Cell, Cells, Fold, Section, show, table
from workflow.report.scores import POINTS
from workflow.report.study import Study
from workflow.store import RESULTS, Record, read_record, record_path


def siblings_section(study: Study) -> Section:
    """Measured with the same test or judge prompts, by cell; in no mean, since their protocol may be another."""
    rows: list[Cells] = []
    for stage in MEASURING:
        nodes = study.matrix.nodes(stage)
        planned = {(n.label, n.key) for n in nodes}
        data = {n.key.split("-")[0] for n in nodes}
        for label in names(f"{RESULTS}/{stage}"):
            if not _is_of(label, study.conditions):
                continue
            for key in finished_keys(stage, label):
                if (label, key) not in planned and key.split("-")[0] in data:
                    record = read_record(record_path(stage, label, key))
                    rows.append([label, f"{stage}/{label}/{key}", *_values(record), _why(study, label)])
    if not rows:
        return Section("siblings", "Results beside this plan", ())
    header = ("cell", "record", "ARC", "alignment", "coherence", "")
    notes = (
        "In no mean and no test here. `python -m workflow why` and `diff` tell how they differ.",
        *(study.judge_note(name) for name in study.scorers),
    )
    made = table(
        "siblings-table",
        "Finished results of these conditions that this plan does not use",
        header,
        rows,
        (0, 1, 5),
        notes,
    )
    return Section("siblings", "Results beside this plan", (Fold("siblings-fold", f"{len(rows)} results", (made,)),))


def _is_of(label: str, conditions: list[str]) -> bool:
    return bool(re.match(rf"({'|'.join(map(re.escape, conditions))})\.p\d+(\.|$)", label))


def _values(record: Record) -> tuple[str, str, str]:
    m = record.metrics
    if record.stage == "arc":
        return show(m.get("accuracy"), "fraction"), DASH, DASH
    alignment, coherence = (show((m.get(name) or {}).get("mean"), POINTS) for name in ("alignment", "coherence"))
    return DASH, alignment, coherence


def _why(study: Study, label: str) -> Cell:
    known = any(n.label == label for n in study.matrix.nodes(*MEASURING))
    return Cell("another recipe of a planned cell" if known else "a cell that is not in the plan")
