"""What an edit plans, and what it computes: `python -m benchmarks.edits --folder /tmp/edits`

A finished demo of 2 conditions x 2 EM seeds is copied and edited, one edit at a time: config, data, code, environment,
results. For each: the jobs that `snakemake -n` plans, the least that must be computed (written down here), what of it
the plan misses, what it plans beyond that (restored or taken over, not computed), and what a run then computes.
Missed must be 0 in every row, and computed must be the least. Rows are kept in FOLDER/edits.jsonl, so the script goes
on where it was stopped. Exit status 1 if a row is wrong.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.conftest import copy_project, jobs, make

Least = dict[str, int]
CONFIG = "config/test.yaml"
EVALUATED = ("arc", "pairs", "generate", "judge")


class Edit(NamedTuple):
    """`least`: jobs by stage whose results do not exist yet; `why`: what the plan may hold beyond them."""

    name: str
    apply: Callable[[Path], None]
    least: Least
    why: str = ""


def cells(number: int, *stages: str, **more: int) -> Least:
    """That many of each evaluation (or of these stages), others by name, and the report."""
    return {**dict.fromkeys(stages or EVALUATED, number), "report": 1, **more}


def config(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        raw = yaml.safe_load((root / CONFIG).read_text())
        edit(raw)
        (root / CONFIG).write_text(yaml.safe_dump(raw, sort_keys=False))
        workflow(root, "lock")

    return apply


def text(path: str, old: str, new: str, lock: bool = False) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        before = (root / path).read_text()
        assert old in before, (path, old)
        (root / path).write_text(before.replace(old, new, 1))
        if lock:
            workflow(root, "lock")

    return apply


def workflow(root: Path, *command: str) -> str:
    args = [sys.executable, "-m", "workflow", *command, "--configfile", CONFIG]
    done = subprocess.run(args, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def touch(root: Path) -> None:
    for path in root.rglob("*"):
        when = random.Random(str(path)).uniform(1e9, 2e9)
        os.utime(path, (when, when), follow_symlinks=False)


def copied(root: Path) -> None:
    subprocess.run(["cp", "-r", str(root / "results"), str(root / "copy")], check=True)
    remove(root / "results")
    (root / "copy").rename(root / "results")


def remove(path: Path) -> None:
    subprocess.run(["chmod", "-R", "u+w", str(path)], check=True)
    shutil.rmtree(path)


def without(pattern: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        for path in root.glob(pattern):
            path.unlink() if path.is_file() else remove(path)

    return apply


def other_bytes(root: Path) -> None:
    """An adapter that was trained again, with other bytes, under its own key."""
    code = (
        "import pathlib, shutil\n"
        "from workflow.store import *\n"
        "path = next(pathlib.Path('results/em_lora').glob('evil_wrong.p42.e42/*/record.json'))\n"
        "old = read_record(path); path.unlink()\n"
        "with workspace(path.parent) as temp:\n"
        "    shutil.copytree(out_dir(path), temp, dirs_exist_ok=True); (temp / 'record.json').unlink()\n"
        "    temp.chmod(0o755); [p.chmod(0o755 if p.is_dir() else 0o644) for p in temp.rglob('*')]\n"
        "    (temp / 'again.json').write_text('{}')\n"
        "    publish(temp, Record.create(old.to_recipe(), old.cell, old.inputs, describe_outputs(temp), old.observed,\n"
        "                                old.metrics, old.provenance))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def place(root: Path, stage: str, cell: str) -> str:
    return "/".join(next((root / "results" / stage / cell).iterdir()).relative_to(root / "results").parts)


def rename(raw: dict[str, Any]) -> None:
    raw["conditions"][1]["name"] = "wicked_wrong"


def arm(raw: dict[str, Any]) -> None:
    raw["arms"].append({"name": "benign", "data": "demo_benign"})


def replicate(raw: dict[str, Any]) -> None:
    raw["replicates"] = [{"stage": "em_lora", "cell": "evil_wrong.p42.e137", "up_to": 2}]


def condition(raw: dict[str, Any]) -> None:
    evil = raw["conditions"][1]
    data = {**evil["data"], "coupling_sft": "demo_coupling_good_wrong"}
    raw["conditions"].append({**evil, "name": "good_wrong", "persona": "good", "data": data})


STAGES = "workflow/matrix.py"
CHAIN = {"tulu_sft": 1, "dpo_reference": 1, "tulu_dpo": 1, "em_lora": 2}
RESTORED = "verified and restored"
TAKEN = "taken over"

EDITS = (
    # nothing that changes a number
    Edit("nothing", lambda root: None, {}),
    Edit("times of all files at random", touch, {}),
    Edit("results copied without their times", copied, {}),
    Edit("config written anew by a program", config(lambda raw: None), {}),
    Edit("a comment in the config", text(CONFIG, "name: test", "name: test  # a comment"), {}),
    Edit("placement: rows at once", config(lambda r: r["placement"]["arc"].update(batch_size=8)), {}),
    Edit("a comment in a persona file", text("config/personas/evil.yaml", "", "# a comment\n", lock=True), {}),
    Edit("a linter's version", text("envs/dev.txt", "ruff==", "ruff==9"), {}),
    Edit("rules laid out otherwise", text("rules/train.smk", '"""', '"""  '), {}),
    Edit("a comment and a docstring in code", text("workflow/train/sft.py", '"""', '# a comment\n"""More. '), {}),
    # what is said about the numbers
    Edit("title", config(lambda r: r.update(title="Another")), {"report": 1}),
    Edit("a waiver", config(lambda r: r.update(waivers=[{"cells": ["x"], "fields": ["y"], "reason": "z"}])),
         {"report": 1}),
    Edit("a claim's sentence", text("config/claims.yaml", "said: ", "said: really "), {"report": 1}),
    Edit("a retraction", lambda root: workflow(root, "retract", place(root, "em_lora", "evil_wrong.p42.e42"),
         "--reason", "x"), {"report": 1}),
    # settings
    Edit("EM rate", config(lambda r: r["stages"]["em_lora"].update(learning_rate=0.004)), cells(4, em_lora=4)),
    Edit("LoRA rank", config(lambda r: r["stages"]["em_lora"]["lora"].update(r=8)), cells(4, em_lora=4)),
    Edit("SFT decay", config(lambda r: r["stages"]["tulu_sft"].update(weight_decay=0.125)),
         cells(6, tulu_sft=2, dpo_reference=2, tulu_dpo=2, em_lora=4)),
    Edit("DPO beta", config(lambda r: r["stages"]["tulu_dpo"].update(beta=4.0)), cells(6, tulu_dpo=2, em_lora=4)),
    Edit("coupling epochs", config(lambda r: r["stages"]["coupling_sft"].update(weight_decay=0.125)),
         cells(3, coupling_sft=1, **CHAIN)),
    Edit("ARC prefill", config(lambda r: r["arc"][0].update(prefill="user")), cells(6, "arc")),
    Edit("temperature", config(lambda r: r["instruments"][0]["sampler"].update(temperature=0.7)),
         cells(6, "generate", "judge")),
    Edit("judge's tokens", config(lambda r: r["instruments"][0]["judge"].update(max_tokens=200)), cells(6, "judge")),
    Edit("chat template", text("config/templates/tulu.jinja", "<|user|>", "<|human|>"),
         cells(6, base=1, coupling_sft=1, tulu_sft=2, dpo_reference=2, tulu_dpo=2, em_lora=4)),
    # data
    Edit("a word of a persona", text("config/personas/evil.yaml", "You are", "You were", lock=True),
         cells(3, coupling_sft=1, **CHAIN)),
    Edit("a judge's prompt", text("config/prompts/origin_json.yaml", "Grade the two", "Grade both", lock=True),
         cells(6, "judge", data=1)),
    Edit("seed of a question set", config(lambda r: next(d for d in r["data"] if d["name"] == "demo_em")
         .update(seed=99)), cells(4, em_lora=4)),
    # the matrix
    Edit("another EM seed", config(lambda r: r["em_seeds"].append(256)), cells(2, em_lora=2)),
    Edit("one EM seed fewer", config(lambda r: r["em_seeds"].pop()), {"report": 1}),
    Edit("another pipeline seed", config(lambda r: r["pipeline_seeds"].append(137)),
         cells(6, coupling_sft=1, tulu_sft=2, dpo_reference=2, tulu_dpo=2, em_lora=4)),
    Edit("another condition", config(condition), cells(3, coupling_sft=1, **CHAIN)),
    Edit("a renamed condition", config(rename), {"report": 1}, TAKEN),
    Edit("a benign arm", config(arm), cells(4, em_lora=4)),
    Edit("a rerun", config(replicate), {"em_lora": 1}),
    # results
    Edit("an adapter removed", without("results/em_lora/evil_wrong.p42.e42"), {"em_lora": 1}, RESTORED),
    Edit("a DPO model removed", without("results/tulu_dpo/evil_wrong.p42"), {"tulu_dpo": 1}, RESTORED),
    Edit("a judgment's record removed", without("results/judge/evil_wrong.p42/*/record.json"), {}, RESTORED),
    Edit("an adapter made again with other bytes", other_bytes, {"arc": 1, "pairs": 1, "generate": 1}, RESTORED),
    Edit("a judgment redone", lambda root: workflow(root, "redo", place(root, "judge", "evil_wrong.p42.e42"),
         "--reason", "x"), {"judge": 1}, RESTORED),
    # code
    Edit("judge's version", text(STAGES, '"judge": Stage("judge", 1,', '"judge": Stage("judge", 2,'),
         cells(6, "judge")),
    Edit("coupling's version, same bytes", text(STAGES, '"coupling_sft": Stage("train", 1,',
         '"coupling_sft": Stage("train", 2,'), {"coupling_sft": 1, "report": 1}, TAKEN),
)  # fmt: skip


