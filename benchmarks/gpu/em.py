"""em_lora at a 7B shape on one GPU, alone and several seeds together.

Rows of mean 113 tokens, LoRA of rank 32 on all linear layers, dropout .05, steps of 16 rows, weights are random.
`equal` trains without dropout. Seconds and tokens are of one seed. Share: 4 operations a parameter and token.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gpu import common
from workflow.stage import Job
from workflow.train import joint, sft, trainer

LORA = {
    "r": 32, "lora_alpha": 64, "lora_dropout": 0.05, "use_rslora": False, "bias": "none",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
ALONE = {**common.AS_BEFORE, "per_device_train_batch_size": 16, "gradient_checkpointing": False}
JOINED = {**ALONE, **common.VARLEN}
PLACEMENTS = {
    "before: padded, checkpointing": {**ALONE, "gradient_checkpointing": True},
    "padded": ALONE,
    "joined": JOINED,
    "joined, fused": {**JOINED, "kernels": "fused"},
    "2 together": {**JOINED, "together": 2},
    "2 together, fused": {**JOINED, "kernels": "fused", "together": 2},
    "3 together, fused": {**JOINED, "kernels": "fused", "together": 3},
    "4 together, fused": {**JOINED, "kernels": "fused", "together": 4},
}  # fmt: skip


def measure(run: common.Run) -> common.Timed:
    data = common.rows(common.lengths(run.rows, 105, 0.38, 40, 400), 0.378, common.SHAPES[run.shape][-1])
    if run.placement.get("together", 1) > 1:
        return together(run, data)

    def build(job: Job) -> Any:
        typed = sft.read_params(job)

        def load() -> Any:
            return common.make_model(run.shape, "bfloat16", job.placement["attn_implementation"])

        return sft.build(job, typed, common.make_tokenizer(), data, load), typed

    return common.train(build, "em_lora", run)


def together(run: common.Run, data: list[Any]) -> common.Timed:
    """Several seeds by the joint trainer."""
    import torch
    from peft import LoraConfig

    number = run.placement["together"]
    times: list[float] = []
    tokens: list[float] = []

    class TimedJoint(joint.Joint):
        def step(self, count: int, drawn: list[Any]) -> None:
            began = time.perf_counter()
            super().step(count, drawn)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append((time.perf_counter() - began) / number)
            tokens.append(sum(len(row["input_ids"]) for rows in drawn for row in rows) / number)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        recipes = [{**run.params, "seed": 42 + n} for n in range(number)]
        jobs = [stack.enter_context(common.job("em_lora", recipe, run.placement)) for recipe in recipes]
        typed = sft.read_params(jobs[0])
        model = common.make_model(run.shape, "bfloat16", "varlen")
        size = sum(p.numel() for p in model.parameters())
        config = LoraConfig(task_type="CAUSAL_LM", **typed.lora.model_dump())  # type: ignore[attr-defined]
        starts = [joint._initial_adapter(model, config, r["seed"], Path(folder)) for r in recipes]
        seeds = joint.make_seeds(jobs, data, torch.device(common.device()))
        trained = TimedJoint(model, typed, run.placement, seeds, starts)  # type: ignore[arg-type]
        facts = trained.train(data)
    losses = [entry["loss"] for entry in seeds[0].log]
    peak, micro_batches = round(trainer.peak_memory() / 1e9, 1), facts["micro_batches_per_step"]
    del trained, model
    common.clear()
    return common.Timed(times[common.SKIP :], tokens[common.SKIP :], losses, size, peak, micro_batches)


BENCHMARK = common.Benchmark(
    about=__doc__,
    shape="7b",
    flop=4,
    params={
        **common.TRAINING,
        **{"learning_rate": 1e-4, "weight_decay": 0.01, "effective_batch_size": 16, "packing": False, "lora": LORA},
    },
    placements=PLACEMENTS,
    equal_params={"lora": {**LORA, "lora_dropout": 0.0}},
    compared={
        "two_runs_alone": ("padded", "padded"),
        "joined_from_padded": ("padded", "joined"),
        "together_from_joined": ("joined", "2 together"),
    },
    measure=measure,
)

if __name__ == "__main__":
    BENCHMARK.main()
