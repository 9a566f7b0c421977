"""config/data.lock.tsv: which bytes, or which commit, each name of the config stands for.

Written by `python -m workflow lock` and, when a hub data set is fetched for the first time, by the job that fetched
it; read while planning, so that every key is known before anything is downloaded.
"""

import re
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from workflow.config import Config, ConfigError, sources, uses
from workflow.files import locked, write_atomic
from workflow.keys import PROVISIONAL, digest, hash_file, revision_id
from workflow.provenance import code_digest
from workflow.sections import Coupling, Hub, MadeModel, Prompts, Questions

LOCK = "config/data.lock.tsv"
NONE = "-"
UNRESOLVED = "unresolved"

# Bump when a builder's code changes its bytes; say why beside it.
# subset 2, coupling 2: `exclude` leaves out what is nearly a question of the evaluation, too.
BUILDERS = {"file": 1, "url": 1, "hub": 1, "subset": 2, "coupling": 2, "questions": 1, "prompts": 1, "world": 1}


@dataclass(frozen=True)
class Pin:
    """One line of the lock. `-` is what is not known yet; a hub data set's md5 is known after its first fetch.

    `code` is the digest of the code that built the bytes; `-` for what is fetched or copied, where no code decides.
    """

    name: str
    id: str
    md5: str
    sha256: str
    rows: str
    revision: str
    definition: str
    source: str
    code: str = NONE


class UnpinnedError(ConfigError):
    """The config names data whose bytes or commit are not in the lock."""


Lock = dict[str, Pin]


def read_lock(path: str | Path = LOCK) -> Lock:
    """Pins by name; an absent file pins nothing."""
    path = Path(path)
    if not path.exists():
        return {}
    header = [f.name for f in fields(Pin)]
    pins: Lock = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        cells = line.split("\t")
        if number == 1 and cells == header:
            continue
        if len(cells) != len(header) or cells[0] in pins:
            raise ConfigError(
                f"{path}, line {number}: not one pin of {len(header)} columns, or a name that stands twice."
            )
        pins[cells[0]] = Pin(*cells)
    return pins


def write_pins(pins: list[Pin], path: str | Path = LOCK) -> None:
    """Add or replace lines, under a file lock since two fetching jobs may end at once; by rename."""
    with locked(path):
        merged = {**read_lock(path), **{p.name: p for p in pins}}
        lines = ["\t".join(f.name for f in fields(Pin))]
        lines += ["\t".join(astuple(merged[name])) for name in sorted(merged)]
        write_atomic(path, "\n".join(lines) + "\n")


def describe(entry: Any) -> str:
    """One readable line: what the entry is made from."""
    skip = {"name", "kind", "rows_are"}
    told = {k: v for k, v in entry.model_dump().items() if k not in skip and v not in (None, ())}
    return " ".join([entry.kind, *(f"{k}={_plain(v)}" for k, v in told.items())])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{k}:{v}" for k, v in value.items() if v is not None]
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text)  # a line of the lock stays one line


def builder_code(entry: Any) -> str:
    """Digest of the code that builds an entry of this kind now; `-` where the bytes come from elsewhere."""
    if entry.kind == "world":
        return code_digest("workflow.data.world")
    if entry.kind in ("coupling", "subset", "questions", "prompts"):
        return code_digest("workflow.data.build")
    return NONE


def built_by_other_code(config: Config, pins: Lock) -> list[str]:
    """Names of used data sets whose builder's code is another one than when they were pinned."""
    entries = [config.data_entry(name) for name in used_names(config)]
    return [e.name for e in entries if e.name in pins and pins[e.name].source != "not pinned" and _is_other(e, pins)]


def _is_other(entry: Any, pins: Lock) -> bool:
    return pins[entry.name].code != builder_code(entry)


def definition(entry: Any, pins: Lock) -> str:
    """Hash (12 hex) of what the entry says, of the files of the project that it reads, and of its sources' ids."""
    said = selection(entry)
    if isinstance(entry, MadeModel):
        return digest("definition", said)[:12]
    files = {p: hash_file(p, "md5") for p in project_files(entry)}
    built_from = [pins[s].id if s in pins else UNRESOLVED for s in sources(entry)]
    builder = BUILDERS[entry.kind]
    said = _plain_json(said)
    return digest("definition", {"entry": said, "files": files, "from": built_from, "builder": builder})[:12]


def _plain_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain_json(v) for k, v in value.items()}
    return [_plain_json(v) for v in value] if isinstance(value, tuple | list) else value


