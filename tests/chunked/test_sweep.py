"""A sweep over the vocabulary against the softmax of all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.chunked._sweep import Sweep, Swept
from pact_kernels.types import Head

ROWS, HIDDEN, VOCABULARY, TILE = 7, 11, 101, 32  # the last of four tiles has five tokens


def problem(softcap: float | None) -> tuple[Head, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=g, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=g, dtype=torch.float64)
    rows = 2.0 * torch.randn(ROWS, HIDDEN, generator=g, dtype=torch.float64)
    target = torch.tensor([0, 31, 32, 95, 96, 100, 50])  # at both ends of tiles
    return Head(weight, bias, softcap, 0.7), rows, target


def swept(sweep: Sweep, rows: Tensor, target: Tensor) -> tuple[Swept, Tensor]:
    sweep.allocate(rows, ROWS, TILE)
    out = torch.full_like(rows, torch.nan)
    return sweep(rows, target, out), out


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("memory", ["frozen", "kept", "lent"])
def test_a_sweep_matches_all_logits_at_once(memory: str, softcap: float | None) -> None:
    head, rows, target = problem(softcap)
    grad_weight = torch.full_like(head.weight, torch.nan)
    sweep = Sweep(
        head=head,
        product=True,
        keep=memory != "frozen",
        uniform=True,
        lent=grad_weight if memory == "lent" else None,
    )
    got, out = swept(sweep, rows, target)
    z = head.finish_(rows @ head.weight.T)
    slope = torch.ones_like(z) * head.slope(z)
    torch.testing.assert_close(got.lse, z.logsumexp(-1))
    torch.testing.assert_close(got.at_target, z.gather(1, target[:, None])[:, 0])
    torch.testing.assert_close(got.logit_sum, z.sum(-1))
    torch.testing.assert_close(got.uniform, slope @ head.weight)
    # Without a softcap the slope is one number, and the caller's.
    of_tiles = z.softmax(-1) * (slope if softcap else 1.0)
    torch.testing.assert_close(out * got.norm[:, None], of_tiles @ head.weight)
    if memory == "frozen":
        return
    factor = torch.linspace(-1.0, 2.0, ROWS, dtype=torch.float64)
    grad_bias = torch.zeros(VOCABULARY, dtype=torch.float64)
    both = factor[:, None] * of_tiles + 0.3 * factor[:, None] * slope  # (M, V)
    sweep.add_weight_gradient_(
        grad_weight, grad_bias, rows, factor, got.lse, 0.3 * factor, first=True
    )
    torch.testing.assert_close(grad_weight, both.T @ rows)
    torch.testing.assert_close(grad_bias, both.sum(0))


def test_a_lent_gradient_takes_no_memory_for_tiles() -> None:
    head, rows, _ = problem(None)
    kept = Sweep(head=head, product=True, keep=True, uniform=False)
    lent = Sweep(head=head, product=True, keep=True, uniform=False, lent=head.weight)
    saved = kept.row_bytes(rows, TILE) - lent.row_bytes(rows, TILE)
    assert saved == 8 * (VOCABULARY - TILE)  # but for one tile's copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_a_sure_token_is_not_lost_in_16_bits(dtype: torch.dtype) -> None:
    """1 - p is 2e-4, below half a step of bf16 and fp16 next to one."""
    weight = torch.zeros(3, 2, dtype=dtype)
    weight[0, 0], weight[1, 1] = 1.0, 1.0
    hidden = torch.tensor([[9.25, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0])
    pk.linear_cross_entropy(hidden, weight, target, reduction="sum").backward()
    exact = hidden.detach().double().requires_grad_()
    pk.linear_cross_entropy(exact, weight.double(), target, reduction="sum").backward()
    assert 1e-4 < -float(exact.grad[0, 0]) < 3e-4
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=2**-8, atol=0)
