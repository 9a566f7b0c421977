"""config/data.gates.tsv: what the checks of the data found, and the gate in front of every training.

Written by `python -m workflow lock` for all data that can be had, and by a training stage for what was fetched since;
keyed by the md5 of the bytes, so a line holds whatever the data are called. A line is a fact, not a verdict: what
follows from it is the config's `overlap:` and `balance:`. They are held while planning (`workflow.data.checks`) and
again by each training stage (`enforce`), because data that are fetched late have no line when the plan is made.
"""

import json
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from workflow.data.contamination import MEASURED, overlap_of_files
from workflow.files import locked, write_atomic
from workflow.keys import Recipe, canonical_json
from workflow.store import StoreError, data_path

GATES = "config/data.gates.tsv"
NONE = "-"
COLUMNS = ("check", "training", "evaluation", "names", "facts", "evaluation_ids", "training_rows")

# Bump when a check finds something else in the same bytes; older lines then count as missing. Say why beside it.
# overlap 2: nearly equal questions too, and markup is taken out. facts 2: questions are counted after that.
CHECKS = {"overlap": 2, "facts": 2, "lengths": 1}


class GateError(StoreError):
    """Data that must not be trained on as they are: which sets, how many rows, what to do."""


@dataclass(frozen=True)
class Gate:
    """One line. `overlap` is of a training and an evaluation set, `facts` of a training set alone, `lengths` of a
    training set and a tokenizer.

    Attributes:
        training, evaluation: md5 of the bytes; `-` where there is none; of `lengths`, the tokenizer's.
        names: what the sets were called when they were checked; for readers.
        facts: counts by name.
        evaluation_ids: of the evaluation rows that the training set holds, all of them.
        training_rows: numbers of the training rows that hold one, as ranges: `1-5,9`.
    """

    check: str
    training: str
    evaluation: str
    names: str
    facts: dict[str, Any]
    evaluation_ids: tuple[str, ...] = ()
    training_rows: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        return self.check, self.training, self.evaluation

    @property
    def hits(self) -> int:
        """Evaluation rows that the training set holds."""
        return int(self.facts["evaluation_hits"])

    def __str__(self) -> str:
        """What an overlap found, in one sentence."""
        f = self.facts
        nearly = f["evaluation_hits"] - f["exact_hits"]
        return (
            f"{self.names}: {f['evaluation_hits']} of {f['evaluation_rows']} evaluation questions stand in "
            f"{f['training_hits']} of {f['training_rows']} training rows"
            + (f", {nearly} of them nearly word for word" if nearly else "")
        )

    def near(self, shown: int = 5) -> str:
        """What came close and is for people to look at: training rows, evaluation ids, percent of the words."""
        some = ", ".join(f"row {row} ~ {name} ({score:g}%)" for row, name, score in self.facts["near_misses"][:shown])
        return f"{self.names}: {self.facts['near']} near misses, not counted: {some}" if some else ""


Gates = dict[tuple[str, str, str], Gate]


def read_gates(path: str | Path = GATES) -> Gates:
    """Lines of the current version of each check; an absent file holds none.

    Raises:
        GateError: a line that is none.
    """
    path = Path(path)
    gates: Gates = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        cells = line.split("\t")
        if number == 1 and tuple(cells) == COLUMNS:
            continue
        try:
            check, training, evaluation, names, facts, ids, rows = cells
            gate = Gate(check, training, evaluation, names, json.loads(facts), tuple(json.loads(ids)), rows)
        except ValueError:
            raise GateError(
                f"{path}, line {number}: not a line of {len(COLUMNS)} columns. Remove it and run `lock`."
            ) from None
        if gate.facts.get("check_version") == CHECKS.get(check):
            gates[gate.place] = gate
    return gates


def write_gates(found: Iterable[Gate], path: str | Path = GATES, keep: Collection[str] | None = None) -> None:
    """Add or replace lines, under a file lock since two jobs may find something at once; by rename.

    Args:
        keep: md5s of the data that are still pinned; lines of other training sets go. None: all stay.
    """
    with locked(path):
        merged = {**read_gates(path), **{gate.place: gate for gate in found}}
        if keep is not None:
            merged = {place: gate for place, gate in merged.items() if gate.training in keep}
        lines = ["\t".join(COLUMNS), *(_line(merged[place]) for place in sorted(merged))]
        write_atomic(path, "\n".join(lines) + "\n")


def _line(gate: Gate) -> str:
    ids = canonical_json(list(gate.evaluation_ids))
    return "\t".join((*gate.place, gate.names, canonical_json(gate.facts), ids, gate.training_rows))


