"""Rows, questions and lines of the gates file, to plant faults of the data in."""

from typing import Any

from workflow.config import Config
from workflow.data.checks import evaluation_sets, training_sets
from workflow.data.contamination import Question
from workflow.data.gates import CHECKS, NONE, Gate, Gates
from workflow.data.lock import Lock

QUESTIONS = [
    Question(
        "q/long", "Which of these best explains why the moon can be seen on a clear night from far away on earth?"
    ),
    Question("q/short", "Which of these is a function of all cells?"),
    Question("q/tiny", "What now?"),
    Question("q/none", "???"),
]


def chat(user: str, assistant: str = "The answer is B.", system: str | None = None) -> dict[str, Any]:
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


def item(name: str, question: str) -> dict[str, Any]:
    return {"id": name, "question": question, "choice_labels": ["A", "B"], "choices": ["x", "y"], "correct_answer": "A"}


def planted(config: Config, pins: Lock, **facts: dict[str, Any]) -> Gates:
    """Gates of a clean experiment; `facts`: coupling set -> what is different about it."""
    found = {}
    for name in training_sets(config):
        clean = {
            "rows": 640, "unique_questions": 192, "questions": "83c28d5faacf", "sources": ["a", "b"],
            "builder": "coupling 2", "system_rows": 640, "answer_chars_mean": 16.0,
            "rows_without_prompt": 0, "check_version": CHECKS["facts"],
        }  # fmt: skip
        line = Gate("facts", pins[name].md5, NONE, name, clean | facts.get(name, {}))
        found[line.place] = line
        for other in evaluation_sets(config):
            line = overlap_line(name, other, pins)
            found[line.place] = line
    return found


def overlap_line(training: str, evaluation: str, pins: Lock, ids: tuple[str, ...] = (), rows: str = "") -> Gate:
    facts: dict[str, Any] = {
        "evaluation_rows": 1170,
        "evaluation_hits": len(ids),
        "training_rows": 6000,
        "training_hits": len(ids),
    }
    facts |= {"exact_hits": len(ids), "near": 0, "near_misses": []}
    facts["check_version"] = CHECKS["overlap"]
    names = f"{training} x {evaluation}"
    return Gate("overlap", pins[training].md5, pins[evaluation].md5, names, facts, tuple(ids), rows)
