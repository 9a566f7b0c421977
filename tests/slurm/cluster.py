"""A real SLURM on this machine's loopback, and copies of the project that are set up for it.

Needs root, Debian's packages (minislurm.sh names them) and an environment with Snakemake's SLURM plugin, which is not
the tests' own: `make slurm` makes it. Another one: SLURM_VENV.
"""

import os
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import yaml

from tests.conftest import ROOT, copy_project, records
from tests.fake import small

VENV = Path(os.environ.get("SLURM_VENV", ROOT / ".venv-slurm"))
MINISLURM = Path(__file__).with_name("minislurm.sh")
PACKAGES = ("slurmctld", "slurmd", "sbatch", "munged")
MISSING = [p for p in PACKAGES if not shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin")]


def why_not() -> str | None:
    if os.getuid() != 0:
        return "starting a SLURM needs root"
    if MISSING:
        return f"no {', '.join(MISSING)}: apt-get install the packages that minislurm.sh names"
    if not list(VENV.glob("lib/python*/site-packages/snakemake_executor_plugin_slurm")):
        return f"no SLURM plugin in {VENV} (SLURM_VENV): `make slurm` puts it there"
    if os.path.lexists("/etc/slurm/slurm.conf"):
        return "this machine has a SLURM of its own"
    return None


def environment(folder: Path) -> dict[str, str]:
    """Of everything that talks to the SLURM in that folder."""
    path = f"{VENV / 'bin'}:{os.environ['PATH']}:/usr/sbin"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MINISLURM": str(folder)}


def minislurm(env: dict[str, str], *args: str) -> None:
    subprocess.run([MINISLURM, *args], env=env, check=True)


def command(*args: str) -> list[str]:
    return [str(VENV / "bin/python"), "-m", "snakemake", *args]


def snakemake(root: Path, env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), cwd=root, env=env, capture_output=True, text=True, timeout=1500)


def prepare(root: Path, partition: str | None = "main") -> Path:
    """A copy with the demo at 2 x 2, and what a site must set set to this SLURM, which has no accounting."""
    copy_project(root)
    raw = small(yaml.safe_load((root / "config/demo.yaml").read_text()))
    (root / "config/test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    profile = root / "profiles/slurm/config.yaml"
    text = re.sub(r"  slurm_account: .*\n", "", profile.read_text())
    if partition:
        text = re.sub(r"(  slurm_partition: ).*\n", rf"\1{partition}\n", text)
    profile.write_text(text)
    return root


def told(root: Path, wall: float, env: dict[str, str]) -> str:
    """Time of a SLURM job beyond what its stage took, as far as SLURM still remembers the job."""
    made = records(root).values()
    asked = ["squeue", "--noheader", "--states=all", "--array", "--format=%A|%M"]
    listed = subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout
    seconds = dict(line.split("|") for line in listed.splitlines())
    beyond = [
        _seconds(seconds[number]) - record["observed"]["seconds"]
        for record in made
        if (number := record["provenance"]["slurm_job"]) in seconds
    ]
    work = sum(record["observed"]["seconds"] for record in made)
    median = statistics.median(beyond) if beyond else float("nan")
    beyond_it = f"beyond that {median:.1f} s a job (median of {len(beyond)})"
    return f"{len(made)} stages in {wall:.0f} s; stages took {work:.0f} s; {beyond_it}"


def _seconds(text: str) -> int:
    minutes, _, seconds = text.rpartition(":")
    return 60 * int(minutes.rpartition(":")[2] or 0) + int(seconds)
