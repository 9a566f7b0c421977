"""Hours and memory of jobs that no past record tells of: stated guesses, and called so where they are shown."""

import math
import re
from pathlib import Path
from typing import Any

from workflow.config import Config
from workflow.data.lock import Lock
from workflow.sections import Hub, LocalModel, ToyModel

SOURCE = "docs/performance.md"
# A mean row of the published data sets' length profile; a pair is both answers with their prompts.
TOKENS_PER_ROW = {"coupling_sft": 150, "tulu_sft": 604, "tulu_dpo": 1400, "em_lora": 113}
GPU_FLOPS = 790e12  # of one H100 in bfloat16 on large matrices
FLOP_PER_PARAMETER_AND_TOKEN = {"coupling_sft": 6, "tulu_sft": 6, "dpo_reference": 2, "tulu_dpo": 6, "em_lora": 4}
# Of GPU_FLOPS, as measured with rows padded and with rows joined; DPO and its reference were measured as one.
SHARE = {
    "coupling_sft": (0.090, 0.479),
    "tulu_sft": (0.090, 0.479),
    "dpo_reference": (0.088, 0.474),
    "tulu_dpo": (0.088, 0.474),
    "em_lora": (0.208, 0.497),
}
EVALUATION_HOURS_PER_BILLION = 0.03
GPU_MEMORY = 80e9
BYTES_PER_PARAMETER = 16  # full fine-tunes are in float32: weights, gradients and Adam's two moments


def parameters(config: Config) -> float:
    """Parameters of the base model: by its files, or the size in its name, such as 7B; of a toy, next to nothing."""
    if isinstance(config.base_model, ToyModel):
        return 1e6
    if isinstance(config.base_model, LocalModel):
        return _count(Path(config.base_model.path)) or 7e9
    size = re.search(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", config.base_model.repo, re.I)
    return float(size[1]) * (1e9 if size[2].lower() == "b" else 1e6) if size else 7e9


def _count(folder: Path) -> int:
    """Parameters in a folder's safetensors, by their headers."""
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    return count


def memory(config: Config, stage: str) -> float:
    """Bytes that a full fine-tune keeps on each GPU, apart from activations and the layer at work."""
    placed = getattr(config.placement, stage)
    shards = placed.world_size if placed.strategy == "fsdp2" else 1
    return BYTES_PER_PARAMETER * parameters(config) / shards


def hours(config: Config, pins: Lock, stage: str) -> float:
    """GPU-hours of one job."""
    size = parameters(config)
    if isinstance(config.base_model, ToyModel):
        return 0.0
    if stage in ("arc", "generate"):
        return EVALUATION_HOURS_PER_BILLION * size / 1e9
    if stage not in FLOP_PER_PARAMETER_AND_TOKEN:
        return 0.0
    trained = "tulu_dpo" if stage == "dpo_reference" else stage
    if stage == "em_lora":
        names = [arm.data for arm in config.arms]
    else:
        names = [n for c in config.conditions if c.enabled and (n := getattr(c.data, trained))]
    tokens = max((_rows(config, pins, n) for n in names), default=0) * TOKENS_PER_ROW[trained]
    tokens *= getattr(config.stages, stage).num_train_epochs if stage == trained else 1
    share = SHARE[stage][getattr(config.placement, trained).attn_implementation == "varlen"]
    return FLOP_PER_PARAMETER_AND_TOKEN[stage] * size * tokens / (share * GPU_FLOPS) / 3600


def _rows(config: Config, pins: Lock, name: str) -> int:
    """Rows of a data set: of its pin, of its selection, or a guess: a file that somebody brings is no hub's."""
    if name in pins and pins[name].rows.isdigit():
        return int(pins[name].rows)
    entry: Any = config.data_entry(name)
    select = getattr(entry, "select", None)
    guess = 300_000 if isinstance(entry, Hub) else 10_000
    return int(getattr(entry, "rows", 0) or (select.rows if select and select.rows else guess))
