"""Planted links redirect nothing, and what a file says cannot move a terminal's cursor or a page."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit._results import build, change, command, edit_record, enter, find, out, publish
from workflow.audit.adopt import ADOPTED
from workflow.audit.export import card, export
from workflow.config import ConfigError
from workflow.plan import Plan, claim
from workflow.stage import StageError, run_stage
from workflow.store import StoreError, read_record

CELL = "evil_wrong.p42.e42"
EVIL = "\x1b]0;owned\x07\x1b[2J\u202egpj.exe\r\x9b31m"
CONTROL = ("\x1b", "\x07", "\u202e", "\r", "\x9b")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture
def matrix(built, tmp_path, monkeypatch):
    return enter(built, tmp_path, monkeypatch)


@pytest.fixture
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    (folder / "precious").write_text("keep")
    return folder


def untouched(outside):
    return sorted(p.name for p in outside.iterdir()) == ["precious"] and (outside / "precious").read_text() == "keep"


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_planted_claim_is_not_written_through(matrix, outside):
    Path("results/.claim").symlink_to(outside / "precious")
    with pytest.raises(SystemExit, match=r"results/\.claim"):
        claim()
    assert untouched(outside)


def test_a_planted_folder_of_plans_is_not_written_through(matrix, outside):
    Path("results/.plan").symlink_to(outside)
    plan = Plan(matrix.config, matrix, {}, ())
    with pytest.raises(SystemExit, match=r"results/\.plan: a link"):
        plan.write_plan()
    assert untouched(outside)


def test_export_copies_no_link(matrix, outside, tmp_path_factory):
    path = out(find(matrix, "em_lora", CELL), "adapter/adapter_model.safetensors")
    text = path.read_bytes()
    (outside / "bytes").write_bytes(text)
    path.unlink()
    path.symlink_to(outside / "bytes")
    target = tmp_path_factory.mktemp("t") / "export"
    with pytest.raises(StoreError, match="is a link"):
        export(matrix, CELL, target)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["link to a folder", "dangling link", "file", "full folder"])
def test_export_writes_into_a_new_folder_only(matrix, outside, tmp_path_factory, kind):
    target = tmp_path_factory.mktemp("t") / "export"
    (outside / "empty").mkdir()
    if kind == "file":
        target.write_text("x")
    elif kind == "full folder":
        target.mkdir()
        (target / "file").write_text("x")
    else:
        target.symlink_to(outside / ("empty" if kind == "link to a folder" else "none"))
    with pytest.raises(ConfigError, match="not an empty folder of its own"):
        export(matrix, CELL, target)
    assert list((outside / "empty").iterdir()) == []
    assert not (outside / "none").exists()


def test_an_output_does_not_take_the_place_of_the_card(matrix, tmp_path_factory):
    publish(find(matrix, "em_lora", CELL), outputs={"README.md": "# mine\n"})
    with pytest.raises(StoreError, match="where the export has its own file"):
        export(matrix, CELL, tmp_path_factory.mktemp("t") / "export")


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a/b", ".hidden", "a\n", ""])
def test_adopt_stays_inside(matrix, outside, name):
    folder = Path("original")
    folder.mkdir()
    (folder / "a.json").write_text('{"condition": "a", "seeds": [1], "alignment": {"values": [1.0]}}')
    before = sorted(Path("results").rglob("*"))
    said = command("adopt", str(folder), "--name", name or " ")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert sorted(Path("results").rglob("*")) == before


def test_adopt_writes_through_no_link(matrix, outside):
    folder = Path("original")
    folder.mkdir()
    (folder / "a.json").write_text('{"condition": "a", "seeds": [1], "alignment": {"values": [1.0]}}')
    Path(ADOPTED).symlink_to(outside)
    said = command("adopt", str(folder))
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "a link" in said.err
    assert untouched(outside)


# --- control characters -----------------------------------------------------------------------------------------------


def harmless(text):
    return not any(c in text for c in CONTROL)


def test_a_log_cannot_move_the_cursor(matrix):
    node = find(matrix, "em_lora", CELL)
    shutil.rmtree(out(node, "adapter").parent)
    shutil.rmtree(Path(node.record).parent)
    log = Path(f"logs/em_lora/{CELL}/{node.key}.log")
    log.parent.mkdir(parents=True)
    log.write_text(f"error: {EVIL}\n")
    told = command("status")
    assert "owned" in told.out
    assert harmless(told.out)
    assert harmless(command("why", CELL, "em_lora").out)


def test_a_record_cannot_move_the_cursor(matrix):
    node = find(matrix, "em_lora", CELL)
    edit_record(node.record, lambda r: r["observed"].update(rows=EVIL))
    for told in (command("verify"), command("lineage", CELL)):
        assert "owned" in told.out
        assert harmless(told.out)
    edit_record(node.record, lambda r: r.update({EVIL: 1}))
    assert harmless(command("verify").out)


def test_an_older_record_cannot_move_the_cursor(matrix):
    node = find(matrix, "em_lora", CELL)
    change(lambda raw: raw["stages"]["em_lora"].update(learning_rate=3e-5))
    edit_record(node.record, lambda r: r["recipe"]["params"].update(learning_rate=EVIL))
    told = command("why", CELL, "em_lora")
    assert "owned" in told.out
    assert harmless(told.out)


def test_a_name_of_a_file_cannot_move_the_cursor(matrix):
    Path(find(matrix, "em_lora", CELL).record).with_name("a\x1b[2J\nbroken: b").write_text("x")
    told = command("verify")
    assert harmless(told.out)
    assert not any(line.startswith("broken: b") for line in told.out.splitlines())


def test_what_an_endpoint_said_cannot_move_the_cursor_of_a_log(matrix, capsys, monkeypatch):
    node = find(matrix, "judge", CELL)
    Path(node.record).unlink()
    shutil.rmtree(out(node, "judgments.jsonl").parent)

    def run(job):
        raise StageError(f"the judge said {EVIL}")

    parents = [p.record for p in node.parents]
    argv = [f"--recipe={node.recipe.to_json()}", "--placement={}", "--parents", *parents, f"--record={node.record}"]
    monkeypatch.setattr(sys.modules[__name__], "STAGES", ("judge",), raising=False)
    run.__module__ = __name__
    assert run_stage("workflow.judge.judge", run, [*argv, "--data", node.data[0]]) == 1
    err = capsys.readouterr().err
    assert "owned" in err
    assert harmless(err)


def test_a_card_holds_no_markup_of_a_record(matrix):
    node = find(matrix, "em_lora", CELL)
    record = read_record(node.record)
    observed = {**record.observed, "rows": f"1 | <script>alert(1)</script> [x](http://y)\n# {EVIL}"}
    text = card(node, record.model_copy(update={"observed": observed}))
    line = next(line for line in text.splitlines() if line.startswith("| rows |"))
    assert harmless(text)
    assert "\\<script\\>" in line
    assert "\\[x\\]" in line
    assert line.count("|") - line.count("\\|") == 3


def test_the_holder_of_a_claim_cannot_move_the_cursor(matrix):
    code = (
        "import fcntl, os, sys; d = os.open('results/.claim', os.O_RDWR | os.O_CREAT); fcntl.flock(d, fcntl.LOCK_EX)\n"
        f"os.write(d, {EVIL.encode()!r}); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(SystemExit) as end:
        claim()
    holder.communicate(b"")
    assert "owned" in str(end.value)
    assert harmless(str(end.value))
