"""An optional launcher for one machine: imports torch once and forks a process per job.

    python -m workflow launch -- snakemake all --configfile config/demo.yaml -c2

175 jobs of the demo import torch, transformers and TRL, about 7 s of CPU each; a fork costs milliseconds. A job keeps
its command line, key, log and record, and gives the same bytes without the launcher. A job whose client is gone (a
killed Snakemake) is killed, so no orphan goes on writing. A request without the launcher's token is dropped unread.
"""

import array
import contextlib
import hashlib
import hmac
import importlib
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from workflow.errors import UserError

ADDRESS = "WORKFLOW_LAUNCHER"
TOKEN = "WORKFLOW_LAUNCHER_TOKEN"  # beside the address, in the environment of server and clients alone
PRELOAD = ("torch", "transformers", "trl", "peft", "datasets", "openai", "safetensors.torch", "tokenizers")
_SIGNALS = {b"I": signal.SIGINT, b"T": signal.SIGTERM}
_HEADER_BYTES = 8 + hashlib.sha256().digest_size  # size of the request, sha256 of the token
_PART = ".part"
_LONGEST_ADDRESS = 100 - len(_PART)  # a socket's address holds 107 bytes on Linux, 103 elsewhere
_PATIENCE_S = 10.0  # for the whole of a request


class LauncherError(UserError, RuntimeError):
    """The launcher cannot be started: what is in the way, and what to do."""


# --- the client: a stage's own process ------------------------------------------------------------------------------


