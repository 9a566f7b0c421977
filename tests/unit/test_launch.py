"""The launcher: a forked job is the job, and nothing outlives its client."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from workflow import launch


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A launcher that preloads nothing, and whose jobs are small functions instead of stages."""
    address = str(tmp_path / "socket")
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


@pytest.mark.parametrize("sent", [b"", b"\0\0", (100).to_bytes(8, "big"), (100).to_bytes(8, "big") + b"{"])
def test_a_client_that_dies_in_the_middle_of_its_request_harms_nobody(server, tmp_path, sent):
    import socket

    while not os.path.exists(server):
        time.sleep(0.02)
    link = socket.socket(socket.AF_UNIX)
    link.connect(server)
    link.sendall(sent)
    link.close()
    done = client(server, "tell", stdout=subprocess.PIPE, text=True)
    assert done.wait(timeout=20) == 7
