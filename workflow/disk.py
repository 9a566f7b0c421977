"""What a disk does to a job, in words that a person can act on. None of it is a bug, so none of it is a traceback."""

import errno
import re
from pathlib import Path

_TOLD = {
    errno.ENOSPC: "the disk is full ({place}). Free some space and run again.",
    errno.EDQUOT: "the disk quota is used up ({place}). Free some space and run again.",
    errno.EROFS: "{place} is read-only. Make it writable and run again.",
}
# safetensors and tokenizers report an error of the system in exceptions of their own.
_NUMBER = re.compile(r"\(os error (\d+)\)")


def trouble(error: BaseException, place: str | Path) -> str | None:
    """One line if a disk is at fault, else None. `place` is what was written to, where the error does not name it."""
    if isinstance(error, OSError) and error.errno is not None:
        number, place = error.errno, error.filename or place
    else:
        found = _NUMBER.search(str(error))
        number = int(found[1]) if found else 0
    told = _TOLD.get(number)
    return told and told.format(place=place)
