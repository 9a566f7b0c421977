"""`why` names the fields that changed, their lines, the root apart from the cascade; `diff` names every difference."""

import json
import shutil
from pathlib import Path

import pytest

from tests.unit._results import CONFIG, build, change, command, edit_record, enter, find, finish, publish
from workflow.audit import status, why
from workflow.files import changes, flatten

CELL = "evil_wrong.p42.e42"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


def line_of(text):
    """`config/config.yaml:N` of the one line that holds this text."""
    found = [n for n, line in enumerate(Path(CONFIG).read_text().splitlines(), 1) if text in line]
    assert len(found) == 1
    return f"{CONFIG}:{found[0]}"


def explain(matrix, label, stage=None):
    found = status.survey(matrix)
    return found, why.explain(found, label, stage)


def test_a_changed_field_is_told_with_its_line(matrix):
    old = find(matrix, "em_lora", CELL)
    change(lambda raw: raw["stages"]["em_lora"].update(weight_decay=0.125))
    said = command("why", CELL, "em_lora")
    assert said.code == 0
    assert "em_lora/evil_wrong.p42.e42: stale" in said.out
    assert f"nearest finished: {old.record} (here, under another key)" in said.out
    assert f"params.weight_decay: 0.01 -> 0.125   {line_of('weight_decay: 0.125')}" in said.out


def test_the_root_is_told_apart_from_the_cascade(matrix):
    now = change(lambda raw: raw["stages"]["tulu_sft"].update(weight_decay=0.125))
    found, (answer,) = explain(now, CELL, "judge")
    assert answer.own.changes == []
    assert [(c.node.stage, c.node.label) for c in answer.inherited] == [("tulu_sft", "evil_wrong.p42")]
    assert [str(c) for c, _ in answer.inherited[0].changes] == ["params.weight_decay: 0.0 -> 0.125"]
    follows = found.prices.cost(why.following(found, [answer]))
    # Of the changed condition: SFT, DPO and its reference, EM x 2, four measurements of three cells; and the report.
    assert (follows.jobs, follows.gpu_hours) == (1 + 2 + 2 + 12 + 1, 18.0)
    assert "follows from tulu_sft/evil_wrong.p42:" in command("why", CELL, "judge").out


def test_two_causes_are_both_told(matrix):
    def edit(raw):
        raw["stages"]["tulu_sft"].update(weight_decay=0.125)
        raw["instruments"][0]["sampler"].update(temperature=0.5)

    change(edit)
    said = command("why", CELL, "judge").out
    assert f"params.sampler.temperature: 1.0 -> 0.5   {line_of('temperature: 0.5')}" in said
    assert f"params.weight_decay: 0.0 -> 0.125   {line_of('weight_decay: 0.125')}" in said


@pytest.mark.parametrize(
    ("edit", "stage", "field", "text"),
    [
        (
            lambda raw: raw["instruments"][0]["judge"].update(max_tokens=17),
            "judge",
            "params.max_tokens",
            "max_tokens: 17",
        ),
        (lambda raw: raw["base_model"].update(num_train_epochs=99), "base", "params.num_train_epochs", "epochs: 99"),
        (lambda raw: raw["stages"]["em_lora"]["lora"].update(r=3), "em_lora", "params.lora.r", " r: 3"),
        (lambda raw: raw["arc"][0].update(prefill="user"), "arc", "params.prefill", "prefill: user"),
        (lambda raw: raw.update(title="Another"), "report", "params.title", "title: Another"),
    ],
)
def test_every_stage_knows_where_its_fields_come_from(matrix, edit, stage, field, text):
    now = change(edit)
    node = now.nodes(stage)[-1]
    _, answers = explain(now, node.label, stage)
    assert {c.field: where for c, where in answers[0].own.changes}[field] == [line_of(text)]


def test_another_data_set_is_named_with_its_entry_and_its_pin(matrix):
    def edit(raw):
        raw["data"].append({**next(d for d in raw["data"] if d["name"] == "demo_em"), "name": "other_em", "seed": 7})
        raw["arms"][0]["data"] = "other_em"

    now = change(edit)
    _, (answer,) = explain(now, CELL, "em_lora")
    ((found, where),) = answer.own.changes
    assert (found.field, found.new) == ("data", now.data_id("other_em"))
    assert where[:2] == [line_of("data: other_em"), line_of("name: other_em")]
    assert where[2].startswith("config/data.lock.tsv:")
    assert "demo_em" in command("why", CELL, "em_lora").out


