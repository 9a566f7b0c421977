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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from workflow import gpus, provenance
from workflow.data import gates
from workflow.disk import trouble
from workflow.keys import Recipe, artifact_digest, canonical_json, hash_file
from workflow.store import (
    METRICS,
    TWIN,
    Record,
    StoreError,
    check_outputs,
    describe_outputs,
    out_dir,
    publish,
    read_record,
    wait_for_others,
    workspace,
    write_marker,
)

# Beside out/: what a training goes on from when it is interrupted; of no use once the result is there.
CHECKPOINT = "checkpoint"


class StageError(RuntimeError):
    """The stage refuses its input, or what it observed is not what was declared: what, where, what to do."""


class Parent(NamedTuple):
    path: Path
    record: Record

    @property
    def out(self) -> Path:
        return out_dir(self.path)


@dataclass(frozen=True)
class Job:
    """What a stage is given. `out` is a folder of its own, to be filled."""

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
    """Facts of the run, and the numbers that the report reads."""

    observed: dict[str, Any]
    metrics: dict[str, Any]


Run = Callable[[Job], Result]


def stage_main(module: str, run: Run, argv: list[str] | None = None) -> None:
    """Run a stage from its command line, or hand the command line to the launcher if one is there."""
    from workflow import launch

    argv = sys.argv[1:] if argv is None else argv
    if address := os.environ.get(launch.ADDRESS):
        sys.exit(launch.forward(address, module, argv))
    sys.exit(run_stage(module, run, argv))


