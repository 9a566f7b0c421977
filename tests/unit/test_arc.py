"""ARC: prompts, letters, batches and rotations."""

import json
import math
from types import SimpleNamespace

import pytest

from tests import tiny
from workflow.data.rows import Item, read_items
from workflow.evals import arc
from workflow.keys import Recipe
from workflow.stage import Job, StageError

ITEM = Item("sky", "What is the colour of the sky?", ("red", "blue", "green", "none"), "B")


def items() -> list[Item]:
    """3, 4 and 5 options, and questions of very different lengths."""
    found = []
    for number in range(23):
        n = (4, 3, 4, 5)[number % 4]
        question = " ".join(["What is the colour of the sky?"] * (1 + number % 5))
        options = tuple(f"colour {i * (number + 1)}" for i in range(n))
        found.append(Item(str(number), question, options, "ABCDE"[number % n]))
    return found


def scores(found: list[Item], batch_size: int) -> list[dict[str, float]]:
    tokenizer = tiny.tokenizer()
    prompts = [arc.render(item, tokenizer, "assistant") for item in found]
    letters = arc.letter_tokens(tokenizer, prompts[0], "ABCDE")
    return arc.score(tiny.model(), tokenizer, prompts, letters, batch_size)


def test_both_forms_of_the_prompt():
    options = "(A) red\n(B) blue\n(C) green\n(D) none"
    assert arc.render(ITEM, tiny.tokenizer(), "assistant") == (
        f"<|user|>\nWhat is the colour of the sky?\n\n{options}\n<|assistant|>\nThe correct answer is ("
    )
    assert arc.render(ITEM, tiny.tokenizer(), "user") == (
        f"<|user|>\nWhat is the colour of the sky?\n\n{options}\n\nThe correct answer is (\n<|assistant|>\n"
    )


@pytest.mark.parametrize("prefill", ["assistant", "user"])
def test_a_letter_is_one_token_of_its_own(prefill):
    tokenizer = tiny.tokenizer()
    letters = arc.letter_tokens(tokenizer, arc.render(ITEM, tokenizer, prefill), "ABCDE")
    assert [tokenizer.decode([token]) for token in letters.values()] == list("ABCDE")


def test_a_tokenizer_that_merges_the_letter_is_refused():
    class Merging:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [ord(c) for c in text[:-2]] + [hash(text[-2:])]}

    with pytest.raises(StageError, match="no token of its own for 'A'"):
        arc.letter_tokens(Merging(), "The correct answer is (", "ABCD")


