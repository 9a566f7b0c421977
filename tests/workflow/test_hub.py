"""From nothing pinned to the first training steps, with model and data from a hub on loopback; and what it refuses."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests import hub, tiny
from tests.conftest import ROOT, copy_project, logs, run
from tests.fake import small
from workflow.data import world

MODEL, SFT = "acme/tiny", "acme/instructions"


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> dict[str, bytes]:
    from workflow.train import models, toy

    folder = tmp_path_factory.mktemp("model")
    tokenizer = toy.make_tokenizer([row["text"] for row in world.pretraining_text(1)], 1024)
    tokenizer.chat_template = "{{ 'a template of its own, which is not used' }}"
    models.save(toy.make_model(tiny.SHAPE, tokenizer, 1), tokenizer, folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def parquet(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return {"README.md": b"# Instructions\n", "data/train-00000-of-00001.parquet": buffer.getvalue()}


@pytest.fixture
def served(model_files) -> Iterator[hub.Hub]:
    with hub.serve() as server:
        server.models[MODEL] = hub.repository(model_files)
        server.datasets[SFT] = hub.repository(parquet(world.sft_rows(1)[:96]))
        yield server


@pytest.fixture
def project(tmp_path) -> Path:
    root = copy_project(tmp_path / "project")
    raw = small(yaml.safe_load((ROOT / "config/demo.yaml").read_text()))
    raw["base_model"] = {"kind": "hub", "name": "tiny", "repo": MODEL}
    raw["conditions"] = raw["conditions"][:1]
    entry = {"kind": "hub", "repo": SFT, "subset": None, "split": "train", "select": None}
    raw["data"] = [d | entry if d["name"] == "demo_sft" else d for d in raw["data"]]
    for data in raw["data"]:
        if data["name"] == "demo_sft":
            del data["part"], data["seed"]
            data["select"] = {"rows": 64, "fraction": None, "seed": 42}
    (root / "config/hub.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (root / "config/data.lock.tsv").unlink()
    return root


def command(root: Path, served: hub.Hub, *args: str) -> Any:
    # an answer that never comes must not be waited for by retries of minutes
    env = {
        "HF_ENDPOINT": served.url,
        "HF_HOME": str(root / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "HF_HUB_OFFLINE": "0",
    }
    return run(*args, cwd=root, env=env)


def lock(root: Path, served: hub.Hub) -> Any:
    return command(root, served, "workflow", "lock", "--configfile", "config/hub.yaml")


def pins(root: Path) -> dict[str, list[str]]:
    lines = (root / "config/data.lock.tsv").read_text().splitlines()
    return {cells[0]: cells for line in lines[1:] for cells in [line.split("\t")]}


def snakemake(root: Path, served: hub.Hub, *args: str) -> Any:
    return command(root, served, "snakemake", "--configfile", "config/hub.yaml", "-c2", "--", *args)


def target(root: Path, served: hub.Hub, stage: str) -> str:
    done = command(root, served, "workflow", "status", "tulu_control.p42", "--paths", "--configfile", "config/hub.yaml")
    (record,) = [line for line in done.stdout.splitlines() if line.startswith(f"results/{stage}/")]
    return record


def test_from_nothing_pinned_to_a_trained_model(project, served):
    assert (done := lock(project, served)).returncode == 0, done.stderr
    assert pins(project)["tiny"][5] == served.models[MODEL].main
    assert pins(project)["demo_sft"][5] == served.datasets[SFT].main
    # to plan, the tokenizer at most is downloaded
    assert not [r for r in served.requests if "safetensors" in r or "parquet" in r]

    served.models[MODEL].cut = 1  # the connection breaks in the middle of the weights
    record = target(project, served, "tulu_sft")
    done = snakemake(project, served, record)
    assert done.returncode == 0, done.stderr[-3000:] + logs(project)
    made = json.loads((project / record).read_text())
    assert (made["observed"]["rows"], made["observed"]["optimizer_steps"]) == (64, 8)
    base = project / next(iter(i["path"] for i in made["inputs"].values() if i["path"].startswith("results/base/")))
    assert (base.parent / "out/model/chat_template.jinja").read_text() == tiny.TEMPLATE.read_text()
    weights = [r for r in served.requests if r.startswith("GET /cdn/models") and r.endswith("model.safetensors")]
    assert len(weights) > 1  # it went on

    # the branch moves: nothing is planned for it, and `lock` leaves what is pinned
    before = pins(project)
    hub.push(served.datasets[SFT], parquet(world.sft_rows(2)[:96]))
    assert lock(project, served).returncode == 0
    assert pins(project)["demo_sft"] == before["demo_sft"]
    assert "Nothing to be done" in snakemake(project, served, record).stderr

    # asked for: the line goes, `lock` takes the commit of today
    text = (project / "config/data.lock.tsv").read_text().splitlines(keepends=True)
    (project / "config/data.lock.tsv").write_text("".join(line for line in text if not line.startswith("demo_sft\t")))
    assert lock(project, served).returncode == 0
    assert pins(project)["demo_sft"][5] == served.datasets[SFT].main
    assert target(project, served, "tulu_sft") != record


@pytest.mark.parametrize("state", ["missing", "gated"])
def test_what_the_hub_refuses_is_one_line_of_lock(project, served, state):
    served.models[MODEL].state = state
    done = lock(project, served)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert MODEL in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_fetch_that_fails_is_one_line_of_its_log(project, served, kind):
    assert lock(project, served).returncode == 0
    name = MODEL if kind == "models" else SFT
    wanted = (
        ("--until", "base", "--", target(project, served, "tulu_sft"))
        if kind == "models"
        else ("--", f"results/data/{pins(project)['demo_sft'][1]}.jsonl")
    )
    fetch = ("snakemake", "--configfile", "config/hub.yaml", "-c1", *wanted)
    for state in hub.REFUSALS:
        served.find(kind, name).state = state
        assert command(project, served, *fetch).returncode != 0
        text = "\n".join(f.read_text() for f in project.glob(f"logs/{'base' if kind == 'models' else 'data'}/**/*.log"))
        assert (text.count("error: "), text.count("Traceback")) == (1, 0), text
        assert name in text
    served.find(kind, name).state = "open"
    shutil.rmtree(project / "hf", ignore_errors=True)
    assert command(project, served, *fetch).returncode == 0, logs(project)
