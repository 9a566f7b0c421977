"""What the terminal shows of a run: a line of progress, failures with cause and cure, and where it goes on."""

import io
import logging
from pathlib import Path

import pytest
from snakemake.logging import LogEvent

from workflow.progress import Job, Progress, describe_failure, duration, is_told

KEY = "f24fdd1d-55f56d37f5d7"
CELL = "evil_wrong.p42.e137"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def progress():
    handler = Progress({"em_lora": 2, "judge": 2}, quiet=True, stream=io.StringIO())
    handler.quiet = False  # the line is drawn by the test, not by the clock
    return handler


def tell(handler: Progress, event: LogEvent | None, message: str = "", level: int = logging.INFO, **fields) -> None:
    record = logging.LogRecord("snakemake", level, __file__, 1, message, None, None)
    record.__dict__.update(fields, event=event)
    handler.handle(record)


def start(handler: Progress, number: int, stage: str, cell: str = CELL) -> str:
    log = f"logs/{stage}/{cell}/{KEY}.log"
    wildcards = {"cell": cell, "key": KEY}
    tell(handler, LogEvent.JOB_INFO, jobid=number, rule_name=stage, wildcards=wildcards, log=[log])
    return log


def fail(handler: Progress, number: int, log: str, text: str, said: str = "") -> None:
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    Path(log).write_text(text)
    tell(handler, LogEvent.JOB_ERROR, level=logging.ERROR, jobid=number, log=[log], rule_msg=said)


def test_the_line_names_what_is_done_at_work_and_failed(progress):
    start(progress, 1, "em_lora")
    tell(progress, LogEvent.JOB_FINISHED, job_id=1)
    log = start(progress, 2, "judge", "good_wrong.p42")
    fail(progress, 2, log, "error: the judge is down. Start it.\n")
    start(progress, 3, "judge")
    line = progress.line()
    assert line.startswith("1/4 done in 0 s")
    assert "1 failed, last judge good_wrong.p42" in line
    assert line.endswith(f"now judge {CELL}")


def test_time_left_is_said_once_three_stages_are_known(progress):
    progress.planned.update(em_lora=8, judge=8, arc=1)
    for number, stage in enumerate(("em_lora", "judge"), 1):
        start(progress, number, stage)
        tell(progress, LogEvent.JOB_FINISHED, job_id=number)
    assert progress.seconds_left() is None
    start(progress, 3, "arc")
    tell(progress, LogEvent.JOB_FINISHED, job_id=3)
    progress.seconds |= {"em_lora": [60.0], "judge": [10.0], "arc": [30.0]}
    progress.began -= 50  # 100 s of jobs in 50 s: two at once
    assert progress.seconds_left() == pytest.approx((9 * 60 + 9 * 10) / 2, rel=0.01)


def test_a_failure_shows_cell_error_log_and_cure(progress):
    log = start(progress, 1, "em_lora")
    fail(progress, 1, log, "step 2/8\nerror: step 3: the loss is nan. Lower the learning rate.\n  at: x\n")
    said = progress.stream.getvalue().splitlines()
    assert said == [
        f"failed: em_lora {CELL}",
        "  error: step 3: the loss is nan. Lower the learning rate.",
        "    at: x",
        f"  log: {log}",
    ]


@pytest.mark.parametrize(
    ("text", "cause", "cure"),
    [
        (
            "Traceback (most recent call last):\n  File x\nKeyError: 'a'\n",
            "KeyError: 'a'",
            "traceback is in the log",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory.\n", "CUDA out of memory", "`placement` of the config"),
        ("step 5/9, loss 1\n", "stopped from outside", "raise it; the same command goes on"),
    ],
)
def test_each_kind_of_end_has_a_cure(text, cause, cure):
    Path("x.log").write_text(text)
    lines = describe_failure(Job("em_lora", CELL, KEY, "x.log", 0.0), ["x.log"])
    assert cause in lines[1]
    assert lines[-1].startswith("  cure: ")
    assert cure in lines[-1]


def test_what_slurm_says_stands_beside_it_and_a_checkpoint_is_named(progress):
    Path(f"results/em_lora/{CELL}/{KEY}/checkpoint/checkpoint-120").mkdir(parents=True)
    log = start(progress, 1, "em_lora")
    fail(progress, 1, log, "step 130/375, loss 1\n", "SLURM-job '17' failed, SLURM status is: 'TIMEOUT'.")
    said = progress.stream.getvalue()
    assert "  SLURM-job '17' failed, SLURM status is: 'TIMEOUT'." in said
    assert "it goes on from step 120" in said


def test_an_attempt_that_succeeds_takes_its_failure_away(progress):
    fail(progress, 1, start(progress, 1, "em_lora"), "error: x\n")
    start(progress, 1, "em_lora")
    tell(progress, LogEvent.JOB_FINISHED, job_id=1)
    assert progress.ending() == ["1/4 done in 0 s"]


def test_after_ctrl_c_it_says_from_which_step_it_goes_on(progress):
    Path(f"results/em_lora/{CELL}/{KEY}/checkpoint/checkpoint-40").mkdir(parents=True)
    start(progress, 1, "em_lora")
    start(progress, 2, "judge")
    tell(progress, None, "Terminating processes on user request, this might take some time.")
    progress.close()
    said = progress.stream.getvalue().splitlines()
    assert said[0].endswith("stopped, and the same command goes on:")
    assert said[1:] == [f"  em_lora {CELL} from step 40", f"  judge {CELL} from its start"]


def test_a_log_cannot_move_the_cursor(progress):
    fail(progress, 1, start(progress, 1, "em_lora"), "error: \x1b[2Jgone\n")
    assert "\x1b" not in progress.stream.getvalue()


def test_errors_that_are_no_jobs_stay_in_the_terminal():
    def record(level, message, **fields):
        made = logging.LogRecord("snakemake", level, __file__, 1, message, None, None)
        made.__dict__.update(fields)
        return made

    assert is_told(record(logging.ERROR, "MissingInputException in rule arc"))
    assert not is_told(record(logging.INFO, "Select jobs to execute..."))
    assert not is_told(record(logging.ERROR, "Error in rule arc", event=LogEvent.JOB_ERROR))


def test_durations_are_said_as_a_person_does():
    assert [duration(s) for s in (4.4, 89, 91, 3600, 12600)] == ["4 s", "89 s", "2 min", "60 min", "3.5 h"]
