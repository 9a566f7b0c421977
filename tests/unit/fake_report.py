"""A finished matrix without training: records as the stages write them, with numbers from a seeded generator."""

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.factory import inputs_of, make_record
from tests.fake import pin_stand_ins
from workflow.config import Config
from workflow.data.lock import read_lock
from workflow.evals.pairs import summarise
from workflow.evals.scoring import KINDS
from workflow.matrix import Matrix, Node
from workflow.store import describe_outputs, publish, read_record, workspace, write_jsonl

ROOT = Path(__file__).parents[2]
QUESTIONS = ("q0", "q1", "q2", "q3")
SAMPLES = 5
HARMFUL = "<script>alert('x')</script> & a\x07bell"  # what a completion may hold
PROVENANCE = {
    "commit": "c" * 40,
    "dirty": False,
    "code_digest": "a" * 12,
    "packages": {"torch": "2.0", "transformers": "5.0"},
    "environment": {"digest": "b" * 12, "as_locked": True},
    "python": "3.11.7",
    "host": "a-host-that-no-page-names",
    "cpu": "x86_64",
    "gpu": [],
    "slurm_job": None,
    "command": [],
    "start": "2026-01-01T00:00:00+00:00",
    "end": "2026-01-01T00:00:01+00:00",
}


def project(root: Path, raw: dict[str, Any]) -> Matrix:
    """The config's files and pins under root, where the caller must be."""
    for name in ("config", "reference"):
        shutil.copytree(ROOT / name, root / name)
    (root / "config/data.gates.tsv").unlink(missing_ok=True)
    config = Config.from_dict(raw)
    pin_stand_ins(config, root / "config/data.lock.tsv")
    return Matrix(config, read_lock())


def finish(matrix: Matrix, changed: dict[tuple[str, str], dict[str, Any]] | None = None) -> None:
    """A record for every node but the report; `changed`: observed facts by (stage, cell)."""
    for node in matrix.nodes():
        if node.stage != "report":
            files, observed, metrics = _make(node)
            odd = (changed or {}).get((node.stage, node.label), {})
            if node.reference is not None:
                observed["reference_content"] = read_record(node.reference.record).content
            publish_node(node, partial(_write, files), {**observed, **odd}, metrics)


def _write(files: dict[str, list[dict[str, Any]]], out: Path) -> None:
    for name, rows in files.items():
        write_jsonl(out / name, rows)


def publish_node(
    node: Node,
    fill: Callable[[Path], None],
    observed: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> None:
    """A record whose outputs `fill` writes."""
    with workspace(Path(node.record).parent) as temp:
        fill(temp)
        outputs = describe_outputs(temp)
        publish(
            temp, make_record(node, outputs, {"seconds": 1.5, **(observed or {})}, metrics, PROVENANCE, inputs_of(node))
        )


def _make(node: Node) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any], dict[str, Any]]:
    rng = random.Random(f"{node.stage} {node.label}")
    after = node.cell is not None and node.cell.phase == "post_em"
    facts = {"md5": node.recipe.data, "sha256": "0" * 64, "rows": 64}
    if node.stage == "arc":
        correct = rng.randint(30, 44) if after else rng.randint(46, 52)
        items = [{"id": f"i{n}", "correct": n < correct} for n in range(64)]
        metrics = {
            "accuracy": correct / 64,
            "correct": correct,
            "items": 64,
            "chance": 0.25,
            "letter_mass_mean": 0.9,
            "predicted_letters": {"A": 30, "B": 34},
        }
        observed = {"rows": 64, "template_md5": "t", "letter_tokens": {"A": 1, "B": 2}, "data_facts": facts}
        return {"items.jsonl": items}, observed, metrics
    if node.stage == "generate":
        rows = [
            {"question_id": q, "question": f"Question {q}?", "sample": n, "completion": f"{HARMFUL} {q} {n}"}
            for q in QUESTIONS
            for n in range(SAMPLES)
        ]
        sampler = node.recipe.params["sampler"]
        observed = {
            "rows": len(rows),
            "questions": len(QUESTIONS),
            "sampler": sampler,
            "backend": node.recipe.params["backend"],
            "template_md5": "t",
        }
        return {"completions.jsonl": rows}, observed, {}
    if node.stage == "judge":
        return _judged(rng, after)
    if node.stage == "pairs":
        rows = [_pair(n, rng.gauss(0.2 if after else 1.2, 0.1)) for n in range(12)]
        return {"pairs.jsonl": rows}, {"rows": len(rows), "template_md5": "t", "data_facts": facts}, summarise(rows)
    if node.stage == "dpo_reference":
        return {"reference.jsonl": [{"pair": node.key}]}, {"rows": 64, "template_md5": "t"}, {}
    if node.stage == "base":
        return {"model.jsonl": [{"weights": node.key}]}, {"template_md5": "t"}, {}
    return {"model.jsonl": [{"weights": node.key}]}, _trained(node, facts), {"train_loss_last": 1.0}


