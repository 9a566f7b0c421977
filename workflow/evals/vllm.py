"""Generate on vLLM: one engine for all cells of a model, the adapters as LoRA requests, nothing merged.

All cells' requests stand in one queue, cell after cell: a cell is done, and yielded, while the next ones run.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from workflow.errors import UserError
from workflow.evals.completions import Answer, Answers, chat, read_tasks, to_answer, write_cell
from workflow.evals.model import adapter_folder, declared_adapter, declared_dtype, model_folder
from workflow.stage import Job, Result, StageError
from workflow.train.models import load_tokenizer, template_md5

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM can make room for
# The recipe's names for the sampler's settings -> vLLM's.
_NAMES = {name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
_NAMES["max_new_tokens"] = "max_tokens"
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
CACHE = "VLLM_CACHE_ROOT"


def run_queue(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Exception]]:
    """Cells of one model on one engine; after the engine died no more are made.

    Yields:
        Each job as soon as all of its completions are there, with its result or the error.

    Raises:
        StageError: there is no vLLM here, or its engine does not start.
    """
    vllm = _import(jobs[0])
    adapters = list(dict.fromkeys(folder for job in jobs if (folder := adapter_folder(job))))
    began = time.monotonic()
    engine = _start(vllm, jobs, adapters)
    started = round(time.monotonic() - began, 1)
    threading.Thread(target=end_with, args=(engine_processes(), done := threading.Event()), daemon=True).start()
    tokenizer = load_tokenizer(model_folder(jobs[0]))
    queue = {number: _enqueue(engine, vllm, job, number, adapters, tokenizer) for number, job in enumerate(jobs)}
    facts = {"template_md5": template_md5(tokenizer), "vllm": vllm.__version__, "engine_start_s": started}
    while queue:
        try:
            outputs = engine.step()
        except vllm.v1.engine.exceptions.EngineDeadError as error:
            number = min(queue)
            yield jobs[number], StageError(f"vLLM's engine died: {error}. The log above says why; run again.")
            return
        for output in outputs:
            if output.finished:
                number, _, place = output.request_id.partition("-")
                queue[int(number)].outputs[int(place)] = output.outputs[0]
        for number in [n for n, cell in queue.items() if cell.is_whole()]:
            yield jobs[number], _finish(jobs[number], queue.pop(number), engine, tokenizer, facts)
    done.set()


def engine_processes() -> list[psutil.Process]:
    """The processes that vLLM started for its engine; none where it runs in this one."""
    return [p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name()]


def end_with(processes: Sequence[psutil.Process], done: threading.Event, every: float = 2.0) -> None:
    """End this process when one of the engine's is gone: vLLM waits for ever for the answer of one that was killed.

    What was published stays; the workspaces are removed by the next job.
    """
    while not done.wait(every):
        if any(map(_is_gone, processes)) and not done.is_set():
            print("error: vLLM's engine was killed. Run again; finished cells stay.", file=sys.stderr, flush=True)
            os._exit(1)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class _Cell:
    """A cell's requests, by their place among its tasks, and what came back for them."""

    def __init__(self, prompts: list[str], params: list[Any], adapter: Path | None) -> None:
        self.prompts, self.params, self.adapter = prompts, params, adapter
        self.outputs: dict[int, Any] = {}

    def is_whole(self) -> bool:
        return len(self.outputs) == len(self.prompts)


def _import(job: Job) -> Any:
    """The module, with the settings that it reads from the environment when it is imported."""
    if job.params.get("batch_invariant"):
        os.environ[BATCH_INVARIANT] = "1"
    else:
        os.environ.pop(BATCH_INVARIANT, None)
    # a process that asked for its GPUs cannot be forked with them
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if folder := job.placement.get("compile_cache"):
        os.environ[CACHE] = str(Path(folder).absolute())
    try:
        import vllm
        import vllm.v1.engine.exceptions
    except ModuleNotFoundError as error:
        raise StageError(
            f"no module {error.name}: the backend vllm has its own environment, envs/vllm.txt. "
            "Name its interpreter in VLLM_PYTHON."
        ) from None
    return vllm


