"""The demo at 2 x 2 on a real SLURM, and what the profile says to it."""

import json
import statistics
import subprocess
import time

import pytest

from tests.conftest import ROOT, copy_project, jobs, logs
from tests.fake import pin_stand_ins
from tests.slurm.cluster import digests, prepare, snakemake, why_not
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
    assert digests(root) == digests(finished)
    records = [json.loads(p.read_text()) for p in root.glob("results/*/*/*/record.json")]
    numbers = {record["provenance"]["slurm_job"] for record in records}
    assert None not in numbers
    with capsys.disabled():
        print("\n  " + told(records, wall, slurm))


def told(records: list[dict], wall: float, env: dict[str, str]) -> str:
    """Time of a SLURM job beyond what its stage took, as far as SLURM still remembers the job."""
    asked = ["squeue", "--noheader", "--states=all", "--array", "--format=%A|%M"]
    listed = subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout
    seconds = dict(line.split("|") for line in listed.splitlines())
    beyond = [
        _seconds(seconds[number]) - record["observed"]["seconds"]
        for record in records
        if (number := record["provenance"]["slurm_job"]) in seconds
    ]
    work = sum(record["observed"]["seconds"] for record in records)
    median = statistics.median(beyond) if beyond else float("nan")
    return (
        f"{len(records)} stages in {wall:.0f} s at 4 jobs; stages took {work:.0f} s; beyond that {median:.1f} s a job"
    )


def _seconds(text: str) -> int:
    minutes, _, seconds = text.rpartition(":")
    return 60 * int(minutes.rpartition(":")[2] or 0) + int(seconds)
