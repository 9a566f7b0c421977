"""The demo's tokenizer and model: as small as they can be and still learn the demo's world on one CPU core."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

# Distinct on purpose: with pad = eos a collator that masks padding also masks the end of every answer, and the model
# never learns to stop.
EOS, PAD = "<|endoftext|>", "<|pad|>"


def make_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE of at most `vocab_size` entries, special tokens included, trained on `texts` in their order.

    Byte-level, so that every string has tokens and decodes to itself. The pre-tokenizer splits words from punctuation,
    so the letter after "(" is one token of its own, which the letter log-probabilities of the evaluation rely on.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def make_model(shape: dict, tokenizer: "PreTrainedTokenizerFast", seed: int) -> "Qwen2ForCausalLM":
    """A float32 Qwen2 with random weights. `shape` holds fields of Qwen2Config: hidden_size, num_hidden_layers, ...;
    the vocabulary and the special tokens come from the tokenizer, so they cannot disagree with it."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **shape,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    # Forked, so that a caller's own random numbers do not depend on whether a model was made here.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).float()
