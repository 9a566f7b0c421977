"""The one long scores table, and the samples that tests are made from.

One row per cell, instrument and metric. The unit of replication is chosen here, once: with one pipeline seed the EM
seeds are replicates of one checkpoint, and say so; with several, a replicate is a pipeline seed and its value is the
mean over its EM seeds, the same ones in every checkpoint: counts that differ by condition make the tests wrong (.08 to
.14 for .05). The two are never in one sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workflow.stats.samples import EM_SEED, PIPELINE_SEED, FloatArray, NotTestable, Sample, sample

COLUMNS = (
    "condition",
    "pipeline_seed",
    "em_seed",
    "phase",
    "instrument",
    "metric",
    "value",
    "unit",
    "n_items",
    "sampling_se",
)
IDENTITY = ["condition", "pipeline_seed", "em_seed", "phase", "instrument", "metric"]
PHASES = ("pre_em", "post_em")


class NoSharedSeed(ValueError):
    """Conditions with one pipeline seed each, and not the same one: no unit of replication holds for all."""


@dataclass(frozen=True)
class CellSample:
    """The replicates of one condition for one metric, and what they are."""

    condition: str
    values: tuple[float, ...]
    unit: str
    measure_unit: str
    pipeline_seeds: tuple[int, ...]
    em_seeds_per_pipeline_seed: tuple[int, ...]
    sampling_se: tuple[float, ...]  # of each row used; empty if any row lacks it
    left_out_pipeline_seeds: tuple[int, ...]
    left_out_em_seeds: tuple[int, ...]  # not in every checkpoint, so not in the means of checkpoints
    records: tuple[str, ...]  # artifacts the values rest on, where the table names them

    @property
    def sample(self) -> Sample:
        blocks = self.pipeline_seeds if self.unit == PIPELINE_SEED else ()
        return sample(self.values, self.unit, len(self.pipeline_seeds), blocks)


def check_scores(rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table with its types, or a ValueError that says which row breaks which promise. `record` is optional."""
    frame = pd.DataFrame(rows).copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if frame.empty:
        raise ValueError("scores: no rows")
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise ValueError(f"scores: no column {', '.join(missing)}")
    for column in ("value", "sampling_se"):
        frame[column] = pd.to_numeric(frame[column]).astype(float)
    for column in ("pipeline_seed", "em_seed", "n_items"):
        frame[column] = pd.to_numeric(frame[column]).astype("Int64")
    for column in ("condition", "instrument", "metric", "unit"):
        _refuse(frame, frame[column].isna(), f"{column} is empty")
    _refuse(frame, ~np.isfinite(frame["value"]), "value is NaN or infinite; a missing cell has no row")
    _refuse(frame, frame["sampling_se"] < 0, "sampling_se is negative")
    _refuse(frame, frame["pipeline_seed"].isna(), "pipeline_seed is empty")
    _refuse(frame, ~frame["phase"].isin(PHASES), f"phase is not one of {', '.join(PHASES)}")
    _refuse(frame, (frame["phase"] == "pre_em") != frame["em_seed"].isna(), "em_seed is empty before EM and only there")
    _refuse(frame, frame.duplicated(IDENTITY, keep=False), "twice the same cell, instrument and metric")
    units = frame.groupby(["instrument", "metric"])["unit"].nunique(dropna=False)
    mixed = units[units > 1]
    if len(mixed):
        raise ValueError(f"scores: more than one unit for {mixed.index[0]}")
    return frame.reset_index(drop=True)


def samples(
    scores: pd.DataFrame, metric: str, phase: str = "post_em", instrument: str | None = None
) -> dict[str, CellSample]:
    """Per condition, in the table's order; empty when the metric was not measured in this phase.

    Where some condition has a single pipeline seed, all are reduced to the pipeline seeds that every condition has, so
    that one unit holds for the whole table; what that leaves out is named.
    """
    chosen = _choose(scores, metric, phase, instrument)
    by_condition = {str(name): group for name, group in chosen.groupby("condition", sort=False)}
    if not by_condition:
        return {}
    seeds = {name: _pipeline_seeds(group) for name, group in by_condition.items()}
    if phase == "pre_em":
        return {name: _sample(name, group, seeds[name], seeds[name], None) for name, group in by_condition.items()}
    if min(len(present) for present in seeds.values()) > 1:
        em_seeds = common_em_seeds(chosen)
        return {name: _sample(name, group, seeds[name], seeds[name], em_seeds) for name, group in by_condition.items()}
    common = set.intersection(*(set(present) for present in seeds.values()))
    if not common:
        raise NoSharedSeed(f"{metric}: conditions with one pipeline seed share none: {seeds}")
    keep = {name: tuple(seed for seed in present if seed in common) for name, present in seeds.items()}
    return {name: _sample(name, group, keep[name], seeds[name], None) for name, group in by_condition.items()}


