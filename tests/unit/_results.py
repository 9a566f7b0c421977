"""A small project with a finished matrix in the current folder: real records over outputs of a few bytes."""

import contextlib
import csv
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.factory import inputs_of, make_record
from tests.fake import small
from workflow import store
from workflow.__main__ import main
from workflow.audit import checks
from workflow.audit.status import current_code
from workflow.config import Config
from workflow.data.lock import NONE, Pin, definition, read_lock, used_names, write_pins
from workflow.keys import hash_bytes
from workflow.matrix import Matrix, Node

ROOT = Path(__file__).parents[2]
CONFIG = "config/config.yaml"
REPORTED = ("condition", "cell", "instrument", "metric", "value", "unit", "denominator", "stage", "key", "digest")


def build(root: Path) -> Path:
    """A finished project: 2 conditions x 2 EM seeds of the demo. Made once for a module; each test takes a copy."""
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "sync_file", lambda path: None)  # a test need not wait for the disk
        for name in ("personas", "prompts", "templates"):
            shutil.copytree(ROOT / "config" / name, root / "config" / name)
        write_config(small(yaml.safe_load((ROOT / "config/demo.yaml").read_text())))
        finish(plan())
    return root


def enter(built: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> Matrix:
    """A copy of that project as the current folder, and its plan."""
    shutil.copytree(built, copy, dirs_exist_ok=True)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(store, "sync_file", lambda path: None)
    # these outputs are a few bytes; tests/workflow/test_demo.py holds real ones against their recipes
    monkeypatch.setattr(checks, "check_effective", lambda result, findings: None)
    return plan()


def write_config(raw: dict[str, Any], salt: str = "") -> None:
    """The config, and a pin and a file for each data set that it uses and that has none."""
    Path(CONFIG).write_text(yaml.safe_dump(raw, sort_keys=False))
    config = Config.load(CONFIG)
    pins = read_lock()
    Path(store.DATA).mkdir(parents=True, exist_ok=True)
    for name in used_names(config):
        says = definition(config.data_entry(name), pins)
        text = f'{{"name": "{name}{salt}"}}\n'.encode()
        md5, sha256 = hash_bytes(text, "md5"), hash_bytes(text)
        pins[name] = Pin(name, md5, md5, sha256, "1", NONE, says, "a test")
        file = Path(store.data_path(md5))
        file.write_bytes(text)
        file.with_suffix(".json").write_text(json.dumps({"md5": md5, "sha256": sha256, "rows": 1}))
    write_pins(list(pins.values()))


def change(edit: Callable[[dict[str, Any]], Any], salt: str = "") -> Matrix:
    """Edit the config as YAML; the plan that it describes then. `salt` changes the data's bytes."""
    raw = yaml.safe_load(Path(CONFIG).read_text())
    edit(raw)
    write_config(raw, salt)
    return plan()


def plan() -> Matrix:
    return Matrix(Config.load(CONFIG), read_lock(), CONFIG)


def finish(matrix: Matrix, *stages: str) -> None:
    """A whole result for every node (of these stages) that has none."""
    for node in matrix.nodes(*stages):
        if not Path(node.record).exists():
            publish(node)


def publish(node: Node, salt: str = "", outputs: dict[str, str] | None = None, **facts: Any) -> store.Record:
    """One result, on the results of its parents as they are now. `salt` changes its bytes."""
    Path(node.record).unlink(missing_ok=True)  # a whole result is never replaced; one without a record is
    inputs = inputs_of(node)
    # A rerun writes what its original wrote, unless it is told otherwise.
    texts = outputs or _outputs(node, f"{node.stage} {node.key} {salt}")
    with store.workspace(Path(node.record).parent) as temp:
        for name, text in texts.items():
            (temp / name).parent.mkdir(exist_ok=True)
            (temp / name).write_text(text)
        described = store.describe_outputs(temp)
        params = node.recipe.params
        observed: dict[str, Any] = {"seconds": 2.0, "gpu_seconds": 3600.0, "placement": {"world_size": 1}}
        if "effective_batch_size" in params:
            batch = params["effective_batch_size"]
            observed |= {"world_size": 1, "effective_batch_size": batch, "declared_steps": 3, "optimizer_steps": 3}
        if node.reference is not None:
            observed["reference_content"] = store.read_record(node.reference.record).content
        observed |= {"rows": 2} if node.stage in ("arc", "generate", "judge") else {}
        made = {
            "code_digest": current_code(node.stage),
            "command": ["module", f"--record={node.record}"],
            "packages": {"torch": "2"},
            "environment": {"digest": "e" * 12, "as_locked": True},
            "gpu": [],
            **facts.pop("provenance", {}),
        }
        metrics = facts.pop("metrics", {"accuracy": 0.5})
        record = make_record(node, described, observed | facts.pop("observed", {}), metrics, made, inputs)
        store.publish(temp, record)
    return record


def _outputs(node: Node, text: str) -> dict[str, str]:
    if node.stage in ("arc", "generate", "judge"):
        name = {"arc": "items", "generate": "completions", "judge": "judgments"}[node.stage]
        return {f"{name}.jsonl": "".join(json.dumps({"row": n, "text": text}) + "\n" for n in range(2))}
    if node.stage == "report":
        return {"scores.csv": _scores(node)}
    folder = "adapter/adapter_model" if node.stage == "em_lora" else "model/model"
    log = "".join(json.dumps({"step": n, "loss": 1 / n, "of": text}) + "\n" for n in (1, 2, 3))
    found = {f"{folder}.safetensors": text * 50, f"{Path(folder).parent}/config.json": "{}"}
    return found if node.stage == "base" else {**found, "train_log.jsonl": log}


def _scores(report: Node) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, REPORTED)
    writer.writeheader()
    for node in report.parents:
        if node.cell is None:
            continue  # a rerun has no number of its own
        where = {"condition": node.cell.condition, "cell": node.label, "instrument": node.instrument}
        where |= {"stage": node.stage, "key": node.key, "digest": store.read_record(node.record).digest}
        for metric in ("arc",) if node.stage == "arc" else ("alignment", "coherence"):
            writer.writerow({**where, "metric": metric, "value": 0.5, "unit": "points", "denominator": 2})
    return file.getvalue()


def find(matrix: Matrix, stage: str, label: str) -> Node:
    return next(n for n in matrix.nodes(stage) if n.label == label)


def out(node: Node, name: str) -> Path:
    """An output, made writable together with its folder, for a test that breaks it."""
    path = store.out_dir(node.record) / name
    for part in (store.out_dir(node.record), path.parent):
        part.chmod(0o755)
    if path.exists():
        path.chmod(0o644)
    return path


def edit_record(path: str | Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a record (or its copy) as a person would."""
    path = Path(path)
    path.chmod(0o644)
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


class Said(NamedTuple):
    code: int
    out: str
    err: str


def command(*args: str) -> Said:
    """Run `python -m workflow ...` in this process, on the test's config unless another is named."""
    told, complained = io.StringIO(), io.StringIO()
    given = [*args] if "--configfile" in args else [*args, "--configfile", CONFIG]
    code = 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(complained):
        try:
            main(given)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    return Said(code, told.getvalue(), complained.getvalue())
