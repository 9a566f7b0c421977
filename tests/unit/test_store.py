"""Workspaces, restoring, and what a record commits to."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit._results import build, enter, find, out, publish
from workflow.files import Owner
from workflow.store import (
    RECORD,
    Record,
    StoreError,
    check_outputs,
    describe_outputs,
    out_dir,
    read_record,
    restore,
    set_aside,
    workspace,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


def theirs(folder: Path, owner: Owner) -> Path:
    temp = folder / f".0123abcd.{owner}.tmp"
    temp.mkdir()
    return temp


def dead() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner.current()._replace(pid=process.pid)


def test_a_workspace_is_gone_unless_it_was_published(tmp_path):
    with workspace(tmp_path / "key") as temp:
        (temp / "file").touch()
    assert list((tmp_path / "key").iterdir()) == []


def test_the_workspace_of_a_dead_process_is_removed(tmp_path):
    left = theirs(tmp_path, dead())
    with workspace(tmp_path):
        assert not left.exists()


def test_a_number_that_is_another_process_now_is_dead(tmp_path):
    me = Owner.current()
    left = theirs(tmp_path, me._replace(start=me.start - 1))
    with workspace(tmp_path):
        assert not left.exists()


@pytest.mark.parametrize("field", ["host", "namespace"])
def test_a_workspace_of_another_host_or_container_is_left_alone(tmp_path, field):
    other = dead()._replace(**{field: "elsewhere.example.org" if field == "host" else 1})
    left = theirs(tmp_path, other)
    os.utime(left, (1, 1))  # however old it is
    with workspace(tmp_path):
        assert left.exists()


def test_odd_names_stop_nothing(tmp_path):
    for name in (".tmp", ".x.tmp", ".a.b.c.d.tmp", ".é.1.2.3.tmp"):
        (tmp_path / name).mkdir()
    with workspace(tmp_path):
        pass


def test_a_child_commits_to_the_bytes_of_its_parents(matrix):
    child = find(matrix, "em_lora", "evil_wrong.p42.e42")
    before = read_record(child.record)
    publish(find(matrix, "tulu_dpo", "evil_wrong.p42"), salt="other bytes")
    after = publish(child)
    assert after.content == before.content
    assert after.digest != before.digest


def test_a_result_is_restored_only_on_the_bytes_that_it_was_made_from(matrix):
    child = find(matrix, "arc", "evil_wrong.p42.e42")
    record = read_record(child.record)
    Path(child.record).unlink()
    other = {**record.inputs, "em_lora": record.inputs["em_lora"].model_copy(update={"content": "0" * 64})}
    assert restore(Path(child.record), other) is None
    assert not Path(child.record).exists()
    assert restore(Path(child.record), record.inputs) == record
    assert read_record(child.record) == record


def test_equal_bytes_under_another_history_are_restored_with_new_links(matrix):
    child = find(matrix, "arc", "evil_wrong.p42.e42")
    record = read_record(child.record)
    Path(child.record).unlink()
    inputs = {**record.inputs, "em_lora": record.inputs["em_lora"].model_copy(update={"digest": "1" * 64})}
    restored = restore(Path(child.record), inputs)
    assert restored is not None
    assert restored.content == record.content
    assert restored.digest != record.digest
    assert read_record(out_dir(child.record) / RECORD) == read_record(child.record) == restored


def test_a_result_that_was_set_aside_is_restored_when_its_parents_come_back(matrix):
    child = find(matrix, "arc", "evil_wrong.p42.e42")
    first = read_record(child.record)
    publish(find(matrix, "em_lora", "evil_wrong.p42.e42"), salt="other")
    second = publish(child, salt="other")
    assert second.content != first.content
    Path(child.record).unlink()
    assert restore(Path(child.record), first.inputs) == first
    Path(child.record).unlink()
    assert restore(Path(child.record), second.inputs) == second


def test_a_record_of_schema_1_is_refused_in_a_line(matrix):
    record = Path(find(matrix, "arc", "evil_wrong.p42.e42").record)
    text = record.read_text().replace('"schema": 2', '"schema": 1')
    record.write_text(text)
    with pytest.raises(StoreError, match=r"schema 1, from before the first release.*Move results/ aside"):
        read_record(record)


@pytest.mark.parametrize("field", ["content", "digest"])
def test_an_edited_digest_is_noticed(matrix, field):
    record = Path(find(matrix, "arc", "evil_wrong.p42.e42").record)
    old = getattr(read_record(record), field)
    record.write_text(record.read_text().replace(old, "f" * 64))
    with pytest.raises(StoreError, match="the record was edited"):
        read_record(record)


def test_an_output_that_is_a_link_is_refused(tmp_path, matrix):
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "work/model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="not a link"):
        describe_outputs(tmp_path / "work")
    node = find(matrix, "arc", "evil_wrong.p42.e42")
    file = out(node, "items.jsonl")
    text = file.read_bytes()
    file.unlink()
    (tmp_path / "copy").write_bytes(text)
    file.symlink_to(tmp_path / "copy")
    with pytest.raises(StoreError, match="is a link"):
        check_outputs(read_record(node.record), out_dir(node.record))


@pytest.mark.parametrize("path", ["/etc/passwd", "../../x", "a/../../x", ""])
def test_outputs_stay_inside(matrix, path):
    raw = read_record(find(matrix, "arc", "evil_wrong.p42.e42").record).model_dump(by_alias=True)
    raw["outputs"][0]["path"] = path
    with pytest.raises(ValueError, match=r"inside out/"):
        Record.model_validate(raw)


def test_setting_aside_twice_keeps_both(matrix):
    node = find(matrix, "arc", "evil_wrong.p42.e42")
    first = set_aside(out_dir(node.record))
    Path(node.record).unlink()
    publish(node)
    assert set_aside(out_dir(node.record)) != first
    assert first.exists()
