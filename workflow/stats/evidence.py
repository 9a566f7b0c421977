"""What claims are judged on: samples by phase, metric and instrument, and what is known of their items and machines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from workflow.stats.rounding import Printed
from workflow.stats.samples import FloatArray, NotTestable, Sample
from workflow.stats.table import NoSharedSeed, check_scores, samples
from workflow.stats.tests import change

Where = tuple[str, str, str]  # phase (or CHANGE), metric, instrument
Cells = Mapping[Where, Mapping[str, Sample]]
Run = tuple[str, int, int | None]  # condition, pipeline seed, EM seed (None before EM)
BoolArray = npt.NDArray[np.bool_]
CHANGE = "change"  # after EM minus before it, paired by checkpoint


class Missing(ValueError):
    """The evidence does not hold what a claim needs; its message is the reason that a reader gets."""


@dataclass(frozen=True)
class SingleRun:
    """One run set against replicates: its condition, its protocol and its value by metric."""

    name: str
    condition: str
    em_seed: int
    protocol: Mapping[str, int]
    values: Mapping[str, Printed]
    source: str


@dataclass(frozen=True, eq=False)
class Items:
    """Right answers of every run to the items of one test, after EM or before it.

    Attributes:
        ids: shape (items,). correct: run -> bool (items,), in the order of ids.
        contaminated: condition -> ids in its training data; None where nobody has looked.
    """

    ids: tuple[str, ...]
    correct: Mapping[Run, BoolArray]
    contaminated: Mapping[str, frozenset[str] | None]

    def __post_init__(self) -> None:
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("an item twice in one test")
        if bad := [run for run, right in self.correct.items() if right.shape != (len(self.ids),)]:
            raise ValueError(f"{bad[0]}: not the {len(self.ids)} items of the test")

    def clean(self, conditions: Iterable[str]) -> BoolArray:
        """Which items are in the training data of none of the conditions, shape (items,)."""
        seen: set[str] = set().union(*(self.contaminated.get(c) or () for c in conditions))
        return np.array([id not in seen for id in self.ids])

    def unknown(self, conditions: Iterable[str]) -> list[str]:
        """Conditions in whose training data nobody has looked."""
        return [c for c in conditions if self.contaminated.get(c) is None]

    def accuracy(self, mask: BoolArray) -> dict[Run, float]:
        """Each run's share of right answers to the items of the mask."""
        return {run: float(right[mask].mean()) for run, right in self.correct.items()}

    def n_pipeline_seeds(self, condition: str) -> int:
        return len({p for c, p, _ in self.correct if c == condition})

    def by_replicate(self, condition: str, mask: BoolArray) -> FloatArray:
        """Share of right answers by item, shape (replicates, items): a replicate is a pipeline seed, its EM seeds
        averaged; with a single pipeline seed, an EM seed."""
        runs = {run[1:]: right[mask] for run, right in self.correct.items() if run[0] == condition}
        if self.n_pipeline_seeds(condition) == 1:
            return np.array(list(runs.values()), dtype=np.float64)
        seeds = dict.fromkeys(p for p, _ in runs)
        return np.array([np.mean([right for (p, _), right in runs.items() if p == seed], axis=0) for seed in seeds])


