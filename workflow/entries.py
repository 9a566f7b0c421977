"""Lists of entries that commands add to and people commit: config/retractions.yaml, config/accepted.yaml."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from workflow.errors import ConfigError
from workflow.files import write_atomic


class Listed(BaseModel):
    """Base of an entry: unknown names and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Entry = TypeVar("Entry", bound=Listed)


def read_entries(kind: type[Entry], path: str | Path) -> tuple[Entry, ...]:
    """Read all entries; an absent file holds none.

    Raises:
        ConfigError: the file is no list of complete entries; none is ever skipped silently.
    """
    try:
        return _parse(kind, Path(path).read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8. Save it as UTF-8.") from None


def _parse(kind: type[Entry], text: str, path: str | Path) -> tuple[Entry, ...]:
    fields = ", ".join(kind.model_fields)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise ConfigError(f"{path}: not a list of entries {{{fields}}}.")
    return tuple(_entry(kind, item, f"{path}, entry {number}", fields) for number, item in enumerate(raw, 1))


def _entry(kind: type[Entry], raw: Any, where: str, fields: str) -> Entry:
    if isinstance(raw, dict):  # YAML reads dates, and has no tuples
        raw = {n: str(v) if n == "date" else tuple(v) if isinstance(v, list) else v for n, v in raw.items()}
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'entry'}: {f['msg']}" for f in error.errors())
        raise ConfigError(f"{where}: {faults}. An entry has {fields}.") from None


def append_entry(entry: Listed, path: str | Path, header: str) -> None:
    """Add an entry as text, so that what people wrote there stays; by rename, once it reads back as meant.

    Raises:
        ConfigError: the file cannot be added to as it is written.
    """
    path = Path(path)
    known = read_entries(type(entry), path)
    text = path.read_text(encoding="utf-8") if path.exists() else header
    if not known:
        text = "".join(f"{line}\n" for line in text.splitlines() if line.strip() != "[]")
    text = text if text.endswith("\n") else text + "\n"
    plain = {n: list(v) if isinstance(v, tuple) else v for n, v in entry.model_dump().items()}
    text += yaml.safe_dump([plain], sort_keys=False, allow_unicode=True, width=110)
    if _parse(type(entry), text, path) != (*known, entry):
        raise ConfigError(f"{path}: cannot be added to as it is written. Write it as a list of `- stage: ...` entries.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
