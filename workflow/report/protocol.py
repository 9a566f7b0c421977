"""Whether the cells of a table share one protocol, and what a reader must be told where they do not quite."""

from workflow.fingerprint import Comparison, fingerprint
from workflow.matrix import MEASURING, Node
from workflow.report.blocks import Block, Cell, Cells, Section, prose, table
from workflow.report.facts import records_of
from workflow.report.study import Study

LEVELS = {
    "equal": "equal",
    "placement": "equal up to placement",
    "different": "different, under a waiver",
}


def comparisons(study: Study) -> dict[str, Comparison]:
    """By table: the cells of one arm, instrument and phase; and before against after, measurements alone.

    Raises:
        ProtocolError: a difference that no waiver covers.
    """
    found: dict[str, Comparison] = {}
    for instrument, arm in dict.fromkeys((str(n.instrument), arm) for n in study.records for arm in study.arms):
        measured = [
            n for n in study.records if n.stage in MEASURING and n.instrument == instrument and n.cell is not None
        ]
        before = [n for n in measured if n.cell and n.cell.phase == "pre_em"]
        after = [n for n in measured if n.cell and n.cell.phase == "post_em" and n.cell.arm == arm]
        named = _named(instrument, arm)
        for what, nodes, whole in (
            (f"{instrument}, before EM", before, True),
            (f"{named}, after EM", after, True),
            (f"{named}, before against after (the measurement alone)", [*before, *after], False),
        ):
            if len(nodes) > 1 and what not in found:
                found[what] = study.compare(nodes, whole)
    for comparison in found.values():
        comparison.require()
    return found


def _named(instrument: str, arm: str | None) -> str:
    return f"{instrument}{f', arm {arm}' if arm else ''}"


def table_notes(study: Study, found: dict[str, Comparison], instrument: str, arm: str | None) -> list[str]:
    """What stands under a table of the matrix: protocol, waivers, what is retracted and what is missing."""
    comparison = found.get(f"{_named(instrument, arm)}, after EM")
    notes = []
    if comparison is not None:
        notes.append(f"Protocol and environment of the cells after EM: {LEVELS[comparison.level]}.")
        if comparison.waived:
            fields = ", ".join(dict.fromkeys(w.difference.field for w in comparison.waived))
            reasons = "; ".join(dict.fromkeys(w.reason for w in comparison.waived))
            notes.append(f"Waived, {', '.join(comparison.odd_cells())}: {fields} ({reasons}).")
        if comparison.footnotes:
            notes.append(f"Differs between cells: {', '.join(d.field for d in comparison.footnotes)}; values below.")
        if comparison.dirty:
            notes.append("Made from code with uncommitted changes: " + _listed(list(comparison.dirty)) + ".")
    for what, nodes in (("Retracted and left out", study.retracted), ("Missing", study.missing)):
        here = [n.label for n in nodes if n.instrument == instrument and n.stage in MEASURING]
        if here:
            notes.append(f"{what}: {', '.join(here)}.")
    return notes


def protocol_section(study: Study, found: dict[str, Comparison]) -> Section:
    rows: list[Cells] = []
    footnotes: dict[str, None] = {}
    waived: dict[str, None] = {}
    accepted: dict[str, tuple[str, ...]] = {}
    for what, comparison in found.items():
        rows.append([what, Cell(LEVELS[comparison.level], tone="refuted" if comparison.level == "different" else "")])
        footnotes |= dict.fromkeys(str(d) for d in comparison.footnotes)
        accepted |= comparison.accepted
        waived |= dict.fromkeys(str(w) for w in comparison.waived)
    blocks: list[Block] = (
        [table("protocol-levels", "Cells of one table", ("table", "protocol and environment"), rows, (0, 1))]
        if rows
        else []
    )
    blocks += [prose(f"Waived: {text}", tone="warn") for text in waived] or [prose("No difference is waived.")]
    for stage, codes in accepted.items():
        entries = [e for e in study.accepted if e.stage == stage.split("[")[0] and set(codes) & set(e.codes)]
        reasons = "; ".join(e.reason for e in entries)
        blocks.append(
            prose(f"Accepted: the codes {', '.join(codes)} of {stage} count as one ({reasons}).", tone="warn")
        )
    if footnotes:
        blocks.append(
            table(
                "protocol-footnotes",
                "Placement that differs",
                ("field and cells",),
                [[text] for text in footnotes],
            )
        )
    blocks.append(_prints(study))
    blocks.append(_made_by(study))
    blocks.append(_retractions(study))
    return Section("protocol", "Protocol, environment, retractions and waivers", tuple(blocks))


