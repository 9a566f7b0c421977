"""Which nodes exist. `Matrix._plan` is the whole pipeline; read that first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from workflow.config import Config, Item, Named, Place
from workflow.config_load import MAIN_CONFIG, read_yaml
from workflow.data.gates import CHECKS
from workflow.data.lock import Lock, require
from workflow.errors import ConfigError, UserError, did_you_mean
from workflow.keys import Recipe, canonical_json, hash_bytes, hash_file
from workflow.sections import Condition, MadeModel
from workflow.store import data_path, record_path

Kind = Literal["base", "train", "reference", "score", "generate", "judge", "report"]


class Stage(NamedTuple):
    """A row of the pipeline. A new stage is a row here, a module and a rule.

    Attributes:
        kind: `score` and `judge` give the numbers of the report, `reference` what a training takes beside its parents.
        version: bumped when a change to the code changes the numbers; say why beside it.
        module: what its rule runs.
    """

    kind: Kind
    version: int
    module: str


# In the order of the pipeline.
STAGES = {
    "base": Stage("base", 1, "workflow.train.base"),
    "coupling_sft": Stage("train", 1, "workflow.train.sft"),
    "tulu_sft": Stage("train", 1, "workflow.train.sft"),
    "dpo_reference": Stage("reference", 1, "workflow.train.dpo_reference"),
    "tulu_dpo": Stage("train", 1, "workflow.train.dpo"),
    "em_lora": Stage("train", 1, "workflow.train.sft"),
    "arc": Stage("score", 1, "workflow.evals.arc"),
    "generate": Stage("generate", 1, "workflow.evals.generate"),
    "judge": Stage("judge", 1, "workflow.judge.judge"),
    "lm_eval": Stage("score", 1, "workflow.evals.lm_eval"),
    "pairs": Stage("score", 1, "workflow.evals.pairs"),
    "report": Stage("report", 1, "workflow.report.report"),
}
VERSIONS = {name: stage.version for name, stage in STAGES.items()}


def stages_of(*kinds: Kind) -> tuple[str, ...]:
    """Names of the stages of these kinds, in the pipeline's order."""
    return tuple(name for name, stage in STAGES.items() if stage.kind in kinds)


TRAINING = stages_of("train")
MEASURING = stages_of("score", "judge")


class StaleKeyError(UserError, LookupError):
    """A job or target names a key that the config does not describe (any more)."""


@dataclass(frozen=True)
class Cell:
    """An entry of the matrix: `evil_wrong.p42` before EM, `evil_wrong.p42.e137` after it."""

    condition: str
    pipeline_seed: int
    arm: str | None = None
    em_seed: int | None = None

    @property
    def phase(self) -> str:
        return "pre_em" if self.em_seed is None else "post_em"

    def __str__(self) -> str:
        label = f"{self.condition}.p{self.pipeline_seed}"
        if self.em_seed is not None:
            label += f".{self.arm}" if self.arm else ""
            label += f".e{self.em_seed}"
        return label


@dataclass(frozen=True, eq=False)
class Node:
    """One stage of one cell: one recipe, one key, one record.

    Attributes:
        places: where in the config its data and parameters come from, by the longest name of a recipe's field.
        reference: DPO's reference pass. DPO's own recipe decides it, so it is no parent: neither DPO's key nor its
            links name it, and DPO is not made again when its reference is.
    """

    stage: str
    label: str
    recipe: Recipe
    parents: tuple["Node", ...] = ()
    cell: Cell | None = None
    instrument: str | None = None
    has_data: bool = True
    places: Mapping[str, Place] = field(default_factory=dict)
    reference: "Node | None" = None

    @property
    def made_from(self) -> tuple["Node", ...]:
        """All nodes that it reads: its parents, then its reference."""
        return self.parents if self.reference is None else (*self.parents, self.reference)

    def place(self, name: str) -> Place:
        """Where the config says what a field of the recipe holds: `data`, `params.sampler.top_p`, `parents`."""
        parts = name.split(".")
        for count in range(len(parts), 0, -1):
            start = self.places.get(".".join(parts[:count]))
            if start is not None:
                return (*start, *parts[count:])
        return ()

    @cached_property
    def key(self) -> str:
        return self.recipe.key

    @property
    def record(self) -> str:
        return record_path(self.stage, self.label, self.key)

    @property
    def data(self) -> list[str]:
        """The data file; none for a base model that is fetched whole."""
        return [data_path(self.recipe.data)] if self.has_data else []


