"""Noise: sampling error beside the spread of seeds, blocks, one run against its replicates, and power."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from workflow.report.outside import gpu_seconds
from workflow.report.page import (
    Block,
    Mark,
    Prose,
    Section,
    Table,
    ends,
    number,
    p_value,
    ranged,
    show,
    stat,
    text,
    whole,
)
from workflow.report.study import Place, Study, cell_page, numbers_link, title_of
from workflow.report.tests import Measured
from workflow.stats import blocked
from workflow.stats.power import Design, PerLevel, minimum_detectable, power_table
from workflow.stats.rounding import Range
from workflow.stats.samples import NotTestable, beside_seeds, sample
from workflow.stats.table import NoSharedSeed, runs
from workflow.stats.tests import SingleValue, single_value, within_to_between
from workflow.store import Record

BEFORE = ("coupling_sft", "tulu_sft", "dpo_reference", "tulu_dpo")  # what makes a checkpoint; the base is shared by all


# --- spread ---------------------------------------------------------------------------------------------------------


def spread_section(study: Study, metrics: Sequence[Measured]) -> Section:
    """Sampling error beside the spread of seeds, and the spread of conditions in units of it."""
    blocks: list[Block] = []
    for arm in study.arms:
        for place in study.places_of("alignment", "coherence"):
            rows = []
            for name, cell in study.sample(arm, "post_em", place).items():
                row: dict[str, Any] = {"condition": name, "n": cell.n}
                if cell.sd is not None and cell.sampling_se:
                    row |= {"sd": cell.sd, **vars(beside_seeds(cell, cell.sampling_se))}
                rows.append({**row, "href": numbers_link(arm, "post_em", place, name)})
            columns = (
                text("condition"),
                number("SD between seeds", "sd", place.unit),
                number("sampling SE of one run's mean", "sampling_se_of_one_run", place.unit),
                number("SD beyond sampling", "sd_beyond_sampling", place.unit),
                stat("share of the variance from sampling", "share_of_variance_from_sampling", "{:.0%}".format),
                whole("n"),
            )
            notes = (
                "Sampling SE: other completions of the same questions (questions fixed), root mean square over runs. "
                "Where it is as large as the SD between seeds, the seeds show no effect of their own.",
            )
            id = f"sampling-{arm or 'main'}-{place.instrument}-{place.metric}"
            blocks.append(Table(id, title_of(study, arm, place), columns, rows, notes, place.instrument))
    return Section("sampling", "Sampling error beside the spread of seeds", (*blocks, *ratio_tables(metrics)))


def ratio_tables(metrics: Sequence[Measured]) -> list[Block]:
    """How far conditions lie apart in units of their seeds' spread."""
    rows = []
    for m in metrics:
        row: dict[str, Any] = {"metric": m.title, "conditions": len(m.cells), "href": m.href}
        try:
            found = within_to_between(m.cells)
        except ValueError:  # one condition, one seed, or no spread: there is no ratio
            rows.append(row)
            continue
        row |= {"range": show(found.range_of_means.value, m.unit), "sd": show(found.median_sd.value, m.unit)}
        rows.append({**row, "ratio": found.ratio_range_over_median_sd, "unit": m.replicate})
    columns = (
        text("metric"),
        stat("range of means", "range", str),
        stat("median SD between seeds", "sd", str),
        stat("range / median SD", "ratio", unsigned),
        whole("conditions"),
        text("unit"),
    )
    return [Table("ratio", "Between conditions, in units of the spread within them", columns, rows)] if rows else []


def unsigned(value: Range) -> str:
    return ranged(value).replace("+", "")


def blocks_section(study: Study) -> Section:
    """With several pipeline seeds: omnibus tests with the seed as a block."""
    blocks: list[Block] = []
    frame, arm = study.frame(study.arms[0]), study.arms[0]
    for place in study.places_of("alignment", "arc") if len(study.config.pipeline_seeds) > 1 else ():
        caption = title_of(study, arm, place)
        assert frame is not None  # or there were no places
        try:
            values = runs(frame, place.metric, place.instrument)
            tests = blocked.omnibus(values)
        except (NotTestable, NoSharedSeed) as reason:
            blocks.append(Prose(f"{caption}: no omnibus test, {reason}."))
            continue
        rows = [{**vars(f), "dfs": f"{f.df1}, {f.df2}"} for f in tests]
        columns = (
            text("term", "name"),
            stat("F", "f", "{:.2f}".format),
            stat("df", "dfs", str),
            stat("p", "p", p_value),
            ends("variance over error, 95% CI", "ratio95", "ratio"),
        )
        conditions, seeds, em_seeds = values.shape
        permuted = blocked.permutation_p(values.mean(axis=2))
        notes = (
            f"{conditions} conditions x {seeds} pipeline seeds, {em_seeds} EM seeds each. Condition and seed are "
            f"tested against condition x seed; permuted within pipeline seeds p {permuted:.3f}.",
            "Whether pipeline seeds matter decides nothing: they are blocks either way.",
        )
        id = f"blocks-{place.instrument}-{place.metric}"
        blocks.append(Table(id, caption, columns, rows, notes, place.instrument))
    return Section("blocks", "Pipeline seeds as blocks", tuple(blocks))


