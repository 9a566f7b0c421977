"""The protocol of a cell, from what its records observed: which cells may stand in one table.

    prints = {label: fingerprint(records_of(label)) for label in cells}
    comparison = compare(prints, config.waivers)
    comparison.require()                  # raises ProtocolError, every field named with its values and cells
    comparison.footnotes, .waived         # to be printed under the table

The records of a cell are those behind one number: `base`, the training stages it went through, and the evaluation that
measured it. Give the evaluation's records alone to ask whether two *measurements* may be subtracted, such as those
before and after EM.

Fields are of
- **protocol**: what was done. It must agree.
- **environment**: packages and their lock. It must agree too: numbers have moved with a version of torch.
- **code**: the code's digest. It must agree, unless config/accepted.yaml says that the change moved no number.
- **placement**: how the work lay on which machine. It may differ, with a footnote.

What is manipulated is no protocol: seeds, and everything that the data set of a `manipulated` stage decides. A
manipulated stage may also be absent, as in the control. A fact that a record lacks is a difference: nobody can tell
what was done. A declaration that the same record's observation contradicts is one as well, even in a cell of its own.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from workflow.accepted import Acceptance, equivalents
from workflow.errors import UserError
from workflow.keys import canonical_json, digest
from workflow.matrix import TRAINING
from workflow.sections import Waiver
from workflow.store import Record

Kind = Literal["protocol", "environment", "placement", "code"]
Level = Literal["equal", "placement", "different"]

MANIPULATED = ("coupling_sft",)
REFERENCE = "dpo_reference"  # older results of tulu_dpo computed it themselves
ABSENT = "not recorded"

# Observed facts by stage. A training stage that lacks one of them has no known protocol.
_COUNTS = ("effective_batch_size", "optimizer_steps", "epochs", "rows", "rows_dropped", "sequences")
_CONTENT = ("rows_truncated", "tokens", "loss_tokens")  # decided by the texts, so free where these are manipulated
_OBSERVED: dict[str, tuple[str, ...]] = {
    "base": ("template_md5",),
    REFERENCE: ("rows", "template_md5"),
    **dict.fromkeys(TRAINING, (*_COUNTS, *_CONTENT, "template_md5")),
    "arc": ("rows", "template_md5", "letter_tokens"),
    "generate": ("rows", "questions", "sampler", "backend", "template_md5"),
    "judge": ("rows", "judge.models"),
}
_BUILT = ("rows", "unique_questions", "excluded", "excluded_by")  # of a manipulated data set: what its cells share
_PLACED = ("world_size", "per_device_train_batch_size", "gradient_accumulation_steps")
_PLACEMENT = ("strategy", "gradient_checkpointing", "attn_implementation", "batch_size")


class ProtocolError(UserError, ValueError):
    """Cells of different protocols in one table: every field, its values, and the cells that hold each."""


@dataclass(frozen=True)
class Fingerprint:
    """Fields of one cell by kind, each `stage.name` -> canonical JSON.

    Attributes:
        faults: field -> what contradicts it: `declared 16, observed 128`.
        free: stages of the cell whose absence elsewhere is no difference.
        dirty: stages that were run from code with uncommitted changes.
        codes: by stage the code that made it, where another one is accepted as its equal.
    """

    fields: Mapping[Kind, Mapping[str, str]]
    faults: Mapping[str, str]
    free: frozenset[str]
    dirty: tuple[str, ...]
    codes: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """12 hex over the protocol fields alone; equal for cells that may be compared. Short, to stand in a table."""
        return digest("fingerprint", dict(self.fields["protocol"]))[:12]


@dataclass(frozen=True)
class Difference:
    """One field whose values differ. `values`: (value, cells), the most common value first."""

    field: str
    kind: Kind
    values: tuple[tuple[str, tuple[str, ...]], ...]

    def __str__(self) -> str:
        return f"{self.field}: " + "; ".join(f"{value} in {_names(cells)}" for value, cells in self.values)


@dataclass(frozen=True)
class Waived:
    """A difference that the config lets stand; `str()` is what the report must print."""

    difference: Difference
    reason: str

    def __str__(self) -> str:
        return f"{self.difference} (waived: {self.reason})"


@dataclass(frozen=True)
class Comparison:
    """What stands between cells and one table.

    Attributes:
        dirty: cells made by code with uncommitted changes.
        accepted: stages whose cells were made by different codes that count as one, with the codes.
    """

    footnotes: tuple[Difference, ...]
    refusals: tuple[Difference, ...]
    waived: tuple[Waived, ...]
    dirty: tuple[str, ...]
    accepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def level(self) -> Level:
        if self.refusals or self.waived:
            return "different"
        return "placement" if self.footnotes else "equal"

    def _on_code(self) -> str:
        stages = sorted({d.field.split(".")[0].split("[")[0] for d in self.refusals if d.kind == "code"})
        if not stages:
            return ""
        return (
            f"\nOf code: bump the version of {', '.join(stages)} in workflow/matrix.py if numbers may have moved, or "
            f"run `python -m workflow accept {stages[0]} --reason ...` if none did."
        )

    def odd_cells(self) -> tuple[str, ...]:
        """Cells that hold another value than most in a field that must agree, waived or not."""
        found = [*self.refusals, *(w.difference for w in self.waived)]
        return tuple(dict.fromkeys(cell for d in found for _, cells in d.values[1:] or d.values for cell in cells))

    def require(self) -> None:
        """Raise a ProtocolError if any difference has no waiver."""
        if self.refusals:
            raise ProtocolError(
                "these cells do not share one protocol:\n"
                + "\n".join(f"  {d}" for d in self.refusals)
                + "\nRun the odd ones again, leave them out, or give `waivers:` with a reason, which the report prints."
                + self._on_code()
            )


# --- one cell -------------------------------------------------------------------------------------------------------


def fingerprint(
    records: Iterable[Record],
    manipulated: Collection[str] = MANIPULATED,
    accepted: Sequence[Acceptance] = (),
) -> Fingerprint:
    """Fingerprint of the records of one cell, in any order.

    Args:
        manipulated: stages whose data set is what the cells differ in by design. Add `em_lora` to compare arms.
        accepted: codes of a stage that count as one.
    """
    ordered = sorted(records, key=lambda r: (r.stage, r.key))
    names = _unique_names(ordered)
    fields: dict[Kind, dict[str, str]] = {"protocol": {}, "environment": {}, "placement": {}, "code": {}}
    faults: dict[str, str] = {}
    codes: dict[str, str] = {}
    for record, name in zip(ordered, names, strict=True):
        for kind, found in _fields(record, record.stage in manipulated).items():
            fields[kind] |= {f"{name}.{field}": _spell(value) for field, value in found.items()}
        code = record.provenance.get("code_digest")
        same = equivalents(tuple(accepted), record.stage, code)
        fields["code"][f"{name}.code_digest"] = _spell(min(filter(None, same), default=None))
        if len(same) > 1:
            codes[name] = str(code)
        faults |= {f"{name}.{field}": told for field, told in _faults(record).items()}
    free = frozenset(n for r, n in zip(ordered, names, strict=True) if r.stage in {*manipulated, REFERENCE})
    dirty = tuple(n for r, n in zip(ordered, names, strict=True) if r.provenance.get("dirty"))
    return Fingerprint(fields, faults, free, dirty, codes)


def _unique_names(records: Sequence[Record]) -> list[str]:
    """The stage; with the start of its data's id, where a cell was measured by several instruments of one stage."""
    counts = Counter(r.stage for r in records)
    names = [r.stage if counts[r.stage] == 1 else f"{r.stage}[{_instrument(r)}]" for r in records]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)}: two records of one cell and instrument. Give one cell at a time.")
    return names


