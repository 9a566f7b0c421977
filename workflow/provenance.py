"""Who made a result: commit, code, packages, machine. None of it is part of a key, and none of it is a secret."""

import ast
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from workflow import gpus
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
# Files that stages read beside their modules and their inputs.
READ_BESIDE = ("config/accelerate/*.yaml",)
# The lock files that an environment may be made from, by the package that tells them apart; the first that is there.
ENVIRONMENTS = {
    "vllm": (("vllm.txt",), ("vllm_cpu.txt",)),
    "lm_eval": (("base.lock.txt", "cpu.txt", "lm_eval.txt"), ("base.lock.txt", "gpu.txt", "lm_eval.txt")),
    "torch": (("base.lock.txt", "cpu.txt"), ("base.lock.txt", "gpu.txt")),
    "": (("base.lock.txt",),),
}


def collect(module: str, code: str | None = None) -> dict[str, Any]:
    """Collect facts about the process that runs `module`. The environment is not dumped: it holds keys.

    Args:
        code: digest of the code as it was when the job started; now, by default.
    """
    versions = installed()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gpu = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    else:
        gpu = gpus.model_names()  # another process of the job may hold them
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _dirty(),
        "code_digest": code or code_digest(module),
        "packages": {name: versions[name] for name in PACKAGES if name in versions},
        "environment": environment(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "cpu": platform.machine(),
        "gpu": gpu,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


# --- code -----------------------------------------------------------------------------------------------------------


def code_digest(module: str) -> str:
    """Hash (12 hex) of the code that makes a stage's results: its module, all that it imports, what these read.

    Comments, docstrings and formatting do not count, and every Python from 3.11 on gives the same.
    """
    parts = [[str(f.relative_to(ROOT)), _tree_digest(f, *_stamp(f))] for f in code_files(module)]
    parts += [[str(f.relative_to(ROOT)), hash_file(f)] for p in READ_BESIDE for f in sorted(ROOT.glob(p))]
    return digest("code", parts)[:12]


def code_files(module: str) -> list[Path]:
    """The module's file and, through its imports, every file of this package that it can run."""
    files: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        file = _file(name)
        if file is None or name in files:
            continue
        files[name] = file
        pending += _imports(file, *_stamp(file))
    return [files[name] for name in sorted(files)]


def changed_code(module: str, commit: str) -> list[str]:
    """Lines on the files of a stage's code whose syntax is another one than in a commit, with the newest commits."""
    lines = []
    for file in code_files(module):
        name = str(file.relative_to(ROOT))
        old = _git("show", f"{commit}:{name}")
        try:
            same = old is not None and tree_digest(ast.parse(old)) == _tree_digest(file, *_stamp(file))
        except SyntaxError:
            same = False
        if not same:
            commits = (_git("log", "--format=%h %s", "-3", f"{commit}..HEAD", "--", name) or "").splitlines()
            how = "; ".join(commits) if commits else "not in that commit" if old is None else "not committed"
            lines.append(f"{name}: {how}")
    return lines


def _stamp(file: Path) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size


@cache
def _parse(file: Path, mtime_ns: int, size: int) -> ast.Module:
    return ast.parse(file.read_bytes())


@cache
def _imports(file: Path, mtime_ns: int, size: int) -> tuple[str, ...]:
    """Modules of this package that a file imports; `from workflow.train import sft` may name a module or not."""
    names: list[str] = []
    pending: list[ast.AST] = [_parse(file, mtime_ns, size)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue  # names for readers, which no job imports
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("workflow")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("workflow"):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


@cache
def _tree_digest(file: Path, mtime_ns: int, size: int) -> str:
    return tree_digest(_parse(file, mtime_ns, size))


def tree_digest(tree: ast.AST) -> str:
    """Hash of a syntax tree without docstrings: the fields that are set, in the grammar's order."""
    return digest("syntax", list(_spell(tree)))


def _spell(node: ast.AST) -> Iterator[str]:
    """A flat spelling of the tree. Empty fields are left out, since newer grammars add some (`type_params`)."""
    yield f"({type(node).__name__}"
    body = getattr(node, "body", None)
    skip = body[0] if isinstance(node, _DOCUMENTED) and body and _is_text(body[0]) else None
    for name in node._fields:
        value = getattr(node, name, None)
        is_none = name == "value" and isinstance(node, ast.Constant)  # None is a value there, not an empty field
        if not is_none and (value is None or value == [] or name in ("kind", "type_comment", "ctx")):
            continue
        yield name
        for item in value if isinstance(value, list) else [value]:
            if item is skip and skip is not None:
                continue
            if isinstance(node, ast.JoinedStr) and isinstance(item, ast.Constant) and item.value == "":
                continue  # Python 3.12 puts some beside a nested format
            if isinstance(item, ast.AST):
                yield from _spell(item)
            else:
                yield f"{type(item).__name__} {item!r}"
    yield ")"


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _file(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


# --- environment ----------------------------------------------------------------------------------------------------


@cache
def installed() -> dict[str, str]:
    """Versions of the distributions that this interpreter can import, by normalised name."""
    return {_normalised(d.name): d.version for d in distributions() if d.name}


@cache
def environment() -> dict[str, Any]:
    """Digest of the distributions that this kind of environment locks, as installed, and whether they are as locked.

    What lies beside them, such as a linter, changes nothing.
    """
    versions = installed()
    kind = next(name for name in ENVIRONMENTS if not name or _normalised(name) in versions)
    locks = [_locked(names) for names in ENVIRONMENTS[kind]]
    names = set().union(*locks)
    held = {name: version for name, version in versions.items() if name in names}
    equal = any(all(_same(versions.get(n), v) for n, v in lock.items()) for lock in locks)
    return {"digest": digest("environment", held)[:12], "as_locked": equal}


def _locked(files: tuple[str, ...]) -> dict[str, str]:
    lines = [line for file in files for line in (ROOT / "envs" / file).read_text().splitlines()]
    pairs = [line.split(";")[0].split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {_normalised(name.strip()): version.split()[0] for name, version in pairs}


def _same(version: str | None, pinned: str) -> bool:
    return version is not None and version.partition("+")[0] == pinned.partition("+")[0]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.split("[")[0]).lower()


# --- repository -----------------------------------------------------------------------------------------------------


def _git(*args: str) -> str | None:
    """Output of git in this project's own repository; None without one: a surrounding repository is not ours."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _dirty() -> bool | None:
    # a fetch and a data check write these two while jobs run
    status = _git("status", "--porcelain", "--", ".", ":!config/data.lock.tsv", ":!config/data.gates.tsv")
    return None if status is None else bool(status)
