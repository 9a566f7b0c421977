"""Several cells with one loaded model: the same bytes as alone, one failure at a time, effective settings checked."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import tiny
from tests.conftest import ROOT
from workflow.evals import arc, completions, generate, model, vllm
from workflow.keys import Recipe, hash_file
from workflow.stage import Job, Request, Result, StageError, execute, execute_all
from workflow.store import read_jsonl, record_path, write_jsonl

SAMPLER = {
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "max_new_tokens": 8,
    "samples": 2,
    "seed": 42,
}
PARAMS = {
    "arc": {"prefill": "assistant", "permutations": True},
    "generate": {"backend": "transformers", "sampler": SAMPLER},
}
MODULES = {"arc": arc, "generate": generate}
MAIN = {"arc": "items.jsonl", "generate": "completions.jsonl"}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base and three adapters that each change what it says."""
    import torch
    from peft import LoraConfig, get_peft_model

    from workflow.train.models import save

    root = tmp_path_factory.mktemp("models")
    tiny.save(root / "base/model")
    for number in range(3):
        torch.manual_seed(number)
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(root / "base/model")
        adapter = get_peft_model(
            base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
        for name, weights in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weights, std=0.3)
        save(adapter, None, root / f"adapter{number}/adapter")
    return root


@pytest.fixture
def job_of(models, tmp_path):
    """A job of a stage on the base (None) or one of the adapters."""
    items = [
        {"id": str(n), "question": "What is the colour? " * (1 + n), "choices": ["red", "blue", "green"]}
        | {"choice_labels": list("ABC"), "correct_answer": "ABC"[n % 3]}
        for n in range(5)
    ]
    write_jsonl(tmp_path / "arc.jsonl", items)
    write_jsonl(tmp_path / "generate.jsonl", [{"id": f"q{n}", "system": None, "question": "sky? " * n} for n in (1, 3)])

    def make(stage, adapter, folder, **changes):
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        parents = (SimpleNamespace(out=models / "base"),)
        if adapter is not None:
            parents += (SimpleNamespace(out=models / f"adapter{adapter}"),)
        recipe = Recipe(stage, 1, "0" * 32, {**PARAMS[stage], **changes}, tuple(str(n) for n in range(len(parents))))
        placement = {"batch_size": 3, "attn_implementation": "sdpa"}
        return Job(recipe, placement, parents, tmp_path / f"{stage}.jsonl", out)

    return make


@pytest.mark.parametrize("stage", ["arc", "generate"])
def test_a_cell_together_with_others_has_the_bytes_that_it_has_alone(job_of, stage):
    """In any order: with an adapter between the base's two turns."""
    order = [0, None, 1, 2, None]
    jobs = [job_of(stage, adapter, f"together{n}") for n, adapter in enumerate(order)]
    done = list(MODULES[stage].run_together(jobs))
    assert [job for job, _ in done] == jobs
    digests = []
    for (job, result), adapter in zip(done, order, strict=True):
        own = job_of(stage, adapter, "alone")
        alone = MODULES[stage].run(own)
        assert alone == result
        for name in (MAIN[stage], model.EFFECTIVE):
            assert hash_file(job.out / name) == hash_file(own.out / name)
        digests.append(hash_file(job.out / MAIN[stage]))
    assert digests[1] == digests[4]
    assert len(set(digests)) == 4  # each adapter was in effect


def test_one_cells_failure_is_its_own(job_of):
    jobs = [job_of("arc", adapter, f"x{adapter}") for adapter in (0, 1, 2)]
    jobs[1].data.with_name("bare.jsonl").write_text('{"id": "1", "question": "q", "choices": [], "answer": ""}\n')
    bad = Job(jobs[1].recipe, jobs[1].placement, jobs[1].parents, jobs[1].data.with_name("bare.jsonl"), jobs[1].out)
    results = [result for _, result in arc.run_together([jobs[0], bad, jobs[2]])]
    assert isinstance(results[1], Exception)
    assert isinstance(results[0], Result)
    assert results[2] == arc.run(job_of("arc", 2, "again"))


