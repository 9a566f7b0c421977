"""The checks of `verify` that look at records beside each other, at what they observed, and at the data."""

import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from workflow.audit.findings import Findings
from workflow.audit.hashing import Known
from workflow.audit.inventory import Inventory, Result
from workflow.audit.logs import names
from workflow.data.lock import NONE, Lock, Pin
from workflow.errors import UserError
from workflow.files import ABSENT, flatten, is_regular
from workflow.keys import DATA_ID, digest
from workflow.matrix import STAGES
from workflow.store import DATA, METRICS, data_path, read_jsonl, record_path
from workflow.train.effective import effective_faults

_RERUN = re.compile(r"\.r\d+$")
# Outputs that hold what was learned or sampled: equal bytes of these under other seeds are no accident.
_FROM_SEEDS = re.compile(r"(\.safetensors|_model[\w-]*\.bin|^completions\.jsonl|^train_log\.jsonl)$")
# Rows of an output against the fact that counts them.
_COUNTED = {"completions.jsonl": "rows", "judgments.jsonl": "rows", "items.jsonl": "rows"}


def original(label: str) -> str:
    """The cell that a rerun repeats: `base.r2` -> `base`."""
    return _RERUN.sub("", label)


def check_hashes(inventory: Inventory, hashes: dict[str, Known], findings: Findings) -> None:
    for result in inventory.results.values():
        for output in result.record.outputs:
            path = result.files.get(output.path)
            if path is not None and hashes[path].sha256 != output.sha256:
                findings.broken(path, "has other bytes than its record says (same size)")


def check_links(inventory: Inventory, findings: Findings) -> None:
    """Every parent is there and is the one that was read. What is wrong with a parent is one finding, with a count."""
    replaced: dict[tuple[str, str, str], list[str]] = {}
    absent: dict[str, list[str]] = {}
    references = {r.record.content for r in inventory.results.values() if r.record.stage == "dpo_reference"}
    for path, result in inventory.results.items():
        record = result.record
        keys = Counter(i.key for role, i in record.inputs.items() if role != "data")
        if keys != Counter(record.recipe.parents):
            findings.broken(
                path, f"its recipe's parents are {record.recipe.parents}, its inputs {sorted(keys.elements())}"
            )
        _check_data_link(result, findings)
        for role, link in record.inputs.items():
            if role == "data":
                continue
            there = record_path(*Path(link.path).parts[-4:-1])
            parent = inventory.results.get(there)
            if parent is None:
                absent.setdefault(there, []).append(path)
            elif parent.record.key != link.key:
                findings.broken(path, f"its parent {link.path} has the key {parent.record.key}, not {link.key}")
            elif parent.record.digest != link.digest:
                replaced.setdefault((there, link.digest, parent.record.digest), []).append(path)
        # no link of the digest: made again it breaks nothing, but what was read is then not there to check
        read = record.observed.get("reference_content")
        if read is not None and read not in references:
            findings.unverifiable(path, f"the reference that it read (content {read[:12]}) is not here any more")
    for there, children in absent.items():
        gone = "cannot be read" if there in inventory.unreadable else "is not here"
        what = f"its parent {there} {gone}, so what it was made from cannot be checked"
        findings.unverifiable(children[0], what + _and_more(children))
    for (there, read, now), children in replaced.items():
        findings.broken(
            there,
            f"was replaced: {children[0]}{_and_more(children)} was made from its digest {read[:12]}, which is "
            f"{now[:12]} now. Run `snakemake all`: what follows is restored or made again",
        )


def _and_more(results: list[str]) -> str:
    return f" (and {len(results) - 1} more results)" if results[1:] else ""


def _check_data_link(result: Result, findings: Findings) -> None:
    record, link = result.record, result.record.inputs.get("data")
    if link is None:
        # A report reads records only; a base model that is fetched whole is no file of data.
        if record.stage != "report" and not (record.stage == "base" and record.recipe.data.startswith("rev-")):
            findings.broken(result.path, "names no data file among its inputs")
    elif link.key != record.recipe.data or link.path != data_path(record.recipe.data):
        findings.broken(result.path, f"its data are {link.path} ({link.key}), its recipe says {record.recipe.data}")


