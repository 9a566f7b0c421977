"""Fixtures: copies of the project that a test may edit, dry runs, fake and real finished matrices."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fake import small
from workflow.launch import ADDRESS, TOKEN, socket_folder

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "rules", "envs", "profiles", "workflow", "config", "slurm")


def copy_project(target: Path) -> Path:
    """The project without results, logs and environment."""
    target.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        source = ROOT / name
        if source.is_symlink():
            (target / name).symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)
    return target


def run(*command: str, cwd: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a Python module's command line in a copy of the project."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    return subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, env=env, **kwargs)


def jobs(output: str) -> dict[str, int]:
    """Planned jobs that make a result, by rule, as the table of a dry run counts them."""
    found = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", output, re.M)}
    return {rule: n for rule, n in found.items() if rule not in ("all", "latest", "total")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_project(tmp_path / "project")


@pytest.fixture
def config() -> dict[str, Any]:
    """The demo's config at 2 conditions x 2 EM seeds."""
    return small(yaml.safe_load((ROOT / "config/demo.yaml").read_text()))


@pytest.fixture
def plan(checkout: Path):
    """Dry-run a config in the checkout; gives the planned jobs by rule."""

    def plan(config: dict[str, Any], *args: str) -> dict[str, int]:
        (checkout / "config/test.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        done = run("snakemake", "-n", "all", "--configfile", "config/test.yaml", *args, cwd=checkout)
        assert done.returncode == 0, done.stdout + done.stderr
        return jobs(done.stdout)

    return plan


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished 2 x 2 demo, made once by Snakemake and the launcher. Copy it before editing it."""
    if ready := os.environ.get("FINISHED_DEMO"):  # one that is there already, while tests are being written
        return Path(ready)
    root = copy_project(tmp_path_factory.mktemp("finished") / "project")
    return make(root)


def make(root: Path) -> Path:
    raw = small(yaml.safe_load((root / "config/demo.yaml").read_text()))
    (root / "config/test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    command = ["launch", "--", sys.executable, "-m", "snakemake", "all", "--configfile", "config/test.yaml", "-c2"]
    done = run("workflow", *command, cwd=root)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:] + logs(root)
    return root


def logs(root: Path) -> str:
    """The ends of the logs that hold an error."""
    texts = {p: p.read_text() for p in root.glob("logs/**/*.log")}
    return "\n".join(f"{p}:\n{t[-1500:]}" for p, t in texts.items() if "rror" in t)


def records(root: Path) -> dict[str, dict[str, Any]]:
    found = {str(p.relative_to(root)): json.loads(p.read_text()) for p in root.glob("results/*/*/*/record.json")}
    assert found
    return found


def digests(root: Path) -> dict[str, str]:
    return {path: record["digest"] for path, record in records(root).items()}


def stable_digests(root: Path) -> dict[str, str]:
    """Of every record but the report's, which shows how long the others took."""
    return {path: digest for path, digest in digests(root).items() if not path.startswith("results/report/")}


def of(root: Path, *starts: str) -> list[str]:
    """Records that begin so, below results/."""
    return [path for path in digests(root) if path.startswith(tuple(f"results/{s}" for s in starts))]


def set_aside(root: Path, record: str) -> None:
    """Remove a result as if it had never been made."""
    folder = (root / record).parent
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def launcher() -> Iterator[dict[str, str]]:
    """Environment of a launcher that many Snakemake runs share."""
    folder = socket_folder()
    address, token = f"{folder}/socket", secrets.token_hex(32)
    code = f"from workflow.launch import serve; serve({address!r}, {os.getpid()})"
    env = {**os.environ, "OMP_NUM_THREADS": "1", TOKEN: token}
    server = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env)
    yield {ADDRESS: address, TOKEN: token}
    server.terminate()
    server.wait()
    shutil.rmtree(folder)


@pytest.fixture
def copy_of_finished(finished: Path, tmp_path: Path) -> Path:
    """The finished demo in a folder that this test may break."""
    target = tmp_path / "project"
    subprocess.run(["cp", "-a", str(finished), str(target)], check=True)
    return target
