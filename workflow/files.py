"""Atomic writes, locks beside files, liveness of processes, and flat views of nested JSON."""

import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import filelock

ABSENT = "(absent)"


# --- writing --------------------------------------------------------------------------------------------------------


def write_atomic(path: str | Path, content: str | bytes, sync: bool = True) -> None:
    """Write a file by rename: a reader sees the old bytes or the new ones.

    The part file is created exclusively and no link is followed, so nothing that lies there can redirect the write.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)  # left over only if the disk failed


def sync_file(path: Path) -> None:
    """Have the disk hold a file's bytes."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def locked(path: str | Path, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock file beside `path` (`.<name>.lock`); it ends with the process, after kill -9 too.

    Yields False, holding nothing, if `wait` is off and another process has it; `waiting` is called before it is waited
    for. A file system without locks counts as one where nobody else is at work.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0, mode=0o664)
    try:
        try:
            lock.acquire()
        except filelock.Timeout:
            if not wait:
                yield False
                return
            if waiting is not None:
                waiting()
            lock.acquire(timeout=-1)
    except NotImplementedError:
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def is_regular(path: str | Path) -> bool:
    """Whether a file of its own lies there: no link, no folder, no device."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


# --- processes ------------------------------------------------------------------------------------------------------


class Owner(NamedTuple):
    """A process, named so that no other one on any host or in any container is taken for it.

    `start` is its start in clock ticks since boot, which no change of the clock moves.
    """

    host: str
    namespace: int
    pid: int
    start: int

    def __str__(self) -> str:
        return ".".join(map(str, self))

    @classmethod
    def current(cls) -> "Owner":
        return cls(socket.gethostname(), _namespace(), os.getpid(), _start(os.getpid()) or 0)

    @classmethod
    def parse(cls, text: str) -> "Owner | None":
        """Read what `str` wrote; a host's name may hold dots. None for anything else."""
        parts = text.rsplit(".", 3)
        if len(parts) != 4 or not all(p.isdigit() and len(p) < 20 for p in parts[1:]):
            return None
        return cls(parts[0], *map(int, parts[1:]))

    def is_alive(self) -> bool | None:
        """Whether it still runs; None where this process cannot see it (another host or container)."""
        if (self.host, self.namespace) != (socket.gethostname(), _namespace()):
            return None
        return _start(self.pid) == self.start


def _namespace() -> int:
    """Number of the process namespace: containers of one host count their processes apart. 0 where there are none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _start(pid: int) -> int | None:
    """When a process started, or None if there is none."""
    try:
        # the second field, the command's name, may hold blanks and parentheses; the start is the 22nd
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # no /proc: not Linux

    try:
        return int(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


# --- heartbeats -----------------------------------------------------------------------------------------------------

BEAT_S = 30.0
_SILENT_S = 10 * BEAT_S  # a job may be held up by its disk, or by a call that lets no thread run


@contextmanager
def heartbeat(path: Path) -> Iterator[None]:
    """Touch a file every 30 s, from a thread that ends with the process; the file is gone afterwards."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o664))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_S):
            with suppress(OSError):  # a disk that is away for a while; the job's own writes say so
                os.utime(path, follow_symlinks=False)  # without a time: the file system's clock

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        path.unlink(missing_ok=True)


def is_beating(path: Path) -> bool | None:
    """Whether a heartbeat was touched of late, by the clock of the file system that it lies on.

    Returns:
        None if there is none, if it is from the future, or if the file system does not tell its time.
    """
    if not is_regular(path) or (now := file_system_time(path.parent)) is None:
        return None
    age = now - os.lstat(path).st_mtime
    return None if age < -BEAT_S else age < _SILENT_S


def still_silent(paths: Collection[Path]) -> set[Path]:
    """Those of some heartbeats that are not touched while this call watches them, whatever any clock says."""
    before = {path: _mtime(path) for path in paths}
    if before:
        time.sleep(3 * BEAT_S)
    return {path for path, mtime in before.items() if mtime is not None and _mtime(path) == mtime}


def file_system_time(folder: str | Path) -> float | None:
    """What time it is for the file system of a folder; None if nothing can be written there.

    The clock of this host may be another one.
    """
    probe = Path(folder, f".{secrets.token_hex(6)}.clock.part")
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        mtime = os.lstat(probe).st_mtime
        probe.unlink()
    except OSError:
        return None
    return mtime


def _mtime(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mtime_ns
    except OSError:
        return None


# --- nested JSON ----------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """One field of two things that differ. `ABSENT` stands for a side that has no such field."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = short_pair(self.old, self.new)
        return f"{self.field}: {old} -> {new}"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Name nested values by their path: `{"lora": {"r": 16}}` as `{"lora.r": 16}`; lists stay whole."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    fields: dict[str, Any] = {}
    for name, item in value.items():
        fields.update(flatten(item, f"{prefix}.{name}" if prefix else str(name)))
    return fields


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Change]:
    """List what differs between two nested dictionaries, in the order of the names."""
    a, b = flatten(old), flatten(new)
    for name in sorted(a.keys() | b.keys()):
        before, after = a.get(name, ABSENT), b.get(name, ABSENT)
        if before != after:
            yield Change(name, before, after)


def short(value: Any, width: int = 60) -> str:
    """Show a value of any length in one line of at most `width` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def short_pair(old: Any, new: Any, width: int = 60) -> tuple[str, str]:
    """Show two values in one line each, cut around the place where they begin to differ."""
    texts = [" ".join(str(value).split()) for value in (old, new)]
    differ = (n for n, (a, b) in enumerate(zip(*texts)) if a != b)
    start = max(0, next(differ, min(map(len, texts))) - width // 3)
    if start == 0 or max(map(len, texts)) <= width:
        return short(old, width), short(new, width)
    first, second = (short(f"...{text[start:]}", width) for text in texts)
    return first, second
