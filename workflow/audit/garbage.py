"""What nothing names any more, and how to be rid of it: shown first, removed only when told so.

results/ is shared, so what another config in config/ plans is kept as well. If such a config cannot be planned here, a
result of another key that may be its own is held back.
"""

import os
import shutil
import stat
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

from workflow.audit.logs import names
from workflow.audit.status import survey
from workflow.config import Config, ConfigError
from workflow.data.lock import Lock, read_lock, used_names
from workflow.errors import printable
from workflow.files import file_system_time, is_beating, is_regular, still_silent
from workflow.keys import KEY
from workflow.matrix import Matrix
from workflow.store import (
    DATA,
    PLANS,
    REDONE,
    RESULTS,
    SUPERSEDED,
    heartbeat_path,
    is_at_work,
    list_stages,
    read_json,
    workspaces,
)

_SETTLED_S = 3600  # a half-written file of this age belongs to no job that is still writing it
_SHOWN = 12
_MODEL = "model "  # before a model's name, among ids of data


@dataclass(frozen=True)
class Waste:
    """A folder or file that can go, and why."""

    path: str
    why: str
    bytes: int


@dataclass
class Heap:
    """What can go, and what was held back, with the reason."""

    waste: list[Waste] = field(default_factory=list)
    held: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(w.bytes for w in self.waste)


@dataclass(frozen=True)
class Keep:
    """What is named: results of the plans, the parents and data that their records name, and data of the lock."""

    results: frozenset[str]
    data: frozenset[str]


@dataclass(frozen=True)
class Doubt:
    """A config that cannot be planned, and why. What rests on `foreign` data or on another model is not its own."""

    path: str
    why: str
    foreign: frozenset[str]
    model: str | None

    def may_own(self, rests_on: frozenset[str]) -> bool:
        models = {name for name in rests_on if name.startswith(_MODEL)}
        return not rests_on & self.foreign and (self.model is None or not models or self.model in models)

    def __str__(self) -> str:
        return f"may belong to {self.path}, which cannot be planned here ({self.why}). Mend that, or say --alone"


def other_plans(matrix: Matrix, pins: Lock, folder: str = "config") -> tuple[list[Matrix], list[Doubt]]:
    """Plans of the other configs of the project, and doubts about those that cannot be planned."""
    plans: list[Matrix] = []
    doubts: list[Doubt] = []
    for path in sorted(Path(folder).glob("*.yaml")):
        if os.path.realpath(path) == os.path.realpath(matrix.configfile) or not _is_config(path):
            continue
        foreign: frozenset[str] = frozenset()
        model = None
        try:
            config = Config.load(path)
            model = _MODEL + getattr(config.base_model, "repo", config.base_model.kind)
            used = {*used_names(config), getattr(config.base_model, "name", None)}
            foreign = frozenset(pin.id for name, pin in pins.items() if name not in used)
            plans.append(Matrix(config, pins, str(path)))
        except ConfigError as error:
            doubts.append(Doubt(str(path), str(error).splitlines()[0].rstrip(":"), foreign, model))
    return plans, doubts


def _is_config(path: Path) -> bool:
    """Claims and retractions lie in the same folder."""
    return any(line.startswith("conditions:") for line in path.read_text().splitlines())


def named(matrices: list[Matrix], pins: Lock) -> Keep:
    """Everything that a plan, a finished record of a plan, or the lock names."""
    results: set[str] = set()
    data = {pin.id for pin in pins.values()}
    for matrix in matrices:
        sources = survey(matrix).sources
        for node in matrix.nodes():
            results.add(os.path.dirname(node.record))
            data.add(node.recipe.data)
            source = sources.get(node)
            if source is not None:  # what a planned job takes over is as good as named
                results.add(os.path.dirname(source))
            for link in _links(source or node.record):
                if link["path"].startswith(f"{DATA}/"):
                    data.add(link["key"])
                else:
                    results.add(os.path.dirname(link["path"]))
    return Keep(frozenset(results), frozenset(data))


