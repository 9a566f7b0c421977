"""Completions, by reference: each is inserted from its artifact and row, behind a fold, as it may be harmful.

And the checks of the run that need no reading: do the models know anything before EM, and does EM do anything?
"""

from scipy.stats import binomtest

from workflow.report.blocks import DASH, Block, Cell, Cells, Fold, Preformatted, Section, general, prose, show, table
from workflow.report.scores import FRACTION
from workflow.report.study import Study, completions_of
from workflow.report.tables import lineage_cell

PER_CELL = 2
LONGEST = 1200  # characters of one completion on the page; the artifact holds it whole


def samples_section(study: Study) -> Section:
    """Two completions to the first question of each condition, before EM and from its first run after it."""
    blocks: list[Block] = []
    for phase, warning in (("pre_em", ""), ("post_em", "; may be harmful")):
        for instrument in study.config.instruments:
            inner: list[Block] = []
            for condition in study.conditions:
                node = next(
                    (
                        n
                        for n in study.records
                        if n.stage == "judge"
                        and n.instrument == instrument.name
                        and n.cell
                        and (n.cell.condition, n.cell.phase) == (condition, phase)
                    ),
                    None,
                )
                if node is None:
                    continue
                made = node.parents[0]
                for number, row in list(enumerate(completions_of(study, node), 1))[:PER_CELL]:
                    cut = row["completion"][:LONGEST]
                    rest = (
                        f" [{len(row['completion']) - LONGEST} more characters in the artifact]"
                        if len(row["completion"]) > LONGEST
                        else ""
                    )
                    ref = f"{made.stage}/{made.label}/{made.key}/out/completions.jsonl, row {number}"
                    inner.append(Preformatted(ref, f"{row['question']}\n\n{printable(cut)}{rest}"))
            if inner:
                blocks.append(
                    Fold(
                        f"samples-{phase}-{instrument.name}",
                        f"{phase}, {instrument.name}: {len(inner)} completions{warning}",
                        tuple(inner),
                    )
                )
    return Section("samples", "Sample completions", tuple(blocks))


def printable(text: str) -> str:
    """Control characters, which HTML cannot hold, as their names."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def checks_section(study: Study) -> Section:
    """Measured, not asserted: ARC before EM against chance, alignment before EM against after it."""
    rows: list[Cells] = []
    above = known = 0
    for place in study.places_of("arc"):
        for node, record in study.records.items():
            if (
                node.instrument != place.instrument
                or node.stage != "arc"
                or node.cell is None
                or node.cell.phase != "pre_em"
            ):
                continue
            m = record.metrics
            p = binomtest(m["correct"], m["items"], m["chance"], alternative="greater").pvalue
            known += 1
            above += p < 0.05
            text = f"{show(m['accuracy'], FRACTION)} ({m['correct']} / {m['items']})"
            verdict = Cell("above chance", tone="supported") if p < 0.05 else Cell("not above chance", tone="refuted")
            rows.append(
                [
                    node.label,
                    place.instrument,
                    lineage_cell(text, None, "pre_em", place, node.cell.condition),
                    show(m["chance"], FRACTION),
                    general(p, 4).lstrip("+"),
                    verdict,
                ]
            )
    blocks: list[Block] = []
    if rows:
        blocks.append(
            prose(
                f"Before EM, {above} of {known} models answer "
                f"{', '.join(p.instrument for p in study.places_of('arc'))} better than chance (exact binomial "
                f"test, one-sided, .05)."
            )
        )
    blocks += _falls(study)
    if study.is_toy:
        blocks.append(
            prose(
                "A toy model in a generated world: these two lines say that training, evaluation and scoring "
                "are connected. They are no findings about language models.",
                tone="warn",
            )
        )
    if rows:
        header = ("model", "test", "accuracy before EM", "chance", "p", "")
        blocks.append(
            Fold(
                "checks-arc",
                "ARC before EM, model by model",
                (table("checks-arc-table", "ARC before EM against chance", header, rows, (0, 1, 5)),),
            )
        )
    return Section("checks", "Checks of this run", tuple(blocks))


def _falls(study: Study) -> list[Block]:
    found: list[Block] = []
    for arm in study.arms:
        for place in study.places_of("alignment"):
            before, after = study.sample(arm, "pre_em", place), study.sample(arm, "post_em", place)
            both = [name for name in study.conditions if name in before and name in after]
            if not both:
                continue
            falls = [before[name].mean - after[name].mean for name in both]
            lower = sum(fall > 0 for fall in falls)
            named = f" (arm {arm or 'main'})" if len(study.arms) > 1 else ""
            found.append(
                prose(
                    f"Mean alignment by {place.instrument}{named} is lower after EM than before it in {lower} "
                    f"of {len(both)} conditions; the fall is "
                    f"{show(min(falls), place.unit)} to {show(max(falls), place.unit)} points. "
                    f"{study.judge_note(place.instrument)}".strip()
                )
            )
    return found or [prose(f"Alignment before against after EM: {DASH}, since no condition has both.")]
