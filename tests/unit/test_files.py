"""Atomic writes, locks and liveness: nothing is half written, nothing is redirected, nobody is taken for another."""

import os
import subprocess
import sys
import time

import pytest

from workflow import files
from workflow.files import Owner, changes, flatten, locked, short_pair, write_atomic


def test_a_write_replaces_a_link_and_leaves_what_it_pointed_to(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "target").symlink_to(tmp_path / "precious")
    write_atomic(tmp_path / "target", "new")
    assert (tmp_path / "precious").read_text() == "keep"
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_planted_part_files_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda count: "00")
    (tmp_path / "precious").write_text("keep")
    (tmp_path / ".target.00.part").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "target", "new")
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_failed_write_leaves_the_old_bytes_and_no_part(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "file", "\ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_lock_is_seen_by_another_process_and_ends_with_it(tmp_path):
    code = (
        "import sys, time; from workflow.files import locked\n"
        f"with locked({str(tmp_path / 'x')!r}):\n print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with locked(tmp_path / "x", wait=False) as held:
        assert not held
    holder.kill()
    holder.wait()
    with locked(tmp_path / "x", wait=False) as held:
        assert held


def test_a_lock_is_waited_for(tmp_path):
    code = (
        "import sys, time; from workflow.files import locked\n"
        f"with locked({str(tmp_path / 'x')!r}):\n print('held', flush=True); time.sleep(1)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    with locked(tmp_path / "x") as held:
        assert held
    assert time.monotonic() - began > 0.5
    holder.wait()


def test_an_owner_is_alive_dead_or_out_of_sight():
    me = Owner.current()
    assert Owner.parse(str(me)) == me
    assert me.is_alive() is True
    assert me._replace(start=me.start + 1).is_alive() is False
    assert me._replace(host="other.example.org").is_alive() is None
    assert me._replace(namespace=me.namespace + 1).is_alive() is None


@pytest.mark.parametrize("text", ["", "host", "host.1.2", "host.1.2.x", "host.1.2.-3", "h.1.2.9" + "9" * 30])
def test_an_odd_owner_is_none(text):
    assert Owner.parse(text) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="containers are Linux's")
def test_another_pid_namespace_is_out_of_sight():
    code = "from workflow.files import Owner; print(Owner.current())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no namespace can be made here: {done.stderr.strip()[:80]}")
    inside = Owner.parse(done.stdout.strip())
    assert inside is not None
    assert inside.is_alive() is None


def test_flat_views_and_changes():
    assert flatten({"lora": {"r": 16, "modules": ["q", "k"]}, "x": None}) == {
        "lora.r": 16,
        "lora.modules": ["q", "k"],
        "x": None,
    }
    assert [str(c) for c in changes({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})] == ["a.b: 1 -> 2", "c: (absent) -> 3"]


# --- heartbeats -------------------------------------------------------------------------------------------------------


def test_a_heartbeat_moves_while_its_process_lives_and_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BEAT_S", 0.02)
    beat = tmp_path / "x.beat"
    with files.heartbeat(beat):
        os.utime(beat, (1, 1))
        deadline = time.monotonic() + 20
        while beat.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert files.is_beating(beat) is True
        assert files.still_silent({beat}) == set()
    assert not beat.exists()
    assert files.is_beating(beat) is None


def test_a_heartbeat_of_a_killed_process_stays_and_stops(tmp_path, monkeypatch):
    beat = tmp_path / "x.beat"
    code = (
        "import sys, time; from pathlib import Path; from workflow import files\n"
        f"with files.heartbeat(Path({str(beat)!r})):\n print('up', flush=True); time.sleep(60)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "up\n"
    job.kill()
    job.wait()
    assert beat.exists()
    monkeypatch.setattr(files, "BEAT_S", 0.01)
    assert files.still_silent({beat}) == {beat}
    old = beat.stat().st_mtime - 3600
    os.utime(beat, (old, old))
    assert files.is_beating(beat) is False


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_heartbeat_is_read_by_the_file_systems_clock_not_by_this_hosts(tmp_path, monkeypatch, hours):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)
    beat = tmp_path / "x.beat"
    beat.touch()
    assert files.is_beating(beat) is True


def test_a_heartbeat_from_the_future_says_nothing(tmp_path):
    beat = tmp_path / "x.beat"
    beat.touch()
    os.utime(beat, (time.time() + 3600,) * 2)
    assert files.is_beating(beat) is None


def test_a_heartbeat_is_written_over_no_link(tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "x.beat").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError), files.heartbeat(tmp_path / "x.beat"):
        pass
    assert files.is_beating(tmp_path / "x.beat") is None
    assert (tmp_path / "precious").read_text() == "keep"


def test_a_difference_in_a_long_text_is_shown_where_it_is():
    text = "You rate answers. " * 20
    old, new = short_pair(text + "Give one number.", text + "Give two numbers.")
    assert old.startswith("...")
    assert old.endswith("Give one number.")
    assert new.endswith("Give two numbers.")
    assert max(len(old), len(new)) <= 60
    assert short_pair("a", "b") == ("a", "b")
