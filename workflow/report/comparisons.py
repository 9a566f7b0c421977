"""Tests between conditions as tables: pairs, declared contrasts, the 2 x 2; from runs and printed figures alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workflow.report.blocks import DASH, Block, Cell, Cells, Fold, Section, Table, general, p_value, ranged, show, table
from workflow.report.study import Study
from workflow.report.tables import title
from workflow.stats.claims_schema import Claims
from workflow.stats.contrasts import Comparison, anova_2x2, compare, compare_all
from workflow.stats.rounding import Range
from workflow.stats.samples import PIPELINE_SEED, NotTestable, Sample, label
from workflow.stats.tests import Estimate
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
                cells = study.sample(arm, "post_em", place)
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
    methods = dict.fromkeys(p.estimate.method for p in family if p.estimate)
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
        *(f"No test of {p.name.replace(' - ', ' − ')}: {p.reason}." for p in family if p.estimate is None),
        f"Not in the family of pairs: {', '.join(others)}." if others else "",
        m.note,
    )
    return table(f"pairs-{m.slug}", m.title, header, rows, (0,), notes)


def _standardiser(family: Sequence[Comparison]) -> str:
    return next((p.estimate.effect.standardiser for p in family if p.estimate), "the pooled SD")


def _pair_row(m: Measured, c: Comparison, margins: Sequence[float]) -> list[str | Cell]:
    blocked = next(iter(m.cells.values())).unit == PIPELINE_SEED
    first, second = c.weights
    if (e := c.estimate) is None:
        dashes = [DASH] * (10 + 2 * blocked + len(margins))
        return [f"{first} − {second}", Cell("no test", tone="open"), *dashes]
    own = None if e.separate is None else Range.of(e.separate.p())
    tukey = None if c.p_tukey is None else Range(c.p_tukey, c.p_tukey, c.p_tukey)
    texts = (
        f"{m.cells[first].n}, {m.cells[second].n}",
        *_numbers(e, m.unit),
        p_value(c.p_bonferroni),
        p_value(c.p_holm),
        *((p_value(tukey), p_value(own)) if blocked else ()),
        ranged(Range.of(e.effect.d)),
        general(e.effect.hedges_g),
        " to ".join(general(Range.of(end).value) for end in e.effect.interval()),
        *(p_value(Range.of(e.tost_p(margin))) for margin in margins),
    )
    return [f"{first} − {second}", *(m.cell(text, first, second) for text in texts)]


def _numbers(e: Estimate, unit: str) -> list[str]:
    """Difference, its 95% interval, t, df, p."""
    low, high = (Range.of(end).value for end in e.interval())
    df = f"{Range.of(e.df).value:.1f}"
    difference = show(Range.of(e.value).value, unit, sign=True)
    return [difference, interval(low, high, unit), ranged(Range.of(e.t)), df, p_value(e.p_range())]


def contrasts_section(metrics: Sequence[Measured], claims: Claims, factors: Factors) -> Section:
    """The declared contrasts, always; the 2 x 2 where its four cells are there."""
    blocks: list[Block] = []
    for m in metrics:
        made = [compare(name, m.cells, weights) for name, weights in claims.declared().items()]
        margins = margins_of(claims, m.metric)
        rows: list[list[str | Cell]] = []
        for c in made:
            if (e := c.estimate) is None:
                continue
            numbers = (
                *_numbers(e, m.unit),
                ranged(Range.of(e.effect.d)),
                str(sum(m.cells[name].n for name in c.weights)),
                *(p_value(Range.of(e.tost_p(margin))) for margin in margins),
            )
            rows.append([c.name, *(m.cell(text, *c.weights) for text in numbers)])
        left_out = {c.name: c.reason for c in made if c.estimate is None}
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
            str(term),
            *(
                m.cell(text)
                for text in (
                    number(r["sum_sq"]),
                    f"{r['df']:.0f}, {r['df_residual']:.0f}",
                    f"{r['F']:.2f}",
                    p_value(Range(*[r["PR(>F)"]] * 3)),
                    f"{r['partial_eta_squared']:.3f}",
                )
            ),
        ]
        for term, r in found.iterrows()
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
