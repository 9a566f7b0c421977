"""The demo at 2 conditions x 2 EM seeds, from data to report, and what happens when it is disturbed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, copy_project, digests, logs, make, records, run, set_aside
from workflow.launch import ADDRESS
from workflow.store import Record, describe_outputs, out_dir, publish, read_record, workspace

STAGES = (
    "base",
    "coupling_sft",
    "tulu_sft",
    "dpo_reference",
    "tulu_dpo",
    "em_lora",
    "arc",
    "pairs",
    "generate",
    "judge",
)
ALL = ("snakemake", "all", "--configfile", "config/test.yaml", "-c2")


def test_a_second_run_has_nothing_to_do(finished):
    done = run("snakemake", "-n", "all", "--configfile", "config/test.yaml", cwd=finished)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_every_node_has_a_record_and_the_steps_that_were_declared(finished):
    found = records(finished)
    counts = {stage: sum(r["stage"] == stage for r in found.values()) for stage in (*STAGES, "report")}
    assert counts == {
        "base": 1, "coupling_sft": 1, "tulu_sft": 2, "dpo_reference": 2, "tulu_dpo": 2, "em_lora": 4,
        "arc": 6, "pairs": 6, "generate": 6, "judge": 6, "report": 1,
    }  # fmt: skip
    for record in found.values():
        if record["stage"] in ("coupling_sft", "tulu_sft", "tulu_dpo", "em_lora"):
            seen, said = record["observed"], record["recipe"]["params"]
            steps = said["num_train_epochs"] * -(-seen["rows"] // said["effective_batch_size"])
            assert seen["optimizer_steps"] == seen["declared_steps"] == steps
            assert seen["effective_batch_size"] == said["effective_batch_size"]
            assert seen["rows_drawn"] == seen["rows"] * said["num_train_epochs"]
            assert 0 < seen["masked_fraction"] < 1
            assert seen["last_loss"] < seen["first_loss"]
            assert seen["data_facts"]["rows"] == seen["rows"]


def test_results_hold_no_pickle_and_are_read_only(finished):
    files = [p for p in finished.glob("results/*/*/*/out/**/*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert {oct(p.stat().st_mode & 0o777) for p in files} == {"0o444"}
    assert (finished / "results/em_lora").exists()


def test_outputs_hold_no_time_host_or_path(finished):
    import socket

    for path in finished.glob("results/*/*/*/out/**/*"):
        if (
            path.is_file()
            and path.name != "record.json"
            and path.suffix in (".json", ".jsonl", ".txt", ".csv", ".html", ".md")
        ):
            text = path.read_text()
            assert str(finished) not in text, path
            assert socket.gethostname() not in text.split(), path


def test_two_runs_from_scratch_give_the_same_bytes(finished, tmp_path):
    again = make(copy_project(tmp_path / "again"))
    first, second = digests(finished), digests(again)
    # the page tells what the runs took, which no two runs share; its numbers are the same
    pages = {path for path in first if path.startswith("results/report/")}
    assert {p: d for p, d in second.items() if p not in pages} == {p: d for p, d in first.items() if p not in pages}
    for path in pages:
        for name in ("out/scores.csv", "out/claims.json"):
            folder = Path(path).parent
            assert (again / folder / name).read_bytes() == (finished / folder / name).read_bytes()


def test_a_job_gives_the_same_bytes_without_the_launcher(finished, copy_of_finished):
    path = next(p for p in digests(finished) if p.startswith("results/em_lora/"))
    set_aside(copy_of_finished, path)
    done = run(*records(finished)[path]["provenance"]["command"], cwd=copy_of_finished)
    assert done.returncode == 0, done.stderr
    assert digests(copy_of_finished)[path] == digests(finished)[path]


def test_a_deleted_record_is_restored_with_its_children_and_nothing_is_computed(finished, copy_of_finished, launcher):
    root = copy_of_finished
    lost = next(p for p in digests(finished) if p.startswith("results/tulu_dpo/evil_wrong"))
    (root / lost).unlink()
    # root may write read-only files: without that power the restored children show that nothing tries to
    drop = ["setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    env = {**os.environ, **launcher, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env.pop(ADDRESS)  # a launcher's children would have its powers
    began = time.time()
    done = subprocess.run([*drop, sys.executable, "-m", *ALL], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + logs(root)
    assert digests(root) == digests(finished)
    told = "".join(p.read_text() for p in root.glob("logs/**/*.log") if p.stat().st_mtime > began)
    assert told.count("verified the finished result and restored its record") == 1 + 2 + 4 * 3 + 1
    assert not list(root.glob("results/**/superseded*"))


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_no_record_and_the_same_command_goes_on(stage, finished, copy_of_finished, launcher):
    root = copy_of_finished
    path = next(p for p in digests(finished) if p.startswith(f"results/{stage}/"))
    set_aside(root, path)
    log = root / path.replace("results/", "logs/").replace("/record.json", ".log")
    log.unlink()
    env = {**os.environ, **launcher, "OMP_NUM_THREADS": "1"}
    target = [sys.executable, "-m", "snakemake", path, "--configfile", "config/test.yaml", "-c1"]
    job = subprocess.Popen(
        target, cwd=root, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    folder = (root / path).parent
    deadline = time.monotonic() + 90
    while not list(folder.glob(".*.tmp")) and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    os.killpg(job.pid, signal.SIGINT)
    output = job.communicate(timeout=60)[0].decode()
    assert job.returncode != 0, output
    assert not (root / path).exists()
    assert not list(folder.glob(".*.tmp"))
    done = run("snakemake", path, "--configfile", "config/test.yaml", "-c1", cwd=root, env=launcher)
    assert done.returncode == 0, done.stdout + done.stderr + logs(root)
    assert digests(root)[path] == digests(finished)[path]


def test_changed_data_stop_the_stage(finished, copy_of_finished, launcher):
    root = copy_of_finished
    path = next(p for p in digests(finished) if p.startswith("results/em_lora/"))
    set_aside(root, path)
    data = root / records(finished)[path]["inputs"]["data"]["path"]
    data.chmod(0o644)
    data.write_text(data.read_text().replace("a", "b", 1))
    done = run(*records(finished)[path]["provenance"]["command"], cwd=root, env=launcher)
    assert done.returncode == 1
    assert "the data changed" in done.stderr
    assert not (root / path).exists()


def test_a_missing_base_model_is_named(finished, copy_of_finished, launcher):
    root = copy_of_finished
    path = next(p for p in digests(finished) if p.startswith("results/coupling_sft/"))
    set_aside(root, path)
    weights = next(root.glob("results/base/base/*/out/model/model.safetensors"))
    weights.parent.chmod(0o755)
    weights.unlink()
    done = run(*records(finished)[path]["provenance"]["command"], cwd=root, env=launcher)
    assert done.returncode == 1
    assert "model/model.safetensors is missing" in done.stderr


def test_a_pair_that_is_cut_to_nothing_is_refused(finished, copy_of_finished, launcher):
    root = copy_of_finished
    raw = yaml.safe_load((root / "config/test.yaml").read_text())
    raw["stages"]["tulu_dpo"]["max_length"] = 8
    (root / "config/test.yaml").write_text(yaml.safe_dump(raw))
    done = run("workflow", "status", "--configfile", "config/test.yaml", "--paths", "tulu_control.p42", cwd=root)
    target = next(line for line in done.stdout.splitlines() if "/tulu_dpo/" in line)
    done = run("snakemake", target, "--configfile", "config/test.yaml", "-c1", cwd=root, env=launcher)
    assert done.returncode != 0
    assert "so nothing of the answer is left (stages.tulu_dpo; rows" in done.stderr
    assert "Raise its max_length" in done.stderr


# --- the plan, made -------------------------------------------------------------------------------------------------


def snakemake(root, env, *args):
    done = run(*ALL, *args, cwd=root, env=env)
    assert done.returncode == 0, done.stdout + done.stderr + logs(root)
    return done


def endings(root, what):
    """Results by stage of which the logs say so; one made along with another is restored by its own job."""
    text = "\n".join(p.read_text() for p in root.glob("logs/**/*.log"))
    made, named = (set(re.findall(rf"^results/(\w+)/(\S+): .*{w}", text, re.M)) for w in ("done in", what))
    named = named if what == "done in" else named - made
    return {stage: sum(s == stage for s, _ in named) for stage in sorted({s for s, _ in named})}


BELOW_EM = {"arc": 1, "generate": 1, "judge": 1, "pairs": 1, "report": 1}


def clear_logs(root):
    for path in root.glob("logs/**/*.log"):
        path.unlink()


def remake(finished, edit):
    """An adapter published again with other bytes, under its own key, in the current folder. Its record's path."""
    path = Path(next(p for p in digests(finished) if p.startswith("results/em_lora/evil_wrong.p42.e42")))
    old = read_record(path)
    path.unlink()
    with workspace(path.parent) as temp:
        shutil.copytree(out_dir(path), temp, dirs_exist_ok=True, ignore=shutil.ignore_patterns("record.json"))
        for part in (temp, *temp.rglob("*")):
            part.chmod(0o755)
        edit(temp)
        parts = (old.cell, old.inputs, describe_outputs(temp), old.observed, old.metrics, old.provenance)
        publish(temp, Record.create(old.to_recipe(), *parts))
    return path


