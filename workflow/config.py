"""The config: read, put together from workflow/sections.py and checked while the Snakefile is read."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from workflow.config_load import check_values, read_yaml
from workflow.errors import ConfigError, did_you_mean
from workflow.sections import (
    Arc,
    Arm,
    Condition,
    Coupling,
    Data,
    HubModel,
    Instrument,
    LmEval,
    LocalModel,
    Name,
    OverlapAllowed,
    Pairs,
    Placement,
    ProjectPath,
    Prompts,
    Questions,
    Replicate,
    Section,
    Seed,
    Stages,
    Subset,
    ToyModel,
    Waiver,
)


class Config(Section):
    name: Name
    title: Annotated[str, Field(max_length=300)]
    note: str = Field(description="a sentence that the report prints under its title")
    data_root: ProjectPath
    base_model: Annotated[HubModel | LocalModel | ToyModel, Field(discriminator="kind")]
    template: ProjectPath
    conditions: tuple[Condition, ...] = Field(min_length=1)
    pipeline_seeds: tuple[Seed, ...] = Field(min_length=1)
    em_seeds: tuple[Seed, ...]
    arms: tuple[Arm, ...] = Field(min_length=1)
    replicates: tuple[Replicate, ...]
    overlap: Literal["refuse", "report"] = Field(description="a training set that holds questions of an evaluation set")
    overlap_allowed: tuple[OverlapAllowed, ...] = Field(description="pairs that `overlap: refuse` lets pass")
    balance: Literal["refuse", "report"] = Field(
        description="coupling sets that differ in more than persona and answers"
    )
    waivers: tuple[Waiver, ...]
    data: tuple[Data, ...]
    stages: Stages
    arc: tuple[Arc, ...]
    instruments: tuple[Instrument, ...]
    lm_eval: tuple[LmEval, ...]
    pairs: tuple[Pairs, ...] = ()
    placement: Placement
    tracking: Literal["none", "wandb", "trackio"]

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Config":
        """Check a config as Snakemake or YAML gives it.

        Raises:
            ConfigError: every fault, each with its place, its value and a cure.
        """
        check_values(raw)
        try:
            # Through JSON, since only there a list may stand for a tuple while strings still are no numbers.
            config = cls.model_validate_json(json.dumps(raw))
        except ValidationError as error:
            lines = [_explain(fault, raw) for fault in error.errors()]
            raise ConfigError("the config cannot be used:\n" + "\n".join(f"  {line}" for line in lines)) from None
        _check_names(config)
        _check_batches(config)
        return config

    @classmethod
    def load(cls, path: str | Path) -> "Config":
        raw = read_yaml(path)
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: not a mapping of names to values.")
        try:
            return cls.from_dict(raw)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def data_entry(self, name: str) -> Any:
        return next(d for d in self.data if d.name == name)


def _explain(fault: Any, raw: dict[str, Any]) -> str:
    """One line for one of pydantic's faults: place, value, cure."""
    union_tags = {"file", "url", "hub", "subset", "coupling", "questions", "prompts", "world", "toy", "local"}
    path = [p for i, p in enumerate(fault["loc"]) if not (p in union_tags and i and fault["loc"][i - 1] != "data_root")]
    place = ".".join(str(p) for p in path) or "config"
    named = _entry_name(path, raw)
    where = f"{place}{named}"
    value = fault.get("input")
    if fault["type"] == "missing":
        return f"{where}: missing. Write it; every config is complete, nothing is inherited."
    if fault["type"] == "extra_forbidden":
        hint = did_you_mean(str(path[-1]), _field_names())
        return f"{where}: unknown name (value {_short(value)}). Remove it or correct the spelling.{hint}"
    if fault["type"] in ("int_type", "float_type", "bool_type") and isinstance(value, str):
        hint = " YAML reads 1e-4 as text: write 1.0e-4." if "e" in value.lower() else " Write it without quotes."
        return f"{where}: {value!r} is text where a {fault['type'].split('_')[0]} is needed.{hint}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')} (value {_short(value)})."


def _short(value: Any) -> str:
    text = re.sub(r"://[^/\s@]*@", "://***@", repr(value))  # no password of an address in a log
    return text if len(text) <= 200 else f"{text[:197]}..."


def _entry_name(path: list[Any], raw: Any) -> str:
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            break
        if isinstance(part, int) and isinstance(raw, dict) and raw.get("name"):
            return f" ({raw['name']})"
    return ""


def _field_names() -> set[str]:
    found: set[str] = set()
    pending = [Section]
    while pending:
        section = pending.pop()
        found.update(section.model_fields)
        pending.extend(section.__subclasses__())
    return found


