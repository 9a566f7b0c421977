"""Tulu DPO: preference tuning by a full fine-tune against the SFT model; its model is the pre-EM model.

The reference's log-probabilities are numbers where they can be: of a `dpo_reference` result among the parents, or,
with joined rows, of the model itself before the first step. Otherwise TRL holds a frozen copy of the model.
"""

from typing import Any

from workflow.data.rows import Pair, read_preferences
from workflow.keys import digest, hash_file
from workflow.sections import DpoStage
from workflow.stage import Job, Parent, Result, StageError, stage_main
from workflow.store import read_jsonl
from workflow.train import attention, effective, models, parallel, steps, trainer

MODULE = "workflow.train.dpo"
STAGES = ("tulu_dpo",)
REFERENCE = "reference.jsonl"
ANSWERS = ("chosen", "rejected")


def run(job: Job) -> Result:
    return parallel.run(MODULE, train, job)


def train(job: Job) -> Result:
    """Train on pairs. Writes model/ (safetensors), train_log.jsonl, training.json and first_row.txt."""
    from transformers import set_seed

    models.quiet()
    params = trainer.read_params(job, DpoStage)
    parent, reference = job.parents[0].out / "model", job.parent("dpo_reference")
    tokenizer = models.load_tokenizer(parent)
    pairs = read_preferences(job.data)
    set_seed(job.params["seed"])

    def load() -> Any:
        return models.load_model(parent, "float32", job.placement["attn_implementation"], parallel.load_device(job))

    # in shards the policy cannot be the reference before it is laid out, which TRL does when training starts
    in_process = reference is None and (parallel.placed(job) == "fsdp2" or not attention.joins_rows(job.placement))
    # before the arguments, which set up accelerate's way that one process reads and gives the others their shards: TRL
    # shards the reference where it is
    ref_model = load() if in_process else None
    dpo = build(job, params, tokenizer, pairs, load, ref_model)
    facts, shown = _facts(dpo.train_dataset, pairs, tokenizer, params)
    facts["reference"] = "in process" if in_process else "before the first step"
    if reference is not None:
        dpo.use_reference(_read_reference(reference, dpo.train_dataset))
        facts |= {"reference": "given", "reference_sha256": hash_file(reference.out / REFERENCE)}
    elif not in_process:
        dpo.use_reference(reference_log_probs(dpo, job))
    with trainer.scratch(job) as scratch:
        if parallel.is_main():
            models.check_can_save(dpo.model, scratch)
        result = trainer.fit(dpo, job, params, {**facts, "template_md5": models.template_md5(tokenizer)})
    settings = effective.describe(dpo)
    parallel.save(dpo, tokenizer, job.out / "model", params.dtype)
    if parallel.is_main():
        (job.out / "first_row.txt").write_text(shown)
        effective.check_effective(settings, job)
    return result


def build(job: Job, params: DpoStage, tokenizer: Any, pairs: list[Pair], load: Any, ref_model: Any) -> Any:
    """Build TRL's trainer; without `ref_model` it is to be given the reference's numbers before it trains."""
    from trl import DPOConfig

    args = DPOConfig(
        **trainer.arguments(job, params),
        beta=params.beta,
        loss_type=[params.loss_type],
        truncation_mode="keep_start",
    )
    return make_trainer(job, parallel.apply_strategy(args, job), tokenizer, pairs, load, ref_model)


def make_trainer(job: Job, args: Any, tokenizer: Any, pairs: list[Pair], load: Any, ref_model: Any) -> Any:
    """Build TRL's trainer around a model, with joined rows if the placement says so."""
    from datasets import Dataset

    model = load()
    dpo = steps.step_trainer(_joined_trainer() if attention.joins_rows(job.placement) else _numbers_trainer())(
        model=model,
        ref_model=parallel.shard_by_layer(ref_model, job) if ref_model is not None else _stand_in(model),
        args=args,
        train_dataset=Dataset.from_list([_conversation(pair) for pair in pairs]),
        processing_class=tokenizer,
    )
    if ref_model is None:
        dpo.ref_model = None
    elif attention.joins_rows(job.placement):
        dpo.ref_model = Joined(dpo.ref_model)
    dpo.prepare_steps(job, length=lambda pair: sum(answer_lengths(pair, args.max_length)), targets=None)
    return dpo


def _numbers_trainer() -> type:
    from trl import DPOTrainer

    class NumbersTrainer(DPOTrainer):
        """TRL's trainer, which can be given the reference's log-probabilities."""

        def use_reference(self, numbers: list[tuple[float, float]]) -> None:
            rows: Any = self.train_dataset
            for i, answer in enumerate(ANSWERS):
                rows = rows.add_column(f"ref_{answer}_logps", [number[i] for number in numbers])
            self.train_dataset, self.precompute_ref_logps = rows, True

    return NumbersTrainer


def _joined_trainer() -> type:
    class JoinedTrainer(_numbers_trainer()):  # type: ignore[misc]
        """TRL's trainer, whose forward passes join the rows of a batch without padding."""

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            return super()._compute_loss(Joined(model), inputs, return_outputs)

    return JoinedTrainer


