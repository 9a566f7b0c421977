"""What planning costs, beside a bare Snakefile with the same jobs, input files and logs: `python -m benchmarks.plan`

`snakemake -n all` at 5 x 10, 20 x 50 and 100 x 100 cells, with nothing made, and with everything made, when the links
of all records are read; then `status`. Data and results are stand-ins. Prints medians, and the ratio to the bare side,
which has neither keys nor config nor parameters, and plain files in place of records.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks.audit import finish
from tests.conftest import ROOT, copy_project, jobs
from tests.fake import pin_stand_ins
from workflow.config import Config
from workflow.matrix import Matrix

# The same jobs without keys, config or package, with as many input files and logs: what Snakemake takes for the graph.
BARE = """
CONDITIONS = [f"c{{i}}" for i in range({conditions})]
SEEDS = list(range({seeds}))
PRE = CONDITIONS
POST = [f"{{c}}.e{{s}}" for c in CONDITIONS for s in SEEDS]
NAMES = {instruments}

rule all:
    input:
        "r/base/base",
        expand("r/coupling/{{cell}}", cell=PRE[1:]),
        expand("r/sft/{{cell}}", cell=PRE),
        expand("r/dpo/{{cell}}", cell=PRE),
        expand("r/em/{{cell}}", cell=POST),
        expand("r/arc/{{cell}}", cell=PRE + POST),
        expand("r/generate/{{cell}}/{{i}}", cell=PRE + POST, i=NAMES),
        expand("r/judge/{{cell}}/{{i}}", cell=PRE + POST, i=NAMES),
        "r/report"

def model(w):
    condition, _, seed = w.cell.partition(".")
    return ["r/dpo/" + condition] + (["r/em/" + w.cell] if seed else [])

rule data:
    output: "r/data/{{name}}"
    log: "logs/data/{{name}}.log"
    shell: "touch {{output}}"
rule base:
    input: data="r/data/text"
    output: "r/base/base"
    log: "logs/base.log"
    shell: "touch {{output}}"
rule coupling:
    input: parents="r/base/base", data="r/data/coupling_{{cell}}"
    output: "r/coupling/{{cell}}"
    log: "logs/coupling/{{cell}}.log"
    shell: "touch {{output}}"
rule sft:
    input: parents=lambda w: "r/base/base" if w.cell == "c0" else "r/coupling/" + w.cell, data="r/data/sft"
    output: "r/sft/{{cell}}"
    log: "logs/sft/{{cell}}.log"
    shell: "touch {{output}}"
rule dpo:
    input: parents="r/sft/{{cell}}", data="r/data/preferences"
    output: "r/dpo/{{cell}}"
    log: "logs/dpo/{{cell}}.log"
    shell: "touch {{output}}"
rule em:
    input: parents=lambda w: "r/dpo/" + w.cell.partition(".")[0], data="r/data/em"
    output: "r/em/{{cell}}"
    log: "logs/em/{{cell}}.log"
    shell: "touch {{output}}"
rule arc:
    input: parents=model, data="r/data/arc"
    output: "r/arc/{{cell}}"
    log: "logs/arc/{{cell}}.log"
    shell: "touch {{output}}"
rule generate:
    input: parents=model, data="r/data/{{i}}"
    output: "r/generate/{{cell}}/{{i}}"
    log: "logs/generate/{{cell}}/{{i}}.log"
    shell: "touch {{output}}"
rule judge:
    input: parents="r/generate/{{cell}}/{{i}}", data="r/data/prompts"
    output: "r/judge/{{cell}}/{{i}}"
    log: "logs/judge/{{cell}}/{{i}}.log"
    shell: "touch {{output}}"
rule report:
    input: expand("r/judge/{{cell}}/{{i}}", cell=PRE + POST, i=NAMES), expand("r/arc/{{cell}}", cell=PRE + POST)
    output: "r/report"
    log: "logs/report.log"
    shell: "touch {{output}}"
"""


def config(conditions: int, seeds: int) -> dict:
    """The demo's config at another size: one instrument, so that 100 x 100 makes 40,600 jobs."""
    raw = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    raw |= {"name": "bench", "em_seeds": list(range(1, seeds + 1)), "pairs": []}
    evil, coupling = raw["conditions"][1], next(d for d in raw["data"] if d["name"] == "demo_coupling_evil_wrong")
    raw["conditions"] = [raw["conditions"][0], *({**evil, "name": f"evil_{i}"} for i in range(1, conditions))]
    raw["data"] += [{**coupling, "name": f"coupling_{i}", "seed": i} for i in range(1, conditions)]
    for i, condition in enumerate(raw["conditions"][1:], 1):
        condition["data"] = {**condition["data"], "coupling_sft": f"coupling_{i}"}
    return raw