# --- one run against its replicates ---------------------------------------------------------------------------------


class Extreme(NamedTuple):
    """A run, and what it is among its siblings."""

    condition: str
    cell: str
    result: SingleValue
    siblings: list[float]


def extremes(study: Study, arm: str | None, place: Place) -> list[Extreme]:
    """Per condition the run that lies furthest from its siblings."""
    found = []
    for name in study.conditions:
        here = study.values(place.instrument, place.metric, "post_em", arm, name)
        tried = []
        for i, row in enumerate(here):
            others = [other["value"] for j, other in enumerate(here) if j != i]
            try:
                result = single_value(row["value"], sample(others)) if len(others) > 1 else None
            except NotTestable:
                continue
            if result is not None:
                tried.append(Extreme(name, row["cell"], result, others))
        if tried:
            found.append(max(tried, key=lambda e: abs(e.result.prediction_t.value)))
    return found


def outlier_section(study: Study, figures: Sequence[Block]) -> Section:
    blocks: list[Block] = list(figures)
    for arm in study.arms:
        for place in study.places_of("alignment", "arc"):
            rows = [_outlier(arm, place, extreme) for extreme in extremes(study, arm, place)]
            columns = (
                text("run", "cell"),
                number("value", "value", place.unit),
                number("mean of its siblings", "mean", place.unit),
                number("their SD", "sd", place.unit),
                whole("n of siblings", "n"),
                stat("z", "z", ranged),
                stat("prediction t", "prediction_t", ranged),
                whole("df"),
                stat("p, not adjusted", "p", p_value),
                ends("95% prediction interval", "interval", place.unit),
                text("", "inside"),
            )
            notes = (
                "Each condition's most extreme run against its siblings. Picked as the most extreme, some fall outside "
                "by chance.",
            )
            id = f"outliers-{arm or 'main'}-{place.instrument}-{place.metric}"
            if rows:
                blocks.append(Table(id, title_of(study, arm, place), columns, rows, notes, place.instrument))
    if not blocks:
        blocks.append(Prose("No condition has the three runs that a comparison of one run with its siblings takes."))
    return Section("outliers", "One run against its replicates", tuple(blocks))


def _outlier(arm: str | None, place: Place, e: Extreme) -> dict[str, Any]:
    return {
        **vars(e.result),
        "mean": e.result.others.mean,
        "sd": e.result.others.spread,
        "n": e.result.others.n,
        "df": e.result.others.n - 1,
        "interval": (e.result.prediction95_low, e.result.prediction95_high),
        "cell": Mark(e.cell, href=cell_page(e.cell, place.instrument)),
        "inside": Mark("inside") if e.result.inside else Mark("outside", "refuted"),
        "href": numbers_link(arm, "post_em", place, e.condition),
    }


# --- power ----------------------------------------------------------------------------------------------------------


def power_section(metrics: Sequence[Measured], study: Study | None = None) -> Section:
    """The least difference that this design finds, and what more seeds or completions would buy for their cost."""
    blocks: list[Block] = [_detectable(metrics)] if metrics else []
    if study is not None:
        for place in study.places_of("alignment"):
            blocks += _designs(study, place)
    return Section("power", "Power and minimum detectable effect", tuple(blocks))