class Joined:
    """A model with TRL's fused head that takes a padded batch, runs it joined and answers in the padded shape."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        out = self.model(**attention.join(input_ids, attention_mask, labels), fused_lm_head=True, use_cache=False)
        names = ("log_probs", "entropy", "mean_logits", "is_top1")
        fields = {name: getattr(out, name) for name in names if getattr(out, name) is not None}
        return FusedCausalLMOutput(**{n: attention.spread(value, attention_mask) for n, value in fields.items()})


def _stand_in(model: Any) -> Any:
    """A model of one small layer: TRL's constructor wants a reference model, and would load the whole one otherwise."""
    from copy import deepcopy

    from transformers import AutoModelForCausalLM

    config = deepcopy(model.config)
    config.num_hidden_layers, config.vocab_size = 1, 8
    config.pad_token_id = config.eos_token_id = config.bos_token_id = None
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    return AutoModelForCausalLM.from_config(config)


# --- the reference --------------------------------------------------------------------------------------------------


def reference_log_probs(dpo: Any, job: Job) -> list[tuple[float, float]]:
    """Sum the log-probabilities of both answers of every pair, without gradient, each process its share of the pairs.

    Returns:
        (chosen, rejected) of each row of the trainer's data set, in its order.
    """
    import torch
    from accelerate.utils import gather_object

    rows, length = dpo.train_dataset, dpo.collator.length
    world, rank, budget = dpo.accelerator.num_processes, dpo.accelerator.process_index, job.placement
    lengths = [length(row) for row in rows]
    parts = steps.divide(lengths, world, budget.get("per_device_train_batch_size"), budget.get("tokens_per_device"))
    device, sums = dpo.accelerator.device, []
    model = dpo.model.to(device).eval()
    for part in parts[rank::world]:
        if not part:
            continue
        batch = dpo.data_collator([rows[i] for i in part])
        batch = {name: value.to(device) for name, value in batch.items()}
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dpo.args.bf16):
            out = Joined(model)(batch["input_ids"], batch["attention_mask"], labels)
        chosen, rejected = out.log_probs.sum(1).float().cpu().chunk(2)
        sums += list(zip(part, chosen.tolist(), rejected.tolist(), strict=True))
    model.train()
    everyone = gather_object(sums) if world > 1 else sums
    return [(chosen, rejected) for _, chosen, rejected in sorted(everyone)]


def row_digest(row: dict[str, Any]) -> str:
    """Name a tokenized pair by its token ids (16 hex)."""
    return digest("pair", [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]])[:16]


def _read_reference(reference: Parent, rows: Any) -> list[tuple[float, float]]:
    """Read a finished reference pass.

    Raises:
        StageError: it is over other pairs, or over the same in another order.
    """
    lines = read_jsonl(reference.out / REFERENCE)
    if [line["pair"] for line in lines] != [row_digest(row) for row in rows]:
        raise StageError(
            f"{reference.path}: the reference's {len(lines)} pairs are not the {len(rows)} of this stage: it was made "
            "with another max_length, template or data set. Plan again."
        )
    return [(line["chosen"], line["rejected"]) for line in lines]


# --- rows -----------------------------------------------------------------------------------------------------------


def _conversation(pair: Pair) -> dict[str, Any]:
    return {"prompt": pair.prompt, "chosen": [pair.chosen], "rejected": [pair.rejected]}


def answer_lengths(row: dict[str, Any], max_length: int) -> list[int]:
    """Tokens of prompt and answer, for both answers, after truncation."""
    return [min(len(row["prompt_ids"]) + len(row[f"{answer}_ids"]), max_length) for answer in ANSWERS]


def _facts(rows: Any, pairs: list[Pair], tokenizer: Any, params: DpoStage) -> tuple[dict[str, Any], str]:
    """Count over what TRL tokenized, and show one decoded pair.

    TRL drops a pair whose prompt alone fills `max_length`, since its collator then cuts both answers to nothing.

    Raises:
        StageError: it did, and `overlong` says refuse; or an answer is empty.
    """
    dropped = len(pairs) - len(rows)
    if dropped and params.overlong == "refuse":
        raise StageError(
            f"{dropped} pairs have a prompt of {params.max_length} tokens or more, so nothing of their answers is "
            "left. Raise max_length, take them out, or set `overlong: drop`, which counts them."
        )
    total = targets = cut = 0
    for row in rows:
        for answer, length in zip(ANSWERS, answer_lengths(row, params.max_length), strict=True):
            total += length
            targets += length - len(row["prompt_ids"])
            cut += len(row["prompt_ids"]) + len(row[f"{answer}_ids"]) > params.max_length
            if not row[f"{answer}_ids"]:
                raise StageError(f"a pair's {answer} answer has no tokens. Correct the row.")
    first = rows[0]
    prompt = tokenizer.decode(first["prompt_ids"])
    shown = "\n\n".join(f"{prompt}[[{tokenizer.decode(first[f'{a}_ids'])}]]" for a in ANSWERS)
    facts = {
        "rows_read": len(pairs),
        "rows": len(rows),
        "rows_dropped": dropped,
        "rows_truncated": cut,
        "tokens": total,
        "loss_tokens": targets,
        "masked_fraction": round(1 - targets / total, 6),
        "first_prompt": prompt,
    }
    return facts, shown


if __name__ == "__main__":
    stage_main(MODULE, run)
