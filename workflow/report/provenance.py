"""What the records say beside scores: protocol, environment, code, recipes, data."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from workflow.audit.diff import diff
from workflow.data.gates import NONE, read_gates
from workflow.files import flatten, short
from workflow.fingerprint import Comparison
from workflow.matrix import MEASURING, TRAINING, Node
from workflow.report.numbers import place
from workflow.report.page import (
    DASH,
    Block,
    Mark,
    Prose,
    Section,
    Table,
    anchor,
    stat,
    text,
    whole,
)
from workflow.report.study import Study
from workflow.store import Record

LEVELS = {"equal": "equal", "placement": "equal up to placement", "different": "different, under a waiver"}
HASHES = ("id", "md5", "sha256", "questions")
RULE = ("metric", "phase", "measure", "instrument", "contrast", "rule")


def records_of(study: Study) -> dict[Node, Record]:
    """Every record behind the report's numbers, in the plan's order."""
    order = {node: n for n, node in enumerate(study.matrix.nodes())}
    return dict(sorted({**study.upstream, **study.records}.items(), key=lambda item: order[item[0]]))


# --- protocol -------------------------------------------------------------------------------------------------------


def comparisons(study: Study) -> dict[str, Comparison]:
    """By table: the cells of one arm, instrument and phase; and before against after, measurements alone.

    Raises:
        ProtocolError: a difference that no waiver covers.
    """
    found: dict[str, Comparison] = {}
    for instrument, arm in dict.fromkeys((str(n.instrument), arm) for n in study.records for arm in study.arms):
        nodes = [n for n in study.records if n.instrument == instrument and n.cell is not None]
        before = [n for n in nodes if n.cell and n.cell.phase == "pre_em"]
        after = [n for n in nodes if n.cell and n.cell.phase == "post_em" and n.cell.arm == arm]
        name = _table_name(instrument, arm)
        for what, members, whole_chain in (
            (f"{instrument}, before EM", before, True),
            (f"{name}, after EM", after, True),
            (f"{name}, before against after (the measurement alone)", [*before, *after], False),
        ):
            if len(members) > 1 and what not in found:
                found[what] = study.compare(members, whole_chain)
    for comparison in found.values():
        comparison.require()
    return found


def _table_name(instrument: str, arm: str | None) -> str:
    return f"{instrument}{f', arm {arm}' if arm else ''}"


def table_notes(study: Study, found: Mapping[str, Comparison], instrument: str, arm: str | None) -> list[str]:
    """What stands under a table of the matrix: protocol, waivers, what is retracted and what is missing."""
    notes = []
    if comparison := found.get(f"{_table_name(instrument, arm)}, after EM"):
        notes.append(f"Protocol and environment of the cells after EM: {LEVELS[comparison.level]}.")
        if comparison.waived:
            fields = ", ".join(dict.fromkeys(w.difference.field for w in comparison.waived))
            reasons = "; ".join(dict.fromkeys(w.reason for w in comparison.waived))
            notes.append(f"Waived, {', '.join(comparison.odd_cells())}: {fields} ({reasons}).")
        if comparison.footnotes:
            notes.append(f"Differs between cells: {', '.join(d.field for d in comparison.footnotes)}; values below.")
        if comparison.dirty:
            notes.append(f"Made from code with uncommitted changes: {_listed(comparison.dirty)}.")
    for what, nodes in (("Retracted and left out", study.retracted), ("Missing", study.missing)):
        if here := [n.label for n in nodes if n.instrument == instrument and n.stage in MEASURING]:
            notes.append(f"{what}: {_listed(here, 12)}.")
    return notes


def protocol_section(study: Study, found: Mapping[str, Comparison]) -> Section:
    levels = [
        {"table": what, "level": Mark(LEVELS[c.level], "refuted" if c.level == "different" else "")}
        for what, c in found.items()
    ]
    waived = dict.fromkeys(str(w) for c in found.values() for w in c.waived)
    footnotes = dict.fromkeys(str(d) for c in found.values() for d in c.footnotes)
    accepted = {stage: codes for c in found.values() for stage, codes in c.accepted.items()}
    blocks: list[Block] = []
    if levels:
        columns = (text("table"), text("protocol and environment", "level"))
        blocks.append(Table("protocol-levels", "Cells of one table", columns, levels))
    blocks += [Prose(f"Waived: {what}", "warn") for what in waived] or [Prose("No difference is waived.")]
    for stage, codes in accepted.items():
        entries = [e for e in study.accepted if e.stage == stage.split("[")[0] and set(codes) & set(e.codes)]
        reasons = "; ".join(e.reason for e in entries)
        blocks.append(Prose(f"Accepted: the codes {', '.join(codes)} of {stage} count as one ({reasons}).", "warn"))
    if footnotes:
        rows = [{"field": what} for what in footnotes]
        blocks.append(Table("protocol-footnotes", "Placement that differs", (text("field and cells", "field"),), rows))
    blocks += [_fingerprints(study), _made_by(study)]
    if study.retracted:
        withdrawn = [{"result": Mark(place(n), "struck"), "reason": why} for n, why in study.retracted.items()]
        caption = "Retracted results: in no mean and in no test"
        blocks.append(Table("retractions", caption, (text("result"), text("reason")), withdrawn))
    else:
        blocks.append(Prose("No result of this plan is retracted."))
    return Section("protocol", "Protocol, environment, retractions and waivers", tuple(blocks))


def fingerprints(study: Study) -> dict[str, dict[str, str]]:
    """Instrument -> cell -> fingerprint id."""
    found: dict[str, dict[str, str]] = {}
    for node in study.records:
        if node.cell is not None:
            found.setdefault(str(node.instrument), {})[node.label] = study.fingerprint(node).id
    return found


def _fingerprints(study: Study) -> Table:
    rows = []
    for instrument, by_cell in fingerprints(study).items():
        for id in dict.fromkeys(by_cell.values()):
            cells = [cell for cell, own in by_cell.items() if own == id]
            rows.append({"instrument": instrument, "id": id, "n": len(cells), "cells": _listed(cells)})
    columns = (text("instrument"), text("fingerprint", "id"), whole("cells", "n"), text("", "cells"))
    notes = (
        "Cells before and after EM, and a control that skips a stage, have fingerprints of their own; what is compared "
        "field by field stands above.",
    )
    return Table("protocol-fingerprints", "Protocol fingerprints", columns, rows, notes)


def _made_by(study: Study) -> Table:
    """Machines and code by stage, as recorded."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for node, record in records_of(study).items():
        p = record.provenance
        packages = p.get("packages") or {}
        main = [(n, packages[n]) for n in ("torch", "transformers", "trl", "peft", "vllm") if n in packages]
        made = (
            node.stage,
            ", ".join(p.get("gpu") or ()) or f"CPU {p.get('cpu') or 'unknown'}",
            ", ".join(f"{name} {version}" for name, version in (("python", p.get("python")), *main)),
            f"environment {(p.get('environment') or {}).get('digest') or 'unknown'}",
            (p.get("commit") or "no commit")[:10] + (", uncommitted changes" if p.get("dirty") else ""),
            f"code {p.get('code_digest') or 'unknown'}",
        )
        groups.setdefault(made, []).append(node.label)
    names_ = ("stage", "hardware", "environment", "requirements", "commit", "code of the stage", "cells")
    rows = [dict(zip(names_, (*made, _listed(cells)), strict=True)) for made, cells in groups.items()]
    dirty = any("uncommitted" in made[4] for made in groups)
    notes = ("Results from code with uncommitted changes cannot be made again from the commit alone.",) * dirty
    return Table("made-by", "What made them", [text(name) for name in names_], rows, notes)


