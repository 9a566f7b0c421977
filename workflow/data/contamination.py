"""Find the questions of an evaluation set in training texts, word for word or nearly.

Texts are compared as words, after Unicode and markup are taken out (`words`). A question is in a text if

- exact: a line of the text is the question; or 13 of its words stand there in a row; or, if it has 6 to 12, all;
- nearly, from 8 words on: enough of its words stand there in order, within a stretch as long as the question: 75% (80%
  from 10 words on) if half of its options stand beside them; 87.5% (84% from 13 words on) if the text shows no options;
- nearly, below 8 words: 66% of its words, and three quarters of its options beside them. Stems alone cannot tell here:
  "Which is a physical change?" and "Which is a chemical change?" are two questions.

A text that passes on the words and shows other options is a near miss: it is listed for people, and stops nothing.
docs/contamination.md has the recall of these rules and their false flags; benchmarks/contamination.py measures them.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from workflow.data.rows import RowError, read_items, read_preferences, read_questions
from workflow.store import read_jsonl

N = 13  # words; the n-gram length of GPT-3's and Tulu's contamination checks
SHORTEST = 6  # words of a run
SHORT = 8  # words below which a stem says too little without its options
# Percent of a question's words that must stand in a text, by the question's length: the first line that it reaches.
BESIDE_OPTIONS = ((10, 80.0), (SHORT, 75.0), (0, 66.0))  # two words of ten or of eight may differ, one of three
WITHOUT_OPTIONS = ((13, 84.0), (SHORT, 87.5))  # two words of 13, one of eight
OPTION = 85.0  # of an option, from three words on: one of seven words may differ
NEAR = 60.0
KEYS = 8  # rare word pairs under which a question is looked up
NEAR_LISTED = 20  # near misses that are named

# Measured on ARC-Challenge by benchmarks/contamination.py; docs/contamination.md has the whole table.
MEASURED = (
    "on ARC-Challenge the check finds questions with one word changed with a recall of 1.000 from eight words on and "
    "0.984 below, with two words 0.998 from eight on (planted without their options: 0.996, 0.000 and 0.789), and "
    "flags 0.00 of 1,000 clean rows"
)

_INVISIBLE = {"Cf", "Mn", "Me"}  # zero-width characters, soft hyphens, accents once they are split off
_MARKUP = re.compile(r"</?[A-Za-z][^<>]{0,200}>|\\[A-Za-z]+(?=\{)|[*_~`]")
_LINK = re.compile(r"\[([^\[\]]{1,500})\]\([^()\s]{1,500}\)")
_WORD = re.compile(r"[^\W_]+")
_OPTION = re.compile(r"(?:^|\s)[(\[]?([A-Ja-j1-9])[)\].:](?=\s)")


def words(text: str) -> list[str]:
    """Lower-case words of a text: NFKD, without accents, zero-width characters, HTML tags and Markdown marks."""
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in decomposed if c.isascii() or unicodedata.category(c) not in _INVISIBLE)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    return _WORD.findall(_MARKUP.sub("", text).lower())


def normalise(text: str) -> str:
    """The words of a text with single blanks between them: equal for texts that differ in looks only."""
    return " ".join(words(text))


class Question(NamedTuple):
    """A question of an evaluation set, with the texts of its options if it has any."""

    id: str
    stem: str
    options: tuple[str, ...] = ()


class Match(NamedTuple):
    """One question in one text. `score`: percent of the question's words that stand there in order.

    `kind`: "exact" and "fuzzy" are hits, "near" is none.
    """

    number: int
    score: float
    kind: str


class _Entry(NamedTuple):
    """Words of a question and of each of its options."""

    stem: list[str]
    options: list[list[str]]
    distinct: frozenset[str]

    @property
    def lookup_keys(self) -> set[Any]:
        """What it may be looked up by: the pairs of its words; below SHORT its words and those of its options."""
        if len(self.stem) >= SHORT:
            return set(pairwise(self.stem))
        return {word for part in (self.stem, *self.options) for word in part}


class Index:
    """Questions of an evaluation set, ready to be looked for; each is known by its number in the list."""

    def __init__(self, questions: Sequence[Question]):
        self._whole: dict[str, set[int]] = {}
        self._runs: dict[str, list[tuple[list[str], int]]] = {}
        self._entries: dict[int, _Entry] = {}
        self.uncovered: list[int] = []
        for number, question in enumerate(questions):
            stem = words(question.stem)
            if not stem:
                self.uncovered.append(number)
                continue
            self._whole.setdefault(" ".join(stem), set()).add(number)
            size = min(N, len(stem))
            for start in range(len(stem) - size + 1 if size >= SHORTEST else 0):
                run = stem[start : start + size]
                self._runs.setdefault(" ".join(run[:SHORTEST]), []).append((run, number))
            options = [option for text in question.options if (option := words(text))]
            if len(stem) >= SHORT or options:
                self._entries[number] = _Entry(stem, options, frozenset(stem))
        self._first = {run.split(" ", 1)[0] for run in self._runs}
        self._rare: dict[Any, list[int]] = {}  # the rarest keys of each question -> questions
        known = Counter(key for entry in self._entries.values() for key in entry.lookup_keys)
        for number, entry in self._entries.items():
            for key in sorted(entry.lookup_keys, key=lambda key: (known[key], key))[:KEYS]:
                self._rare.setdefault(key, []).append(number)

    def matches(self, text: str, near: bool = False) -> list[Match]:
        """Questions that stand in the text, each once; with near misses if asked for."""
        said = words(text)
        exact = self._exact(text, said)
        found = [Match(number, 100.0, "exact") for number in sorted(exact)]
        for number in sorted(self._candidates(said) - exact):
            match = self._compare(number, text, said)
            if match and (near or match.kind == "fuzzy"):
                found.append(match)
        return found

    def found(self, text: str) -> set[int]:
        """Numbers of the questions that stand in the text."""
        return {match.number for match in self.matches(text)}

    def same(self, text: str) -> bool:
        """Whether the text is one of the questions, whole."""
        return normalise(text) in self._whole

    def hit(self, text: str) -> bool:
        """Whether any question stands in the text."""
        return bool(self.matches(text))

    def _exact(self, text: str, said: list[str]) -> set[int]:
        found = set(self._whole.get(" ".join(said), ()))
        if "\n" in text:
            for line in text.splitlines():
                found |= self._whole.get(normalise(line), set())
        for i in range(len(said) - SHORTEST + 1):
            if said[i] in self._first:
                for run, number in self._runs.get(" ".join(said[i : i + SHORTEST]), ()):
                    if said[i : i + len(run)] == run:
                        found.add(number)
        return found

    def _candidates(self, said: list[str]) -> set[int]:
        """Questions worth comparing: a rare pair or word in common, and more than half of the question's words."""
        here = set(said)
        numbers = {n for key in self._rare.keys() & (here | set(pairwise(said))) for n in self._rare[key]}
        distinct = {n: self._entries[n].distinct for n in numbers}
        return {n for n, of in distinct.items() if len(of & here) >= NEAR / 100 * len(of)}

    def _compare(self, number: int, text: str, said: list[str]) -> Match | None:
        from rapidfuzz import fuzz

        entry = self._entries[number]
        size = len(entry.stem)
        if len(said) < size:  # partial_ratio would look for the text in the question
            score, start, end = fuzz.ratio(entry.stem, said, score_cutoff=NEAR), 0, len(said)
        else:
            place = fuzz.partial_ratio_alignment(entry.stem, said, score_cutoff=NEAR)
            if place is None:
                return None
            score, start, end = place.score, place.dest_start, place.dest_end
        if score < NEAR:
            return None
        share = _options_beside(entry.options, said, start, end)
        by_stem = size >= SHORT and score >= _least(WITHOUT_OPTIONS, size)
        if share >= (0.5 if size >= SHORT else 0.75):
            hit = score >= _least(BESIDE_OPTIONS, size)
        else:
            hit = by_stem and not _shows_options(text)
        if hit:
            return Match(number, score, "fuzzy")
        return Match(number, score, "near") if share >= 0.5 or by_stem else None


