"""Show a run of Snakemake in the terminal: one line of progress, and each failure with its cause and cure.

A handler on Snakemake's logger, set by rules/common.smk when the first job is about to start, for local jobs and for
SLURM's. All that Snakemake says is in .snakemake/log; `--verbose` or `--printshellcmds` leave it in the terminal too.
"""

import logging
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from statistics import mean
from typing import Any, NamedTuple, TextIO

from workflow.audit.logs import read_failure, resumes_from
from workflow.errors import printable

_EVERY_S = 15.0  # between lines where there is no terminal; there the line is drawn twice a second
_ENOUGH = 10  # jobs from which the rest is estimated, or three stages
_SHOWN = 5  # failures named again at the end


class Job(NamedTuple):
    """A job that was started or handed to SLURM: its stage, its cell or data set, its key."""

    stage: str
    label: str
    key: str
    log: str
    began: float

    def __str__(self) -> str:
        return f"{self.stage} {self.label}"


class Progress(logging.Handler):
    """Count jobs by Snakemake's events; draw the line, and print failures as they come.

    Attributes:
        planned: jobs to run by rule.
        quiet: no line, only failures.
    """

    def __init__(self, planned: Mapping[str, int], quiet: bool = False, stream: TextIO | None = None) -> None:
        super().__init__(logging.INFO)
        self.planned, self.quiet, self.stream = Counter(planned), quiet, stream or sys.stderr
        self.live = self.stream.isatty()
        self.began = time.monotonic()
        self.running: dict[int, Job] = {}
        self.finished: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {}
        self.failed: dict[tuple[str, str, str], Job] = {}  # by place: an attempt that succeeds takes it away
        self.stopped = False
        self._ended = threading.Event()
        self._drawn = False
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        if not quiet:
            self._ticker.start()

    # --- Snakemake's events -----------------------------------------------------------------------------------------

    def emit(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", ""))
        self._clear()  # before another handler writes
        if event == "job_info":
            self._start(record.__dict__)
        elif event == "job_finished":
            self._finish(record.__dict__["job_id"])
        elif event == "job_error":
            self._fail(record.__dict__)
        elif str(record.msg).startswith("Terminating processes on user request"):
            self.stopped = True

    def _start(self, event: Mapping[str, Any]) -> None:
        wildcards = dict(event["wildcards"])
        label = wildcards.get("cell") or wildcards.get("md5", "")[:8]
        log = next(iter(event["log"]), "").partition(" ")[0]
        job = Job(event["rule_name"], label, wildcards.get("key", ""), log, time.monotonic())
        if job.stage in self.planned:
            self.running[event["jobid"]] = job

    def _finish(self, number: int) -> None:
        if (job := self.running.pop(number, None)) is not None:
            self.finished[job.stage] += 1
            self.seconds.setdefault(job.stage, []).append(time.monotonic() - job.began)
            self.failed.pop(job[:3], None)

    def _fail(self, event: Mapping[str, Any]) -> None:
        job = self.running.get(event["jobid"])
        if job is None or self.stopped:
            return
        del self.running[event["jobid"]]
        self.failed[job[:3]] = job
        logs = [str(name).partition(" (")[0] for name in event["log"]]
        self._print("\n".join(describe_failure(job, logs, str(event["rule_msg"] or ""))))

    # --- the line ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        while not self._ended.wait(0.5 if self.live else _EVERY_S):
            with self.lock:  # type: ignore[union-attr]
                self.draw()

    def draw(self) -> None:
        if not self.live:
            self._print(self.line())
            return
        width = shutil.get_terminal_size((100, 24)).columns - 1
        self._clear()
        self.stream.write(self.line()[:width])
        self.stream.flush()
        self._drawn = True

    def line(self) -> str:
        """Done of all, time gone and left, the newest failure, what is at work."""
        done, total = self.finished.total(), self.planned.total()
        parts = [f"{done}/{total} done in {duration(time.monotonic() - self.began)}"]
        if (left := self.seconds_left()) is not None:
            parts.append(f"about {duration(left)} left")
        if self.failed:
            parts.append(f"{len(self.failed)} failed, last {list(self.failed.values())[-1]}")
        names = [str(job) for job in self.running.values()]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"now {', '.join(names[:3])}{more}")
        return "; ".join(parts)

    def seconds_left(self) -> float | None:
        """From what the jobs of each stage took, as many side by side as so far; None while that says too little."""
        spent = [s for stage, of_stage in self.seconds.items() if stage != "data" for s in of_stage]
        stages = self.planned.keys() - {"data"}
        if len(spent) < _ENOUGH and len(self.seconds.keys() & stages) < min(3, len(stages)):
            return None
        to_do = self.planned - self.finished
        work = sum(n * mean(self.seconds.get(stage, spent)) for stage, n in to_do.items())
        begun = [time.monotonic() - job.began for job in self.running.values()]
        at_once = (sum(spent) + sum(begun)) / max(time.monotonic() - self.began, 1e-3)
        return max(0.0, work - sum(begun)) / max(at_once, 0.1)

    def _clear(self) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self._drawn = False

    def _print(self, text: str) -> None:
        self._clear()
        print(printable(text), file=self.stream, flush=True)

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Say how it ended: all, what failed, or where the next run goes on."""
        if self._ended.is_set():
            return
        self._ended.set()
        with self.lock:  # type: ignore[union-attr]
            if not self.quiet or self.failed:
                self._print("\n".join(self.ending()))
        super().close()

    def ending(self) -> list[str]:
        lines = [f"{self.finished.total()}/{self.planned.total()} done in {duration(time.monotonic() - self.began)}"]
        if self.stopped:
            lines[0] += "; stopped, and the same command goes on:"
            for job in self.running.values():
                step = resumes_from(job.stage, job.label, job.key)
                lines.append(f"  {job} from step {step}" if step else f"  {job} from its start")
        elif self.failed:
            lines[0] += f"; {len(self.failed)} failed, and what follows from them was not made:"
            failed = list(self.failed.values())
            lines += [f"  {job}: {job.log}" for job in failed[:_SHOWN]]
            lines += [f"  and {len(failed) - _SHOWN} more"] if failed[_SHOWN:] else []
            lines.append("`matrix status` has each with its error; once that is mended, the same command goes on")
        return lines


def describe_failure(job: Job, logs: list[str], said: str = "") -> list[str]:
    """The cell, the error that its log ends with, the log, and the cure.

    Args:
        logs: its own, then those of the executor.
        said: by the executor, such as SLURM's state of the job.
    """
    failure = next(filter(None, map(read_failure, logs)), None)
    cure = failure.cure if failure else ""
    lines = [f"failed: {job}"]
    if failure:
        lines += [f"  {line}" for line in failure.cause]
    else:
        lines.append("  it ended without an error of its own: stopped from outside (memory, time limit, a lost node)")
        cure = "where the memory or time of its rule in the profile was too small, raise it; the same command goes on"
    if said:
        lines.append(f"  {said.splitlines()[0][:200]}")
    if step := resumes_from(job.stage, job.label, job.key):
        cure = f"{cure}; it goes on from step {step}" if cure else f"the next run goes on from step {step}"
    lines += [f"  log: {log}" for log in logs[:1]]
    return [*lines, f"  cure: {cure}"] if cure else lines


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# Said here in fewer words: a failed job with its whole command line, that there was one, and results made along.
_TOLD_HERE = (
    "RuleException:\nCalledProcessError",
    "Exiting because a job execution failed",
    "WorkflowError:\nAt least one job did not complete",
    "Warning: the following output files",
)


def is_told(record: logging.LogRecord) -> bool:
    """What of Snakemake's own words stays in the terminal beside the line: warnings, and errors that are no job's."""
    message = str(record.msg)
    if str(getattr(record, "event", "")) == "job_error" or message.startswith(_TOLD_HERE):
        return False
    return record.levelno >= logging.WARNING or message.startswith("Trying to restart job")


def install(logger: logging.Logger, planned: Mapping[str, int], settings: Any) -> None:
    """Put the handler before Snakemake's own, whose chatter goes to its log file alone from here on.

    Args:
        settings: Snakemake's output settings.
    """
    own = settings.verbose or settings.printshellcmds
    handler = Progress(planned, quiet=own or "ALL" in {q.name for q in settings.quiet or ()})
    for other in logger.handlers:
        if other.name == "DefaultStreamHandler" and not own:
            other.addFilter(is_told)
    logger.handlers.insert(0, handler)
