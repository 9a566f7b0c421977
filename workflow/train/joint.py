"""Train several EM seeds of one checkpoint in one process, over one frozen base model.

Each seed keeps what it has alone: adapter, order of rows, dropout's random numbers, mean loss, clipping, AdamW state,
schedule. Only the base's arithmetic is shared: the seeds' rows lie joined in one sequence, seed after seed, and each
LoRA layer multiplies a seed's stretch of it with that seed's matrices (bmm). The adapters
are saved one by one, as PEFT saves them. A run that is stopped starts again: seeds together take minutes.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workflow.data.rows import read_messages
from workflow.keys import canonical_json
from workflow.sections import EmStage
from workflow.stage import Job, Result, StageError
from workflow.store import write_jsonl
from workflow.train import attention, effective, models, stacked, steps, tokens, trainer

Seeds = list["Seed"]


@dataclass
class Seed:
    """What one seed owns. `failed` holds why it stopped; its stretch is then trained on for nothing."""

    job: Job
    order: Any
    dropout: Any
    log: list[dict[str, Any]] = field(default_factory=list)
    failed: StageError | None = None


def run_together(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Exception]]:
    """Train the jobs' seeds at the same time; give each job's result, or the error that stopped that seed alone.

    A job that differs from the first in more than its seed is given back with an error and is not trained.

    Raises:
        StageError: the first job's recipe or placement allows no training together.
    """
    import torch
    from peft import LoraConfig

    models.quiet()
    job = jobs[0]
    _check_job(job)
    for other in jobs:
        if _shared(other) != _shared(job):
            yield other, StageError(f"its recipe differs from {job.recipe.key} in more than the seed")
    jobs = [other for other in jobs if _shared(other) == _shared(job)]
    params = trainer.read_params(job, EmStage)
    parent = job.parents[0].out / "model"
    tokenizer = models.load_tokenizer(parent)
    rows = tokens.tokenize(read_messages(job.data), tokenizer, params.max_length, params.overlong)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = models.load_model(parent, params.dtype, attention.VARLEN)
    config = LoraConfig(task_type="CAUSAL_LM", **params.lora.model_dump())
    with trainer.scratch(job) as scratch:
        starts = [_initial_adapter(model, config, j.params["seed"], scratch) for j in jobs]
    seeds = make_seeds(jobs, rows.rows, device)
    began = time.monotonic()
    joint = Joint(model.to(device), params, job.placement, seeds, starts)
    facts = {**rows.facts, "template_md5": models.template_md5(tokenizer), **joint.train(rows.rows)}
    seconds = time.monotonic() - began
    settings, adapters = joint.describe(), joint.take_adapters()
    for seed, adapter in zip(seeds, adapters, strict=True):
        if seed.failed is not None:
            yield seed.job, seed.failed
            continue
        try:
            yield (
                seed.job,
                _finish(seed, adapter, model, config, params, settings, facts, rows.shown, seconds, len(seeds)),
            )
        except StageError as error:
            yield seed.job, error


def make_seeds(jobs: Sequence[Job], rows: list[dict[str, list[int]]], device: Any) -> Seeds:
    """Give each job its own order of rows and its own generator of dropout masks, as it would have them alone."""
    import torch
    from accelerate.data_loader import SeedableRandomSampler

    return [
        Seed(
            job,
            order=SeedableRandomSampler(rows, data_seed=job.params["seed"]),
            dropout=torch.Generator(device).manual_seed(job.params["seed"]),
        )
        for job in jobs
    ]


def _shared(job: Job) -> str:
    """The recipe without its seed."""
    recipe = job.recipe.to_dict()
    return canonical_json({**recipe, "params": {k: v for k, v in recipe["params"].items() if k != "seed"}})


def _check_job(job: Job) -> None:
    if job.recipe.stage != "em_lora":
        raise StageError(f"only EM seeds are trained together: set placement.{job.recipe.stage}.together: 1.")
    if job.params["optim"] not in ("adamw_torch", "adamw_torch_fused") or job.params["packing"]:
        raise StageError("seeds trained together need optim adamw_torch and no packing: set together: 1.")
    if job.placement["gradient_checkpointing"]:  # the second pass over a layer would draw other masks
        raise StageError("seeds trained together need gradient_checkpointing: false. Lower together to save memory.")


def _initial_adapter(model: Any, config: Any, seed: int, scratch: Any) -> dict[str, Any]:
    """Let PEFT draw the adapter that this seed starts from alone, take it off the model again, and try a save."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
    wrapped = get_peft_model(model, config)
    models.check_can_save(wrapped, scratch)
    start = {name: value.detach().clone() for name, value in wrapped.named_parameters() if "lora_" in name}
    wrapped.unload()
    return start


