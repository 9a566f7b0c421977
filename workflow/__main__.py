"""The commands around a run: `matrix COMMAND`, or `python -m workflow COMMAND`. Each takes --help."""

import gc as memory
import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workflow.config import Config
from workflow.config_load import MAIN_CONFIG, choose_config
from workflow.errors import ConfigError, UserError, describe_os_error, printable

if TYPE_CHECKING:
    from workflow.matrix import Matrix

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
DEFAULT = ""
ConfigFile = Annotated[
    str,
    typer.Option(
        "--configfile",
        envvar="MATRIX_CONFIG",
        callback=choose_config,
        show_default=False,
        help=f"the experiment [the only one that these results were made with, else {MAIN_CONFIG}]",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="for programs")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"matrix {package_version('coupling-matrix')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="say and exit")
    ] = False,
) -> None:
    """The commands around a run: `matrix COMMAND`, or `python -m workflow COMMAND`. Each takes --help."""


def _plan(configfile: str, may_be_provisional: bool = True) -> "Matrix":
    from workflow.data.lock import describe_unpinned, provisional, read_lock, unpinned
    from workflow.matrix import Matrix

    memory.disable()  # a plan of 40 000 nodes lives until the end; looking through it for garbage doubles its time
    config, pins = Config.load(configfile), read_lock()
    if missing := tuple(unpinned(config, pins)):
        message = describe_unpinned(missing, configfile)
        if not may_be_provisional:
            raise ConfigError(message)
        print(f"warning: {message} Until then their keys are provisional (tbd).", file=sys.stderr)
    return Matrix(config, provisional(config, pins), configfile)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


@app.command()
def new(
    name: str,
    template: Annotated[str, typer.Option(help="demo, real or full: the config that it starts from")] = "demo",
) -> None:
    """Write config/NAME.yaml, complete and commented, to be edited; and config/schema.json, which editors read.

    Example: matrix new my_experiment --template demo
    """
    from workflow.config_new import new_config

    path = new_config(name, template)
    print(f"{path}: edit it, then `matrix lock --configfile {path}` and `snakemake all --configfile {path} --cores 2`")


@app.command()
def lock(configfile: ConfigFile = DEFAULT, data_root: str = "") -> None:
    """Pin what is not pinned: resolve commits, build or read data, write config/data.lock.tsv.

    Example: matrix lock --configfile config/demo.yaml
    """
    from workflow.data.lock import read_lock
    from workflow.data.pin import pin_all
    from workflow.sections import LocalModel
    from workflow.train.lengths import check_lengths
    from workflow.train.model_files import check_model_folder

    config = Config.load(configfile)
    if isinstance(config.base_model, LocalModel) and Path(config.base_model.path).is_dir():
        check_model_folder(Path(config.base_model.path))
    if data_root:
        config = config.model_copy(update={"data_root": data_root})
    faults = pin_all(config)
    faults = faults or check_lengths(config, read_lock())
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    raise typer.Exit(1 if faults else 0)


@app.command()
def dequantise(file: Path, folder: Path) -> None:
    """Write a GGUF file as the folder of a model, for `base_model: {kind: local}`; records call it dequantised.

    Example: matrix dequantise smollm2-135m-instruct-q4_1.gguf models/smollm2
    """
    from workflow.train.gguf import dequantise as write

    note = write(file, folder)
    print(f"{folder}: {note['weights']} from {', '.join(note['tensors'])}")


@app.command()
def status(
    cells: Annotated[list[str] | None, typer.Argument(help="only these cells")] = None,
    configfile: ConfigFile = DEFAULT,
    paths: Annotated[bool, typer.Option("--paths", help="print the targets that the cells consist of")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="again every few seconds, while jobs run")] = False,
    json_: Json = False,
) -> None:
    """The matrix as a grid: done, missing, outdated, stale, other code, running, failed, retracted; and the cost.

    Example: matrix status --paths evil_wrong.p42 evil_wrong.p42.e137
    """
    from workflow.audit import status as audit
    from workflow.audit import status_view

    matrix = _plan(configfile)
    if paths:
        print("\n".join(matrix.records(cells or ())))
        return

    def look() -> audit.Survey:
        return audit.select(audit.survey(matrix), cells) if cells else audit.survey(matrix)

    if json_:
        _print_json(audit.to_json(look()))
    elif watch:
        status_view.watch(look)
    else:
        status_view.show(look())


