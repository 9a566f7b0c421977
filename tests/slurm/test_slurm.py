"""The demo at 2 x 2 on a real SLURM, and what the profile says to it."""

import time

import pytest

from tests.conftest import ROOT, copy_project, jobs, logs, records, stable_digests
from tests.fake import pin_stand_ins
from tests.slurm.cluster import prepare, snakemake, told, why_not
from workflow.config import Config

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_the_full_matrix_plans_under_the_profile(slurm, tmp_path):
    root = copy_project(tmp_path / "project")
    pin_stand_ins(Config.load(ROOT / "config/config.yaml"), root / "config/data.lock.tsv")
    done = snakemake(root, slurm, "-n", "--profile", "slurm", "all")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    counts = jobs(done.stdout)
    assert (counts["em_lora"], counts["generate"], counts["report"]) == (50, 110, 1)
    trained = done.stdout[done.stdout.index("rule tulu_sft:") :]
    asked = trained[trained.index("resources:") :].splitlines()[0]
    assert "gpu=8" in asked
    assert "mem_mb=256000" in asked
    assert "runtime=2880" in asked


def test_a_partition_that_nobody_set_is_named(slurm, tmp_path):
    root = prepare(tmp_path / "project", partition=None)
    done = snakemake(
        root, slurm, "--profile", "slurm", "--until", "base", "--configfile", "config/test.yaml", "--retries", "0"
    )
    assert done.returncode != 0
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "set-slurm_partition-in-profiles/slurm/config.yaml" in line
    ]
    assert any("invalid partition" in line for line in said), done.stdout + done.stderr


def test_the_demo_gives_the_same_bytes_on_slurm(slurm, tmp_path, finished, capsys):
    root = prepare(tmp_path / "project")
    began = time.monotonic()
    done = snakemake(root, slurm, "--profile", "slurm", "all", "--configfile", "config/test.yaml", "--jobs", "4")
    wall = time.monotonic() - began
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:] + logs(root)
    assert stable_digests(root) == stable_digests(finished)
    assert all(record["provenance"]["slurm_job"] for record in records(root).values())
    with capsys.disabled():
        print("\n  " + told(root, wall, slurm))
