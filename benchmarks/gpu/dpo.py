"""tulu_dpo at a 1.5B shape on one GPU, as it was placed and joined: `python -m benchmarks.gpu.dpo`

Pairs have a Tulu-like length profile (mean 1,400 tokens for both answers with their prompts), weights are random. Where
the reference's log-probabilities are computed before the first step, their seconds are counted. `equal` trains 20
steps of 4 pairs in both placements. Share: 8 operations a parameter and token, of 790 TFLOP/s.
"""

import argparse
import random
import string
import time
from typing import Any

from benchmarks.gpu import common
from benchmarks.gpu.sft import budget
from workflow.sections import DpoStage
from workflow.stage import Job
from workflow.train import attention, dpo, trainer

PLACEMENTS: dict[str, dict[str, Any]] = {
    "before: padded, 2 pairs": {"per_device_train_batch_size": 2},
    "joined, 2 pairs": {"per_device_train_batch_size": 2, "attn_implementation": "varlen"},
    "joined, 16k tokens": budget(16384),
    "joined, 16k tokens, fused": budget(16384, kernels="fused"),
    "joined, 16k tokens, fused, 14 of 28 layers": budget(16384, kernels="fused", checkpoint_layers=14),
    "joined, 12k tokens, fused, no checkpointing": budget(12288, kernels="fused", gradient_checkpointing=False),
}
FAST = "joined, 16k tokens, fused, 14 of 28 layers"


def pairs(count: int) -> list[Any]:
    from workflow.data.rows import Pair

    source = random.Random(2)

    def text(size: int) -> str:
        return "".join(source.choices(string.ascii_letters, k=size))

    prompts = common.lengths(count, 400, 0.95, 24, 800, seed=3)
    chosen, rejected = (common.lengths(count, 400, 0.95, 24, 1200, seed=s) for s in (4, 5))
    return [
        Pair(
            id=str(number),
            prompt=[{"role": "user", "content": text(p // 3 + 8)}],
            chosen={"role": "assistant", "content": text(c)},
            rejected={"role": "assistant", "content": text(r)},
        )
        for number, (p, c, r) in enumerate(zip(prompts, chosen, rejected, strict=True))
    ]


def measure(shape: str, batch: int, steps: int, placement: dict[str, Any], skip: int) -> dict[str, Any]:
    params = {**common.TRAINING, "learning_rate": 5e-7, "effective_batch_size": batch, "max_length": 2048}
    params |= {"beta": 5.0, "loss_type": "sigmoid_norm"}
    placed = {**common.AS_BEFORE, **placement}
    facts: dict[str, Any] = {}

    def build(job: Job) -> Any:
        typed = trainer.read_params(job, DpoStage)

        def load() -> Any:
            return common.make_model(shape, "float32", placed["attn_implementation"])

        joined = attention.joins_rows(placed)
        data = pairs(batch * steps)
        built = dpo.build(job, typed, common.make_tokenizer(), data, load, None if joined else load())
        built.params, facts["size"] = typed, sum(p.numel() for p in built.model.parameters())
        facts["tokens"] = sum(sum(dpo.answer_lengths(row, typed.max_length)) for row in built.train_dataset)
        if joined:
            dpo.reference_log_probs(_some(built, 8), job)  # compiles kernels
            began = time.perf_counter()
            built.use_reference(dpo.reference_log_probs(built, job))
            facts["reference_seconds"] = time.perf_counter() - began
        return built

    found = common.run(build, "tulu_dpo", params, placed, skip)
    a_token = facts.get("reference_seconds", 0.0) / facts["tokens"]
    tokens = found["tokens"] / (found["seconds"] + a_token * found["tokens"])
    found |= {"tokens_s": round(tokens), "share": round(8 * facts["size"] * tokens / common.PEAK, 3)}
    return {**found, "reference_s_a_step": round(facts.get("reference_seconds", 0.0) / steps, 3)}


def _some(built: Any, count: int) -> Any:
    """The trainer as the reference pass sees it, with a few of its pairs."""
    from types import SimpleNamespace

    kept = {name: getattr(built, name) for name in ("collator", "accelerator", "model", "data_collator", "args")}
    return SimpleNamespace(train_dataset=built.train_dataset.select(range(count)), **kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["equal", "speed"])
    parser.add_argument("--shape", default="1.5b")
    parser.add_argument("--steps", type=int, default=4, help="of speed")
    parser.add_argument("--batch", type=int, default=32, help="of speed")
    parser.add_argument("--only", nargs="*", help="parts of the names of the runs that are timed")
    args = parser.parse_args()
    print(common.card(), flush=True)
    if "equal" in args.what:
        compared = (next(iter(PLACEMENTS)), FAST, FAST)
        one, other, again = (measure(args.shape, 4, 20, PLACEMENTS[name], 2) for name in compared)
        common.tell(
            "equal: 20 steps of 4 pairs", before=one["tokens_s"], now=other["tokens_s"],
            first_loss=one["losses"][0], last_loss=one["losses"][-1],
            largest_difference=common.apart(one["losses"], other["losses"]),
            two_runs_of_the_same=common.apart(again["losses"], other["losses"]),
        )  # fmt: skip
    if "speed" in args.what:
        common.tell_all(PLACEMENTS, args.only, lambda p: measure(args.shape, args.batch, args.steps, p, 2))


if __name__ == "__main__":
    main()
