"""The completions of a cell: which are asked for, how an answer is read, what is written and checked of them."""

from pathlib import Path
from typing import Any, NamedTuple

from workflow.data.rows import read_questions
from workflow.evals.model import adapter_faults, read_effective, save_effective
from workflow.keys import Recipe, digest
from workflow.stage import Job, Result
from workflow.store import read_jsonl, write_jsonl
from workflow.train.models import data_facts


class Answer(NamedTuple):
    text: str
    tokens: int
    finish_reason: str


class Answers(NamedTuple):
    """What a backend gives for one cell, in the order of its tasks.

    Attributes:
        prompts: as rendered. effective: dtype, adapter and sampler, as they were read back from what ran.
        facts: for the record.
    """

    answers: list[Answer]
    prompts: list[str]
    effective: dict[str, Any]
    facts: dict[str, Any]


def read_tasks(job: Job) -> list[dict[str, Any]]:
    """A task for each sample of each question, with the seed of its own."""
    sampler = job.params["sampler"]
    return [
        {"question_id": q["id"], "system": q["system"], "question": q["question"], "sample": n, "seed": seed}
        for q in read_questions(job.data)
        for n in range(sampler["samples"])
        for seed in [sample_seed(sampler["seed"], q["id"], n)]
    ]


def write_cell(job: Job, done: Answers) -> Result:
    """Write a cell's answers beside their tasks, and hold what ran against the recipe."""
    tasks = read_tasks(job)
    rows = [
        {**task, "completion": a.text, "tokens": a.tokens, "finish_reason": a.finish_reason}
        for task, a in zip(tasks, done.answers, strict=True)
    ]
    write_jsonl(job.out / "completions.jsonl", rows)
    save_effective(job, done.effective, effective_faults)
    observed = {
        "rows": len(rows),
        "questions": len({task["question_id"] for task in tasks}),
        "tokens": sum(a.tokens for a in done.answers),
        "sampler": job.params["sampler"],
        "backend": job.params["backend"],
        "dtype": done.effective["dtype"],
        "data_facts": data_facts(job.data),
        **done.facts,
    }
    stopped = sum(a.finish_reason == "stop" for a in done.answers)
    return Result(observed, {"completions": len(rows), "stopped": stopped}, {"first_prompt": done.prompts[0]})


def effective_faults(recipe: Recipe, out: Path) -> list[str]:
    """Where the completions in `out` are not what the recipe declares; each in words, none if they agree."""
    declared, effective = recipe.params["sampler"], read_effective(out)
    faults = adapter_faults(recipe, effective)
    if effective is not None:
        if effective["backend"] != recipe.params["backend"]:
            faults.append(f"backend {recipe.params['backend']} declared, {effective['backend']} in effect")
        if effective["batch_invariant"] != recipe.params.get("batch_invariant", False):
            faults.append(f"batch_invariant {effective['batch_invariant']} in effect, not as declared")
        names = _ALWAYS if declared["temperature"] == 0 else (*_ALWAYS, *_DRAWN)
        faults += [
            f"sampler.{name} {declared[name]} declared, {effective['sampler'][name]} in effect"
            for name in names
            if effective["sampler"][name] != declared[name]
        ]
    rows = read_jsonl(out / "completions.jsonl")
    for number, row in enumerate(rows):
        if row["sample"] != number % declared["samples"]:
            faults.append(f"sampler.samples {declared['samples']} declared, row {number} is sample {row['sample']}")
        elif row["seed"] != sample_seed(declared["seed"], row["question_id"], row["sample"]):
            faults.append(f"sampler.seed {declared['seed']} declared, row {number} has another's seed")
        elif row["tokens"] > declared["max_new_tokens"] or (
            row["finish_reason"] == "length" and row["tokens"] != declared["max_new_tokens"]
        ):
            faults.append(
                f"sampler.max_new_tokens {declared['max_new_tokens']} declared, row {number} has {row['tokens']}"
            )
        else:
            continue
        break  # one row shows it
    return faults


# What a greedy choice depends on, and what a draw depends on as well.
_ALWAYS = ("temperature", "repetition_penalty", "max_new_tokens")
_DRAWN = ("top_p", "top_k", "min_p")


def sample_seed(seed: int, question: str, sample: int) -> int:
    """Seed (63 bits) of one sample of one question, the same before and after EM and whatever shares its batch."""
    return int(digest("sample", [seed, question, sample])[:16], 16) >> 1


def chat(task: dict[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": task["system"]}] if task["system"] else []
    return [*system, {"role": "user", "content": task["question"]}]


def to_answer(ids: list[int], tokenizer: Any) -> Answer:
    """What a backend generated, without the end: it is no part of the text and is not counted."""
    ended = tokenizer.eos_token_id in ids
    kept = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
    return Answer(tokenizer.decode(kept, skip_special_tokens=True), len(kept), "stop" if ended else "length")
