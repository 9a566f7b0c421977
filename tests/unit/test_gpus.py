"""Jobs of one machine share its GPUs and see only their own."""

import os
import signal
import subprocess
import sys

import pytest

from workflow import gpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four GPUs, and their locks."""
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    held: list[int] = []
    monkeypatch.setattr(gpus, "_held", held)
    yield {"devices": tmp_path, "locks": tmp_path / "locks", "every": 0.05, "proc": tmp_path / "proc"}
    for descriptor in held:
        os.close(descriptor)


def other(machine, count):
    """Another job that takes GPUs and then holds them."""
    code = (
        "import sys, time; from pathlib import Path as P; from workflow.gpus import claim\n"
        f"paths = [P(p) for p in {[str(machine[name]) for name in ('devices', 'locks', 'proc')]}]\n"
        f"print(claim({count}, {{}}, paths[0], paths[1], 2.0, paths[2]), flush=True)\n"
        "time.sleep(60)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return job, job.stdout.readline().strip()


def test_each_job_sees_its_own_and_a_killed_job_holds_none(machine):
    job, took = other(machine, 3)
    environ = {}
    try:
        assert took == "['0', '1', '2']"
        assert gpus.claim(1, environ, **machine) == ["3"]
        assert environ == {"CUDA_VISIBLE_DEVICES": "3"}
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait()
    assert gpus.claim(3, environ := {}, **machine) == ["0", "1", "2"]
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def test_too_few_are_waited_for_and_none_is_kept_meanwhile(machine, capsys, monkeypatch):
    job, _ = other(machine, 3)

    def sleep(_):
        assert gpus._take(1, [3], machine["locks"]) == [3]  # the free one was not kept by the job that waits
        os.close(gpus._held.pop())
        job.kill()
        job.wait()

    monkeypatch.setattr(gpus.time, "sleep", sleep)
    assert gpus.claim(2, {}, **machine) == ["0", "1"]
    assert "waiting for 2 of 4 GPUs" in capsys.readouterr().err


@pytest.mark.parametrize("environ", [{"CUDA_VISIBLE_DEVICES": "5"}, {"SLURM_JOB_ID": "7"}])
def test_what_a_scheduler_chose_stands(machine, environ):
    before = dict(environ)
    assert gpus.claim(1, environ, **machine) == []
    assert environ == before


def test_a_stage_without_gpus_and_a_machine_without_them_take_none(machine, tmp_path):
    assert gpus.needed("judge", {"concurrency": 8}) == gpus.needed("base", {"batch_size": 16}) == 0
    assert gpus.needed("em_lora", {"world_size": 4}) == 4
    assert gpus.needed("arc", {}) == 1
    assert gpus.claim(0, {}, **machine) == []
    assert gpus.claim(5, {}, **machine) == []
    assert gpus.claim(1, {}, devices=tmp_path / "none") == []


def drivers(machine, minors):
    for minor in minors:
        folder = machine["proc"] / f"0000:{minor:02}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t NVIDIA H100\nGPU UUID: \t GPU-{minor}abc\nDevice Minor: \t {minor}\n"
        )


def test_a_device_file_is_no_ordinal_of_cuda(tmp_path, machine):
    for name in ("nvidia0", "nvidia1", "nvidia2"):
        (tmp_path / name).unlink()  # a container that was given the fourth GPU alone
    assert gpus.claim(1, environ := {}, **machine) == ["0"]
    assert environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_the_drivers_uuid_is_the_name_where_it_is_told(machine):
    drivers(machine, [0, 1, 2, 3])
    assert gpus.claim(2, environ := {}, **machine) == ["GPU-0abc", "GPU-1abc"]
    assert environ["CUDA_VISIBLE_DEVICES"] == "GPU-0abc,GPU-1abc"


@pytest.mark.parametrize(("base_url", "count"), [("local", 1), ("embedded", 0), (None, 0)])
def test_a_local_judge_takes_a_gpu_in_plan_and_job(base_url, count):
    assert gpus.needed("judge", {"base_url": base_url}) == count


def test_the_count_of_the_plan_is_the_jobs(machine):
    assert gpus.needed("em_lora", {"world_size": 8, "gpus": 0}) == 0
    assert gpus.needed("arc", {"gpus": 2}) == 2


def test_a_job_without_torch_names_the_gpus_that_it_holds(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, GPU-aa, NVIDIA H100'\necho '1, GPU-bb, NVIDIA H200'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpus.model_names({"CUDA_VISIBLE_DEVICES": "GPU-bb"}) == ["NVIDIA H200"]
    assert gpus.model_names({"CUDA_VISIBLE_DEVICES": "0,1"}) == ["NVIDIA H100", "NVIDIA H200"]
    assert gpus.model_names({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_a_stage_never_trains_on_the_cpu_beside_a_gpu_without_a_word(tmp_path, monkeypatch):
    from workflow import stage
    from workflow.keys import Recipe

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    request = stage.Request(Recipe("em_lora", 1, "0" * 32, {}), {"gpus": 1}, (), None, tmp_path / "record.json")
    with pytest.raises(stage.StageError, match=r"takes 1 GPUs, 0 are there, but torch .* cannot use them"):
        stage._claim_gpus(request)
