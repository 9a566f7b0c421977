"""The verdicts: each claim judged on the study's numbers, as cards, and the answer that they add up to."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from workflow.errors import ConfigError
from workflow.keys import canonical_json
from workflow.matrix import Node
from workflow.report.history import RuleOrigin
from workflow.report.page import Mark, Table, anchor, p_value, ranged, stat, text
from workflow.report.study import NAMES, Study
from workflow.stats.chance import MATRICES, false_support
from workflow.stats.claims import evaluate_claim
from workflow.stats.claims_schema import Claim, Claims
from workflow.stats.evidence import Evidence, Items, Where, from_scores
from workflow.stats.results import ClaimResult, Member
from workflow.stats.text import interval_text, number, range_text
from workflow.stats.verdicts import AGAINST, HOLDS
from workflow.store import Record, out_dir, read_jsonl

TREATMENT = ("coupling_sft", "tulu_sft", "tulu_dpo")
LEGEND = (
    "Scope: what a verdict is about, these checkpoints or (from two pipeline seeds on) the conditions. Strength: 2 "
    "pipeline seeds preliminary, 3 or 4 moderate, 5 and more strong, if each contrast's own error agrees.",
    "Confounded: something else differs between the conditions in the same way, such as test items in their training "
    "data or the machine that they were made on.",
)


# --- judging --------------------------------------------------------------------------------------------------------


def evaluate(study: Study, evidence: Evidence) -> list[ClaimResult]:
    """Every claim on the main arm.

    Raises:
        ConfigError: a claim compares conditions between which nothing differs.
    """
    refuse_equal_treatments(study)
    return [evaluate_claim(claim, study.claims, evidence) for claim in placed(study).claims]


def placed(study: Study) -> Claims:
    """The claims, each with its instrument: the config's first that measures its metric, if it names none."""

    def place(claim: Claim) -> Claim:
        places = study.places_of(claim.metric)
        if claim.instrument is not None or not places:
            return claim
        return claim.model_copy(update={"instrument": places[0].instrument})

    return study.claims.model_copy(update={"claims": [place(claim) for claim in study.claims.claims]})


def evidence_of(study: Study) -> Evidence:
    """The main arm's scores, with their items and machines."""
    arm = study.arms[0]
    frame = study.frame(arm)
    if frame is None:
        return Evidence("no scores", {})
    return from_scores(frame, (), items=_items_of(study, arm), machines=machines_of(study, arm))


def refuse_equal_treatments(study: Study) -> None:
    """
    Raises:
        ConfigError: two conditions that a claim compares were given the same training from the same data.
    """
    treatments = _treatments(study)
    for claim in study.claims.claims:
        if claim.contrast.kind in ("one_run", "before_after"):
            continue
        for a, b in combinations(study.claims.conditions(claim), 2):
            if a in treatments and treatments[a] == treatments.get(b):
                raise ConfigError(
                    f"claim {claim.id} compares {a} with {b}, and nothing differs between them: the same recipes of "
                    f"{', '.join(TREATMENT)} on the same data. Give one of them other data, or leave it out."
                )


def to_json(results: Sequence[ClaimResult]) -> str:
    """claims.json: every field, ranges as value, low and high."""
    return json.dumps([asdict(result) for result in results], indent=1, allow_nan=False) + "\n"


def notes_of(study: Study, evidence: Evidence) -> tuple[str, ...]:
    """What a reader of the verdicts must know about their data."""
    places = {metric: study.places_of(metric) for metric in ("alignment", "arc")}
    notes = [
        f"Claims about {metric} that name no instrument are judged on {here[0].instrument}, the first of {len(here)}."
        for metric, here in places.items()
        if len(here) > 1
    ]
    notes += [study.judge_note(name) for name in study.scorers]
    if len(study.arms) > 1:
        notes.append(f"Claims are judged on the arm {study.arms[0] or 'main'}.")
    return (*notes, chance_note(placed(study), evidence))


def chance_note(claims: Claims, evidence: Evidence) -> str:
    """How often this design would support some claim by chance, by simulation."""
    share = false_support(claims, evidence)
    if share is None:
        return "No claim of a difference can be judged here, so none can be supported by chance."
    after = [s for where, cells in evidence.cells.items() if where[0] != "pre_em" for s in cells.values()]
    alike = ", checkpoints of a condition taken as alike" if any(s.n_pipeline_seeds == 1 for s in after) else ""
    return (
        f"Were there no effect at all, {share:.1%} of matrices of this design and spread would support some claim of a "
        f"difference ({MATRICES} seeded matrices{alike})."
    )