# --- training -------------------------------------------------------------------------------------------------------


class Joint:
    """The model with stacked adapters, its optimizer, and the loop.

    Attributes:
        real: tokens of each seed's stretch in the current micro-batch.
    """

    def __init__(self, model: Any, params: EmStage, placement: dict[str, Any], seeds: Seeds, starts: list[Any]):
        import torch
        from trl.trainer.utils import add_fused_lm_head

        self.model, self.params, self.placement, self.seeds = model, params, placement, seeds
        self.device = next(model.parameters()).device
        self.real = [0] * len(seeds)
        self.fused = trainer.uses_fused_kernels(placement)
        model.requires_grad_(False)
        if self.fused:
            from transformers.integrations.liger import apply_liger_kernel

            apply_liger_kernel(model, {"fused_linear_cross_entropy": False})
        add_fused_lm_head(model)
        lora = params.lora
        scaling = lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
        self.adapters = stacked.Adapters(starts, scaling, model.dtype, self.device)
        self.layers = self._stack()
        self.optimizer = torch.optim.AdamW(
            [self.adapters.weights],
            lr=params.learning_rate,
            betas=(params.adam_beta1, params.adam_beta2),
            eps=params.adam_epsilon,
            weight_decay=params.weight_decay,
            fused=self.fused or None,
        )
        model.train()

    def _stack(self) -> dict[str, Any]:
        """Replace each adapted linear layer by one that holds all seeds' matrices."""
        make, layers = stacked.stacked_lora(), {}
        for name in (name for name in self.adapters.places if ".lora_A." in name):
            place = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            holder, _, attribute = place.rpartition(".")
            layer = make(
                self.model.get_submodule(place), self.adapters, name, self.params.lora.lora_dropout, self.masks
            )
            setattr(self.model.get_submodule(holder), attribute, layer)
            layers[place] = layer
        return layers

    def masks(self, width: int) -> Any:
        """Draw which inputs of a layer stay, (seeds, length, width), for each seed by its own generator."""
        import torch

        keep = torch.ones(len(self.seeds), max(self.real), width, dtype=torch.bool, device=self.device)
        for number, (seed, real) in enumerate(zip(self.seeds, self.real, strict=True)):
            keep[number, :real].bernoulli_(1 - self.params.lora.lora_dropout, generator=seed.dropout)
        return keep

    def train(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        """Run all epochs; gives the facts that all seeds share."""
        import torch
        from torch.utils.data import BatchSampler
        from transformers import get_scheduler

        params, batch = self.params, self.params.effective_batch_size
        per_epoch = math.ceil(len(rows) / batch)
        self.steps = params.num_train_epochs * per_epoch
        warmup = params.warmup_steps
        self.schedule = get_scheduler(
            params.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=math.ceil(self.steps * warmup) if warmup < 1 else int(warmup),
            num_training_steps=self.steps,
        )
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        progress, self.tokens_at_once, self.micro_batches = trainer.Progress(), 0, 0
        for epoch in range(params.num_train_epochs):
            for seed in self.seeds:
                seed.order.set_epoch(epoch)
                # a data loader draws one number when an epoch begins, before the first mask
                if self.device.type == "cpu":
                    torch.empty((), dtype=torch.int64).random_(generator=seed.dropout)
            samplers = [BatchSampler(seed.order, batch, drop_last=False) for seed in self.seeds]
            for number, drawn in enumerate(zip(*samplers, strict=True), epoch * per_epoch + 1):
                self.step(number, [[rows[i] for i in indices] for indices in drawn])
                self._print(progress, number)
        return {
            "world_size": 1,
            "strategy": "none",
            "effective_batch_size": batch,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 1,
            "micro_batches_per_step": self.micro_batches,
            "tokens_at_once": self.tokens_at_once,
            "rows_joined": True,
            "kernels": "fused" if self.fused else "torch",
            "together_seeds": [seed.job.params["seed"] for seed in self.seeds],
            "optimizer_steps": self.steps,
            "declared_steps": self.steps,
            "epochs": params.num_train_epochs,
            "sequences": len(rows),
            "resumed_from_step": 0,
            "peak_memory_bytes": trainer.peak_memory(),
        }

    def step(self, number: int, drawn: list[list[dict[str, list[int]]]]) -> None:
        """Take one optimizer step of every seed, on its own rows."""
        import torch

        budget = self.placement.get("tokens_per_device")
        parts = [self._divide(rows, budget) for rows in drawn]
        targets = [sum(map(tokens.count_targets, rows)) for rows in drawn]
        losses: Any = torch.zeros(len(self.seeds), device=self.device)
        count = max(map(len, parts))
        for turn in range(count):
            stretches = [part[turn] if turn < len(part) else [] for part in parts]
            losses += self._forward_backward(stretches, targets)
        norms = self._clip()
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.adapters.grad.zero_()
        self.adapters.copy_weights()
        self.schedule.step()
        self.micro_batches = max(self.micro_batches, count)
        for seed, rows, loss, norm in zip(self.seeds, drawn, losses.tolist(), norms.tolist(), strict=True):
            seed.log.append({"step": number, "loss": loss, "learning_rate": rate, "grad_norm": norm, "rows": len(rows)})
            if seed.failed is None and not (math.isfinite(loss) and math.isfinite(norm)):
                seed.failed = StageError(
                    f"step {number}: the loss is {loss}, the gradient norm {norm}. Training stopped; lower the "
                    "learning rate or look at the data."
                )

    def _divide(self, rows: list[dict[str, list[int]]], budget: int | None) -> list[list[dict[str, list[int]]]]:
        lengths = [len(row["input_ids"]) for row in rows]
        at_once = self.placement.get("per_device_train_batch_size")
        share = None if budget is None else max(budget // len(self.seeds), max(lengths))
        return [[rows[i] for i in part] for part in steps.divide(lengths, 1, at_once, share)]

    def _forward_backward(self, stretches: list[list[dict[str, list[int]]]], targets: list[int]) -> Any:
        """Add the gradients of one micro-batch; gives each seed's part of its mean loss."""
        import torch

        batch = self._lay(stretches)
        self.tokens_at_once = max(self.tokens_at_once, batch["input_ids"].shape[1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.dtype == "bfloat16"):
            out = self.model(**batch, fused_lm_head=True, use_cache=False)
        log_probs = torch.nn.functional.pad(out.log_probs[0], (1, 0)).view(len(self.seeds), -1).sum(1)
        losses = -log_probs / torch.tensor(targets, device=self.device)
        losses.sum().backward()
        return losses.detach()

    def _lay(self, stretches: list[list[dict[str, list[int]]]]) -> dict[str, Any]:
        """Lay the seeds' rows one after another; what a stretch lacks is one row of padding without loss."""
        import torch

        self.real[:] = [sum(len(row["input_ids"]) for row in rows) for rows in stretches]
        length = max(self.real)
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        lengths: list[int] = []
        for rows, real in zip(stretches, self.real, strict=True):
            filling = [{"input_ids": [0] * (length - real), "labels": [tokens.IGNORE] * (length - real)}]
            for row in [*rows, *(filling if length > real else [])]:
                ids += row["input_ids"]
                labels += [tokens.IGNORE, *row["labels"][1:]]
                positions += range(len(row["input_ids"]))
                lengths.append(len(row["input_ids"]))
        cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(self.device)
        as_batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
        return {
            **{name: torch.tensor([values], device=self.device) for name, values in as_batch.items()},
            **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), cu),
            **dict.fromkeys(("max_length_q", "max_length_k"), max(lengths)),
        }

    def _clip(self) -> Any:
        """Clip each seed's gradient by its own norm, as torch's clip_grad_norm_ does; gives the norms before."""
        self.adapters.finish_gradient()
        grad = self.adapters.grad
        norms = grad.norm(dim=1)
        if self.params.max_grad_norm > 0:
            grad.mul_((self.params.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)[:, None])
        return norms

    def _print(self, progress: Any, number: int) -> None:
        """Print the first running seed's progress; stop if none is left."""
        running = [seed for seed in self.seeds if seed.failed is None]
        if not running:
            raise self.seeds[0].failed  # type: ignore[misc]
        now = time.monotonic()
        if now - progress.printed_at >= progress.every or number in (1, self.steps):
            progress.printed_at = now
            line = f"step {number}/{self.steps}, {len(running)} seeds, loss {running[0].log[-1]['loss']:.4f}"
            print(f"{line}, {now - progress.began:.0f} s", file=sys.stderr, flush=True)

    def describe(self) -> dict[str, Any]:
        """Read the settings off the objects that trained, in the form of `effective.describe`."""
        params, layers = self.params, list(self.layers.values())
        lora = {
            "r": sorted({layer.work[0].shape[2] for layer in layers}),
            "scaling": [self.adapters.scaling],
            "lora_dropout": sorted({layer.p for layer in layers}),
            "target_modules": sorted({place.rpartition(".")[2] for place in self.layers}),
        }
        optimizer = effective.describe_optimizer(self.optimizer)
        names = ("lr_scheduler_type", "warmup_steps", "max_grad_norm", "num_train_epochs")
        return {
            "arguments": {
                **{name: getattr(params, name) for name in names},
                **{name: optimizer[name][0] for name in ("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon")},
                "weight_decay": optimizer["weight_decay"],
                "optim": "adamw_torch_fused" if self.fused else "adamw_torch",
            },
            "optimizer": optimizer,
            "schedule_steps": self.steps,
            "dtype": {2: "bfloat16", 4: "float32"}[self.model.get_input_embeddings().weight.element_size()],
            "loss": {"loss_type": "nll", "packing": False},
            "lora": lora,
        }

    def take_adapters(self) -> list[dict[str, Any]]:
        """Put the base's own layers back; gives each seed's matrices under PEFT's names."""
        for place, layer in self.layers.items():
            holder, _, attribute = place.rpartition(".")
            setattr(self.model.get_submodule(holder), attribute, layer.base)
        views = {name: self.adapters.view(self.adapters.weights, name) for name in self.adapters.places}
        return [
            {name: view[number].T.contiguous() for name, view in views.items()} for number in range(len(self.seeds))
        ]


def _finish(
    seed: Seed,
    adapter: dict[str, Any],
    model: Any,
    config: Any,
    params: EmStage,
    settings: dict[str, Any],
    facts: dict[str, Any],
    shown: str,
    seconds: float,
    together: int,
) -> Result:
    """Save one seed's files as its stage alone would and hold them against its recipe."""
    import torch
    from peft import get_peft_model

    job = seed.job
    wrapped = get_peft_model(model, config)
    wrapped.load_state_dict(adapter, strict=False)
    models.save(wrapped, None, job.out / "adapter")
    wrapped.unload()
    write_jsonl(job.out / "train_log.jsonl", seed.log)
    (job.out / "first_row.txt").write_text(shown)
    effective.check_effective(
        {**settings, "arguments": {**settings["arguments"], "seed": seed.order.initial_seed}}, job
    )
    rows = [entry["rows"] for entry in seed.log]
    first, last = seed.log[0]["loss"], seed.log[-1]["loss"]
    examples = {name: facts[name] for name in ("first_prompt",) if name in facts}
    observed = {
        **{name: value for name, value in facts.items() if name not in examples},
        "rows_per_step": [min(rows), max(rows)],
        "rows_drawn": sum(rows),
        "first_loss": first,
        "last_loss": last,
        "seconds": round(seconds / together, 3),
        "train_seconds": round(seconds, 3),
        "gpu_seconds": round(seconds / together, 3) if torch.cuda.is_available() else 0.0,
        "data_facts": models.data_facts(job.data),
        "tracker_run_id": None,
    }
    return Result(observed, {"train_loss_first": first, "train_loss_last": last}, examples)
