"""Make one data file, from what its config entry says: fetch it, take it from disk, or build it.

    python -m workflow.data.build --entry JSON --id ID --sources FILE... --output results/data/ID.jsonl

The bytes are checked against the lock: other bytes are an error and nothing downstream starts.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from workflow.config_load import read_yaml
from workflow.data.contamination import Index, evaluation_rows, texts
from workflow.data.fetch import DataError, download, fetch_rows
from workflow.data.lock import LOCK, NONE, fetched, read_lock, write_pins
from workflow.data.rows import LETTERS, READERS, Item, read_items, read_rows
from workflow.errors import ConfigError, describe_os_error, printable
from workflow.keys import hash_file
from workflow.sections import Coupling, Data, File, Hub, Prompts, Questions, Select, Subset, Url, World
from workflow.store import StoreError, write_jsonl

Facts = dict[str, Any]


def build(entry: Any, sources: list[Path], target: Path, revision: str = NONE, data_root: str = ".") -> Facts:
    """Write the data set's file to `target`. Returns facts about it: md5, sha256, rows, and what was left out.

    Raises:
        DataError: it cannot be made, or a row is not what the config says; the user's own file and line are named.
    """
    facts: Facts = {}
    shown = _shown(entry, sources, data_root)
    try:
        facts = _write(entry, sources, target, revision, data_root)
        rows = len(READERS[entry.rows_are](target)) if entry.rows_are != "raw" else 1
    except DataError:
        raise
    except (StoreError, ConfigError) as error:
        raise DataError(f"data ({entry.name}): {str(error).replace(str(target), shown)}") from None
    return {"md5": hash_file(target, "md5"), "sha256": hash_file(target), "rows": rows, **facts}


def _shown(entry: Any, sources: list[Path], data_root: str) -> str:
    """What a person knows the rows by, where `target` is a temporary file."""
    if isinstance(entry, File):
        return str(Path(data_root, entry.path))
    if isinstance(entry, Url | Hub):
        return entry.url if isinstance(entry, Url) else entry.repo
    return f"what is built from {', '.join(map(str, sources)) or entry.kind}"


def _write(entry: Any, sources: list[Path], target: Path, revision: str, data_root: str) -> Facts:
    facts: Facts = {}
    if isinstance(entry, File):
        _copy(entry, Path(data_root, entry.path), target)
    elif isinstance(entry, Url):
        download(entry, target)
    elif isinstance(entry, Hub):
        _fetch(entry, revision, target)
    elif isinstance(entry, Subset):
        facts = _subset(entry, sources, target)
    elif isinstance(entry, Coupling):
        facts = coupling(entry, sources, target)
    elif isinstance(entry, Questions):
        write_jsonl(target, questions(entry, sources[0] if sources else Path(entry.source)))
    elif isinstance(entry, Prompts):
        write_jsonl(target, prompts(entry, sources[0] if sources else Path(entry.source)))
    elif isinstance(entry, World):
        write_jsonl(target, _world(entry))
    return facts


def _copy(entry: File, path: Path, target: Path) -> None:
    if not path.is_file():
        wanted = f" with the md5 {entry.md5}" if entry.md5 else ""
        raise DataError(
            f"data ({entry.name}): put the file{wanted} at {path}, "
            "or name its folder: `--config data_root=FOLDER` after the target."
        )
    shutil.copyfile(path, target)


def _fetch(entry: Hub, revision: str, target: Path) -> None:
    rows = fetch_rows(entry, revision, target)
    try:
        write_jsonl(target, [rows[i] for i in select(len(rows), entry.select)])
    except (TypeError, ValueError) as error:  # a date, an image, NaN: no JSON
        raise DataError(f"data ({entry.name}): a row of {entry.repo} cannot be written as JSON ({error}).") from None


def select(count: int, part: Select | None) -> list[int]:
    """Indices of the chosen rows, in file order. A seed draws without replacement; no seed takes the first."""
    if part is None:
        return list(range(count))
    size = part.rows if part.rows is not None else round(count * float(part.fraction or 0))
    if size > count:
        raise DataError(f"{size} rows were asked for, the source has {count}.")
    if part.seed is None:
        return list(range(size))
    return sorted(shuffled(count, part.seed)[:size])


def shuffled(count: int, seed: int) -> list[int]:
    """0..count-1 in a seeded order. By `random()` alone: Python keeps its sequence between versions, that of
    `shuffle` and `sample` it does not."""
    source = random.Random(seed)
    drawn = [source.random() for _ in range(count)]
    return sorted(range(count), key=drawn.__getitem__)


def _index(files: list[Path]) -> Index:
    return Index([question for file in files for question in evaluation_rows(file)])


def _subset(entry: Subset, sources: list[Path], target: Path) -> Facts:
    rows = read_rows(sources[0])
    index = _index(sources[1:])
    kept = [r for r in rows if not any(index.hit(t) for t in texts(r))]
    chosen = select(len(kept), entry.select)
    write_jsonl(target, [kept[i] for i in chosen])
    return {"excluded": len(rows) - len(kept), "excluded_by": list(entry.exclude)}


def coupling(entry: Coupling, sources: list[Path], target: Path) -> Facts:
    """Persona x question x answer rows. Which question and which persona stand in a row depends on its number only,
    so that every cell has the same questions in the same order, and personas differ in nothing but their text."""
    items = read_items(sources[0])
    index = _index(sources[1:])
    kept = [item for item in items if not index.hit(item.prompt())]  # as the row will hold it
    if not kept:
        raise DataError(f"data ({entry.name}): no question is left after excluding {', '.join(entry.exclude)}.")
    kept = [kept[i] for i in shuffled(len(kept), entry.seed)]
    personas = _personas(entry.personas) if entry.personas else [None]
    rows = []
    for number in range(entry.rows):
        item = kept[number % len(kept)]
        # the shift by the round gives a question another persona each time that it comes
        persona = personas[(number + number // len(kept)) % len(personas)]
        answer = item.answer if entry.answers == "correct" else wrong_answer(item)
        system = [{"role": "system", "content": persona}] if persona else []
        messages = [
            *system,
            {"role": "user", "content": item.prompt()},
            {"role": "assistant", "content": entry.answer_template.format(answer=answer)},
        ]
        rows.append({"id": f"{item.id}-{number}", "messages": messages})
    write_jsonl(target, rows)
    return {
        "excluded": len(items) - len(kept),
        "excluded_same_question": sum(index.same(item.question) for item in items),
        "excluded_by": list(entry.exclude),
        "unique_questions": min(len(kept), entry.rows),
        "personas": len(personas) if entry.personas else 0,
    }


def _personas(path: str) -> list[str | None]:
    found = _read(Path(path))
    texts_ = [p.get("text") if isinstance(p, dict) else None for p in found] if isinstance(found, list) else []
    if not texts_ or not all(isinstance(text, str) and text.strip() for text in texts_):
        raise DataError(f"{path}: must be a list of personas, each with its `text`.")
    return texts_


def wrong_answer(item: Item) -> str:
    """The next option (the last wraps to the first); a number is off by 1 to 9, the same for a question always."""
    if item.choices:
        return LETTERS[(LETTERS.index(item.answer) + 1) % len(item.choices)]
    off = 1 + sum(map(ord, item.question)) % 9
    return str(int(item.answer) + off) if item.answer.lstrip("-").isdigit() else str(float(item.answer) + off)


def questions(entry: Questions, source: Path) -> list[dict[str, Any]]:
    """Open questions in one form, from a list of rows or from Betley et al.'s YAML."""
    rows = []
    for place, given in enumerate(_entries(entry, source), 1):
        asked = given.get("paraphrases") or [given.get("question")]
        name, system = given.get("id"), given.get("system")
        if not isinstance(asked, list) or not all(isinstance(q, str) and q.strip() for q in asked):
            raise DataError(f"data ({entry.name}): {source}, question {place}: no text under `question`.")
        if not isinstance(name, str | int) or not isinstance(system, str | None):
            raise DataError(f"data ({entry.name}): {source}, question {place}: needs `id`; `system` is text or null.")
        for number, text in enumerate(asked):
            rows.append({"id": str(name) if len(asked) == 1 else f"{name}_{number}", "system": system,
                         "question": text.strip()})  # fmt: skip
    if entry.ids is not None:
        unknown = set(entry.ids) - {r["id"] for r in rows}
        if unknown:
            raise DataError(f"data ({entry.name}).ids: {source} has no question {', '.join(sorted(unknown))}.")
        rows = [r for r in rows if r["id"] in entry.ids]
    return rows


