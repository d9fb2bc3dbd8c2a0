"""The gradient of a chunk's row losses in place of its raw products, against autograd in float64.

The KL enters as what `pact_kl` hands over: softmax_factor * lse and sparse * z have the gradients
by the logits that these stand for. Every chunk holds NaN beyond its last column and in its ignored
rows.

Legend: M chunk rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pact_kernels.kernels._device.operands import Softmax, SparseKl
from pact_kernels.kernels._kernels.chunk_gradient import launch_chunk_gradient
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
from tests.kernels.rounding import round_to_nearest

WHOLE_BLOCK = chunk_config(torch.bfloat16, crowded=False).block
ROUNDING = {torch.float32: 4e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""What one value is off by; an exponential in fp32 may be off by a few dozen roundings."""


@pytest.fixture(autouse=True)
def nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    round_to_nearest(monkeypatch)


def kl_of(
    target: Tensor, vocabulary: int, softmax_factor: bool = True, tokens: int = 19
) -> SparseKl:
    """Random entries; the first and the last token are selected, and the first row's target."""
    g = torch.Generator().manual_seed(2)
    ids = torch.randperm(vocabulary, generator=g)[:tokens]
    ids = torch.cat((torch.tensor([0, vocabulary - 1]), target[:1], ids)).unique()
    ids = ids[ids >= 0].flip(0)  # in no order
    sparse = randn(target.numel(), ids.numel(), seed=3)
    return SparseKl(ids, 0, sparse, randn(target.numel(), seed=4).abs() if softmax_factor else None)


def gradient(
    raw: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    row_grad: Tensor | None,
    kl: SparseKl | None,
    options: LossOptions,
) -> Tensor:
    """What autograd makes of the raw products (M, V), in float64."""
    leaf = raw.double().requires_grad_()
    z = logits(leaf, bias, options)
    loss = row_terms(z, target, options)
    if kl is not None:
        loss = loss + (kl.sparse.double() * z[:, kl.token_ids]).sum(-1)
        if kl.softmax_factor is not None:
            loss = loss + kl.softmax_factor.double() * z.logsumexp(-1)
    (loss if row_grad is None else loss * row_grad.double()).sum().backward()
    assert leaf.grad is not None
    if target is not None:
        leaf.grad[target == options.ignore_index] = 0.0
    return leaf.grad


def softmax_of(z: Tensor) -> Softmax:
    """What `chunk_loss` hands over, from float64 logits (M, V)."""
    row_max = z.amax(-1)
    return Softmax(row_max.float(), (z - row_max[:, None]).exp().sum(-1).float())


def check(
    raw: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    row_grad: Tensor | None,
    kl: SparseKl | None,
    options: LossOptions,
    *,
    atol: float = 4e-6,  # logits of up to 15 nats, each rounded to fp32, exponentiated
) -> None:
    expected = gradient(raw, bias, target, row_grad, kl, options)
    softmax = softmax_of(logits(raw.double(), bias, options))
    if target is not None:
        ignored = target == options.ignore_index
        for rows in (raw, *softmax, row_grad, *(kl or ())[2:]):
            if rows is not None:
                rows[ignored] = torch.nan
    launch_chunk_gradient(
        raw, options.head(bias), target, softmax, row_grad, kl, request=options.request
    )
    beyond = raw.as_strided(
        (raw.shape[0], raw.stride(0) - raw.shape[1]), raw.stride(), raw.shape[1]
    )
    assert beyond.numel() == 0 or torch.isnan(beyond).all()  # nothing is written there
    torch.testing.assert_close(raw.double(), expected, rtol=ROUNDING[raw.dtype], atol=atol)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_gradients(dtype: torch.dtype, name: str) -> None:
    """With a KL over the vocabulary, and a factor of its own for each row."""
    raw, bias = random_chunk(dtype), randn(VOCABULARY, seed=1).to(dtype)
    target = targets(ROWS, VOCABULARY)
    kl, row_grad = kl_of(target, VOCABULARY), torch.linspace(-1.0, 2.0, ROWS)
    check(raw, bias, target, row_grad, kl, LossOptions(**OPTIONS[name]))