def _links(record: str) -> list[dict[str, str]]:
    return list((read_json(record) or {}).get("inputs", {}).values())


def _rests_on(record: str, seen: dict[str, frozenset[str]]) -> frozenset[str]:
    """Ids of all data, and the base model, that a result rests on, as far as its records are there."""
    if record not in seen:
        seen[record] = frozenset()
        found: set[str] = set()
        recipe = (read_json(record) or {}).get("recipe", {})
        if recipe.get("stage") == "base":
            found.add(_MODEL + recipe["params"].get("repo", recipe["params"]["kind"]))
        for link in _links(record):
            found |= {link["key"]} if link["path"].startswith(f"{DATA}/") else _rests_on(link["path"], seen)
        seen[record] = frozenset(found)
    return seen[record]


def collect(matrix: Matrix, alone: bool = False) -> Heap:
    """What can go. `alone`: no other config counts."""
    pins = read_lock()
    plans, doubts = ([], []) if alone else other_plans(matrix, pins)
    keep = named([matrix, *plans], pins)
    heap = Heap()
    folders = list(_result_folders(heap))
    dead = _dead_workspaces(folders)
    planned = {} if alone else other_checkouts(matrix)
    data: dict[str, frozenset[str]] = {}
    held: set[str] = set()
    for folder in folders:
        rests_on = _rests_on(f"{folder}/record.json", data)
        doubt = next((d for d in doubts if d.may_own(rests_on)), None)
        if folder in keep.results:
            heap.waste += _inside(folder, heap, dead)
        elif at_work := [o for temp, o in workspaces(folder) if temp not in dead]:
            heap.held.append(f"{folder}: a job may be at work there ({at_work[0].host if at_work[0] else 'unknown'})")
            held |= rests_on
        elif folder in planned:
            heap.held.append(f"{folder}: {planned[folder]}")
            held |= rests_on
        elif doubt is not None:
            heap.held.append(f"{folder}: {doubt}")
            held |= rests_on
        else:
            heap.waste.append(_waste(folder, "no plan names this key"))
    heap.waste += _unnamed_data(keep.data | held | set(planned), heap)
    return heap


def other_checkouts(matrix: Matrix) -> dict[str, str]:
    """Folders of results, and ids of data, that a run from another checkout or config planned, and by whom.

    A run leaves its plan in results/.plan. Configs of this checkout that lie in config/ are planned anew instead.
    """
    planned: dict[str, str] = {}
    here = {os.path.realpath(path) for path in (Path(matrix.configfile), *Path("config").glob("*.yaml"))}
    for name in names(PLANS):
        raw = read_json(f"{PLANS}/{name}") if name.endswith(".json") and is_regular(f"{PLANS}/{name}") else None
        records, data, config = (raw or {}).get("records"), (raw or {}).get("data"), (raw or {}).get("config")
        if not isinstance(records, list) or not isinstance(data, list) or config in here:
            continue
        why = printable(f"planned by {config}. Remove {PLANS}/{name} if that is gone, or say --alone")
        planned |= dict.fromkeys((os.path.dirname(r) for r in records if isinstance(r, str)), why)
        planned |= dict.fromkeys((d for d in data if isinstance(d, str)), why)
    return planned


def _dead_workspaces(folders: list[str]) -> set[Path]:
    """Workspaces whose process is gone; of other hosts and containers those whose heartbeat stopped and stays so.

    The latter are watched for a minute and a half: a clock that is off makes nobody dead.
    """
    every = [work for folder in folders for work in workspaces(folder)]
    here = {temp for temp, owner in every if owner is not None and owner.is_alive() is False}
    stopped = {heartbeat_path(t): t for t, _ in every if t not in here and is_beating(heartbeat_path(t)) is False}
    elsewhere = {heartbeat_path(t) for t, o in every if o is None or o.is_alive() is None}
    silent = still_silent(stopped.keys() & elsewhere)
    return here | {stopped[beat] for beat in silent}


