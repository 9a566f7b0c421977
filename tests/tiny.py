"""A tiny random model with the project's chat template, for tests of what is asked of a model rather than learnt."""

from functools import cache
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parents[1] / "config/templates/tulu.jinja"
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    # at the default 0.02 every distribution is nearly flat, and a wrong one would look right
    "initializer_range": 0.3,
}
TEXTS = ["What is the colour of the sky? (A) red (B) blue (C) green (D) none (E) all of these. The correct answer is ("]


@cache
def tokenizer(vocab_size: int = 320) -> Any:
    """Byte-level and left-padded, as the evaluations load theirs."""
    from workflow.train import toy

    made = toy.make_tokenizer(TEXTS, vocab_size)
    made.chat_template = TEMPLATE.read_text()
    made.padding_side = "left"
    return made


@cache
def model(seed: int = 7) -> Any:
    from workflow.train import toy

    return toy.make_model(SHAPE, tokenizer(), seed).eval()


def save(folder: Path) -> Path:
    """Model and tokenizer as a finished stage leaves them."""
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
