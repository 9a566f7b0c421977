"""tulu_sft at a 3B shape on one GPU, as it was placed and with each switch: `python -m benchmarks.gpu.sft`

Rows have a Tulu-like length profile (lognormal, median 400, sigma .95, at most 4,096 tokens), the loss is on 65% of
them, weights are random. `equal` trains 20 steps of 16 rows in both placements and prints how far the losses lie apart;
`speed` times steps of 64 rows. Share: 6 operations a parameter and token, of 790 TFLOP/s.
"""

import argparse
from typing import Any

from benchmarks.gpu import common
from workflow.stage import Job
from workflow.train import sft

JOINED = {"per_device_train_batch_size": 4, "attn_implementation": "varlen"}


def budget(tokens: int, **more: Any) -> dict[str, Any]:
    placed = {"per_device_train_batch_size": None, "tokens_per_device": tokens, "attn_implementation": "varlen"}
    return {**placed, **more}


PLACEMENTS: dict[str, dict[str, Any]] = {
    "before: padded, 4 rows": {},
    "fused kernels alone": {"kernels": "fused"},
    "joined, 4 rows": JOINED,
    "joined, 16k tokens": budget(16384),
    "joined, 16k tokens, fused": budget(16384, kernels="fused"),
    "joined, 32k tokens, fused": budget(32768, kernels="fused"),
    "joined, 16k tokens, fused, 30 of 36 layers": budget(16384, kernels="fused", checkpoint_layers=30),
    "joined, 12k tokens, fused, 27 of 36 layers": budget(12288, kernels="fused", checkpoint_layers=27),
}
FAST = "joined, 32k tokens, fused"


def measure(shape: str, batch: int, steps: int, placement: dict[str, Any], skip: int) -> dict[str, Any]:
    sizes = common.lengths(batch * steps, 400, 0.95, 24, 4096)
    data = common.rows(sizes, 0.35, common.SHAPES[shape][-1])
    params = {**common.TRAINING, "effective_batch_size": batch, "packing": False}
    placed = {**common.AS_BEFORE, **placement}

    def build(job: Job) -> Any:
        typed = sft.read_params(job)
        built = sft.build(
            job, typed, common.make_tokenizer(), data,
            lambda: common.make_model(shape, "float32", placed["attn_implementation"]),
        )  # fmt: skip
        built.params, measure.size = typed, sum(p.numel() for p in built.model.parameters())  # type: ignore[attr-defined]
        return built

    found = common.run(build, "tulu_sft", params, placed, skip)
    tokens = found["tokens"] / found["seconds"]
    found["tokens_s"] = round(tokens)
    found["share"] = round(6 * measure.size * tokens / common.PEAK, 3)  # type: ignore[attr-defined]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["equal", "speed"])
    parser.add_argument("--shape", default="3b")
    parser.add_argument("--steps", type=int, default=4, help="of speed")
    parser.add_argument("--batch", type=int, default=64, help="of speed")
    parser.add_argument("--only", nargs="*", help="parts of the names of the runs that are timed")
    args = parser.parse_args()
    print(common.card(), flush=True)
    if "equal" in args.what:
        compared = (next(iter(PLACEMENTS)), FAST, FAST)
        one, other, again = (measure(args.shape, 16, 20, PLACEMENTS[name], 2) for name in compared)
        common.tell(
            "equal: 20 steps of 16 rows", before=one["tokens_s"], now=other["tokens_s"],
            first_loss=one["losses"][0], last_loss=one["losses"][-1],
            largest_difference=common.apart(one["losses"], other["losses"]),
            two_runs_of_the_same=common.apart(again["losses"], other["losses"]),
        )  # fmt: skip
    if "speed" in args.what:
        common.tell_all(PLACEMENTS, args.only, lambda p: measure(args.shape, args.batch, args.steps, p, 2))


if __name__ == "__main__":
    main()