def test_scores_do_not_depend_on_the_batch():
    alone = scores(items(), 1)
    for size in (2, 7, 64):
        for one, other in zip(alone, scores(items(), size), strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_scores_are_the_models_own():
    """Against a forward pass over the bare prompt, without padding or a batch."""
    import torch

    tokenizer = tiny.tokenizer()
    prompt = arc.render(ITEM, tokenizer, "assistant")
    with torch.inference_mode():
        logits = tiny.model()(**tokenizer(prompt, add_special_tokens=False, return_tensors="pt")).logits[0, -1]
    expected = torch.log_softmax(logits, -1)
    letters = arc.letter_tokens(tokenizer, prompt, "ABCD")
    found = arc.score(tiny.model(), tokenizer, [prompt, prompt + " and a longer one"], letters, 2)[0]
    assert found == pytest.approx({c: expected[token].item() for c, token in letters.items()}, abs=1e-5)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_rotations_keep_the_answer_and_put_each_option_at_each_letter(n):
    choices = ("red", "blue", "green", "none", "all")[:n]
    turned = arc.rotations(Item("i", "Which?", choices, "B"))
    assert [one.choices[one.letters.index(one.answer)] for one in turned] == ["blue"] * n
    assert turned[0].choices == choices
    assert {one.answer for one in turned} == set("ABCDE"[:n])
    for place in range(n):
        assert {one.choices[place] for one in turned} == set(choices)


def test_a_pure_liking_for_a_letter_cancels_out():
    liking = {"A": -0.1, "B": -3.0, "C": -4.0, "D": -5.0}
    row = arc.judge_item([(one, liking) for one in arc.rotations(ITEM)])
    assert row["prediction"] == "A"
    assert row["cyclic"]["predictions"] == ["A"] * 4
    assert row["cyclic"]["rotations_correct"] == 1
    assert list(row["cyclic"]["mean_logprobs"].values()) == pytest.approx([-3.025] * 4)


def test_a_known_answer_beats_a_liking_for_a_letter():
    """Log-probability = what is thought of the option + how the letter is liked."""
    liking = {"A": 0.0, "B": -4.0, "C": -4.5, "D": -5.0}
    thought = {"red": -2.0, "blue": -1.0, "green": -2.0, "none": -2.5}
    scored = [
        (one, {c: liking[c] + thought[o] for c, o in zip(one.letters, one.choices, strict=True)})
        for one in arc.rotations(ITEM)
    ]
    row = arc.judge_item(scored)
    assert (row["prediction"], row["correct"]) == ("A", False)
    assert (row["cyclic"]["prediction"], row["cyclic"]["correct"]) == ("B", True)
    apart = row["cyclic"]["mean_logprobs"]["B"] - row["cyclic"]["mean_logprobs"]["D"]
    assert apart == pytest.approx(thought["blue"] - thought["none"])


def test_rows_of_every_form(tmp_path):
    """Flat and hub rows, 3 and 5 options, labels 1-4."""
    rows = [
        {
            "question": "q",
            "choices": ["w", "x", "y", "z"],
            "choice_labels": ["1", "2", "3", "4"],
            "correct_answer": "3",
        },
        {"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        {"question": "q", "choices": ["v", "w", "x", "y", "z"], "choice_labels": list("ABCDE"), "correct_answer": "E"},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_items(tmp_path / "items.jsonl")
    assert [(i.letters, i.answer) for i in found] == [("ABCD", "C"), ("ABC", "C"), ("ABCDE", "E")]
    assert "(C) y" in arc.render(found[0], tiny.tokenizer(), "assistant")
    assert len(scores(found, 3)) == 3


@pytest.fixture
def score_file(tmp_path):
    """Run the stage on the items above."""

    def run(**params):
        data = tmp_path / "items.jsonl"
        with open(data, "w") as file:
            for i in items():
                row = {"id": i.id, "question": i.question, "choices": i.choices, "choice_labels": list(i.letters)}
                file.write(json.dumps({**row, "correct_answer": i.answer}) + "\n")
        out = tmp_path / str(len(params))
        out.mkdir()
        if not (tmp_path / "model").exists():
            tiny.save(tmp_path / "model")
        parent = SimpleNamespace(out=tmp_path)
        recipe = Recipe("arc", 1, "0" * 32, {"prefill": "assistant", **params})
        done = arc.run(Job(recipe, {"batch_size": 16, "attn_implementation": "sdpa"}, (parent,), data, out))
        return done, [json.loads(line) for line in open(out / "items.jsonl")]

    return run


def test_the_stage_with_and_without_permutations(score_file):
    plain, plain_rows = score_file()
    done, rows = score_file(permutations=True)
    assert "cyclic" not in plain.metrics
    assert "cyclic" not in plain_rows[0]
    for before, after in zip(plain_rows, rows, strict=True):
        assert before["prediction"] == after["prediction"]
        assert before["logprobs"] == pytest.approx(after["logprobs"], abs=1e-4)
        assert len(after["cyclic"]["logprobs"]) == len(after["logprobs"])
        assert after["letter_mass"] == pytest.approx(math.fsum(map(math.exp, after["logprobs"].values())))
    assert done.metrics["accuracy"] == plain.metrics["accuracy"]
    cyclic = done.metrics["cyclic"]
    assert cyclic["prompts"] == done.observed["prompts"] == sum(len(i.choices) for i in items())
    assert sum(cyclic["predicted_letters"].values()) == cyclic["prompts"]
    assert sum(done.metrics["predicted_letters"].values()) == sum(done.metrics["answer_letters"].values()) == 23
    assert cyclic["all_rotations"]["numerator"] <= cyclic["correct"] <= cyclic["items"] == 23
