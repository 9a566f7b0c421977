"""Who made a result: commit, code, packages, machine. None of it is part of a key, and none of it is a secret."""

import ast
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from workflow.keys import digest, hash_file

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "openai",
    "vllm",
)


def collect(module: str) -> dict[str, Any]:
    """Facts about the process that runs `module`. The environment is not dumped: it holds keys."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _dirty(),
        "code_digest": code_digest(module),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "lock_digest": lock_digest(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "cpu": platform.machine(),
        "gpu": _gpus(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def code_files(module: str) -> list[Path]:
    """The module's file and, through its imports, every file of this package that it can run."""
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        file = _file(name)
        if file is None or name in found:
            continue
        found[name] = file
        pending += _imports(file)
    return [found[name] for name in sorted(found)]


def _imports(file: Path) -> Iterator[str]:
    """Modules of this package that a file imports; `from workflow.train import trainer` may name a module or not."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("workflow"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workflow"):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def code_digest(module: str) -> str:
    """Hash (12 hex) of the code that makes a stage's results."""
    return digest("code", [[str(f.relative_to(ROOT)), hash_file(f)] for f in code_files(module)])[:12]


def lock_digest() -> str:
    """Hash (12 hex) of the pinned requirements that an environment is made from."""
    return digest("lock", [[f.name, hash_file(f)] for f in sorted((ROOT / "envs").glob("*.txt"))])[:12]


def _file(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _dirty() -> bool | None:
    # a fetch and a data check write these two while jobs run
    status = _git("status", "--porcelain", "--", ".", ":!config/data.lock.tsv", ":!config/data.gates.tsv")
    return None if status is None else bool(status)


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # a stage without torch has no GPU to name
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
