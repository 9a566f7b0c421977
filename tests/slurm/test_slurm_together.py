"""Several results in one job: a job whose result another one makes holds no GPU while it waits."""

import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import why_not
from workflow.keys import Recipe

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
RECIPE = Recipe("judge", 1, "0" * 32, {})  # of a stage that asks no torch whether there are GPUs
STAGE = f"""
import sys, time
from pathlib import Path
from workflow.keys import Recipe
from workflow.stage import Result, execute

def run(job):
    Path(sys.argv[1]).write_text("at work")
    time.sleep(15)
    (job.out / "items.jsonl").write_text("one\\n")
    return Result({{}}, {{"items": 1}})

recipe = Recipe.from_json({RECIPE.to_json()!r})
record = Path("results/judge/cell") / recipe.key / "record.json"
execute("workflow.judge.judge", run, recipe, {{"gpus": 1}}, [], None, record)
"""


def submit(env, folder, name):
    """A job on all GPUs of a node; gives its number."""
    script = f"#!/bin/sh\ncd {folder}\nPYTHONPATH={ROOT} exec {sys.executable} stage.py {name}\n"
    options = [
        "--parsable",
        "--requeue",
        "--gpus=8",
        "--nodes=1",
        f"--output={folder}/{name}.log",
        "--open-mode=append",
    ]
    done = subprocess.run(["sbatch", *options], input=script, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def state(env, job):
    asked = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
    return subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout.strip()


def log(folder):
    file = folder / "second.log"
    return file.read_text() if file.exists() else ""


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.5)


def test_no_gpu_waits_for_a_result_that_another_job_makes(slurm, tmp_path):
    (tmp_path / "stage.py").write_text(STAGE)
    first = submit(slurm, tmp_path, "first")
    wait_for((tmp_path / "first").exists, 60)
    second = submit(slurm, tmp_path, "second")
    wait_for(lambda: "waiting for it" in log(tmp_path), 60)
    wait_for(lambda: state(slurm, second) == "PENDING", 30)  # back in the queue, so its GPUs are free
    wait_for(lambda: state(slurm, first) == "COMPLETED", 60)
    wait_for(lambda: state(slurm, second) == "COMPLETED", 240)  # SLURM starts it again after two minutes
    assert "restored its record" in log(tmp_path)
    assert not (tmp_path / "second").exists()  # it made nothing itself