@pytest.fixture
def requests_on_one_model(tmp_path, monkeypatch):
    """Three results of arc on one model's record; the items of the one in the middle have no options."""
    monkeypatch.chdir(tmp_path)
    base = Recipe("base", 1, "0" * 32, {})
    parent = Path(record_path("base", "base", base.key))

    def save(job):
        tiny.save(job.out / "model")
        return Result({}, {})

    execute("workflow.train.base", save, base, {}, [], None, parent)
    made = []
    for name, choices in (("a", ["red", "blue"]), ("b", []), ("c", ["blue", "green"])):
        item = {"id": name, "question": f"{name}?"} | (
            {"choices": choices, "choice_labels": ["A", "B"]} if choices else {}
        )
        data = Path(f"{name}.jsonl")
        write_jsonl(data, [item | ({"correct_answer": "A"} if choices else {"answer": "#### 1"})])
        recipe = Recipe("arc", 1, hash_file(data, "md5"), PARAMS["arc"], (base.key,))
        placement = {"batch_size": 3, "attn_implementation": "sdpa", "together": 3}
        made.append(Request(recipe, placement, (parent,), data, Path(record_path("arc", "base", recipe.key))))
    return made


@pytest.mark.parametrize("own", [0, 1])
def test_a_cell_that_fails_voids_neither_the_job_nor_its_siblings(requests_on_one_model, capsys, own):
    """Whether the job is its own or another's: the two others are published, and their jobs find them."""
    requests = requests_on_one_model
    siblings = [r for r in requests if r is not requests[own]]
    ended = pytest.raises(StageError, match="have no options") if own == 1 else nullcontext()
    with ended:
        execute_all(arc.MODULE, arc.run, requests[own], siblings, arc.run_together)
    assert [r.record.exists() for r in requests] == [True, False, True]
    assert f"{requests[1].record}: failed in a job with others" in capsys.readouterr().err
    for request in (requests[0], requests[2]):
        execute_all(arc.MODULE, arc.run, request)
        assert "restored its record" in capsys.readouterr().err


def test_after_memory_ran_out_no_more_are_made(job_of):
    import torch

    jobs = [job_of("arc", adapter, f"x{adapter}") for adapter in (0, 1, 2)]
    begun = []

    def make(job, loaded, tokenizer):
        begun.append(job)
        if job is jobs[1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return arc.score_cell(job, loaded, tokenizer)

    results = list(model.run_each(jobs, make))
    assert begun == jobs[:2] == [job for job, _ in results]
    assert "memory ran out. Lower batch_size" in str(results[1][1])


def test_a_bug_is_no_cells_failure(job_of):
    def make(job, loaded, tokenizer):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        list(model.run_each([job_of("arc", 0, "x")], make))


def test_cells_of_another_backend_are_left_to_their_own_jobs(job_of):
    jobs = [job_of("generate", 0, "a"), job_of("generate", 1, "b", backend="vllm"), job_of("generate", 2, "c")]
    assert [job for job, _ in generate.run_together(jobs)] == [jobs[0], jobs[2]]


# --- declared against effective -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.5),
        ("top_p", 0.8),
        ("top_k", 10),
        ("min_p", 0.2),
        ("repetition_penalty", 1.3),
        ("max_new_tokens", 5),
    ],
)
def test_a_sampler_that_is_not_the_declared_one_fails_the_stage(job_of, monkeypatch, name, value):
    """Planted between the recipe and the library, where a wrong name would sit."""
    honest = generate.sample
    monkeypatch.setattr(generate, "sample", lambda m, t, p, s, sampler: honest(m, t, p, s, sampler | {name: value}))
    with pytest.raises(
        StageError, match=rf"not what was declared: sampler\.{name} {SAMPLER[name]} declared, {value} in"
    ):
        generate.run(job_of("generate", 0, "x"))


def test_an_adapter_that_is_not_in_effect_fails_the_stage(job_of, monkeypatch):
    from contextlib import contextmanager

    @contextmanager
    def forgotten(base, job):
        yield base

    monkeypatch.setattr(model, "adapted", forgotten)
    with pytest.raises(StageError, match=r"adapter .*'r': 4.* declared, None in effect"):
        arc.run(job_of("arc", 0, "x"))


def test_another_data_type_fails_the_stage(job_of, monkeypatch):
    load = model.load_base

    def half(job):
        loaded, tokenizer = load(job)
        return loaded.bfloat16(), tokenizer

    monkeypatch.setattr(model, "load_base", half)
    with pytest.raises(StageError, match="dtype float32 declared, bfloat16 in effect"):
        arc.run(job_of("arc", None, "x"))


def changed(job, name, edit):
    rows = read_jsonl(job.out / name)
    edit(rows)
    write_jsonl(job.out / name, rows)


