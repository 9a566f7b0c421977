"""GPUs of one machine without a scheduler: each job takes as many as it needs and sees no other's.

Snakemake counts a machine's GPUs but hands none out. A job holds a lock of the kernel for each GPU that it took, so a
killed job holds nothing. Where SLURM or the user has chosen (CUDA_VISIBLE_DEVICES), nothing is done.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc/driver/nvidia/gpus")
_held: list[int] = []  # file descriptors: the locks last as long as this process


def needed(stage: str, placement: Mapping[str, object]) -> int:
    """GPUs that a job of this stage takes; `gpus` in the placement is what the plan counted."""
    if isinstance(count := placement.get("gpus"), int):
        return count
    if stage in ("arc", "generate", "lm_eval", "pairs"):
        return 1
    if stage == "judge":
        panel = placement.get("panel")
        places = [placement, *(panel if isinstance(panel, list | tuple) else ())]
        return int(any(place.get("base_url") == "local" for place in places))
    size = placement.get("world_size", 0)
    return size if isinstance(size, int) else 0


def claim(
    count: int,
    environ: MutableMapping[str, str] = os.environ,
    devices: Path = Path("/dev"),
    locks: Path | None = None,
    every: float = 2.0,
    proc: Path = PROC,
) -> list[str]:
    """Take `count` free GPUs and show only them to CUDA; waits while there are too few. Before torch looks for GPUs.

    Returns:
        The names under which CUDA knows them.
    """
    names = cuda_names(devices, proc)
    if not count or not names or "CUDA_VISIBLE_DEVICES" in environ or "SLURM_JOB_ID" in environ:
        return []
    if len(names) < count:
        return []  # the stage says that the placement asks for more processes than there are GPUs
    locks = locks or Path(f"/tmp/gpus-{os.getuid()}")
    locks.mkdir(mode=0o700, exist_ok=True)
    told = False
    while True:
        taken = _take(count, list(names), locks)
        if taken:
            chosen = [names[minor] for minor in taken]
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
            return chosen
        if not told:
            print(f"waiting for {count} of {len(names)} GPUs", file=sys.stderr, flush=True)
            told = True
        time.sleep(every)


def requeue(environ: Mapping[str, str] = os.environ) -> None:
    """Put this SLURM job back into the queue, so that it holds no GPU while it would wait; it starts again later.

    SLURM then ends this process. Returns where there is no SLURM, or where it does not let the job be queued again.
    """
    if job := environ.get("SLURM_JOB_ID"):
        with suppress(OSError):
            if subprocess.run(["scontrol", "requeue", job], capture_output=True).returncode == 0:
                time.sleep(600)


def cuda_names(devices: Path = Path("/dev"), proc: Path = PROC) -> dict[int, str]:
    """Name for CUDA of each GPU that this machine or container has, by the number of its device file.

    That number is no ordinal of CUDA's: a container that was given /dev/nvidia3 alone has the ordinal 0. The driver
    tells the UUID, which CUDA takes as a name.
    """
    minors = sorted(int(m[1]) for d in devices.glob("nvidia[0-9]*") if (m := re.fullmatch(r"nvidia(\d+)", d.name)))
    uuids: dict[int, str] = {}
    for file in proc.glob("*/information"):
        text = file.read_text()
        minor, uuid = (re.search(rf"{field}:\s*(\S+)", text) for field in ("Device Minor", "GPU UUID"))
        if minor and uuid and uuid[1].startswith("GPU-") and "?" not in uuid[1]:
            uuids[int(minor[1])] = uuid[1]
    if minors and all(minor in uuids for minor in minors):
        return {minor: uuids[minor] for minor in minors}
    return {minor: str(ordinal) for ordinal, minor in enumerate(minors)}


def model_names(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Models of the GPUs that CUDA may see, as the driver names them, for a process that does not load torch."""
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if not visible:
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ", 2) for line in done.stdout.splitlines() if line.count(", ") >= 2]
    return [model for index, uuid, model in rows if index in visible or any(uuid.startswith(v) for v in visible)]


def _take(count: int, there: list[int], locks: Path) -> list[int]:
    """All or nothing, so that two jobs that each hold half never wait for each other."""
    taken: dict[int, int] = {}
    for number in there:
        descriptor = os.open(locks / str(number), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
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