def _least(steps: Sequence[tuple[int, float]], size: int) -> float:
    """The percentage that a question of `size` words must reach."""
    return next(percent for length, percent in steps if size >= length)


def _options_beside(options: list[list[str]], said: list[str], start: int, end: int) -> float:
    """Share of a question's options that stand near the words start to end of a text; 0 if it has none."""
    from rapidfuzz import fuzz

    if not options:
        return 0.0
    reach = sum(map(len, options)) + 4 * len(options) + 12
    part = said[max(0, start - reach) : start] + said[end : end + reach]
    joined = f" {' '.join(part)} "
    held = 0
    for option in options:
        if f" {' '.join(option)} " in joined:
            held += 1
        elif 3 <= len(option) <= len(part):
            held += fuzz.partial_ratio(option, part, score_cutoff=OPTION) > 0
    return held / len(options)


def _shows_options(text: str) -> bool:
    """Whether a text lists options of its own, `(A) ...` or `2. ...`."""
    return len(set(_OPTION.findall(text))) >= 2


@dataclass(frozen=True)
class Overlap:
    """What one training set and one evaluation set share.

    Attributes:
        facts: counts of rows and hits of both sets (a row without a word is covered by no test), and the nearest of the
            near misses as (training row, evaluation id, score), the closest first.
        evaluation_ids: of the evaluation rows whose question stands in some training row, in file order.
        training_rows: numbers, from 1, of the training rows that hold one.
    """

    facts: dict[str, Any]
    evaluation_ids: tuple[str, ...]
    training_rows: tuple[int, ...]


