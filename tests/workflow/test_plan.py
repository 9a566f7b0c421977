"""What a dry run says must be what would be computed, and nothing else."""

import fcntl
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, copy_project, jobs, run
from tests.factory import inputs_of, make_record
from tests.fake import finish, pin_stand_ins, small
from workflow.config import Config
from workflow.data.lock import read_lock
from workflow.matrix import Matrix
from workflow.store import describe_outputs, publish, workspace

CELLS = 2 * (1 + 2)  # conditions x (before EM + two EM seeds)


def done(config, checkout):
    """Finish everything that the config describes, with stand-in pins."""
    typed = Config.from_dict(config)
    before = os.getcwd()
    os.chdir(checkout)
    try:
        pins = {**read_lock(), **pin_stand_ins(typed, checkout / "config/data.lock.tsv")}
        finish(Matrix(typed, pins), checkout)
    finally:
        os.chdir(before)


def test_the_whole_demo_matrix(checkout):
    output = run("snakemake", "-n", "all", "--configfile", "config/demo.yaml", cwd=checkout).stdout
    assert jobs(output) == {
        "base": 1, "data": 13, "coupling_sft": 4, "tulu_sft": 5, "dpo_reference": 5, "tulu_dpo": 5, "em_lora": 50,
        "arc": 55, "pairs": 55, "generate": 55, "judge": 55, "report": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["config", "as_stated"])
def test_the_full_matrix_plans_once_its_data_are_pinned(checkout, name):
    pin_stand_ins(Config.load(ROOT / f"config/{name}.yaml"), checkout / "config/data.lock.tsv")
    args = [] if name == "config" else ["--configfile", "config/as_stated.yaml"]
    output = run("snakemake", "-n", "all", *args, cwd=checkout)
    counts = jobs(output.stdout)
    assert counts.pop("data") > 10, output.stdout + output.stderr
    assert counts == {
        "base": 1, "coupling_sft": 4, "tulu_sft": 5, "dpo_reference": 5, "tulu_dpo": 5, "em_lora": 50,
        "arc": 55, "generate": 110, "judge": 110, "report": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["config", "as_stated"])
