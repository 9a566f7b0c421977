"""What the evaluations found beside their main numbers: ARC by contamination, the judge's outcomes, reruns."""

from collections.abc import Iterable, Mapping

from workflow.audit.lineage import number_id
from workflow.matrix import Node
from workflow.report.blocks import DASH, Block, Cell, Cells, Fold, Section, count, show, table
from workflow.report.scores import Row
from workflow.report.study import Place, Study
from workflow.report.tables import lineage_cell
from workflow.store import Record

ARC = ("arc", "arc_clean", "arc_contaminated")
Group = tuple[str, str, str | None]  # condition, phase, arm


def _grouped(study: Study, stage: str, instrument: str) -> dict[Group, list[tuple[Node, Record]]]:
    """Records of one instrument by what is averaged, in the config's order."""
    found: dict[Group, list[tuple[Node, Record]]] = {}
    for node, record in study.records.items():
        if node.stage == stage and node.instrument == instrument and node.cell is not None:
            found.setdefault((node.cell.condition, node.cell.phase, node.cell.arm), []).append((node, record))
    return found


def _named(group: Group) -> list[str | Cell]:
    return [group[0], group[1] + (f", arm {group[2]}" if group[2] else "")]


# --- ARC --------------------------------------------------------------------------------------------------------------


def arc_section(study: Study) -> Section:
    """Accuracy in full and by contamination, against chance, with what the letters say."""
    blocks: list[Block] = []
    by_record = {(r["record"], r["metric"]): r for r in study.rows}
    for arc in study.config.arc:
        rows: list[Cells] = []
        cells: list[Cells] = []
        unknown = False
        for group, members in _grouped(study, "arc", arc.name).items():
            sums = []
            for metric in ARC:
                found = [r for n, _ in members if (r := by_record.get((_record(n), metric)))]
                top, bottom = sum(r["numerator"] for r in found), sum(r["denominator"] for r in found)
                place = Place(arc.name, metric, "fraction")
                text = f"{show(top / bottom, 'fraction')} ({count(top)} / {count(bottom)})" if bottom else DASH
                sums.append(lineage_cell(text, group[2], group[1], place, group[0]))
                unknown = unknown or (
                    metric == "arc_clean" and not any((_record(n), m) in by_record for n, _ in members for m in ARC[1:])
                )
            mass = sum(r.metrics["letter_mass_mean"] for _, r in members) / len(members)
            rows.append(
                [
                    *_named(group),
                    str(len(members)),
                    *sums,
                    show(members[0][1].metrics["chance"], "fraction"),
                    show(mass, "fraction"),
                ]
            )
            cells += [_arc_cell(node, record, by_record) for node, record in members]
        if not rows:
            continue
        notes = [
            "clean and contaminated: items outside and inside the model's own training data, by the overlap "
            "check of the data; a dash: no such item.",
            "Items of all runs of a row are pooled.",
            "For some cells nobody has looked for overlap (`python -m workflow lock` does): only the full test "
            "is given."
            if unknown
            else "",
        ]
        header = ("condition", "phase", "runs", "full", "clean", "contaminated", "chance", "letter mass (mean)")
        blocks.append(
            table(f"arc-{arc.name}", f"ARC accuracy by contamination ({arc.name})", header, rows, (0, 1), notes)
        )
        each = ("cell", "full", "clean", "contaminated", "letter mass (mean)", "letters predicted")
        made = table(f"arc-cells-{arc.name}-table", f"Every cell ({arc.name})", each, cells, (0, 5))
        blocks.append(Fold(f"arc-cells-{arc.name}", f"Every cell ({arc.name}), with the letters predicted", (made,)))
    return Section("arc", "ARC: full, clean and contaminated", tuple(blocks))


def _arc_cell(node: Node, record: Record, by_record: Mapping[tuple[str, str], Row]) -> list[str | Cell]:
    parts = []
    for metric in ARC:
        r = by_record.get((_record(node), metric))
        text = f"{show(r['value'], 'fraction')} ({r['numerator']} / {r['denominator']})" if r else DASH
        parts.append(
            Cell(text, number_id(node.label, str(node.instrument), metric) if r else "", "lineage" if r else "")
        )
    letters = " ".join(f"{letter}:{n}" for letter, n in record.metrics["predicted_letters"].items())
    return [node.label, *parts, show(record.metrics["letter_mass_mean"], "fraction"), letters]


def _record(node: Node) -> str:
    return f"{node.stage}/{node.label}/{node.key}"


# --- the judge --------------------------------------------------------------------------------------------------------


