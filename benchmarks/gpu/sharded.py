"""Full fine-tunes on two GPUs, in shards and whole, against one: `python -m benchmarks.gpu.sharded --layers 6`

The model has the shape of Qwen2.5-7B with fewer layers and random weights. Tulu SFT and DPO run by their own command
lines on one GPU, on two by FSDP2 and (SFT) by DDP; then SFT by FSDP2 is told to stop and goes on. What is printed: the
largest difference of a step's loss from one GPU's, seconds of training, peak memory of the first process.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.em_lora import chats, publish_model, write_data
from workflow.data import world
from workflow.keys import Recipe
from workflow.store import out_dir, record_path

TRAINING = {
    "learning_rate": 5e-6, "lr_scheduler_type": "linear", "warmup_steps": 0.03, "weight_decay": 0.0,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "optim": "adamw_torch",
    "num_train_epochs": 1, "effective_batch_size": 16, "max_length": 1024, "overlong": "refuse",
    "dtype": "bfloat16", "packing": False, "seed": 42,
}  # fmt: skip
ONE = {"world_size": 1, "nodes": 1, "strategy": "ddp", "per_device_train_batch_size": 8, "gradient_checkpointing": True,
       "attn_implementation": "sdpa", "checkpoint_minutes": None, "tracking": "none"}  # fmt: skip
TWO = ONE | {"world_size": 2}
SHARDS = TWO | {"strategy": "fsdp2"}


def command(recipe: Recipe, placement: dict, parent: str, data: str, cell: str) -> tuple[list[str], Path]:
    record = record_path(recipe.stage, cell, recipe.key)
    args = [sys.executable, "-m", f"workflow.stages.{recipe.stage}", "--recipe", recipe.to_json()]
    args += ["--placement", json.dumps(placement), "--parents", parent, "--data", data, "--record", record]
    return args, Path(record)


def losses(record: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out_dir(record) / "train_log.jsonl").read_text().splitlines()]


def tell(name: str, record: Path, against: list[float] | None) -> list[float]:
    observed = json.loads(record.read_text())["observed"]
    found = losses(record)
    apart = max(abs(a - b) for a, b in zip(found, against, strict=True)) if against else 0.0
    keep = ("world_size", "strategy", "optimizer_steps", "train_seconds", "peak_memory_bytes", "resumed_from_step")
    line = {"run": name, "first": found[0], "last": found[-1], "largest_difference": apart}
    print(json.dumps(line | {k: observed[k] for k in keep}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=320)
    args = parser.parse_args()
    key, parent = publish_model(args.layers)
    sets = {"tulu_sft": chats(args.rows), "tulu_dpo": world.preference_rows(1)[: args.rows // 2]}
    params = {"tulu_sft": TRAINING, "tulu_dpo": TRAINING | {"beta": 5.0, "loss_type": "sigmoid_norm"}}
    runs = {
        "tulu_sft": {"one": ONE, "fsdp2": SHARDS, "ddp": TWO},
        "tulu_dpo": {"one": ONE, "fsdp2": SHARDS},
    }
    first: dict[str, list[float]] = {}
    recipes = {}
    for stage, placements in runs.items():
        md5, data = write_data(sets[stage])
        recipes[stage] = (Recipe(stage, 1, md5, params[stage], (key,)), data)
        for seed, (name, placement) in enumerate(placements.items()):
            made, record = command(recipes[stage][0], placement, parent, data, f"bench.p{seed}")
            subprocess.run(made, check=True)
            found = tell(f"{stage} {name}", record, first.get(stage))
            first.setdefault(stage, found)
    made, record = command(recipes["tulu_sft"][0], SHARDS, parent, recipes["tulu_sft"][1], "bench.p9")
    job = subprocess.Popen(made, stderr=subprocess.PIPE, text=True)
    assert job.stderr
    for line in job.stderr:  # told to stop once it trains
        sys.stderr.write(line)
        if line.startswith("step "):
            time.sleep(3)
            job.send_signal(signal.SIGTERM)
            break
    sys.stderr.write(job.stderr.read())
    print(json.dumps({"stopped with": job.wait()}), flush=True)
    subprocess.run(made, check=True)
    tell("tulu_sft fsdp2, stopped and gone on", record, first["tulu_sft"])


if __name__ == "__main__":
    main()