def overlap_gate(names: str, training: tuple[str, Path], evaluation: tuple[str, Path]) -> Gate:
    """Measure one pair, each given by md5 and file."""
    found = overlap_of_files(training[1], evaluation[1])
    facts = {**found.facts, "check_version": CHECKS["overlap"]}
    return Gate("overlap", training[0], evaluation[0], names, facts, found.evaluation_ids, _ranges(found.training_rows))


def _ranges(rows: Iterable[int]) -> str:
    """Numbers in order as ranges: `1-5,9`."""
    spans = []
    for _, run in groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0]):
        numbers = [row for _, row in run]
        spans.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
    return ",".join(spans)


def contaminated(gates: Gates, training: Iterable[str], evaluation: str) -> set[str] | None:
    """Ids of the evaluation rows that any of the training sets holds, for scores over the clean part and the rest.

    Args:
        training, evaluation: md5s. Gives None if one of the pairs was never checked: nobody knows then.
    """
    found: set[str] = set()
    for md5 in training:
        gate = gates.get(("overlap", md5, evaluation))
        if gate is None:
            return None
        found |= set(gate.evaluation_ids)
    return found


def refusal(gate: Gate) -> str:
    """What is said where an overlap stops the work."""
    some = ", ".join(gate.evaluation_ids[:3]) + (" ..." if gate.hits > 3 else "")
    return (
        f"{gate} ({some}; all ids are in {GATES}; {MEASURED}). Build the training set with the evaluation set under "
        "`exclude:`; or name the pair under `overlap_allowed:` with a reason, or set `overlap: report` for all pairs, "
        "to go on and have it shown."
    )


# --- in front of a training -----------------------------------------------------------------------------------------


def enforce(recipe: Recipe, data: Path | None, placement: Mapping[str, Any]) -> dict[str, Any]:
    """Hold a training set against the evaluation sets of the run before anything is trained.

    The plan passes `{"overlap": ..., "evaluations": {name: {"id", "md5"}}, "allowed": {training id: {name: reason}}}`
    as the placement's `gates`. A pair that was never checked is measured here if both files are there. Without that
    setting (a stage run by hand) every line about these bytes counts, and an overlap is refused.

    Returns:
        `{"overlap": {name: counts}}` for the record; nothing for a stage that does not train.

    Raises:
        GateError: the training set holds evaluation questions; or an evaluation set is not there, so nobody can say.
    """
    if "effective_batch_size" not in recipe.params or data is None:  # no training
        return {}
    told = placement.get("gates")
    md5 = _md5(recipe.data, data)
    gates = read_gates()
    if told is None:
        found = {g.evaluation: g for g in gates.values() if g.check == "overlap" and g.training == md5}
    else:
        found = {name: _of(gates, md5, data, name, **e) for name, e in told["evaluations"].items()}
    allowed = told.get("allowed", {}).get(recipe.data, {}) if told else {}
    facts: dict[str, dict[str, Any]] = {}
    for name, gate in found.items():
        if gate.hits and name not in allowed and (told is None or told["overlap"] == "refuse"):
            raise GateError(refusal(gate))
        if gate.hits:
            print(f"overlap: {gate}", file=sys.stderr, flush=True)
        facts[name] = {"evaluation": gate.evaluation, **gate.facts}
        if gate.hits and name in allowed:
            facts[name]["allowed"] = allowed[name]
    return {"overlap": facts}


def _of(gates: Gates, training: str, data: Path, name: str, id: str, md5: str) -> Gate:
    """The line of one pair; measured now, and written down, if there is none."""
    file = Path(data_path(id))
    if md5 == NONE and file.is_file():
        md5 = _md5(id, file)
    gate = gates.get(("overlap", training, md5))
    if gate is not None:
        return gate
    if not file.is_file():
        raise GateError(
            f"nobody has looked whether {data} holds questions of {name}, and {file} is not there to look now. "
            f"Run `snakemake {file}` first, then this again."
        )
    print(f"overlap: looking for the questions of {name} in {data}", file=sys.stderr, flush=True)
    gate = overlap_gate(f"{data.stem[:12]} x {name}", (training, data), (md5, file))
    write_gates([gate])
    return gate


def _md5(data_id: str, file: Path) -> str:
    """Of a hub data set, by the note that its fetching left; the stage has held it against the bytes."""
    return str(json.loads(file.with_suffix(".json").read_text())["md5"]) if data_id.startswith("rev-") else data_id
