"""Completions to a question set, all kept: what is judged can be judged again."""

import sys
import time
from typing import Any, NamedTuple

from workflow.data.rows import read_questions
from workflow.evals import _model
from workflow.evals.vllm_python import switch
from workflow.keys import digest
from workflow.stage import Job, Result, stage_main
from workflow.store import write_jsonl
from workflow.train.models import data_facts, template_md5

MODULE = "workflow.evals.generate"


class Answer(NamedTuple):
    text: str
    tokens: int
    finish_reason: str


def run(job: Job) -> Result:
    """Writes completions.jsonl: question x sample rows with seed, text, tokens and how it ended."""
    questions = read_questions(job.data)
    sampler = job.params["sampler"]
    tasks = [
        {"question_id": q["id"], "system": q["system"], "question": q["question"], "sample": n, "seed": seed}
        for q in questions
        for n in range(sampler["samples"])
        for seed in [sample_seed(sampler["seed"], q["id"], n)]
    ]
    if job.params["backend"] == "vllm":
        from workflow.evals import _vllm

        answers, prompts, facts = _vllm.generate(job, tasks)
    else:
        answers, prompts, facts = _transformers(job, tasks)
    rows = [
        {**task, "completion": a.text, "tokens": a.tokens, "finish_reason": a.finish_reason}
        for task, a in zip(tasks, answers, strict=True)
    ]
    write_jsonl(job.out / "completions.jsonl", rows)
    observed = {
        "rows": len(rows),
        "questions": len(questions),
        "tokens": sum(a.tokens for a in answers),
        "first_prompt": prompts[0],
        "sampler": sampler,
        "backend": job.params["backend"],
        "data_facts": data_facts(job.data),
        **facts,
    }
    stopped = sum(a.finish_reason == "stop" for a in answers)
    return Result(observed, {"completions": len(rows), "stopped": stopped})


def sample_seed(seed: int, question: str, sample: int) -> int:
    """Seed (63 bits) of one sample of one question, the same before and after EM and whatever shares its batch."""
    return int(digest("sample", [seed, question, sample])[:16], 16) >> 1


def chat(task: dict[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": task["system"]}] if task["system"] else []
    return [*system, {"role": "user", "content": task["question"]}]


def _transformers(job: Job, tasks: list[dict[str, Any]]) -> tuple[list[Answer], list[str], dict[str, Any]]:
    model, tokenizer = _model.load(job)
    prompts = [tokenizer.apply_chat_template(chat(t), tokenize=False, add_generation_prompt=True) for t in tasks]
    answers: list[Answer] = []
    began = time.monotonic()
    size = job.placement["batch_size"]
    for start in range(0, len(tasks), size):
        part = slice(start, start + size)
        answers += sample(model, tokenizer, prompts[part], [t["seed"] for t in tasks[part]], job.params["sampler"])
        left = (time.monotonic() - began) / len(answers) * (len(tasks) - len(answers))
        print(f"{len(answers)}/{len(tasks)} completions, {left:.0f} s left", file=sys.stderr, flush=True)
    return answers, prompts, {"template_md5": template_md5(tokenizer), "dtype": str(model.dtype).removeprefix("torch.")}


def sample(model: Any, tokenizer: Any, prompts: list[str], seeds: list[int], sampler: dict[str, Any]) -> list[Answer]:
    """One batch."""
    import torch
    from transformers import GenerationConfig

    batch = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
    # A model may come with sampling defaults of its own, and `generate` takes those that a call leaves open.
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    with torch.inference_mode():
        done = model.generate(
            **batch,
            do_sample=False,  # the draw is in the processors
            num_beams=1,
            max_new_tokens=sampler["max_new_tokens"],
            logits_processor=processors(sampler, seeds),
        )
    return [to_answer(row, tokenizer) for row in done[:, batch["input_ids"].shape[1] :].tolist()]


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


def to_answer(ids: list[int], tokenizer: Any) -> Answer:
    """What a backend generated, without the end: it is no part of the text and is not counted."""
    ended = tokenizer.eos_token_id in ids
    kept = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
    return Answer(tokenizer.decode(kept, skip_special_tokens=True), len(kept), "stop" if ended else "length")


if __name__ == "__main__":
    switch(MODULE, sys.argv[1:])
    stage_main(MODULE, run)