@app.command()
def why(
    cell: str,
    stage: Annotated[str | None, typer.Argument(help="only this stage of the cell")] = None,
    configfile: ConfigFile = DEFAULT,
) -> None:
    """The recipe fields that differ from the nearest finished sibling, where they come from, and what follows.

    Example: matrix why evil_wrong.p42.e137 em_lora
    """
    from workflow.audit import status as audit
    from workflow.audit import why as reasons

    found = audit.survey(_plan(configfile))
    reasons.show(found, reasons.explain(found, cell, stage))


@app.command()
def diff(left: str, right: str, configfile: ConfigFile = DEFAULT, json_: Json = False) -> None:
    """Every difference between two cells: recipe, data, what was observed, placement, environment, metrics, outputs.

    Example: matrix diff tulu_control.p42.e137 evil_wrong.p42.e137
    """
    from workflow.audit import diff as differences

    found = differences.diff(_plan(configfile), left, right)
    if json_:
        _print_json(differences.to_json(found))
    else:
        differences.show(found)


@app.command()
def verify(
    configfile: ConfigFile = DEFAULT,
    quick: Annotated[bool, typer.Option("--quick", help="trust size, times and inode since a full check")] = False,
    against: Annotated[Path | None, typer.Option(help="a seal; what changed since it was made is broken")] = None,
) -> None:
    """Hash every output again and walk every link. Exit status: 0 whole, 1 broken, 2 unverifiable; each case is named.

    Example: matrix verify --against config/demo.seal --configfile config/demo.yaml
    """
    from workflow.audit import verify as check

    verdict = check.verify(_plan(configfile), quick, against)
    check.show(verdict)
    raise typer.Exit(verdict.findings.code)


@app.command()
def seal(
    file: Annotated[Path | None, typer.Argument(help="[the config's name with .seal]")] = None,
    configfile: ConfigFile = DEFAULT,
    sign: Annotated[bool, typer.Option("--sign", help="with the SSH or GPG key that git signs with")] = False,
) -> None:
    """Write the sha256 of every record, data note, training log and journal to one small file that you commit.

    Example: matrix seal --sign --configfile config/demo.yaml
    """
    from workflow.audit import seal as seals
    from workflow.audit import signature
    from workflow.audit import verify as check

    matrix = _plan(configfile, may_be_provisional=False)
    verdict = check.verify(matrix, quick=True)
    if verdict.findings.code == 1:
        check.show(verdict)
        raise ConfigError("nothing was sealed: a seal would vouch for what is broken. Mend it first.")
    taken = seals.take_seal(matrix)
    target = file or seals.default_path(configfile)
    seals.write_seal(target, taken)
    records = sum(name.endswith("/record.json") for name in taken)
    print(f"{target}: {records} of the plan's {len(matrix.nodes())} results, {len(taken)} files; commit it")
    if sign:
        print(f"{signature.sign(target)}: signed; commit it too")


@app.command()
def lineage(
    what: Annotated[str, typer.Argument(help="a number (CELL/INSTRUMENT/METRIC), a cell, or a data set")],
    configfile: ConfigFile = DEFAULT,
    json_: Json = False,
) -> None:
    """From a number of the report to the bytes that it rests on; from a data set to every number that rests on it.

    Example: matrix lineage evil_wrong.p42.e137/demo_questions/alignment --configfile config/demo.yaml
    """
    from workflow.audit import lineage as trees

    root = trees.Lineage(_plan(configfile)).trace(what)
    if json_:
        _print_json(root.to_json())
    else:
        trees.show(root)


@app.command()
def retract(
    result: Annotated[str, typer.Argument(metavar="STAGE/CELL/KEY")],
    reason: Annotated[str, typer.Option(help="why; the report prints it")],
    configfile: ConfigFile = DEFAULT,
) -> None:
    """Mark a result, and with it all that was made from it, as not to be used: an entry in config/retractions.yaml.

    Example: matrix retract em_lora/evil_wrong.p42.e137/26b52cac-c7f970ccc757 --reason "another batch size"
    """
    from workflow import retractions

    matrix = _plan(configfile)
    entry = retractions.retract(matrix, result, reason)
    print(f"{'/'.join(entry.place)}: retracted in {retractions.RETRACTIONS}; commit it")
    for node, why_ in retractions.retracted(matrix, (entry,)).items():
        print(f"  {node.stage}/{node.label}/{node.key}: {why_}")


@app.command()
def redo(
    result: Annotated[str, typer.Argument(metavar="STAGE/CELL/KEY")],
    reason: Annotated[str, typer.Option(help="why; it is kept beside the result that is set aside")],
    configfile: ConfigFile = DEFAULT,
) -> None:
    """Set a result aside and plan it again, with what follows. A judge is asked again. Nothing is lost until `gc`.

    Example: matrix redo judge/evil_wrong.p42.e137/26b52cac-c7f970ccc757 --reason "the judge was down"
    """
    from workflow.audit.redo import redo as again

    matrix = _plan(configfile, may_be_provisional=False)
    redone = again(matrix, result, reason)
    print(f"{redone.aside}: set aside; `snakemake all` makes it again and checks {len(redone.below)} results below it")


