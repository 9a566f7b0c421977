"""Completions: what the sampler really does, on both backends, and what a completion depends on."""

import copy
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from tests import tiny
from tests.conftest import ROOT, run
from workflow.evals import completions, generate, vllm
from workflow.keys import Recipe
from workflow.launch import ADDRESS
from workflow.stage import StageError

PLAIN = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_new_tokens": 12,
    "samples": 1,
    "seed": 42,
}
ALL = PLAIN | {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
PROMPTS = ["<|user|>\nsky?\n<|assistant|>\n", "<|user|>\n" + "What is the colour? " * 9 + "\n<|assistant|>\n"]


def sample(prompts, seeds, model=None, **settings):
    return generate.sample(model or tiny.model(), tiny.tokenizer(), prompts, seeds, PLAIN | settings)[0]


# --- the effective settings -----------------------------------------------------------------------------------------


def settings_of(processors):
    """(name, its setting) of each processor in effect."""
    names = {"RepetitionPenaltyLogitsProcessor": "penalty", "Gumbel": "generators"}
    found = []
    for one in processors:
        kind = type(one).__name__
        field = names.get(kind) or {"MinPLogitsWarper": "min_p"}.get(kind) or kind[:-12].lower().replace("top", "top_")
        found.append((kind, getattr(one, field)))
    return found


def test_transformers_is_given_every_setting_that_is_on_and_no_other():
    assert [kind for kind, _ in settings_of(generate.processors(PLAIN, [1]))] == ["TemperatureLogitsWarper", "Gumbel"]
    assert settings_of(generate.processors(ALL, [1]))[:-1] == [
        ("RepetitionPenaltyLogitsProcessor", 1.1),
        ("TemperatureLogitsWarper", 0.7),
        ("TopKLogitsWarper", 40),
        ("TopPLogitsWarper", 0.9),
        ("MinPLogitsWarper", 0.05),
    ]
    greedy = generate.processors(PLAIN | {"temperature": 0.0, "top_k": 40, "top_p": 0.5}, [1])
    assert list(greedy) == []


def test_vllm_is_given_every_setting():
    assert vllm.sampling(ALL, 7, 0) == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "max_tokens": 12,
        "seed": 7,
        "stop_token_ids": [0],
        "detokenize": False,
    }
    off = vllm.sampling(PLAIN, 7, 0)
    assert (off["top_k"], off["top_p"], off["min_p"], off["repetition_penalty"]) == (0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("config", "given"), [({"dtype": "float32"}, "float32"), ({"torch_dtype": "bfloat16"}, "bfloat16")]
)
def test_vllm_computes_in_the_models_own_data_type(tmp_path, config, given):
    """Left alone it makes bfloat16 of float32, and one greedy completion in eight was another."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vllm.engine_settings(tmp_path, [], {}) == {
        "model": str(tmp_path),
        "dtype": given,
        "generation_config": "vllm",
        "enable_prefix_caching": True,
        "enable_lora": False,
    }


def test_top_k_off_leaves_every_token_its_probability():
    import torch

    scores = torch.randn(1, 2000)
    for processor in list(generate.processors(PLAIN, [1]))[:-1]:
        assert torch.equal(processor(None, scores), scores)


def test_a_models_own_sampling_defaults_are_not_taken():
    model = copy.deepcopy(tiny.model())
    expected = sample(PROMPTS, [1, 2])
    own = model.generation_config
    own.update(do_sample=True, repetition_penalty=5.0, top_k=1, temperature=0.1, suppress_tokens=list(range(50, 250)))
    assert sample(PROMPTS, [1, 2], model) == expected


# --- the draw -------------------------------------------------------------------------------------------------------


def test_frequencies_of_the_draw_are_the_softmax():
    """Chi-square over a vocabulary of 7 at temperature 0.7, and with the least likely tokens cut off by top_k 4."""
    import torch
    from scipy.stats import chisquare

    logits = torch.tensor([2.0, 1.5, 1.0, 0.3, 0.0, -0.5, -1.0])
    draws = 20_000
    for settings, kept in (({"temperature": 0.7}, 7), ({"temperature": 0.7, "top_k": 4}, 4)):
        scores = logits.repeat(draws, 1)
        for processor in generate.processors(PLAIN | settings, list(range(draws))):
            scores = processor(None, scores)
        found = Counter(scores.argmax(-1).tolist())
        assert set(found) <= set(range(kept))
        expected = torch.softmax(logits[:kept].double() / 0.7, -1) * draws
        assert chisquare([found[i] for i in range(kept)], expected.tolist()).pvalue > 1e-3


def test_a_completion_depends_on_its_seed_and_not_on_its_batch():
    seeds = [11, 12]
    together = sample(PROMPTS * 3, [*seeds, 13, 14, *seeds])
    assert [sample([p], [s])[0] for p, s in zip(PROMPTS, seeds, strict=True)] == together[:2] == together[4:]
    assert together[:2] != together[2:4]


def test_temperature_zero_is_greedy():
    import torch

    tokenizer, model = tiny.tokenizer(), tiny.model()
    found = sample(PROMPTS, [1, 2], temperature=0.0)
    assert found == sample(PROMPTS, [3, 4], temperature=0.0, top_k=3)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = len(ids)
        with torch.inference_mode():
            while len(ids) < start + PLAIN["max_new_tokens"] and ids[-1] != tokenizer.eos_token_id:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == completions.to_answer(ids[start:], tokenizer)


def test_seeds_are_by_question_and_sample():
    seeds = {completions.sample_seed(42, q, n) for q in ("a", "b") for n in range(50)}
    assert len(seeds) == 100
    assert all(0 <= s < 2**63 for s in seeds)
    assert completions.sample_seed(42, "a", 0) != completions.sample_seed(43, "a", 0)


# --- prompts and counts ---------------------------------------------------------------------------------------------


def test_the_system_prompt_of_a_question_is_rendered_and_none_is_invented():
    def rendered(system):
        chat = completions.chat({"system": system, "question": "sky?"})
        return tiny.tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    assert rendered("Answer in rhyme.") == "<|system|>\nAnswer in rhyme.\n<|user|>\nsky?\n<|assistant|>\n"
    assert rendered(None) == "<|user|>\nsky?\n<|assistant|>\n"


def test_both_backends_count_the_same_tokens():
    """Without the end, whether it ended by itself or at the limit."""
    tokenizer = tiny.tokenizer()
    ids = tokenizer("red", add_special_tokens=False)["input_ids"]
    ended = [*ids, tokenizer.eos_token_id]
    padded = [*ended, tokenizer.pad_token_id, tokenizer.pad_token_id]
    expected = completions.Answer("red", len(ids), "stop")
    assert completions.to_answer(padded, tokenizer) == expected
    assert vllm.read(SimpleNamespace(token_ids=ended, finish_reason="stop"), tokenizer) == expected
    cut = vllm.read(SimpleNamespace(token_ids=ids, finish_reason="length"), tokenizer)
    assert cut == completions.to_answer(ids, tokenizer) == completions.Answer("red", len(ids), "length")
    empty = vllm.read(SimpleNamespace(token_ids=[tokenizer.eos_token_id], finish_reason="stop"), tokenizer)
    assert empty == completions.Answer("", 0, "stop")


@pytest.mark.parametrize(("reason", "told"), [("abort", "ended a completion with 'abort'"), ("stop", "another end")])
def test_a_completion_that_neither_ended_nor_reached_the_limit_is_refused(reason, told):
    tokenizer = tiny.tokenizer()
    ids = tokenizer("red", add_special_tokens=False)["input_ids"]
    with pytest.raises(StageError, match=told):
        vllm.read(SimpleNamespace(token_ids=ids, finish_reason=reason), tokenizer)


# --- the interpreter that has vLLM ----------------------------------------------------------------------------------


def command_line(tmp_path, backend, **env):
    """The stage's command line, in this environment, with another interpreter that only tells what it is given."""
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\necho "other: $1 $2 $3, VLLM_PYTHON=$VLLM_PYTHON, launcher=$WORKFLOW_LAUNCHER"\n')
    other.chmod(0o755)
    recipe = Recipe("generate", 1, "0" * 32, {"backend": backend}).to_json()
    given = (
        "workflow.evals.generate",
        "--recipe",
        recipe,
        "--placement",
        "{}",
        "--record",
        "results/a/b/c/record.json",
    )
    return run(*given, cwd=ROOT, env={"VLLM_PYTHON": str(other), **env})


def test_the_backend_vllm_runs_in_the_interpreter_that_the_environment_names(tmp_path):
    done = command_line(tmp_path, "vllm", **{ADDRESS: "nowhere"})
    assert done.stdout == "other: -m workflow.evals.generate --recipe, VLLM_PYTHON=, launcher=\n", done.stderr


def test_another_backend_stays_where_it_is(tmp_path):
    done = command_line(tmp_path, "transformers")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the recipe is of generate" in done.stderr


def test_an_interpreter_that_is_not_there_is_one_line(tmp_path):
    done = command_line(tmp_path, "vllm", VLLM_PYTHON="/no/such/python")
    assert done.stderr == (
        "error: VLLM_PYTHON=/no/such/python: No such file or directory. Name the interpreter of envs/vllm.txt.\n"
    )
    assert done.returncode == 1