def _instrument(record: Record) -> str:
    # a judge's data are its prompts: the question set stands in its parent's key
    data = record.key.split("-")[0]
    return f"{record.recipe.parents[0].split('-')[0]}/{data}" if record.stage == "judge" else data


def _fields(record: Record, manipulated: bool) -> dict[Kind, dict[str, Any]]:
    observed, made = record.observed, record.provenance
    facts = [f for f in _OBSERVED.get(record.stage, ()) if not (manipulated and f in _CONTENT)]
    # what was observed stands for what was declared under the same name; `_faults` tells where the two differ
    protocol: dict[str, Any] = {"version": record.recipe.version, **_declared(record)}
    for fact in facts:
        value = _get(observed, fact)
        protocol |= _flat({fact: value}) if value is not None else {fact: None}
    if manipulated:
        protocol |= {f"data_facts.{f}": _get(observed, f"data_facts.{f}") for f in _BUILT}
    else:
        protocol["data"] = record.recipe.data
    placed = {f: _get(observed, f) for f in _PLACED} if record.stage in TRAINING else {}
    placed |= {f: v for f in _PLACEMENT if (v := _get(observed, f"placement.{f}")) is not None}
    placed |= {"gpu": made.get("gpu"), "cpu": made.get("cpu")}
    python = ".".join(str(made.get("python") or "").split(".")[:2]) or None
    environment = {
        "environment": _get(made, "environment.digest"),
        "python": python,
        **_flat({"packages": made.get("packages")}),
    }
    return {"protocol": protocol, "environment": environment, "placement": placed}


def _declared(record: Record) -> dict[str, str]:
    """The recipe's parameters, spelled; a training's seed is manipulated, the template stands in template_md5."""
    skip = "seed" if record.stage in (*TRAINING, REFERENCE) else "template"
    return {name: "null" if v is None else _spell(v) for name, v in _flat(record.recipe.params).items() if name != skip}


