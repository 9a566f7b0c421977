"""Take over a finished result of the same work under another name: equal recipe, equal bytes of the parents.

    results/.reuse/<digest>     path of a record's folder; the digest is of the recipe with the parents' content

A renamed condition, a new name for an arm, a bumped version upstream whose bytes are the same, a set in another order:
the path differs, the work does not. The job that is planned finds the result here and computes nothing.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from workflow.accepted import equivalents, read_accepted
from workflow.files import is_regular, write_atomic
from workflow.keys import Recipe, reuse_digest
from workflow.retractions import Retraction, read_retractions
from workflow.store import (
    REDONE,
    RESULTS,
    Input,
    Record,
    StoreError,
    Summary,
    check_outputs,
    describe_outputs,
    out_dir,
    publish,
    read_record,
    read_summary,
    record_path,
    workspace,
)

INDEX = f"{RESULTS}/.reuse"
_RERUN = re.compile(r"\.r\d+$")
_PLACE = re.compile(r"[\w.-]+/[\w.-]+/[\w.-]+")


def index_path(recipe: Recipe, parents: list[str]) -> str:
    """Where the index names a result of this recipe on parents of this content, in the recipe's order."""
    return f"{INDEX}/{reuse_digest(recipe, parents)}"


def remember(path: Path, record: Record, parents: list[str]) -> None:
    """Name a new result in the index. Reruns and reports are never taken over."""
    if record.stage == "report" or _RERUN.search(record.cell):
        return
    os.makedirs(INDEX, exist_ok=True)
    write_atomic(index_path(record.to_recipe(), parents), "/".join(path.parts[-4:-1]) + "\n", sync=False)


def find_source(recipe: Recipe, parents: list[str]) -> str | None:
    """Record that the index names for this work, if there is one; unchecked."""
    path = index_path(recipe, parents)
    if not is_regular(path):
        return None
    place = Path(path).read_text().strip()
    if not _PLACE.fullmatch(place) or ".." in place or place.split("/")[0] != recipe.stage:
        return None
    return record_path(*place.split("/"))


def fits(summary: Summary, source: str, codes: Collection[str | None], retractions: Iterable[Retraction]) -> bool:
    """Whether a source may be taken over: made by one of these codes, and not retracted."""
    return summary.code in codes and not is_retracted(source, retractions)


def is_retracted(record: str, retractions: Iterable[Retraction]) -> bool:
    """Whether this result, or anything that it was made from, is retracted."""
    places = {"/".join(entry.place) for entry in retractions}
    pending = [record] if places else []
    while pending:
        path = pending.pop()
        if "/".join(Path(path).parts[-4:-1]) in places:
            return True
        summary = read_summary(path)
        pending += list(summary.inputs) if summary else []
    return False


def take_over(
    path: Path, recipe: Recipe, inputs: Mapping[str, Input], parents: list[str], code: str, command: list[str]
) -> Record | None:
    """Publish another cell's result of the same work under this cell's name, with a record of its own.

    Returns:
        None if there is none that is whole, of the same code and not retracted; or if this result was redone.
    """
    if recipe.stage == "report" or _RERUN.search(path.parts[-3]) or any(path.parent.glob(f"{REDONE}*")):
        return None
    source = find_source(recipe, parents)
    if source is None or Path(source) == path:
        return None
    try:
        record = read_record(source)
        summary = read_summary(source)
        codes = equivalents(read_accepted(), recipe.stage, code)
        if summary is None or not fits(summary, source, codes, read_retractions()):
            return None
        check_outputs(record, out_dir(source))
    except StoreError:
        return None
    with workspace(path.parent) as temp:
        for output in record.outputs:
            (temp / output.path).parent.mkdir(parents=True, exist_ok=True)
            _link(out_dir(source) / output.path, temp / output.path)
        provenance = {**record.provenance, "command": command, "taken_from": "/".join(Path(source).parts[-4:-1])}
        taken = Record.create(
            recipe, path.parts[-3], inputs, describe_outputs(temp), record.observed, record.metrics, provenance
        )
        publish(temp, taken)
    return taken


def _link(source: Path, target: Path) -> None:
    """A second name for the same read-only bytes; a copy where the file system has no such thing."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        import shutil

        shutil.copyfile(source, target, follow_symlinks=False)


def forget(place: str) -> None:
    """Remove a result from the index, so that nothing is taken over from it."""
    if not os.path.isdir(INDEX):
        return
    for name in os.listdir(INDEX):
        entry = Path(INDEX, name)
        if is_regular(entry) and entry.read_text().strip() == place:
            entry.unlink(missing_ok=True)
