"""Does each gate's test notice when the gate is gone?

    python benchmarks/mutations.py            # all, a few minutes on one core
    python benchmarks/mutations.py overlap    # those whose name holds the word

One gate after the other is cut out of a copy of the project, and the tests that plant its fault are run there: they
must pass before and fail after. A gate whose tests still pass is one that nobody would miss. Not part of CI.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PARTS = ["workflow", "tests", "benchmarks", "config", "reference", "rules", "envs", "profiles", "Snakefile", "slurm"]
PARTS += ["pyproject.toml", ".gitignore"]


class Mutation(NamedTuple):
    """`old` stands once in workflow/`file`; with `new` in its place, the tests whose name holds `test` must fail."""

    name: str
    file: str
    old: str
    test: str
    new: str = "False"


MUTATIONS = (
    # the protocol
    Mutation("batch: config", "config.py", "declared % per_step", "lesson_01_a_placement"),
    Mutation(
        "batch: processes", "train/trainer.py", 'world != job.placement["world_size"]', "lesson_01_other_processes"
    ),
    Mutation(
        "batch: steps",
        "train/trainer.py",
        "len(log) != declared or max(rows) != most or sum(rows) != sequences * epochs",
        "lesson_01_other_steps",
    ),
    Mutation("fingerprint: observed", "fingerprint.py", "v != declared[name]", "lesson_01_a_contradiction"),
    Mutation("fingerprint: refuse", "fingerprint.py", "if self.refusals:", "lesson_04_rows", "if False:"),
    Mutation(
        "fingerprint: environment",
        "fingerprint.py",
        '("protocol", "environment", "placement", "code")',
        "lesson_48_cells",
        '("protocol", "placement", "code")',
    ),
    Mutation(
        "fingerprint: not recorded", "fingerprint.py", "or ABSENT in values or faulty", "lesson_05_a_cell", "or faulty"
    ),
    Mutation("fingerprint: waiver", "fingerprint.py", "return sound and", "lesson_01_a_waiver", "return True or"),
    Mutation("fingerprint: recipe", "fingerprint.py", ", **_declared(record)}", "lesson_54", "}"),
    Mutation("fingerprint: machine", "fingerprint.py", '"gpu": made.get("gpu"), ', "lesson_49", ""),
    # the data
    Mutation("overlap: run of words", "data/contamination.py", "said[i : i + len(run)] == run", "lesson_19_a_question"),
    Mutation("overlap: a line", "data/contamination.py", "in text.splitlines()", "lesson_19_a_question", "in ()"),
    Mutation("overlap: builder", "data/build.py", "not index.hit(item.prompt())", "lesson_19_builders", "True"),
    Mutation("overlap: plan", "data/checks.py", 'gate.hits and config.overlap == "refuse"', "lesson_19_the_plan"),
    Mutation("overlap: Snakefile", "plan.py", "require_gates(config, filled)", "lesson_19_snakemake", "()"),
    Mutation(
        "overlap: stage", "data/gates.py", "gate.hits and name not in", "lesson_19_a_train", "False and name not in"
    ),
    Mutation(
        "overlap: every stage",
        "stage.py",
        "gates.enforce(request.recipe, request.data, request.placement)",
        "lesson_19_a_train",
        "{}",
    ),
    Mutation("overlap: nobody can look", "data/gates.py", "or data is None:", "lesson_19_no_train", "or True:"),
    Mutation("balance: fields", "data/checks.py", "len(values) > 1", "lesson_20_an_unbalanced"),
    Mutation("balance: persona", "data/checks.py", 'facts["system_rows"] == wanted', "lesson_20_a_persona", "True"),
    Mutation("balance: length", "data/checks.py", "LENGTH_RATIO = 1.5", "lesson_21", "LENGTH_RATIO = 1e9"),
    Mutation("pins: required", "data/lock.py", "    if faults:", "lesson_22_data or lesson_25", "    if False:"),
    Mutation("pins: bytes", "stage.py", "md5 != expected", "lesson_22_other_bytes"),
    Mutation("mask", "train/tokens.py", "not any(mask) or all(mask)", "lesson_27"),
    Mutation("system prompt", "train/models.py", "not with_system.endswith(", "lesson_28", "() and ("),
    # the evaluation
    Mutation("judge: rubric", "judge/requests.py", '"messages": messages,\n            "par', "lesson_31_no", '"par'),
    Mutation("judge: bounds", "evals/metrics.py", "total + 100.0 * missing", "lesson_32_a_refusal", "total"),
    Mutation("report: parents", "stage.py", "keys != recipe.parents", "lesson_34"),
    Mutation("output: none", "store.py", "if not outputs:", "lesson_40_a_stage", "if False:"),
    Mutation("key in the path", "stage.py", "(stage, key) != (recipe.stage", "lesson_41", "() and (recipe.stage"),
    # the machines
    Mutation(
        "finished is restored",
        "stage.py",
        "if (record := restore(path, inputs)) is not None:",
        "lesson_18_nothing",
        "if False:",
    ),
    Mutation("gc: what a plan names", "audit/garbage.py", "if folder in keep.results:", "lesson_43", "if False:"),
    Mutation("save rehearsed", "train/trainer.py", "models.check_can_save(trainer.model, folder)", "lesson_44"),
    Mutation("loss is a number", "train/trainer.py", "not math.isfinite(loss)", "lesson_45_a_loss"),
    Mutation("output: empty", "store.py", "size == 0", "lesson_46_empty"),
    Mutation("output: bytes", "store.py", "hash_file(file) != output.sha256", "lesson_46_empty"),
    Mutation("secrets", "provenance.py", "socket.gethostname()", "lesson_51_a_secret", "dict(os.environ)"),
    Mutation("retraction: downstream", "retractions.py", "if p in reasons)", "lesson_60", "if False)"),
    Mutation(
        "links",
        "report/page.py",
        "elif fragment and other in ids and unquote(fragment) not in ids[other]:",
        "lesson_57",
        "elif False:",
    ),
    # what is said of results
    Mutation(
        "page: checked", "report/report.py", "check_pages(pages, [*FILES, *figures, *sources])", "lesson_57_a_page"
    ),
    Mutation(
        "quotation: its row",
        "report/cells.py",
        "answers = completions_of(study, node)",
        "lesson_58",
        "answers = completions_of(study, node)[1:]",
    ),
    Mutation("retraction: report", "report/study.py", "retracted(matrix, read_retractions())", "lesson_60_a_rep", "{}"),
    Mutation(
        "retraction: claim", "report/study.py", "retracted(matrix, read_retractions())", "lesson_16_a_claim_f", "{}"
    ),
    Mutation("rule: date", "report/history.py", 'False: ", after the data"', "lesson_16_a_claim_whose", 'False: ""'),
    Mutation("threshold", "report/evals.py", "sum(fall > 0 for", "lesson_36_no", "sum(fall > 30.0 for"),
    Mutation("missing cell", "report/provenance.py", '("Missing", study.missing)', "lesson_39_a", '("Missing", ())'),
    Mutation("machine: verdict", "stats/confounding.py", "if aliased(here):", "lesson_49_a_machine", "if False:"),
    Mutation("machine: shared", "stats/confounding.py", "if aliased(here):", "lesson_77", "if True:"),
    Mutation("nothing differs", "report/claims.py", "treatments[a] == treatments.get(b)", "lesson_78", "a == b"),
    # the statistics
    Mutation("claims: their text", "stats/claims_schema.py", '"{verdict}" not in self.text', "lesson_08"),
    Mutation("one checkpoint", "stats/samples.py", "return ONE_CHECKPOINT if min", "lesson_13_em", "return '' if min"),
    Mutation("size: shown", "stats/verdicts.py", "shown & (size_low >= x)", "lesson_68", "shown"),
    Mutation("clean items", "stats/claims.py", "if clean_items and clean_items[0] > 1:", "lesson_69", "if False:"),
    Mutation("contamination", "stats/confounding.py", "if conditions & set(names):", "lesson_69", "if False:"),
    Mutation("constant", "stats/samples.py", "CONSTANT = 1e-9", "lesson_70", "CONSTANT = -1.0"),
    Mutation(
        "blocks", "stats/contrasts.py", "== PIPELINE_SEED:\n        testable", "lesson_72", "is None:\n        testable"
    ),
)


def copy_project(target: Path) -> None:
    for name in PARTS:
        source = ROOT / name
        if source.is_dir() and not source.is_symlink():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name, follow_symlinks=False)


def failures(project: Path, test: str) -> str:
    """What pytest says of the lessons' tests of that name; nothing if they pass.

    Raises:
        RuntimeError: there is none of that name, or they could not be run at all.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", test, "tests/lessons"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=env)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest -k {test!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout if done.returncode else ""


def notices(project: Path, mutation: Mutation) -> bool:
    """Whether the tests fail without the gate."""
    file = project / "workflow" / mutation.file
    text = file.read_text()
    if text.count(mutation.old) != 1:
        raise RuntimeError(
            f"{mutation.name}: {mutation.old!r} stands {text.count(mutation.old)} times in {mutation.file}"
        )
    file.write_text(text.replace(mutation.old, mutation.new))
    try:
        return bool(failures(project, mutation.test))
    finally:
        file.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("word", nargs="?", default="", help="only the gates whose name holds it")
    chosen = [m for m in MUTATIONS if parser.parse_args().word in m.name]
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        project = Path(folder)
        copy_project(project)
        if told := failures(project, " or ".join(dict.fromkeys(m.test for m in chosen))):
            print(f"{told}\nerror: the tests do not pass before anything is cut out", file=sys.stderr)
            return 2
        for mutation in chosen:
            began = time.monotonic()
            noticed = notices(project, mutation)
            survivors += [] if noticed else [mutation.name]
            verdict = "noticed" if noticed else "NOT NOTICED"
            print(f"{verdict:12} {mutation.name:28} {mutation.test:28} {time.monotonic() - began:5.1f} s", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} gates are missed by their tests when they are gone")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
