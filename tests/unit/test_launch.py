"""The launcher: a forked job is the job, and nothing outlives its client."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from workflow import launch


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A launcher that preloads nothing, and whose jobs are small functions instead of stages."""
    address = f"{launch.socket_folder()}/socket"
    monkeypatch.setenv(launch.TOKEN, "a" * 64)
    code = f"""
import os, sys, time, pathlib
from workflow import launch

def child(request):
    os.chdir(request["cwd"])
    words = request["argv"]
    if words[0] == "tell":
        print("out", os.getcwd(), request["env"].get("TOKEN")); print("err", file=sys.stderr)
        return 7
    pathlib.Path(words[1]).write_text(str(os.getpid()))
    try:
        time.sleep(60)
    finally:
        pathlib.Path(words[1] + ".cleaned").touch()
    return 0

launch._child, launch.PRELOAD, launch._preload_lazy = child, (), lambda: None
launch.serve({address!r}, {os.getpid()})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    yield address
    process.terminate()
    process.wait()
    shutil.rmtree(os.path.dirname(address))


def client(address, *argv, **kwargs):
    code = "import sys; from workflow.launch import forward; sys.exit(forward(sys.argv[1], 'm', sys.argv[2:]))"
    return subprocess.Popen([sys.executable, "-c", code, address, *argv], **kwargs)


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


def gone(pid):
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    return not os.path.exists(f"/proc/{pid}")


def test_a_job_has_the_clients_folder_environment_output_and_status(server, tmp_path):
    env = {**os.environ, "TOKEN": "t", "PYTHONPATH": os.getcwd()}
    job = client(server, "tell", cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = job.communicate(timeout=30)
    assert (out, err, job.returncode) == (f"out {tmp_path} t\n", "err\n", 7)


def test_a_job_is_interrupted_with_its_client_and_may_clean_up(server, tmp_path):
    job = client(server, "sleep", str(tmp_path / "pid"), stderr=subprocess.DEVNULL)
    pid = wait_for(tmp_path / "pid")
    job.send_signal(signal.SIGINT)
    assert job.wait(timeout=20) != 0
    assert gone(pid)
    assert (tmp_path / "pid.cleaned").exists()


def test_a_job_whose_client_was_killed_is_killed(server, tmp_path):
    job = client(server, "sleep", str(tmp_path / "pid"))
    pid = wait_for(tmp_path / "pid")
    job.kill()
    job.wait()
    assert gone(pid)


def test_jobs_do_not_wait_for_each_other(server, tmp_path):
    slow = client(server, "sleep", str(tmp_path / "pid"))
    wait_for(tmp_path / "pid")
    quick = client(server, "tell", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert quick.wait(timeout=20) == 7
    slow.kill()
    slow.wait()


def test_the_wrapper_gives_the_commands_status_and_stops_the_server(tmp_path):
    code = "import json, os, sys; json.dump(dict(os.environ), open('env.json', 'w')); sys.exit(5)"
    wrapper = f"""
import sys
from workflow import launch
launch.PRELOAD, launch._preload_lazy = (), lambda: None
sys.exit(launch.launch([sys.executable, "-c", {code!r}]))
"""
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", wrapper], cwd=tmp_path, env=env, timeout=60)
    assert done.returncode == 5
    address = json.loads((tmp_path / "env.json").read_text())[launch.ADDRESS]
    assert not os.path.exists(address)


@pytest.mark.parametrize("token", ["", "b" * 64, "a" * 63, "a" * 65 + "b", None])
def test_a_request_without_the_token_runs_nothing(server, tmp_path, token):
    env = {name: value for name, value in os.environ.items() if name != launch.TOKEN}
    env |= {} if token is None else {launch.TOKEN: token}
    done = client(server, "sleep", str(tmp_path / "pid"), env=env, stderr=subprocess.PIPE, text=True)
    _, err = done.communicate(timeout=20)
    assert done.returncode == 1
    assert "the launcher refused the job" in err
    assert not (tmp_path / "pid").exists()


def test_a_stranger_that_says_nothing_holds_nobody_up_for_long(server, tmp_path):
    while not os.path.exists(server):
        time.sleep(0.02)
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(server)
        done = client(server, "tell", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert done.wait(timeout=60) == 7


def test_a_server_without_a_token_does_not_start(monkeypatch):
    monkeypatch.delenv(launch.TOKEN, raising=False)
    with pytest.raises(launch.LauncherError, match="without a token"):
        launch.serve("unused", os.getppid())


def named_in(characters, tmp_path_factory):
    """A folder whose path has so many characters."""
    root = tmp_path_factory.mktemp("t")
    long = root / ("x" * (characters - len(str(root)) - 1))
    long.mkdir()
    return long


def test_the_wrapper_works_under_a_tmpdir_of_120_characters(tmp_path_factory):
    long = named_in(120, tmp_path_factory)
    assert len(str(long)) == 120
    wrapper = """
import sys
from workflow import launch
code = "from workflow import launch; import os; launch._connect(launch.socket.socket(launch.socket.AF_UNIX), " \\
       "os.environ[launch.ADDRESS])"
sys.exit(launch.launch([sys.executable, "-c", code]))
"""
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "TMPDIR": str(long)}
    done = subprocess.run([sys.executable, "-c", wrapper], env=env, timeout=110, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(long.glob("launch-*")) == []


@pytest.mark.parametrize("characters", [60, 70, 71, 72, 73, 80, 107, 120, 250])
def test_a_socket_can_be_bound_under_any_tmpdir(tmp_path_factory, monkeypatch, characters):
    monkeypatch.setattr(tempfile, "tempdir", str(named_in(characters, tmp_path_factory)))
    folder = launch.socket_folder()
    assert os.stat(folder).st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket{launch._PART}")
    shutil.rmtree(folder)


@pytest.mark.parametrize("sent", [b"", b"\0\0", (100).to_bytes(8, "big"), (100).to_bytes(8, "big") + b"{"])
def test_a_client_that_dies_in_the_middle_of_its_request_harms_nobody(server, tmp_path, sent):
    while not os.path.exists(server):
        time.sleep(0.02)
    link = socket.socket(socket.AF_UNIX)
    link.connect(server)
    link.sendall(sent)
    link.close()
    done = client(server, "tell", stdout=subprocess.PIPE, text=True)
    assert done.wait(timeout=20) == 7


def test_jobs_of_the_launcher_send_no_telemetry(tmp_path):
    """Its switch is read when the library is imported, which the launcher does for all jobs."""
    probe = "import os, huggingface_hub.constants as c\nprint(c.HF_HUB_DISABLE_TELEMETRY, flush=True)\nos._exit(0)\n"
    (tmp_path / "probe.py").write_text(probe)
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        "from workflow import launch\nlaunch.PRELOAD = ('probe',)\n"
        f"launch.serve({str(tmp_path / 'socket')!r}, {os.getpid()})"
    )
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_TELEMETRY"}
    env[launch.TOKEN] = "x"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["True"], done.stderr
