"""The one long scores table, and the samples that tests are made from.

One row per cell, instrument and metric. The unit of replication is chosen here, once: with one pipeline seed the EM
seeds are replicates of one checkpoint, and say so; with several, a replicate is a pipeline seed and its value is the
mean over its EM seeds, the same ones in every checkpoint: counts that differ by condition make the tests wrong (.08 to
.14 for .05). The two are never in one sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workflow.stats.samples import EM_SEED, PIPELINE_SEED, FloatArray, NotTestable, Sample

IDENTITY = ["condition", "pipeline_seed", "em_seed", "phase", "instrument", "metric"]
COLUMNS = (*IDENTITY, "value", "unit", "n_items", "sampling_se")
PHASES = ("pre_em", "post_em")


class NoSharedSeed(ValueError):
    """Conditions with one pipeline seed each, and not the same one: no unit of replication holds for all."""


def check_scores(rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table with its types, or a ValueError that says which row breaks which promise. `record` is optional."""
    frame = pd.DataFrame(rows).copy()
    if frame.empty:
        raise ValueError("scores: no rows")
    if missing := [column for column in COLUMNS if column not in frame.columns]:
        raise ValueError(f"scores: no column {', '.join(missing)}")
    for column in ("value", "sampling_se"):
        frame[column] = pd.to_numeric(frame[column]).astype(float)
    for column in ("pipeline_seed", "em_seed", "n_items"):
        frame[column] = pd.to_numeric(frame[column]).astype("Int64")
    units = frame.groupby(["instrument", "metric"])["unit"].transform("nunique", dropna=False)
    faults = {
        **{f"{name} is empty": frame[name].isna() for name in ("condition", "instrument", "metric", "unit")},
        "value is NaN or infinite; a missing cell has no row": ~np.isfinite(frame["value"]),
        "sampling_se is negative": frame["sampling_se"] < 0,
        "pipeline_seed is empty": frame["pipeline_seed"].isna(),
        f"phase is not one of {', '.join(PHASES)}": ~frame["phase"].isin(PHASES),
        "em_seed is empty before EM and only there": (frame["phase"] == "pre_em") != frame["em_seed"].isna(),
        "twice the same cell, instrument and metric": frame.duplicated(IDENTITY, keep=False),
        "more than one unit of a metric": units > 1,
    }
    for fault, is_bad in faults.items():
        if len(bad := frame.loc[is_bad.fillna(False).astype(bool), IDENTITY]):
            raise ValueError(f"scores: {fault} ({len(bad)} rows; the first is {bad.iloc[0].to_dict()})")
    return frame.reset_index(drop=True)


def samples(
    scores: pd.DataFrame, metric: str, phase: str = "post_em", instrument: str | None = None
) -> dict[str, Sample]:
    """Per condition, in the table's order; empty when the metric was not measured in this phase.

    Where some condition has a single pipeline seed, all are reduced to the pipeline seeds that every condition has, so
    that one unit holds for the whole table; what that leaves out is named.
    """
    chosen = _choose(scores, metric, phase, instrument)
    groups = {str(name): group for name, group in chosen.groupby("condition", sort=False)}
    seeds = {name: set(group["pipeline_seed"]) for name, group in groups.items()}
    if not groups or phase == "pre_em":
        return {name: _sample(group, PIPELINE_SEED) for name, group in groups.items()}
    if min(len(own) for own in seeds.values()) > 1:
        em_seeds = common_em_seeds(chosen)
        return {name: _sample(group, PIPELINE_SEED, em_seeds=em_seeds) for name, group in groups.items()}
    common = set.intersection(*seeds.values())
    if not common:
        listed = "; ".join(f"{name} {', '.join(map(str, sorted(own)))}" for name, own in seeds.items())
        raise NoSharedSeed(f"{metric}: conditions with one pipeline seed share none: {listed}")
    return {name: _sample(group, EM_SEED, pipeline_seeds=common) for name, group in groups.items()}


def common_em_seeds(chosen: pd.DataFrame) -> set[int]:
    """The EM seeds that every checkpoint of the rows has.

    Raises:
        NoSharedSeed: there is none.
    """
    by_checkpoint = chosen.groupby(["condition", "pipeline_seed"])["em_seed"].agg(set)
    common = set.intersection(*by_checkpoint)
    if not common:
        raise NoSharedSeed("checkpoints share no EM seed, so their means are not over the same ones")
    return common


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
    group: pd.DataFrame, unit: str, pipeline_seeds: set[int] | None = None, em_seeds: set[int] | None = None
) -> Sample:
    """One condition. em_seeds: those to average within each checkpoint; None where a row is a replicate as it is."""
    is_used = pd.Series(True, group.index)
    for column, kept in (("pipeline_seed", pipeline_seeds), ("em_seed", em_seeds)):
        is_used &= group[column].isin(kept) if kept is not None else True
    used = group[is_used]
    values = used["value"] if em_seeds is None else used.groupby("pipeline_seed", sort=False)["value"].mean()
    left_out = []
    for what, column, where in (("pipeline", "pipeline_seed", "condition"), ("EM", "em_seed", "checkpoint")):
        if gone := [seed for seed in group[column].dropna().unique() if seed not in set(used[column])]:
            left_out.append(f"{what} seeds {', '.join(map(str, gone))}, which not every {where} has")
    return Sample(
        values.to_numpy(dtype=np.float64),
        unit,
        tuple(int(seed) for seed in used["pipeline_seed"].unique()) if unit == PIPELINE_SEED else (),
        runs=int(used["em_seed"].count()),
        sampling_se=() if used["sampling_se"].isna().any() else tuple(used["sampling_se"]),
        left_out="; ".join(left_out),
        records=tuple(used["record"].dropna()) if "record" in used else (),
    )
