"""Matrices without training: stand-in pins, and finished results of a few bytes each."""

import copy
import os
from pathlib import Path
from typing import Any

from tests.factory import inputs_of, make_record
from workflow.config import Config
from workflow.data.lock import NONE, Lock, Pin, definition, hub_id, used_names, write_pins
from workflow.keys import hash_bytes
from workflow.matrix import Matrix
from workflow.sections import HubModel
from workflow.store import DATA, data_path, describe_outputs, publish, workspace


def small(raw: dict[str, Any]) -> dict[str, Any]:
    """A config at 2 conditions (the control and evil_wrong) x 2 EM seeds."""
    raw = copy.deepcopy(raw)
    raw["name"] = "test"
    raw["conditions"] = raw["conditions"][:2]
    raw["em_seeds"] = [42, 137]
    return raw


def stand_ins(config: Config) -> Lock:
    """Pins of data that nobody fetched: ids made from the names."""
    pins: Lock = {}
    commit = hash_bytes(b"commit")[:40]
    if isinstance(model := config.base_model, HubModel):
        pins[model.name] = Pin(model.name, hub_id(model, commit), NONE, NONE, NONE, commit, NONE, "stand-in")
    for name in used_names(config):
        entry = config.data_entry(name)
        says = definition(entry, pins)
        md5 = hash_bytes(f"{name} {says}".encode(), "md5")
        identity = hub_id(entry, commit) if entry.kind == "hub" else md5
        pins[name] = Pin(name, identity, md5, hash_bytes(md5.encode()), "1", commit, says, "stand-in")
    return pins


def pin_stand_ins(config: Config, path: Path) -> Lock:
    pins = stand_ins(config)
    write_pins(list(pins.values()), path)
    return pins


def finish(matrix: Matrix, root: Path) -> None:
    """A whole record, with one output of a few bytes, for every node that has none; and its data file."""
    before = os.getcwd()
    os.chdir(root)
    try:
        Path(DATA).mkdir(parents=True, exist_ok=True)
        for name in used_names(matrix.config):
            file = Path(data_path(matrix.data_id(name)))
            file.touch()
            file.with_suffix(".json").write_text("{}\n")
        for node in matrix.nodes():
            if Path(node.record).exists():
                continue
            with workspace(Path(node.record).parent) as temp:
                (temp / "output.json").write_text(f'"{node.key}"\n')
                outputs = describe_outputs(temp)
                publish(temp, make_record(node, outputs, inputs=inputs_of(node)))
    finally:
        os.chdir(before)
