"""What a person sees in the terminal of a run that fails, and what `status` says of it."""

import subprocess

from tests.conftest import digests, run

CONFIG = ("--configfile", "config/test.yaml")


def test_a_failed_job_shows_its_cause_and_no_wall_of_shell(finished, copy_of_finished, launcher):
    root = copy_of_finished
    record = next(p for p in digests(finished) if p.startswith("results/judge/evil_wrong.p42.e"))
    subprocess.run(["rm", "-rf", (root / record).parent], check=True)
    cell = record.split("/")[2]
    completions = next(root.glob(f"results/generate/{cell}/*/out/completions.jsonl"))
    completions.chmod(0o644)
    completions.write_text(completions.read_text() + "{}\n")
    done = run("snakemake", "all", *CONFIG, "-c2", cwd=root, env=launcher)
    assert done.returncode == 1
    shown = (done.stdout + done.stderr).splitlines()
    block = shown[shown.index(f"failed: judge {cell}") :]
    assert block[1].startswith(f"  error: results/generate/{cell}/")
    assert block[2].startswith(f"  log: logs/judge/{cell}/")
    assert "0/3 done" in block[3]  # the judgment, the report, its stable copy
    assert not [line for line in shown if "set -euo pipefail" in line or "--recipe" in line]
    kept = max(root.glob(".snakemake/log/*.log"), key=lambda path: path.stat().st_mtime).read_text()
    assert "--recipe" in kept
    status = run("workflow", "status", *CONFIG, cwd=root).stdout
    assert " ".join(block[1].split()) in " ".join(status.split())

    whole = run("snakemake", "all", *CONFIG, "-c2", "--printshellcmds", cwd=root, env=launcher)
    assert "--recipe" in whole.stdout + whole.stderr


def test_watch_ends_when_nothing_is_running(finished, copy_of_finished):
    done = run("workflow", "status", "--watch", *CONFIG, cwd=copy_of_finished, timeout=60)
    assert (done.returncode, "evil_wrong.p42" in done.stdout) == (0, True)