@dataclass(frozen=True, eq=False)
class Evidence:
    """
    Attributes:
        cells: cells[phase, metric, instrument][condition].
        singles: named runs of a claim of kind one_run.
        problems: why a metric that was measured has no samples.
        items: right answers by item, for metrics that are a share of them.
        contamination: metric -> (conditions, what is known), where test items are known to be in the training data and
            no scores by item are there to leave them out.
        machines: field (gpu, environment, code) -> condition -> its values.
        table: the scores, to be computed again on fewer items.
    """

    source: str
    cells: Cells
    singles: Mapping[str, SingleRun] = field(default_factory=dict)
    problems: Mapping[Where, str] = field(default_factory=dict)
    items: Mapping[Where, Items] = field(default_factory=dict)
    contamination: Mapping[str, tuple[frozenset[str], str]] = field(default_factory=dict)
    machines: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    table: pd.DataFrame | None = None

    def where(self, phase: str, metric: str, instrument: str | None) -> Where:
        """The one place that holds the metric in this phase, or Missing."""

        def is_meant(where: Where) -> bool:
            return where[:2] == (phase, metric) and instrument in (None, where[2])

        places = [where for where in self.cells if is_meant(where)]
        if len(places) > 1:
            raise Missing(f"{metric} is measured by {', '.join(w[2] for w in places)}: the claim must name one")
        if not places:
            absent = f"no {_in_words(phase)} of {metric}" + (f" by {instrument}" if instrument else "")
            raise Missing(next((problem for where, problem in self.problems.items() if is_meant(where)), absent))
        return places[0]

    def samples(self, where: Where, conditions: Sequence[str]) -> dict[str, Sample]:
        """The samples of these conditions, or Missing with the names of those that are not there."""
        here = self.cells[where]
        if absent := [condition for condition in conditions if condition not in here]:
            raise Missing(f"no {_in_words(where[0])} of {where[1]} for {', '.join(absent)}")
        return {condition: here[condition] for condition in conditions}

    def rests_on(self, where: Where, conditions: Sequence[str]) -> tuple[str, ...]:
        """Names of the artifacts behind these samples; the source where the table names none."""
        here = self.cells[where]
        return tuple(dict.fromkeys(r for c in conditions if c in here for r in here[c].records)) or (self.source,)

    def on_clean_items(self, where: Where, conditions: Sequence[str]) -> "Evidence":
        """The same scores over the items that are in the training data of none of the conditions."""
        assert self.table is not None  # items come with the scores that they are the items of
        is_meant = (self.table["metric"] == where[1]) & (self.table["instrument"] == where[2])
        table = self.table[is_meant].copy()
        for place, items in self.items.items():
            if place[1:] == where[1:]:
                accuracy = items.accuracy(items.clean(conditions))
                runs = table[["condition", "pipeline_seed", "em_seed", "value"]].itertuples(index=False)
                table["value"] = [accuracy.get((c, p, None if pd.isna(e) else e), value) for c, p, e, value in runs]
        return replace(self, cells={**self.cells, **from_scores(table).cells}, items={}, contamination={})


def from_scores(
    scores: pd.DataFrame,
    singles: Sequence[SingleRun] = (),
    source: str = "scores of this run",
    items: Mapping[Where, Items] | None = None,
    machines: Mapping[str, Mapping[str, frozenset[str]]] | None = None,
) -> Evidence:
    """From the long scores table."""
    table = check_scores(scores)
    cells: dict[Where, Mapping[str, Sample]] = {}
    problems: dict[Where, str] = {}
    for where in dict.fromkeys(zip(table["phase"], table["metric"], table["instrument"], strict=True)):
        try:
            cells[where] = samples(table, where[1], where[0], where[2])
        except NoSharedSeed as problem:
            problems[where] = str(problem)
    named = {run.name: run for run in singles}
    return Evidence(source, cells | changes(cells), named, problems, items or {}, {}, machines or {}, table)


def changes(cells: Cells) -> dict[Where, Mapping[str, Sample]]:
    """By metric and instrument, the change of every condition that was measured before and after EM."""
    by_place: dict[Where, Mapping[str, Sample]] = {}
    for (phase, metric, instrument), after in cells.items():
        before = cells.get(("pre_em", metric, instrument))
        if phase == "post_em" and before is not None:
            pairs = {name: _change(s, before[name]) for name, s in after.items() if name in before}
            by_place[CHANGE, metric, instrument] = {name: s for name, s in pairs.items() if s is not None}
    return by_place


def _change(after: Sample, before: Sample) -> Sample | None:
    try:
        return change(after, before)
    except NotTestable:
        return None


def _in_words(phase: str) -> str:
    return "pair of values before and after EM" if phase == CHANGE else f"{phase} values"
