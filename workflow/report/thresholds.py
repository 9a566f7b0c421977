"""The rate of misaligned answers under other thresholds than the ones that it is reported at."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from workflow.evals.metrics import COHERENT_ABOVE, MISALIGNED_BELOW
from workflow.matrix import Node
from workflow.report.evals import grouped
from workflow.report.page import Block, Mark, Section, Table, number, stat, text
from workflow.report.study import Study
from workflow.stats.samples import EM_SEED, PIPELINE_SEED, FloatArray, Sample, sample
from workflow.stats.thresholds import ALIGNED, COHERENT, classes, is_sensitive, joint_rates
from workflow.store import out_dir, read_jsonl

Runs = dict[tuple[int, int | None], FloatArray]  # (pipeline seed, EM seed) -> joint rates by threshold
DEFAULT = (ALIGNED.index(MISALIGNED_BELOW), COHERENT.index(COHERENT_ABOVE))
GRID = list(product(range(len(ALIGNED)), range(len(COHERENT))))
THRESHOLD_NOTES = (
    "Share of all completions, mean over runs; a completion without a score counts as not misaligned. Descriptive: no "
    "threshold is chosen by it.",
    "Conditioning on coherence is after treatment: it compares completions that the treatment has selected.",
)


def thresholds_section(study: Study) -> Section:
    """The rate of misaligned answers under other thresholds, and which comparisons with the first condition depend on
    them."""
    blocks: list[Block] = []
    for instrument in study.config.instruments:
        rates: dict[str, Runs] = {}
        for (condition, phase, arm), members in grouped(study, "judge", instrument.name).items():
            if phase == "post_em" and arm == study.arms[0]:
                rates[condition] = {(n.cell.pipeline_seed, n.cell.em_seed): _rates(n) for n, _ in members if n.cell}
        ordered = {name: rates[name] for name in study.conditions if name in rates}
        if len(ordered) > 1:
            blocks += [_sensitivity(instrument.name, ordered), _grid(instrument.name, ordered)]
    return Section("thresholds", "Other thresholds", tuple(blocks))


def _rates(node: Node) -> FloatArray:
    rows = [row["outcomes"] for row in read_jsonl(out_dir(node.record) / "judgments.jsonl")]
    aligned, coherent = ([r[scale]["value"] for r in rows] for scale in ("aligned", "coherent"))
    return joint_rates(np.array(aligned, dtype=np.float64), np.array(coherent, dtype=np.float64))  # None is NaN


def _sample(by_run: Runs, i: int, j: int) -> Sample:
    """One value per EM seed of a single pipeline seed, else one per pipeline seed."""
    seeds = tuple(dict.fromkeys(p for p, _ in by_run))
    if len(seeds) == 1:
        return sample([rates[i, j] for rates in by_run.values()], EM_SEED)
    means = [float(np.mean([rates[i, j] for (p, _), rates in by_run.items() if p == seed])) for seed in seeds]
    return sample(means, PIPELINE_SEED, seeds)


def _sensitivity(instrument: str, rates: Mapping[str, Runs]) -> Table:
    by_place = {(i, j): {name: _sample(by_run, i, j) for name, by_run in rates.items()} for i, j in GRID}
    reference, *others = rates
    rows = []
    for name in others:
        row: dict[str, Any] = {"pair": f"{name} − {reference}", "class": "no common unit"}
        if len({by_place[DEFAULT][n].unit for n in (name, reference)}) == 1:
            two = {place: {n: cells[n] for n in (name, reference)} for place, cells in by_place.items()}
            class_of = classes(two, name, reference)
            row |= {"class": class_of[DEFAULT]}
            row["alike"] = f"{sum(word == class_of[DEFAULT] for word in class_of.values())} of {len(GRID)}"
            row["verdict"] = Mark("threshold-sensitive" if is_sensitive(class_of, DEFAULT) else "", "open")
        rows.append(row)
    columns = (
        text("more misaligned?", "pair"),
        text("at the thresholds reported", "class"),
        stat("thresholds of that class", "alike", str),
        text("", "verdict"),
    )
    notes = (
        "By the 95% interval of the difference in the joint rate. Threshold-sensitive: a neighbour of the thresholds "
        "reported is of another class.",
        *THRESHOLD_NOTES,
    )
    caption = f"Misaligned of all, against {reference} ({instrument})"
    return Table(f"thresholds-{instrument}", caption, columns, rows, notes, instrument)


def _grid(instrument: str, rates: Mapping[str, Runs]) -> Table:
    rows = [
        {"condition": name, "aligned": f"< {below:g}"}
        | {str(j): float(np.mean([r[i, j] for r in by_run.values()])) for j in range(len(COHERENT))}
        for name, by_run in rates.items()
        for i, below in enumerate(ALIGNED)
    ]
    heads = ["any coherence" if t is None else f"coherent > {t:g}" for t in COHERENT]
    columns = (text("condition"), text("aligned"), *(number(h, str(j), "fraction") for j, h in enumerate(heads)))
    caption = f"Joint rate by threshold ({instrument})"
    return Table(f"thresholds-grid-{instrument}", caption, columns, rows, THRESHOLD_NOTES, instrument, is_folded=True)
