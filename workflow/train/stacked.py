"""Train stacked LoRA: linear layers that hold the matrices of several seeds over one frozen base, and their loop."""

import math
from dataclasses import dataclass, field
from typing import Any

from workflow.sections import EmStage
from workflow.stage import Job, StageError
from workflow.train import effective, steps, tokens, trainer

Seeds = list["Seed"]


@dataclass
class Seed:
    """What one seed owns. `failed` holds why it stopped; its stretch is then trained on for nothing."""

    job: Job
    order: Any
    dropout: Any
    log: list[dict[str, Any]] = field(default_factory=list)
    failed: StageError | None = None


class Adapters:
    """All seeds' matrices in one buffer of (seeds, parameters), float32: one gradient, one norm, one update.

    First come all A, then all B, so that the scaling lies on the working copy of A. `work` is that copy in the
    precision of the base; `grad` is of the working copy until `finish_gradient`.
    """

    def __init__(self, starts: list[dict[str, Any]], scaling: float, dtype: Any, device: Any):
        import torch

        self.scaling = scaling
        matrices = sorted(starts[0], key=lambda name: ".lora_B." in name)
        self.places: dict[str, tuple[int, tuple[int, int]]] = {}
        self.end_of_a = end = 0
        for name in matrices:  # PEFT's own (out, in) matrices, transposed
            rows, columns = starts[0][name].T.shape
            self.places[name] = (end, (rows, columns))
            end += rows * columns
            if ".lora_A." in name:
                self.end_of_a = end
        flat = [torch.cat([start[name].T.flatten() for name in matrices]) for start in starts]
        self.weights = torch.nn.Parameter(torch.stack(flat).to(device))
        self.grad = self.weights.grad = torch.zeros_like(self.weights)
        self.work = torch.empty_like(self.weights, dtype=dtype, requires_grad=False)
        self.copy_weights()

    def view(self, buffer: Any, name: str) -> Any:
        """One matrix of all seeds, (seeds, rows, columns), as a view of the buffer."""
        start, (rows, columns) = self.places[name]
        return buffer.detach()[:, start : start + rows * columns].unflatten(1, (rows, columns))

    def copy_weights(self) -> None:
        self.work.copy_(self.weights.detach())
        self.work[:, : self.end_of_a] *= self.scaling

    def finish_gradient(self) -> None:
        """From the gradient of scaling * A to that of A."""
        self.grad[:, : self.end_of_a] *= self.scaling


def stacked_lora() -> Any:
    """Make the layer class; torch is imported late."""
    import torch
    from torch import nn

    class StackedLora(nn.Module):
        """A frozen linear layer with one LoRA for each seed: y + dropout(x) (scaling A) B, in stretches of x.

        x is (1, seeds * length, in): a stretch of equal length for each seed. `masks` gives the inputs that stay.
        """

        def __init__(self, base: Any, adapters: Adapters, name: str, dropout: float, masks: Any):
            super().__init__()
            self.base, self.p, self.masks = base, dropout, masks
            names = name, name.replace(".lora_A.", ".lora_B.")
            self.work = [adapters.view(adapters.work, n) for n in names]
            self.grads = [adapters.view(adapters.grad, n) for n in names]

        def forward(self, x: Any) -> Any:
            keep = self.masks(x.shape[-1]) if self.training and self.p > 0 else None
            if not x.requires_grad:
                x = x.detach().requires_grad_()  # of the first layer: the adapters' gradients come by way of x
            return AddLora.apply(self.base(x), x, self, keep)

    class AddLora(torch.autograd.Function):
        """y + dropout(x) A B for each seed's stretch; y is overwritten. The gradients of A and B are added to their
        buffers, and what was dropped is computed again on the way back."""

        @staticmethod
        def forward(ctx: Any, y: Any, x: Any, layer: Any, keep: Any) -> Any:
            (a, b), seeds = layer.work, layer.work[0].shape[0]
            low = torch.bmm(drop(x.view(seeds, -1, x.shape[-1]), keep, layer.p), a)
            stretches = y.view(seeds, -1, y.shape[-1])
            torch.baddbmm(stretches, low, b, out=stretches)
            ctx.save_for_backward(x, low, keep)
            ctx.layer = layer
            ctx.mark_dirty(y)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, low, keep = ctx.saved_tensors
            (a, b), (grad_a, grad_b), p = ctx.layer.work, ctx.layer.grads, ctx.layer.p
            seeds = a.shape[0]
            stretches, inputs = dy.reshape(seeds, -1, dy.shape[-1]), x.view(seeds, -1, x.shape[-1])
            dlow = torch.bmm(stretches, b.transpose(1, 2))
            grad_b.add_(torch.bmm(low.transpose(1, 2), stretches))
            grad_a.add_(torch.bmm(drop(inputs, keep, p).transpose(1, 2), dlow))
            return dy, drop(torch.bmm(dlow, a.transpose(1, 2)), keep, p).view(x.shape), None, None

    def drop(x: Any, keep: Any, p: float) -> Any:
        """x * keep / (1 - p) in one pass over contiguous memory."""
        return x if keep is None else torch.ops.aten.native_dropout_backward(x, keep, 1 / (1 - p))

    return StackedLora


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
        self.adapters = Adapters(starts, scaling, model.dtype, self.device)
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
        make, layers = stacked_lora(), {}
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
                running = [seed for seed in self.seeds if seed.failed is None]
                if not running:
                    raise self.seeds[0].failed  # type: ignore[misc]
                progress.report(number, self.steps, f"{len(running)} seeds, loss {running[0].log[-1]['loss']:.4f}")
        return {
            "strategy": "none",
            "micro_batches_per_step": self.micro_batches,
            "tokens_at_once": self.tokens_at_once,
            "resumed_from_step": 0,
            "tracker_run_id": None,
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
            try:
                trainer.check_finite(number, loss, norm)
            except StageError as error:
                seed.failed = seed.failed or error

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
        columns: tuple[list[int], ...] = ([], [], [], [])
        ids, labels, positions, lengths = columns
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
