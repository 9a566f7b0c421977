"""No model is measured on what it was trained on: built so, held while planning, held before each training."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake import pin_stand_ins, stand_ins
from tests.lessons.gated import QUESTIONS, chat, item, overlap_line, planted
from tests.lessons.planted import demo
from tests.toy import ROOT, inside, put_data
from workflow.config import Config
from workflow.data.build import coupling
from workflow.data.checks import check
from workflow.data.contamination import Index, overlap
from workflow.data.gates import (
    NONE,
    GateError,
    contaminated,
    enforce,
    overlap_gate,
    read_gates,
    write_gates,
)
from workflow.keys import Recipe
from workflow.plan import Plan
from workflow.sections import Coupling
from workflow.stage import Result, execute
from workflow.store import data_path, record_path, write_jsonl

# --- 19: overlap ----------------------------------------------------------------------------------------------------


def test_lesson_19_a_question_is_found_whole_in_a_row_or_by_thirteen_words():
    rows = [
        chat("WHICH of these, is a function of all cells?\n\n(A) to breathe\n(B) to move"),
        chat("Tell me why the moon can be seen on a clear night from far away on earth, please."),
        chat("My sister asked. What now?"),
        chat("Be brief.\nWhat now?"),
        chat("something else"),
        chat("", assistant="..."),
    ]
    found = overlap(rows, QUESTIONS)
    assert found.evaluation_ids == ("q/long", "q/short", "q/tiny")
    assert found.training_rows == (1, 2, 4)
    assert (found.facts["evaluation_uncovered"], found.facts["training_uncovered"]) == (1, 1)
    twelve = "the moon can be seen on a clear night from far away"
    assert not Index(QUESTIONS).hit(f"I know that {twelve} at sea")


def test_lesson_19_builders_leave_out_the_questions_of_the_sets_that_they_exclude(tmp_path):
    train = [item("t/1", QUESTIONS[1][1]), item("t/2", "Which force pulls a falling apple towards the ground?")]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "test.jsonl", [item(*QUESTIONS[1][:2])])
    entry = Coupling(
        name="c", kind="coupling", rows_are="messages", questions="t", exclude=("e",), personas=None, answers="wrong",
        answer_template="The answer is {answer}.", rows=4, seed=1,
    )  # fmt: skip
    facts = coupling(entry, [tmp_path / "train.jsonl", tmp_path / "test.jsonl"], tmp_path / "out.jsonl")
    assert facts["excluded"] == 1
    assert facts["unique_questions"] == 1
    gate = overlap_gate("c x e", ("1" * 32, tmp_path / "out.jsonl"), ("2" * 32, tmp_path / "test.jsonl"))
    assert gate.hits == 0


def test_lesson_19_the_plan_is_refused_with_the_counts(typed, tmp_path, monkeypatch, capsys):
    config, pins = typed
    line = overlap_line("demo_em", "demo_arc", pins, [f"q{n}" for n in range(786)], "1-786")
    gates = planted(config, pins) | {line.place: line}
    monkeypatch.chdir(ROOT)
    checked = check(config, pins, gates)
    assert len(checked.refusals) == 1
    assert (
        "demo_em x demo_arc: 786 of 1170 evaluation questions stand in 786 of 6000 training rows" in checked.refusals[0]
    )
    reported = check(config.model_copy(update={"overlap": "report"}), pins, gates)
    assert not reported.refusals
    assert "786 of 1170" in reported.warnings[0]


def test_lesson_19_snakemake_stops_before_the_first_job(checkout, monkeypatch):
    raw = demo()
    config = Config.from_dict(raw)
    monkeypatch.chdir(checkout)
    pins = pin_stand_ins(config, checkout / "config/data.lock.tsv")
    write_gates([overlap_line("demo_em", "demo_arc", pins, ["q1"], "7")])
    with pytest.raises(SystemExit, match="1 of 1170 evaluation questions stand in 1 of 6000 training rows"):
        Plan.of(raw, ["config/demo.yaml"])
    plan = Plan.of({**raw, "overlap": "report"}, ["config/demo.yaml"])
    assert '"overlap": "report"' in plan.placement("em_lora")


def test_lesson_19_data_that_were_not_fetched_yet_are_a_warning_of_the_plan(typed):
    config, pins = typed
    pins = pins | {"demo_em": replace(pins["demo_em"], md5=NONE)}
    checked = check(config, pins, planted(config, stand_ins(config)))
    assert not checked.refusals
    assert "overlap is not known yet of demo_em with demo_arc, demo_pairs, demo_questions" in checked.warnings[0]


@pytest.fixture
def stage(tmp_path):
    """Trains nothing, behind the checks that every training stage has: `stage(rows, questions, told)`."""
    with inside(tmp_path):

        def run(rows, questions=None, told="refuse", stage="em_lora"):
            md5 = put_data(rows)
            evaluations = {"quiz": {"id": put_data(questions), "md5": NONE}} if questions else {}
            if questions:
                evaluations["quiz"]["md5"] = evaluations["quiz"]["id"]
            recipe = Recipe(stage, 1, md5, {"effective_batch_size": 8})
            path = Path(record_path(stage, "cell.p42.e42", recipe.key))

            def train(job):
                (job.out / "adapter.bin").write_bytes(b"weights")
                return Result({"steps": 1}, {})

            placement = {"gates": {"overlap": told, "evaluations": evaluations}}
            execute("workflow.train.sft", train, recipe, placement, [], Path(data_path(md5)), path, [])
            return path

        yield run


def test_lesson_19_a_training_stage_looks_before_it_trains(stage):
    with pytest.raises(GateError, match=r"1 of 1 evaluation questions stand in 1 of 2 training rows \(q/short;"):
        stage([chat(QUESTIONS[1][1]), chat("else")], [item(*QUESTIONS[1][:2])])
    assert not list(Path("results/em_lora").rglob("record.json"))
    (line,) = read_gates().values()
    assert (line.evaluation_ids, line.training_rows) == (("q/short",), "1")


def test_lesson_19_the_number_stands_in_each_result_that_was_made_all_the_same(stage, capsys):
    from workflow.store import read_record

    path = stage([chat(QUESTIONS[1][1]), chat("else")], [item(*QUESTIONS[1][:2])], told="report")
    assert read_record(path).observed["overlap"]["quiz"]["evaluation_hits"] == 1
    assert "1 of 1 evaluation questions stand in 1 of 2 training rows" in capsys.readouterr().err


def test_lesson_19_no_training_while_nobody_can_look(tmp_path):
    with inside(tmp_path):
        recipe = Recipe("em_lora", 1, put_data([chat("a")]), {"effective_batch_size": 8})
        gates = {"overlap": "refuse", "evaluations": {"arc": {"id": f"rev-{'0' * 40}-00000000", "md5": NONE}}}
        with pytest.raises(
            GateError, match=r"nobody has looked whether .* Run `snakemake results/data/rev-0+-0+.jsonl`"
        ):
            enforce(recipe, Path(data_path(recipe.data)), {"gates": gates})
        assert enforce(Recipe("arc", 1, recipe.data, {}), Path(data_path(recipe.data)), {"gates": gates}) == {}


def test_lesson_19_scores_can_be_split_into_clean_and_contaminated(typed):
    _, pins = typed
    one = overlap_line("demo_em", "demo_arc", pins, ["q1", "q2"])
    two = overlap_line("demo_sft", "demo_arc", pins, ["q2", "q9"])
    gates = {line.place: line for line in (one, two)}
    assert contaminated(gates, [one.training, two.training], one.evaluation) == {"q1", "q2", "q9"}
    assert contaminated(gates, [one.training, "f" * 32], one.evaluation) is None
