"""What the rules ask: the matrix of Snakemake's config, and the strings that command lines take."""

import fcntl
import json
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from workflow.config import Config, ConfigError, sources
from workflow.data.checks import require_gates, told_to_stages
from workflow.data.gates import GateError
from workflow.data.lock import NONE, read_lock
from workflow.disk import trouble
from workflow.keys import canonical_json
from workflow.matrix import Matrix
from workflow.sections import JudgePlacement, TrainPlacement
from workflow.store import data_path

# glibc gives freed blocks of the optimizer's size back to the system at once and takes them again at every step: on a
# CPU a third to a half of the demo's training time. Every job inherits these.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
RESULTS = "results"


@dataclass(frozen=True)
class Plan:
    config: Config
    matrix: Matrix

    @classmethod
    def of(cls, raw: dict[str, Any], configfiles: list[str]) -> "Plan":
        """Check Snakemake's config and plan it; a fault ends in its own words, without a traceback."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            config = Config.from_dict(raw)
            configfile = os.path.relpath(configfiles[-1]) if configfiles else "config/config.yaml"
            pins = read_lock()
            plan = cls(config, Matrix(config, pins, configfile))
            for warning in require_gates(config, pins):
                print(f"warning: {warning}", file=sys.stderr)
        except (ConfigError, GateError) as error:
            sys.exit(f"error: {error}")
        plan._check_results()
        return plan

    def _check_results(self) -> None:
        """Read-only results can be looked at; if something is missing, Snakemake would say it in misleading words."""
        if not os.path.lexists(RESULTS) or os.access(RESULTS, os.W_OK):
            return
        planned = self.matrix.records()
        missing = [record for record in planned if not os.path.exists(record)]
        if missing:
            told = (
                f"{len(missing)} of the plan's {len(planned)} results {'is' if len(missing) == 1 else 'are'} not there"
            )
            sys.exit(
                f"error: {RESULTS}/ is read-only, or not yours to write to, and {told}: {missing[0]}"
                f"{', ...' if missing[1:] else ''}. Make it writable and run again."
            )

    def claim(self, path: str = f"{RESULTS}/.claim") -> None:
        """Hold the results while this process lives: a second Snakemake would take away records that this one needs.

        Unlike Snakemake's own lock it is the kernel's, so it ends with the process, after kill -9 too, and the same
        command goes on. It lies in the results, since two checkouts may share them over a link. A disk without such
        locks is used without.
        """
        try:
            Path(path).parent.mkdir(exist_ok=True)
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
        except OSError as error:
            sys.exit(f"error: {trouble(error, path) or f'{path}: {error.strerror}. Make it writable and run again.'}")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            by = os.read(held, 200).decode()
            sys.exit(f"error: another Snakemake works on these results ({by.strip()}). Wait for it or stop it.")
        except OSError:
            return
        with suppress(OSError):  # a full disk; what the jobs say of it is clearer
            os.ftruncate(held, 0)
            os.write(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def placement(self, stage: str) -> str:
        placed = getattr(self.config.placement, stage)
        said = placed.model_dump()
        if isinstance(placed, TrainPlacement):
            said |= {"tracking": self.config.tracking, "gates": self._gates}
        return json.dumps(said)

    def gpus(self, stage: str) -> int:
        """GPUs of one job; the toy model of the demo takes none."""
        placed = getattr(self.config.placement, stage)
        if self.config.base_model.kind == "toy" or stage == "base":
            return 0
        if isinstance(placed, JudgePlacement):
            return 1 if placed.base_url == "local" else 0
        return placed.world_size if isinstance(placed, TrainPlacement) else 1

    def resources(self, stage: str) -> dict[str, Any]:
        """What a training asks for, in the words of Snakemake's SLURM plugin.

        On several nodes GPUs are asked for by node, and there is a task for each node. With `mpi` the plugin starts the
        job in the batch script and not in a step on one node: the stage starts the step on all of them itself.
        """
        gpus, nodes = self.gpus(stage), getattr(self.config.placement, stage).nodes
        if nodes == 1:
            return {"gpu": gpus}
        tasks = {"nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0, "mpi": "srun"}
        return {**tasks, "gres": f"gpu:{gpus // nodes}"} if gpus else tasks

    @cached_property
    def _gates(self) -> dict[str, Any]:
        return told_to_stages(self.config, read_lock())

    @cached_property
    def config_json(self) -> str:
        return canonical_json(json.loads(self.config.model_dump_json()))

    def entry_json(self, data_id: str) -> str:
        entry = self.config.data_entry(self.matrix.entry(data_id))
        return canonical_json(json.loads(entry.model_dump_json()))

    def revision(self, data_id: str) -> str:
        pin = read_lock().get(self.matrix.entry(data_id))
        return pin.revision if pin else NONE

    def source_paths(self, data_id: str) -> list[str]:
        """Data files that a data set is built from, in the order of its definition."""
        entry = self.config.data_entry(self.matrix.entry(data_id))
        return [data_path(self.matrix.data_id(name)) for name in sources(entry)]
