"""Sections of the reference report alone: the retracted run, what was printed beside the table, the stated cost."""

from collections.abc import Sequence

import numpy as np

from workflow.report.blocks import DASH, Cell, Cells, Section, general, p_value, ranged, show, table
from workflow.report.published_table import PublishedPair, PublishedTable, Retraction, SingleRun
from workflow.stats.contrasts import estimate, pair
from workflow.stats.rounding import Range, from_moments
from workflow.stats.tests import single_value, within_to_between
from workflow.stats.text import range_text


def retracted_section(
    published: PublishedTable, run: SingleRun, replications: list[SingleRun], why: Retraction
) -> Section:
    """Struck out, beside both replications: the same seed again, and all seeds."""
    rows: list[Cells] = []
    listed = ("alignment", "arc", "coherence")
    protocol = [", ".join(f"{name} {value}" for name, value in r.protocol.items()) for r in (run, *replications)]
    struck = [Cell(show(run.values[m].value, published.units[m]), tone="struck") for m in listed]
    rows.append(
        [
            Cell(f"{run.name}: {run.condition}, EM seed {run.em_seed}", tone="struck"),
            *struck,
            Cell("1", tone="struck"),
            protocol[0],
            run.source,
        ]
    )
    for r, text in zip(replications, protocol[1:], strict=True):
        rows.append(
            [
                f"{r.name}: {r.condition}, EM seed {r.em_seed}",
                *(show(r.values[m].value, published.units[m]) for m in listed),
                "1",
                text,
                r.source,
            ]
        )
    ten = {m: published.post_em[m][run.condition] for m in listed}
    means = [
        f"{show(s.mean, published.units[m])} ± {show(s.ci95_half_width, published.units[m])}" for m, s in ten.items()
    ]
    rows.append(
        [
            f"{run.condition}, all seeds (mean ± 95% CI half-width)",
            *means,
            str(ten["alignment"].n),
            protocol[-1],
            "published table",
        ]
    )
    header = ("run", *listed, "n", "protocol", "source")
    notes = (
        f"Retracted {why.date}: {why.what}. {why.reason}",
        f"Retracted result: {why.stage} of {why.cell}. In its place: {', '.join(why.replaced_by)}, and the "
        f"condition's seeds.",
    )
    tests = []
    for r in (run, *replications):
        for m in listed:
            s = single_value(r.values[m].value, ten[m], r.values[m].half_unit)
            tests.append(
                [
                    r.name,
                    m,
                    ranged(s.z),
                    ranged(s.prediction_t),
                    str(s.others.n - 1),
                    p_value(s.p),
                    "inside" if s.inside else Cell("outside", tone="refuted"),
                ]
            )
    test_header = ("run", "metric", "z", "prediction t", "df", "p", "95% prediction interval of one more seed")
    blocks = (
        table("retracted-run", "The retracted run and its replications", header, rows, (0, 5, 6), notes),
        table(
            "retracted-tests", f"Each against the condition's {ten['alignment'].n} seeds", test_header, tests, (0, 1, 6)
        ),
    )
    return Section("retracted", "The retracted run", blocks)


def printed_pairs_section(published: PublishedTable, pairs: Sequence[PublishedPair]) -> Section:
    """What was printed from raw seeds beside what the printed table allows: the one must lie within the other."""
    rows: list[Cells] = []
    held = 0
    for printed in pairs:
        found = estimate(published.post_em[printed.metric], pair(printed.first, printed.second))
        t, d, half = Range.of(found.t), Range.of(found.effect.d), printed.t_and_d_half_unit
        inside = t.contains(printed.welch_t, half) and d.contains(printed.cohens_d_first_minus_second, half)
        held += inside
        rows.append(
            [
                printed.metric,
                f"{printed.first} − {printed.second}",
                general(printed.welch_t),
                ranged(t),
                f"< {printed.p.value:.5f}" if printed.p_is_bound else f"{printed.p.value:g}",
                p_value(found.p_range()),
                general(printed.cohens_d_first_minus_second),
                ranged(d),
                "within" if inside else Cell("outside", tone="refuted"),
            ]
        )
    header = (
        "metric",
        "first − second",
        "t printed",
        "t from the table",
        "p printed",
        "p from the table",
        "d printed",
        "d from the table",
        "printed t and d",
    )
    notes = (
        f"{held} of {len(pairs)} printed pairs lie within the range that the printed table allows.",
        "A p printed as 0.0 is read as a bound.",
    )
    made = table(
        "printed-pairs", "Printed from raw seeds, and recomputed from the table", header, rows, (0, 1, 8), notes
    )
    return Section("printed-pairs-section", "The printed pairs, checked", (made,))


def printed_beside_section(published: PublishedTable, run: SingleRun) -> Section:
    """What the publication printed beside its table, and what its table gives."""
    arc, alignment = published.post_em["arc"], published.post_em["alignment"]
    correct, wrong = (
        np.mean([arc[f"{persona}_{answers}"].mean for persona in ("evil", "good")]) for answers in ("correct", "wrong")
    )
    with_printed_sd = from_moments(
        alignment[run.condition].mean, published.printed["good_correct_alignment_sd"].value, alignment[run.condition].n
    )
    value = run.values["alignment"]
    computed = {
        "alignment_range_over_median_sd": range_text(
            within_to_between(alignment).ratio_range_over_median_sd, sign=False
        ),
        "arc_range_over_median_sd": range_text(within_to_between(arc).ratio_range_over_median_sd, sign=False),
        "good_correct_alignment_sd": show(alignment[run.condition].sd, published.units["alignment"]),
        "retracted_run_z": f"{single_value(value.value, alignment[run.condition]).z.value:.1f}; "
        f"with the printed SD {single_value(value.value, with_printed_sd).z.value:.1f}",
        "arc_marginal_correct": f"{correct:.4f}",
        "arc_marginal_wrong": f"{wrong:.4f}",
    }
    rows = [
        [name.replace("_", " "), f"{figure.value:g}", computed.get(name, DASH)]
        for name, figure in published.printed.items()
    ]
    header = ("figure", "printed", "from the table")
    notes = ("Square brackets: the range over the rounding of the printed table.",)
    made = table("printed-beside", "Figures that the publication printed beside its table", header, rows, (0,), notes)
    return Section("printed", "Printed beside the table", (made,))


def cost_section(published: PublishedTable) -> Section:
    rows = [
        ["GPU-hours, stated for the whole matrix", f"{published.gpu_hours_stated:g}"],
        ["GPU-hours, measured for one cell", f"{published.gpu_hours_measured_one_cell:g}"],
    ]
    made = table(
        "published-cost", "Cost of the original", ("", "GPU-hours"), rows, (0,), (f"{published.cost_source}.",)
    )
    return Section("cost", "Cost", (made,))