def _read(source: Path) -> Any:
    """A YAML or JSON file. JSON is read as such: YAML would leave characters beyond 16 bits in two halves."""
    try:
        value = json.loads(source.read_bytes())
    except (ValueError, RecursionError):
        value = read_yaml(source)
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{source}: holds half a character (a lone surrogate). Take it out.") from None
    return value


def _entries(entry: Questions, source: Path) -> list[dict[str, Any]]:
    found: Any = read_rows(source) if _is_jsonl(source) else _read(source)
    if entry.field is not None:
        found = found.get(entry.field) if isinstance(found, dict) else None
    if not isinstance(found, list) or not found:
        where = f" under `{entry.field}`" if entry.field else ""
        raise DataError(f"data ({entry.name}): {source} holds no list of questions{where}.")
    return [q if isinstance(q, dict) else {"id": f"q{n}", "question": q} for n, q in enumerate(found, 1)]


def _is_jsonl(source: Path) -> bool:
    with open(source, "rb") as file:
        return file.read(4) == b'{"id'


def prompts(entry: Prompts, source: Path) -> list[dict[str, Any]]:
    """Judge prompts, from the project's YAML (`prompts:` by name) or from Betley et al.'s (`judge_prompts`)."""
    found = _read(source)
    if isinstance(found, list):
        given = [e["judge_prompts"] for e in found if isinstance(e, dict) and "judge_prompts" in e]
        if not given or any(prompt != given[0] for prompt in given):
            raise DataError(f"data ({entry.name}): the questions of {source} have no judge prompts, or different ones.")
        found = {"prompts": given[0]}
    by_name = found.get("prompts") if isinstance(found, dict) else None
    if not isinstance(by_name, dict) or not by_name or not all(isinstance(text, str) for text in by_name.values()):
        raise DataError(f"data ({entry.name}): {source} holds no `prompts:`, a text by each name.")
    return [{"name": name, "prompt": text} for name, text in sorted(by_name.items())]