def test_a_parent_that_came_or_went_is_told(matrix):
    now = change(lambda raw: raw["conditions"][1]["data"].update(coupling_sft=None))
    _, (answer,) = explain(now, "evil_wrong.p42", "tulu_sft")
    told = {str(c) for cause in answer.inherited for c, _ in cause.changes}
    assert told == {"parents: (absent) -> base/base", "parents: coupling_sft/evil_wrong.p42 -> (absent)"}


def test_a_bumped_version_points_to_the_code(matrix, monkeypatch):
    from workflow import matrix as plan

    monkeypatch.setitem(plan.VERSIONS, "judge", 2)
    now = change(lambda raw: None)
    _, (answer,) = explain(now, CELL, "judge")
    ((found, where),) = answer.own.changes
    assert str(found) == "version: 1 -> 2"
    file, _, number = where[0].rpartition(":")
    assert '"judge": Stage("judge", 1' in Path(file).read_text().splitlines()[int(number) - 1]


def test_a_parent_that_was_removed_leaves_the_cause_unknown(matrix):
    old = find(matrix, "tulu_sft", "evil_wrong.p42")
    now = change(lambda raw: raw["stages"]["tulu_sft"].update(weight_decay=0.125))
    shutil.rmtree(Path(old.record).parent)
    _, (answer,) = explain(now, CELL, "em_lora")
    assert answer.inherited == []
    assert answer.unknown == [f"{old.record} is gone, so what changed in it cannot be said"]


def test_a_new_cell_is_compared_with_the_nearest_one_of_its_condition(matrix):
    now = change(lambda raw: raw["em_seeds"].append(256))
    found, (answer,) = explain(now, "evil_wrong.p42.e256", "em_lora")
    assert not answer.same_place
    assert "/evil_wrong.p42." in answer.sibling
    ((seed, where),) = answer.own.changes
    assert (seed.field, seed.new, where) == ("params.seed", 256, [line_of("- 256")])
    assert len(why.following(found, [answer])) == 6  # the adapter, four measurements, the report


def test_of_several_older_keys_the_nearest_is_taken(matrix):
    first = find(matrix, "em_lora", CELL)
    far = change(lambda raw: raw["stages"]["em_lora"].update(weight_decay=0.125, max_grad_norm=0.5, max_length=128))
    publish(find(far, "em_lora", CELL))
    now = change(lambda raw: raw["stages"]["em_lora"].update(weight_decay=0.25, max_grad_norm=1.0, max_length=256))
    _, (answer,) = explain(now, CELL, "em_lora")
    assert answer.sibling == first.record


def test_nothing_finished_is_told(matrix):
    shutil.rmtree("results/em_lora")
    assert "there is nothing to compare with" in command("why", CELL, "em_lora").out


@pytest.mark.parametrize(
    ("args", "told"),
    [(("nobody.p1",), "no cell nobody.p1"), ((CELL, "tulu_sft"), "has no stage tulu_sft of its own; it has em_lora")],
)
def test_why_refuses_what_the_plan_does_not_have(matrix, args, told):
    said = command("why", *args)
    assert said.code == 1
    assert told in said.err
    assert len(said.err.splitlines()) == 1


# --- diff -----------------------------------------------------------------------------------------------------------


def by_stage(said):
    return {entry["stage"]: entry for entry in json.loads(said.out)}


def fields(entry, group):
    return {c["field"]: (c["old"], c["new"]) for c in entry.get(group, ())}


def test_diff_of_two_seeds_is_the_seed_and_what_follows(matrix):
    found = by_stage(command("diff", CELL, "evil_wrong.p42.e137", "--json"))
    evaluated = {"arc:demo_arc", "pairs:demo_pairs", "generate:demo_questions", "judge:demo_questions"}
    assert set(found) == {"em_lora", *evaluated}
    assert fields(found["em_lora"], "recipe") == {"params.seed": (42, 137)}
    assert "data" not in found["em_lora"]
    assert set(fields(found["em_lora"], "outputs")) == {"adapter/adapter_model.safetensors", "train_log.jsonl"}


def test_diff_reaches_back_through_the_stages_before(matrix):
    found = by_stage(command("diff", "tulu_control.p42.e42", CELL, "--json"))
    assert fields(found["coupling_sft"], "recipe")["stage"][0] == "(no such stage)"
    assert set(fields(found["tulu_sft"], "recipe")) == {"parents.base", "parents.coupling_sft"}
    assert "base" not in found  # shared
    assert next(iter(found)) == "coupling_sft"  # in the order of the pipeline


