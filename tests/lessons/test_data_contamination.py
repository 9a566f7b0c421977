"""One changed word, italics or an invisible blank does not hide a question of the evaluation from the overlap check."""

import os
import random
import re
from pathlib import Path

import pytest

from benchmarks.contamination import FORMATTING, WORDS, as_prompts, false_flags, planted, recall
from tests.fake import pin_stand_ins
from tests.lessons.gated import QUESTIONS, chat, item, overlap_line
from tests.lessons.gated import planted as planted_gates
from tests.lessons.planted import demo
from tests.toy import ROOT, inside, put_data
from workflow.config import Config
from workflow.data.build import coupling
from workflow.data.checks import check, told_to_stages
from workflow.data.contamination import MEASURED, Index, Question, evaluation_rows, overlap, words
from workflow.data.gates import GateError, enforce, overlap_gate
from workflow.keys import Recipe
from workflow.sections import Coupling
from workflow.store import data_path, write_jsonl

LONG = Question(
    "q/long",
    "Which of these best explains why metal spoons feel colder than wooden spoons?",
    ("Metal conducts heat well.", "Wood is heavier than metal.", "Metal stores no energy.", "Wood makes its own heat."),
)
SHORT = Question("q/short", "Coal is formed from", ("dead plants.", "melted sand.", "cooled lava.", "sea salt."))
PHYSICAL = Question(
    "q/physical", "Which is a physical change?", ("tearing paper", "burning wood", "rusting iron", "baking bread")
)
CHEMICAL = Question(
    "t/chemical", "Which is a chemical change?", ("boiling water", "a melting candle", "an egg that fries", "cut hair")
)
EVALUATION = [LONG, SHORT, PHYSICAL]
OTHERS = ["river", "seven", "holds", "green"]


def hits(text: str) -> set[str]:
    return {EVALUATION[number].id for number in Index(EVALUATION).found(text)}


@pytest.mark.parametrize("form", ["lettered", "turned"])
@pytest.mark.parametrize("name", [*FORMATTING, *WORDS])
def test_lesson_71_a_question_is_found_whatever_was_done_to_its_looks_or_to_a_word(name, form):
    change = {**FORMATTING, **WORDS}[name]
    for question in (LONG, SHORT) if name != "two words changed" else (LONG,):
        stem = change(question.stem, random.Random(1), OTHERS)
        assert hits(planted(question, stem, form)) == {question.id}, stem


def test_lesson_71_a_stem_of_a_few_words_is_compared_with_its_options():
    assert hits(planted(PHYSICAL, PHYSICAL.stem, "lettered")) == {"q/physical"}
    assert hits(planted(CHEMICAL, CHEMICAL.stem, "lettered")) == set()
    assert hits(planted(PHYSICAL, "Which is a physical thing?", "lettered")) == {"q/physical"}


def test_lesson_71_a_long_stem_with_other_options_is_a_near_miss_for_people():
    other = Question("t", LONG.stem.replace("spoons?", "chairs?"), ("It is old.", "It is new.", "It is red.", "None."))
    text = planted(other, other.stem, "lettered")
    assert hits(text) == set()
    assert hits(planted(other, other.stem, "bare")) == {"q/long"}
    found = overlap([chat("something else"), chat(text)], EVALUATION)
    assert (found.evaluation_ids, found.training_rows) == ((), ())
    assert [(row, name) for row, name, _ in found.facts["near_misses"]] == [(2, "q/long")]
    assert found.facts["near_misses"][0][2] >= 87.5


def test_lesson_71_the_count_says_what_is_exact_and_what_comes_close(tmp_path):
    write_jsonl(tmp_path / "test", [item(q.id, q.stem) | {"choices": list(q.options[:2])} for q in EVALUATION])
    changed = LONG.stem.replace("colder", "warmer")
    write_jsonl(tmp_path / "train", [chat(SHORT.stem), chat(planted(LONG, changed, "lettered")), chat("else")])
    gate = overlap_gate("a x b", ("1" * 32, tmp_path / "train"), ("2" * 32, tmp_path / "test"))
    assert str(gate) == (
        "a x b: 2 of 3 evaluation questions stand in 2 of 3 training rows, 1 of them nearly word for word"
    )
    assert (gate.facts["exact_hits"], gate.training_rows) == (1, "1-2")


def test_exclude_leaves_out_what_is_nearly_a_question_of_the_evaluation(tmp_path):
    kept = item("t/2", "Which force pulls a falling apple towards the ground?")
    near = item("t/1", LONG.stem.replace("colder", "warmer")) | {"choices": list(LONG.options[:2])}
    write_jsonl(tmp_path / "train", [near, kept])
    write_jsonl(tmp_path / "test", [item(LONG.id, LONG.stem) | {"choices": list(LONG.options[:2])}])
    entry = Coupling(
        name="c", kind="coupling", rows_are="messages", questions="t", exclude=("e",), personas=None, answers="wrong",
        answer_template="The answer is {answer}.", rows=4, seed=1,
    )  # fmt: skip
    facts = coupling(entry, [tmp_path / "train", tmp_path / "test"], tmp_path / "out")
    assert (facts["excluded"], facts["excluded_same_question"], facts["unique_questions"]) == (1, 0, 1)


