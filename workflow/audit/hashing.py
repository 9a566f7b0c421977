"""The hashes of many files at once, and what a quick check may trust of an earlier one."""

import json
import os
from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from workflow.files import write_atomic
from workflow.keys import hash_file

CACHE = "results/.verify.json"


class Stamp(NamedTuple):
    """What a file looks like from outside; `--quick` takes equal stamps for equal bytes."""

    size: int
    mtime_ns: int
    ctime_ns: int  # no program can set it, so a file that was edited and given its old mtime back has another
    inode: int


class Known(NamedTuple):
    """A file's stamp and the hashes that its bytes had under it; the md5 of data files only."""

    stamp: Stamp
    sha256: str
    md5: str = ""


def stamp(path: str | Path) -> Stamp:
    found = os.lstat(path)
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def hash_files(
    paths: Iterable[str], known: dict[str, Known], with_md5: Container[str] = (), workers: int | None = None
) -> dict[str, Known]:
    """Stamp and hashes of every file; those whose stamp is known are not read again.

    Threads are enough, since hashlib lets go of the interpreter's lock; the largest files go first, so that no core is
    left alone with one at the end.
    """
    found: dict[str, Known] = {}
    pending: list[tuple[str, Stamp]] = []
    for path in paths:
        now = stamp(path)
        before = known.get(path)
        if before is not None and before.stamp == now and (before.md5 or path not in with_md5):
            found[path] = before
        else:
            pending.append((path, now))
    pending.sort(key=lambda entry: -entry[1].size)

    def read(entry: tuple[str, Stamp]) -> Known:
        path, now = entry
        return Known(now, hash_file(path), hash_file(path, "md5") if path in with_md5 else "")

    with ThreadPoolExecutor(workers or cores()) as pool:
        found.update(zip((path for path, _ in pending), pool.map(read, pending), strict=True))
    return found


def read_cache(path: str = CACHE) -> dict[str, Known]:
    """What the last full check found; nothing if there was none or its file cannot be read."""
    try:
        raw: dict[str, list[Any]] = json.loads(Path(path).read_bytes())["files"]
        return {name: Known(Stamp(*entry[:4]), *entry[4:]) for name, entry in raw.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}  # then everything is read, which is never wrong


def write_cache(found: dict[str, Known], path: str = CACHE) -> None:
    """Keep the hashes of files that are what they ought to be."""
    files = {name: [*known.stamp, *known[1:]] for name, known in found.items()}
    write_atomic(path, json.dumps({"files": files}), sync=False)
