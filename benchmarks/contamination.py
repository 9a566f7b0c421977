"""Measures the rules of workflow/data/contamination.py: recall by variant and length, false flags, time.

    python -m benchmarks.contamination --test ARC_TEST.jsonl --train ARC_TRAIN.jsonl [--more FILE...] [--write FILE]

ARC-Challenge is at https://huggingface.co/datasets/allenai/ai2_arc (CC BY-SA 4.0); each file holds its rows, one a
line. Positives: every test question, planted once for each variant into a row of its own, with options and without.
Negatives: every natural pair of a training row and a test question; rows that hold a test question word for word are
set aside. `--more` names other sets that are known to hold none (JSON lines of any kind of row).
"""

import argparse
import platform
import random
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from workflow.data.contamination import MEASURED, SHORT, Index, Question, evaluation_rows, overlap, texts, words
from workflow.store import read_jsonl

SEED = 42
TIMED = (6_000, 231_000)  # rows: an EM set, and a quarter of Tulu 3
CLASSES: tuple[tuple[str, range], ...] = (
    (f"below {SHORT} words", range(0, SHORT)),
    (f"{SHORT} to 12", range(SHORT, 13)),
    ("13 and more", range(13, 10_000)),
    (f"{SHORT} and more", range(SHORT, 10_000)),
)
TEMPLATE = "I am preparing for an exam and would like your help with this.\n{}\nPlease explain how you arrived at it."

INTRODUCTION = f"""# Contamination: what the overlap check finds, and what it does not

Made by `python -m benchmarks.contamination`, whose docstring says how; not edited by hand. The rules stand at the top
of `workflow/data/contamination.py`. In short: {MEASURED}.

Words are compared after Unicode (NFKD; accents and invisible characters go), HTML and Markdown are taken out. A hit
refuses the training like an exact one, unless `overlap: report` or a line of `overlap_allowed:` with its reason lets it
pass; near misses stand in `config/data.gates.tsv` with row, id and percentage, the closest first, and stop nothing.

What it does not find: a paraphrase that keeps less than 75% to 87.5% of the words in order; a question of less than
eight words without its options, unless a line is exactly it; a question whose options were exchanged for others (a near
miss); a translation. A question of another length than ARC's, or of another language, may fare otherwise."""

Change = Callable[[str, random.Random, Sequence[str]], str]


def _at(stem: str, source: random.Random, places: int, edit: Callable[[str], list[str]]) -> str:
    parts = stem.split()
    for place in sorted(source.sample(range(len(parts)), min(places, len(parts))), reverse=True):
        parts[place : place + 1] = edit(parts[place])
    return " ".join(parts)


def changed(places: int) -> Change:
    """Other words, drawn from the whole set, in place of as many words."""
    return lambda stem, source, others: _at(stem, source, places, lambda _: [source.choice(others)])


def _letter(word: str, source: random.Random) -> str:
    place = source.randrange(len(word))
    return word[:place] + source.choice("abcdefghijklmnopqrstuvwxyz") + word[place + 1 :]


FORMATTING: dict[str, Change] = {
    "as it is": lambda stem, *_: stem,
    "upper case": lambda stem, *_: stem.upper(),
    "italics": lambda stem, source, _: _at(stem, source, 2, lambda word: [f"*{word}*"]),
    "half a word in bold": lambda stem, source, _: _at(stem, source, 2, lambda w: [f"{w[:2]}**{w[2:]}**"]),
    "HTML": lambda stem, source, _: f"<p>{_at(stem, source, 2, lambda w: [f'<i>{w}</i>'])}</p>".replace(
        " ", "&nbsp;", 1
    ),
    "zero-width characters": lambda stem, *_: "\u200b".join(stem),
    "full-width letters": lambda stem, *_: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in stem),
    "line breaks": lambda stem, *_: stem.replace(" ", "\n"),
    "a longer template": lambda stem, *_: TEMPLATE.format(stem),
}
WORDS: dict[str, Change] = {
    "one letter changed": lambda stem, source, _: _at(stem, source, 1, lambda word: [_letter(word, source)]),
    "one word changed": changed(1),
    "one word left out": lambda stem, source, _: _at(stem, source, 1, lambda _w: []),
    "last word left out": lambda stem, *_: " ".join(stem.split()[:-1]),
    "one word put in": lambda stem, source, others: _at(stem, source, 1, lambda w: [w, source.choice(others)]),
    "two words changed": changed(2),
}


