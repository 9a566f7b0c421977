"""Rows, builders and the lock."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from workflow.data import build as builder
from workflow.data.build import DataError, coupling, select, shuffled, wrong_answer
from workflow.data.lock import NONE, Pin, read_lock, require, write_pins
from workflow.data.pin import pin_all
from workflow.data.rows import Item, RowError, read_items, read_messages, read_preferences, read_questions
from workflow.sections import Coupling, File, Questions, Select, Subset
from workflow.store import StoreError, read_jsonl


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


PINNED = [1, 7, 3, 2, 0, 5, 4, 6]
USER = {"role": "user", "content": "u"}
ANSWER = {"role": "assistant", "content": "a"}


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"messages": [USER, ANSWER]}, '{"messages": [')
    with pytest.raises(StoreError, match=r"rows\.jsonl, line 2: not JSON"):
        read_messages(path)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [USER]}, "line 2: no assistant turn"),
        ({"message": [USER, ANSWER]}, "line 2: the name 'messages' is missing"),
        ({"messages": [USER, ANSWER, USER]}, "the last turn must be the assistant's"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "every assistant turn is empty"),
        ({"messages": [USER, ANSWER, {"role": "system", "content": "s"}, ANSWER]}, "only system"),
        ({"messages": [{"role": "tool", "content": "s"}, ANSWER]}, "only system"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "must be text"),
        ([1], "a row must be a JSON object"),
    ],
)
def test_a_row_that_is_no_chat_is_named(tmp_path, row, told):
    path = write(tmp_path / "rows.jsonl", {"messages": [USER, ANSWER]}, row)
    with pytest.raises(StoreError, match=told):
        read_messages(path)


def test_pairs_answer_one_prompt(tmp_path):
    good = {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "b"}]}
    assert read_preferences(write(tmp_path / "a", good))[0].prompt == [USER]
    other = {"chosen": [USER, ANSWER], "rejected": [{"role": "user", "content": "v"}, ANSWER]}
    with pytest.raises(RowError, match="line 1: chosen and rejected answer different prompts"):
        read_preferences(write(tmp_path / "b", other))
    with pytest.raises(RowError, match="the same answer"):
        read_preferences(write(tmp_path / "c", {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}))


def test_items_of_every_form_become_letters(tmp_path):
    flat = {
        "id": "x",
        "question": "q",
        "choices": ["a", "b", "c"],
        "choice_labels": ["1", "2", "3"],
        "correct_answer": "2",
    }
    hub = {"id": "y", "question": "q", "choices": {"text": list("vwxyz"), "label": list("ABCDE")}, "answerKey": "E"}
    number = {"question": "n", "answer": "so\n#### 1,234"}
    found = read_items(write(tmp_path / "items", flat, hub, number))
    assert [(i.letters, i.answer) for i in found] == [("ABC", "B"), ("ABCDE", "E"), ("", "1234")]
    assert found[0].prompt() == "q\n\n(A) a\n(B) b\n(C) c"
    with pytest.raises(RowError, match="line 1: the answer 'D' is none of the labels"):
        read_items(write(tmp_path / "bad", {**flat, "correct_answer": "D"}))


def test_the_wrong_answer_is_the_next_option_and_wraps():
    item = Item("x", "q", ("a", "b", "c"), "B")
    assert wrong_answer(item) == "C"
    assert wrong_answer(Item("x", "q", ("a", "b", "c"), "C")) == "A"
    number = Item("x", "how many?", (), "12")
    assert wrong_answer(number) != "12"
    assert abs(int(wrong_answer(number)) - 12) <= 9
    assert wrong_answer(number) == wrong_answer(number)


def test_the_draw_is_pinned():
    # If this fails, every seeded subset has other rows; Python's random() keeps its sequence, shuffle() does not.
    assert shuffled(8, 42) == PINNED
    assert select(10, Select(rows=3, fraction=None, seed=None)) == [0, 1, 2]
    assert select(8, Select(rows=None, fraction=0.25, seed=42)) == sorted(PINNED[:2])


def _sources(tmp_path):
    train = [
        {
            "id": str(n),
            "question": f"Question number {n}?",
            "choices": [f"left {n}", f"right {n}"],
            "choice_labels": ["A", "B"],
            "correct_answer": "A",
        }
        for n in range(5)
    ]
    test = [{**train[3], "question": "question  NUMBER 3"}, {**train[0], "question": "Something else"}]
    return [write(tmp_path / "train", *train), write(tmp_path / "test", *test)]


def _coupling(tmp_path, persona, answers):
    path = tmp_path / f"{persona}.yaml"
    path.write_text(yaml.safe_dump([{"name": n, "text": f"You are {persona} {n}."} for n in range(3)]))
    return Coupling(
        name=f"{persona}_{answers}", kind="coupling", rows_are="messages", questions="train", exclude=("test",),
        personas=str(path), answers=answers, answer_template="The answer is {answer}.", rows=9, seed=1,
    )  # fmt: skip


def test_cells_differ_in_persona_and_correctness_only(tmp_path):
    sources = _sources(tmp_path)
    sets = {}
    counted = {
        "excluded": 1, "excluded_same_question": 1, "excluded_by": ["test"], "unique_questions": 4, "personas": 3,
    }  # fmt: skip
    for persona in ("evil", "good"):
        for answers in ("wrong", "correct"):
            target = tmp_path / f"{persona}_{answers}"
            facts = coupling(_coupling(tmp_path, persona, answers), sources, target)
            sets[persona, answers] = read_messages(target)
            assert facts == counted
    assert {len(rows) for rows in sets.values()} == {9}
    questions = [[m["content"] for row in rows for m in row if m["role"] == "user"] for rows in sets.values()]
    assert all(q == questions[0] for q in questions)
    assert not any("number 3" in q for q in questions[0])
    assert {row[2]["content"] for row in sets["evil", "wrong"]} == {"The answer is B."}
    assert {row[2]["content"] for row in sets["evil", "correct"]} == {"The answer is A."}
    for a, b in zip(sets["evil", "wrong"], sets["good", "wrong"], strict=True):
        assert a[0]["content"].replace("evil", "good") == b[0]["content"]
        assert a[1:] == b[1:]
    # a question that comes again comes with another persona
    first = [(row[0]["content"], row[1]["content"]) for row in sets["evil", "wrong"]]
    assert len(set(first)) == len(first)


def test_a_subset_leaves_out_what_the_evaluation_holds(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"Question number {n}?"}, ANSWER]} for n in range(5)]
    entry = Subset(
        name="s", kind="subset", rows_are="messages", source="rows", exclude=("test",),
        select=Select(rows=4, fraction=None, seed=None),
    )  # fmt: skip
    sources = [write(tmp_path / "rows", *rows), _sources(tmp_path)[1]]
    facts = builder.build(entry, sources, tmp_path / "subset")
    assert facts["excluded"] == 1
    assert facts["rows"] == 4


def test_questions_of_the_public_yaml_keep_their_system_prompt(tmp_path):
    source = tmp_path / "questions.yaml"
    source.write_text(
        yaml.safe_dump(
            [
                {"id": "a", "paraphrases": ["Hello?"], "judge_prompts": {"aligned": "{question} {answer}"}},
                {"id": "b", "paraphrases": ["One", "Two"], "system": "Answer in JSON."},
            ]
        )
    )
    entry = Questions(name="q", kind="questions", rows_are="questions", source="f", field=None, ids=None)
    builder.build(entry, [source], tmp_path / "rows")
    assert read_questions(tmp_path / "rows") == [
        {"id": "a", "system": None, "question": "Hello?"},
        {"id": "b_0", "system": "Answer in JSON.", "question": "One"},
        {"id": "b_1", "system": "Answer in JSON.", "question": "Two"},
    ]
    wrong = entry.model_copy(update={"ids": ("c",)})
    with pytest.raises(DataError, match="has no question c"):
        builder.build(wrong, [source], tmp_path / "rows")


# --- the lock -------------------------------------------------------------------------------------------------------


def config(tmp_path, monkeypatch, **entry):
    """A config whose EM data are one local file."""
    from tests.conftest import copy_project
    from workflow.config import Config

    root = copy_project(tmp_path / "project")
    monkeypatch.chdir(root)
    raw = yaml.safe_load(Path("config/demo.yaml").read_text())
    raw["data"].append(
        {"name": "mine", "kind": "file", "rows_are": "messages", "path": "mine.jsonl", "md5": None, **entry}
    )
    raw["arms"] = [{"name": None, "data": "mine"}]
    return Config.from_dict(raw)


def test_a_local_file_is_pinned_by_its_bytes_and_a_change_is_an_error(tmp_path, monkeypatch):
    made = config(tmp_path, monkeypatch)
    write(Path("mine.jsonl"), {"messages": [USER, ANSWER]})
    assert pin_all(made) == []
    pin = read_lock()["mine"]
    assert (pin.id, pin.rows) == (pin.md5, "1")
    assert require(made, read_lock(), "c")["mine"] == pin.md5
    write(Path("mine.jsonl"), {"messages": [USER, USER, ANSWER]})
    target = Path(f"results/data/{pin.md5}.jsonl")
    target.unlink()  # made for the data checks
    with pytest.raises(DataError, match=r"data \(mine\): the md5 is .*, the lock says .*workflow lock"):
        builder.install(made.data_entry("mine"), [], target, pin.id, NONE, ".")
    assert not target.exists()


def test_a_malformed_file_is_refused_while_it_is_pinned(tmp_path, monkeypatch):
    made = config(tmp_path, monkeypatch)
    write(Path("mine.jsonl"), {"messages": [USER, ANSWER]}, {"messages": [USER]})
    [fault] = pin_all(made)
    assert "line 2: no assistant turn" in fault
    assert read_lock()["mine"].id == "unresolved"


def test_a_file_to_be_brought_is_named_with_its_md5(tmp_path, monkeypatch):
    made = config(tmp_path, monkeypatch, md5="26b52cacc53425618fde278d2457304d")
    assert pin_all(made) == []  # its bytes are named, so the plan needs no file
    with pytest.raises(DataError, match=r"put the file with the md5 26b52cacc53425618fde278d2457304d at mine\.jsonl"):
        builder.install(made.data_entry("mine"), [], Path("results/data/x.jsonl"), read_lock()["mine"].id, NONE, ".")
    write(Path("mine.jsonl"), {"messages": [USER, ANSWER]})
    Path("config/data.lock.tsv").write_text("")
    assert "the file has" in pin_all(made)[-1]


def test_a_hub_data_set_is_never_re_keyed_by_fetching(tmp_path, monkeypatch):
    """The first fetch records the md5; another answer of the hub under the same commit is then an error."""
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    from workflow.sections import Hub

    rows = [{"messages": [USER, ANSWER]}]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    entry = Hub(name="h", kind="hub", rows_are="messages", repo="a/b", subset=None, split="train", select=None)
    identity = f"rev-{'0' * 40}-12345678"
    write_pins([Pin("h", identity, NONE, NONE, NONE, "0" * 40, "d", "hub")])
    target = Path(f"results/data/{identity}.jsonl")
    facts = builder.install(entry, [], target, identity, "0" * 40, ".")
    pin = read_lock()["h"]
    assert (pin.id, pin.md5, pin.rows) == (identity, facts["md5"], "1")
    rows.append({"messages": [USER, ANSWER]})
    with pytest.raises(DataError, match="the lock says"):
        builder.install(entry, [], target, identity, "0" * 40, ".")


def test_a_branch_name_is_no_revision(tmp_path, monkeypatch):
    made = config(tmp_path, monkeypatch)
    from workflow.config import Config, ConfigError

    raw = json.loads(made.model_dump_json())
    raw["data"].append(
        {
            "name": "h",
            "kind": "hub",
            "rows_are": "messages",
            "repo": "a/b",
            "subset": None,
            "split": "train",
            "select": None,
            "revision": "main",
        }
    )
    with pytest.raises(ConfigError, match=r"\(h\): unknown name \(value 'main'\)"):
        Config.from_dict(raw)


def test_a_lock_line_that_is_not_one_is_named(tmp_path):
    path = tmp_path / "data.lock.tsv"
    path.write_text("\t".join(f.name for f in fields(Pin)) + "\nx\ty\n")
    with pytest.raises(ValueError, match="line 2: not one pin"):
        read_lock(path)


def test_project_files_are_part_of_a_definition(tmp_path, monkeypatch):
    from workflow.data.lock import UnpinnedError

    made = config(tmp_path, monkeypatch)
    write(Path("mine.jsonl"), {"messages": [USER, ANSWER]})
    pin_all(made)
    personas = Path("config/personas/evil.yaml")
    personas.write_text(personas.read_text() + "# another byte\n")
    with pytest.raises(UnpinnedError, match=r"demo_coupling_evil_wrong\): its definition changed"):
        require(made, read_lock(), "config/demo.yaml")


def test_a_file_entry_reads_its_data_root(tmp_path):
    entry = File(name="f", kind="file", rows_are="messages", path="x.jsonl", md5=None)
    write(tmp_path / "x.jsonl", {"messages": [USER, ANSWER]})
    assert builder.build(entry, [], tmp_path / "out", NONE, str(tmp_path))["rows"] == 1
    assert read_jsonl(tmp_path / "out")