# --- cards ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """A verdict: what was claimed, what came out, why in one line; the rest is folded."""

    id: str
    about: str
    claim: str
    verdict: str
    tone: str
    why: str
    sentence: str
    facts: tuple[tuple[str, str], ...]
    table: Table | None


TONES = dict.fromkeys(HOLDS, "supported") | dict.fromkeys(AGAINST, "refuted")


def cards_of(
    results: Sequence[ClaimResult], origins: Mapping[str, RuleOrigin], instruments: Mapping[str, str]
) -> tuple[Card, ...]:
    """instruments: by metric, whose scores the claim was judged on."""
    return tuple(_card(result, origins.get(result.id), instruments.get(result.metric, "")) for result in results)


def _card(result: ClaimResult, origin: RuleOrigin | None, instrument: str) -> Card:
    n = ", ".join(f"{name} {n}" for name, n in result.n_by_condition)
    rests = ", ".join(result.rests_on[:3]) + (
        f" and {len(result.rests_on) - 3} more" if len(result.rests_on) > 3 else ""
    )
    clean = result.clean_items
    facts = {
        "Scope": f"{result.scope}{f', {result.label}' if result.label else ''}",
        "Confounded by": "; ".join(result.confounded_by) or "nothing known",
        "Strength": f"{result.strength} (put as {result.declared_strength})"
        + (", exploratory" if result.exploratory else ""),
        f"n ({result.unit}s)": n,
        "Verdict on all items": result.on_all_items,
        "Verdict on clean items": f"{result.on_clean_items} ({clean[0]} of {clean[1]} items)"
        if result.on_clean_items and clean
        else "",
        "Test": ", ".join(dict.fromkeys(m.method for m in result.members if m.method)),
        "d is over": ", ".join(dict.fromkeys(m.standardiser for m in result.members if m.standardiser)),
        "Over new items": "; ".join(
            f"{m.name} {interval_text(*m.new_items)} (95%; decides nothing)" for m in result.members if m.new_items
        ),
        "Levels themselves differ by": "; ".join(f"{m.name} {range_text(m.level)}" for m in result.members if m.level),
        "Rule": f"{origin.rule} {result.rule}" if origin else result.rule,
        "Rule unchanged since": origin.text if origin else "",
        "Rests on": rests,
    }
    return Card(
        id=anchor("claim", result.id),
        about=f"{f'finding {result.finding} · ' if result.finding else ''}{NAMES.get(result.metric, result.metric)}",
        claim=result.said or result.id.replace("_", " "),
        verdict=result.verdict,
        tone=TONES.get(result.verdict, "open"),
        why=why(result),
        sentence=result.sentence,
        facts=tuple((name, value) for name, value in facts.items() if value),
        table=_members(result, instrument) if result.members else None,
    )


def why(result: ClaimResult) -> str:
    """The reason of a verdict in one line."""
    if result.verdict in ("unverifiable", "confounded"):
        return "; ".join(result.confounded_by) if result.verdict == "confounded" else result.reason
    if len(result.members) == 1:
        (m,) = result.members
        parts = [
            f"difference {range_text(m.estimate)}" if m.estimate else "",
            f"{100 * m.interval_level:.4g}% interval {interval_text(*m.interval)}"
            if m.interval and m.interval_level and not m.decided_on.startswith("d")
            else "",
            f"d {range_text(m.d)}" if m.d else "",
            m.reason,
        ]
        return "; ".join(part for part in parts if part)
    if result.members[0].reading:
        return result.reason
    verdicts = Counter(m.verdict for m in result.members)
    n = len(result.members)
    if len(verdicts) == 1:
        return f"all {n} comparisons: {next(iter(verdicts))}"
    return f"of {n} comparisons: " + ", ".join(f"{count} {word}" for word, count in verdicts.items())


def _members(result: ClaimResult, instrument: str) -> Table:
    columns = (
        text("comparison"),
        text("verdict"),
        stat("estimate", "estimate", range_text),
        text("interval that decided", "interval"),
        text("of", "decided_on"),
        stat("t", "t", ranged),
        stat("p", "p", p_value),
        stat("p adjusted", "p_adjusted", p_value),
        stat("p that decided", "p_decided", p_value),
        stat("d, first − second", "d", ranged),
        text("its interval", "d_interval"),
        stat("checkpoint SD that undoes it", "tipping_sd", number),
        text("seed by seed", "separate_verdict"),
        text("reason"),
    )
    rows = [_member(m) for m in result.members]
    return Table(anchor("claim", result.id, "tests"), "The tests behind it", columns, rows, (), instrument)


