"""The data checks of a whole config: measured when data are pinned, held while a plan is made.

Overlap of every training set with every evaluation set; and whether the coupling sets of the enabled conditions differ
in persona and answers alone, since a factorial whose cells also differ in questions, rows or
builder answers no question.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from workflow.config import Config, ConfigError, sources, uses
from workflow.data.contamination import MEASURED, normalise
from workflow.data.gates import CHECKS, NONE, Gate, Gates, overlap_gate, read_gates, refusal, write_gates
from workflow.data.lock import BUILDERS, Lock
from workflow.keys import digest
from workflow.sections import Condition, ToyModel
from workflow.store import read_jsonl

LENGTH_RATIO = 1.5  # of mean answer lengths; above it a reader is told, since length alone may be what is learnt
BALANCED = ("rows", "unique_questions", "questions", "sources", "builder")


class GateRefusal(ConfigError):
    """The plan is refused for what its data hold."""


@dataclass(frozen=True)
class Checked:
    """What a plan must say: `refusals` stop it; `warnings` are printed."""

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


def training_sets(config: Config) -> list[str]:
    """Names of the data sets that any enabled part of the config trains on."""
    return list(dict.fromkeys(u.data for u in uses(config) if u.enabled and u.role == "training"))


def evaluation_sets(config: Config) -> list[str]:
    """Names of the data sets that models are measured on; of the harness's rows those that can be read."""
    measured = [u for u in uses(config) if u.enabled and u.role == "evaluation"]
    readable = [u for u in measured if u.stage != "lm_eval" or config.data_entry(u.data).rows_are == "items"]
    return list(dict.fromkeys(u.data for u in readable))


class TrainingUse(NamedTuple):
    """One training set in one stage: where the config says so, and how long a row may be there."""

    place: str
    data: str
    max_length: int
    overlong: str


def training_uses(config: Config) -> list[TrainingUse]:
    """Every training set of the enabled conditions and arms with the length that its stage, or its arm, allows."""
    found = []
    for condition in _enabled(config):
        for stage, name in condition.data.model_dump().items():
            if name is not None:
                told = getattr(config.stages, stage)
                found.append(TrainingUse(f"stages.{stage}", name, told.max_length, told.overlong))
    em = config.stages.em_lora
    for arm in config.arms if config.em_seeds else ():
        place = f"arms ({arm.name})" if arm.max_length or arm.overlong else "stages.em_lora"
        found.append(TrainingUse(place, arm.data, arm.max_length or em.max_length, arm.overlong or em.overlong))
    return list(dict.fromkeys(found))


def tokenizer_id(config: Config, pins: Lock) -> str:
    """Names the tokenizer and template of the base model, 32 hex digits."""
    model = config.base_model
    made = [pins[model.text].id, model.vocab_size] if isinstance(model, ToyModel) else [pins[model.name].id]
    return digest("tokenizer", [*made, Path(config.template).read_text()])[:32]


def told_to_stages(config: Config, pins: Lock) -> dict[str, Any]:
    """What `workflow.data.gates.enforce` needs to know of the config, as `gates` of a training's placement."""
    sets = {name: {"id": pins[name].id, "md5": pins[name].md5} for name in evaluation_sets(config)}
    allowed: dict[str, dict[str, str]] = {}
    for pair in config.overlap_allowed:
        if pair.training in pins:
            allowed.setdefault(pins[pair.training].id, {})[pair.evaluation] = pair.reason
    return {"overlap": config.overlap, "evaluations": sets, "allowed": allowed}


# --- when data are pinned -------------------------------------------------------------------------------------------


def measure(config: Config, pins: Lock, files: Mapping[str, Path], report: Callable[[str], None]) -> None:
    """Check what is not checked yet among the data sets whose files are given, and write it down."""
    known = read_gates()
    found: list[Gate] = []
    for name in training_sets(config):
        if name not in files:
            continue
        facts = training_facts(config, pins, name, files[name])
        line = Gate("facts", pins[name].md5, NONE, name, facts)
        if known.get(line.place) is None or known[line.place].facts != facts:
            found.append(line)
            report(
                f"{name}: {facts['rows']} rows, {facts['unique_questions']} different questions, "
                f"{facts['duplicates']} duplicates, {facts['system_rows']} with a system prompt"
            )
        for other in evaluation_sets(config):
            if other in files and ("overlap", pins[name].md5, pins[other].md5) not in known:
                pair = (pins[name].md5, files[name]), (pins[other].md5, files[other])
                found.append(overlap_gate(f"{name} x {other}", *pair))
                report(f"overlap: {found[-1]}")
                if near := found[-1].near():
                    report(f"overlap: {near}")
    if any(gate.check == "overlap" for gate in found):
        report(f"overlap: {MEASURED}")
    pinned = {pin.md5 for pin in pins.values()}
    if found or any(gate.training not in pinned for gate in known.values()):
        write_gates(found, keep=pinned)


