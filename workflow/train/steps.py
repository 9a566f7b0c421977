"""Make one optimizer step of the declared rows, whatever the placement.

One batch of the data loader is the rows of one whole step, the same on every process. They are divided into
micro-batches by a row count or by a token budget, and each process runs its share. The step's loss is the mean over
the step's tokens (SFT) or pairs (DPO).
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from workflow.stage import Job, StageError

Row = dict[str, Any]


def divide(lengths: list[int], world: int, rows_at_once: int | None, tokens_at_once: int | None) -> list[list[int]]:
    """Divide the rows of a step into micro-batches, as many for each process: process r runs number r, r + world, ...

    By row count they keep the rows' order. By token budget the longest row goes first, each to the emptiest
    micro-batch, so that memory is bounded and the processes are equally busy. A micro-batch may be empty where there
    are fewer rows than processes.

    Args:
        lengths: tokens of each row of the step.

    Raises:
        StageError: a row alone is longer than the budget.
    """
    rows = range(len(lengths))
    if tokens_at_once is None:
        assert rows_at_once is not None
        parts = [list(rows[i : i + rows_at_once]) for i in range(0, len(lengths), rows_at_once)]
        return parts + [[] for _ in range(-len(parts) % world)]
    if max(lengths) > tokens_at_once:
        raise StageError(
            f"a row of {max(lengths)} tokens does not fit into tokens_per_device {tokens_at_once}. Raise it."
        )
    longest_first = sorted(rows, key=lambda i: -lengths[i])
    count = math.ceil(sum(lengths) / (tokens_at_once * world)) * world
    while True:
        parts, loads = [[] for _ in range(count)], [0] * count
        for i in longest_first:
            emptiest = min(range(count), key=loads.__getitem__)
            parts[emptiest].append(i)
            loads[emptiest] += lengths[i]
        if max(loads) <= tokens_at_once:
            return [part for _, part in sorted(zip(loads, parts, strict=True), key=lambda pair: -pair[0])]
        count += world


@dataclass(frozen=True)
class StepCollator:
    """Collate the rows of one optimizer step into this process's micro-batches.

    Attributes:
        collate: TRL's collator of one micro-batch.
        length: tokens of a row.
        targets: tokens of a row that are in the loss; None for pairs.
    """

    collate: Callable[[list[Row]], Any]
    length: Callable[[Row], int]
    targets: Callable[[Row], int] | None
    placement: dict[str, Any]
    rank: int

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        world = self.placement["world_size"]
        lengths = [self.length(row) for row in rows]
        parts = divide(
            lengths,
            world,
            self.placement.get("per_device_train_batch_size"),
            self.placement.get("tokens_per_device"),
        )
        mine = parts[self.rank :: world]
        return {
            "micro_batches": [self._collate([rows[i] for i in part], rows) for part in mine],
            "rows": [len(part) for part in mine],
            "tokens": [sum(lengths[i] for i in part) for part in mine],
            "step_rows": len(rows),
            "targets": None if self.targets is None else sum(map(self.targets, rows)),
        }

    def _collate(self, part: list[Row], rows: list[Row]) -> Any:
        if part:
            return self.collate(part)
        # a process without rows runs a pass that adds nothing: under FSDP2 the others would wait for it
        batch = self.collate([min(rows, key=self.length)])
        if "labels" in batch:
            batch["labels"].fill_(-100)
        return batch


def step_trainer(base: type) -> Any:
    """Make TRL's trainer `base` take one batch of the data loader, in micro-batches, as one optimizer step."""
    import torch
    from accelerate.data_loader import SeedableRandomSampler
    from torch.utils.data import BatchSampler, DataLoader

    class StepTrainer(base):  # type: ignore[misc]
        job: Job
        collator: StepCollator
        rows: int  # of the newest step, over all processes
        tokens: int  # of the newest step, on this process
        tokens_at_once: int
        micro_batches: int

        def prepare_steps(self, job: Job, length: Callable[[Row], int], targets: Callable[[Row], int] | None) -> None:
            """Set how steps are made, after the trainer is built and before it trains."""
            self.job, self.rows, self.tokens, self.tokens_at_once, self.micro_batches = job, 0, 0, 0, 0
            self.collator = StepCollator(self.data_collator, length, targets, job.placement, self.args.process_index)

        def get_train_dataloader(self) -> Any:
            # not prepared by accelerate, which would give each process other rows
            dataset = self._remove_unused_columns(self.train_dataset, description="training")
            self.order = SeedableRandomSampler(dataset, data_seed=self.args.data_seed)
            steps = BatchSampler(self.order, self.job.params["effective_batch_size"], drop_last=False)
            return DataLoader(dataset, batch_sampler=steps, collate_fn=self.collator)

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
            step = next(epoch_iterator)
            targets = step["targets"]
            return [step], None if targets is None else torch.tensor(targets, device=device)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            accelerator, total = self.accelerator, None
            each = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
            for number, micro_batch in enumerate(inputs["micro_batches"], 1):
                self.share = inputs["rows"][number - 1] * accelerator.num_processes / inputs["step_rows"]
                last = number == len(inputs["micro_batches"])
                with nullcontext() if each or last else accelerator.no_sync(model):
                    loss = super().training_step(model, micro_batch, num_items_in_batch)
                total = loss if total is None else total + loss
            self.observe(inputs)
            return total

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **given: Any) -> Any:
            loss = super().compute_loss(model, inputs, return_outputs, **given)
            # a mean over the pairs of a micro-batch becomes their share of the step's mean
            return loss * self.share if self.collator.targets is None else loss

        def observe(self, inputs: dict[str, Any]) -> None:
            """Hold the rows that all processes ran in this step against the declared batch.

            Raises:
                StageError: they are more or fewer.
            """
            drawn = sum(inputs["rows"])
            if self.accelerator.num_processes > 1:
                drawn = int(self.accelerator.reduce(torch.tensor(drawn, device=self.args.device), "sum"))
            batch, sequences = self.job.params["effective_batch_size"], len(self.train_dataset)
            done = self.state.global_step % math.ceil(sequences / batch)
            declared = min(batch, sequences - done * batch)
            if drawn != declared:
                raise StageError(
                    f"step {self.state.global_step + 1}: {drawn} rows were drawn, {declared} are declared. "
                    "The protocol is not the declared one; nothing is recorded."
                )
            self.rows, self.tokens = drawn, sum(inputs["tokens"])
            self.tokens_at_once = max(self.tokens_at_once, *inputs["tokens"])
            self.micro_batches = max(self.micro_batches, len(inputs["rows"]))

        def log(self, logs: dict[str, float], *args: Any, **given: Any) -> None:
            # into the trainer's history, which a checkpoint keeps
            super().log({**logs, "rows": self.rows} if "loss" in logs else logs, *args, **given)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # transformers would look for one micro-batch's fields

    return StepTrainer
