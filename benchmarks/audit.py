"""How fast `verify` and `status` are, beside what they are measured against in one run: `python -m benchmarks.audit`.

- verify: bytes per second over results of a few large files, against sha256 of the same bytes by all cores, first of
  the same files, then of the same bytes in memory (no file, no record, no schema: the machine's own rate).
- status: seconds for 100 x 100 cells with every record there, as a command and after the interpreter's start, against
  `snakemake -n`, which takes minutes there and is therefore run on smaller matrices unless --snakemake says otherwise.

Prints one JSON line per figure. Everything is made in a temporary folder.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests import factory
from workflow.audit import hashing
from workflow.audit.status import current_code
from workflow.audit.verify import verify
from workflow.config import Config
from workflow.data.lock import LOCK, NONE, Pin, definition, used_names, write_pins
from workflow.keys import hash_bytes, hash_file
from workflow.matrix import Matrix, Node
from workflow.store import DATA, Input, Record, data_path, describe_outputs, publish, workspace

ROOT = Path(__file__).parents[1]


def make_config(conditions: int, seeds: int, path: Path) -> Matrix:
    """The demo's config at another size, every data set pinned to bytes that need not exist."""
    raw = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
    template = raw["conditions"][1]
    raw |= {"name": "benchmark", "em_seeds": list(range(1, seeds + 1))}
    raw["conditions"] = [{**template, "name": f"condition_{n}"} for n in range(conditions)]
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    config = Config.load(path)
    pins: dict[str, Pin] = {}
    for name in used_names(config):
        md5 = hash_bytes(name.encode(), "md5")
        pins[name] = Pin(name, md5, md5, NONE, "1", NONE, definition(config.data_entry(name), pins), "benchmark")
    Path(LOCK).unlink(missing_ok=True)
    write_pins(list(pins.values()))
    return Matrix(config, pins, str(path))


def make_record(node: Node, outputs: list[dict[str, Any]], inputs: dict[str, Input] | None = None) -> Record:
    """A whole record of one node of the plan."""
    observed = {"seconds": 12.5, "gpu_seconds": 100.0, "placement": {"batch_size": 16}}
    metrics = {"by_question": {str(q): [float(q)] * 10 for q in range(8)}}
    made = {"code_digest": current_code(node.stage), "packages": {"torch": "2"}, "gpu": []}
    return factory.make_record(node, outputs, observed, metrics, made, inputs)


def finish(matrix: Matrix) -> None:
    """A record for every node, without outputs and without the care of `publish`: `status` reads only these."""
    outputs = [{"path": "output.json", "bytes": 1, "sha256": "0" * 64}]
    made: dict[str, Record] = {}
    for node in matrix.nodes():
        path = Path(node.record)
        path.parent.mkdir(parents=True)
        names = [p.stage if node.stage != "report" else p.record for p in node.parents]
        inputs = {n: made[p.record].as_input(p.record) for n, p in zip(names, node.parents, strict=True)}
        made[node.record] = make_record(node, outputs, inputs)
        path.write_text(made[node.record].to_json())


def measure_verify(files: int, megabytes: int) -> dict[str, Any]:
    matrix = make_config(1, 1, Path("config/benchmark.yaml"))
    Path(DATA).mkdir(parents=True)
    for name in used_names(matrix.config):
        Path(data_path(matrix.data_id(name))).touch()
    node = matrix.nodes()[1]
    block = os.urandom(1_000_000)
    with workspace(Path(node.record).parent) as temp:
        for number in range(files):
            with open(temp / f"model-{number}.safetensors", "wb") as file:
                for part in range(megabytes):
                    file.write(block[part:] + block[:part])
        publish(temp, make_record(node, describe_outputs(temp)))
    paths = sorted(Path(node.record).parent.glob("out/*.safetensors"))
    total = sum(p.stat().st_size for p in paths)
    workers = hashing.cores()
    rates: dict[str, list[float]] = {"verify": [], "files": [], "memory": []}
    for _ in range(3):  # in turn, so that a busy moment of the machine falls on all of them
        rates["verify"].append(total / seconds(lambda: verify(matrix)))
        with ThreadPoolExecutor(workers) as pool:
            rates["files"].append(total / seconds(lambda: list(pool.map(hash_file, paths))))
            held = [path.read_bytes() for path in paths]
            rates["memory"].append(total / seconds(lambda held=held: list(pool.map(hash_bytes, held))))
    best = {name: max(found) / 1e6 for name, found in rates.items()}
    return {
        "benchmark": "verify",
        "bytes": total,
        "cores": workers,
        **{f"{name}_mb_s": round(rate, 1) for name, rate in best.items()},
        "of_sha256_over_the_files": round(best["verify"] / best["files"], 3),
        "of_sha256_in_memory": round(best["verify"] / best["memory"], 3),
        "quick_seconds": round(seconds(lambda: verify(matrix, quick=True)), 3),
    }


def seconds(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure_status(size: int, with_snakemake: bool) -> dict[str, Any]:
    shutil.rmtree("results", ignore_errors=True)
    matrix = make_config(size, size, Path("config/benchmark.yaml"))
    finish(matrix)
    found: dict[str, Any] = {"benchmark": "status", "cells": f"{size} x {size}", "nodes": len(matrix.nodes())}
    commands = {"status": ["workflow", "status"], "status_json": ["workflow", "status", "--json"]}
    if with_snakemake:
        commands["snakemake_dry_run"] = ["snakemake", "-n", "-q"]
    for name, args in commands.items():
        command = [sys.executable, "-m", *args, "--configfile", matrix.configfile]
        times = [measured(command) for _ in range(1 if name == "snakemake_dry_run" else 3)]
        found[f"{name}_seconds"], found[f"{name}_cpu_seconds"] = (round(min(t), 2) for t in zip(*times, strict=True))
    return found


def measured(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command; on a machine that does nothing else, the first comes down to the second."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = seconds(lambda: run(command))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=64, help="of each file")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[10, 30, 100], help="conditions and seeds of the matrix"
    )
    parser.add_argument("--snakemake", type=int, default=30, help="largest size at which `snakemake -n` is run too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("Snakefile", "rules", "profiles", "workflow", "config", "envs", "reference"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder)
        os.chdir(folder)
        if args.files:
            print(json.dumps(measure_verify(args.files, args.megabytes)), flush=True)
        for size in args.sizes:
            print(json.dumps(measure_status(size, size <= args.snakemake)), flush=True)
        for path in Path(folder, "results").rglob("*"):
            if path.is_dir():
                path.chmod(0o755)  # a result's out/ is read-only, and a temporary folder must go


if __name__ == "__main__":
    main()
