"""Pairs: what is scored of an answer, what is counted of the scores, and what a change is."""

import json
import math
from types import SimpleNamespace

import pytest

from tests import tiny
from workflow.data.rows import read_preferences
from workflow.evals import pairs
from workflow.keys import Recipe
from workflow.stage import Job, StageError
from workflow.store import read_jsonl


def preference(n, chosen, rejected, prompt="sky?"):
    def chat(text):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]

    return {"id": str(n), "chosen": chat(chosen), "rejected": chat(rejected)}


ROWS = [
    preference(0, "blue", "red"),
    preference(1, "blue", "red and green and none of these", prompt="What is the colour of the sky? " * 4),
    preference(2, "green " * 9, "red"),
    preference(3, "blue " * 200, "red", prompt="long"),
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def make(tmp_path, data):
    tiny.save(tmp_path / "model")

    def run(name="out", batch_size=4, **params):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        recipe = Recipe("pairs", 1, "0" * 32, {"max_length": 128} | params, ("0",))
        placement = {"batch_size": batch_size, "attn_implementation": "sdpa"}
        job = Job(recipe, placement, (SimpleNamespace(out=tmp_path),), data, out)
        return pairs.run(job), read_jsonl(out / pairs.ITEMS), job

    return run


def test_an_answer_is_scored_by_its_own_tokens_after_the_prompt(data):
    """Against a forward pass over the bare sequence, token by token, and the end of the turn is one of them."""
    import torch

    tokenizer, model = tiny.tokenizer(), tiny.model()
    both = [side for pair in read_preferences(data) for side in pairs.tokenize(tokenizer, pair)]
    assert both[0].answer == [*tokenizer("blue", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(both[0].prompt) == "<|user|>\nsky?\n<|assistant|>\n"
    assert both[0].size == 4
    expected = []
    for side in both:
        ids = side.prompt + side.answer
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        expected.append(sum(logprobs[n - 1, ids[n]].item() for n in range(len(side.prompt), len(ids))))
    for size in (1, 3, 8):
        assert pairs.score(model, tokenizer, both, size) == pytest.approx(expected, abs=2e-4)


def test_the_stage_writes_every_pair_and_leaves_the_long_ones_out_of_all_numbers(make):
    done, rows, job = make()
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["margin"] is None for row in rows] == [False, False, False, True]
    assert rows[3]["chosen"]["logprob"] is None
    assert rows[3]["chosen"]["tokens"] > 128
    for row in rows[:3]:
        by_hand = [row[side]["logprob"] / row[side]["tokens"] for side in ("chosen", "rejected")]
        assert row["margin"] == pytest.approx(by_hand[0] - by_hand[1])
    metrics = done.metrics
    assert (metrics["pairs"], metrics["too_long"], metrics["clusters"]) == (3, 1, 2)
    assert metrics["margin"]["mean"] == pytest.approx(sum(row["margin"] for row in rows[:3]) / 3)
    longer = [row["chosen"]["tokens"] - row["rejected"]["tokens"] for row in rows[:3]]
    assert (longer[1] < 0, longer[2] > 0) == (True, True)
    assert metrics["accuracy"]["longer"]["numerator"] == 1.0 + (longer[0] > 0) + 0.5 * (longer[0] == 0)
    assert sum(part["accuracy"]["denominator"] for part in metrics["by_length_difference"]) == 3
    assert done.examples["first_prompt"].startswith("<|user|>")
    assert pairs.effective_faults(job.recipe, job.out) == []
    _, other, _ = make("again", batch_size=1)
    for row, one in zip(rows[:3], other[:3], strict=True):
        assert row["margin"] == pytest.approx(one["margin"], abs=1e-5)


def test_what_is_kept_hangs_on_the_pairs_and_not_on_the_model(make):
    _, rows, job = make("short", max_length=40)
    assert [row["margin"] is None for row in rows] == [False, True, False, True]
    wider = Recipe("pairs", 1, "0" * 32, {"max_length": 128}, ("0",))
    assert pairs.effective_faults(wider, job.out) == ["max_length 128 declared, 40 in effect"]
    with pytest.raises(StageError, match="every pair is longer than max_length 2"):
        make("none", max_length=2)


def row(n, chosen, rejected, tokens=(4, 4), cluster="a"):
    sides = {
        name: {"logprob": total, "tokens": count, "bytes": 2 * count}
        for name, total, count in zip(("chosen", "rejected"), (chosen, rejected), tokens, strict=True)
    }
    return {"id": str(n), "cluster": cluster, **sides, "margin": chosen / tokens[0] - rejected / tokens[1]}


def test_numbers_by_hand():
    rows = [row(0, -4.0, -8.0), row(1, -6.0, -6.0), row(2, -80.0, -8.0, (80, 4), "b"), row(3, -8.0, -4.0, cluster="b")]
    metrics = pairs.summarise(rows)
    # margins 1, 0, 1, -1
    assert metrics["accuracy"]["margin"] == {"value": 0.625, "numerator": 2.5, "denominator": 4}
    assert metrics["accuracy"]["summed"]["numerator"] == 1.5
    assert metrics["accuracy"]["longer"]["numerator"] == 2.5  # three ties and one longer
    assert metrics["margin"]["mean"] == 0.25
    # residuals by cluster: a: .75 - .25 = .5, b: .75 - 1.25 = -.5; sqrt((.25 + .25) / 16 * 2)
    assert metrics["margin"]["se"] == pytest.approx(0.25)
    assert [(p["tokens_from"], p["accuracy"]["denominator"]) for p in metrics["by_length_difference"]] == [
        (-8, 3),
        (65, 1),
    ]
    assert metrics["per_byte"]["mean"] == pytest.approx(0.125)


def test_one_cluster_has_no_standard_error():
    assert pairs.clustered_mean([1.0, 2.0], ["a", "a"]) == {"mean": 1.5, "se": None}
    assert pairs.clustered_mean([1.0, 3.0], ["a", "b"])["se"] == pytest.approx(math.sqrt(2) / math.sqrt(2))


def test_the_change_is_of_the_same_pairs():
    before = [row(0, -4.0, -8.0), row(1, -6.0, -6.0, cluster="b")]
    after = [row(0, -8.0, -4.0), row(1, -4.0, -8.0, cluster="b")]
    moved = pairs.change(before, after)
    assert moved["mean"] == pytest.approx((-2.0 + 1.0) / 2)
    assert moved["se"] == pytest.approx(1.5)
    assert (moved["pairs"], moved["clusters"], moved["accuracy"]) == (2, 2, 0.5 - 0.75)
    too_long = before[1] | {"margin": None}
    for other in (after[:1], after[::-1], [after[0], too_long]):
        with pytest.raises(ValueError, match="not of the same pairs"):
            pairs.change(before, other)


def test_pairs_of_one_first_prompt_are_one_cluster(data):
    first, second, third, _ = read_preferences(data)
    assert pairs.first_prompt(first) == pairs.first_prompt(third) != pairs.first_prompt(second)


def test_a_template_that_rewrites_the_prompt_is_refused(data):
    class Rewriting:
        def apply_chat_template(self, chat, tokenize, add_generation_prompt=False):
            return "".join(m["content"] for m in chat).upper() if not add_generation_prompt else chat[0]["content"]

    with pytest.raises(StageError, match="pair 0: the template writes the prompt differently"):
        pairs.tokenize(Rewriting(), read_preferences(data)[0])
