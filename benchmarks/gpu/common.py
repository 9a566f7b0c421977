"""What the GPU benchmarks share: random models of real shapes, rows of a stated length profile, timed runs, a table."""

import gc
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from workflow.keys import Recipe
from workflow.stage import Job
from workflow.train import attention, models, toy, trainer

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


def run(build: Callable[[Job], Any], stage: str, params: dict[str, Any], placement: dict[str, Any], skip: int) -> dict:
    """Train by the project's own trainer; give the mean seconds and tokens of a step after `skip`, losses, memory."""
    import torch
    from transformers import TrainerCallback

    ends: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            tokens.append(built.tokens)

    models.quiet()
    with job(stage, params, placement) as made:
        built = build(made)
        built.add_callback(Clock())
        observed = trainer.fit(built, made, built.params, {"first_prompt": ""}).observed
        log = [json.loads(line) for line in (made.out / "train_log.jsonl").read_text().splitlines()]
    seconds = [after - before for before, after in pairwise(ends)][skip - 1 :]
    found = {
        "seconds": sum(seconds) / len(seconds),
        "steps": len(seconds),
        "tokens": sum(tokens[skip:]) / len(seconds),  # of the steps that were timed: rows differ in length
        "losses": [entry["loss"] for entry in log],
        "peak_gb": round(observed["peak_memory_bytes"] / 1e9, 1),
        "micro_batches": observed["micro_batches_per_step"],
    }
    built.model = built.model_wrapped = built.optimizer = None
    clear()
    return found


def clear() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def apart(one: list[float], other: list[float]) -> float:
    """The largest difference of a step's loss."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def tell(name: str, **figures: Any) -> None:
    print("RESULT", json.dumps({"run": name, **figures}), flush=True)


def tell_all(placements: dict[str, dict], only: list[str] | None, measure: Callable[[dict], dict[str, Any]]) -> None:
    """Time each placement whose name holds one of `only`; one that does not fit into the memory is said to."""
    import torch

    for name, placement in placements.items():
        if only and not any(part in name for part in only):
            continue
        try:
            found = measure(placement)
        except torch.OutOfMemoryError:
            tell(name, out_of_memory=True)
            clear()
            continue
        found = {key: value for key, value in found.items() if key not in ("losses", "tokens")}
        tell(name, **{k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()})