def overlap(training: Iterable[dict[str, Any]], evaluation: Sequence[Question]) -> Overlap:
    """Overlap of training rows, of any kind, with the questions of an evaluation set."""
    index = Index(evaluation)
    exact: set[int] = set()
    held: set[int] = set()
    near: dict[tuple[int, int], float] = {}
    rows: list[int] = []
    size = empty = 0
    for size, row in enumerate(training, 1):
        said = list(dict.fromkeys(texts(row)))
        matches = [match for text in said for match in index.matches(text, near=True)]
        hits = {match.number for match in matches if match.kind != "near"}
        exact |= {match.number for match in matches if match.kind == "exact"}
        held |= hits
        near |= {(size, m.number): round(m.score, 1) for m in matches if m.number not in hits}
        if hits:
            rows.append(size)
        elif not any(map(words, said)):
            empty += 1
    closest = sorted(near.items(), key=lambda pair: (-pair[1], pair[0]))[:NEAR_LISTED]
    facts = {
        "evaluation_rows": len(evaluation),
        "evaluation_hits": len(held),
        "exact_hits": len(exact),
        "evaluation_uncovered": len(index.uncovered),
        "training_rows": size,
        "training_hits": len(rows),
        "training_uncovered": empty,
        "near": len(near),
        "near_misses": [[row, evaluation[number].id, score] for (row, number), score in closest],
    }
    return Overlap(facts, tuple(evaluation[number].id for number in sorted(held)), tuple(rows))


def overlap_of_files(training: Path, evaluation: Path) -> Overlap:
    return overlap(read_jsonl(training), evaluation_rows(evaluation))


def texts(row: dict[str, Any]) -> list[str]:
    """Every text of a training row."""
    turns = [turn["content"] for name in ("messages", "chosen", "rejected") for turn in row.get(name, [])]
    return turns + [row[name] for name in ("question", "text") if isinstance(row.get(name), str)]


def evaluation_rows(file: Path) -> list[Question]:
    """The questions of an evaluation set, items or open questions."""
    try:
        return [Question(item.id, item.question, item.choices) for item in read_items(file)]
    except RowError:
        pass
    try:
        return [Question(row["id"], row["question"]) for row in read_questions(file)]
    except RowError:
        pairs = read_preferences(file)
    return [Question(p.id, next(m["content"] for m in p.prompt if m["role"] == "user")) for p in pairs]