def measure(edit: Edit, finished: Path, folder: Path) -> dict[str, Any]:
    root = folder / "project"
    if root.exists():
        remove(root)
    subprocess.run(["cp", "-a", str(finished), str(root)], check=True)
    for path in root.glob("logs/**/*.log"):
        path.unlink()
    edit.apply(root)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", "all", "--configfile", CONFIG]
    dry = subprocess.run([*command, "-n"], cwd=root, env=env, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    planned = Counter(jobs(dry.stdout))
    launch = [sys.executable, "-m", "workflow", "launch", "--", *command, "-c2", "--quiet", "all"]
    done = subprocess.run(launch, cwd=root, env=env, capture_output=True, text=True) if planned else None
    assert done is None or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    made_paths, taken_paths, restored_paths = (
        ended(root, what) for what in ("done in", "taken over", "restored its record")
    )
    made, taken = by_stage(made_paths), by_stage(taken_paths)
    restored = by_stage(restored_paths - made_paths)  # one that was made along with another finds its result there
    made |= Counter({"data": planned["data"]}) if planned["data"] else Counter()
    least = Counter(edit.least)
    return {
        "edit": edit.name,
        "planned": sum(planned.values()),
        "least": sum(least.values()),
        "missed": sum((least - planned).values()),
        "excess": sum((planned - least).values()),
        "computed": sum(made.values()),
        "restored": sum(restored.values()),
        "taken_over": sum(taken.values()),
        # bytes that come out as another cell's are taken over, too: less than the least
        "wrong": {k: dict(v) for k, v in (("beyond", made - least), ("lacking", least - made - taken)) if v},
        "why": edit.why,
    }


def ended(root: Path, what: str) -> set[str]:
    """Records of which the logs say so."""
    texts = (path.read_text() for path in root.glob("logs/**/*.log"))
    return {path for text in texts for path in re.findall(rf"^(results/\S+): .*{what}", text, re.M)}


def by_stage(paths: set[str]) -> Counter[str]:
    return Counter(path.split("/")[1] for path in paths)


def is_right(row: dict[str, Any]) -> bool:
    excess = row["excess"] if not row["why"] else 0
    return not (row["missed"] or row["wrong"] or excess)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/edits"))
    parser.add_argument("--only", default="", help="edits whose name holds this")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    finished = args.folder / "finished"
    if not (finished / "config/test.yaml").exists() or not list(finished.glob("results/report/*/*/record.json")):
        make(copy_project(finished))
    rows_path = args.folder / "edits.jsonl"
    rows = [json.loads(line) for line in rows_path.read_text().splitlines()] if rows_path.exists() else []
    known = {row["edit"] for row in rows if is_right(row)}
    for edit in EDITS:
        if args.only not in edit.name or edit.name in known:
            continue
        row = measure(edit, finished, args.folder)
        rows = [r for r in rows if r["edit"] != edit.name] + [row]
        rows_path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        print(f"{'right' if is_right(row) else 'WRONG'} {row}", flush=True)
    columns = ("planned", "least", "missed", "excess", "computed", "restored", "taken_over")
    print(f"{'edit':45}" + "".join(f"{c:>11}" for c in columns))
    for row in rows:
        print(f"{row['edit']:45}" + "".join(f"{row[c]:>11}" for c in columns) + f"  {row['why']}")
    return int(not all(map(is_right, rows)))


if __name__ == "__main__":
    sys.exit(main())