def _faults(record: Record) -> dict[str, str]:
    """Observations that the record's own declarations contradict."""
    o, p = record.observed, record.recipe.params
    declared = dict(_declared(record))
    if record.stage in TRAINING and all(type(o.get(name)) is int for name in (*_COUNTS, *_PLACED)):
        made = o["world_size"] * o["per_device_train_batch_size"] * o["gradient_accumulation_steps"]
        steps = p["num_train_epochs"] * -(-o["sequences"] // p["effective_batch_size"])
        declared |= {"optimizer_steps": str(steps), "epochs": str(p["num_train_epochs"])}
        declared["world_size"] = _spell(_get(o, "placement.world_size"))
        if made != o["effective_batch_size"] == p["effective_batch_size"]:
            declared["effective_batch_size"] = f"{made} by world size, batch and accumulation"
    observed = {name: _spell(v) for name, v in _flat(o).items() if name in declared}
    return {name: f"declared {declared[name]}, observed {v}" for name, v in observed.items() if v != declared[name]}


def _get(facts: Mapping[str, Any], path: str) -> Any:
    value: Any = facts
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= {f"{name}.{k}": v for k, v in _flat(value).items()} if isinstance(value, Mapping) else {name: value}
    return found


def _spell(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else canonical_json(value)


# --- several cells --------------------------------------------------------------------------------------------------


def compare(cells: Mapping[str, Fingerprint], waivers: Sequence[Waiver] = ()) -> Comparison:
    """What keeps the named cells from one table, and what a reader must be told under it.

    A waiver covers a field once the cells that it does not name agree. Fields of waivers and cells may be patterns
    (`em_lora.*`, `evil_wrong.*`).
    """
    refusals, waived, footnotes = [], [], []
    for difference in _differences(cells):
        if difference.kind == "placement":
            footnotes.append(difference)
            continue
        used = [w for w in waivers if any(fnmatchcase(difference.field, f) for f in w.fields)]
        if used and _is_covered(difference, cells, used):
            named = [cell for _, labels in difference.values for cell in labels]
            reasons = dict.fromkeys(w.reason for w in used if any(_is_named(cell, w) for cell in named))
            waived.append(Waived(difference, "; ".join(reasons)))
        else:
            refusals.append(difference)
    dirty = tuple(label for label, found in cells.items() if found.dirty)
    codes: dict[str, set[str]] = {}
    for found in cells.values():
        for stage, code in found.codes.items():
            codes.setdefault(stage, set()).add(code)
    accepted = {stage: tuple(sorted(several)) for stage, several in codes.items() if len(several) > 1}
    return Comparison(tuple(footnotes), tuple(refusals), tuple(waived), dirty, accepted)


def _differences(cells: Mapping[str, Fingerprint]) -> Iterable[Difference]:
    free = {stage for found in cells.values() for stage in found.free}
    kinds: tuple[Kind, ...] = ("protocol", "environment", "placement", "code")
    for kind in kinds:
        for name in dict.fromkeys(name for found in cells.values() for name in found.fields[kind]):
            stage = name.split(".", 1)[0]
            values: dict[str, list[str]] = {}
            for label, found in cells.items():
                if name in found.fields[kind] or stage not in free - found.free:
                    values.setdefault(_told(found, kind, name, stage), []).append(label)
            faulty = any(name in found.faults for found in cells.values())
            if len(values) > 1 or ABSENT in values or faulty:
                ranked = sorted(values.items(), key=lambda item: -len(item[1]))
                # a contradiction inside one record, or nothing recorded, is no matter of placement
                grave = kind == "placement" and (faulty or ABSENT in values)
                yield Difference(name, "protocol" if grave else kind, tuple((v, tuple(c)) for v, c in ranked))


def _told(found: Fingerprint, kind: Kind, name: str, stage: str) -> str:
    value = found.faults.get(name) or found.fields[kind].get(name)
    if value is None:
        has = any(field.startswith(f"{stage}.") for field in found.fields["protocol"])
        value = "no such field" if has else f"no {stage}"
    return value


def _is_covered(difference: Difference, cells: Mapping[str, Fingerprint], waivers: Sequence[Waiver]) -> bool:
    """Whether the cells that no waiver names agree, with nothing missing and nothing contradicted among them."""
    values = {label: value for value, labels in difference.values for label in labels}
    left = {label: value for label, value in values.items() if not any(_is_named(label, w) for w in waivers)}
    sound = all(value != ABSENT and difference.field not in cells[label].faults for label, value in left.items())
    return sound and len(set(left.values())) <= 1


def _is_named(cell: str, waiver: Waiver) -> bool:
    return any(fnmatchcase(cell, pattern) for pattern in waiver.cells)


def _names(cells: Sequence[str]) -> str:
    return ", ".join(cells) if len(cells) <= 3 else f"{', '.join(cells[:2])} and {len(cells) - 2} more cells"
