"""Train on several processes: start them, lay the model on them (whole or in shards), save it whole.

A stage of `world_size` processes runs `accelerate launch` inside its job, on each of its nodes, with
config/accelerate/<strategy>.yaml. `ddp` keeps the whole model on each process, `fsdp2` a shard of everything.
"""

import argparse
import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow.keys import Recipe
from workflow.stage import Job, Parent, Result, StageError
from workflow.store import read_record
from workflow.train import models

FILES = Path(__file__).parents[2] / "config/accelerate"
STOPPED = 128 + signal.SIGTERM
# SLURM's own settings of the step around this process would become options of the step that is started here.
_KEPT = ("SLURM_JOB_ID", "SLURM_CONF", "SLURM_CLUSTER_NAME")
Query = Callable[[list[str]], str]


def placed(job: Job) -> str:
    """Name the strategy of the placement; one process alone needs none."""
    return job.placement.get("strategy", "ddp") if job.placement["world_size"] > 1 else "none"


def is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


# --- start the processes --------------------------------------------------------------------------------------------


def run(module: str, train: Callable[[Job], Result], job: Job) -> Result:
    """Call `train(job)` here or on `world_size` processes; the first rank writes the outputs."""
    processes = job.placement["world_size"]
    if processes == 1:
        return train(job)
    job_file = job.out / "job.json"
    job_file.write_text(
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
    status = _call(command(job, module, job_file), _environment())
    answer_file = job.out / "answer.json"
    answer = json.loads(answer_file.read_text()) if answer_file.is_file() else {}
    if "stopped" in answer:
        raise SystemExit(STOPPED)
    if status or "result" not in answer:
        ended = f"`accelerate launch` of {processes} processes ended with {status}; see the lines above."
        raise StageError(answer.get("error", ended))
    job_file.unlink()
    answer_file.unlink()
    return Result(**answer["result"])


def command(job: Job, module: str, job_file: Path, query: Query | None = None) -> list[str]:
    """Build one `accelerate launch`, or one by srun on each node of the SLURM job that this runs in.

    Raises:
        StageError: several nodes are placed, and there is no SLURM job with as many.
    """
    nodes = job.placement.get("nodes", 1)
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(FILES / f"{placed(job)}.yaml"), "--dynamo_backend", "no"),
        *("--num_processes", str(job.placement["world_size"]), "--num_machines", str(nodes)),
    ]
    program = ["-m", "workflow.train.parallel", module, str(job_file)]
    if nodes == 1:
        return [*launch, "--main_process_port", "0", *program]
    cpus, address = _allocation(job.recipe.stage, nodes, query or _query)
    # below the ports that the system gives out itself; two jobs on a node differ in their number
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 10000
    launch += ["--main_process_ip", address, "--main_process_port", str(port)]
    return [
        *("srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *(f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"),
        *("sh", "-c", f'exec {shlex.join(launch)} --machine_rank "$SLURM_NODEID" {shlex.join(program)}'),
    ]


def _allocation(stage: str, nodes: int, query: Query) -> tuple[str, str]:
    """Ask SLURM's controller for the CPUs on a node of this job and its first node's address."""
    wanted = f"placement.{stage} says nodes: {nodes}"
    number = os.environ.get("SLURM_JOB_ID")
    if number is None:
        raise StageError(f"{wanted}, but this is no SLURM job. Run with `--profile slurm`, or set nodes: 1.")
    described = query(["scontrol", "show", "job", number, "--oneliner"])
    listed = re.search(r" NodeList=(\S+)", described)
    cpus = re.search(r" CPUs/Task=(\d+)", described)
    hosts = query(["scontrol", "show", "hostnames", listed[1]]).split() if listed else []
    if len(hosts) != nodes:
        raise StageError(f"{wanted}, but SLURM job {number} has {len(hosts)}. Ask sbatch for `--nodes={nodes}`.")
    address = re.search(r" NodeAddr=(\S+)", query(["scontrol", "show", "node", hosts[0], "--oneliner"]))
    return cpus[1] if cpus else "1", address[1] if address else hosts[0]


