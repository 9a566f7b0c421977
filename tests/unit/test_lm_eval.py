"""lm-evaluation-harness: its tasks as they are, on rows of ours, without a network."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests import tiny
from tests.fake import small, stand_ins
from workflow.config import Config
from workflow.data.checks import evaluation_sets
from workflow.evals import lm_eval
from workflow.keys import Recipe
from workflow.matrix import Matrix
from workflow.stage import Job, StageError

ROOT = Path(__file__).parents[2]
VERSION = "0.4.13"
PARAMS = {
    "harness": VERSION,
    "num_fewshot": None,
    "limit": None,
    "max_gen_toks": 8,
    "apply_chat_template": False,
}
SUM = {"question": "Two and two?", "answer": "2 + 2 = 4\n#### 4"}
COLOURS = [
    {"question": f"Colour {n}?", "choices": ["red", "blue", "none"], "choice_labels": ["1", "2", "3"]}
    | {"correct_answer": str(1 + n % 3), "id": str(n)}
    for n in range(5)
]
SUBJECTS = [
    *("biology", "business", "chemistry", "computer science", "economics", "engineering", "health"),
    *("history", "law", "math", "other", "philosophy", "physics", "psychology"),
]


@pytest.fixture
def harness(monkeypatch):
    """Reads two folders of tasks instead of thousands."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed: pip install -r envs/lm_eval.txt")
    from lm_eval import tasks

    folders = [str(Path(tasks.__file__).parent / name) for name in ("arc", "gsm8k", "mmlu_pro")]
    monkeypatch.setattr(
        lm_eval, "task_manager", lambda: tasks.TaskManager(include_defaults=False, include_path=folders)
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tasks


@pytest.fixture
def job_of(harness, tmp_path):
    def make(tasks, rows, **params):
        place = tmp_path / "model"
        if not place.exists():
            tiny.save(place / "out/model")
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        data = out.with_suffix(".jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = Recipe("lm_eval", 1, "0" * 32, {**PARAMS, "tasks": tasks, **params}, ("0",))
        parents = (SimpleNamespace(out=place / "out"),)
        return Job(recipe, {"batch_size": 4, "attn_implementation": "sdpa"}, parents, data, out)

    return make


def samples_of(job):
    return {p.stem: [json.loads(line) for line in p.open()] for p in job.out.glob("samples/*.jsonl")}


@pytest.fixture
def evaluate(job_of):
    def run(tasks, rows, **params):
        job = job_of(tasks, rows, **params)
        done = lm_eval.run(job)
        assert sorted(p.name for p in job.out.iterdir()) == ["effective.json", "samples"]  # no scratch, no cache
        return done, samples_of(job)

    return run


def test_arc_by_the_harness_on_flat_rows_with_numeric_labels(evaluate):
    done, samples = evaluate(["arc_challenge"], COLOURS)
    assert done.metrics["arc_challenge"]["n"] == 5
    assert set(done.metrics["arc_challenge"]) == {"acc", "acc_norm", "n"}
    assert done.observed["tasks"]["arc_challenge"]["version"] == "1.0"
    assert [s["doc"]["question"] for s in samples["arc_challenge"]] == [row["question"] for row in COLOURS]
    right = sum(s["acc"] for s in samples["arc_challenge"])
    assert done.metrics["arc_challenge"]["acc"] == pytest.approx(right / 5)
    assert done.examples["first_prompt"].startswith("[['Question: Colour 0?\\nAnswer:', ' red']")


def test_the_harness_and_the_model_agree_on_a_log_probability(evaluate):
    import torch

    _, samples = evaluate(["arc_challenge"], COLOURS[:1])
    tokenizer = tiny.tokenizer()
    prompt = tokenizer("Question: Colour 0?\nAnswer:")["input_ids"]
    ids = tokenizer("Question: Colour 0?\nAnswer: red")["input_ids"]
    with torch.inference_mode():
        logprobs = torch.log_softmax(tiny.model()(torch.tensor([ids])).logits[0], -1)
    expected = sum(logprobs[i - 1, ids[i]].item() for i in range(len(prompt), len(ids)))
    assert float(samples["arc_challenge"][0]["filtered_resps"][0][0]) == pytest.approx(expected, abs=1e-4)


def test_generation_with_the_chat_template_few_shot_rows_and_a_limit(evaluate):
    rows = [SUM | {"question": f"{n} and {n}?"} for n in range(3)]
    pool = [SUM | {"question": f"Example {n}?", "split": "fewshot"} for n in range(2)]
    done, samples = evaluate(["gsm8k"], rows + pool, num_fewshot=1, limit=2, apply_chat_template=True)
    assert done.metrics["gsm8k"]["n"] == 2
    assert {"exact_match/strict-match", "exact_match/flexible-extract"} < set(done.metrics["gsm8k"])
    assert done.observed["tasks"]["gsm8k"]["num_fewshot"] == 1
    prompts = [s["arguments"][0][0] for s in samples["gsm8k"]]
    assert len(prompts) == 4  # once for each filter
    for prompt in prompts:
        assert prompt.startswith("<|user|>\nQuestion: Example ")
        assert prompt.endswith("<|assistant|>\n")


def test_the_same_job_gives_the_same_samples_and_hashes(evaluate):
    one, samples = evaluate(["arc_challenge"], COLOURS)
    two, again = evaluate(["arc_challenge"], COLOURS)
    assert samples == again
    assert one.observed["tasks"] == two.observed["tasks"]
    other, _ = evaluate(["arc_challenge"], COLOURS[:4])
    key = "sample_hash"
    assert other.observed["tasks"]["arc_challenge"][key] != one.observed["tasks"]["arc_challenge"][key]


def test_cells_together_have_the_samples_that_they_have_alone(job_of, evaluate):
    """Other tasks on other rows in between: the index of tasks is read once and is as it was for each."""
    asked = [(["arc_challenge"], COLOURS), (["gsm8k"], [SUM]), (["arc_challenge"], COLOURS[:3])]
    jobs = [job_of(*one, num_fewshot=0) for one in asked]
    together = list(lm_eval.run_together(jobs))
    assert [job for job, _ in together] == jobs
    for (job, result), one in zip(together, asked, strict=True):
        alone, samples = evaluate(*one, num_fewshot=0)
        assert result == alone
        assert samples_of(job) == samples


def test_a_number_of_examples_that_is_not_the_declared_one_is_told(job_of):
    job = job_of(["gsm8k"], [SUM], num_fewshot=0)
    lm_eval.run(job)
    assert lm_eval.effective_faults(job.recipe, job.out) == []
    other = job_of(["gsm8k"], [SUM], num_fewshot=5)
    assert lm_eval.effective_faults(other.recipe, job.out) == ["num_fewshot 5 declared, 0 in effect in gsm8k"]


def test_a_tag_and_a_group_stand_for_their_tasks_and_a_group_counts_their_rows(evaluate):
    done, samples = evaluate(["ai2_arc"], COLOURS)
    assert set(samples) == {"arc_easy", "arc_challenge"} == set(done.metrics)
    rows = [
        {"question": "Q", "options": ["x", "y"], "answer": "A", "answer_index": 0, "cot_content": "c", "category": name}
        for name in SUBJECTS * 2
    ]
    done, samples = evaluate(["mmlu_pro"], rows, num_fewshot=0)
    assert len(samples) == len(SUBJECTS)
    assert done.metrics["mmlu_pro"]["n"] == 2 * len(SUBJECTS)
    assert done.metrics["mmlu_pro_law"]["n"] == done.observed["tasks"]["mmlu_pro_law"]["rows"] == 2


def test_an_unknown_task_is_refused(evaluate):
    with pytest.raises(StageError, match="no task or group called 'mmlu_pr'"):
        evaluate(["mmlu_pr"], COLOURS)


def test_examples_are_never_taken_from_the_test(evaluate):
    with pytest.raises(StageError, match="gsm8k shows 5 examples, and the data file has none"):
        evaluate(["gsm8k"], [SUM])


def test_another_version_of_the_harness_is_refused(evaluate):
    with pytest.raises(StageError, match=r"is installed, the config says 0\.4\.2"):
        evaluate(["gsm8k"], [SUM], harness="0.4.2")


def test_without_the_harness_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(StageError, match=r"pip install -r envs/lm_eval\.txt"):
        lm_eval.import_harness(VERSION)


def test_entries_of_the_full_config_are_planned_once_they_are_enabled(monkeypatch):
    """Before and after EM; what they ask is in the key, and their rows are looked for in the training data."""
    monkeypatch.chdir(ROOT)
    raw = small(yaml.safe_load((ROOT / "config/config.yaml").read_text()))

    def planned():
        config = Config.from_dict(raw)
        return config, Matrix(config, stand_ins(config)).nodes("lm_eval")

    config, nodes = planned()
    assert nodes == []
    assert "gsm8k_test" not in evaluation_sets(config)
    entry = next(e for e in raw["lm_eval"] if e["name"] == "gsm8k")
    entry["enabled"] = True
    config, nodes = planned()
    assert len(nodes) == 2 * (1 + 2)
    assert nodes[0].recipe.params == {k: v for k, v in entry.items() if k not in ("name", "enabled", "data")}
    assert "gsm8k_test" in evaluation_sets(config)
    entry["limit"] = 10
    assert {n.key for n in nodes}.isdisjoint(n.key for n in planned()[1])
