"""Every result on disk, planned or not: its record and its copy, the files of its out/; and what lies there unasked."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from workflow.audit.findings import Findings
from workflow.audit.logs import names
from workflow.files import changes, is_regular, short
from workflow.keys import KEY
from workflow.store import (
    RECORD,
    REDONE,
    RESULTS,
    SUPERSEDED,
    Record,
    StoreError,
    is_at_work,
    list_files,
    list_stages,
    read_record,
    workspaces,
)

# Beside out/: what a stage keeps for its next attempt, such as the judge's replies or a training's checkpoints.
_WORK_FILES = ("journal.jsonl", "checkpoint")


@dataclass
class Result:
    """One finished result whose record could be read."""

    path: str
    record: Record
    files: dict[str, str] = field(default_factory=dict)  # name in out/ -> path

    @property
    def is_whole(self) -> bool:
        """Whether every output that the record names is there, in its size."""
        return len(self.files) == len(self.record.outputs)

    @property
    def place(self) -> tuple[str, str, str]:
        return self.record.stage, self.record.cell, self.record.key

    @property
    def out(self) -> str:
        return f"{self.path.rpartition('/')[0]}/out"


@dataclass
class Inventory:
    """Readable results by the path of their record, and the paths of records that cannot be read."""

    results: dict[str, Result] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)


def is_folder(path: str) -> bool:
    """Whether a folder of its own lies there; below results/, which may be a link itself, nothing is linked."""
    return os.path.isdir(path) and not os.path.islink(path)


def take(findings: Findings) -> Inventory:
    """Walk results/<stage>/<cell>/<key>/."""
    found = Inventory()
    for stage in list_stages():
        top = f"{RESULTS}/{stage}"
        if not is_folder(top):
            findings.broken(top, "an extra file, or a link: no record names it. Remove it")
            continue
        for cell in names(top):
            place = f"{top}/{cell}"
            if stage == "report" and os.path.islink(place):
                continue
            if not is_folder(place):
                findings.broken(place, "an extra file, or a link: no record names it. Remove it")
                continue
            for key in names(place):
                folder = f"{place}/{key}"
                if KEY.fullmatch(key) and is_folder(folder):
                    _take_result(folder, found, findings)
                elif stage != "report":  # a report's folder holds the stable copy of the latest, too
                    findings.broken(folder, "an extra file, or a link: no record names it. Remove it")
    return found


def _take_result(folder: str, found: Inventory, findings: Findings) -> None:
    entries = names(folder)
    for name in entries:
        is_temporary = name.startswith(".") and name.endswith((".tmp", ".beat", ".part", ".lock"))
        is_known = name in (RECORD, "out", *_WORK_FILES) or name.startswith((SUPERSEDED, REDONE))
        if not is_known and not is_temporary:
            findings.broken(f"{folder}/{name}", "an extra file, or a link: no record names it. Remove it")
        elif os.path.islink(f"{folder}/{name}"):
            findings.broken(f"{folder}/{name}", "is a link. Put what it points to in its place")
            if name in (RECORD, "out"):
                return
    path = f"{folder}/record.json"
    if "record.json" not in entries:
        if any(is_at_work(*work) is not False for work in workspaces(folder)):
            findings.remark(f"{folder}: a job is at work there, or was on another host")
        elif "out" in entries:
            findings.broken(path, "is missing, though out/ is there. Run `snakemake` on it: a whole result is restored")
        return
    try:
        record = read_record(path)
    except StoreError as error:
        findings.broken(path, " ".join(str(error).removeprefix(f"{path}: ").split()))
        found.unreadable.add(path)
        return
    result = Result(path, record)
    found.results[path] = result
    _check_copy(result, findings)
    _list_files(result, findings)


def _check_copy(result: Result, findings: Findings) -> None:
    copy = Path(result.out, RECORD)
    try:
        same = copy.read_bytes() == Path(result.path).read_bytes()
        theirs = {} if same else json.loads(copy.read_bytes())
    except FileNotFoundError:
        findings.broken(copy, "the record's copy is missing")
        return
    except ValueError:
        findings.broken(copy, "the record's copy is not JSON")
        return
    if not same:
        ours = json.loads(Path(result.path).read_bytes())
        told = [f"{c.field} {short(c.new)} (copy: {short(c.old)})" for c in changes(theirs, ours)]
        what = "; ".join(told[:5]) or "only in its spelling"
        findings.broken(result.path, f"and its copy in out/ differ: {what}. One of the two was edited")


def _list_files(result: Result, findings: Findings) -> None:
    """Names in out/ against names in the record; their bytes are hashed later, all at once."""
    expected = {o.path: o for o in result.record.outputs}
    there = set(list_files(Path(result.out))) - {RECORD}
    for name in sorted(there - expected.keys()):
        findings.broken(f"{result.out}/{name}", "an extra file: its record does not name it. Remove it")
    for name, output in expected.items():
        path = f"{result.out}/{name}"
        if not os.path.lexists(path):
            findings.broken(path, "is missing")
        elif name not in there or not is_regular(path):
            findings.broken(path, "is a link or a folder, not a file of its own")
        elif (size := os.path.getsize(path)) != output.bytes:
            findings.broken(path, f"has {size} bytes, its record says {output.bytes}: truncated, or replaced")
        else:
            result.files[name] = path