def project_files(entry: Any) -> list[str]:
    """Files of the project (not data sets) that an entry is built from."""
    if isinstance(entry, Coupling):
        return [entry.personas] if entry.personas else []
    if isinstance(entry, Questions | Prompts) and "/" in entry.source:
        return [entry.source]
    return []


def selection(entry: Any) -> dict[str, Any]:
    """What an entry says, without its name: besides the commit it decides which rows, or which model, this is."""
    said: dict[str, Any] = entry.model_dump()
    said.pop("name")
    said.pop("path", None)  # where a file or a model lies is not what it holds
    return said


def hub_id(entry: Hub | MadeModel, commit: str) -> str:
    return revision_id(commit, selection(entry))


def provisional(config: Config, pins: Lock) -> Lock:
    """Add a stand-in for each used name that is not pinned: enough to plan, not to run.

    Its id is the md5 that the config gives, or `tbd-` and a hash of the definition.
    """
    filled = dict(pins)
    entries: list[Any] = [config.data_entry(n) for n in used_names(config)]
    entries += [config.base_model] if isinstance(config.base_model, MadeModel) else []
    for entry in entries:
        pin = filled.get(entry.name)
        if pin is not None and UNRESOLVED not in (pin.id, pin.revision) and pin.id != NONE:
            continue
        says = definition(entry, filled)
        md5 = getattr(entry, "md5", None)
        identity = md5 or f"{PROVISIONAL}-{digest('provisional', says)[:32]}"
        filled[entry.name] = Pin(entry.name, identity, md5 or NONE, NONE, NONE, UNRESOLVED, says, "not pinned")
    return filled


def unpinned(config: Config, pins: Lock) -> list[str]:
    """Names that the config uses and `pins` does not hold, in the order in which `lock` makes them."""
    names = [*used_names(config), *_base_name(config)]
    return [n for n in names if n not in pins or UNRESOLVED in (pins[n].id, pins[n].revision) or pins[n].id == NONE]


def describe_unpinned(names: tuple[str, ...], configfile: str) -> str:
    """One sentence on data that are not pinned, with the command that pins them."""
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    verb = "is" if len(names) == 1 else "are"
    return f"{listed} of the config {verb} not pinned. Run `python -m workflow lock --configfile {configfile}`."


def require(config: Config, pins: Lock, configfile: str) -> dict[str, str]:
    """Ids by name of everything that the config uses.

    Raises:
        UnpinnedError: names what is not pinned, or was pinned under another definition, and the command that pins.
    """
    faults = []
    entries: list[Any] = [*config.data]
    used = used_names(config)
    if isinstance(config.base_model, MadeModel):
        pin = pins.get(config.base_model.name)
        if pin is None:
            faults.append(f"base_model ({config.base_model.name}): not pinned")
        elif not pin.id.startswith(PROVISIONAL) and pin.id != hub_id(config.base_model, pin.revision):
            faults.append(f"base_model ({config.base_model.name}): it changed since it was pinned")
    for entry in entries:
        if entry.name not in used:
            continue
        pin = pins.get(entry.name)
        if pin is None or pin.id in (NONE, UNRESOLVED):
            faults.append(f"data ({entry.name}): not pinned")
        elif pin.definition != definition(entry, pins):
            faults.append(f"data ({entry.name}): its definition changed since it was pinned")
    if faults:
        raise UnpinnedError(
            "not everything that the config uses is pinned:\n"
            + "\n".join(f"  {f}" for f in faults)
            + f"\nRun `python -m workflow lock --configfile {configfile}`, look at what it wrote, and commit it."
        )
    return {name: pins[name].id for name in [*used, *_base_name(config)]}


def _base_name(config: Config) -> list[str]:
    return [config.base_model.name] if isinstance(config.base_model, MadeModel) else []


def used_names(config: Config) -> list[str]:
    """Names of the data entries that the enabled part of the config needs, sources before what is built from them."""
    order: dict[str, None] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            raise ConfigError(f"data: {' -> '.join([*trail, name])} goes in a circle.")
        for source in sources(config.data_entry(name)):
            visit(source, (*trail, name))
        order[name] = None

    for use in uses(config):
        if use.enabled:
            visit(use.data, ())
    return list(order)


def fetched(pin: Pin, md5: str, sha256: str, rows: int) -> Pin:
    return replace(pin, md5=md5, sha256=sha256, rows=str(rows))
