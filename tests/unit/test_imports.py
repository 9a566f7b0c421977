"""Imports go one way, nothing in the package knows Snakemake, and planning is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "workflow").rglob("*.py"))
# What may not be imported by whom, at any depth. A part is a top-level module or a subpackage.
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "files": set(),
    "keys": set(),
    "sections": set(),
    "gpus": set(),
    "slurm_patch": set(),
    "config_load": {"errors"},
    "config": {"config_load", "errors", "sections"},
    "config_new": {"config", "config_load", "errors", "files"},
    "entries": {"errors", "files"},
    "accepted": {"entries"},
    "provenance": {"gpus", "keys"},
    "store": {"errors", "files", "keys"},
    "retractions": {"entries", "errors", "keys", "store"},
    "reuse": {"accepted", "files", "keys", "retractions", "store"},
    "data": {"config", "config_load", "data", "errors", "files", "keys", "provenance", "sections", "store"},
    "launch": {"errors", "stage"},
    "stage": {"data", "errors", "files", "gpus", "keys", "launch", "provenance", "reuse", "store"},
    "matrix": {"config", "config_load", "data", "errors", "keys", "sections", "store"},
    "links": {"matrix", "store"},
    "plan": {
        "config",
        "data",
        "errors",
        "files",
        "gpus",
        "keys",
        "links",
        "matrix",
        "sections",
        "stage",
        "store",
    },
    "progress": {"audit", "errors"},
    "fingerprint": {"accepted", "config", "errors", "keys", "matrix", "sections", "store"},
    "train": {"config", "data", "errors", "keys", "sections", "stage", "store", "train"},
    "evals": {"data", "errors", "evals", "judge", "keys", "launch", "stage", "store", "train"},
    "judge": {"data", "errors", "evals", "files", "judge", "keys", "sections", "stage", "store", "train"},
    "stats": {"stats"},
    "report": {
        "accepted",
        "audit",
        "config",
        "data",
        "errors",
        "evals",
        "files",
        "fingerprint",
        "judge",
        "keys",
        "links",
        "matrix",
        "report",
        "retractions",
        "sections",
        "stage",
        "stats",
        "store",
    },
    "audit": {
        "accepted",
        "audit",
        "config",
        "data",
        "errors",
        "evals",
        "files",
        "judge",
        "keys",
        "links",
        "matrix",
        "provenance",
        "retractions",
        "reuse",
        "sections",
        "stage",
        "store",
        "train",
    },
}
LATE = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "openai", "tokenizers", "safetensors"}


def part(path: Path) -> str:
    return path.relative_to(ROOT / "workflow").parts[0].removesuffix(".py")


def imported(path: Path, top_level_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    for guard in [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]:
        tree.body.remove(guard)  # names for readers, which nothing imports
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{a.name}" if node.module == "workflow" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names += [a.name for a in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    for module in imported(path):
        assert not module.startswith("snakemake")
        if module.startswith("workflow.") and part(path) in MAY_IMPORT:
            assert module.split(".")[1] in MAY_IMPORT[part(path)], f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_are_imported_inside_functions(path):
    assert not LATE & {m.split(".")[0] for m in imported(path, top_level_only=True)}


def test_planning_imports_nothing_heavy():
    code = "import sys, workflow.plan; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = [*LATE, "pandas", "numpy", "scipy", "statsmodels", "matplotlib"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("smk", [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))], ids=lambda p: p.name)
def test_rules_stay_small_and_plain(smk):
    text = smk.read_text()
    assert "\nimport workflow" not in text  # it would replace Snakemake's own `workflow` object
    assert len(text.splitlines()) <= 170
    if smk.name not in ("common.smk", "Snakefile"):
        for word in ("lambda", "run:", "script:", "checkpoint", "retries"):
            assert word not in text, word
