"""Which line of the config a field of a recipe comes from."""

import os
import re
from pathlib import Path

import yaml

from workflow import matrix as plan
from workflow.config import Item, Named, Place
from workflow.data.lock import LOCK, project_files
from workflow.matrix import Matrix, Node

_NULL = "tag:yaml.org,2002:null"


class Origins:
    """The composed config, whose nodes know their lines."""

    def __init__(self, matrix: Matrix):
        self._matrix = matrix
        self._data_names = {entry.name for entry in matrix.config.data}
        self._root = yaml.compose(Path(matrix.configfile).read_text(), Loader=yaml.SafeLoader)
        self._lock = Path(LOCK).read_text().splitlines() if os.path.exists(LOCK) else []

    def of(self, node: Node, field: str) -> list[str]:
        """`config/demo.yaml:97` and the like for a field of the node's recipe: `params.sampler.top_p`, `data`."""
        if field == "version":
            return self._version(node.stage)
        if field.startswith("params.said."):
            return [field.removeprefix("params.said.")]  # a file of what the report says
        lines = self._lines(node.place(field))
        if field == "data" and node.stage != "report":
            name = self._matrix.entry(node.recipe.data)
            files = project_files(self._matrix.config.data_entry(name)) if name in self._data_names else []
            return [*lines, *self._lines(("data", Named(name))), *files, *self._pin(name)]
        return lines

    def _lines(self, path: Place) -> list[str]:
        """The line of the place, or of the innermost section around it that the config spells out."""
        found, line = self._root, None
        for step in path:
            found, at = _descend(found, step)
            if found is None:
                break
            line = at
        return [] if line is None else [f"{self._matrix.configfile}:{line + 1}"]

    def _pin(self, name: str) -> list[str]:
        return [f"{LOCK}:{n}" for n, line in enumerate(self._lock, 1) if line.split("\t", 1)[0] == name]

    def _version(self, stage: str) -> list[str]:
        file = Path(plan.__file__)
        pattern = re.compile(rf'\s+"{re.escape(stage)}": Stage\(')
        lines = file.read_text().splitlines()
        return [f"{os.path.relpath(file)}:{n}" for n, line in enumerate(lines, 1) if pattern.match(line)][:1]


def _descend(node: yaml.Node | None, step: str | Named | Item) -> tuple[yaml.Node | None, int]:
    """The node one step further down, and the line on which it (or its name) stands."""
    if isinstance(node, yaml.MappingNode) and isinstance(step, str):
        for name, value in node.value:
            if name.value == step:
                return value, name.start_mark.line
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if isinstance(step, Item) and isinstance(item, yaml.ScalarNode) and item.value == str(step.value):
                return item, item.start_mark.line
            if isinstance(step, Named) and isinstance(item, yaml.MappingNode):
                name, _ = _descend(item, "name")
                if isinstance(name, yaml.ScalarNode) and step.name == (None if name.tag == _NULL else name.value):
                    return item, item.start_mark.line
    return None, 0
