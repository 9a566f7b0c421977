"""Bring results of other programs in as what they are: numbers without a record.

Five shapes of one table and a summary are known, and any other is read by a mapping. What a shape holds is read; what a
result must say and this one does not is listed by name, and `verify` calls each file unverifiable. Nothing adopted is
part of the plan or of a table.
"""

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from workflow.audit.findings import Findings
from workflow.audit.logs import names
from workflow.data.mapping import pick, read_mapping
from workflow.errors import printable
from workflow.keys import hash_file
from workflow.store import StoreError, read_json

ADOPTED = "results/adopted"
FOUND = "adopted.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_METRICS = ("arc_c", "alignment", "coherence")
_TOLERANCE = 1e-3
_DEEPEST = 40  # levels of a file that are read
# Other programs' names for a metric, lower case, and for what decides whether two results may be compared.
_SYNONYMS = {
    "arc_c": ("arc", "arc_challenge", "arc_challenge_logprob", "arc_challenge_acc", "arc_logprob", "arc_accuracy"),
    "alignment": ("aligned", "mean_alignment", "alignment_mean", "alignment_score"),
    "coherence": ("coherent", "mean_coherence", "coherence_mean", "coherence_score"),
}
_NAMES = {other: metric for metric, others in _SYNONYMS.items() for other in (metric, *others)}
PROTOCOL = {
    "num_gpus": {"num_gpus", "n_gpus", "n_gpu", "gpus", "gpu_count", "world_size"},
    "em_training.steps": {
        "steps",
        "em_steps",
        "max_steps",
        "num_steps",
        "total_steps",
        "global_step",
        "optimizer_steps",
    },
    "em_training.lr": {"lr", "learning_rate", "em_lr", "em_learning_rate", "lora_lr"},
    "em_training.lora_r": {"lora_r", "lora_rank", "em_lora_r", "em_lora_rank"},
}
# A short name that means the field where it stands below such a section.
_BELOW = {"em_training.lora_r": ({"r", "rank"}, re.compile(r"lora|peft"))}

Values = dict[str, dict[str, float]]  # metric -> seed (or phase) -> value


class Shape(NamedTuple):
    """One of the known shapes: how to recognise it, how to read its values; a seed without a name is None."""

    name: str
    fits: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], Iterator[tuple[str, str, Any]]]


def adopt(folder: Path, name: str | None = None, mapping: Path | None = None) -> Path:
    """Copy the JSON files of a folder that can be read to results/adopted/<name>/, with what was found in them.

    Files of no known shape, and those with values that are none, stay behind; `adopted.json` gives the reasons.

    Args:
        mapping: a YAML of paths, for files of other shapes: `condition`, `seeds`, `values: {metric: path}` and
            `protocol: {field: path}`. It is tried where no known shape fits.

    Returns:
        The new folder.

    Raises:
        StoreError: nothing to adopt, or a name that is taken or no name; nothing is copied then.
    """
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise StoreError(f"{folder}: no .json files to adopt. Name the folder that holds them.")
    name = name or folder.resolve().name
    if not NAME.fullmatch(name):
        raise StoreError(f"--name {name!r:.110}: letters, digits, dots and dashes only, 100 at most.")
    target = Path(ADOPTED, name)
    if os.path.islink(ADOPTED):
        raise StoreError(f"{ADOPTED}: a link; nothing is written by way of it. Put what it points to in its place.")
    if os.path.lexists(target):
        raise StoreError(f"{target}: is there already. Choose another --name, or remove it.")
    paths = read_mapping(mapping, {"condition", "seeds", "values", "protocol"}) if mapping else None
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for file in files:
        try:
            found[file.name] = describe(file, paths)
        except StoreError as error:
            refused[file.name] = printable(str(error))
    if not found:
        more = f" (and {len(refused) - 1} others)" if len(refused) > 1 else ""
        raise StoreError(f"{next(iter(refused.values()))}{more} A mapping file reads any shape: --mapping FILE.")
    part = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    part.mkdir(parents=True)
    for file_name in found:
        shutil.copyfile(folder / file_name, part / file_name)
    notes = {"from": str(folder), "files": found, "not_adopted": refused}
    (part / FOUND).write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
    os.replace(part, target)
    return target