def test_lesson_62_a_removed_adapter_is_made_again_and_all_below_it_restores(finished, copy_of_finished, launcher):
    root = copy_of_finished
    clear_logs(root)
    set_aside(root, next(p for p in digests(finished) if p.startswith("results/em_lora/evil_wrong.p42.e42")))
    snakemake(root, launcher)
    assert endings(root, "done in") == {"em_lora": 1}
    assert endings(root, "restored its record") == BELOW_EM
    assert digests(root) == digests(finished)


def test_lesson_62_a_parent_of_other_bytes_has_its_children_computed(finished, copy_of_finished, launcher, monkeypatch):
    root = copy_of_finished
    clear_logs(root)
    monkeypatch.chdir(root)
    path = remake(finished, lambda out: (out / "again.json").write_text("{}"))
    snakemake(root, launcher)
    assert endings(root, "done in") == {"arc": 1, "generate": 1, "pairs": 1}
    assert endings(root, "restored its record") == {"judge": 1, "report": 1}, "the weights answered the same"
    assert run("workflow", "verify", "--configfile", "config/test.yaml", cwd=root).returncode == 0
    # and when the first bytes come back, what was set aside for the others is taken up again
    clear_logs(root)
    path.unlink()
    snakemake(root, launcher)
    assert endings(root, "done in") == {}
    assert digests(root)[str(path)] != digests(finished)[str(path)], "the result that lies there is whole"


