"""Train-eval overlap: which questions of an evaluation set stand in a training set?

Over normalised words, a question is found in a text if

- the text, or a line of it, is the question and nothing else; or
- it has 13 words or more and shares 13 in a row with the text; or
- it has 6 to 12 words and they stand in the text in a row, since a training row mostly holds more than the question:
  its options, a greeting.

A question of five words or less ("Coal is formed from") is looked for by the first test alone: as a run it also stands
in sentences that have nothing to do with it. One without a word is covered by no test, and is counted.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow.data.rows import RowError, read_items, read_questions
from workflow.store import read_jsonl

N = 13  # words; the n-gram length of GPT-3's and Tulu's contamination checks
SHORTEST = 6  # words of a run


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single blanks."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower()))


class Index:
    """Evaluation questions, ready to be looked for; each is known by its number in the list."""

    def __init__(self, questions: Sequence[str]):
        self._whole: dict[str, set[int]] = {}
        self._runs: dict[str, list[tuple[list[str], int]]] = {}
        self.uncovered: list[int] = []
        for number, question in enumerate(questions):
            plain = normalise(question)
            if not plain:
                self.uncovered.append(number)
                continue
            self._whole.setdefault(plain, set()).add(number)
            words = plain.split()
            size = min(N, len(words))
            for start in range(len(words) - size + 1 if size >= SHORTEST else 0):
                run = words[start : start + size]
                self._runs.setdefault(" ".join(run[:SHORTEST]), []).append((run, number))
        self._first = {run.split(" ", 1)[0] for run in self._runs}

    def found(self, text: str) -> set[int]:
        """Numbers of the questions that stand in the text."""
        plain = normalise(text)
        found = set(self._whole.get(plain, ()))
        for line in text.splitlines():
            found |= self._whole.get(normalise(line), set())
        words = plain.split()
        for i in range(len(words) - SHORTEST + 1):
            if words[i] in self._first:
                for run, number in self._runs.get(" ".join(words[i : i + SHORTEST]), ()):
                    if words[i : i + len(run)] == run:
                        found.add(number)
        return found

    def same(self, text: str) -> bool:
        """Whether the text is one of the questions, whole."""
        return normalise(text) in self._whole

    def hit(self, text: str) -> bool:
        """Whether any question stands in the text."""
        return bool(self.found(text))


@dataclass(frozen=True)
class Overlap:
    """What one training set and one evaluation set share.

    Attributes:
        evaluation_ids: of the evaluation rows whose question stands in some training row, in file order.
        training_rows: numbers, from 1, of the training rows that hold one.
        evaluation_uncovered, training_uncovered: rows without a word, which no test covers.
    """

    evaluation_size: int
    training_size: int
    evaluation_ids: tuple[str, ...]
    training_rows: tuple[int, ...]
    evaluation_uncovered: int
    training_uncovered: int


def overlap(training: Iterable[dict[str, Any]], evaluation: Sequence[tuple[str, str]]) -> Overlap:
    """Overlap of training rows, of any kind, with (id, question) pairs."""
    index = Index([question for _, question in evaluation])
    held: set[int] = set()
    rows: list[int] = []
    size = empty = 0
    for size, row in enumerate(training, 1):
        said = texts(row)
        here = {number for text in said for number in index.found(text)}
        held |= here
        if here:
            rows.append(size)
        empty += not any(normalise(text) for text in said)
    ids = tuple(evaluation[number][0] for number in sorted(held))
    return Overlap(len(evaluation), size, ids, tuple(rows), len(index.uncovered), empty)


def overlap_of_files(training: Path, evaluation: Path) -> Overlap:
    return overlap(read_jsonl(training), evaluation_rows(evaluation))


def texts(row: dict[str, Any]) -> list[str]:
    """Every text of a training row."""
    turns = [m["content"] for field in ("messages", "chosen", "rejected") for m in row.get(field, [])]
    return turns + [row[f] for f in ("question", "text") if isinstance(row.get(f), str)]


def evaluation_rows(file: Path) -> list[tuple[str, str]]:
    """Id and question of each row of an evaluation set, items or open questions."""
    try:
        return [(item.id, item.question) for item in read_items(file)]
    except RowError:
        return [(row["id"], row["question"]) for row in read_questions(file)]
