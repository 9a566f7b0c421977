"""Every command is documented where a user looks: in its help, with an example, and in the README."""

import json
import re
import shutil
from pathlib import Path

import jsonschema
import pytest
import typer.main
import yaml

from workflow.__main__ import app, main
from workflow.config import Config
from workflow.config_load import choose_config
from workflow.config_new import TEMPLATES, new_config

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_an_example_and_stands_in_the_readme(name):
    assert re.search(rf"Example: matrix {name}\b", COMMANDS[name].help)
    assert re.search(rf"matrix {name}\b", (ROOT / "README.md").read_text())


def test_every_rule_and_make_target_is_told_of():
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.M):
        assert f"make {target}" in text, target


def test_every_config_is_told_of():
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "config").glob("*.yaml"):
        assert path.stem in text, path


# --- which config a command is about --------------------------------------------------------------------------------


def plan_of(folder: Path, name: str) -> Path:
    """A config, and what a run of it leaves in the results."""
    config = folder / f"config/{name}.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text("name: x\n")
    plans = folder / "results/.plan"
    plans.mkdir(parents=True, exist_ok=True)
    (plans / f"{name}.0123456789ab.json").write_text(json.dumps({"config": str(config), "records": [], "data": []}))
    return config


def test_without_configfile_it_is_the_one_that_the_results_were_made_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert choose_config("") == "config/config.yaml"
    plan_of(tmp_path, "demo")
    assert choose_config("") == "config/demo.yaml"
    assert capsys.readouterr().err.startswith("config: config/demo.yaml, which these results were made with")
    assert choose_config("config/other.yaml") == "config/other.yaml"
    real = plan_of(tmp_path, "real")
    assert choose_config("") == "config/config.yaml", "two configs: none is guessed"
    real.unlink()
    (tmp_path / "results/.plan/odd.json").write_text('["no plan"]')
    assert choose_config("") == "config/demo.yaml"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("status", "--configfile", "config/dmo.yaml"), "config/dmo.yaml: No such file or directory. Did you mean"),
        (("status", "--configfile", "config"), "config: Is a directory"),
        (("status", "--configfile", "LICENSE"), "LICENSE"),
        (("status", "evil_wrong.p42.e43"), "no cell evil_wrong.p42.e43 in config/demo.yaml. Did you mean"),
        (("status", "--paths", "evil"), "no cell evil in config/demo.yaml."),
        (("diff", "evil_wrong.p42", "good_wrng.p42"), "Did you mean `good_wrong.p42`"),
        (("why", "evil_wrong.p42", "tulu_sf"), "Did you mean `tulu_sft`"),
        (("accept", "em_lor", "--reason", "r"), "Did you mean `em_lora`"),
        (("lineage", "evil_wrong.p42.e43"), "Did you mean `evil_wrong.p42.e42`"),
        (("retract", "em_lora/evil_wrong.p42.e42", "--reason", "r"), "STAGE/CELL/KEY"),
        (
            ("retract", "em_lora/x/26b52cac-c7f970ccc757", "--reason", "r"),
            "neither in the plan of config/demo.yaml nor",
        ),
        (("redo", "em_lora/x/26b52cac-c7f970ccc757", "--reason", "r"), "em_lora/x/26b52cac-c7f970ccc757"),
        (("redo", "judge", "--reason", "r"), "STAGE/CELL/KEY"),
        (("adopt", "nowhere"), "nowhere"),
        (("export", "evil_wrong.p4", "out"), "evil_wrong.p4"),
        (("compare", "nobody/1", "nobody/2"), "nobody/1"),
        (("verify", "--against", "nowhere.seal"), "nowhere.seal"),
        (("show", "evil_wrong.p4"), "evil_wrong.p4"),
        (("new", "A b"), "A b"),
        (("new", "demo"), "config/demo.yaml"),
        (("new", "x", "--template", "dmo"), "Did you mean `demo`"),
    ],
)
def test_a_wrong_argument_ends_in_one_line_with_what_where_and_cure(args, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MATRIX_CONFIG", "config/demo.yaml")
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_version_and_completion(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"matrix \d+\.\d+\S*\n", capsys.readouterr().out)
    monkeypatch.setenv("_MATRIX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "matrix stat")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == ["status"]


# --- a config of one's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_new_config_is_complete_and_its_schema_holds(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    path = new_config("mine", template)
    assert Config.load("config/mine.yaml").name == "mine"
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n# ")
    checker = jsonschema.Draft202012Validator(json.loads(Path("config/schema.json").read_text()))
    raw = yaml.safe_load(text)
    assert not list(checker.iter_errors(raw))
    for wrong in ({"conditons": []}, {"em_seeds": ["42"]}, {"overlap": "ignore"}, {"em_seeds": [-1]}):
        assert list(checker.iter_errors({**raw, **wrong})), wrong
