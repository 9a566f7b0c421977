"""Logs of jobs: where they lie, how far a job is by its log, and what it ended with."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from workflow.errors import printable
from workflow.stage import CHECKPOINT
from workflow.store import node_dir
from workflow.train.checkpointing import list_checkpoints, step_of

LOGS = "logs"
_ERROR = re.compile(r"error: |Traceback |[\w.]*(Error|Exception)\b")
_PROGRESS = re.compile(r"step \d+/\d+, |\w+: \d+ of \d+ |\d+/\d+ (prompts|completions|answers)")
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|out of memory", re.I)


class Failure(NamedTuple):
    """What a job ended with, a line or more, and what to do about it where those lines do not say it."""

    cause: list[str]
    cure: str = ""


def log_path(stage: str, label: str, key: str) -> str:
    return f"{LOGS}/{stage}/{label}/{key}.log"


def log_tail(path: str) -> list[str]:
    """The last lines of a log that are not empty, with control characters escaped; none if there is no log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    shown = [printable(line).rstrip()[:200] for line in text.splitlines()]
    return [line for line in shown if line]


def read_failure(path: str) -> Failure | None:
    """The error that a log ends with; None if it ends without one, as that of a job stopped from outside does."""
    lines = log_tail(path)
    last = max((n for n, line in enumerate(lines) if _ERROR.match(line)), default=None)
    if last is None:
        return None
    cause, after = [lines[last]], lines[last + 1 :]
    while after and after[0].startswith(" "):
        cause.append(after.pop(0))
    if len(after) > 2:
        return None
    if _OUT_OF_MEMORY.search(cause[0]):
        return Failure(cause, "give it fewer rows at a time, or more GPUs: `placement` of the config, no key changes")
    if cause[0].startswith("error: "):
        return Failure(cause)  # says itself what to do
    return Failure(cause, "no error that was foreseen: the traceback is in the log")


def last_progress(path: str) -> str | None:
    """The newest line of a log that says how far the job is: step, loss, time left."""
    return next((line for line in reversed(log_tail(path)) if _PROGRESS.match(line)), None)


def resumes_from(stage: str, label: str, key: str) -> int:
    """The step of the newest checkpoint of a training that is not finished; 0 without one."""
    checkpoints = list_checkpoints(Path(node_dir(stage, label, key), CHECKPOINT))
    return step_of(checkpoints[0]) if checkpoints else 0


def names(folder: str) -> list[str]:
    """Names in a folder; none if it is not there."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
