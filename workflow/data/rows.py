"""What a row of each kind must hold. Readers give one form, and name the line of what they cannot read."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from workflow.errors import printable
from workflow.store import StoreError

LETTERS = "ABCDEFGHIJ"
Message = dict[str, str]
T = TypeVar("T")


class RowError(StoreError):
    """A row is not of its declared kind: file, line, fault, cure."""


@dataclass(frozen=True)
class Item:
    """A question with its answer: lettered options, or none and a number as the answer."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: str

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.choices)]

    def prompt(self) -> str:
        """`{question}`, a blank line and `(A) ...` lines; the bare question if it has no options."""
        options = [f"({letter}) {choice}" for letter, choice in zip(self.letters, self.choices, strict=True)]
        return "\n\n".join([self.question, "\n".join(options)]) if options else self.question


@dataclass(frozen=True)
class Pair:
    """A preference: the messages that both answers share, and the two last assistant turns."""

    id: str
    prompt: list[Message]
    chosen: Message
    rejected: Message


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON lines file that somebody else wrote.

    Raises:
        RowError: a line that is not UTF-8, no JSON object, or holds NaN, half a character (a lone surrogate), an
            integer of thousands of digits or hundreds of levels; the line is named.
    """
    return [row for _, row in _numbered(path)]


def _numbered(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
                if b"\\u" in line:
                    json.dumps(row, ensure_ascii=False).encode("utf-8")
            except json.JSONDecodeError as error:
                fault = f"not JSON ({error.msg})"
            except UnicodeDecodeError:
                fault = "not UTF-8"
            except UnicodeEncodeError:
                fault = "half a character (a lone surrogate)"
            except RecursionError:
                fault = "nested too deep"
            except ValueError as error:
                fault = str(error).split(";")[0]
            else:
                if isinstance(row, dict):
                    yield number, row
                    continue
                fault = "a row must be a JSON object"
            raise RowError(f"{path}, line {number}: {fault}. Correct the line.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _each(path: str | Path, read: Callable[[int, dict[str, Any]], T]) -> list[T]:
    found = []
    for number, row in _numbered(path):
        try:
            found.append(read(number, row))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            fault = f"the name {error} is missing" if isinstance(error, KeyError) else str(error)
            raise RowError(f"{path}, line {number}: {printable(fault)[:300]}. Correct the row.") from None
    if not found:
        raise RowError(f"{path}: no rows.")
    return found


def _text(row: dict[str, Any], name: str) -> str:
    """A text of a row that holds more than blanks."""
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` must be text, and not empty")
    return value


def read_messages(path: str | Path) -> list[list[Message]]:
    """Chats of an SFT set (`messages`): system at most once and first, user and assistant in turn, assistant last."""
    return _each(path, lambda _, row: _chat(row["messages"]))


def _chat(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("`messages` must be a list of turns, each with role and content")
    chat = [{"role": m["role"], "content": m["content"]} for m in messages]
    roles = [m["role"] for m in chat]
    if "assistant" not in roles:
        raise ValueError("no assistant turn, so nothing to learn from")
    if any(not isinstance(m["content"], str) for m in chat):
        raise ValueError("a turn's content must be text")
    if not all(isinstance(role, str) for role in roles):
        raise ValueError("a turn's role must be text")
    if set(roles) - {"system", "user", "assistant"} or "system" in roles[1:]:
        raise ValueError(f"roles {roles}: only system (first), user and assistant")
    if roles[-1] != "assistant":
        raise ValueError("the last turn must be the assistant's")
    if not any(m["content"].strip() for m in chat if m["role"] == "assistant"):
        raise ValueError("every assistant turn is empty")
    return chat


def read_preferences(path: str | Path) -> list[Pair]:
    """Pairs of a preference set (`chosen`, `rejected`: whole chats that differ in the last assistant turn only)."""

    def read(number: int, row: dict[str, Any]) -> Pair:
        chosen, rejected = _chat(row["chosen"]), _chat(row["rejected"])
        if chosen[:-1] != rejected[:-1]:
            raise ValueError("chosen and rejected answer different prompts")
        if chosen[-1] == rejected[-1]:
            raise ValueError("chosen and rejected are the same answer")
        return Pair(str(row.get("id", number)), chosen[:-1], chosen[-1], rejected[-1])

    return _each(path, read)


def read_items(path: str | Path) -> list[Item]:
    """Multiple-choice items in the ARC forms (flat, or the hub's `choices: {text, label}`) or that of MMLU-Pro
    (`options`, `answer_index`), or `#### N` answers."""
    return _each(path, _item)


def _item(number: int, row: dict[str, Any]) -> Item:
    name = row.get("question_id") if "options" in row else row.get("id")
    name = str(number if name is None else name)
    question = _text(row, "question")
    if "options" in row:
        options, place = _options(row["options"], "options"), row["answer_index"]
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(options):
            raise ValueError(f"{len(options)} options, of which number {place!r} is right")
        return Item(name, question, options, LETTERS[place])
    if "choices" not in row:
        found = re.search(r"####\s*(-?[\d,.]+)\s*$", _text(row, "answer")[-100:])
        number_text = found[1].replace(",", "") if found else ""
        if not re.fullmatch(r"-?\d+(\.\d+)?", number_text, re.ASCII):
            raise ValueError("an item without choices needs an answer that ends in `#### N`")
        return Item(name, question, (), number_text)
    choices = row["choices"]
    given, labels = (
        (choices["text"], choices["label"]) if isinstance(choices, dict) else (choices, row["choice_labels"])
    )
    texts = _options(given, "choices")
    answer = row["answerKey"] if "answerKey" in row else row["correct_answer"]
    if (
        not isinstance(labels, list)
        or len(texts) != len(labels)
        or len({str(label) for label in labels}) != len(labels)
    ):
        raise ValueError(f"{len(texts)} choices need as many labels, each another")
    if answer not in labels:
        raise ValueError(f"the answer {answer!r} is none of the labels {labels}")
    # Some items are labelled 1-4: by position, they are lettered like the others.
    return Item(name, question, texts, LETTERS[labels.index(answer)])


def _options(given: Any, name: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
        raise ValueError(f"`{name}` must be a list of texts, none of them empty")
    if not 2 <= len(given) <= len(LETTERS):
        raise ValueError(f"{len(given)} {name}: 2 to {len(LETTERS)} can be lettered")
    if len({text.strip() for text in given}) < len(given):
        raise ValueError(f"two of the {name} are the same text")
    return tuple(given)


def read_questions(path: str | Path) -> list[dict[str, Any]]:
    """Open questions: id, system (null: none) and question."""

    def read(_: int, row: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(row["system"], str | None):
            raise ValueError("`system` must be text or null")
        return {"id": str(row["id"]), "system": row["system"], "question": _text(row, "question")}

    rows = _each(path, read)
    if len({r["id"] for r in rows}) != len(rows):
        raise RowError(f"{path}: two questions have one id.")
    return rows


def read_prompts(path: str | Path) -> dict[str, str]:
    """Judge prompts by name, each with `{question}` and `{answer}` in it."""

    def read(_: int, row: dict[str, Any]) -> tuple[str, str]:
        prompt = _text(row, "prompt")
        if prompt.count("{question}") != 1 or prompt.count("{answer}") != 1:
            raise ValueError("a judge prompt needs {question} and {answer}, once each")
        return _text(row, "name"), prompt

    return dict(_each(path, read))


def read_text(path: str | Path) -> list[str]:
    """Plain text rows (`text`)."""
    return _each(path, lambda _, row: _text(row, "text"))


READERS: dict[str, Callable[[str | Path], Any]] = {
    "messages": read_messages,
    "preferences": read_preferences,
    "items": read_items,
    "questions": read_questions,
    "prompts": read_prompts,
    "text": read_text,
}
