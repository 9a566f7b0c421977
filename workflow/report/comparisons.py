"""Tests between conditions as tables: pairs, declared contrasts, the 2 x 2; from runs and printed figures alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workflow.report.blocks import DASH, Block, Cell, Cells, Fold, Section, Table, general, p_value, ranged, show, table
from workflow.report.study import Study
from workflow.report.tables import title
from workflow.stats.claims_schema import Claims
from workflow.stats.contrasts import Comparison, Untestable, anova_2x2, compare_all, declared_contrasts
from workflow.stats.rounding import Range
from workflow.stats.samples import PIPELINE_SEED, NotTestable, Sample, label
from workflow.stats.text import number

Factors = Mapping[str, tuple[str, str]]  # condition -> (persona, answers), where it has both
MAIN = ("alignment", "arc", "coherence")


@dataclass(frozen=True)
class Measured:
    """One metric after EM, by condition. `anchor`: where its numbers come from; `lineage`: that place in words."""

    slug: str
    title: str
    metric: str
    unit: str
    cells: Mapping[str, Sample]
    anchor: str
    lineage: str
    note: str = ""

    def cell(self, text: str, *conditions: str, tone: str = "") -> Cell:
        """A number computed from these conditions' values."""
        if text == DASH:
            return Cell(text)
        return Cell(
            text, self.anchor, f"lineage: {self.lineage}{': ' if conditions else ''}{', '.join(conditions)}", tone
        )


def measured(study: Study) -> list[Measured]:
    """Every main metric of every arm."""
    found = []
    for arm in study.arms:
        for metric in MAIN:
            for place in study.places_of(metric):
                cells = study.summaries(arm, "post_em", place)
                path = "/".join(part for part in (arm or "", "post_em", place.instrument, place.metric) if part)
                slug = f"{arm or 'main'}-{place.instrument}-{place.metric}"
                if cells:
                    found.append(
                        Measured(
                            slug,
                            title(study, arm, place),
                            metric,
                            place.unit,
                            cells,
                            f"numbers/{path}",
                            path,
                            study.judge_note(place.instrument),
                        )
                    )
    return found


def factors_of(study: Study) -> dict[str, tuple[str, str]]:
    return {c.name: (c.persona, c.answers) for c in study.config.conditions if c.enabled and c.persona and c.answers}


def margins_of(claims: Claims, metric: str) -> list[float]:
    """Margins of equivalence that the claims about this metric declare."""
    found = {
        m
        for claim in claims.claims
        if claim.metric == metric and (m := getattr(claim.rule, "margin", None)) and claim.rule.test == "equivalence"
    }
    return sorted(found)


def pairs_section(metrics: Sequence[Measured], claims: Claims) -> Section:
    """All pairs of each metric; coherence behind a fold."""
    blocks: list[Block] = []
    for m in metrics:
        if len(m.cells) > 1:
            made = _pairs(m, margins_of(claims, m.metric), claims)
            blocks.append(Fold(f"fold-{made.id}", made.caption, (made,)) if m.metric == "coherence" else made)
    return Section("pairs", "Every pair of conditions", tuple(blocks))


def _pairs(m: Measured, margins: Sequence[float], claims: Claims) -> Table:
    in_matrix = {name: cell for name, cell in m.cells.items() if name in claims.matrix}
    others = {name: cell for name, cell in m.cells.items() if name not in claims.matrix}
    size = len(claims.matrix) * (len(claims.matrix) - 1) // 2
    family = compare_all(in_matrix, size) if len(in_matrix) > 1 else []
    methods = dict.fromkeys(p.method for p in family if isinstance(p, Comparison))
    blocked = next(iter(m.cells.values())).unit == PIPELINE_SEED
    rows = [_pair_row(m, pair, margins) for pair in family]
    header = (
        "first − second",
        "n",
        "difference",
        "95% CI of the difference",
        "t",
        "df",
        "p",
        f"p Bonferroni, {size} pairs",
        f"p Holm, {size} pairs",
        *(("p Tukey", "p, error of its own") if blocked else ()),
        "Cohen's d, first − second",
        "Hedges' g, first − second",
        "95% CI of the effect size",
        *(f"p of equivalence within ±{margin:g}" for margin in margins),
    )
    notes = (
        f"Unit of n: {next(iter(m.cells.values())).unit}. {_capital(label(*m.cells.values()))}".strip(),
        f"Test: {', '.join(methods)}." if methods else "",
        f"d and g: over {_standardiser(family)}, positive when the first is higher. Adjusted p are to be compared with "
        ".05 itself; a pair without a test stays in the family.",
        "p Tukey: for all pairs, where residual SDs are equal. p, error of its own: from each seed's own difference."
        if blocked
        else "",
        "Square brackets after a figure: its range over the rounding of the printed inputs." if _is_printed(m) else "",
        *(f"No test of {p.first} − {p.second}: {p.reason}." for p in family if isinstance(p, Untestable)),
        f"Not in the family of pairs: {', '.join(others)}." if others else "",
        m.note,
    )
    return table(f"pairs-{m.slug}", m.title, header, rows, (0,), notes)


