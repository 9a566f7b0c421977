"""Read YAML that people write; refuse duplicate names, bombs and values that no config may hold, with their place."""

import json
import math
import os
import sys
import unicodedata
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from workflow.errors import ConfigError, did_you_mean

LARGEST_FILE = 1_000_000  # bytes
LARGEST_TREE = 100_000  # values, with every alias written out
DEEPEST = 30
LARGEST_INTEGER = 2**63 - 1


MAIN_CONFIG = "config/config.yaml"


def choose_config(given: str) -> str:
    """The config that a command is about: the one given, else the only one that the results were made with."""
    if given:
        return given
    plans = Path("results/.plan").glob("*.json")  # written by every run; a file of another shape names no config
    configs = {os.path.relpath(path) for plan in plans if (path := _config_of(plan)) and os.path.isfile(path)}
    if len(configs) != 1 or MAIN_CONFIG in configs:
        return MAIN_CONFIG
    chosen = configs.pop()
    print(f"config: {chosen}, which these results were made with; --configfile names another", file=sys.stderr)
    return chosen


def _config_of(plan: Path) -> str | None:
    try:
        config = json.loads(plan.read_bytes())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return config if isinstance(config, str) else None


class _Loader(yaml.SafeLoader):
    """Builds plain values; refuses a name that stands twice in one mapping, and merge keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError(f"line {line}: `<<` is not read; a config is complete and inherits nothing.")
            key: Any = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str):
                raise ConfigError(
                    f"line {line}: the name {key_node.value!r:.60} is read as {type(key).__name__}; put it in quotes."
                )
            if key in lines:
                raise ConfigError(f"line {line}: `{key}` stands twice (first on line {lines[key]}). Remove one.")
            lines[key] = line
        return super().construct_mapping(node, deep)  # type: ignore[no-untyped-call]


def read_yaml(path: str | Path) -> Any:
    """The value in a YAML file.

    Raises:
        ConfigError: it cannot be read, is no YAML, names something twice, or is larger or deeper than a config can be.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"{path}: larger than {LARGEST_FILE:,} bytes, so no config.")
        text = content.decode("utf-8")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(str(path)) else f"{path}, {error}") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8. Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested more than {DEEPEST} levels deep.") from None
    except (OSError, ValueError) as error:  # a date that is none, an integer of 5,000 digits
        reason = error.strerror if isinstance(error, OSError) else str(error)
        near = did_you_mean(str(path), map(str, Path(path).parent.glob("*.yaml")))
        raise ConfigError(f"{path}: {reason}.{near}") from None


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark else problem


def _check_size(root: yaml.Node) -> None:
    """Refuse what would grow beyond any config once aliases are written out (a "billion laughs"), or holds itself."""
    sizes: dict[int, tuple[int, int]] = {}  # node -> values below and levels
    open_nodes: set[int] = set()
    pending: list[tuple[yaml.Node, bool]] = [(root, False)]
    while pending:
        node, done = pending.pop()
        children = _children(node)
        if done:
            open_nodes.discard(id(node))
            size = 1 + sum(sizes[id(child)][0] for child in children)
            depth = 1 + max((sizes[id(child)][1] for child in children), default=0)
            if size > LARGEST_TREE or depth > DEEPEST:
                limit = f"{LARGEST_TREE:,} values" if size > LARGEST_TREE else f"{DEEPEST} levels"
                raise ConfigError(f"line {node.start_mark.line + 1}: more than {limit}, with aliases written out.")
            sizes[id(node)] = (size, depth)
        elif id(node) in open_nodes:
            raise ConfigError(f"line {node.start_mark.line + 1}: an alias that holds itself.")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            pending.append((node, True))
            pending += [(child, False) for child in children]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def check_values(raw: Any) -> None:
    """Refuse values that no field may hold, whatever its type, as YAML or the command line gives them.

    Raises:
        ConfigError: NaN, an infinity, minus zero, an integer of more than 64 bits, control characters or half
            characters in a text, a date, a name that is no text; with place, value and cure.
    """
    faults: list[str] = []
    pending: list[tuple[str, Any, int]] = [("", raw, 0)]
    while pending and len(faults) < 20:
        place, value, depth = pending.pop()
        if depth > DEEPEST:
            faults.append(f"{place:.200}: nested more than {DEEPEST} levels deep. Write it flatter.")
        elif isinstance(value, dict):
            for key, item in reversed(value.items()):
                if isinstance(key, str):
                    pending.append((f"{place}.{key}" if place else key, item, depth + 1))
                else:
                    faults.append(f"{place or 'config'}: the name {key!r} is no text. Put it in quotes.")
        elif isinstance(value, list | tuple):
            pending += [(f"{place}.{n}", item, depth + 1) for n, item in reversed(list(enumerate(value)))]
        elif fault := _fault(value):
            faults.append(f"{place or 'config'}: {fault}")
    if faults:
        raise ConfigError("the config cannot be used:\n" + "\n".join(f"  {fault}" for fault in faults))


def _fault(value: Any) -> str | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return f"{value} is no finite number. Write a number."
        return "-0.0 and 0.0 would be two spellings of one number. Write 0.0." if str(value) == "-0.0" else None
    if isinstance(value, int):
        return None if abs(value) <= LARGEST_INTEGER else "an integer of more than 64 bits. Write a smaller one."
    if isinstance(value, str):
        odd = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None)
        return f"the text holds {odd!a}, a control or half character. Remove it." if odd else None
    return f"{value!r:.60} is read as {type(value).__name__}. Put it in quotes, or write a number."
