"""Hours and memory of jobs that no past record tells of: stated guesses, and called so where they are shown."""

import re
from typing import Any

from workflow.config import Config
from workflow.data.lock import Lock
from workflow.sections import Hub, ToyModel

TOKENS_PER_ROW = 500
GPU_FLOPS = 0.35 * 790e12  # a third of what one H100 reaches in bfloat16 on large matrices
FLOP_PER_PARAMETER_AND_TOKEN = {"coupling_sft": 6, "tulu_sft": 6, "tulu_dpo": 2 * (6 + 2), "em_lora": 4}
EVALUATION_HOURS_PER_BILLION = 0.03
GPU_MEMORY = 80e9
# Full fine-tunes are in float32: weights, gradients and Adam's two moments; DPO's reference is weights alone.
BYTES_PER_PARAMETER = {"coupling_sft": 16, "tulu_sft": 16, "tulu_dpo": 16 + 4}


def parameters(config: Config) -> float:
    """Parameters of the base model: from the size in its name, such as 7B; of a toy, next to nothing."""
    if isinstance(config.base_model, ToyModel):
        return 1e6
    size = re.search(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", config.base_model.repo, re.I)
    return float(size[1]) * (1e9 if size[2].lower() == "b" else 1e6) if size else 7e9


def memory(config: Config, stage: str) -> float:
    """Bytes that a full fine-tune keeps on each GPU, apart from activations and the layer at work."""
    placed = getattr(config.placement, stage)
    shards = placed.world_size if placed.strategy == "fsdp2" else 1
    return BYTES_PER_PARAMETER[stage] * parameters(config) / shards


def hours(config: Config, pins: Lock, stage: str) -> float:
    """GPU-hours of one job."""
    size = parameters(config)
    if isinstance(config.base_model, ToyModel):
        return 0.0
    if stage in ("arc", "generate"):
        return EVALUATION_HOURS_PER_BILLION * size / 1e9
    if stage not in FLOP_PER_PARAMETER_AND_TOKEN:
        return 0.0
    if stage == "em_lora":
        names = [arm.data for arm in config.arms]
    else:
        names = [n for c in config.conditions if c.enabled and (n := getattr(c.data, stage))]
    tokens = max((_rows(config, pins, n) for n in names), default=0) * TOKENS_PER_ROW
    tokens *= getattr(config.stages, stage).num_train_epochs
    return FLOP_PER_PARAMETER_AND_TOKEN[stage] * size * tokens / GPU_FLOPS / 3600


def _rows(config: Config, pins: Lock, name: str) -> int:
    """Rows of a data set: of its pin, of its selection, or a guess: a file that somebody brings is no hub's."""
    if name in pins and pins[name].rows.isdigit():
        return int(pins[name].rows)
    entry: Any = config.data_entry(name)
    select = getattr(entry, "select", None)
    guess = 300_000 if isinstance(entry, Hub) else 10_000
    return int(getattr(entry, "rows", 0) or (select.rows if select and select.rows else guess))
