"""Hold what a training really used against its recipe: arguments, optimizer, schedule, LoRA, precision, loss.

The run writes what was in force to out/training.json, so the comparison can be made again from the saved files alone.
"""

import json
import math
from pathlib import Path
from typing import Any

from workflow.keys import Recipe
from workflow.stage import Job, StageError
from workflow.store import read_jsonl

FILE = "training.json"
# What the config and TrainingArguments call by one name.
ARGUMENTS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "max_grad_norm", "optim", "num_train_epochs", "seed"),
)
_TOLERANCE = 1e-6  # relative, of a learning rate


def check_trainer(trainer: Any, job: Job) -> None:
    """Refuse, before the first step, a trainer that was built otherwise than the recipe says.

    Raises:
        StageError: names each field with its declared and its effective value.
    """
    _refuse(_setting_faults(job.recipe, describe(trainer)))


def check_effective(settings: dict[str, Any], job: Job) -> None:
    """Keep the settings that were in force in out/training.json and hold all saved files against the recipe.

    Raises:
        StageError: names each field with its declared and its effective value.
    """
    rates = [entry["learning_rate"] for entry in read_jsonl(job.out / "train_log.jsonl")]
    kept = {**settings, "rates": {"first": rates[0], "peak": max(rates), "last": rates[-1]}}
    (job.out / FILE).write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    _refuse(effective_faults(job.recipe, job.out))


def effective_faults(recipe: Recipe, out: Path) -> list[str]:
    """Compare a recipe with the saved files of a training.

    Args:
        out: holds training.json, train_log.jsonl, and adapter/adapter_config.json or model/config.json.

    Returns:
        One line for each field that differs: `learning_rate: declared 0.0001, effective 5e-05`.
    """
    if not (out / FILE).is_file():
        return [f"{out / FILE} is missing: what the training used is not known"]
    faults = _setting_faults(recipe, json.loads((out / FILE).read_text()))
    faults += _rate_faults(recipe.params, read_jsonl(out / "train_log.jsonl"))
    adapter, config = out / "adapter/adapter_config.json", out / "model/config.json"
    if adapter.is_file():
        saved = json.loads(adapter.read_text())
        faults += _compare("adapter_config.json ", recipe.params["lora"], saved)
    if config.is_file():
        faults += _compare("config.json ", {"dtype": recipe.params["dtype"]}, json.loads(config.read_text()))
    return faults


def _refuse(faults: list[str]) -> None:
    if faults:
        raise StageError(
            f"the training is not the declared one: {'; '.join(faults)}. Nothing is recorded; it is a fault of the "
            "code or of a library."
        )


# --- what is in force -----------------------------------------------------------------------------------------------


def describe(trainer: Any) -> dict[str, Any]:
    """Read the settings off the built trainer: its arguments, optimizer, scheduler, model and loss."""
    args = trainer.args
    values = {name: getattr(args, name) for name in ARGUMENTS}
    return {
        "arguments": {name: getattr(value, "value", value) for name, value in values.items()},
        "optimizer": describe_optimizer(trainer.optimizer),
        "schedule_steps": trainer.state.max_steps,
        "dtype": "bfloat16" if args.bf16 else "float32",
        "loss": describe_loss(trainer),
        "lora": describe_lora(trainer.accelerator.unwrap_model(trainer.model)),
    }


def describe_optimizer(optimizer: Any) -> dict[str, Any]:
    """Class, base rate, betas, epsilon and weight decay, from the parameter groups as they are."""
    groups = [group for group in optimizer.param_groups if group["params"]]
    inner = getattr(optimizer, "optimizer", optimizer)
    return {
        "class": type(inner).__name__,
        "learning_rate": sorted({float(group["initial_lr"]) for group in groups}),
        "adam_beta1": sorted({group["betas"][0] for group in groups}),
        "adam_beta2": sorted({group["betas"][1] for group in groups}),
        "adam_epsilon": sorted({group["eps"] for group in groups}),
        "weight_decay": max(group["weight_decay"] for group in groups),  # norms and biases have none
    }


