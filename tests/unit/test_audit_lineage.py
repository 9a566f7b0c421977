"""`lineage` walks from a number to bytes and back; `retract` takes everything with it that was made from a result."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.unit._results import CONFIG, build, change, command, edit_record, enter, find, finish, publish
from workflow.audit.lineage import number_id, read_numbers
from workflow.config import ConfigError
from workflow.retractions import RETRACTIONS, read_retractions, retracted

CELL = "evil_wrong.p42.e42"
NUMBER = f"{CELL}/demo_questions/alignment"
BELOW_DPO = ("dpo_reference", "tulu_sft", "coupling_sft", "base", "tulu_sft")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


def walk(branch):
    yield branch
    for below in branch.get("rests_on", branch.get("carries", ())):
        yield from walk(below)


def tree(*args):
    said = command("lineage", *args, "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_a_number_is_walked_back_to_judgments_completions_adapter_checkpoints_and_data(matrix):
    root = tree(NUMBER)
    assert (root["name"], root["value"], root["unit"], root["denominator"]) == (NUMBER, "0.5", "points", "2")
    names = [b["name"].split("/")[0] for b in walk(root) if not b["name"].startswith(("data", "file", NUMBER))]
    assert names == ["judge", "generate", "em_lora", "tulu_dpo", *BELOW_DPO, "tulu_dpo"]
    outputs = [o["path"] for b in walk(root) for o in b.get("outputs", ())]
    assert outputs[:3] == ["judgments.jsonl", "completions.jsonl", "adapter/adapter_model.safetensors"]
    data = {b["name"]: b for b in walk(root) if b["name"].startswith("data ")}
    assert data["data demo_em"]["rows"] == 1
    assert data["data demo_em"]["bytes"] == Path(data["data demo_em"]["path"]).stat().st_size
    assert data["data demo_em"]["md5"] in data["data demo_em"]["path"]
    assert [b["name"] for b in data["data demo_coupling_evil_wrong"]["rests_on"]] == [
        "data demo_arc_train",
        "data demo_arc",
        "file config/personas/evil.yaml",
    ]


def test_a_second_mention_is_not_told_twice(matrix):
    again = [b for b in walk(tree(NUMBER)) if b["name"].startswith("tulu_dpo/")]
    assert [b.get("shown") for b in again] == [None, "above"]


def test_a_reference_is_shown_as_what_dpo_read_until_it_is_made_again(matrix):
    def below_dpo():
        dpo = next(b for b in walk(tree(NUMBER)) if b["name"].startswith("tulu_dpo/"))
        return [b["name"].split("/")[0] for b in dpo["rests_on"]], [b.get("warning") for b in dpo["rests_on"]]

    assert below_dpo() == (["dpo_reference", "tulu_sft", "data demo_preferences"], [None] * 3)
    publish(find(matrix, "dpo_reference", "evil_wrong.p42"), salt="again")
    assert below_dpo()[0] == ["tulu_sft", "data demo_preferences"]


def test_a_cell_is_walked_from_all_that_it_measures(matrix):
    assert [b["name"].split("/")[0] for b in tree(CELL)["rests_on"]] == ["arc", "pairs", "judge"]


def test_every_number_of_the_report_has_an_id_and_a_lineage(matrix):
    numbers = read_numbers(matrix.report.record)
    assert len(numbers) == 6 * 5
    assert number_id(CELL, "demo_arc", "arc") in numbers
    assert tree(number_id(CELL, "demo_arc", "arc"))["rests_on"][0]["name"].startswith("arc/")


def test_a_data_set_carries_every_number_that_rests_on_it(matrix):
    root = tree("demo_em")
    cells = {b["name"].split("/")[1] for b in root["carries"]}
    assert cells == {f"{c}.p42.e{s}" for c in ("tulu_control", "evil_wrong") for s in (42, 137)}
    assert root["numbers"] == 4 * 5
    assert NUMBER in [n for b in root["carries"] for n in b["numbers"]]


def test_a_source_carries_what_rests_on_the_data_built_from_it(matrix):
    root = tree("demo_arc_train")
    assert root["built_from_it"] == ["demo_coupling_evil_wrong"]
    assert {b["name"].split("/")[1].split(".")[0] for b in root["carries"]} == {"evil_wrong"}
    assert root["numbers"] == 3 * 5


def test_the_terminal_shows_whole_paths(matrix):
    said = command("lineage", NUMBER).out
    assert f"results/data/{matrix.data_id('demo_em')}.jsonl" in said
    assert "└── " in said
    assert not any(line.endswith(" ") for line in said.splitlines())
    assert "demo_questions/coherence" in command("lineage", "demo_em").out


def test_a_report_that_read_another_record_is_told(matrix):
    publish(find(matrix, "judge", CELL), salt="again")
    assert tree(NUMBER)["warning"] == "the record is not the one that the report read"


def test_a_replaced_parent_is_told(matrix):
    publish(find(matrix, "em_lora", CELL), salt="again")
    found = next(b for b in walk(tree(NUMBER)) if b["name"].startswith("em_lora/"))
    assert found["warning"] == "not the bytes that its child was made from"


def test_without_a_report_a_cell_can_still_be_walked(matrix):
    shutil.rmtree(Path(matrix.report.record).parent)
    said = command("lineage", NUMBER)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert f"Run `snakemake {matrix.report.record}`" in said.err
    assert tree(CELL)["rests_on"]
    assert {b["state"] for b in tree("demo_em")["carries"]} == {"no report holds its numbers yet"}


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (f"{CELL}/demo_questions/alignmnt", f"Did you mean `{NUMBER}`"),
        ("demo_emm", "Did you mean `demo_em`"),
        ("evil_wrong.p42.e43", f"Did you mean `{CELL}`"),
    ],
)
def test_what_is_not_there_is_refused_with_the_nearest_name(matrix, what, told):
    said = command("lineage", what)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert told in said.err


# --- retract --------------------------------------------------------------------------------------------------------


def place(node):
    return f"{node.stage}/{node.label}/{node.key}"


def test_a_retraction_is_written_and_reaches_everything_downstream(matrix):
    Path(RETRACTIONS).write_text("# kept\n[]\n")
    node = find(matrix, "tulu_dpo", "evil_wrong.p42")
    said = command("retract", place(node), "--reason", "eight GPUs,\n 47 steps")
    assert said.code == 0
    (entry,) = yaml.safe_load(Path(RETRACTIONS).read_text())
    assert set(entry) == {"stage", "cell", "key", "reason", "date"}
    assert entry["reason"] == "eight GPUs, 47 steps"
    assert Path(RETRACTIONS).read_text().startswith("# kept\n")
    reasons = retracted(matrix, read_retractions())
    assert {n.label for n in reasons} == {"evil_wrong.p42", CELL, "evil_wrong.p42.e137"}
    assert reasons[node] == "eight GPUs, 47 steps"
    assert reasons[find(matrix, "judge", CELL)] == "made from tulu_dpo/evil_wrong.p42: eight GPUs, 47 steps"
    assert find(matrix, "tulu_sft", "evil_wrong.p42") not in reasons
    assert matrix.report not in reasons
    assert place(find(matrix, "judge", CELL)) in said.out


def test_a_retracted_reference_takes_dpo_with_it(matrix):
    node = find(matrix, "dpo_reference", "evil_wrong.p42")
    assert command("retract", place(node), "--reason", "a cut file").code == 0
    reasons = retracted(matrix, read_retractions())
    assert reasons[find(matrix, "judge", CELL)] == "made from dpo_reference/evil_wrong.p42: a cut file"


def test_entries_are_added_and_what_people_wrote_stays(matrix):
    nodes = matrix.nodes("em_lora")
    assert command("retract", place(nodes[0]), "--reason", "one").code == 0
    Path(RETRACTIONS).write_text(Path(RETRACTIONS).read_text() + "# seen by a person")
    assert command("retract", f"results/{place(nodes[1])}/record.json", "--reason", "two: a colon").code == 0
    assert [e.reason for e in read_retractions()] == ["one", "two: a colon"]
    assert "# seen by a person\n" in Path(RETRACTIONS).read_text()


def test_a_result_of_another_key_can_be_retracted_too(matrix):
    old = find(matrix, "judge", CELL)
    now = change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    assert command("retract", place(old), "--reason", "why not").code == 0
    assert retracted(now, read_retractions()) == {}


def test_lineage_marks_what_is_retracted(matrix):
    assert command("retract", place(find(matrix, "em_lora", CELL)), "--reason", "47 steps").code == 0
    marked = {b["name"].split("/")[0]: b["retracted"] for b in walk(tree(NUMBER)) if "retracted" in b}
    assert marked["em_lora"] == "47 steps"
    assert set(marked) == {"em_lora", "generate", "judge"}


def test_a_number_of_an_older_report_says_so(matrix):
    change(lambda raw: raw.update(title="Another"))
    found = tree(NUMBER)
    assert (found["report"], found["value"]) == (matrix.report.record, "0.5")
    assert found["note"] == "an older report; that of the plan is not made yet"


def test_a_number_of_a_result_that_the_plan_has_no_more_is_refused(matrix):
    change(lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17))
    said = command("lineage", NUMBER)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "is not in the matrix" in said.err


@pytest.mark.parametrize(
    ("what", "reason", "told"),
    [
        (
            "em_lora/nobody.p1/00000000-000000000000",
            "x",
            "neither in the plan of config/config.yaml nor under results/",
        ),
        ("em_lora/nobody.p1", "x", "not STAGE/CELL/KEY"),
        ("em_lora/nobody.p1/abc", "x", "not STAGE/CELL/KEY"),
        (None, "  ", "--reason: say why"),
    ],
)
def test_a_retraction_that_says_nothing_is_refused(matrix, what, reason, told):
    said = command("retract", what or place(matrix.nodes("em_lora")[0]), "--reason", reason)
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert told in said.err
    assert not Path(RETRACTIONS).exists()


def test_a_result_is_retracted_once(matrix):
    node = matrix.nodes("em_lora")[0]
    assert command("retract", place(node), "--reason", "one").code == 0
    said = command("retract", place(node), "--reason", "two")
    assert (said.code, len(read_retractions())) == (1, 1)
    assert "already" in said.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stage: em_lora", "not a list of entries"),
        (
            "- {stage: em_lora, cell: a.p1, key: 00000000-000000000000, date: 2026-01-01}",
            "entry 1: reason: Field required",
        ),
        ("- {stage: em_lora, cell: a.p1, key: abc, reason: x, date: 2026-01-01}", "entry 1: key"),
        ("- em_lora", "entry 1"),
        ("- {", "not YAML"),
    ],
)
def test_a_retraction_file_that_cannot_be_read_stops_everything(matrix, text, told):
    Path(RETRACTIONS).write_text(text + "\n")
    with pytest.raises(ConfigError, match=told):
        read_retractions()
    assert command("status").code == 1


def test_the_configs_are_left_alone(matrix):
    before = Path(CONFIG).read_text()
    edit_record(find(matrix, "judge", CELL).record, lambda r: r["metrics"].update(accuracy=1))
    command("status")
    command("verify")
    assert Path(CONFIG).read_text() == before


def test_a_data_set_of_the_harness_has_numbers_too(matrix):
    entry = {"name": "tasks", "kind": "world", "rows_are": "items", "part": "arc_test", "seed": 3}
    harness = {
        "name": "mmlu", "enabled": True, "harness": "0.4.13", "tasks": ["mmlu_pro"], "data": "tasks",
        "num_fewshot": 0, "limit": None, "max_gen_toks": None, "apply_chat_template": True,
    }  # fmt: skip

    def edit(raw):
        raw["data"].append(entry)
        raw["lm_eval"] = [harness]

    now = change(edit)
    finish(now)
    said = command("lineage", "tasks")
    assert said.code == 0
    assert f"lm_eval/{CELL}/" in said.out
