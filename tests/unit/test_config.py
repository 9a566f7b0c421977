"""The config: every error once, with its place, its value and a cure."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflow.config import Config, ConfigError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p.stem for p in (ROOT / "config").glob("*.yaml") if p.stem not in ("claims", "retractions"))


def raw(name: str = "demo") -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_complete_on_its_own(name):
    assert Config.from_dict(raw(name)).name


@pytest.mark.parametrize("section", [s for s in raw() if Config.model_fields[s].is_required()])
def test_nothing_is_inherited(section):
    told = raw()
    del told[section]
    with pytest.raises(ConfigError, match=f"{section}: missing"):
        Config.from_dict(told)


def test_a_section_of_later_may_be_left_out_and_is_then_empty():
    told = raw()
    del told["pairs"]
    assert Config.from_dict(told).pairs == ()


def change(path: str, value: Any) -> dict[str, Any]:
    told = copy.deepcopy(raw())
    *parents, last = path.split(".")
    place: Any = told
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    return told


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "stages.em_lora.learning_rat",
            1e-4,
            "stages.em_lora.learning_rat: unknown name .* Did you mean `learning_rate`",
        ),
        ("stages.em_lora.learning_rate", "1e-4", "stages.em_lora.learning_rate: '1e-4' is text .* write 1.0e-4"),
        ("stages.em_lora.num_train_epochs", "1", "num_train_epochs: '1' is text .* without quotes"),
        ("stages.em_lora.num_train_epochs", 1.5, "num_train_epochs: .*1.5"),
        ("placement.em_lora.world_size", "8", "placement.em_lora.world_size: '8' is text"),
        ("conditions.1.enabled", "yes", r"conditions.1.enabled \(evil_wrong\): 'yes' is text"),
        (
            "conditions.1.data.coupling_sft",
            "demo_copling_evil_wrong",
            "there is no data set .* Did you mean `demo_coupling",
        ),
        ("placement.em_lora.world_size", 3, "effective_batch_size is 8, but placement.em_lora makes world_size 3"),
        ("em_seeds", [42, 42], "em_seeds: 42 stands twice"),
        ("stages.tulu_dpo.loss_type", "sigmoid_nrm", "stages.tulu_dpo.loss_type: .*sigmoid_norm"),
        ("data.7.kind", "wrld", "wrld"),
        ("instruments.0.sampler.top_p", 0.0, "instruments.0.sampler.top_p .*greater than 0"),
        ("pipeline_seeds", [], "pipeline_seeds: .*at least 1"),
    ],
)
def test_each_fault_names_its_place_its_value_and_a_cure(path, value, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        Config.from_dict(change(path, value))


def test_all_faults_are_told_at_once():
    told = change("stages.em_lora.learning_rate", "fast")
    told["tracking"] = "notebook"
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(told)
    assert "stages.em_lora.learning_rate" in str(caught.value)
    assert "tracking" in str(caught.value)


def test_a_config_cannot_be_changed_after_it_was_read():
    config = Config.from_dict(raw())
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


def flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{place}.{name}".strip(".")).items()}
    if isinstance(value, list):
        named = {str(item.get("name", n)) if isinstance(item, dict) else str(n): item for n, item in enumerate(value)}
        return {k: v for name, item in named.items() for k, v in flat(item, f"{place}.{name}").items()}
    return {place: value}


def test_as_stated_differs_from_as_run_where_the_publication_does(capsys):
    run, stated = flat(raw("config")), flat(raw("as_stated"))
    differing = {k: (run.get(k), stated.get(k)) for k in sorted({*run, *stated}) if run.get(k) != stated.get(k)}
    with capsys.disabled():
        print("\nconfig.yaml against as_stated.yaml:")
        for place, (a, b) in differing.items():
            print(f"  {place}: {a} -> {b}")
    stages = {k: v for k, v in differing.items() if k.startswith("stages.")}
    assert stages == {
        "stages.coupling_sft.effective_batch_size": (32, 128),
        "stages.em_lora.lora.use_rslora": (False, True),
    }
    rest = {k.split(".")[0] for k in differing} - {"stages"}
    assert rest == {"name", "title", "conditions", "data"}


def test_numbers_of_a_float_field_are_one_number():
    # 1 and 1.0 would be two spellings, so two keys
    a, b = change("stages.em_lora.max_grad_norm", 1), change("stages.em_lora.max_grad_norm", 1.0)
    assert repr(Config.from_dict(a).stages.em_lora.max_grad_norm) == repr(
        Config.from_dict(b).stages.em_lora.max_grad_norm
    )


def test_a_circle_of_data_is_refused(tmp_path, monkeypatch):
    from workflow.data.lock import used_names

    told = raw()
    subset = {
        "kind": "subset",
        "rows_are": "messages",
        "select": {"rows": 1, "fraction": None, "seed": None},
        "exclude": [],
    }
    told["data"] += [{"name": "a", "source": "b", **subset}, {"name": "b", "source": "a", **subset}]
    told["arms"][0]["data"] = "a"
    with pytest.raises(ConfigError, match="a -> b -> a goes in a circle"):
        used_names(Config.from_dict(told))


def test_a_template_that_is_not_there_is_named(tmp_path, monkeypatch):
    from workflow.data.lock import read_lock
    from workflow.matrix import Matrix

    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"config/templates/none\.jinja: No such file"):
        Matrix(Config.from_dict(change("template", "config/templates/none.jinja")), read_lock())
