"""What people hand in by mistake, or with intent: each is accepted rightly, or refused in a line that says where.

A traceback fails the test: only a UserError may come out. Adopted files have their own table in test_adopt.py.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflow.__main__ import main
from workflow.config import Config
from workflow.config_load import read_yaml
from workflow.data.build import build
from workflow.data.lock import LOCK, Pin, describe, read_lock, write_pins
from workflow.data.rows import READERS, read_rows
from workflow.errors import ConfigError, UserError
from workflow.sections import Coupling, File, Prompts, Questions, Url
from workflow.store import StoreError

ROOT = Path(__file__).parents[2]
DEMO: dict[str, Any] = yaml.safe_load((ROOT / "config/demo.yaml").read_text())


def refused(error: BaseException, message: str) -> None:
    """The error is one for people, holds the message, and nothing that a terminal would obey."""
    assert isinstance(error, UserError)
    assert message in str(error), str(error)
    assert "Traceback" not in str(error)
    assert all(len(line) < 1200 for line in str(error).splitlines())


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(DEMO)
    path = path.replace("COUPLING", str([d["name"] for d in DEMO["data"]].index("demo_coupling_evil_wrong")))
    *parents, last = path.split(".")
    place: Any = raw
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[int(last) if last.isdigit() else last] = value
    return raw


# --- config: a value of the wrong kind in the right place -----------------------------------------------------------

INF, NAN = float("inf"), float("nan")
VALUES: list[tuple[str, Any, str]] = [
    ("stages.em_lora.learning_rate", INF, "stages.em_lora.learning_rate: inf is no finite number"),
    ("stages.em_lora.learning_rate", -INF, "-inf is no finite number"),
    ("stages.em_lora.learning_rate", NAN, "nan is no finite number"),
    ("stages.em_lora.learning_rate", -0.0, "-0.0 and 0.0 would be two spellings"),
    ("stages.em_lora.learning_rate", -1e-4, "greater than or equal to 0"),
    ("stages.em_lora.learning_rate", 10**400, "more than 64 bits"),
    ("stages.em_lora.learning_rate", None, "stages.em_lora.learning_rate"),
    ("stages.em_lora.learning_rate", [1e-4], "stages.em_lora.learning_rate"),
    ("stages.em_lora.learning_rate", True, "stages.em_lora.learning_rate"),
    ("stages.em_lora.weight_decay", -0.0, "weight_decay: -0.0"),
    ("stages.em_lora.adam_beta1", 1.0, "less than 1"),
    ("stages.em_lora.adam_beta2", 1.5, "less than 1"),
    ("stages.em_lora.adam_epsilon", 0.0, "greater than 0"),
    ("stages.em_lora.optim", "adamw_tortch", "stages.em_lora.optim: Input should be 'adamw_torch'"),
    ("stages.em_lora.optim", "", "optim"),
    ("stages.em_lora.optim", 3, "optim"),
    ("stages.tulu_sft.lr_scheduler_type", "cosin", "stages.tulu_sft.lr_scheduler_type"),
    ("stages.tulu_sft.lr_scheduler_type", "polynomial", "lr_scheduler_type"),
    ("stages.em_lora.num_train_epochs", 0, "greater than 0"),
    ("stages.em_lora.num_train_epochs", -1, "greater than 0"),
    ("stages.em_lora.num_train_epochs", 1.5, "num_train_epochs"),
    ("stages.em_lora.max_length", 2**63, "more than 64 bits"),
    ("stages.em_lora.dtype", "float16", "dtype"),
    ("stages.em_lora.packing", 1, "packing"),
    ("stages.em_lora.lora.target_modules", [], "target_modules"),
    ("stages.em_lora.lora.target_modules", ["q_proj", "q_proj"], "a name stands twice"),
    ("stages.em_lora.lora.target_modules", "q_proj", "target_modules"),
    ("stages.em_lora.lora.target_modules", ["q proj"], "target_modules"),
    ("stages.em_lora.lora.lora_dropout", 1.0, "less than 1"),
    ("stages.em_lora.lora.r", 0, "greater than 0"),
    ("stages.em_lora.lora", None, "stages.em_lora.lora"),
    ("stages.em_lora", [], "stages.em_lora"),
    ("stages", "all", "stages"),
    ("pipeline_seeds", [-1], "pipeline_seeds.0: Input should be greater than or equal to 0"),
    ("pipeline_seeds", [2**32], "less than 4294967296"),
    ("pipeline_seeds", [2**70], "more than 64 bits"),
    ("pipeline_seeds", ["42"], "'42' is text where a int is needed"),
    ("pipeline_seeds", [42.0], "pipeline_seeds.0"),
    ("pipeline_seeds", [True], "pipeline_seeds.0"),
    ("pipeline_seeds", 42, "pipeline_seeds"),
    ("em_seeds", [42, -137], "em_seeds.1"),
    ("em_seeds", [None], "em_seeds.0"),
    ("base_model.seed", -1, "base_model.seed"),
    ("data.COUPLING.seed", 2**33, "less than 4294967296"),
    ("data.COUPLING.seed", -0.0, "-0.0"),
    ("data.COUPLING.rows", 10**12, "less than or equal to 10000000"),
    ("data.COUPLING.rows", 0, "greater than 0"),
    ("data.COUPLING.exclude", "demo_arc", "exclude"),
    ("data.COUPLING.questions", "demo_arc_trian", "Did you mean `demo_arc_train`"),
    ("data.COUPLING.personas", "config/{cell}.yaml", "personas"),
    ("data.COUPLING.personas", "", "personas"),
    ("data.COUPLING.answer_template", "{answer:>999999999}", "must hold {answer}, as it is, and no other field"),
    ("data.COUPLING.answer_template", "{answer!r}", "no other field"),
    ("data.COUPLING.answer_template", "{answer.__class__}", "no other field"),
    ("data.COUPLING.answer_template", "{answer[0]}", "no other field"),
    ("data.COUPLING.answer_template", "{0}", "no other field"),
    ("data.COUPLING.answer_template", "{}", "no other field"),
    ("data.COUPLING.answer_template", "The answer.", "must hold {answer}"),
    ("data.COUPLING.answer_template", "{answer", "write {{ and }}"),
    ("data.COUPLING.answer_template", "answer}", "write {{ and }}"),
    ("data.COUPLING.answer_template", "{answer} {question}", "no other field"),
    ("data.COUPLING.answer_template", "{answer:{answer}}", "no other field"),
    ("data.COUPLING.name", "a" * 101, "at most 100 characters"),
    ("data.COUPLING.name", "Upper", "name"),
    ("data.COUPLING.name", "a b", "name"),
    ("data.COUPLING.name", "../x", "name"),
    ("data.COUPLING.name", "a\nb", "name"),
    ("data.COUPLING.name", "", "name"),
    ("data.COUPLING.name", None, "name"),
    ("data.COUPLING.kind", "couplings", "kind"),
    ("data.COUPLING.kind", None, "kind"),
    ("data.COUPLING", None, "data."),
    ("data.COUPLING", "coupling", "data."),
    ("data", {}, "data"),
    ("conditions.1.name", "b" * 300, "at most 100 characters"),
    ("conditions.1.name", "evil.wrong", "conditions.1.name"),
    ("conditions.1.persona", "Very bad", "persona"),
    ("conditions.1", {}, "conditions.1"),
    ("conditions", [], "at least 1"),
    ("arms", [], "at least 1"),
    ("arms.0.max_length", 0, "arms.0.max_length"),
    ("arms.0.overlong", "cut", "arms.0.overlong"),
    ("name", "x" * 101, "at most 100 characters"),
    ("name", "demo\x00", "'\\x00', a control or half character"),
    ("title", "t" * 301, "at most 300 characters"),
    ("title", "\x1b[31mred", "'\\x1b', a control or half character"),
    ("title", "half \ud800", "'\\ud800', a control or half character"),
    ("note", "a\x07b", "control"),
    ("template", "config/{name}.jinja", "template"),
    ("template", "a\nb", "template"),
    ("data_root", "/data/{x}", "data_root"),
    ("data_root", "", "data_root"),
    ("tracking", "mlflow", "tracking"),
    ("overlap", "ignore", "overlap"),
    ("overlap", False, "overlap"),
    ("overlap_allowed", [{"training": "demo_em"}], "overlap_allowed.0.evaluation: missing"),
    ("overlap_allowed", "demo_em", "overlap_allowed"),
    ("instruments.0.sampler.temperature", INF, "temperature: inf"),
    ("instruments.0.sampler.top_p", 1.01, "less than or equal to 1"),
    ("instruments.0.sampler.seed", -5, "seed"),
    ("instruments.0.judge.order_seed", -5, "order_seed"),
    ("instruments.0.judge.top_logprobs", 21, "top_logprobs"),
    ("placement.em_lora.world_size", 0, "world_size"),
    ("placement.em_lora.nodes", 2, "does not lie evenly"),
    ("placement.judge.budget_usd", INF, "budget_usd: inf"),
    ("placement.judge.base_url", "file:///etc/passwd", "base_url"),
    ("replicates", [{"stage": "em_lora", "cell": "x", "up_to": 1}], "up_to"),
    ("waivers", [{"cells": [], "fields": ["x"], "reason": "r"}], "waivers.0.cells"),
    ("extra\x1b", 1, "unknown name"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), VALUES, ids=[f"{p}-{n}" for n, (p, *_) in enumerate(VALUES)])
def test_a_value_that_no_config_may_hold_is_refused_with_its_place(path, value, message):
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(changed(path, value))
    refused(caught.value, message)


@pytest.mark.parametrize("raw", [None, [], "text", 5, {}, {"name": 1}, {1: 2}, {"a": {"b": {None: 1}}}])
def test_a_config_that_is_none_is_refused(raw):
    with pytest.raises(ConfigError):
        Config.from_dict(raw)


def test_a_value_nested_without_end_is_refused():
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ConfigError, match="levels deep"):
        Config.from_dict(changed("note", deep))


# --- URLs -----------------------------------------------------------------------------------------------------------

URLS = [
    "http://example.org/a", "file:///etc/passwd", "data:text/plain,a", "ftp://example.org/a", "//example.org/a", "a",
    "",
    "https://", "https:///a", "https://[", "https://user:hunter2@example.org/a", "https://example.org:99999/a",
    "https://example.org/a b", "https://example.org/\na", "HTTPS//example.org", "javascript:alert(1)",
    "https://exämple.org/a",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_an_address_that_is_not_fetched_is_refused(url):
    entry = {"name": "u", "kind": "url", "rows_are": "raw", "url": url, "md5": "0" * 32}
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({**DEMO, "data": [*DEMO["data"], entry]})
    refused(caught.value, f"data.{len(DEMO['data'])} (u)")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://example.org/a?b=c", "https://example.org:8443/a%20b"])
def test_a_public_address_is_accepted(url):
    assert Url(name="u", kind="url", rows_are="raw", url=url, md5="0" * 32).url == url


# --- YAML -----------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "duplicate name": ("name: a\ntitle: b\nname: c\n", "line 3: `name` stands twice (first on line 1)"),
    "duplicate below": ("stages:\n  a: 1\n  a: 2\n", "line 3: `a` stands twice"),
    "duplicate in a flow": ("stages: {a: 1, b: 2, a: 3}\n", "line 1: `a` stands twice"),
    "duplicate in quotes": ('a: 1\n"a": 2\n', "`a` stands twice"),
    "billion laughs": (LAUGHS, "with aliases written out"),
    "an alias that holds itself": ("a: &a [*a]\n", "holds itself"),
    "a mapping that holds itself": ("a: &a {b: *a}\n", "holds itself"),
    "deep lists": ("[" * 5000, "nested more than"),
    "deep and closed": ("a: " + "[" * 200 + "]" * 200, "levels"),
    "deep mappings": ("".join(f"{' ' * n}a:\n" for n in range(100)), "levels"),
    "too large": ("a: " + "x" * 1_000_001, "larger than 1,000,000 bytes"),
    "merge key": ("a: &a {x: 1}\nb:\n  <<: *a\n", "line 3: `<<` is not read"),
    "a name that is true": ("on: 1\n", "the name 'on' is read as bool; put it in quotes"),
    "a name that is a number": ("1: a\n", "the name '1' is read as int"),
    "a name that is null": ("~: a\n", "is read as NoneType"),
    "a name that is a list": ("[a]: b\n", "is read as list"),
    "a name that is a date": ("2026-01-01: b\n", "is read as date"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    "an unknown tag": ("a: !mine 5\n", "could not determine a constructor"),
    "not closed": ("a: [1, 2\n", "line 2"),
    "a tab": ("a:\n\tb: 1\n", "cannot start any token"),
    "two documents": ("a: 1\n---\nb: 2\n", "another document"),
    "an unknown alias": ("a: *b\n", "undefined alias"),
    "not UTF-8": (b"a: 1\nb: \xff\n", "line 2: not UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "not UTF-8"),
    "a control character": (b"a: \x01\n", "not allowed"),
    "a month that is none": ("a: 2026-13-45\n", "month must be in 1..12"),
    "a long integer": ("a: " + "9" * 5000 + "\n", "integer string conversion"),
    "binary that is none": ("a: !!binary '%%%'\n", "a"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_yaml_that_cannot_be_meant_is_refused_with_its_line(tmp_path, case):
    content, message = TEXTS[case]
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    refused(caught.value, message)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value).replace("cannot be used:\n", "")


ODD_TYPES = {
    "date": ("2026-01-01", "is read as date"),
    "time": ("2026-01-01 10:00:00", "is read as datetime"),
    "binary": ("!!binary aGVsbG8=", "is read as bytes"),
    "set": ("!!set {a, b}", "is read as set"),
    "infinity": (".inf", "inf is no finite number"),
    "minus zero": ("-0.0", "-0.0"),
    "not a number": (".nan", "nan is no finite number"),
}


@pytest.mark.parametrize("case", ODD_TYPES)
def test_a_yaml_value_of_a_type_that_no_field_has_is_refused(tmp_path, case):
    text, message = ODD_TYPES[case]
    path = tmp_path / "c.yaml"
    path.write_text((ROOT / "config/demo.yaml").read_text().replace("tracking: none", f"tracking: {text}"))
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    refused(caught.value, f"tracking: {message}" if "finite" in message else message)


def test_aliases_within_reason_are_read(tmp_path):
    (tmp_path / "a").write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    assert read_yaml(tmp_path / "a") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    (tmp_path / "empty").write_text("")
    assert read_yaml(tmp_path / "empty") is None


@pytest.mark.parametrize("place", ["none.yaml", "."])
def test_a_config_that_is_no_file_is_a_line(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        main(["status", "--configfile", str(tmp_path / place)])
    assert caught.value.code in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said


def test_the_door_prints_a_fault_in_one_line_without_what_a_terminal_would_obey(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "c.yaml"
    path.write_text((ROOT / "config/demo.yaml").read_text().replace('title: "Demo', 'title: "\\e[31mDemo'))
    with pytest.raises(SystemExit):
        main(["status", "--configfile", str(path)])
    said = capsys.readouterr().err
    assert "title: the text holds '\\x1b'" in said
    assert "\x1b" not in said


# --- order re-keys nothing ------------------------------------------------------------------------------------------


def test_the_order_of_a_set_is_no_difference():
    other = changed(
        "stages.em_lora.lora.target_modules", list(reversed(DEMO["stages"]["em_lora"]["lora"]["target_modules"]))
    )
    assert Config.from_dict(other).stages == Config.from_dict(DEMO).stages


def test_the_order_of_conditions_and_seeds_and_a_comment_in_the_claims_re_key_nothing(tmp_path, monkeypatch):
    from tests.fake import stand_ins
    from workflow.matrix import Matrix

    shutil.copytree(ROOT / "config", tmp_path / "config")
    shutil.copytree(ROOT / "reference", tmp_path / "reference")
    monkeypatch.chdir(tmp_path)

    def nodes(raw):
        config = Config.from_dict(raw)
        return {(n.stage, n.label, n.key) for n in Matrix(config, stand_ins(config)).nodes()}

    before = nodes(DEMO)
    turned = {**DEMO, "conditions": DEMO["conditions"][::-1], "em_seeds": DEMO["em_seeds"][::-1]}
    assert nodes(turned) == before
    claims = Path("config/claims.yaml")
    text = claims.read_text()
    claims.write_text("# a comment\n" + text + "\n# another\n")
    assert nodes(DEMO) == before
    claims.write_text(text.replace("claims:", "claims:\n  # inside", 1))
    assert nodes(DEMO) == before
    claims.write_text(text + "\nmore: 1\n")
    assert {stage for stage, _, _ in nodes(DEMO) ^ before} == {"report"}


def test_the_optimizers_are_those_that_the_library_knows():
    from transformers.training_args import OptimizerNames, SchedulerType

    from workflow.sections import Training

    fields = Training.model_fields
    optimizers = fields["optim"].annotation.__args__
    schedules = fields["lr_scheduler_type"].annotation.__args__
    assert set(optimizers) <= {o.value for o in OptimizerNames}
    assert set(schedules) <= {s.value for s in SchedulerType}


# --- rows -----------------------------------------------------------------------------------------------------------

USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
FLAT = {"id": "i", "question": "q?", "choices": ["a", "b"], "choice_labels": ["A", "B"], "correct_answer": "A"}
PAIR = {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "b"}]}


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != name}


ROWS: list[tuple[str, Any, str]] = [
    ("messages", b'{"messages": "\xff"}', "not UTF-8"),
    ("messages", b"\xef\xbb\xbf{}", "not JSON"),
    ("messages", "[" * 100_000, "nested too deep"),
    ("messages", '{"a":' * 100_000, "nested too deep"),
    ("messages", '{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ("messages", '{"a": NaN}', "NaN is no JSON number"),
    ("messages", '{"a": -Infinity}', "-Infinity is no JSON number"),
    ("messages", '{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a character"),
    ("messages", '{"\\udfff": 1}', "half a character"),
    ("messages", "{'a': 1}", "not JSON"),
    ("messages", '{"a": 1', "not JSON"),
    ("messages", '{"a": 1} {"b": 2}', "not JSON"),
    ("messages", "null", "must be a JSON object"),
    ("messages", "5", "must be a JSON object"),
    ("messages", '"text"', "must be a JSON object"),
    ("messages", {}, "the name 'messages' is missing"),
    ("messages", {"messages": []}, "list of turns"),
    ("messages", {"messages": {}}, "list of turns"),
    ("messages", {"messages": "hello"}, "list of turns"),
    ("messages", {"messages": ["hello"]}, "list of turns"),
    ("messages", {"messages": [None]}, "list of turns"),
    ("messages", {"messages": [{"role": "user"}]}, "the name 'content' is missing"),
    ("messages", {"messages": [{"content": "a"}]}, "the name 'role' is missing"),
    ("messages", {"messages": [USER, {"role": "assistant", "content": 5}]}, "must be text"),
    ("messages", {"messages": [USER, {"role": "assistant", "content": ["a"]}]}, "must be text"),
    ("messages", {"messages": [USER, {"role": ["assistant"], "content": "a"}]}, "no assistant turn"),
    ("messages", {"messages": [{"role": {}, "content": "a"}, ANSWER]}, "role must be text"),
    ("messages", {"messages": [USER, {"role": "Assistant", "content": "a"}]}, "no assistant turn"),
    ("messages", {"messages": [{"role": "\x1b[31m", "content": "a"}, ANSWER]}, "only system"),
    ("preferences", {"chosen": [USER, ANSWER]}, "the name 'rejected' is missing"),
    ("preferences", {"chosen": None, "rejected": None}, "list of turns"),
    ("preferences", PAIR | {"rejected": [USER]}, "no assistant turn"),
    ("items", without(FLAT, "question"), "the name 'question' is missing"),
    ("items", FLAT | {"question": ""}, "`question` must be text"),
    ("items", FLAT | {"question": 5}, "`question` must be text"),
    ("items", FLAT | {"question": ["q"]}, "`question` must be text"),
    ("items", FLAT | {"choices": ["a", "a"]}, "two of the choices are the same"),
    ("items", FLAT | {"choices": ["a", " a "]}, "two of the choices are the same"),
    ("items", FLAT | {"choices": ["a", ""]}, "none of them empty"),
    ("items", FLAT | {"choices": ["a", None]}, "must be a list of texts"),
    ("items", FLAT | {"choices": "ab"}, "must be a list of texts"),
    ("items", FLAT | {"choices": []}, "0 choices"),
    ("items", FLAT | {"choices": ["a"], "choice_labels": ["A"]}, "1 choices"),
    ("items", FLAT | {"choices": list("abcdefghijk"), "choice_labels": list("ABCDEFGHIJK")}, "11 choices"),
    ("items", FLAT | {"choice_labels": ["A"]}, "need as many labels"),
    ("items", FLAT | {"choice_labels": ["A", "A"]}, "need as many labels"),
    ("items", FLAT | {"choice_labels": "AB"}, "need as many labels"),
    ("items", FLAT | {"choices": {"text": ["a", "b"]}}, "the name 'label' is missing"),
    ("items", FLAT | {"correct_answer": "C"}, "none of the labels"),
    ("items", FLAT | {"correct_answer": None}, "none of the labels"),
    ("items", FLAT | {"correct_answer": ["A"]}, "none of the labels"),
    ("items", {"question_id": 1, "question": "q", "options": ["a", "b"], "answer_index": 2}, "of which number 2"),
    ("items", {"question_id": 1, "question": "q", "options": ["a", "b"], "answer_index": -1}, "of which number -1"),
    ("items", {"question_id": 1, "question": "q", "options": ["a", "b"], "answer_index": "0"}, "of which number '0'"),
    ("items", {"question_id": 1, "question": "q", "options": ["a", "b"], "answer_index": True}, "number True"),
    ("items", {"question_id": 1, "question": "q", "options": None, "answer_index": 0}, "must be a list of texts"),
    ("items", {"question": "q", "answer": "#### ,"}, "ends in `#### N`"),
    ("items", {"question": "q", "answer": "#### 1.2.3"}, "ends in `#### N`"),
    ("items", {"question": "q", "answer": "#### ٣"}, "ends in `#### N`"),
    ("items", {"question": "q", "answer": 5}, "`answer` must be text"),
    ("questions", {"id": 1, "question": "?"}, "the name 'system' is missing"),
    ("questions", {"id": 1, "question": None, "system": None}, "`question` must be text"),
    ("questions", {"id": 1, "question": "?", "system": 5}, "`system` must be text or null"),
    ("prompts", {"name": "n", "prompt": "{question}"}, "needs {question} and {answer}, once each"),
    ("prompts", {"name": "n", "prompt": "{question} {answer} {answer}"}, "once each"),
    ("prompts", {"name": "n", "prompt": "{question:>99999999} {answer}"}, "once each"),
    ("prompts", {"name": None, "prompt": "{question} {answer}"}, "`name` must be text"),
    ("prompts", {"name": "n", "prompt": ["{question} {answer}"]}, "`prompt` must be text"),
    ("text", {"text": None}, "`text` must be text"),
    ("text", {"text": 5}, "`text` must be text"),
    ("text", {"text": "   "}, "not empty"),
]  # fmt: skip
GOOD_ROW = {
    "messages": {"messages": [USER, ANSWER]}, "preferences": PAIR, "items": FLAT,
    "questions": {"id": 0, "question": "?", "system": None}, "prompts": {"name": "a", "prompt": "{question} {answer}"},
    "text": {"text": "t"},
}  # fmt: skip


def bytes_of(row: Any) -> bytes:
    return row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()


@pytest.mark.parametrize(("kind", "row", "message"), ROWS, ids=[f"{k}-{n}" for n, (k, *_) in enumerate(ROWS)])
def test_a_row_that_is_none_is_refused_with_the_users_file_and_line(tmp_path, kind, row, message):
    """Through the builder, as `lock` and the data rule read it; the blank line counts."""
    (tmp_path / "mine.jsonl").write_bytes(bytes_of(GOOD_ROW[kind]) + b"\n\n" + bytes_of(row) + b"\n")
    entry = File(name="mine", kind="file", rows_are=kind, path="mine.jsonl", md5=None)
    with pytest.raises(StoreError) as caught:
        build(entry, [], tmp_path / "target", data_root=str(tmp_path))
    refused(caught.value, message)
    assert f"data (mine): {tmp_path}/mine.jsonl, line 3: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("kind", GOOD_ROW)
def test_a_good_row_is_read(tmp_path, kind):
    (tmp_path / "a").write_bytes(bytes_of(GOOD_ROW[kind]))
    assert len(READERS[kind](tmp_path / "a")) == 1
    (tmp_path / "b").write_bytes(b"\n")
    with pytest.raises(StoreError, match="no rows"):
        READERS[kind](tmp_path / "b")


def test_whole_characters_in_two_halves_are_read(tmp_path):
    (tmp_path / "a").write_text('{"text": "\\ud83d\\ude00 \\u00e9"}\n')
    assert read_rows(tmp_path / "a") == [{"text": "😀 é"}]


# --- question, prompt and persona files -----------------------------------------------------------------------------

QUESTIONS = Questions(name="q", kind="questions", rows_are="questions", source="f", field=None, ids=None)
FILES: list[tuple[str, str, str]] = [
    ("questions", "", "no list of questions"),
    ("questions", "5", "no list of questions"),
    ("questions", "a: 1", "no list of questions"),
    ("questions", "[]", "no list of questions"),
    ("questions", "- id: a", "question 1: no text under `question`"),
    ("questions", "- question: 5\n  id: a", "no text under `question`"),
    ("questions", "- question: What", "needs `id`"),
    ("questions", "- {id: [a], question: What}", "needs `id`"),
    ("questions", "- {id: a, question: What, system: [x]}", "`system` is text or null"),
    ("questions", "- {id: a, paraphrases: What}", "no text under `question`"),
    ("questions", "- {id: a, paraphrases: [1]}", "no text under `question`"),
    ("questions", "- [1]", "no text under `question`"),
    ("questions", "- null", "no text under `question`"),
    ("questions", "- {id: a, question: a, id: b}", "`id` stands twice"),
    ("questions", '{"id": "a", "question": ', "not JSON"),
    ("questions", "- {id: a, question: A}\n- {id: a, question: B}", "two questions have one id"),
    ("prompts", "", "holds no `prompts:`"),
    ("prompts", "prompts: []", "holds no `prompts:`"),
    ("prompts", "prompts: {a: 5}", "holds no `prompts:`"),
    ("prompts", "prompts: {a: 'no fields'}", "needs {question} and {answer}"),
    ("prompts", "- id: a", "have no judge prompts"),
    ("prompts", "- 5", "have no judge prompts"),
    ("prompts", "- judge_prompts: 5", "holds no `prompts:`"),
    ("prompts", "- {judge_prompts: {a: x}}\n- {judge_prompts: {a: y}}", "or different ones"),
    ("prompts", LAUGHS, "with aliases written out"),
    ("personas", "", "must be a list of personas"),
    ("personas", "a: 1", "must be a list of personas"),
    ("personas", "- a", "must be a list of personas"),
    ("personas", "- name: a", "must be a list of personas"),
    ("personas", "- {name: a, text: 5}", "must be a list of personas"),
    ("personas", "- {name: a, text: ' '}", "must be a list of personas"),
    ("personas", "[", "line"),
]


@pytest.mark.parametrize(("kind", "text", "message"), FILES, ids=[f"{k}-{n}" for n, (k, *_) in enumerate(FILES)])
def test_a_file_of_another_form_is_refused(tmp_path, kind, text, message):
    source = tmp_path / "source.yaml"
    source.write_text(text)
    sources = [source]
    entry: Any = QUESTIONS
    if kind == "prompts":
        entry = Prompts(name="p", kind="prompts", rows_are="prompts", source="f")
    if kind == "personas":
        (tmp_path / "items").write_text(json.dumps(FLAT))
        sources = [tmp_path / "items"]
        entry = Coupling(
            name="c", kind="coupling", rows_are="messages", questions="t", exclude=(), personas=str(source),
            answers="wrong", answer_template="{answer}", rows=2, seed=1,
        )  # fmt: skip
    with pytest.raises(StoreError) as caught:
        build(entry, sources, tmp_path / "target")
    refused(caught.value, message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", ["a\nb", "a\tb", "a\r\nb", "a\x85b", "a\u2028b", "a\x0bb", "a\x1cb"])
def test_a_line_of_the_lock_stays_one_line(tmp_path, odd):
    entry = Coupling.model_construct(
        name="c", kind="coupling", rows_are="messages", questions="t", exclude=(odd,), personas=None, answers="wrong",
        answer_template=f"{odd} {{answer}}", rows=2, seed=1,
    )  # fmt: skip
    (tmp_path / "config").mkdir()
    path = tmp_path / LOCK
    write_pins([Pin("c", "i", "-", "-", "-", "-", "d", describe(entry)), Pin("d", *"i-----", "s")], path)
    assert list(read_lock(path)) == ["c", "d"]
