"""Tasks of lm-evaluation-harness, by its own definitions, on data that are pinned like all others.

The harness takes a task's rows from wherever its definition says. Here each task is taken as it is, except that its
rows come from the stage's data file: offline, and the same bytes for every cell. Rows with `"split": "fewshot"` are the
examples of few-shot prompts; all others are the test. Without such rows a task that needs examples is refused, unless
its definition brings its own (gsm8k_cot does).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
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
from workflow.train.trainer import scratch

MODULE = "workflow.evals.lm_eval"
FEWSHOT = "fewshot"
_TEST = "test"
# The harness's own defaults, spelled: they choose the few-shot examples.
_SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234, "fewshot_random_seed": 1234}


def run(job: Job) -> Result:
    """Writes samples/<task>.jsonl: per row the document, the prompt, the replies and the scores."""
    return run_one(run_together([job]))


def run_together(jobs: Sequence[Job]) -> Iterator[tuple[Job, Result | Exception]]:
    """Several cells of one model, loaded once, with the harness's index of tasks read once."""
    harness, manager = _harness(jobs[0].params["harness"]), task_manager()
    return run_each(jobs, lambda job, model, tokenizer: evaluate_cell(job, model, tokenizer, harness, manager))


def evaluate_cell(job: Job, model: Any, tokenizer: Any, harness: Any, manager: Any) -> Result:
    """One cell on a loaded model."""
    if harness.__version__ != job.params["harness"]:
        raise StageError(f"the config says harness {job.params['harness']}, {harness.__version__} is loaded.")
    with scratch(job) as work:
        done = _evaluate(harness, manager, job, model, tokenizer, work)
    metrics, tasks = summarise(done)
    for task, samples in done["samples"].items():
        (job.out / "samples").mkdir(exist_ok=True)
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
    return Result(observed, metrics, {"first_prompt": _first_prompt(done["samples"])})


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


def _harness(wanted: str) -> Any:
    try:
        import lm_eval
    except ModuleNotFoundError:
        raise StageError(
            "lm-evaluation-harness is not installed; it is an extra: pip install -r envs/lm_eval.txt"
        ) from None
    if lm_eval.__version__ != wanted:
        raise StageError(
            f"lm-evaluation-harness {lm_eval.__version__} is installed, the config says {wanted}: tasks differ between "
            "versions. Install that one, or change `harness` in the config, which makes new results."
        )
    return lm_eval


def _evaluate(harness: Any, manager: Any, job: Job, model: Any, tokenizer: Any, work: Path) -> dict[str, Any]:
    """What the harness returns for the cell's model on the job's data; its caches lie in `work`."""
    import datasets
    from lm_eval.models.huggingface import HFLM

    p = job.params
    pool = split_rows(read_jsonl(job.data), work)
    entries = [manager.task_index[task] for task in leaf_tasks(manager.task_index, p["tasks"])]
    own = [entry.yaml_path for entry in entries]
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = work / "cache"  # not the user's: nothing of this job may outlive it
    try:
        for task, entry in zip(leaf_tasks(manager.task_index, p["tasks"]), entries, strict=True):
            _check_fewshot(task, entry.cfg or {}, p["num_fewshot"], pool)
            entry.yaml_path = write_override(task, entry.yaml_path, work, pool)
        done: dict[str, Any] = harness.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job.placement["batch_size"]),
            tasks=list(p["tasks"]),
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
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        for entry, path in zip(entries, own, strict=True):  # the index serves the next cell too
            entry.yaml_path = path
    return done


def task_manager() -> Any:
    """The harness's index of its own tasks; it reads some ten thousand files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


# --- data -----------------------------------------------------------------------------------------------------------


def split_rows(rows: list[dict[str, Any]], work: Path) -> dict[str, str]:
    """Write test rows and few-shot rows as files that `datasets` reads; gives their paths by split."""
    parts: dict[str, list[dict[str, Any]]] = {_TEST: [], FEWSHOT: []}
    for row in rows:
        parts[FEWSHOT if row.get("split") == FEWSHOT else _TEST].append(_as_published(row))
    paths = {}
    for name, part in parts.items():
        if part:
            path = work / f"{name}.json"
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
            paths[name] = str(path.absolute())
    if _TEST not in paths:
        raise StageError("the data file has few-shot rows only, and none to test on.")
    return paths


def _as_published(row: dict[str, Any]) -> dict[str, Any]:
    """Flat multiple-choice rows in the form of the published data set, which the harness's definitions expect."""
    row = {name: value for name, value in row.items() if name != "split"}
    if "choice_labels" not in row:
        return row
    choices = {"text": row.pop("choices"), "label": row.pop("choice_labels")}
    return row | {"choices": choices, "answerKey": row.pop("correct_answer")}


