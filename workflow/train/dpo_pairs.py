"""TRL's DPO trainer without a reference model, as tulu_dpo and dpo_reference build it."""

from typing import Any

from workflow.data.rows import Pair
from workflow.keys import digest
from workflow.stage import Job
from workflow.train import attention, steps

ANSWERS = ("chosen", "rejected")


def build(job: Job, args: Any, model: Any, tokenizer: Any, pairs: list[Pair]) -> Any:
    """Build the trainer around a model, with joined rows if the placement says so; it holds no reference model."""
    from datasets import Dataset

    dpo = steps.step_trainer(_trainer_class())(
        model=model,
        ref_model=_stand_in(model),
        args=args,
        train_dataset=Dataset.from_list([_conversation(pair) for pair in pairs]),
        processing_class=tokenizer,
    )
    dpo.ref_model = None
    dpo.prepare_steps(job, length=lambda pair: sum(answer_lengths(pair, args.max_length)), targets=None)
    return dpo


def _trainer_class() -> type:
    from trl import DPOTrainer

    class NumbersTrainer(DPOTrainer):
        """TRL's trainer without a reference model, whose forward passes join rows where the placement says so."""

        def use_reference(self, numbers: list[tuple[float, float]]) -> None:
            """Give it (chosen, rejected) of each row of its data set, in its order."""
            rows: Any = self.train_dataset
            for i, answer in enumerate(ANSWERS):
                rows = rows.add_column(f"ref_{answer}_logps", [number[i] for number in numbers])
            self.train_dataset, self.precompute_ref_logps = rows, True

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            return super()._compute_loss(self._joined(model), inputs, return_outputs)

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            return super().compute_ref_log_probs(self._joined(model), inputs)

        def _joined(self, model: Any) -> Any:
            return Joined(model) if attention.joins_rows(self.job.placement) else model  # type: ignore[attr-defined]

    return NumbersTrainer


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


def _conversation(pair: Pair) -> dict[str, Any]:
    return {"prompt": pair.prompt, "chosen": [pair.chosen], "rejected": [pair.rejected]}


def answer_lengths(row: dict[str, Any], max_length: int) -> list[int]:
    """Tokens of prompt and answer, for both answers, after truncation."""
    return [min(len(row["prompt_ids"]) + len(row[f"{answer}_ids"]), max_length) for answer in ANSWERS]


def row_digest(row: dict[str, Any]) -> str:
    """Name a tokenized pair by its token ids (16 hex)."""
    return digest("pair", [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]])[:16]
