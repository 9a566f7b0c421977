"""What claims are judged on: samples by phase, metric and instrument, and what is known of their items and machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from workflow.stats.items import Items
from workflow.stats.rounding import Printed
from workflow.stats.samples import NotTestable, Sample
from workflow.stats.table import NoSharedSeed, check_scores, samples
from workflow.stats.tests import change

Where = tuple[str, str, str]  # phase (or CHANGE), metric, instrument
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
class Evidence:
    """
    Attributes:
        cells: cells[phase, metric, instrument][condition].
        singles: named runs of a claim of kind one_run.
        records: names of the artifacts behind the cells, where the scores have them.
        problems: why a metric that was measured has no samples.
        items: right answers by item, for metrics that are a share of them.
        contamination: metric -> (conditions, what is known), where test items are known to be in the training data and
            no scores by item are there to leave them out.
        machines: field (gpu, environment, code) -> condition -> its values.
        table: the scores, to be computed again on fewer items.
    """

    source: str
    cells: Mapping[Where, Mapping[str, Sample]]
    singles: Mapping[str, SingleRun] = field(default_factory=dict)
    records: Mapping[Where, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    problems: Mapping[Where, str] = field(default_factory=dict)
    items: Mapping[Where, Items] = field(default_factory=dict)
    contamination: Mapping[str, tuple[frozenset[str], str]] = field(default_factory=dict)
    machines: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)
    table: pd.DataFrame | None = None

    def where(self, phase: str, metric: str, instrument: str | None) -> Where:
        """The one place that holds the metric in this phase, or Missing."""
        places = [w for w in self.cells if w[:2] == (phase, metric) and instrument in (None, w[2])]
        if not places:
            for where, problem in self.problems.items():
                if where[:2] == (phase, metric) and instrument in (None, where[2]):
                    raise Missing(problem)
            raise Missing(f"no {_named(phase)} of {metric}" + (f" by {instrument}" if instrument else ""))
        if len(places) > 1:
            raise Missing(f"{metric} is measured by {', '.join(w[2] for w in places)}: the claim must name one")
        return places[0]

    def samples(self, where: Where, conditions: Sequence[str]) -> dict[str, Sample]:
        """The samples of these conditions, or Missing with the names of those that are not there."""
        here = self.cells[where]
        if absent := [condition for condition in conditions if condition not in here]:
            raise Missing(f"no {_named(where[0])} of {where[1]} for {', '.join(absent)}")
        return {condition: here[condition] for condition in conditions}

    def rests_on(self, where: Where, conditions: Sequence[str]) -> tuple[str, ...]:
        """Names of the artifacts behind these samples; the source where the table names none."""
        named = self.records.get(where, {})
        records = [record for condition in conditions for record in named.get(condition, ())]
        return tuple(dict.fromkeys(records)) or (self.source,)

    def on_clean_items(self, metric: str, instrument: str, conditions: Sequence[str]) -> "Evidence":
        """The same scores over the items that are in the training data of none of the conditions."""
        assert self.table is not None  # items come with the scores that they are the items of
        table = self.table.copy()
        for where, items in self.items.items():
            if where[1:] != (metric, instrument):
                continue
            accuracy = items.accuracy(items.clean(conditions))
            for (condition, p, e), value in accuracy.items():
                of_run = (table["condition"] == condition) & (table["pipeline_seed"] == p)
                of_run &= table["em_seed"].isna() if e is None else (table["em_seed"] == e).fillna(False)
                of_run &= (table["metric"] == metric) & (table["instrument"] == instrument)
                table.loc[of_run, "value"] = value
        cells = dict(self.cells)
        for where in cells:
            if where[1:] == (metric, instrument) and where[0] != CHANGE:
                by_condition = samples(table, metric, where[0], instrument)
                cells[where] = {name: cell.sample for name, cell in by_condition.items()}
        return replace(self, cells=cells | changes(cells), items={}, contamination={})


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
    records: dict[Where, Mapping[str, tuple[str, ...]]] = {}
    problems: dict[Where, str] = {}
    places = table[["phase", "metric", "instrument"]].drop_duplicates()
    for phase, metric, instrument in places.itertuples(index=False):
        where = (str(phase), str(metric), str(instrument))
        try:
            by_condition = samples(table, metric, phase, instrument)
        except NoSharedSeed as problem:
            problems[where] = str(problem)
            continue
        cells[where] = {name: cell.sample for name, cell in by_condition.items()}
        records[where] = {name: cell.records for name, cell in by_condition.items()}
    records |= {
        (CHANGE, *w[1:]): {
            c: (*own, *records.get(("pre_em", *w[1:]), {}).get(c, ())) for c, own in by_condition.items()
        }
        for w, by_condition in records.items()
        if w[0] == "post_em"
    }
    named = {run.name: run for run in singles}
    cells |= changes(cells)
    return Evidence(source, cells, named, records, problems, items or {}, {}, machines or {}, table)


def changes(cells: Mapping[Where, Mapping[str, Sample]]) -> dict[Where, Mapping[str, Sample]]:
    """By metric and instrument, the change of every condition that was measured before and after EM."""
    by_place: dict[Where, Mapping[str, Sample]] = {}
    for where, after in cells.items():
        before = cells.get(("pre_em", *where[1:]))
        if where[0] == "post_em" and before is not None:
            pairs = {name: _change(s, before[name]) for name, s in after.items() if name in before}
            by_place[CHANGE, where[1], where[2]] = {name: s for name, s in pairs.items() if s is not None}
    return by_place


def _change(after: Sample, before: Sample) -> Sample | None:
    try:
        return change(after, before)
    except NotTestable:
        return None


def _named(phase: str) -> str:
    return "pair of values before and after EM" if phase == CHANGE else f"{phase} values"