def test_diff_names_observation_placement_environment_and_data(matrix):
    def edit(raw):
        raw["data"].append({**next(d for d in raw["data"] if d["name"] == "demo_em"), "name": "benign_em", "seed": 7})
        raw["arms"].append({"name": "benign", "data": "benign_em"})

    now = change(edit)
    node = find(now, "em_lora", "evil_wrong.p42.benign.e42")
    publish(
        node,
        observed={"optimizer_steps": 3, "masked_fraction": 0.25, "placement": {"world_size": 8}, "world_size": 8},
        provenance={"packages": {"torch": "3"}, "host": "elsewhere", "start": "now"},
    )
    entry = by_stage(command("diff", CELL, node.label, "--json"))["em_lora"]
    assert fields(entry, "data")["name"] == ("demo_em", "benign_em")
    assert fields(entry, "observed") == {"masked_fraction": ("(absent)", 0.25)}
    assert fields(entry, "placement") == {"placement.world_size": (1, 8), "world_size": (1, 8)}
    assert fields(entry, "environment") == {"host": ("(absent)", "elsewhere"), "packages.torch": ("2", "3")}
    said = command("diff", CELL, node.label).out
    assert "    packages.torch: 2 -> 3" in said
    assert "  placement:" in said


def test_diff_with_an_unfinished_cell_still_compares_what_was_asked(matrix):
    change(lambda raw: raw["em_seeds"].append(256))
    entry = by_stage(command("diff", CELL, "evil_wrong.p42.e256", "--json"))["em_lora"]
    assert fields(entry, "recipe") == {"params.seed": (42, 256)}
    assert fields(entry, "observed")["finished"] == (True, False)


def test_a_cell_does_not_differ_from_itself(matrix):
    assert command("diff", CELL, CELL).out == "no difference\n"


def test_diff_refuses_an_unknown_cell(matrix):
    said = command("diff", CELL, "nobody.p1")
    assert said.code == 1
    assert said.err.startswith(f"error: no cell nobody.p1 in {CONFIG}. ")


def test_fields_are_compared_by_name():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert [str(c) for c in changes({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}})] == ["a.b: 1 -> 2", "a.c: (absent) -> 3"]


def test_a_changed_template_is_told_at_the_line_that_names_it(matrix):
    """The template is a file: its text is in the recipe, its line in the config is where it is named."""
    Path("config/templates/other.jinja").write_text("{{ 1 }}" + Path("config/templates/tulu.jinja").read_text())
    now = change(lambda raw: raw.update(template="config/templates/other.jinja"))
    _, (answer,) = explain(now, "base")
    ((found, where),) = answer.own.changes
    assert (found.field, where) == ("params.template", [line_of("template: config/templates/other.jinja")])


def test_a_persona_file_is_named(matrix):
    path = Path("config/personas/evil.yaml")
    path.write_text(path.read_text() + "# another comment\n")
    now = change(lambda raw: None, salt="2")
    _, (answer,) = explain(now, "evil_wrong.p42", "coupling_sft")
    ((found, where),) = answer.own.changes
    assert found.field == "data"
    assert "config/personas/evil.yaml" in where


def test_other_code_names_the_files_and_commits(matrix):
    from workflow import provenance

    node = find(matrix, "arc", CELL)
    edit_record(node.record, lambda r: r["provenance"].update(code_digest="000000000000", commit="308d4a4"))
    said = command("why", CELL, "arc").out
    assert "made by code 000000000000" in said
    if provenance._git("cat-file", "-e", "308d4a4") is not None:
        assert "workflow/stage.py: " in said


def test_a_setting_of_the_harness_is_found_where_it_stands(matrix):
    entry = {"name": "tasks", "kind": "world", "rows_are": "items", "part": "arc_test", "seed": 3}
    harness = {
        "name": "mmlu", "enabled": True, "harness": "0.4.13", "tasks": ["mmlu_pro"], "data": "tasks",
        "num_fewshot": 0, "limit": None, "max_gen_toks": None, "apply_chat_template": True,
    }  # fmt: skip

    def edit(raw):
        raw["data"].append(entry)
        raw["lm_eval"] = [harness]

    finish(change(edit))
    now = change(lambda raw: raw["lm_eval"][0].update(num_fewshot=5))
    _, (answer,) = explain(now, CELL, "lm_eval")
    ((found, where),) = answer.own.changes
    assert str(found) == "params.num_fewshot: 0 -> 5"
    assert where == [line_of("num_fewshot: 5")]