@app.command()
def accept(
    stage: str,
    reason: Annotated[str, typer.Option(help="why the change of code moves no number; the report prints it")],
    configfile: ConfigFile = DEFAULT,
) -> None:
    """Say that the code of a stage as it is now gives the numbers of the code that made the finished results.

    Example: matrix accept em_lora --reason "renamed a function"
    """
    from workflow import accepted
    from workflow.audit.redo import codes_of

    codes = codes_of(_plan(configfile), stage)
    if len(codes) < 2:
        print(f"{stage}: every finished result was made by the present code; there is nothing to accept")
        return
    entry = accepted.accept(stage, codes, reason)
    print(f"{stage}: {', '.join(entry.codes)} count as one code, in {accepted.ACCEPTED}; commit it")


@app.command()
def gc(
    configfile: ConfigFile = DEFAULT,
    yes: Annotated[bool, typer.Option("--yes", help="remove what is shown")] = False,
    alone: Annotated[bool, typer.Option("--alone", help="what only another config plans can go too")] = False,
) -> None:
    """What nothing in the plan names: other keys, superseded results, dead workspaces, unnamed data. Shows them first.

    Example: matrix gc --yes
    """
    from workflow.audit import garbage
    from workflow.plan import claim

    matrix = _plan(configfile, may_be_provisional=False)
    held = claim() if yes else None  # nothing goes that another Snakemake is about to read or write
    try:
        heap = garbage.collect(matrix, alone)
        garbage.show(heap)
        if yes:
            garbage.remove(heap)
            print("removed")
        elif heap.waste:
            print("nothing was removed; say --yes")
    finally:
        if held is not None:
            os.close(held)


@app.command()
def adopt(
    folder: Annotated[Path, typer.Argument(help="holds the .json files")],
    name: Annotated[str | None, typer.Option(help="its name under results/adopted/ [its own]")] = None,
    mapping: Annotated[Path | None, typer.Option(help="YAML of paths, for files of other shapes")] = None,
    configfile: ConfigFile = DEFAULT,
) -> None:
    """Bring the result files of an earlier program in, as numbers without a record, with the fields that they lack.

    Example: matrix adopt ~/old/results --name original
    """
    from workflow.audit import adopt as adoption

    Config.load(configfile)  # a wrong --configfile is told here as everywhere
    target = adoption.adopt(folder, name, mapping)
    notes = json.loads((target / adoption.FOUND).read_bytes())
    for file, found in notes["files"].items():
        lacks = f"missing {', '.join(found['missing'])}" if found["missing"] else "nothing is missing"
        print(printable(f"{target / file}: {found['shape']}; {'; '.join([lacks, *found['disagrees']])}"))
    for file, reason in notes["not_adopted"].items():
        print(printable(f"not adopted: {file}: {reason}"))
    print(f"{len(notes['files'])} files adopted; `verify` calls them unverifiable")


@app.command()
def export(
    cell: str,
    target: Path,
    stage: Annotated[str | None, typer.Option(help="default: the cell's model")] = None,
    configfile: ConfigFile = DEFAULT,
) -> None:
    """Copy a cell's model with its record and a card rendered from it to a new folder; read back and verified.

    Example: matrix export evil_wrong.p42.e137 /tmp/adapter
    """
    from workflow.audit.export import export as copy

    node = copy(_plan(configfile, may_be_provisional=False), cell, target, stage)
    print(f"{target}: {node.stage}/{node.label}/{node.key}, read back and whole")


@app.command()
def show(
    cell: str,
    instrument: Annotated[str, typer.Option(help="[its first judged one]")] = "",
    sort: Annotated[str, typer.Option(help="a field of the items, such as aligned")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="only wrong answers, and what has no score")] = False,
    configfile: ConfigFile = DEFAULT,
    json_: Json = False,
    csv_: Annotated[bool, typer.Option("--csv", help="for programs")] = False,
) -> None:
    """What a cell's number is the mean of: completions with their scores, test items or pairs.

    Example: matrix show evil_wrong.p42.e137 --sort aligned --configfile config/demo.yaml
    """
    from workflow.report import cells

    node, items = cells.select_items(_plan(configfile), cell, instrument, sort, failed)
    print(cells.show_items(node, items, json_, csv_))