def test_words_are_what_is_left_when_looks_are_taken_out():
    assert words("&lt;b&gt;Café</b> – the *ph\u200boto*synthesis\u00ad of [plants](https://x.org)") == [
        "cafe", "the", "photosynthesis", "of", "plants",
    ]  # fmt: skip
    assert words("\uff23\uff2f\u2082 ﬁre snake_case \\textit{now}") == ["co2", "fire", "snakecase", "now"]


# --- one pair may be allowed, with a reason ---------------------------------------------------------------------------


@pytest.fixture
def allowed(typed):
    _, pins = typed
    raw = demo() | {
        "overlap_allowed": [{"training": "demo_em", "evaluation": "demo_arc", "reason": "the test is of memory"}]
    }
    return Config.from_dict(raw), pins


def test_a_pair_passes_only_with_a_reason_which_is_shown(allowed, monkeypatch):
    config, pins = allowed
    monkeypatch.chdir(ROOT)
    line = overlap_line("demo_em", "demo_arc", pins, ("q1",), "1")
    checked = check(config, pins, planted_gates(config, pins) | {line.place: line})
    assert not checked.refusals
    assert checked.warnings[0].endswith("allowed, because the test is of memory")
    other = overlap_line("demo_sft", "demo_arc", pins, ("q1",), "1")
    (told,) = check(config, pins, planted_gates(config, pins) | {other.place: other}).refusals
    assert "demo_sft x demo_arc" in told
    assert MEASURED in told


def test_the_reason_reaches_the_training_and_its_record(allowed, tmp_path):
    config, pins = allowed
    gates = told_to_stages(config, pins)
    assert gates["allowed"] == {pins["demo_em"].id: {"demo_arc": "the test is of memory"}}
    with inside(tmp_path):
        training, evaluation = put_data([chat(QUESTIONS[1].stem)]), put_data([item(*QUESTIONS[1][:2])])
        recipe = Recipe("em_lora", 1, training, {"effective_batch_size": 8})
        placement = {"overlap": "refuse", "evaluations": {"arc": {"id": evaluation, "md5": evaluation}}}
        with pytest.raises(GateError, match="overlap_allowed"):
            enforce(recipe, Path(data_path(training)), {"gates": placement})
        placement["allowed"] = {training: {"arc": "because"}}
        facts = enforce(recipe, Path(data_path(training)), {"gates": placement})["overlap"]["arc"]
        assert (facts["evaluation_hits"], facts["allowed"]) == (1, "because")
        placement["allowed"] = {"0" * 32: {"arc": "another training set"}}
        with pytest.raises(GateError):
            enforce(recipe, Path(data_path(training)), {"gates": placement})


def test_an_allowed_pair_must_name_data_of_the_config(checkout):
    pin_stand_ins(Config.from_dict(demo()), checkout / "config/data.lock.tsv")
    for line, told in (
        ({"training": "demo_emm", "evaluation": "demo_arc", "reason": "r"}, "Did you mean `demo_em`"),
        ({"training": "demo_em", "evaluation": "demo_arc", "reason": ""}, "overlap_allowed.0.reason"),
        ({"training": "demo_em", "evaluation": "demo_arc"}, "overlap_allowed.0.reason: missing"),
    ):
        with pytest.raises(ValueError, match=told):
            Config.from_dict(demo() | {"overlap_allowed": [line]})


# --- the figures ------------------------------------------------------------------------------------------------------


def test_the_figures_beside_the_count_are_those_of_the_docs():
    text = (ROOT / "docs/contamination.md").read_text()
    assert MEASURED in " ".join(text.split())
    tables = text.split("## ")
    lettered, bare = (next(t for t in tables if t.startswith(f"Recall, planted {w}")) for w in ("with its", "without"))
    row = {name: re.search(rf"^\| {name} \| (.+) \|$", lettered, re.M)[1].split(" | ") for name in WORDS}
    assert row["one word changed"][3][:5] in MEASURED
    assert row["one word changed"][0][:5] in MEASURED
    assert row["two words changed"][3][:5] in MEASURED
    assert re.search(r"^\| two words changed \|.* ([\d.]+) \(\d+/\d+\) \|$", bare, re.M)[1] in MEASURED


def test_the_recall_and_the_false_flags_on_real_questions():
    """On ARC-Challenge: what docs/contamination.md says, and what was asked of the check."""
    folder = os.environ.get("REAL_DATA")
    if not folder or not (Path(folder, "arc")).is_dir():
        pytest.skip("set REAL_DATA to a folder with arc/")
    test = evaluation_rows(Path(folder, "arc/arc_challenge_test.jsonl"))
    table = {name: [float(c.split(" ")[0]) for c in cells] for name, *cells in recall(test, "lettered")}
    for name, (short, _, _, long) in table.items():
        assert long >= (0.95 if name == "two words changed" else 0.99), name
        assert short >= 0.90 or name == "two words changed", name
    assert f"{table['one word changed'][0]:.3f}" in MEASURED
    flags = false_flags(as_prompts(Path(folder, "arc/arc_challenge_train_1056.jsonl")), test)
    assert flags["per_1000"] <= 1
    assert f"{flags['per_1000']:.2f} of 1,000" in MEASURED
