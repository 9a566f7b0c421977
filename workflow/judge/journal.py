"""The judge's journal: every reply and every failed attempt, one JSON line each, written as it arrives.

A reply that is in the journal is never asked for again. Lines reach the operating system at once, so a killed process
loses nothing that it received; they are forced to the disk about once a second, so a power cut loses at most that. A
line that a kill left half-written is dropped when the journal is opened again. Every other line is checked.
"""

import errno
import fcntl
import os
import tempfile
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workflow.judge.replies import Count, JudgeError, Reply
from workflow.keys import canonical_json

UNSCORED = "unscored: "  # reason of an attempt whose reply `drop_unscored` took back
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def to_json(self) -> str:
        return canonical_json(self.model_dump(mode="json"))


class Answered(_Line):
    """An attempt that brought a reply; `billed`: tokens in and out."""

    key: Key
    reply: Reply
    billed: tuple[Count, Count]


class Failed(_Line):
    """An attempt that brought none, and why; `billed`: what it may have cost at most."""

    key: Key
    failure: Text
    billed: tuple[Count, Count]


class Unscored(_Line):
    """A judgment whose replies, to the requests `keys`, gave no score."""

    unscored: Text
    keys: list[Key]


Line = Answered | Failed | Unscored
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


class Journal:
    """Replies by request key, of the models that may answer.

    Args:
        path: the journal; made if it is not there. One process at a time.
        models: names under which the judge may answer. Replies of others stay in the file and in the bill, unused.

    Attributes:
        replies: key -> reply.
        failures: failed attempts by reason. attempts: all attempts, failed or not.
        tokens: [in, out] of every reply, and of every attempt that may have been billed.

    Raises:
        JudgeError: another process has it open, or a line is no journal line.
    """

    def __init__(self, path: str | Path, models: frozenset[str]) -> None:
        self.path, self.models = Path(path), models
        self.replies: dict[str, Reply] = {}
        self.failures: Counter[str] = Counter()
        self.attempts = 0
        self.tokens = [0, 0]
        self.unscored: set[str] = set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")  # noqa: SIM115 - lives as long as the journal
        try:
            self._lock()
            for line in self._whole_lines():
                self._take(line)
        except JudgeError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()

    def add_reply(self, key: str, reply: Reply, billed: tuple[int, int]) -> None:
        self._append(Answered(key=key, reply=reply, billed=billed))

    def add_failure(self, key: str, reason: str, billed: tuple[int, int]) -> None:
        """A failed attempt; `billed`: tokens in and out that it may have cost at most."""
        self._append(Failed(key=key, failure=reason, billed=billed))

    def add_unscored(self, outcome: str, keys: list[str]) -> None:
        """Note that the replies to these requests together gave no score, unless it is noted already."""
        if not self.unscored.issuperset(keys):
            self._append(Unscored(unscored=outcome, keys=keys))

    def sync(self) -> None:
        """Force what was written to the disk."""
        os.fsync(self._file.fileno())

    def drop_unscored(self) -> int:
        """Turn the replies that gave no score into failed attempts, whose bill stays. Returns how many."""
        lines = self._whole_lines()
        outcomes = {key: line.unscored for line in lines if isinstance(line, Unscored) for key in line.keys}
        kept: list[Line] = []
        dropped = 0
        for line in lines:
            if isinstance(line, Answered) and line.key in outcomes:
                dropped += 1
                kept.append(Failed(key=line.key, failure=f"{UNSCORED}{outcomes[line.key]}", billed=line.billed))
            elif not isinstance(line, Unscored):
                kept.append(line)
        if dropped:
            self._replace(kept)
        return dropped

    def _replace(self, lines: list[Line]) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(line.to_json().encode() + b"\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        finally:
            Path(name).unlink(missing_ok=True)

    def _append(self, line: Line) -> None:
        self._file.write(line.to_json().encode() + b"\n")
        self._file.flush()
        self._take(line)

    def _take(self, line: Line) -> None:
        if isinstance(line, Unscored):
            self.unscored.update(line.keys)
            return
        self.attempts += 1
        self.tokens = [total + more for total, more in zip(self.tokens, line.billed, strict=True)]
        if isinstance(line, Failed):
            self.failures[line.failure] += 1
        elif line.reply.model in self.models:
            self.replies[line.key] = line.reply

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JudgeError(f"{self.path}: another process is judging into it. Wait for it, or end it.") from None
        except OSError as error:
            # some cluster file systems have no locks; there the workflow's own lock is the only guard
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise

    def _whole_lines(self) -> list[Line]:
        content = self.path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        if torn:
            os.truncate(self.path, len(content) - len(torn))
        return [self._read(number, line) for number, line in enumerate(whole.split(b"\n") if whole else [], 1)]

    def _read(self, number: int, text: bytes) -> Line:
        try:
            return _LINE.validate_json(text)
        except ValidationError:
            raise JudgeError(
                f"{self.path}, line {number}: no line of a journal, so it was edited or the disk lost part of it. "
                "Delete that line; its reply is then asked for again."
            ) from None


def drop_unscored(path: str | Path) -> int:
    """Take back the replies of a journal that gave no score, so that the same command asks for them again.

    Returns:
        How many were taken back; 0 if there is no journal. What they cost stays in the bill.

    Raises:
        JudgeError: a process is judging into it, or a line is no journal line.
    """
    if not Path(path).is_file():
        return 0
    with Journal(path, frozenset()) as journal:
        return journal.drop_unscored()


def retry_unscored(folders: list[Path]) -> dict[Path, int]:
    """`drop_unscored` for the journals in these results' folders; folder -> how many, those without any left out.

    A stage that failed asks again when it is run again. A finished one must be set aside first, or it is restored.
    """
    dropped = {folder: drop_unscored(folder / "journal.jsonl") for folder in folders}
    return {folder: count for folder, count in dropped.items() if count}
