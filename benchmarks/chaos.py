"""kill -9 at random moments, then the same command: every artifact has the bytes of an undisturbed run.

    python -m benchmarks.chaos --kills 100 --folder /tmp/chaos

The demo at 2 conditions x 2 EM seeds, Snakemake on the local executor, stages forked by one launcher. What is killed is
Snakemake, or a stage that is at work and then Snakemake; trainings checkpoint after every second. A finished pass is
compared and its results are removed. Every kill is a line of FOLDER/kills.jsonl, so the script goes on where it was
stopped.
"""

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from tests.conftest import copy_project, records, stable_digests
from tests.fake import small
from workflow.launch import ADDRESS, TOKEN, socket_folder

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "snakemake", "all", "--configfile", "config/test.yaml", "-c2"]
ATTEMPTS = 6  # runs without a kill, until a pass must be finished


def prepare(root: Path) -> Path:
    if root.exists():
        return root
    copy_project(root)
    raw = small(yaml.safe_load((ROOT / "config/demo.yaml").read_text()))
    for stage in raw["stages"]:
        raw["placement"][stage]["checkpoint_minutes"] = 1 / 60
    (root / "config/test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return root


@contextmanager
def launcher(root: Path) -> Iterator[dict[str, str]]:
    """Environment of one launcher that all runs share; it runs the copy's code, which nobody edits meanwhile."""
    address = Path(socket_folder(), "socket")
    code = f"from workflow.launch import serve; serve({str(address)!r}, {os.getpid()})"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env[TOKEN] = secrets.token_hex()
    server = subprocess.Popen([sys.executable, "-c", code], cwd=root, env=env, start_new_session=True)
    try:
        yield {**env, ADDRESS: str(address)}
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(address.parent)


def start(root: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with open(root.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(COMMAND, cwd=root, env=env, stdout=log, stderr=log, start_new_session=True)


def at_work(root: Path) -> list[tuple[int, str]]:
    """Processes of stages in that folder, with the stage's name."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if Path(os.readlink(entry / "cwd")) == root and "-m" in words:
                module = words[words.index("-m") + 1]
                if module.startswith("workflow."):
                    found.append((int(entry.name), module.rpartition(".")[2]))
    return found


def resumed(root: Path) -> int:
    """Trainings that went on from a checkpoint."""
    return sum(record["observed"].get("resumed_from_step", 0) > 0 for record in records(root).values())


def clear(root: Path) -> None:
    """Results of a finished pass. Data and base stay: the toy base saves no checkpoint and would be all that is hit."""
    for stage in (root / "results").iterdir():
        if stage.is_dir() and stage.name not in ("data", "base"):
            subprocess.run(["chmod", "-R", "u+w", str(stage)], check=True)
            shutil.rmtree(stage)


def finish(root: Path, env: dict[str, str]) -> int:
    """Run until all is there; gives the number of runs."""
    for attempt in range(1, ATTEMPTS + 1):
        if start(root, env).wait() == 0:
            return attempt
    sys.exit(f"error: not finished after {ATTEMPTS} runs of the same command; see {root.with_suffix('.log')}")


def disturb(root: Path, env: dict[str, str], draw: random.Random) -> str | None:
    """One run with one kill in it. What was killed; "" if the run failed by itself before, None if it was done."""
    job = start(root, env)
    deadline = time.monotonic() + draw.uniform(2, 20)
    wants_stage = draw.random() < 0.6
    while time.monotonic() < deadline:
        if job.poll() is not None:
            return None if job.returncode == 0 else ""
        time.sleep(0.05)
    target, name = job.pid, "snakemake"
    if wants_stage and (stages := at_work(root)):
        target, name = draw.choice(stages)
    with suppress(ProcessLookupError):
        os.kill(target, signal.SIGKILL)
    if name != "snakemake":  # keep-going: it does what it still can; that is not what is looked at
        time.sleep(draw.uniform(0, 2))
        with suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGKILL)
    job.wait()
    return name


def compare(root: Path, expected: dict[str, str]) -> None:
    found = stable_digests(root)
    differing = sorted(p for p in expected.keys() | found.keys() if expected.get(p) != found.get(p))
    if differing:
        sys.exit("error: other bytes than undisturbed:\n" + "\n".join(differing))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/chaos"))
    parser.add_argument(
        "--minutes", type=float, default=600, help="begin no kill after that; what is begun is finished"
    )
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "kills.jsonl"
    until = time.monotonic() + 60 * args.minutes
    whole, broken = prepare(folder / "undisturbed"), prepare(folder / "disturbed")
    with launcher(whole) as env:
        finish(whole, env)
        expected = stable_digests(whole)
        failures = 0
        if not (broken / "results/base").exists():
            (broken / "results").mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", whole / "results/base", broken / "results/base"], check=True)
        while (done := len(journal.read_text().splitlines()) if journal.exists() else 0) < args.kills:
            if time.monotonic() > until:
                break
            killed = disturb(broken, env, random.Random(done + 1))
            if killed == "":
                failures += 1  # such as a job that met one which outlived its Snakemake; the same command cures it
                continue
            if killed is None:
                compare(broken, expected)
                print(f"pass finished after {done} kills: {len(expected)} digests equal, {resumed(broken)} resumed")
                clear(broken)
                continue
            with open(journal, "a") as file:
                file.write(json.dumps({"kill": done + 1, "killed": killed}) + "\n")
            print(f"kill {done + 1}: {killed}", flush=True)
        runs = finish(broken, env)
    compare(broken, expected)
    kinds = Counter(json.loads(line)["killed"] for line in journal.read_text().splitlines())
    told = ", ".join(f"{number} {name}" for name, number in kinds.most_common())
    print(f"{kinds.total()} kills ({told}), then {runs} run(s) to the end: all {len(expected)} digests are the")
    print(f"undisturbed run's; {resumed(broken)} trainings of the last pass went on from a checkpoint;")
    print(f"{failures} runs failed without a kill of their own")


if __name__ == "__main__":
    main()