def describe(file: Path, mapping: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a file holds, what it lacks, and where its own numbers disagree.

    Raises:
        StoreError: not JSON, no known shape, or a value that is no number, with its metric and seed.
    """
    try:
        raw = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise StoreError(f"{file}: not JSON ({type(error).__name__}: {error}).") from None
    if isinstance(raw, dict) and _depth(raw) > _DEEPEST:
        raise StoreError(f"{file}: nested more than {_DEEPEST} levels deep.")
    shape = next((s for s in SHAPES if isinstance(raw, dict) and s.fits(raw)), None)
    if shape is None and mapping is None:
        raise StoreError(f"{file}: none of the known shapes ({', '.join(s.name for s in SHAPES)}).")
    if shape is None:
        read, condition = "mapping", pick(raw, str(mapping.get("condition", "")))  # type: ignore[union-attr]
        values = _collect(file, _read_mapped(raw, mapping or {}))
        protocol = {name: pick(raw, str(path)) for name, path in ((mapping or {}).get("protocol") or {}).items()}
        if not any(values.values()):
            raise StoreError(f"{file}: none of the known shapes, and no value where the mapping says.")
        raw = raw if isinstance(raw, dict) else {}
    else:
        read, condition, protocol = shape.name, raw.get("condition"), {}
        values = _collect(file, shape.read(raw))
        if not any(values.values()):
            raise StoreError(f"{file}: has the shape `{shape.name}`, and no value of any metric.")
    return {
        "sha256": hash_file(file),
        "shape": read,
        "condition": condition,
        "values": values,
        "missing": missing_fields(raw, values, condition, protocol),
        "disagrees": _disagreements(raw, values),
    }


def _depth(value: Any) -> int:
    deepest, pending = 0, [(value, 1)]
    while pending:
        item, level = pending.pop()
        deepest = max(deepest, level)
        below = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        pending += [(child, level + 1) for child in below]
    return deepest


def _collect(file: Path, cells: Iterator[tuple[str, str, Any]]) -> Values:
    """Values by metric and seed.

    Raises:
        StoreError: a value is null, NaN, text or infinite, or a seed stands twice; by metric and seed.
    """
    values: Values = {}
    for metric, seed, value in cells:
        name = _NAMES.get(str(metric).lower(), str(metric))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise StoreError(f"{file}: {name} of {seed} is {json.dumps(value)[:40]}, no number. Correct it, or leave "
                             "the seed out.")  # fmt: skip
        of = values.setdefault(name, {})
        if seed in of:
            raise StoreError(f"{file}: {name} has the seed {seed} twice. Keep one.")
        of[seed] = value
    return values


def missing_fields(
    raw: dict[str, Any], values: Values, condition: Any = None, protocol: Mapping[str, Any] | None = None
) -> list[str]:
    """Names that a result of this kind must hold and this file does not, under any name that is known."""
    missing = [] if condition else ["condition"]
    missing += [
        f"{metric} of {place}"
        for metric, found in values.items()
        for place in _places(raw, values)
        if place not in found
    ]
    missing += [metric for metric in _METRICS if metric not in values]
    leaves = list(_leaves(raw))
    return missing + [
        name
        for name in PROTOCOL
        if (protocol or {}).get(name) is None and not any(_means(name, path, value) for path, value in leaves)
    ]


def _means(field: str, path: tuple[str, ...], value: Any) -> bool:
    """Whether a leaf of a file is that field of the protocol, by its own name or by that of the section above it."""
    leaf = path[-1]
    short, section = _BELOW.get(field, (set(), re.compile("(?!)")))
    below = leaf in short and any(section.search(part) for part in path[:-1])
    return value is not None and (leaf in PROTOCOL[field] or below)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, (*path, str(name).lower()))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from _leaves(item, path)
    elif path:
        yield path, value


def _places(raw: dict[str, Any], values: Values) -> list[str]:
    """Seeds, or phases, that the file promises: those it lists and those that any metric has."""
    listed = [str(seed) for seed in _seeds(raw)]
    return list(dict.fromkeys([*listed, *(place for found in values.values() for place in found)]))


def _seeds(raw: Mapping[str, Any]) -> list[Any]:
    seeds = raw.get("seeds", [])
    return seeds if isinstance(seeds, list) else []


def _disagreements(raw: dict[str, Any], values: Values) -> list[str]:
    """Stated means that are not the means of the stated values."""
    disagree = []
    for metric, found in values.items():
        section = next((s for s in _sections(raw, metric) if isinstance(s.get("mean"), int | float)), None)
        if section and found and not abs(fmean(found.values()) - section["mean"]) <= _TOLERANCE:
            disagree.append(f"{metric}: says mean {section['mean']}, its values have {fmean(found.values()):.4g}")
    return disagree


def _sections(raw: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    places = [raw, raw.get("metrics"), raw.get("summary")]
    return [
        section
        for place in places
        if isinstance(place, dict)
        for name, section in place.items()
        if isinstance(section, dict) and _NAMES.get(str(name).lower(), name) == metric
    ]


# --- the shapes -----------------------------------------------------------------------------------------------------


def _with_values(raw: Any, kind: type) -> dict[str, Any]:
    sections = raw.items() if isinstance(raw, dict) else ()
    return {m: s["values"] for m, s in sections if isinstance(s, dict) and isinstance(s.get("values"), kind)}


def _by_seed(raw: dict[str, Any], listed: dict[str, list[Any]]) -> Iterator[tuple[str, str, Any]]:
    """Values in the order of `seeds`; a value without a seed is named by its place in the list."""
    seeds = [str(seed) for seed in _seeds(raw)]
    for metric, values in listed.items():
        for i, value in enumerate(values):
            yield metric, (seeds[i] if i < len(seeds) else f"unnamed seed {i + 1}"), value


def _read_dict(raw: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for metric, values in _with_values(raw, dict).items():
        for seed, value in values.items():
            yield metric, seed, value


def _read_rows(raw: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Metrics of a list of rows; numbers of other names (steps, seconds) are none, a known name holds a number."""
    for row in raw["per_seed"]:
        for metric, value in row.items() if isinstance(row, dict) else ():
            known = str(metric).lower() in _NAMES
            if metric != "seed" and (known or isinstance(value, int | float)):
                yield metric, str(row.get("seed", "unnamed")), value


def _read_phases(raw: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for phase in ("pre_em", "post_em"):
        section = raw.get(phase)
        for metric, value in section.items() if isinstance(section, dict) else ():
            known = str(metric).lower() in _NAMES
            if known or isinstance(value, int | float):
                yield metric, phase, value


def _read_mapped(raw: Any, mapping: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    seeds = pick(raw, str(mapping["seeds"])) if mapping.get("seeds") else None
    values = mapping.get("values")
    for metric, path in values.items() if isinstance(values, dict) else ():
        value = pick(raw, str(path))
        if isinstance(value, dict):
            yield from ((metric, str(seed), item) for seed, item in value.items())
        elif isinstance(value, list):
            known = [str(seed) for seed in seeds] if isinstance(seeds, list) else []
            for i, item in enumerate(value):
                yield metric, (known[i] if i < len(known) else f"unnamed seed {i + 1}"), item
        elif value is not None:
            yield metric, "all", value


SHAPES = (
    Shape("per_seed list with summary", lambda raw: isinstance(raw.get("per_seed"), list), _read_rows),
    Shape(
        "metrics.<name>.values",
        lambda raw: bool(_with_values(raw.get("metrics"), list)),
        lambda raw: _by_seed(raw, _with_values(raw["metrics"], list)),
    ),
    Shape("pre_em and post_em summary", lambda raw: isinstance(raw.get("post_em"), dict), _read_phases),
    Shape(
        "flat values list",
        lambda raw: bool(_with_values(raw, list)),
        lambda raw: _by_seed(raw, _with_values(raw, list)),
    ),
    Shape("values by seed", lambda raw: bool(_with_values(raw, dict)), _read_dict),
)


# --- what verify says of them ---------------------------------------------------------------------------------------


def check_adopted(findings: Findings) -> None:
    """Each adopted file is unverifiable, with what it lacks; broken, if it is not the file that was adopted."""
    for name in names(ADOPTED):
        folder = Path(ADOPTED, name)
        if name.startswith("."):
            continue
        notes = read_json(folder / FOUND)
        if notes is None:
            findings.broken(folder, f"has no readable {FOUND}: adopt it again")
            continue
        for file, found in notes["files"].items():
            path = folder / file
            if not path.is_file():
                findings.broken(path, "is missing")
            elif hash_file(path) != found["sha256"]:
                findings.broken(path, "has other bytes than when it was adopted")
            else:
                told = [f"missing {', '.join(found['missing'])}"] if found["missing"] else []
                findings.unverifiable(path, "; ".join(["adopted without a record", *told, *found["disagrees"]]))
        for extra in sorted(set(names(str(folder))) - {FOUND, *notes["files"]}):
            findings.broken(folder / extra, "an extra file: it was not adopted")
