"""Attend over rows that lie joined in one sequence without padding: `attn_implementation: varlen`.

A joined batch has shape (1, tokens); `cu_seq_lens_q` (rows + 1, int32) says where each row begins and ends, and no
token sees another row. On a GPU torch's own variable-length attention computes it, on a CPU SDPA row by row.
"""

from typing import Any

VARLEN = "varlen"
JOINING = (VARLEN, "flash_attention_2", "flash_attention_3")  # what reads cu_seq_lens


def joins_rows(placement: dict[str, Any]) -> bool:
    """Whether a placement lays rows in one sequence. flash_attention alone pads, as it did before token budgets."""
    attention = placement["attn_implementation"]
    return attention == VARLEN or (attention in JOINING and placement.get("tokens_per_device") is not None)


_parameters: frozenset[str] = frozenset()  # of torch's kernel, which has grown some from release to release


def register() -> None:
    """Make `attn_implementation="varlen"` known to transformers. It has no mask function, so no mask is built."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn
    from transformers import AttentionInterface

    global _parameters
    _parameters = frozenset(inspect.signature(varlen_attn).parameters)
    AttentionInterface.register(VARLEN, varlen_attention)


def varlen_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    cu_seq_lens_q: Any = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Attend causally within each row.

    Args:
        query: (1, heads, tokens, head size); key and value may have fewer heads.
        cu_seq_lens_q: row boundaries, int32, from 0 to `tokens`.
        max_length_q: tokens of the longest row.

    Returns:
        (1, tokens, heads, head size), and None for the weights.

    Raises:
        ValueError: the rows' boundaries are missing: without them rows would see each other.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("varlen attention needs cu_seq_lens_q and max_length_q: the rows must be joined")
    if value.is_cuda and value.element_size() == 2:  # torch's kernel has no float32
        return _varlen_gpu(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    return _varlen_sdpa(query, key, value, cu_seq_lens_q, scaling), None


def _varlen_gpu(query: Any, key: Any, value: Any, cu: Any, longest: int, scaling: float | None) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    # rotary embedding in float32 leaves queries and keys in float32 under autocast
    query, key, value = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _parameters else {"is_causal": True}
    if "scale" in _parameters:
        options["scale"] = scaling
    elif scaling is not None and scaling != query.shape[-1] ** -0.5:
        raise ValueError(f"torch's varlen_attn scales by head size alone here, the model says {scaling}")
    if groups > 1 and "enable_gqa" in _parameters:  # torch 2.11 takes fewer key heads without being told
        options["enable_gqa"] = True
    out: Any = varlen_attn(query, key, value, cu, cu, longest, longest, **options)
    return out.view(1, tokens, -1, out.shape[-1])


def _varlen_sdpa(query: Any, key: Any, value: Any, cu: Any, scaling: float | None) -> Any:
    """Row by row: a mask over all of them would let one row's NaN, times zero, into the others."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    lengths = cu.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    rows = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    out = [scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped) for q, k, v in rows]
    return torch.cat(out, dim=2).transpose(1, 2)


def join(input_ids: Any, attention_mask: Any, labels: Any) -> dict[str, Any]:
    """Join a right-padded batch (rows, length) into the arguments of one forward pass over (1, tokens).

    The first label of each row is masked: it would be predicted from the row before.
    """
    import torch

    lengths = attention_mask.sum(1)
    cu = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
    real = attention_mask.bool()
    positions = (attention_mask.cumsum(1) - 1)[real]
    joined_labels = labels[real].masked_fill(positions == 0, -100)
    longest = int(lengths.max())
    return {
        "input_ids": input_ids[real][None],
        "position_ids": positions[None],
        "labels": joined_labels[None],
        "cu_seq_lens_q": cu,
        "cu_seq_lens_k": cu,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def spread(joined: Any, attention_mask: Any) -> Any:
    """Lay the per-token outputs of a joined pass, (1, tokens - 1), back to (rows, length - 1), zero where padded.

    Output i is of token i + 1; the one of a row's first token is masked in `join` and dropped here.
    """
    import torch

    real = attention_mask.bool()
    flat = torch.cat([joined.new_zeros(1), joined[0]])
    return flat.new_zeros(real.shape).masked_scatter(real, flat)[:, 1:]
