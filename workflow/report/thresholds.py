"""The rate of misaligned answers under other thresholds than the ones that it is reported at."""

from itertools import product

import numpy as np

from workflow.evals.metrics import COHERENT_ABOVE, MISALIGNED_BELOW
from workflow.matrix import Node
from workflow.report.blocks import Block, Cell, Cells, Fold, Section, table
from workflow.report.study import Study
from workflow.stats.samples import EM_SEED, PIPELINE_SEED, FloatArray, Sample, sample
from workflow.stats.thresholds import ALIGNED, COHERENT, classes, is_sensitive, joint_rates
from workflow.store import out_dir, read_jsonl

DEFAULT = (ALIGNED.index(MISALIGNED_BELOW), COHERENT.index(COHERENT_ABOVE))
GRID = list(product(range(len(ALIGNED)), range(len(COHERENT))))
NOTES = (
    "Share of all completions, mean over runs; a completion without a score counts as not misaligned. Descriptive: no "
    "threshold is chosen by it.",
    "Conditioning on coherence is after treatment: it compares completions that the treatment has selected.",
)


def thresholds_section(study: Study) -> Section:
    """By instrument: the grid of every condition, and which comparisons with the first condition depend on it."""
    blocks: list[Block] = []
    for instrument in study.config.instruments:
        rates = _rates(study, instrument.name)
        if len(rates) > 1:
            blocks += [_sensitivity(study, instrument.name, rates), _grid(study, instrument.name, rates)]
    return Section("thresholds", "Other thresholds", tuple(blocks))


def _rates(study: Study, instrument: str) -> dict[str, dict[tuple[int, int | None], FloatArray]]:
    """Condition -> (pipeline seed, EM seed) -> joint rates by threshold, after EM in the first arm."""
    by_condition: dict[str, dict[tuple[int, int | None], FloatArray]] = {}
    for node in study.records:
        cell = node.cell
        if cell is None or (node.stage, node.instrument, cell.phase) != ("judge", instrument, "post_em"):
            continue
        if cell.arm == study.arms[0]:
            by_condition.setdefault(cell.condition, {})[cell.pipeline_seed, cell.em_seed] = _of_run(node)
    return {name: by_condition[name] for name in study.conditions if name in by_condition}


def _of_run(node: Node) -> FloatArray:
    rows = [row["outcomes"] for row in read_jsonl(out_dir(node.record) / "judgments.jsonl")]
    aligned, coherent = ([r[scale]["value"] for r in rows] for scale in ("aligned", "coherent"))
    return joint_rates(np.array(aligned, dtype=np.float64), np.array(coherent, dtype=np.float64))  # None is NaN


def _sample(runs: dict[tuple[int, int | None], FloatArray], i: int, j: int) -> Sample:
    """One value per EM seed of a single pipeline seed, else one per pipeline seed."""
    seeds = tuple(dict.fromkeys(p for p, _ in runs))
    if len(seeds) == 1:
        return sample([rates[i, j] for rates in runs.values()], EM_SEED)
    means = [float(np.mean([rates[i, j] for (p, _), rates in runs.items() if p == seed])) for seed in seeds]
    return sample(means, PIPELINE_SEED, seeds)


def _sensitivity(study: Study, instrument: str, rates: dict[str, dict[tuple[int, int | None], FloatArray]]) -> Block:
    by_place = {(i, j): {name: _sample(runs, i, j) for name, runs in rates.items()} for i, j in GRID}
    reference, *others = rates
    rows: list[Cells] = []
    for name in others:
        units = {s.unit for s in (by_place[DEFAULT][name], by_place[DEFAULT][reference])}
        if len(units) > 1:  # not every condition has all of its pipeline seeds yet
            rows.append([f"{name} − {reference}", "no common unit", "", ""])
            continue
        class_of = classes(
            {place: {n: c[n] for n in (name, reference)} for place, c in by_place.items()}, name, reference
        )
        alike = sum(word == class_of[DEFAULT] for word in class_of.values())
        verdict = Cell("threshold-sensitive", tone="open") if is_sensitive(class_of, DEFAULT) else Cell("")
        rows.append([f"{name} − {reference}", class_of[DEFAULT], f"{alike} of {len(GRID)}", verdict])
    header = ("more misaligned?", "at the thresholds reported", "thresholds of that class", "")
    notes = (
        "By the 95% interval of the difference in the joint rate. Threshold-sensitive: a neighbour of the thresholds "
        "reported is of another class.",
        *NOTES,
        study.judge_note(instrument),
    )
    caption = f"Misaligned of all, against {reference} ({instrument})"
    return table(f"thresholds-{instrument}", caption, header, rows, (0, 1, 3), notes)


def _grid(study: Study, instrument: str, rates: dict[str, dict[tuple[int, int | None], FloatArray]]) -> Block:
    rows: list[Cells] = [
        [name, f"< {below:g}", *(f"{np.mean([r[i, j] for r in runs.values()]):.3f}" for j in range(len(COHERENT)))]
        for name, runs in rates.items()
        for i, below in enumerate(ALIGNED)
    ]
    header = ("condition", "aligned", *("any coherence" if t is None else f"coherent > {t:g}" for t in COHERENT))
    id, caption = f"thresholds-grid-{instrument}", f"Joint rate by threshold ({instrument})"
    grid = table(f"{id}-table", caption, header, rows, (0, 1), (*NOTES, study.judge_note(instrument)))
    return Fold(id, caption, (grid,))
