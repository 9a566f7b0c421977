"""The judge's journal: every reply and every failed attempt, one JSON line each, written as it arrives.

A reply that is in the journal is never asked for again. Lines reach the operating system at once, so a killed process
loses nothing that it received; they are forced to the disk about once a second, so a power cut loses at most that. A
line that a kill left half-written is dropped when the journal is opened again. Every other line is checked.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from workflow.files import locked
from workflow.judge.replies import Count, JudgeError, Reply
from workflow.keys import canonical_json

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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


class Dropped(_Line):
    """Replies without a score that are to be asked for again; what they cost stays in the bill."""

    dropped: list[Key]


Line = Answered | Failed | Unscored | Dropped
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


class Journal:
    """An open journal.

    Args:
        model: that may answer. Replies of others stay in the file and in the bill, unused. None: any.

    Attributes:
        replies: key -> reply.
        unscored: key of a reply without a score -> outcome.
        failures: failed attempts by reason. attempts: all attempts, failed or not.
        tokens: [in, out] of every reply, and of every attempt that may have been billed.
    """

    def __init__(self, file: BinaryIO, model: str | None) -> None:
        self._file, self.model = file, model
        self.replies: dict[str, Reply] = {}
        self.unscored: dict[str, str] = {}
        self.failures: Counter[str] = Counter()
        self.attempts = 0
        self.tokens = [0, 0]

    def add_reply(self, key: str, reply: Reply, billed: tuple[int, int]) -> None:
        self._append(Answered(key=key, reply=reply, billed=billed))

    def add_failure(self, key: str, reason: str, billed: tuple[int, int]) -> None:
        """A failed attempt; `billed`: tokens in and out that it may have cost at most."""
        self._append(Failed(key=key, failure=reason, billed=billed))

    def add_unscored(self, outcome: str, keys: list[str]) -> None:
        """Note that the replies to these requests together gave no score, unless it is noted already."""
        if not self.unscored.keys() >= set(keys):
            self._append(Unscored(unscored=outcome, keys=keys))

    def drop_unscored(self) -> int:
        """Turn the replies that gave no score into failed attempts, whose bill stays. Returns how many."""
        keys = list(self.unscored)
        if keys:
            self._append(Dropped(dropped=keys))
        return len(keys)

    def sync(self) -> None:
        """Force what was written to the disk."""
        os.fsync(self._file.fileno())

    def _append(self, line: Line) -> None:
        self._file.write(canonical_json(line.model_dump(mode="json")).encode() + b"\n")
        self._file.flush()
        self.take(line)

    def take(self, line: Line) -> None:
        """Count a line that is in the file."""
        if isinstance(line, Unscored):
            self.unscored |= dict.fromkeys(line.keys, line.unscored)
            return
        if isinstance(line, Dropped):
            for key in line.dropped:
                self.failures[f"unscored: {self.unscored.pop(key, 'unknown')}"] += 1
                self.replies.pop(key, None)
            return
        self.attempts += 1
        self.tokens = [total + more for total, more in zip(self.tokens, line.billed, strict=True)]
        if isinstance(line, Failed):
            self.failures[line.failure] += 1
        elif self.model in (None, line.reply.model):
            self.replies[line.key] = line.reply


@contextmanager
def open_journal(path: str | Path, model: str | None = None) -> Iterator[Journal]:
    """Open the journal in that file for this process alone; it is made if it is not there.

    Raises:
        JudgeError: another process has it open, or a line is no journal line.
    """
    with locked(path, wait=False) as alone:
        if not alone:
            raise JudgeError(f"{path}: another process is judging into it. Wait for it, or end it.")
        with open(path, "a+b") as file:
            journal = Journal(file, model)
            file.seek(0)
            end = 0
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    journal.take(_read(path, number, line))
                    end += len(line)
            file.truncate(end)
            try:
                yield journal
            finally:
                journal.sync()


def _read(path: str | Path, number: int, line: bytes) -> Line:
    try:
        return _LINE.validate_json(line)
    except ValidationError:
        raise JudgeError(
            f"{path}, line {number}: no line of a journal, so it was edited or the disk lost part of it. "
            "Delete that line; its reply is then asked for again."
        ) from None


def retry_unscored(folders: list[Path]) -> dict[Path, int]:
    """Take back the replies without a score in these results' journals, so that their jobs ask for them again.

    A stage that failed asks again when it is run again. A finished one must be set aside first, or it is restored.

    Returns:
        How many were taken back, by folder; those without any are left out.
    """
    dropped = {}
    for folder in folders:
        if (folder / "journal.jsonl").is_file():
            with open_journal(folder / "journal.jsonl") as journal:
                dropped[folder] = journal.drop_unscored()
    return {folder: count for folder, count in dropped.items() if count}
