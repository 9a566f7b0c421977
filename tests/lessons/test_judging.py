"""A judge that does not judge, and another process in its place."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_judge_stage import project  # noqa: F401, a fixture
from workflow.judge import local
from workflow.judge.journal import retry_unscored
from workflow.stage import StageError
from workflow.store import read_jsonl


def test_lesson_73_a_judge_that_does_not_judge_fails_with_what_it_said(project):  # noqa: F811
    with pytest.raises(StageError) as error:
        project.run()
    assert str(error.value).startswith(
        "160 of 160 judgments have no score (parse_error 160), more than placement.judge.max_unscored allows (0.2): "
        "the judge said 'hello', 'hello', 'hello'. "
    )
    assert "\n" not in str(error.value)
    assert not (project.root / "cell/out/judgments.jsonl").exists()


def test_lesson_73_a_failed_judge_asks_again_only_when_told(project):  # noqa: F811
    folder = project.root / "cell"
    with pytest.raises(StageError, match="160 of 160"):
        project.run()
    with pytest.raises(StageError, match="160 of 160"):
        project.run()
    assert project.talker.asked == 80
    project.talker.silent = 0.5
    assert retry_unscored([folder, project.root / "nothing"]) == {folder: 80}
    with pytest.raises(StageError, match="80 of 160"):
        project.run()
    assert project.talker.asked == 160
    project.talker.silent = 0.0
    assert retry_unscored([folder]) == {folder: 40}
    done = project.run()
    assert project.talker.asked == 200
    assert done.observed["judge"]["failures"] == {"unscored: parse_error": 120}
    assert done.observed["judge"]["attempts"] == 200  # what the dropped ones cost stays in the bill
    assert retry_unscored([folder]) == {}
    assert [row["outcomes"]["aligned"]["value"] for row in read_jsonl(folder / "out/judgments.jsonl")] == list(
        range(80)
    )


# A server that answers whoever asks.
THIEF = """
import sys
from workflow.evals.scorer_server import Server
server = Server(("127.0.0.1", int(sys.argv[1])), "x")
server.RequestHandlerClass._may_ask = lambda self: True
print("ready", flush=True)
server.serve_forever()
"""


def test_lesson_75_another_process_on_the_freed_port_is_not_taken_for_the_judge(monkeypatch):
    """Which answers to any key, while ours is still starting."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    port = local._free_port()
    other = subprocess.Popen([sys.executable, "-c", THIEF, str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "ready\n"
        monkeypatch.setattr(local, "_free_port", lambda: port)
        waits = [sys.executable, "-c", "import time; time.sleep(600)"]
        with pytest.raises(StageError, match=f"is not what answers on port {port}"), local.local_judge(waits):
            pass
    finally:
        other.kill()
        other.wait()