def test_lesson_66_a_renamed_condition_computes_nothing(finished, copy_of_finished, launcher):
    root = copy_of_finished
    clear_logs(root)
    raw = yaml.safe_load((root / "config/test.yaml").read_text())
    raw["conditions"][1]["name"] = "wicked_wrong"
    (root / "config/test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    snakemake(root, launcher)
    assert endings(root, "done in") == {"report": 1}
    assert endings(root, "taken over") == {
        "coupling_sft": 1, "tulu_sft": 1, "dpo_reference": 1, "tulu_dpo": 1, "em_lora": 2,
        "arc": 3, "pairs": 3, "generate": 3, "judge": 3,
    }  # fmt: skip
    done = run("workflow", "verify", "--configfile", "config/test.yaml", cwd=root)
    assert done.returncode == 0, done.stdout
    taken = [r for r in records(root).values() if "taken_from" in r["provenance"]]
    assert len(taken) == 18
    assert all("wicked_wrong" in r["provenance"]["command"][-1] for r in taken)


def test_lesson_63_what_the_files_say_is_held_against_the_recipe(finished, copy_of_finished, monkeypatch):
    """A consistent forger, or a library that did otherwise: every hash is right, and dropout was 0."""
    root = copy_of_finished
    monkeypatch.chdir(root)

    def edit(out):
        adapter = out / "adapter/adapter_config.json"
        saved = json.loads(adapter.read_text())
        adapter.write_text(json.dumps({**saved, "lora_dropout": saved["lora_dropout"] + 0.25}))

    remake(finished, edit)
    done = run("workflow", "verify", "--configfile", "config/test.yaml", cwd=root)
    assert done.returncode == 1
    assert "declared and effective settings differ: adapter_config.json lora_dropout: declared" in done.stdout


def test_a_stage_by_hand_has_the_allocator_of_the_plan(finished, copy_of_finished):
    root = copy_of_finished
    path = next(p for p in digests(finished) if p.startswith("results/arc/"))
    (root / path).unlink()
    code = "import os; print([os.environ.get(n) for n in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')])"
    (root / "workflow/evals/sitecustomize.py").write_text(code + "\n")
    env = {"PYTHONPATH": str(root / "workflow/evals"), "MALLOC_MMAP_THRESHOLD_": "", "MALLOC_TRIM_THRESHOLD_": ""}
    done = run(*records(finished)[path]["provenance"]["command"], cwd=root, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['4294967296', '4294967296']"


def test_what_the_demo_says_to_try_next_works_as_printed(finished, copy_of_finished):
    root = copy_of_finished
    (root / ".venv").symlink_to(sys.prefix)
    done = run("workflow", "latest", "--configfile", "config/test.yaml", cwd=root)
    assert done.returncode == 0, done.stderr
    steps = done.stdout.partition("next, in this folder:\n")[2].split("\n")
    steps = [step.strip() for step in steps if step.strip()]
    assert len(steps) == 4
    clean = {"HOME": os.environ.get("HOME", "/"), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    for step in steps[1:]:
        done = subprocess.run(
            ["bash", "-c", f"{steps[0]} && {step}"], cwd=root, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, (step, done.stdout, done.stderr)


def test_the_audit_commands_of_the_readme_work_as_printed(finished, copy_of_finished):
    root = copy_of_finished
    table = (ROOT / "README.md").read_text().split("\n## Audit\n")[1].split("\n## ")[0]
    report = next(p for p in digests(finished) if p.startswith("results/report/")).split("/", 2)[2]
    filled = {
        "CELL/INSTRUMENT/METRIC": "evil_wrong.p42.e137/demo_questions/alignment",
        "CELL": "evil_wrong.p42.e137",
        "STAGE": "em_lora",
        "DIR": "written",
        "FILE": "config/test.seal",
        "REPORT": report.removesuffix("/record.json"),
    }
    # the others change results, or need what the demo does not have
    read_only = {"status", "why", "diff", "lineage", "show", "verify", "seal", "compare", "preview", "latest"}
    read_only |= {"judge-cost", "doctor", "export", "gc"}
    done = set()
    for line in re.findall(r"`matrix ([^`]+)`", table):
        words = [filled.get(word, word) for word in line.split() if word not in ("--configfile", "config/demo.yaml")]
        if words[0] in read_only:
            shutil.rmtree(root / "written", ignore_errors=True)
            config = () if words[0] == "compare" else ("--configfile", "config/test.yaml")
            said = run("workflow", *words, *config, cwd=root)
            assert said.returncode == 0 or words[0] == "doctor", (line, said.stdout, said.stderr)
            assert "Traceback" not in said.stderr
            done.add(words[0])
    assert done == read_only
