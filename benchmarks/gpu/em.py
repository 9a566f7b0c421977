"""em_lora at a 7B shape on one GPU, alone and several seeds together: `python -m benchmarks.gpu.em`

Rows of mean 113 tokens, LoRA of rank 32 on all linear layers, dropout .05, steps of 16 rows, weights are random.
`equal` trains 20 steps without dropout alone (twice, padded and joined) and in a pair of seeds. Share: 4 operations a
parameter and token, of 790 TFLOP/s.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import common
from workflow.stage import Job
from workflow.train import joint, sft

LORA = {
    "r": 32, "lora_alpha": 64, "lora_dropout": 0.05, "use_rslora": False, "bias": "none",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
PARAMS = {**common.TRAINING, "learning_rate": 1e-4, "weight_decay": 0.01, "effective_batch_size": 16, "packing": False}
ALONE = {**common.AS_BEFORE, "per_device_train_batch_size": 16, "gradient_checkpointing": False}
JOINED = {**ALONE, "attn_implementation": "varlen"}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "before: padded, checkpointing": {**ALONE, "gradient_checkpointing": True},
    "padded": ALONE,
    "joined": JOINED,
    "joined, fused": {**JOINED, "kernels": "fused"},
    "2 together, fused": {**JOINED, "kernels": "fused", "together": 2},
    "3 together, fused": {**JOINED, "kernels": "fused", "together": 3},
    "4 together, fused": {**JOINED, "kernels": "fused", "together": 4},
}  # fmt: skip


def make_rows(shape: str, steps: int) -> list[dict[str, list[int]]]:
    return common.rows(common.lengths(16 * steps, 105, 0.38, 40, 400), 0.378, common.SHAPES[shape][-1])


def alone(model: Any, data: list[Any], placement: dict[str, Any], dropout: float, skip: int) -> dict[str, Any]:
    """The stage's own trainer on a model that is there already."""
    model.set_attn_implementation(placement["attn_implementation"])
    built: list[Any] = []

    def build(job: Job) -> Any:
        typed = sft.read_params(job)
        made = sft.build(job, typed, common.make_tokenizer(), data, lambda: model)
        made.params = typed
        built.append(made.model)
        return made

    found = common.run(build, "em_lora", {**PARAMS, "lora": {**LORA, "lora_dropout": dropout}}, placement, skip)
    built.pop().unload()
    forward = type(model).forward
    model.forward = forward.__get__(model)  # without TRL's head, which the next run adds again
    model.gradient_checkpointing_disable()
    return found


def together(model: Any, data: list[Any], placement: dict[str, Any], dropout: float, skip: int) -> dict[str, Any]:
    """Several seeds by the joint trainer."""
    import torch
    from peft import LoraConfig

    model.set_attn_implementation("varlen")
    params = {**PARAMS, "lora": {**LORA, "lora_dropout": dropout}}
    recipes = [{**params, "seed": 42 + n} for n in range(placement["together"])]
    times: list[float] = []
    tokens: list[float] = []

    class Timed(joint.Joint):
        def step(self, number: int, drawn: list[Any]) -> None:
            tokens.append(sum(len(row["input_ids"]) for rows in drawn for row in rows) / len(drawn))
            began = time.perf_counter()
            super().step(number, drawn)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for recipe in recipes:
            with common.job("em_lora", recipe, placement) as made:
                jobs.append(made)
        typed = sft.read_params(jobs[0])
        config = LoraConfig(task_type="CAUSAL_LM", **typed.lora.model_dump())  # type: ignore[attr-defined]
        starts = [joint._initial_adapter(model, config, r["seed"], Path(folder)) for r in recipes]
        seeds = joint.make_seeds(jobs, data, torch.device(common.device()))
        run = Timed(model, typed, placement, seeds, starts)  # type: ignore[arg-type]
        facts = run.train(data)
        run.take_adapters()
    kept = times[skip:]
    found = {
        "seconds": sum(kept) / len(kept),
        "steps": len(kept),
        "tokens": sum(tokens[skip:]) / len(kept),
        "losses": [entry["loss"] for entry in seeds[0].log],
        "peak_gb": round(facts["peak_memory_bytes"] / 1e9, 1),
        "micro_batches": facts["micro_batches_per_step"],
    }
    model.forward = type(model).forward.__get__(model)
    model.gradient_checkpointing_disable()
    del run
    common.clear()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["equal", "speed"])
    parser.add_argument("--shape", default="7b")
    parser.add_argument("--steps", type=int, default=12, help="of speed")
    parser.add_argument("--only", nargs="*", help="parts of the names of the runs that are timed")
    args = parser.parse_args()
    print(common.card(), flush=True)
    model = common.make_model(args.shape, "bfloat16", "sdpa")
    size = sum(p.numel() for p in model.parameters())
    if "equal" in args.what:
        data = make_rows(args.shape, 20)
        one, again = (alone(model, data, ALONE, 0.0, 2)["losses"] for _ in range(2))
        joined = alone(model, data, JOINED, 0.0, 2)["losses"]
        pair = together(model, data, {**JOINED, "together": 2}, 0.0, 2)["losses"]
        common.tell(
            "equal: 20 steps of 16 rows, no dropout", first_loss=one[0], last_loss=one[-1],
            two_runs_alone=common.apart(one, again), joined_from_padded=common.apart(one, joined),
            together_from_joined=common.apart(joined, pair),
        )  # fmt: skip
    if "speed" in args.what:
        data = make_rows(args.shape, args.steps)

        def measure(placement: dict[str, Any]) -> dict[str, Any]:
            seeds = placement.get("together", 1)
            found = (together if seeds > 1 else alone)(model, data, placement, 0.05, 3)
            a_seed = found["seconds"] / seeds
            speed = found["tokens"] / a_seed
            share = round(4 * size * speed / common.PEAK, 3)
            return {"s_a_step_and_seed": a_seed, "tokens_s": round(speed), "share": share, **found}

        common.tell_all(PLACEMENTS, args.only, measure)


if __name__ == "__main__":
    main()
