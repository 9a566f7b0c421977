"""The environments: every version stands, and those that share a process agree."""

import re
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
