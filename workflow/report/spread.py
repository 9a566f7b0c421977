"""Noise: sampling error beside the spread of seeds, one run against its replicates, what more runs would show."""

from collections.abc import Sequence

from workflow.report.blocks import DASH, Block, Cell, Cells, Section, general, p_value, prose, show, table
from workflow.report.comparisons import Measured
from workflow.report.study import Place, Study
from workflow.report.tables import lineage_cell, title
from workflow.stats.blocked import FTest, omnibus, permutation_p
from workflow.stats.rounding import Range
from workflow.stats.samples import FloatArray, NotTestable, beside_seeds, sample
from workflow.stats.table import NoSharedSeed, runs
from workflow.stats.tests import SingleValue, single_value, within_to_between
from workflow.stats.text import range_text


def sampling_section(study: Study, metrics: Sequence[Measured]) -> Section:
    blocks: list[Block] = []
    header = (
        "condition",
        "SD between seeds",
        "sampling SE of one run's mean",
        "SD beyond sampling",
        "share of the variance from sampling",
        "n",
    )
    for arm in study.arms:
        for place in study.places_of("alignment", "coherence"):
            rows: list[Cells] = []
            for name, cell in study.sample(arm, "post_em", place).items():
                if cell.sd is None or not cell.sampling_se:
                    rows.append([name, DASH, DASH, DASH, DASH, str(cell.n)])
                    continue
                found = beside_seeds(cell, cell.sampling_se)
                numbers = (
                    show(cell.sd, place.unit),
                    show(found.sampling_se_of_one_run, place.unit),
                    show(found.sd_beyond_sampling, place.unit),
                    f"{found.share_of_variance_from_sampling:.0%}",
                    str(cell.n),
                )
                rows.append([name, *(lineage_cell(text, arm, "post_em", place, name) for text in numbers)])
            notes = (
                "Sampling SE: other completions of the same questions (questions fixed), root mean square over "
                "runs. Where it is as large as the SD between seeds, the seeds show no effect of their own.",
                study.judge_note(place.instrument),
            )
            blocks.append(
                table(
                    f"sampling-{arm or 'main'}-{place.instrument}-{place.metric}",
                    title(study, arm, place),
                    header,
                    rows,
                    (0,),
                    notes,
                )
            )
    if metrics:
        blocks.append(ratio_table(metrics))
    return Section("sampling", "Sampling error beside the spread of seeds", tuple(blocks))


def ratio_table(metrics: Sequence[Measured]) -> Block:
    """How far conditions lie apart in units of their seeds' spread."""
    rows: list[Cells] = []
    for m in metrics:
        try:
            found = within_to_between(m.cells)
        except ValueError:  # one condition, one seed, or no spread: there is no ratio
            rows.append([m.title, DASH, DASH, DASH, str(len(m.cells)), DASH])
            continue
        numbers = (
            show(found.range_of_means.value, m.unit),
            show(found.median_sd.value, m.unit),
            range_text(found.ratio_range_over_median_sd, sign=False),
        )
        rows.append(
            [m.title, *(m.cell(text) for text in numbers), str(len(m.cells)), next(iter(m.cells.values())).unit]
        )
    header = ("metric", "range of means", "median SD between seeds", "range / median SD", "conditions", "unit")
    return table(
        "ratio",
        "Between conditions, in units of the spread within them",
        header,
        rows,
        (0, 5),
        [m.note for m in metrics],
    )


# --- one value against its replicates -------------------------------------------------------------------------------


def extremes(study: Study, arm: str | None, place: Place) -> list[tuple[str, str, SingleValue]]:
    """Per condition the run that lies furthest from its siblings: (condition, cell, result)."""
    found = []
    for name in study.conditions:
        here = [
            r
            for r in study.rows
            if (r["condition"], r["instrument"], r["metric"], r["phase"], r["arm"])
            == (name, place.instrument, place.metric, "post_em", arm)
        ]
        tried = []
        for i, r in enumerate(here):
            others = [o["value"] for j, o in enumerate(here) if j != i]
            try:
                tried.append((r["cell"], single_value(r["value"], sample(others)))) if len(others) > 1 else None
            except NotTestable:
                continue
        if tried:
            found.append((name, *max(tried, key=lambda item: abs(item[1].prediction_t.value))))
    return found