def test_saved_completions_are_held_against_the_recipe(job_of):
    job = job_of("generate", 0, "x")
    generate.run(job)
    assert generate.effective_faults(job.recipe, job.out) == []
    for edit, fault in (
        (lambda rows: rows[1].update(seed=7), "sampler.seed 42 declared, row 1"),
        (lambda rows: rows.pop(1), "sampler.samples 2 declared, row 1 is sample 0"),
        (lambda rows: rows[0].update(tokens=9), "sampler.max_new_tokens 8 declared, row 0 has 9"),
        (
            lambda rows: rows[0].update(tokens=7, finish_reason="length"),
            "sampler.max_new_tokens 8 declared, row 0 has 7",
        ),
    ):
        kept = (job.out / "completions.jsonl").read_bytes()
        changed(job, "completions.jsonl", edit)
        assert generate.effective_faults(job.recipe, job.out)[0].startswith(fault)
        (job.out / "completions.jsonl").write_bytes(kept)
    (job.out / model.EFFECTIVE).unlink()  # a result of before there was one
    assert generate.effective_faults(job.recipe, job.out) == []


def test_saved_items_are_held_against_the_recipe(job_of):
    job = job_of("arc", 0, "x")
    arc.run(job)
    assert arc.effective_faults(job.recipe, job.out) == []
    for changes, fault in (
        ({"prefill": "user"}, "prefill user declared, assistant in effect"),
        ({"permutations": False}, "permutations False declared, 5 items are of the other kind"),
    ):
        assert arc.effective_faults(job_of("arc", 0, "x", **changes).recipe, job.out) == [fault]
    assert "adapter" in arc.effective_faults(job_of("arc", None, "x").recipe, job.out)[0]


# --- vLLM's engine, as far as it needs no engine --------------------------------------------------------------------


def test_one_engine_has_room_for_all_adapters(models):
    adapters = [models / f"adapter{n}/adapter" for n in range(3)]
    placement = {"enforce_eager": True, "cudagraph_capture_sizes": [1, 8], "max_model_len": 512}
    settings = vllm.engine_settings(models / "base/model", adapters, placement)
    assert (settings["enable_lora"], settings["max_loras"], settings["max_lora_rank"]) == (True, 3, 8)
    assert settings["enable_prefix_caching"] is True
    assert settings["enforce_eager"] is True
    assert settings["max_model_len"] == 512
    assert settings["compilation_config"] == {"cudagraph_capture_sizes": [1, 8]}
    assert "gpu_memory_utilization" not in settings


ENGINE = """
import subprocess, threading, time
import psutil
from workflow.evals.vllm import end_with
engine = subprocess.Popen(["sleep", "600"])
threading.Thread(target=end_with, args=([psutil.Process(engine.pid)], threading.Event(), 0.05), daemon=True).start()
engine.kill()
time.sleep(600)  # as vLLM waits for a dead engine's answer
"""


def test_a_killed_engine_ends_the_job_that_waits_for_it():
    done = subprocess.run([sys.executable, "-c", ENGINE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: vLLM's engine was killed. Run again; finished cells stay.\n"


def test_vllms_sampler_is_read_back_under_the_recipes_names():
    one = vllm.sampling(SAMPLER, 1, 0)
    params = [SimpleNamespace(**one), SimpleNamespace(**one | {"seed": 2})]
    assert vllm.effective_sampler(params) == {n: v for n, v in SAMPLER.items() if n not in ("samples", "seed")}
    params[1].top_p = 0.5
    assert vllm.effective_sampler(params)["top_p"] == [0.5, 0.9]
    assert vllm.effective_sampler([SimpleNamespace(**one | {"top_k": -1})])["top_k"] == 0


def test_batch_invariance_is_a_setting_of_the_recipe_that_is_left_out_when_off():
    from tests.lessons.planted import demo
    from workflow.config import Config, ConfigError

    raw = demo()
    assert "batch_invariant" not in Config.from_dict(raw).instruments[0].model_dump(exclude_defaults=True)
    raw["instruments"][0]["batch_invariant"] = True
    with pytest.raises(ConfigError, match="is a mode of vLLM"):
        Config.from_dict(raw)
    raw["instruments"][0]["backend"] = "vllm"
    assert Config.from_dict(raw).instruments[0].batch_invariant


def test_the_effective_file_has_one_spelling(job_of):
    job = job_of("generate", None, "x")
    generate.run(job)
    effective = json.loads((job.out / model.EFFECTIVE).read_text())
    assert effective["sampler"] == {n: v for n, v in SAMPLER.items() if n not in ("samples", "seed")}
    assert completions.read_effective(job.out) == effective