def outcomes_section(study: Study) -> Section:
    """Completions with and without a score, and the means that those without one allow."""
    blocks: list[Block] = []
    for instrument in study.config.instruments:
        groups = _grouped(study, "judge", instrument.name)
        if not groups:
            continue
        kinds = list(next(iter(groups.values()))[0][1].metrics["alignment"]["counts"])
        rows: list[Cells] = []
        cells: list[Cells] = []
        for metric in ("alignment", "coherence"):
            place = Place(instrument.name, metric, "points")
            for group, members in groups.items():
                scored = any(r.metrics[metric]["scored"] for _, r in members)  # or there is no number to link to
                means = [
                    lineage_cell(text, group[2], group[1], place, group[0]) if scored else Cell(text)
                    for text in _means([r for _, r in members], metric)
                ]
                counts = [sum(r.metrics[metric]["counts"].get(kind, 0) for _, r in members) for kind in kinds]
                total = sum(r.metrics[metric]["n"] for _, r in members)
                rows.append([metric, *_named(group), *map(count, counts), count(total), *means])
                for node, record in members:
                    m = record.metrics[metric]
                    own = number_id(node.label, instrument.name, metric) if m["mean"] is not None else ""
                    value = Cell(show(m["mean"], "points"), own, "lineage" if own else "")
                    cells.append(
                        [
                            node.label,
                            metric,
                            *(str(m["counts"].get(k, 0)) for k in kinds),
                            value,
                            show(m["missing_0"], "points"),
                            show(m["missing_100"], "points"),
                        ]
                    )
        tail = ("mean of scored", "mean if missing = 0", "mean if missing = 100")
        notes = [
            "Counts are of the completions of all runs of a row; means are over its runs.",
            study.judge_note(instrument.name),
        ]
        blocks.append(
            table(
                f"outcomes-{instrument.name}",
                f"Outcomes ({instrument.name})",
                ("scale", "condition", "phase", *kinds, "all", *tail),
                rows,
                (0, 1, 2),
                notes,
            )
        )
        made = table(
            f"outcomes-cells-{instrument.name}-table",
            f"Outcomes by cell ({instrument.name})",
            ("cell", "scale", *kinds, *tail),
            cells,
            (0, 1),
            notes[1:],
        )
        blocks.append(Fold(f"outcomes-cells-{instrument.name}", f"Every cell ({instrument.name})", (made,)))
        blocks += _agreement(instrument.name, ((n, r) for members in groups.values() for n, r in members), study)
    return Section("outcomes", "Outcomes of the judge", tuple(blocks))


def _means(records: list[Record], metric: str) -> list[str]:
    """Means over runs: of the scored, with the missing at zero, at a hundred."""
    found = []
    for name in ("mean", "missing_0", "missing_100"):
        values = [v for r in records if (v := r.metrics[metric][name]) is not None]
        found.append(show(sum(values) / len(values) if values else None, "points"))
    return found


def _agreement(instrument: str, judged: Iterable[tuple[Node, Record]], study: Study) -> list[Block]:
    """How far second judgings of the same completions agree; nothing where none was asked for."""
    rows = [
        [
            node.label,
            scale,
            str(a["pairs"]),
            str(a["same_kind"]),
            show(a["mean_abs_difference"], "points"),
            show(a["max_abs_difference"], "points"),
            f"{a['same_side']} / {a['scored']}",
        ]
        for node, record in judged
        for scale, a in (record.metrics.get("agreement") or {}).items()
    ]
    if not rows:
        return []
    header = (
        "cell",
        "scale",
        "judged twice",
        "same outcome",
        "mean |difference|",
        "max |difference|",
        "same side of the threshold",
    )
    return [
        table(
            f"agreement-{instrument}",
            f"Completions judged twice ({instrument})",
            header,
            rows,
            (0, 1),
            [study.judge_note(instrument)],
        )
    ]


# --- reruns -----------------------------------------------------------------------------------------------------------


def reruns_section(study: Study) -> Section:
    """Deliberate reruns of one recipe beside the original. They are no replicates: shown, never averaged."""
    found = []
    originals = {(n.stage, n.key): r for n, r in study.records.items() if n.cell is not None}
    for node, record in study.records.items():
        if node.cell is None and (original := originals.get((node.stage, node.key))) is not None:
            for metric, unit in (("accuracy", "fraction"), ("alignment", "points"), ("coherence", "points")):
                both = [_value(r.metrics.get(metric)) for r in (original, record)]
                if None not in both:
                    same = "the same bytes" if original.digest == record.digest else Cell("other bytes", tone="open")
                    found.append((original.cell, node.label, metric, *(show(value, unit) for value in both), same))
    header = ("cell", "rerun", "number", "original", "rerun gave", "outputs")
    notes = [study.judge_note(name) for name in study.scorers]
    made = [table("reruns-table", "One recipe run again", header, found, (0, 1, 2, 5), notes)] if found else []
    return Section("reruns", "Reruns", tuple(made))


def _value(metric: float | dict[str, float] | None) -> float | None:
    return metric.get("mean") if isinstance(metric, dict) else metric
