"""A judge on disk: served for as long as it is needed, and nothing left behind."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from workflow.evals import vllm_python
from workflow.judge import judge, local
from workflow.sections import JudgePlacement
from workflow.stage import StageError

# The embedded scorer in place of vLLM, with a child of its own, as vLLM has.
SERVER = """
import os, subprocess, sys
from workflow.evals.scorer_server import Server
child = subprocess.Popen(["sleep", "600"])
open(sys.argv[2], "w").write(str(child.pid))
Server(("127.0.0.1", int(sys.argv[1])), os.environ["VLLM_API_KEY"]).serve_forever()
"""
PLACEMENT = {
    "base_url": "local",
    "local_model": None,
    "base_url_env": None,
    "api_key_env": None,
    "concurrency": 4,
    "requests_per_minute": None,
    "tokens_per_minute": None,
    "budget_usd": None,
    "usd_per_million_tokens_in": 0.0,
    "usd_per_million_tokens_out": 0.0,
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return [sys.executable, "-c", SERVER, "{port}", str(tmp_path / "child")]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def running(pid: int) -> bool:
    """A zombie, which waits for its parent to read its status, runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not running(pid)


def test_it_answers_while_it_is_needed_and_its_children_end_with_it(command, tmp_path):
    with local.local_judge(command) as (url, token):
        asks = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asks) as reply:
            assert json.load(reply)["data"]
        child = int((tmp_path / "child").read_text())
        assert running(child)
    assert gone(child)


def test_an_error_inside_stops_it_too(command, tmp_path):
    with pytest.raises(ZeroDivisionError), local.local_judge(command):
        raise ZeroDivisionError
    assert gone(int((tmp_path / "child").read_text()))


def test_a_server_that_ends_is_told_with_what_it_said(capfd):
    with (
        pytest.raises(StageError, match="ended with status 3"),
        local.local_judge([sys.executable, "-c", "print('no room on the card'); exit(3)"]),
    ):
        pass
    assert "no room on the card" in capfd.readouterr().err


def test_a_server_that_never_answers_is_stopped(tmp_path):
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with (
        pytest.raises(StageError, match="did not answer within 2 s"),
        local.local_judge([sys.executable, "-c", code], start_s=2),
    ):
        pass
    assert gone(int((tmp_path / "pid").read_text()))


def test_nobody_else_is_answered_and_the_key_is_in_no_command_line(command):
    keys = []
    for _ in range(2):
        with local.local_judge(command) as (url, token):
            keys.append(token)
            for wrong in ({}, {"Authorization": "Bearer x"}):
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    urllib.request.urlopen(urllib.request.Request(f"{url}/models", headers=wrong))
            lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if os.access(p, os.R_OK)]
            assert not any(token.encode() in line for line in lines)
    assert len(set(keys)) == 2


def test_the_server_is_given_no_other_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    code = f"import json, os; json.dump(dict(os.environ), open({str(tmp_path / 'environ')!r}, 'w')); exit(3)"
    with pytest.raises(StageError, match="status 3"), local.local_judge([sys.executable, "-c", code]):
        pass
    given = json.loads((tmp_path / "environ").read_text())
    assert len(given["VLLM_API_KEY"]) > 30
    assert "sk-planted" not in given.values()


def test_a_server_that_ends_before_the_work_is_done_is_told(command, tmp_path):
    def work():
        with local.local_judge(command):
            child = (tmp_path / "child").read_text()
            parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(parent, 9)
            while running(parent):
                time.sleep(0.02)

    with pytest.raises(StageError, match="ended with status -9 before its work was done"):
        work()


def test_the_command_serves_on_loopback_under_the_judges_name(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"dtype": "float32"}')
    monkeypatch.setenv(vllm_python.VARIABLE, "/other/python")
    command = local.vllm_command(str(tmp_path), "judge@0123")
    assert command[:3] == ["/other/python", "-m", "vllm.entrypoints.openai.api_server"]
    said = " ".join(command)
    assert f"--model {tmp_path} --served-model-name judge@0123 --host 127.0.0.1 --port {{port}}" in said
    assert said.endswith("--dtype float32")


def test_a_judge_on_disk_must_bear_its_bytes_in_its_name(model):
    right = f"judge@{local.identity(str(model))}"
    local.check_name(str(model), right)
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(StageError, match=rf"the judge is {right}, but the model in .* is \.\.\.@[0-9a-f]{{12}}"):
        local.check_name(str(model), right)
    with pytest.raises(StageError, match="holds no model"):
        local.check_name(str(model / "nothing"), right)


def test_the_judge_stage_reaches_it_through_its_placement(command, model, monkeypatch):
    monkeypatch.setattr(local, "vllm_command", lambda folder, name: command)
    placement = JudgePlacement.model_validate(PLACEMENT | {"local_model": str(model)})
    name = f"judge@{local.identity(str(model))}"
    with judge.endpoint(placement, name) as (place, key):
        assert place.is_local
        assert len(key) > 30
        assert os.fspath(place.base_url).endswith("/v1")
    with pytest.raises(StageError, match="Name it gpt-4o@"), judge.endpoint(placement, "gpt-4o"):
        pass


@pytest.mark.parametrize("wrong", [{"local_model": None}, {"base_url": "embedded", "local_model": "models/judge"}])
def test_a_local_judge_and_its_model_go_together(wrong):
    JudgePlacement.model_validate(PLACEMENT | {"local_model": "models/judge"})
    with pytest.raises(ValueError, match="go together"):
        JudgePlacement.model_validate(PLACEMENT | wrong)
