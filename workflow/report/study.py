"""Everything that a report is made from, read once: the plan, the records, the numbers, what is claimed, retracted and
unused. The expected cells come from the plan, never from a listing of files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from workflow.accepted import Acceptance, read_accepted
from workflow.config import Config
from workflow.data.gates import contaminated, read_gates
from workflow.fingerprint import Comparison, Fingerprint, compare, fingerprint
from workflow.links import read_reference
from workflow.matrix import MEASURING, Matrix, Node
from workflow.report.numbers import Number, arc_split, frame_of, identity, numbers_of
from workflow.report.page import anchor, link
from workflow.report.published import PUBLISHED, PublishedTable, load_published_table
from workflow.retractions import read_retractions, retracted
from workflow.stats.claims_schema import Claims, load_claims
from workflow.stats.samples import Sample
from workflow.stats.table import NoSharedSeed, check_scores, samples
from workflow.store import Record, StoreError, out_dir, read_jsonl, read_record

CLAIMS = "config/claims.yaml"
EMBEDDED = "embedded"  # the judge's placement when the scores come from the rule-based scorer

NAMES = {
    "arc": "ARC accuracy",
    "alignment": "Alignment",
    "coherence": "Coherence",
    "coherent": "coherent",
    "misaligned_of_all": "misaligned of all",
    "misaligned_of_coherent": "misaligned of coherent",
    "preference_margin": "Preference margin",
    "preference_accuracy": "Preference accuracy",
}


class Place(NamedTuple):
    """One metric by one instrument."""

    instrument: str
    metric: str
    unit: str


@dataclass(frozen=True)
class Study:
    """A plan with its records.

    Attributes:
        records: what is finished and not retracted. missing: what the plan wants and is not there.
        retracted: the reason by node.
        rows: every number, whatever its state.
        upstream: records of everything that the results were made from.
        contaminated: ids of test items in the training data of a model; None where nobody has looked.
    """

    matrix: Matrix
    records: Mapping[Node, Record]
    missing: tuple[Node, ...]
    retracted: Mapping[Node, str]
    rows: tuple[Number, ...]
    claims: Claims
    published: PublishedTable | None = None
    upstream: Mapping[Node, Record] = field(default_factory=dict)
    contaminated: Mapping[Node, frozenset[str] | None] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        return self.matrix.config

    @cached_property
    def conditions(self) -> list[str]:
        return [c.name for c in self.config.conditions if c.enabled]

    @cached_property
    def controls(self) -> list[str]:
        """Conditions without a coupling stage."""
        return [c.name for c in self.config.conditions if c.enabled and c.data.coupling_sft is None]

    @cached_property
    def arms(self) -> list[str | None]:
        return [arm.name for arm in self.config.arms]

    @cached_property
    def accepted(self) -> tuple[Acceptance, ...]:
        """Codes that somebody says give the same numbers."""
        return read_accepted()

    @property
    def is_toy(self) -> bool:
        return self.config.base_model.kind == "toy"

    # --- numbers ----------------------------------------------------------------------------------------------------

    @cached_property
    def numbers(self) -> pd.DataFrame:
        """One row per number, and one without a value per result that is missing."""
        absent = [{**identity(node), "state": "missing"} for node in self.missing if node.cell is not None]
        return frame_of([*self.rows, *absent])

    @cached_property
    def _frames(self) -> dict[str | None, pd.DataFrame | None]:
        used = self.numbers[self.numbers["state"] == "used"]
        arms = {arm: used["arm"].isna() if arm is None else used["arm"] == arm for arm in self.arms}
        kept = {arm: used[(used["phase"] == "pre_em") | of_arm] for arm, of_arm in arms.items()}
        return {arm: None if rows.empty else check_scores(rows) for arm, rows in kept.items()}

    def frame(self, arm: str | None) -> pd.DataFrame | None:
        """The scores of one arm with those before EM; None when there are none."""
        return self._frames[arm]

    @cached_property
    def _used(self) -> dict[tuple[Any, ...], list[Number]]:
        groups: dict[tuple[Any, ...], list[Number]] = {}
        for row in self.rows:
            if row["state"] == "used":
                key = (row["instrument"], row["metric"], row["phase"], row["arm"], row["condition"])
                groups.setdefault(key, []).append(row)
        return groups

    def values(self, instrument: str, metric: str, phase: str, arm: str | None, condition: str) -> list[Number]:
        """The rows of one metric and condition; before EM there is no arm."""
        return self._used.get((instrument, metric, phase, arm if phase == "post_em" else None, condition), [])

    @cached_property
    def instruments(self) -> list[str]:
        """Names in the config's order; every judge of a panel is one."""
        c = self.config
        judged = [i.of(judge) for i in c.instruments for judge in (i.judge, *i.panel)]
        return [*(a.name for a in c.arc), *judged, *(e.name for e in c.lm_eval), *(p.name for p in c.pairs)]

    @cached_property
    def places(self) -> list[Place]:
        """Instrument and metric, in the order of the config and of the scores."""
        order = {name: n for n, name in enumerate(self.instruments)}
        used = dict.fromkeys(Place(r["instrument"], r["metric"], r["unit"]) for r in self.rows if r["state"] == "used")
        return sorted(used, key=lambda place: order[place.instrument])

    def places_of(self, *metrics: str) -> list[Place]:
        return [place for place in self.places if place.metric in metrics]

    @cached_property
    def _samples(self) -> dict[tuple[str | None, str, Place], dict[str, Sample]]:
        return {}

    def sample(self, arm: str | None, phase: str, place: Place) -> dict[str, Sample]:
        """Replicates by condition, in the config's order; empty where nothing was measured or no unit is shared."""
        key = (arm, phase, place)
        if key not in self._samples:
            frame = self.frame(arm)
            try:
                cells = {} if frame is None else samples(frame, place.metric, phase, place.instrument)
            except NoSharedSeed:
                cells = {}
            self._samples[key] = {name: cells[name] for name in self.conditions if name in cells}
        return self._samples[key]

    def planned(self, arm: str | None, phase: str, instrument: str, condition: str) -> int:
        """How many results of this kind the plan wants."""
        return self._planned.get((instrument, condition, phase, arm if phase == "post_em" else None), 0)

    @cached_property
    def _planned(self) -> dict[tuple[Any, ...], int]:
        counts: dict[tuple[Any, ...], int] = {}
        for node in self.matrix.nodes(*MEASURING):
            if node.cell is not None:
                key = (node.instrument, node.cell.condition, node.cell.phase, node.cell.arm)
                counts[key] = counts.get(key, 0) + 1
        return counts

    # --- judges -----------------------------------------------------------------------------------------------------

    @cached_property
    def scorers(self) -> dict[str, str]:
        """Instrument -> name of the rule-based scorer that made its scores, for those that no model judged."""
        return {
            str(node.instrument): str(record.recipe.params["model"])
            for node, record in self.records.items()
            if node.stage == "judge" and record.observed.get("placement", {}).get("base_url") == EMBEDDED
        }

    def judge_note(self, instrument: str) -> str:
        """What stands under every table of that instrument's scores."""
        name = self.scorers.get(instrument)
        return f"Scores by {name}, which reads words and not meaning: no model judged these texts." if name else ""

    # --- what results were made from --------------------------------------------------------------------------------

    def ancestors(self, node: Node) -> list[Node]:
        """What a result was made from, parents before children; a reference if these are the bytes that it read."""
        above: dict[Node, None] = {}
        reference = (node.reference,) if node.reference in self.upstream else ()
        for parent in (*node.parents, *reference):
            for older in (*self.ancestors(parent), parent):
                above[older] = None
        return list(above)

    def record(self, node: Node) -> Record | None:
        return self.records.get(node) or self.upstream.get(node)

    @cached_property
    def _prints(self) -> dict[tuple[Node, bool], Fingerprint]:
        return {}

    def fingerprint(self, node: Node, whole_chain: bool = True) -> Fingerprint:
        """Of a result with everything behind it, or of the measurement alone."""
        if (node, whole_chain) not in self._prints:
            above = self.ancestors(node) if whole_chain else node.parents[:1] * (node.stage == "judge")
            known = [record for part in (*above, node) if (record := self.record(part)) is not None]
            self._prints[node, whole_chain] = fingerprint(known, accepted=self.accepted)
        return self._prints[node, whole_chain]

    def compare(self, nodes: Iterable[Node], whole_chain: bool = True) -> Comparison:
        """Protocols of cells that stand in one table; of the measurements alone, to subtract one from another."""
        prints = {node.label: self.fingerprint(node, whole_chain) for node in nodes}
        return compare(prints, self.config.waivers)


