"""One SLURM for all tests of this folder."""

import subprocess

import pytest

from tests.slurm.cluster import MINISLURM, environment, minislurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Environment of its clients."""
    env = environment(tmp_path_factory.mktemp("slurm"))
    started = subprocess.run([MINISLURM, "start"], env=env, capture_output=True, text=True)
    if started.returncode:
        minislurm(env, "stop")
        pytest.skip(f"this machine starts no SLURM: {started.stderr[-300:]}")
    yield env
    minislurm(env, "stop")