def _check_names(config: Config) -> None:
    """Every name that is used is defined, once."""
    entries: tuple[Any, ...] = config.data  # the union's members all have a name; mypy sees their base only
    names = [d.name for d in entries]
    for what, values in (
        ("data", names),
        ("conditions", [c.name for c in config.conditions]),
        ("pipeline_seeds", list(config.pipeline_seeds)),
        ("em_seeds", list(config.em_seeds)),
        ("arms", [a.name for a in config.arms]),
        (
            "arc, instruments and lm_eval",
            [n.name for part in (config.arc, config.instruments, config.lm_eval) for n in part],  # type: ignore[attr-defined]
        ),
    ):
        twice = sorted({str(v) for v in values if values.count(v) > 1})  # type: ignore[arg-type]
        if twice:
            raise ConfigError(f"{what}: {', '.join(twice)} stands twice. Remove one.")
    for use in uses(config):
        _check_defined(use.spell(), use.data, names)
    for n, pair in enumerate(config.overlap_allowed):
        _check_defined(f"overlap_allowed.{n}.training", pair.training, names)
        _check_defined(f"overlap_allowed.{n}.evaluation", pair.evaluation, names)
    for d in config.data:
        for source in sources(d):
            _check_defined(f"data ({d.name})", source, names)


def _check_defined(place: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ConfigError(f"{place}: there is no data set `{name}` under `data:`.{did_you_mean(name, names)}")


class Named(NamedTuple):
    """A step in a path through the config: the entry of a list that has this name."""

    name: str | None


class Item(NamedTuple):
    """A step in a path through the config: the item of a list that is this number."""

    value: int


Place = tuple[str | Named | Item, ...]


@dataclass(frozen=True)
class Use:
    """One use of a data set: by which stage, where the config says so, and whether that part is enabled."""

    stage: str
    data: str
    place: Place
    enabled: bool = True
    condition: str | None = None

    @property
    def role(self) -> Literal["training", "evaluation", "prompts"]:
        if self.stage in ("arc", "generate", "lm_eval", "pairs"):
            return "evaluation"
        return "prompts" if self.stage == "judge" else "training"

    def spell(self) -> str:
        """`conditions (evil_wrong).data.tulu_sft`: the place as messages write it."""
        text = ""
        for step in self.place:
            text += f" ({step.name})" if isinstance(step, Named) else f".{step}" if text else str(step)
        return text


def uses(config: Config) -> list[Use]:
    """List every use of a data set that the config names, in the order of the stages."""
    found = []
    if isinstance(config.base_model, ToyModel):
        found.append(Use("base", config.base_model.text, ("base_model", "text")))
    for c in config.conditions:
        for stage, name in c.data.model_dump().items():
            if name is not None:
                found.append(Use(stage, name, ("conditions", Named(c.name), "data", stage), c.enabled, c.name))
    for arm in config.arms:
        found.append(Use("em_lora", arm.data, ("arms", Named(arm.name), "data"), bool(config.em_seeds)))
    found += [Use("arc", a.data, ("arc", Named(a.name), "data")) for a in config.arc]
    found += [Use("lm_eval", e.data, ("lm_eval", Named(e.name), "data"), e.enabled) for e in config.lm_eval]
    found += [Use("pairs", p.data, ("pairs", Named(p.name), "data")) for p in config.pairs]
    for i in config.instruments:
        found.append(Use("generate", i.data, ("instruments", Named(i.name), "data")))
        found.append(Use("judge", i.judge.prompts, ("instruments", Named(i.name), "judge", "prompts")))
        for j in i.panel:
            found.append(Use("judge", j.prompts, ("instruments", Named(i.name), "panel")))
    return found


def sources(entry: Any) -> tuple[str, ...]:
    """Names of the data entries that an entry is built from, in a fixed order."""
    if isinstance(entry, Coupling):
        return (entry.questions, *entry.exclude)
    if isinstance(entry, Subset):
        return (entry.source, *entry.exclude)
    if isinstance(entry, Questions | Prompts) and "/" not in entry.source:
        return (entry.source,)
    return ()


def _check_batches(config: Config) -> None:
    """The placement must multiply out to the effective batch: the fault that retracted an experiment like this one."""
    for stage in Stages.model_fields:
        declared = getattr(config.stages, stage).effective_batch_size
        placed = getattr(config.placement, stage)
        rows = placed.per_device_train_batch_size or 1  # a token budget divides any rows, on each process as many
        per_step = placed.world_size * rows
        if declared % per_step:
            raise ConfigError(
                f"stages.{stage}.effective_batch_size is {declared}, but placement.{stage} makes world_size "
                f"{placed.world_size} x per_device_train_batch_size {rows} = {per_step} "
                f"rows at a time, which does not divide it. Change the placement."
            )
