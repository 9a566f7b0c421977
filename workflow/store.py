"""Where results lie, and the record that says that a result is whole.

    results/<stage>/<cell>/<key>/record.json     the record: written last, by rename
    results/<stage>/<cell>/<key>/out/            the outputs, read-only, with a twin of the record
    results/data/<md5>.jsonl                     data, named by their bytes

No record, no result. Snakemake deletes a declared output before it runs a job, hence the twin: a stage that is
planned again verifies what it finished before and restores it.
"""

import json
import os
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from workflow.keys import Recipe, artifact_digest, canonical_json, hash_file

SCHEMA = 1
DATA = "results/data"
TWIN = "record.json"
METRICS = "metrics.json"


class StoreError(RuntimeError):
    """A result that cannot be trusted: what, where, and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Output(_Strict):
    path: str = Field(description="relative to the result's out/ folder")
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Input(_Strict):
    path: str = Field(description="the record or data file that was read, relative to the project's root")
    key: str = Field(description="the parent's key, or the data's id")
    digest: str = Field(description="the parent's digest, or the sha256 of the data file")


class RecipeModel(_Strict):
    stage: str
    version: int
    data: str
    params: dict[str, Any]
    parents: list[str]


class Record(_Strict):
    """One result: what was asked for, what was read, what came out, what was observed, who made it."""

    schema_: Literal[1] = Field(alias="schema")
    stage: str
    cell: str
    key: str
    recipe: RecipeModel
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 over recipe and outputs; no time or host in it")
    inputs: dict[str, Input] = Field(description="by role: data, and parent stages by name")
    outputs: list[Output] = Field(min_length=1)
    observed: dict[str, Any] = Field(description="facts of the run: steps, rows, tokens, world size, seconds")
    metrics: dict[str, Any] = Field(description="numbers that the report reads")
    provenance: dict[str, Any] = Field(description="commit, code digest, packages, host, command, times")

    def to_recipe(self) -> Recipe:
        return Recipe.from_dict(self.recipe.model_dump())

    def to_json(self) -> str:
        return json.dumps(self.model_dump(by_alias=True), indent=2, sort_keys=True, allow_nan=False) + "\n"


def node_dir(stage: str, cell: str, key: str) -> str:
    return f"results/{stage}/{cell}/{key}"


def record_path(stage: str, cell: str, key: str) -> str:
    return f"{node_dir(stage, cell, key)}/record.json"


def data_path(data_id: str) -> str:
    return f"{DATA}/{data_id}.jsonl"


def out_dir(record: str | Path) -> Path:
    """The folder of a record's outputs."""
    return Path(record).parent / "out"


def read_record(path: str | Path) -> Record:
    """Read and check a record.

    Raises:
        StoreError: missing, not of the schema, or its key, path and recipe do not agree.
    """
    path = Path(path)
    try:
        record = Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path}: no record, so no result. Run `snakemake {path}`.") from None
    except ValueError as error:
        raise StoreError(f"{path}: not a record of schema {SCHEMA}: {error}") from None
    folder = path.parent.parent if path.parent.name == "out" else path.parent
    found = (record.stage, record.cell, record.key)
    if found != folder.parts[-3:]:
        raise StoreError(f"{path}: the record is of {'/'.join(found)}, which is not where it lies.")
    recipe = record.to_recipe()
    if recipe.key != record.key or recipe.stage != record.stage:
        raise StoreError(f"{path}: its recipe has the key {recipe.key}, not {record.key}: the record was edited.")
    if record.digest != artifact_digest(recipe, [o.model_dump() for o in record.outputs]):
        raise StoreError(f"{path}: its digest is not that of its recipe and outputs: the record was edited.")
    return record


def check_outputs(record: Record, folder: Path, beside: tuple[str, ...] = (TWIN,)) -> None:
    """Re-hash every output under `folder`; `beside` are files that may lie there too.

    Raises:
        StoreError: a file is missing, extra, of another size or of other bytes; all of them are named.
    """
    faults = []
    expected = {o.path: o for o in record.outputs}
    for extra in sorted(set(list_files(folder)) - set(expected) - set(beside)):
        faults.append(f"{extra} is not in the record")
    for name, output in expected.items():
        file = folder / name
        if not file.is_file():
            faults.append(f"{name} is missing")
        elif file.stat().st_size != output.bytes:
            faults.append(f"{name} has {file.stat().st_size} bytes, not {output.bytes}")
        elif hash_file(file) != output.sha256:
            faults.append(f"{name} has other bytes than recorded")
    if faults:
        raise StoreError(f"{folder}: {'; '.join(faults)}")


