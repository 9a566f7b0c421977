"""What the records say beside scores: cost, data cards, how the conditions' recipes differ."""

from collections.abc import Mapping
from itertools import combinations
from statistics import median
from typing import Any

from workflow.audit.diff import diff
from workflow.data.gates import NONE, read_gates
from workflow.files import flatten, short
from workflow.matrix import STAGES, TRAINING, Node
from workflow.report.blocks import DASH, Block, Cell, Cells, Fold, Section, count, duration, table
from workflow.report.study import Study
from workflow.store import Record

HASHES = ("id", "md5", "sha256", "questions")


def records_of(study: Study) -> dict[Node, Record]:
    """Every record behind the report's numbers, in the plan's order."""
    order = {node: n for n, node in enumerate(study.matrix.nodes())}
    return dict(sorted({**study.upstream, **study.records}.items(), key=lambda item: order[item[0]]))


# --- cost -----------------------------------------------------------------------------------------------------------


def gpu_seconds(record: Record) -> float:
    """As observed; an evaluation that does not say held the GPUs of its provenance for as long as it ran."""
    said = record.observed.get("gpu_seconds")
    return float(said if said is not None else record.observed["seconds"] * len(record.provenance.get("gpu") or ()))


def cost_section(study: Study) -> Section:
    rows: list[Cells] = []
    records = records_of(study)
    if not records:
        return Section("cost", "Cost, from records", ())
    for stage in (name for name in STAGES if any(node.stage == name for node in records)):
        rows.append(_cost_row(stage, [r for n, r in records.items() if n.stage == stage]))
    rows.append(_cost_row("all", list(records.values())))
    header = (
        "stage",
        "results",
        "time of all jobs",
        "median job",
        "GPU-hours",
        "judge: tokens in",
        "judge: tokens out",
        "judge: USD",
    )
    notes = (
        "Added up from the records that this report rests on: work that was thrown away is not in it. Times are "
        "of jobs, which may have shared a machine.",
    )
    return Section("cost", "Cost, from records", (table("cost-by-stage", "By stage", header, rows, (0,), notes),))


def _cost_row(name: str, records: list[Record]) -> list[str | Cell]:
    seconds = [float(r.observed["seconds"]) for r in records]
    judged = [r.observed["judge"] for r in records if "judge" in r.observed]
    gpu = sum(map(gpu_seconds, records)) / 3600
    tokens = [count(sum(j[field] for j in judged)) if judged else DASH for field in ("tokens_in", "tokens_out")]
    usd = f"{sum(j['usd'] for j in judged):.2f}" if judged else DASH
    return [name, str(len(records)), duration(sum(seconds)), duration(median(seconds)), f"{gpu:.2f}", *tokens, usd]


# --- data -----------------------------------------------------------------------------------------------------------


def data_section(study: Study) -> Section:
    """A card per data set: what was counted when it was built, what each training saw of it."""
    facts: dict[str, dict[str, Any]] = {}
    trained: list[Cells] = []
    gates = read_gates()
    seen: set[tuple[str, str]] = set()
    for node, record in records_of(study).items():
        known = record.observed.get("data_facts")
        if not node.has_data or not known or (node.stage, record.recipe.data) in seen:
            continue
        seen.add((node.stage, record.recipe.data))
        name = study.matrix.entry(record.recipe.data)
        line = gates.get(("facts", str(known.get("md5")), NONE))
        facts[name] = {**(line.facts if line else {}), **known}
        if node.stage in TRAINING:
            trained.append([name, node.stage, *_trained(record.observed)])
    if not facts:
        return Section("data", "Data cards", ())
    header = (
        "data set",
        "md5",
        "rows",
        "unique questions",
        "rows left out",
        "mean characters of an answer",
        "questions of the evaluations in it",
    )
    rows = [[name, str(f.get("md5", DASH))[:8], *_card(f), _overlap(study, name)] for name, f in facts.items()]
    notes = ("A dash: not counted for data of this kind.",)
    header2 = (
        "data set",
        "stage",
        "rows read",
        "rows dropped",
        "rows cut",
        "tokens",
        "tokens in the loss",
        "masked",
        "optimizer steps",
        "effective batch",
    )
    blocks: list[Block] = [
        table("data-cards", "Data sets", header, rows, (0, 1, 6), notes),
        table("data-trained", "What a training saw of them (one record per set and stage)", header2, trained, (0, 1)),
        Fold("data-all", "All that was counted", tuple(_all_facts(name, f) for name, f in facts.items())),
    ]
    return Section("data", "Data cards", tuple(blocks))


