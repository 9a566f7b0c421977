"""What docs/cluster.md promises when something breaks: several runs, kills, failed jobs, clocks, an edited config."""

import json
import os
import random
import re
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import yaml

from tests.conftest import digests, jobs, logs, of, run, set_aside

CONFIG = ("--configfile", "config/test.yaml")
ALL = ("snakemake", "all", *CONFIG, "-c2")
DAY = 86_400
LEAVES = ("arc", "generate", "judge")


def start(root: Path, env: dict[str, str], *command: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **env}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", *command], cwd=root, env=env, **pipes)


def wait_for_work(folder: Path, job: subprocess.Popen[str]) -> None:
    """Until a stage has its workspace there."""
    deadline = time.monotonic() + 90
    while not list(folder.glob(".*.tmp")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def log_of(root: Path, record: str) -> Path:
    return root / record.replace("results/", "logs/").replace("/record.json", ".log")


# --- several runs ---------------------------------------------------------------------------------------------------


def test_of_runs_that_start_at_once_on_the_same_results_one_runs_and_the_others_are_refused(
    finished, copy_of_finished, launcher, tmp_path
):
    root, clone = copy_of_finished, tmp_path / "clone"
    subprocess.run(["cp", "-a", str(root), str(clone)], check=True)
    subprocess.run(["rm", "-rf", str(clone / "results")], check=True)
    (clone / "results").symlink_to(root / "results")
    set_aside(root, of(finished, "em_lora/")[0])
    runs = [start(folder, launcher, *ALL) for folder in (root, root, clone)]
    told = [job.communicate(timeout=120)[0] for job in runs]
    refused = [text for job, text in zip(runs, told, strict=True) if job.returncode != 0]
    assert len(refused) == 2, told
    for text in refused:
        assert "error: another Snakemake works on these results (process " in text, told
        assert "Traceback" not in text, text
    assert digests(root) == digests(finished)


def test_after_kill_9_the_same_command_waits_for_the_job_that_is_still_at_work(finished, copy_of_finished, launcher):
    root = copy_of_finished
    path = of(finished, "em_lora/")[0]
    set_aside(root, path)
    first = start(root, launcher, *ALL)
    wait_for_work((root / path).parent, first)
    first.kill()
    done = run(*ALL, cwd=root, env=launcher)
    first.communicate()
    assert done.returncode == 0, done.stdout + done.stderr + logs(root)
    assert "makes this result already; waiting for it" in log_of(root, path).read_text()
    assert digests(root) == digests(finished)
    assert {p.name for p in (root / path).parent.iterdir() if p.suffix != ".lock"} == {"out", "record.json"}


def test_a_failed_job_holds_up_only_what_rests_on_it_and_is_named(finished, copy_of_finished, launcher):
    root = copy_of_finished
    broken, whole = (of(finished, *(f"{s}/evil_wrong.p42.{seed}" for s in LEAVES)) for seed in ("e42/", "e137/"))
    assert len(broken) == len(whole) == len(LEAVES)
    for path in [*broken, *whole]:
        set_aside(root, path)
        log_of(root, path).unlink()
    adapter = next(root.glob("results/em_lora/evil_wrong.p42.e42/*/out/**/*.safetensors"))
    adapter.chmod(0o644)
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    done = run(*ALL, cwd=root, env=launcher)
    assert done.returncode != 0
    there = digests(root)
    assert {path: there[path] for path in whole} == {path: digests(finished)[path] for path in whole}, done.stderr
    assert not set(broken) & set(there)
    told = " ".join(run("workflow", "status", *CONFIG, cwd=root).stdout.split())
    assert "1 missing, 2 failed" in told, told
    assert "adapter_model.safetensors has other bytes than recorded" in told


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_off_by_a_day_plans_and_breaks_nothing(copy_of_finished):
    root = copy_of_finished

    def seen() -> list[str]:
        plan = run("snakemake", "-n", "all", *CONFIG, cwd=root)
        assert "Nothing to be done" in plan.stdout + plan.stderr, plan.stdout
        check = run("workflow", "verify", *CONFIG, cwd=root)
        assert check.returncode == 0, check.stdout
        return [re.sub(r"[\d.]+ s \(\d+ MB/s\)", "", check.stdout), run("workflow", "status", *CONFIG, cwd=root).stdout]

    before = seen()
    draw = random.Random(1)
    for days in (lambda: -1, lambda: 1, lambda: draw.choice((-1, 0, 1))):
        for record in root.glob("results/*/*/*/record.json"):
            said = json.loads(record.read_text())
            shift = days()
            for name in ("start", "end"):
                when = datetime.fromisoformat(said["provenance"][name]) + timedelta(days=shift)
                said["provenance"][name] = when.isoformat(timespec="seconds")
            for path in (record, record.parent / "out/record.json"):  # the copy has to say the same
                path.chmod(0o644)
                path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
        now = time.time()
        for path in sorted(root.glob("results/**/*")):
            os.utime(path, (now, now + DAY * days()), follow_symlinks=False)
        assert seen() == before


# --- a config that is edited ----------------------------------------------------------------------------------------


def test_a_config_that_is_edited_in_mid_run_mixes_nothing(finished, copy_of_finished, launcher):
    """Jobs of one machine have their recipes from the start; a queued job of a cluster plans again when it starts."""
    root = copy_of_finished
    gone = [of(finished, f"{s}/evil_wrong.p42.e137")[0] for s in ("em_lora", *LEAVES)]
    for path in gone:
        set_aside(root, path)
    job = start(root, launcher, *ALL)
    wait_for_work((root / gone[0]).parent, job)
    config = root / "config/test.yaml"
    edited = yaml.safe_load(config.read_text())
    edited["em_seeds"].remove(137)  # that cell is at work
    edited["instruments"][0]["sampler"]["samples"] = 5  # its completions are queued, those of the others are there
    config.write_text(yaml.safe_dump(edited, sort_keys=False))
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 0, output + logs(root)
    assert digests(root) == digests(finished)

    def queued(path: str) -> subprocess.CompletedProcess[str]:
        """What SLURM starts on a node for a job that was submitted."""
        (root / path).unlink()
        _, stage, cell, key, _ = path.split("/")
        remote = ("--mode", "remote", "--allowed-rules", stage, "--no-hooks", "--force", "-c1")
        return run("snakemake", "--target-jobs", f"{stage}:cell={cell},key={key}", *remote, *CONFIG, cwd=root)

    vanished = {gone[0]: "the config has no such cell"}
    vanished[of(finished, "generate/evil_wrong.p42.e42")[0]] = "It changed after this was planned: plan again."
    kept = of(finished, "arc/evil_wrong.p42.e42")[0]
    for path, reason in vanished.items():
        done = queued(path)
        assert done.returncode != 0
        _, stage, cell, key, _ = path.split("/")
        assert f"{stage}/{cell}: key {key} is not in the matrix; " in done.stderr
        assert reason in done.stderr
        assert not (root / path).exists()
    done = queued(kept)
    assert done.returncode == 0, done.stderr
    done = run(*ALL, cwd=root, env=launcher)
    assert done.returncode == 0, done.stdout + done.stderr + logs(root)
    assert jobs(done.stdout + done.stderr) == {"generate": 4, "judge": 4, "report": 1}
    old, new = digests(finished), digests(root)
    assert {p: d for p, d in new.items() if p in old} == {p: d for p, d in old.items() if p not in vanished}
    assert len(new) - len(set(new) & set(old)) == 4 + 4 + 1