def list_files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def describe_outputs(folder: Path) -> list[dict[str, Any]]:
    """Path, size and sha256 of every file under `folder`; an empty file is an error (a full disk leaves some)."""
    outputs = []
    for name in list_files(folder):
        size = (folder / name).stat().st_size
        if size == 0:
            raise StoreError(f"{folder / name}: an output of zero bytes. Is the disk full? Free some and run again.")
        outputs.append({"path": name, "bytes": size, "sha256": hash_file(folder / name)})
    if not outputs:
        raise StoreError(f"{folder}: the stage wrote nothing")
    return outputs


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A folder that is this job's alone, inside the result's folder; gone afterwards unless it was published.

    A second job of the same key (after a kill, or a requeue) must not write into the first one's files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_dead_workspaces(folder)
    temp = folder / f".{socket.gethostname()}.{os.getpid()}.tmp"
    temp.mkdir()
    try:
        yield temp
    finally:
        if temp.exists():
            shutil.rmtree(temp)


def _workspaces(folder: Path) -> Iterator[tuple[Path, int, bool]]:
    """Workspaces of this host with their process, and whether it still works there: a number may be another's now."""
    for temp in folder.glob(f".{socket.gethostname()}.*.tmp"):
        pid = int(temp.name.split(".")[-2])
        try:
            alive = pid != os.getpid() and psutil.Process(pid).create_time() <= temp.stat().st_mtime + 1
        except (psutil.NoSuchProcess, FileNotFoundError):
            alive = False
        yield temp, pid, alive


def _remove_dead_workspaces(folder: Path) -> None:
    for temp, _, alive in _workspaces(folder):
        if not alive:
            shutil.rmtree(temp, ignore_errors=True)


def wait_for_others(folder: Path, every: float = 1.0) -> None:
    """Wait for a job of the same key on this host, which a killed Snakemake left: its result will be ours."""
    told = False
    while others := [pid for _, pid, alive in _workspaces(folder) if alive]:
        if not told:
            names = ", ".join(map(str, others))
            print(f"{folder}: process {names} makes this result already; waiting for it", file=sys.stderr, flush=True)
        told = True
        time.sleep(every)


def publish(temp: Path, record: Record) -> Path:
    """Put `temp` in place as the read-only `out/`, then write the record. Returns the record's path."""
    path = Path(record_path(record.stage, record.cell, record.key))
    if _is_finished(path, record):
        shutil.rmtree(temp)
        return path
    (temp / TWIN).write_text(record.to_json())
    for name in list_files(temp):
        _sync(temp / name)
    for file in temp.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    out = out_dir(path)
    if out.exists():
        set_aside(out)
    temp.chmod(0o755)  # a folder that is not writable cannot be renamed
    os.rename(temp, out)
    out.chmod(0o555)
    write_marker(path, record)
    return path


def _is_finished(path: Path, record: Record) -> bool:
    """Whether another job of this key, left by a kill or of a second run, was first: its children may be reading."""
    try:
        there = read_record(path)
        check_outputs(there, out_dir(path))
    except StoreError:
        return False
    return {r: i.digest for r, i in there.inputs.items()} == {r: i.digest for r, i in record.inputs.items()}


def write_marker(path: Path, record: Record) -> None:
    """Write record.json by rename: if it is there, the result is whole."""
    part = path.with_name(f".record.{os.getpid()}.part")
    try:
        part.write_text(record.to_json())
        _sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # there is something left only if the disk failed


def set_aside(out: Path) -> Path:
    """Move an older result of the same key out of the way, under its digest; `gc` lists it. Nothing is lost."""
    twin = out / TWIN
    name = json.loads(twin.read_text())["digest"][:12] if twin.is_file() else "unfinished"
    aside = out.with_name(f"superseded.{name}")
    count = 1
    while aside.exists():
        count += 1
        aside = out.with_name(f"superseded.{name}.{count}")
    out.chmod(0o755)
    os.rename(out, aside)
    aside.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    return aside


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Canonical JSON lines: equal rows give equal bytes."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(canonical_json(row) + "\n" for row in rows)


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file.

    Raises:
        StoreError: a line that is not a JSON object; the line is named.
    """
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise StoreError(f"{path}, line {number}: not JSON ({error.msg}). Correct the line.") from None
            if not isinstance(row, dict):
                raise StoreError(f"{path}, line {number}: a row must be a JSON object.")
            rows.append(row)
    return rows
