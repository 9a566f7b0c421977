"""The harness of the training benchmarks: random models of real shapes, rows of a stated length profile, timed runs.

    python -m benchmarks.gpu.{sft,dpo,em} [equal] [speed] [--only PART...] [--steps 20] [--shape tiny]

`equal` trains 20 steps in several placements and prints how far the losses of a step lie apart; `speed` times --steps
steps of each placement, after two that are not timed. The share is of 790 TFLOP/s.
"""

import argparse
import gc
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from workflow.keys import Recipe
from workflow.stage import Job
from workflow.train import attention, models, toy, trainer

SKIP = 2  # steps that are not timed
PEAK = 790e12  # bfloat16 operations a second that one H100 reaches on an 8192 x 8192 product
SHAPES = {
    "tiny": (64, 128, 2, 2, 1, 512),
    "1.5b": (1536, 8960, 28, 12, 2, 151936),
    "3b": (2048, 11008, 36, 16, 2, 151936),
    "7b": (3584, 18944, 28, 28, 4, 152064),
}
TRAINING = {
    "learning_rate": 5e-6, "lr_scheduler_type": "linear", "warmup_steps": 0.03, "weight_decay": 0.0,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "optim": "adamw_torch",
    "num_train_epochs": 1, "effective_batch_size": 32, "max_length": 4096, "overlong": "refuse", "dtype": "bfloat16",
    "seed": 42,
}  # fmt: skip
AS_BEFORE = {
    "world_size": 1, "nodes": 1, "strategy": "ddp", "per_device_train_batch_size": 4, "gradient_checkpointing": True,
    "attn_implementation": "sdpa", "kernels": "torch", "checkpoint_minutes": None, "tracking": "none",
}  # fmt: skip

VARLEN = {"attn_implementation": "varlen"}


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def card() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def make_tokenizer() -> Any:
    """One token a byte, so that a text's length is its tokens."""
    tokenizer = toy.make_tokenizer(["x"], 258)
    tokenizer.chat_template = Path("config/templates/tulu.jinja").read_text()
    return tokenizer


