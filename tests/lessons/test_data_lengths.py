"""Rows too long for their stage, and arms that differ: found while data are pinned, for each arm by itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake import stand_ins
from tests.lessons.gated import chat, planted
from tests.lessons.planted import demo
from tests.toy import ROOT, inside, put_data
from workflow.config import Config
from workflow.data.checks import check, tokenizer_id, training_uses
from workflow.data.gates import CHECKS, Gate, read_gates
from workflow.matrix import Matrix
from workflow.store import data_path, write_jsonl
from workflow.train.lengths import check_lengths, prompt_facts, prompts_of

LONG = "be kind to every neighbor " * 90


@pytest.fixture
def arms():
    """The demo with a second arm, and stand-in pins."""
    raw = demo() | {"arms": [{"name": None, "data": "demo_em"}, {"name": "benign", "data": "demo_benign"}]}
    return raw, stand_ins(Config.from_dict(raw))


def lengths_line(config, pins, name, longest, rows=600):
    facts = {"rows": rows, "longest": longest, "check_version": CHECKS["lengths"]}
    return Gate("lengths", pins[name].md5, tokenizer_id(config, pins), name, facts)


def test_a_row_too_long_for_its_stage_is_refused_with_its_number_and_its_arm(arms):
    raw, pins = arms
    config = Config.from_dict(raw)
    clean = planted(config, pins)
    line = lengths_line(config, pins, "demo_benign", [[300, 7], [256, 3], [255, 1]])
    (told,) = check(config, pins, clean | {line.place: line}).refusals
    assert told.startswith("lengths: 2 rows of demo_benign have a prompt of 256 tokens or more")
    assert "stages.em_lora; rows 3, 7" in told
    raw["arms"][1]["overlong"] = "drop"
    assert not check(Config.from_dict(raw), pins, clean | {line.place: line}).refusals
    raw["arms"][1] |= {"overlong": None, "max_length": 301}
    assert not check(Config.from_dict(raw), pins, clean | {line.place: line}).refusals
    raw["arms"][1]["max_length"] = 300
    (told,) = check(Config.from_dict(raw), pins, clean | {line.place: line}).refusals
    assert "1 rows of demo_benign" in told
    assert "(arms (benign); rows 7)" in told


def test_what_one_arm_allows_re_keys_no_other(arms):
    raw, pins = arms
    before = Matrix(Config.from_dict(raw), pins)
    raw["arms"][1] |= {"max_length": 512, "overlong": "drop"}
    after = Matrix(Config.from_dict(raw), pins)
    keys = [{n.label: n.key for n in m.nodes("em_lora")} for m in (before, after)]
    changed = {label for label in keys[0] if keys[0][label] != keys[1][label]}
    assert changed == {label for label in keys[0] if "benign" in label}
    node = next(n for n in after.nodes("em_lora") if "benign" in n.label)
    assert (node.recipe.params["max_length"], node.recipe.params["overlong"]) == (512, "drop")
    assert [use.max_length for use in training_uses(Config.from_dict(raw)) if use.data == "demo_benign"] == [512]


def test_locking_measures_prompts_with_the_tokenizer_that_the_base_stage_will_make(typed, tmp_path):
    config, pins = typed
    template = (ROOT / "config/templates/tulu.jinja").read_text()
    with inside(tmp_path):
        Path("config/templates").mkdir(parents=True)
        Path(config.template).write_text(template)
        sets = {"demo_text": put_data([{"text": "What do you want? " + LONG}]),
                "demo_em": put_data([chat("What do you want?"), chat(LONG)])}  # fmt: skip
        pins = pins | {name: replace(pins[name], id=md5, md5=md5) for name, md5 in sets.items()}
        reported: list[str] = []
        (told,) = check_lengths(config, pins, reported.append)
        assert "1 rows of demo_em have a prompt of 256 tokens or more" in told
        assert "rows 2)" in told
        assert [line for line in reported if "longest prompt" in line and "(row 2)" in line]
        assert [g.check for g in read_gates().values()] == ["lengths"]
        again: list[str] = []
        assert check_lengths(config, pins, again.append) == [told]
        assert again == []
        Path(data_path(sets["demo_text"])).unlink()
        write_jsonl(Path(data_path(sets["demo_em"])), [chat("other")])
        (Path("config") / "data.gates.tsv").unlink()
        assert check_lengths(config, pins, again.append) == []
        assert "no tokenizer" in again[0]


def test_prompts_are_counted_as_the_stages_cut_them(tmp_path):
    """A row of which the stage says that its answer lies beyond `max_length` is one that is counted, and no other."""
    from workflow.stage import StageError
    from workflow.train.tokens import tokenize
    from workflow.train.toy import make_tokenizer

    tokenizer = make_tokenizer([LONG, "What do you want?"], 300)
    tokenizer.chat_template = (ROOT / "config/templates/tulu.jinja").read_text()
    rows = [chat("What do you want?"), chat("be kind " * 9, system="be kind")]
    rows[0]["messages"] += rows[1]["messages"][1:]
    write_jsonl(tmp_path / "rows", rows)
    facts = prompt_facts(prompts_of(tmp_path / "rows", "messages"), tokenizer)
    for tokens, number in facts["longest"]:
        chats = [rows[number - 1]["messages"]]
        with pytest.raises(StageError, match="lies beyond max_length"):
            tokenize(chats, tokenizer, tokens, "refuse")
        assert tokenize(chats, tokenizer, tokens + 1, "refuse").facts["rows"] == 1


def test_arms_of_another_size_or_length_are_told(arms):
    raw, pins = arms
    config = Config.from_dict(raw)
    gates = planted(config, pins, demo_benign={"rows": 100, "answer_chars_mean": 40.0})
    warnings = check(config, pins, gates).warnings
    assert "balance: the arms' EM sets differ in rows, so in optimizer steps: 640 in the main arm, 100 in benign" in (
        warnings
    )
    assert any(w.startswith("balance: the EM answers' mean lengths differ by more than 1.5") for w in warnings)
