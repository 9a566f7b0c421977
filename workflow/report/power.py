"""What could have been seen, and what more seeds or completions would buy for their cost."""

from collections.abc import Sequence

import numpy as np

from workflow.report.blocks import DASH, Block, Cells, Section, show, table
from workflow.report.comparisons import Measured
from workflow.report.facts import gpu_seconds
from workflow.report.study import Place, Study
from workflow.stats import blocked
from workflow.stats.power import Design, DesignRow, PerLevel, minimum_detectable, power_table
from workflow.stats.samples import PIPELINE_SEED, NotTestable
from workflow.store import Record

BEFORE = ("coupling_sft", "tulu_sft", "dpo_reference", "tulu_dpo")  # what makes a checkpoint; the base is shared by all


def power_section(metrics: Sequence[Measured], study: Study | None = None) -> Section:
    blocks: list[Block] = [_detectable(metrics)] if metrics else []
    for place in study.places_of("alignment") if study else ():
        assert study is not None
        blocks += _designs(study, place)
    return Section("power", "What could have been seen", tuple(blocks))


def _detectable(metrics: Sequence[Measured]) -> Block:
    """The least difference that this design finds, at the spread that it met."""
    rows: list[Cells] = []
    for m in metrics:
        sds = [cell.sd for cell in m.cells.values() if cell.sd is not None]
        n = min(cell.n for cell in m.cells.values())
        unit = next(iter(m.cells.values())).unit
        if n < 2 or not sds:
            rows.append([m.title, str(n), unit, *[DASH] * 5])
            continue
        sd = _replicate_sd(m, sds)
        pairs = max(1, len(m.cells) * (len(m.cells) - 1) // 2)
        one, every = (minimum_detectable(n, 0.05 / tests, unit, max(2, len(m.cells))) for tests in (1, pairs))
        numbers = (
            show(sd, m.unit),
            f"{one:.2f}",
            show(one * sd, m.unit),
            f"{every:.2f}",
            show(every * sd, m.unit),
        )
        rows.append([m.title, str(n), unit, *(m.cell(text) for text in numbers)])
    header = (
        "metric",
        "n per condition",
        "unit",
        "SD",
        "least difference found, in SDs",
        "as a difference",
        "in SDs, Bonferroni over the pairs",
        "as a difference",
    )
    notes = (
        "Two-sided t test of two conditions, power .8 at .05. SD: the median between EM seeds; of pipeline seeds, "
        "which are blocks, the residual SD of checkpoint means. Of blocks by the pooled error; verdicts take the "
        "larger of it and HC3, and with few seeds need more (docs/calibration.md).",
        *(m.note for m in metrics),
    )
    return table("power-table", "Least detectable difference", header, rows, (0, 2), notes)


def _replicate_sd(m: Measured, sds: Sequence[float]) -> float:
    """Median SD between EM seeds; residual SD of checkpoint means where pipeline seeds are the replicates."""
    try:
        if next(iter(m.cells.values())).unit == PIPELINE_SEED and len(m.cells) > 1:
            return float(np.sqrt(blocked.fit(blocked.checkpoints(m.cells)).mse_resid))
    except NotTestable:
        pass
    return float(np.median(sds))


def _designs(study: Study, place: Place) -> list[Block]:
    """More EM seeds or more completions, against this design. Nothing where a component is not known: with one pipeline
    seed nobody knows what another would give, so no design with more of them has a price in precision."""
    cells = list(study.sample(study.arms[0], "post_em", place).values())
    known = [c for c in cells if c.sd is not None and c.sampling_se and c.n_pipeline_seeds == 1]
    costs = _costs(study, place)
    if len(known) < 2 or len(known) < len(cells) or costs is None:
        return []
    price, what = costs
    completions = _completions(study, place)
    sampling = float(np.mean([np.mean(np.square(c.sampling_se)) for c in known]))
    between = float(np.mean([c.spread**2 for c in known]))
    variances = PerLevel(0.0, max(0.0, between - sampling), sampling * completions)
    n = min(c.n for c in known)
    designs = [
        Design(1, e, k)
        for e, k in (
            (n, completions),
            (2 * n, completions),
            (4 * n, completions),
            (n, 2 * completions),
            (n, 8 * completions),
        )
    ]
    rows = [_row(row, place) for row in power_table(designs, variances, price, len(known))]
    header = (
        "EM seeds",
        "completions of a run",
        "SE of a difference",
        "least detectable difference",
        what,
        f"more {what}",
        "detectable difference saved per 1 of it",
    )
    notes = (
        "First line: this design. Variances are this run's own: between seeds beyond sampling, and between "
        "completions of a question.",
        "With one checkpoint per condition nobody can tell what more pipeline seeds would buy; only they can "
        "carry a statement about a condition.",
        study.judge_note(place.instrument),
    )
    return [
        table(
            f"designs-{place.instrument}",
            f"What more runs would buy (alignment, {place.instrument})",
            header,
            rows,
            (),
            notes,
        )
    ]


def _row(row: DesignRow, place: Place) -> list[str]:
    d = row.design
    return [
        str(d.em_seeds),
        str(d.completions),
        show(row.se_of_difference, place.unit),
        show(row.detectable_difference, place.unit),
        f"{row.gpu_hours:.2f}",
        f"{row.extra_gpu_hours:.2f}",
        DASH if row.saved_per_gpu_hour is None else f"{row.saved_per_gpu_hour:.2f}",
    ]


def _completions(study: Study, place: Place) -> int:
    """Completions of one run."""
    return next(
        int(r["denominator"]) for r in study.rows if (r["instrument"], r["metric"]) == (place.instrument, place.metric)
    )


def _costs(study: Study, place: Place) -> tuple[PerLevel, str] | None:
    """Mean cost of one of each, from records: GPU-hours, or hours of the jobs where no GPU was used."""
    judged = {n: r for n, r in study.records.items() if n.instrument == place.instrument and n.cell is not None}
    behind = dict.fromkeys(a for j in judged for a in study.ancestors(j))
    tunes = [r for n in behind if n.stage == "em_lora" and (r := study.record(n))]
    if not tunes:
        return None
    parts: dict[str, list[Record]] = {
        "em": tunes,
        "completion": [r for n in behind if n.stage == "generate" and (r := study.record(n))] + list(judged.values()),
        "before": [r for n in behind if n.stage in BEFORE and (r := study.record(n))],
    }
    on_gpu = any(gpu_seconds(r) for found in parts.values() for r in found)

    def hours(found: Sequence[Record]) -> float:
        return sum(gpu_seconds(r) if on_gpu else float(r.observed["seconds"]) for r in found) / 3600

    checkpoints = len({(n.cell.condition, n.cell.pipeline_seed) for n in judged if n.cell})
    per_completion = hours(parts["completion"]) / (len(judged) * _completions(study, place))
    costs = PerLevel(hours(parts["before"]) / checkpoints, hours(parts["em"]) / len(parts["em"]), per_completion)
    return costs, "GPU-hours" if on_gpu else "job-hours on CPU"
