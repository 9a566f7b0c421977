"""Everything that a report is made from, read once: the plan, the records, the scores, what is claimed and what is not
to be used. The expected cells come from the plan, never from a listing of files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from workflow.accepted import Acceptance, read_accepted
from workflow.config import Config
from workflow.data.gates import contaminated, read_gates
from workflow.fingerprint import Comparison, compare, fingerprint
from workflow.links import read_reference
from workflow.matrix import MEASURING, Matrix, Node
from workflow.report import scores
from workflow.report.published_table import PublishedTable, load_published_table
from workflow.retractions import read_retractions, retracted
from workflow.stats.claims_schema import Claims, load_claims
from workflow.stats.samples import Sample
from workflow.stats.table import NoSharedSeed, check_scores, samples
from workflow.store import Record, StoreError, out_dir, read_jsonl, read_record

CLAIMS = "config/claims.yaml"
PUBLISHED = "reference/published_table.yaml"
SCORED = "Scores by "  # begins every note that names a rule-based scorer
EMBEDDED = "embedded"  # the judge's placement when the scores come from the rule-based scorer


@dataclass(frozen=True)
class Place:
    """One metric by one instrument."""

    instrument: str
    metric: str
    unit: str


@dataclass(frozen=True)
class Study:
    """A plan with its records. `records` holds what is finished and not retracted; `missing` what the plan wants and
    is not there; `retracted` the reason by node."""

    matrix: Matrix
    records: Mapping[Node, Record]
    missing: tuple[Node, ...]
    retracted: Mapping[Node, str]
    rows: tuple[scores.Row, ...]
    withdrawn_rows: tuple[scores.Row, ...]
    claims: Claims
    published: PublishedTable | None
    upstream: Mapping[Node, Record] = field(default_factory=dict)
    contaminated: Mapping[Node, frozenset[str] | None] = field(default_factory=dict)  # None: nobody has looked

    @property
    def config(self) -> Config:
        return self.matrix.config

    @cached_property
    def conditions(self) -> list[str]:
        return [c.name for c in self.config.conditions if c.enabled]

    @cached_property
    def accepted(self) -> tuple[Acceptance, ...]:
        """Codes that somebody says give the same numbers."""
        return read_accepted()

    @cached_property
    def arms(self) -> list[str | None]:
        return [arm.name for arm in self.config.arms]

    @cached_property
    def is_toy(self) -> bool:
        return self.config.base_model.kind == "toy"

    @cached_property
    def _frames(self) -> dict[str | None, pd.DataFrame | None]:
        kept = {arm: [r for r in self.rows if r["phase"] == "pre_em" or r["arm"] == arm] for arm in self.arms}
        return {arm: check_scores(rows) if rows else None for arm, rows in kept.items()}

    def frame(self, arm: str | None) -> pd.DataFrame | None:
        """The scores of one arm with those before EM; None when there are none."""
        return self._frames[arm]

    @cached_property
    def places(self) -> list[Place]:
        """Instrument and metric, in the order of the config and of the scores."""
        c = self.config
        judged = [i.of(judge) for i in c.instruments for judge in (i.judge, *i.panel)]
        names = [*(a.name for a in c.arc), *judged, *(e.name for e in c.lm_eval), *(p.name for p in c.pairs)]
        order = {name: n for n, name in enumerate(names)}
        found = dict.fromkeys((r["instrument"], r["metric"], r["unit"]) for r in self.rows)
        return [Place(*place) for place in sorted(found, key=lambda place: order[place[0]])]

    def places_of(self, *metrics: str) -> list[Place]:
        return [place for place in self.places if place.metric in metrics]

    def sample(self, arm: str | None, phase: str, place: Place) -> dict[str, Sample]:
        """Replicates by condition, in the config's order; empty where nothing was measured or no unit is shared."""
        frame = self.frame(arm)
        if frame is None:
            return {}
        try:
            found = samples(frame, place.metric, phase, place.instrument)
        except NoSharedSeed:
            return {}
        return {name: found[name] for name in self.conditions if name in found}

    def planned(self, arm: str | None, phase: str, instrument: str, condition: str) -> int:
        """How many results of this kind the plan wants."""
        return sum(
            1
            for node in self.matrix.nodes(*MEASURING)
            if node.cell is not None
            and (node.instrument, node.cell.condition, node.cell.phase) == (instrument, condition, phase)
            and (phase == "pre_em" or node.cell.arm == arm)
        )

    @cached_property
    def scorers(self) -> dict[str, str]:
        """Instrument -> name of the rule-based scorer that made its scores, for those that no model judged."""
        return {
            str(node.instrument): str(record.recipe.params["model"])
            for node, record in self.records.items()
            if node.stage == "judge" and record.observed.get("placement", {}).get("base_url") == EMBEDDED
        }

    def judge_note(self, instrument: str) -> str:
        """What must stand under every table of that instrument's scores."""
        name = self.scorers.get(instrument)
        return (
            f"{SCORED}{name}: a rule-based scorer that reads words, not meaning; no model judged these texts."
            if name
            else ""
        )

    def ancestors(self, node: Node) -> list[Node]:
        """What a result was made from, parents before children; a reference if these are the bytes that it read."""
        found: dict[Node, None] = {}
        reference = (node.reference,) if node.reference in self.upstream else ()
        for parent in (*node.parents, *reference):
            for older in (*self.ancestors(parent), parent):
                found[older] = None
        return list(found)

    def record(self, node: Node) -> Record | None:
        return self.records.get(node) or self.upstream.get(node)

    def compare(self, nodes: Iterable[Node], whole_chain: bool = True) -> Comparison:
        """Protocols of cells that stand in one table; of the measurements alone, to subtract one from another."""
        prints = {}
        for node in nodes:
            chain = [*(self.ancestors(node) if whole_chain else node.parents[:1] * (node.stage == "judge")), node]
            found = [record for part in chain if (record := self.record(part)) is not None]
            prints[node.label] = fingerprint(found, accepted=self.accepted)
        return compare(prints, self.config.waivers)


