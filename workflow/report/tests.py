"""Tests between conditions: pairs, declared contrasts, the 2 x 2; from runs and from printed figures alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workflow.report.page import (
    Block,
    Mark,
    Section,
    Table,
    ends,
    general,
    number,
    p_value,
    ranged,
    stat,
    text,
    whole,
)
from workflow.report.study import Place, Study, numbers_link, title_of
from workflow.stats.claims_schema import Claims
from workflow.stats.contrasts import Comparison, anova_2x2, compare, compare_all
from workflow.stats.rounding import Range
from workflow.stats.samples import PIPELINE_SEED, NotTestable, Sample, label
from workflow.stats.tests import change

MAIN = ("alignment", "arc", "coherence")


@dataclass(frozen=True)
class Measured:
    """One metric after EM, by condition; `href`: where its numbers come from."""

    slug: str
    title: str
    metric: str
    unit: str
    cells: Mapping[str, Sample]
    href: str
    instrument: str = ""

    @property
    def replicate(self) -> str:
        return next(iter(self.cells.values())).unit

    @property
    def is_blocked(self) -> bool:
        return self.replicate == PIPELINE_SEED

    def table(self, kind: str, columns: Any, rows: Any, notes: Any = (), is_folded: bool = False) -> Table:
        kept = tuple(dict.fromkeys(note for note in notes if note))
        rows = [{"href": self.href, **row} for row in rows]
        return Table(f"{kind}-{self.slug}", self.title, columns, rows, kept, self.instrument, is_folded)


def sample_row(sample: Sample | None) -> dict[str, Any]:
    """Fields of a row that describe replicates: n, unit, mean, half (95% CI half-width), sd."""
    if sample is None:
        return {}
    alone = "n = 1"  # stands where an interval would, had there been a second value
    half, sd = (alone if sample.n == 1 else value for value in (sample.ci95_half_width, sample.sd))
    return {"n": sample.n, "unit": sample.unit, "mean": sample.mean, "half": half, "sd": sd}


def changes_of(study: Study, arm: str | None, place: Place) -> dict[str, Sample]:
    """By condition, after EM minus before it, paired by checkpoint."""
    before = study.sample(arm, "pre_em", place)
    pairs = {name: paired_change(s, before.get(name)) for name, s in study.sample(arm, "post_em", place).items()}
    return {name: changed for name, changed in pairs.items() if changed is not None}


def paired_change(after: Sample | None, before: Sample | None) -> Sample | None:
    """After minus before, paired by checkpoint; None where there are no pairs."""
    try:
        return change(after, before) if after and before else None
    except NotTestable:
        return None


def measured(study: Study) -> list[Measured]:
    """Every main metric of every arm."""
    return [
        Measured(
            f"{arm or 'main'}-{place.instrument}-{metric}",
            title_of(study, arm, place),
            metric,
            place.unit,
            cells,
            numbers_link(arm, "post_em", place),
            place.instrument,
        )
        for arm in study.arms
        for metric in MAIN
        for place in study.places_of(metric)
        if (cells := study.sample(arm, "post_em", place))
    ]


def factors_of(study: Study) -> dict[str, tuple[str, str]]:
    """Condition -> (persona, answers), where it has both."""
    return {c.name: (c.persona, c.answers) for c in study.config.conditions if c.enabled and c.persona and c.answers}


# --- pairs and contrasts --------------------------------------------------------------------------------------------


def _margins(claims: Claims, metric: str) -> list[float]:
    """Margins of equivalence that the claims about this metric declare."""
    rules = [claim.rule for claim in claims.claims if claim.metric == metric and claim.rule.test == "equivalence"]
    return sorted({rule.margin for rule in rules if rule.margin})  # type: ignore[union-attr]


def _equivalence_columns(margins: Sequence[float]) -> list[Any]:
    return [stat(f"p of equivalence within ±{margin:g}", f"tost {margin}", p_value) for margin in margins]


def _comparison(c: Comparison, margins: Sequence[float]) -> dict[str, Any]:
    """Fields of a contrast's row; none where it has no test."""
    e = c.estimate
    if e is None:
        return {}
    low, high = (Range.of(end).value for end in e.interval())
    return {
        "difference": Range.of(e.value).value,
        "ci": (low, high),
        "t": Range.of(e.t),
        "df": Range.of(e.df).value,
        "p": e.p_range(),
        "bonferroni": c.p_bonferroni,
        "holm": c.p_holm,
        "tukey": c.p_tukey,
        "separate": None if e.separate is None else Range.of(e.separate.p()),
        "d": Range.of(e.effect.d),
        "g": e.effect.hedges_g,
        "d_ci": " to ".join(general(Range.of(end).value) for end in e.effect.interval()),
        **{f"tost {margin}": Range.of(e.tost_p(margin)) for margin in margins},
    }


def pairs_section(metrics: Sequence[Measured], claims: Claims) -> Section:
    """All pairs of each metric; coherence behind a fold."""
    return Section("pairs", "Every pair of conditions", tuple(_pairs(m, claims) for m in metrics if len(m.cells) > 1))


