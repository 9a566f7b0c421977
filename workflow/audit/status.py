"""The state of every node of the plan, from the digests and facts of each record."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

from workflow.accepted import equivalents, read_accepted
from workflow.audit.cost import Facts, Prices
from workflow.audit.logs import LOGS, last_progress, log_path, names, read_failure, resumes_from
from workflow.data.lock import built_by_other_code, read_lock
from workflow.keys import KEY
from workflow.links import Links, read_links
from workflow.matrix import STAGES, Matrix, Node
from workflow.provenance import code_digest
from workflow.retractions import Retraction, read_retractions, retracted
from workflow.reuse import find_source, fits
from workflow.store import (
    RECORD,
    RESULTS,
    Summary,
    is_at_work,
    node_dir,
    out_dir,
    read_summary,
    record_path,
    workspaces,
)

State = Literal[
    "done",
    "other code",
    "other environment",
    "outdated",
    "can be taken over",
    "missing",
    "stale",
    "running",
    "interrupted",
    "failed",
    "retracted",
]
STATES: tuple[State, ...] = State.__args__  # type: ignore[attr-defined]
UNDONE = frozenset({"outdated", "can be taken over", "missing", "stale", "interrupted", "failed"})
_COMPUTED = frozenset({"missing", "stale", "interrupted", "failed"})


class NodeState(NamedTuple):
    """A node's state and what else is to be said: a reason, its log, other finished keys if its own is not there."""

    state: State
    others: tuple[str, ...] = ()
    reason: str = ""
    log: str = ""


_DONE = NodeState("done")


@dataclass(frozen=True)
class Survey:
    """States of all nodes, in the plan's order, what past jobs cost, and records that missing nodes can take over."""

    matrix: Matrix
    states: dict[Node, NodeState]
    prices: Prices
    links: Links = field(default_factory=Links)
    sources: dict[Node, str] = field(default_factory=dict)

    def unscored(self) -> dict[Node, dict[str, Any]]:
        """Finished judgments of which a conspicuous share has no score, with the counts that their records hold."""
        counts = {n: s.observed.get("unscored") for n, s in self.links.summaries.items() if n in self.states}
        return {node: count for node, count in counts.items() if isinstance(count, dict) and count.get("flagged")}

    @cached_property
    def data_of_other_code(self) -> list[str]:
        """Data sets whose builder's code is another one than when they were pinned."""
        return built_by_other_code(self.matrix.config, read_lock())

    def undone(self, nodes: Iterable[Node] | None = None) -> list[Node]:
        return [n for n in (self.states if nodes is None else nodes) if self.states[n].state in UNDONE]

    def to_compute(self, nodes: Iterable[Node] | None = None) -> list[Node]:
        """Undone nodes that no finished result is restored or taken over for, as far as can be known."""
        return [n for n in self.undone(nodes) if self.states[n].state in _COMPUTED]


def column(node: Node) -> str:
    """Name of a node's stage, with the instrument where one cell has several."""
    return f"{node.stage}:{node.instrument}" if node.instrument else node.stage


@cache
def current_code(stage: str) -> str | None:
    """Digest of the code that would make this stage's results now; None for a stage that this version does not have."""
    return code_digest(STAGES[stage].module) if stage in STAGES else None


def survey(matrix: Matrix) -> Survey:
    """Look at every place of the plan once."""
    links = read_links(matrix.nodes())
    retractions = read_retractions()
    reasons = retracted(matrix, retractions)
    prices = Prices()
    common = _common_environments(links.summaries)
    accepted = read_accepted()
    same_code = {stage: equivalents(accepted, stage, current_code(stage)) for stage in STAGES}
    listing = {stage: set(names(f"{RESULTS}/{stage}")) for stage in STAGES}
    logged = {stage: set(names(f"{LOGS}/{stage}")) for stage in STAGES}
    places: dict[tuple[str, str], list[Node]] = {}
    for node in matrix.nodes():
        places.setdefault((node.stage, node.label), []).append(node)
    contents: dict[Node, str] = {}
    states: dict[Node, NodeState] = {}
    sources: dict[Node, str] = {}
    for node in matrix.nodes():
        summary = links.summaries.get(node)
        if summary is not None:
            prices.add(node.stage, Facts.of(summary), planned=True)
            contents[node] = summary.content
        if node in reasons:
            states[node] = NodeState("retracted", (), reasons[node])
        elif summary is not None and node not in links.planned:
            states[node] = _finished(node, summary, same_code[node.stage], common[node.stage])
        elif summary is not None:
            states[node] = NodeState("outdated", (), links.roots.get(node) or _above(node, links))
        else:
            has_folder = node.label in listing[node.stage]
            planned = places[node.stage, node.label]
            others = other_keys(node.stage, node.label, planned) if has_folder else ()
            for key in others:
                other = read_summary(record_path(node.stage, node.label, key))
                if other is not None:
                    prices.add(node.stage, Facts.of(other), planned=False)
            source = _source(node, contents, same_code[node.stage], retractions)
            if source is not None:
                sources[node], contents[node] = source
            states[node] = _unfinished(node, others, has_folder, node.label in logged[node.stage], source)
    return Survey(matrix, states, prices, links, sources)


