"""A judge model on disk, served on loopback for as long as a job judges: no outside service, no daemon left behind.

The server is vLLM's OpenAI-compatible one, in a process group of its own, which is ended whole: vLLM starts children
that hold the GPU's memory.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import psutil

from workflow.evals.model import declared_dtype
from workflow.evals.vllm_python import vllm_python
from workflow.keys import digest, hash_file
from workflow.stage import StageError
from workflow.train.model_files import check_model_folder

TOKEN = "VLLM_API_KEY"  # where vLLM reads the API key that it wants
START_S = 900.0  # a 7B model is read from a slow disk, and its graphs are compiled
_STOP_S = 20.0
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")  # what a model's folder holds that matters


@contextlib.contextmanager
def local_judge(command: Sequence[str], start_s: float = START_S) -> Iterator[tuple[str, str]]:
    """A running server; yields its base URL and the API key that it wants, a random one that nobody else knows.

    Args:
        command: of the server, with {port} in it, as `vllm_command` makes it. The key is in its environment and not in
            its command line, which every user of the machine can read.

    Raises:
        StageError: it ended, or did not answer within `start_s`, and what it said last is printed; or another process
            answers on its port.
    """
    port, token = _free_port(), secrets.token_urlsafe(32)
    argv = [part.replace("{port}", str(port)) for part in command]
    # of other keys it has no need
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")} | {TOKEN: token}
    with tempfile.TemporaryFile() as log:
        # A group of its own, so that its children can be ended with it, and Ctrl-C reaches this process first.
        server = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environ
        )
        try:
            if fault := _wait(server, port, token, start_s):
                log.seek(0)
                print(log.read().decode(errors="replace")[-8000:].replace(token, "[key]"), file=sys.stderr, flush=True)
                raise StageError(f"the local judge {fault}; what it said stands above.")
            yield f"http://127.0.0.1:{port}/v1", token
            if server.poll() is not None:
                raise StageError(f"the local judge ended with status {server.returncode} before its work was done.")
        finally:
            _stop(server)


def identity(model: str) -> str:
    """12 hex digits over the bytes of the model's files.

    Raises:
        StageError: the folder holds no model.
    """
    folder = Path(model)
    if not (folder / "config.json").is_file():
        raise StageError(f"the local judge: {model} holds no model (no config.json). Name the folder of one.")
    check_model_folder(folder)
    files = sorted(p for kind in _FILES for p in folder.glob(kind))
    return digest("model files", [[p.name, hash_file(p)] for p in files])[:12]


def check_name(model: str, name: str) -> None:
    """A judge on disk bears its bytes in its name, NAME@IDENTITY: they are then part of the judge's key.

    Raises:
        StageError: the name has another identity, or none.
    """
    plain, files = name.partition("@")[0], identity(model)
    if name != f"{plain}@{files}":
        raise StageError(
            f"the judge is {name}, but the model in {model} is ...@{files}. Name it {plain}@{files}, so that its key "
            "says which model judged."
        )


def vllm_command(model: str, name: str) -> list[str]:
    """Not `vllm serve`: that script looks for a package called vllm, and the CPU build has another name."""
    python = vllm_python() or sys.executable
    server = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", name]
    # its own sampling defaults are not ours; 20 alternatives are what the log-probability rule reads
    settings = ["--generation-config", "vllm", "--max-logprobs", "20", "--dtype", declared_dtype(Path(model))]
    return [*server, "--host", "127.0.0.1", "--port", "{port}", *settings]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], port: int, token: str, start_s: float) -> str | None:
    """Until it lists its models, which it does once they are loaded; or why it never will."""
    end = time.monotonic() + start_s
    while time.monotonic() < end:
        if server.poll() is not None:
            return f"ended with status {server.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            if not _listens(server.pid, port):  # before it is shown the key
                return f"is not what answers on port {port}: another process took it. Run again"
            with contextlib.suppress(httpx2.HTTPError):
                headers = {"Authorization": f"Bearer {token}"}
                if httpx2.get(f"http://127.0.0.1:{port}/v1/models", headers=headers, trust_env=False).is_success:
                    return None
        time.sleep(0.1)
    return f"did not answer within {start_s:.0f} s"


def _listens(pid: int, port: int) -> bool:
    """Whether a process or one of its children holds the listening socket of that port."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                    return True
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, then end it: a child may outlive the server that started it."""
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(server.pid).children(recursive=True)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_S)
        psutil.wait_procs(children, timeout=_STOP_S / 4)
