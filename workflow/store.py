"""Where results lie, and the record that says that a result is whole.

    results/<stage>/<cell>/<key>/record.json     the record: written last, by rename
    results/<stage>/<cell>/<key>/out/            the outputs, read-only, with a copy of the record
    results/data/<md5>.jsonl                     data, named by their bytes

No record, no result. Snakemake deletes a declared output before it runs a job, hence the copy: a stage that is planned
again verifies what it finished before and restores it.
"""

import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Self

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from workflow.errors import UserError, printable
from workflow.files import Owner, heartbeat, is_beating, is_regular, sync_file, write_atomic
from workflow.keys import Recipe, canonical_json, content_digest, hash_file, result_digest

SCHEMA = 2
RESULTS = "results"
DATA = "results/data"
PLANS = "results/.plan"  # what runs from every checkout planned, for `gc`; and siblings of jobs
RECORD = "record.json"
METRICS = "metrics.json"
EXAMPLES = "examples.json"
SUPERSEDED = "superseded."  # before the digest of an older result of the same key; it may be restored
# Under results/, beside the stages: data, results of other programs, the reference report.
_NO_STAGES = frozenset({"README.md", "data", "adopted", "reference"})
REDONE = "redone."  # likewise, of a result that `redo` set aside; it is not restored


class StoreError(UserError, RuntimeError):
    """A result that cannot be trusted: what, where, and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Output(_Strict):
    path: str = Field(description="relative to the result's out/ folder")
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path:
            raise ValueError("an output's path must lie inside out/")
        return path


class Input(_Strict):
    path: str = Field(description="the record or data file that was read, relative to the project's root")
    key: str = Field(description="the parent's key, or the data's id")
    digest: str = Field(description="the parent's digest, or the sha256 of the data file")
    content: str = Field(description="the parent's content, or the sha256 of the data file")


class RecipeModel(_Strict):
    stage: str
    version: int
    data: str
    params: dict[str, Any]
    parents: list[str]


class Record(_Strict):
    """One result: what was asked for, what was read, what came out, what was observed, who made it."""

    schema_: Literal[2] = Field(alias="schema")
    stage: str
    cell: str
    key: str
    recipe: RecipeModel
    content: str = Field(pattern=r"^[0-9a-f]{64}$", description="sha256 over path, size and sha256 of the outputs")
    digest: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="sha256 over recipe, digests of the inputs, content; no time or host"
    )
    inputs: dict[str, Input] = Field(description="by role: data, and parent stages by name")
    outputs: list[Output] = Field(min_length=1)
    observed: dict[str, Any] = Field(description="facts of the run: steps, rows, tokens, world size, seconds")
    metrics: dict[str, Any] = Field(description="numbers that the report reads")
    provenance: dict[str, Any] = Field(description="commit, code digest, packages, host, command, times")

    @classmethod
    def create(
        cls,
        recipe: Recipe,
        cell: str,
        inputs: Mapping[str, Input],
        outputs: list[dict[str, Any]],
        observed: Mapping[str, Any],
        metrics: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Self:
        """Make the record of a result, with its two digests."""
        content = content_digest(outputs)
        return cls.model_validate(
            {
                "schema": SCHEMA,
                "stage": recipe.stage,
                "cell": cell,
                "key": recipe.key,
                "recipe": recipe.to_dict(),
                "content": content,
                "digest": result_digest(recipe, {role: i.digest for role, i in inputs.items()}, content),
                "inputs": dict(inputs),
                "outputs": outputs,
                "observed": dict(observed),
                "metrics": dict(metrics),
                "provenance": dict(provenance),
            }
        )

    def relinked(self, inputs: Mapping[str, Input]) -> Self:
        """The same result on the same bytes of parents whose own history is another: only digests differ."""
        digest = result_digest(self.to_recipe(), {role: i.digest for role, i in inputs.items()}, self.content)
        return self.model_copy(update={"inputs": dict(inputs), "digest": digest})

    def to_recipe(self) -> Recipe:
        return Recipe.from_dict(self.recipe.model_dump())

    def to_json(self) -> str:
        return json.dumps(self.model_dump(by_alias=True), indent=2, sort_keys=True, allow_nan=False) + "\n"

    def as_input(self, path: str | Path) -> Input:
        """What a child's record says of this one."""
        return Input(path=str(path), key=self.key, digest=self.digest, content=self.content)


def node_dir(stage: str, cell: str, key: str) -> str:
    return f"{RESULTS}/{stage}/{cell}/{key}"


def record_path(stage: str, cell: str, key: str) -> str:
    return f"{node_dir(stage, cell, key)}/{RECORD}"


def data_path(data_id: str) -> str:
    return f"{DATA}/{data_id}.jsonl"


def out_dir(record: str | Path) -> Path:
    """The folder of a record's outputs."""
    return Path(record).parent / "out"


# --- reading --------------------------------------------------------------------------------------------------------


