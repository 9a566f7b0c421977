"""Rows joined without padding: none sees another, and lengths and losses are those of the padded rows."""

import copy
import random

import pytest

from tests import tiny
from workflow.stage import StageError
from workflow.train import attention, steps

LENGTHS = [7, 3, 12, 1, 9]


@pytest.fixture(scope="module")
def model():
    import torch

    attention.register()
    torch.manual_seed(3)
    found = type(tiny.model())(copy.deepcopy(tiny.model().config)).double()  # other tests share that one
    found.set_attn_implementation("varlen")
    return found


def padded(rows):
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask, ids.masked_fill(mask == 0, -100)


def rows_of(lengths, seed=0):
    source = random.Random(seed)
    return [[source.randrange(3, 300) for _ in range(n)] for n in lengths]


def log_probs(model, rows):
    """Per token, (rows, length - 1), by one joined pass."""
    import torch

    ids, mask, labels = padded(rows)
    batch = attention.join(ids, mask, labels)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits.log_softmax(-1)
    labels = batch["labels"][:, 1:]
    picked = logits[:, :-1].gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return attention.spread(torch.where(labels == -100, torch.zeros_like(picked), picked), mask)


def test_joined_rows_have_the_log_probabilities_of_padded_ones(model):
    import torch

    rows = rows_of(LENGTHS)
    found = log_probs(model, rows)
    model.set_attn_implementation("sdpa")
    try:
        for row, line in zip(rows, found, strict=True):
            ids = torch.tensor([row])
            alone = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            assert torch.allclose(line[: len(row) - 1], alone, atol=1e-10)
            assert not line[len(row) - 1 :].any()
    finally:
        model.set_attn_implementation("varlen")


def test_a_rows_gradient_does_not_depend_on_its_neighbours(model):
    """The gradient of one row's loss, with two different sets of rows around it."""
    import torch

    row = rows_of([8], seed=1)[0]

    def gradient(before, after):
        model.zero_grad()
        log_probs(model, [*rows_of(before, seed=2), row, *rows_of(after, seed=4)])[len(before)].sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    one, other = gradient([5, 2], [6]), gradient([11, 4], [3, 9])
    assert one.norm() > 0.1
    assert torch.allclose(one, other, atol=1e-10)


def test_attention_without_the_rows_boundaries_is_refused(model):
    import torch

    with pytest.raises(ValueError, match="the rows must be joined"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


@pytest.mark.parametrize(
    ("placed", "joined"),
    [
        ({"attn_implementation": "sdpa"}, False),
        ({"attn_implementation": "flash_attention_2", "per_device_train_batch_size": 4}, False),
        ({"attn_implementation": "flash_attention_2", "tokens_per_device": 4096}, True),
        ({"attn_implementation": "varlen", "per_device_train_batch_size": 4}, True),
    ],
)
def test_an_old_placement_of_flash_attention_pads_as_before(placed, joined):
    assert attention.joins_rows(placed) is joined


# --- micro-batches --------------------------------------------------------------------------------------------------


def test_a_row_count_keeps_the_order_and_gives_each_process_as_many():
    assert steps.divide([5] * 7, 1, 4, None) == [[0, 1, 2, 3], [4, 5, 6]]
    assert steps.divide([5] * 5, 2, 2, None) == [[0, 1], [2, 3], [4], []]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_token_budget_bounds_every_micro_batch_and_loses_no_row(world):
    lengths = [random.Random(world).randrange(1, 100) for _ in range(41)]
    parts = steps.divide(lengths, world, None, 128)
    assert sorted(i for part in parts for i in part) == list(range(41))
    loads = [sum(lengths[i] for i in part) for part in parts]
    assert max(loads) <= 128
    assert len(parts) % world == 0
    assert loads == sorted(loads, reverse=True)  # the most memory first
    assert len(parts) <= -(-sum(lengths) // 128) + 2 * world


def test_fewer_rows_than_processes_leave_empty_micro_batches():
    assert steps.divide([9], 2, None, 64) == [[0], []]


def test_a_row_beyond_the_budget_is_refused():
    with pytest.raises(StageError, match=r"a row of 65 tokens does not fit into tokens_per_device 64"):
        steps.divide([3, 65], 1, None, 64)