def _result_folders(heap: Heap) -> Iterator[str]:
    """Folders of results; what lies behind a link is somebody else's."""
    for stage in list_stages():
        for cell in _own_folders(f"{RESULTS}/{stage}", heap):
            for folder in _own_folders(cell, heap):
                if KEY.fullmatch(os.path.basename(folder)) and not os.path.islink(folder):
                    yield folder


def _own_folders(place: str, heap: Heap) -> Iterator[str]:
    if os.path.islink(place):
        if not place.startswith(f"{RESULTS}/report/"):  # latest.html
            heap.held.append(f"{place}: a link, which is not followed")
        return
    yield from (f"{place}/{name}" for name in names(place))


def _inside(folder: str, heap: Heap, dead: Set[Path]) -> Iterator[Waste]:
    """Leftovers in a folder that stays."""
    there = workspaces(folder)
    for workspace, owner in there:
        if workspace in dead:
            yield _waste(str(workspace), "the workspace of a job that was killed")
        elif is_at_work(workspace, owner) is not True:
            host = owner.host if owner else "an unknown host"
            heap.held.append(f"{workspace}: a workspace of {host}; remove it there if its job is dead")
    beats = {heartbeat_path(workspace).name for workspace, _ in there if workspace not in dead}
    for name in names(folder):
        path = f"{folder}/{name}"
        if name.startswith((SUPERSEDED, REDONE)):
            yield _waste(path, "an older result of the same key")
        elif name.startswith(".") and name.endswith(".part") and _is_settled(path):
            yield _waste(path, "a half-written file")
        elif name.startswith(".") and name.endswith(".beat") and name not in beats:
            yield _waste(path, "the heartbeat of a job that was killed")
        elif name == "checkpoint" and os.path.isfile(f"{folder}/record.json") and _is_settled(path):
            yield _waste(path, "checkpoints of a training that is done")


def _unnamed_data(kept: Set[str], heap: Heap) -> Iterator[Waste]:
    if os.path.islink(DATA):
        heap.held.append(f"{DATA}: a link, which is not followed")
        return
    for name in names(DATA):
        path = f"{DATA}/{name}"
        if name.startswith("."):
            if _is_settled(path):
                yield _waste(path, "a half-written file")
        elif name.rpartition(".")[0] not in kept:
            yield _waste(path, "neither a plan, a record nor the lock names these data")


def _is_settled(path: str) -> bool:
    """Whether a file is older than any write takes, by the file system's own clock."""
    now = file_system_time(os.path.dirname(path))
    return now is not None and now - os.lstat(path).st_mtime > _SETTLED_S


def _waste(path: str, why: str) -> Waste:
    return Waste(path, why, size(path))


def size(path: str) -> int:
    """Bytes of a file or of all files in a folder; links count as nothing and are not followed."""
    if os.path.islink(path):
        return 0
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)


def remove(heap: Heap) -> None:
    """Remove what was shown, read-only or not, and the folders that are empty then."""
    for waste in heap.waste:
        if os.path.isdir(waste.path) and not os.path.islink(waste.path):
            for folder, _, _ in os.walk(waste.path):
                os.chmod(folder, stat.S_IRWXU)  # names can be removed only from a folder that is writable
            shutil.rmtree(waste.path)
        else:
            os.unlink(waste.path)
        parent = Path(waste.path).parent
        while parent.parts[:1] == (RESULTS,) and len(parent.parts) > 1 and not os.listdir(parent):
            parent.rmdir()
            parent = parent.parent


def show(heap: Heap) -> None:
    for waste in heap.waste:
        print(printable(f"{waste.bytes / 1e6:10.3f} MB  {waste.path}  ({waste.why})"))
    for held in heap.held[:_SHOWN]:
        print(printable(f"held back: {held}"))
    if len(heap.held) > _SHOWN:
        print(f"held back: {len(heap.held) - _SHOWN} more")
    print(f"{len(heap.waste)} to remove, {heap.bytes / 1e6:.3f} MB")