def _standardiser(family: Sequence[Comparison | Untestable]) -> str:
    return next((p.standardiser for p in family if isinstance(p, Comparison)), "the pooled SD")


def _pair_row(m: Measured, c: Comparison | Untestable, margins: Sequence[float]) -> list[str | Cell]:
    blocked = next(iter(m.cells.values())).unit == PIPELINE_SEED
    if isinstance(c, Untestable):
        dashes = [DASH] * (10 + 2 * blocked + len(margins))
        return [f"{c.first} − {c.second}", Cell("no test", tone="open"), *dashes]

    def cell(text: str) -> Cell:
        return m.cell(text, c.first, c.second)

    equivalence = [Range.of(c.estimate.tost_p(margin)) for margin in margins]
    more = [DASH if p is None else p_value(Range(p, p, p)) for p in (c.p_tukey, c.separate_p)] if blocked else []
    return [
        f"{c.first} − {c.second}",
        cell(f"{c.n[0]}, {c.n[1]}"),
        cell(show(c.difference_first_minus_second.value, m.unit, sign=True)),
        cell(interval(c.ci95_low, c.ci95_high, m.unit)),
        cell(ranged(c.t)),
        cell(f"{c.df:.1f}"),
        cell(p_value(c.p)),
        cell(p_value(c.p_bonferroni)),
        cell(p_value(c.p_holm)),
        *(cell(text) for text in more),
        cell(ranged(c.cohens_d_first_minus_second)),
        cell(general(c.hedges_g_first_minus_second)),
        cell(f"{general(c.effect_ci95_low)} to {general(c.effect_ci95_high)}"),
        *(cell(p_value(p)) for p in equivalence),
    ]


def contrasts_section(metrics: Sequence[Measured], claims: Claims, factors: Factors) -> Section:
    """The declared contrasts, always; the 2 x 2 where its four cells are there."""
    blocks: list[Block] = []
    for m in metrics:
        made, left_out = declared_contrasts(m.cells, claims.declared())
        margins = margins_of(claims, m.metric)
        rows: list[list[str | Cell]] = []
        for c in made:
            names = tuple(name for name, _ in c.weights)
            equivalence = [Range.of(c.estimate.tost_p(margin)) for margin in margins]
            numbers = (
                show(c.difference_first_minus_second.value, m.unit, sign=True),
                interval(c.ci95_low, c.ci95_high, m.unit),
                ranged(c.t),
                f"{c.df:.1f}",
                p_value(c.p),
                ranged(c.cohens_d_first_minus_second),
                str(sum(c.n)),
                *(p_value(p) for p in equivalence),
            )
            rows.append([c.name, *(m.cell(text, *names) for text in numbers)])
        rows += [[name, Cell("not possible", tone="open"), *[DASH] * (6 + len(margins))] for name in left_out]
        header = (
            "contrast",
            "estimate",
            "95% CI of the estimate",
            "t",
            "df",
            "p, not adjusted",
            "d within cells",
            f"n ({next(iter(m.cells.values())).unit}s)",
            *(f"p of equivalence within ±{margin:g}" for margin in margins),
        )
        notes = [
            "The name says what is subtracted from what; each condition counts once (a mean of means).",
            *(f"Not possible, {name}: {why}." for name, why in left_out.items()),
            _capital(label(*m.cells.values())),
            m.note,
        ]
        blocks.append(table(f"contrasts-{m.slug}", m.title, header, rows, (0,), notes))
        blocks += _anova(m, factors)
    return Section("contrasts", "Declared contrasts", tuple(blocks))


def _anova(m: Measured, factors: Factors) -> list[Block]:
    here = {factors[name]: cell for name, cell in m.cells.items() if name in factors}
    if len(here) != 4 or len({a for a, _ in here}) != 2 or len({b for _, b in here}) != 2:
        return []
    try:
        found = anova_2x2(here, ("persona", "correctness"))
    except NotTestable:
        return []
    rows: list[Cells] = [
        [
            r.term,
            *(
                m.cell(text)
                for text in (
                    number(r.sum_sq),
                    f"{r.df}, {r.df_residual}",
                    f"{r.f:.2f}",
                    p_value(Range(r.p, r.p, r.p)),
                    f"{r.partial_eta_squared:.3f}",
                )
            ),
        ]
        for r in found
    ]
    header = ("term", "sum of squares (type III)", "df", "F", "p", "partial η²")
    return [
        table(
            f"anova-{m.slug}",
            f"The four coupling cells as persona x correctness: {m.title}",
            header,
            rows,
            (0,),
            [_capital(label(*here.values())), m.note],
        )
    ]


def interval(low: float, high: float, unit: str) -> str:
    return f"{show(low, unit, sign=True)} to {show(high, unit, sign=True)}"


def _is_printed(m: Measured) -> bool:
    return any(cell.is_printed for cell in m.cells.values())


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
