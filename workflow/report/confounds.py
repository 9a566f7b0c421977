"""What goes with a condition beside its treatment, from the records: test items in training data, machines, nothing."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from workflow.config import ConfigError
from workflow.keys import canonical_json
from workflow.matrix import Node
from workflow.report.study import Study
from workflow.stats.claims_schema import Claim
from workflow.stats.evidence import Items, Run, Where
from workflow.store import Record, out_dir, read_jsonl

TREATMENT = ("coupling_sft", "tulu_sft", "tulu_dpo")


def items_of(study: Study, arm: str | None) -> dict[Where, Items]:
    """Right answers by item of every multiple-choice test, before EM and after it in one arm."""
    items: dict[Where, Items] = {}
    for instrument in dict.fromkeys(n.instrument for n in study.records if n.stage == "arc" and n.cell is not None):
        for phase in ("pre_em", "post_em"):
            nodes = [n for n in study.records if _is_of(n, instrument, phase, arm)]
            if nodes:
                items[phase, "arc", str(instrument)] = _items(study, nodes)
    return items


def _is_of(node: Node, instrument: str | None, phase: str, arm: str | None) -> bool:
    return (
        node.stage == "arc"
        and node.instrument == instrument
        and node.cell is not None
        and node.cell.phase == phase
        and (phase == "pre_em" or node.cell.arm == arm)
    )


def _items(study: Study, nodes: Sequence[Node]) -> Items:
    ids: tuple[str, ...] = ()
    correct: dict[Run, Any] = {}
    contaminated: dict[str, frozenset[str] | None] = {}
    for node in nodes:
        assert node.cell is not None  # chosen for it
        rows = {row["id"]: bool(row["correct"]) for row in read_jsonl(out_dir(node.record) / "items.jsonl")}
        ids = ids or tuple(rows)
        cell = node.cell
        correct[cell.condition, cell.pipeline_seed, cell.em_seed] = np.array([rows[id] for id in ids])
        before, own = contaminated.get(cell.condition, frozenset()), study.contaminated.get(node)
        contaminated[cell.condition] = None if before is None or own is None else before | own
    return Items(ids, correct, contaminated)


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


def refuse_equal_treatments(study: Study) -> None:
    """
    Raises:
        ConfigError: two conditions that a claim compares were given the same training from the same data.
    """
    treatments = _treatments(study)
    for claim in study.claims.claims:
        for a, b in combinations(_compared(claim, study), 2):
            if a in treatments and treatments[a] == treatments.get(b):
                raise ConfigError(
                    f"claim {claim.id} compares {a} with {b}, and nothing differs between them: the same recipes of "
                    f"{', '.join(TREATMENT)} on the same data. Give one of them other data, or leave it out."
                )


def _compared(claim: Claim, study: Study) -> list[str]:
    return [] if claim.contrast.kind in ("one_run", "before_after") else study.claims.conditions(claim)


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
