"""Row losses and log-sum-exps of a chunk, by the launcher itself, against float64.

Every chunk holds NaN beyond its last column and in its ignored rows: neither may be read.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pact_kernels.kernels._device.operands import Softmax
from pact_kernels.kernels._kernels.chunk_loss import launch_chunk_loss
from pact_kernels.kernels._launch.configs import chunk_config
from tests.kernels.chunk import (
    DTYPES,
    OPTIONS,
    ROWS,
    VOCABULARY,
    LossOptions,
    chunk,
    logits,
    randn,
    random_chunk,
    row_terms,
    targets,
    two_blocks,
)

WHOLE_BLOCK = chunk_config(torch.bfloat16, crowded=False).block


def losses(
    z: Tensor, bias: Tensor | None, target: Tensor | None, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Terms and log-sum-exps (M,) that the kernel leaves in buffers of NaN."""
    term, row_max, sum_exp = torch.full((3, z.shape[0]), torch.nan)
    launch_chunk_loss(
        z, options.head(bias), target, term, Softmax(row_max, sum_exp), request=options.request
    )
    return term, row_max + sum_exp.log()


def check(
    raw: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    options: LossOptions,
    *,
    atol: float = 4e-6,  # logits of up to 15 nats, each rounded to fp32
) -> None:
    z = logits(raw.double(), bias, options)
    ignored = torch.zeros(raw.shape[0], dtype=torch.bool)
    if target is not None:
        ignored = target == options.ignore_index
    raw[ignored] = torch.nan
    before = raw.clone()
    term, lse = losses(raw, bias, target, options)
    assert torch.equal(raw.nan_to_num(), before.nan_to_num())  # the chunk is read alone
    if options.term != "none":
        expected = row_terms(z, target, options).masked_fill(ignored, 0.0)
        torch.testing.assert_close(term.double(), expected, rtol=1e-6, atol=atol)
    expected = z.logsumexp(-1).masked_fill(ignored, 0.0)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_terms(dtype: torch.dtype, name: str) -> None:
    raw, bias = random_chunk(dtype), randn(VOCABULARY, seed=1).to(dtype)
    check(raw, bias, targets(ROWS, VOCABULARY), LossOptions(**OPTIONS[name]))


def test_without_bias_or_target() -> None:
    for options in (LossOptions(), LossOptions(term="logsumexp"), LossOptions(term="none")):
        check(random_chunk(torch.bfloat16), None, None, options)
    check(random_chunk(torch.bfloat16), None, targets(ROWS, VOCABULARY), LossOptions())


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_more_than_one_block(dtype: torch.dtype, name: str) -> None:
    """Three rows: the first token, the last one, which lies in the ragged block, and any other."""
    options = LossOptions(**OPTIONS[name])
    vocabulary = two_blocks(dtype, options)
    bias = randn(vocabulary, seed=1).to(dtype)
    raw = random_chunk(dtype, 3, vocabulary)
    raw[0, -1] = 18.0  # this row's maximum lies in the second block, the others' in the first
    check(raw, bias, targets(3, vocabulary), options)


@pytest.mark.parametrize("rows, vocabulary", [(0, 5), (1, 1), (1, 2), (2, WHOLE_BLOCK)])
def test_sizes(rows: int, vocabulary: int) -> None:
    """No row; one token, whose loss is 0; a whole block."""
    raw = random_chunk(torch.bfloat16, rows, vocabulary)
    check(raw, None, targets(rows, vocabulary, ignored=False), LossOptions())


@pytest.mark.parametrize("ignore_index", [-1, 0, 5])
def test_the_ignored_target_may_be_a_token(ignore_index: int) -> None:
    target = torch.tensor([ignore_index, 3, 300, 7, ignore_index, 8, 9])
    check(random_chunk(torch.float32), None, target, LossOptions(ignore_index=ignore_index))


def test_all_rows_ignored() -> None:
    target = torch.full((ROWS,), -100)
    raw = torch.full((ROWS, VOCABULARY), torch.nan)
    for value in losses(raw, None, target, LossOptions(label_smoothing=0.1)):
        assert torch.equal(value, torch.zeros(ROWS))


@pytest.mark.parametrize("ruled_out", ["last", "first block", "second block", "all but one"])
def test_tokens_ruled_out_by_the_bias(ruled_out: str) -> None:
    """A bias of -inf, as on a padded vocabulary, and blocks that hold nothing else."""
    options = LossOptions()
    vocabulary = two_blocks(torch.float32, options)
    bias = randn(vocabulary, seed=1)
    block = vocabulary - 37
    bias[
        {
            "last": slice(-20, None),
            "first block": slice(None, block),
            "second block": slice(block, None),
            "all but one": slice(None, -1),
        }[ruled_out]
    ] = -torch.inf
    allowed = bias.isfinite().nonzero().squeeze(1)
    target = allowed[torch.tensor([0, -1, 0])]
    check(random_chunk(torch.float32, 3, vocabulary), bias, target, options)


def test_extreme_logits() -> None:
    """Up to 1e4, whose own roundings in fp32 are of 5e-4."""
    values = 3.0 * randn(ROWS, VOCABULARY)
    values[0] = 7.0  # all equal: log V
    values[1], values[2] = 1e4, -1e4
    values[4, 150] = 1e4  # one dominates: the loss is 0 there, and 1e4 elsewhere
    values[5, 150] = 1e4
    values[6, ::2] = -1e4
    target = torch.tensor([3, 3, 3, 3, 150, 7, 7])
    for dtype in (torch.float32, torch.bfloat16):
        raw = chunk(values, dtype)
        check(raw.clone(), None, target, LossOptions(), atol=2e-3)
        term, lse = losses(raw, None, target, LossOptions())
        assert bool(torch.isfinite(term).all() and torch.isfinite(lse).all())
        log_v = torch.tensor(VOCABULARY).log()
        torch.testing.assert_close(term[0], log_v, rtol=0, atol=2e-6)
        torch.testing.assert_close(term[1:3], log_v.expand(2), rtol=0, atol=2e-3)


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_a_cap_bounds_extreme_logits(value: float) -> None:
    values = 3.0 * randn(ROWS, VOCABULARY)
    values[:, 5] = value
    options = LossOptions(softcap=30.0)
    check(chunk(values, torch.float32), None, targets(ROWS, VOCABULARY), options, atol=1e-5)