def planted(question: Question, stem: str, form: str) -> str:
    """A training text with the question in it: its options lettered, in another order and form, or left out."""
    if form == "bare":
        return stem
    if form == "lettered":
        return stem + "\n\n" + "\n".join(f"({'ABCDEFGHIJ'[n]}) {o}" for n, o in enumerate(question.options))
    return stem + " " + " ".join(f"{n}. {o}" for n, o in enumerate(reversed(question.options), 1))


def recall(test: Sequence[Question], form: str) -> list[list[str]]:
    """Rows of a table: variant, then the share found in each class of length."""
    index = Index(test)
    others = sorted({word for question in test for word in words(question.stem)})
    sizes = [len(words(question.stem)) for question in test]
    table = []
    for name, change in (FORMATTING | WORDS).items():
        source = random.Random(f"{SEED}:{name}:{form}")
        hits = [
            number in index.found(planted(question, change(question.stem, source, others), form))
            for number, question in enumerate(test)
        ]
        cells = []
        for _, lengths in CLASSES:
            of = [hit for hit, size in zip(hits, sizes, strict=True) if size in lengths]
            cells.append(f"{sum(of) / len(of):.3f} ({sum(of)}/{len(of)})" if of else "-")
        table.append([name, *cells])
    return table


def false_flags(rows: Sequence[dict[str, Any]], test: Sequence[Question]) -> dict[str, Any]:
    """Training rows flagged by the fuzzy rules alone, among those that hold no test question word for word."""
    index = Index(test)
    flagged: list[tuple[int, str, float]] = []
    exact = near = 0
    for number, row in enumerate(rows, 1):
        matches = [m for text in texts(row) for m in index.matches(text, near=True)]
        if any(match.kind == "exact" for match in matches):
            exact += 1
            continue
        flagged += [(number, test[m.number].id, round(m.score, 1)) for m in matches if m.kind == "fuzzy"]
        near += any(match.kind == "near" for match in matches)
    clean = len(rows) - exact
    count = len({number for number, _, _ in flagged})
    return {"exact": exact, "clean": clean, "flagged": count, "per_1000": 1000 * count / clean, "near": near,
            "pairs": flagged}  # fmt: skip


def as_prompts(file: Path, form: str = "lettered") -> list[dict[str, Any]]:
    """Items as the training rows that a coupling set makes of them."""
    return [{"text": planted(question, question.stem, form)} for question in evaluation_rows(file)]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def report(test_file: Path, train_file: Path, more: Sequence[Path]) -> str:
    test = evaluation_rows(test_file)
    parts = []
    for form, title in (
        ("lettered", "Recall, planted with its options (`(A) ...` lines)"),
        ("turned", "Recall, options in another order and on one line (`1. ...`)"),
        ("bare", "Recall, planted without options"),
    ):
        header = ["variant", *(name for name, _ in CLASSES)]
        parts.append(f"## {title}\n\n{markdown(header, recall(test, form))}")
    sets = [(f"{train_file.name}, with options", as_prompts(train_file))]
    sets += [(f"{train_file.name}, stems alone", as_prompts(train_file, "bare"))]
    sets += [(file.name, read_jsonl(file)) for file in more]
    rows, listed = [], []
    for name, training in sets:
        f = false_flags(training, test)
        rows.append([name, str(len(training)), str(f["exact"]), str(f["clean"]), str(f["flagged"]),
                     f"{f['per_1000']:.2f}", str(f["near"])])  # fmt: skip
        listed += [f"- {name}: row {row}, {question}, {score:g}%" for row, question, score in f["pairs"]]
    header = ["rows", "count", "word for word", "clean", "flagged", "per 1,000 clean", "near misses"]
    parts.append(f"## False flags\n\n{markdown(header, rows)}\n\nFlagged:\n\n" + "\n".join(listed))
    name, training = (more[0].name, read_jsonl(more[0])) if more else sets[0]
    length = sum(len(words(text)) for row in training for text in texts(row)) / len(training)
    lines = []
    for count in TIMED:
        started = time.perf_counter()
        overlap(islice(cycle(training), count), test)
        lines.append(f"- {count:,} rows: {time.perf_counter() - started:.1f} s")
    parts.append(
        f"## Time\n\nRows of {name}, repeated, {length:.0f} words each, against {len(test)} questions, on one core "
        f"({platform.machine()}, Python {platform.python_version()}), with other work beside:\n\n" + "\n".join(lines)
    )
    return "\n\n".join([INTRODUCTION, *parts]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    parser.add_argument("--write", type=Path, help="a Markdown file, in place of the screen")
    args = parser.parse_args()
    text = report(args.test, args.train, args.more)
    if args.write:
        args.write.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
