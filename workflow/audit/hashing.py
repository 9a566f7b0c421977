"""The hashes of many files at once, and what a quick check may trust of an earlier one."""

import json
import os
from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from workflow.keys import hash_file

CACHE = "results/.verify.json"


class Stamp(NamedTuple):
    """What a file looks like from outside; `--quick` takes equal stamps for equal bytes."""

    size: int
    mtime_ns: int
    inode: int


class Known(NamedTuple):
    """A file's stamp and the hashes that its bytes had under it; the md5 of data files only."""

    stamp: Stamp
    sha256: str
    md5: str = ""


def stamp(path: str | Path) -> Stamp:
    found = os.stat(path)
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


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
        return {name: Known(Stamp(*entry[:3]), *entry[3:]) for name, entry in raw.items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}  # then everything is read, which is never wrong


def write_cache(found: dict[str, Known], path: str = CACHE) -> None:
    """By rename. Hashes are those of the bytes that were read, right or wrong."""
    part = f"{path}.{os.getpid()}.part"
    try:
        Path(part).write_text(json.dumps({"files": {name: [*k.stamp, *k[1:]] for name, k in found.items()}}))
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)  # there is something left only if the disk failed
