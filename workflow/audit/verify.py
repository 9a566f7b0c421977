"""Is every result what it says it is? Exit status: 0 whole, 1 broken, 2 unverifiable; each case is named.

Everything under results/ is looked at, whether the plan has it or not: the plan says only what ought to be there.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from workflow.audit import adopt, checks, hashing, inventory
from workflow.audit.findings import Findings
from workflow.audit.logs import names
from workflow.audit.replicates import Replicate, replicates
from workflow.data.lock import read_lock
from workflow.matrix import Matrix
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


def verify(matrix: Matrix, quick: bool = False) -> Verdict:
    """Check every record, every output, every link and every data file.

    Args:
        quick: a file whose size, mtime and inode a full check has seen is not read again.
    """
    began = time.monotonic()
    findings = Findings()
    found = inventory.take(findings)
    paths = [path for result in found.results.values() for path in result.files.values()]
    data = [f"{DATA}/{name}" for name in names(DATA) if name.endswith(".jsonl") and not name.startswith(".")]
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
    _remark_plan(matrix, found, findings)
    if not quick:
        _keep(hashes)
    read = sum(k.stamp.size for path, k in hashes.items() if known.get(path) is not k)
    total = sum(k.stamp.size for k in hashes.values())
    return Verdict(findings, len(found.results), len(hashes), total, read, time.monotonic() - began, replicates(found))


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


def show(verdict: Verdict) -> None:
    """Faults, remarks, reruns, and one line that says how much was checked."""
    for fault in verdict.findings.faults:
        print(fault)
    for remark in verdict.findings.remarks:
        print(remark)
    for replicate in verdict.replicates:
        print(f"rerun: {replicate}")
    levels = [fault.level for fault in verdict.findings.faults]
    rate = verdict.read / 1e6 / max(verdict.seconds, 1e-9)
    print(
        f"{verdict.results} results, {verdict.files} files, {verdict.bytes / 1e6:.1f} MB; "
        f"{verdict.read / 1e6:.1f} MB read in {verdict.seconds:.1f} s ({rate:.0f} MB/s): "
        f"{levels.count('broken')} broken, {levels.count('unverifiable')} unverifiable"
    )