def fingerprints(study: Study) -> dict[str, dict[str, str]]:
    """Instrument -> cell -> fingerprint id."""
    found: dict[str, dict[str, str]] = {}
    for node in study.records:
        if node.cell is not None:
            chain = [record for part in (*study.ancestors(node), node) if (record := study.record(part)) is not None]
            found.setdefault(str(node.instrument), {})[node.label] = fingerprint(chain, accepted=study.accepted).id
    return found


def _prints(study: Study) -> Block:
    rows: list[Cells] = []
    for instrument, by_cell in fingerprints(study).items():
        for id in dict.fromkeys(by_cell.values()):
            cells = [cell for cell, own in by_cell.items() if own == id]
            rows.append([instrument, id, str(len(cells)), _listed(cells)])
    notes = (
        "Cells before and after EM, and a control that skips a stage, have fingerprints of their own; what is "
        "compared field by field stands above.",
    )
    return table(
        "protocol-fingerprints",
        "Protocol fingerprints",
        ("instrument", "fingerprint", "cells", ""),
        rows,
        (0, 1, 3),
        notes,
    )


def _made_by(study: Study) -> Block:
    """Machines and code by stage, as recorded."""
    rows: list[Cells] = []
    groups: dict[tuple[str, ...], list[Node]] = {}
    for node, record in records_of(study).items():
        p = record.provenance
        hardware = ", ".join(p.get("gpu") or ()) or f"CPU {p.get('cpu') or 'unknown'}"
        packages = p.get("packages") or {}
        made: tuple[str, ...] = (
            node.stage,
            hardware,
            ", ".join(f"{name} {version}" for name, version in (("python", p.get("python")), *_main(packages))),
            f"environment {(p.get('environment') or {}).get('digest') or 'unknown'}",
            (p.get("commit") or "no commit")[:10] + (", uncommitted changes" if p.get("dirty") else ""),
            f"code {p.get('code_digest') or 'unknown'}",
        )
        groups.setdefault(made, []).append(node)
    for made, nodes in groups.items():
        rows.append([*made, _listed([node.label for node in nodes])])
    header = ("stage", "hardware", "environment", "requirements", "commit", "code of the stage", "cells")
    notes = (
        ("Results from code with uncommitted changes cannot be made again from the commit alone.",)
        if any("uncommitted" in m[4] for m in groups)
        else ()
    )
    return table("made-by", "What made them", header, rows, tuple(range(7)), notes)


def _retractions(study: Study) -> Block:
    rows: list[Cells] = [
        [Cell(f"{node.stage}/{node.label}/{node.key}", tone="struck"), why] for node, why in study.retracted.items()
    ]
    if not rows:
        return prose("No result of this plan is retracted.")
    return table("retractions", "Retracted results: in no mean and in no test", ("result", "reason"), rows, (0, 1))


def _listed(cells: list[str]) -> str:
    cells = list(dict.fromkeys(cells))
    return ", ".join(cells) if len(cells) <= 4 else f"{', '.join(cells[:3])} and {len(cells) - 3} more"


def _main(packages: dict[str, str]) -> list[tuple[str, str]]:
    """The packages that a reader asks about first; the records hold them all."""
    return [(name, packages[name]) for name in ("torch", "transformers", "trl", "peft", "vllm") if name in packages]
