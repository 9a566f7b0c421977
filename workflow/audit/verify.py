"""Is every result what it says it is? Exit status: 0 whole, 1 broken, 2 unverifiable; each case is named.

Everything under results/ is looked at, whether the plan has it or not: the plan says only what ought to be there.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from workflow.audit import adopt, checks, hashing, inventory, seal, signature
from workflow.audit.findings import Finding, Findings
from workflow.audit.logs import names
from workflow.audit.replicates import Replicate, replicates
from workflow.data.lock import read_lock
from workflow.errors import printable
from workflow.files import is_regular
from workflow.matrix import STAGES, Matrix
from workflow.retractions import read_retractions, retracted
from workflow.store import DATA, RESULTS


@dataclass(frozen=True)
class Verdict:
    """What was found, over how much."""

    findings: Findings
    results: int
    files: int
    bytes: int
    read: int
    seconds: float
    replicates: list[Replicate]
    follows: dict[str, int]  # folder of a broken result -> results that rest on it
    sealed: str = ""


def verify(matrix: Matrix, quick: bool = False, against: Path | None = None) -> Verdict:
    """Check every record, every output, every link and every data file.

    Args:
        quick: a file whose size, times and inode a full check has seen is not read again.
        against: a seal; what it names must have the bytes that it had then.
    """
    began = time.monotonic()
    findings = Findings()
    found = inventory.take(findings)
    paths = [path for result in found.results.values() for path in result.files.values()]
    data = [f"{DATA}/{name}" for name in names(DATA) if name.endswith(".jsonl") and not name.startswith(".")]
    data = [path for path in data if is_regular(path)]
    known = hashing.read_cache() if quick else {}
    hashes = hashing.hash_files([*paths, *data], known, with_md5=set(data))
    checks.check_hashes(found, hashes, findings)
    checks.check_data(found, read_lock(), hashes, findings)
    checks.check_links(found, findings)
    for result in found.results.values():
        checks.check_protocol(result, not quick, findings)
        if not quick:
            checks.check_effective(result, findings)
    checks.check_duplicates(found, {(n.stage, n.label, n.key) for n in matrix.nodes()}, findings)
    adopt.check_adopted(findings)
    sealed = _check_seal(matrix, against, findings) if against else ""
    _remark_plan(matrix, found, findings)
    if not quick:
        faulty = {fault.path for fault in findings.faults}
        _keep({path: known for path, known in hashes.items() if path not in faulty})
    read = sum(k.stamp.size for path, k in hashes.items() if known.get(path) is not k)
    total = sum(k.stamp.size for k in hashes.values())
    seconds = time.monotonic() - began
    follows = _count_descendants(found, findings)
    return Verdict(findings, len(found.results), len(hashes), total, read, seconds, replicates(found), follows, sealed)


def _check_seal(matrix: Matrix, path: Path, findings: Findings) -> str:
    """Hold the results against a seal, and the seal against its signature; says what was done."""
    compared = seal.check_seal(matrix, path, findings)
    signed = signature.check(path)
    if signed is None:
        return f"{path}: {compared}; not signed, so trust it as far as the place that it comes from"
    if signed.fault:
        findings.broken(path, signed.fault)
    elif signed.doubt:
        findings.unverifiable(path, f"is signed by {signed.signer}; {signed.doubt}")
    return f"{path}: {compared}" + (f"; signed by {signed.signer}" if signed.signer else "")


def _folder(path: str) -> str:
    """Folder of the result that a path is of, or nothing."""
    parts = Path(path).parts
    is_result = parts[:1] == (RESULTS,) and len(parts) > 4 and parts[1] in STAGES
    return "/".join(parts[:4]) if is_result else ""


def _count_descendants(found: inventory.Inventory, findings: Findings) -> dict[str, int]:
    """For each broken result how many others rest on it, at any distance."""
    children: dict[str, set[str]] = {}
    for path, result in found.results.items():
        for role, link in result.record.inputs.items():
            if role != "data":
                children.setdefault(_folder(link.path), set()).add(_folder(path))
    counts = {}
    for folder in {_folder(fault.path) for fault in findings.faults if fault.level == "broken"} - {""}:
        below, pending = set[str](), [folder]
        while pending:
            new = children.get(pending.pop(), set()) - below
            below |= new
            pending += new
        counts[folder] = len(below)
    return counts


def _keep(hashes: dict[str, hashing.Known]) -> None:
    if not Path(RESULTS).is_dir():
        return
    try:
        hashing.write_cache(hashes)
    except OSError as error:  # results of somebody else, or on a full disk, can be verified too, only not quickly later
        print(f"{hashing.CACHE}: {error.strerror}; `verify --quick` will read everything", file=sys.stderr)


def _remark_plan(matrix: Matrix, found: inventory.Inventory, findings: Findings) -> None:
    planned = matrix.nodes()
    missing = sum(node.record not in found.results for node in planned)
    if missing:
        findings.remark(f"{missing} of the plan's {len(planned)} results are not there; see `status`")
    known = {node.record for node in planned}
    others = sum(path not in known for path in found.results)
    if others:
        findings.remark(f"not of this plan, but checked too: {others} results; `gc` lists them")
    for node, reason in retracted(matrix, read_retractions()).items():
        if node.record in found.results:
            findings.remark(f"retracted: {node.record}: {reason}")


def _says_the_cure(fault: Finding) -> bool:
    return "`snakemake" in fault.what or "Remove it" in fault.what


def _cure(folder: str, count: int) -> str:
    follows = f"{count} result{' rests' if count == 1 else 's rest'} on it" if count else "nothing rests on it"
    redo = f"`matrix redo {folder.removeprefix('results/')} --reason ...` and `snakemake all`"
    return f"  put it back from a copy, or {redo}; {follows}"


def show(verdict: Verdict) -> None:
    """Faults, remarks, reruns, and one line that says how much was checked."""
    seen: set[str] = set()
    for fault in verdict.findings.faults:
        print(fault)
        folder = _folder(fault.path) if fault.level == "broken" else ""
        if folder and folder not in seen and not _says_the_cure(fault):
            seen.add(folder)
            print(printable(_cure(folder, verdict.follows.get(folder, 0))))
    if verdict.sealed:
        print(printable(verdict.sealed))
    for remark in verdict.findings.remarks:
        print(printable(remark))
    for replicate in verdict.replicates:
        print(printable(f"rerun: {replicate}"))
    levels = [fault.level for fault in verdict.findings.faults]
    rate = verdict.read / 1e6 / max(verdict.seconds, 1e-9)
    print(
        f"{verdict.results} results, {verdict.files} files, {verdict.bytes / 1e6:.1f} MB; "
        f"{verdict.read / 1e6:.1f} MB read in {verdict.seconds:.1f} s ({rate:.0f} MB/s): "
        f"{levels.count('broken')} broken, {levels.count('unverifiable')} unverifiable"
    )
