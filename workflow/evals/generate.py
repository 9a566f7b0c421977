"""Completions to a question set, all kept: what is judged can be judged again."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from workflow.evals.completions import Answer, Answers, chat, effective_faults, read_tasks, to_answer, write_cell
from workflow.evals.model import effective_model, run_each, run_one
from workflow.evals.vllm_python import switch
from workflow.stage import Job, Result, stage_main
from workflow.train.models import template_md5

__all__ = ["MODULE", "effective_faults", "run", "run_together"]

MODULE = "workflow.evals.generate"


def run(job: Job) -> Result:
    """Writes completions.jsonl: question x sample rows with seed, text, tokens and how it ended."""
    return run_one(run_together([job]))


def run_together(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Exception]]:
    """Several cells of one model, loaded once: those that ask for the first one's backend; the others are left out."""
    jobs = [job for job in jobs if _engine(job) == _engine(jobs[0])]
    if jobs[0].params["backend"] == "vllm":
        from workflow.evals import vllm

        return vllm.run_queue(jobs)
    return run_each(jobs, lambda job, model, tokenizer: write_cell(job, _transformers(job, model, tokenizer)))


def _engine(job: Job) -> tuple[str, bool]:
    return job.params["backend"], job.params.get("batch_invariant", False)


def _transformers(job: Job, model: Any, tokenizer: Any) -> Answers:
    tasks, sampler = read_tasks(job), job.params["sampler"]
    prompts = [tokenizer.apply_chat_template(chat(t), tokenize=False, add_generation_prompt=True) for t in tasks]
    answers: list[Answer] = []
    used: dict[str, Any] = {}
    began = time.monotonic()
    size = job.placement["batch_size"]
    for start in range(0, len(tasks), size):
        part = slice(start, start + size)
        done, used = sample(model, tokenizer, prompts[part], [t["seed"] for t in tasks[part]], sampler)
        answers += done
        left = (time.monotonic() - began) / len(answers) * (len(tasks) - len(answers))
        print(f"{len(answers)}/{len(tasks)} completions, {left:.0f} s left", file=sys.stderr, flush=True)
    effective = {**effective_model(model), "backend": "transformers", "batch_invariant": False, "sampler": used}
    return Answers(answers, prompts, effective, {"template_md5": template_md5(tokenizer)})


def sample(
    model: Any, tokenizer: Any, prompts: list[str], seeds: list[int], sampler: dict[str, Any]
) -> tuple[list[Answer], dict[str, Any]]:
    """Answers of one batch, and the sampler as it is read back from what was handed to `generate`."""
    import torch
    from transformers import GenerationConfig

    batch = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
    # A model may come with sampling defaults of its own, and `generate` takes those that a call leaves open.
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    steps = processors(sampler, seeds)
    # greedy over what the processors leave: the draw is in them
    limits = {"do_sample": False, "num_beams": 1, "max_new_tokens": sampler["max_new_tokens"]}
    with torch.inference_mode():
        done = model.generate(**batch, **limits, logits_processor=steps)
    used = effective_sampler(steps, limits)
    return [to_answer(row, tokenizer) for row in done[:, batch["input_ids"].shape[1] :].tolist()], used


def effective_sampler(steps: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """The recipe's names for what these processors and these arguments of `generate` do."""
    by_kind = {type(step).__name__: step for step in steps}

    def setting(kind: str, field: str, off: float) -> Any:
        return getattr(by_kind[kind], field) if kind in by_kind else off

    return {
        "temperature": setting("TemperatureLogitsWarper", "temperature", 0.0),
        "top_p": setting("TopPLogitsWarper", "top_p", 1.0),
        "top_k": setting("TopKLogitsWarper", "top_k", 0),
        "min_p": setting("MinPLogitsWarper", "min_p", 0.0),
        "repetition_penalty": setting("RepetitionPenaltyLogitsProcessor", "penalty", 1.0),
        "max_new_tokens": limits["max_new_tokens"],
    }


def processors(sampler: dict[str, Any], seeds: list[int]) -> Any:
    """What the scores of each step pass through, in this order; what is off is not there.

    Each row draws from a generator of its own (the Gumbel-max trick over the warped scores, which is a draw from their
    softmax), so a completion depends on its own seed and not on what shares the batch.
    """
    import torch
    from transformers import (
        LogitsProcessor,
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    class Gumbel(LogitsProcessor):
        def __init__(self) -> None:
            self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            drawn = torch.stack(
                [torch.rand(scores.shape[1], generator=g, dtype=torch.float64) for g in self.generators]
            )
            noise = -torch.log(-torch.log(drawn.clamp(1e-300, 1 - 1e-16)))
            return scores.double() + noise.to(scores.device)

    found = LogitsProcessorList()
    if sampler["repetition_penalty"] != 1:
        found.append(RepetitionPenaltyLogitsProcessor(sampler["repetition_penalty"]))
    if sampler["temperature"] > 0:
        found.append(TemperatureLogitsWarper(sampler["temperature"]))
        if sampler["top_k"] > 0:
            found.append(TopKLogitsWarper(sampler["top_k"]))
        if sampler["top_p"] < 1:
            found.append(TopPLogitsWarper(sampler["top_p"]))
        if sampler["min_p"] > 0:
            found.append(MinPLogitsWarper(sampler["min_p"]))
        found.append(Gumbel())
    return found


if __name__ == "__main__":
    switch(MODULE, sys.argv[1:])
    stage_main(MODULE, run)
