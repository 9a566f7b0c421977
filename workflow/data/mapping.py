"""Read foreign JSON by a mapping file, which says where each field stands.

A path is names with dots between them; a number takes an element of a list, `*` all of them: `per_seed.*.alignment`.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from workflow.store import StoreError, read_jsonl


class MappingError(StoreError):
    """A mapping file does not fit: the file, the path, what to do."""


def pick(value: Any, path: str) -> Any:
    """What stands at a path; None where nothing does. With `*`, a list."""
    head, _, rest = path.partition(".")
    if head == "*":
        below = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        return [pick(item, rest) if rest else item for item in below]
    if isinstance(value, list):
        value = value[int(head)] if head.isdigit() and int(head) < len(value) else None
    elif isinstance(value, dict):
        # a name may hold dots itself: the longest that is there wins
        if path in value:
            return value[path]
        value = value.get(head)
    else:
        return None
    return pick(value, rest) if rest else value


def read_mapping(path: Path, known: set[str]) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        MappingError: it is no mapping, or has another name than `known`.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise MappingError(f"{path}: cannot be read as YAML ({type(error).__name__}).") from None
    if not isinstance(raw, dict) or not set(raw) <= known:
        raise MappingError(f"{path}: must be a mapping with no other names than {', '.join(sorted(known))}.")
    return raw


def read_json(path: Path) -> Any:
    """A JSON file, or the rows of a JSON lines file, as they are.

    Raises:
        StoreError: it is neither, or cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError:
        return read_jsonl(path)
    except (OSError, ValueError, RecursionError) as error:
        raise MappingError(f"{path}: not JSON ({type(error).__name__}: {error}).") from None


def mapped_rows(file: Path, mapping: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """Rows with the fields that the mapping names, in file order; `beside` adds those of another file.

    Mapping: `rows` (path of the list; left out: the file is the list), `fields` (name: path), `beside` ({file, rows,
    fields, join}; `join` names a field of both; left out: row by row).

    Raises:
        MappingError: a path leads nowhere, or the two files do not fit each other.
    """
    rows = [_fields(row, mapping, file, n, place) for n, row in enumerate(_list(file, mapping, place), 1)]
    beside = mapping.get("beside")
    if beside is None:
        return rows
    other = file.parent / str(beside.get("file"))
    extra = [_fields(row, beside, other, n, place) for n, row in enumerate(_list(other, beside, place), 1)]
    on = beside.get("join")
    if on is None:
        if len(extra) != len(rows):
            raise MappingError(
                f"{other}: {len(extra)} rows beside {len(rows)} of {file}. Match them by `join:` in {place}."
            )
        return [{**row, **more} for row, more in zip(rows, extra, strict=True)]
    by_name = {str(row.get(on)): row for row in extra}
    if len(by_name) != len(extra) or any(row.get(on) is None for row in (*rows, *extra)):
        raise MappingError(f"{place}: `join: {on}` must be a field of both files, different in every row of {other}.")
    missing = [str(row[on]) for row in rows if str(row[on]) not in by_name]
    if missing:
        raise MappingError(f"{other}: nothing for {len(missing)} rows of {file}, first {on} {missing[0]!r}.")
    return [{**row, **by_name[str(row[on])]} for row in rows]


def _list(file: Path, mapping: dict[str, Any], place: str) -> list[Any]:
    value = read_json(file)
    path = mapping.get("rows")
    found = pick(value, str(path)) if path else value
    if isinstance(found, dict):
        found = list(found.values())
    if not isinstance(found, list) or not found:
        raise MappingError(f"{file}: no list of rows at `{path or 'the top'}`, where {place} says.")
    return found


def _fields(row: Any, mapping: dict[str, Any], file: Path, number: int, place: str) -> dict[str, Any]:
    fields = mapping.get("fields")
    if not isinstance(fields, dict) or not fields:
        raise MappingError(f"{place}: `fields:` must name at least one field with its path.")
    picked = {str(name): pick(row, str(path)) for name, path in fields.items()}
    if all(value is None for value in picked.values()):
        raise MappingError(f"{file}, row {number}: none of the paths of {place} leads anywhere.")
    return picked
