"""Make the demo at two commits on this machine and compare what came out, byte by byte.

    python -m benchmarks.same_bytes 308d4a4 HEAD --folder /tmp/same_bytes
    python -m benchmarks.same_bytes --left FINISHED --right FINISHED      # two finished projects

Compared are the sha256 of models, adapters, completions, judgments and ARC items by stage and cell, whatever their keys
are. Exit status 1 if any differ. A commit's run is made once and kept in the folder.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from workflow.keys import hash_file

ROOT = Path(__file__).parents[1]
COMPARED = ("*.safetensors", "completions.jsonl", "judgments.jsonl", "items.jsonl", "scores.csv")


def make(commit: str, folder: Path) -> Path:
    """A finished demo of that commit."""
    name = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=True)
    clone = folder / name.stdout.strip()[:12]
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "checkout", "--quiet", name.stdout.strip()], cwd=clone, check=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["launch", "--", "snakemake", "all", "--configfile", "config/demo.yaml", "--cores", "2", "--quiet", "all"]
    subprocess.run([sys.executable, "-m", "workflow", *command], cwd=clone, env=env, check=True)
    return clone


def hashes(project: Path) -> dict[str, str]:
    """sha256 by `stage/cell/file`; a cell with several instruments has its files in the order of their keys' data."""
    found: dict[str, str] = {}
    for pattern in COMPARED:
        for path in sorted(project.glob(f"results/*/*/*/out/**/{pattern}")):
            stage, cell, key, _, *name = path.relative_to(project / "results").parts
            data = "" if stage == "report" else key.split("-")[0]
            found["/".join([stage, cell, data, *name])] = hash_file(path)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", help="two commits")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/same_bytes"))
    parser.add_argument("--left", type=Path)
    parser.add_argument("--right", type=Path)
    args = parser.parse_args()
    if len(args.commits) == 2:
        args.folder.mkdir(parents=True, exist_ok=True)
        args.left, args.right = (make(commit, args.folder) for commit in args.commits)
    if not args.left or not args.right:
        parser.error("name two commits, or --left and --right")
    left, right = hashes(args.left), hashes(args.right)
    by_stage: dict[str, list[str]] = {}
    for name in sorted(left.keys() | right.keys()):
        by_stage.setdefault(name.split("/")[0], []).append(name)
    differing = [name for name in left.keys() | right.keys() if left.get(name) != right.get(name)]
    for stage, names in by_stage.items():
        odd = [n for n in names if n in differing]
        print(f"{stage}: {len(names) - len(odd)} of {len(names)} files equal" + (f"; first: {odd[0]}" if odd else ""))
    return int(bool(differing) or not left)


if __name__ == "__main__":
    sys.exit(main())
