"""The sentence of a claim: its template, filled with what was computed."""

from collections.abc import Mapping

from workflow.stats import claims_schema as schema
from workflow.stats.results import ClaimResult, Member
from workflow.stats.samples import Sample
from workflow.stats.text import interval_text, number, p_range_text, range_text
from workflow.stats.verdicts import HOLDS


def sentence_of(
    claim: schema.Claim, result: ClaimResult, cells: Mapping[str, Sample], levels: Mapping[str, Sample]
) -> str:
    """The filled template; of what could not be tested, what was said and why nobody can tell.

    cells: what was judged, levels or changes; levels: always the levels.
    """
    if not result.members or result.verdict == "unverifiable":
        return f"{_capital(claim.said or claim.id)}: unverifiable ({result.reason})."
    parts = [claim.text.format_map(_facts(claim, result, cells, levels))]
    if result.reason and result.reason not in parts[0] and result.verdict != "undetermined":
        parts.append(f"Why: {result.reason}.")
    if result.verdict == "confounded":
        parts.append(f"Confounded: {'; '.join(result.confounded_by)}.")
    elif result.on_clean_items and result.clean_items:
        clean, n = result.clean_items
        parts.append(
            f"Judged on the {clean} of {n} items that none of them trained on; on all items: {result.on_all_items}."
        )
    if result.tipping_sd is not None:
        parts.append(f"Holds unless checkpoints of a condition differ by an SD above {number(result.tipping_sd)}.")
    if result.exploratory:
        parts.append(f"Exploratory: {result.metric} is no primary metric.")
    return " ".join(parts)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def member_text(member: Member) -> str:
    """One comparison inside a claim's sentence: its own units first, then d."""
    parts = [f"{member.reading} gap" if member.reading else ""]
    if not member.reading:
        parts.append(range_text(member.estimate))
        if member.interval and member.interval_level and not member.decided_on.startswith("d"):
            parts.append(f"{100 * member.interval_level:g}% {interval_text(*member.interval)}")
    parts += [f"d {range_text(member.d)}" if member.d and not member.reading else ""]
    parts += [f"p {p_range_text(member.p)}" if member.p else ""]
    parts += [f"adjusted {p_range_text(member.p_adjusted)}" if member.p_adjusted not in (None, member.p) else ""]
    parts += [f"levels {range_text(member.level)}" if member.level else ""]
    parts += [member.verdict]
    return f"{member.name} ({', '.join(part for part in parts if part)})"


def _facts(
    claim: schema.Claim, result: ClaimResult, cells: Mapping[str, Sample], levels: Mapping[str, Sample]
) -> dict[str, str]:
    """Every name of FACTS that a claim of this contrast has, as text."""
    rule, members, verdict = claim.rule, result.members, result.verdict
    holds = HOLDS if isinstance(rule, schema.Equivalence) else ("supported",)
    passing = [m for m in members if m.verdict in holds]
    others = [m for m in members if m.verdict not in holds]
    means = [level.mean for level in levels.values()]
    if verdict == "confounded":
        on = f"{result.on_clean_items} on clean" if result.on_clean_items else f"{result.on_all_items} on all"
        verdict += f" ({on} items)"
    facts = {
        "verdict": verdict,
        "reason": result.reason,
        "passed": str(len(passing)),
        "tested": str(len(members)),
        "members": "; ".join(member_text(m) for m in members),
        "passing": "; ".join(member_text(m) for m in passing) or "none",
        "others": "; ".join(member_text(m) for m in others) or "none",
        "lowest": number(min(means), 4),
        "highest": number(max(means), 4),
        "margin": f"{margin:g}" if (margin := getattr(rule, "margin", None)) else "no margin",
        "threshold": f"{rule.alpha:g}"
        + ("" if rule.correction == "none" else f" after {rule.correction.capitalize()}"),
        "n": " or ".join(map(str, sorted({cell.n for cell in cells.values()}))),
        "unit": result.unit,
    }
    if isinstance(claim.contrast, schema.Sides) and claim.contrast.kind == "groups":
        for name, group in (("first_mean", claim.contrast.first), ("second_mean", claim.contrast.second)):
            facts[name] = number(sum(cells[c].mean for c in group) / len(group), 4)
    if len(members) == 1:
        (one,) = members
        facts |= {
            "estimate": range_text(one.estimate),
            "interval": interval_text(*one.interval) if one.interval else "no interval",
            "t": range_text(one.t) if one.t else "none",
            "p": p_range_text(one.p) if one.p else "none",
            "d": range_text(one.d) if one.d else "none",
        }
    return facts