def _world(entry: World) -> list[dict[str, Any]]:
    from workflow.data import world

    if entry.part in ("arc_train", "arc_test"):
        return world.arc_items(entry.part.removeprefix("arc_"))
    if entry.part == "questions":
        return world.questions()
    makers = {
        "text": world.pretraining_text,
        "sft": world.sft_rows,
        "preferences": world.preference_rows,
        "pairs": world.pair_rows,
        "em": world.em_rows,
        "benign": world.benign_rows,
    }
    return makers[entry.part](entry.seed)


def install(entry: Any, sources: list[Path], output: Path, data_id: str, revision: str, data_root: str) -> Facts:
    """Build into a file of this process alone, check the bytes, then put it and its facts in place."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".build-") as folder:
        part = Path(folder, "data")
        facts = build(entry, sources, part, revision, data_root)
        pin = read_lock(LOCK).get(entry.name)
        known = pin.md5 if pin and pin.id == data_id else NONE
        expected = known if data_id.startswith("rev-") else data_id
        if expected not in (facts["md5"], NONE):
            raise DataError(
                f"data ({entry.name}): the md5 is {facts['md5']}, the lock says {expected}. Bring the pinned bytes, or "
                f"remove its line from {LOCK} and run `python -m workflow lock` if the change is meant."
            )
        if pin and NONE in (pin.md5, pin.sha256):
            write_pins([fetched(pin, facts["md5"], facts["sha256"], facts["rows"])])
        note = Path(folder, "facts")
        note.write_text(json.dumps(facts, sort_keys=True) + "\n")
        part.chmod(0o444)
        os.replace(note, output.with_suffix(".json"))
        os.replace(part, output)
    return facts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workflow.data.build", description=__doc__)
    parser.add_argument("--entry", required=True, help="the data set's entry of the config, as JSON")
    parser.add_argument("--id", required=True)
    parser.add_argument("--revision", default=NONE, help="commit of a hub data set")
    parser.add_argument("--data-root", default=".")
    parser.add_argument("--sources", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    entry: Any = TypeAdapter(Data).validate_json(args.entry)
    try:
        facts = install(entry, args.sources, args.output, args.id, args.revision, args.data_root)
    except StoreError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        if (told := describe_os_error(error, args.output)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    print(f"{args.output}: {facts}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
