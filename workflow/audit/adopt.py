"""Results of other programs, brought in as what they are: numbers without a record.

Four shapes of one table and a summary are known. What a shape holds is read; what a result must say and this one does
not is listed by name, and `verify` calls each file unverifiable. Nothing adopted is part of the plan or of a table.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from workflow.audit.findings import Findings
from workflow.audit.logs import names
from workflow.keys import hash_file
from workflow.store import StoreError, read_json

ADOPTED = "results/adopted"
FOUND = "adopted.json"
# What decides whether two such results may be compared, and where a file may say it.
PROTOCOL = {
    "num_gpus": ("num_gpus",),
    "em_training.steps": ("em_training.steps", "training_config.steps"),
    "em_training.lr": ("em_training.lr", "training_config.lr"),
    "em_training.lora_r": ("em_training.lora_r", "training_config.lora_r"),
}
_METRICS = ("arc_c", "alignment", "coherence")
_NAMES = {"arc_challenge_logprob": "arc_c"}
_TOLERANCE = 1e-3

Values = dict[str, dict[str, float]]  # metric -> seed (or phase) -> value


class Shape(NamedTuple):
    """One of the known shapes: how to recognise it, where its metrics stand, how to read one."""

    name: str
    fits: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], Values]


def adopt(folder: Path, name: str | None = None) -> Path:
    """Copy every JSON file of a folder to results/adopted/<name>/, with what was found in it. Returns that folder.

    Raises:
        StoreError: nothing to adopt, a file of no known shape, or a name that is taken; nothing is copied then.
    """
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise StoreError(f"{folder}: no .json files to adopt. Name the folder that holds them.")
    target = Path(ADOPTED, name or folder.resolve().name)
    if target.exists():
        raise StoreError(f"{target}: is there already. Choose another --name, or remove it.")
    found = {file.name: describe(file) for file in files}
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, part / file.name)
    (part / FOUND).write_text(json.dumps({"from": str(folder), "files": found}, indent=1, sort_keys=True) + "\n")
    os.replace(part, target)
    return target


def describe(file: Path) -> dict[str, Any]:
    """What a file holds, what it lacks, and where its own numbers disagree."""
    try:
        raw = json.loads(file.read_bytes())
    except ValueError as error:
        raise StoreError(f"{file}: not JSON ({error}).") from None
    shape = next((s for s in SHAPES if isinstance(raw, dict) and s.fits(raw)), None)
    if shape is None:
        raise StoreError(f"{file}: none of the known shapes ({', '.join(s.name for s in SHAPES)}).")
    values = shape.read(raw)
    return {
        "sha256": hash_file(file),
        "shape": shape.name,
        "condition": raw.get("condition"),
        "values": values,
        "missing": missing_fields(raw, values),
        "disagrees": _disagreements(raw, values),
    }


def missing_fields(raw: dict[str, Any], values: Values) -> list[str]:
    """Names that a result of this kind must hold and this file does not."""
    missing = [] if raw.get("condition") else ["condition"]
    missing += [
        f"{metric} of {place}"
        for metric, found in values.items()
        for place in _places(raw, values)
        if place not in found
    ]
    missing += [metric for metric in _METRICS if metric not in values]
    return missing + [name for name, spellings in PROTOCOL.items() if all(_get(raw, s) is None for s in spellings)]


def _places(raw: dict[str, Any], values: Values) -> list[str]:
    """Seeds, or phases, that the file promises: those it lists and those that any metric has."""
    listed = [str(seed) for seed in raw.get("seeds", ())]
    return list(dict.fromkeys([*listed, *(place for found in values.values() for place in found)]))


def _disagreements(raw: dict[str, Any], values: Values) -> list[str]:
    """Stated means that are not the means of the stated values."""
    told = []
    for metric, found in values.items():
        section = next((s for s in _sections(raw, metric) if "mean" in s), None)
        if section and found and abs(fmean(found.values()) - section["mean"]) > _TOLERANCE:
            told.append(f"{metric}: says mean {section['mean']}, its values have {fmean(found.values()):.4g}")
    return told


def _sections(raw: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    spellings = [metric, *(old for old, new in _NAMES.items() if new == metric)]
    places = [raw, raw.get("metrics", {}), raw.get("summary", {})]
    return [p[s] for p in places for s in spellings if isinstance(p.get(s), dict)]


def _get(raw: dict[str, Any], dotted: str) -> Any:
    value: Any = raw
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


# --- the shapes -----------------------------------------------------------------------------------------------------


def _with_values(raw: dict[str, Any], kind: type) -> dict[str, Any]:
    return {m: s["values"] for m, s in raw.items() if isinstance(s, dict) and isinstance(s.get("values"), kind)}


def _by_seed(raw: dict[str, Any], listed: dict[str, list[float]]) -> Values:
    """Values in the order of `seeds`; a value without a seed is named by its place in the list."""
    seeds = [str(seed) for seed in raw.get("seeds", ())]
    return {
        _NAMES.get(metric, metric): {
            (seeds[i] if i < len(seeds) else f"unnamed seed {i + 1}"): value for i, value in enumerate(values)
        }
        for metric, values in listed.items()
    }


def _read_flat(raw: dict[str, Any]) -> Values:
    return _by_seed(raw, _with_values(raw, list))


def _read_dict(raw: dict[str, Any]) -> Values:
    return {_NAMES.get(metric, metric): dict(values) for metric, values in _with_values(raw, dict).items()}


def _read_nested(raw: dict[str, Any]) -> Values:
    return _by_seed(raw, _with_values(raw["metrics"], list))


def _read_rows(raw: dict[str, Any]) -> Values:
    found: Values = {}
    for row in raw["per_seed"]:
        for metric, value in row.items():
            if metric != "seed" and isinstance(value, int | float):
                found.setdefault(_NAMES.get(metric, metric), {})[str(row.get("seed", "unnamed"))] = value
    return found


def _read_phases(raw: dict[str, Any]) -> Values:
    found: Values = {}
    for phase in ("pre_em", "post_em"):
        for metric, value in raw.get(phase, {}).items():
            found.setdefault(_NAMES.get(metric, metric), {})[phase] = value
    return found


SHAPES = (
    Shape("per_seed list with summary", lambda raw: isinstance(raw.get("per_seed"), list), _read_rows),
    Shape("metrics.<name>.values", lambda raw: bool(_with_values(raw.get("metrics") or {}, list)), _read_nested),
    Shape("pre_em and post_em summary", lambda raw: isinstance(raw.get("post_em"), dict), _read_phases),
    Shape("flat values list", lambda raw: bool(_with_values(raw, list)), _read_flat),
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
