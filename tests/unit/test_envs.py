"""The environments: every version stands, and those that share a process agree."""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ENVS = Path(__file__).parents[2] / "envs"
LOCKS = sorted(ENVS.glob("*.txt"))
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9A-Za-z.+!]+)( ?; .*)?")


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def pins(path: Path) -> dict[str, str]:
    """With those of the files that it names."""
    found: dict[str, str] = {}
    for line in lines(path):
        if line.startswith("-r "):
            found |= pins(path.parent / line[3:])
        elif match := PIN.fullmatch(line):
            found[re.sub(r"[._-]+", "-", match[1].lower())] = match[2].partition("+")[0]
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.name)
def test_every_line_is_one_version(path):
    for line in lines(path):
        assert line.startswith("-r ") or PIN.fullmatch(line), f"{path.name}: {line}"


@pytest.mark.parametrize("name", ["cpu", "gpu", "dev", "lm_eval", "slurm"])
def test_what_shares_an_interpreter_agrees_on_every_version(name):
    base, own = pins(ENVS / "base.lock.txt"), pins(ENVS / f"{name}.txt")
    apart = {p: (v, base[p]) for p, v in own.items() if base.get(p, v) != v}
    assert not apart


def test_a_cpu_and_a_gpu_train_with_the_same_packages():
    cpu, gpu = pins(ENVS / "cpu.txt"), pins(ENVS / "gpu.txt")
    assert cpu.items() <= gpu.items()
    assert any(name.startswith("nvidia-") for name in gpu)


@pytest.mark.parametrize("path", sorted(ENVS.glob("in/*.in")), ids=lambda p: p.name)
def test_a_lock_holds_what_is_asked_for(path):
    assert pins(path).items() <= pins(ENVS / f"{path.stem}.txt").items()


@pytest.mark.parametrize("path", sorted(ENVS.glob("*.yaml")), ids=lambda p: p.name)
def test_a_conda_environment_names_files_that_are_there(path):
    (pip,) = [d["pip"] for d in yaml.safe_load(path.read_text())["dependencies"] if isinstance(d, dict)]
    for requirement in pip:
        assert (ENVS / requirement.removeprefix("-r ")).is_file()


# --- the set-up -----------------------------------------------------------------------------------------------------

TOOLS = ("bash", "dirname", "cat", "grep", "uname", "python3")


@pytest.fixture
def set_up(tmp_path):
    """What install.sh would run on a machine of only these tools, without a GPU and without settings of anybody's."""

    def set_up(*tools: str, **env: str) -> str:
        there = tmp_path / "bin"
        there.mkdir(exist_ok=True)
        (there / "uv").unlink(missing_ok=True)
        for tool in (*TOOLS, *tools):
            path = shutil.which(tool)
            if path is None:
                pytest.skip(f"no {tool} here")
            own = f'PATH="{os.environ["PATH"]}" HOME="{Path.home()}" ' if tool == "uv" else ""  # it may be a script
            (there / tool).write_text(f'#!/bin/sh\n{own}exec "{path}" "$@"\n')
            (there / tool).chmod(0o755)
        env = {"PATH": str(there), "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, **env}
        done = subprocess.run([ENVS / "install.sh", "--print"], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    return set_up


def test_without_a_gpu_the_cpu_build_is_taken_and_said(set_up):
    said = set_up()
    assert re.match(r"Installing \d\d\d packages into \.venv by pip, PyTorch for the CPU.* 2 GB on disk", said)
    assert "pip install --quiet --disable-pip-version-check --extra-index-url https://download.pytorch.org" in said


def test_settings_of_ones_own_decide(set_up):
    assert "https://download.pytorch.org" not in set_up(PIP_FIND_LINKS="/wheels")
    assert "--extra-index-url /my/index -r" in set_up(TORCH_INDEX="/my/index", PIP_FIND_LINKS="/wheels")
    assert "--extra-index-url" not in set_up(PIP_INDEX_URL="/my/index")


@pytest.mark.skipif(find_spec("pip") is None, reason="an environment that uv made: its Python has no pip")
def test_settings_in_a_file_of_pips_decide_too(set_up, tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\ncert = /my/cert\nconstraint = /my/file\nfind-links = /wheels\n")
    for _ in range(3):
        said = set_up("uv", PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))
        assert "by pip, PyTorch from where your settings for pip say" in said


def test_uv_is_used_where_it_is_unless_only_pip_is_set_up(set_up):
    said = set_up("uv")
    assert "uv pip install" in said
    assert "--torch-backend cpu" in said
    assert "uv pip install" not in set_up("uv", PIP_FIND_LINKS="/wheels")
    assert "--torch-backend" not in set_up("uv", PIP_FIND_LINKS="/wheels", UV_FIND_LINKS="/wheels")


def test_make_alone_lists_the_targets():
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` is at work
    done = subprocess.run(["make"], cwd=ENVS.parent, env=env, capture_output=True, text=True, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines()] == [*("demo", "test", "reference", "real", "slurm")]