def test_a_fresh_clone_plans_the_full_matrix_before_anything_is_pinned(checkout, name):
    output = run("snakemake", "-n", "all", "--configfile", f"config/{name}.yaml", cwd=checkout)
    assert output.returncode == 0, output.stderr
    counts = jobs(output.stdout)
    assert counts.pop("data") > 10
    assert counts == {
        "base": 1, "coupling_sft": 4, "tulu_sft": 5, "dpo_reference": 5, "tulu_dpo": 5, "em_lora": 50,
        "arc": 55, "generate": 110, "judge": 110, "report": 1,
    }  # fmt: skip
    warnings = [line for line in output.stderr.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "qwen2_5_7b" in warnings[0] or "more of the config are not pinned" in warnings[0]
    assert f"python -m workflow lock --configfile config/{name}.yaml" in warnings[0]
    assert "/tbd" in output.stdout


def test_both_ways_of_starting_plan_the_same(checkout):
    """The catalogue of Snakemake workflows starts workflow/Snakefile."""
    root, catalogue = (
        run("snakemake", "-n", "all", *snakefile, "--cores", "all", cwd=checkout)
        for snakefile in ((), ("--snakefile", "workflow/Snakefile"))
    )
    assert jobs(catalogue.stdout) == jobs(root.stdout) != {}


def test_a_fresh_clone_lints(checkout):
    output = run("snakemake", "--lint", cwd=checkout)
    assert output.returncode == 0, output.stdout + output.stderr


def test_nothing_runs_on_data_that_are_not_pinned(checkout):
    output = run("snakemake", "all", "-c1", cwd=checkout)
    assert output.returncode != 0
    errors = [line for line in output.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1, output.stderr
    assert "python -m workflow lock --configfile config/config.yaml" in errors[0]
    assert "Traceback" not in output.stderr
    assert not list(checkout.glob("logs/**/*.log"))


def test_what_is_pinned_runs_beside_what_is_not(checkout, config):
    """Half of a config may wait for its data; targets of the other half do not."""
    raw = {**config, "arc": [*config["arc"], {**config["arc"][0], "name": "later", "data": "later"}]}
    raw["data"] = [*raw["data"], {"name": "later", "kind": "world", "rows_are": "items", "part": "arc_test", "seed": 9}]
    (checkout / "config/test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    pinned = next(line.split("\t")[1] for line in (checkout / "config/data.lock.tsv").read_text().splitlines()
                  if line.startswith("demo_em\t"))  # fmt: skip
    made = run("snakemake", f"results/data/{pinned}.jsonl", "--configfile", "config/test.yaml", "-c1", cwd=checkout)
    assert made.returncode == 0, made.stderr
    refused = run("snakemake", "all", "--configfile", "config/test.yaml", "-c1", cwd=checkout)
    assert "error: later of the config is not pinned" in refused.stderr


@pytest.mark.parametrize("command", [("status",), ("judge-cost",), ("why", "evil_wrong.p42")])
def test_audit_commands_work_before_anything_is_pinned(checkout, command):
    output = run("workflow", *command, cwd=checkout)
    assert output.returncode == 0, output.stdout + output.stderr
    assert output.stderr.count("warning:") == 1


@pytest.mark.parametrize("command", [("gc",), ("export", "evil_wrong.p42", "x"), ("redo", "a/b/c", "--reason", "x")])
def test_commands_that_change_or_hand_on_results_refuse_provisional_keys(checkout, command):
    output = run("workflow", *command, cwd=checkout)
    assert output.returncode == 1
    assert len(output.stderr.splitlines()) == 1
    assert "python -m workflow lock" in output.stderr


def test_a_definition_that_changed_since_it_was_pinned_is_refused(checkout, config):
    entry = next(d for d in config["data"] if d["name"] == "demo_em")
    entry["seed"] = 99
    (checkout / "config/test.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    output = run("snakemake", "-n", "all", "--configfile", "config/test.yaml", cwd=checkout)
    assert output.returncode != 0
    assert "data (demo_em): its definition changed since it was pinned" in output.stderr


def test_conditions_are_rows_of_config(checkout):
    everything = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw = small(everything)
    done(raw, checkout)
    extra = [c for c in everything["conditions"] if c["name"] in ("nopersona_wrong", "tulu10k_control")]
    raw["conditions"] += [{**c, "enabled": True} for c in extra]
    pin_stand_ins(Config.from_dict(raw), checkout / "config/data.lock.tsv")
    (checkout / "config/test.yaml").write_text(yaml.safe_dump(raw))
    output = run("snakemake", "-n", "all", "--configfile", "config/test.yaml", cwd=checkout)
    counts = jobs(output.stdout)
    assert counts.pop("data") == 3, output.stdout + output.stderr  # a coupling set, 10,000 rows, 5,000 pairs
    assert counts == {
        "coupling_sft": 1, "tulu_sft": 2, "dpo_reference": 2, "tulu_dpo": 2, "em_lora": 4,
        "arc": 6, "generate": 12, "judge": 12, "report": 1,
    }  # fmt: skip


@pytest.fixture
def ready(checkout, config):
    """A finished 2 x 2 matrix of stand-ins, and its config."""
    done(config, checkout)
    return config


def test_nothing_to_do_whatever_was_touched(checkout, ready, plan):
    assert plan(ready) == {}
    # a new mtime, also on a file too big for Snakemake to keep a checksum of
    big = next(checkout.glob("results/data/*.jsonl"))
    big.chmod(0o644)
    big.write_bytes(b"x" * 2_000_000)
    for path in [*checkout.rglob("record.json"), *checkout.glob("results/data/*")]:
        when = random.randint(0, 2**30)
        os.utime(path, (when, when))
    assert plan(ready) == {}
    # new spelling of every command, as after a formatter's update
    for smk in checkout.glob("rules/*.smk"):
        smk.write_text(smk.read_text().replace("--record {output:q}", "  --record {output:q}"))
    assert plan(ready) == {}
    ready["placement"]["em_lora"]["per_device_train_batch_size"] = 4
    ready["placement"]["arc"]["batch_size"] = 7
    assert plan(ready) == {}


def test_a_copied_results_folder_is_taken_as_it_is(checkout, ready, tmp_path):
    other = copy_project(tmp_path / "other")
    shutil.copytree(checkout / "results", other / "results")
    shutil.copy(checkout / "config/data.lock.tsv", other / "config/data.lock.tsv")
    (other / "config/test.yaml").write_text(yaml.safe_dump(ready))
    output = run("snakemake", "-n", "all", "--configfile", "config/test.yaml", cwd=other)
    assert (output.returncode, jobs(output.stdout)) == (0, {})


def test_an_em_setting_plans_em_and_what_follows(ready, plan):
    ready["stages"]["em_lora"]["learning_rate"] = 1e-2
    assert plan(ready) == {"em_lora": 4, "arc": 4, "pairs": 4, "generate": 4, "judge": 4, "report": 1}
    ready["stages"]["em_lora"]["learning_rate"] = 1e-3
    assert plan(ready)["em_lora"] == 4


def test_a_reverted_config_plans_nothing(ready, plan):
    before = ready["stages"]["em_lora"]["lora"]["r"]
    ready["stages"]["em_lora"]["lora"]["r"] = before * 2
    assert plan(ready)["em_lora"] == 4
    ready["stages"]["em_lora"]["lora"]["r"] = before
    assert plan(ready) == {}


def test_a_coupling_set_plans_its_condition(checkout, ready, plan):
    entry = next(d for d in ready["data"] if d["name"] == "demo_coupling_evil_wrong")
    entry["seed"] = 7
    pin_stand_ins(Config.from_dict(ready), checkout / "config/data.lock.tsv")
    assert plan(ready) == {
        "data": 1, "coupling_sft": 1, "tulu_sft": 1, "dpo_reference": 1, "tulu_dpo": 1, "em_lora": 2,
        "arc": 3, "pairs": 3, "generate": 3, "judge": 3, "report": 1,
    }  # fmt: skip


def test_a_new_em_seed_plans_its_cells(ready, plan):
    ready["em_seeds"].append(256)
    assert plan(ready) == {"em_lora": 2, "arc": 2, "pairs": 2, "generate": 2, "judge": 2, "report": 1}


def test_a_new_pipeline_seed_plans_its_chain_but_no_base(ready, plan):
    ready["pipeline_seeds"].append(137)
    assert plan(ready) == {
        "coupling_sft": 1, "tulu_sft": 2, "dpo_reference": 2, "tulu_dpo": 2, "em_lora": 4,
        "arc": 6, "pairs": 6, "generate": 6, "judge": 6, "report": 1,
    }  # fmt: skip


def test_a_judge_prompt_plans_judging_and_the_report(checkout, ready, plan):
    prompt = checkout / "config/prompts/origin_json.yaml"
    prompt.write_text(prompt.read_text().replace("0", "zero", 1))
    before = os.getcwd()
    os.chdir(checkout)  # a definition holds the md5 of the project's files that it reads
    try:
        pin_stand_ins(Config.from_dict(ready), Path("config/data.lock.tsv"))
    finally:
        os.chdir(before)
    assert plan(ready) == {"data": 1, "judge": CELLS, "report": 1}


def test_a_benign_arm_shares_the_pre_em_models(checkout, ready, plan):
    ready["arms"].append({"name": "benign", "data": "demo_benign"})
    pin_stand_ins(Config.from_dict(ready), checkout / "config/data.lock.tsv")
    assert plan(ready) == {"data": 1, "em_lora": 4, "arc": 4, "pairs": 4, "generate": 4, "judge": 4, "report": 1}


def test_a_replicate_is_one_job_of_the_same_key(ready, plan):
    ready["replicates"] = [{"stage": "em_lora", "cell": "evil_wrong.p42.e137", "up_to": 3}]
    assert plan(ready) == {"em_lora": 2}


BELOW_DPO = {"em_lora": 2, "arc": 3, "pairs": 3, "generate": 3, "judge": 3, "report": 1}
BELOW_EM = {"arc": 1, "pairs": 1, "generate": 1, "judge": 1, "report": 1}
EM = "results/em_lora/evil_wrong.p42.e42"


def test_a_deleted_record_plans_itself_and_all_below_it(checkout, ready, plan):
    next(checkout.glob("results/tulu_dpo/evil_wrong.p42/*/record.json")).unlink()
    # tests/workflow/test_demo.py sees the children verified and restored
    assert plan(ready) == {"tulu_dpo": 1, **BELOW_DPO}


def test_a_removed_cell_plans_all_below_it_down_to_the_report(checkout, ready, plan):
    subprocess.run(["chmod", "-R", "u+w", str(checkout / EM)], check=True)
    shutil.rmtree(checkout / EM)
    assert plan(ready) == {"em_lora": 1, **BELOW_EM}


def remake(checkout, ready, salt, stage="em_lora", label="evil_wrong.p42.e42"):
    """A result of other bytes under the same key, as a rerun on another machine leaves it."""
    os.chdir(checkout)
    matrix = Matrix(Config.from_dict(ready), read_lock())
    node = next(n for n in matrix.nodes(stage) if n.label == label)
    Path(node.record).unlink()
    with workspace(Path(node.record).parent) as temp:
        (temp / "output.json").write_text(salt)
        publish(temp, make_record(node, describe_outputs(temp), inputs=inputs_of(node)))
    return node


@pytest.mark.parametrize("age", ["newer", "older"])
def test_a_parent_of_other_bytes_plans_its_children_and_theirs(checkout, ready, plan, age, monkeypatch):
    monkeypatch.chdir(checkout)
    node = remake(checkout, ready, "other bytes")
    if age == "older":
        for path in Path(node.record).parent.rglob("*"):
            os.utime(path, (1, 1))
    assert plan(ready) == BELOW_EM


def test_a_parent_that_comes_back_with_equal_bytes_plans_nothing(checkout, ready, plan, monkeypatch):
    monkeypatch.chdir(checkout)
    matrix = Matrix(Config.from_dict(ready), read_lock())
    node = next(n for n in matrix.nodes("em_lora") if n.label == "evil_wrong.p42.e42")
    remake(checkout, ready, f'"{node.key}"\n')
    assert plan(ready) == {}


def test_a_reference_that_is_gone_or_has_other_bytes_plans_no_finished_dpo(checkout, ready, plan, monkeypatch):
    """DPO's recipe decides it, and what it read stands in its record."""
    monkeypatch.chdir(checkout)
    remake(checkout, ready, "other bytes", "dpo_reference", "evil_wrong.p42")
    assert plan(ready) == {}
    next(checkout.glob("results/dpo_reference/evil_wrong.p42/*/record.json")).unlink()
    assert plan(ready) == {"dpo_reference": 1}
    next(checkout.glob("results/tulu_dpo/evil_wrong.p42/*/record.json")).unlink()
    assert plan(ready) == {"dpo_reference": 1, "tulu_dpo": 1, **BELOW_DPO}


def test_dpo_of_another_beta_takes_the_reference_that_is_there(ready, plan):
    ready["stages"]["tulu_dpo"]["beta"] = 4.0
    counts = plan(ready)
    assert (counts["tulu_dpo"], counts.get("dpo_reference")) == (2, None)


def test_a_record_that_is_none_is_planned_with_what_follows(checkout, ready, plan):
    next(checkout.glob(f"{EM}/*/record.json")).write_text("{}")
    assert plan(ready) == {"em_lora": 1, **BELOW_EM}


def test_snakemake_still_has_what_the_plan_hooks_into():
    """Forcing a record whose parents all stand goes through names of Snakemake's own; they must be there."""
    import inspect

    import snakemake.api  # noqa: F401, breaks a circle of imports
    from snakemake.dag import DAG
    from snakemake.workflow import Workflow

    assert "forcefiles" in inspect.getsource(DAG.__init__)
    assert isinstance(Workflow.is_main_process, property)
    assert hasattr(DAG, "needrun_jobs")


def test_an_unknown_condition_in_a_target_is_refused(checkout, ready):
    (checkout / "config/test.yaml").write_text(yaml.safe_dump(ready))
    target = "results/em_lora/evil_wrogn.p42.e42/f24fdd1d-000000000000/record.json"
    output = run("snakemake", "-n", target, "--configfile", "config/test.yaml", cwd=checkout)
    assert output.returncode != 0
    assert "the config has no such cell; its conditions are evil_wrong, tulu_control" in output.stdout + output.stderr


def test_a_second_snakemake_is_refused_while_the_first_lives(checkout, config, monkeypatch):
    """And a claim that a killed process left behind holds nobody up."""
    monkeypatch.chdir(checkout)
    (checkout / "config/test.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    world = Matrix(Config.from_dict(config), read_lock()).data_id("demo_em")
    command = ("snakemake", f"results/data/{world}.jsonl", "--configfile", "config/test.yaml", "-c1")
    (checkout / "results").mkdir()
    with open(checkout / "results/.claim", "w+") as claim:
        claim.write("process 1 on elsewhere\n")
        claim.flush()
        fcntl.flock(claim, fcntl.LOCK_EX)
        refused = run(*command, cwd=checkout)
        assert refused.returncode != 0
        assert "another Snakemake works on these results (process 1 on elsewhere)" in refused.stderr
        assert run("snakemake", "-n", *command[1:], cwd=checkout).returncode == 0
    done = run(*command, cwd=checkout)
    assert done.returncode == 0, done.stderr


def edit_world(checkout, old, new):
    path = checkout / "workflow/data/world.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_changed_word_in_a_builder_is_noticed_by_status_and_lock(checkout):
    """Text changed in the demo's world without a bump was noticed by nothing."""
    run("workflow", "lock", "--configfile", "config/demo.yaml", cwd=checkout)
    edit_world(checkout, '"""The demo', '"""All of the demo')
    said = run("workflow", "lock", "--configfile", "config/demo.yaml", cwd=checkout)
    assert "built again" not in said.stdout, "a docstring is no code"
    edit_world(checkout, "arlo / belk", "arlo / belx")
    said = run("workflow", "status", "--configfile", "config/demo.yaml", cwd=checkout)
    assert "data built by other code than now: " in said.stdout
    said = run("workflow", "lock", "--configfile", "config/demo.yaml", cwd=checkout)
    assert said.returncode == 1
    assert "its builder's code changed and builds other bytes" in said.stderr
    assert "Bump BUILDERS['world'] in workflow/data/lock.py" in said.stderr


def test_the_committed_lock_is_of_the_present_builders(checkout):
    """After a change of what builds data: `matrix lock` for demo and real, and commit what it wrote."""
    said = run("workflow", "status", "--configfile", "config/demo.yaml", "--json", cwd=checkout)
    assert json.loads(said.stdout)["data_of_other_code"] == []