def _common_environments(summaries: Mapping[Node, Summary]) -> dict[str, str]:
    """By stage the environment that most of its results were made in."""
    counts: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    for node, summary in summaries.items():
        counts[node.stage][_environment(summary)] += 1
    return {stage: count.most_common(1)[0][0] if count else "" for stage, count in counts.items()}


def _environment(summary: Summary) -> str:
    made = summary.provenance.get("environment")
    return str(made.get("digest")) if isinstance(made, dict) else ""


def _source(
    node: Node, contents: Mapping[Node, str], codes: frozenset[str | None], retractions: tuple[Retraction, ...]
) -> tuple[str, str] | None:
    """Record and content of a finished result that this node can take over, if its parents are known."""
    if node.stage == "report" or not all(p in contents for p in node.parents):
        return None
    source = find_source(node.recipe, [contents[p] for p in node.parents])
    summary = read_summary(source) if source else None
    if source is None or summary is None or not fits(summary, source, codes, retractions):
        return None
    return source, summary.content


def other_keys(stage: str, label: str, planned: list[Node]) -> tuple[str, ...]:
    """Finished keys at a place that the plan does not have there."""
    known = {node.key for node in planned}
    return tuple(key for key in finished_keys(stage, label) if key not in known)


def finished_keys(stage: str, label: str) -> list[str]:
    """Keys at that place that have a record, planned or not."""
    found = names(f"{RESULTS}/{stage}/{label}")
    return [k for k in found if KEY.fullmatch(k) and os.path.exists(record_path(stage, label, k))]


def _finished(node: Node, summary: Summary, codes: frozenset[str | None], common: str) -> NodeState:
    if summary.code not in codes:
        return NodeState("other code", (), f"made by code {summary.code}, now {current_code(node.stage)}")
    if (made := _environment(summary)) != common:
        return NodeState("other environment", (), f"made in environment {made}, most of its stage in {common}")
    return _DONE


def _above(node: Node, links: Links) -> str:
    parent = next(p for p in node.parents if p in links.planned)
    return f"{parent.stage}/{parent.label} above it is made or restored first"


def _unfinished(
    node: Node, others: tuple[str, ...], has_folder: bool, has_logs: bool, source: tuple[str, str] | None
) -> NodeState:
    if has_folder and is_running(node.stage, node.label, node.key):
        log = log_path(node.stage, node.label, node.key)
        return NodeState("running", others, last_progress(log) or "", log)
    if has_folder and (out_dir(node.record) / RECORD).is_file():
        return NodeState("outdated", others, "record.json is gone; the next run verifies out/ and restores it")
    if source is not None:
        return NodeState("can be taken over", others, f"equal work is finished: {source[0]}")
    log = log_path(node.stage, node.label, node.key)
    if has_logs and os.path.exists(log):
        if (failure := read_failure(log)) is not None:
            return NodeState("failed", others, " | ".join(filter(None, (*failure.cause, failure.cure))), log)
        step = resumes_from(node.stage, node.label, node.key)
        start = f"from step {step}" if step else "from its start"
        return NodeState("interrupted", others, f"stopped before its end; the same command goes on {start}", log)
    if others:
        return NodeState("stale", others, f"finished under {', '.join(others)}; see `why {node.label} {node.stage}`")
    return NodeState("missing")


def is_running(stage: str, label: str, key: str) -> bool:
    """Whether a job is at work there: by its process, or its heartbeat; where neither can be seen, it has a log."""
    for temp, owner in workspaces(node_dir(stage, label, key)):
        at_work = is_at_work(temp, owner)
        if at_work or (at_work is None and os.path.exists(log_path(stage, label, key))):
            return True
    return False


def select(found: Survey, labels: Iterable[str]) -> Survey:
    """The same survey of the named cells only.

    Raises:
        StaleKeyError: the plan has no such cell.
    """
    wanted = set(labels)
    for label in wanted:
        found.matrix.cell_nodes(label)
    states = {node: state for node, state in found.states.items() if node.label in wanted}
    return Survey(found.matrix, states, found.prices, found.links, found.sources)


def to_json(found: Survey) -> dict[str, Any]:
    """For programs: states by cell and stage, reasons of what is not done, cost of what is missing."""
    cells: dict[str, dict[str, str]] = {}
    stages: dict[str, Counter[str]] = {}
    notes = []
    for node, (state, others, reason, log) in found.states.items():
        cells.setdefault(node.label, {})[column(node)] = state
        stages.setdefault(node.stage, Counter())[state] += 1
        if reason or others:
            note: dict[str, Any] = {"folder": node_dir(node.stage, node.label, node.key), "state": state}
            note |= {"reason": reason} if reason else {}
            note |= {"other_keys": list(others)} if others else {}
            notes.append(note | ({"log": log} if log else {}))
    return {
        "config": found.matrix.configfile,
        "counts": Counter(s.state for s in found.states.values()),
        "stages": stages,
        "cells": cells,
        "notes": notes,
        "unscored": {node_dir(n.stage, n.label, n.key): count for n, count in found.unscored().items()},
        "data_of_other_code": found.data_of_other_code,
        "missing": found.prices.cost(found.to_compute()).to_json(),
    }