def _listed(cells: Iterable[str], most: int = 4) -> str:
    cells = list(dict.fromkeys(cells))
    return (
        ", ".join(cells) if len(cells) <= most else f"{', '.join(cells[: most - 1])} and {len(cells) - most + 1} more"
    )


# --- recipes and data -----------------------------------------------------------------------------------------------


def differences_section(study: Study) -> Section:
    """For each pair of conditions, what differs before EM: recipe fields and data facts."""
    seed = study.config.pipeline_seeds[0]
    blocks: list[Block] = []
    for first, second in combinations(study.conditions, 2):
        rows = []
        for stage in diff(study.matrix, f"{first}.p{seed}", f"{second}.p{seed}"):
            if stage.stage not in TRAINING:
                continue
            if stage.left is None or stage.right is None:
                sides = ("skipped" if side is None else "present" for side in (stage.left, stage.right))
                rows.append((stage.stage, "stage", *sides))
                continue
            rows += [
                (stage.stage, f"{group}: {change.field}", *_apart(change.old, change.new))
                for group in ("recipe", "data")
                for change in stage.groups[group]
                # a parent's key and a hash differ because something else does, which has a line of its own
                if not change.field.startswith("parents.") and change.field.split(".")[-1] not in HASHES
            ]
        if rows:
            caption = f"{first} and {second}: {len(rows)} field{'' if len(rows) == 1 else 's'}"
            heads = ("stage", "field", first, second)
            table = [dict(zip(heads, row, strict=True)) for row in rows]
            blocks.append(
                Table(anchor("differences", first, second), caption, [text(h) for h in heads], table, is_folded=True)
            )
    return Section("differences", "How the conditions' recipes differ", tuple(blocks))


