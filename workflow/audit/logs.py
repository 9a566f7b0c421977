"""Logs of jobs: where they lie, how they end, and what a listing of a folder shows."""

import os
import re

LOGS = "logs"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def log_path(stage: str, label: str, key: str) -> str:
    return f"{LOGS}/{stage}/{label}/{key}.log"


def log_tail(path: str, lines: int = 3) -> list[str]:
    """The last lines of a log that are not empty, without control characters."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 8192))
        text = file.read().decode(errors="replace")
    shown = [printable(line).rstrip()[:200] for line in text.splitlines()]
    return [line for line in shown if line][-lines:]


def ended_in_error(lines: list[str]) -> bool:
    """Whether the end of a log tells of an error; a job that was stopped from outside ends without one."""
    return any(re.match(r"error: |Traceback |[\w.]*(Error|Exception)\b", line) for line in lines)


def printable(text: str) -> str:
    """Text without control characters, so that what a file says cannot move a terminal's cursor."""
    return _CONTROL.sub("", text)


def names(folder: str) -> list[str]:
    """Names in a folder; none if it is not there."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
