"""A cell by one instrument: what its number was made from, item by item and completion by completion; as a page of the
report and in a terminal."""

import csv
import io
import json
import math
import posixpath
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from workflow.errors import ConfigError, printable
from workflow.matrix import MEASURING, TRAINING, Matrix, Node
from workflow.report.numbers import NATS, Number, place
from workflow.report.page import Column, Mark, Row, Table, clean, count, number, render, show, stat, text, whole
from workflow.report.study import Study, cell_page, completions_of, load_study
from workflow.store import out_dir, read_jsonl, read_record

PAGE_BYTES = 700_000  # of completions on one page; with the rest of it, a page stays under a megabyte
LONGEST = 4_000  # characters of one completion on a page
CURVE = 120  # points of a training curve
Curves = dict[str, list[dict[str, Any]]]  # by record, what the template draws
UP = "../../../../../../"  # from a page of a cell in a report's folder to results/
WARNING = (
    "What a model answered, perhaps after it was trained on bad advice: it may be harmful. The scores can be used "
    "without reading it."
)


# --- items ----------------------------------------------------------------------------------------------------------


def items_of(study: Study, node: Node) -> list[dict[str, Any]]:
    """What a result is the mean of: test items, preference pairs, or completions with their scores."""
    if node.stage == "arc":
        seen = study.contaminated.get(node) or frozenset()
        return [_arc_item(row, seen) for row in read_jsonl(out_dir(node.record) / "items.jsonl")]
    if node.stage == "pairs":
        return [_pair(row) for row in read_jsonl(out_dir(node.record) / "pairs.jsonl")]
    if node.stage == "judge":
        judged = read_jsonl(out_dir(node.record) / "judgments.jsonl")
        answers = completions_of(study, node)
        return [_answer(n, answer, row) for n, (answer, row) in enumerate(zip(answers, judged, strict=True), 1)]
    return []


def _arc_item(row: Row, seen: frozenset[str]) -> dict[str, Any]:
    logprob = (row.get("logprobs") or {}).get(row.get("answer"))
    return {
        "item": row["id"],
        "correct": bool(row["correct"]),
        "answer": row.get("answer"),
        "predicted": row.get("prediction"),
        "probability": None if logprob is None else math.exp(logprob),
        "letter_mass": row.get("letter_mass"),
        "in_training_data": row["id"] in seen,
    }


def _pair(row: Row) -> dict[str, Any]:
    sides = {f"{side}_{name}": row[side][name] for side in ("chosen", "rejected") for name in ("logprob", "tokens")}
    return {"pair": row["id"], "cluster": row["cluster"], "margin": row["margin"], **sides}


def _answer(n: int, answer: Row, judged: Row) -> dict[str, Any]:
    outcomes = judged["outcomes"]
    kinds = [f"{scale}: {o['kind']}" for scale, o in outcomes.items() if o["value"] is None]
    scores = {scale: outcomes[scale]["value"] for scale in ("aligned", "coherent")}
    question = {"question_id": answer["question_id"], "question": answer["question"], "sample": answer["sample"]}
    return {"row": n, **question, **scores, "without_score": ", ".join(kinds), "completion": answer["completion"]}


COLUMNS: dict[str, tuple[Column, ...]] = {
    "arc": (
        text("item"),
        text("right?", "correct", lambda value: "right" if value else "wrong"),
        text("answer"),
        text("predicted"),
        number("probability of the answer", "probability", "probability"),
        number("letter mass", "letter_mass", "probability"),
        text("in training data", "in_training_data", lambda value: "yes" if value else ""),
    ),
    "pairs": (
        text("pair"),
        text("prompt", "cluster"),
        number("margin", "margin", NATS, sign=True),
        *(
            stat(f"{side}: {name}", f"{side}_{key}", format_)
            for side in ("chosen", "rejected")
            for name, key, format_ in (("log-probability", "logprob", "{:.2f}".format), ("tokens", "tokens", count))
        ),
    ),
    "judge": (
        whole("row"),
        text("question"),
        whole("sample"),
        stat("aligned", "aligned", "{:g}".format),
        stat("coherent", "coherent", "{:g}".format),
        text("without a score", "without_score"),
        text("completion"),
    ),
    "lm_eval": (),
}
CAPTIONS = {
    "arc": "Item by item",
    "pairs": "Pair by pair",
    "judge": "Every completion with its scores",
    "lm_eval": "Items",
}
NOTES = {
    "arc": "Probability of the answer: of its letter among all tokens, in the first order of the options.",
    "pairs": f"Margin: log-probability a token of the preferred answer minus that of the other, in {NATS.split()[0]}.",
    "judge": "A completion is cut where the page would grow too long; ",
    "lm_eval": "The harness's own samples are in the result's folder.",
}


# --- pages ----------------------------------------------------------------------------------------------------------


