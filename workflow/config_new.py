"""Start a config of one's own from one that is shipped, with a JSON Schema beside it for editors."""

import json
import re
from pathlib import Path

from workflow.config import Config
from workflow.config_load import MAIN_CONFIG
from workflow.errors import ConfigError, did_you_mean
from workflow.files import write_atomic

TEMPLATES = {"demo": "config/demo.yaml", "real": "config/real.yaml", "full": MAIN_CONFIG}
SCHEMA = "config/schema.json"


def new_config(name: str, template: str) -> Path:
    """Write config/NAME.yaml, complete and with the template's comments, and the schema that it names.

    Raises:
        ConfigError: no name, a config of that name is there already, or there is no such template.
    """
    if template not in TEMPLATES:
        hint = did_you_mean(template, TEMPLATES)
        raise ConfigError(f"--template {template}: there are {', '.join(TEMPLATES)}.{hint}")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", name):
        raise ConfigError(f"{name}: a name is small letters, digits and _, and begins with a letter. Choose another.")
    path = Path(f"config/{name}.yaml")
    if path.exists():
        raise ConfigError(f"{path}: is there already. Choose another name.")
    text = Path(TEMPLATES[template]).read_text()
    text = re.sub(r"^name: .*", f"name: {name}", text, count=1, flags=re.M)
    text = re.sub(r"^title: .*", f'title: "{name}"', text, count=1, flags=re.M)
    write_atomic(SCHEMA, json.dumps(schema(), indent=1) + "\n", sync=False)
    write_atomic(path, f"# yaml-language-server: $schema={Path(SCHEMA).name}\n{text}", sync=False)
    return path


def schema() -> dict[str, object]:
    """The JSON Schema of a config: names, types, ranges and choices. What holds between fields `matrix` checks."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
