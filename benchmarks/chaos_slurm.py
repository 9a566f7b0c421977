"""kill -9 at random moments on a real SLURM, then the same command: every artifact has the undisturbed run's bytes.

    python -m benchmarks.chaos_slurm --kills 10 --folder /tmp/chaos-slurm --undisturbed DIR

Needs what tests/slurm needs. The demo at 2 conditions x 2 EM seeds by `snakemake --profile slurm`; DIR holds a finished
one, as `python -m benchmarks.chaos` leaves it in FOLDER/undisturbed. What is killed is Snakemake's head, a stage, or a
slurmd, which is started again some seconds later. Every kill is a line of FOLDER/kills.jsonl, so the script goes on
where it was stopped.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import yaml

from benchmarks.chaos import ATTEMPTS, at_work, compare, resumed
from tests.conftest import stable_digests
from tests.slurm.cluster import command, environment, minislurm, prepare, why_not

ARGS = ("--profile", "slurm", "all", "--configfile", "config/test.yaml", "--jobs", "4")
NODES = 2


def make_project(root: Path) -> None:
    if root.exists():
        return
    prepare(root)
    path = root / "config/test.yaml"
    raw = yaml.safe_load(path.read_text())
    for stage in raw["stages"]:
        raw["placement"][stage]["checkpoint_minutes"] = 1 / 60
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


class Head:
    """Snakemake, started whenever it is not there."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self.root, self.env, self.runs = root, env, 0
        self.start()

    def start(self) -> None:
        with open(self.root.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen(command(*ARGS), cwd=self.root, env=self.env, stdout=log, stderr=log)
        self.runs += 1

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self) -> None:
        for _ in range(ATTEMPTS):
            if self.process.wait() == 0:
                return
            self.start()
        sys.exit(f"error: not finished after {ATTEMPTS} runs; see {self.root.with_suffix('.log')}")


def disturb(head: Head, draw: random.Random) -> str | None:
    """One kill; what it hit, or None if all is made."""
    end = time.monotonic() + draw.uniform(5, 45)
    while time.monotonic() < end:
        if head.process.poll() is not None:
            if head.process.returncode == 0:
                return None
            head.start()
        time.sleep(0.1)
    target = draw.choice(("snakemake", "stage", "stage", "slurmd"))
    if target == "stage" and (stages := at_work(head.root)):
        pid, name = draw.choice(stages)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return name
    if target == "slurmd":
        node = str(draw.randint(1, NODES))
        minislurm(head.env, "kill-node", node)
        time.sleep(draw.uniform(1, 20))  # SLURM gives a node up after ten seconds
        minislurm(head.env, "start-node", node)
        return "slurmd"
    head.kill()
    head.start()
    return "snakemake"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/chaos-slurm"))
    parser.add_argument("--undisturbed", type=Path, required=True)
    args = parser.parse_args()
    if why := why_not():
        sys.exit(f"error: {why}")
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    journal, root = folder / "kills.jsonl", folder / "project"
    make_project(root)
    env = environment(folder / "slurm")
    minislurm(env, "start")
    began = time.monotonic()
    try:
        head = Head(root, env)
        while (done := len(journal.read_text().splitlines()) if journal.exists() else 0) < args.kills:
            if (killed := disturb(head, random.Random(done + 1))) is None:
                sys.exit(f"error: the matrix was made after {done} kills; remove {root / 'results'} and go on")
            with open(journal, "a") as file:
                file.write(json.dumps({"kill": done + 1, "killed": killed}) + "\n")
            print(f"kill {done + 1} at {time.monotonic() - began:.0f} s: {killed}", flush=True)
        head.finish()
    finally:
        minislurm(env, "stop")
    compare(root, stable_digests(args.undisturbed))
    kinds = Counter(json.loads(line)["killed"] for line in journal.read_text().splitlines())
    told = ", ".join(f"{number} {name}" for name, number in kinds.most_common())
    print(f"{kinds.total()} kills ({told}), {head.runs} starts of Snakemake in {time.monotonic() - began:.0f} s: all")
    equal = len(stable_digests(root))
    print(f"{equal} digests are the undisturbed run's; {resumed(root)} trainings went on from a checkpoint")


if __name__ == "__main__":
    main()
