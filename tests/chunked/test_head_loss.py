"""The chunk loop's own cut, and what it promises about its buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pact_kernels as pk
from pact_kernels.chunked import head_loss as loop
from pact_kernels.chunked.head_loss import add_weight_gradient_, kept_rows
from tests.ops.compare import TINY_MIB
from tests.ops.problem import problem


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows of a slab, rows of its blocks) for every slab that runs."""
    seen: list[tuple[int, int]] = []
    original = loop._SlabWork.slab

    def recorded(self: Any, rows: torch.Tensor, start: int, values: torch.Tensor) -> torch.Tensor:
        seen.append((rows.shape[0], min(self.block_rows, rows.shape[0])))
        return original(self, rows, start, values)

    monkeypatch.setattr(loop._SlabWork, "slab", recorded)
    return seen


def test_the_tests_tiny_workspace_makes_ragged_slabs(cuts: list[tuple[int, int]]) -> None:
    p = problem()
    with pk.workspace(TINY_MIB):
        pk.linear_cross_entropy(p.hidden, p.weight, p.target)
    rows = [slab for slab, _ in cuts]
    assert sum(rows) == int((p.target != -100).sum())
    assert len(rows) > 2 and rows[-1] < rows[0]


def test_a_softcap_makes_several_blocks_of_a_slab(cuts: list[tuple[int, int]]) -> None:
    p = problem(rows=70)
    with pk.workspace(0.05):
        pk.linear_cross_entropy(p.hidden.clone().requires_grad_(), p.weight, p.target, softcap=5.0)
    slab, block = cuts[0]
    assert 1 < block < slab < 70
    assert slab % block  # the last block is ragged


def test_a_slab_of_one_row_however_small_the_workspace(cuts: list[tuple[int, int]]) -> None:
    p = problem()
    with pk.workspace(1e-6):
        pk.linear_cross_entropy(p.hidden, p.weight, p.target)
    assert {slab for slab, _ in cuts} == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_poisoned_buffers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a fresh buffer holds, none of it reaches a result."""
    p = problem()
    new_empty = torch.Tensor.new_empty

    def results() -> list[torch.Tensor]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (p.hidden, p.weight, p.bias)]
        hidden, weight, bias = leaves
        with pk.workspace(TINY_MIB):
            loss = pk.pact_loss(
                hidden,
                weight,
                p.target,
                p.token_ids,
                p.token_weights,
                p.step,
                pk.ReferenceStates(*(t.to(dtype) for t in p.states[:3])),
                over="vocabulary",
                bias=bias,
                softcap=5.0,
            ).loss
            loss.backward()
            logits = pk.selected_logits(hidden, weight, p.token_ids)
            logits.sum().backward()
        return [loss.detach(), logits.detach(), *(leaf.grad for leaf in leaves)]

    clean = results()

    def poisoned(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        buffer = new_empty(self, *args, **kwargs)
        return buffer.fill_(torch.nan) if buffer.is_floating_point() else buffer.fill_(-1)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    assert torch.isnan(clean[0].new_empty(2)).all()
    assert all(torch.equal(a, b) for a, b in zip(results(), clean, strict=True))


def test_kept_rows() -> None:
    target = torch.tensor([3, -100, 0, -100])
    assert kept_rows(target, -100, 5, None).tolist() == [0, 2]
    assert kept_rows(target[:1], -100, 5, None) is None
    assert kept_rows(None, -100, 5, None) is None
    assert kept_rows(target[1:2], -100, 5, None).tolist() == []
    assert kept_rows(target[:0], -100, 5, None) is None


def test_kept_rows_whose_number_is_known() -> None:
    target = torch.tensor([3, -100, 0, -100])
    assert kept_rows(target, -100, 5, 2).tolist() == [0, 2]
    assert kept_rows(target, -100, 5, 4) is None  # as many as there are positions: all stay
    with pytest.raises(ValueError, match="one entry per row, 2 once .*per position, 4.*, got 3"):
        kept_rows(target, -100, 5, 3)


@pytest.mark.parametrize("limit_bytes", [1, 1000, 10**6])
def test_the_weights_gradient_of_16_bit_slabs_is_summed_in_fp32(limit_bytes: int) -> None:
    """Products of 1 + 2^-7 with itself, which 8 bits of mantissa cannot hold."""
    gradient = torch.full((5, 7), 1 + 2**-7, dtype=torch.bfloat16)
    rows = torch.full((5, 3), 1 + 2**-7, dtype=torch.bfloat16)
    total = torch.ones(7, 3)
    add_weight_gradient_(total, gradient, rows, limit_bytes)
    assert torch.equal(total, torch.full((7, 3), 1 + 5 * (1 + 2**-7) ** 2))
