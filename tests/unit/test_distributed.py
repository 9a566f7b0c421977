"""Several processes and several nodes: the command that is built, and what is refused before it starts."""

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.toy import EM, PLACED
from workflow.config import Config, ConfigError
from workflow.keys import Recipe
from workflow.plan import Plan
from workflow.stage import Job, StageError
from workflow.train import parallel

TOLD = {
    "show job 77 --oneliner": "JobId=77 NumNodes=2 NumCPUs=64 NumTasks=2 CPUs/Task=32 ReqNodeList=(null) "
    "ExcNodeList=(null) NodeList=gpu[3-4] BatchHost=gpu3",
    "show hostnames gpu[3-4]": "gpu3\ngpu4\n",
    "show node gpu3 --oneliner": "NodeName=gpu3 NodeAddr=10.0.0.3 NodeHostName=gpu3",
}


@pytest.fixture
def job(tmp_path):
    placed = {**PLACED, "world_size": 16, "nodes": 2, "strategy": "fsdp2", "per_device_train_batch_size": 1}
    return Job(Recipe("tulu_sft", 1, "0" * 32, EM), placed, (), Path("data"), tmp_path)


def ask(command):
    assert command[0] == "scontrol"
    return TOLD[" ".join(command[1:])]


def option(command, name):
    return command[command.index(name) + 1]


def test_on_one_node_one_launcher_starts_all_with_the_strategys_file(job):
    one = replace(job, placement={**job.placement, "nodes": 1, "world_size": 8})
    command = parallel.command(one, "workflow.train.sft", Path("job.json"), query=None)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert (option(command, "--num_processes"), option(command, "--num_machines")) == ("8", "1")
    assert command[-4:] == ["-m", "workflow.train.parallel", "workflow.train.sft", "job.json"]
    for strategy, kind in (("ddp", "MULTI_GPU"), ("fsdp2", "FSDP")):
        placed = replace(one, placement={**one.placement, "strategy": strategy})
        file = option(parallel.command(placed, "m", Path("n")), "--config_file")
        assert yaml.safe_load(Path(file).read_text())["distributed_type"] == kind


def test_on_two_nodes_srun_starts_a_launcher_on_each(job, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    command = parallel.command(job, "workflow.train.sft", Path("a job.json"), ask)
    assert command[:7] == [
        *("srun", "--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=32"),
        "--kill-on-bad-exit=1",
    ]
    assert command[7:9] == ["sh", "-c"]
    launch = shlex.split(command[9])
    assert launch[0] == "exec"
    for name, value in {
        "--num_processes": "16",
        "--num_machines": "2",
        "--machine_rank": "$SLURM_NODEID",
        "--main_process_ip": "10.0.0.3",
        "--main_process_port": "20077",
    }.items():
        assert option(launch, name) == value
    assert '"$SLURM_NODEID"' in command[9]  # for the shell on each node
    assert launch[-4:] == ["-m", "workflow.train.parallel", "workflow.train.sft", "a job.json"]


def test_several_nodes_without_a_slurm_job_of_as_many_are_refused(job, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(StageError, match=r"placement.tulu_sft says nodes: 2, but this is no SLURM job. Run with"):
        parallel.command(job, "m", Path("n"), ask)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    three = replace(job, placement={**job.placement, "world_size": 18, "nodes": 3})
    with pytest.raises(StageError, match=r"says nodes: 3, but SLURM job 77 has 2. Ask sbatch for `--nodes=3`"):
        parallel.command(three, "m", Path("n"), ask)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StageError, match=r"`scontrol show job 77 --oneliner` failed: .* need SLURM's commands"):
        parallel.command(job, "m", Path("n"))


def test_the_step_on_all_nodes_inherits_no_option_of_the_step_around_it(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_GPUS", "SRUN_CPUS_PER_TASK", "JUDGE"):
        monkeypatch.setenv(name, "1")
    env = parallel._environment()
    assert {n for n in env if n.startswith(("SLURM_", "SRUN_")) or n == "JUDGE"} == {"SLURM_JOB_ID", "JUDGE"}
    assert int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) >= 600


def test_another_strategy_than_the_placed_one_is_refused_before_the_first_step(job):
    trainer = SimpleNamespace(model_wrapped=object())
    with pytest.raises(StageError, match=r"the model lies on the processes by 'none', the placement says 'fsdp2'"):
        parallel.check_strategy(trainer, job)
    parallel.check_strategy(trainer, replace(job, placement={**PLACED, "world_size": 1}))


# --- what Snakemake asks for ----------------------------------------------------------------------------------------


def raw(**placed):
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    config["placement"]["tulu_sft"].update(placed)
    return config


def plan(config):
    return Plan(Config.from_dict(config), None, {}, ())  # no node is asked for


def test_gpus_are_asked_for_by_node_where_there_are_several():
    assert plan(raw()).resources("tulu_sft") == {"gpu": 8}
    asked = plan(raw(world_size=16, nodes=2, tokens_per_device=8192)).resources("tulu_sft")
    assert asked == {"nodes": 2, "tasks": 2, "tasks_per_gpu": 0, "mpi": "srun", "gres": "gpu:8"}


def test_the_slurm_plugin_takes_them_as_meant():
    submit = pytest.importorskip("snakemake_executor_plugin_slurm.submit_string")
    utils = pytest.importorskip("snakemake_executor_plugin_slurm.utils")

    class Resources(dict):
        __getattr__ = dict.__getitem__

    asked = plan(raw(world_size=16, nodes=2, tokens_per_device=8192)).resources("tulu_sft")
    job = SimpleNamespace(resources=Resources(asked, mem_mb=1000, cpus_per_task=32), threads=1)
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    call = submit.get_submit_command(job, dict.fromkeys(names, "x")) + utils.set_gres_string(job)
    words = call.split()
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=32", "--gres=gpu:8"} <= set(words)
    assert not any(word.startswith(("--gpus", "--ntasks-per-gpu")) for word in words)


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        ({"nodes": 3}, "world_size 8 does not lie evenly on 3 nodes"),
        ({"strategy": "fsdp2", "world_size": 1}, "world_size is 1: write ddp"),
        ({"strategy": "zero3"}, "strategy"),
        ({"per_device_train_batch_size": 4}, "exactly one of per_device_train_batch_size and tokens_per_device"),
        ({"tokens_per_device": None}, "exactly one of per_device_train_batch_size and tokens_per_device"),
        ({"attn_implementation": "sdpa"}, "tokens_per_device joins rows without padding"),
        ({"together": 2}, "`together` needs world_size: 1, attn_implementation: varlen"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(placed, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(raw(**placed))


@pytest.mark.parametrize("name", ["config", "as_stated"])
def test_full_fine_tunes_on_several_gpus_are_sharded(name):
    placed = yaml.safe_load(Path(f"config/{name}.yaml").read_text())["placement"]
    for stage in ("coupling_sft", "tulu_sft", "tulu_dpo"):
        assert placed[stage]["strategy"] == "fsdp2", "float32 weights, gradients and Adam of 7B take 112 GB"
