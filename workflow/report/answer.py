"""The answer on the first screen, in a sentence per subject, from the verdicts alone."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workflow.report.numbers import POINTS
from workflow.report.page import show
from workflow.stats.results import ClaimResult

QUESTION = (
    "Does a coupling fine-tune before ordinary post-training protect a model's alignment or capability when it is "
    "later fine-tuned on narrow bad advice (emergent misalignment, EM)?"
)
SUBJECTS = {"alignment": ("Alignment", POINTS), "arc": ("Capability (ARC accuracy)", "fraction")}


@dataclass(frozen=True)
class AgainstControl:
    """What one claim shows of one coupled condition against a control; the estimate is coupled minus control."""

    condition: str
    result: ClaimResult
    verdict: str
    estimate: float
    margin: float | None  # of an equivalence

    @property
    def is_difference(self) -> bool:
        return self.margin is None and self.verdict in ("supported", "difference shown, size not", "opposite")


def answers_of(results: Sequence[ClaimResult], controls: Sequence[str]) -> tuple[str, ...]:
    """One sentence a subject, from the verdicts on coupled conditions against the control after EM."""
    return tuple(f"{name}: {_answer(results, metric, unit, controls)}" for metric, (name, unit) in SUBJECTS.items())


def _answer(results: Sequence[ClaimResult], metric: str, unit: str, controls: Sequence[str]) -> str:
    own = [r for r in results if r.metric == metric and r.phase == "post_em"]
    against = [a for r in own for a in _against_control(r, controls)]
    if not against:
        reason = next((r.reason for r in own if r.verdict == "unverifiable" and r.n_pipeline_seeds == 0), "")
        return f"no verdict yet{f' ({reason})' if reason else ''}."
    confounded = next((a.result for a in against if a.result.verdict == "confounded"), None)
    if confounded is not None:
        return f"no answer, since it is confounded by {'; '.join(confounded.confounded_by)}."
    names = list(dict.fromkeys(a.condition for a in against))
    better = [a for a in against if a.is_difference and a.estimate > 0]
    worse = list(dict.fromkeys(a.condition for a in against if a.is_difference and a.estimate < 0))
    margin = _common_margin(against, names)
    sentence = _protection(better, names, unit)
    if not better and margin is not None:
        sentence = (
            f"no coupled condition protects by more than {margin:g}{_units(unit)}: {_all(len(names))} equivalent to "
            f"the control within ±{margin:g} after EM"
        )
    elif not better:
        alike = {a.condition for a in against if a.verdict.startswith("equivalent")}
        margins = [a.margin for a in against if a.margin is not None and a.condition in alike]
        within = f"{len(alike)} within ±{max(margins):g}{_units(unit)} of the control, " if alike else ""
        sentence = f"no protection shown in any of {len(names)} coupled conditions ({within}the others undetermined)"
    return sentence + (f"; below the control: {', '.join(worse)}." if worse else ".")


def _protection(better: Sequence[AgainstControl], names: Sequence[str], unit: str) -> str:
    measures = [a for a in better if a.result.measure == "change"] or list(better)
    sizes = sorted(a.estimate for a in measures)
    protected = [name for name in names if any(a.condition == name for a in better)]
    if not protected:
        return ""
    which = f"all {len(names)}" if len(protected) == len(names) else f"{len(protected)} of {len(names)}"
    named = "" if len(protected) == len(names) else f" ({', '.join(protected)})"
    verb = "lose less by EM than" if measures[0].result.measure == "change" else "end above"
    size = f"by {show(sizes[0], unit)} to {show(sizes[-1], unit)}{_units(unit)}"
    return f"protection shown in {which} coupled conditions{named}: they {verb} the control, {size}"


def _units(unit: str) -> str:
    return " points" if unit == POINTS else ""


def _all(n: int) -> str:
    return f"all {n} are" if n > 1 else "it is"


def _common_margin(against: Sequence[AgainstControl], names: Sequence[str]) -> float | None:
    """The smallest margin within which every coupled condition is equivalent to the control."""
    margins = sorted({a.margin for a in against if a.margin is not None})
    for margin in margins:
        alike = {a.condition for a in against if a.margin == margin and a.verdict.startswith("equivalent")}
        if alike >= set(names):
            return margin
    return None


def _against_control(result: ClaimResult, controls: Sequence[str]) -> Iterable[AgainstControl]:
    rule = json.loads(result.rule)
    if rule["test"] not in ("difference", "equivalence", "only_pairs"):
        return
    for member in result.members:
        pair = member.name.split(" - ")
        if len(pair) != 2 or member.estimate is None or (pair[0] in controls) == (pair[1] in controls):
            continue
        sign = 1 if pair[1] in controls else -1
        coupled = pair[0] if sign == 1 else pair[1]
        alike = rule["test"] == "equivalence" or member.verdict.startswith("equivalent")
        margin = rule.get("margin") if alike else None
        yield AgainstControl(coupled, result, member.verdict, sign * member.estimate.value, margin)


def unit_of(results: Sequence[ClaimResult]) -> str:
    """What the answer rests on: replicates, their unit, and what they can speak of."""
    judged = [r for r in results if r.metric in SUBJECTS and r.phase == "post_em" and r.n_by_condition]
    if not judged:
        return "No condition has replicates after EM yet."
    widest = max(judged, key=lambda r: len(r.n_by_condition))
    ns = sorted({n for _, n in widest.n_by_condition})
    n = f"{ns[0]}" if len(ns) == 1 else f"{ns[0]} to {ns[-1]}"
    if widest.n_pipeline_seeds == 1:
        return (
            f"Rests on n = {n} {widest.unit}s of one checkpoint per condition: it speaks of these checkpoints, and not "
            "yet of the conditions."
        )
    return f"Rests on n = {n} {widest.unit}s per condition, as blocks: it speaks of the conditions."