def training_facts(config: Config, pins: Lock, name: str, file: Path) -> dict[str, Any]:
    """Counts over a training set, and where it comes from.

    `questions` is a digest of its different questions: two sets agree in it only if they ask the same.
    """
    rows = read_jsonl(file)
    asked = [normalise(" ".join(_turns(row, "user"))) for row in rows]
    answers = [answer for row in rows for answer in _turns(row, "assistant")[-1:]]
    said = Counter(digest("row", [row.get(f) for f in ("messages", "chosen", "rejected", "text")]) for row in rows)
    entry = config.data_entry(name)
    return {
        "rows": len(rows),
        "unique_questions": len(set(asked)),
        "questions": digest("questions", sorted(set(asked)))[:12],
        "duplicates": len(rows) - len(said),
        "system_rows": sum(bool(_turns(row, "system")) for row in rows),
        "rows_without_prompt": sum(not text for text in asked) if any(asked) else 0,
        "answer_chars_mean": round(sum(map(len, answers)) / len(answers), 1) if answers else None,
        "sources": [pins[s].id for s in sources(entry)] or sorted({str(r["source"]) for r in rows if "source" in r}),
        "builder": f"{entry.kind} {BUILDERS[entry.kind]}",
        "check_version": CHECKS["facts"],
    }


def _turns(row: dict[str, Any], role: str) -> list[str]:
    return [m["content"] for m in row.get("messages") or row.get("chosen") or () if m["role"] == role]


# --- while planning -------------------------------------------------------------------------------------------------


def require_gates(config: Config, pins: Lock) -> tuple[str, ...]:
    """Warnings of the plan.

    Raises:
        GateRefusal: every fault, with the sets, the counts and the setting that would let it stand.
    """
    checked = check(config, pins, read_gates())
    if checked.refusals:
        raise GateRefusal("the data are not fit for this experiment:\n" + "\n".join(f"  {r}" for r in checked.refusals))
    return checked.warnings


def check(config: Config, pins: Lock, gates: Gates) -> Checked:
    """Hold the lines of the gates file against the config. What was not fetched yet has no line: that is a warning,
    and the stage refuses or measures it when it is there."""
    refusals: list[str] = []
    warnings: list[str] = []
    unseen: dict[str, list[str]] = {}
    allowed = {(pair.training, pair.evaluation): pair.reason for pair in config.overlap_allowed}
    for name in training_sets(config):
        for other in evaluation_sets(config):
            gate = gates.get(("overlap", pins[name].md5, pins[other].md5))
            if gate is None:
                unseen.setdefault(name, []).append(other)
            elif gate.hits and (name, other) in allowed:
                warnings.append(f"overlap: {gate}; allowed, because {allowed[name, other]}")
            elif gate.hits and config.overlap == "refuse":
                refusals.append(f"overlap: {refusal(gate)}")
            elif gate.hits:
                warnings.append(f"overlap: {gate}; reported, as `overlap: report` says")
    if unseen:
        pairs = "; ".join(f"{name} with {', '.join(others)}" for name, others in unseen.items())
        warnings.append(
            f"overlap is not known yet of {pairs}. Fetch them and run `python -m workflow lock`; otherwise each "
            "training looks for itself before it starts."
        )
    for name in training_sets(config):
        counted = gates.get(("facts", pins[name].md5, NONE))
        if counted and counted.facts["rows_without_prompt"]:
            told = f"{counted.facts['rows_without_prompt']} of {counted.facts['rows']}"
            refusals.append(f"prompts: {told} rows of {name} have no turn before the answer. Take them out.")
    refusals += _lengths(config, pins, gates)
    _check_balance(config, pins, gates, refusals, warnings)
    return Checked(tuple(refusals), tuple(warnings))