def _query(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise StageError(f"`{shlex.join(command)}` failed: {error}. Several nodes need SLURM's commands.") from None


def _call(command: list[str], env: dict[str, str]) -> int:
    """Run a launcher to its end; returns its exit status.

    SIGTERM, which the stage turns into an exception, is passed on, so that the ranks save.
    """
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        if process.wait():
            raise
        return 0  # they ended as they should meanwhile


def _environment() -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if n in _KEPT or not n.startswith(("SLURM_", "SRUN_", "SBATCH_"))}
    # After SIGTERM the launcher waits so many seconds for the ranks to end their step and save, by default 30: a
    # checkpoint of a 7B model is 100 GB and takes minutes. Who sent the signal kills all of them if it takes too long.
    kept["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "3600"
    return kept if _gpu_count() else {**kept, "ACCELERATE_USE_CPU": "true"}


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def main(argv: list[str] | None = None) -> None:
    """Run one rank."""
    parser = argparse.ArgumentParser(prog="python -m workflow.train.parallel", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("job", type=Path)
    args = parser.parse_args(argv)
    given = json.loads(args.job.read_text())
    parents = tuple(Parent(Path(path), read_record(path)) for path in given["parents"])
    job = Job(Recipe.from_dict(given["recipe"]), given["placement"], parents, Path(given["data"]), Path(given["out"]))
    try:
        _check_gpus(job)
        result = importlib.import_module(args.module).train(job)
    except StageError as error:
        _answer(job, {"error": str(error)})
        sys.exit(f"error: {error}")
    except SystemExit as stop:
        if is_main() and stop.code == STOPPED:
            _answer(job, {"stopped": True})
        raise
    if is_main():
        _answer(job, {"result": {**result._asdict(), "examples": dict(result.examples)}})


def _check_gpus(job: Job) -> None:
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if 0 < _gpu_count() < here:
        raise StageError(
            f"placement.{job.recipe.stage} puts {here} processes on a node with {_gpu_count()} GPUs. Change world_size."
        )


def _answer(job: Job, answer: dict[str, Any]) -> None:
    """Tell the process that started the ranks; several may have the same to say."""
    part = job.out / f"answer.{os.environ['RANK']}"
    part.write_text(json.dumps(answer))
    os.replace(part, job.out / "answer.json")


# --- lay the model on them ------------------------------------------------------------------------------------------


def apply_strategy(args: Any, job: Job) -> Any:
    """Adjust a trainer's arguments so that fsdp2 computes what ddp does."""
    if placed(job) != "fsdp2":
        return args
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # By itself accelerate would keep layers and sum gradients in bfloat16. DDP does so in float32 under autocast, and
    # the placement, which is in no key, must not change what is computed.
    args.fsdp_plugin_args = {"mixed_precision_policy": MixedPrecisionPolicy()}
    # Or each process would keep whole gradients from one micro-batch to the next: 28 GB of a 7B model.
    args.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True}
    if args.use_cpu:
        # accelerate shards on devices only and takes DDP on a CPU without a word; the tests shard on a CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


def load_device(job: Job) -> int | None:
    """The GPU to read a model to that will be sharded: a node's memory would not hold one for each process."""
    import torch

    sharded = placed(job) == "fsdp2" and torch.cuda.is_available()
    return int(os.environ["LOCAL_RANK"]) if sharded else None


def in_force(trainer: Any) -> str:
    """Tell how the model of a trainer that has begun really lies on its processes."""
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(trainer.model_wrapped, FSDPModule):
        return "fsdp2"
    return "ddp" if isinstance(trainer.model_wrapped, DistributedDataParallel) else "none"


def check_strategy(trainer: Any, job: Job) -> None:
    """Refuse, before the first step, another strategy than the placed one."""
    strategy = in_force(trainer)
    if strategy != placed(job):
        raise StageError(
            f"the model lies on the processes by {strategy!r}, the placement says {placed(job)!r}: see "
            f"{FILES / placed(job)}.yaml and the version of accelerate."
        )


def keep_autocast(trainer: Any, job: Job) -> None:
    """Under fsdp2 accelerate leaves the precision to FSDP's policy, which `apply_strategy` switches off."""
    if placed(job) == "fsdp2":
        trainer.autocast_smart_context_manager = trainer.accelerator.autocast


def save(trainer: Any, tokenizer: Any, folder: Path, dtype: str | None = None) -> None:
    """Save the model whole, the same files whatever the strategy. Every process must take part; the first writes."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    state = accelerator.get_state_dict(trainer.model) if accelerator.is_fsdp2 else None
    if accelerator.is_main_process:
        models.save(model if state is None else _unsharded(model, state), tokenizer, folder, dtype)


def _unsharded(model: Any, state: dict[str, Any]) -> Any:
    """Build a model of the same kind around the gathered weights."""
    import torch
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config)
        if isinstance(model, PeftModel):
            whole = get_peft_model(whole, model.active_peft_config)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole


if __name__ == "__main__":
    main()