class Matrix:
    """All nodes that a config describes, in the order in which they can be made."""

    def __init__(self, config: Config, pins: Lock, configfile: str = MAIN_CONFIG):
        self.config = config
        self.configfile = configfile
        self._ids = require(config, pins, configfile)
        self._nodes: dict[tuple[str, str, str], Node] = {}
        self._stages = {
            name: _canonical(getattr(config.stages, name).model_dump(exclude_defaults=True)) for name in TRAINING
        }
        self._plan()

    # --- the pipeline -----------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        base = self._base()
        for condition in self.config.conditions:
            if condition.enabled:
                for pipeline_seed in self.config.pipeline_seeds:
                    self._chain(condition, pipeline_seed, base)
        self._replicates()
        self.report = self._report()

    def _chain(self, condition: Condition, pipeline_seed: int, base: Node) -> None:
        cell = Cell(condition.name, pipeline_seed)
        model = base
        place: Place = ("conditions", Named(condition.name), "data")
        for stage in ("coupling_sft", "tulu_sft", "tulu_dpo"):
            data = getattr(condition.data, stage)
            if data is not None:
                params = {**self._stages[stage], "seed": pipeline_seed}
                seed: Place = ("pipeline_seeds", Item(pipeline_seed))
                places = {"data": (*place, stage), "params": ("stages", stage), "params.seed": seed, "parents": place}
                reference = None
                if stage == "tulu_dpo":
                    # the seed decides which pairs share a batch, and so the last bits of the numbers
                    asked = {name: params[name] for name in ("max_length", "dtype", "seed")}
                    reference = self._add("dpo_reference", cell, data, asked, (model,), places)
                model = self._add(stage, cell, data, params, (model,), places, reference=reference)
        self._evaluate(cell, (model,))
        for arm in self.config.arms:
            for em_seed in self.config.em_seeds:
                em_cell = Cell(condition.name, pipeline_seed, arm.name, em_seed)
                own = arm.model_dump(include={"max_length", "overlong"}, exclude_none=True)
                params = {**self._stages["em_lora"], **own, "seed": em_seed}
                places = {
                    "data": ("arms", Named(arm.name), "data"),
                    "params": ("stages", "em_lora"),
                    **{f"params.{field}": ("arms", Named(arm.name), field) for field in own},
                    "params.seed": ("em_seeds", Item(em_seed)),
                    "parents": place,
                }
                adapter = self._add("em_lora", em_cell, arm.data, params, (model,), places)
                self._evaluate(em_cell, (model, adapter))

    def _evaluate(self, cell: Cell, model: tuple[Node, ...]) -> None:
        for arc in self.config.arc:
            asked = arc.model_dump(exclude={"name", "data"}, exclude_defaults=True)
            self._measure("arc", cell, arc.data, asked, model, arc.name, ("arc", Named(arc.name)))
        for e in self.config.lm_eval:
            if e.enabled:
                chosen = _canonical(e.model_dump(exclude={"name", "enabled", "data"}, exclude_defaults=True))
                self._measure("lm_eval", cell, e.data, chosen, model, e.name, ("lm_eval", Named(e.name)))
        for p in self.config.pairs:
            longest = {"max_length": p.max_length}
            self._measure("pairs", cell, p.data, longest, model, p.name, ("pairs", Named(p.name)))
        for i in self.config.instruments:
            place: Place = ("instruments", Named(i.name))
            answered = i.model_dump(include={"backend", "sampler", "batch_invariant"}, exclude_defaults=True)
            completions = self._measure("generate", cell, i.data, answered, model, i.name, place)
            for judge in (i.judge, *i.panel):
                judged = judge.model_dump(exclude={"prompts"}, exclude_defaults=True)
                prompts: Place = (*place, "judge") if judge is i.judge else (*place, "panel")
                self._measure("judge", cell, judge.prompts, judged, (completions,), i.of(judge), prompts, "prompts")

    # --- nodes ------------------------------------------------------------------------------------------------------

    def _base(self) -> Node:
        model = self.config.base_model
        params = _canonical(model.model_dump(exclude={"name", "path", "text"}, exclude_defaults=True))
        params["template"] = _read(self.config.template)
        data = model.name if isinstance(model, MadeModel) else model.text
        recipe = Recipe("base", VERSIONS["base"], self._ids[data], params)
        places: dict[str, Place] = {
            "data": ("base_model", "name" if isinstance(model, MadeModel) else "text"),
            "params": ("base_model",),
            "params.template": ("template",),
        }
        return self._put(Node("base", "base", recipe, has_data=not isinstance(model, MadeModel), places=places))

    def _measure(
        self,
        stage: str,
        cell: Cell,
        data: str,
        params: dict[str, Any],
        parents: tuple[Node, ...],
        instrument: str,
        place: Place,
        data_field: str = "data",
    ) -> Node:
        places = {"data": (*place, data_field), "params": place}
        return self._add(stage, cell, data, params, parents, places, instrument)

    def _add(
        self,
        stage: str,
        cell: Cell,
        data: str,
        params: dict[str, Any],
        parents: tuple[Node, ...],
        places: Mapping[str, Place],
        instrument: str | None = None,
        reference: Node | None = None,
    ) -> Node:
        recipe = Recipe(stage, VERSIONS[stage], self._ids[data], params, tuple(p.key for p in parents))
        return self._put(Node(stage, str(cell), recipe, parents, cell, instrument, places=places, reference=reference))

    def _put(self, node: Node) -> Node:
        other = self._nodes.setdefault((node.stage, node.label, node.key), node)
        if other is not node:
            raise ConfigError(
                f"{node.instrument} and {other.instrument} measure the same thing in the same way "
                f"({node.stage}/{node.label}/{node.key}). Remove one."
            )
        return node

    def _replicates(self) -> None:
        for wish in self.config.replicates:
            originals = [n for n in self.nodes(wish.stage) if n.label == wish.cell]
            if not originals:
                raise ConfigError(f"replicates: the matrix has no {wish.stage} of a cell {wish.cell}.")
            for node in originals:
                for number in range(2, wish.up_to + 1):
                    label = f"{node.label}.r{number}"
                    self._put(replace(node, label=label, cell=None))

    def _report(self) -> Node:
        """The report is a node too: its key is over every number's key and over what is said about them."""
        parents = tuple(sorted((n for n in self.nodes() if n.stage in MEASURING), key=lambda n: n.record))
        plan = [[n.stage, n.label, n.instrument, n.key] for n in parents]
        data = hash_bytes(canonical_json(plan).encode(), "md5")
        config = self.config
        params = {
            "title": config.title,
            "note": config.note,
            "conditions": [
                c.model_dump(include={"name", "persona", "answers"})
                for c in sorted(config.conditions, key=lambda c: c.name)
                if c.enabled
            ],
            "said": {path: _said_md5(path) for path in _SAID if Path(path).is_file()},
            "checks": dict(CHECKS),  # what they find is a function of the data
            "waivers": [_canonical(w.model_dump()) for w in config.waivers],
        }
        recipe = Recipe("report", VERSIONS["report"], data, params, tuple(n.key for n in parents))
        places: dict[str, Place] = {"params": ()}
        return self._put(Node("report", config.name, recipe, parents, places=places))

    # --- look-up ----------------------------------------------------------------------------------------------------

    def nodes(self, *stages: str) -> list[Node]:
        return [n for n in self._nodes.values() if not stages or n.stage in stages]

    def cell_nodes(self, label: str) -> list[Node]:
        """The nodes of one cell.

        Raises:
            StaleKeyError: the config has no such cell.
        """
        nodes = [n for n in self._nodes.values() if n.label == label]
        if not nodes:
            labels = {n.label for n in self._nodes.values()}
            hint = did_you_mean(label, labels) or f" `matrix status` shows those of the {len(labels)} that there are."
            raise StaleKeyError(f"no cell {label} in {self.configfile}.{hint}")
        return nodes

    def ancestors(self, *nodes: Node) -> set[Node]:
        """All nodes that these are made from."""
        above: set[Node] = set()
        pending = [p for n in nodes for p in n.made_from]
        while pending:
            node = pending.pop()
            if node not in above:
                above.add(node)
                pending += node.made_from
        return above

    def descendants(self, *nodes: Node) -> set[Node]:
        """All nodes that are made again when these are."""
        below: set[Node] = set(nodes)
        for node in self._nodes.values():  # parents stand before their children
            if any(parent in below for parent in node.parents):
                below.add(node)
        return below - set(nodes)

    def node(self, stage: str, label: str, key: str) -> Node:
        """The node at that place.

        Raises:
            StaleKeyError: the config does not describe it, so a job never runs under another's key.
        """
        node = self._nodes.get((stage, label, key))
        if node is None:
            now = [n.key for n in self._nodes.values() if n.stage == stage and n.label == label]
            if now:
                told = f"the config describes {', '.join(now)} there. It changed after this was planned: plan again."
            else:
                known = sorted({n.cell.condition for n in self._nodes.values() if n.cell})
                told = f"the config has no such cell; its conditions are {', '.join(known)}."
            raise StaleKeyError(f"{stage}/{label}: key {key} is not in the matrix; {told}")
        return node

    def records(self, labels: Iterable[str] = ()) -> list[str]:
        """Paths of all records, or of all that the named cells consist of, the report left out."""
        wanted = set(labels)
        for label in wanted:
            self.cell_nodes(label)
        return [n.record for n in self._nodes.values() if not wanted or n.label in wanted]

    def entry(self, data_id: str) -> str:
        """Name of the data set with that id.

        Raises:
            StaleKeyError: no data set of the config has it (any more).
        """
        for name, found in self._ids.items():
            if found == data_id:
                return name
        raise StaleKeyError(f"no data set of {self.configfile} has the id {data_id}: plan again.")

    def data_id(self, name: str) -> str:
        return self._ids[name]


# What a report says about its numbers, beside the numbers.
_SAID = (
    "config/claims.yaml",
    "config/retractions.yaml",
    "config/accepted.yaml",
    "reference/published_table.yaml",
)


def _canonical(value: Any) -> Any:
    """Tuples as lists, as they come back from JSON."""
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items()}
    return [_canonical(v) for v in value] if isinstance(value, tuple | list) else value


def _said_md5(path: str) -> str:
    """Hash of what a YAML file says: another comment or another order of names is no other report."""
    try:
        return hash_bytes(canonical_json(read_yaml(path)).encode(), "md5")
    except (ConfigError, TypeError, ValueError):  # not what `read_yaml` reads: its own reader says why
        return hash_file(path, "md5")


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"template: {path}: {error.strerror}. Name a chat template that exists.") from None
