"""Why a node has the key it has: what differs from the nearest finished sibling, and what follows from that."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.audit.origin import Origins
from workflow.audit.status import Survey, column, other_keys
from workflow.data.lock import read_lock
from workflow.errors import did_you_mean, printable
from workflow.files import ABSENT, Change, changes, short_pair
from workflow.matrix import STAGES, Node, StaleKeyError
from workflow.provenance import changed_code
from workflow.store import read_json, record_path

_ENOUGH = 200  # records looked at for the nearest sibling in another cell


@dataclass(frozen=True)
class Cause:
    """The fields of one node that changed by themselves, with the lines of the config that they come from."""

    node: Node
    changes: list[tuple[Change, list[str]]]


@dataclass
class Answer:
    """One node, the sibling that it is compared with, and the causes: its own and those it inherits."""

    node: Node
    state: str
    reason: str = ""
    sibling: str | None = None
    same_place: bool = False
    own: Cause | None = None
    inherited: list[Cause] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def roots(self) -> list[Cause]:
        return [*([self.own] if self.own and self.own.changes else []), *self.inherited]


def explain(found: Survey, label: str, stage: str | None = None) -> list[Answer]:
    """An answer for each node of the cell, or for its node of one stage.

    Raises:
        StaleKeyError: the plan has no such cell, or no such stage of it.
    """
    matrix = found.matrix
    nodes = matrix.cell_nodes(label)
    wanted = [n for n in nodes if stage in (None, n.stage, column(n))]
    if not wanted:
        known = ", ".join(dict.fromkeys(n.stage for n in nodes))
        raise StaleKeyError(
            f"{label} has no stage {stage} of its own; it has {known}.{did_you_mean(stage or '', STAGES)}"
        )
    origins = Origins(matrix)
    return [_answer(found, origins, node) for node in wanted]


def _answer(found: Survey, origins: Origins, node: Node) -> Answer:
    state = found.states[node]
    answer = Answer(node, state.state, state.reason if state.state not in ("failed", "stale") else "")
    if state.state in ("outdated", "other code", "other environment", "can be taken over"):
        answer.reason += "".join(f"\n  {line}" for line in _code_changes(found, node))
        return answer
    sibling = _nearest(_at_the_same_place(found, node), node)
    answer.same_place = sibling is not None
    if sibling is None:
        sibling = _nearest(_in_other_cells(found, node), node)
    if sibling is None:
        return answer
    answer.sibling, record = sibling
    answer.own = Cause(node, list(_own(origins, node, record["recipe"])))
    if answer.same_place:
        seen = {node}
        _inherit(origins, node, record, answer, seen)
    return answer


def _code_changes(found: Survey, node: Node) -> list[str]:
    """Files of the stage's code that changed since its record's commit, and the commits that changed them."""
    summary = found.links.summaries.get(node)
    if summary is None or found.states[node].state != "other code":
        return []
    commit = summary.provenance.get("commit")
    if not commit:
        return ["the record names no commit, so the files that changed cannot be named"]
    return changed_code(STAGES[node.stage].module, commit)


def _own(origins: Origins, node: Node, old: dict[str, Any]) -> Iterator[tuple[Change, list[str]]]:
    for change in changes(_own_fields(old), _own_fields(node.recipe.to_dict())):
        if node.stage == "report" and change.field == "data":
            continue  # the hash of its own plan: its parents say it in full
        yield change, origins.of(node, change.field)


def _own_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name not in ("stage", "parents")}


def _inherit(origins: Origins, node: Node, record: dict[str, Any], answer: Answer, seen: set[Node]) -> None:
    """Follow every parent whose key is another one now, up to the nodes that changed by themselves."""
    before = {i["key"]: role for role, i in record["inputs"].items() if role != "data"}
    now = {parent.key for parent in node.parents}
    paths = [record["inputs"][role]["path"] for key, role in before.items() if key not in now]
    gone = {_place(path): path for path in paths}
    for parent in node.parents:
        if parent.key in before:
            continue
        path = gone.pop((parent.stage, parent.label), None)
        if parent in seen:
            continue
        seen.add(parent)
        if path is None:
            change = Change("parents", ABSENT, f"{parent.stage}/{parent.label}")
            answer.inherited.append(Cause(node, [(change, origins.of(node, "parents"))]))
            continue
        old = read_json(path)
        if old is None or "recipe" not in old:
            answer.unknown.append(f"{path} is gone, so what changed in it cannot be said")
            continue
        own = list(_own(origins, parent, old["recipe"]))
        if own:
            answer.inherited.append(Cause(parent, own))
        _inherit(origins, parent, old, answer, seen)
    for stage, label in gone:
        change = Change("parents", f"{stage}/{label}", ABSENT)
        answer.inherited.append(Cause(node, [(change, origins.of(node, "parents"))]))


def _place(path: str) -> tuple[str, str]:
    """Stage and cell of a record's path."""
    stage, label = Path(path).parts[-4:-2]
    return stage, label


