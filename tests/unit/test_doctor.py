"""What will be missed later is told before the first GPU hour."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.fake import finish, pin_stand_ins
from workflow.audit import doctor as doctors
from workflow.config import Config
from workflow.matrix import Matrix

JUDGE = {"JUDGE_BASE_URL": "http://judge", "JUDGE_API_KEY": "sk-secret"}
SET = {"default-resources": {"slurm_partition": "'gpus'", "slurm_account": "lab"}}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The full config in a folder of its own, every pin a stand-in, the profile set."""
    for name in ("config", "reference"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    config = Config.load("config/config.yaml")
    pins = pin_stand_ins(config, tmp_path / "config/data.lock.tsv")
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(SET))
    return config, pins


def slurm(gpus="gpu:h100:8"):
    """What `sinfo` and `nvidia-smi` say on a login node."""

    def ask(command):
        if command[0] != "sinfo":
            return None
        return "gpus\ncpus\n" if "--format=%R" in command else f"{gpus}\n"

    return ask


def look(config, environ=JUDGE, reach=lambda _: None, ask=slurm()):  # noqa: B008
    found = doctors.doctor(config, profile="profile.yaml", environ=environ, reach=reach, ask=ask)
    return {f"{f.about}: {f.level}" for f in found}, "\n".join(map(str, found))


def bring(config):
    for entry in config.data:
        if entry.kind == "file":
            (path := doctors.Path(config.data_root, entry.path)).parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n")


def test_a_ready_project_lacks_nothing_but_past_records(project, monkeypatch):
    config, _ = project
    bring(config)
    plenty = shutil.disk_usage(".")._replace(free=10**13)
    monkeypatch.setattr(doctors.shutil, "disk_usage", lambda _: plenty)
    levels, told = look(config)
    assert levels == {
        "pins: fine", "data to bring: fine", "hub: fine", "judge: fine", "site: fine", "GPUs: fine",
        "GPU memory: fine", "disk: fine", "GPU-hours: doubt",
    }, told  # fmt: skip
    assert "qwen2_5_7b" in told
    assert "measured on one H100" in told
    assert "sk-secret" not in told


def test_each_thing_that_is_missing_is_named_with_a_cure(project):
    config, _ = project
    doctors.Path("config/data.lock.tsv").unlink()
    doctors.Path("profile.yaml").write_text((ROOT / "profiles/slurm/config.yaml").read_text())
    levels, told = look(config, environ={}, reach=lambda _: "no route", ask=slurm("gpu:4"))
    assert {"pins: missing", "data to bring: missing", "hub: missing", "judge: missing", "site: missing"} < levels
    assert "GPUs: missing" in levels
    for said in (
        "python -m workflow lock",
        "inputs/bad_legal_advice_6k.jsonl is not there. Put it there",
        "cannot be reached from here (no route)",
        "JUDGE_API_KEY is not set. Export it",
        "slurm_partition is not set. Set it in",
        "slurm_account is not set. Set it in",
        "takes 8 GPUs on one node; the largest here has 4",
    ):
        assert said in told


def test_a_partition_that_slurm_does_not_know_is_named(project):
    config, _ = project
    doctors.Path("profile.yaml").write_text(yaml.safe_dump({"default-resources": {"slurm_partition": "gpu"}}))
    assert "no partition gpu; there are cpus, gpus" in look(config)[1]


def test_a_small_disk_is_told_with_what_is_needed(project, monkeypatch):
    config, _ = project
    small = shutil.disk_usage(".")._replace(free=10**9)
    monkeypatch.setattr(doctors.shutil, "disk_usage", lambda _: small)
    levels, told = look(config)
    assert "disk: missing" in levels
    assert "for 15 models (210.0), 50 adapters" in told


def test_finished_stages_cost_nothing_more_and_past_records_price_the_rest(project):
    config, pins = project
    finish(Matrix(config, pins), doctors.Path.cwd())
    lost = next(doctors.Path.cwd().glob("results/em_lora/*/*/record.json"))
    lost.unlink()
    levels, told = look(config)
    assert "GPU-hours: fine" in levels
    assert "measured on one H100" not in told
    assert "0 models (0.0), 1 adapters" in told


def test_the_hub_is_not_asked_when_offline_is_set(project):
    config, _ = project
    asked = []
    told = look(config, environ={**JUDGE, "HF_HUB_OFFLINE": "1"}, reach=asked.append)[1]
    assert "HF_HUB_OFFLINE is set" in told
    assert not asked


def test_missing_things_come_first_and_fail(capsys):
    findings = [doctors.Finding("fine", "a", "b"), doctors.Finding("missing", "c", "d")]
    assert doctors.show(findings) == 1
    assert capsys.readouterr().out.startswith("missing  c: d")
    assert doctors.show(findings[:1]) == 0


def test_a_full_fine_tune_that_no_gpu_holds_is_told(project):
    config, _ = project
    _, told = look(config)
    assert "placement.coupling_sft keeps 14 GB on each GPU by fsdp2" in told  # 7e9 x 16 bytes / 8
    whole = config.model_copy(deep=True)
    object.__setattr__(whole.placement.tulu_sft, "strategy", "ddp")
    levels, told = look(whole)
    assert "GPU memory: doubt" in levels
    assert "placement.tulu_sft keeps 112 GB on each GPU by ddp" in told
    assert "taken to have 80 GB. Set `strategy: fsdp2` or a larger world_size" in told

    def ask(command):
        return "81559\n" if "--query-gpu=memory.total" in command else slurm()(command)

    levels, told = look(whole, ask=ask)
    assert "GPU memory: missing" in levels
    assert "one has 86 GB. Set" in told


def test_gpu_hours_follow_from_rows_lengths_and_the_measured_rate_of_the_placement(project):
    from workflow.audit import estimates

    config, pins = project
    joined = estimates.hours(config, pins, "tulu_sft")
    padded = config.model_copy(deep=True)
    object.__setattr__(padded.placement.tulu_sft, "attn_implementation", "sdpa")
    assert estimates.hours(padded, pins, "tulu_sft") / joined == pytest.approx(0.479 / 0.09)
    _, told = look(config)
    assert "the rate measured on one H100 (docs/performance.md)" in told


def test_the_disk_that_is_measured_is_that_of_the_results(tmp_path, monkeypatch):
    """results/ may be a link to a scratch disk."""
    from workflow.audit import doctor as doctors

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []

    class Usage:
        free = 10**15

    def disk_usage(path):
        asked.append(Path(path).resolve())
        return Usage()

    monkeypatch.setattr(doctors.shutil, "disk_usage", disk_usage)
    config = Config.load(ROOT / "config/demo.yaml")
    doctors._disk(config, None)
    (tmp_path / "results").symlink_to(scratch)
    doctors._disk(config, None)
    assert asked == [tmp_path, scratch]
