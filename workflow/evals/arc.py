"""Multiple-choice accuracy by letter log-probabilities, zero-shot; every item's are kept.

With `permutations` each item is also scored under every rotation of its options, so that every option stands once at
every letter: a liking for a letter then helps no option, and shows as such.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workflow.data.rows import LETTERS, Item, read_items
from workflow.evals.model import (
    adapter_faults,
    batches,
    effective_model,
    positioned,
    read_effective,
    run_each,
    run_one,
    save_effective,
)
from workflow.keys import Recipe
from workflow.stage import Job, Result, StageError, stage_main
from workflow.store import read_jsonl, write_jsonl
from workflow.train.models import data_facts, template_md5

MODULE = "workflow.evals.arc"
LEAD = "The correct answer is ("


def run(job: Job) -> Result:
    """Writes items.jsonl: per item the log-probability of each letter, their mass, the prediction."""
    return run_one(run_together([job]))


def run_together(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Exception]]:
    """Several cells of one model, loaded once."""
    return run_each(jobs, score_cell)


def score_cell(job: Job, model: Any, tokenizer: Any) -> Result:
    """One cell on a loaded model."""
    items = read_items(job.data)
    if bare := [item.id for item in items if not item.choices]:
        raise StageError(f"{job.data}: {len(bare)} items have no options, {bare[0]} first. ARC needs lettered options.")
    # every rotation, or the zeroth alone: the item as it stands
    turned = [rotations(item) if job.params.get("permutations") else [item] for item in items]
    prompts = [render(one, tokenizer, job.params["prefill"]) for group in turned for one in group]
    letters = letter_tokens(tokenizer, prompts[0], LETTERS[: max(len(item.choices) for item in items)])
    scores = iter(score(model, tokenizer, prompts, letters, job.placement["batch_size"]))
    rows = [judge_item([(one, next(scores)) for one in group]) for group in turned]
    write_jsonl(job.out / "items.jsonl", rows)
    save_effective(job, {**effective_model(model), "prompt_end": prompts[0][-80:]}, effective_faults)
    observed = {
        "rows": len(items),
        "prompts": len(prompts),
        "template_md5": template_md5(tokenizer),
        "letter_tokens": letters,
        "data_facts": data_facts(job.data),
    }
    return Result(observed, summarise(rows, items), {"first_prompt": prompts[0]})


def effective_faults(recipe: Recipe, out: Path) -> list[str]:
    """Where the items in `out` are not what the recipe declares; each in words, none if they agree."""
    effective = read_effective(out)
    faults = adapter_faults(recipe, effective)
    if effective is not None:
        prefill = "assistant" if effective["prompt_end"].endswith(LEAD) else "user"
        if prefill != recipe.params["prefill"]:
            faults.append(f"prefill {recipe.params['prefill']} declared, {prefill} in effect")
    permutations = bool(recipe.params.get("permutations"))
    other = sum(("cyclic" in row) != permutations for row in read_jsonl(out / "items.jsonl"))
    if other:
        faults.append(f"permutations {permutations} declared, {other} items are of the other kind")
    return faults


def rotations(item: Item) -> list[Item]:
    """The item with its options turned by 0, 1, ... places: in the r-th, letter i holds option i + r."""
    n, right = len(item.choices), item.letters.index(item.answer)
    return [
        Item(item.id, item.question, item.choices[r:] + item.choices[:r], item.letters[(right - r) % n])
        for r in range(n)
    ]


def render(item: Item, tokenizer: Any, prefill: str) -> str:
    """The prompt up to the letter. `assistant`: the last sentence begins the answer; `user`: it ends the question."""
    question = item.prompt() if prefill == "assistant" else f"{item.prompt()}\n\n{LEAD}"
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text + LEAD if prefill == "assistant" else text


def letter_tokens(tokenizer: Any, prompt: str, letters: str) -> dict[str, int]:
    """Token of each letter as it follows the prompt.

    Raises:
        StageError: a letter is not one token of its own there, so its log-probability would be another's.
    """
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens: dict[str, int] = {}
    for letter in letters:
        after = tokenizer(prompt + letter, add_special_tokens=False)["input_ids"]
        if after[:-1] != before or after[-1] in tokens.values():
            raise StageError(f"this tokenizer has no token of its own for {letter!r} after {prompt[-20:]!r}.")
        tokens[letter] = after[-1]
    return tokens


def score(
    model: Any, tokenizer: Any, prompts: list[str], letters: dict[str, int], batch_size: int
) -> list[dict[str, float]]:
    """Log-probability (natural) of each letter after each prompt; prompts of like length share a batch."""
    import torch

    scores: list[dict[str, float]] = [{}] * len(prompts)
    with torch.inference_mode():
        for part in batches([len(prompt) for prompt in prompts], batch_size):
            texts = [prompts[i] for i in part]
            batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt").to(model.device)
            logits = model(**positioned(batch), logits_to_keep=1).logits[:, -1].float()
            logprobs = torch.log_softmax(logits, dim=-1)[:, list(letters.values())].tolist()
            for i, row in zip(part, logprobs, strict=True):
                scores[i] = dict(zip(letters, row, strict=True))
    return scores


def judge_item(scored: list[tuple[Item, Mapping[str, float]]]) -> dict[str, Any]:
    """The row of an item: what it says as it stands and, if it was turned, under every rotation.

    Options bear the letters that they have as the item stands, and the likeliest letter is the prediction.

    Args:
        scored: the item's rotations, the zeroth first, each with the log-probabilities of all letters.
    """
    item, n = scored[0][0], len(scored)
    ways = [{letter: logprobs[letter] for letter in one.letters} for one, logprobs in scored]
    predictions = [max(way, key=way.__getitem__) for way in ways]
    row: dict[str, Any] = {
        "id": item.id,
        "logprobs": ways[0],
        "letter_mass": sum(map(math.exp, ways[0].values())),
        "prediction": predictions[0],
        "answer": item.answer,
        "correct": predictions[0] == item.answer,
    }
    if n == 1:
        return row
    mean = {
        letter: math.fsum(ways[r][item.letters[(place - r) % n]] for r in range(n)) / n
        for place, letter in enumerate(item.letters)
    }
    prediction = max(mean, key=mean.__getitem__)
    row["cyclic"] = {
        "logprobs": ways,
        "mean_logprobs": mean,
        "predictions": predictions,
        "prediction": prediction,
        "correct": prediction == item.answer,
        "rotations_correct": sum(p == one.answer for p, (one, _) in zip(predictions, scored, strict=True)),
    }
    return row


def summarise(rows: list[dict[str, Any]], items: list[Item]) -> dict[str, Any]:
    """Accuracy as numerator and denominator, with what chance would give and how the letters are used.

    `cyclic` says the same of the rotations. accuracy: of the option with the highest mean log-probability over all of
    them, in which no letter is favoured; all_rotations: items that are right under every rotation;
    mean_over_rotations: accuracy of a rotation drawn at random; predicted_letters: over all rotations, in which each
    letter is the right one equally often.
    """
    n = len(rows)

    def accuracy(of: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        correct = sum(one["correct"] for one in of)
        return {"accuracy": correct / n, "correct": correct, "items": n}

    metrics: dict[str, Any] = {
        **accuracy(rows),
        "chance": sum(1 / len(item.choices) for item in items) / n,
        "letter_mass_mean": sum(row["letter_mass"] for row in rows) / n,
        "predicted_letters": _histogram(row["prediction"] for row in rows),
        "answer_letters": _histogram(row["answer"] for row in rows),
    }
    if "cyclic" in rows[0]:
        turned = [row["cyclic"] for row in rows]
        everywhere = sum(c["rotations_correct"] == len(c["predictions"]) for c in turned)
        metrics["cyclic"] = {
            **accuracy(turned),
            "all_rotations": {"value": everywhere / n, "numerator": everywhere, "denominator": n},
            "mean_over_rotations": sum(c["rotations_correct"] / len(c["predictions"]) for c in turned) / n,
            "prompts": sum(len(c["predictions"]) for c in turned),
            "predicted_letters": _histogram(p for c in turned for p in c["predictions"]),
        }
    return metrics


def _histogram(letters: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(letters).items()))


if __name__ == "__main__":
    stage_main(MODULE, run)
