"""Tasks of lm-evaluation-harness, by its own definitions, on data that are pinned like all others.

The harness takes a task's rows from wherever its definition says. Here each task is taken as it is, except that its
rows come from the stage's data file: offline, and the same bytes for every cell. Rows with `"split": "fewshot"` are the
examples of few-shot prompts; all others are the test. Without such rows a task that needs examples is refused, unless
its definition brings its own (gsm8k_cot does).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workflow.evals.model import (
    adapter_faults,
    effective_model,
    read_effective,
    run_each,
    run_one,
    save_effective,
)
from workflow.keys import Recipe, digest
from workflow.stage import Job, Result, StageError, stage_main
from workflow.store import read_jsonl, write_jsonl
from workflow.train.models import data_facts, template_md5

MODULE = "workflow.evals.lm_eval"
# The harness's own defaults, spelled: they choose the few-shot examples.
_SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}
_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_NO_METRICS = ("sample_len", "sample_count")


def run(job: Job) -> Result:
    """Writes samples/<task>.jsonl: per row the document, the prompt, the replies and the scores."""
    return run_one(run_together([job]))


def run_together(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Exception]]:
    """Several cells of one model, loaded once, with the harness's index of tasks read once."""
    harness, manager = import_harness(jobs[0].params["harness"]), task_manager()
    return run_each(jobs, lambda job, model, tokenizer: evaluate_cell(job, model, tokenizer, harness, manager))


def evaluate_cell(job: Job, model: Any, tokenizer: Any, harness: Any, manager: Any) -> Result:
    """One cell on a loaded model."""
    from lm_eval.models.huggingface import HFLM

    p = job.params
    if harness.__version__ != p["harness"]:
        raise StageError(f"the config says harness {p['harness']}, {harness.__version__} is loaded.")
    done = harness.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job.placement["batch_size"]),
        tasks=load_tasks(manager, p["tasks"], read_jsonl(job.data), p["num_fewshot"]),
        num_fewshot=p["num_fewshot"],
        limit=p["limit"],
        gen_kwargs=None if p["max_gen_toks"] is None else {"max_gen_toks": p["max_gen_toks"]},
        apply_chat_template=p["apply_chat_template"],
        fewshot_as_multiturn=p["apply_chat_template"],
        task_manager=manager,
        bootstrap_iters=0,  # its standard errors treat rows as the unit; the report's unit is the cell
        log_samples=True,
        **_SEEDS,
    )
    metrics, tasks = summarise(done)
    (job.out / "samples").mkdir()
    for task, samples in done["samples"].items():
        write_jsonl(job.out / "samples" / f"{task}.jsonl", [_plain(s) for s in samples])
    effective = {**effective_model(model), "num_fewshot": {name: task["num_fewshot"] for name, task in tasks.items()}}
    save_effective(job, effective, effective_faults)
    observed = {
        "harness": harness.__version__,
        "tasks": tasks,
        "rows": sum(task["rows"] for task in tasks.values()),
        "template_md5": template_md5(tokenizer),
        "data_facts": data_facts(job.data),
    }
    first = next(iter(done["samples"].values()))[0]
    return Result(observed, metrics, {"first_prompt": str(_plain(first)["arguments"])})


def effective_faults(recipe: Recipe, out: Path) -> list[str]:
    """Where the samples in `out` are not what the recipe declares; each in words, none if they agree."""
    effective, declared = read_effective(out), recipe.params["num_fewshot"]
    faults = adapter_faults(recipe, effective)
    if effective is not None and declared is not None:
        faults += [
            f"num_fewshot {declared} declared, {shots} in effect in {task}"
            for task, shots in effective["num_fewshot"].items()
            if shots != declared
        ]
    return faults


def import_harness(version: str) -> Any:
    """The module, in the version that the config names.

    Raises:
        StageError: it is not there, or another version is.
    """
    try:
        import lm_eval
    except ModuleNotFoundError:
        raise StageError(
            "lm-evaluation-harness is not installed; it is an extra: pip install -r envs/lm_eval.txt"
        ) from None
    if lm_eval.__version__ != version:
        raise StageError(
            f"lm-evaluation-harness {lm_eval.__version__} is installed, the config says {version}: tasks differ "
            "between versions. Install that one, or change `harness` in the config, which makes new results."
        )
    return lm_eval


def task_manager() -> Any:
    """The harness's index of its own tasks; it reads some ten thousand files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def load_tasks(manager: Any, names: Sequence[str], rows: list[dict[str, Any]], num_fewshot: int | None) -> list[Any]:
    """The harness's tasks and groups of those names, by its own definitions, on these rows.

    Raises:
        StageError: the harness knows no such name, there is nothing to test on, or a task lacks its examples.
    """
    import datasets
    from lm_eval.tasks._factory import TaskFactory

    splits = {
        "test": [_as_published(row) for row in rows if row.get("split") != "fewshot"],
        "fewshot": [_as_published(row) for row in rows if row.get("split") == "fewshot"],
    }
    if not splits["test"]:
        raise StageError("the data file has few-shot rows only, and none to test on.")
    pool = {}
    for split, part in splits.items():
        names_of = dict.fromkeys(name for row in part for name in row)
        pool[split] = datasets.Dataset.from_dict({name: [row.get(name) for row in part] for name in names_of})
    ours = {
        "custom_dataset": lambda **_: pool,
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "fewshot" if splits["fewshot"] else None,
    }
    built: list[Any] = []
    for name in names:
        if (entry := manager.task_index.get(name)) is None:
            raise StageError(f"lm-evaluation-harness has no task or group called {name!r}.")
        tasks = TaskFactory().build(entry, overrides=ours, registry=manager.task_index)
        built += tasks if isinstance(tasks, list) else [tasks]
    for name, task in manager.load(built)["tasks"].items():
        shots = task.config.num_fewshot if num_fewshot is None else num_fewshot
        if shots and not splits["fewshot"] and task.fewshot_cfg.samples is None:
            raise StageError(
                f"{name} shows {shots} examples, and the data file has none: its other rows are the test. Add rows "
                'with "split": "fewshot", or set num_fewshot: 0.'
            )
    return built


def _as_published(row: dict[str, Any]) -> dict[str, Any]:
    """Flat multiple-choice rows in the form of the published data set, which the harness's definitions expect."""
    row = {name: value for name, value in row.items() if name != "split"}
    if "choice_labels" not in row:
        return row
    choices = {"text": row.pop("choices"), "label": row.pop("choice_labels")}
    return row | {"choices": choices, "answerKey": row.pop("correct_answer")}


def summarise(done: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """({task or group: {metric: value, n}}, {task: version, rows, sample_hash, ...}).

    A metric is called `name/filter` where the task has filters: `exact_match/strict-match`.
    """
    metrics = {
        task: {
            name.removesuffix(",none").replace(",", "/"): float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and "_stderr" not in name and name not in _NO_METRICS
        }
        | {"n": values["sample_len"]}
        for task, values in done["results"].items()
    }
    tasks = {
        task: {
            "version": str(done["versions"].get(task)),
            "num_fewshot": done["n-shot"].get(task),
            "rows": metrics[task]["n"],
            "sample_hash": digest("samples", [[s[h] for h in _HASHES] for s in samples])[:16],
        }
        for task, samples in done["samples"].items()
    }
    return metrics, tasks


def _plain(sample: Any) -> Any:
    """What canonical JSON can spell: tuples as lists, and what is no value of JSON as text, NaN too."""
    return json.loads(json.dumps(sample, default=str), parse_constant=str)


if __name__ == "__main__":
    stage_main(MODULE, run)