PARTS: dict[str, dict[str, Any]] = {
    "no KL": {"kl": None},
    "no softmax factor": {"softmax_factor": False},
    "no row_grad": {"row_grad": None},
    "no bias": {"bias": None},
    "alone": {"kl": None, "row_grad": None, "bias": None},
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_left_out(name: str) -> None:
    target = targets(ROWS, VOCABULARY)
    given = {
        "bias": randn(VOCABULARY, seed=1),
        "row_grad": torch.linspace(-1.0, 2.0, ROWS),
        "kl": kl_of(target, VOCABULARY, softmax_factor=PARTS[name].get("softmax_factor", True)),
    }
    given |= {part: value for part, value in PARTS[name].items() if part != "softmax_factor"}
    options = LossOptions(label_smoothing=0.1)
    check(random_chunk(torch.float32), target=target, options=options, **given)


@pytest.mark.parametrize("term", ["logsumexp", "none"])
def test_without_targets(term: str) -> None:
    kl = kl_of(torch.full((ROWS,), -100), VOCABULARY)
    check(random_chunk(torch.float32), None, None, None, kl, LossOptions(term=term))


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "fp16"])
def test_more_than_one_block(dtype: torch.dtype, name: str) -> None:
    """Targets and selected tokens in both."""
    options = LossOptions(**OPTIONS[name])
    vocabulary = two_blocks(dtype, options)
    bias, target = randn(vocabulary, seed=1).to(dtype), targets(3, vocabulary)
    kl = kl_of(target, vocabulary)
    assert bool((kl.token_ids > vocabulary - 37).any())
    check(random_chunk(dtype, 3, vocabulary), bias, target, None, kl, options)


@pytest.mark.parametrize("tokens", [1, 16, 17, 300])
def test_numbers_of_selected_tokens(tokens: int) -> None:
    """Around the least tile, and every token of the vocabulary but one."""
    target = targets(ROWS, VOCABULARY, ignored=False)
    ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))[:tokens]
    kl = SparseKl(ids, 0, randn(ROWS, tokens), None)
    check(random_chunk(torch.bfloat16), None, target, None, kl, LossOptions())


@pytest.mark.parametrize("rows, vocabulary", [(0, 5), (1, 1), (2, WHOLE_BLOCK)])
def test_sizes(rows: int, vocabulary: int) -> None:
    raw = random_chunk(torch.bfloat16, rows, vocabulary)
    check(raw, None, targets(rows, vocabulary, ignored=False), None, None, LossOptions())


@pytest.mark.parametrize("ignore_index", [-1, 0, 5])
def test_the_ignored_target_may_be_a_token(ignore_index: int) -> None:
    target = torch.tensor([ignore_index, 3, 300, 7, ignore_index, 8, 9])
    options = LossOptions(ignore_index=ignore_index)
    check(random_chunk(torch.float32), None, target, None, None, options)


def test_all_rows_ignored() -> None:
    raw = chunk(torch.full((ROWS, VOCABULARY), torch.nan), torch.bfloat16)
    target, softmax = torch.full((ROWS,), -100), Softmax(torch.zeros(ROWS), torch.ones(ROWS))
    options = LossOptions()
    launch_chunk_gradient(
        raw, options.head(None), target, softmax, None, None, request=options.request
    )
    assert torch.equal(raw, torch.zeros_like(raw))


def test_tokens_ruled_out_by_the_bias_have_no_gradient() -> None:
    bias = randn(VOCABULARY, seed=1)
    bias[-20:] = -torch.inf
    raw, target = random_chunk(torch.float32), targets(ROWS, 200)
    softmax = softmax_of(raw.double() + bias)
    expected = (raw.double() + bias).softmax(-1)
    keep = target != -100
    expected[keep, target[keep]] -= 1.0
    options = LossOptions()
    launch_chunk_gradient(
        raw, options.head(bias), target, softmax, None, None, request=options.request
    )
    torch.testing.assert_close(raw.double(), expected * keep[:, None], rtol=1e-5, atol=1e-6)
    assert not raw[:, -20:].any()


def test_extreme_logits() -> None:
    """Up to 1e4: the probabilities keep their digits, which a rounded log-sum-exp would cost."""
    values = 3.0 * randn(ROWS, VOCABULARY)
    values[0] = 7.0
    values[1], values[2] = 1e4, -1e4
    values[4, 150] = values[5, 150] = 1e4
    values[6, ::2] = -1e4
    target = torch.tensor([3, 3, 3, 3, 150, 7, 7])
    for dtype in (torch.float32, torch.bfloat16):
        check(chunk(values, dtype), None, target, None, None, LossOptions())
    options = LossOptions(softcap=30.0)  # flat at its ends: a token far beyond has no gradient
    check(chunk(values, torch.float32), None, target, None, None, options, atol=1e-5)