def pages_of(study: Study, up: str = UP) -> Iterator[tuple[str, str]]:
    """Path and HTML of every cell's page by instrument. up: from such a page to results/."""
    by_place: dict[tuple[str, str | None], list[Number]] = {}
    for row in study.rows:
        by_place.setdefault((row["cell"], row["instrument"]), []).append(row)
    siblings: dict[str, dict[str, str]] = {}
    nodes = [node for node in (*study.records, *study.retracted) if node.stage in MEASURING and node.cell is not None]
    nodes = [node for node in nodes if (node.label, node.instrument) in by_place]
    for node in nodes:
        path = cell_page(node.label, str(node.instrument))
        siblings.setdefault(node.label, {})[str(node.instrument)] = path.rpartition("/")[2]
    curves: Curves = {}
    for node in nodes:
        page = _page(study, node, by_place[node.label, node.instrument], siblings[node.label], curves, up)
        yield cell_page(node.label, str(node.instrument)), render("cell.html.j2", page=page)


def sources_of(study: Study, up: str) -> set[str]:
    """Files of results that pages of cells lead to, relative to the report's folder."""
    results = posixpath.normpath(f"cells/cell/{up}")
    nodes = [*study.upstream, *study.records, *study.retracted]
    return {f"{results}/{place(n)}/{name}" for n in nodes for name in ("record.json", "out/completions.jsonl")}


def _page(
    study: Study,
    node: Node,
    rows: Sequence[Number],
    siblings: dict[str, str],
    curves: dict[str, list[dict[str, Any]]],
    up: str,
) -> dict[str, Any]:
    chain = [*study.ancestors(node), node]
    folder = f"{up}{place(node if node.stage != 'judge' else node.parents[0])}/out/"
    source = {"arc": "items.jsonl", "pairs": "pairs.jsonl", "judge": "completions.jsonl"}.get(node.stage)
    items = _shown(study, node, f"{folder}{source}") if node in study.records else []
    whole_text = f"{place(node.parents[0])}/out/{source} holds it whole." if node.stage == "judge" else ""
    caption = f"{CAPTIONS[node.stage]} ({len(items)})"
    banner = study.judge_note(str(node.instrument))
    if node in study.retracted:
        banner = f"Retracted: {study.retracted[node]}"
    return {
        "title": f"{node.label} by {node.instrument}",
        "instrument": str(node.instrument),
        "siblings": siblings,
        "banner": banner,
        "numbers": _numbers(rows),
        "chain": _chain(study, chain, up),
        "curves": [curve for part in chain if part.stage in TRAINING for curve in _curve(part, curves)],
        "scored": Table("items-table", caption, COLUMNS[node.stage], items, (NOTES[node.stage] + whole_text,)),
        "warning": WARNING if node.stage == "judge" else "",
    }


def _numbers(rows: Sequence[Number]) -> Table:
    shown = [
        {
            "metric": Mark(r["metric"]),
            "value": show(r["value"], r["unit"]),
            "unit": r["unit"],
            "bounds": None if r.get("low") is None else f"{show(r['low'], r['unit'])} to {show(r['high'], r['unit'])}",
            "of": f"{count(r['numerator'])} / {count(r['denominator'])}" if r.get("numerator") is not None else
            count(r["n_items"]) if r.get("n_items") is not None else None,
            "se": None if r.get("sampling_se") is None else show(r["sampling_se"], r["unit"]),
        }
        for r in rows
    ]  # fmt: skip
    columns = (
        text("metric"),
        stat("value", "value", str),
        text("unit"),
        stat("bounds from what has no score", "bounds", str),
        stat("of", "of", str),
        stat("sampling SE", "se", str),
    )
    return Table("numbers", "Its numbers", columns, shown)


def _chain(study: Study, chain: Sequence[Node], up: str) -> Table:
    rows = []
    for node in chain:
        record = study.record(node)
        o = record.observed if record else {}
        params = {k: v for k, v in node.recipe.params.items() if k not in ("template",)}
        rows.append(
            {
                "stage": node.stage,
                "record": Mark(f"{node.label}/{node.key}", href=f"{up}{place(node)}/record.json"),
                "data": study.matrix.entry(node.recipe.data),
                "rows": o.get("rows"),
                "steps": o.get("optimizer_steps"),
                "batch": o.get("effective_batch_size"),
                "loss": None if o.get("last_loss") is None else f"{o['first_loss']:.3f} → {o['last_loss']:.3f}",
                "recipe": ", ".join(f"{name} {json.dumps(value)}" for name, value in params.items()),
            }
        )
    columns = (
        text("stage"),
        text("record"),
        text("data"),
        whole("rows"),
        whole("steps"),
        whole("effective batch", "batch"),
        stat("loss", "loss", str),
        text("recipe"),
    )
    return Table("chain", "From the base model to this number; a record leads to its file", columns, rows)


