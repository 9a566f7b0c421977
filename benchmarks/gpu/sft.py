"""tulu_sft at a 3B shape on one GPU, as it was placed and with each switch.

Rows have a Tulu-like length profile (lognormal, median 400, sigma .95, at most 4,096 tokens), the loss is on 65% of
them, weights are random. Share: 6 operations a parameter and token.
"""

from typing import Any

from benchmarks.gpu import common
from benchmarks.gpu.common import AS_BEFORE, VARLEN, budget
from workflow.stage import Job
from workflow.train import sft

BEFORE, NOW = "before: padded, 4 rows", "now: joined, 32k tokens, fused"
PLACEMENTS = {
    BEFORE: AS_BEFORE,
    NOW: budget(32768, kernels="fused"),
    "fused kernels alone": {**AS_BEFORE, "kernels": "fused"},
    "joined, 4 rows": {**AS_BEFORE, **VARLEN},
    "joined, 16k tokens": budget(16384),
    "joined, 16k tokens, fused": budget(16384, kernels="fused"),
    "joined, 16k tokens, fused, 30 of 36 layers": budget(16384, kernels="fused", checkpoint_layers=30),
    "joined, 12k tokens, fused, 27 of 36 layers": budget(12288, kernels="fused", checkpoint_layers=27),
}


def measure(run: common.Run) -> common.Timed:
    sizes = common.lengths(run.rows, 400, 0.95, 24, run.params["max_length"])
    data = common.rows(sizes, 0.35, common.SHAPES[run.shape][-1])

    def build(job: Job) -> Any:
        typed = sft.read_params(job)

        def load() -> Any:
            return common.make_model(run.shape, "float32", job.placement["attn_implementation"])

        return sft.build(job, typed, common.make_tokenizer(), data, load), typed

    return common.train(build, "tulu_sft", run)


BENCHMARK = common.Benchmark(
    about=__doc__,
    shape="3b",
    flop=6,
    params={**common.TRAINING, "effective_batch_size": 64, "packing": False},
    placements=PLACEMENTS,
    equal_params={"effective_batch_size": 16},
    compared={"before_from_now": (BEFORE, NOW), "two_runs_of_now": (NOW, NOW)},
    measure=measure,
)

if __name__ == "__main__":
    BENCHMARK.main()