@app.command()
def compare(one: str, two: str, json_: Json = False) -> None:
    """Which numbers, verdicts and protocols differ between two finished reports, each as NAME/KEY or a path.

    Example: matrix compare demo/10479148-bd8f2df7bfe0 demo/5f3a0c11-0b9d7f6e2c54
    """
    from workflow.report import overview

    found = overview.compare(one, two)
    if json_:
        _print_json(found)
    else:
        print(overview.show_comparison(found))


@app.command()
def preview(
    out: Annotated[Path, typer.Option(help="a folder that is not there yet")], configfile: ConfigFile = DEFAULT
) -> None:
    """A report of what is finished so far, the rest shown as missing. No result: it has no record.

    Example: matrix preview --out /tmp/preview --configfile config/demo.yaml
    """
    from workflow.report import overview

    study = overview.preview(_plan(configfile), out).study
    print(f"{out / 'report.html'}: {len(study.records)} measurements, {len(study.missing)} missing")


@app.command()
def latest(configfile: ConfigFile = DEFAULT) -> None:
    """Copy the finished report to its stable paths under results/report/NAME/, and say in a few lines what it says.

    Example: matrix latest --configfile config/demo.yaml
    """
    from workflow.report import overview
    from workflow.store import out_dir

    matrix = _plan(configfile, may_be_provisional=False)
    try:
        page = overview.publish(matrix)
    except OSError as error:  # the report can be read all the same
        print(f"{error.filename}: {error.strerror}; no stable copy was made", file=sys.stderr)
        page = out_dir(matrix.report.record) / "report.html"
    print(f"{overview.summary(matrix)}\n\nreport: {page}")
    print(f"\nnext, in this folder:\n{overview.next_steps(matrix.config, configfile)}")


@app.command()
def reference(out: Path = Path("results/reference")) -> None:
    """The report of the published table alone: no model is run.

    Example: matrix reference
    """
    from workflow.report import overview

    print(f"{overview.reference(out)}\nreport: {out / 'report.html'}")


@app.command(name="judge-cost")
def judge_cost(configfile: ConfigFile = DEFAULT) -> None:
    """What the judgments that are missing would take: requests, tokens, dollars. Asks nobody.

    Example: matrix judge-cost --configfile config/config.yaml
    """
    from workflow.audit.judge_cost import judge_cost as costs

    found = costs(_plan(configfile))
    for cost in found:
        print(
            f"{cost.instrument}: {cost.cells} cells by {cost.model}, {cost.requests} requests, {cost.tokens_in} tokens "
            f"in, at most {cost.tokens_out_at_most} out, {cost.usd:.2f} USD (lengths measured on {cost.measured} cells)"
        )
    print(f"in all {sum(c.usd for c in found):.2f} USD at the prices of placement.judge")


@app.command(name="retry-unscored")
def retry_unscored(configfile: ConfigFile = DEFAULT) -> None:
    """Have what gave no score asked for again, in judgments that are not finished; their journals are kept otherwise.

    Example: matrix retry-unscored --configfile config/config.yaml
    """
    from workflow.judge.journal import retry_unscored as retry

    nodes = _plan(configfile, may_be_provisional=False).nodes("judge")
    dropped = retry([Path(node.record).parent for node in nodes if not Path(node.record).exists()])
    for folder, count in dropped.items():
        print(f"{folder}: {count} replies without a score are asked for again")
    print(f"{sum(dropped.values())} replies of {len(dropped)} cells; a finished result is asked again by `matrix redo`")


@app.command()
def doctor(configfile: ConfigFile = DEFAULT) -> None:
    """What is missing before the first GPU hour: data, hub, judge, GPUs, disk, hours, the site. Exit status 1 if so.

    Example: matrix doctor
    """
    from workflow.audit import doctor as doctors

    raise typer.Exit(doctors.show(doctors.doctor(Config.load(configfile), configfile)))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def launch(context: typer.Context) -> None:
    """Run a command on this machine with jobs forked from one process that has imported torch.

    Example: matrix launch -- snakemake all --configfile config/demo.yaml -c2
    """
    from workflow.launch import launch as run

    raise typer.Exit(run(context.args))


def console() -> None:
    """The console script `matrix`: in another checkout than the one it was installed from, that checkout's code."""
    here = Path("workflow/__main__.py")
    if here.is_file() and not here.samefile(__file__):
        os.execv(sys.executable, [sys.executable, "-m", "workflow", *sys.argv[1:]])
    main()


def main(argv: Sequence[str] | None = None) -> None:
    try:
        app(args=list(argv) if argv is not None else None, prog_name="matrix")
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if (told := describe_os_error(error, "results")) is None:
            raise
        sys.exit(f"error: {printable(told)}")
    finally:
        memory.enable()


if __name__ == "__main__":
    main()