def read_record(path: str | Path) -> Record:
    """Read and check a record.

    Raises:
        StoreError: missing, not of the schema, or its key, path, recipe and digests do not agree.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
        record = Record.model_validate_json(text)
    except FileNotFoundError:
        raise StoreError(f"{path}: no record, so no result. Run `snakemake {path}`.") from None
    except ValueError as error:
        if b'"schema": 1,' in text[-4096:] or b'"schema": 1,' in text[:4096]:
            raise StoreError(
                f"{path}: a record of schema 1, from before the first release; this is schema {SCHEMA}. "
                "Move results/ aside and make it again."
            ) from None
        raise StoreError(f"{path}: not a record of schema {SCHEMA}: {_first_fault(error)}") from None
    folder = path.parent if path.parent.parent.name == record.cell else path.parent.parent
    place = (record.stage, record.cell, record.key)
    if place != folder.parts[-3:]:
        raise StoreError(f"{path}: the record is of {'/'.join(place)}, which is not where it lies.")
    recipe = record.to_recipe()
    if recipe.key != record.key or recipe.stage != record.stage:
        raise StoreError(f"{path}: its recipe has the key {recipe.key}, not {record.key}: the record was edited.")
    content = content_digest(o.model_dump() for o in record.outputs)
    digest = result_digest(recipe, {role: i.digest for role, i in record.inputs.items()}, content)
    if (content, digest) != (record.content, record.digest):
        raise StoreError(f"{path}: its digests are not those of its recipe, inputs and outputs: the record was edited.")
    return record


def _first_fault(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}".lstrip(": ") for f in error.errors()]
    return faults[0] + (f", and {len(faults) - 1} faults more" if len(faults) > 1 else "")


class Summary(NamedTuple):
    """What planning and `status` read of a record, unchecked. `inputs`: digest by path of each parent's record."""

    digest: str
    content: str
    inputs: dict[str, str]
    observed: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def code(self) -> str | None:
        return self.provenance.get("code_digest")


UNREADABLE = Summary("", "", {}, {}, {})


def read_summary(path: str) -> Summary | None:
    """Read the digests, links and facts of a record; None if there is none, `UNREADABLE` if it is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # a file object costs as much again
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        text = os.read(descriptor, os.fstat(descriptor).st_size + 1)
    finally:
        os.close(descriptor)
    try:
        raw = pydantic_core.from_json(text, cache_strings="keys")
        links = {i["path"]: i["digest"] for role, i in raw["inputs"].items() if role != "data"}
        return Summary(raw["digest"], raw["content"], links, raw["observed"], raw["provenance"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return UNREADABLE


def read_json(path: str | Path) -> dict[str, Any] | None:
    """Read a record as plain JSON, or None where none can be read: for comparing, not for trusting."""
    try:
        with open(path, "rb") as file:
            raw = json.load(file)
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None


def list_stages() -> list[str]:
    """Names under results/ that hold results of a stage, whether this version knows the stage or not."""
    try:
        names = sorted(os.listdir(RESULTS))
    except FileNotFoundError:
        return []
    return [name for name in names if name not in _NO_STAGES and not name.startswith(".")]


def check_outputs(record: Record, folder: Path, beside: tuple[str, ...] = (RECORD,)) -> None:
    """Re-hash every output under `folder`; `beside` are files that may lie there too.

    Raises:
        StoreError: a file is missing, extra, a link, of another size or of other bytes; all of them are named.
    """
    faults = []
    expected = {o.path: o for o in record.outputs}
    for extra in sorted(set(list_files(folder)) - set(expected) - set(beside)):
        faults.append(f"{extra} is not in the record")
    for name, output in expected.items():
        file = folder / name
        if not os.path.lexists(file):
            faults.append(f"{name} is missing")
        elif not is_regular(file):
            faults.append(f"{name} is a link, not a file of its own")
        elif file.stat().st_size != output.bytes:
            faults.append(f"{name} has {file.stat().st_size} bytes, not {output.bytes}")
        elif hash_file(file) != output.sha256:
            faults.append(f"{name} has other bytes than recorded")
    if faults:
        raise StoreError(f"{folder}: {'; '.join(faults)}")


def list_files(folder: Path) -> list[str]:
    """Names of all files and links under a folder, relative to it; no link is followed."""
    names = []
    for where, folders, files in os.walk(folder):
        links = [d for d in folders if os.path.islink(os.path.join(where, d))]
        names += [os.path.relpath(os.path.join(where, name), folder) for name in (*files, *links)]
    return sorted(names)


def describe_outputs(folder: Path) -> list[dict[str, Any]]:
    """List path, size and sha256 of every file under `folder`.

    Raises:
        StoreError: an empty file (a full disk leaves some), a link, or nothing at all.
    """
    outputs = []
    for name in list_files(folder):
        if not is_regular(folder / name):
            raise StoreError(f"{folder / name}: an output must be a file of its own, not a link.")
        size = (folder / name).stat().st_size
        if size == 0:
            raise StoreError(f"{folder / name}: an output of zero bytes. Is the disk full? Free some and run again.")
        outputs.append({"path": name, "bytes": size, "sha256": hash_file(folder / name)})
    if not outputs:
        raise StoreError(f"{folder}: the stage wrote nothing")
    return outputs


# --- writing --------------------------------------------------------------------------------------------------------


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A folder that is this job's alone, inside the result's folder; gone afterwards unless it was published.

    While it is there, a heartbeat beside it tells other hosts and containers that its job runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for other, owner in workspaces(folder):
        if owner is not None and owner.is_alive() is False:
            shutil.rmtree(other, ignore_errors=True)
            heartbeat_path(other).unlink(missing_ok=True)
    temp = folder / f".{secrets.token_hex(4)}.{Owner.current()}.tmp"
    temp.mkdir()
    try:
        with heartbeat(heartbeat_path(temp)):
            yield temp
    finally:
        if temp.exists():
            shutil.rmtree(temp)


def workspaces(folder: str | Path) -> list[tuple[Path, Owner | None]]:
    """Workspaces of jobs that are running or were killed, with the process that made each; None: an odd name."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = [n for n in names if n.startswith(".") and n.endswith(".tmp")]
    return [(Path(folder, n), Owner.parse(n[1 : -len(".tmp")].partition(".")[2])) for n in names]


