"""Generation on vLLM: one engine per job, the cell's adapter as a LoRA request, nothing merged.

vLLM can hold several adapters at once, so one engine could serve all EM seeds of a condition. Here it does not: a job
makes one cell, so that a cell can be planned, rerun and verified alone; what that costs is one engine start a cell.
"""

from pathlib import Path
from typing import Any

from workflow.evals.generate import Answer, chat, to_answer
from workflow.evals.vllm_python import dtype
from workflow.stage import Job, StageError
from workflow.train.models import load_tokenizer, template_md5

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can make room for


def generate(job: Job, tasks: list[dict[str, Any]]) -> tuple[list[Answer], list[str], dict[str, Any]]:
    """Answers, rendered prompts and facts, in the order of the tasks."""
    try:
        import vllm
        from vllm.lora.request import LoRARequest
    except ModuleNotFoundError as error:
        raise StageError(
            f"no module {error.name}: the backend vllm has its own environment, envs/vllm.txt. "
            "Name its interpreter in VLLM_PYTHON."
        ) from None

    folder = job.parents[0].out / "model"
    tokenizer = load_tokenizer(folder)
    prompts = [tokenizer.apply_chat_template(chat(t), tokenize=False, add_generation_prompt=True) for t in tasks]
    adapter = job.parent("em_lora")
    engine = vllm.LLM(**engine_settings(folder, adapter.record.recipe.params["lora"]["r"] if adapter else None))
    request = LoRARequest("em", 1, str(adapter.out / "adapter")) if adapter else None
    ids = [{"prompt_token_ids": tokenizer(p, add_special_tokens=False)["input_ids"]} for p in prompts]
    eos = tokenizer.eos_token_id
    params = [vllm.SamplingParams(**sampling(job.params["sampler"], t["seed"], eos)) for t in tasks]
    done = engine.generate(ids, params, lora_request=request, use_tqdm=False)
    answers = [read(d.outputs[0], tokenizer) for d in done]
    return answers, prompts, {"template_md5": template_md5(tokenizer), "dtype": dtype(folder), "vllm": vllm.__version__}


def engine_settings(folder: Path, lora_rank: int | None) -> dict[str, Any]:
    """Of the model in that folder, with room for an adapter of that rank."""
    return {
        "model": str(folder),
        "dtype": dtype(folder),
        "generation_config": "vllm",  # the model's own sampling defaults are not ours
        "enable_lora": lora_rank is not None,
        "max_lora_rank": next(size for size in _LORA_RANKS if size >= (lora_rank or 0)),
    }


def sampling(sampler: dict[str, Any], seed: int, eos: int) -> dict[str, Any]:
    """vLLM's names for the sampler's settings; top_k 0 is off in both."""
    return {
        "temperature": sampler["temperature"],
        "top_p": sampler["top_p"],
        "top_k": sampler["top_k"],
        "min_p": sampler["min_p"],
        "repetition_penalty": sampler["repetition_penalty"],
        "max_tokens": sampler["max_new_tokens"],
        "seed": seed,
        # the tokenizer's end, which the model was trained on; the model's config may name another
        "stop_token_ids": [eos],
    }


def read(output: Any, tokenizer: Any) -> Answer:
    """One of vLLM's completions, read as the other backend's: its token_ids include the end.

    Raises:
        StageError: it neither ended nor reached the limit, so it is no sample of the model.
    """
    if output.finish_reason not in ("stop", "length"):
        raise StageError(f"vLLM ended a completion with {output.finish_reason!r}. Run again.")
    answer = to_answer(list(output.token_ids), tokenizer)
    if answer.finish_reason != output.finish_reason:
        raise StageError(
            f"vLLM says {output.finish_reason!r} of a completion that ended by {answer.finish_reason!r}: "
            "the model's config names another end than its tokenizer."
        )
    return answer