def outlier_section(study: Study, figures: Sequence[Block]) -> Section:
    blocks: list[Block] = list(figures)
    header = (
        "run",
        "value",
        "mean of its siblings",
        "their SD",
        "n of siblings",
        "z",
        "prediction t",
        "df",
        "p, not adjusted",
        "95% prediction interval",
        "",
    )
    for arm in study.arms:
        for place in (*study.places_of("alignment"), *study.places_of("arc")):
            rows: list[Cells] = []
            for name, cell, result in extremes(study, arm, place):
                numbers = (
                    show(result.others.mean, place.unit),
                    show(result.others.spread, place.unit),
                    str(result.others.n),
                    general(result.z.value),
                    general(result.prediction_t.value),
                    str(result.others.n - 1),
                    p_value(result.p),
                    f"{show(result.prediction95_low, place.unit)} to {show(result.prediction95_high, place.unit)}",
                )
                own = Cell(show(result.value, place.unit), f"{cell}/{place.instrument}/{place.metric}", "lineage")
                inside = Cell("inside") if result.inside else Cell("outside", tone="refuted")
                rows.append([cell, own, *(lineage_cell(text, arm, "post_em", place, name) for text in numbers), inside])
            if rows:
                notes = (
                    "Each condition's most extreme run against its siblings. Picked as the most extreme, some "
                    "fall outside by chance.",
                    study.judge_note(place.instrument),
                )
                blocks.append(
                    table(
                        f"outliers-{arm or 'main'}-{place.instrument}-{place.metric}",
                        title(study, arm, place),
                        header,
                        rows,
                        (0,),
                        notes,
                    )
                )
    if len(blocks) == len(figures):
        blocks.append(prose("No condition has the three runs that a comparison of one run with its siblings takes."))
    return Section("outliers", "One run against its replicates", tuple(blocks))


# --- several pipeline seeds -------------------------------------------------------------------------------------------


def blocks_section(study: Study) -> Section:
    """With several pipeline seeds: omnibus tests with the seed as a block, and the variances between checkpoints."""
    blocks: list[Block] = []
    frame = study.frame(study.arms[0])
    if frame is None or len(study.config.pipeline_seeds) < 2:
        return Section("blocks", "Pipeline seeds as blocks", ())
    for place in study.places_of("alignment", "arc"):
        try:
            values = runs(frame, place.metric, place.instrument)
            tests = omnibus(values)
        except (NotTestable, NoSharedSeed) as reason:
            blocks.append(prose(f"{title(study, study.arms[0], place)}: no omnibus test, {reason}."))
            continue
        rows = [_f_row(f) for f in tests]
        header = ("term", "F", "df", "p", "variance over error, 95% CI")
        notes = (*_block_notes(values), study.judge_note(place.instrument))
        id = f"blocks-{place.instrument}-{place.metric}"
        blocks.append(table(id, title(study, study.arms[0], place), header, rows, (0,), notes))
    return Section("blocks", "Pipeline seeds as blocks", tuple(blocks))


def _f_row(f: FTest) -> Cells:
    ratio = DASH if f.ratio95 is None else f"{f.ratio95[0]:.2f} to {f.ratio95[1]:.2f}"
    return [f.name, f"{f.f:.2f}", f"{f.df1}, {f.df2}", p_value(Range(f.p, f.p, f.p)), ratio]


def _block_notes(values: FloatArray) -> tuple[str, ...]:
    conditions, seeds, em_seeds = values.shape
    return (
        f"{conditions} conditions x {seeds} pipeline seeds, {em_seeds} EM seeds each. Condition and seed are tested "
        f"against condition x seed; permuted within pipeline seeds p {permutation_p(values.mean(axis=2)):.3f}.",
        "Whether pipeline seeds matter decides nothing: they are blocks either way.",
    )