def make_model(shape: str, dtype: str, attn_implementation: str) -> Any:
    """A Qwen2 of that shape with the same random weights each time."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    hidden, inner, layers, heads, key_heads, vocabulary = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=vocabulary, tie_word_embeddings=shape != "7b",
        max_position_embeddings=8192, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    attention.register()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device()):
            return Qwen2ForCausalLM._from_config(config, attn_implementation=attn_implementation)
    finally:
        torch.set_default_dtype(torch.float32)


def budget(tokens: int, **more: Any) -> dict[str, Any]:
    """Rows joined by token budget."""
    return {**AS_BEFORE, "per_device_train_batch_size": None, "tokens_per_device": tokens, **VARLEN, **more}


def lengths(count: int, median: float, sigma: float, least: int, most: int, seed: int = 0) -> list[int]:
    source = random.Random(seed)
    return [max(least, min(most, int(source.lognormvariate(math.log(median), sigma)))) for _ in range(count)]


def rows(sizes: list[int], prompt: float, vocabulary: int) -> list[dict[str, list[int]]]:
    """Random tokens; the first `prompt` of each row is not in the loss."""
    source = random.Random(1)
    made = []
    for size in sizes:
        ids, masked = [source.randrange(3, vocabulary) for _ in range(size)], int(size * prompt)
        made.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return made


@contextmanager
def job(stage: str, params: dict[str, Any], placement: dict[str, Any]) -> Iterator[Job]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "key/out")
        out.mkdir(parents=True)
        yield Job(Recipe(stage, 1, "0" * 32, params), placement, (), Path(folder, "none"), out)


class Run(NamedTuple):
    """A training to be made: `steps` steps, of which the first `SKIP` are not timed."""

    shape: str
    params: dict[str, Any]
    placement: dict[str, Any]
    steps: int

    @property
    def rows(self) -> int:
        return self.params["effective_batch_size"] * self.steps


class Timed(NamedTuple):
    """What a run took: seconds and tokens of each timed step (of one seed), its losses, parameters, peak memory."""

    seconds: list[float]
    tokens: list[float]
    losses: list[float]
    size: int
    peak_gb: float
    micro_batches: int


@dataclass(frozen=True)
class Benchmark:
    """A stage to be measured.

    Attributes:
        about: for --help.
        shape: of the model, by default.
        flop: useful operations a parameter and token.
        params: of the recipe; `equal` takes those of `equal_params` instead.
        compared: what `equal` prints: name -> two placements, which may be the same one.
        measure: makes a run.
    """

    about: str
    shape: str
    flop: int
    params: dict[str, Any]
    placements: dict[str, dict[str, Any]]
    equal_params: dict[str, Any]
    compared: dict[str, tuple[str, str]]
    measure: Callable[[Run], Timed]

    def main(self) -> None:
        parser = argparse.ArgumentParser(description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("what", nargs="*", default=["equal", "speed"])
        parser.add_argument("--shape", default=self.shape)
        parser.add_argument("--steps", type=int, default=20, help="that are timed")
        parser.add_argument(
            "--batch", type=int, default=self.params["effective_batch_size"], help="rows a step of speed"
        )
        parser.add_argument("--only", nargs="*", help="parts of the names of the placements that are timed")
        args = parser.parse_args()
        print(card(), flush=True)
        if "equal" in args.what:
            self.equal(args.shape)
        if "speed" in args.what:
            for name, placement in self.placements.items():
                if not args.only or any(part in name for part in args.only):
                    params = {**self.params, "effective_batch_size": args.batch}
                    self.speed(name, Run(args.shape, params, placement, args.steps + SKIP))

    def equal(self, shape: str) -> None:
        """Print the largest difference of a step's loss between the compared placements, over 20 steps."""
        runs: dict[tuple[str, int], list[float]] = {}

        def losses(name: str, number: int) -> list[float]:
            if (name, number) not in runs:
                run = Run(shape, {**self.params, **self.equal_params}, self.placements[name], 20)
                runs[name, number] = self.measure(run).losses
            return runs[name, number]

        apart = {}
        for what, (one, other) in self.compared.items():
            pairs = zip(losses(one, 0), losses(other, int(one == other)), strict=True)
            apart[what] = max(abs(a - b) for a, b in pairs)
        first = next(iter(runs.values()))
        tell("equal", first_loss=first[0], last_loss=first[-1], **apart)

    def speed(self, name: str, run: Run) -> None:
        import torch

        try:
            timed = self.measure(run)
        except torch.OutOfMemoryError:
            tell(name, out_of_memory=True)
            clear()
            return
        rates = [tokens / seconds for tokens, seconds in zip(timed.tokens, timed.seconds, strict=True)]
        mean = sum(timed.tokens) / sum(timed.seconds)
        tell(
            name, tokens_s=round(mean), tokens_s_sd_of_steps=round(statistics.stdev(rates)),
            share=round(self.flop * timed.size * mean / PEAK, 3), s_a_step=round(statistics.mean(timed.seconds), 4),
            steps=len(timed.seconds), peak_gb=timed.peak_gb, micro_batches=timed.micro_batches,
        )  # fmt: skip


def train(build: Callable[[Job], Any], stage: str, run: Run) -> Timed:
    """Train by the project's own trainer; `build` gives it with its typed parameters."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []
    tokens: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            tokens.append(built.tokens)

    models.quiet()
    with job(stage, run.params, run.placement) as made:
        built, typed = build(made)
        size = sum(p.numel() for p in built.model.parameters())
        built.add_callback(Clock())
        observed = trainer.fit(built, made, typed, {"first_prompt": ""}).observed
        log = [json.loads(line) for line in (made.out / "train_log.jsonl").read_text().splitlines()]
    seconds = [after - before for before, after in pairwise(ends)][SKIP - 1 :]
    built.model = built.model_wrapped = built.optimizer = None
    clear()
    return Timed(
        seconds,
        tokens[SKIP:],
        [entry["loss"] for entry in log],
        size,
        round(observed["peak_memory_bytes"] / 1e9, 1),
        observed["micro_batches_per_step"],
    )


def clear() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def tell(name: str, **figures: Any) -> None:
    print("RESULT", json.dumps({"run": name, **figures}), flush=True)
