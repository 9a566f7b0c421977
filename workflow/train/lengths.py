"""Count the tokens of prompts, so that a row too long for its stage is found while data are pinned, not in a job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workflow.config import Config
from workflow.data.checks import check, tokenizer_id, training_uses
from workflow.data.gates import CHECKS, Gate, read_gates, write_gates
from workflow.data.lock import Lock
from workflow.data.rows import Message, read_messages, read_preferences, read_text
from workflow.sections import HubModel, LocalModel
from workflow.store import data_path
from workflow.train import models, toy

LISTED = 20  # rows in a line of the gates file, the longest


def check_lengths(config: Config, pins: Lock, report: Callable[[str], None] = print) -> list[str]:
    """Measure what is not measured yet of the data whose files are there. Returns what makes the data unfit."""
    known = read_gates()
    model = tokenizer_id(config, pins)
    missing = [
        name
        for name in dict.fromkeys(use.data for use in training_uses(config))
        if ("lengths", pins[name].md5, model) not in known and Path(data_path(pins[name].id)).is_file()
    ]
    if missing:
        try:
            tokenizer = load(config, pins)
        except OSError as error:
            report(
                f"warning: lengths are not checked: no tokenizer ({type(error).__name__}). Each training checks them."
            )
            return []
        found = []
        for name in missing:
            schema = config.data_entry(name).rows_are
            facts = prompt_facts(prompts_of(Path(data_path(pins[name].id)), schema), tokenizer)
            found.append(Gate("lengths", pins[name].md5, model, name, facts))
            tokens, row = facts["longest"][0]
            report(f"{name}: the longest prompt has {tokens} tokens (row {row})")
        write_gates(found)
    return [told for told in check(config, pins, read_gates()).refusals if told.startswith("lengths: ")]


def load(config: Config, pins: Lock) -> Any:
    """The tokenizer that the base stage will make, with the experiment's template.

    Raises:
        OSError: it, or the text that it is trained on, cannot be had here.
    """
    model = config.base_model
    models.quiet()
    if isinstance(model, HubModel):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model.repo, revision=pins[model.name].revision)
    elif isinstance(model, LocalModel):
        tokenizer = models.load_tokenizer(Path(model.path))
    else:
        tokenizer = toy.make_tokenizer(read_text(data_path(pins[model.text].id)), model.vocab_size)
    tokenizer.chat_template = Path(config.template).read_text()
    return tokenizer


def prompts_of(file: Path, schema: str) -> list[list[Message]]:
    """The turns before the first answer of each row, in file order."""
    if schema == "preferences":
        return [pair.prompt for pair in read_preferences(file)]
    chats = read_messages(file)
    return [chat[: next(n for n, turn in enumerate(chat) if turn["role"] == "assistant")] for chat in chats]


def prompt_facts(prompts: list[list[Message]], tokenizer: Any) -> dict[str, Any]:
    """Rows and the longest prompts, as (tokens, row number from 1); the mark that opens the answer is counted."""
    sizes = []
    for number, prompt in enumerate(prompts, 1):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        sizes.append((len(ids), number))
    longest = sorted(sizes, key=lambda size: (-size[0], size[1]))[:LISTED]
    return {"rows": len(sizes), "longest": [list(size) for size in longest], "check_version": CHECKS["lengths"]}
