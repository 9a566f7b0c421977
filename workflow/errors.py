"""Errors that a person can mend, and what an operating system's error means to them."""

import difflib
import errno
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Base of every error that ends in one line: what is wrong, where, and what to do. Anything else is a bug."""


class ConfigError(UserError, ValueError):
    """The config, or a file beside it, cannot be used: the place, the value and the cure."""


_MESSAGES = {
    errno.ENOSPC: "the disk is full ({place}). Free some space and run again.",
    errno.EDQUOT: "the disk quota is used up ({place}). Free some space and run again.",
    errno.EROFS: "{place} is read-only. Make it writable and run again.",
}
# safetensors and tokenizers report an error of the system in exceptions of their own.
_NUMBER = re.compile(r"\(os error (\d+)\)")


def describe_os_error(error: BaseException, place: str | Path) -> str | None:
    """Turn an error of the disk into one line that a person can act on.

    Args:
        place: what was written to, where the error does not name it.

    Returns:
        None if no disk is at fault.
    """
    if isinstance(error, OSError) and error.errno is not None:
        number, place = error.errno, error.filename or place
    else:
        match = _NUMBER.search(str(error))
        number = int(match[1]) if match else 0
    message = _MESSAGES.get(number)
    return message and message.format(place=place)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known ones that look like it, if any do."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(f'`{n}`' for n in near)}?" if near else ""


def printable(text: str) -> str:
    """Escape what a terminal or a page would obey: control characters, text direction, lone surrogates. Lines stay."""
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else ascii(c)[1:-1] for c in text
    )