def _pairs(m: Measured, claims: Claims) -> Table:
    margins = _margins(claims, m.metric)
    in_matrix = {name: cell for name, cell in m.cells.items() if name in claims.matrix}
    others = [name for name in m.cells if name not in claims.matrix]
    size = len(claims.matrix) * (len(claims.matrix) - 1) // 2
    family = compare_all(in_matrix, size) if len(in_matrix) > 1 else []
    tested = [pair.estimate for pair in family if pair.estimate is not None]
    rows = []
    for c in family:
        first, second = c.weights
        n = Mark("no test", "open") if c.estimate is None else f"{m.cells[first].n}, {m.cells[second].n}"
        rows.append({"pair": f"{first} − {second}", "n": n, **_comparison(c, margins)})
    columns = [
        text("first − second", "pair"),
        stat("n", "n", str),
        number("difference", "difference", m.unit, sign=True),
        ends("95% CI", "ci", m.unit, sign=True),
        stat("t", "t", ranged),
        stat("df", "df", "{:.1f}".format),
        stat("p", "p", p_value),
        stat(f"p Bonferroni, {size} pairs", "bonferroni", p_value),
        stat(f"p Holm, {size} pairs", "holm", p_value),
        *([stat("p Tukey", "tukey", p_value), stat("p, own error", "separate", p_value)] if m.is_blocked else []),
        stat("Cohen's d", "d", ranged),
        stat("Hedges' g", "g"),
        stat("95% CI of the effect size", "d_ci", str),
        *_equivalence_columns(margins),
    ]
    standardiser = tested[0].effect.standardiser if tested else "the pooled SD"
    notes = (
        f"Unit of n: {m.replicate}. {_sentence(label(*m.cells.values()))}".strip(),
        f"Test: {', '.join(dict.fromkeys(c.method for c in tested))}." if tested else "",
        f"d and g: over {standardiser}, positive when the first is higher. Compare adjusted p with .05 itself; a pair "
        "without a test stays in the family.",
        "p Tukey: for all pairs, where residual SDs are equal. p, own error: from each seed's own difference."
        if m.is_blocked
        else "",
        "Square brackets: the range over the rounding of the printed inputs."
        if any(cell.is_printed for cell in m.cells.values())
        else "",
        *(f"No test of {c.name.replace(' - ', ' − ')}: {c.reason}." for c in family if c.estimate is None),
        f"Not in the family of pairs: {', '.join(others)}." if others else "",
    )
    return m.table("pairs", columns, rows, notes, is_folded=m.metric == "coherence")


def contrasts_section(metrics: Sequence[Measured], claims: Claims, factors: Mapping[str, tuple[str, str]]) -> Section:
    """The declared contrasts, always; the 2 x 2 where its four cells are there."""
    blocks: list[Block] = []
    for m in metrics:
        blocks += [_contrasts(m, claims), *_anova(m, factors)]
    return Section("contrasts", "Declared contrasts", tuple(blocks))


def _contrasts(m: Measured, claims: Claims) -> Table:
    margins = _margins(claims, m.metric)
    contrasts = [compare(name, m.cells, weights) for name, weights in claims.declared().items()]
    tested = [c for c in contrasts if c.estimate is not None]
    left_out = {c.name: c.reason for c in contrasts if c.estimate is None}
    rows: list[dict[str, Any]] = [
        {"name": c.name, "n": sum(m.cells[name].n for name in c.weights), **_comparison(c, margins)} for c in tested
    ]
    rows += [{"name": name, "difference": Mark("not possible", "open")} for name in left_out]
    columns = [
        text("contrast", "name"),
        number("estimate", "difference", m.unit, sign=True),
        ends("95% CI", "ci", m.unit, sign=True),
        stat("t", "t", ranged),
        stat("df", "df", "{:.1f}".format),
        stat("p, not adjusted", "p", p_value),
        stat("d within cells", "d", ranged),
        whole(f"n ({m.replicate}s)", "n"),
        *_equivalence_columns(margins),
    ]
    notes = (
        "The name says what is subtracted from what; each condition counts once (a mean of means).",
        *(f"Not possible, {name}: {why}." for name, why in left_out.items()),
        _sentence(label(*m.cells.values())),
    )
    return m.table("contrasts", columns, rows, notes)


def _anova(m: Measured, factors: Mapping[str, tuple[str, str]]) -> list[Block]:
    here = {factors[name]: cell for name, cell in m.cells.items() if name in factors}
    if len(here) != 4 or any(len({levels[i] for levels in here}) != 2 for i in (0, 1)):
        return []
    try:
        terms = anova_2x2(here, ("persona", "correctness"))
    except NotTestable:
        return []
    rows = [
        {**r, "term": str(term), "dfs": f"{r['df']:.0f}, {r['df_residual']:.0f}", "p": r["PR(>F)"]}
        for term, r in terms.iterrows()
    ]
    columns = (
        text("term"),
        stat("sum of squares (type III)", "sum_sq", "{:.4g}".format),
        stat("df", "dfs", str),
        stat("F", "F", "{:.2f}".format),
        stat("p", "p", p_value),
        stat("partial η²", "partial_eta_squared", "{:.3f}".format),
    )
    table = m.table("anova", columns, rows, (_sentence(label(*here.values())),))
    return [Table(**{**vars(table), "caption": f"The four coupled conditions as persona × correctness: {m.title}"})]


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""