def cell_page(label: str, instrument: str) -> str:
    """The page of a cell by one instrument, relative to the report's folder."""
    return f"cells/{label}/{instrument.replace('/', '-')}.html"


def title_of(study: Study, arm: str | None, place: Place) -> str:
    """`Alignment (demo_questions, points 0-100)`, with the arm where there are several."""
    named = f", arm {arm or 'main'}" if len(study.arms) > 1 else ""
    return f"{NAMES.get(place.metric, place.metric)} ({place.instrument}, {place.unit}{named})"


def numbers_link(arm: str | None, phase: str, place: Place, condition: str = "") -> str:
    """The place of the page that lists the values of a metric, or of one condition."""
    return link(
        anchor("numbers", arm if phase == "post_em" else None, phase, place.instrument, place.metric, condition)
    )


# --- reading --------------------------------------------------------------------------------------------------------


def load_study(matrix: Matrix, records: Mapping[Node, Record]) -> Study:
    """Read what lies behind the evaluation records.

    Raises:
        StoreError: a record behind them is not there or is not what it claims to be.
    """
    withdrawn = retracted(matrix, read_retractions())
    wanted = [node for node in matrix.nodes(*MEASURING) if node not in withdrawn]
    kept = {node: records[node] for node in wanted if node in records}
    gone = {node: records[node] for node in withdrawn if node in records}
    upstream = _upstream([*kept, *gone])
    gates = read_gates()
    seen = {n: _contaminated(n, r, upstream, gates) for n, r in {**kept, **gone}.items() if n.stage == "arc"}
    rows = [row for node, record in kept.items() for row in numbers_of(node, record, _split(node, seen))]
    rows += [row for node, record in gone.items() for row in numbers_of(node, record, _split(node, seen), "retracted")]
    return Study(
        matrix=matrix,
        records=kept,
        missing=tuple(node for node in wanted if node not in records),
        retracted=withdrawn,
        rows=tuple(rows),
        claims=load_claims(CLAIMS),
        published=load_published_table(PUBLISHED) if Path(PUBLISHED).exists() else None,
        upstream=upstream,
        contaminated=seen,
    )


def finished(matrix: Matrix) -> dict[Node, Record]:
    """Measurements of the plan that are there; one that is there and broken is an error."""
    return {node: read_record(node.record) for node in matrix.report.parents if Path(node.record).exists()}


def _upstream(nodes: Iterable[Node]) -> dict[Node, Record]:
    """The records of everything that these were made from, each read once."""
    above: dict[Node, Record] = {}
    pending = [parent for node in nodes for parent in node.parents]
    while pending:
        node = pending.pop()
        if node not in above:
            above[node] = read_record(node.record)
            pending += node.parents
            if (reference := read_reference(node, above[node].observed)) is not None:
                pending.append(reference)
    return above


def _split(node: Node, seen: Mapping[Node, frozenset[str] | None]) -> dict[str, tuple[int, int]] | None:
    """Correct and all items outside and inside this model's own training data; None if nobody has looked."""
    ids = seen.get(node)
    return None if ids is None else arc_split(read_jsonl(out_dir(node.record) / "items.jsonl"), ids)


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