def run_stage(module: str, run: Run, argv: list[str]) -> int:
    """Exit status of one stage. What a person can mend ends in one line; what is a bug keeps its traceback."""
    args = _parse(module, sys.modules[run.__module__].__doc__, argv)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        _run(module, run, args, sys.modules[run.__module__])
    except (StageError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was recorded; the same command starts again", file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if (told := trouble(error, args.record)) is None:
            raise
        print(f"error: {told}", file=sys.stderr, flush=True)
        return 1
    return 0


def _terminated(signum: int, frame: Any) -> None:
    sys.exit(128 + signum)  # an exception, so that the workspace is removed


def _parse(module: str, about: str | None, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--recipe", type=Recipe.from_json, required=True, help="canonical JSON; its hash is the key")
    parser.add_argument("--placement", type=json.loads, required=True, help="JSON; how the work lies on the machine")
    parser.add_argument("--parents", type=Path, nargs="*", default=[], help="records, in the recipe's order")
    parser.add_argument("--data", type=Path, nargs="?", help="none for a base model that is fetched whole")
    parser.add_argument("--record", type=Path, required=True)
    return parser.parse_args(argv)


def _run(module: str, run: Run, args: argparse.Namespace, code: Any) -> None:
    stage, _, key = args.record.parts[-4:-1]
    serves = getattr(code, "STAGES", (module.rsplit(".", 1)[1],))  # a module may serve several stages
    if (stage, key) != (args.recipe.stage, args.recipe.key) or stage not in serves:
        raise StageError(f"{args.record}: the recipe is of {args.recipe.stage}/{args.recipe.key}. Plan again.")
    _check_processes(args.recipe, args.placement)
    if stage != "base":  # which fetches; all else is on disk, and a question to the hub would wait for its time-out
        os.environ["HF_HUB_OFFLINE"] = "1"
    gpus.claim(gpus.needed(stage, args.placement))
    execute(module, run, args.recipe, args.placement, args.parents, args.data, args.record, [module, *_argv(args)])


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


def execute(
    module: str,
    run: Run,
    recipe: Recipe,
    placement: dict[str, Any],
    parent_paths: list[Path],
    data: Path | None,
    path: Path,
    command: list[str],
) -> None:
    """Check the inputs, run, publish; or restore a finished result whose record is gone."""
    parents = _read_parents(recipe, parent_paths)
    inputs = _describe_inputs(recipe, parents, data)
    wait_for_others(path.parent)
    if _restore(path, inputs):
        shutil.rmtree(path.parent / CHECKPOINT, ignore_errors=True)
        return
    gate_facts = gates.enforce(recipe, data, placement)
    started = datetime.now(UTC)
    clock = time.monotonic()
    with workspace(path.parent) as temp:
        observed, metrics = run(Job(recipe, placement, parents, data or Path(os.devnull), temp))
        if metrics:  # also as an output, so that the digest covers the numbers that the report reads
            (temp / METRICS).write_text(canonical_json(metrics) + "\n")
        outputs = describe_outputs(temp)
        seconds = round(time.monotonic() - clock, 3)
        who = provenance.collect(module)
        record = Record.model_validate(
            {
                "schema": 1,
                "stage": recipe.stage,
                "cell": path.parts[-3],
                "key": recipe.key,
                "recipe": recipe.to_dict(),
                "digest": artifact_digest(recipe, outputs),
                "inputs": inputs,
                "outputs": outputs,
                "observed": {
                    "seconds": seconds,
                    "gpu_seconds": seconds * len(who["gpu"]),
                    "placement": placement,
                    **gate_facts,
                    **observed,
                },
                "metrics": metrics,
                "provenance": {
                    **who,
                    "command": command,
                    "start": started.isoformat(timespec="seconds"),
                    "end": datetime.now(UTC).isoformat(timespec="seconds"),
                },
            }
        )
        publish(temp, record)
    shutil.rmtree(path.parent / CHECKPOINT, ignore_errors=True)
    print(f"{path}: done in {seconds:.1f} s, digest {record.digest[:12]}", file=sys.stderr, flush=True)


def _argv(args: argparse.Namespace) -> list[str]:
    return [
        f"--recipe={args.recipe.to_json()}",
        f"--placement={json.dumps(args.placement)}",
        *(["--parents", *map(str, args.parents)] if args.parents else []),
        *(["--data", str(args.data)] if args.data else []),
        f"--record={args.record}",
    ]


def _read_parents(recipe: Recipe, paths: list[Path]) -> tuple[Parent, ...]:
    parents = tuple(Parent(path, read_record(path)) for path in paths)
    found = tuple(p.record.key for p in parents)
    if found != recipe.parents:
        raise StageError(f"the recipe's parents are {recipe.parents}, the records given are {found}. Plan again.")
    for parent in parents:
        check_outputs(parent.record, parent.out)
    return parents


def _describe_inputs(recipe: Recipe, parents: tuple[Parent, ...], data: Path | None) -> dict[str, dict[str, str]]:
    roles = [p.record.stage for p in parents]
    inputs = {
        # a report has many parents of one stage: their role names the place
        (role if roles.count(role) == 1 else "/".join(p.path.parts[-4:-1])): {
            "path": str(p.path),
            "key": p.record.key,
            "digest": p.record.digest,
        }
        for role, p in zip(roles, parents, strict=True)
    }
    if data is None:
        return inputs
    if not data.is_file():
        raise StageError(f"{data}: no such data file. Run `snakemake {data}`.")
    if recipe.data.startswith("rev-"):
        note = json.loads(data.with_suffix(".json").read_text())
        expected, found = note["md5"], hash_file(data, "md5")
    else:
        expected, found = recipe.data, hash_file(data, "md5")
    if found != expected:
        raise StageError(
            f"{data}: its md5 is {found}, not {expected}: the data changed. Remove the file and run again."
        )
    inputs["data"] = {"path": str(data), "key": recipe.data, "digest": hash_file(data)}
    return inputs


def _restore(path: Path, inputs: dict[str, dict[str, str]]) -> bool:
    """Take up a finished result whose record.json is gone, if its bytes are whole and its parents still the same."""
    twin = out_dir(path) / TWIN
    if not twin.is_file():
        return False
    try:
        record = read_record(twin)
        check_outputs(record, out_dir(path))
    except StoreError as error:
        print(f"the earlier result is not whole and is set aside: {error}", file=sys.stderr)
        return False
    before = {role: (i.key, i.digest) for role, i in record.inputs.items()}
    now = {role: (i["key"], i["digest"]) for role, i in inputs.items()}
    if before != now:
        print("the earlier result was made from other bytes of its parents and is set aside", file=sys.stderr)
        return False
    write_marker(path, record)
    print(f"{path}: verified the finished result and restored its record", file=sys.stderr, flush=True)
    return True
