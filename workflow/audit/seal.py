"""`seal`: one small text file that a finished matrix can be held against later, by people who trust that file.

Records, logs and journals lie on a disk where whoever can write a result can write its record too. A seal that is
committed, and signed if need be, lies elsewhere. It is in the format of `sha256sum`, so that `sha256sum --check` reads
it without this project; a path names stage, cell and key.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from workflow.audit.findings import Findings
from workflow.audit.logs import log_path
from workflow.errors import ConfigError
from workflow.files import is_regular, write_atomic
from workflow.keys import hash_file
from workflow.matrix import TRAINING, Matrix
from workflow.store import StoreError, data_path, read_record

JOURNAL = "journal.jsonl"
_LOGGED = (*TRAINING, "judge")
_HEADER = "# sha256 of records, of data files and their notes, of logs and journals. Hold results against it with\n"
_HEADER += "# `matrix verify --against` this file. Written by `matrix seal`.\n"
_LINE = re.compile(r"([0-9a-f]{64})  ((?:results|logs)/[\w./-]+)")
_MAX_BYTES = 1 << 28

Seal = dict[str, str]  # path -> sha256


def default_path(configfile: str) -> Path:
    """`config/demo.seal` for config/demo.yaml: beside the config that it is of."""
    return Path(configfile).with_suffix(".seal")


def sealable(matrix: Matrix) -> list[str]:
    """Paths that a seal of this plan would name, as far as they are there: no link, and nothing of another plan."""
    paths: set[str] = set()
    for node in matrix.nodes():
        if not is_regular(node.record):
            continue
        paths.add(node.record)
        if node.stage in _LOGGED:
            paths.add(log_path(node.stage, node.label, node.key))
            paths.add(f"{os.path.dirname(node.record)}/{JOURNAL}")
        if node.stage != "report":
            paths |= {data_path(node.recipe.data), str(Path(data_path(node.recipe.data)).with_suffix(".json"))}
    return sorted(path for path in paths if is_regular(path))


def take_seal(matrix: Matrix) -> Seal:
    """Hash what a seal names.

    Raises:
        StoreError: a record that cannot be read, or nothing that is finished.
    """
    paths = sealable(matrix)
    records = [path for path in paths if path.endswith("/record.json")]
    for path in records:
        read_record(path)
    if not records:
        raise StoreError(f"{matrix.configfile}: nothing of its plan is finished. Run `snakemake all`.")
    return {path: hash_file(path) for path in paths}


def write_seal(path: Path, seal: Seal) -> None:
    """Write a seal; equal results give equal bytes."""
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}. Name another file.")
    write_atomic(path, _HEADER + "".join(f"{seal[name]}  {name}\n" for name in sorted(seal)))


def read_seal(path: Path) -> Seal:
    """Read a seal.

    Raises:
        ConfigError: not there, or not a seal; with the line.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: not a seal: more than {_MAX_BYTES >> 20} MB.")
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Name a file that `matrix seal` wrote.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a seal: not UTF-8. Name a file that `matrix seal` wrote.") from None
    seal: Seal = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or ".." in match[2].split("/") or match[2] in seal:
            raise ConfigError(f"{path}, line {number}: not `sha256  path` of a result, or a path that stands twice.")
        seal[match[2]] = match[1]
    if not seal:
        raise ConfigError(f"{path}: an empty seal, which says nothing. Name a file that `matrix seal` wrote.")
    return seal


@dataclass(frozen=True)
class Compared:
    """How much was held against a seal."""

    records: int
    files: int

    def __str__(self) -> str:
        return f"{self.files} sealed files, {self.records} of them records"


def check_seal(matrix: Matrix, path: Path, findings: Findings) -> Compared:
    """Find what changed, went or came since the seal was made."""
    seal = read_seal(path)
    for name, sha256 in seal.items():
        if not os.path.lexists(name):
            findings.broken(name, f"is sealed in {path} and is not there")
        elif not is_regular(name):
            findings.broken(name, "is sealed as a file of its own and is a link or a folder now")
        elif hash_file(name) != sha256:
            findings.broken(name, f"has other bytes than when {path} was sealed")
    unsealed = [name for name in sealable(matrix) if name not in seal]
    if unsealed:
        more = f", and {len(unsealed) - 1} more" if unsealed[1:] else ""
        findings.unverifiable(path, f"does not name {unsealed[0]}{more}: made after it was sealed, or planted")
    return Compared(sum(name.endswith("/record.json") for name in seal), len(seal))