def _start(vllm: Any, jobs: Sequence[Job], adapters: Sequence[Path]) -> Any:
    settings = engine_settings(model_folder(jobs[0]), adapters, jobs[0].placement)
    if adapters and settings["dtype"] == "float32" and vllm.platforms.current_platform.is_cuda():
        raise StageError(
            "vLLM's LoRA kernels take no float32 on a GPU. Set `backend: transformers`, or a model of bfloat16."
        )
    try:
        return vllm.LLM(**settings).llm_engine
    except (RuntimeError, ValueError) as error:  # of the engine's process; its own traceback is in the log
        raise StageError(
            f"vLLM's engine did not start: {str(error).splitlines()[0]}. The log above says why."
        ) from None


def engine_settings(model: Path, adapters: Sequence[Path], placement: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `vllm.LLM`: the model in its own data type, and room for all adapters at once."""
    settings: dict[str, Any] = {
        "model": str(model),
        "dtype": declared_dtype(model),
        "generation_config": "vllm",  # the model's own sampling defaults are not ours
        "enable_prefix_caching": True,
        "enable_lora": bool(adapters),
    }
    if adapters:
        rank = max(json.loads((folder / "adapter_config.json").read_text())["r"] for folder in adapters)
        settings |= {
            "max_loras": len(adapters),
            "max_lora_rank": next(size for size in _LORA_RANKS if size >= rank),
        }
    for name in ("enforce_eager", "max_model_len", "gpu_memory_utilization"):
        if placement.get(name):
            settings[name] = placement[name]
    if sizes := placement.get("cudagraph_capture_sizes"):
        settings["compilation_config"] = {"cudagraph_capture_sizes": list(sizes)}
    return settings


def _enqueue(engine: Any, vllm: Any, job: Job, number: int, adapters: Sequence[Path], tokenizer: Any) -> _Cell:
    """Hand all of a cell's prompts to the engine."""
    from vllm.lora.request import LoRARequest

    tasks, folder = read_tasks(job), adapter_folder(job)
    prompts = [tokenizer.apply_chat_template(chat(t), tokenize=False, add_generation_prompt=True) for t in tasks]
    eos = tokenizer.eos_token_id
    params = [vllm.SamplingParams(**sampling(job.params["sampler"], t["seed"], eos)) for t in tasks]
    request = None
    if folder is not None:
        place = adapters.index(folder) + 1  # vLLM counts from one
        request = LoRARequest(f"adapter{place}", place, str(folder))
    for place, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        one.output_kind = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        engine.add_request(f"{number}-{place}", {"prompt_token_ids": ids}, one, lora_request=request)
    return _Cell(prompts, params, folder)


def _finish(job: Job, cell: _Cell, engine: Any, tokenizer: Any, facts: dict[str, Any]) -> Result | Exception:
    try:
        answers = [read(cell.outputs[place], tokenizer) for place in range(len(cell.prompts))]
        effective = {
            "backend": "vllm",
            "batch_invariant": os.environ.get(BATCH_INVARIANT) == "1",
            "dtype": str(engine.model_config.dtype).removeprefix("torch."),
            "adapter": declared_adapter(cell.adapter),
            "sampler": effective_sampler(cell.params),
        }
        if engine.model_config.model != str(model_folder(job)):
            raise StageError(f"the engine holds {engine.model_config.model}, not {model_folder(job)}.")
        return write_cell(job, Answers(answers, cell.prompts, effective, facts))
    except (UserError, OSError) as error:
        return error


def sampling(sampler: dict[str, Any], seed: int, eos: int) -> dict[str, Any]:
    """vLLM's names for the sampler's settings; top_k 0 is off in both."""
    return {theirs: sampler[ours] for ours, theirs in _NAMES.items()} | {
        "seed": seed,
        # the tokenizer's end, which the model was trained on; the model's config may name another
        "stop_token_ids": [eos],
        "detokenize": False,  # `read` makes the text, as for the other backend
    }


def effective_sampler(params: Sequence[Any]) -> dict[str, Any]:
    """The recipe's names for what vLLM made of its SamplingParams; a setting that differs within a cell is a list."""
    values = {ours: sorted({getattr(one, theirs) for one in params}) for ours, theirs in _NAMES.items()}
    values["top_k"] = sorted({max(0, k) for k in values["top_k"]})  # vLLM may write off as -1
    return {name: some[0] if len(some) == 1 else some for name, some in values.items()}


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