def check_protocol(result: Result, read_outputs: bool, findings: Findings) -> None:
    """What was observed is what was declared, and what the outputs hold: no hash covers the observed facts."""
    record = result.record
    observed, params = record.observed, record.recipe.params
    for name, declared in (
        ("effective_batch_size", params.get("effective_batch_size")),
        ("optimizer_steps", observed.get("declared_steps")),
        ("world_size", observed.get("placement", {}).get("world_size") if "world_size" in observed else None),
    ):
        if declared is not None and name in observed and observed[name] != declared:
            findings.broken(
                result.path, f"observed {name} {observed[name]}, declared {declared}: the protocol is another"
            )
    arguments = (str(a) for a in record.provenance.get("command", ()))
    target = next((a.removeprefix("--record=") for a in arguments if a.startswith("--record=")), None)
    if target is not None and Path(target).parts[-4:-1] != result.place:
        findings.broken(result.path, f"was written by a command for {target}: it was copied")
    if not read_outputs:
        return
    for name, fact in _COUNTED.items():
        if name in result.files and fact in observed:
            lines = sum(1 for line in Path(result.files[name]).read_bytes().splitlines() if line.strip())
            if lines != observed[fact]:
                findings.broken(result.path, f"observed {observed[fact]} {fact}, but {name} holds {lines}")
    metrics = result.files.get(METRICS)
    if metrics is not None and json.loads(Path(metrics).read_bytes()) != record.metrics:
        findings.broken(result.path, f"its metrics are not those of {METRICS}: the record was edited")
    log = result.files.get("train_log.jsonl")
    said = observed.get("optimizer_steps")
    if log is not None and said is not None:
        held = [row.get("step") for row in read_jsonl(log)][-1:]
        if held != [said]:
            findings.broken(result.path, f"observed {said} optimizer steps, but train_log.jsonl ends at {held}")


def check_effective(result: Result, findings: Findings) -> None:
    """What the outputs say was used is what the recipe declares: rate, adapter, sampler, template, data type."""
    stage = STAGES.get(result.record.stage)
    if stage is None or stage.kind in ("base", "reference", "report") or not result.is_whole:
        return
    faults_of = importlib.import_module(stage.module).__dict__.get("effective_faults") or effective_faults
    try:
        faults = faults_of(result.record.to_recipe(), Path(result.out))
    except (KeyError, TypeError, AttributeError, ValueError, OSError, UserError) as error:
        faults = [f"the outputs cannot be read ({type(error).__name__}: {error})"]
    for fault in faults:
        findings.broken(result.path, f"declared and effective settings differ: {fault}")


def check_duplicates(inventory: Inventory, planned: set[tuple[str, str, str]], findings: Findings) -> None:
    """Equal bytes where seeds differ, seeds without effect, and one key under two cells."""
    by_bytes: dict[tuple[str, str, str], list[Result]] = {}
    by_recipe: dict[str, list[Result]] = {}
    by_key: dict[tuple[str, str], list[Result]] = {}
    for result in inventory.results.values():
        record = result.record
        by_key.setdefault((record.stage, record.key), []).append(result)
        for output in record.outputs:
            if _FROM_SEEDS.search(output.path):
                by_bytes.setdefault((record.stage, output.path, output.sha256), []).append(result)
        recipe = record.recipe
        rest = [record.stage, recipe.version, recipe.data, recipe.parents, _without_seeds(recipe.params)]
        by_recipe.setdefault(json.dumps(rest), []).append(result)
    for (_, name, _), results in by_bytes.items():
        first = results[0]
        for other in results[1:]:
            if _is_taken(first, other):
                continue
            if original(other.record.cell) != original(first.record.cell) and other.record.key != first.record.key:
                what = f"has the very bytes of {first.out}/{name}: one artifact under two seeds"
                findings.broken(f"{other.out}/{name}", what)
    for results in by_recipe.values():
        _check_seeds(results, findings)
    names = {(stage, original(label), key) for stage, label, key in planned}
    for (stage, key), results in by_key.items():
        cells = {original(r.record.cell): r for r in results}
        sources = {r.record.provenance.get("taken_from") for r in results}
        for cell, stranger in cells.items():
            if "/".join(stranger.place) in sources or stranger.record.provenance.get("taken_from"):
                continue  # equal work under another name, and its source
            if len(cells) > 1 and (stage, cell, key) not in names:
                known = next(r for r in cells.values() if r is not stranger)
                findings.unverifiable(
                    stranger.path,
                    f"has the key of {known.path}, and the plan has no such cell: a copy, or a cell of another config",
                )


