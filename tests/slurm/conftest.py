"""One SLURM for all tests of this folder."""

import pytest

from tests.slurm.cluster import environment, minislurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Environment of its clients."""
    env = environment(tmp_path_factory.mktemp("slurm"))
    minislurm(env, "start")
    yield env
    minislurm(env, "stop")