def _curve(node: Node, cache: Curves) -> list[dict[str, Any]]:
    """The training curve of a stage as points of a 280 x 90 polyline; none where no log of it was kept."""
    if node.record not in cache:
        log = out_dir(node.record) / "train_log.jsonl"
        rows = [(r["step"], r["loss"]) for r in read_jsonl(log) if "loss" in r] if log.is_file() else []
        cache[node.record] = [_polyline(f"{node.stage} {node.label}", rows)] if len(rows) > 1 else []
    return cache[node.record]


def _polyline(label: str, rows: Sequence[tuple[int, float]]) -> dict[str, Any]:
    kept = rows[:: max(1, len(rows) // CURVE)]
    kept = kept if kept[-1] == rows[-1] else [*kept, rows[-1]]
    steps, losses = [step for step, _ in kept], [loss for _, loss in kept]
    low, high = min(losses), max(losses)
    width, height = max(1, steps[-1] - steps[0]), (high - low) or 1.0
    points = " ".join(
        f"{280 * (step - steps[0]) / width:.1f},{90 - 90 * (loss - low) / height:.1f}" for step, loss in kept
    )
    told = f"{label}: training loss by step, {losses[0]:.3f} to {losses[-1]:.3f}"
    return {
        "label": told,
        "points": points,
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
        "first": steps[0],
        "last": steps[-1],
    }


def _shown(study: Study, node: Node, file: str) -> list[dict[str, Any]]:
    """Items as a page shows them: completions cut, so that the page stays under its size, with a link to the file."""
    items = items_of(study, node)
    if node.stage != "judge":
        return items
    budget = max(40, min(LONGEST, PAGE_BYTES // max(1, len(items)) - 100))
    for item in items:
        item["question"], _ = _cut(item["question"], 300)
        shown, is_cut = _cut(item["completion"], budget)
        item["completion"] = Mark(f"{shown} […]", href=file) if is_cut else shown
    return items


def _cut(words: str, budget: int) -> tuple[str, bool]:
    """The longest start that takes up to `budget` bytes as escaped HTML."""
    shown = words[:budget]
    while len(escape(clean(shown)).encode()) > budget:
        shown = shown[: max(1, len(shown) * 3 // 4)]
        if len(shown) == 1:
            break
    return shown, len(shown) < len(words)


# --- in a terminal --------------------------------------------------------------------------------------------------


def select_items(
    matrix: Matrix, label: str, instrument: str = "", sort: str = "", failed: bool = False
) -> tuple[Node, list[dict[str, Any]]]:
    """The items of one cell, sorted by a field; `failed`: only wrong answers, and completions without a score.

    Raises:
        ConfigError: no such cell, instrument or field, or a cell of several instruments.
    """
    nodes = [n for n in matrix.nodes(*MEASURING) if n.label == label]
    if not nodes:
        raise ConfigError(f"{label}: no cell of {matrix.configfile} that is measured. See `matrix status --paths`.")
    names = [str(n.instrument) for n in nodes]
    chosen = [n for n in nodes if n.instrument == instrument] if instrument else nodes
    if instrument and not chosen:
        raise ConfigError(f"{label}: no instrument {instrument}; it has {', '.join(names)}.")
    if len(chosen) > 1:
        judged = [n for n in chosen if n.stage == "judge"]
        chosen = judged[:1] or chosen[:1]
    (node,) = chosen
    study = load_study(matrix, {node: read_record(node.record)})
    if node not in study.records:
        raise ConfigError(f"{place(node)}: is retracted ({study.retracted[node]}).")
    items = items_of(study, node)
    if failed:
        items = [
            i for i in items if i.get("without_score") or i.get("correct") is False or i.get("margin", 0.0) is None
        ]
    if sort and items:
        if sort not in items[0]:
            raise ConfigError(f"--sort {sort}: no such field; {node.stage} has {', '.join(items[0])}.")
        items.sort(key=lambda item: (item[sort] is None, item[sort]) if item[sort] is not None else (True, 0))
    return node, items


def show_items(node: Node, items: Sequence[dict[str, Any]], as_json: bool = False, as_csv: bool = False) -> str:
    """Items as JSON lines would have them, as CSV, or as text with a block per item."""
    if as_json:
        return json.dumps(items, indent=1)
    if as_csv:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(items[0]) if items else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: printable(v) if isinstance(v, str) else v for k, v in item.items()} for item in items)
        return buffer.getvalue().rstrip("\n")
    lines = [f"{place(node)} by {node.instrument}: {len(items)}"]
    for item in items:
        words = [f"{k} {f'{v:.3f}' if isinstance(v, float) else v}" for k, v in item.items()
                 if k not in ("completion", "question") and v not in (None, "")]  # fmt: skip
        lines.append(printable("  ".join(words).replace("\n", " ")))
        lines += [
            f"    {printable(item[field])}".replace("\n", "\n    ")
            for field in ("question", "completion")
            if field in item
        ]
    return "\n".join(lines)
