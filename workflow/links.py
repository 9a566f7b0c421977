"""Which results must be made or restored: missing, made from other bytes than a parent has now, or below such a one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workflow.matrix import Node
from workflow.store import UNREADABLE, Summary, read_summary


@dataclass
class Links:
    """The records of a plan held against each other.

    Attributes:
        summaries: what was read of each record that is there.
        planned: nodes that must be made or restored.
        roots: those of them whose record is there and whose parents all stand, with the reason. Nothing above them
            is planned, so Snakemake has to be told.
    """

    summaries: dict[Node, Summary] = field(default_factory=dict)
    planned: set[Node] = field(default_factory=set)
    roots: dict[Node, str] = field(default_factory=dict)


def read_links(nodes: Iterable[Node]) -> Links:
    """Hold every record's digests of its parents against the parents' own.

    Args:
        nodes: parents before their children.
    """
    links = Links()
    for node in nodes:
        summary = read_summary(node.record)
        if summary is None:
            links.planned.add(node)
            continue
        links.summaries[node] = summary
        if any(parent in links.planned for parent in node.parents):
            links.planned.add(node)
        elif (reason := broken_link(node, links.summaries)) is not None:
            links.planned.add(node)
            links.roots[node] = reason
    return links


def read_reference(node: Node, observed: Mapping[str, Any]) -> Node | None:
    """The reference whose bytes a finished node read; None where it read none, or the reference was made again."""
    there = read_summary(node.reference.record) if node.reference is not None else None
    is_same = there is not None and there.content == observed.get("reference_content")
    return node.reference if is_same else None


def broken_link(node: Node, summaries: dict[Node, Summary]) -> str | None:
    """Why a finished node does not rest on its parents as they are, or None if it does."""
    own = summaries[node]
    if own is UNREADABLE:
        return f"{node.record} is not a record of this version; it is made or restored again"
    for parent in node.parents:
        now, read = summaries[parent].digest, own.inputs.get(parent.record, "")
        if now != read:
            return f"{parent.record} is {now[:12]} now, it was {read[:12] or 'not read'} when this was made"
    return None
