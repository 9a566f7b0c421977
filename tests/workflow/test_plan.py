"""What a dry run says must be what would be computed, and nothing else."""

import fcntl
import os
import random
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, copy_project, jobs, run
from tests.fake import finish, pin_stand_ins, small
from workflow.config import Config
from workflow.data.lock import read_lock
from workflow.matrix import Matrix

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
        "base": 1, "data": 12, "coupling_sft": 4, "tulu_sft": 5, "tulu_dpo": 5, "em_lora": 50,
        "arc": 55, "generate": 55, "judge": 55, "report": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["config", "as_stated"])
def test_the_full_matrix_plans_once_its_data_are_pinned(checkout, name):
    pin_stand_ins(Config.load(ROOT / f"config/{name}.yaml"), checkout / "config/data.lock.tsv")
    args = [] if name == "config" else ["--configfile", "config/as_stated.yaml"]
    output = run("snakemake", "-n", "all", *args, cwd=checkout)
    counts = jobs(output.stdout)
    assert counts.pop("data") > 10, output.stdout + output.stderr
    assert counts == {
        "base": 1, "coupling_sft": 4, "tulu_sft": 5, "tulu_dpo": 5, "em_lora": 50,
        "arc": 55, "generate": 110, "judge": 110, "report": 1,
    }  # fmt: skip


def test_an_unpinned_config_names_the_command_that_pins(checkout):
    output = run("snakemake", "-n", "all", cwd=checkout)
    assert output.returncode != 0
    assert "base_model (qwen2_5_7b): its commit is unresolved" in output.stderr
    assert "python -m workflow lock --configfile config/config.yaml" in output.stderr
    assert "Traceback" not in output.stderr


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
        "coupling_sft": 1, "tulu_sft": 2, "tulu_dpo": 2, "em_lora": 4,
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
    assert "Nothing to be done" in output.stdout + output.stderr


def test_an_em_setting_plans_em_and_what_follows(ready, plan):
    ready["stages"]["em_lora"]["learning_rate"] = 1e-2
    assert plan(ready) == {"em_lora": 4, "arc": 4, "generate": 4, "judge": 4, "report": 1}
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
        "data": 1, "coupling_sft": 1, "tulu_sft": 1, "tulu_dpo": 1, "em_lora": 2,
        "arc": 3, "generate": 3, "judge": 3, "report": 1,
    }  # fmt: skip


def test_a_new_em_seed_plans_its_cells(ready, plan):
    ready["em_seeds"].append(256)
    assert plan(ready) == {"em_lora": 2, "arc": 2, "generate": 2, "judge": 2, "report": 1}


def test_a_new_pipeline_seed_plans_its_chain_but_no_base(ready, plan):
    ready["pipeline_seeds"].append(137)
    assert plan(ready) == {
        "coupling_sft": 1, "tulu_sft": 2, "tulu_dpo": 2, "em_lora": 4,
        "arc": 6, "generate": 6, "judge": 6, "report": 1,
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
    assert plan(ready) == {"data": 1, "em_lora": 4, "arc": 4, "generate": 4, "judge": 4, "report": 1}


def test_a_replicate_is_one_job_of_the_same_key(ready, plan):
    ready["replicates"] = [{"stage": "em_lora", "cell": "evil_wrong.p42.e137", "up_to": 3}]
    assert plan(ready) == {"em_lora": 2}


def test_a_deleted_record_plans_itself_and_nothing_upstream(checkout, ready, plan):
    next(checkout.glob("results/tulu_dpo/evil_wrong.p42/*/record.json")).unlink()
    # Snakemake plans the children too; tests/workflow/test_demo.py sees them verified and restored
    assert plan(ready) == {"tulu_dpo": 1, "em_lora": 2, "arc": 3, "generate": 3}


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
