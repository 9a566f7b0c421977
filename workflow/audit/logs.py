"""Logs of jobs: where they lie, how they end, and what a listing of a folder shows."""

import os
import re

from workflow.errors import printable

LOGS = "logs"


def log_path(stage: str, label: str, key: str) -> str:
    return f"{LOGS}/{stage}/{label}/{key}.log"


def log_tail(path: str, lines: int = 3) -> list[str]:
    """The last lines of a log that are not empty, with control characters escaped."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 8192))
        text = file.read().decode(errors="replace")
    shown = [printable(line).rstrip()[:200] for line in text.splitlines()]
    return [line for line in shown if line][-lines:]


def ended_in_error(lines: list[str]) -> bool:
    """Whether the end of a log tells of an error; a job that was stopped from outside ends without one."""
    return any(re.match(r"error: |Traceback |[\w.]*(Error|Exception)\b", line) for line in lines)


def names(folder: str) -> list[str]:
    """Names in a folder; none if it is not there."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
