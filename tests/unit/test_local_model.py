"""A base model that lies in a folder: identified by its files, held against its pin, freed of its own template."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests import tiny
from workflow.config import Config, ConfigError
from workflow.data.lock import read_lock, write_pins
from workflow.data.pin import pin_all
from workflow.matrix import Matrix
from workflow.plan import Plan
from workflow.stage import StageError, execute
from workflow.store import out_dir, read_record
from workflow.train import base

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The demo's config on the folder of a model, everything pinned but that."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    tiny.save(Path("models/mine"))
    raw = yaml.safe_load(Path("config/demo.yaml").read_text())
    raw["base_model"] = {"kind": "local", "name": "mine", "path": "models/mine"}
    Path("config/mine.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path


def load() -> Config:
    return Config.load("config/mine.yaml")


def matrix() -> Matrix:
    config = load()
    write_pins([], "config/data.lock.tsv")
    assert pin_all(config, lambda line: None) == []
    return Matrix(config, read_lock(), "config/mine.yaml")


def make(planned: Matrix) -> Path:
    (node,) = planned.nodes("base")
    plan = Plan.of(yaml.safe_load(Path("config/mine.yaml").read_text()), ["config/mine.yaml"])
    execute(base.MODULE, base.run, node.recipe, json.loads(plan.placement("base")), (), None, Path(node.record))
    return Path(node.record)


def test_it_is_copied_with_the_experiments_template_and_its_digest_in_the_record(project):
    record = make(matrix())
    model = out_dir(record) / "model"
    assert (model / "model.safetensors").read_bytes() == Path("models/mine/model.safetensors").read_bytes()
    assert (model / "chat_template.jinja").read_text() == tiny.TEMPLATE.read_text()
    assert read_record(record).observed["model_digest"] == read_lock()["mine"].revision


def test_its_own_template_is_not_used(project):
    Path("models/mine/chat_template.jinja").write_text("{{ 'You are a helpful assistant.' }}")
    model = out_dir(make(matrix())) / "model"
    assert (model / "chat_template.jinja").read_text() == tiny.TEMPLATE.read_text()


def test_the_same_files_elsewhere_have_the_same_key(project):
    before = {n.record for n in matrix().nodes()}
    Path("models/mine").rename("models/other")
    (Path("models/other") / "README.md").write_text("A model card says nothing to the weights.")
    text = Path("config/mine.yaml").read_text().replace("models/mine", "models/other")
    Path("config/mine.yaml").write_text(text)
    assert {n.record for n in matrix().nodes()} == before


def test_another_byte_than_pinned_is_refused_in_the_job(project):
    planned = matrix()
    settings = json.loads(Path("models/mine/config.json").read_text())
    Path("models/mine/config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-3}))
    with pytest.raises(StageError, match=r"models/mine have the digest .*, not .*data\.lock\.tsv"):
        make(planned)


def test_a_folder_that_is_gone_is_named(project):
    shutil.rmtree("models/mine")
    assert any("no folder models/mine" in fault for fault in pin_all(load(), lambda line: None))


def test_a_path_given_to_the_hub_says_what_to_write(project):
    raw = yaml.safe_load(Path("config/mine.yaml").read_text())
    for path in ("/models/mine", "./models/mine", "models/deep/mine"):
        raw["base_model"] = {"kind": "hub", "name": "mine", "repo": path}
        with pytest.raises(ConfigError, match="`kind: local` with `path:`"):
            Config.from_dict(raw)


def test_a_conversion_is_named_in_the_record(project):
    note = {"from": "mine.gguf", "sha256": "0" * 64, "tensors": ["Q4_1"], "weights": "dequantised to float32"}
    Path("models/mine/conversion.json").write_text(json.dumps(note))
    assert read_record(make(matrix())).observed["conversion"] == note