def forward(address: str, module: str, argv: list[str]) -> int:
    """Have the server run `module` with this process's arguments, folder, environment and output. Its exit status."""
    with socket.socket(socket.AF_UNIX) as link:
        _connect(link, address)
        request = json.dumps({"module": module, "argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}).encode()
        header = len(request).to_bytes(8, "big") + _token()
        fds = array.array("i", [1, 2])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused: there is no answer below
            link.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            link.sendall(request)
        for code, number in _SIGNALS.items():
            signal.signal(number, lambda *_, code=code: link.send(code))
        answer = _receive(link, 4)
    if len(answer) != 4:
        print("error: the launcher refused the job, or ended before it did", file=sys.stderr)
        return 1
    return int.from_bytes(answer, "big", signed=True)


def _connect(link: socket.socket, address: str) -> None:
    """The server is importing while Snakemake plans: the first jobs wait for it."""
    for _ in range(1200):
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return link.connect(address)
        time.sleep(0.1)
    sys.exit(f"error: no launcher at {address}. Run without `python -m workflow launch`.")


def _token() -> bytes:
    """The token as it is sent: hashed, so of one length whatever the environment holds."""
    return hashlib.sha256(os.environ.get(TOKEN, "").encode()).digest()


def _receive(link: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or fewer if the other side is gone."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while len(received) < size and (part := link.recv(min(size - len(received), 1 << 20))):
            received += part
    return bytes(received)


# --- the server -----------------------------------------------------------------------------------------------------


def serve(address: str, parent: int) -> None:
    """Fork a child for each client that has the token, until `parent` is gone."""
    if not os.environ.get(TOKEN):
        raise LauncherError(f"{TOKEN} is not set: a launcher without a token would run anybody's jobs.")
    token = _token()
    # Read when huggingface_hub is imported, here and not in the jobs: TRL's trainers would send from a thread of each
    # job, whose look-up of a host reads the environment while the job may be writing to it.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in PRELOAD:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    _preload_lazy()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener = socket.socket(socket.AF_UNIX)
    part = address + _PART
    listener.bind(part)
    os.chmod(part, 0o600)
    listener.listen(64)
    os.rename(part, address)  # the address appears when it can be used
    select = selectors.DefaultSelector()
    select.register(listener, selectors.EVENT_READ)
    select.register(read, selectors.EVENT_READ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    jobs: dict[int, socket.socket] = {}
    try:
        while os.getppid() == parent:
            for event, _ in select.select(timeout=1):
                if event.fileobj is listener:
                    link, _ = listener.accept()
                    pid = _start(link, token, [listener, *jobs.values()])
                    if pid is not None:
                        jobs[pid] = link
                        select.register(link, selectors.EVENT_READ, pid)
                elif event.fileobj == read:
                    os.read(read, 4096)
                    _reap(jobs, select)
                else:
                    _heed(event.fileobj, event.data, select)  # type: ignore[arg-type]
    finally:
        for pid in jobs:
            _kill(pid, signal.SIGKILL)


def _preload_lazy() -> None:
    # transformers and trl import their parts on first use: name the parts that the stages use, before any fork.
    from peft import LoraConfig, PeftModel, get_peft_model  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM  # noqa: F401
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: F401


def _start(link: socket.socket, token: bytes, others: list[socket.socket]) -> int | None:
    """Fork the job of a client; None for one that has not the token, or is gone before its request is whole."""
    fds = array.array("i")
    request = _read_request(link, token, fds)
    if request is None or len(fds) != 2:
        for fd in fds:
            os.close(fd)
        link.close()
        return None
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)
        return pid
    status = 1
    try:
        for other in others:
            other.close()
        link.close()
        signal.set_wakeup_fd(-1)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGCHLD, signal.SIG_DFL)):
            signal.signal(number, handler)
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
        status = _child(json.loads(request))
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001, a forked job must never return into the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # never back into the server's loop


def _read_request(link: socket.socket, token: bytes, fds: array.array) -> bytes | None:
    """Read a request, and the files that come with it into `fds`. Nothing is read of a client without the token."""
    link.settimeout(_PATIENCE_S)
    try:
        header, ancillary, _, _ = link.recvmsg(_HEADER_BYTES, socket.CMSG_SPACE(2 * fds.itemsize))
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        header += _receive(link, _HEADER_BYTES - len(header))
        if len(header) < _HEADER_BYTES or not hmac.compare_digest(header[8:], token):
            return None
        size = int.from_bytes(header[:8], "big")
        request = _receive(link, size)
    except OSError:  # a time-out among them
        return None
    link.settimeout(None)
    return request if len(request) == size else None


def _child(request: dict) -> int:
    from workflow.stage import run_stage

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    module = importlib.import_module(request["module"])
    return run_stage(request["module"], module.run, request["argv"])


def _reap(jobs: dict[int, socket.socket], select: selectors.BaseSelector) -> None:
    while jobs:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        link = jobs.pop(pid)
        with contextlib.suppress(KeyError):
            select.unregister(link)
        with contextlib.suppress(OSError):
            link.send(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        link.close()


def _heed(link: socket.socket, pid: int, select: selectors.BaseSelector) -> None:
    """Pass a client's signal on; a client that is gone takes its job with it."""
    try:
        code = link.recv(1)
    except OSError:
        code = b""
    _kill(pid, _SIGNALS.get(code, signal.SIGKILL))
    if not code:
        select.unregister(link)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --- the wrapper ----------------------------------------------------------------------------------------------------


def socket_folder() -> str:
    """Make a folder of this user's alone whose path leaves room for a socket's name, whatever TMPDIR says.

    Raises:
        LauncherError: there is none.
    """
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        room = _LONGEST_ADDRESS - len(os.fsencode(parent)) - len("/launch-12345678/socket")
        if room >= 0 and os.access(parent, os.W_OK | os.X_OK):
            return tempfile.mkdtemp(prefix="launch-", dir=parent)
    raise LauncherError("no folder for the launcher's socket: name a TMPDIR of fewer than 70 characters.")


def launch(command: list[str]) -> int:
    """Run `command` with a launcher beside it. Its exit status."""
    folder = socket_folder()
    try:
        address = str(Path(folder, "socket"))
        environ = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        environ[TOKEN] = secrets.token_hex()
        code = f"from workflow.launch import serve; serve({address!r}, {os.getpid()})"
        server = subprocess.Popen([sys.executable, "-c", code], env=environ, start_new_session=True)
        try:
            job = subprocess.Popen(command, env={**environ, ADDRESS: address})
            while True:
                try:
                    return job.wait()
                except KeyboardInterrupt:
                    continue  # the terminal has told the command too; wait for it to end in order
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
