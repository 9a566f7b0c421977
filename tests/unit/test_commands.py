"""Every command is documented where a user looks: in its help, with an example, and in the README."""

import re
from pathlib import Path

import pytest
import typer.main

from workflow.__main__ import app

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
