"""What the records say beside scores: protocol, recipes, data, code, cost, what lies unused, since when rules stand."""

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from workflow.audit.diff import diff
from workflow.audit.logs import names
from workflow.audit.status import finished_keys
from workflow.data.gates import NONE, read_gates
from workflow.files import flatten, short
from workflow.fingerprint import Comparison
from workflow.keys import digest
from workflow.matrix import MEASURING, STAGES, TRAINING, Node
from workflow.report.numbers import POINTS, place
from workflow.report.page import (
    DASH,
    Block,
    Mark,
    Prose,
    Section,
    Table,
    anchor,
    duration,
    show,
    stat,
    text,
    whole,
)
from workflow.report.study import Study
from workflow.store import RESULTS, Record, read_record, record_path

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


# --- outside the report's key ---------------------------------------------------------------------------------------


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


# --- since when a rule has stood ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuleOrigin:
    """The first commit from which on a claim's rule did not change; None: the rule as it stands is in no commit. A rule
    that was written after its verdict is no pre-registration, whatever it is called."""

    rule: str
    commit: str | None
    date: str | None
    before_data: bool | None

    @property
    def text(self) -> str:
        if self.commit is None:
            return "not committed"
        return self.commit[:10] + {True: ", before the data", False: ", after the data", None: ""}[self.before_data]


def rule_ids(source: str) -> dict[str, str]:
    """Claim -> hash (8 hex) of all that decides its verdict; a reworded sentence or reason changes nothing."""
    raw = yaml.safe_load(source)
    weights = {c["name"]: c["weights"] for c in raw.get("contrasts", [])}
    found = {}
    for claim in raw["claims"]:
        parts: dict[str, Any] = {name: claim.get(name) for name in RULE}
        parts["rule"] = {name: value for name, value in (parts["rule"] or {}).items() if name != "because"}
        named = (claim.get("contrast") or {}).get("name")
        plain = json.loads(json.dumps([parts, weights.get(named), raw.get("matrix"), raw.get("primary")]))
        found[claim["id"]] = digest("claim", plain)[:8]
    return found


def rule_origins(path: str | Path, data_start: str | None) -> dict[str, RuleOrigin]:
    """For every claim of the file as it lies there; data_start: when the first measurement began."""
    path = Path(path)
    since: dict[str, tuple[str, str, str]] = {}  # claim -> rule, commit, date: of the run that reaches to the newest
    log = _git(path, "log", "--reverse", "--format=%H %cI", "--", path.name) or ""
    for commit, date in (line.split() for line in log.splitlines()):
        since = {
            claim: since[claim] if claim in since and since[claim][0] == rule else (rule, commit, date)
            for claim, rule in _rules_at(commit, path).items()
        }
    origins = {}
    for claim, rule in rule_ids(path.read_text(encoding="utf-8")).items():
        held, commit, date = since.get(claim, ("", "", ""))
        if held != rule:
            origins[claim] = RuleOrigin(rule, None, None, None)
            continue
        older = None if data_start is None else datetime.fromisoformat(date) < datetime.fromisoformat(data_start)
        origins[claim] = RuleOrigin(rule, commit, date, older)
    return origins


def _rules_at(commit: str, path: Path) -> dict[str, str]:
    """Rules in that commit; none where the file was not yet, or not any more, a list of claims."""
    source = _git(path, "show", f"{commit}:./{path.name}")
    try:
        return rule_ids(source) if source else {}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def _git(path: Path, *args: str) -> str | None:
    """Output of git beside the file; None where there is no repository, or no git."""
    try:
        done = subprocess.run(["git", *args], cwd=path.resolve().parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def first_start(study: Study) -> str | None:
    """When the oldest measurement of this report began, so that a rule can be called older or younger than its data."""
    starts = [r.provenance.get("start") for n, r in study.records.items() if n.stage in MEASURING]
    return min((s for s in starts if s), default=None)
