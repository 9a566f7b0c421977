"""Training on several processes: `accelerate launch` inside the job, on each of its nodes, as the placement says."""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow.keys import Recipe
from workflow.stage import Job, Parent, Result, StageError
from workflow.stages import _resume, _strategy
from workflow.store import read_record

# SLURM's own settings of the step around this process would become options of the step that is started here.
_KEPT = ("SLURM_JOB_ID", "SLURM_CONF", "SLURM_CLUSTER_NAME")
Ask = Callable[[list[str]], str]


def run(module: str, train: Callable[[Job], Result], job: Job) -> Result:
    """`train(job)`, here or on `world_size` processes; the first rank writes the outputs."""
    processes = job.placement["world_size"]
    if processes == 1:
        return train(job)
    note = job.out / "job.json"
    note.write_text(
        json.dumps(
            {
                "recipe": job.recipe.to_dict(),
                "placement": job.placement,
                "parents": [str(p.path) for p in job.parents],
                "data": str(job.data),
                "out": str(job.out),
            }
        )
    )
    status = _resume.call(command(job, module, note), _environment())
    answer = job.out / "answer.json"
    said = json.loads(answer.read_text()) if answer.is_file() else {}
    if "stopped" in said:
        raise SystemExit(_resume.STOPPED)
    if status or "result" not in said:
        ended = f"`accelerate launch` of {processes} processes ended with {status}; see the lines above."
        raise StageError(said.get("error", ended))
    note.unlink()
    answer.unlink()
    return Result(**said["result"])


def command(job: Job, module: str, note: Path, ask: Ask | None = None) -> list[str]:
    """One `accelerate launch`, or by srun one on each node of the SLURM job that this runs in.

    Raises:
        StageError: several nodes are placed, and there is no SLURM job with as many.
    """
    nodes = job.placement.get("nodes", 1)
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(_strategy.FILES / f"{_strategy.placed(job)}.yaml"), "--dynamo_backend", "no"),
        *("--num_processes", str(job.placement["world_size"]), "--num_machines", str(nodes)),
    ]
    program = ["-m", "workflow.stages._distributed", module, str(note)]
    if nodes == 1:
        return [*launch, "--main_process_port", "0", *program]
    cpus, address = _allocation(job.recipe.stage, nodes, ask or _ask)
    # below the ports that the system gives out itself; two jobs on a node differ in their number
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000
    launch += ["--main_process_ip", address, "--main_process_port", str(port)]
    return [
        *("srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *(f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"),
        *("sh", "-c", f'exec {shlex.join(launch)} --machine_rank "$SLURM_NODEID" {shlex.join(program)}'),
    ]


def _allocation(stage: str, nodes: int, ask: Ask) -> tuple[str, str]:
    """CPUs on a node of this SLURM job and its first node's address, by the controller: the plugin takes them away."""
    wanted = f"placement.{stage} says nodes: {nodes}"
    number = os.environ.get("SLURM_JOB_ID")
    if number is None:
        raise StageError(f"{wanted}, but this is no SLURM job. Run with `--profile slurm`, or set nodes: 1.")
    told = ask(["scontrol", "show", "job", number, "--oneliner"])
    listed = re.search(r" NodeList=(\S+)", told)
    cpus = re.search(r" CPUs/Task=(\d+)", told)
    hosts = ask(["scontrol", "show", "hostnames", listed[1]]).split() if listed else []
    if len(hosts) != nodes:
        raise StageError(f"{wanted}, but SLURM job {number} has {len(hosts)}. Ask sbatch for `--nodes={nodes}`.")
    address = re.search(r" NodeAddr=(\S+)", ask(["scontrol", "show", "node", hosts[0], "--oneliner"]))
    return cpus[1] if cpus else "1", address[1] if address else hosts[0]


def _ask(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise StageError(f"`{shlex.join(command)}` failed: {error}. Several nodes need SLURM's commands.") from None


def _environment() -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if n in _KEPT or not n.startswith(("SLURM_", "SRUN_", "SBATCH_"))}
    # After SIGTERM the launcher waits so many seconds for the ranks to end their step and save, by default 30: a
    # checkpoint of a 7B model is 100 GB and takes minutes. Who sent the signal kills all of them if it takes too long.
    kept["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "3600"
    return kept if _gpus() else {**kept, "ACCELERATE_USE_CPU": "true"}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def main(argv: list[str] | None = None) -> None:
    """One rank."""
    parser = argparse.ArgumentParser(prog="python -m workflow.stages._distributed", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("job", type=Path)
    args = parser.parse_args(argv)
    said = json.loads(args.job.read_text())
    parents = tuple(Parent(Path(path), read_record(path)) for path in said["parents"])
    job = Job(Recipe.from_dict(said["recipe"]), said["placement"], parents, Path(said["data"]), Path(said["out"]))
    from workflow.stages._train import is_main

    try:
        _check_gpus(job)
        result = importlib.import_module(args.module).train(job)
    except StageError as error:
        _answer(job, {"error": str(error)})
        sys.exit(f"error: {error}")
    except SystemExit as stop:
        if is_main() and stop.code == _resume.STOPPED:
            _answer(job, {"stopped": True})
        raise
    if is_main():
        _answer(job, {"result": result._asdict()})


def _check_gpus(job: Job) -> None:
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < _gpus() < here:
        raise StageError(
            f"placement.{job.recipe.stage} puts {here} processes on a node with {_gpus()} GPUs. Change world_size."
        )


def _answer(job: Job, said: dict[str, Any]) -> None:
    """Tell the process that started the ranks; several may have the same to say."""
    part = job.out / f"answer.{os.environ['RANK']}"
    part.write_text(json.dumps(said))
    os.replace(part, job.out / "answer.json")


if __name__ == "__main__":
    main()