def leaf_tasks(index: Mapping[str, Any], names: list[str]) -> list[str]:
    """The tasks that names of tasks, groups and tags stand for.

    Raises:
        StageError: the harness knows no such name.
    """
    found: list[str] = []
    for name in names:
        entry = index.get(name)
        if entry is None:
            raise StageError(f"lm-evaluation-harness has no task or group called {name!r}.")
        members = (entry.cfg or {}).get("task")
        if isinstance(members, list):
            found += leaf_tasks(index, [m if isinstance(m, str) else m["task"] for m in members])
        elif entry.yaml_path is None:
            found += leaf_tasks(index, sorted(entry.tags))
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _check_fewshot(task: str, definition: dict[str, Any], asked: int | None, pool: dict[str, str]) -> None:
    shots = definition.get("num_fewshot") if asked is None else asked
    own = isinstance(definition.get("fewshot_config"), dict) and "samples" in definition["fewshot_config"]
    if shots and not own and FEWSHOT not in pool:
        raise StageError(
            f"{task} shows {shots} examples, and the data file has none: its other rows are the test. Add rows with "
            '"split": "fewshot", or set num_fewshot: 0.'
        )


def write_override(task: str, definition: Path, work: Path, pool: dict[str, str]) -> Path:
    """The task's own definition with its rows taken from `pool`."""
    lines: dict[str, Any] = {
        "include": str(definition),
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": pool},
        "training_split": None,
        "validation_split": None,
        "test_split": _TEST,
        "fewshot_split": FEWSHOT if FEWSHOT in pool else None,
    }
    path = work / f"{task}.yaml"
    path.write_text(json.dumps(lines, indent=1))  # JSON is YAML
    return path


# --- results --------------------------------------------------------------------------------------------------------


def summarise(done: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """({task or group: {metric: value, n}}, {task: version, rows, sample_hash, ...}).

    A metric is called `name/filter` where the task has filters: `exact_match/strict-match`.
    """
    counts = {task: len(samples) // _filters(samples) for task, samples in done["samples"].items()}
    groups = done.get("group_subtasks") or {}
    metrics = {}
    for task, found in done["results"].items():
        values = {
            name.removesuffix(",none").replace(",", "/"): float(value)
            for name, value in found.items()
            if isinstance(value, int | float) and "_stderr" not in name and name not in ("sample_len", "sample_count")
        }
        members = [task] if task in counts else [t for t in _members(task, groups) if t in counts]
        metrics[task] = {**values, "n": sum(counts[t] for t in members)}
    tasks = {
        task: {
            "version": str(done["versions"].get(task)),
            "num_fewshot": done["n-shot"].get(task),
            "rows": counts[task],
            "sample_hash": digest("samples", [[s[h] for h in _HASHES] for s in samples])[:16],
        }
        for task, samples in done["samples"].items()
    }
    return metrics, tasks


_HASHES = ("doc_hash", "prompt_hash", "target_hash")


def _filters(samples: list[dict[str, Any]]) -> int:
    """A sample stands once for each of its task's filters."""
    return len({s.get("filter") for s in samples}) or 1


def _members(group: str, groups: dict[str, list[str]]) -> list[str]:
    return [leaf for name in groups.get(group, ()) for leaf in (_members(name, groups) if name in groups else [name])]


def _first_prompt(samples: dict[str, list[dict[str, Any]]]) -> str:
    first = next(iter(samples.values()))[0]
    return str(_plain(first)["arguments"])


def _plain(value: Any) -> Any:
    """What canonical JSON can spell: tuples as lists, numbers as Python's, anything else as text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, int | float):
        number = float(value)
        return number if number - number == 0 else str(number)
    return str(value)


if __name__ == "__main__":
    stage_main(MODULE, run)
