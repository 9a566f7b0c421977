"""tulu_dpo at a 1.5B shape on one GPU, as it was placed and joined; the seconds of its reference pass are counted.

Pairs have a Tulu-like length profile (mean 1,400 tokens for both answers with their prompts), weights are random.
Share: 8 operations a parameter and token, 2 of them of the reference pass.
"""

import random
import string
import time
from typing import Any

from benchmarks.gpu import common
from benchmarks.gpu.common import AS_BEFORE, VARLEN, budget
from workflow.data.rows import Pair
from workflow.sections import DpoStage
from workflow.stage import Job
from workflow.train import dpo, dpo_pairs, dpo_reference, trainer

BEFORE, NOW = "before: padded, 2 pairs", "now: joined, 16k tokens, fused, 14 of 28 layers"
PLACEMENTS = {
    BEFORE: {**AS_BEFORE, "per_device_train_batch_size": 2},
    NOW: budget(16384, kernels="fused", checkpoint_layers=14),
    "joined, 2 pairs": {**AS_BEFORE, "per_device_train_batch_size": 2, **VARLEN},
    "joined, 16k tokens": budget(16384),
    "joined, 16k tokens, fused": budget(16384, kernels="fused"),
    "joined, 12k tokens, fused, no checkpointing": budget(12288, kernels="fused", gradient_checkpointing=False),
}


def pairs(count: int) -> list[Pair]:
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


def score(job: Job, run: common.Run, data: list[Pair]) -> tuple[list[tuple[float, float]], float]:
    """The reference pass over all pairs: its numbers, and its seconds a token."""
    model = common.make_model(run.shape, "float32", job.placement["attn_implementation"])
    args = dpo_reference.arguments(job, str(job.out / "scratch"))
    scorer = dpo_pairs.build(job, args, model, common.make_tokenizer(), data)
    rows = scorer.train_dataset
    scorer.train_dataset = rows.select(range(min(8, len(rows))))
    dpo_reference.log_probs(scorer, job)  # compiles kernels
    scorer.train_dataset = rows
    began = time.perf_counter()
    numbers = dpo_reference.log_probs(scorer, job)
    seconds = time.perf_counter() - began
    scorer.model = scorer.model_wrapped = None
    del model
    common.clear()
    return numbers, seconds / sum(sum(dpo_pairs.answer_lengths(row, args.max_length)) for row in rows)


def measure(run: common.Run) -> common.Timed:
    data, a_token = pairs(run.rows), 0.0

    def build(job: Job) -> Any:
        nonlocal a_token
        typed = trainer.read_params(job, DpoStage)
        numbers, a_token = score(job, run, data)
        args = dpo.arguments(job, typed)
        model = common.make_model(run.shape, "float32", job.placement["attn_implementation"])
        built = dpo_pairs.build(job, args, model, common.make_tokenizer(), data)
        built.use_reference(numbers)
        return built, typed

    timed = common.train(build, "tulu_dpo", run)
    with_reference = [s + a_token * t for s, t in zip(timed.seconds, timed.tokens, strict=True)]
    return timed._replace(seconds=with_reference)


BENCHMARK = common.Benchmark(
    about=__doc__,
    shape="1.5b",
    flop=8,
    params={**common.TRAINING, "learning_rate": 5e-7, "max_length": 2048, "beta": 5.0, "loss_type": "sigmoid_norm"},
    placements=PLACEMENTS,
    equal_params={"effective_batch_size": 4},
    compared={"before_from_now": (BEFORE, NOW), "two_runs_of_now": (NOW, NOW)},
    measure=measure,
)

if __name__ == "__main__":
    BENCHMARK.main()