def _detectable(metrics: Sequence[Measured]) -> Table:
    rows = []
    for m in metrics:
        sds = [cell.sd for cell in m.cells.values() if cell.sd is not None]
        n = min(cell.n for cell in m.cells.values())
        row: dict[str, Any] = {"metric": m.title, "n": n, "unit": m.replicate, "href": m.href}
        if n > 1 and sds:
            sd, pairs = _replicate_sd(m, sds), max(1, len(m.cells) * (len(m.cells) - 1) // 2)
            row["sd"] = show(sd, m.unit)
            for name, tests in (("one", 1), ("all", pairs)):
                least = minimum_detectable(n, 0.05 / tests, m.replicate, max(2, len(m.cells)))
                row |= {f"{name}_sds": least, name: show(least * sd, m.unit)}
        rows.append(row)
    columns = (
        text("metric"),
        whole("n per condition", "n"),
        text("unit"),
        stat("SD", "sd", str),
        stat("least difference found, in SDs", "one_sds", "{:.2f}".format),
        stat("as a difference", "one", str),
        stat("in SDs, Bonferroni over the pairs", "all_sds", "{:.2f}".format),
        stat("as a difference", "all", str),
    )
    notes = (
        "Two-sided t test of two conditions, power .8 at .05. SD: the median between EM seeds; of pipeline seeds, "
        "which are blocks, the residual SD of checkpoint means. Verdicts on blocks take the larger of the pooled error "
        "and HC3, and with few seeds need more (docs/calibration.md).",
    )
    instrument = next((m.instrument for m in metrics if m.metric == "alignment"), "")
    return Table("power-table", "Least detectable difference", columns, rows, notes, instrument)


def _replicate_sd(m: Measured, sds: Sequence[float]) -> float:
    """Median SD between EM seeds; residual SD of checkpoint means where pipeline seeds are the replicates."""
    try:
        if m.is_blocked and len(m.cells) > 1:
            return float(np.sqrt(blocked.fit(blocked.checkpoints(m.cells)).mse_resid))
    except NotTestable:
        pass
    return float(np.median(sds))


def _designs(study: Study, place: Place) -> list[Block]:
    """More EM seeds or more completions, against this design. Nothing where a component is not known: with one pipeline
    seed nobody knows what another would give, so no design with more of them has a price in precision."""
    cells = list(study.sample(study.arms[0], "post_em", place).values())
    known = [c for c in cells if c.sd is not None and c.sampling_se and c.n_pipeline_seeds == 1]
    completions = next(
        (
            int(r["denominator"])
            for r in study.rows
            if (r["instrument"], r["metric"]) == (place.instrument, place.metric)
        ),
        0,
    )
    costs = _costs(study, place, completions) if len(known) == len(cells) > 1 else None
    if costs is None:
        return []
    price, unit = costs
    sampling = float(np.mean([np.mean(np.square(c.sampling_se)) for c in known]))
    between = float(np.mean([c.spread**2 for c in known]))
    n = min(c.n for c in known)
    shapes = [(n, completions), (2 * n, completions), (4 * n, completions), (n, 2 * completions), (n, 8 * completions)]
    variances = PerLevel(0.0, max(0.0, between - sampling), sampling * completions)
    table = power_table([Design(1, e, k) for e, k in shapes], variances, price, len(known))
    rows = [vars(row) | vars(row.design) for row in table]
    columns = (
        whole("EM seeds", "em_seeds"),
        whole("completions of a run", "completions"),
        number("SE of a difference", "se_of_difference", place.unit),
        number("least detectable difference", "detectable_difference", place.unit),
        stat(unit, "gpu_hours", "{:.2f}".format),
        stat(f"more {unit}", "extra_gpu_hours", "{:.2f}".format),
        stat("detectable difference saved per 1 of it", "saved_per_gpu_hour", "{:.2f}".format),
    )
    notes = (
        "First line: this design. Variances are this run's own: between seeds beyond sampling, and between completions "
        "of a question.",
        "With one checkpoint per condition nobody can tell what more pipeline seeds would buy; only they can carry a "
        "statement about a condition.",
    )
    caption = f"What more runs would buy (alignment, {place.instrument})"
    return [Table(f"designs-{place.instrument}", caption, columns, rows, notes, place.instrument)]


def _costs(study: Study, place: Place, completions: int) -> tuple[PerLevel, str] | None:
    """Mean cost of one of each, from records: GPU-hours, or hours of the jobs where no GPU was used."""
    judged = {n: r for n, r in study.records.items() if n.instrument == place.instrument and n.cell is not None}
    behind = [(n, r) for n in dict.fromkeys(a for j in judged for a in study.ancestors(j)) if (r := study.record(n))]
    tunes = [r for n, r in behind if n.stage == "em_lora"]
    answered = [*(r for n, r in behind if n.stage == "generate"), *judged.values()]
    before = [r for n, r in behind if n.stage in BEFORE]
    if not tunes or not completions:
        return None
    on_gpu = any(gpu_seconds(r) for r in (*tunes, *answered, *before))

    def hours(records: Sequence[Record]) -> float:
        return sum(gpu_seconds(r) if on_gpu else float(r.observed["seconds"]) for r in records) / 3600

    checkpoints = len({(n.cell.condition, n.cell.pipeline_seed) for n in judged if n.cell})
    per_completion = hours(answered) / (len(judged) * completions)
    costs = PerLevel(hours(before) / checkpoints, hours(tunes) / len(tunes), per_completion)
    return costs, "GPU-hours" if on_gpu else "job-hours on CPU"