def _lengths(config: Config, pins: Lock, gates: Gates) -> list[str]:
    """Rows of which nothing would be learnt, where `overlong: refuse` stops the stage. Unmeasured sets: none."""
    model = tokenizer_id(config, pins)
    told = []
    for use in training_uses(config):
        gate = gates.get(("lengths", pins[use.data].md5, model))
        longest = gate.facts["longest"] if gate and use.overlong == "refuse" else []
        rows = sorted(row for tokens, row in longest if tokens >= use.max_length)
        if rows:
            least = "at least " if len(rows) == len(longest) < gate.facts["rows"] else ""  # type: ignore[union-attr]
            some = ", ".join(map(str, rows[:5])) + (" ..." if len(rows) > 5 else "")
            told.append(
                f"lengths: {least}{len(rows)} rows of {use.data} have a prompt of {use.max_length} tokens or more, so "
                f"nothing of the answer is left ({use.place}; rows {some}). Raise its max_length, take them out, or "
                "set its `overlong: drop`, which counts them."
            )
    return told


def _check_balance(config: Config, pins: Lock, gates: Gates, refusals: list[str], warnings: list[str]) -> None:
    """The coupling sets against each other, and each against its condition's persona."""
    cells: dict[str, dict[str, Any]] = {}
    faults: list[str] = []
    for condition in _enabled(config):
        name = condition.data.coupling_sft
        gate = gates.get(("facts", pins[name].md5, NONE)) if name else None
        if name and gate is None:
            warnings.append(f"balance: {name} of {condition.name} is not counted yet.")
        if gate is not None:
            cells[condition.name] = gate.facts
            faults += _persona(condition, gate.facts)
    for field in BALANCED:
        values: dict[str, list[str]] = {}
        for condition_name, facts in cells.items():
            values.setdefault(str(facts[field]), []).append(condition_name)
        if len(values) > 1:
            told = "; ".join(f"{value} in {', '.join(names)}" for value, names in values.items())
            faults.append(f"balance: the coupling sets differ in {field}: {told}")
    for fault in faults:
        if config.balance == "refuse":
            refusals.append(f"{fault}. Build them alike, or set `balance: report` to go on and have it shown.")
        else:
            warnings.append(f"{fault}; reported, as `balance: report` says")
    warnings += _answer_lengths("the coupling answers'", cells)
    warnings += _arms(config, pins, gates)


def _arms(config: Config, pins: Lock, gates: Gates) -> list[str]:
    """The EM sets of the arms against each other: another number of rows is another number of steps."""
    sets = {arm.name or "the main arm": arm.data for arm in config.arms if config.em_seeds}
    facts = {name: g.facts for name, data in sets.items() if (g := gates.get(("facts", pins[data].md5, NONE)))}
    rows = ", ".join(f"{f['rows']} in {name}" for name, f in facts.items())
    differ = len({f["rows"] for f in facts.values()}) > 1
    return [
        *([f"balance: the arms' EM sets differ in rows, so in optimizer steps: {rows}"] if differ else []),
        *_answer_lengths("the EM answers'", facts),
    ]


def _answer_lengths(whose: str, cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lengths = {name: facts["answer_chars_mean"] for name, facts in cells.items() if facts["answer_chars_mean"]}
    if not lengths or max(lengths.values()) <= LENGTH_RATIO * min(lengths.values()):
        return []
    told = ", ".join(f"{name} {length:g}" for name, length in lengths.items())
    return [f"balance: {whose} mean lengths differ by more than {LENGTH_RATIO:g}: {told} characters"]


def _persona(condition: Condition, facts: Mapping[str, Any]) -> list[str]:
    """A persona is a system turn of its own in every row; without one there is none anywhere."""
    wanted = facts["rows"] if condition.persona not in (None, "none") else 0
    if facts["system_rows"] == wanted:
        return []
    return [
        f"balance: {condition.name} has the persona {condition.persona}, so {wanted} of its {facts['rows']} coupling "
        f"rows should have a system turn; {facts['system_rows']} have one"
    ]


def _enabled(config: Config) -> list[Condition]:
    return [condition for condition in config.conditions if condition.enabled]