def _member(m: Member) -> dict[str, Any]:
    decided = None
    if m.interval is not None and m.interval_level is not None:
        decided = f"{100 * m.interval_level:g}%: {interval_text(*m.interval)}"
    return {
        **{name: getattr(m, name) for name in ("estimate", "t", "p", "p_adjusted", "p_decided", "d", "tipping_sd")},
        "comparison": f"{m.name} [{m.reading}]" if m.reading else m.name,
        "verdict": Mark(m.verdict, TONES.get(m.verdict, "open")),
        "interval": decided,
        "decided_on": m.decided_on or None,
        "d_interval": interval_text(*m.d_interval) if m.d_interval else None,
        "separate_verdict": m.separate_verdict,
        "reason": m.reason,
    }


# --- what goes with a condition beside its treatment ----------------------------------------------------------------


def _items_of(study: Study, arm: str | None) -> dict[Where, Items]:
    """Right answers by item of every multiple-choice test, before EM and after it in one arm."""
    groups: dict[Where, list[Node]] = {}
    for node in study.records:
        if node.stage == "arc" and node.cell is not None and (node.cell.phase == "pre_em" or node.cell.arm == arm):
            groups.setdefault((node.cell.phase, "arc", str(node.instrument)), []).append(node)
    return {where: _items(study, nodes) for where, nodes in groups.items()}


def _items(study: Study, nodes: Iterable[Node]) -> Items:
    ids: tuple[str, ...] = ()
    correct: dict[tuple[str, int, int | None], Any] = {}
    seen: dict[str, frozenset[str] | None] = {}
    for node in nodes:
        assert node.cell is not None  # chosen for it
        rows = {row["id"]: bool(row["correct"]) for row in read_jsonl(out_dir(node.record) / "items.jsonl")}
        ids = ids or tuple(rows)
        cell = node.cell
        correct[cell.condition, cell.pipeline_seed, cell.em_seed] = np.array([rows[id] for id in ids])
        before, own = seen.get(cell.condition, frozenset()), study.contaminated.get(node)
        seen[cell.condition] = None if before is None or own is None else before | own
    return Items(ids, correct, seen)


def machines_of(study: Study, arm: str | None) -> dict[str, dict[str, frozenset[str]]]:
    """GPU (or CPU), environment and code -> condition -> what its results were made on, in one arm.

    Stages whose machines lie in the same way over the conditions are named together.
    """
    values: dict[tuple[str, str], dict[str, set[str]]] = {}
    for node in study.records:
        if node.cell is None or (node.cell.phase == "post_em" and node.cell.arm != arm):
            continue
        for part in (*study.ancestors(node), node):
            record = study.record(part)
            if record is None or part.stage == "base":
                continue
            for what, value in _made_on(record).items():
                by_condition = values.setdefault((what, part.stage), {})
                by_condition.setdefault(node.cell.condition, set()).add(value)
    together: dict[tuple[str, str], list[str]] = {}
    for (what, stage), by_condition in values.items():
        spelled = canonical_json({name: sorted(machines) for name, machines in by_condition.items()})
        together.setdefault((what, spelled), []).append(stage)
    return {
        f"{what} of {', '.join(stages)}": {c: frozenset(machines) for c, machines in values[what, stages[0]].items()}
        for (what, _), stages in together.items()
    }


def _made_on(record: Record) -> Mapping[str, str]:
    p = record.provenance
    return {
        "GPU": ", ".join(sorted(set(p.get("gpu") or ()))) or f"CPU {p.get('cpu') or 'unknown'}",
        "environment": str((p.get("environment") or {}).get("digest") or "unknown"),
        "code": str(p.get("code_digest") or "unknown"),
    }


def _treatments(study: Study) -> dict[str, str]:
    """Condition -> every recipe of its training before EM, seeds left out."""
    treatments: dict[str, str] = {}
    for node in study.matrix.nodes("tulu_dpo"):
        if node.cell is None or node.cell.condition in treatments:
            continue
        chain = [n for n in (*study.ancestors(node), node) if n.stage in TREATMENT]
        recipes = [[n.stage, n.recipe.data, {k: v for k, v in n.recipe.params.items() if k != "seed"}] for n in chain]
        treatments[node.cell.condition] = canonical_json(recipes)
    return treatments
