"""How a model lies on several processes: whole on each (ddp), or in shards (fsdp2).

accelerate does it, as config/accelerate/<strategy>.yaml says; here is seen to that both compute the same numbers, that
the placed one is really in force, and that a model is saved whole.
"""

import os
from pathlib import Path
from typing import Any

from workflow.stage import Job, StageError
from workflow.stages import _models

FILES = Path(__file__).parents[2] / "config/accelerate"


def placed(job: Job) -> str:
    """The strategy that the placement names; one process alone needs none."""
    return job.placement.get("strategy", "ddp") if job.placement["world_size"] > 1 else "none"


def arguments(args: Any, job: Job) -> Any:
    """A trainer's arguments, so that the placed strategy computes what the other one does."""
    if placed(job) != "fsdp2":
        return args
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    # By itself accelerate would keep layers and sum gradients in bfloat16. DDP does so in float32 under autocast, and
    # the placement, which is in no key, must not change what is computed.
    args.fsdp_plugin_args = {"mixed_precision_policy": MixedPrecisionPolicy()}
    # Or each process would keep whole gradients from one micro-batch to the next: 28 GB of a 7B model.
    args.accelerator_config.gradient_accumulation_kwargs = {"sync_each_batch": True}
    if args.use_cpu:
        # accelerate shards on devices only and takes DDP on a CPU without a word; the tests shard on a CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


def gpu(job: Job) -> int | None:
    """Where a model that will be sharded is read to: the memory of a node would not hold one for each process."""
    import torch

    sharded = placed(job) == "fsdp2" and torch.cuda.is_available()
    return int(os.environ["LOCAL_RANK"]) if sharded else None


def reference(model: Any, job: Job) -> Any:
    """DPO's reference, in shards by layer: TRL makes one unit of it, which would be gathered whole in each step."""
    if placed(job) == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for layer in [m for m in model.modules() if type(m).__name__ in model._no_split_modules]:
            fully_shard(layer)
    return model


def in_force(trainer: Any) -> str:
    """How the model of a trainer that has begun really lies."""
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(trainer.model_wrapped, FSDPModule):
        return "fsdp2"
    return "ddp" if isinstance(trainer.model_wrapped, DistributedDataParallel) else "none"


def callback(trainer: Any, job: Job) -> Any:
    """Refuses before the first step another strategy than the placed one, and computes in the stage's precision."""
    from transformers import TrainerCallback

    class Check(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            found = in_force(trainer)
            if found != placed(job):
                raise StageError(
                    f"the model lies on the processes by {found!r}, the placement says {placed(job)!r}: see "
                    f"{FILES / placed(job)}.yaml and the version of accelerate."
                )

    if placed(job) == "fsdp2":
        trainer.autocast_smart_context_manager = (
            trainer.accelerator.autocast
        )  # which accelerate leaves to FSDP's policy
    return Check()


def save(trainer: Any, tokenizer: Any, folder: Path, dtype: str | None = None) -> None:
    """Save the model whole, the same files whatever the strategy. Every process must take part; the first writes."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    state = accelerator.get_state_dict(trainer.model) if accelerator.is_fsdp2 else None
    if accelerator.is_main_process:
        _models.save(model if state is None else _whole(model, state), tokenizer, folder, dtype)


def _whole(model: Any, state: dict[str, Any]) -> Any:
    """An unsharded model of the same kind around the gathered weights."""
    import torch
    from peft import PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(model.config)
        if isinstance(model, PeftModel):
            whole = get_peft_model(whole, model.active_peft_config)
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole
