"""The one command line that all stages share: checks before, the record after.

python -m workflow.train.sft --recipe JSON --placement JSON --parents RECORD... --data FILE --record OUT
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from workflow import gpus, provenance, reuse
from workflow.data import gates
from workflow.errors import UserError, describe_os_error, printable
from workflow.files import locked
from workflow.keys import Recipe, canonical_json, hash_bytes, hash_file
from workflow.store import (
    EXAMPLES,
    METRICS,
    Input,
    Record,
    StoreError,
    check_outputs,
    describe_outputs,
    out_dir,
    publish,
    read_record,
    restore,
    workspace,
)

# Beside out/: what a training goes on from when it is interrupted; of no use once the result is there.
CHECKPOINT = "checkpoint"

# glibc gives freed blocks of the optimizer's size back to the system at once and takes them again at every step: on a
# CPU a third to a half of the demo's training time. glibc reads these when a process starts.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


# Names the environment variables that hold a judge's key.
SECRETS = "WORKFLOW_SECRETS"


class StageError(UserError, RuntimeError):
    """The stage refuses its input, or what it observed is not what was declared: what, where, what to do."""


class Parent(NamedTuple):
    path: Path
    record: Record

    @property
    def out(self) -> Path:
        return out_dir(self.path)


@dataclass(frozen=True)
class Job:
    """What a stage is given.

    Attributes:
        parents: those of the recipe, in its order; then a reference that the recipe does not name.
        out: a folder of its own, to be filled.
    """

    recipe: Recipe
    placement: dict[str, Any]
    parents: tuple[Parent, ...]
    data: Path
    out: Path

    @property
    def params(self) -> dict[str, Any]:
        return self.recipe.params

    def parent(self, stage: str) -> Parent | None:
        return next((p for p in self.parents if p.record.stage == stage), None)


class Result(NamedTuple):
    """Facts of the run, the numbers that the report reads, and texts to be looked at, such as the first prompt.

    The texts become an output; the record holds their md5 and length only.
    """

    observed: dict[str, Any]
    metrics: dict[str, Any]
    examples: Mapping[str, str] = MappingProxyType({})


Run = Callable[[Job], Result]
# Makes several cells with one loaded model, each yielded as soon as it is done.
RunTogether = Callable[[Sequence[Job]], Iterator[tuple[Job, Result | Exception]]]


@dataclass(frozen=True)
class Request:
    """One result to be made: the arguments of a stage's command line."""

    recipe: Recipe
    placement: dict[str, Any]
    parents: tuple[Path, ...]
    data: Path | None
    record: Path
    own_argv: tuple[str, ...] = ()  # of a stage with a command line of its own

    def argv(self) -> list[str]:
        """The command line that makes this result alone."""
        if self.own_argv:
            return list(self.own_argv)
        return [
            f"--recipe={self.recipe.to_json()}",
            f"--placement={json.dumps(self.placement)}",
            *(["--parents", *map(str, self.parents)] if self.parents else []),
            *(["--data", str(self.data)] if self.data else []),
            f"--record={self.record}",
        ]

    @classmethod
    def from_dict(cls, raw: dict[str, Any], placement: dict[str, Any]) -> "Request":
        data = Path(raw["data"]) if raw["data"] else None
        recipe = Recipe.from_dict(raw["recipe"])
        return cls(recipe, placement, tuple(map(Path, raw["parents"])), data, Path(raw["record"]))


# --- the command line -----------------------------------------------------------------------------------------------


def stage_main(module: str, run: Run, argv: list[str] | None = None) -> None:
    """Run a stage from its command line, or hand the command line to the launcher if one is there.

    A module that serves several stages names them in `STAGES`; one that can make several cells with one loaded model
    has a function `run_together`.
    """
    from workflow import launch

    argv = sys.argv[1:] if argv is None else argv
    if address := os.environ.get(launch.ADDRESS):
        sys.exit(launch.forward(address, module, argv))
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()) and sys.platform == "linux":
        os.environ.update(ALLOCATOR)
        os.execv(sys.executable, [sys.executable, "-m", module, *argv])
    sys.exit(run_stage(module, run, argv))


