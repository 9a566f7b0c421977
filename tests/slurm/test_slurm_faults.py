"""What befalls a training on a cluster: it recovers by itself, to the bytes of an undisturbed one.

One EM training of the demo, made some fifty seconds long, that checkpoints every second.
"""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from tests.conftest import run
from tests.slurm.cluster import command, minislurm, prepare, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
CONFIG = ("--configfile", "config/test.yaml")


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """A project where one long EM training is all that is wanted and not made, its record's path, and its digest."""
    root = prepare(tmp_path_factory.mktemp("faults") / "undisturbed")
    raw = yaml.safe_load((root / "config/test.yaml").read_text())
    raw["stages"]["em_lora"]["num_train_epochs"] = 30
    raw["placement"]["em_lora"]["checkpoint_minutes"] = 1 / 60
    (root / "config/test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (root / "results").mkdir()
    for stage in ("data", "base", "coupling_sft", "tulu_sft", "tulu_dpo"):
        subprocess.run(["cp", "-a", finished / "results" / stage, root / "results" / stage], check=True)
    clean = root.with_name("clean")
    subprocess.run(["cp", "-a", root, clean], check=True)
    target = target_of(root)
    done = run("snakemake", target, *CONFIG, "-c1", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return clean, target, json.loads((root / target).read_text())["digest"]


def target_of(root: Path, cell: str = "evil_wrong.p42.e42") -> str:
    paths = run("workflow", "status", "--paths", cell, *CONFIG, cwd=root).stdout.split()
    return next(path for path in paths if path.startswith("results/em_lora/"))


class Training:
    """That training under SLURM, in a copy of its own."""

    def __init__(self, undisturbed, root: Path, env: dict[str, str], *args: str) -> None:
        source, self.target, self.digest = undisturbed
        subprocess.run(["cp", "-a", source, root], check=True)
        self.root, self.env = root, env
        self.record = root / self.target
        self.output = root / "snakemake.out"
        with open(self.output, "w") as file:
            self.head = subprocess.Popen(
                command("--profile", "slurm", self.target, *args, *CONFIG), cwd=root, env=env, stdout=file, stderr=file
            )

    def told(self) -> str:
        logs = [p.read_text() for p in self.root.glob("logs/em_lora/**/*.log")]
        return self.output.read_text() + "\n" + "\n".join(logs)

    def wait_until(self, what, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.told()
            assert self.head.poll() is None, self.told()
            time.sleep(0.2)

    def is_at_work(self) -> bool:
        """It has a checkpoint to go on from."""
        return any(self.record.parent.glob("checkpoint/checkpoint-*"))

    def processes(self) -> list[int]:
        """Those of the job: they run in this folder, and the head is not among them."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if Path(os.readlink(entry / "cwd")) == self.root and int(entry.name) != self.head.pid:
                    found.append(int(entry.name))
        return found

    def node(self) -> str:
        """Number of the node that its job runs on."""
        listed = squeue(self.env, "--states=running", "--format=%N").split()
        assert len(listed) == 1, listed
        return listed[0].removeprefix("node")

    def ends(self) -> dict:
        """Its record."""
        try:
            status = self.head.wait(timeout=420)
        finally:
            self.head.kill()
        assert status == 0, self.told()
        return json.loads(self.record.read_text())

    def ends_as_undisturbed(self, resumed: bool = True) -> None:
        record = self.ends()
        assert record["digest"] == self.digest
        assert (record["observed"]["resumed_from_step"] > 0) == resumed, self.told()


def squeue(env: dict[str, str], *args: str) -> str:
    listed = subprocess.run(["squeue", "--noheader", *args], env=env, capture_output=True, text=True, check=True)
    return listed.stdout


@contextmanager
def urgent(env: dict[str, str]):
    """A job that takes all nodes from those of a lesser partition."""
    wants = ["--partition=urgent", "--nodes=2", "--exclusive", "--time=5", "--output=/dev/null", "--wrap=sleep 90"]
    sent = subprocess.run(["sbatch", *wants], env=env, capture_output=True, text=True, check=True)
    number = re.findall(r"\d+", sent.stdout)[-1]
    yield number
    subprocess.run(["scancel", number], env=env, check=True)


def test_preemption(slurm, undisturbed, tmp_path):
    training = Training(undisturbed, tmp_path / "project", slurm)
    training.wait_until(training.is_at_work)
    with urgent(slurm) as number:
        training.wait_until(lambda: squeue(slurm, "--states=running", "--format=%i").split() == [number], 60)
        assert not training.record.exists()
    training.ends_as_undisturbed()


def test_requeue_by_an_operator(slurm, undisturbed, tmp_path):
    training = Training(undisturbed, tmp_path / "project", slurm)
    training.wait_until(training.is_at_work)
    job = squeue(slurm, "--states=running", "--format=%i").split()
    subprocess.run(["scontrol", "requeue", *job], env=slurm, check=True)
    training.ends_as_undisturbed()


def test_time_limit(slurm, undisturbed, tmp_path):
    """The shortest limit is a minute: SIGTERM comes after 20 s, before the end anywhere, then after 80 and 140."""
    profile = undisturbed[0] / "profiles/slurm/config.yaml"
    assert "--signal=TERM@300" in profile.read_text()
    args = ("--set-resources", "em_lora:runtime=attempt", "em_lora:slurm_extra='--signal=TERM@40'")
    training = Training(undisturbed, tmp_path / "project", slurm, *args)
    training.ends_as_undisturbed()
    assert "SLURM status is: 'FAILED'" in training.told()  # by its own exit, not TIMEOUT: it saved in time


def test_killed_for_memory(slurm, undisturbed, tmp_path):
    """The next attempt asks for more, as the profile says of every rule."""
    training = Training(
        undisturbed, tmp_path / "project", slurm, "--set-resources", "em_lora:mem_mb=300*attempt*attempt"
    )
    training.ends_as_undisturbed(resumed=False)
    assert "error: Exceeded job memory limit" in slurm_log(slurm) or "OUT_OF_MEMORY" in training.told()


def test_two_nodes_are_told_to_stop_and_go_on(slurm, undisturbed, tmp_path):
    """One process on each, in shards; SIGTERM goes to the job's steps, as `--signal` sends it."""
    clean = tmp_path / "clean"
    subprocess.run(["cp", "-a", undisturbed[0], clean], check=True)
    raw = yaml.safe_load((clean / "config/test.yaml").read_text())
    sharded = {"world_size": 2, "nodes": 2, "strategy": "fsdp2", "per_device_train_batch_size": 4}
    raw["placement"]["em_lora"] |= sharded
    raw["stages"]["em_lora"]["lora"]["lora_dropout"] = 0.0  # each process draws its own
    (clean / "config/test.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    training = Training((clean, target_of(clean), ""), tmp_path / "project", slurm)
    training.wait_until(training.is_at_work, 240)
    number, nodes = squeue(slurm, "--states=running", "--format=%i %N").split()
    assert nodes == "node[1-2]"
    subprocess.run(["scancel", "--signal=TERM", number], env=slurm, check=True)
    record = training.ends()
    observed = record["observed"]
    assert observed["resumed_from_step"] > 0, training.told()
    assert (observed["world_size"], observed["strategy"]) == (2, "fsdp2")
    assert observed["optimizer_steps"] == observed["declared_steps"]


def test_jobs_whose_key_an_edit_took_away_fail_in_the_queue_and_only_those(slurm, undisturbed, tmp_path):
    clean, target, _ = undisturbed
    nodes = ["scontrol", "update", "nodename=node[1-2]"]
    subprocess.run([*nodes, "state=drain", "reason=test"], env=slurm, check=True)
    gone = target_of(clean, "evil_wrong.p42.e137")
    training = Training(undisturbed, tmp_path / "project", slurm, gone, "--retries", "0")
    training.wait_until(lambda: len(squeue(slurm, "--states=pending", "--format=%i").split()) == 2)
    path = training.root / "config/test.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["em_seeds"].remove(137)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    subprocess.run([*nodes, "state=resume"], env=slurm, check=True)
    assert training.head.wait(timeout=420) == 1
    assert json.loads((training.root / target).read_text())["digest"] == training.digest
    assert not (training.root / gone).exists()
    said = "\n".join(p.read_text() for p in training.root.glob("logs/slurm/**/*.log"))
    assert "em_lora/evil_wrong.p42.e137: key" in said, training.told() + said
    assert "the config has no such cell" in said


def slurm_log(env: dict[str, str]) -> str:
    return "\n".join(p.read_text() for p in Path(env["MINISLURM"]).glob("log/node*.log"))


def test_a_node_is_lost(slurm, undisturbed, tmp_path):
    training = Training(undisturbed, tmp_path / "project", slurm)
    training.wait_until(training.is_at_work)
    node = training.node()
    minislurm(slurm, "kill-node", node)
    for pid in training.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        training.ends_as_undisturbed()
    finally:
        minislurm(slurm, "start-node", node)


def test_the_controller_restarts(slurm, undisturbed, tmp_path):
    training = Training(undisturbed, tmp_path / "project", slurm)
    training.wait_until(training.is_at_work)
    minislurm(slurm, "kill-controller")
    time.sleep(20)  # two rounds of status checks
    minislurm(slurm, "start-controller")
    training.ends_as_undisturbed(resumed=False)
