"""What a page shows outside its report's key: what the results cost, and results that lie unused."""

import re
from statistics import median
from typing import Any

from workflow.audit.logs import names
from workflow.audit.status import finished_keys
from workflow.matrix import MEASURING, STAGES
from workflow.report.numbers import POINTS
from workflow.report.page import Block, Table, duration, show, stat, text, whole
from workflow.report.provenance import records_of
from workflow.report.study import Study
from workflow.store import RESULTS, Record, read_record, record_path


def gpu_seconds(record: Record) -> float:
    """As observed; an evaluation that does not say held the GPUs of its provenance for as long as it ran."""
    seconds = record.observed.get("gpu_seconds")
    if seconds is None:
        seconds = record.observed["seconds"] * len(record.provenance.get("gpu") or ())
    return float(seconds)


def cost_table(study: Study) -> list[Block]:
    """Cost by stage, from the records that the report rests on."""
    by_stage: dict[str, list[Record]] = {}
    for node, record in records_of(study).items():
        by_stage.setdefault(node.stage, []).append(record)
    if not by_stage:
        return []
    rows = [_cost(stage, by_stage[stage]) for stage in STAGES if stage in by_stage]
    rows.append(_cost("all", [record for records in by_stage.values() for record in records]))
    columns = (
        text("stage"),
        whole("results"),
        stat("time of all jobs", "seconds", duration),
        stat("median job", "median", duration),
        stat("GPU-hours", "gpu", "{:.2f}".format),
        whole("judge: tokens in", "tokens_in"),
        whole("judge: tokens out", "tokens_out"),
        stat("judge: USD", "usd", "{:.2f}".format),
    )
    notes = (
        "Added up from the records that this report rests on: work that was thrown away is not in it. Times are of "
        "jobs, which may have shared a machine.",
    )
    return [Table("cost-by-stage", "Cost by stage", columns, rows, notes)]


def _cost(name: str, records: list[Record]) -> dict[str, Any]:
    seconds = [float(r.observed["seconds"]) for r in records]
    judged = [r.observed["judge"] for r in records if "judge" in r.observed]
    sums = {field: sum(j[field] for j in judged) for field in ("tokens_in", "tokens_out", "usd")} if judged else {}
    gpu = sum(map(gpu_seconds, records)) / 3600
    return {
        "stage": name,
        "results": len(records),
        "seconds": sum(seconds),
        "median": median(seconds),
        "gpu": gpu,
        **sums,
    }


def unused_results(study: Study) -> list[Block]:
    """Finished results of these conditions that the plan does not use: whoever reads a report must see that there is
    more. In no mean, since their protocol may be another."""
    rows = []
    pattern = re.compile(rf"({'|'.join(map(re.escape, study.conditions))})\.p\d+(\.|$)")
    labels = {n.label for n in study.matrix.nodes(*MEASURING)}
    for stage in MEASURING:
        nodes = study.matrix.nodes(stage)
        planned, data = {(n.label, n.key) for n in nodes}, {n.key.split("-")[0] for n in nodes}
        for label in filter(pattern.match, names(f"{RESULTS}/{stage}")):
            for key in finished_keys(stage, label):
                if (label, key) not in planned and key.split("-")[0] in data:
                    m = read_record(record_path(stage, label, key)).metrics
                    scores = {name: (m.get(name) or {}).get("mean") for name in ("alignment", "coherence")}
                    why = "another recipe of a planned cell" if label in labels else "a cell that is not in the plan"
                    shown = {name: None if v is None else show(v, POINTS) for name, v in scores.items()}
                    accuracy = m.get("accuracy") if stage == "arc" else None
                    shown["arc"] = None if accuracy is None else show(accuracy, "fraction")
                    rows.append({"cell": label, "record": f"{stage}/{label}/{key}", **shown, "why": why})
    if not rows:
        return []
    scores_ = [stat(name, field, str) for name, field in (("ARC", "arc"), ("alignment",) * 2, ("coherence",) * 2)]
    columns = (text("cell"), text("record"), *scores_, text("", "why"))
    notes = ("In no mean and no test here. `matrix why` and `matrix diff` tell how they differ.",)
    caption = f"Finished results of these conditions that this plan does not use: {len(rows)} results"
    return [Table("siblings-table", caption, columns, rows, notes, is_folded=True)]