def heartbeat_path(temp: Path) -> Path:
    """Where the job of a workspace leaves its heartbeat."""
    return temp.with_name(temp.name.removesuffix(".tmp") + ".beat")


def is_at_work(temp: Path, owner: Owner | None) -> bool | None:
    """Whether the job of a workspace runs: by its process here, by its heartbeat on other hosts and in containers.

    Returns:
        None where it cannot be told.
    """
    alive = owner.is_alive() if owner else None
    return is_beating(heartbeat_path(temp)) if alive is None else alive


def publish(temp: Path, record: Record) -> Path:
    """Put `temp` in place as the read-only `out/`, then write the record. Returns the record's path."""
    path = Path(record_path(record.stage, record.cell, record.key))
    if _is_finished(path, record):
        shutil.rmtree(temp)
        return path
    (temp / RECORD).write_text(record.to_json())
    for name in list_files(temp):
        sync_file(temp / name)
    for file in temp.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    out = out_dir(path)
    if os.path.lexists(out):
        set_aside(out)
    temp.chmod(0o755)  # a folder that is not writable cannot be renamed
    os.rename(temp, out)
    out.chmod(0o555)
    write_atomic(path, record.to_json())
    return path


def _is_finished(path: Path, record: Record) -> bool:
    """Whether another job of this key, left by a kill or of a second run, was first: its children may be reading."""
    try:
        there = read_record(path)
        check_outputs(there, out_dir(path))
    except StoreError:
        return False
    return {r: i.digest for r, i in there.inputs.items()} == {r: i.digest for r, i in record.inputs.items()}


def restore(path: Path, inputs: Mapping[str, Input]) -> Record | None:
    """Take up a finished result of this key whose parents have the bytes that it was made from.

    It may lie in out/, or have been set aside for another one. Where a parent's bytes are the same and only its
    history is another, the record is written with the new links.

    Returns:
        None if there is none that is whole and fits.
    """
    aside = sorted(path.parent.glob(f"{SUPERSEDED}*"))
    for folder in (out_dir(path), *aside):
        if not is_regular(folder / RECORD):
            continue
        try:
            record = read_record(folder / RECORD)
            if _contents(record.inputs) != _contents(inputs):
                raise StoreError("it was made from other bytes of its parents")
            check_outputs(record, folder)
        except StoreError as error:
            if folder == out_dir(path):
                message = f"{path}: the earlier result is not whole, or does not fit: {error}"
                print(printable(message), file=sys.stderr)
            continue
        if folder != out_dir(path):
            if os.path.lexists(out_dir(path)):
                set_aside(out_dir(path))
            folder.chmod(0o755)
            os.rename(folder, out_dir(path))
            out_dir(path).chmod(0o555)
        if record.inputs != dict(inputs):
            record = record.relinked(inputs)
            _replace_copy(out_dir(path), record)
        write_atomic(path, record.to_json())
        return record
    return None


def _contents(inputs: Mapping[str, Input]) -> dict[str, tuple[str, str]]:
    return {role: (i.key, i.content) for role, i in inputs.items()}


def _replace_copy(out: Path, record: Record) -> None:
    out.chmod(0o755)
    try:
        write_atomic(out / RECORD, record.to_json())
        (out / RECORD).chmod(0o444)
    finally:
        out.chmod(0o555)


def set_aside(out: Path, prefix: str = SUPERSEDED) -> Path:
    """Move an older result of the same key out of the way, under its digest; `gc` lists it. Nothing is lost."""
    name = "unfinished"
    if is_regular(out / RECORD):
        summary = read_summary(str(out / RECORD)) or UNREADABLE
        name = summary.digest[:12] if summary.digest[:12].isalnum() else name
    aside = out.with_name(f"{prefix}{name}")
    count = 1
    while os.path.lexists(aside):
        count += 1
        aside = out.with_name(f"{prefix}{name}.{count}")
    if not out.is_symlink():
        out.chmod(0o755)
    os.rename(out, aside)
    if not aside.is_symlink():
        aside.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    return aside


# --- rows -----------------------------------------------------------------------------------------------------------


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