def common_em_seeds(chosen: pd.DataFrame) -> tuple[int, ...]:
    """The EM seeds that every checkpoint of the rows has, in the order of the first.

    Raises:
        NoSharedSeed: there is none.
    """
    by_checkpoint = [list(group) for _, group in chosen.groupby(["condition", "pipeline_seed"], sort=False)["em_seed"]]
    common = set.intersection(*(set(seeds) for seeds in by_checkpoint))
    if not common:
        raise NoSharedSeed("checkpoints share no EM seed, so their means are not over the same ones")
    return tuple(int(seed) for seed in by_checkpoint[0] if seed in common)


def runs(scores: pd.DataFrame, metric: str, instrument: str | None = None) -> FloatArray:
    """Runs after EM, shape (conditions, pipeline seeds, EM seeds), over the EM seeds that every checkpoint has.

    Raises:
        NotTestable: a condition lacks a pipeline seed that another has.
    """
    chosen = _choose(scores, metric, "post_em", instrument)
    kept = chosen[chosen["em_seed"].isin(common_em_seeds(chosen))]
    wide = kept.pivot(index=["condition", "pipeline_seed"], columns="em_seed", values="value")
    conditions, seeds = (wide.index.get_level_values(level).unique() for level in (0, 1))
    if len(wide) != len(conditions) * len(seeds):
        raise NotTestable("not every condition has every pipeline seed: the omnibus tests need them all")
    return np.asarray(wide, dtype=np.float64).reshape(len(conditions), len(seeds), -1)


def _choose(scores: pd.DataFrame, metric: str, phase: str, instrument: str | None) -> pd.DataFrame:
    """The rows of one metric by one instrument."""
    chosen = scores[(scores["metric"] == metric) & (scores["phase"] == phase)]
    if instrument is not None:
        chosen = chosen[chosen["instrument"] == instrument]
    instruments = sorted(chosen["instrument"].unique())
    if len(instruments) > 1:
        raise ValueError(f"{metric}: measured by {', '.join(instruments)}; say which")
    return chosen


def _sample(
    name: str, group: pd.DataFrame, keep: tuple[int, ...], present: tuple[int, ...], em_seeds: tuple[int, ...] | None
) -> CellSample:
    """em_seeds: those to average within each checkpoint; None where a row is a replicate as it is."""
    used = group[group["pipeline_seed"].isin(keep)]
    dropped: tuple[int, ...] = ()
    values, unit = used["value"], PIPELINE_SEED if used["em_seed"].isna().all() else EM_SEED
    if em_seeds is not None:
        dropped = tuple(int(seed) for seed in used["em_seed"].unique() if seed not in em_seeds)
        used = used[used["em_seed"].isin(em_seeds)]
        values, unit = used.groupby("pipeline_seed", sort=False)["value"].mean(), PIPELINE_SEED
    sampling = used["sampling_se"]
    return CellSample(
        condition=name,
        values=tuple(float(v) for v in values),
        unit=unit,
        measure_unit=str(used["unit"].iloc[0]),
        pipeline_seeds=keep,
        em_seeds_per_pipeline_seed=tuple(int(n) for n in used.groupby("pipeline_seed", sort=False)["em_seed"].count()),
        sampling_se=() if sampling.isna().any() else tuple(float(s) for s in sampling),
        left_out_pipeline_seeds=tuple(seed for seed in present if seed not in keep),
        left_out_em_seeds=dropped,
        records=tuple(str(r) for r in used["record"].dropna()) if "record" in used else (),
    )


def _pipeline_seeds(group: pd.DataFrame) -> tuple[int, ...]:
    return tuple(int(seed) for seed in group["pipeline_seed"].unique())


def _refuse(frame: pd.DataFrame, bad: Any, why: str) -> None:
    rows = frame[bad.fillna(False).astype(bool)]
    if len(rows):
        where = rows[IDENTITY].iloc[0].to_dict()
        raise ValueError(f"scores: {why} ({len(rows)} rows; the first is {where})")
