"""The published table, the retracted run and the published pairs, loaded from reference/ as samples."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from workflow.stats.evidence import Evidence, SingleRun, changes
from workflow.stats.rounding import Printed, Range, from_mean_and_ci, from_single, printed_p
from workflow.stats.samples import Sample

PUBLISHED = "reference/published_table.yaml"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _MeanAndCi(_Closed):
    mean: str
    ci95_half_width: str


class _Condition(_Closed):
    name: str
    post_em: dict[str, _MeanAndCi]
    pre_em: dict[str, str]


class _Metric(_Closed):
    name: str
    unit: str
    instrument: str


class _PrintedBeside(_Closed):
    name: str
    value: str
    source: str


class _Contamination(_Closed):
    metric: str
    items: int
    contaminated: int
    conditions: list[str]
    none_in: list[str]
    source: str


class _Cost(_Closed):
    gpu_hours_stated: str
    gpu_hours_measured_one_cell: str
    source: str


class _Table(_Closed):
    source: str
    n_em_seeds: int
    n_pipeline_seeds: int
    unit: str
    metrics: list[_Metric]
    conditions: list[_Condition]
    printed_beside: list[_PrintedBeside]
    contamination: list[_Contamination]
    cost: _Cost


class _Run(_Closed):
    name: str
    condition: str
    pipeline_seed: int
    em_seed: int
    protocol: dict[str, int]
    values: dict[str, str]
    source: str


class Retraction(_Closed):
    """What was withdrawn, why, and what stands in its place."""

    cell: str
    stage: str
    date: str
    what: str
    reason: str
    replaced_by: list[str]
    source: str


class _Retracted(_Closed):
    run: _Run
    replications: list[_Run]
    retraction: Retraction


@dataclass(frozen=True)
class PublishedTable:
    """Samples by metric, then condition; `printed` holds the figures printed beside the table, `contamination` by
    metric the conditions whose training data held test items, and what is known of it."""

    source: str
    post_em: Mapping[str, Mapping[str, Sample]]
    pre_em: Mapping[str, Mapping[str, Sample]]
    instruments: Mapping[str, str]
    units: Mapping[str, str]
    printed: Mapping[str, Printed]
    contamination: Mapping[str, tuple[frozenset[str], str]]
    gpu_hours_stated: float
    gpu_hours_measured_one_cell: float
    cost_source: str


@dataclass(frozen=True)
class PublishedPair:
    """One pair as the original printed it from its raw seeds; t and d are printed to two decimals, zeros dropped."""

    metric: str
    first: str
    second: str
    welch_t: float
    cohens_d_first_minus_second: float
    t_and_d_half_unit: float
    p: Range
    p_is_bound: bool
    source: str


def load_published_table(path: str | Path) -> PublishedTable:
    """reference/published_table.yaml."""
    table = _Table.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    names = [metric.name for metric in table.metrics]
    return PublishedTable(
        source=table.source,
        post_em={
            m: {
                c.name: from_mean_and_ci(c.post_em[m].mean, c.post_em[m].ci95_half_width, table.n_em_seeds, table.unit)
                for c in table.conditions
            }
            for m in names
        },
        pre_em={m: {c.name: from_single(c.pre_em[m]) for c in table.conditions} for m in names},
        instruments={metric.name: metric.instrument for metric in table.metrics},
        units={metric.name: metric.unit for metric in table.metrics},
        printed={figure.name: Printed.parse(figure.value) for figure in table.printed_beside},
        contamination={
            c.metric: (
                frozenset(c.conditions),
                f"{c.contaminated} of {c.items} test items in the training data of {', '.join(c.conditions)}, "
                f"none in that of {', '.join(c.none_in)}",
            )
            for c in table.contamination
        },
        gpu_hours_stated=float(table.cost.gpu_hours_stated),
        gpu_hours_measured_one_cell=float(table.cost.gpu_hours_measured_one_cell),
        cost_source=table.cost.source,
    )


def load_retracted(path: str | Path) -> tuple[SingleRun, list[SingleRun], Retraction]:
    """reference/retracted.yaml: the retracted run, its replications, the retraction."""
    data = _Retracted.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    return _single(data.run), [_single(run) for run in data.replications], data.retraction


def load_published_pairs(path: str | Path) -> list[PublishedPair]:
    """reference/published_pairs.csv; a p printed as 0.0 comes out as a bound."""
    with Path(path).open(encoding="utf-8", newline="") as lines:
        return [
            PublishedPair(
                metric=row["metric"],
                first=row["first"],
                second=row["second"],
                welch_t=float(row["welch_t"]),
                cohens_d_first_minus_second=float(row["cohens_d_first_minus_second"]),
                t_and_d_half_unit=0.005,
                p=printed_p(row["p"], int(row["p_decimals"])),
                p_is_bound=float(row["p"]) == 0,
                source=row["source"],
            )
            for row in csv.DictReader(lines)
        ]


def from_published(table: PublishedTable, singles: Sequence[SingleRun] = ()) -> Evidence:
    """From printed figures, with every corner of their rounding."""
    cells = {
        (phase, metric, table.instruments[metric]): by_condition
        for phase, metrics in (("post_em", table.post_em), ("pre_em", table.pre_em))
        for metric, by_condition in metrics.items()
    }
    named = {run.name: run for run in singles}
    return Evidence(table.source, cells | changes(cells), named, contamination=table.contamination)


def _single(run: _Run) -> SingleRun:
    values = {metric: Printed.parse(text) for metric, text in run.values.items()}
    return SingleRun(run.name, run.condition, run.em_seed, run.protocol, values, run.source)