def describe_loss(trainer: Any) -> dict[str, Any]:
    """SFT: TRL's name of the loss and whether rows are packed; DPO: its type and beta."""
    if hasattr(trainer, "loss_types"):
        return {"loss_type": "+".join(trainer.loss_types), "beta": trainer.beta}
    return {"loss_type": trainer.args.loss_type, "packing": trainer.args.packing}


def describe_lora(model: Any) -> dict[str, Any] | None:
    """LoRA as it lies in the model's layers, None without an adapter: each value that occurs, and the layers' names."""
    from peft.tuners.lora import LoraLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    if not layers:
        return None
    return {
        "r": sorted({layer.r["default"] for _, layer in layers}),
        "scaling": sorted({layer.scaling["default"] for _, layer in layers}),
        "lora_dropout": sorted({getattr(layer.lora_dropout["default"], "p", 0.0) for _, layer in layers}),
        "target_modules": sorted({name.rpartition(".")[2] for name, _ in layers}),
    }


# --- compare --------------------------------------------------------------------------------------------------------


def _setting_faults(recipe: Recipe, settings: dict[str, Any]) -> list[str]:
    declared = recipe.params
    arguments = dict(settings["arguments"])
    if declared["optim"] == "adamw_torch" and arguments["optim"] == "adamw_torch_fused":
        arguments["optim"] = "adamw_torch"  # one kernel for the same update: placement
    faults = _compare("", {name: declared[name] for name in ARGUMENTS}, arguments)
    optimizer = settings["optimizer"]
    if declared["optim"].startswith("adamw"):
        single = ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon")
        wanted = {"class": "AdamW", "weight_decay": declared["weight_decay"], **{n: [declared[n]] for n in single}}
        faults += _compare("optimizer ", wanted, optimizer)
    faults += _compare("", {"dtype": declared["dtype"]}, settings)
    loss: dict[str, Any] = {"loss_type": "nll"}
    loss |= {name: declared[name] for name in ("loss_type", "beta", "packing") if name in declared}
    faults += _compare("", loss, settings["loss"])
    lora = declared.get("lora")
    if (lora is None) != (settings["lora"] is None):
        return [*faults, f"lora: declared {lora}, effective {settings['lora']}"]
    if lora is not None:
        scaling = lora["lora_alpha"] / (math.sqrt(lora["r"]) if lora["use_rslora"] else lora["r"])
        wanted = {
            "r": [lora["r"]],
            "scaling": [scaling],
            "lora_dropout": [lora["lora_dropout"]],
            "target_modules": lora["target_modules"],
        }
        faults += _compare("lora ", wanted, settings["lora"])
    return faults


def _compare(where: str, declared: dict[str, Any], effective: dict[str, Any]) -> list[str]:
    return [
        f"{where}{name}: declared {_spell(value)}, effective {_spell(effective.get(name))}"
        for name, value in declared.items()
        if _spell(value) != _spell(effective.get(name))
    ]


def _spell(value: Any) -> Any:
    """Make lists in any order and numbers of any type comparable."""
    if isinstance(value, list | tuple | set):
        return sorted(map(_spell, value))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _rate_faults(declared: dict[str, Any], log: list[dict[str, Any]]) -> list[str]:
    """Hold the logged learning rate of every step against the declared schedule; the first difference is named."""
    steps = len(log)
    for number, entry in enumerate(log):
        rate = declared["learning_rate"] * scheduled(declared["lr_scheduler_type"], number, steps, declared)
        if not math.isclose(entry["learning_rate"], rate, rel_tol=_TOLERANCE, abs_tol=1e-15):
            return [f"learning_rate of step {number + 1}: declared {rate:.6g}, effective {entry['learning_rate']:.6g}"]
    return []


def scheduled(kind: str, done: int, steps: int, declared: dict[str, Any]) -> float:
    """The share of the peak rate after `done` of `steps` steps, as transformers' schedules define it."""
    warmup = declared["warmup_steps"]
    warmup = math.ceil(warmup * steps) if warmup < 1 else int(warmup)
    if kind == "constant":
        return 1.0
    if done < warmup:
        return done / max(1, warmup)
    if kind == "constant_with_warmup":
        return 1.0
    passed = (done - warmup) / max(1, steps - warmup)
    return max(0.0, 1 - passed) if kind == "linear" else max(0.0, 0.5 * (1 + math.cos(math.pi * passed)))