def load_study(matrix: Matrix, records: Mapping[Node, Record]) -> Study:
    """Read what lies behind the evaluation records.

    Raises:
        StoreError: a record behind them is not there or is not what it claims to be.
    """
    withdrawn = retracted(matrix, read_retractions())
    wanted = [node for node in matrix.nodes(*MEASURING) if node not in withdrawn]
    kept = {node: records[node] for node in wanted if node in records}
    upstream = _upstream([*kept, *(node for node in withdrawn if node in records)])
    gates = read_gates()

    tests = {**kept, **{node: records[node] for node in withdrawn if node in records}}
    seen = {n: _contaminated(n, r, upstream, gates) for n, r in tests.items() if n.stage == "arc"}

    def numbers(node: Node, record: Record) -> list[scores.Row]:
        return scores.rows(node, record, _split(node, seen[node]) if node.stage == "arc" else None)

    return Study(
        matrix=matrix,
        records=kept,
        missing=tuple(node for node in wanted if node not in records),
        retracted=withdrawn,
        rows=tuple(row for node, record in kept.items() for row in numbers(node, record)),
        withdrawn_rows=tuple(row for node in withdrawn if node in records for row in numbers(node, records[node])),
        claims=load_claims(CLAIMS),
        published=load_published_table(PUBLISHED) if Path(PUBLISHED).exists() else None,
        upstream=upstream,
        contaminated=seen,
    )


def _upstream(nodes: Iterable[Node]) -> dict[Node, Record]:
    """The records of everything that these were made from, each read once."""
    found: dict[Node, Record] = {}
    pending = [parent for node in nodes for parent in node.parents]
    while pending:
        node = pending.pop(0)
        if node not in found:
            found[node] = read_record(node.record)
            pending += node.parents
            if (reference := read_reference(node, found[node].observed)) is not None:
                pending.append(reference)
    return found


def _split(node: Node, held: frozenset[str] | None) -> dict[str, tuple[int, int]] | None:
    """Correct and all items outside and inside this model's own training data; None if nobody has looked."""
    return None if held is None else scores.arc_split(read_jsonl(out_dir(node.record) / "items.jsonl"), set(held))


def _contaminated(node: Node, record: Record, upstream: Mapping[Node, Record], gates: Any) -> frozenset[str] | None:
    """Ids of the test items in this model's own training data; None if nobody has looked."""
    evaluation = record.observed.get("data_facts", {}).get("md5")
    trained: list[str | None] = []
    pending = list(node.parents)
    while pending:
        parent = pending.pop()
        pending += parent.parents
        if parent.stage != "base":
            trained.append(upstream[parent].observed.get("data_facts", {}).get("md5"))
    if evaluation is None or None in trained:
        return None
    held = contaminated(gates, [md5 for md5 in trained if md5], evaluation)
    return None if held is None else frozenset(held)


def completions_of(study: Study, node: Node) -> list[dict[str, Any]]:
    """The completions behind a judge's record, held against the digest that the judge saw.

    Raises:
        StoreError: they are not what was judged.
    """
    parent = node.parents[0]
    record, judged = study.record(parent), study.records[node]
    if record is None or judged.inputs["generate"].digest != record.digest:
        raise StoreError(
            f"{parent.record}: not the completions that {node.record} judged. Run `snakemake {node.record}`."
        )
    return read_jsonl(out_dir(parent.record) / "completions.jsonl")
