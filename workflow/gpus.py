"""GPUs of one machine without a scheduler: each job takes as many as it needs and sees no other's.

Snakemake counts a machine's GPUs but hands none out. A job holds a lock of the kernel for each GPU that it took, so a
killed job holds nothing. Where SLURM or the user has chosen (CUDA_VISIBLE_DEVICES), nothing is done.
"""

import fcntl
import os
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path

_held: list[int] = []  # file descriptors: the locks last as long as this process


def needed(stage: str, placement: dict[str, object]) -> int:
    """GPUs that a stage uses if there are any."""
    if stage in ("arc", "generate", "lm_eval", "pairs"):
        return 1
    if stage == "judge":
        return int(placement.get("base_url") == "local")
    size = placement.get("world_size", 0)
    return size if isinstance(size, int) else 0


def claim(
    count: int,
    environ: MutableMapping[str, str] = os.environ,
    devices: Path = Path("/dev"),
    locks: Path | None = None,
    every: float = 2.0,
) -> list[int]:
    """Take `count` free GPUs and show only them to CUDA; waits while there are too few. Before torch looks for GPUs."""
    there = sorted(int(d.name.removeprefix("nvidia")) for d in devices.glob("nvidia[0-9]*"))
    if not count or not there or "CUDA_VISIBLE_DEVICES" in environ or "SLURM_JOB_ID" in environ:
        return []
    if len(there) < count:
        return []  # the stage says that the placement asks for more processes than there are GPUs
    locks = locks or Path(f"/tmp/gpus-{os.getuid()}")
    locks.mkdir(mode=0o700, exist_ok=True)
    told = False
    while True:
        taken = _take(count, there, locks)
        if taken:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, taken))
            return taken
        if not told:
            print(f"waiting for {count} of {len(there)} GPUs", file=sys.stderr, flush=True)
            told = True
        time.sleep(every)


def _take(count: int, there: list[int], locks: Path) -> list[int]:
    """All or nothing, so that two jobs that each hold half never wait for each other."""
    taken: dict[int, int] = {}
    for number in there:
        descriptor = os.open(locks / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        taken[number] = descriptor
        if len(taken) == count:
            _held.extend(taken.values())
            return list(taken)
    for descriptor in taken.values():
        os.close(descriptor)
    return []
