"""A disk that is full or read-only: one clear error, nothing half-made, and with room the same command goes on."""

import errno
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import digests, of, records, run, set_aside
from workflow.errors import describe_os_error

CONFIG = ("--configfile", "config/test.yaml")
ALL = ("snakemake", "all", *CONFIG, "-c2")
PAGE = 4096
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")


@contextmanager
def mounted(folder: Path, *args: str) -> Iterator[None]:
    subprocess.run(["mount", *args, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield


def resize(folder: Path, room: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={room * PAGE}", str(folder)], check=True)


def pages(*paths: Path) -> int:
    """What the files take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) for path in paths)


def one_error(text: str) -> str:
    """The only line that tells of an error, and the last of all."""
    lines = text.splitlines()
    assert "Traceback" not in text, text
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], text
    return lines[-1]


def files(root: Path) -> dict[str, int]:
    """What lies in a project, Snakemake's own folder apart, and when it was written."""
    found = (p for p in root.rglob("*") if p.is_file() and not {".snakemake", "__pycache__"} & set(p.parts))
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in found}


# --- a full disk ----------------------------------------------------------------------------------------------------

STAGES = ("base", "coupling_sft", "tulu_sft", "tulu_dpo", "em_lora", "arc", "generate", "judge", "report")


@needs_root
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_clear_error_and_with_room_the_same_command_goes_on(
    stage, finished, copy_of_finished, launcher
):
    root = copy_of_finished
    path = of(finished, f"{stage}/")[0]
    command = records(finished)[path]["provenance"]["command"]
    beside = [p for p in (finished / path).parent.rglob("*") if p.is_file() and p != finished / path]
    whole, record = pages(*beside), pages(finished / path)
    # the first file, the record's copy, the record itself; a training looks for room before its first step
    rooms = [4] if stage in STAGES[:5] else [4, whole - 1, whole + record - 1]
    set_aside(root, path)
    folder = (root / path).parent
    folder.mkdir(parents=True)
    with mounted(folder, "-t", "tmpfs", "-o", f"size={rooms[0] * PAGE}", "tmpfs"):
        for room in rooms:
            resize(folder, room)
            done = run(*command, cwd=root, env=launcher)
            assert done.returncode == 1, (room, done.stderr)
            assert "the disk is full" in one_error(done.stderr)
            assert {p.name for p in folder.iterdir() if p.suffix != ".lock"} <= {
                "out",
                "journal.jsonl",
                "checkpoint",
            }, room
            assert not list(folder.glob("checkpoint/*"))
        assert (folder / "out").exists() == (len(rooms) > 1)
        resize(folder, 16_384)
        done = run(*command, cwd=root, env=launcher)
        assert done.returncode == 0, done.stderr
        assert digests(root)[path] == digests(finished)[path]


@needs_root
def test_a_full_disk_while_data_are_made_is_one_clear_error(finished, copy_of_finished):
    root = copy_of_finished
    path = records(finished)[of(finished, "em_lora/")[0]]["inputs"]["data"]["path"]
    folder = (root / path).parent
    with mounted(folder, "-t", "tmpfs", "-o", f"size={4 * PAGE}", "tmpfs"):
        done = run("snakemake", path, *CONFIG, "-c1", cwd=root)
        log = (root / path.replace("results/", "logs/")).with_suffix(".log").read_text()
        assert done.returncode != 0
        assert "the disk is full" in one_error(log)
        assert not list(folder.iterdir())
        resize(folder, 16_384)
        done = run("snakemake", path, *CONFIG, "-c1", cwd=root)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (root / path).read_bytes() == (finished / path).read_bytes()


@needs_root
@pytest.mark.parametrize("room", [4, 100, 245, 250])
def test_every_library_that_saves_a_model_says_so_in_words_that_are_understood(room, finished, tmp_path):
    from workflow.stage import StageError
    from workflow.train import models

    base = next(finished.glob("results/base/base/*/out/model"))
    model, tokenizer = models.load_model(base, "float32", "sdpa"), models.load_tokenizer(base)
    with mounted(tmp_path, "-t", "tmpfs", "-o", f"size={room * PAGE}", "tmpfs"):
        with pytest.raises(Exception, match=r"No space left|disk is full") as caught:
            models.save(model, tokenizer, tmp_path / "model")
        assert isinstance(caught.value, StageError) or "is full" in (describe_os_error(caught.value, tmp_path) or "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x", "there"), "the disk is full (there). Free some space and run again."),
        (OSError(errno.EDQUOT, "x"), "the disk quota is used up (here). Free some space and run again."),
        (OSError(errno.EROFS, "x", "there"), "there is read-only. Make it writable and run again."),
        (ValueError("Disk quota exceeded (os error 122)"), "the disk quota is used up (here). Free some space and "),
        (OSError(errno.ENOENT, "x"), None),
        (OSError("no number"), None),
        (ValueError("x"), None),
    ],
)
def test_only_a_disk_is_told_as_a_disk(error, told):
    assert (describe_os_error(error, "here") or "").startswith(told or "")
    assert (describe_os_error(error, "here") is None) == (told is None)


# --- a read-only disk -----------------------------------------------------------------------------------------------


@needs_root
def test_finished_results_on_a_read_only_disk_can_be_planned_checked_and_read(copy_of_finished):
    root = copy_of_finished
    grid = run("workflow", "status", *CONFIG, cwd=root).stdout
    before = files(root)
    with read_only(root / "results"):
        for command in (("snakemake", "-n", "all", *CONFIG), ALL):
            done = run(*command, cwd=root)
            assert (done.returncode, "Nothing to be done" in done.stdout + done.stderr) == (0, True), done.stderr
        done = run("workflow", "verify", *CONFIG, cwd=root)
        assert done.returncode == 0, done.stderr
        assert "0 broken, 0 unverifiable" in done.stdout
        assert done.stderr == "results/.verify.json: Read-only file system; `verify --quick` will read everything\n"
        assert run("workflow", "status", *CONFIG, cwd=root).stdout == grid
        done = run("workflow", "latest", *CONFIG, cwd=root)
        assert done.returncode == 0, done.stderr
        page = re.search(r"^report: (.*)$", done.stdout, re.M)
        assert page, done.stdout
        assert (root / page[1]).read_text().startswith("<!")
    assert files(root) == before


@needs_root
def test_something_missing_on_a_read_only_disk_is_one_clear_error_before_any_work(finished, copy_of_finished, launcher):
    root = copy_of_finished
    path = of(finished, "arc/")[0]
    set_aside(root, path)
    before = files(root)
    with read_only(root / "results"):
        done = run(*ALL, cwd=root, env=launcher)
        assert done.returncode != 0
        assert (
            f"results/ is read-only, or not yours to write to, and 1 of the plan's 37 results is not there: {path}"
            in one_error(done.stderr)
        )
        done = run(*records(finished)[path]["provenance"]["command"], cwd=root, env=launcher)
        assert done.returncode == 1
        assert "is read-only. Make it writable" in one_error(done.stderr)
    assert files(root) == before
