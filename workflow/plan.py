"""What the rules ask: the matrix of Snakemake's config, and the strings that command lines take."""

import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workflow.config import Config, sources
from workflow.data.checks import require_gates, told_to_stages
from workflow.data.lock import NONE, Lock, describe_unpinned, provisional, read_lock, unpinned
from workflow.errors import UserError, describe_os_error, printable
from workflow.files import Owner, write_atomic
from workflow.gpus import needed
from workflow.keys import canonical_json, hash_bytes
from workflow.links import Links, read_links
from workflow.matrix import Matrix, Node
from workflow.sections import LocalModel, TrainPlacement
from workflow.stage import ALLOCATOR, SECRETS
from workflow.store import PLANS, RESULTS, data_path

# Every job inherits these.
ENVIRONMENT = {**ALLOCATOR, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Plan:
    config: Config
    matrix: Matrix
    pins: Lock
    missing: tuple[str, ...]

    @classmethod
    def of(cls, raw: dict[str, Any], configfiles: list[str], is_main: bool = True) -> "Plan":
        """Check Snakemake's config and plan it; a fault ends in its own words, without a traceback.

        Args:
            is_main: not a job that Snakemake started; what is to be said is said once.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            config = Config.from_dict(raw)
            os.environ[SECRETS] = config.placement.judge.api_key_env or ""
            configfile = os.path.relpath(configfiles[-1]) if configfiles else "config/config.yaml"
            pins = read_lock()
            missing = tuple(unpinned(config, pins))
            filled = provisional(config, pins)
            plan = cls(config, Matrix(config, filled, configfile), filled, missing)
            warnings = require_gates(config, filled)
        except UserError as error:
            sys.exit(f"error: {printable(str(error))}")
        if is_main:
            if missing:
                warnings = (f"{describe_unpinned(missing, configfile)} Until then their keys are provisional (tbd).",)
            for warning in warnings:
                print(f"warning: {printable(warning)}", file=sys.stderr)
            plan._check_results()
        return plan

    def refuse_provisional(self, wildcards: Iterable[dict[str, str]]) -> None:
        """End before the first job if one of those that are needed rests on data that are not pinned."""
        if not self.missing:
            return
        ids = {self.matrix.data_id(name) for name in self.missing}
        resting = {(n.label, n.key) for n in self.matrix.nodes() if n.recipe.data in ids or n.key.startswith("tbd")}
        for w in wildcards:
            if w.get("md5") in ids or (w.get("cell"), w.get("key")) in resting:
                sys.exit(f"error: {describe_unpinned(self.missing, self.matrix.configfile)}")

    @cached_property
    def links(self) -> Links:
        """The records of the plan held against each other; read once, in the main process."""
        return read_links(self.matrix.nodes())

    def siblings_path(self, stage: str) -> str:
        return f"{PLANS}/{self.config.name}.{stage}.jsonl"

    def siblings_option(self, stage: str) -> str:
        """The option by which a job learns what it may make along with its own result; none if it makes one."""
        together = getattr(getattr(self.config.placement, stage, None), "together", 1)
        return f"--siblings {self.siblings_path(stage)}" if together > 1 else ""

    def write_siblings(self) -> None:
        """Write down, by stage, what is still to be made, for jobs that make several results together."""
        for stage in type(self.config.placement).model_fields:
            if self.siblings_option(stage):
                nodes = [n for n in self.matrix.nodes(stage) if n in self.links.planned]
                _make_plans_folder()
                write_atomic(self.siblings_path(stage), "".join(f"{_sibling(node)}\n" for node in nodes), sync=False)

    def write_plan(self) -> None:
        """Leave in the results what this plan consists of, so that `gc` in another checkout removes nothing of it."""
        config = os.path.realpath(self.matrix.configfile)
        data = sorted({node.recipe.data for node in self.matrix.nodes()})
        text = json.dumps({"config": config, "records": self.matrix.records(), "data": data}) + "\n"
        with suppress(OSError):  # a full disk; what the jobs say of it is clearer
            _make_plans_folder()
            write_atomic(f"{PLANS}/{self.config.name}.{hash_bytes(config.encode())[:12]}.json", text, sync=False)

    def _check_results(self) -> None:
        """Read-only results can be looked at; if something is missing, Snakemake would say it in misleading words."""
        if not os.path.lexists(RESULTS) or os.access(RESULTS, os.W_OK):
            return
        planned = self.matrix.records()
        missing = [record for record in planned if not os.path.exists(record)]
        if missing:
            count = f"{len(missing)} of the plan's {len(planned)} results {'is' if len(missing) == 1 else 'are'}"
            sys.exit(
                f"error: {RESULTS}/ is read-only, or not yours to write to, and {count} not there: {missing[0]}"
                f"{', ...' if missing[1:] else ''}. Make it writable and run again."
            )

    def claim(self) -> None:
        """Hold the results while this process lives: a second Snakemake would take away records that this one needs."""
        claim()

    def _placed(self, stage: str) -> Any:
        """The config's placement of a stage; the reference pass lies as DPO does, but whole on each process."""
        if stage == "dpo_reference":
            return self.config.placement.tulu_dpo.model_copy(update={"strategy": "ddp"})
        return getattr(self.config.placement, stage)

    def placement(self, stage: str) -> str:
        placed = self._placed(stage)
        options = placed.model_dump() | {"gpus": self.gpus(stage)}
        if stage == "base" and isinstance(self.config.base_model, LocalModel):
            options["model_path"] = self.config.base_model.path
        if isinstance(placed, TrainPlacement):
            options |= {"tracking": self.config.tracking, "gates": self._gates}
        return json.dumps(options)

    def gpus(self, stage: str) -> int:
        """GPUs of one job; the toy model of the demo takes none."""
        if self.config.base_model.kind == "toy" or stage == "base":
            return 0
        return needed(stage, self._placed(stage).model_dump())

    def resources(self, stage: str) -> dict[str, Any]:
        """What a training asks for, in the words of Snakemake's SLURM plugin.

        On several nodes GPUs are asked for by node, and there is a task for each node. With `mpi` the plugin starts the
        job in the batch script and not in a step on one node: the stage starts the step on all of them itself.
        """
        gpus, nodes = self.gpus(stage), self._placed(stage).nodes
        if nodes == 1:
            return {"gpu": gpus}
        tasks = {"nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0, "mpi": "srun"}
        return {**tasks, "gres": f"gpu:{gpus // nodes}"} if gpus else tasks

    @cached_property
    def _gates(self) -> dict[str, Any]:
        return told_to_stages(self.config, self.pins)

    @cached_property
    def config_json(self) -> str:
        return canonical_json(json.loads(self.config.model_dump_json()))

    def entry_json(self, data_id: str) -> str:
        entry = self.config.data_entry(self.matrix.entry(data_id))
        return canonical_json(json.loads(entry.model_dump_json()))

    def revision(self, data_id: str) -> str:
        pin = self.pins.get(self.matrix.entry(data_id))
        return pin.revision if pin else NONE

    def source_paths(self, data_id: str) -> list[str]:
        """Data files that a data set is built from, in the order of its definition."""
        entry = self.config.data_entry(self.matrix.entry(data_id))
        return [data_path(self.matrix.data_id(name)) for name in sources(entry)]


def _make_plans_folder() -> None:
    if os.path.islink(PLANS):
        sys.exit(f"error: {PLANS}: a link; nothing is written by way of it. Remove it and run again.")
    os.makedirs(PLANS, exist_ok=True)


def claim(path: str = f"{RESULTS}/.claim") -> int | None:
    """Hold the results while this process lives; ends the process if another one holds them.

    Unlike Snakemake's own lock it is the kernel's, so it ends with the process, after kill -9 too, and the same
    command goes on. It lies in the results, since two checkouts may share them over a link. A disk without such
    locks is used without.

    Returns:
        The descriptor that holds them until it is closed; None without locks.
    """
    import fcntl

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, flags, 0o664)
    except OSError as error:
        message = describe_os_error(error, path) or f"{path}: {error.strerror}. Make it writable and run again."
        sys.exit(f"error: {message}")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        sys.exit(f"error: another Snakemake works on these results ({printable(holder)}). Wait for it or stop it.")
    except OSError:
        os.close(descriptor)
        return None
    with suppress(OSError):  # a full disk; what the jobs say of it is clearer
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {Owner.current().host}\n".encode())
    return descriptor


def _sibling(node: Node) -> str:
    data = node.data[0] if node.data else ""
    parents = [p.record for p in node.parents]
    return canonical_json({"recipe": node.recipe.to_dict(), "parents": parents, "data": data, "record": node.record})