def _is_taken(one: Result, two: Result) -> bool:
    """Whether either was taken over; their bytes are equal by right, whatever the keys of their parents are."""
    return any(r.record.provenance.get("taken_from") for r in (one, two))


def _check_seeds(results: list[Result], findings: Findings) -> None:
    first = results[0]
    for other in results[1:]:
        a, b = _seeds(first.record.recipe.params), _seeds(other.record.recipe.params)
        differing = sorted(name for name in a.keys() | b.keys() if a.get(name, ABSENT) != b.get(name, ABSENT))
        if differing and _unseeded(first) == _unseeded(other):
            findings.broken(
                other.path,
                f"{', '.join(differing)} was not consumed: every output is that of {first.path}, whose seed is another",
            )


def _unseeded(result: Result) -> list[tuple[str, str]]:
    """Outputs by name and hash; of completions without their seeds, which the rows hold."""
    found = []
    for output in result.record.outputs:
        path = result.files.get(output.path)
        if output.path == "completions.jsonl" and path is not None:
            rows = [{k: v for k, v in row.items() if k != "seed"} for row in read_jsonl(path)]
            found.append((output.path, digest("rows", rows)))
        else:
            found.append((output.path, output.sha256))
    return sorted(found)


def _seeds(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flatten(params).items() if name.rpartition(".")[2] == "seed"}


def _without_seeds(params: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted((n, v) for n, v in flatten(params).items() if n.rpartition(".")[2] != "seed")


def check_data(inventory: Inventory, pins: Lock, hashes: dict[str, Known], findings: Findings) -> None:
    """Every data file is what its name says, what the lock says, and what the records that read it say."""
    locked = {pin.id: pin for pin in pins.values()}
    for name in names(DATA):
        path = f"{DATA}/{name}"
        data_id, _, suffix = name.rpartition(".")
        if name.startswith("."):
            continue
        if not DATA_ID.fullmatch(data_id) or suffix not in ("jsonl", "json"):
            findings.broken(path, "an extra file: it is not named by an id of data. Remove it")
        elif not is_regular(path):
            findings.broken(path, "is a link or a folder. Put what it points to in its place")
        elif suffix == "jsonl":
            _check_data_file(path, data_id, hashes[path], locked.get(data_id), findings)
    others: dict[tuple[str, bool], list[str]] = {}
    for result in inventory.results.values():
        link = result.record.inputs.get("data")
        if link is not None and (
            data_path(link.key) not in hashes or hashes[data_path(link.key)].sha256 != link.digest
        ):
            path = data_path(link.key)
            others.setdefault((path, path in hashes), []).append(result.path)
    for (path, is_there), results in others.items():
        if is_there:
            findings.broken(path, f"has other bytes than {results[0]} was made from{_and_more(results)}")
        else:
            what = f"its data file {path} is not here{_and_more(results)}. Run `snakemake {path}`"
            findings.unverifiable(results[0], what)


def _check_data_file(path: str, data_id: str, found: Known, pin: Pin | None, findings: Findings) -> None:
    by_md5 = not data_id.startswith("rev-")
    if by_md5 and found.md5 != data_id:  # what its note and the lock say of other bytes is beside the point
        findings.broken(path, f"its md5 is {found.md5}, not that of its name. Remove it and run `snakemake {path}`")
        return
    notes = Path(path).with_suffix(".json")
    try:
        note = json.loads(notes.read_bytes())
    except (OSError, ValueError):
        findings.unverifiable(notes, "what was counted in the data file is missing, or is not JSON")
        note = {}
    if pin is not None:
        note_and_lock = [("its note", note), ("the lock", {"md5": pin.md5, "sha256": pin.sha256})]
    else:
        note_and_lock = [("its note", note)]
    for source, says in note_and_lock:
        for algorithm, hash_ in (("md5", found.md5), ("sha256", found.sha256)):
            expected = says.get(algorithm, NONE)
            if expected not in (NONE, hash_):
                findings.broken(path, f"its {algorithm} is {hash_[:16]}..., {source} says {expected[:16]}...")
    if not by_md5 and "md5" not in note and (pin is None or pin.md5 == NONE):
        findings.unverifiable(path, "neither its note nor the lock knows its md5")
