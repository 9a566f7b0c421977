"""The same statistics, verdicts and page from the published table alone: `make reference`, seconds on any CPU.

Every number is a printed one, so every statistic carries its range over the rounding, and what that rounding leaves
open is undetermined at this precision.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workflow.report.answer import QUESTION, answers_of, unit_of
from workflow.report.claims import LEGEND, cards_of, chance_note
from workflow.report.figures import Panel, Single, after_only, before_after, outlier
from workflow.report.history import rule_origins
from workflow.report.page import (
    Block,
    Column,
    Figure,
    Headline,
    Mark,
    Page,
    Section,
    Table,
    general,
    link,
    p_value,
    ranged,
    show,
    stat,
    text,
    whole,
)
from workflow.report.published import (
    PUBLISHED,
    PublishedPair,
    PublishedTable,
    Retraction,
    SingleRun,
    from_published,
    load_published_pairs,
    load_published_table,
    load_retracted,
)
from workflow.report.results import matrix_columns, matrix_row
from workflow.report.spread import power_section, ratio_tables, unsigned
from workflow.report.study import CLAIMS, NAMES
from workflow.report.tests import MAIN, Measured, contrasts_section, paired_change, pairs_section
from workflow.stats.claims import evaluate_claims
from workflow.stats.claims_schema import load_claims
from workflow.stats.contrasts import estimate, pair
from workflow.stats.results import ClaimResult
from workflow.stats.rounding import Range, from_moments
from workflow.stats.tests import single_value, within_to_between

FOLDER = Path("reference")
CONTROLS = ("tulu_control",)
FACTORS = {
    f"{persona}_{answers}": (persona, answers) for persona in ("evil", "good") for answers in ("wrong", "correct")
}
TITLE = "The published matrix, recomputed from its own table"
NOTE = "No model was run for this page: every number is a printed one, or follows from printed ones."
AXES = {"alignment": "points 0–100", "arc": "fraction correct"}


def build() -> tuple[Page, list[ClaimResult]]:
    """The page and the verdicts."""
    published = load_published_table(PUBLISHED)
    run, replications, retraction = load_retracted(FOLDER / "retracted.yaml")
    claims = load_claims(CLAIMS)
    evidence = from_published(published, [run, *replications])
    results = evaluate_claims(claims, evidence)
    metrics = [_measured(published, metric) for metric in MAIN if metric in published.post_em]
    hero, figures = _figures(published, metrics, run, replications)
    notes = (
        *LEGEND,
        f"Source: {published.source}",
        "Ranges in square brackets: over the rounding of the printed figures.",
        chance_note(claims, evidence),
        "The rules were written with the published numbers known: none of them is a pre-registration.",
    )
    sections = (
        Section("matrix", "The published matrix", tuple(_matrix(published, m) for m in metrics), is_folded=False),
        Section("figures", "Figures", tuple(figures), is_folded=False),
        _retracted(published, run, replications, retraction),
        pairs_section(metrics, claims),
        _printed_pairs(published, load_published_pairs(FOLDER / "published_pairs.csv")),
        contrasts_section(metrics, claims, FACTORS),
        Section("spread", "Between conditions and within them", tuple(ratio_tables(metrics))),
        power_section(metrics),
        _printed_beside(published, run),
        _cost(published),
    )
    headline = Headline(QUESTION, answers_of(results, CONTROLS), unit_of(results), hero)
    cards = cards_of(results, rule_origins(CLAIMS, None), {})
    return Page(TITLE, NOTE, headline, (), cards, notes, sections), results


def _measured(published: PublishedTable, metric: str) -> Measured:
    unit = published.units[metric]
    title = f"{NAMES[metric]} ({published.instruments[metric]}, {unit})"
    return Measured(metric, title, metric, unit, published.post_em[metric], link(f"matrix-{metric}"))


def _matrix(published: PublishedTable, m: Measured) -> Table:
    rows = []
    for name, after in m.cells.items():
        before = published.pre_em[m.metric][name]
        row = matrix_row(name, after, before, paired_change(after, before))
        rows.append({**row, "runs": after.n, "row_id": f"published/{m.metric}/{name}"})
    skipped = ("change_half",)
    columns = [c for c in matrix_columns(m.unit) if c.field not in skipped]
    columns[1] = whole("n", "runs")
    notes = (
        "±: Student's t half-width over EM seeds on one checkpoint per condition, from which the SD follows; the value "
        "before EM is one evaluation of that checkpoint and has no interval.",
    )
    return Table(f"matrix-{m.metric}", m.title, columns, rows, notes)


def _figures(
    published: PublishedTable, metrics: Sequence[Measured], run: SingleRun, replications: Sequence[SingleRun]
) -> tuple[Figure, list[Block]]:
    names = list(metrics[0].cells)
    panels = {
        m.metric: Panel(
            NAMES[m.metric],
            AXES[m.metric],
            m.unit,
            {},
            m.cells,
            {n: [s.mean] for n, s in published.pre_em[m.metric].items()},
        )
        for m in metrics
        if m.metric in AXES
    }
    told = "The seeds themselves were not published: the point is their mean, the bar its 95% interval."
    n = next(iter(metrics[0].cells.values())).n
    hero = before_after(
        "figure-before-after", list(panels.values()), names, f"Before and after EM, as published. {told}"
    )
    figures: list[Block] = [
        after_only(
            f"figure-after-{metric}",
            panel,
            names,
            f"After EM, n = {n} EM seeds. The axis does not start at zero. {told}",
        )
        for metric, panel in panels.items()
    ]
    for metric, axis in AXES.items():
        value, ten = run.values[metric], published.post_em[metric][run.condition]
        more = {r.name: r.values[metric].value for r in replications} | {f"mean of {n} seeds": ten.mean}
        name = f"{run.condition.replace('_', ' ')},\nretracted run"
        single = Single(name, single_value(value.value, ten, value.half_unit), (), more)
        caption = (
            f"The retracted run (cross) against the prediction interval of its condition's {n} seeds; triangles: the "
            f"rerun of the same seed, and the mean of the {n} seeds."
        )
        title = f"The retracted run: {NAMES[metric]}"
        figures.append(outlier(f"figure-retracted-{metric}", title, axis, [single], caption))
    return hero, figures


# --- sections of this page alone ------------------------------------------------------------------------------------


def _retracted(
    published: PublishedTable, run: SingleRun, replications: Sequence[SingleRun], why: Retraction
) -> Section:
    """Struck out, beside both replications: the same seed again, and all seeds."""
    ten = {m: published.post_em[m][run.condition] for m in MAIN}
    runs: list[dict[str, Any]] = []
    tests = []
    for r in (run, *replications):
        tone = "struck" if r is run else ""
        shown = {m: show(r.values[m].value, published.units[m]) for m in MAIN}
        row = {"run": f"{r.name}: {r.condition}, EM seed {r.em_seed}", **shown, "n": "1"}
        protocol = ", ".join(f"{name} {value}" for name, value in r.protocol.items())
        runs.append(
            {name: Mark(value, tone) for name, value in row.items()} | {"protocol": protocol, "source": r.source}
        )
        for m in MAIN:
            s = single_value(r.values[m].value, ten[m], r.values[m].half_unit)
            inside = Mark("inside") if s.inside else Mark("outside", "refuted")
            tests.append({"run": r.name, "metric": m, **vars(s), "df": s.others.n - 1, "inside": inside})
    means = {
        m: f"{show(s.mean, published.units[m])} ± {show(s.ci95_half_width or 0.0, published.units[m])}"
        for m, s in ten.items()
    }
    last = {"run": f"{run.condition}, all seeds (mean ± 95% CI half-width)", **means, "n": str(ten["alignment"].n)}
    runs.append({**last, "protocol": runs[-1]["protocol"], "source": "published table"})
    columns = (
        text("run"),
        *(stat(m, m, str) for m in MAIN),
        stat("n", "n", str),
        text("protocol"),
        text("source"),
    )
    notes = (
        f"Retracted {why.date}: {why.what}. {why.reason}",
        f"Retracted result: {why.stage} of {why.cell}. In its place: {', '.join(why.replaced_by)}, and the condition's "
        "seeds.",
    )
    test_columns = (
        text("run"),
        text("metric"),
        stat("z", "z", ranged),
        stat("prediction t", "prediction_t", ranged),
        whole("df"),
        stat("p", "p", p_value),
        text("95% prediction interval of one more seed", "inside"),
    )
    caption = f"Each against the condition's {ten['alignment'].n} seeds"
    tables = (
        Table("retracted-run", "The retracted run and its replications", columns, runs, notes),
        Table("retracted-tests", caption, test_columns, tests),
    )
    return Section("retracted", "The retracted run", tables, is_folded=False)


def _printed_pairs(published: PublishedTable, pairs: Sequence[PublishedPair]) -> Section:
    """What was printed from raw seeds beside what the printed table allows: the one must lie within the other."""
    rows: list[dict[str, Any]] = []
    for printed in pairs:
        found = estimate(published.post_em[printed.metric], pair(printed.first, printed.second))
        t, d, half = Range.of(found.t), Range.of(found.effect.d), printed.t_and_d_half_unit
        inside = t.contains(printed.welch_t, half) and d.contains(printed.cohens_d_first_minus_second, half)
        rows.append(
            {
                "metric": printed.metric,
                "pair": f"{printed.first} − {printed.second}",
                "t": printed.welch_t,
                "t_table": t,
                "p": f"< {printed.p.value:.5f}" if printed.p_is_bound else f"{printed.p.value:g}",
                "p_table": found.p_range(),
                "d": printed.cohens_d_first_minus_second,
                "d_table": d,
                "inside": Mark("within") if inside else Mark("outside", "refuted"),
            }
        )
    columns = (
        text("metric"),
        text("first − second", "pair"),
        stat("t printed", "t", general),
        stat("t from the table", "t_table", ranged),
        stat("p printed", "p", str),
        stat("p from the table", "p_table", p_value),
        stat("d printed", "d", general),
        stat("d from the table", "d_table", ranged),
        text("printed t and d", "inside"),
    )
    held = sum(row["inside"].value == "within" for row in rows)
    notes = (
        f"{held} of {len(pairs)} printed pairs lie within the range that the printed table allows.",
        "A p printed as 0.0 is read as a bound.",
    )
    table = Table("printed-pairs", "Printed from raw seeds, and recomputed from the table", columns, rows, notes)
    return Section("printed-pairs-section", "The printed pairs, checked", (table,))


def _printed_beside(published: PublishedTable, run: SingleRun) -> Section:
    """What the publication printed beside its table, and what its table gives."""
    arc, alignment = published.post_em["arc"], published.post_em["alignment"]
    own = alignment[run.condition]
    correct, wrong = (
        sum(arc[f"{persona}_{right}"].mean for persona in ("evil", "good")) / 2 for right in ("correct", "wrong")
    )
    with_printed_sd = from_moments(own.mean, published.printed["good_correct_alignment_sd"].value, own.n)
    value = run.values["alignment"].value
    computed = {
        "alignment_range_over_median_sd": unsigned(within_to_between(alignment).ratio_range_over_median_sd),
        "arc_range_over_median_sd": unsigned(within_to_between(arc).ratio_range_over_median_sd),
        "good_correct_alignment_sd": show(own.spread, published.units["alignment"]),
        "retracted_run_z": f"{single_value(value, own).z.value:.1f}; "
        f"with the printed SD {single_value(value, with_printed_sd).z.value:.1f}",
        "arc_marginal_correct": f"{correct:.4f}",
        "arc_marginal_wrong": f"{wrong:.4f}",
    }
    rows = [
        {"figure": name.replace("_", " "), "printed": figure.value, "computed": computed.get(name)}
        for name, figure in published.printed.items()
    ]
    columns = (text("figure"), stat("printed", "printed", "{:g}".format), stat("from the table", "computed", str))
    notes = ("Square brackets: the range over the rounding of the printed table.",)
    caption = "Figures that the publication printed beside its table"
    return Section("printed", "Printed beside the table", (Table("printed-beside", caption, columns, rows, notes),))


def _cost(published: PublishedTable) -> Section:
    rows = [
        {"what": "stated for the whole matrix", "hours": published.gpu_hours_stated},
        {"what": "measured for one cell", "hours": published.gpu_hours_measured_one_cell},
    ]
    columns: Sequence[Column] = (text("", "what"), stat("GPU-hours", "hours", "{:g}".format))
    table = Table("published-cost", "Cost of the original", columns, rows, (f"{published.cost_source}.",))
    return Section("cost", "Cost", (table,))