def _apart(old: Any, new: Any) -> tuple[str, str]:
    """Both values; of two lists of words, such as a data set's definition, the words that the other lacks."""
    one, two = str(old).split(), str(new).split()
    if min(len(one), len(two)) > 3:
        return " ".join(w for w in one if w not in two) or DASH, " ".join(w for w in two if w not in one) or DASH
    return short(old, 80), short(new, 80)


def data_section(study: Study) -> Section:
    """A card per data set: what was counted when it was built, what each training saw of it."""
    facts: dict[str, dict[str, Any]] = {}
    overlaps: dict[str, str] = {}
    trained: list[dict[str, Any]] = []
    gates = read_gates()
    for node, record in records_of(study).items():
        known = record.observed.get("data_facts")
        if not node.has_data or not known:
            continue
        name, o = study.matrix.entry(record.recipe.data), record.observed
        if o.get("overlap"):
            overlaps.setdefault(name, "; ".join(
                f"{found['evaluation_hits']} / {found['evaluation_rows']} {evaluation}"
                for evaluation, found in o["overlap"].items()
            ))  # fmt: skip
        if any(row["name"] == name and row["stage"] == node.stage for row in trained) or (
            name in facts and node.stage not in TRAINING
        ):
            continue
        line = gates.get(("facts", str(known.get("md5")), NONE))
        facts[name] = {**(line.facts if line else {}), **known}
        if node.stage in TRAINING:
            trained.append({"name": name, "stage": node.stage, **o})
    if not facts:
        return Section("data", "Data cards", ())
    cards = [
        {
            **f,
            "name": name,
            "md5": str(f.get("md5", DASH))[:8],
            "excluded": len(f["excluded"]) if isinstance(f.get("excluded"), dict | list) else f.get("excluded"),
            "overlap": overlaps.get(name),
        }
        for name, f in facts.items()
    ]
    card = (
        text("data set", "name"),
        text("md5"),
        whole("rows"),
        whole("unique questions", "unique_questions"),
        whole("rows left out", "excluded"),
        stat("mean characters of an answer", "answer_chars_mean", "{:.1f}".format),
        text("questions of the evaluations in it", "overlap"),
    )
    seen = (
        text("data set", "name"),
        text("stage"),
        whole("rows read", "rows_read"),
        whole("rows dropped", "rows_dropped"),
        whole("rows cut", "rows_truncated"),
        whole("tokens"),
        whole("tokens in the loss", "loss_tokens"),
        stat("masked", "masked_fraction", "{:.1%}".format),
        whole("optimizer steps", "optimizer_steps"),
        whole("effective batch", "effective_batch_size"),
    )
    blocks: list[Block] = [
        Table("data-cards", "Data sets", card, cards, ("A dash: not counted for data of this kind.",)),
        Table("data-trained", "What a training saw of them (one record per set and stage)", seen, trained),
    ]
    for name, f in facts.items():
        rows = [{"fact": field, "value": short(value, 120)} for field, value in flatten(dict(f)).items()]
        blocks.append(Table(anchor("data", name), name, (text("fact"), text("value")), rows, is_folded=True))
    return Section("data", "Data cards", tuple(blocks))