def _trained(o: Mapping[str, Any]) -> list[str]:
    masked = f"{o['masked_fraction']:.1%}" if o.get("masked_fraction") is not None else DASH
    counts = [count(o.get(name)) for name in ("rows_read", "rows_dropped", "rows_truncated", "tokens", "loss_tokens")]
    return [*counts, masked, count(o.get("optimizer_steps")), count(o.get("effective_batch_size"))]


def _card(f: Mapping[str, Any]) -> list[str]:
    left_out = f.get("excluded")
    if isinstance(left_out, dict | list):
        left_out = len(left_out)
    length = f.get("answer_chars_mean")
    return [
        count(f.get("rows")),
        count(f.get("unique_questions")),
        count(left_out),
        DASH if length is None else f"{length:.1f}",
    ]


def _overlap(study: Study, name: str) -> str:
    """`0 / 64 demo_arc`, for every evaluation set that was held against it; from the training's record."""
    for record in records_of(study).values():
        found = record.observed.get("overlap")
        if found and study.matrix.entry(record.recipe.data) == name:
            return "; ".join(
                f"{o['evaluation_hits']} / {o['evaluation_rows']} {evaluation}" for evaluation, o in found.items()
            )
    return DASH


def _all_facts(name: str, facts: Mapping[str, Any]) -> Block:
    rows = [[field, short(value, 120)] for field, value in flatten(dict(facts)).items()]
    return table(f"data/{name}", name, ("fact", "value"), rows, (0, 1))


# --- recipes --------------------------------------------------------------------------------------------------------


def differences_section(study: Study) -> Section:
    """For each pair of conditions, what differs before EM: recipe fields and data facts."""
    seed = study.config.pipeline_seeds[0]
    blocks: list[Block] = []
    for first, second in combinations(study.conditions, 2):
        rows: list[Cells] = []
        for stage in diff(study.matrix, f"{first}.p{seed}", f"{second}.p{seed}"):
            if stage.stage not in TRAINING:
                continue
            if stage.left is None or stage.right is None:
                rows.append(
                    [
                        stage.stage,
                        "stage",
                        *("skipped" if side is None else "present" for side in (stage.left, stage.right)),
                    ]
                )
                continue
            for group in ("recipe", "data"):
                for change in stage.groups[group]:
                    # a parent's key and a hash differ because something else does, which has a line of its own
                    if not change.field.startswith("parents.") and change.field.split(".")[-1] not in HASHES:
                        rows.append([stage.stage, f"{group}: {change.field}", *_apart(change.old, change.new)])
        if rows:
            id = f"differences/{first}/{second}"
            made = table(f"{id}/table", f"{first} and {second}", ("stage", "field", first, second), rows, (0, 1, 2, 3))
            blocks.append(Fold(id, f"{first} and {second}: {len(rows)} field{'' if len(rows) == 1 else 's'}", (made,)))
    return Section("differences", "How the conditions' recipes differ", tuple(blocks))


def _apart(old: Any, new: Any) -> tuple[str, str]:
    """Both values; of two lists of words, such as a data set's definition, the words that the other lacks."""
    one, two = str(old).split(), str(new).split()
    if min(len(one), len(two)) > 3:
        return " ".join(w for w in one if w not in two) or DASH, " ".join(w for w in two if w not in one) or DASH
    return short(old, 80), short(new, 80)
