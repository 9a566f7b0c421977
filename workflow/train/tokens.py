"""Rows to tokens and mask: what is learned from, token by token."""

from dataclasses import dataclass
from typing import Any

from workflow.data.rows import Message
from workflow.stage import StageError

IGNORE = -100  # torch's ignore_index: no loss on this token


@dataclass
class Tokens:
    """Rows ready for the trainer, and the facts about them."""

    rows: list[dict[str, list[int]]]
    facts: dict[str, Any]
    shown: str


def tokenize(chats: list[list[Message]], tokenizer: Any, max_length: int, overlong: str) -> Tokens:
    """Token ids and labels of each chat; the loss is on assistant tokens, including the end of each turn.

    Raises:
        StageError: a row of which no token, or every token, is in the loss: the template's marks do not work; or,
            with `overlong: refuse`, a row whose targets all lie beyond `max_length`.
    """
    rows, cut, lost = [], 0, []
    for number, chat in enumerate(chats, 1):
        done = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = done["input_ids"], done["assistant_masks"]
        if not any(mask) or all(mask):
            which = "every token" if all(mask) else "no token"
            raise StageError(f"row {number}: {which} is in the loss. Its roles are {[m['role'] for m in chat]}.")
        cut += len(ids) > max_length
        labels = [i if m else IGNORE for i, m in zip(ids, mask, strict=True)][:max_length]
        if all(label == IGNORE for label in labels):
            lost.append(number)
        else:
            rows.append({"input_ids": ids[:max_length], "labels": labels})
    if lost and overlong == "refuse":
        raise StageError(
            f"rows {_some(lost)}: the answer lies beyond max_length {max_length} whole. Raise it, take the rows out, "
            "or set `overlong: drop`, which counts them."
        )
    total = sum(len(r["input_ids"]) for r in rows)
    targets = sum(label != IGNORE for r in rows for label in r["labels"])
    facts = {
        "rows_read": len(chats),
        "rows": len(rows),
        "rows_dropped": len(lost),
        "rows_truncated": cut,
        "tokens": total,
        "loss_tokens": targets,
        "masked_fraction": round(1 - targets / total, 6),
        "first_prompt": tokenizer.decode(rows[0]["input_ids"]),
    }
    return Tokens(rows, facts, show_mask(rows[0], tokenizer))


def count_targets(row: dict[str, list[int]]) -> int:
    """Count the tokens of a row that are predicted and in the loss; nothing predicts the first."""
    return sum(label != IGNORE for label in row["labels"][1:])


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} more" if len(numbers) > 5 else "")


def show_mask(row: dict[str, list[int]], tokenizer: Any) -> str:
    """A decoded row with the tokens in the loss between brackets: [[like this]]."""
    text, inside = "", False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if (label != IGNORE) != inside:
            text += "]]" if inside else "[["
            inside = not inside
        text += tokenizer.decode([token])
    return text + ("]]" if inside else "")