def _at_the_same_place(found: Survey, node: Node) -> Iterator[str]:
    planned = [n for n in found.states if n.stage == node.stage and n.label == node.label]
    for key in other_keys(node.stage, node.label, planned):
        yield record_path(node.stage, node.label, key)


def _in_other_cells(found: Survey, node: Node) -> Iterator[str]:
    others = (n for n, s in found.states.items() if n.stage == node.stage and n.label != node.label)
    same = [
        n
        for n in others
        if n.instrument == node.instrument and found.states[n].state in ("done", "other code", "other environment")
    ]
    near = sorted(same, key=lambda n: not (n.cell and node.cell and n.cell.condition == node.cell.condition))
    for other in near[:_ENOUGH]:
        yield other.record


def _nearest(paths: Iterator[str], node: Node) -> tuple[str, dict[str, Any]] | None:
    """The record whose recipe differs in the fewest fields; of equals, the newest."""
    found = []
    mine = _own_fields(node.recipe.to_dict())
    for path in paths:
        record = read_json(path)
        if record is not None and "recipe" in record:
            number = len(list(changes(_own_fields(record["recipe"]), mine)))
            found.append((number, -Path(path).stat().st_mtime, path, record))
    if not found:
        return None
    _, _, path, record = min(found, key=lambda entry: entry[:3])
    return path, record


def following(found: Survey, answers: list[Answer]) -> set[Node]:
    """What is to be made or restored because of the causes: the nodes that changed and all that is made from them."""
    touched = {cause.node for answer in answers if answer.same_place for cause in answer.roots}
    touched |= set(found.undone(answer.node for answer in answers))
    for node in found.matrix.nodes():  # parents stand before their children
        if any(parent in touched for parent in node.parents):
            touched.add(node)
    return set(found.undone(touched))


def show(found: Survey, answers: list[Answer]) -> None:
    names = {pin.id: name for name, pin in read_lock().items()}
    for answer in answers:
        node = answer.node
        print(f"{column(node)}/{node.label}: {answer.state}, key {node.key}")
        if answer.reason:
            print(printable(f"  {answer.reason}"))
        if answer.sibling is None and answer.reason:
            continue
        if answer.sibling is None:
            print("  nothing of this stage is finished anywhere: there is nothing to compare with")
            continue
        where = "here, under another key" if answer.same_place else "in another cell; nothing else was finished here"
        print(f"  nearest finished: {answer.sibling} ({where})")
        if answer.own and answer.own.changes:
            _show_cause("changed here", answer.own, names)
        elif not answer.inherited and not answer.unknown:
            print("  no field differs but its parents" if not answer.same_place else "  no field differs")
        for cause in answer.inherited:
            _show_cause(f"follows from {cause.node.stage}/{cause.node.label}", cause, names)
        for line in answer.unknown:
            print(printable(f"  {line}"))
    touched = following(found, answers)
    cost = found.prices.cost(found.to_compute(touched))
    if cost.jobs:
        print(f"what follows and is not made yet: {cost}")
    if rest := len(touched) - cost.jobs:
        print(f"to be verified, and made again where they do not fit: {rest} result{'' if rest == 1 else 's'}")
    if not touched:
        print("nothing is to be made")


def _show_cause(title: str, cause: Cause, names: dict[str, str]) -> None:
    print(f"  {title}:")
    for change, lines in cause.changes:
        old, new = short_pair(_named(change.old, names), _named(change.new, names))
        origin = f"   {', '.join(lines)}" if lines else ""
        print(printable(f"    {change.field}: {old} -> {new}{origin}"))


def _named(value: Any, names: dict[str, str]) -> Any:
    """A data set's id with the name that the lock has for it."""
    return f"{names[value]} ({value})" if isinstance(value, str) and value in names else value
