"""`python -m workflow lock`: find out the bytes, or the commit, of what a config uses, and write them down."""

from pathlib import Path
from typing import Any

from workflow.config import Config, ConfigError, sources
from workflow.data import checks
from workflow.data.build import DataError, build, install
from workflow.data.gates import read_gates
from workflow.data.lock import (
    LOCK,
    NONE,
    UNRESOLVED,
    Lock,
    Pin,
    builder_code,
    definition,
    describe,
    hub_id,
    read_lock,
    used_names,
    write_pins,
)
from workflow.keys import digest, model_digest
from workflow.sections import File, Hub, HubModel, LocalModel, MadeModel, Url
from workflow.store import StoreError, data_path


def pin_all(config: Config, report: Any = print) -> list[str]:
    """Pin everything that the config uses and that is not pinned. Returns what could not be pinned, with the reason."""
    faults: list[str] = []
    pins = read_lock(LOCK)
    wanted: list[Any] = [config.base_model] if isinstance(config.base_model, MadeModel) else []
    wanted += [config.data_entry(name) for name in used_names(config)]
    for entry in wanted:
        if _is_pinned(entry, pins) and not _has_other_code(entry, pins):
            continue
        if _is_pinned(entry, pins) and not all(_is_at_hand(s, config, pins) for s in sources(entry)):
            report(f"{entry.name}: built by other code than now; what it is built from is not here to build it again")
            continue
        try:
            pin = _pin(entry, config, pins)
            if _is_pinned(entry, pins):
                _require_equal(entry, pins[entry.name], pin)
        except (StoreError, ConfigError) as error:
            faults.append(str(error))
            if _is_pinned(entry, pins):
                continue  # the line stays: what it names is still what the results were made from
            pin = Pin(entry.name, UNRESOLVED, NONE, NONE, NONE, UNRESOLVED, NONE, _source(entry))
        else:
            again = ", built again: the same bytes" if _is_pinned(entry, pins) else ""
            report(f"{pin.name}: {pin.id} ({pin.rows} rows){again}")
        pins[entry.name] = pin
        write_pins([pin], LOCK)
    return faults or check_data(config, pins, report)


def _has_other_code(entry: Any, pins: Lock) -> bool:
    return not isinstance(entry, MadeModel) and pins[entry.name].code != builder_code(entry)


def _require_equal(entry: Any, old: Pin, new: Pin) -> None:
    if new.md5 != old.md5:
        raise DataError(
            f"data ({entry.name}): its builder's code changed and builds other bytes (md5 {old.md5} -> {new.md5}). "
            f"Bump BUILDERS[{entry.kind!r}] in workflow/data/lock.py if that is meant, or mend the code."
        )


def check_data(config: Config, pins: Lock, report: Any = print) -> list[str]:
    """Run the data checks over whatever can be had without the network. Returns what makes the data unfit."""
    names = [*checks.training_sets(config), *checks.evaluation_sets(config)]
    files = {name: _file(name, config, pins) for name in names if _is_at_hand(name, config, pins)}
    checks.measure(config, pins, files, report)
    checked = checks.check(config, pins, read_gates())
    for warning in checked.warnings:
        report(f"warning: {warning}")
    return list(checked.refusals)


def _is_at_hand(name: str, config: Config, pins: Lock) -> bool:
    """Whether a data set's file is there, or can be made from files that are."""
    entry = config.data_entry(name)
    if Path(data_path(pins[name].id)).is_file():
        return True
    if isinstance(entry, Hub | Url):
        return False
    if isinstance(entry, File):
        return Path(config.data_root, entry.path).is_file()
    return all(_is_at_hand(source, config, pins) for source in sources(entry))


def _source(entry: Any) -> str:
    return f"model {entry.repo}" if isinstance(entry, HubModel) else describe(entry)


def _is_pinned(entry: Any, pins: Lock) -> bool:
    pin = pins.get(entry.name)
    if pin is None or pin.id in (NONE, UNRESOLVED):
        return False
    if isinstance(entry, MadeModel):
        return pin.id == hub_id(entry, pin.revision)
    return pin.definition == definition(entry, pins)


def _pin(entry: Any, config: Config, pins: Lock) -> Pin:
    if isinstance(entry, HubModel):
        commit = _resolve(entry.name, entry.repo, "model")
        said = digest("definition", {"repo": entry.repo})[:12]
        return Pin(entry.name, hub_id(entry, commit), NONE, NONE, NONE, commit, said, _source(entry))
    if isinstance(entry, LocalModel):
        if not Path(entry.path).is_dir():
            raise DataError(f"base_model ({entry.name}): no folder {entry.path}. Name the folder of a saved model.")
        held = model_digest(Path(entry.path))
        return Pin(entry.name, hub_id(entry, held), NONE, NONE, NONE, held, definition(entry, pins), _source(entry))
    says = definition(entry, pins)
    if isinstance(entry, Hub):
        # a commit that was resolved before stays: a new selection of the same repository is of the same rows
        known = pins.get(entry.name)
        commit = known.revision if known and known.revision not in (NONE, UNRESOLVED) else ""
        commit = commit or _resolve(entry.name, entry.repo, "dataset")
        return Pin(entry.name, hub_id(entry, commit), NONE, NONE, NONE, commit, says, describe(entry))
    given = entry.md5 if isinstance(entry, File | Url) else None
    absent = isinstance(entry, Url) or (isinstance(entry, File) and not Path(config.data_root, entry.path).is_file())
    if given and absent:  # its bytes are named already; they are checked when they come
        return Pin(entry.name, given, given, NONE, NONE, NONE, says, describe(entry))
    files = [_file(name, config, pins) for name in sources(entry)]
    unknown = Path(data_path(".pin")).with_suffix(f".{entry.name}")
    unknown.parent.mkdir(parents=True, exist_ok=True)
    try:
        facts = build(entry, files, unknown, NONE, config.data_root)
    finally:
        unknown.unlink(missing_ok=True)
    if given and facts["md5"] != given:
        raise DataError(
            f"data ({entry.name}).md5: the file has {facts['md5']}, the config says {given}. Bring the right file."
        )
    return Pin(
        entry.name,
        facts["md5"],
        facts["md5"],
        facts["sha256"],
        str(facts["rows"]),
        NONE,
        says,
        describe(entry),
        builder_code(entry),
    )


def _file(name: str, config: Config, pins: Lock) -> Path:
    """The data file of a pinned source, made if it is not there."""
    pin = pins.get(name)
    if pin is None or pin.id == UNRESOLVED:
        raise DataError(f"data ({name}): not pinned, so what is built from it cannot be pinned either.")
    path = Path(data_path(pin.id))
    if not path.is_file():
        entry = config.data_entry(name)
        files = [_file(source, config, pins) for source in sources(entry)]
        install(entry, files, path, pin.id, pin.revision, config.data_root)
        pins.update(read_lock(LOCK))
    return path


def _resolve(name: str, repo: str, kind: str) -> str:
    """The commit that a repository's main branch has now."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        commit = HfApi().repo_info(repo, repo_type=kind).sha
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"data ({name}): the hub did not answer for {repo} ({type(error).__name__}). "
            "Run `python -m workflow lock` where the hub can be reached."
        ) from None
    return str(commit)