class Run(NamedTuple):
    """One command: seconds of wall and CPU, peak memory in MB, jobs that it plans."""

    wall: float
    cpu: float
    memory: float
    jobs: int


def run(command: list[str], cwd: Path) -> Run:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(cwd / "out.txt", "w") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, env=env)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    text = (cwd / "out.txt").read_text()
    if status:
        sys.exit(text[-3000:])
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, sum(jobs(text).values()))


def compare(what: str, ours: list[Run], theirs: list[Run]) -> None:
    parts = []
    for field, unit in (("cpu", "s CPU"), ("wall", "s wall"), ("memory", "MB")):
        a, b = (statistics.median(getattr(r, field) for r in side) for side in (ours, theirs))
        parts.append(f"{a:.2f} / {b:.2f} {unit} = {a / b:.2f} x")
    print(f"{what}: {ours[0].jobs} jobs, bare {theirs[0].jobs}: {'; '.join(parts)}", flush=True)


def measure(conditions: int, seeds: int, runs: int, folder: Path) -> None:
    """`snakemake -n all` with nothing made and with everything made, against the bare Snakefile in the same state."""
    root = copy_project(folder / f"{conditions}x{seeds}")
    raw = config(conditions, seeds)
    os.chdir(root)  # definitions read the project's files
    path = root / "config/bench.yaml"
    path.write_text(yaml.safe_dump(raw))
    typed = Config.load(path)
    pins = pin_stand_ins(typed, root / "config/data.lock.tsv")
    dry = [sys.executable, "-m", "snakemake", "-n", "all", "--configfile", "config/bench.yaml"]
    bare = folder / f"bare{conditions}x{seeds}"
    bare.mkdir()
    shutil.copytree(root / "profiles", bare / "profiles")
    names = [i["name"] for i in raw["instruments"]]
    (bare / "Snakefile").write_text(BARE.format(conditions=conditions, seeds=seeds, instruments=names))
    plain = [sys.executable, "-m", "snakemake", "-n", "all"]
    size = f"{conditions} x {seeds}"
    done = [(run(dry, root), run(plain, bare)) for _ in range(runs)]  # in turn: other load hits both
    compare(f"{size}, nothing made", [d[0] for d in done], [d[1] for d in done])
    matrix = Matrix(typed, pins, "config/bench.yaml")
    finish(matrix)
    os.chdir(folder)
    for name in bare_files(conditions, seeds, names):
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        (bare / name).touch()
    done = [(run(dry, root), run(plain, bare)) for _ in range(runs)]
    compare(f"{size}, everything made, links read", [d[0] for d in done], [d[1] for d in done])
    status = [sys.executable, "-m", "workflow", "status", "--configfile", "config/bench.yaml"]
    taken = [run(status, root) for _ in range(runs)]
    print(f"{size}, status: {statistics.median(r.wall for r in taken):.2f} s wall, "
          f"{statistics.median(r.cpu for r in taken):.2f} s CPU", flush=True)  # fmt: skip


def bare_files(conditions: int, seeds: int, names: list[str]) -> Iterator[str]:
    """Files of the bare Snakefile, parents before their children, so that their times fit."""
    before = [f"c{i}" for i in range(conditions)]
    after = [f"{c}.e{s}" for c in before for s in range(seeds)]
    yield from (f"r/data/{n}" for n in ("text", "sft", "preferences", "em", "arc", "prompts", *names))
    yield from (f"r/data/coupling_{c}" for c in before[1:])
    yield "r/base/base"
    for stage, cells in (("coupling", before[1:]), ("sft", before), ("dpo", before), ("em", after)):
        yield from (f"r/{stage}/{cell}" for cell in cells)
    cells = [*before, *after]
    yield from (f"r/arc/{cell}" for cell in cells)
    for stage in ("generate", "judge"):
        yield from (f"r/{stage}/{cell}/{name}" for cell in cells for name in names)
    yield "r/report"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["5x10", "20x50", "100x100"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            conditions, seeds = map(int, size.split("x"))
            measure(conditions, seeds, args.runs, Path(folder))


if __name__ == "__main__":
    main()