def run_stage(module: str, run: Run, argv: list[str]) -> int:
    """Exit status of one stage. What a person can mend ends in one line; what is a bug keeps its traceback."""
    code = sys.modules[run.__module__]
    args = _parse(module, code.__doc__, argv)
    together: RunTogether | None = getattr(code, "run_together", None)
    request = Request(args.recipe, args.placement, tuple(args.parents), args.data, args.record)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        _check(request, getattr(code, "STAGES", (module.rsplit(".", 1)[1],)))
        siblings = _read_siblings(args.siblings, request) if args.siblings and together else ()
        execute_all(module, run, request, siblings, together)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was recorded; the same command starts again", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if (message := describe_os_error(error, args.record)) is None:
            raise
        print(f"error: {printable(message)}", file=sys.stderr, flush=True)
        return 1
    return 0


def _terminated(signum: int, frame: Any) -> None:
    sys.exit(128 + signum)  # an exception, so that the workspace is removed


def _parse(module: str, about: str | None, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--recipe", type=Recipe.from_json, required=True, help="canonical JSON; its hash is the key")
    parser.add_argument("--placement", type=json.loads, required=True, help="JSON; how the work lies on the machine")
    parser.add_argument(
        "--parents", type=Path, nargs="*", default=[], help="records, in the recipe's order, then a reference"
    )
    parser.add_argument("--data", type=Path, nargs="?", help="none for a base model that is fetched whole")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--siblings", type=Path, help="JSON lines; results that may be made in the same process")
    return parser.parse_args(argv)


def _check(request: Request, stages: tuple[str, ...]) -> None:
    recipe = request.recipe
    stage, _, key = request.record.parts[-4:-1]
    if (stage, key) != (recipe.stage, recipe.key) or stage not in stages:
        raise StageError(f"{request.record}: the recipe is of {recipe.stage}/{recipe.key}. Plan again.")
    if key.startswith("tbd"):
        raise StageError(f"{request.record}: its data are not pinned. Run `python -m workflow lock` and plan again.")
    _check_processes(recipe, request.placement)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if stage != "base":  # which fetches; all else is on disk, and a question to the hub would wait for its time-out
        os.environ["HF_HUB_OFFLINE"] = "1"
    if stage != "judge":  # nobody else needs its key
        for name in os.environ.get(SECRETS, "").split():
            os.environ.pop(name, None)


def _check_processes(recipe: Recipe, placement: dict[str, Any]) -> None:
    """A stage is one process, which launches others itself; under a launcher each copy would be the whole stage."""
    there, placed = int(os.environ.get("WORLD_SIZE") or 1), placement.get("world_size", 1)
    if there == 1:
        return
    declared = recipe.params.get("effective_batch_size")
    batch = f": the effective batch would be {declared * there // placed}, not {declared}" if declared else ""
    raise StageError(
        f"{there} processes are there, the placement says {placed}{batch}. Start the stage once, without a launcher: "
        "it starts as many as the placement says."
    )


def _read_siblings(path: Path, own: Request) -> tuple[Request, ...]:
    """Results of the same stage on the same first parent that the plan has beside this one."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    requests = [Request.from_dict(raw, own.placement) for raw in lines]
    alike = [
        r
        for r in requests
        if r.recipe.stage == own.recipe.stage and r.parents[:1] == own.parents[:1] and r.record != own.record
    ]
    return tuple(alike)


# --- making a result ------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """A result that must be computed: its job, its inputs, what its record will say."""

    request: Request
    job: Job
    inputs: dict[str, Input]
    parents: list[str]
    gate_facts: dict[str, Any]
    held: ExitStack


def execute(
    module: str,
    run: Run,
    recipe: Recipe,
    placement: dict[str, Any],
    parents: Sequence[Path],
    data: Path | None,
    path: Path,
    own_argv: Sequence[str] = (),
) -> None:
    """Make one result, or restore a finished one."""
    execute_all(module, run, Request(recipe, placement, tuple(parents), data, path, tuple(own_argv)))


def execute_all(
    module: str,
    run: Run,
    own: Request,
    siblings: Sequence[Request] = (),
    together: RunTogether | None = None,
) -> None:
    """Make the own result, and up to `together` of its siblings in the same process.

    A sibling is taken if nobody else is at it, its inputs are there and no finished result fits; its own job finds the
    result later. A failure of one cell voids that cell alone.
    """
    code = provenance.code_digest(module)  # of the files as they are now: they may be edited while the job runs
    with ExitStack() as stack:
        work = _begin(module, own, code, stack.enter_context(ExitStack()), wait=True)
        if work is None:
            return
        works = [work]
        wanted = own.placement.get("together", 1) if together else 1
        for sibling in siblings:
            if len(works) < wanted:
                held = stack.enter_context(ExitStack())
                taken = _begin_sibling(module, sibling, code, held)
                if taken is None:
                    held.close()
                else:
                    works.append(taken)
        _claim_gpus(own)
        started, clock = datetime.now(UTC), time.monotonic()
        if len(works) == 1 or together is None:
            _finish(module, work, run(work.job), code, started, time.monotonic() - clock, ())
            return
        _run_together(module, works, together, code, started)


def _claim_gpus(request: Request) -> None:
    """Take the GPUs that the plan counted.

    Raises:
        StageError: there are GPUs and the stage needs some, but this environment's torch cannot use them.
    """
    stage = request.recipe.stage
    count = gpus.needed(stage, request.placement)
    if request.placement.get("gpus") == 0:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    taken = gpus.claim(count)
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if count and (taken or given) and stage != "judge":
        import torch

        if not torch.cuda.is_available():
            raise StageError(
                f"{request.record}: takes {count} GPUs, {', '.join(taken or given)} are there, but torch "
                f"{torch.__version__} cannot use them. Install the CUDA build (envs/gpu.txt), or mend the driver."
            )


def _run_together(module: str, works: list[_Work], together: RunTogether, code: str, started: datetime) -> None:
    cells = tuple(w.request.record.parts[-3] for w in works)
    print(f"made together: {', '.join(cells)}", file=sys.stderr, flush=True)
    by_job = {id(w.job): w for w in works}
    own, clock, failure = works[0], time.monotonic(), None
    for job, result in together([w.job for w in works]):
        work, seconds, clock = by_job.pop(id(job)), time.monotonic() - clock, time.monotonic()
        if isinstance(result, Exception):
            if work is own:
                failure = result
            _say(work.request.record, f"failed in a job with others: {result}")
        else:
            _finish(module, work, result, code, started, seconds, cells)
        if work is not own:
            work.held.close()  # its own job waits for this lock
    if failure is not None:
        raise failure
    if id(own.job) in by_job:
        raise StageError(f"{own.request.record}: the job ended before it was made. Run it again.")


def _begin(module: str, request: Request, code: str, stack: ExitStack, wait: bool) -> _Work | None:
    """Check the inputs; restore or take over a finished result (None), or say what is to be computed.

    Two jobs of one key (after a kill, or a requeue) never work at once: the second waits and finds the result.
    """
    path = request.record
    if not stack.enter_context(locked(path, wait, lambda: _wait_for_another(request))):
        return None
    parents = _read_parents(request.recipe, request.parents)
    inputs = _describe_inputs(request.recipe, parents, request.data)
    contents = [p.record.content for p in parents[: len(request.recipe.parents)]]
    command = [module, *request.argv()]
    if (record := restore(path, inputs)) is not None:
        _say(path, "verified the finished result and restored its record")
        reuse.remember(path, record, contents)
    elif reuse.take_over(path, request.recipe, inputs, contents, code, command) is not None:
        _say(path, "taken over from a finished result of the same recipe on the same bytes")
    else:
        gate_facts = gates.enforce(request.recipe, request.data, request.placement)
        temp = stack.enter_context(workspace(path.parent))
        placement = {name: value for name, value in request.placement.items() if name != "gpus"}  # the plan's count
        job = Job(request.recipe, placement, parents, request.data or Path(os.devnull), temp)
        return _Work(request, job, inputs, contents, gate_facts, stack)
    shutil.rmtree(path.parent / CHECKPOINT, ignore_errors=True)
    return None


def _wait_for_another(request: Request) -> None:
    """Say that another job makes this result already, and hand back the GPUs that would wait for it."""
    _say(request.record, "another job makes this result already; waiting for it")
    if gpus.needed(request.recipe.stage, request.placement):
        gpus.requeue()


def _begin_sibling(module: str, request: Request, code: str, stack: ExitStack) -> _Work | None:
    """The work of a sibling that can be taken; None if it is done, in other hands, or not ready."""
    if request.record.exists() or not all(p.exists() for p in (*request.parents, *filter(None, [request.data]))):
        return None
    try:
        return _begin(module, request, code, stack, wait=False)
    except UserError as error:
        _say(request.record, f"not taken along: {error}")
        return None


def _finish(
    module: str,
    work: _Work,
    result: Result,
    code: str,
    started: datetime,
    seconds: float,
    cells: tuple[str, ...],
) -> None:
    """Write metrics and examples as outputs, describe all of them, publish with the record."""
    request, out = work.request, work.job.out
    if result.metrics:  # also as an output, so that the digest covers the numbers that the report reads
        (out / METRICS).write_text(canonical_json(result.metrics) + "\n")
    if result.examples:
        (out / EXAMPLES).write_text(canonical_json(dict(result.examples)) + "\n")
    outputs = describe_outputs(out)
    who = provenance.collect(module, code)
    seconds = round(result.observed.get("seconds", seconds), 3)
    observed = {
        "gpu_seconds": round(seconds * len(who["gpu"]), 3),
        "placement": request.placement,
        **work.gate_facts,
        **({"together": list(cells)} if cells else {}),
        **({"examples": {n: _shape(t) for n, t in result.examples.items()}} if result.examples else {}),
        **result.observed,
        "seconds": seconds,
    }
    times = {"start": started, "end": datetime.now(UTC)}
    made = {
        **who,
        "command": [module, *request.argv()],
        **{name: at.isoformat(timespec="seconds") for name, at in times.items()},
    }
    record = Record.create(
        request.recipe, request.record.parts[-3], work.inputs, outputs, observed, result.metrics, made
    )
    publish(out, record)
    reuse.remember(request.record, record, work.parents)
    shutil.rmtree(request.record.parent / CHECKPOINT, ignore_errors=True)
    _say(request.record, f"done in {seconds:.1f} s, digest {record.digest[:12]}")


def _shape(text: str) -> dict[str, Any]:
    """What a record says of a text that lies in out/."""
    return {"md5": hash_bytes(text.encode(errors="surrogatepass"), "md5"), "characters": len(text)}


def _say(path: Path, what: str) -> None:
    print(printable(f"{path}: {what}"), file=sys.stderr, flush=True)


# --- inputs ---------------------------------------------------------------------------------------------------------


def _read_parents(recipe: Recipe, paths: Sequence[Path]) -> tuple[Parent, ...]:
    """Read and verify the parents, and what is given after them.

    Raises:
        StageError: they are not those of the recipe; or what comes after them is not made from the same data and
            parents, so the recipe does not decide it.
        StoreError: an output is not what its record says.
    """
    parents = tuple(Parent(path, read_record(path)) for path in paths)
    keys = tuple(p.record.key for p in parents[: len(recipe.parents)])
    if keys != recipe.parents:
        raise StageError(f"the recipe's parents are {recipe.parents}, the records given are {keys}. Plan again.")
    for other in parents[len(keys) :]:
        if (other.record.recipe.data, tuple(other.record.recipe.parents)) != (recipe.data, recipe.parents):
            raise StageError(f"{other.path}: neither a parent of the recipe nor made from its data and parents.")
    for parent in parents:
        try:
            check_outputs(parent.record, parent.out)
        except StoreError as error:
            place = "/".join(parent.path.parts[-4:-1])
            cure = f"Bring the files back, or have it made again: `matrix redo {place} --reason ...`."
            raise StoreError(f"{error}. {cure}") from None
    return parents


def _describe_inputs(recipe: Recipe, parents: tuple[Parent, ...], data: Path | None) -> dict[str, Input]:
    """Inputs by role: the parent's stage, or its whole place where several are of one stage, as for a report.

    What the recipe does not name is none: a stage puts it among the facts that it observed.
    """
    parents = parents[: len(recipe.parents)]
    roles = [p.record.stage for p in parents]
    inputs = {
        (role if roles.count(role) == 1 else "/".join(p.path.parts[-4:-1])): p.record.as_input(p.path)
        for role, p in zip(roles, parents, strict=True)
    }
    if data is None:
        return inputs
    if not data.is_file():
        raise StageError(f"{data}: no such data file. Run `snakemake {data}`.")
    if recipe.data.startswith("rev-"):
        expected, md5 = _noted_md5(data), hash_file(data, "md5")
    else:
        expected, md5 = recipe.data, hash_file(data, "md5")
    if md5 != expected:
        raise StageError(f"{data}: its md5 is {md5}, not {expected}: the data changed. Remove the file and run again.")
    sha256 = hash_file(data)
    inputs["data"] = Input(path=str(data), key=recipe.data, digest=sha256, content=sha256)
    return inputs


def _noted_md5(data: Path) -> str:
    note = data.with_suffix(".json")
    try:
        return str(json.loads(note.read_text())["md5"])
    except (OSError, ValueError, KeyError):
        raise StoreError(f"{note}: missing or not readable. Remove {data} and run `snakemake {data}`.") from None
