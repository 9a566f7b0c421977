"""The whole demo matrix, 5 x 10, on a real SLURM: its time, and what a job costs beyond its stage.

    python -m benchmarks.slurm_demo --folder /tmp/slurm-demo

Needs what tests/slurm needs. `snakemake --profile slurm all --configfile config/demo.yaml`, with the site's block of
the profile set to the SLURM that it starts. As many jobs at once as two cores and their memory bear.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.slurm.cluster import command, environment, minislurm, prepare, told, why_not

JOBS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/slurm-demo"))
    folder = parser.parse_args().folder.resolve()
    if why := why_not():
        sys.exit(f"error: {why}")
    root = folder / "project"
    if not root.exists():
        prepare(root)
    env = environment(folder / "slurm")
    minislurm(env, "start")
    try:
        began = time.monotonic()
        args = command("--profile", "slurm", "all", "--configfile", "config/demo.yaml", "--jobs", str(JOBS))
        with open(folder / "snakemake.log", "a") as log:
            status = subprocess.run(args, cwd=root, env=env, stdout=log, stderr=log).returncode
        wall = time.monotonic() - began
        if status:
            sys.exit(f"error: Snakemake ended with {status}; see {folder / 'snakemake.log'}")
        print(f"{JOBS} jobs at once: {told(root, wall, env)}")
    finally:
        minislurm(env, "stop")


if __name__ == "__main__":
    main()