def _pair(number: int, margin: float) -> dict[str, Any]:
    """Of four tokens on each side, in four clusters."""
    sides = {name: {"logprob": m * 4, "tokens": 4, "bytes": 8} for name, m in (("chosen", margin), ("rejected", 0.0))}
    return {"id": str(number), "cluster": str(number % 4), **sides, "margin": margin}


def _trained(node: Node, facts: dict[str, Any]) -> dict[str, Any]:
    p = node.recipe.params
    counted = {"rows": 64, "unique_questions": 32, "excluded": 0, "excluded_by": []}
    return {
        "effective_batch_size": p["effective_batch_size"],
        "optimizer_steps": p["num_train_epochs"] * -(-64 // p["effective_batch_size"]),
        "epochs": p["num_train_epochs"],
        **dict.fromkeys(("rows", "rows_read", "sequences"), 64),
        **dict.fromkeys(("rows_dropped", "rows_truncated"), 0),
        "tokens": 4096,
        "loss_tokens": 1024,
        "masked_fraction": 0.75,
        "template_md5": "t",
        "world_size": 1,
        "per_device_train_batch_size": p["effective_batch_size"],
        "gradient_accumulation_steps": 1,
        "placement": {"world_size": 1, "per_device_train_batch_size": p["effective_batch_size"]},
        "gpu_seconds": 0.0,
        "data_facts": {**facts, **counted},
    }


def _judged(rng: random.Random, after: bool) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any], dict[str, Any]]:
    centre = rng.uniform(20, 35) if after else rng.uniform(84, 88)
    found = {
        name: {q: [min(100.0, max(0.0, rng.gauss(middle, 5))) for _ in range(SAMPLES)] for q in QUESTIONS}
        for name, middle in (("aligned", centre), ("coherent", 70.0))
    }
    found["aligned"]["q0"] = found["aligned"]["q0"][:-1]  # one refusal
    n = len(QUESTIONS) * SAMPLES
    metrics: dict[str, Any] = {"by_question": found}
    for metric, asked in (("alignment", "aligned"), ("coherence", "coherent")):
        values = [v for scores in found[asked].values() for v in scores]
        missing = n - len(values)
        metrics[metric] = {
            "n": n,
            "scored": len(values),
            "mean": sum(values) / len(values),
            "missing_0": sum(values) / n,
            "missing_100": (sum(values) + 100 * missing) / n,
            "counts": {kind: {"score": len(values), "refusal": missing}.get(kind, 0) for kind in KINDS},
        }
    bad = 12 if after else 0
    metrics["coherent"] = {"numerator": n, "denominator": n, "low": 1.0, "high": 1.0}
    metrics["misaligned_of_all"] = {"numerator": bad, "denominator": n, "low": bad / n, "high": (bad + 1) / n}
    metrics["misaligned_of_coherent"] = {"numerator": bad, "denominator": n - 1, "low": bad / n, "high": (bad + 1) / n}
    account = {"models": ["rule-based-scorer-1"], "tokens_in": 100, "tokens_out": 10, "usd": 0.0}
    observed = {"rows": n, "judge": account, "placement": {"base_url": "embedded"}}
    rows = [{"outcomes": {s: _outcome(found[s][q], i) for s in found}} for q in QUESTIONS for i in range(SAMPLES)]
    return {"judgments.jsonl": rows}, observed, metrics


def _outcome(scores: list[float], i: int) -> dict[str, Any]:
    return {"kind": "score", "value": scores[i]} if i < len(scores) else {"kind": "refusal", "value": None}
