"""The sets of the experiment: balanced, pinned, named by commit, masked, with no prompt that nobody wrote."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.fake import stand_ins
from tests.lessons.gated import chat, planted
from tests.lessons.planted import demo
from tests.toy import ROOT, inside, put_data
from workflow.config import Config, ConfigError
from workflow.data import world
from workflow.data.build import coupling
from workflow.data.checks import check, training_facts
from workflow.data.lock import UnpinnedError, definition, require, unpinned
from workflow.keys import Recipe
from workflow.matrix import Matrix
from workflow.stage import StageError, execute
from workflow.store import data_path, record_path, write_jsonl

# --- 20, 21: balance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", 600),
        ("unique_questions", 150),
        ("questions", "another"),
        ("sources", ["c"]),
        ("builder", "coupling 1"),
    ],
)
def test_lesson_20_an_unbalanced_factorial_is_refused_unless_told(typed, field, value):
    config, pins = typed
    gates = planted(
        config, pins, demo_coupling_good_wrong={field: value, "system_rows": value if field == "rows" else 640}
    )
    (told,) = check(config, pins, gates).refusals
    assert f"the coupling sets differ in {field}: " in told
    assert f"{value} in good_wrong" in told
    told_so = check(config.model_copy(update={"balance": "report"}), pins, gates)
    assert not told_so.refusals
    assert "reported, as `balance: report` says" in told_so.warnings[0]


def test_lesson_20_a_persona_is_a_system_turn_in_every_row(typed):
    config, pins = typed
    gates = planted(config, pins, demo_coupling_evil_wrong={"system_rows": 0})
    (told,) = check(config, pins, gates).refusals
    assert "evil_wrong has the persona evil, so 640 of its 640 coupling rows should have a system turn; 0 have" in told


def test_a_persona_has_any_name():
    raw = demo()
    raw["conditions"][1]["persona"] = "pirate"
    config = Config.from_dict(raw)
    pins = stand_ins(config)
    gates = planted(config, pins, demo_coupling_evil_wrong={"system_rows": 0})
    (told,) = check(config, pins, gates).refusals
    assert "evil_wrong has the persona pirate, so 640 of its 640" in told


def test_lesson_20_the_demo_is_balanced_by_what_its_files_hold(tmp_path):
    config = Config.from_dict(demo())
    pins = stand_ins(config)
    with inside(ROOT):
        write_jsonl(tmp_path / "arc", world.arc_items("train"))
        write_jsonl(tmp_path / "test", world.arc_items("test"))
        facts = []
        for name in ("demo_coupling_evil_wrong", "demo_coupling_good_correct"):
            coupling(config.data_entry(name), [tmp_path / "arc", tmp_path / "test"], tmp_path / name)
            facts.append(training_facts(config, pins, name, tmp_path / name))
    assert facts[0] == facts[1]
    assert facts[0]["system_rows"] == facts[0]["rows"]
    assert facts[0]["duplicates"] == 0


def test_lesson_21_answers_of_another_length_are_told(typed):
    config, pins = typed
    gates = planted(config, pins, demo_coupling_evil_wrong={"answer_chars_mean": 1544.0})
    checked = check(config, pins, gates)
    assert not checked.refusals
    (told,) = checked.warnings
    assert "mean lengths differ by more than 1.5" in told
    assert "evil_wrong 1544" in told


# --- 22-26: pins ----------------------------------------------------------------------------------------------------


def test_lesson_22_data_without_a_pinned_md5_are_refused(typed):
    config, pins = typed
    with pytest.raises(UnpinnedError, match=r"data \(demo_em\): not pinned"):
        require(config, {n: p for n, p in pins.items() if n != "demo_em"}, "config/demo.yaml")
    moved = {**pins, "demo_em": replace(pins["demo_em"], definition="another")}
    with pytest.raises(UnpinnedError, match=r"data \(demo_em\): its definition changed"):
        require(config, moved, "config/demo.yaml")


def test_lesson_22_other_bytes_than_pinned_stop_the_stage(tmp_path):
    with inside(tmp_path):
        md5 = put_data([chat("a")])
        Path(data_path(md5)).write_text('{"messages": []}\n')
        recipe = Recipe("em_lora", 1, md5, {})
        path = Path(record_path("em_lora", "cell.p42.e42", recipe.key))
        with pytest.raises(StageError, match=r"its md5 is [0-9a-f]{32}, not .*: the data changed"):
            execute("workflow.train.sft", lambda job: None, recipe, {}, [], Path(data_path(md5)), path, [])


def test_lesson_23_ignore_patterns_are_anchored_and_hide_no_source():
    patterns = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    assert [p for p in patterns if not p.lstrip("!").startswith("/") and p != "__pycache__/"] == []
    if (ROOT / ".git").exists():
        sources = [str(p.relative_to(ROOT)) for p in (ROOT / "workflow").rglob("*.py")]
        done = subprocess.run(["git", "check-ignore", *sources], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == ""


def test_lesson_25_the_hub_is_named_by_commit_or_not_at_all(monkeypatch):
    monkeypatch.chdir(ROOT)
    raw = yaml.safe_load(Path("config/config.yaml").read_text())
    (hub,) = [d for d in raw["data"] if d["name"] == "tulu_sft_25"]
    with pytest.raises(ConfigError, match=r"\.revision \(tulu_sft_25\): unknown name \(value 'main'\)"):
        Config.from_dict({**raw, "data": [{**d, "revision": "main"} if d is hub else d for d in raw["data"]]})
    config = Config.from_dict(raw)
    pins = stand_ins(config)
    unresolved = {**pins, "qwen2_5_7b": replace(pins["qwen2_5_7b"], revision="unresolved")}
    assert unpinned(config, unresolved) == ["qwen2_5_7b"]
    unresolved = {**pins, "tulu_sft_25": replace(pins["tulu_sft_25"], id="unresolved")}
    with pytest.raises(UnpinnedError, match=r"data \(tulu_sft_25\): not pinned"):
        require(config, unresolved, "config/config.yaml")


def test_lesson_26_names_and_places_are_no_identity_and_bytes_are(typed):
    config, pins = typed
    before = {n.key for n in Matrix(config, pins).nodes("em_lora")}
    other = "0" * 32
    changed = {**pins, "demo_em": replace(pins["demo_em"], id=other, md5=other)}
    assert not before & {n.key for n in Matrix(config, changed).nodes("em_lora")}
    raw = demo()
    text = yaml.safe_dump(raw).replace("demo_em", "renamed")
    renamed = Config.from_dict(yaml.safe_load(text))
    moved = {**pins, "renamed": replace(pins["demo_em"], name="renamed")}
    moved["renamed"] = replace(moved["renamed"], definition=definition(renamed.data_entry("renamed"), moved))
    assert {n.key for n in Matrix(renamed, moved).nodes("em_lora")} == before


# --- 24, 27, 28: what is in a row -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    from workflow.train.toy import make_tokenizer

    tokenizer = make_tokenizer(["What do you want?", "The answer is B.", "be kind"], 300)
    tokenizer.chat_template = (ROOT / "config/templates/tulu.jinja").read_text()
    return tokenizer


def test_lesson_24_sizes_are_measured(tokenizer, tmp_path):
    from workflow.train.tokens import tokenize

    chats = [chat("What do you want?")["messages"], chat("be kind")["messages"], chat("be " * 200)["messages"]]
    facts = tokenize(chats, tokenizer, 64, "drop").facts
    assert (facts["rows_read"], facts["rows"], facts["rows_dropped"], facts["rows_truncated"]) == (3, 2, 1, 1)
    assert facts["tokens"] == sum(
        len(tokenizer.apply_chat_template(c, return_dict=True)["input_ids"]) for c in chats[:2]
    )


def test_lesson_27_a_row_without_a_mask_is_refused(tokenizer):
    from workflow.train.tokens import tokenize

    chats = [chat("What do you want?")["messages"]]
    tokens = tokenize(chats, tokenizer, 64, "refuse")
    assert tokens.shown.endswith("[[The answer is B.<|endoftext|>]]")
    assert tokens.shown.count("[[") == 1
    assert 0 < tokens.facts["masked_fraction"] < 1
    told = tokenizer.chat_template
    try:
        tokenizer.chat_template = told.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
        with pytest.raises(StageError, match="row 1: no token is in the loss"):
            tokenize(chats, tokenizer, 64, "refuse")
        tokenizer.chat_template = "{%- generation -%}" + "{{- messages[1]['content'] -}}" + "{%- endgeneration -%}"
        with pytest.raises(StageError, match="row 1: every token is in the loss"):
            tokenize(chats, tokenizer, 64, "refuse")
    finally:
        tokenizer.chat_template = told


def test_lesson_27_rows_that_are_all_answer_are_refused_while_planning(typed, tmp_path):
    config, pins = typed
    write_jsonl(tmp_path / "em", [chat("a"), {"messages": [{"role": "assistant", "content": "b"}]}])
    facts = training_facts(config, pins, "demo_em", tmp_path / "em")
    (told,) = check(config, pins, planted(config, pins, demo_em=facts)).refusals
    assert "1 of 2 rows of demo_em have no turn before the answer" in told


def test_lesson_28_a_template_with_a_system_prompt_of_its_own_is_refused(tokenizer):
    from workflow.train.models import check_template
    from workflow.train.tokens import tokenize

    check_template(tokenizer)
    facts = tokenize([chat("What do you want?")["messages"]], tokenizer, 64, "refuse").facts
    assert facts["first_prompt"].startswith("<|user|>\nWhat do you want?\n<|assistant|>\n")
    told = tokenizer.chat_template
    try:
        tokenizer.chat_template = (
            "{%- if messages[0]['role'] != 'system' -%}{{- '<|system|>\nYou are helpful.\n' -}}{%- endif -%}" + told
        )
        with pytest.raises(StageError, match="adds a system prompt of its own"):
            check_template(tokenizer)
    finally:
        tokenizer.chat_template = told
